//! Scopes, as Docker's clients write them: `repository:team/app:pull,push`.
//!
//! SPEC: distribution, "Token Scope Documentation".

use larder_protocol::access::Actions;
use larder_protocol::name::RepositoryName;

/// Most scopes of one request; further ones are overlooked, and the token lacks them.
pub const SCOPES_MAX: usize = 64;

/// One thing, and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Access {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// `pull`, `push`, `delete`, `*`.
    pub actions: Vec<String>,
}

/// What a token is for that is for everything its owner may do; no client can ask for it.
const ALL: &str = "all";

impl Access {
    /// Everything that the owner may do: for people who sign in to look around.
    pub fn all() -> Self {
        Self { kind: ALL.to_owned(), name: "*".to_owned(), actions: vec!["*".to_owned()] }
    }

    /// Whether it is that.
    pub fn is_all(&self) -> bool {
        self.kind == ALL
    }

    /// What a repository's actions allow. `push` lets a tag be overwritten as far as the rules do: clients know no word for it.
    pub fn allowed(&self, repository: &str) -> Actions {
        if self.is_all() {
            return of_word("*");
        }
        if self.kind != "repository" || self.name != repository {
            return Actions::default();
        }
        self.actions.iter().fold(Actions::default(), |all, word| all.and(of_word(word)))
    }
}

/// What a word of a scope allows.
pub fn of_word(word: &str) -> Actions {
    match word {
        "pull" => Actions::PULL,
        "push" => Actions::PUSH.and(Actions::OVERWRITE),
        "overwrite" => Actions::OVERWRITE,
        "delete" => Actions::DELETE,
        "*" => Actions::PULL.and(Actions::PUSH).and(Actions::OVERWRITE).and(Actions::DELETE).and(Actions::ADMIN),
        _ => Actions::default(),
    }
}

/// Reads scopes: several may stand in one text, with spaces between them. What can't be read is left out.
pub fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Access> {
    texts.flat_map(|text| text.split(' ')).filter_map(one).take(SCOPES_MAX).collect()
}

fn one(text: &str) -> Option<Access> {
    let (kind, rest) = text.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    // `repository(plugin)`: the class says nothing here.
    let kind = kind.split_once('(').map_or(kind, |(kind, _)| kind);
    match kind {
        "repository" => drop(name.parse::<RepositoryName>().ok()?),
        "registry" if name == "catalog" => {}
        _ => return None,
    }
    let mut words: Vec<String> = Vec::new();
    for word in actions.split(',') {
        if matches!(word, "pull" | "push" | "delete" | "overwrite" | "*") && !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    Some(Access { kind: kind.to_owned(), name: name.to_owned(), actions: words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_clients_write_them() {
        let read = |texts: &[&str]| {
            let read = parse(texts.iter().copied());
            read.iter().map(|access| format!("{}:{}:{}", access.kind, access.name, access.actions.join(","))).collect::<Vec<_>>()
        };
        assert_eq!(
            read(&["repository:team/app:pull,push repository:other:pull", "registry:catalog:*"]),
            ["repository:team/app:pull,push", "repository:other:pull", "registry:catalog:*"]
        );
        assert_eq!(read(&["repository(plugin):a/b:pull,pull,fly"]), ["repository:a/b:pull"]);
        for nonsense in
            ["", " ", "repository", "repository:a", "repository:A:pull", "repository:a/../b:pull", "user:x:pull", "registry:x:*"]
        {
            assert_eq!(read(&[nonsense]), Vec::<String>::new(), "{nonsense}");
        }
        let many = "repository:a:pull ".repeat(SCOPES_MAX + 5);
        assert_eq!(parse([many.as_str()].into_iter()).len(), SCOPES_MAX);
    }

    #[test]
    fn nobody_asks_for_everything_at_once() {
        assert!(Access::all().allowed("a").contains(Actions::DELETE));
        assert!(parse(["all:*:*", "all:a:*"].into_iter()).is_empty());
    }

    #[test]
    fn an_access_allows_what_it_says_and_in_its_repository() {
        let access = parse(["repository:a:pull,push"].into_iter()).remove(0);
        assert!(access.allowed("a").contains(Actions::PULL.and(Actions::PUSH)) && !access.allowed("a").contains(Actions::DELETE));
        assert_eq!(access.allowed("b"), Actions::default());
        let all = parse(["repository:a:*"].into_iter()).remove(0);
        assert!(all.allowed("a").contains(Actions::DELETE.and(Actions::ADMIN)));
    }
}
