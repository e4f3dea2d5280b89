//! `larder gc`: what nothing needs any more goes.

use std::io::Write;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{self, Align, Table};
use super::{Format, show};

/// Do a round of garbage collection and retention now.
///
/// Pushes and pulls go on meanwhile. Layers that no image needs go when no client has relied on them for gc.grace, and their
/// bytes stay in the trash for gc.trash; tags go by the rules of the section retention.
#[derive(Args, Debug)]
pub(super) struct Gc {
    /// Say what would go and why, and touch nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Deserialize)]
struct Report {
    dry_run: bool,
    #[serde(default)]
    waiting_for: Vec<String>,
    tags: u64,
    manifests: u64,
    links: u64,
    links_waiting: u64,
    trashed: u64,
    trashed_bytes: u64,
    purged: u64,
    purged_bytes: u64,
    in_trash: u64,
    in_trash_bytes: u64,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    kind: String,
    #[serde(default)]
    repository: Option<String>,
    name: String,
    #[serde(default)]
    size: Option<u64>,
    why: String,
}

impl Gc {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let answer = client.post("gc", json!({ "dry_run": self.dry_run })).await?;
        show(out, self.format, answer, |report: Report| report.shown())
    }
}

impl Report {
    fn shown(&self) -> String {
        let mut text = String::new();
        if self.dry_run && !self.items.is_empty() {
            let mut items = Table::new(&[
                ("WHAT", Align::Left),
                ("REPOSITORY", Align::Left),
                ("NAME", Align::Left),
                ("SIZE", Align::Right),
                ("WHY", Align::Left),
            ]);
            for item in &self.items {
                let size = item.size.map(table::size).unwrap_or_default();
                items.line([item.kind.clone(), item.repository.clone().unwrap_or_default(), item.name.clone(), size, item.why.clone()]);
            }
            text += &items.or("");
            text += "\n";
        }
        if !self.waiting_for.is_empty() {
            let members = self.waiting_for.join(", ");
            text += &format!("only this disk's own garbage, because these members were not heard: {members}\n");
            text += "(a member that will not come back is removed with `larder peers remove`)\n";
        }
        let would = if self.dry_run { "would go" } else { "gone" };
        text += &table::facts(&[
            (&format!("tags {would}"), self.tags.to_string()),
            (&format!("manifests {would}"), self.manifests.to_string()),
            (&format!("layers {would}"), format!("{} (others, not old enough: {})", self.links, self.links_waiting)),
            ("into the trash", sized(self.trashed, self.trashed_bytes)),
            ("off the disk", sized(self.purged, self.purged_bytes)),
            ("left in the trash", sized(self.in_trash, self.in_trash_bytes)),
        ]);
        text
    }
}

fn sized(count: u64, bytes: u64) -> String {
    format!("{count} blobs, {}", table::size(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"dry_run":true,"waiting_for":["build-7 (node 1abc)"],"tags":1,"manifests":0,"links":2,"links_waiting":3,
        "trashed":4,"trashed_bytes":1024,"purged":0,"purged_bytes":0,"in_trash":1,"in_trash_bytes":2048,
        "items":[{"kind":"tag","repository":"ci/app","name":"pr-1","size":null,"why":"pushed 40 days ago, older than 30 days"}]}"#;

    #[test]
    fn a_dry_run_lists_what_would_go_and_why() {
        let report: Report = serde_json::from_str(ANSWER).expect("the API's form");
        let shown = report.shown();
        for part in ["ci/app", "pr-1", "older than 30 days", "build-7", "larder peers remove", "tags would go", "4 blobs, 1.0 KiB"] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        let done = Report { dry_run: false, ..report };
        assert!(!done.shown().contains("pr-1") && done.shown().contains("tags gone"));
    }
}
