//! `larder archive verify`: is the bucket what was written to it?

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{self, Align, Table, facts};
use super::{Format, show};
use crate::archive::Subset;

/// Compare the bucket with what was written to it.
///
/// One request lists a thousand packs. With --read-data-subset the packs of that part are read, which takes a request or two and their traffic for each, and
/// every blob in them is checked: 1/30 today, 2/30 tomorrow, and in a month all of it was read. The node compares the listing by itself, every
/// archive.verify_period.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Read the n-th of m parts of the packs; 1/1 is everything
    #[arg(long, value_name = "N/M", value_parser = subset)]
    read_data_subset: Option<String>,
    /// Write anew what is found missing or damaged, from this disk or from whoever has it
    #[arg(long)]
    mend: bool,
    #[command(flatten)]
    format: Format,
}

fn subset(text: &str) -> Result<String, String> {
    text.parse::<Subset>().map(|_| text.to_owned()).map_err(str::to_owned)
}

/// What was found.
#[derive(Debug, Deserialize)]
pub(super) struct Verified {
    at_ms: i64,
    objects: u64,
    bytes: u64,
    packs: u64,
    #[serde(default)]
    classes: BTreeMap<String, (u64, u64)>,
    missing: Vec<String>,
    wrong_size: Vec<WrongSize>,
    orphans: Vec<String>,
    #[serde(default)]
    retired: u64,
    read: Option<Read>,
    mended: u64,
}

#[derive(Debug, Deserialize)]
struct WrongSize {
    key: String,
    written: u64,
    found: u64,
}

#[derive(Debug, Deserialize)]
struct Read {
    packs: u64,
    #[serde(default)]
    frozen: u64,
    blobs: u64,
    bytes: u64,
    damaged: Vec<Damaged>,
    unreadable: Vec<Unreadable>,
}

#[derive(Debug, Deserialize)]
struct Damaged {
    key: String,
    digest: String,
}

#[derive(Debug, Deserialize)]
struct Unreadable {
    key: String,
    why: String,
}

impl Verify {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let answer = client.post("archive/verify", json!({ "subset": self.read_data_subset, "mend": self.mend })).await?;
        let found: Verified = answer.read()?;
        show(out, self.format, answer, |found: Verified| found.shown())?;
        out.flush()?;
        let wrong = found.wrong();
        anyhow::ensure!(
            wrong == 0 || found.mended > 0,
            "{wrong} packs or blobs in the bucket are not what was written; `larder archive verify --mend` writes them anew"
        );
        Ok(())
    }
}

impl Verified {
    fn wrong(&self) -> usize {
        let read = self.read.as_ref().map_or(0, |read| read.damaged.len() + read.unreadable.len());
        self.missing.len() + self.wrong_size.len() + read
    }

    /// In a line, for `larder archive status`.
    pub(super) fn line(&self, now: jiff::Timestamp) -> String {
        let at = jiff::Timestamp::from_millisecond(self.at_ms).map(|at| serde_json::Value::String(at.to_string())).unwrap_or_default();
        let how = match (self.wrong(), self.mended) {
            (0, _) => format!("{} packs as they were written", self.packs),
            (wrong, 0) => format!("{wrong} packs or blobs are not what was written; see `larder archive verify`"),
            (wrong, mended) => format!("{wrong} packs or blobs were not what was written; what {mended} packs had lost was written anew"),
        };
        format!("{}: {how}", table::age(&at, now))
    }

    fn shown(&self) -> String {
        let mut lines = vec![
            ("objects", format!("{} with {}", self.objects, table::size(self.bytes))),
            ("packs", format!("{}: {} missing, {} with another length", self.packs, self.missing.len(), self.wrong_size.len())),
            ("of no record", self.orphans.len().to_string()),
            ("compacted away", format!("{} packs that go later", self.retired)),
        ];
        if self.classes.len() > 1 {
            let of = |(class, (packs, bytes)): (&String, &(u64, u64))| format!("{packs} {class} with {}", table::size(*bytes));
            lines.push(("by class", self.classes.iter().map(of).collect::<Vec<_>>().join(", ")));
        }
        if let Some(read) = &self.read {
            let damaged = read.damaged.len() + read.unreadable.len();
            if read.frozen > 0 {
                lines.push(("not read", format!("{} packs, which are frozen", read.frozen)));
            }
            lines.push(("read", format!("{} packs, {} blobs, {}; {damaged} damaged", read.packs, read.blobs, table::size(read.bytes))));
        }
        if self.mended > 0 {
            lines.push(("mended", format!("what {} packs had lost is in others", self.mended)));
        }
        let mut text = facts(&lines);
        let mut table = Table::new(&[("OBJECT", Align::Left), ("WHAT IS WRONG", Align::Left)]);
        let mut wrong = 0;
        let mut line = |key: &String, why: String| {
            wrong += 1;
            table.line([key.clone(), why]);
        };
        self.missing.iter().for_each(|key| line(key, "missing".to_owned()));
        self.wrong_size.iter().for_each(|it| line(&it.key, format!("{} bytes, {} were written", it.found, it.written)));
        if let Some(read) = &self.read {
            read.unreadable.iter().for_each(|it| line(&it.key, it.why.clone()));
            read.damaged.iter().for_each(|it| line(&it.key, format!("{} is damaged", it.digest)));
        }
        self.orphans.iter().for_each(|key| line(key, "no record tells of it; harmless".to_owned()));
        if wrong > 0 {
            text.push_str(&table.to_string());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_object_by_object() {
        let answer = r#"{"at_ms":1700000000000,"objects":3,"bytes":2048,"packs":3,"missing":["a"],"wrong_size":[{"key":"b","written":9,"found":5}],
            "orphans":["c"],"read":{"packs":1,"blobs":4,"bytes":1024,"damaged":[{"key":"d","digest":"sha256:1"}],"unreadable":[]},"mended":0}"#;
        let found: Verified = serde_json::from_str(answer).expect("the API's form");
        assert_eq!(found.wrong(), 3);
        let text = found.shown();
        assert!(text.contains("read:           1 packs, 4 blobs, 1.0 KiB; 1 damaged\n"), "{text}");
        for line in
            ["a       missing", "b       5 bytes, 9 were written", "d       sha256:1 is damaged", "c       no record tells of it; harmless"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        let now = jiff::Timestamp::from_millisecond(1_700_000_060_000).expect("a time");
        assert_eq!(found.line(now), "1m ago: 3 packs or blobs are not what was written; see `larder archive verify`");
    }
}
