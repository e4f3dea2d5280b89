//! Docker Engine: `/etc/docker/daemon.json`, and `/etc/docker/certs.d` for a private authority and the certificate that the engine shows.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::speaks::Speaks;
use super::{Change, below, read};

const FILE: &str = "/etc/docker/daemon.json";
/// Where Docker looks for who vouches for a registry, and for what to show there.
const CERTIFICATES: &str = "/etc/docker/certs.d";

/// What has to change for registries at these addresses.
pub(super) fn plan(root: &Path, addresses: &[String], speaks: &Speaks) -> anyhow::Result<Vec<Change>> {
    let path = below(root, FILE);
    let before = read(&path)?;
    let after = merge(before.as_deref().unwrap_or_default(), addresses, speaks).with_context(|| {
        let mirrors: Vec<_> = addresses.iter().map(|address| speaks.url(address)).collect();
        let insecure = if speaks.is_plain() { format!(" and \"insecure-registries\": {addresses:?}") } else { String::new() };
        format!("read {}; mend it, or add \"registry-mirrors\": {mirrors:?}{insecure} by hand", path.display())
    })?;
    let mut changes = speaks.files(root, CERTIFICATES, addresses)?;
    changes.push(Change { path, before, after, is_secret: false });
    Ok(changes)
}

/// The file with the two lists made longer; a text that says it all already stays as it is, to the letter.
fn merge(text: &str, addresses: &[String], speaks: &Speaks) -> anyhow::Result<String> {
    let mut settings: Map<String, Value> = if text.trim().is_empty() { Map::new() } else { serde_json::from_str(text)? };
    let urls: Vec<_> = addresses.iter().map(|address| speaks.url(address)).collect();
    let mirrors = add(&mut settings, "registry-mirrors", &urls)?;
    let insecure = speaks.is_plain() && add(&mut settings, "insecure-registries", addresses)?;
    if !mirrors && !insecure {
        return Ok(text.to_owned());
    }
    Ok(serde_json::to_string_pretty(&settings)? + "\n")
}

/// Puts values into a list in their order, those that are there included; `false` when they are there like that.
fn add(settings: &mut Map<String, Value>, key: &str, values: &[String]) -> anyhow::Result<bool> {
    let Value::Array(list) = settings.entry(key).or_insert_with(|| Value::Array(Vec::new())) else {
        bail!("{key} is no list");
    };
    let place_of = |there: &Value| values.iter().position(|value| there.as_str().is_some_and(|there| there.trim_end_matches('/') == value));
    let places: Vec<_> = list.iter().filter_map(place_of).collect();
    if places.iter().copied().eq(0..values.len()) {
        return Ok(false);
    }
    // What others wrote stays where it is; ours come one after the other into the places that they have, and behind the end.
    let mut ours = values.iter();
    for there in list.iter_mut() {
        if place_of(there).is_some() {
            *there = Value::from(ours.next().map_or_else(String::new, String::clone));
        }
    }
    list.retain(|there| there.as_str() != Some(""));
    list.extend(ours.map(|value| Value::from(value.as_str())));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(text: &str, address: &str) -> anyhow::Result<String> {
        super::merge(text, &[address.to_owned()], &Speaks::Plain)
    }

    #[test]
    fn several_nodes_stand_in_their_order_also_when_it_changes() {
        let nodes = |order: [&str; 2]| order.map(str::to_owned);
        let text = r#"{"registry-mirrors": ["http://b:1", "https://mirror.example.org"]}"#;
        let mirrors = |text: &str| {
            let value: Value = serde_json::from_str(text).expect("JSON");
            (value["registry-mirrors"].clone(), value["insecure-registries"].clone())
        };
        let merged = super::merge(text, &nodes(["a:1", "b:1"]), &Speaks::Plain).expect("merge");
        let expected = serde_json::json!(["http://a:1", "https://mirror.example.org", "http://b:1"]);
        assert_eq!(mirrors(&merged), (expected, serde_json::json!(["a:1", "b:1"])));
        assert_eq!(super::merge(&merged, &nodes(["a:1", "b:1"]), &Speaks::Plain).expect("merge"), merged);
        let merged = super::merge(&merged, &nodes(["b:1", "a:1"]), &Speaks::Plain).expect("merge");
        let expected = serde_json::json!(["http://b:1", "https://mirror.example.org", "http://a:1"]);
        assert_eq!(mirrors(&merged), (expected, serde_json::json!(["b:1", "a:1"])));
    }

    #[test]
    fn settings_that_were_there_stay() {
        let text = r#"{"log-driver": "journald", "registry-mirrors": ["https://mirror.example.org"], "default-address-pools": [{"base": "10.9.0.0/16", "size": 24}]}"#;
        let merged = merge(text, "127.0.0.1:5000").expect("merge");
        let value: Value = serde_json::from_str(&merged).expect("JSON");
        let expected = serde_json::json!({
            "log-driver": "journald",
            "default-address-pools": [{"base": "10.9.0.0/16", "size": 24}],
            "registry-mirrors": ["https://mirror.example.org", "http://127.0.0.1:5000"],
            "insecure-registries": ["127.0.0.1:5000"],
        });
        assert_eq!(value, expected);
        assert_eq!(merge(&merged, "127.0.0.1:5000").expect("merge"), merged);
    }

    #[test]
    fn a_registry_with_tls_is_a_mirror_and_what_both_sides_prove_themselves_by_has_files() {
        let root = tempfile::tempdir().expect("a temp folder");
        let changes = plan(root.path(), &["a:1".to_owned()], &Speaks::mutual("PEM")).expect("a plan");
        let files: Vec<_> = changes[..3].iter().map(|change| (change.path.clone(), change.after.as_str(), change.is_secret)).collect();
        let at = |name: &str| root.path().join("etc/docker/certs.d/a:1").join(name);
        assert_eq!(files, [(at("ca.crt"), "PEM", false), (at("client.cert"), "CERTIFICATE", false), (at("client.key"), "KEY", true)]);
        let value: Value = serde_json::from_str(&changes[3].after).expect("JSON");
        assert_eq!(value, serde_json::json!({"registry-mirrors": ["https://a:1"]}));
    }

    #[test]
    fn what_says_it_already_is_not_even_formatted() {
        let text = r#"{ "registry-mirrors":["http://127.0.0.1:5000/"],"insecure-registries":["127.0.0.1:5000"] }"#;
        assert_eq!(merge(text, "127.0.0.1:5000").expect("merge"), text);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for wrong in ["[]", "{", "{} {}", r#"{"registry-mirrors": "http://a"}"#, r#"{"insecure-registries": {}}"#] {
            assert!(merge(wrong, "127.0.0.1:5000").is_err(), "{wrong}");
        }
        assert!(merge("", "a:1").expect("merge").contains("http://a:1"));
    }
}
