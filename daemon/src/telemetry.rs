//! Logs and metrics: the words that people and dashboards read.
//!
//! Metrics have no global registry: each node of a test process has its own [`Metrics`], built by `node` and handed
//! to the rooms. Names follow the OpenMetrics conventions; units stand in the name.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tracing_subscriber::EnvFilter;

use crate::config;

/// Labels of [`Metrics::http_requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpLabels {
    /// The method, or `other`.
    pub method: &'static str,
    /// The end-id of the endpoint, or `other`.
    pub endpoint: &'static str,
    /// The status code.
    pub status: u16,
}

/// One label: which kind of request, source or outcome is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// The kind.
    pub kind: &'static str,
}

/// Content that is not as safe as it will be: how much, and since when.
#[derive(Debug)]
pub struct Exposed {
    bytes: Gauge<u64, AtomicU64>,
    age: Gauge<u64, AtomicU64>,
    /// When the oldest came, milliseconds since 1970; 0: there is none.
    oldest_ms: AtomicU64,
}

impl Exposed {
    /// Takes note of how much there is, and when the oldest of it came, in milliseconds since 1970.
    pub fn set(&self, bytes: u64, oldest_ms: Option<u64>) {
        self.bytes.set(bytes);
        self.oldest_ms.store(oldest_ms.unwrap_or(0), Ordering::Relaxed);
    }

    fn age_s(&self, now_ms: u64) -> Option<u64> {
        match self.oldest_ms.load(Ordering::Relaxed) {
            0 => None,
            oldest => Some(now_ms.saturating_sub(oldest) / 1000),
        }
    }
}

/// What would be lost with this node, as `larder status` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Risk {
    /// Bytes of blobs that no other node has yet that shall have them.
    pub single_copy_bytes: u64,
    /// How long the oldest of them has been so.
    pub single_copy_age_s: Option<u64>,
    /// Bytes that this node archives, and that are not in the bucket yet.
    pub unarchived_bytes: u64,
    /// How long the oldest of them has waited.
    pub unarchived_age_s: Option<u64>,
}

/// Labels of bytes between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TrafficLabels {
    /// `client`, `replication` or `repair`.
    pub class: &'static str,
    /// `same` or `other`: whether they cross between zones.
    pub zone: &'static str,
}

/// Everything that a node counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Answered HTTP requests.
    pub http_requests: Family<HttpLabels, Counter>,
    /// Bytes of blobs sent to clients.
    pub http_sent_bytes: Counter,
    /// Bytes of blobs received from clients.
    pub http_received_bytes: Counter,
    /// Manifests pushed by clients.
    pub pushes: Counter,
    /// Pushes that were stored, and not as safe elsewhere as `push.ack` asks for.
    pub unacknowledged_pushes: Counter,
    /// Blobs that came from elsewhere, by where: `peer`, `archive`.
    pub fetched_blobs: Family<KindLabel, Counter>,
    /// Bytes that came from elsewhere, by where: `peer`, `archive`.
    pub fetched_bytes: Family<KindLabel, Counter>,
    /// Bytes of blobs served to peers.
    pub served_bytes: Counter,
    /// The same by class and zone.
    pub peer_served_bytes: Family<TrafficLabels, Counter>,
    /// Bytes of chunks that came from peers, by class and zone.
    pub peer_fetched_bytes: Family<TrafficLabels, Counter>,
    /// Chunks that were asked for a second time because the first answer was late.
    pub hedged_chunks: Counter,
    /// Asks for a chunk that were answered with who else has it.
    pub elsewhere_answers: Counter,
    /// Chunks from peers that were not what they should be.
    pub bad_chunks: Counter,
    /// Connections to peers that are up.
    pub peers_connected: Gauge,
    /// Records that came from peers and were merged.
    pub merged_records: Counter,
    /// Records refused because their stamp lies in the future.
    pub refused_records: Counter,
    /// Records that a reader wrote, which nobody takes.
    pub reader_records: Counter,
    /// What could not be a peer's word about who is alive, or came too fast.
    pub refused_datagrams: Counter,
    /// Records from the future that wait for their time.
    pub quarantined_records: Gauge,
    /// Origins that wrote two records under one number.
    pub forked_origins: Gauge,
    /// Comparisons of two nodes that know the same and did not hold the same.
    pub state_differences: Counter,
    /// Records that were sent or taken to mend that.
    pub repaired_records: Counter,
    /// Peers whose key two processes use.
    pub cloned_nodes: Gauge,
    /// Times that this node found another copy of its data folder and went on under a new number.
    pub lives: Counter,
    /// Tags that were pushed on two nodes that did not know of each other's push.
    pub tag_conflicts: Counter,
    /// Requests to the bucket, by kind: `put`, `get`, `list`, `head`, `delete`.
    pub bucket_requests: Family<KindLabel, Counter>,
    /// Bytes of blobs that are on this node alone.
    pub single_copy: Exposed,
    /// Bytes that are not in the bucket yet.
    pub unarchived: Exposed,
    /// Blobs that this node owes as an owner, and could not have yet.
    pub owed_blobs: Gauge,
    /// Blobs that were fetched because they became this node's share.
    pub repaired_blobs: Counter,
    /// Their bytes.
    pub repaired_bytes: Counter,
    /// Bytes waiting to be archived.
    pub archive_pending_bytes: Gauge<u64, AtomicU64>,
    /// Packs sealed and recorded.
    pub packs_sealed: Counter,
    /// Packs that the last look at the bucket found missing or with another length.
    pub archive_wrong_packs: Gauge,
    /// Blobs in it that were read and are not what they were.
    pub archive_damaged_blobs: Gauge,
    /// Objects in it that no record tells of.
    pub archive_orphans: Gauge,
    /// Packs that compaction has deleted.
    pub compacted_packs: Counter,
    /// Objects that the bucket did not let compaction delete, in its last run.
    pub compaction_refused: Gauge,
    /// When that look was, seconds since 1970.
    pub archive_verified: Gauge,
    /// Blobs that were found damaged and put aside.
    pub quarantined_blobs: Counter,
    /// Blobs that were put aside and have not come back.
    pub lost_blobs: Gauge,
    /// Bytes that may be taken: of the file system, or store.size_max.
    pub disk_capacity_bytes: Gauge<u64, AtomicU64>,
    /// Free bytes of the file system.
    pub disk_free_bytes: Gauge<u64, AtomicU64>,
    /// Bytes reserved and not written yet.
    pub disk_reserved_bytes: Gauge<u64, AtomicU64>,
    /// Bytes that pushes leave free.
    pub disk_reserve_bytes: Gauge<u64, AtomicU64>,
    /// Bytes of blobs on this disk.
    pub disk_blob_bytes: Gauge<u64, AtomicU64>,
    /// Bytes that the index has in memory, by what for.
    pub index_memory_bytes: Family<KindLabel, Gauge<u64, AtomicU64>>,
    /// Blobs dropped here that are safe elsewhere.
    pub evicted_blobs: Counter,
    /// Their bytes.
    pub evicted_bytes: Counter,
    /// Bytes that the scrub has read.
    pub scrubbed_bytes: Counter,
    /// When the last cycle of the scrub ended, seconds since 1970.
    pub scrub_finished: Gauge,
    /// Blobs that the garbage collector took off the disk.
    pub gc_blobs: Counter,
    /// Their bytes.
    pub gc_bytes: Counter,
    /// When the front door's certificate ends, in seconds since 1970.
    pub tls_certificate_expires: Gauge,
    /// Handshakes with clients that failed.
    pub tls_handshakes_failed: Counter,
    /// Connections refused because their address had too many.
    pub refused_connections: Counter,
    /// Requests answered with 429 because too many were under way.
    pub refused_requests: Counter,
    /// Connections whose client took no answer, or gave up too many requests.
    pub dropped_connections: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("larder");
        macro_rules! metric {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
            ($name:literal, $help:literal, bytes) => {{
                let metric = Default::default();
                registry.register_with_unit($name, $help, Unit::Bytes, Clone::clone(&metric));
                metric
            }};
        }
        let http_requests: Family<HttpLabels, Counter> = metric!("http_requests", "Answered HTTP requests");
        let http_sent_bytes: Counter = metric!("http_sent", "Bytes of blobs sent to clients", bytes);
        let http_received_bytes: Counter = metric!("http_received", "Bytes of blobs received from clients", bytes);
        let pushes: Counter = metric!("pushes", "Manifests pushed by clients");
        let unacknowledged_pushes: Counter =
            metric!("unacknowledged_pushes", "Pushes that were stored, and not as safe in time as push.ack asks for");
        let fetched_blobs: Family<KindLabel, Counter> = metric!("fetched_blobs", "Blobs that came from elsewhere, by where");
        let fetched_bytes: Family<KindLabel, Counter> = metric!("fetched", "Bytes that came from elsewhere, by where", bytes);
        let served_bytes: Counter = metric!("served", "Bytes of blobs served to peers", bytes);
        let peer_served_bytes: Family<TrafficLabels, Counter> =
            metric!("peer_served", "Bytes of blobs served to peers, by class and zone", bytes);
        let peer_fetched_bytes: Family<TrafficLabels, Counter> =
            metric!("peer_fetched", "Bytes of chunks that came from peers, by class and zone", bytes);
        let hedged_chunks: Counter = metric!("hedged_chunks", "Chunks asked for a second time because they were late");
        let elsewhere_answers: Counter = metric!("elsewhere_answers", "Asks for a chunk answered with who else has it");
        let bad_chunks: Counter = metric!("bad_chunks", "Chunks from peers that failed their check");
        let peers_connected: Gauge = metric!("peers_connected", "Connections to peers that are up");
        let merged_records: Counter = metric!("merged_records", "Records from peers that were merged");
        let reader_records: Counter = metric!("reader_records", "Records of readers that were not taken");
        let refused_datagrams: Counter = metric!("refused_datagrams", "Datagrams of peers that were damaged, forged or too many");
        let refused_records: Counter = metric!("refused_records", "Records refused for a stamp in the future");
        let quarantined_records: Gauge = metric!("quarantined_records", "Records from the future that wait for their time");
        let forked_origins: Gauge = metric!("forked_origins", "Origins that wrote two records under one number");
        let state_differences: Counter = metric!("state_differences", "Times that two nodes knew the same and did not hold the same");
        let repaired_records: Counter = metric!("repaired_records", "Records sent or taken to mend that");
        let cloned_nodes: Gauge = metric!("cloned_nodes", "Peers whose key two processes use");
        let lives: Counter = metric!("lives", "Times that another copy of the data folder was found, and a new number taken");
        let tag_conflicts: Counter = metric!("tag_conflicts", "Tags pushed on two nodes that did not know of each other's push");
        let bucket_requests: Family<KindLabel, Counter> = metric!("bucket_requests", "Requests to the bucket, by kind");
        macro_rules! exposed {
            ($name:literal, $age:literal, $what:literal) => {{
                let (bytes, age) = (Gauge::default(), Gauge::default());
                registry.register_with_unit($name, concat!("Bytes of ", $what), Unit::Bytes, Gauge::clone(&bytes));
                registry.register_with_unit($age, concat!("How long it is so of the oldest of ", $what), Unit::Seconds, Gauge::clone(&age));
                Exposed { bytes, age, oldest_ms: AtomicU64::new(0) }
            }};
        }
        let single_copy = exposed!("single_copy", "single_copy_age", "blobs that no other node has yet that shall have them");
        let unarchived = exposed!("unarchived", "unarchived_age", "what this node archives and is not in the bucket yet");
        let owed_blobs: Gauge = metric!("owed_blobs", "Blobs that this node owes as an owner and could not have yet");
        let repaired_blobs: Counter = metric!("repaired_blobs", "Blobs fetched because they became this node's share");
        let repaired_bytes: Counter = metric!("repaired", "Bytes of blobs fetched because they became this node's share", bytes);
        let archive_pending_bytes: Gauge<u64, AtomicU64> = metric!("archive_pending", "Bytes waiting to be archived", bytes);
        let packs_sealed: Counter = metric!("packs_sealed", "Packs sealed and recorded");
        let archive_wrong_packs: Gauge =
            metric!("archive_wrong_packs", "Packs that are missing in the bucket or have another length, at the last look");
        let archive_damaged_blobs: Gauge =
            metric!("archive_damaged_blobs", "Blobs in the bucket that are not what they were, at the last look");
        let archive_orphans: Gauge = metric!("archive_orphans", "Objects in the bucket that no record tells of, at the last look");
        let compacted_packs: Counter = metric!("compacted_packs", "Packs of which nothing counted any more, and that were deleted");
        let compaction_refused: Gauge =
            metric!("compaction_refused", "Objects that the bucket did not let compaction delete, in its last run");
        let archive_verified: Gauge =
            metric!("archive_verified_timestamp", "When the bucket was last compared with the records, seconds since 1970");
        let quarantined_blobs: Counter = metric!("quarantined_blobs", "Blobs that were found damaged and put aside");
        let lost_blobs: Gauge = metric!("lost_blobs", "Blobs that were put aside and have not come back");
        let scrubbed_bytes: Counter = metric!("scrubbed", "Bytes that the scrub has read", bytes);
        let scrub_finished: Gauge = metric!("scrub_finished_timestamp", "When the last cycle of the scrub ended, seconds since 1970");
        let gc_blobs: Counter = metric!("gc_blobs", "Blobs that the garbage collector took off the disk");
        let gc_bytes: Counter = metric!("gc", "Bytes that the garbage collector took off the disk", bytes);
        let tls_certificate_expires: Gauge =
            metric!("tls_certificate_expires_timestamp", "When the certificate of the registry ends, seconds since 1970");
        let tls_handshakes_failed: Counter = metric!("tls_handshakes_failed", "Handshakes with clients that failed");
        let refused_connections: Counter = metric!("refused_connections", "Connections refused: their address had too many");
        let refused_requests: Counter = metric!("refused_requests", "Requests answered with 429: too many were under way");
        let dropped_connections: Counter =
            metric!("dropped_connections", "Connections dropped: answers not taken, or too many requests given up");
        let disk_capacity_bytes: Gauge<u64, AtomicU64> =
            metric!("disk_capacity", "Bytes that may be taken: of the file system, or store.size_max", bytes);
        let disk_free_bytes: Gauge<u64, AtomicU64> = metric!("disk_free", "Free bytes of the file system", bytes);
        let disk_reserved_bytes: Gauge<u64, AtomicU64> = metric!("disk_reserved", "Bytes reserved and not written yet", bytes);
        let disk_reserve_bytes: Gauge<u64, AtomicU64> = metric!("disk_reserve", "Bytes that pushes leave free", bytes);
        let disk_blob_bytes: Gauge<u64, AtomicU64> = metric!("disk_blob", "Bytes of blobs on this disk", bytes);
        let index_memory_bytes: Family<KindLabel, Gauge<u64, AtomicU64>> =
            metric!("index_memory", "Bytes that the index has in memory, by what for", bytes);
        let evicted_blobs: Counter = metric!("evicted_blobs", "Blobs dropped here that are safe elsewhere");
        let evicted_bytes: Counter = metric!("evicted", "Bytes of blobs dropped here that are safe elsewhere", bytes);
        Self {
            registry,
            http_requests,
            http_sent_bytes,
            http_received_bytes,
            pushes,
            unacknowledged_pushes,
            fetched_blobs,
            fetched_bytes,
            served_bytes,
            peer_served_bytes,
            peer_fetched_bytes,
            hedged_chunks,
            elsewhere_answers,
            bad_chunks,
            peers_connected,
            merged_records,
            refused_records,
            reader_records,
            refused_datagrams,
            quarantined_records,
            forked_origins,
            state_differences,
            repaired_records,
            cloned_nodes,
            lives,
            tag_conflicts,
            bucket_requests,
            single_copy,
            unarchived,
            owed_blobs,
            repaired_blobs,
            repaired_bytes,
            archive_pending_bytes,
            packs_sealed,
            archive_wrong_packs,
            archive_damaged_blobs,
            archive_orphans,
            compacted_packs,
            compaction_refused,
            archive_verified,
            quarantined_blobs,
            lost_blobs,
            scrubbed_bytes,
            scrub_finished,
            disk_capacity_bytes,
            disk_free_bytes,
            disk_reserved_bytes,
            disk_reserve_bytes,
            disk_blob_bytes,
            index_memory_bytes,
            evicted_blobs,
            evicted_bytes,
            gc_blobs,
            gc_bytes,
            tls_certificate_expires,
            tls_handshakes_failed,
            refused_connections,
            refused_requests,
            dropped_connections,
        }
    }
}

impl Metrics {
    /// What would be lost with this node, as far as it is known now.
    pub fn risk(&self) -> Risk {
        let now = now_ms();
        Risk {
            single_copy_bytes: self.single_copy.bytes.get(),
            single_copy_age_s: self.single_copy.age_s(now),
            unarchived_bytes: self.unarchived.bytes.get(),
            unarchived_age_s: self.unarchived.age_s(now),
        }
    }

    /// The metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let now = now_ms();
        for exposed in [&self.single_copy, &self.unarchived] {
            exposed.age.set(exposed.age_s(now).unwrap_or(0));
        }
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            let _ = write!(page, "# EOF");
        }
        page
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Sends logs to stderr, as the configuration says. Called once, by `main`.
///
/// # Errors
/// The level is no filter that can be read.
pub fn log_to_stderr(log: &config::Log) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(&log.level)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        config::LogFormat::Text => subscriber.with_ansi(false).init(),
        config::LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exposed_grows_older_by_itself() {
        let metrics = Metrics::default();
        assert_eq!((metrics.risk().single_copy_bytes, metrics.risk().single_copy_age_s), (0, None));
        metrics.single_copy.set(7, Some(now_ms() - 90_000));
        assert_eq!((metrics.risk().single_copy_bytes, metrics.risk().single_copy_age_s), (7, Some(90)));
        let page = metrics.encode();
        assert!(page.contains("larder_single_copy_bytes 7\n") && page.contains("larder_single_copy_age_seconds 90\n"), "{page}");
        assert!(page.contains("larder_unarchived_bytes 0\n") && page.contains("larder_unarchived_age_seconds 0\n"), "{page}");
    }
}
