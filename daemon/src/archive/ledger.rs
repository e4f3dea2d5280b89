//! The ledger: every request to the bucket, counted where it leaves, and what it costs.
//!
//! Retries count: they are paid for too. The numbers live in memory and are saved with every pack and now and then, so a crash
//! may lose the last few of a restore's reads, never those of packs that were recorded.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::telemetry::{KindLabel, Metrics};

/// The setting of the store in which the ledger is kept.
pub const SETTING: &str = "archive/ledger";

/// The kinds of request that have a price of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An object is written.
    Put,
    /// An object, or a range of one, is read.
    Get,
    /// Keys are listed.
    List,
    /// An object is looked at.
    Head,
    /// An object is removed.
    Delete,
}

/// Number of requests of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Objects written.
    pub put: u64,
    /// Objects or ranges read.
    pub get: u64,
    /// Pages of keys listed.
    pub list: u64,
    /// Objects looked at.
    pub head: u64,
    /// Objects removed.
    pub delete: u64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests by kind.
    pub requests: Requests,
    /// Bytes sent to the bucket.
    pub bytes_out: u64,
    /// Bytes read from it.
    pub bytes_in: u64,
    /// Manifests archived.
    pub pushes: u64,
    /// Blobs archived.
    pub blobs: u64,
}

/// What requests cost, in dollars.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    /// A thousand of PUT, COPY, POST and LIST.
    pub put_per_thousand: f64,
    /// A thousand of GET and HEAD. DELETE is free.
    pub get_per_thousand: f64,
    /// A GB (10^9 bytes) stored for a month.
    pub storage_gb_month: f64,
    /// Where and when these were the prices.
    pub source: &'static str,
}

/// Amazon S3, class Standard, first tier.
pub const S3_STANDARD: Prices = Prices {
    put_per_thousand: 0.005,
    get_per_thousand: 0.0004,
    storage_gb_month: 0.023,
    source: "S3 Standard, us-east-1, list price as of 2025 (aws.amazon.com/s3/pricing); traffic not included",
};

/// A folder costs nothing but its disk.
pub const FOLDER: Prices = Prices {
    put_per_thousand: 0.0,
    get_per_thousand: 0.0,
    storage_gb_month: 0.0,
    source: "a folder on this host: no requests are paid for",
};

/// Requests that Distribution 2.8 sends for each blob of a push, and for the manifest: counted against three S3 servers with blobs
/// below its multipart size. All of the dear kind, or LIST, which costs the same.
const DISTRIBUTION_PER_BLOB: u64 = 23;
const DISTRIBUTION_PER_MANIFEST: u64 = 5;

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.put + self.get + self.list + self.head + self.delete
    }
}

impl Tally {
    /// What the requests have cost.
    pub fn dollars(&self, prices: &Prices) -> f64 {
        let Requests { put, get, list, head, .. } = self.requests;
        ((put + list) as f64 * prices.put_per_thousand + (get + head) as f64 * prices.get_per_thousand) / 1000.0
    }

    /// How many requests the same pushes take on a registry that keeps its state in S3.
    pub fn distribution_requests(&self) -> u64 {
        self.blobs * DISTRIBUTION_PER_BLOB + self.pushes * DISTRIBUTION_PER_MANIFEST
    }
}

/// Counts. Cheap to clone; every bucket of a node writes into the same ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    tally: Arc<Mutex<Tally>>,
    metrics: Arc<Metrics>,
}

impl Ledger {
    /// Goes on from what was saved; what can't be read counts as nothing.
    pub fn new(saved: Option<&[u8]>, metrics: Arc<Metrics>) -> Self {
        let tally = saved.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        Self { tally: Arc::new(Mutex::new(tally)), metrics }
    }

    /// A request leaves.
    pub fn request(&self, request: Request) {
        self.change(|tally| {
            let counts = &mut tally.requests;
            let (count, kind) = match request {
                Request::Put => (&mut counts.put, "put"),
                Request::Get => (&mut counts.get, "get"),
                Request::List => (&mut counts.list, "list"),
                Request::Head => (&mut counts.head, "head"),
                Request::Delete => (&mut counts.delete, "delete"),
            };
            *count += 1;
            self.metrics.bucket_requests.get_or_create(&KindLabel { kind }).inc();
        });
    }

    /// Bytes leave.
    pub fn sent(&self, bytes: u64) {
        self.change(|tally| tally.bytes_out += bytes);
    }

    /// Bytes have come.
    pub fn received(&self, bytes: u64) {
        self.change(|tally| tally.bytes_in += bytes);
    }

    /// A pack was recorded.
    pub fn archived(&self, manifests: u64, blobs: u64) {
        self.change(|tally| {
            tally.pushes += manifests;
            tally.blobs += blobs;
        });
    }

    /// The numbers now.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().expect("no panic while counting")
    }

    /// The numbers as they are saved.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.tally()).expect("numbers are JSON")
    }

    fn change(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().expect("no panic while counting"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_goes_on_from_what_was_saved() {
        let ledger = Ledger::new(None, Arc::default());
        ledger.request(Request::Put);
        ledger.request(Request::List);
        ledger.sent(10);
        ledger.archived(2, 16);
        let again = Ledger::new(Some(&ledger.to_bytes()), Arc::default());
        again.request(Request::Get);
        let tally = again.tally();
        assert_eq!((tally.requests.put, tally.requests.list, tally.requests.get, tally.bytes_out), (1, 1, 1, 10));
        assert_eq!(tally.distribution_requests(), 16 * 23 + 2 * 5);
        assert!((tally.dollars(&S3_STANDARD) - (2.0 * 0.005 + 0.0004) / 1000.0).abs() < 1e-12);
        assert_eq!(Ledger::new(Some(b"broken"), Arc::default()).tally(), Tally::default());
    }
}
