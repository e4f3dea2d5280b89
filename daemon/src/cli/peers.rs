//! `larder token`, `larder join`, `larder peers`: who belongs to the cluster.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, encode};
use super::table::{Align, Table};
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
        let made: Made = client.post("tokens", json!({ "expires_s": self.expires.as_secs() })).await?.read()?;
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

/// List the nodes of the cluster, or remove one.
///
/// Without a word after it, it lists.
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
    state: String,
    rtt_ms: Option<f64>,
    #[serde(default)]
    behind: u64,
}

impl Peers {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        match self.action {
            None | Some(Action::List) => show(out, Format { json: self.json }, client.get("peers").await?, |peers: Vec<Peer>| list(&peers)),
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
        ("STATE", Align::Left),
        ("RTT", Align::Right),
        ("BEHIND", Align::Right),
        ("ADDRESSES", Align::Left),
        ("NODE", Align::Left),
    ]);
    for peer in peers {
        let rtt = peer.rtt_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_else(|| "-".to_owned());
        let addresses = peer.addresses.join(", ");
        table.line([peer.name.clone(), peer.zone.clone(), peer.state.clone(), rtt, peer.behind.to_string(), addresses, peer.node.clone()]);
    }
    table.or("no nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_listed_as_the_api_tells_them() {
        let answer = r#"[{"node":"aaaa-bbbb","name":"build-07","zone":"default","addresses":["10.0.0.7:5000"],"state":"self","rtt_ms":null,"behind":0},
            {"node":"cccc-dddd","name":"b","zone":"west","addresses":[],"state":"connected","rtt_ms":1.26,"behind":12}]"#;
        let peers: Vec<Peer> = serde_json::from_str(answer).expect("the API's form");
        let expected = "\
NAME      ZONE     STATE         RTT  BEHIND  ADDRESSES      NODE
build-07  default  self            -       0  10.0.0.7:5000  aaaa-bbbb
b         west     connected  1.3 ms      12                 cccc-dddd
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
