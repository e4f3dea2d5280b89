//! `larder scrub`: everything on this disk is read and compared with what it was.

use std::io::Write;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{self, Align, Table};
use super::{Format, show};

/// Read everything on this node's disk once, now, and mend what is damaged.
///
/// Damaged layers are put aside and brought back from another node or the archive. Pushes and pulls go on meanwhile. The node
/// does the same by itself, slowly, every scrub.cycle.
#[derive(Args, Debug)]
pub(super) struct Scrub {
    #[command(flatten)]
    format: Format,
}

#[derive(Deserialize)]
struct Scrubbed {
    blobs: u64,
    bytes: u64,
    rows: u64,
    #[serde(default)]
    index_errors: Vec<String>,
    #[serde(default)]
    damaged: Vec<Damaged>,
    damaged_count: u64,
    healed_count: u64,
}

#[derive(Deserialize)]
struct Damaged {
    digest: String,
    why: String,
    healed: bool,
}

impl Scrub {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let answer = client.post("scrub", json!({})).await?;
        let found: Scrubbed = answer.read()?;
        show(out, self.format, answer, |found: Scrubbed| found.shown())?;
        out.flush()?;
        let lost = found.damaged_count - found.healed_count.min(found.damaged_count);
        anyhow::ensure!(
            lost == 0 && found.index_errors.is_empty(),
            "{lost} layers are lost on this node and {} parts of its index can't be read; push such layers again, or join it anew with an \
             empty data folder",
            found.index_errors.len()
        );
        Ok(())
    }
}

impl Scrubbed {
    fn shown(&self) -> String {
        let mut text = table::facts(&[
            ("layers read", format!("{}, {}", self.blobs, table::size(self.bytes))),
            ("rows of the index read", self.rows.to_string()),
            ("damaged", self.damaged_count.to_string()),
            ("mended", self.healed_count.to_string()),
        ]);
        if !self.damaged.is_empty() {
            let mut damaged = Table::new(&[("DAMAGED", Align::Left), ("NOW", Align::Left), ("WHY", Align::Left)]);
            for one in &self.damaged {
                let now = if one.healed { "mended" } else { "lost" };
                damaged.line([one.digest.clone(), now.to_owned(), one.why.clone()]);
            }
            text += &format!("\n{}", damaged.or(""));
        }
        for error in &self.index_errors {
            text += &format!("index: {error}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_told() {
        let answer = r#"{"blobs":2,"bytes":2048,"rows":7,"index_errors":["table blob: bad block"],
            "damaged":[{"digest":"sha256:a","why":"the MiB at 0 is not what was written there","healed":false}],"damaged_count":1,"healed_count":0}"#;
        let found: Scrubbed = serde_json::from_str(answer).expect("the API's form");
        let shown = found.shown();
        for part in ["2, 2.0 KiB", "sha256:a", "lost", "the MiB at 0", "index: table blob: bad block"] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
    }
}
