//! `larder archive cost`: the ledger as a table.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::table::{self, Align, Table, facts};

/// As the API has it.
#[derive(Deserialize)]
pub(super) struct Cost {
    requests: BTreeMap<String, u64>,
    bytes_out: u64,
    bytes_in: u64,
    #[serde(default)]
    front_requests: u64,
    #[serde(default)]
    front_failures: u64,
    #[serde(default)]
    front_bytes: u64,
    stored: u64,
    dollars: Dollars,
    planned: Planned,
    pushes: u64,
    blobs: u64,
    distribution: BTreeMap<String, u64>,
    distribution_requests: u64,
    #[serde(default)]
    classes: Vec<Class>,
}

#[derive(Deserialize)]
struct Class {
    class: String,
    stored: u64,
    requests: BTreeMap<String, u64>,
    bytes_in: u64,
    thawed: (u64, u64),
    dollars: f64,
    storage_month: f64,
    days_min: u64,
    source: String,
}

#[derive(Deserialize)]
struct Dollars {
    put: f64,
    list: f64,
    get: f64,
    head: f64,
    #[serde(default)]
    thaw: f64,
    requests: f64,
    reading: f64,
    storage: f64,
    storage_month: f64,
    distribution_requests: f64,
    source: String,
}

#[derive(Deserialize)]
struct Planned {
    requests: BTreeMap<String, u64>,
    within_s: Option<u64>,
    bytes: u64,
    #[serde(default)]
    retired: u64,
    #[serde(default)]
    retired_bytes: u64,
    idle_month: BTreeMap<String, u64>,
    dollars: f64,
    idle_month_dollars: f64,
}

fn money(dollars: f64) -> String {
    format!("${dollars:.6}")
}

/// The requests that there are, in words.
fn counts(requests: &BTreeMap<String, u64>) -> String {
    let counts: Vec<String> = requests.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| format!("{count} {kind}")).collect();
    if counts.is_empty() { "no requests".to_owned() } else { counts.join(", ") }
}

impl Cost {
    pub(super) fn shown(&self) -> String {
        let Self { dollars, planned, .. } = self;
        let mut table =
            Table::new(&[("REQUESTS", Align::Left), ("COUNT", Align::Right), ("SPENT", Align::Right), ("DISTRIBUTION", Align::Right)]);
        // The order in which a bucket's price list has them.
        let kinds = [
            ("put", dollars.put),
            ("list", dollars.list),
            ("get", dollars.get),
            ("head", dollars.head),
            ("thaw", dollars.thaw),
            ("delete", 0.0),
        ];
        for (kind, spent) in kinds {
            let count = |of: &BTreeMap<String, u64>| of.get(kind).copied().unwrap_or(0).to_string();
            table.line([kind.to_owned(), count(&self.requests), money(spent), count(&self.distribution)]);
        }
        let total: u64 = self.requests.values().sum();
        table.line(["all".to_owned(), total.to_string(), money(dollars.requests), self.distribution_requests.to_string()]);
        let mut text = table.to_string();
        let next = match planned.within_s {
            Some(seconds) => format!(
                "{} with {} within {}: {}, a month of storage included",
                counts(&planned.requests),
                table::size(planned.bytes),
                table::time(seconds),
                money(planned.dollars)
            ),
            None => "nothing waits".to_owned(),
        };
        if self.front_requests > 0 {
            let (asked, failed) = (self.front_requests, self.front_failures);
            let told = format!("{} for {asked} requests, {failed} of which the bucket answered", table::size(self.front_bytes));
            text.push_str(&facts(&[("by read_url", told)]));
        }
        text.push_str(&facts(&[
            ("archived", format!("{} manifests, {} blobs", self.pushes, self.blobs)),
            ("sent", table::size(self.bytes_out)),
            ("received", format!("{}: {}", table::size(self.bytes_in), money(dollars.reading))),
            (
                "stored",
                format!("{}: {} so far, {} a month", table::size(self.stored), money(dollars.storage), money(dollars.storage_month)),
            ),
            ("next", next),
            ("compacted away", format!("{} packs with {} go later", planned.retired, table::size(planned.retired_bytes))),
            ("an idle month", format!("{}: {}", counts(&planned.idle_month), money(planned.idle_month_dollars))),
            (
                "the same pushes on a registry that keeps its state in S3",
                format!("{} requests: {}", self.distribution_requests, money(dollars.distribution_requests)),
            ),
            ("prices", dollars.source.clone()),
        ]));
        // Of one class, all of it was said.
        if self.classes.len() > 1 {
            text.push_str(&self.by_class());
        }
        text
    }

    fn by_class(&self) -> String {
        let columns = ["STORED", "REQUESTS", "RECEIVED", "THAWED", "SPENT", "A MONTH", "PAID FOR"].map(|name| (name, Align::Right));
        let mut table = Table::new(&[&[("CLASS", Align::Left)][..], &columns, &[("PRICES", Align::Left)]].concat());
        for class in &self.classes {
            table.line([
                class.class.clone(),
                table::size(class.stored),
                class.requests.values().sum::<u64>().to_string(),
                table::size(class.bytes_in),
                table::size(class.thawed.1),
                money(class.dollars),
                money(class.storage_month),
                if class.days_min == 0 { "its days".to_owned() } else { format!("{} days or more", class.days_min) },
                class.source.clone(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_is_a_table() {
        let answer = r#"{"requests":{"put":1,"get":2,"list":0,"head":0,"delete":0},"bytes_out":1024,"bytes_in":0,"stored":1048576,
            "dollars":{"put":0.000005,"list":0,"get":0.0000008,"head":0,"requests":0.0000058,"reading":0,"storage":0.1,"storage_month":0.000024,
            "distribution_requests":0.69,"source":"a price list"},
            "planned":{"requests":{"put":1,"list":0},"within_s":90,"bytes":2048,"idle_month":{"list":60},"dollars":0.000005,"idle_month_dollars":0.0003},
            "pushes":100,"blobs":800,"distribution":{"put":8400,"list":6500,"get":6500,"head":0,"delete":1600},"distribution_requests":23000,
            "classes":[{"class":"DEEP_ARCHIVE","stored":1048576,"requests":{"put":1},"bytes_in":0,"thawed":[0,0],"dollars":0.05,"storage_month":0.001,
            "days_min":180,"source":"a list"},{"class":"STANDARD","stored":0,"requests":{},"bytes_in":0,"thawed":[0,0],"dollars":0,"storage_month":0,
            "days_min":0,"source":"a price list"}]}"#;
        let cost: Cost = serde_json::from_str(answer).expect("the API's form");
        let text = cost.shown();
        assert!(text.starts_with("REQUESTS  COUNT      SPENT  DISTRIBUTION\nput           1  $0.000005          8400\n"), "{text}");
        for line in [
            "1 put with 2.0 KiB within 1m 30s: $0.000005",
            "60 list: $0.000300",
            "23000 requests: $0.690000",
            "a price list",
            "180 days or more",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
