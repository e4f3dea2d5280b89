//! `larder archive thaw`, and the same after a restore: what it takes to have back what is frozen, and whether to begin.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::client::Client;
use super::table::{self, Align, Table, facts};
use super::{Format, show_value};
use crate::archive::Choice;
use crate::config::Tier;

/// Have packs of a frozen storage class thawed, and what is wanted of them brought onto this disk.
///
/// Says how long it takes and what it costs, and asks. Where nobody can be asked, --tier and --yes say so. The daemon then goes on by itself, also after a
/// restart: it asks the bucket for the packs of the newest tags first, and reads them as they thaw. `larder archive status` shows how far it is.
#[derive(Args, Debug)]
pub(super) struct Thaw {
    /// repository:tag with wildcards, repository, or repository@digest; none: everything that is not on this disk
    #[arg(value_parser = image)]
    images: Vec<String>,
    /// bulk, standard or expedited: what is faster costs more
    #[arg(long, value_parser = tier)]
    tier: Option<Tier>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    format: Format,
}

/// How long, and whether to ask.
#[derive(Args, Debug)]
pub(super) struct Consent {
    /// How long the bucket keeps what has thawed readable; that is paid for as in the standard class
    #[arg(long, default_value_t = 7, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=365))]
    days: u32,
    /// Begin without asking
    #[arg(long)]
    yes: bool,
}

pub(super) fn tier(text: &str) -> Result<Tier, String> {
    text.parse()
}

fn image(text: &str) -> Result<String, String> {
    text.parse::<Choice>().map(|_| text.to_owned())
}

/// What it takes, as the API has it.
#[derive(Deserialize)]
pub(super) struct Told {
    packs: u64,
    bytes: u64,
    wanted: u64,
    tiers: Vec<TierTold>,
    source: String,
    begun: bool,
}

#[derive(Deserialize)]
struct TierTold {
    tier: String,
    seconds: u64,
    thaw: f64,
    copies: f64,
    reading: f64,
}

/// How packs thaw.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Progress {
    tier: String,
    packs: u64,
    bytes: u64,
    asked: u64,
    read: u64,
    #[serde(default)]
    lost: u64,
    ready_in_s: Option<u64>,
    #[serde(default)]
    last_error: Option<String>,
}

impl Thaw {
    pub(super) async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        self.consent.check(self.tier)?;
        let told = settle(client, &self.images, self.tier, &self.consent).await?;
        show_value(out, self.format, told, |told: Told| told.shown())
    }
}

impl Consent {
    /// Refuses what could only end without anything being done.
    pub(super) fn check(&self, tier: Option<Tier>) -> anyhow::Result<()> {
        let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        anyhow::ensure!(
            tier.is_none() || self.yes || can_ask,
            "thaw: nobody can be asked here whether that may cost what it does; say --yes as well, or leave the tier out to be told what it costs"
        );
        anyhow::ensure!(tier.is_some() || !self.yes, "thaw: --yes to what? Name a tier: bulk, standard or expedited");
        Ok(())
    }
}

/// Says what it takes, asks if need be, and begins; what the API told last.
pub(super) async fn settle(client: &Client, images: &[String], tier: Option<Tier>, consent: &Consent) -> anyhow::Result<serde_json::Value> {
    let asked = |tier: Option<&str>| json!({ "images": images, "tier": tier, "days": consent.days });
    let answer: serde_json::Value = client.post("archive/thaw", asked(None)).await?.read()?;
    let told: Told = serde_json::from_value(answer.clone())?;
    if told.packs == 0 {
        return Ok(answer);
    }
    let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let chosen = match (tier, consent.yes) {
        (Some(tier), true) => Some(tier),
        _ if !can_ask => None,
        (tier, _) => {
            eprint!("{}", told.shown());
            ask(&mut std::io::stdin().lock(), tier)?
        }
    };
    match chosen {
        Some(tier) => Ok(client.post("archive/thaw", asked(Some(tier.name()))).await?.read()?),
        None => Ok(answer),
    }
}

/// The tier that somebody at a terminal agrees to.
fn ask(input: &mut impl BufRead, wished: Option<Tier>) -> anyhow::Result<Option<Tier>> {
    let question = match wished {
        Some(tier) => format!("Thaw as {tier}? [y/N] "),
        None => "Thaw as bulk, standard or expedited? Nothing: not now. ".to_owned(),
    };
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(match (wished, line.trim()) {
        (Some(tier), "y" | "Y" | "yes") => Some(tier),
        (Some(_), _) | (None, "") => None,
        (None, word) => Some(word.parse().map_err(anyhow::Error::msg)?),
    })
}

impl Told {
    /// Whether anything is frozen.
    pub(super) fn is_some(&self) -> bool {
        self.packs > 0
    }

    pub(super) fn shown(&self) -> String {
        if self.packs == 0 {
            return "nothing is frozen that is not on this disk\n".to_owned();
        }
        let what = format!("{} packs with {}, of which {} are wanted", self.packs, table::size(self.bytes), table::size(self.wanted));
        let right = |name| (name, Align::Right);
        let mut table =
            Table::new(&[("TIER", Align::Left), right("WITHIN"), right("THAWING"), right("COPIES"), right("READING"), right("ALL")]);
        for tier in &self.tiers {
            let money =
                [tier.thaw, tier.copies, tier.reading, tier.thaw + tier.copies + tier.reading].map(|dollars| format!("${dollars:.2}"));
            table.line([vec![tier.tier.clone(), table::time(tier.seconds)], money.to_vec()].concat());
        }
        let next = if self.begun {
            "it is asked for; `larder archive status` shows how far it is"
        } else {
            "nothing is asked for yet; `larder archive thaw --tier TIER` does"
        };
        format!("{}{table}{}", facts(&[("frozen", what)]), facts(&[("prices", self.source.clone()), ("now", next.to_owned())]))
    }
}

impl Progress {
    /// In a line.
    pub(super) fn shown(&self) -> String {
        let ready = self.ready_in_s.map(|left| format!(", all within {}", table::time(left))).unwrap_or_default();
        let lost = if self.lost > 0 { format!(", {} are not in the bucket any more", self.lost) } else { String::new() };
        let trouble = self.last_error.as_ref().map(|error| format!("; last error: {error}")).unwrap_or_default();
        let Self { tier, packs, asked, read, .. } = self;
        format!("{packs} packs with {} as {tier}: {asked} asked for, {read} thawed and read{lost}{ready}{trouble}", table::size(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f36_what_it_takes_is_a_table() {
        let answer = r#"{"packs":2,"bytes":2147483648,"wanted":1073741824,"source":"a list","begun":false,"tiers":[
            {"tier":"bulk","seconds":172800,"thaw":5.5,"copies":1.25,"reading":0.25},{"tier":"standard","seconds":43200,"thaw":40,"copies":1.25,"reading":0.25}]}"#;
        let text = serde_json::from_str::<Told>(answer).expect("the API's form").shown();
        for line in ["2 packs with 2.0 GiB, of which 1.0 GiB are wanted", "bulk", "$7.00", "$41.50", "a list", "nothing is asked for yet"] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let none: Told =
            serde_json::from_str(r#"{"packs":0,"bytes":0,"wanted":0,"source":"","begun":false,"tiers":[]}"#).expect("the form");
        assert!(none.shown().contains("nothing is frozen"));
    }

    #[test]
    fn f36_only_a_clear_yes_begins() {
        let answer = |text: &str, wished| ask(&mut text.as_bytes(), wished).map_err(|error| error.to_string());
        for (text, expected) in
            [("y\n", Some(Tier::Bulk)), ("yes\n", Some(Tier::Bulk)), ("\n", None), ("n\n", None), ("", None), ("Yeah\n", None)]
        {
            assert_eq!(answer(text, Some(Tier::Bulk)), Ok(expected), "{text:?}");
        }
        assert_eq!((answer("standard\n", None), answer("\n", None)), (Ok(Some(Tier::Standard)), Ok(None)));
        assert!(answer("soon\n", None).is_err_and(|error| error.contains("bulk, standard, expedited")));
        // Of no tests' terminal: a tier alone is not a yes, and a yes alone names none.
        assert!(Consent { days: 7, yes: true }.check(None).is_err() && Consent { days: 7, yes: true }.check(Some(Tier::Bulk)).is_ok());
    }
}
