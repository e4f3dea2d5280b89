//! Who may do what: rules, and the one function that decides by them. No I/O, no clock.
//!
//! A rule gives a subject some actions in the repositories of a pattern. Rules only give: what no rule gives is refused, and no rule takes
//! away what another gives, so their order means nothing and they merge as sets. Subjects are
//!
//! ```text
//! user:alice                                    who signed in under this name
//! group:dev                                     who is in the group
//! robot:ci                                      the robot
//! claim:github:repository=acme/*,ref=*          a token of this issuer whose claims are all so; * stands for any letters
//! users                                         whoever has signed in
//! anonymous                                     anyone at all, signed in or not
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use larder_protocol::access::Actions;

use crate::glob::{Glob, InvalidGlob};

/// Most claims that a subject may name.
const CLAIMS_MAX: usize = 8;
/// The actions and their words, in the order in which they are shown.
pub const WORDS: [(Actions, &str); 5] = [
    (Actions::PULL, "pull"),
    (Actions::PUSH, "push"),
    (Actions::OVERWRITE, "overwrite"),
    (Actions::DELETE, "delete"),
    (Actions::ADMIN, "admin"),
];

/// The claims of a token: a name, and what is said; of a list each entry.
pub type Claims = BTreeMap<String, Vec<String>>;

/// Somebody who asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Nobody has signed in.
    Anonymous,
    /// With a name and a password.
    User {
        /// The name.
        name: String,
        /// The groups.
        groups: Vec<String>,
    },
    /// With a robot's token.
    Robot {
        /// The name.
        name: String,
        /// What the robot itself was given.
        grants: Vec<(Glob, Actions)>,
    },
    /// With a token of a configured issuer.
    Workload {
        /// The issuer's name in the configuration.
        issuer: String,
        /// Whom the issuer means.
        subject: String,
        /// What the issuer says of it.
        claims: Claims,
    },
    /// With a token of the configured token server, which itself says what may be done.
    External {
        /// Whom it means.
        subject: String,
        /// What it gave.
        grants: Vec<(String, Actions)>,
    },
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// `user:`
    User(String),
    /// `group:`
    Group(String),
    /// `robot:`
    Robot(String),
    /// `claim:`
    Claim {
        /// The issuer's name.
        issuer: String,
        /// The claims, and patterns of what they say.
        claims: Vec<(String, String)>,
    },
    /// `users`
    Users,
    /// `anonymous`
    Anonymous,
}

/// Why a text is no subject, or no set of actions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// No subject.
    #[error(
        "{0:?} is nobody; write user:NAME, group:NAME, robot:NAME, claim:ISSUER:NAME=PATTERN, users (whoever has signed in) or anonymous \
         (anyone at all)"
    )]
    Subject(String),
    /// No action.
    #[error("{0:?} is no action; there are pull, push, overwrite, delete and admin, with commas between them")]
    Action(String),
    /// No pattern.
    #[error("{0}")]
    Pattern(#[from] InvalidGlob),
}

/// One rule, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is about.
    pub subject: Subject,
    /// The repositories.
    pub repositories: Glob,
    /// What it gives.
    pub actions: Actions,
}

/// All rules, arranged so that a decision looks at those only that may be about who asks.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    plain: HashMap<Subject, Vec<Rule>>,
    claims: Vec<Rule>,
}

/// Where a right comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A rule.
    Rule(Rule),
    /// The robot itself.
    Grant(Glob, Actions),
    /// The token server.
    TokenServer,
}

impl Who {
    /// How it is called in logs, tokens and answers.
    pub fn name(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::User { name, .. } => format!("user:{name}"),
            Self::Robot { name, .. } => format!("robot:{name}"),
            Self::Workload { issuer, subject, .. } => format!("claim:{issuer}:{subject}"),
            Self::External { subject, .. } => format!("external:{subject}"),
        }
    }

    /// Whether anybody has signed in.
    pub fn is_known(&self) -> bool {
        *self != Self::Anonymous
    }
}

impl Rules {
    /// Arranges rules.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut arranged = Self::default();
        for rule in rules {
            match rule.subject {
                Subject::Claim { .. } => arranged.claims.push(rule),
                _ => arranged.plain.entry(rule.subject.clone()).or_default().push(rule),
            }
        }
        arranged
    }

    /// Decides whether somebody may do all of `actions` in a repository. The only place where that is decided.
    pub fn allow(&self, who: &Who, actions: Actions, repository: &str) -> bool {
        // From several sources together: one may give to pull, another to push.
        let given = self.sources(who, repository).fold(Actions::default(), |given, (_, actions)| given.and(actions));
        given.contains(actions) || given.contains(Actions::ADMIN)
    }

    /// What gives somebody any of `actions` in a repository.
    pub fn explain(&self, who: &Who, actions: Actions, repository: &str) -> Vec<Source> {
        let gives = |given: Actions| given.0 & (actions.0 | Actions::ADMIN.0) != 0;
        self.sources(who, repository).filter(|(_, given)| gives(*given)).map(|(source, _)| source).collect()
    }

    /// Whether somebody may do any of it in any repository at all.
    pub fn has_any(&self, who: &Who) -> bool {
        let granted = match who {
            Who::Robot { grants, .. } => !grants.is_empty(),
            Who::External { grants, .. } => !grants.is_empty(),
            _ => false,
        };
        granted || self.about(who).next().is_some()
    }

    fn sources<'a>(&'a self, who: &'a Who, repository: &'a str) -> impl Iterator<Item = (Source, Actions)> + 'a {
        let rules = self.about(who).filter(|rule| rule.repositories.matches(repository));
        let rules = rules.map(|rule| (Source::Rule(rule.clone()), rule.actions));
        let (own, external) = match who {
            Who::Robot { grants, .. } => (grants.as_slice(), &[][..]),
            Who::External { grants, .. } => (&[][..], grants.as_slice()),
            Who::Anonymous | Who::User { .. } | Who::Workload { .. } => (&[][..], &[][..]),
        };
        let own = own.iter().filter(|(pattern, _)| pattern.matches(repository));
        let external = external.iter().filter(move |(name, _)| name == repository);
        rules
            .chain(own.map(|(pattern, actions)| (Source::Grant(pattern.clone(), *actions), *actions)))
            .chain(external.map(|(_, actions)| (Source::TokenServer, *actions)))
    }

    fn about<'a>(&'a self, who: &'a Who) -> impl Iterator<Item = &'a Rule> {
        let mut subjects = vec![Subject::Anonymous];
        match who {
            Who::Anonymous => {}
            Who::User { name, groups } => {
                subjects.extend([Subject::Users, Subject::User(name.clone())]);
                subjects.extend(groups.iter().cloned().map(Subject::Group));
            }
            Who::Robot { name, .. } => subjects.extend([Subject::Users, Subject::Robot(name.clone())]),
            // Whoever has any account with a public issuer is not meant by `users`.
            Who::Workload { .. } | Who::External { .. } => {}
        }
        let plain = subjects.into_iter().filter_map(|subject| self.plain.get(&subject)).flatten();
        plain.chain(self.claims.iter().filter(|rule| rule.subject.is_about_claims(who)))
    }
}

impl Subject {
    fn is_about_claims(&self, who: &Who) -> bool {
        let (Self::Claim { issuer, claims }, Who::Workload { issuer: from, claims: said, .. }) = (self, who) else { return false };
        let says = |name: &String, pattern: &String| said.get(name).is_some_and(|values| values.iter().any(|value| like(pattern, value)));
        issuer == from && claims.iter().all(|(name, pattern)| says(name, pattern))
    }
}

/// Whether a text is like a pattern, in which `*` stands for any letters.
fn like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether a text can be a name of somebody: visible ASCII without what separates names elsewhere.
pub fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && !b":,/\\\"'*".contains(&byte))
}

impl FromStr for Subject {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let wrong = || InvalidRule::Subject(text.to_owned());
        let named = |name: &str| if is_name(name) { Ok(name.to_owned()) } else { Err(wrong()) };
        match text.split_once(':') {
            None if text == "users" => Ok(Self::Users),
            None if text == "anonymous" => Ok(Self::Anonymous),
            Some(("user", name)) => Ok(Self::User(named(name)?)),
            Some(("group", name)) => Ok(Self::Group(named(name)?)),
            Some(("robot", name)) => Ok(Self::Robot(named(name)?)),
            Some(("claim", rest)) => {
                let (issuer, rest) = rest.split_once(':').ok_or_else(wrong)?;
                let claims: Option<Vec<_>> = rest.split(',').map(|claim| claim.split_once('=')).collect();
                let claims: Vec<_> =
                    claims.ok_or_else(wrong)?.iter().map(|(name, like)| ((*name).to_owned(), (*like).to_owned())).collect();
                // A pattern that takes anything would let in whoever can have a token of that issuer.
                let is_empty = |claim: &(String, String)| claim.0.is_empty() || claim.1.is_empty();
                let says_something = claims.iter().any(|(_, pattern)| pattern.bytes().any(|byte| byte != b'*'));
                if claims.len() > CLAIMS_MAX || claims.iter().any(is_empty) || !says_something {
                    return Err(wrong());
                }
                Ok(Self::Claim { issuer: named(issuer)?, claims })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Robot(name) => write!(f, "robot:{name}"),
            Self::Claim { issuer, claims } => {
                let claims: Vec<_> = claims.iter().map(|(name, pattern)| format!("{name}={pattern}")).collect();
                write!(f, "claim:{issuer}:{}", claims.join(","))
            }
            Self::Users => f.write_str("users"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// Reads actions: words with commas between them.
///
/// # Errors
/// `Action`: a word is none.
pub fn actions(text: &str) -> Result<Actions, InvalidRule> {
    text.split(',').map(str::trim).try_fold(Actions::default(), |actions, word| {
        let known = WORDS.iter().find(|(_, known)| *known == word);
        known.map(|(action, _)| actions.and(*action)).ok_or_else(|| InvalidRule::Action(word.to_owned()))
    })
}

/// Actions as words.
pub fn words(actions: Actions) -> Vec<&'static str> {
    WORDS.iter().filter(|(action, _)| actions.contains(*action)).map(|(_, word)| *word).collect()
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
