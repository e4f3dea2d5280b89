//! `[[retention]]`: the rules by which tags go.

use std::time::Duration;

use toml::de::{DeArray, DeTable, DeValue};

use super::layers::of_toml;
use super::value::Value;
use super::{Error, Fault, Place};
use crate::glob::Glob;

/// Most rules.
const RULES_MAX: usize = 1000;
/// Most tags that a rule may keep by their number.
const KEEP_LAST_MAX: usize = 100_000;
pub(super) const KEYS: [&str; 5] = ["repositories", "tags", "keep_last", "keep_for", "untagged"];

/// Which tags go, and which manifests.
///
/// Of the tags that it is about, those stay that are among the newest `keep_last` of their repository or younger than `keep_for`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The repositories that it is about.
    pub repositories: Vec<Glob>,
    /// Their tags that it is about.
    pub tags: Vec<Glob>,
    /// So many of the newest stay.
    pub keep_last: Option<usize>,
    /// Those younger stay.
    pub keep_for: Option<Duration>,
    /// Manifests that nothing has held for so long go too.
    pub untagged: Option<Duration>,
}

/// Reads the array.
pub(super) fn read(rules: &DeArray<'_>, place: &impl Fn(usize) -> Place) -> Result<Vec<Retention>, Error> {
    let mut read = Vec::new();
    for rule in rules.iter() {
        let here = place(rule.span().start);
        let DeValue::Table(table) = rule.get_ref() else {
            return Err(Error::Syntax { place: here, what: "retention is a list of rules; write each as [[retention]]".to_owned() });
        };
        if read.len() == RULES_MAX {
            return Err(Error::Syntax { place: here, what: format!("there are more than {RULES_MAX} rules") });
        }
        read.push(rule_of(table, here, place)?);
    }
    Ok(read)
}

fn rule_of(table: &DeTable<'_>, here: Place, place: &impl Fn(usize) -> Place) -> Result<Retention, Error> {
    let mut rule = Retention { repositories: Vec::new(), tags: vec![Glob::any()], keep_last: None, keep_for: None, untagged: None };
    for (key, value) in table.iter() {
        let shown = of_toml(value.get_ref());
        let (name, done) = match key.get_ref().as_ref() {
            "repositories" => ("retention.repositories", globs(&shown).map(|globs| rule.repositories = globs)),
            "tags" => ("retention.tags", globs(&shown).map(|globs| rule.tags = globs)),
            "keep_last" => ("retention.keep_last", shown.number(0, KEEP_LAST_MAX).map(|count| rule.keep_last = Some(count))),
            "keep_for" => ("retention.keep_for", shown.duration("1s", "3650d").map(|time| rule.keep_for = Some(time))),
            "untagged" => ("retention.untagged", shown.duration("1s", "3650d").map(|time| rule.untagged = Some(time))),
            other => {
                let near = KEYS.iter().find(|known| known.starts_with(other) || other.starts_with(**known));
                let near = near.map(|near| (*near).to_owned());
                return Err(Error::Unknown { place: place(key.span().start), name: format!("retention.{other}"), near });
            }
        };
        done.map_err(|fault| Error::Value { place: place(value.span().start), key: name, value: shown.shown(), fault })?;
    }
    let wrong = |what: &str| Err(Error::Syntax { place: here.clone(), what: what.to_owned() });
    if rule.repositories.is_empty() {
        return wrong("a rule of retention needs repositories = [\"team/*\"]; [\"**\"] is all of them");
    }
    if rule.tags.is_empty() {
        return wrong("a rule of retention with tags = [] is about nothing; leave tags out for all of them");
    }
    if (rule.keep_last, rule.keep_for, rule.untagged) == (None, None, None) {
        return wrong("a rule of retention needs keep_last, keep_for or untagged: what shall stay?");
    }
    Ok(rule)
}

fn globs(value: &Value) -> Result<Vec<Glob>, Fault> {
    value.list()?.iter().map(|text| text.parse().map_err(Fault::Glob)).collect()
}
