//! Docker Engine: `/etc/docker/daemon.json`.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::{Change, below, read};

const FILE: &str = "/etc/docker/daemon.json";

/// What has to change for a registry at this address.
pub(super) fn plan(root: &Path, address: &str) -> anyhow::Result<Vec<Change>> {
    let path = below(root, FILE);
    let before = read(&path)?;
    let after = merge(before.as_deref().unwrap_or_default(), address).with_context(|| {
        format!(
            "read {}; mend it, or add \"registry-mirrors\": [\"http://{address}\"] and \"insecure-registries\": [\"{address}\"] by hand",
            path.display()
        )
    })?;
    Ok(vec![Change { path, before, after }])
}

/// The file with the two lists made longer; a text that says it all already stays as it is, to the letter.
fn merge(text: &str, address: &str) -> anyhow::Result<String> {
    let mut settings: Map<String, Value> = if text.trim().is_empty() { Map::new() } else { serde_json::from_str(text)? };
    let mirrors = add(&mut settings, "registry-mirrors", &format!("http://{address}"))?;
    let insecure = add(&mut settings, "insecure-registries", address)?;
    if !mirrors && !insecure {
        return Ok(text.to_owned());
    }
    Ok(serde_json::to_string_pretty(&settings)? + "\n")
}

/// Puts a value into a list; `false` when it is there.
fn add(settings: &mut Map<String, Value>, key: &str, value: &str) -> anyhow::Result<bool> {
    let Value::Array(list) = settings.entry(key).or_insert_with(|| Value::Array(Vec::new())) else {
        bail!("{key} is no list");
    };
    if list.iter().any(|there| there.as_str().is_some_and(|there| there.trim_end_matches('/') == value)) {
        return Ok(false);
    }
    list.push(Value::from(value));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

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
