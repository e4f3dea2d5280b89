//! Patterns that name repositories, tags, or both: `base/**`, `ci/app:release-*`.
//!
//! A pattern is cut at slashes and at its one colon, like the names that it is held against. `*` stands for any bytes of one piece
//! (none too), `**` alone between slashes for any number of pieces (none too); everything else stands for itself. What a pattern
//! without a colon means for tags is for the caller to say: [`Glob::repository`] and [`Glob::tag`] look at one side each.
//!
//! Matching costs at most pattern times name, whatever either of them holds: both come from people, and names from strangers.

use std::fmt;

/// Longest pattern in bytes: a repository, a colon and a tag fit in.
const LENGTH_MAX: usize = 512;
/// What stands for any number of pieces.
const ANY_PIECES: &str = "**";

/// A pattern that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    repository: Vec<String>,
    tag: Option<String>,
}

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGlob {
    /// Nothing, or an empty piece between two slashes or beside the colon.
    #[error("pattern {0:?} has an empty piece; write it like base/** or ci/app:release-*")]
    Empty(String),
    /// Something that no repository and no tag has.
    #[error("pattern {0:?} has {1:?}, which no name has; * stands for anything in one piece, ** for any number of pieces")]
    Character(String, char),
    /// More than one colon.
    #[error("pattern {0:?} has more than one colon; one repository and at most one tag can be named")]
    Colons(String),
    /// `**` beside other bytes, or in a tag.
    #[error("pattern {0:?}: ** stands alone between slashes, and never in a tag")]
    Stars(String),
    /// Longer than any name.
    #[error("a pattern has at most {LENGTH_MAX} bytes, this one has {0}")]
    TooLong(usize),
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It holds what no name can hold, or `**` where it means nothing.
    pub fn parse(text: &str) -> Result<Self, InvalidGlob> {
        if text.len() > LENGTH_MAX {
            return Err(InvalidGlob::TooLong(text.len()));
        }
        let known = |character: &char| character.is_ascii_alphanumeric() || "._-/:*".contains(*character);
        if let Some(character) = text.chars().find(|character| !known(character)) {
            return Err(InvalidGlob::Character(text.to_owned(), character));
        }
        let (repository, tag) = match text.split_once(':') {
            Some((_, tag)) if tag.contains(':') => return Err(InvalidGlob::Colons(text.to_owned())),
            Some((_, tag)) if tag.contains('/') => return Err(InvalidGlob::Character(text.to_owned(), '/')),
            Some((repository, tag)) => (repository, Some(tag)),
            None => (text, None),
        };
        let pieces: Vec<_> = repository.split('/').collect();
        if pieces.iter().chain(&tag).any(|piece| piece.is_empty()) {
            return Err(InvalidGlob::Empty(text.to_owned()));
        }
        let confused = |piece: &&str| piece.contains(ANY_PIECES);
        if pieces.iter().filter(|piece| **piece != ANY_PIECES).any(|piece| confused(&piece)) || tag.as_ref().is_some_and(confused) {
            return Err(InvalidGlob::Stars(text.to_owned()));
        }
        let repository = pieces.into_iter().map(str::to_owned).collect();
        Ok(Self { text: text.to_owned(), repository, tag: tag.map(str::to_owned) })
    }

    /// Whether it names all of `name`: `team/app` or `team/app:1.0`. Without a colon it names a repository and every tag in it;
    /// with one, only what has a tag.
    pub fn matches(&self, name: &str) -> bool {
        match name.split_once(':') {
            Some((repository, tag)) => self.repository(repository) && self.tag(tag),
            None => self.tag.is_none() && self.repository(name),
        }
    }

    /// Whether its repository part names this repository.
    pub fn repository(&self, name: &str) -> bool {
        let pieces: Vec<_> = name.split('/').collect();
        wildcard(&self.repository, &pieces, |pattern| pattern == ANY_PIECES, |pattern, piece| is_piece(pattern, piece))
    }

    /// Whether its tag part names this tag; without one it names them all.
    pub fn tag(&self, tag: &str) -> bool {
        self.tag.as_ref().is_none_or(|pattern| is_piece(pattern, tag))
    }

    /// Whether it says anything of tags.
    pub fn has_tag(&self) -> bool {
        self.tag.is_some()
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_piece(pattern: &str, piece: &str) -> bool {
    wildcard(pattern.as_bytes(), piece.as_bytes(), |byte| *byte == b'*', |one, other| one == other)
}

/// Holds a pattern against a list: what `is_many` names takes any number of items, everything else the one that `is_same` names.
///
/// Only the last wildcard is ever taken back, so it ends after at most pattern times list.
fn wildcard<P, T>(pattern: &[P], list: &[T], is_many: impl Fn(&P) -> bool, is_same: impl Fn(&P, &T) -> bool) -> bool {
    let (mut at, mut item) = (0, 0);
    let mut wild: Option<(usize, usize)> = None;
    while item < list.len() {
        if pattern.get(at).is_some_and(&is_many) {
            wild = Some((at, item));
            at += 1;
        } else if pattern.get(at).is_some_and(|one| is_same(one, &list[item])) {
            (at, item) = (at + 1, item + 1);
        } else if let Some((star, from)) = wild {
            wild = Some((star, from + 1));
            (at, item) = (star + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(is_many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let glob = Glob::parse(pattern).expect(pattern);
        for name in yes {
            assert!(glob.matches(name), "{pattern} names {name}");
        }
        for name in no {
            assert!(!glob.matches(name), "{pattern} does not name {name}");
        }
    }

    #[test]
    fn a_star_stays_within_a_piece_and_two_go_across() {
        check("base", &["base", "base:1"], &["base/app", "bases", "a/base"]);
        check("base/*", &["base/app", "base/app:1"], &["base", "base/app/web", "base2/app"]);
        check("base/**", &["base", "base/app", "base/app/web:x"], &["base2", "a/base/app"]);
        check("**", &["a", "a/b/c:d"], &[]);
        check("**/web", &["web", "a/web", "a/b/web"], &["a/web/b", "aweb"]);
        check("a/**/z", &["a/z", "a/b/z", "a/b/z/z"], &["a", "a/zz", "az"]);
        check("a*c/*d*", &["ac/d", "abc/xdy", "abcc/dd"], &["ab/d", "abc/x"]);
    }

    #[test]
    fn a_tag_is_named_after_the_colon() {
        check("ci/app:release-*", &["ci/app:release-", "ci/app:release-1.0"], &["ci/app", "ci/app:releas", "ci/app2:release-1"]);
        check("**:latest", &["a:latest", "a/b:latest"], &["a:latest2", "a"]);
        check("app:v*.*", &["app:v1.2", "app:v.."], &["app:v1"]);
        let glob = Glob::parse("ci/*:x").expect("pattern");
        assert!(glob.has_tag() && glob.repository("ci/app") && glob.tag("x") && !glob.tag("y"));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in ["", "/", "a//b", "a/", "/a", ":x", "a:"] {
            assert_eq!(Glob::parse(text), Err(InvalidGlob::Empty(text.to_owned())));
        }
        for text in ["a**", "a/**b", "***", "a:**"] {
            assert_eq!(Glob::parse(text), Err(InvalidGlob::Stars(text.to_owned())));
        }
        assert_eq!(Glob::parse("a:b:c"), Err(InvalidGlob::Colons("a:b:c".to_owned())));
        assert_eq!(Glob::parse("a:b/c"), Err(InvalidGlob::Character("a:b/c".to_owned(), '/')));
        assert_eq!(Glob::parse("a?"), Err(InvalidGlob::Character("a?".to_owned(), '?')));
        assert_eq!(Glob::parse(&"a".repeat(LENGTH_MAX + 1)), Err(InvalidGlob::TooLong(LENGTH_MAX + 1)));
    }

    #[test]
    fn a_pattern_full_of_stars_ends_soon() {
        let glob = Glob::parse(&"*a".repeat(LENGTH_MAX / 2)).expect("pattern");
        assert!(!glob.matches(&"a".repeat(10_000)[..].replace("aa", "ab")));
    }
}
