//! `larder status`: how the running node is.

use std::io::Write;

use clap::Args;
use serde::Deserialize;

use super::archive::Standing;
use super::client::Client;
use super::table::{self, facts};
use super::{Format, show};

/// Say how the running node is.
#[derive(Args, Debug)]
pub(super) struct Status {
    #[command(flatten)]
    format: Format,
}

#[derive(Deserialize)]
struct Node {
    node: String,
    name: String,
    zone: String,
    cluster: Option<String>,
    version: String,
    uptime_s: u64,
    repositories: u64,
    tags: u64,
    blobs: u64,
    blob_bytes: u64,
    peers_connected: u64,
    peers_total: u64,
    archive: Option<Standing>,
    #[serde(default)]
    quarantined: Quarantined,
    #[serde(default)]
    forked: Forked,
    disk: Option<Disk>,
    risk: Option<Risk>,
}

/// What would be lost with the node; the daemon of an earlier version does not say.
#[derive(Deserialize)]
struct Risk {
    single_copy_bytes: u64,
    single_copy_age_s: Option<u64>,
    unarchived_bytes: u64,
    unarchived_age_s: Option<u64>,
}

impl Risk {
    fn line(&self) -> String {
        let what = |bytes: u64, age: Option<u64>, how: &str| {
            let since = age.map(|age| format!(", for {}", table::time(age))).unwrap_or_default();
            (bytes > 0 || age.is_some()).then(|| format!("{} {how}{since}", table::size(bytes)))
        };
        let alone = what(self.single_copy_bytes, self.single_copy_age_s, "on this node alone");
        let unarchived = what(self.unarchived_bytes, self.unarchived_age_s, "not archived");
        let parts: Vec<_> = alone.into_iter().chain(unarchived).collect();
        if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") }
    }
}

/// Records from the future.
#[derive(Default, Deserialize)]
struct Quarantined {
    count: u64,
}

/// Nodes that wrote twice under one number.
#[derive(Default, Deserialize)]
struct Forked {
    origins: u64,
}

/// How full the disk is; the daemon of an earlier version does not say.
#[derive(Deserialize)]
struct Disk {
    capacity: u64,
    free: u64,
    reserved: u64,
    reserve: u64,
    room: u64,
}

impl Disk {
    fn line(&self) -> String {
        let Self { capacity, free, reserved, reserve, room } = self;
        let more = if *room == 0 { "full: nothing can be pushed".to_owned() } else { format!("{} can be pushed", table::size(*room)) };
        let size = table::size;
        format!("{more}; {} free of {}, {} kept free, {} reserved", size(*free), size(*capacity), size(*reserve), size(*reserved))
    }
}

impl Status {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        show(out, self.format, client.get("status").await?, |node: Node| node.shown())
    }
}

impl Node {
    fn shown(&self) -> String {
        let mut shown = facts(&[
            ("node", format!("{} in zone {}", self.name, self.zone)),
            ("id", self.node.clone()),
            ("cluster", self.cluster.clone().unwrap_or_else(|| "none".to_owned())),
            ("version", format!("{}, up for {}", self.version, table::time(self.uptime_s))),
            (
                "content",
                format!(
                    "{} repositories, {} tags, {} blobs with {}",
                    self.repositories,
                    self.tags,
                    self.blobs,
                    table::size(self.blob_bytes)
                ),
            ),
            ("disk", self.disk.as_ref().map(Disk::line).unwrap_or_else(|| "unknown".to_owned())),
            ("peers", format!("{} of {} connected", self.peers_connected, self.peers_total)),
            ("at risk", self.risk.as_ref().map(Risk::line).unwrap_or_else(|| "unknown".to_owned())),
            ("archive", self.archive.as_ref().map(Standing::line).unwrap_or_else(|| "none".to_owned())),
        ]);
        if self.quarantined.count > 0 {
            shown += &format!(
                "{} records lie in the future and wait for their time; --json lists them: is a clock wrong?\n",
                self.quarantined.count
            );
        }
        if self.forked.origins > 0 {
            shown += &format!("{} nodes wrote twice under one number; --json lists where: does a clone run?\n", self.forked.origins);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_told_on_a_page() {
        let answer = r#"{"node":"aaaa","name":"build-07","zone":"default","cluster":"00ff","version":"0.1.0","uptime_s":61,"repositories":1,"tags":2,
            "blobs":3,"blob_bytes":1048576,"peers_connected":1,"peers_total":2,"archive":{"url":"s3://b","bucket":"x","pending_records":0,
            "pending_bytes":0,"oldest_pending_s":null,"packs":0,"pack_bytes":0,"missing":[],"last_error":"timed out"},
            "disk":{"capacity":1073741824,"free":104857600,"reserved":1048576,"reserve":16777216,"blobs":1,"room":87031808,"excess":0},
            "risk":{"single_copy_bytes":1048576,"single_copy_age_s":61,"unarchived_bytes":0,"unarchived_age_s":2}}"#;
        let node: Node = serde_json::from_str(answer).expect("the API's form");
        let expected = "\
node:    build-07 in zone default
id:      aaaa
cluster: 00ff
version: 0.1.0, up for 1m 1s
content: 1 repositories, 2 tags, 3 blobs with 1.0 MiB
disk:    83.0 MiB can be pushed; 100.0 MiB free of 1.0 GiB, 16.0 MiB kept free, 1.0 MiB reserved
peers:   1 of 2 connected
at risk: 1.0 MiB on this node alone, for 1m 1s; 0 B not archived, for 2s
archive: s3://b, 0 B in 0 packs, nothing waits; last error: timed out
";
        assert_eq!(node.shown(), expected);
        let more = answer.replacen('{', r#"{"quarantined":{"count":3},"forked":{"origins":1},"#, 1);
        let shown = serde_json::from_str::<Node>(&more).expect("the API's form").shown();
        assert_eq!(shown.lines().count(), expected.lines().count() + 2);
    }
}
