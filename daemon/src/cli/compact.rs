//! `larder archive compact`: what makes the bucket smaller, and what that costs.

use std::io::Write;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::table::{self, Align, Table, facts};
use super::{Format, show};

/// Drop packs of which nothing counts any more, and write what counts of others anew, where that saves more than it costs.
///
/// A blob counts when a repository links it, in the newest pack that holds it. What is spent once (reading, writing, and paying twice until the old packs
/// may go) must come in again within archive.compact_payback months, at the prices of the section prices. What goes is deleted when archive.compact_wait is over,
/// by the node itself; each node compacts the packs that it wrote.
#[derive(Args, Debug)]
pub(super) struct Compact {
    /// Print the plan in dollars, and touch nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

/// As the API has it.
#[derive(Deserialize)]
struct Compaction {
    packs: u64,
    bytes: u64,
    drops: Vec<Going>,
    rewrites: Vec<Rewrite>,
    stays: Vec<Staying>,
    money: Money,
    #[serde(default)]
    written: Vec<String>,
    #[serde(default)]
    written_bytes: u64,
    #[serde(default)]
    retired: u64,
    #[serde(default)]
    checkpoints: u64,
    #[serde(default)]
    checkpoints_deleted: u64,
    #[serde(default)]
    deleted: Vec<String>,
    #[serde(default)]
    deleted_bytes: u64,
    #[serde(default)]
    waiting: Vec<Waiting>,
    #[serde(default)]
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Waiting {
    key: String,
    size: u64,
    why: String,
}

#[derive(Deserialize)]
struct Refused {
    key: String,
    why: String,
}

#[derive(Deserialize)]
struct Going {
    key: String,
    size: u64,
    created: Value,
    live_blobs: u64,
    live_bytes: u64,
    spent: f64,
    saved_month: f64,
}

#[derive(Deserialize)]
struct Rewrite {
    packs: Vec<Going>,
}

#[derive(Deserialize)]
struct Staying {
    why: String,
    packs: u64,
    dead_bytes: u64,
}

#[derive(Deserialize)]
struct Money {
    spent: f64,
    saved_month: f64,
    payback_months: Option<f64>,
    payback_months_max: f64,
    moved: u64,
    freed: u64,
    source: String,
}

impl Compact {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let answer = if self.dry_run { client.get("archive/compact").await? } else { client.post("archive/compact", json!({})).await? };
        show(out, self.format, answer, |plan: Compaction| plan.shown(jiff::Timestamp::now(), self.dry_run))
    }
}

fn money(dollars: f64) -> String {
    format!("${dollars:.6}")
}

fn months(months: Option<f64>) -> String {
    months.map_or_else(|| "never".to_owned(), |months| format!("{months:.1} months"))
}

impl Compaction {
    fn shown(&self, now: jiff::Timestamp, dry_run: bool) -> String {
        let mut table = Table::new(&[
            ("KEY", Align::Left),
            ("SIZE", Align::Right),
            ("COUNTS", Align::Right),
            ("CREATED", Align::Left),
            ("ONCE", Align::Right),
            ("A MONTH", Align::Right),
            ("WHAT", Align::Left),
        ]);
        let mut line = |pack: &Going, what: &str| {
            table.line([
                pack.key.clone(),
                table::size(pack.size),
                format!("{} in {}", table::size(pack.live_bytes), pack.live_blobs),
                table::age(&pack.created, now),
                money(pack.spent),
                money(-pack.saved_month),
                what.to_owned(),
            ]);
        };
        self.drops.iter().for_each(|pack| line(pack, "goes"));
        for (number, rewrite) in self.rewrites.iter().enumerate() {
            rewrite.packs.iter().for_each(|pack| line(pack, &format!("written anew, in group {}", number + 1)));
        }
        let mut text = table.or("nothing to compact");
        let Money { spent, saved_month, payback_months, payback_months_max, moved, freed, source } = &self.money;
        let mut lines = vec![("packs", format!("{} with {}", self.packs, table::size(self.bytes)))];
        if !self.drops.is_empty() || !self.rewrites.is_empty() {
            let again = if *moved > 0 { format!(", {} are written anew", table::size(*moved)) } else { String::new() };
            lines.push(("freed", format!("{}{again}", table::size(*freed))));
            lines.push((
                "money",
                format!(
                    "{} once, {} a month less: paid back in {} (at most {payback_months_max})",
                    money(*spent),
                    money(*saved_month),
                    months(*payback_months)
                ),
            ));
        }
        lines.extend(self.stays.iter().map(|it| ("stays", format!("{} packs, {} dead: {}", it.packs, table::size(it.dead_bytes), it.why))));
        lines.push(("prices", source.clone()));
        if !dry_run {
            lines.push((
                "written",
                format!("{} packs with {}, {} checkpoints", self.written.len(), table::size(self.written_bytes), self.checkpoints),
            ));
            lines.push(("taken off the catalogue", format!("{} packs", self.retired)));
            let deleted =
                format!("{} packs with {}, {} checkpoints", self.deleted.len(), table::size(self.deleted_bytes), self.checkpoints_deleted);
            lines.push(("deleted", deleted));
        }
        text.push_str(&facts(&lines));
        let mut left = Table::new(&[("NOT DELETED YET", Align::Left), ("SIZE", Align::Right), ("WHY", Align::Left)]);
        self.waiting.iter().for_each(|it| left.line([it.key.clone(), table::size(it.size), it.why.clone()]));
        self.refused.iter().for_each(|it| left.line([it.key.clone(), String::new(), format!("refused: {}", it.why)]));
        if !self.waiting.is_empty() || !self.refused.is_empty() {
            text.push_str(&left.to_string());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_told_pack_by_pack_and_in_sum() {
        let pack = |key: &str| {
            format!(
                r#"{{"key":"{key}","size":2048,"created":"2026-11-23T11:59:00Z","live_blobs":1,"live_bytes":1024,"spent":0.5,"saved_month":0.25}}"#
            )
        };
        let answer = format!(
            r#"{{"packs":9,"bytes":4096,"drops":[{}],"rewrites":[{{"packs":[{}]}}],"stays":[{{"why":"a reason","packs":2,"dead_bytes":10}}],
            "waiting":[{{"key":"c","size":1024,"since":"","why":"the time is not over"}}],
            "money":{{"spent":1.0,"saved_month":0.5,"payback_months":2.0,"payback_months_max":3.0,"moved":1024,"freed":3072,"source":"a price list"}}}}"#,
            pack("a"),
            pack("b")
        );
        let plan: Compaction = serde_json::from_str(&answer).expect("the API's form");
        let text = plan.shown("2026-11-23T12:00:00Z".parse().expect("a time"), true);
        for line in [
            "a    2.0 KiB  1.0 KiB in 1  1m ago   $0.500000  $-0.250000  goes\n",
            "b    2.0 KiB  1.0 KiB in 1  1m ago   $0.500000  $-0.250000  written anew, in group 1\n",
            "3.0 KiB, 1.0 KiB are written anew",
            "$1.000000 once, $0.500000 a month less: paid back in 2.0 months (at most 3)",
            "2 packs, 10 B dead: a reason",
            "c                1.0 KiB  the time is not over",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
