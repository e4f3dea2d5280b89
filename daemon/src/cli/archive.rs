//! `larder archive`: the bucket, how it stands, what is in it, what it costs.

use std::io::Write;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::compact::Compact;
use super::cost::Cost;
use super::table::{self, Align, Table, facts};
use super::thaw::{self, Thaw};
use super::verify::{Verified, Verify};
use super::{Format, show};

/// The bucket: how it stands, what is in it, what it costs.
#[derive(Args, Debug)]
pub(super) struct Archive {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say what waits to be archived, and what is missing
    Status(Format),
    /// Write what waits to the bucket now
    Flush(Format),
    /// List the packs in the bucket
    List(Format),
    /// Say what was asked of the bucket, and what that costs
    Cost(Format),
    /// Write a checkpoint now, whether one is due or not: the state from which the next restore begins
    Checkpoint(Format),
    /// Compare the bucket with what was written to it, and read a part of it when asked
    Verify(Verify),
    /// Have what is frozen thawed, and brought onto this disk
    Thaw(Thaw),
    /// Make the bucket smaller where that saves more than it costs: drop packs of which nothing counts, write what counts of others anew
    Compact(Compact),
    /// Forget what the bucket held, after it was emptied or replaced: everything is archived there anew
    StartOver(Format),
}

/// The archive's part of `larder status` too.
#[derive(Debug, Deserialize)]
pub(super) struct Standing {
    url: String,
    pending_records: u64,
    pending_bytes: u64,
    oldest_pending_s: Option<u64>,
    packs: u64,
    pack_bytes: u64,
    #[serde(default)]
    missing: Vec<String>,
    last_error: Option<String>,
    #[serde(default)]
    verified: Option<Verified>,
    #[serde(default)]
    restore: Option<Restoring>,
}

#[derive(Debug, Deserialize)]
struct Restoring {
    #[serde(default)]
    thaw: Option<thaw::Progress>,
}

#[derive(Deserialize)]
struct Checkpoint {
    key: String,
}

#[derive(Deserialize)]
struct Forgotten {
    packs: u64,
}

#[derive(Deserialize)]
struct Flushed {
    packs: Vec<Pack>,
}

#[derive(Deserialize)]
struct Pack {
    key: String,
    #[serde(default)]
    class: String,
    size: u64,
    #[serde(default)]
    records: u64,
    #[serde(default)]
    blobs: u64,
    #[serde(default)]
    created: Value,
}

impl Archive {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        match self.action {
            Action::Status(format) => show(out, format, client.get("archive").await?, |standing: Standing| standing.shown()),
            Action::Flush(format) => show(out, format, client.post("archive/flush", json!({})).await?, |flushed: Flushed| flushed.shown()),
            Action::List(format) => {
                show(out, format, client.get("archive/packs").await?, |packs: Vec<Pack>| list(&packs, jiff::Timestamp::now()))
            }
            Action::Checkpoint(format) => show(out, format, client.post("archive/checkpoint", json!({})).await?, |written: Checkpoint| {
                format!("wrote {}\n", written.key)
            }),
            Action::StartOver(format) => show(out, format, client.post("archive/start-over", json!({})).await?, |forgotten: Forgotten| {
                format!("{} packs are forgotten; what they held goes into new ones\n", forgotten.packs)
            }),
            Action::Thaw(thaw) => thaw.run(client, out).await,
            Action::Compact(compact) => compact.run(client, out).await,
            Action::Verify(verify) => verify.run(client, out).await,
            Action::Cost(format) => show(out, format, client.get("archive/cost").await?, |cost: Cost| cost.shown()),
        }
    }
}

impl Standing {
    /// On a line, for `larder status`.
    pub(super) fn line(&self) -> String {
        let waiting = match self.pending_records {
            0 => "nothing waits".to_owned(),
            _ => self.waiting(),
        };
        let trouble = self.last_error.as_ref().map(|error| format!("; last error: {error}")).unwrap_or_default();
        format!("{}, {} in {} packs, {waiting}{trouble}", self.url, table::size(self.pack_bytes), self.packs)
    }

    fn waiting(&self) -> String {
        let since = self.oldest_pending_s.map(|seconds| format!(", since {}", table::time(seconds))).unwrap_or_default();
        format!("{} in {} records wait{since}", table::size(self.pending_bytes), self.pending_records)
    }

    fn shown(&self) -> String {
        let missing = match self.missing.as_slice() {
            [] => "nothing".to_owned(),
            missing => format!("{} blobs that a manifest names and nobody has", missing.len()),
        };
        let mut lines = vec![
            ("archive", self.url.clone()),
            ("packs", format!("{} with {}", self.packs, table::size(self.pack_bytes))),
            ("waiting", if self.pending_records == 0 { "nothing".to_owned() } else { self.waiting() }),
            ("missing", missing),
            ("verified", self.verified.as_ref().map_or_else(|| "not yet".to_owned(), |verified| verified.line(jiff::Timestamp::now()))),
            ("last error", self.last_error.clone().unwrap_or_else(|| "none".to_owned())),
        ];
        lines.extend(self.restore.iter().filter_map(|restore| Some(("thawing", restore.thaw.as_ref()?.shown()))));
        let mut text = facts(&lines);
        for digest in &self.missing {
            text.push_str(&format!("  {digest}\n"));
        }
        text
    }
}

impl Flushed {
    fn shown(&self) -> String {
        let lines = self
            .packs
            .iter()
            .map(|pack| format!("wrote {}: {} with {} records and {} blobs\n", pack.key, table::size(pack.size), pack.records, pack.blobs));
        let text: String = lines.collect();
        if text.is_empty() { "nothing waited\n".to_owned() } else { text }
    }
}

fn list(packs: &[Pack], now: jiff::Timestamp) -> String {
    let columns = [("KEY", Align::Left), ("CLASS", Align::Left), ("SIZE", Align::Right), ("BLOBS", Align::Right), ("CREATED", Align::Left)];
    let mut table = Table::new(&columns);
    for pack in packs {
        table.line([pack.key.clone(), pack.class.clone(), table::size(pack.size), pack.blobs.to_string(), table::age(&pack.created, now)]);
    }
    table.or("no packs yet; `larder archive flush` writes one now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archives_standing_is_told() {
        let answer = r#"{"url":"s3://b/p","bucket":"x","pending_records":2,"pending_bytes":1024,"oldest_pending_s":90,"packs":3,
            "pack_bytes":1048576,"missing":["sha256:abc"],"last_error":null}"#;
        let standing: Standing = serde_json::from_str(answer).expect("the API's form");
        assert_eq!(
            standing.shown(),
            "archive:    s3://b/p\npacks:      3 with 1.0 MiB\nwaiting:    1.0 KiB in 2 records wait, since 1m 30s\n\
             missing:    1 blobs that a manifest names and nobody has\nverified:   not yet\nlast error: none\n  sha256:abc\n"
        );
        assert_eq!(standing.line(), "s3://b/p, 1.0 MiB in 3 packs, 1.0 KiB in 2 records wait, since 1m 30s");
    }

    #[test]
    fn packs_are_listed_and_flushes_told() {
        let answer = r#"[{"id":"i","key":"v1/packs/a-1/1.tar","bucket":"x","class":"STANDARD","size":2048,"blobs":4,"created":"2026-11-23T11:59:00Z"}]"#;
        let packs: Vec<Pack> = serde_json::from_str(answer).expect("the API's form");
        let now = "2026-11-23T12:00:00Z".parse().expect("a time");
        assert_eq!(
            list(&packs, now),
            "KEY                 CLASS        SIZE  BLOBS  CREATED\nv1/packs/a-1/1.tar  STANDARD  2.0 KiB      4  1m ago\n"
        );
        let flushed: Flushed =
            serde_json::from_str(r#"{"packs":[{"key":"k","size":1024,"records":2,"blobs":1}]}"#).expect("the API's form");
        assert_eq!(flushed.shown(), "wrote k: 1.0 KiB with 2 records and 1 blobs\n");
        assert_eq!(Flushed { packs: Vec::new() }.shown(), "nothing waited\n");
    }
}
