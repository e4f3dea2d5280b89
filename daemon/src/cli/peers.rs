//! `larder token`, `larder join`, `larder peers`: who belongs to the cluster.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{Client, encode};
use super::table::{Align, Table, size, time};
use super::{Format, show};
use crate::config;

/// Make a one-time token with which another node can join.
///
/// Prints one line. Whoever has it can become a member of the cluster, once and until it expires: pass it on as you would a
/// password.
#[derive(Args, Debug)]
pub(super) struct Token {
    /// How long it can be used: 30m, 1h, 7d
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = expiry)]
    expires: Duration,
    /// What the node that joins may do: a writer everything; a reader serves pulls, and what it writes counts nowhere
    #[arg(long, default_value = "writer", value_name = "ROLE")]
    role: Role,
}

/// Whether a node's records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// It takes pushes and deletes
    Writer,
    /// It serves pulls
    Reader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Answer {
    Yes,
    No,
}

/// Longest life of a token: what lies about longer is found by others.
const EXPIRY_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// No token is longer.
const TOKEN_LENGTH_MAX: u64 = 64 * 1024;

fn expiry(text: &str) -> Result<Duration, String> {
    let time = config::duration(text).map_err(|fault| fault.to_string())?;
    if (Duration::from_secs(1)..=EXPIRY_MAX).contains(&time) { Ok(time) } else { Err("a token lives from 1s to 30d".to_owned()) }
}

#[derive(Deserialize)]
struct Made {
    token: String,
}

impl Token {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let made: Made = client.post("tokens", json!({ "expires_s": self.expires.as_secs(), "role": self.role })).await?.read()?;
        Ok(writeln!(out, "{}", made.token)?)
    }
}

/// Join the cluster of the node that made a token.
#[derive(Args, Debug)]
pub(super) struct Join {
    /// What `larder token` printed on a node of the cluster, or - to read it from standard input, where no list of processes shows it
    token: String,
}

#[derive(Deserialize)]
struct Joined {
    cluster: String,
    issuer: String,
}

impl Join {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut token = self.token;
        if token == "-" {
            token.clear();
            std::io::stdin().take(TOKEN_LENGTH_MAX).read_to_string(&mut token).context("read the token from standard input")?;
        }
        let token = token.trim();
        ensure!(!token.is_empty(), "join a cluster: the token is empty; `larder token` prints one on a node of the cluster");
        let joined: Joined = client.post("join", json!({ "token": token })).await?.read()?;
        Ok(writeln!(out, "joined cluster {} through node {}", joined.cluster, joined.issuer)?)
    }
}

/// List the nodes of the cluster, change what one may do, or remove one.
///
/// Without a word after it, it lists. A node is `connected`; `indirect` when it is alive but only others have a connection with it; `suspect`
/// when it has not answered lately; or `down`. VERSION is the program's, and the protocol's that is spoken with it. BEHIND counts the
/// records that it lacks, IN and OUT the bytes since it connected, STRIKES how often it was slow, broke off or lied since.
#[derive(Args, Debug)]
pub(super) struct Peers {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print the daemon's answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the nodes of the cluster as this one sees them
    List,
    /// Say which repositories a node may have: others are neither told to it nor served
    #[command(group(clap::ArgGroup::new("what").args(["allow", "everything"]).required(true)))]
    Site {
        /// Its id, with or without dashes, or enough of its beginning
        id: String,
        /// A pattern of repositories, such as 'shop/**'; may be given more than once. The node becomes a reader
        #[arg(long, value_name = "PATTERN")]
        allow: Vec<String>,
        /// Let it have everything again
        #[arg(long)]
        everything: bool,
    },
    /// Say what a node may do: a writer everything; a reader serves pulls, and what it writes counts nowhere
    #[command(group(clap::ArgGroup::new("change").args(["role", "archiver"]).required(true).multiple(true)))]
    Role {
        /// Its id, with or without dashes, or enough of its beginning
        id: String,
        /// The new role
        role: Option<Role>,
        /// Whether it shall also archive what nodes without a bucket wrote
        #[arg(long)]
        archiver: Option<Answer>,
    },
    /// Give this node another key, while it runs: all others follow, and the old one lets nobody in any more. Its id stays
    RotateKey {
        /// Don't wait for nodes that are away: one that has not heard from another by the time it is back has to join anew
        #[arg(long)]
        now: bool,
        /// The old key may be in other hands: what it has signed for clients ends now, and not by itself
        #[arg(long)]
        revoke: bool,
    },
    /// Remove a node from the cluster for good: no member talks to it any more
    Remove {
        /// Its id, with or without dashes, or enough of its beginning
        id: String,
    },
}

#[derive(Deserialize)]
struct Peer {
    node: String,
    name: String,
    zone: String,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
    state: String,
    since_s: Option<u64>,
    rtt_ms: Option<f64>,
    #[serde(default)]
    version: String,
    protocol: Option<u16>,
    #[serde(default)]
    behind: u64,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    strikes: Option<u32>,
}

#[derive(Deserialize)]
struct KeyChanged {
    key: String,
    waiting_for: Vec<String>,
}

#[derive(Deserialize)]
struct Changed {
    roles: Vec<String>,
}

impl Peers {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        match self.action {
            None | Some(Action::List) => show(out, Format { json: self.json }, client.get("peers").await?, |peers: Vec<Peer>| list(&peers)),
            Some(Action::Role { id, role, archiver }) => {
                let archiver = archiver.map(|answer| answer == Answer::Yes);
                let asked = json!({ "node": id, "role": role, "archiver": archiver });
                let changed: Changed = client.post("peers/role", asked).await?.read()?;
                Ok(writeln!(out, "node {id} is {}", changed.roles.join(" and "))?)
            }
            Some(Action::Site { id, allow, everything: _ }) => {
                let repositories = (!allow.is_empty()).then_some(&allow);
                client.post("peers/site", json!({ "node": id, "repositories": repositories })).await?;
                let what = if allow.is_empty() { "everything".to_owned() } else { format!("{}; it is a reader", allow.join(" and ")) };
                Ok(writeln!(out, "node {id} may have {what}")?)
            }
            Some(Action::RotateKey { now, revoke }) => {
                let answer = client.post("peers/rotate-key", json!({ "now": now, "revoke": revoke })).await?;
                show(out, Format { json: self.json }, answer, |changed: KeyChanged| match changed.waiting_for.as_slice() {
                    [] => format!("this node's key is {} now; its id stays\n", changed.key),
                    waiting => format!(
                        "the key {} is announced; it will be used when {} has heard of it, by itself, over restarts too; --now does not wait\n",
                        changed.key,
                        waiting.join(" and ")
                    ),
                })
            }
            Some(Action::Remove { id }) => {
                client.delete(&format!("peers/{}", encode(&id))).await?;
                Ok(writeln!(out, "removed node {id}")?)
            }
        }
    }
}

fn list(peers: &[Peer]) -> String {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("ZONE", Align::Left),
        ("ROLES", Align::Left),
        ("STATE", Align::Left),
        ("RTT", Align::Right),
        ("VERSION", Align::Left),
        ("BEHIND", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
        ("STRIKES", Align::Right),
        ("ADDRESSES", Align::Left),
        ("NODE", Align::Left),
    ]);
    for peer in peers {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state = match peer.since_s {
            Some(since) if matches!(peer.state.as_str(), "suspect" | "down") => format!("{} {}", peer.state, time(since)),
            _ => peer.state.clone(),
        };
        table.line([
            peer.name.clone(),
            peer.zone.clone(),
            peer.roles.join(" "),
            state,
            or_none(peer.rtt_ms.map(|ms| format!("{ms:.1} ms"))),
            peer.protocol.map_or_else(|| peer.version.clone(), |protocol| format!("{} ({protocol})", peer.version)),
            peer.behind.to_string(),
            or_none(peer.bytes_in.map(size)),
            or_none(peer.bytes_out.map(size)),
            or_none(peer.strikes.map(|strikes| strikes.to_string())),
            peer.addresses.join(", "),
            peer.node.clone(),
        ]);
    }
    table.or("no nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_listed_as_the_api_tells_them() {
        let answer = r#"[{"node":"aaaa-bbbb","name":"build-07","zone":"default","addresses":["10.0.0.7:5000"],"roles":["writer","archiver"],
             "state":"self","since_s":null,"rtt_ms":null,"version":"0.2.0","protocol":null,"behind":0,"bytes_in":null,"bytes_out":null,
             "strikes":null},
            {"node":"cccc-dddd","name":"b","zone":"west","addresses":[],"roles":["reader"],"state":"connected","since_s":70,"rtt_ms":1.26,
             "version":"0.1.0","protocol":1,"behind":12,"bytes_in":2048,"bytes_out":3145728,"strikes":1},
            {"node":"eeee-ffff","name":"c","zone":"west","state":"down","since_s":7200,"rtt_ms":null}]"#;
        let peers: Vec<Peer> = serde_json::from_str(answer).expect("the API's form");
        let expected = "\
NAME      ZONE     ROLES            STATE         RTT  VERSION    BEHIND       IN      OUT  STRIKES  ADDRESSES      NODE
build-07  default  writer archiver  self            -  0.2.0           0        -        -        -  10.0.0.7:5000  aaaa-bbbb
b         west     reader           connected  1.3 ms  0.1.0 (1)      12  2.0 KiB  3.0 MiB        1                 cccc-dddd
c         west                      down 2h         -                  0        -        -        -                 eeee-ffff
";
        assert_eq!(list(&peers), expected);
    }

    #[test]
    fn tokens_live_for_a_while() {
        assert_eq!(expiry("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["0s", "31d", "soon", "500ms"] {
            assert!(expiry(wrong).is_err(), "{wrong}");
        }
    }
}
