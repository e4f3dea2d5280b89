//! The ledger: every request to the bucket, counted where it leaves, and what it costs.
//!
//! Retries count: they are paid for too. The numbers live in memory and are saved with every pack and now and then, so a crash
//! may lose the last few of a restore's reads, never those of packs that were recorded.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::config::Prices;
use crate::telemetry::{KindLabel, Metrics};

use super::peer;

/// The setting of the store in which the ledger is kept.
pub const SETTING: &str = "archive/ledger";

/// Seconds of a month, as vendors count it.
const MONTH_S: f64 = 30.0 * 86_400.0;
const MIB: f64 = (1 << 20) as f64;

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
#[serde(default)]
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
    /// What the same pushes would have taken on a registry that keeps its state in S3 (see `peer`).
    pub peer: Requests,
    /// MiB that were stored, times the seconds for which they were.
    pub stored_mib_s: u64,
    /// Up to when that is counted, milliseconds since 1970; 0: nothing was stored yet.
    pub stored_until_ms: u64,
}

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.put + self.get + self.list + self.head + self.delete
    }
}

impl std::ops::AddAssign for Requests {
    fn add_assign(&mut self, other: Self) {
        self.put += other.put;
        self.get += other.get;
        self.list += other.list;
        self.head += other.head;
        self.delete += other.delete;
    }
}

/// What requests cost.
pub fn price_of(requests: &Requests, prices: &Prices) -> f64 {
    let Requests { put, get, list, head, .. } = requests;
    ((put + list) as f64 * prices.put_thousand + (get + head) as f64 * prices.get_thousand) / 1000.0
}

impl Tally {
    /// What the requests have cost.
    pub fn requests_price(&self, prices: &Prices) -> f64 {
        price_of(&self.requests, prices)
    }

    /// What the reading has cost.
    pub fn reading_price(&self, prices: &Prices) -> f64 {
        self.bytes_in as f64 / 1e9 * (prices.retrieval_gb + prices.transfer_gb)
    }

    /// What was paid for what is stored, so far.
    pub fn storage_price(&self, prices: &Prices) -> f64 {
        self.stored_mib_s as f64 * MIB / 1e9 / MONTH_S * prices.storage_gb_month
    }

    /// Counts that so many bytes were stored since the last time, up to now.
    pub fn stored(&mut self, bytes: u64, now_ms: u64) {
        let since = if self.stored_until_ms == 0 { now_ms } else { self.stored_until_ms.min(now_ms) };
        let mib_ms = u128::from(bytes) * u128::from(now_ms - since) / (1 << 20);
        let whole_s = u64::try_from(mib_ms / 1000).unwrap_or(u64::MAX);
        if self.stored_until_ms == 0 || whole_s > 0 || bytes == 0 {
            self.stored_mib_s = self.stored_mib_s.saturating_add(whole_s);
            self.stored_until_ms = now_ms;
        }
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

    /// A pack was recorded: with so many manifests, and blobs of these sizes.
    pub fn archived(&self, manifests: u64, blobs: Vec<u64>) {
        self.change(|tally| {
            tally.pushes += manifests;
            tally.blobs += blobs.len() as u64;
            tally.peer += peer::requests_of_pack(manifests, blobs);
        });
    }

    /// So many bytes were stored until now.
    pub fn stored(&self, bytes: u64, now_ms: u64) {
        self.change(|tally| tally.stored(bytes, now_ms));
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
    use crate::config::S3_STANDARD;

    #[test]
    fn a_ledger_goes_on_from_what_was_saved() {
        let ledger = Ledger::new(None, Arc::default());
        ledger.request(Request::Put);
        ledger.request(Request::List);
        ledger.sent(10);
        ledger.archived(2, vec![1; 16]);
        let again = Ledger::new(Some(&ledger.to_bytes()), Arc::default());
        again.request(Request::Get);
        let tally = again.tally();
        assert_eq!((tally.requests.put, tally.requests.list, tally.requests.get, tally.bytes_out), (1, 1, 1, 10));
        assert_eq!(tally.peer.total(), 14 * 28 + 2 * 34);
        assert!((tally.requests_price(&S3_STANDARD) - (2.0 * 0.005 + 0.0004) / 1000.0).abs() < 1e-12);
        assert_eq!(Ledger::new(Some(b"broken"), Arc::default()).tally(), Tally::default());
    }

    #[test]
    fn a_ledger_of_an_earlier_program_is_read() {
        let saved = br#"{"requests":{"put":3,"get":1,"list":0,"head":0,"delete":0},"bytes_out":5,"bytes_in":0,"pushes":1,"blobs":2}"#;
        let tally = Ledger::new(Some(saved), Arc::default()).tally();
        assert_eq!((tally.requests.put, tally.blobs, tally.stored_mib_s), (3, 2, 0));
    }

    #[test]
    fn what_is_stored_is_paid_for_by_time() {
        let mut tally = Tally::default();
        let gb = 1_000_000_000;
        tally.stored(0, 1_000);
        // Half a month of one GB, then half of three, looked at often and seldom.
        let half = 15 * 86_400_000;
        for step in 1..=1000 {
            tally.stored(gb, 1_000 + half / 1000 * step);
        }
        tally.stored(3 * gb, 1_000 + 2 * half);
        let paid = tally.storage_price(&S3_STANDARD);
        assert!((paid - 2.0 * 0.023).abs() < 1e-4, "{paid}");
        // A clock that went back takes nothing away.
        let before = tally.stored_mib_s;
        tally.stored(gb, 5);
        assert_eq!(tally.stored_mib_s, before);
    }
}
