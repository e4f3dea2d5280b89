//! The ledger: every request to the bucket, counted where it leaves, and what it costs.
//!
//! Retries count: they are paid for too. The numbers live in memory and are saved with every pack and now and then, so a crash
//! may lose the last few of a restore's reads, never those of packs that were recorded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::config::{Prices, StorageClass, Tier};
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
    /// An object is asked to thaw.
    Thaw,
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
    /// Objects asked to thaw.
    #[serde(default)]
    pub thaw: u64,
}

/// What was counted of one storage class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassTally {
    /// Requests by kind.
    pub requests: Requests,
    /// Bytes read.
    pub bytes_in: u64,
    /// MiB that were stored, times the seconds for which they were.
    pub stored_mib_s: u64,
    /// By tier, how many objects have begun to thaw, and their bytes.
    pub thaws: BTreeMap<String, (u64, u64)>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Requests by kind.
    pub requests: Requests,
    /// Bytes sent to the bucket.
    pub bytes_out: u64,
    /// Bytes read from it.
    pub bytes_in: u64,
    /// Ranges asked of what stands before the bucket.
    pub front_requests: u64,
    /// Of those, that the bucket had to give.
    pub front_failures: u64,
    /// Bytes that came from there.
    pub front_bytes: u64,
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
    /// By class, what of all this was not of the standard one.
    pub classes: BTreeMap<String, ClassTally>,
}

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.put + self.get + self.list + self.head + self.delete + self.thaw
    }

    fn count(&mut self, request: Request) -> &mut u64 {
        match request {
            Request::Put => &mut self.put,
            Request::Get => &mut self.get,
            Request::List => &mut self.list,
            Request::Head => &mut self.head,
            Request::Delete => &mut self.delete,
            Request::Thaw => &mut self.thaw,
        }
    }

    fn less(&self, other: &Self) -> Self {
        Self {
            put: self.put.saturating_sub(other.put),
            get: self.get.saturating_sub(other.get),
            list: self.list.saturating_sub(other.list),
            head: self.head.saturating_sub(other.head),
            delete: self.delete.saturating_sub(other.delete),
            thaw: self.thaw.saturating_sub(other.thaw),
        }
    }
}

impl std::ops::AddAssign for Requests {
    fn add_assign(&mut self, other: Self) {
        self.put += other.put;
        self.get += other.get;
        self.list += other.list;
        self.head += other.head;
        self.delete += other.delete;
        self.thaw += other.thaw;
    }
}

/// What requests cost in the standard class.
pub fn price_of(requests: &Requests, prices: &Prices) -> f64 {
    let Requests { put, get, list, head, .. } = requests;
    ((put + list) as f64 * prices.put_thousand + (get + head) as f64 * prices.get_thousand) / 1000.0
}

/// What so many bytes cost in a month.
pub fn month_price(class: &str, bytes: u64, prices: &Prices) -> f64 {
    bytes as f64 / 1e9 * prices.of(class).storage_gb_month
}

impl ClassTally {
    /// What the requests of this class have cost, those to thaw excepted.
    pub fn requests_price(&self, class: &str, prices: &Prices) -> f64 {
        let (price, Requests { put, get, list, head, .. }) = (prices.of(class), &self.requests);
        (*put as f64 * price.put_thousand + (get + head) as f64 * price.get_thousand + *list as f64 * prices.put_thousand) / 1000.0
    }

    /// What thawing has cost.
    pub fn thaw_price(&self, class: &str, prices: &Prices) -> f64 {
        let class = prices.of(class);
        let of_tier = |(tier, (count, bytes)): (&String, &(u64, u64))| {
            let price = tier.parse().ok().and_then(|tier| class.thaw(tier))?;
            Some(*count as f64 / 1000.0 * price.thousand + *bytes as f64 / 1e9 * price.gb)
        };
        self.thaws.iter().filter_map(of_tier).sum()
    }

    /// What the reading has cost, the way out of the vendor's network excepted.
    pub fn reading_price(&self, class: &str, prices: &Prices) -> f64 {
        self.bytes_in as f64 / 1e9 * prices.of(class).retrieval_gb
    }

    /// What was paid for what is stored, so far.
    pub fn storage_price(&self, class: &str, prices: &Prices) -> f64 {
        month_price(class, 1, prices) * self.stored_mib_s as f64 * MIB / MONTH_S
    }
}

impl Tally {
    /// What was counted of the standard class.
    pub fn standard(&self) -> ClassTally {
        let mut standard =
            ClassTally { requests: self.requests, bytes_in: self.bytes_in, stored_mib_s: self.stored_mib_s, thaws: BTreeMap::new() };
        for other in self.classes.values() {
            standard.requests = standard.requests.less(&other.requests);
            standard.bytes_in = standard.bytes_in.saturating_sub(other.bytes_in);
            standard.stored_mib_s = standard.stored_mib_s.saturating_sub(other.stored_mib_s);
        }
        standard
    }

    /// What the requests have cost, those to thaw included.
    pub fn requests_price(&self, prices: &Prices) -> f64 {
        let others = self.classes.iter().map(|(class, tally)| tally.requests_price(class, prices) + tally.thaw_price(class, prices));
        price_of(&self.standard().requests, prices) + others.sum::<f64>() + self.front_requests as f64 * prices.read_url_thousand / 1000.0
    }

    /// What the reading has cost.
    pub fn reading_price(&self, prices: &Prices) -> f64 {
        let others = self.classes.iter().map(|(class, tally)| tally.reading_price(class, prices));
        let standard = self.standard().bytes_in as f64 / 1e9 * prices.retrieval_gb;
        standard
            + others.sum::<f64>()
            + self.bytes_in as f64 / 1e9 * prices.transfer_gb
            + self.front_bytes as f64 / 1e9 * prices.read_url_gb
    }

    /// What was paid for what is stored, so far.
    pub fn storage_price(&self, prices: &Prices) -> f64 {
        let others = self.classes.iter().map(|(class, tally)| tally.storage_price(class, prices));
        let standard = self.standard().stored_mib_s as f64 * MIB / 1e9 / MONTH_S * prices.storage_gb_month;
        standard + others.sum::<f64>()
    }

    fn class(&mut self, class: &StorageClass) -> Option<&mut ClassTally> {
        (!class.is_standard()).then(|| self.classes.entry(class.name().to_owned()).or_default())
    }

    /// Counts that so many bytes were stored since the last time, up to now: by class.
    pub fn stored(&mut self, bytes: &BTreeMap<StorageClass, u64>, now_ms: u64) {
        let since = if self.stored_until_ms == 0 { now_ms } else { self.stored_until_ms.min(now_ms) };
        let whole_s = |bytes: u64| {
            let mib_ms = u128::from(bytes) * u128::from(now_ms - since) / (1 << 20);
            u64::try_from(mib_ms / 1000).unwrap_or(u64::MAX)
        };
        let all = bytes.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        // What is less than a second of a MiB is counted with the next.
        if self.stored_until_ms == 0 || all == 0 || bytes.values().all(|bytes| whole_s(*bytes) > 0) {
            self.stored_mib_s = self.stored_mib_s.saturating_add(whole_s(all));
            for (class, bytes) in bytes {
                if let Some(tally) = self.class(class) {
                    tally.stored_mib_s = tally.stored_mib_s.saturating_add(whole_s(*bytes));
                }
            }
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

    /// A request leaves, about an object of this class.
    pub fn request(&self, request: Request, class: &StorageClass) {
        let kind = match request {
            Request::Put => "put",
            Request::Get => "get",
            Request::List => "list",
            Request::Head => "head",
            Request::Delete => "delete",
            Request::Thaw => "thaw",
        };
        self.change(|tally| {
            *tally.requests.count(request) += 1;
            if let Some(tally) = tally.class(class) {
                *tally.requests.count(request) += 1;
            }
        });
        self.metrics.bucket_requests.get_or_create(&KindLabel { kind }).inc();
    }

    /// Bytes leave.
    pub fn sent(&self, bytes: u64) {
        self.change(|tally| tally.bytes_out += bytes);
    }

    /// Bytes of an object of this class have come.
    pub fn received(&self, bytes: u64, class: &StorageClass) {
        self.change(|tally| {
            tally.bytes_in += bytes;
            if let Some(tally) = tally.class(class) {
                tally.bytes_in += bytes;
            }
        });
    }

    /// An object with so many bytes has begun to thaw.
    pub fn thawing(&self, bytes: u64, class: &StorageClass, tier: Tier) {
        self.change(|tally| {
            if let Some(tally) = tally.class(class) {
                let thaws = tally.thaws.entry(tier.name().to_owned()).or_default();
                *thaws = (thaws.0 + 1, thaws.1.saturating_add(bytes));
            }
        });
    }

    /// A range is asked of what stands before the bucket.
    pub fn front_asked(&self) {
        self.change(|tally| tally.front_requests += 1);
        self.metrics.bucket_requests.get_or_create(&KindLabel { kind: "read_url" }).inc();
    }

    /// Bytes have come from what stands before the bucket.
    pub fn received_from_front(&self, bytes: u64) {
        self.change(|tally| tally.front_bytes += bytes);
    }

    /// It did not give what it was asked for.
    pub fn front_failed(&self) {
        self.change(|tally| tally.front_failures += 1);
        self.metrics.bucket_requests.get_or_create(&KindLabel { kind: "read_url_failed" }).inc();
    }

    /// A pack was recorded: with so many manifests, and blobs of these sizes.
    pub fn archived(&self, manifests: u64, blobs: Vec<u64>) {
        self.change(|tally| {
            tally.pushes += manifests;
            tally.blobs += blobs.len() as u64;
            tally.peer += peer::requests_of_pack(manifests, blobs);
        });
    }

    /// So many bytes were stored until now, by class.
    pub fn stored(&self, bytes: &BTreeMap<StorageClass, u64>, now_ms: u64) {
        self.change(|tally| tally.stored(bytes, now_ms));
    }

    /// The numbers now.
    pub fn tally(&self) -> Tally {
        self.tally.lock().expect("no panic while counting").clone()
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
        ledger.request(Request::Put, &StorageClass::STANDARD);
        ledger.request(Request::List, &StorageClass::STANDARD);
        ledger.sent(10);
        ledger.archived(2, vec![1; 16]);
        let again = Ledger::new(Some(&ledger.to_bytes()), Arc::default());
        again.request(Request::Get, &StorageClass::STANDARD);
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
    fn what_stands_before_the_bucket_has_prices_of_its_own() {
        let ledger = Ledger::new(None, Arc::default());
        ledger.front_asked();
        ledger.received_from_front(2_000_000_000);
        let tally = ledger.tally();
        assert_eq!(tally.requests.total(), 0);
        assert!((tally.requests_price(&S3_STANDARD) - S3_STANDARD.read_url_thousand / 1000.0).abs() < 1e-12);
        assert!((tally.reading_price(&S3_STANDARD) - 2.0 * S3_STANDARD.read_url_gb).abs() < 1e-12);
    }

    #[test]
    fn what_is_stored_is_paid_for_by_time() {
        let mut tally = Tally::default();
        let (gb, of) = (1_000_000_000, |bytes| BTreeMap::from([(StorageClass::STANDARD, bytes)]));
        tally.stored(&of(0), 1_000);
        // Half a month of one GB, then half of three, looked at often and seldom.
        let half = 15 * 86_400_000;
        for step in 1..=1000 {
            tally.stored(&of(gb), 1_000 + half / 1000 * step);
        }
        tally.stored(&of(3 * gb), 1_000 + 2 * half);
        let paid = tally.storage_price(&S3_STANDARD);
        assert!((paid - 2.0 * 0.023).abs() < 1e-4, "{paid}");
        // A clock that went back takes nothing away.
        let before = tally.stored_mib_s;
        tally.stored(&of(gb), 5);
        assert_eq!(tally.stored_mib_s, before);
    }

    #[test]
    fn f36_each_class_has_its_price() {
        let deep: StorageClass = "DEEP_ARCHIVE".parse().expect("a class");
        let ledger = Ledger::new(None, Arc::default());
        for class in [&StorageClass::STANDARD, &deep] {
            ledger.request(Request::Put, class);
            ledger.request(Request::Get, class);
            ledger.received(1_000_000_000, class);
        }
        ledger.request(Request::Thaw, &deep);
        ledger.thawing(10_000_000_000, &deep, Tier::Standard);
        let both = BTreeMap::from([(StorageClass::STANDARD, 1_000_000_000), (deep, 100_000_000_000)]);
        ledger.stored(&both, 1);
        ledger.stored(&both, 1 + 30 * 86_400_000);
        let tally = Ledger::new(Some(&ledger.to_bytes()), Arc::default()).tally();
        let near = |paid: f64, expected: f64| assert!((paid - expected).abs() < expected * 1e-4, "{paid} and not {expected}");
        near(tally.requests_price(&S3_STANDARD), (0.005 + 0.05 + 2.0 * 0.0004 + 0.1) / 1000.0 + 10.0 * 0.02);
        near(tally.reading_price(&S3_STANDARD), 2.0 * 0.09);
        near(tally.storage_price(&S3_STANDARD), 0.023 + 100.0 * 0.00099);
        assert_eq!((tally.requests.total(), tally.standard().requests.total()), (5, 2));
    }
}
