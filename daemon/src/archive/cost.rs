//! `larder archive cost`: what was spent, what is planned, and what a registry with its state in S3 would have spent.

use serde::Serialize;

use super::ledger::{self, Requests, Tally};
use super::{Archive, Error, tail, writer};
use crate::config::FOLDER;

/// What was asked of the bucket, and what it costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Requests by kind, retries included, since this data folder was made.
    pub requests: Requests,
    /// Bytes sent to the bucket.
    pub bytes_out: u64,
    /// Bytes read from it.
    pub bytes_in: u64,
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
        inner.ledger.stored(totals.bytes, writer::now_ms());
        let Tally { requests, bytes_out, bytes_in, pushes, blobs, peer, .. } = inner.ledger.tally();
        let tally = inner.ledger.tally();
        let only = |requests: Requests| ledger::price_of(&requests, &prices);
        let gb_month = |bytes: u64| bytes as f64 / 1e9 * prices.storage_gb_month;
        let dollars = Dollars {
            put: only(Requests { put: requests.put, ..Requests::default() }),
            list: only(Requests { list: requests.list, ..Requests::default() }),
            get: only(Requests { get: requests.get, ..Requests::default() }),
            head: only(Requests { head: requests.head, ..Requests::default() }),
            requests: tally.requests_price(&prices),
            reading: tally.reading_price(&prices),
            storage: tally.storage_price(&prices),
            storage_month: gb_month(totals.bytes),
            distribution_requests: only(peer),
            source: prices.source.to_string(),
        };
        let packs = if waiting.records == 0 { 0 } else { waiting.bytes.div_ceil(inner.settings.pack_size).max(1) };
        let next = Requests { put: packs, ..Requests::default() };
        let within_s = waiting.oldest_ms.filter(|_| packs > 0).map(|oldest| {
            let waited = writer::now_ms().saturating_sub(oldest) / 1000;
            inner.settings.max_delay.as_secs().saturating_sub(waited)
        });
        let period = inner.settings.verify_period.as_secs();
        let looks = if period == 0 || totals.packs == 0 { 0 } else { MONTH_S / period };
        // Packs and checkpoints are listed each by themselves.
        let pages = totals.packs.min(tail::LISTED_MAX as u64).div_ceil(PAGE) + 1;
        let idle_month = Requests { list: looks * pages, ..Requests::default() };
        let planned = Planned {
            requests: next,
            within_s,
            bytes: waiting.bytes,
            idle_month,
            dollars: only(next) + gb_month(waiting.bytes),
            idle_month_dollars: only(idle_month) + gb_month(totals.bytes),
        };
        let distribution_requests = peer.total();
        let stored = totals.bytes;
        Ok(Cost { requests, bytes_out, bytes_in, stored, dollars, planned, pushes, blobs, distribution: peer, distribution_requests })
    }
}
