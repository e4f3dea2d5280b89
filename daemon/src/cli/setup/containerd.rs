//! containerd: a folder for each registry in `/etc/containerd/certs.d`, with a `hosts.toml` that says which hosts to ask.
//!
//! One folder is this registry's own, so that it is spoken to without TLS. The other is Docker Hub's, where this registry
//! becomes a mirror. There is none for all other registries (`_default`): containerd would ask for every registry's images
//! here, and two registries may have different images of one name.

use std::path::Path;

use anyhow::{Context, ensure};
use toml::{Table, Value};

use super::{Change, below, read};

const FOLDER: &str = "/etc/containerd/certs.d";

/// What has to change for a registry at this address.
pub(super) fn plan(root: &Path, address: &str) -> anyhow::Result<Vec<Change>> {
    let own = change(root, address, &format!("http://{address}"), address, &["pull", "resolve", "push"])?;
    let hub = change(root, "docker.io", "https://registry-1.docker.io", address, &["pull", "resolve"])?;
    Ok(vec![own, hub])
}

fn change(root: &Path, registry: &str, server: &str, address: &str, capabilities: &[&str]) -> anyhow::Result<Change> {
    let path = below(root, &format!("{FOLDER}/{registry}/hosts.toml"));
    let before = read(&path)?;
    let host = format!("[host.\"http://{address}\"]\ncapabilities = {capabilities:?}\n");
    let after = match &before {
        None => format!("server = {server:?}\n\n{host}"),
        Some(text) => {
            let merged = merge(text, &format!("http://{address}"), &host);
            merged.with_context(|| format!("add to {}; mend it, or add this by hand: {}", path.display(), host.replace('\n', " ")))?
        }
    };
    Ok(Change { path, before, after })
}

/// The text with the host's table behind it, unless it has one. Nothing of the text is touched, comments and order included.
fn merge(text: &str, host: &str, table: &str) -> anyhow::Result<String> {
    let settings: Table = text.parse()?;
    if let Some(Value::Table(hosts)) = settings.get("host")
        && hosts.contains_key(host)
    {
        return Ok(text.to_owned());
    }
    let gap = if text.is_empty() || text.ends_with("\n\n") {
        ""
    } else if text.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    let merged = format!("{text}{gap}{table}");
    let mut read_back: Table = merged.parse()?;
    // What was there still is, and nothing else came than the host.
    if let Some(Value::Table(hosts)) = read_back.get_mut("host") {
        hosts.remove(host);
        if hosts.is_empty() && !settings.contains_key("host") {
            read_back.remove("host");
        }
    }
    ensure!(read_back == settings, "it has a form that can't be added to");
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "http://127.0.0.1:5000";
    const TABLE: &str = "[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\"]\n";

    #[test]
    fn new_files_name_the_server_and_the_host() {
        let root = tempfile::tempdir().expect("a temp folder");
        let changes = plan(root.path(), "127.0.0.1:5000").expect("a plan");
        let shown: Vec<_> = changes
            .iter()
            .map(|change| (change.path.strip_prefix(root.path()).expect("below").display().to_string(), change.after.as_str()))
            .collect();
        let own =
            "server = \"http://127.0.0.1:5000\"\n\n[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n";
        let hub = "server = \"https://registry-1.docker.io\"\n\n[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(
            shown,
            [
                ("etc/containerd/certs.d/127.0.0.1:5000/hosts.toml".to_owned(), own),
                ("etc/containerd/certs.d/docker.io/hosts.toml".to_owned(), hub)
            ]
        );
    }

    #[test]
    fn a_host_is_added_behind_what_is_there() {
        let text =
            "# mine\nserver = \"https://registry-1.docker.io\"\n[host.\"https://mirror.example.org\"]\n  skip_verify = true # why not";
        let merged = merge(text, HOST, TABLE).expect("merge");
        assert_eq!(merged, format!("{text}\n\n{TABLE}"));
        assert_eq!(merge(&merged, HOST, TABLE).expect("merge"), merged);
        assert_eq!(merge("", HOST, TABLE).expect("merge"), TABLE);
    }

    #[test]
    fn what_cannot_be_added_to_is_refused() {
        for wrong in ["server = ", "host = { a = {} }\n", "host = 5\n", "text = '''\n"] {
            assert!(merge(wrong, HOST, TABLE).is_err(), "{wrong}");
        }
    }
}
