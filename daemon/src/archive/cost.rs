//! `larder archive cost`: what was spent, what is planned, and what a registry with its state in S3 would have spent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::ledger::{self, ClassTally, Requests, Tally};
use super::{Archive, Error, tail, writer};
use crate::config::{FOLDER, Prices, StorageClass};

/// What was asked of the bucket, and what it costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Requests by kind, retries included, since this data folder was made.
    pub requests: Requests,
    /// Bytes sent to the bucket.
    pub bytes_out: u64,
    /// Bytes read from it.
    pub bytes_in: u64,
    /// Ranges asked of `archive.read_url`.
    pub front_requests: u64,
    /// Of those, that the bucket had to give.
    pub front_failures: u64,
    /// Bytes that came from there.
    pub front_bytes: u64,
    /// Bytes in packs now, whoever wrote them.
    pub stored: u64,
    /// What that costs.
    pub dollars: Dollars,
    /// What comes next.
    pub planned: Planned,
    /// Manifests archived.
    pub pushes: u64,
    /// Blobs archived.
    pub blobs: u64,
    /// What the same pushes would have taken on a registry that keeps its state in S3: see `peer`.
    pub distribution: Requests,
    /// All of them.
    pub distribution_requests: u64,
    /// Each storage class in which something is, or was.
    pub classes: Vec<ClassCost>,
}

/// What one storage class has cost, and costs.
#[derive(Clone, Debug, Serialize)]
pub struct ClassCost {
    /// Its name.
    pub class: String,
    /// Bytes in packs of it now.
    pub stored: u64,
    /// Requests by kind.
    pub requests: Requests,
    /// Bytes read.
    pub bytes_in: u64,
    /// Objects that were asked to thaw and began to, and their bytes.
    pub thawed: (u64, u64),
    /// Dollars for requests, reading, thawing and storage so far.
    pub dollars: f64,
    /// Dollars for a month of the bytes that are there now.
    pub storage_month: f64,
    /// What goes sooner is paid for so long.
    pub days_min: u64,
    /// Where and when these were the prices.
    pub source: String,
}

/// Dollars, at the prices that `source` names.
#[derive(Clone, Debug, Serialize)]
pub struct Dollars {
    /// By kind of request, so far.
    pub put: f64,
    /// See `put`.
    pub list: f64,
    /// See `put`.
    pub get: f64,
    /// See `put`.
    pub head: f64,
    /// See `put`: with what thawed.
    pub thaw: f64,
    /// All requests so far.
    pub requests: f64,
    /// The reading so far: retrieval, and the way out of the vendor's network.
    pub reading: f64,
    /// The storage so far, while this node looked: of the whole bucket.
    pub storage: f64,
    /// A month of the bytes that packs take now.
    pub storage_month: f64,
    /// All of `distribution`.
    pub distribution_requests: f64,
    /// Where and when these were the prices.
    pub source: String,
}

/// What comes next, as far as it is known now.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// Requests that what waits will take.
    pub requests: Requests,
    /// Seconds until then at most; none when nothing waits.
    pub within_s: Option<u64>,
    /// Bytes that will be sent.
    pub bytes: u64,
    /// Packs that compaction has taken off the catalogue, and that go when their time is over, as far as this node deletes them.
    pub retired: u64,
    /// Their bytes.
    pub retired_bytes: u64,
    /// Requests of a month in which the bucket is looked at each time it is due, and nothing is pushed.
    pub idle_month: Requests,
    /// Dollars of what waits, with a month of its storage.
    pub dollars: f64,
    /// Dollars of a month in which nothing is pushed: storage and looks.
    pub idle_month_dollars: f64,
}

/// Keys on a page of a listing.
const PAGE: u64 = 1000;
const MONTH_S: u64 = 30 * 86_400;

impl Archive {
    /// What was asked of the bucket, what it cost and will cost.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn cost(&self) -> Result<Cost, Error> {
        let inner = &self.inner;
        let (prices, totals, waiting) = match &inner.bucket {
            Some(bucket) => (bucket.prices().clone(), inner.totals(bucket.id()).await?, inner.count(bucket).await?),
            None => (FOLDER, Default::default(), Default::default()),
        };
        inner.ledger.stored(&totals.by_class, writer::now_ms());
        let tally = inner.ledger.tally();
        let Tally { requests, bytes_out, bytes_in, pushes, blobs, peer, .. } = tally.clone();
        let only = |requests: Requests| ledger::price_of(&requests, &prices);
        let all = |kind: fn(&Requests) -> Requests| {
            let others = tally
                .classes
                .iter()
                .map(|(class, of)| ClassTally { requests: kind(&of.requests), ..ClassTally::default() }.requests_price(class, &prices));
            only(kind(&tally.standard().requests)) + others.sum::<f64>()
        };
        let storage_month = totals.by_class.iter().map(|(class, bytes)| month_price(class, *bytes, &prices)).sum();
        let dollars = Dollars {
            put: all(|requests| Requests { put: requests.put, ..Requests::default() }),
            list: all(|requests| Requests { list: requests.list, ..Requests::default() }),
            get: all(|requests| Requests { get: requests.get, ..Requests::default() }),
            head: all(|requests| Requests { head: requests.head, ..Requests::default() }),
            thaw: tally.classes.iter().map(|(class, of)| of.thaw_price(class, &prices)).sum(),
            requests: tally.requests_price(&prices),
            reading: tally.reading_price(&prices),
            storage: tally.storage_price(&prices),
            storage_month,
            distribution_requests: only(peer),
            source: prices.source.to_string(),
        };
        let packs = if waiting.records == 0 { 0 } else { waiting.bytes.div_ceil(inner.settings.pack_size).max(1) };
        // With a class for layers, each is two: the layers, and everything else.
        let (class, bulk) = (&inner.settings.class, inner.settings.bulk.as_ref());
        let puts = |class: &StorageClass| prices.of(class.name()).put_thousand / 1000.0 * packs as f64;
        let next = Requests { put: packs * if bulk.is_some() { 2 } else { 1 }, ..Requests::default() };
        let next_price = puts(class) + bulk.map_or(0.0, puts);
        let bulk = bulk.unwrap_or(class);
        let within_s = waiting.oldest_ms.filter(|_| packs > 0).map(|oldest| {
            let waited = writer::now_ms().saturating_sub(oldest) / 1000;
            inner.settings.max_delay.as_secs().saturating_sub(waited)
        });
        let period = inner.settings.verify_period.as_secs();
        let looks = if period == 0 || totals.packs == 0 { 0 } else { MONTH_S / period };
        // Packs and checkpoints are listed each by themselves.
        let pages = totals.packs.min(tail::LISTED_MAX as u64).div_ceil(PAGE) + 1;
        let idle_month = Requests { list: looks * pages, ..Requests::default() };
        let retired = match &inner.bucket {
            Some(bucket) => inner.retired(bucket.id()).await?,
            None => Vec::new(),
        };
        let planned = Planned {
            retired: retired.len() as u64,
            retired_bytes: retired.iter().map(|it| it.size).sum(),
            requests: next,
            within_s,
            bytes: waiting.bytes,
            idle_month,
            dollars: next_price + month_price(bulk, waiting.bytes, &prices),
            idle_month_dollars: only(idle_month) + storage_month,
        };
        let distribution_requests = peer.total();
        let stored = totals.bytes;
        let names: BTreeSet<String> =
            totals.by_class.keys().map(|class| class.name().to_owned()).chain(tally.classes.keys().cloned()).collect();
        let classes = names.into_iter().map(|class| class_cost(class, &totals.by_class, &tally, &prices)).collect();
        let distribution = peer;
        let Tally { front_requests, front_failures, front_bytes, .. } = tally;
        Ok(Cost {
            requests,
            bytes_out,
            bytes_in,
            front_requests,
            front_failures,
            front_bytes,
            stored,
            dollars,
            planned,
            pushes,
            blobs,
            distribution,
            distribution_requests,
            classes,
        })
    }
}

fn month_price(class: &StorageClass, bytes: u64, prices: &Prices) -> f64 {
    ledger::month_price(class.name(), bytes, prices)
}

fn class_cost(class: String, stored: &BTreeMap<StorageClass, u64>, tally: &Tally, prices: &Prices) -> ClassCost {
    let of = tally.classes.get(&class).cloned().unwrap_or_else(|| tally.standard());
    let stored = stored.iter().filter(|(known, _)| known.name() == class).map(|(_, bytes)| *bytes).sum();
    let (name, price) = (class.as_str(), prices.of(&class));
    ClassCost {
        stored,
        requests: of.requests,
        bytes_in: of.bytes_in,
        thawed: of.thaws.values().fold((0, 0), |sum, thaws| (sum.0 + thaws.0, sum.1.saturating_add(thaws.1))),
        dollars: of.requests_price(name, prices)
            + of.thaw_price(name, prices)
            + of.reading_price(name, prices)
            + of.storage_price(name, prices),
        storage_month: ledger::month_price(name, stored, prices),
        days_min: price.days_min,
        source: price.source.to_string(),
        class,
    }
}
