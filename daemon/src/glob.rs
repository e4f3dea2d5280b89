//! Patterns for repositories and tags: `*` stands for any letters but a slash, `**` for any letters at all.
//!
//! A [`Glob`] matches a whole name. A [`Pattern`] has one for the repository and, behind a colon, one for the tag: `ci/**:pr-*`.
//! Matching takes time in proportion to name times pattern at worst, whatever they are.

use std::fmt;
use std::str::FromStr;

/// Longest pattern of one name.
const LENGTH_MAX: usize = 256;

/// A pattern for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

/// A pattern for a repository and its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Which repositories.
    pub repository: Glob,
    /// Which of their tags.
    pub tag: Glob,
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGlob {
    /// There is nothing.
    #[error("a pattern is empty")]
    Empty,
    /// Too long.
    #[error("a pattern has at most {LENGTH_MAX} letters")]
    Long,
    /// A letter that no name has.
    #[error("{0:?} stands in no name; patterns are made of the letters of names, `*` (but no slash) and `**`")]
    Letter(char),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Letter(u8),
    /// `*`
    Within,
    /// `**`
    Across,
}

impl Glob {
    /// Matches every name.
    pub fn any() -> Self {
        Self(vec![Token::Across])
    }

    /// Whether it matches the whole of a name.
    pub fn matches(&self, name: &str) -> bool {
        // `reached[i]`: the tokens so far can match the first i letters.
        let name = name.as_bytes();
        let mut reached = vec![false; name.len() + 1];
        reached[0] = true;
        for token in &self.0 {
            match token {
                Token::Letter(letter) => {
                    for i in (0..name.len()).rev() {
                        reached[i + 1] = reached[i] && name[i] == *letter;
                    }
                    reached[0] = false;
                }
                Token::Within | Token::Across => {
                    for i in 0..name.len() {
                        reached[i + 1] |= reached[i] && (*token == Token::Across || name[i] != b'/');
                    }
                }
            }
        }
        reached[name.len()]
    }
}

impl FromStr for Glob {
    type Err = InvalidGlob;

    fn from_str(text: &str) -> Result<Self, InvalidGlob> {
        if text.is_empty() {
            return Err(InvalidGlob::Empty);
        }
        if text.len() > LENGTH_MAX {
            return Err(InvalidGlob::Long);
        }
        let mut tokens = Vec::new();
        for letter in text.chars() {
            let token = match letter {
                '*' if tokens.last() == Some(&Token::Within) => {
                    tokens.pop();
                    Token::Across
                }
                '*' if tokens.last() == Some(&Token::Across) => continue,
                '*' => Token::Within,
                'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' | '/' => Token::Letter(letter as u8),
                other => return Err(InvalidGlob::Letter(other)),
            };
            tokens.push(token);
        }
        Ok(Self(tokens))
    }
}

impl Pattern {
    /// Whether it matches a tag of a repository.
    pub fn matches(&self, repository: &str, tag: &str) -> bool {
        self.repository.matches(repository) && self.tag.matches(tag)
    }
}

impl FromStr for Pattern {
    type Err = InvalidGlob;

    /// `repository:tag`; without a colon, every tag.
    fn from_str(text: &str) -> Result<Self, InvalidGlob> {
        let (repository, tag) = match text.split_once(':') {
            Some((repository, tag)) => (repository.parse()?, tag.parse()?),
            None => (text.parse()?, Glob::any()),
        };
        Ok(Self { repository, tag })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in &self.0 {
            match token {
                Token::Letter(letter) => write!(f, "{}", char::from(*letter))?,
                Token::Within => f.write_str("*")?,
                Token::Across => f.write_str("**")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_within_a_part_and_two_of_them_across() {
        let cases = [
            ("ci/app", "ci/app", true),
            ("ci/app", "ci/apps", false),
            ("ci/*", "ci/app", true),
            ("ci/*", "ci/app/x", false),
            ("ci/*", "ci/", true),
            ("ci/**", "ci/app/x", true),
            ("**", "", true),
            ("**", "a/b/c", true),
            ("*", "a/b", false),
            ("*/app", "team/app", true),
            ("**/app", "a/b/app", true),
            ("**/app", "app", false),
            ("pr-*", "pr-", true),
            ("pr-*-x", "pr-1-2-x", true),
            ("pr-*-x", "pr-1-2-y", false),
            ("***", "a/b", true),
        ];
        for (glob, name, expected) in cases {
            assert_eq!(glob.parse::<Glob>().expect(glob).matches(name), expected, "{glob} and {name}");
        }
    }

    #[test]
    fn a_pattern_without_a_tag_takes_all_of_them() {
        let matches = |pattern: &str, repository, tag| pattern.parse::<Pattern>().expect(pattern).matches(repository, tag);
        assert!(matches("base/**", "base/a", "any") && !matches("base/**", "app", "any"));
        assert!(matches("app:release-*", "app", "release-1") && !matches("app:release-*", "app", "latest"));
    }

    #[test]
    fn what_is_no_pattern_is_refused_and_what_is_prints_itself() {
        for (text, why) in [("", InvalidGlob::Empty), ("a b", InvalidGlob::Letter(' ')), ("a?", InvalidGlob::Letter('?'))] {
            assert_eq!(text.parse::<Glob>(), Err(why));
        }
        assert_eq!("a".repeat(LENGTH_MAX + 1).parse::<Glob>(), Err(InvalidGlob::Long));
        assert_eq!("a:b:c".parse::<Pattern>(), Err(InvalidGlob::Letter(':')));
        for text in ["ci/**:pr-*", "a_b.c/d-e:v1.*"] {
            assert_eq!(text.parse::<Pattern>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn many_stars_cost_no_more_than_many_letters() {
        let glob: Glob = format!("{}c", "a*".repeat(127)).parse().expect("pattern");
        assert!(!glob.matches(&"a".repeat(10_000)));
    }
}
