//! Every setting there is: its name, its bounds, and the field that it sets.
//!
//! A new setting is a field in `mod.rs`, its default there, a line here, and its explanation in the packaged
//! `larder.toml`; a test compares the two lists.

use std::path::PathBuf;

use super::value::{Value, is_host_port, is_name};
use super::{
    Ack, AcmeChallenge, AuditLevel, ClientCertificates, Config, Durability, Fault, LogFormat, MIB, auth, class, prices, sealing, tls,
};
use crate::glob::Pattern;

/// The configuration while it is put together.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) config: Config,
    /// The archive is the folder in the data folder, wherever that will be.
    pub(super) archive_in_data_dir: bool,
    /// Nobody can reach this node.
    pub(super) no_address: bool,
}

/// One setting.
pub(super) struct Setting {
    /// `section.key`, or the key alone.
    pub(super) name: &'static str,
    /// Checks a value and keeps it.
    pub(super) apply: fn(&mut Draft, &Value) -> Result<(), Fault>,
}

impl Setting {
    /// The section, or nothing.
    pub(super) fn section(&self) -> &'static str {
        self.name.split_once('.').map(|(section, _)| section).unwrap_or_default()
    }

    /// The key in its section.
    pub(super) fn key(&self) -> &'static str {
        self.name.split_once('.').map(|(_, key)| key).unwrap_or(self.name)
    }

    /// The variable of the environment.
    pub(super) fn variable(&self) -> String {
        format!("LARDER_{}", self.name.replace('.', "__").to_ascii_uppercase())
    }
}

macro_rules! settings {
    ($($name:literal => |$draft:ident, $value:ident| $apply:expr;)*) => {
        &[$(Setting { name: $name, apply: |$draft: &mut Draft, $value: &Value| { $apply; Ok(()) } },)*]
    };
}

/// All of them, in the order of the packaged file.
pub(super) const SETTINGS: &[Setting] = settings! {
    "data_dir" => |draft, value| draft.config.data_dir = data_dir(value)?;
    "node.name" => |draft, value| draft.config.node.name = name(value)?;
    "node.zone" => |draft, value| draft.config.node.zone = name(value)?;
    "http.listen" => |draft, value| draft.config.http.listen = value.address()?;
    "http.insecure" => |draft, value| draft.config.http.insecure = value.boolean()?;
    "http.public_url" => |draft, value| draft.config.http.public_url = value.url()?;
    "http.connections_max" => |draft, value| draft.config.http.connections_max = value.number(1, 1_000_000)?;
    "http.connections_per_client_max" => |draft, value| draft.config.http.connections_per_client_max = value.number(1, 1_000_000)?;
    "http.requests_max" => |draft, value| draft.config.http.requests_max = value.number(1, 1_000_000)?;
    "http.requests_per_client_max" => |draft, value| draft.config.http.requests_per_client_max = value.number(1, 1_000_000)?;
    "http.header_timeout" => |draft, value| draft.config.http.header_timeout = value.duration("100ms", "1h")?;
    "http.idle_timeout" => |draft, value| draft.config.http.idle_timeout = value.duration("100ms", "1d")?;
    "http.shutdown_grace" => |draft, value| draft.config.http.shutdown_grace = value.duration("0s", "1d")?;
    "tls.certificate" => |draft, value| draft.config.tls.certificate = tls::file(value)?;
    "tls.key" => |draft, value| draft.config.tls.key = tls::file(value)?;
    "tls.client_ca" => |draft, value| draft.config.tls.client_ca = tls::file(value)?;
    "tls.client_certificates" => |draft, value| {
        let choices = [ClientCertificates::Optional, ClientCertificates::Required];
        draft.config.tls.client_certificates = value.choice(&["optional", "required"], &choices)?;
    };
    "acme.domains" => |draft, value| draft.config.acme.domains = tls::domains(value)?;
    "acme.terms_agreed" => |draft, value| draft.config.acme.terms_agreed = value.boolean()?;
    "acme.email" => |draft, value| draft.config.acme.email = tls::email(value)?;
    "acme.directory" => |draft, value| draft.config.acme.directory = tls::directory(value)?;
    "acme.challenge" => |draft, value| {
        let choices = [AcmeChallenge::Http01, AcmeChallenge::TlsAlpn01];
        draft.config.acme.challenge = value.choice(&["http-01", "tls-alpn-01"], &choices)?;
    };
    "acme.http_listen" => |draft, value| draft.config.acme.http_listen = value.address()?;
    "acme.ca" => |draft, value| draft.config.acme.ca = tls::file(value)?;
    "store.durability" => |draft, value| {
        draft.config.store.durability = value.choice(&["strict", "relaxed"], &[Durability::Strict, Durability::Relaxed])?;
    };
    // Less would not hold one layer of most images.
    "store.size_max" => |draft, value| draft.config.store.size_max = unless(value, "none").map(|value| value.size(16 * MIB, 1 << 60)).transpose()?;
    // With less, the index does not recover from a full disk by itself.
    "store.reserve" => |draft, value| draft.config.store.reserve = unless(value, "auto").map(|value| value.size(16 * MIB, 1 << 50)).transpose()?;
    "store.high_water" => |draft, value| draft.config.store.high_water = value.number(2, 100)? as u64;
    "store.low_water" => |draft, value| draft.config.store.low_water = value.number(1, 99)? as u64;
    "store.pins" => |draft, value| draft.config.store.pins = patterns(value)?;
    // Manifests are held in memory whole, a few at a time.
    "registry.manifest_size_max" => |draft, value| draft.config.registry.manifest_size_max = value.size(1024, 16 * MIB)?;
    "registry.blob_size_max" => |draft, value| draft.config.registry.blob_size_max = value.size(1024, 16 * MIB * MIB)?;
    "registry.uploads_max" => |draft, value| draft.config.registry.uploads_max = value.number(1, 1_000_000)?;
    "registry.uploads_per_client_max" => |draft, value| draft.config.registry.uploads_per_client_max = value.number(1, 1_000_000)?;
    "registry.upload_age_max" => |draft, value| draft.config.registry.upload_age_max = value.duration("1s", "30d")?;
    "registry.sparse_manifests" => |draft, value| draft.config.registry.sparse_manifests = value.boolean()?;
    "registry.immutable_tags" => |draft, value| draft.config.registry.immutable_tags = patterns(value)?;
    "auth.required" => |draft, value| draft.config.auth.required = value.boolean()?;
    "auth.htpasswd" => |draft, value| draft.config.auth.htpasswd = auth::path(value)?;
    // Clients take a token for good for a minute at least.
    "auth.token_life" => |draft, value| draft.config.auth.token_life = value.duration("1s", "1d")?;
    "auth.refresh_life" => |draft, value| draft.config.auth.refresh_life = value.duration("1m", "365d")?;
    "auth.session_life" => |draft, value| draft.config.auth.session_life = value.duration("1s", "7d")?;
    "auth.audit" => |draft, value| {
        let levels = [AuditLevel::Off, AuditLevel::Changes, AuditLevel::Everything];
        draft.config.auth.audit = value.choice(&["off", "changes", "everything"], &levels)?;
    };
    "auth.audit_kept" => |draft, value| draft.config.auth.audit_kept = value.duration("1h", "365d")?;
    "token_server.realm" => |draft, value| draft.config.token_server.realm = unless(value, "").map(auth::trusted_url).transpose()?;
    "token_server.service" => |draft, value| draft.config.token_server.service = auth::word(value)?;
    "token_server.issuer" => |draft, value| draft.config.token_server.issuer = auth::word(value)?;
    "token_server.jwks" => |draft, value| draft.config.token_server.jwks = auth::key_source(value)?;
    "token_server.algorithms" => |draft, value| draft.config.token_server.algorithms = auth::algorithms(value)?;
    "push.ack" => |draft, value| draft.config.push.ack = ack(value)?;
    "push.ack_timeout" => |draft, value| draft.config.push.ack_timeout = value.duration("100ms", "1h")?;
    "gc.period" => |draft, value| draft.config.gc.period = value.duration("0s", "365d")?;
    "gc.grace" => |draft, value| draft.config.gc.grace = value.duration("1s", "365d")?;
    "gc.trash" => |draft, value| draft.config.gc.trash = value.duration("0s", "365d")?;
    "scrub.cycle" => |draft, value| draft.config.scrub.cycle = value.duration("0s", "3650d")?;
    "scrub.rate" => |draft, value| draft.config.scrub.rate = value.size(64 << 10, 1 << 40)?;
    "peers.listen" => |draft, value| draft.config.peers.listen = value.address()?;
    "peers.advertise" => |draft, value| advertise(draft, value)?;
    "peers.replicas" => |draft, value| draft.config.peers.replicas = value.number(1, 9)?;
    "peers.takeover" => |draft, value| draft.config.peers.takeover = value.duration("1s", "365d")?;
    "peers.repair_rate" => |draft, value| draft.config.peers.repair_rate = value.size(64 << 10, 1 << 40)?;
    "peers.max_clock_drift" => |draft, value| draft.config.peers.max_clock_drift = value.duration("1s", "1d")?;
    "records.lapse_after" => |draft, value| draft.config.records.lapse_after = value.duration("1s", "3650d")?;
    "records.tombstones_kept" => |draft, value| draft.config.records.tombstones_kept = value.duration("0s", "3650d")?;
    "records.per_node_max" => |draft, value| draft.config.records.per_node_max = value.number(1000, 1_000_000_000_000)? as u64;
    "records.rate" => |draft, value| draft.config.records.rate = value.number(100, 1_000_000_000)? as u64;
    "peers.bandwidth" => |draft, value| draft.config.peers.bandwidth = bandwidth(value)?;
    "peers.bandwidth_zone" => |draft, value| draft.config.peers.bandwidth_zone = bandwidth(value)?;
    "archive.url" => |draft, value| archive_url(draft, value)?;
    "archive.endpoint" => |draft, value| draft.config.archive.endpoint = value.url()?;
    "archive.region" => |draft, value| draft.config.archive.region = name(value)?;
    "archive.path_style" => |draft, value| draft.config.archive.path_style = value.boolean()?;
    "archive.max_delay" => |draft, value| draft.config.archive.max_delay = value.duration("1s", "30d")?;
    // One PutObject takes 5 GiB; the pack's headers and footer come on top of what waits.
    "archive.pack_size" => |draft, value| draft.config.archive.pack_size = value.size(MIB, 4096 * MIB)?;
    "archive.multipart_above" => |draft, value| draft.config.archive.multipart_above = value.size(5 * MIB, 5 * 1024 * MIB)?;
    "archive.read_url" => |draft, value| draft.config.archive.read_url = sealing::read_url(value)?;
    "archive.read_url_key_id" => |draft, value| draft.config.archive.read_url_key_id = sealing::key_id(value)?;
    "archive.read_url_key_file" => |draft, value| draft.config.archive.read_url_key_file = tls::file(value)?;
    "archive.recipients" => |draft, value| draft.config.archive.recipients = sealing::recipients(value)?;
    "archive.identity_file" => |draft, value| draft.config.archive.identity_file = tls::file(value)?;
    "archive.sse" => |draft, value| draft.config.archive.sse = sealing::sse(value)?;
    "archive.sse_kms_key" => |draft, value| draft.config.archive.sse_kms_key = sealing::kms_key(value)?;
    "archive.checkpoint_packs" => |draft, value| draft.config.archive.checkpoint_packs = value.number(1, 1_000_000)? as u64;
    "archive.checkpoint_age" => |draft, value| draft.config.archive.checkpoint_age = value.duration("1m", "365d")?;
    "archive.verify_period" => |draft, value| draft.config.archive.verify_period = value.duration("0s", "365d")?;
    "archive.storage_class" => |draft, value| draft.config.archive.storage_class = class::instant(value)?;
    "archive.thaw_poll" => |draft, value| draft.config.archive.thaw_poll = value.duration("1s", "1d")?;
    "archive.evict_frozen" => |draft, value| draft.config.archive.evict_frozen = value.boolean()?;
    "archive.bulk_class" => |draft, value| draft.config.archive.bulk_class = class::bulk(value)?;
    "archive.compact" => |draft, value| draft.config.archive.compact = value.choice(&["off", "on"], &[false, true])?;
    "archive.compact_wait" => |draft, value| draft.config.archive.compact_wait = value.duration("0s", "365d")?;
    "archive.compact_payback" => |draft, value| draft.config.archive.compact_payback = value.number(0, 1_000_000)?;
    "archive.compact_bytes" => |draft, value| draft.config.archive.compact_bytes = value.size(MIB, 1 << 50)?;
    "prices.put_thousand" => |draft, value| draft.config.prices.put_thousand = prices::price(value)?;
    "prices.get_thousand" => |draft, value| draft.config.prices.get_thousand = prices::price(value)?;
    "prices.storage_gb_month" => |draft, value| draft.config.prices.storage_gb_month = prices::price(value)?;
    "prices.retrieval_gb" => |draft, value| draft.config.prices.retrieval_gb = prices::price(value)?;
    "prices.transfer_gb" => |draft, value| draft.config.prices.transfer_gb = prices::price(value)?;
    "prices.read_url_thousand" => |draft, value| draft.config.prices.read_url_thousand = prices::price(value)?;
    "prices.read_url_gb" => |draft, value| draft.config.prices.read_url_gb = prices::price(value)?;
    "prices.source" => |draft, value| draft.config.prices.source = prices::source(value)?;
    "log.level" => |draft, value| draft.config.log.level = level(value)?;
    "log.format" => |draft, value| draft.config.log.format = value.choice(&["text", "json"], &[LogFormat::Text, LogFormat::Json])?;
};

/// Most addresses that a node may say it has.
const ADVERTISE_MAX: usize = 16;

/// Longest name for which the one that was meant is looked for.
const COMPARED_LENGTH_MAX: usize = 64;

/// The setting of that name.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The key that was probably meant by an unknown one in a section, with its section when that is another one.
pub(super) fn near_key(section: &str, key: &str) -> Option<String> {
    let shown = |setting: &Setting| match setting.section() {
        same if same == section => setting.key().to_owned(),
        "" => format!("{}, above the first section", setting.key()),
        other => format!("{} in section [{other}]", setting.key()),
    };
    let own = SETTINGS.iter().filter(|setting| setting.section() == section);
    let elsewhere = || SETTINGS.iter().find(|setting| setting.key() == key || setting.name == key);
    nearest(key, own.map(|setting| (setting.key().to_owned(), setting))).or_else(elsewhere).map(shown)
}

/// The section that was probably meant.
pub(super) fn near_section(section: &str) -> Option<String> {
    nearest(section, SETTINGS.iter().map(|setting| (setting.section().to_owned(), setting.section()))).map(|section| format!("[{section}]"))
}

/// The variable that was probably meant.
pub(super) fn near_variable(variable: &str) -> Option<String> {
    let variable = variable.to_ascii_uppercase();
    nearest(&variable, SETTINGS.iter().map(|setting| (setting.variable(), setting.variable())))
}

/// The candidate with the fewest letters to change, when these are few.
fn nearest<T>(text: &str, candidates: impl Iterator<Item = (String, T)>) -> Option<T> {
    let length = text.chars().count();
    // Names are short; what is long is no misspelt one, and comparing it would take its length in time and memory.
    if length > COMPARED_LENGTH_MAX {
        return None;
    }
    let few = (length / 3).clamp(1, 3);
    let distances = candidates.map(|(candidate, value)| (distance(text, &candidate), value));
    distances.filter(|(distance, _)| *distance <= few).min_by_key(|(distance, _)| *distance).map(|(_, value)| value)
}

/// How many letters to insert, drop, change or swap with their neighbour to come from one text to another.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<usize>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let change = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

fn data_dir(value: &Value) -> Result<PathBuf, Fault> {
    match value.text()? {
        "" => Err(Fault::Empty),
        home if home == "~" || home.starts_with("~/") => Err(Fault::Home),
        path => Ok(PathBuf::from(path)),
    }
}

fn name(value: &Value) -> Result<String, Fault> {
    let text = value.text()?;
    if is_name(text) { Ok(text.to_owned()) } else { Err(Fault::Name) }
}

/// The value, unless it is the word that stands for none.
fn unless<'a>(value: &'a Value, word: &str) -> Option<&'a Value> {
    Some(value).filter(|value| !matches!(value.text(), Ok(text) if text == word))
}

/// Bytes a second. With less, a chunk would take longer than peers wait for it.
fn bandwidth(value: &Value) -> Result<Option<u64>, Fault> {
    unless(value, "none").map(|value| value.size(64 << 10, 1 << 40)).transpose()
}

fn patterns(value: &Value) -> Result<Vec<Pattern>, Fault> {
    value.list()?.iter().map(|text| text.parse().map_err(Fault::Glob)).collect()
}

/// Most other nodes that a push may wait for: as many as `peers.replicas` may ask for.
const ACK_PEERS_MAX: usize = 9;

fn ack(value: &Value) -> Result<Ack, Fault> {
    let text = value.text().map_err(|_| Fault::Ack)?;
    match text {
        "local" => Ok(Ack::Local),
        "archived" => Ok(Ack::Archived),
        _ => {
            let count = text.strip_prefix("peers:").and_then(|count| count.trim().parse().ok()).ok_or(Fault::Ack)?;
            if (1..=ACK_PEERS_MAX).contains(&count) { Ok(Ack::Peers(count)) } else { Err(Fault::Ack) }
        }
    }
}

fn advertise(draft: &mut Draft, value: &Value) -> Result<(), Fault> {
    let list = value.list()?;
    if list.len() > ADVERTISE_MAX {
        return Err(Fault::Bounds { least: "0".to_owned(), most: format!("{ADVERTISE_MAX} addresses") });
    }
    draft.no_address = list == ["none"];
    draft.config.peers.advertise = if draft.no_address { Vec::new() } else { list };
    if draft.config.peers.advertise.iter().all(|address| is_host_port(address)) { Ok(()) } else { Err(Fault::HostPort) }
}

fn archive_url(draft: &mut Draft, value: &Value) -> Result<(), Fault> {
    let text = value.text()?;
    draft.archive_in_data_dir = text.is_empty();
    draft.config.archive.url = match text {
        "" | "none" => None,
        url => Some(url.parse()?),
    };
    Ok(())
}

/// The filter's own parser takes every single word for the name of a target: `loud` would silence everything else.
fn level(value: &Value) -> Result<String, Fault> {
    let text = value.text()?;
    let directives = || text.split(',').map(str::trim);
    let is_level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word.to_ascii_lowercase().as_str());
    let wrong = |directive: &&str| match directive.rsplit_once('=') {
        // With spans and fields in it, it is for the filter's own parser.
        _ if directive.contains('[') => false,
        Some((target, level)) => target.contains(' ') || !is_level(level),
        None => !is_level(directive),
    };
    if let Some(wrong) = directives().find(wrong) {
        return Err(Fault::Level(wrong.to_owned()));
    }
    tracing_subscriber::EnvFilter::try_new(text).map_err(|_| Fault::Level(text.to_owned()))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_find_the_one_that_was_meant() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(near_key("http", "lisen"), some("listen"));
        assert_eq!(near_key("peers", "pack_size"), some("pack_size in section [archive]"));
        assert_eq!(near_key("", "durability"), some("durability in section [store]"));
        assert_eq!(near_key("http", "data_dir"), some("data_dir, above the first section"));
        assert_eq!(near_key("http", "certificate"), some("certificate in section [tls]"));
        assert_eq!(near_key("http", "something"), None);
        assert_eq!(near_section("peer"), some("[peers]"));
        assert_eq!(near_section("authentication"), None);
        assert_eq!(near_variable("LARDER_HTTP__LISTN"), some("LARDER_HTTP__LISTEN"));
        assert_eq!(near_variable("LARDER_HTTP_LISTEN"), some("LARDER_HTTP__LISTEN"));
    }

    #[test]
    fn levels_that_would_silence_the_logs_are_refused() {
        let check = |text: &str| level(&Value::Text(text.to_owned()));
        for good in ["info", "WARN", "info,larder::peers=debug", "off", "larder[span{field=1}]=trace"] {
            assert_eq!(check(good).as_deref(), Ok(good));
        }
        for bad in ["loud", "", "info,,", "larder::peers=chatty", "info larder=debug"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
