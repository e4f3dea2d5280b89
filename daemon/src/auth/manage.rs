//! What the commands do: people, robots and rules come and go, and a decision is explained.
//!
//! All of it is written as records, so every node that is in touch acts on it at its next request.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use larder_protocol::access::{Actions, ENTRIES_MAX, Grant, Robot, Rule, TEXT_LENGTH_MAX, User};
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Key, Value};
use sha2::Digest as _;

use super::policy::{self, Source, Subject, Who, is_name, words};
use super::{Auth, ROBOT_PREFIX, is_reserved, now_ms, password, random};
use crate::glob::Glob;
use crate::store::{Commit, Store};

/// What robots' tokens begin with, so that scanners of leaked secrets know them.
const SECRET_PREFIX: &str = "lrt_";

/// One line of `larder user list`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Whether it stands in this node's password file only.
    pub here_only: bool,
}

/// One line of `larder robot list`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RobotInfo {
    /// The name.
    pub name: String,
    /// The name under which it signs in.
    pub login: String,
    /// Until when its token is good, milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// Whether that is over.
    pub expired: bool,
    /// What it was given.
    pub grants: Vec<RuleInfo>,
}

/// One line of `larder policy list`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RuleInfo {
    /// Whom it is about.
    pub subject: String,
    /// The repositories.
    pub repositories: String,
    /// What it gives.
    pub actions: Vec<&'static str>,
}

/// A robot that was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct NewRobot {
    /// The name under which it signs in.
    pub login: String,
    /// Its token; told this once.
    pub token: String,
    /// Until when it is good, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// Why somebody may do something, or may not.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Explained {
    /// Whom it is about.
    pub who: String,
    /// Whether they may.
    pub allowed: bool,
    /// What is needed.
    pub needed: Vec<&'static str>,
    /// What gives any of it.
    pub because: Vec<String>,
    /// In words.
    pub note: String,
}

impl Auth {
    /// Adds people, or changes their passwords; those who are there keep their groups unless others are given. Blocks.
    ///
    /// # Errors
    /// A name or a hash is none; then nobody is added.
    pub fn add_users(&self, people: Vec<(String, String)>, groups: Option<Vec<String>>) -> anyhow::Result<usize> {
        let groups_given = groups.is_some();
        let groups = groups.unwrap_or_default();
        ensure!(groups.len() <= ENTRIES_MAX, "somebody is in at most {ENTRIES_MAX} groups");
        if let Some(wrong) = groups.iter().find(|group| !is_name(group)) {
            bail!("{wrong:?} is no name of a group: visible letters, but none of : , / \\ ' \" *");
        }
        let mut records = Vec::new();
        for (name, hash) in people {
            ensure!(is_name(&name), "{name:?} is no name: visible letters, but none of : , / \\ ' \" *");
            ensure!(!is_reserved(&name), "the name {name} means something else; choose another");
            password::check_hash(&hash).with_context(|| format!("the hash of {name}"))?;
            let key = Key::User(name);
            let standing = self.inner.store.record(&key)?.and_then(|record| record.value);
            let groups = match standing {
                Some(Value::User(user)) if !groups_given => user.groups,
                _ => groups.clone(),
            };
            records.push((key, Some(Value::User(User { hash, groups, extra: Vec::new() }))));
        }
        let count = records.len();
        self.inner.store.commit(Commit { records, ..Commit::default() })?;
        Ok(count)
    }

    /// Removes somebody, on every node, and in their password files too. Blocks.
    ///
    /// # Errors
    /// There is nobody of that name.
    pub fn remove_user(&self, name: &str) -> anyhow::Result<()> {
        ensure!(self.current()?.person(name).is_some(), "there is no user {name}; `larder user list` shows those that there are");
        self.remove(Key::User(name.to_owned()))
    }

    /// Everybody with a password. Blocks.
    pub fn users(&self) -> anyhow::Result<Vec<UserInfo>> {
        let snapshot = self.current()?;
        let mut users: Vec<_> = snapshot
            .people()
            .map(|(name, person)| UserInfo { name: name.clone(), groups: person.groups.clone(), here_only: person.is_from_file() })
            .collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(users)
    }

    /// Makes a robot, or gives it another token and other grants. Blocks.
    ///
    /// # Errors
    /// The name or a grant is none.
    pub fn add_robot(&self, name: &str, grants: &[(String, String)], life: Option<Duration>) -> anyhow::Result<NewRobot> {
        ensure!(is_name(name), "{name:?} is no name: visible letters, but none of : , / \\ ' \" *");
        ensure!(grants.len() <= ENTRIES_MAX, "a robot has at most {ENTRIES_MAX} grants; rules may give it more");
        let grant = |(repositories, actions): &(String, String)| -> anyhow::Result<Grant> {
            repositories.parse::<Glob>().with_context(|| format!("the pattern {repositories:?}"))?;
            Ok(Grant { repositories: repositories.clone(), actions: policy::actions(actions)? })
        };
        let grants = grants.iter().map(grant).collect::<anyhow::Result<Vec<_>>>()?;
        let token = format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()));
        let expires_ms = life.map(|life| now_ms().saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)));
        let robot = Robot { secret: sha2::Sha256::digest(&token).into(), expires_ms, grants, extra: Vec::new() };
        let records = vec![(Key::Robot(name.to_owned()), Some(Value::Robot(robot)))];
        self.inner.store.commit(Commit { records, ..Commit::default() })?;
        Ok(NewRobot { login: format!("{ROBOT_PREFIX}{name}"), token, expires_ms })
    }

    /// Removes a robot. Blocks.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_robot(&self, name: &str) -> anyhow::Result<()> {
        ensure!(self.current()?.robot(name).is_some(), "there is no robot {name}; `larder robot list` shows those that there are");
        self.remove(Key::Robot(name.to_owned()))
    }

    /// Every robot. Blocks.
    pub fn robots(&self) -> anyhow::Result<Vec<RobotInfo>> {
        let (snapshot, now) = (self.current()?, now_ms());
        let mut robots: Vec<_> = snapshot
            .robots()
            .map(|(name, robot)| RobotInfo {
                name: name.clone(),
                login: format!("{ROBOT_PREFIX}{name}"),
                expires_ms: robot.expires_ms,
                expired: robot.expires_ms.is_some_and(|until| until <= now),
                grants: robot.grants.iter().map(|grant| info(&format!("robot:{name}"), &grant.repositories, grant.actions)).collect(),
            })
            .collect();
        robots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(robots)
    }

    /// Gives a subject exactly these actions in the repositories of a pattern. Blocks.
    ///
    /// # Errors
    /// One of the three is none.
    pub fn allow(&self, subject: &str, repositories: &str, actions: &str) -> anyhow::Result<RuleInfo> {
        let subject: Subject = subject.parse()?;
        repositories.parse::<Glob>().with_context(|| format!("the pattern {repositories:?}"))?;
        let actions = policy::actions(actions)?;
        let subject = subject.to_string();
        ensure!(subject.len() <= TEXT_LENGTH_MAX, "a subject has at most {TEXT_LENGTH_MAX} letters");
        let key = Key::Rule(subject.clone(), repositories.to_owned());
        let records = vec![(key, Some(Value::Rule(Rule { actions, extra: Vec::new() })))];
        self.inner.store.commit(Commit { records, ..Commit::default() })?;
        Ok(info(&subject, repositories, actions))
    }

    /// Takes away what a rule gave. Blocks.
    ///
    /// # Errors
    /// There is no such rule.
    pub fn disallow(&self, subject: &str, repositories: &str) -> anyhow::Result<()> {
        let key = Key::Rule(subject.to_owned(), repositories.to_owned());
        let is_there = self.inner.store.record(&key)?.is_some_and(|record| record.value.is_some());
        ensure!(is_there, "there is no rule for {subject} in {repositories}; `larder policy list` shows those that there are");
        self.remove(key)
    }

    /// All rules. Blocks.
    pub fn rules(&self) -> anyhow::Result<Vec<RuleInfo>> {
        let records = self.inner.store.access_records()?.into_iter();
        let rule = |(key, value)| match (key, value) {
            (Key::Rule(subject, repositories), Some(Value::Rule(rule))) => Some(info(&subject, &repositories, rule.actions)),
            _ => None,
        };
        Ok(records.filter_map(|record| rule((record.key, record.value))).collect())
    }

    /// Says whether somebody may do something, and why. Blocks.
    ///
    /// # Errors
    /// There is nobody of that name, or the action or the repository is none.
    pub fn explain(&self, who: &str, action: &str, reference: &str) -> anyhow::Result<Explained> {
        let snapshot = self.current()?;
        let (who, hint) = self.somebody(who)?;
        let mut needed = policy::actions(action)?;
        let (name, tag) = match reference.split_once(':') {
            Some((name, tag)) => (name, Some(tag.parse::<Tag>().with_context(|| format!("the tag {tag:?}"))?)),
            None => (reference, None),
        };
        let repository: RepositoryName = name.parse().with_context(|| format!("the repository {name:?}"))?;
        let mut notes = Vec::from_iter(hint);
        if let Some(tag) = &tag
            && needed == Actions::PUSH
            && self.inner.store.tag(&repository, tag)?.is_some()
        {
            needed = needed.and(Actions::OVERWRITE);
            notes.push(format!("the tag {tag} is there, so that to push another image under it needs overwrite too", tag = tag.as_str()));
        }
        if !snapshot.is_closed {
            notes.push("nobody was ever added here, so everybody may do everything; `larder user add` changes that".to_owned());
        }
        let allowed = !snapshot.is_closed || snapshot.rules.allow(&who, needed, name);
        let because: Vec<_> = snapshot.rules.explain(&who, needed, name).iter().map(shown).collect();
        if !allowed {
            let missing: Vec<_> = words(needed).into_iter().filter(|word| !one(word, &snapshot, &who, name)).collect();
            notes.push(format!(
                "nothing gives {} there; `larder policy allow {} {name} {}` would",
                missing.join(", "),
                who.name(),
                missing.join(",")
            ));
        }
        Ok(Explained { who: who.name(), allowed, needed: words(needed), because, note: notes.join("; ") })
    }

    /// Whom a text means: `alice`, `user:alice`, `robot:ci`, `anonymous`, or `claim:ISSUER:name=value,...` for a token that says so.
    fn somebody(&self, text: &str) -> anyhow::Result<(Who, Option<String>)> {
        let snapshot = self.current()?;
        let nobody = |name: &str| format!("there is no {name}; `larder user list` and `larder robot list` show those that there are");
        match text.split_once(':') {
            None if text == "anonymous" => Ok((Who::Anonymous, None)),
            Some(("robot", name)) => match (snapshot.robot_as(name, now_ms()), snapshot.robot(name)) {
                (Some((who, _)), _) => Ok((who, None)),
                (None, Some(_)) => Ok((Who::Anonymous, Some(format!("the token of {name} has expired: it is nobody")))),
                (None, None) => bail!(nobody(text)),
            },
            Some(("claim", rest)) => {
                let (issuer, said) = rest.split_once(':').context("write claim:ISSUER:name=value,name=value")?;
                let claim = |claim: &str| claim.split_once('=').map(|(name, value)| (name.to_owned(), vec![value.to_owned()]));
                let claims = said.split(',').map(claim).collect::<Option<_>>().context("write claim:ISSUER:name=value,name=value")?;
                Ok((Who::Workload { issuer: issuer.to_owned(), subject: said.to_owned(), claims }, None))
            }
            None => Ok((snapshot.user(text).with_context(|| nobody(&format!("user {text}")))?.0, None)),
            Some(("user", name)) => Ok((snapshot.user(name).with_context(|| nobody(text))?.0, None)),
            Some(_) => bail!("{text:?} is nobody; write alice, robot:ci, anonymous or claim:ISSUER:name=value"),
        }
    }

    fn remove(&self, key: Key) -> anyhow::Result<()> {
        let store: &Store = &self.inner.store;
        store.commit(Commit { records: vec![(key, None)], ..Commit::default() })?;
        Ok(())
    }
}

fn one(word: &str, snapshot: &super::Snapshot, who: &Who, repository: &str) -> bool {
    policy::actions(word).is_ok_and(|action| snapshot.rules.allow(who, action, repository))
}

fn info(subject: &str, repositories: &str, actions: Actions) -> RuleInfo {
    RuleInfo { subject: subject.to_owned(), repositories: repositories.to_owned(), actions: words(actions) }
}

fn shown(source: &Source) -> String {
    match source {
        Source::Rule(rule) => format!("rule {} {} {}", rule.subject, rule.repositories, words(rule.actions).join(",")),
        Source::Grant(pattern, actions) => format!("grant {pattern} {}", words(*actions).join(",")),
        Source::TokenServer => "the token server".to_owned(),
    }
}
