//! `larder restore`: a bucket's content comes back.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{Align, Table, facts};
use super::{Format, show};
use crate::config::ArchiveUrl;

/// Bring a bucket's content back on a node that has none.
///
/// The daemon must be running on a data folder without content. When this returns, the metadata is there and pulls are served;
/// blobs come from the bucket when they are asked for.
#[derive(Args, Debug)]
pub(super) struct Restore {
    /// The bucket: s3://bucket/prefix or file:///folder
    url: String,
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
}

#[derive(Deserialize)]
struct Skipped {
    key: String,
    why: String,
}

impl Restore {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        // A mistake is better told before anything is asked.
        self.url.parse::<ArchiveUrl>().with_context(|| format!("restore from {}", self.url))?;
        let waiting = waiting(&self.url);
        let answer = client.post("restore", json!({ "url": self.url })).await;
        waiting.finish_and_clear();
        show(out, self.format, answer?, |restored: Restored| restored.shown())
    }
}

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
        if !self.skipped.is_empty() {
            let mut table = Table::new(&[("PACK THAT COULD NOT BE USED", Align::Left), ("WHY", Align::Left)]);
            self.skipped.iter().for_each(|skipped| table.line([skipped.key.clone(), skipped.why.clone()]));
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
        assert!(ProgressStyle::with_template(SPINNER).is_ok());
    }
}
