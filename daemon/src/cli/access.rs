//! `larder user`, `larder robot`, `larder policy`: who there is, and what they may do.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, encode};
use super::table::{Align, Table};
use super::{Format, show};
use crate::auth::{htpasswd, password};
use crate::config;

/// People that are sent at a time: a request has a limit.
const IMPORTED_AT_ONCE: usize = 200;

/// People with a name and a password.
///
/// They are known on every node at once. A new user may do nothing until a rule says so: `larder policy allow`. As soon as anybody was ever added,
/// everybody is asked for a name, and what no rule gives is refused.
#[derive(Args, Debug)]
pub(super) struct User {
    #[command(subcommand)]
    action: UserAction,
}

#[derive(Debug, Subcommand)]
enum UserAction {
    /// Add somebody, or change the password; it is read from standard input
    Add {
        /// The name
        name: String,
        /// Read the password from standard input, where no list of processes shows it
        #[arg(long, required = true)]
        password_stdin: bool,
        /// A group to be in, for rules about group:NAME; may be given more than once, and replaces those from before
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Take over a password file, as `htpasswd -B` writes it
    Import {
        /// The file
        file: PathBuf,
        /// A group that all of them are in
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Remove somebody: tokens end too
    Remove {
        /// The name
        name: String,
    },
    /// List everybody
    List(Format),
}

/// Programs that sign in with a token.
///
/// A robot may do what it was given and what rules about robot:NAME say, until it expires.
#[derive(Args, Debug)]
pub(super) struct Robot {
    #[command(subcommand)]
    action: RobotAction,
}

#[derive(Debug, Subcommand)]
enum RobotAction {
    /// Make a robot, or give it another token, and print the token, this once
    Add {
        /// The name; it signs in as robot+NAME
        name: String,
        /// What it may do: a pattern of repositories, a colon, and actions: 'ci/**:pull,push'; may be given more than once
        #[arg(long = "allow", value_name = "PATTERN:ACTIONS", value_parser = grant)]
        grants: Vec<(String, String)>,
        /// How long the token is good: 30d, 12h
        #[arg(long, default_value = "90d", value_name = "TIME", value_parser = life, conflicts_with = "forever")]
        expires: Duration,
        /// Let the token be good until it is removed
        #[arg(long)]
        forever: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Remove a robot: its token ends
    Remove {
        /// The name
        name: String,
    },
    /// List the robots
    List(Format),
}

/// Who may do what.
///
/// A rule gives a subject some actions in the repositories of a pattern, in which * stands for any letters but a slash and ** for any. What no rule
/// gives is refused. Subjects are user:NAME, group:NAME, robot:NAME, claim:ISSUER:NAME=PATTERN,... (what a token of an OIDC issuer says), users (whoever
/// has signed in) and anonymous (anyone at all). Actions are pull, push, overwrite (let a tag name another image), delete and admin (all of them).
#[derive(Args, Debug)]
pub(super) struct Policy {
    #[command(subcommand)]
    action: PolicyAction,
}

#[derive(Debug, Subcommand)]
enum PolicyAction {
    /// Let a subject do exactly these actions in the repositories of a pattern
    Allow {
        /// user:alice, group:dev, robot:ci, claim:ci:repository=acme/app, users, anonymous
        subject: String,
        /// 'team/app', 'team/*', '**'
        repositories: String,
        /// pull,push,overwrite,delete,admin
        actions: String,
    },
    /// Take a rule away
    Remove {
        /// The subject, as `larder policy list` shows it
        subject: String,
        /// The pattern, as `larder policy list` shows it
        repositories: String,
    },
    /// List the rules
    List(Format),
    /// Say whether somebody may do something, and why
    Explain {
        /// alice, robot:ci, anonymous, claim:ci:repository=acme/app
        who: String,
        /// pull, push, overwrite, delete, admin
        action: String,
        /// team/app, or team/app:latest
        reference: String,
        #[command(flatten)]
        format: Format,
    },
}

fn grant(text: &str) -> Result<(String, String), String> {
    let (repositories, actions) = text.rsplit_once(':').ok_or("write PATTERN:ACTIONS, such as ci/**:pull,push")?;
    Ok((repositories.to_owned(), actions.to_owned()))
}

fn life(text: &str) -> Result<Duration, String> {
    let time = config::duration(text).map_err(|fault| fault.to_string())?;
    if time >= Duration::from_secs(1) { Ok(time) } else { Err("a token is good for a second at least".to_owned()) }
}

#[derive(Deserialize)]
struct UserInfo {
    name: String,
    groups: Vec<String>,
    here_only: bool,
}

#[derive(Deserialize)]
struct RobotInfo {
    name: String,
    login: String,
    expires_ms: Option<u64>,
    expired: bool,
    grants: Vec<RuleInfo>,
}

#[derive(Deserialize)]
struct RuleInfo {
    subject: String,
    repositories: String,
    actions: Vec<String>,
}

#[derive(Deserialize)]
struct NewRobot {
    login: String,
    token: String,
    expires_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Explained {
    who: String,
    allowed: bool,
    needed: Vec<String>,
    because: Vec<String>,
    note: String,
}

impl User {
    pub(super) async fn run(self, client: &Client, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        match self.action {
            UserAction::Add { name, password_stdin: _, groups } => {
                let mut password = Vec::new();
                let read = std::io::stdin().take(password::LENGTH_MAX as u64 + 2).read_to_end(&mut password);
                read.context("read the password from standard input")?;
                let password = without_newline(&password);
                ensure!(!password.is_empty(), "add {name}: the password is empty; write it to standard input");
                ensure!(password.len() <= password::LENGTH_MAX, "add {name}: a password has at most {} bytes", password::LENGTH_MAX);
                // Here, so that the daemon never sees it.
                let hash = password::hash(password).map_err(|why| anyhow::anyhow!("hash the password of {name}: {why}"))?;
                let groups = (!groups.is_empty()).then_some(groups);
                client.post("users", json!({ "people": [{ "name": name, "hash": hash }], "groups": groups })).await?;
                Ok(writeln!(out, "added user {name}; `larder policy allow user:{name} PATTERN ACTIONS` says what they may do")?)
            }
            UserAction::Import { file, groups } => {
                let people: Vec<_> = htpasswd::read(&file)?.into_iter().collect();
                let groups = (!groups.is_empty()).then_some(groups);
                for some in people.chunks(IMPORTED_AT_ONCE) {
                    let some: Vec<_> = some.iter().map(|(name, hash)| json!({ "name": name, "hash": hash })).collect();
                    client.post("users", json!({ "people": some, "groups": groups })).await?;
                }
                Ok(writeln!(out, "added {} users of {}", people.len(), file.display())?)
            }
            UserAction::Remove { name } => {
                client.delete(&format!("users/{}", encode(&name))).await?;
                Ok(writeln!(out, "removed user {name}")?)
            }
            UserAction::List(format) => show(out, format, client.get("users").await?, |users: Vec<UserInfo>| {
                let mut table = Table::new(&[("NAME", Align::Left), ("GROUPS", Align::Left), ("WHERE", Align::Left)]);
                for user in users {
                    let place = if user.here_only { "this node's password file" } else { "everywhere" };
                    table.line([user.name, user.groups.join(" "), place.to_owned()]);
                }
                table.or("no users")
            }),
        }
    }
}

fn without_newline(text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

impl Robot {
    pub(super) async fn run(self, client: &Client, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        match self.action {
            RobotAction::Add { name, grants, expires, forever, format } => {
                let grants: Vec<_> = grants.iter().map(|(names, actions)| json!({ "repositories": names, "actions": actions })).collect();
                let expires_s = (!forever).then_some(expires.as_secs());
                let answer = client.post("robots", json!({ "name": name, "grants": grants, "expires_s": expires_s })).await?;
                show(out, format, answer, |made: NewRobot| {
                    format!("name:     {}\npassword: {}\nexpires:  {}\n", made.login, made.token, until(made.expires_ms))
                })
            }
            RobotAction::Remove { name } => {
                client.delete(&format!("robots/{}", encode(&name))).await?;
                Ok(writeln!(out, "removed robot {name}")?)
            }
            RobotAction::List(format) => show(out, format, client.get("robots").await?, |robots: Vec<RobotInfo>| {
                let columns = [("NAME", Align::Left), ("SIGNS IN AS", Align::Left), ("EXPIRES", Align::Left), ("MAY", Align::Left)];
                let mut table = Table::new(&columns);
                for robot in robots {
                    let may = robot.grants.iter().map(|grant| format!("{}:{}", grant.repositories, grant.actions.join(",")));
                    let expires = format!("{}{}", until(robot.expires_ms), if robot.expired { " (over)" } else { "" });
                    table.line([robot.name, robot.login, expires, may.collect::<Vec<_>>().join(" ")]);
                }
                table.or("no robots")
            }),
        }
    }
}

fn until(ms: Option<u64>) -> String {
    let moment = |ms: u64| jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok();
    match ms {
        None => "never".to_owned(),
        Some(ms) => moment(ms).map_or_else(|| "in a very long time".to_owned(), |moment| moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    }
}

impl Policy {
    pub(super) async fn run(self, client: &Client, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        match self.action {
            PolicyAction::Allow { subject, repositories, actions } => {
                let asked = json!({ "subject": subject, "repositories": repositories, "actions": actions });
                let rule: RuleInfo = client.post("rules", asked).await?.read()?;
                Ok(writeln!(out, "{} may {} in {}", rule.subject, rule.actions.join(", "), rule.repositories)?)
            }
            PolicyAction::Remove { subject, repositories } => {
                client.delete(&format!("rules?subject={}&repositories={}", encode(&subject), encode(&repositories))).await?;
                Ok(writeln!(out, "removed the rule for {subject} in {repositories}")?)
            }
            PolicyAction::List(format) => show(out, format, client.get("rules").await?, |rules: Vec<RuleInfo>| {
                let mut table = Table::new(&[("SUBJECT", Align::Left), ("REPOSITORIES", Align::Left), ("MAY", Align::Left)]);
                for rule in rules {
                    table.line([rule.subject, rule.repositories, rule.actions.join(",")]);
                }
                table.or("no rules")
            }),
            PolicyAction::Explain { who, action, reference, format } => {
                let question = format!("explain?who={}&action={}&reference={}", encode(&who), encode(&action), encode(&reference));
                show(out, format, client.get(&question).await?, |explained: Explained| explanation(&explained, &reference))
            }
        }
    }
}

fn explanation(explained: &Explained, reference: &str) -> String {
    let may = if explained.allowed { "may" } else { "may not" };
    let mut text = format!("{} {may} {} {reference}\n", explained.who, explained.needed.join(" and "));
    for because in &explained.because {
        text.push_str(&format!("  by {because}\n"));
    }
    if !explained.note.is_empty() {
        text.push_str(&format!("  {}\n", explained.note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_and_times_are_read() {
        assert_eq!(grant("ci/**:pull,push"), Ok(("ci/**".to_owned(), "pull,push".to_owned())));
        assert!(grant("ci/**").is_err());
        assert_eq!(life("90d"), Ok(Duration::from_secs(90 * 86400)));
        assert!(life("10ms").is_err());
        assert_eq!(until(None), "never");
        assert_eq!(until(Some(0)), "1970-01-01T00:00:00Z");
        assert_eq!(until(Some(u64::MAX)), "in a very long time");
    }

    #[test]
    fn a_password_loses_one_newline_and_nothing_else() {
        for (text, password) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("", "")] {
            assert_eq!(without_newline(text.as_bytes()), password.as_bytes());
        }
    }

    #[test]
    fn an_explanation_says_what_and_why() {
        let explained = Explained {
            who: "user:alice".to_owned(),
            allowed: false,
            needed: vec!["push".to_owned(), "overwrite".to_owned()],
            because: vec!["rule user:alice team/** push".to_owned()],
            note: "nothing gives overwrite there".to_owned(),
        };
        let expected =
            "user:alice may not push and overwrite team/app:1\n  by rule user:alice team/** push\n  nothing gives overwrite there\n";
        assert_eq!(explanation(&explained, "team/app:1"), expected);
    }
}
