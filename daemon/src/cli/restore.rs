//! `larder restore`: a bucket's content comes back.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{self, Align, Table, facts};
use super::thaw::{self, Consent};
use super::transfer::IdentityArgs;
use super::{Format, show, show_value};
use crate::config::{ArchiveUrl, Tier};

/// Bring a bucket's content back on a node that has none, or try out whether it would come back.
///
/// The daemon must be running on a data folder without content. Once the metadata is there, pulls are served: blobs come from the bucket when they are
/// asked for, and the others meanwhile, those of the newest tags first. The command shows how far that is; when it is interrupted, the daemon goes on.
#[derive(Args, Debug)]
pub(super) struct Restore {
    /// The bucket: s3://bucket/prefix or file:///folder
    #[arg(required_unless_present = "drill")]
    url: Option<String>,
    /// Only repositories whose name matches: `*` is any letters but a slash, `**` any at all. May be given more than once. What is restored so is
    /// content of a new cluster
    #[arg(long, value_name = "GLOB", conflicts_with = "drill")]
    repository: Vec<String>,
    /// Blobs come only when they are asked for
    #[arg(long, conflicts_with = "drill")]
    metadata_only: bool,
    /// Restore what there is, although packs are missing
    #[arg(long, conflicts_with = "drill")]
    allow_gaps: bool,
    /// Believe the packs of this node, though no member of the cluster names it: one that was restored from the same bucket before. May be given more
    /// than once
    #[arg(long, value_name = "ID", conflicts_with = "drill")]
    trust: Vec<String>,
    /// Restore without the packs of nodes that no member of the cluster names
    #[arg(long, conflicts_with = "drill")]
    leave_strangers: bool,
    /// Have what is frozen thawed: bulk, standard or expedited; what is faster costs more. It is told what it takes, and asked
    #[arg(long, value_name = "TIER", value_parser = thaw::tier, conflicts_with_all = ["drill", "metadata_only"])]
    thaw: Option<Tier>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Return as soon as pulls are served
    #[arg(long, conflicts_with = "drill")]
    no_wait: bool,
    /// Restore so many images, chosen at random, to a temporary place, and say what it took; nothing is changed on this node
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    drill: Option<u32>,
    #[command(flatten)]
    format: Format,
}

#[derive(Deserialize)]
struct Restored {
    packs: u64,
    records: u64,
    repositories: u64,
    tags: u64,
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    skipped: Vec<Skipped>,
    #[serde(default)]
    checkpoint: Option<String>,
    #[serde(default)]
    as_of: String,
    #[serde(default)]
    gaps: Vec<Gap>,
    #[serde(default)]
    founder: Option<String>,
    #[serde(default)]
    requests: u64,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    blobs: Option<Progress>,
    #[serde(default)]
    frozen: Option<thaw::Told>,
}

#[derive(Deserialize)]
struct Skipped {
    key: String,
    why: String,
}

#[derive(Deserialize)]
struct Gap {
    node: String,
    after: u64,
    upto: u64,
}

/// How far the blobs are.
#[derive(Clone, Deserialize)]
struct Progress {
    state: String,
    blobs: u64,
    bytes: u64,
    bytes_total: u64,
    lost: u64,
    #[serde(default)]
    lost_blobs: Vec<String>,
    #[serde(default)]
    frozen: u64,
    #[serde(default)]
    thaw: Option<thaw::Progress>,
}

#[derive(Deserialize)]
struct Drilled {
    url: String,
    images: u64,
    #[serde(default)]
    frozen: u64,
    blobs: u64,
    bytes: u64,
    as_of: String,
    requests: BTreeMap<String, u64>,
    bytes_in: u64,
    dollars: f64,
    metadata_seconds: f64,
    seconds: f64,
    failed: Vec<Skipped>,
}

/// How often the daemon is asked how far it is.
const POLLED_EVERY: Duration = Duration::from_millis(500);
/// How often that is told where there is no terminal.
const TOLD_EVERY: Duration = Duration::from_secs(10);

impl Restore {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        // A mistake is better told before anything is asked.
        if let Some(url) = &self.url {
            url.parse::<ArchiveUrl>().with_context(|| format!("restore from {url}"))?;
        }
        self.consent.check(self.thaw)?;
        let identities = self.identity.text()?;
        let waiting = waiting(self.url.as_deref().unwrap_or("the archive"));
        if let Some(images) = self.drill {
            let answer = client.post("restore/drill", json!({ "url": self.url, "images": images, "identities": identities })).await;
            waiting.finish_and_clear();
            return show(out, self.format, answer?, |drilled: Drilled| drilled.shown());
        }
        let asked = json!({
            "url": self.url, "repositories": self.repository, "metadata_only": self.metadata_only, "allow_gaps": self.allow_gaps,
            "trust": self.trust, "leave_strangers": self.leave_strangers, "identities": identities,
        });
        let answer = client.post("restore", asked).await;
        waiting.finish_and_clear();
        let mut restored: serde_json::Value = answer?.read()?;
        restored["frozen"] = thaw::settle(client, &[], self.thaw, &self.consent).await?;
        if !self.metadata_only && !self.no_wait {
            restored["blobs"] = follow(client).await?;
        }
        show_value(out, self.format, restored, |restored: Restored| restored.shown())
    }
}

/// Shows how the blobs come, until that has ended.
async fn follow(client: &Client) -> anyhow::Result<serde_json::Value> {
    let is_terminal = std::io::stderr().is_terminal();
    let style = ProgressStyle::with_template(BAR).expect("the template is right, a test reads it");
    let bar = if is_terminal { ProgressBar::new(0).with_style(style) } else { ProgressBar::hidden() };
    let mut told = std::time::Instant::now();
    loop {
        let answer: serde_json::Value = client.get("restore").await?.read()?;
        let progress: Progress = serde_json::from_value(answer.clone()).context("read how the restore stands")?;
        if progress.state != "running" && progress.state != "failed" && progress.thaw.is_none() {
            bar.finish_and_clear();
            return Ok(answer);
        }
        bar.set_length(progress.bytes_total.max(progress.bytes));
        bar.set_position(progress.bytes);
        if !is_terminal && told.elapsed() > TOLD_EVERY {
            told = std::time::Instant::now();
            if let Some(thaw) = &progress.thaw {
                eprintln!("{}", thaw.shown());
            }
            eprintln!("{} of about {} in {} blobs", table::size(progress.bytes), table::size(progress.bytes_total), progress.blobs);
        }
        tokio::time::sleep(POLLED_EVERY).await;
    }
}

const BAR: &str = "{bar:40} {bytes} of about {total_bytes}, {bytes_per_sec}, {elapsed}; pulls are served";
const SPINNER: &str = "{spinner} restoring from {msg}, {elapsed}";

/// Something that moves, on a terminal.
fn waiting(url: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(SPINNER).expect("the template is right, a test reads it");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(url.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

impl Restored {
    fn shown(&self) -> String {
        let mut text = facts(&[
            ("cluster", self.cluster.clone()),
            ("packs read", self.packs.to_string()),
            ("records", self.records.to_string()),
            ("repositories", self.repositories.to_string()),
            ("tags", self.tags.to_string()),
        ]);
        if !self.as_of.is_empty() {
            let from = self.checkpoint.as_deref().map_or_else(|| "packs alone".to_owned(), |key| format!("checkpoint {key}"));
            let mut more = vec![
                ("the state is of", self.as_of.clone()),
                ("read from", from),
                (
                    "believed",
                    self.founder.as_ref().map_or_else(|| "who was named".to_owned(), |node| format!("node {node}, and whom it let in")),
                ),
                ("took", format!("{} requests, {:.1} s", self.requests, self.seconds)),
            ];
            more.extend(self.blobs.as_ref().map(|blobs| ("blobs", blobs.shown())));
            text.push_str(&facts(&more));
        }
        text.extend(self.frozen.iter().filter(|frozen| frozen.is_some()).map(|frozen| frozen.shown()));
        for gap in &self.gaps {
            text.push_str(&format!("lost: what node {} wrote as its numbers {} to {}\n", gap.node, gap.after + 1, gap.upto));
        }
        for digest in self.blobs.iter().flat_map(|blobs| &blobs.lost_blobs) {
            text.push_str(&format!("lost: {digest}\n"));
        }
        if !self.skipped.is_empty() {
            let mut table = Table::new(&[("PACK THAT COULD NOT BE USED", Align::Left), ("WHY", Align::Left)]);
            self.skipped.iter().for_each(|skipped| table.line([skipped.key.clone(), skipped.why.clone()]));
            text.push_str(&table.to_string());
        }
        text
    }
}

impl Progress {
    fn shown(&self) -> String {
        let how = match self.state.as_str() {
            "full" => "; there is no room for more, what is left comes when it is asked for",
            "none" => "; they come when they are asked for",
            _ => "",
        };
        let lost = if self.lost > 0 { format!("; {} could not be had", self.lost) } else { String::new() };
        let frozen = if self.frozen > 0 { format!("; {} were frozen", self.frozen) } else { String::new() };
        format!("{} with {}{how}{frozen}{lost}", self.blobs, table::size(self.bytes))
    }
}

impl Drilled {
    fn shown(&self) -> String {
        let requests: Vec<String> =
            self.requests.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| format!("{count} {kind}")).collect();
        let mut lines = vec![
            ("bucket", self.url.clone()),
            ("images", format!("{} came whole, {} blobs with {}", self.images, self.blobs, table::size(self.bytes))),
            ("the state is of", self.as_of.clone()),
            ("requests", requests.join(", ")),
            ("read", table::size(self.bytes_in)),
            ("cost", format!("${:.6}, the transfer out of the vendor's network included", self.dollars)),
            ("pulls served after", format!("{:.1} s", self.metadata_seconds)),
            ("all there after", format!("{:.1} s", self.seconds)),
        ];
        if self.frozen > 0 {
            lines.insert(2, ("frozen", format!("{} images would be there once their packs have thawed", self.frozen)));
        }
        let mut text = facts(&lines);
        if !self.failed.is_empty() {
            let mut table = Table::new(&[("COULD NOT BE HAD", Align::Left), ("WHY", Align::Left)]);
            self.failed.iter().for_each(|failed| table.line([failed.key.clone(), failed.why.clone()]));
            text.push_str(&table.to_string());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_and_what_did_not_is_told() {
        let answer =
            r#"{"packs":2,"records":30,"repositories":1,"tags":3,"cluster":"ab","skipped":[{"key":"k","why":"its footer is torn"}]}"#;
        let restored: Restored = serde_json::from_str(answer).expect("the API's form");
        assert_eq!(
            restored.shown(),
            "cluster:      ab\npacks read:   2\nrecords:      30\nrepositories: 1\ntags:         3\n\
             PACK THAT COULD NOT BE USED  WHY\nk                            its footer is torn\n"
        );
    }

    #[test]
    fn the_spinner_has_a_template_that_can_be_read() {
        assert!(ProgressStyle::with_template(SPINNER).is_ok() && ProgressStyle::with_template(BAR).is_ok());
    }
}
