//! containerd: a folder for each registry in `/etc/containerd/certs.d`, with a `hosts.toml` that says which hosts to ask.
//!
//! One folder is this registry's own, so that it is spoken to without TLS. The other is Docker Hub's, where this registry
//! becomes a mirror. There is none for all other registries (`_default`): containerd would ask for every registry's images
//! here, and two registries may have different images of one name.

use std::path::Path;

use anyhow::{Context, ensure};
use toml::{Table, Value};

use super::speaks::{Paths, Speaks};
use super::{Change, below, read};

const FOLDER: &str = "/etc/containerd/certs.d";
const HUB: &str = "https://registry-1.docker.io";
const READ: &[&str] = &["pull", "resolve"];
const WRITE: &[&str] = &["pull", "resolve", "push"];

/// A registry that is asked, and for what.
struct Host {
    url: String,
    capabilities: &'static [&'static str],
    /// What both sides prove themselves by.
    proofs: Paths,
}

/// What has to change for registries at these addresses: each one's own folder, where the others stand in for it when it is down, and
/// Docker Hub's.
pub(super) fn plan(root: &Path, addresses: &[String], speaks: &Speaks) -> anyhow::Result<Vec<Change>> {
    let host = |address: &str, capabilities| Host { url: speaks.url(address), capabilities, proofs: speaks.paths(FOLDER, address) };
    let mut changes = speaks.files(root, FOLDER, addresses)?;
    for own in addresses {
        let others = addresses.iter().filter(|other| *other != own).map(|other| host(other, READ));
        let hosts: Vec<_> = [host(own, WRITE)].into_iter().chain(others).collect();
        changes.push(change(root, own, &speaks.url(own), &hosts)?);
    }
    let hosts: Vec<_> = addresses.iter().map(|address| host(address, READ)).collect();
    changes.push(change(root, "docker.io", HUB, &hosts)?);
    Ok(changes)
}

fn change(root: &Path, registry: &str, server: &str, hosts: &[Host]) -> anyhow::Result<Change> {
    let path = below(root, &format!("{FOLDER}/{registry}/hosts.toml"));
    let before = read(&path)?;
    let after = match &before {
        None => whole(server, hosts),
        // As this program wrote it, perhaps in another order: nobody's own words are in it.
        Some(text) if is_ours(text) => whole(server, hosts),
        Some(text) => {
            let mut merged = text.clone();
            for host in hosts {
                let table = table(host);
                merged = merge(&merged, &host.url, &table)
                    .with_context(|| format!("add to {}; mend it, or add this by hand: {}", path.display(), table.replace('\n', " ")))?;
            }
            merged
        }
    };
    Ok(Change { path, before, after, is_secret: false })
}

fn table(host: &Host) -> String {
    let ca = host.proofs.ca.as_ref().map_or(String::new(), |ca| format!("ca = {ca:?}\n"));
    let client = host.proofs.client.as_ref().map_or(String::new(), |(certificate, key)| format!("client = [[{certificate:?}, {key:?}]]\n"));
    format!("[host.{:?}]\ncapabilities = {:?}\n{ca}{client}", host.url, host.capabilities)
}

fn whole(server: &str, hosts: &[Host]) -> String {
    let tables: Vec<_> = hosts.iter().map(table).collect();
    format!("server = {server:?}\n\n{}", tables.join("\n"))
}

/// Whether a text is what [`whole`] writes for some server and some hosts.
fn is_ours(text: &str) -> bool {
    let quoted = |line: &str, before: &str, after: &str| Some(line.strip_prefix(before)?.strip_suffix(after)?.to_owned());
    let mut hosts: Vec<Host> = Vec::new();
    let mut server = None;
    for line in text.lines() {
        if let Some(url) = quoted(line, "server = \"", "\"") {
            server = Some(url);
        } else if let Some(url) = quoted(line, "[host.\"", "\"]") {
            hosts.push(Host { url, capabilities: READ, proofs: Paths::default() });
        } else if let Some(host) = hosts.last_mut() {
            if line.starts_with("capabilities") && line.contains("push") {
                host.capabilities = WRITE;
            }
            host.proofs.ca = quoted(line, "ca = \"", "\"").or(host.proofs.ca.take());
            let pair = quoted(line, "client = [[\"", "\"]]").and_then(|pair| {
                let (certificate, key) = pair.split_once("\", \"")?;
                Some((certificate.to_owned(), key.to_owned()))
            });
            host.proofs.client = pair.or(host.proofs.client.take());
        }
    }
    !hosts.is_empty() && server.is_some_and(|server| whole(&server, &hosts) == text)
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
        let changes = plan(root.path(), &["127.0.0.1:5000".to_owned()], &Speaks::Plain).expect("a plan");
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
    fn several_nodes_stand_in_for_each_other_in_their_order_also_when_it_changes() {
        let root = tempfile::tempdir().expect("a temp folder");
        let text_of = |order: [&str; 2]| {
            let changes = plan(root.path(), &order.map(str::to_owned), &Speaks::Plain).expect("a plan");
            for change in &changes {
                std::fs::create_dir_all(change.path.parent().expect("a folder")).expect("make a folder");
                std::fs::write(&change.path, &change.after).expect("write");
            }
            changes.into_iter().map(|change| change.after).collect::<Vec<_>>()
        };
        let hosts = |text: &str| text.lines().filter_map(|line| line.strip_prefix("[host.").map(str::to_owned)).collect::<Vec<_>>();
        let (a, b) = ("\"http://a:1\"]".to_owned(), "\"http://b:1\"]".to_owned());
        let texts = text_of(["a:1", "b:1"]);
        assert_eq!(
            texts.iter().map(|text| hosts(text)).collect::<Vec<_>>(),
            [[&a, &b], [&b, &a], [&a, &b]].map(|of| of.map(String::clone))
        );
        assert!(texts[0].contains("push") && !texts[2].contains("push"));
        let again = text_of(["b:1", "a:1"]);
        assert_eq!(hosts(&again[2]), [b.clone(), a.clone()]);
        assert_eq!((&again[0], &again[1]), (&texts[1], &texts[0]));
    }

    #[test]
    fn a_registry_with_tls_is_named_with_its_authority_also_after_plain_http() {
        let root = tempfile::tempdir().expect("a temp folder");
        let own = root.path().join("etc/containerd/certs.d/a:1/hosts.toml");
        for speaks in [Speaks::Plain, Speaks::private("PEM"), Speaks::mutual("PEM"), Speaks::public(), Speaks::Plain] {
            for change in plan(root.path(), &["a:1".to_owned()], &speaks).expect("a plan") {
                std::fs::create_dir_all(change.path.parent().expect("a folder")).expect("make a folder");
                std::fs::write(&change.path, &change.after).expect("write");
            }
            let text = std::fs::read_to_string(&own).expect("read");
            let read: Table = text.parse().expect("TOML");
            let hosts = read["host"].as_table().expect("hosts");
            let ca = hosts[&speaks.url("a:1")].get("ca").and_then(Value::as_str);
            let expected =
                [Speaks::private("PEM"), Speaks::mutual("PEM")].contains(&speaks).then_some("/etc/containerd/certs.d/a:1/ca.crt");
            let client = hosts[&speaks.url("a:1")].get("client").map(|client| client[0][1].as_str());
            assert_eq!(client, (speaks == Speaks::mutual("PEM")).then_some(Some("/etc/containerd/certs.d/a:1/client.key")));
            assert_eq!((read["server"].as_str(), hosts.len(), ca), (Some(&*speaks.url("a:1")), 1, expected), "{text}");
        }
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
