//! Logs and metrics: the words that people and dashboards read.
//!
//! Metrics have no global registry: each node of a test process has its own [`Metrics`], built by `node` and handed
//! to the rooms. Names follow the OpenMetrics conventions; units stand in the name.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

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
    /// Blobs that came from elsewhere, by where: `peer`, `archive`.
    pub fetched_blobs: Family<KindLabel, Counter>,
    /// Bytes that came from elsewhere, by where: `peer`, `archive`.
    pub fetched_bytes: Family<KindLabel, Counter>,
    /// Bytes of blobs served to peers.
    pub served_bytes: Counter,
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
    /// Requests to the bucket, by kind: `put`, `get`, `list`, `head`, `delete`.
    pub bucket_requests: Family<KindLabel, Counter>,
    /// Bytes waiting to be archived.
    pub archive_pending_bytes: Gauge<u64, AtomicU64>,
    /// Packs sealed and recorded.
    pub packs_sealed: Counter,
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
        let fetched_blobs: Family<KindLabel, Counter> = metric!("fetched_blobs", "Blobs that came from elsewhere, by where");
        let fetched_bytes: Family<KindLabel, Counter> = metric!("fetched", "Bytes that came from elsewhere, by where", bytes);
        let served_bytes: Counter = metric!("served", "Bytes of blobs served to peers", bytes);
        let bad_chunks: Counter = metric!("bad_chunks", "Chunks from peers that failed their check");
        let peers_connected: Gauge = metric!("peers_connected", "Connections to peers that are up");
        let merged_records: Counter = metric!("merged_records", "Records from peers that were merged");
        let reader_records: Counter = metric!("reader_records", "Records of readers that were not taken");
        let refused_datagrams: Counter = metric!("refused_datagrams", "Datagrams of peers that were damaged, forged or too many");
        let refused_records: Counter = metric!("refused_records", "Records refused for a stamp in the future");
        let bucket_requests: Family<KindLabel, Counter> = metric!("bucket_requests", "Requests to the bucket, by kind");
        let archive_pending_bytes: Gauge<u64, AtomicU64> = metric!("archive_pending", "Bytes waiting to be archived", bytes);
        let packs_sealed: Counter = metric!("packs_sealed", "Packs sealed and recorded");
        let quarantined_blobs: Counter = metric!("quarantined_blobs", "Blobs that were found damaged and put aside");
        let lost_blobs: Gauge = metric!("lost_blobs", "Blobs that were put aside and have not come back");
        let scrubbed_bytes: Counter = metric!("scrubbed", "Bytes that the scrub has read", bytes);
        let scrub_finished: Gauge = metric!("scrub_finished_timestamp", "When the last cycle of the scrub ended, seconds since 1970");
        let gc_blobs: Counter = metric!("gc_blobs", "Blobs that the garbage collector took off the disk");
        let gc_bytes: Counter = metric!("gc", "Bytes that the garbage collector took off the disk", bytes);
        let disk_capacity_bytes: Gauge<u64, AtomicU64> =
            metric!("disk_capacity", "Bytes that may be taken: of the file system, or store.size_max", bytes);
        let disk_free_bytes: Gauge<u64, AtomicU64> = metric!("disk_free", "Free bytes of the file system", bytes);
        let disk_reserved_bytes: Gauge<u64, AtomicU64> = metric!("disk_reserved", "Bytes reserved and not written yet", bytes);
        let disk_reserve_bytes: Gauge<u64, AtomicU64> = metric!("disk_reserve", "Bytes that pushes leave free", bytes);
        let disk_blob_bytes: Gauge<u64, AtomicU64> = metric!("disk_blob", "Bytes of blobs on this disk", bytes);
        let evicted_blobs: Counter = metric!("evicted_blobs", "Blobs dropped here that are safe elsewhere");
        let evicted_bytes: Counter = metric!("evicted", "Bytes of blobs dropped here that are safe elsewhere", bytes);
        Self {
            registry,
            http_requests,
            http_sent_bytes,
            http_received_bytes,
            pushes,
            fetched_blobs,
            fetched_bytes,
            served_bytes,
            bad_chunks,
            peers_connected,
            merged_records,
            refused_records,
            reader_records,
            refused_datagrams,
            bucket_requests,
            archive_pending_bytes,
            packs_sealed,
            quarantined_blobs,
            lost_blobs,
            scrubbed_bytes,
            scrub_finished,
            disk_capacity_bytes,
            disk_free_bytes,
            disk_reserved_bytes,
            disk_reserve_bytes,
            disk_blob_bytes,
            evicted_blobs,
            evicted_bytes,
            gc_blobs,
            gc_bytes,
        }
    }
}

impl Metrics {
    /// The metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            let _ = write!(page, "# EOF");
        }
        page
    }
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
