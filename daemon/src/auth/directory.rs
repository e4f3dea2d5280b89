//! Everybody that there is, and the rules: what the records and the password file say now.
//!
//! A [`Snapshot`] is read whole when something has changed, and stays what it is for whoever has it. It is small next to what it guards:
//! people, robots and rules are counted in thousands at most.

use std::collections::{BTreeMap, HashMap};

use larder_protocol::access::{Robot, User};
use larder_protocol::keys::Counting;
use larder_protocol::record::{Key, Record, Value};
use larder_protocol::stamp::NodeId;

use super::policy::{Rule, Rules, Subject, Who};
use crate::store::{self, Store};

/// Who there is, and what the rules are, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Whether anything is asked of anybody. It is not on a node that was never told of anybody.
    pub is_closed: bool,
    /// The rules.
    pub rules: Rules,
    people: HashMap<String, Person>,
    robots: HashMap<String, (Robot, u64)>,
    /// The keys whose tokens count, and until when, in seconds since 1970.
    issuers: HashMap<NodeId, u64>,
    /// Hashes of all people, by name, so that one can be picked for a name that is not there.
    hashes: Vec<String>,
}

/// Somebody with a password.
#[derive(Clone, Debug)]
pub struct Person {
    /// The hash of the password.
    pub hash: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What tells this password from another that the name had.
    pub since: Since,
}

/// Which of the things that a name has meant: when it was written, or, from a file, a print of the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Since {
    /// The time of a record's stamp.
    #[serde(rename = "at")]
    Record(u64),
    /// A print of what stands in the file.
    #[serde(rename = "print")]
    File(u64),
}

impl Person {
    /// Whether it stands in this node's password file only.
    pub fn is_from_file(&self) -> bool {
        matches!(self.since, Since::File(_))
    }
}

impl Since {
    /// Whether what was issued for `self` holds where `now` stands. An older record stands where the news has not come yet; the issuer has
    /// checked the newer one.
    pub fn holds(self, now: Since) -> bool {
        match (self, now) {
            (Self::Record(issued), Self::Record(now)) => now <= issued,
            (issued, now) => issued == now,
        }
    }
}

impl Snapshot {
    /// Reads everything.
    pub fn read(store: &Store, file: &BTreeMap<String, String>, node: NodeId, is_closed: bool) -> store::Result<Self> {
        let roles: HashMap<_, _> = store.roles()?.into_iter().collect();
        // A reader's word counts on itself only, and so do its tokens.
        let writes = |node: &NodeId| roles.get(node).copied().unwrap_or_default().is_writer();
        let members = store.members()?.into_iter().filter(|(_, member)| member.is_some()).map(|(node, _)| node);
        let (mut keys, mut issuers) = (store.keys()?, HashMap::new());
        for issuer in members.filter(|issuer| writes(issuer) || *issuer == node).chain([node]) {
            // Of keys that nobody has signed in none counts.
            let Some(counting) = keys.remove(&issuer).unwrap_or_else(|| Some(Counting::first(issuer))) else { continue };
            issuers.extend([Some(counting.used), counting.announced].into_iter().flatten().map(|key| (key, u64::MAX)));
            issuers.extend(counting.before.into_iter().map(|(key, until_ms)| (key, until_ms / 1000)));
        }
        Ok(Self { issuers, ..Self::of(store.access_records()?, file, is_closed) })
    }

    /// Arranges records, and what stands in the password file.
    pub fn of(records: Vec<Record>, file: &BTreeMap<String, String>, is_closed: bool) -> Self {
        // One that was removed closes the door too: else removing the last would open it.
        let mut snapshot = Self { is_closed: is_closed || !records.is_empty(), ..Self::default() };
        let mut rules = Vec::new();
        for (name, hash) in file {
            let since = Since::File(print(hash));
            snapshot.people.insert(name.clone(), Person { hash: hash.clone(), groups: Vec::new(), since });
        }
        for record in records {
            let time = record.stamp.time.0;
            match (record.key, record.value) {
                (Key::User(name), Some(Value::User(User { hash, groups, .. }))) => {
                    snapshot.people.insert(name, Person { hash, groups, since: Since::Record(time) });
                }
                // Removed everywhere, also where the file still has it.
                (Key::User(name), _) => drop(snapshot.people.remove(&name)),
                (Key::Robot(name), Some(Value::Robot(robot))) => drop(snapshot.robots.insert(name, (robot, time))),
                (Key::Rule(subject, repositories), Some(Value::Rule(rule))) => {
                    // What a later program wrote and this one can't read gives nothing here.
                    let (Ok(subject), Ok(repositories)) = (subject.parse::<Subject>(), repositories.parse()) else { continue };
                    rules.push(Rule { subject, repositories, actions: rule.actions });
                }
                _ => {}
            }
        }
        snapshot.rules = Rules::new(rules);
        let mut hashes: Vec<_> = snapshot.people.iter().collect();
        hashes.sort_by_key(|(name, _)| name.as_str());
        snapshot.hashes = hashes.into_iter().map(|(_, person)| person.hash.clone()).collect();
        snapshot
    }

    /// Somebody with a password.
    pub fn person(&self, name: &str) -> Option<&Person> {
        self.people.get(name)
    }

    /// Everybody with a password.
    pub fn people(&self) -> impl Iterator<Item = (&String, &Person)> {
        self.people.iter()
    }

    /// Every robot, expired ones too.
    pub fn robots(&self) -> impl Iterator<Item = (&String, &Robot)> {
        self.robots.iter().map(|(name, (robot, _))| (name, robot))
    }

    /// A hash of somebody's, always the same for one name: so that a name that is not there can't be told from one that is by the time that it
    /// takes.
    pub fn like(&self, name: &str) -> Option<&str> {
        let count = u64::try_from(self.hashes.len()).ok().filter(|count| *count > 0)?;
        self.hashes.get((print(name) % count) as usize).map(String::as_str)
    }

    /// A robot, and when its record was written.
    pub fn robot(&self, name: &str) -> Option<&(Robot, u64)> {
        self.robots.get(name)
    }

    /// Until when what a key has signed counts here, in seconds since 1970; `None`: it is no member's.
    pub fn counts_until(&self, key: &NodeId) -> Option<u64> {
        self.issuers.get(key).copied()
    }

    /// Whom a name means now: for tokens, which say a name only, and for questions of the command line.
    pub fn user(&self, name: &str) -> Option<(Who, Since)> {
        let person = self.people.get(name)?;
        Some((Who::User { name: name.to_owned(), groups: person.groups.clone() }, person.since))
    }

    /// The same of a robot, unless its time is over.
    pub fn robot_as(&self, name: &str, now_ms: u64) -> Option<(Who, Since)> {
        let (robot, time) = self.robots.get(name)?;
        if robot.expires_ms.is_some_and(|until| until <= now_ms) {
            return None;
        }
        let grants = robot.grants.iter().filter_map(|grant| Some((grant.repositories.parse().ok()?, grant.actions)));
        Some((Who::Robot { name: name.to_owned(), grants: grants.collect() }, Since::Record(*time)))
    }
}

/// Some bits of a hash.
fn print(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use larder_protocol::access::{Actions, Grant, Rule as RuleValue};
    use larder_protocol::stamp::{HybridTime, Stamp};

    use super::*;

    fn record(key: Key, value: Option<Value>, ms: u64) -> Record {
        Record { key, value, stamp: Stamp { time: HybridTime::from_ms(ms), node: NodeId([1; 32]) } }
    }

    fn user(name: &str, hash: Option<&str>, ms: u64) -> Record {
        let user = |hash: &str| Value::User(User { hash: hash.to_owned(), groups: vec!["dev".to_owned()], extra: vec![] });
        record(Key::User(name.to_owned()), hash.map(user), ms)
    }

    #[test]
    fn a_registry_that_ever_knew_somebody_stays_closed() {
        let none = BTreeMap::new();
        assert!(!Snapshot::of(vec![], &none, false).is_closed);
        assert!(Snapshot::of(vec![], &none, true).is_closed);
        assert!(Snapshot::of(vec![user("alice", Some("x"), 1)], &none, false).is_closed);
        assert!(Snapshot::of(vec![user("alice", None, 1)], &none, false).is_closed, "the last one was removed");
    }

    #[test]
    fn records_go_before_the_file_and_a_removal_counts_there_too() {
        let file = BTreeMap::from([("alice".to_owned(), "file".to_owned()), ("bob".to_owned(), "file".to_owned())]);
        let snapshot = Snapshot::of(vec![user("alice", Some("record"), 1), user("bob", None, 2)], &file, false);
        assert_eq!(snapshot.person("alice").expect("there").hash, "record");
        assert!(snapshot.person("bob").is_none());
        assert!(matches!(snapshot.user("alice"), Some((Who::User { groups, .. }, _)) if groups == ["dev"]));
    }

    #[test]
    fn s16_what_was_issued_ends_with_what_it_was_issued_for() {
        assert!(Since::Record(5).holds(Since::Record(5)));
        assert!(Since::Record(5).holds(Since::Record(4)), "the news of the password is not here yet");
        assert!(!Since::Record(5).holds(Since::Record(6)), "the password was changed since");
        assert!(Since::File(1).holds(Since::File(1)) && !Since::File(1).holds(Since::File(2)) && !Since::File(1).holds(Since::Record(1)));
    }

    #[test]
    fn robots_end_at_their_time_and_what_cannot_be_read_gives_nothing() {
        let grant = |repositories: &str| Grant { repositories: repositories.to_owned(), actions: Actions::PULL };
        let robot = Robot { secret: [0; 32], expires_ms: Some(100), grants: vec![grant("a"), grant("b c")], extra: vec![] };
        let rule = |subject: &str| {
            let value = Value::Rule(RuleValue { actions: Actions::ADMIN, extra: vec![] });
            record(Key::Rule(subject.to_owned(), "**".to_owned()), Some(value), 1)
        };
        let records = vec![record(Key::Robot("ci".to_owned()), Some(Value::Robot(robot)), 1), rule("tribe:x"), rule("user:alice")];
        let snapshot = Snapshot::of(records, &BTreeMap::new(), false);
        assert!(matches!(snapshot.robot_as("ci", 99), Some((Who::Robot { grants, .. }, _)) if grants.len() == 1));
        assert!(snapshot.robot_as("ci", 100).is_none() && snapshot.robot_as("other", 0).is_none());
        let alice = Who::User { name: "alice".to_owned(), groups: vec![] };
        assert!(snapshot.rules.allow(&alice, Actions::PULL, "x"));
        assert!(!snapshot.rules.allow(&Who::Anonymous, Actions::PULL, "x"));
    }

    #[test]
    fn a_name_that_is_not_there_is_like_somebody() {
        let snapshot = Snapshot::of(vec![user("a", Some("1"), 1), user("b", Some("2"), 1)], &BTreeMap::new(), false);
        assert!(snapshot.like("nobody").is_some() && snapshot.like("nobody") == snapshot.like("nobody"));
        assert!(Snapshot::default().like("nobody").is_none());
    }
}
