//! podman, buildah, skopeo, CRI-O: a file of our own in `/etc/containers/registries.conf.d`.
//!
//! Its first part says that this registry is spoken to without TLS; the second makes it a mirror of Docker Hub, whose images
//! it has below `docker.io/`.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use toml::{Table, Value};

use super::speaks::{Proofs, Speaks};
use super::{Change, below, read};

const FILE: &str = "/etc/containers/registries.conf.d/larder.conf";
/// Where they look for who vouches for a registry, and for what to show there, when the user's own `.config/containers/certs.d` has nothing.
const CERTIFICATES: &str = "/etc/containers/certs.d";
const HUB: &str = "docker.io";

/// What has to change for registries at these addresses.
pub(super) fn plan(root: &Path, addresses: &[String], speaks: &Speaks) -> anyhow::Result<Vec<Change>> {
    let path = below(root, FILE);
    let before = read(&path)?;
    let after = match &before {
        None => whole(addresses, speaks),
        Some(text) => merge(text, addresses, speaks).with_context(|| format!("add to {}; mend it, or move it away", path.display()))?,
    };
    let mut changes = speaks.files(root, CERTIFICATES, addresses)?;
    changes.push(Change { path, before, after, is_secret: false });
    Ok(changes)
}

fn own(address: &str, speaks: &Speaks) -> String {
    format!("[[registry]]\nlocation = \"{address}\"\n{}", insecure(speaks))
}

fn insecure(speaks: &Speaks) -> &'static str {
    if speaks.is_plain() { "insecure = true\n" } else { "" }
}

fn hub(addresses: &[String], speaks: &Speaks) -> String {
    let mirror = |address: &String| format!("\n[[registry.mirror]]\nlocation = \"{address}/{HUB}\"\n{}", insecure(speaks));
    let mirrors: String = addresses.iter().map(mirror).collect();
    format!("[[registry]]\nprefix = \"{HUB}\"\nlocation = \"{HUB}\"\n{mirrors}")
}

fn whole(addresses: &[String], speaks: &Speaks) -> String {
    let own: String = addresses.iter().map(|address| own(address, speaks) + "\n").collect();
    own + &hub(addresses, speaks)
}

/// The text with what it lacks behind it.
fn merge(text: &str, addresses: &[String], speaks: &Speaks) -> anyhow::Result<String> {
    let settings: Table = text.parse()?;
    let registries = match settings.get("registry") {
        None => &[][..],
        Some(Value::Array(registries)) => registries.as_slice(),
        Some(_) => bail!("registry is no list"),
    };
    let text_of = |table: &Value, key: &str| table.get(key).and_then(Value::as_str).map(str::to_owned);
    // As this program wrote it for other addresses: nobody's own words are in it.
    let earlier: Vec<_> = registries.iter().filter_map(|table| text_of(table, "location")).filter(|location| location != HUB).collect();
    let is_ours = |speaks: &Speaks| whole(&earlier, speaks) == text;
    if text.trim().is_empty() || !earlier.is_empty() && (is_ours(&Speaks::Plain) || is_ours(&Speaks::Tls(Proofs::default()))) {
        return Ok(whole(addresses, speaks));
    }
    let of =
        |prefix: &str| registries.iter().find(|table| text_of(table, "prefix").or(text_of(table, "location")).as_deref() == Some(prefix));
    let mut merged = text.to_owned();
    for address in addresses {
        match of(address) {
            None => append(&mut merged, &own(address, speaks)),
            Some(table) => ensure!(
                !speaks.is_plain() || table.get("insecure").and_then(Value::as_bool) == Some(true),
                "it has an entry for {address} without insecure = true, which has to be added there"
            ),
        }
    }
    match of(HUB) {
        None => append(&mut merged, &hub(addresses, speaks)),
        Some(table) => {
            let mirrors = table.get("mirror").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for address in addresses {
                let there = mirrors.iter().any(|mirror| text_of(mirror, "location") == Some(format!("{address}/{HUB}")));
                ensure!(
                    there,
                    "it has an entry for {HUB}, to which a [[registry.mirror]] with location = \"{address}/{HUB}\" and insecure = true has to be added"
                );
            }
        }
    }
    merged.parse::<Table>().context("it has a form that can't be added to")?;
    Ok(merged)
}

fn append(text: &mut String, part: &str) {
    if !text.is_empty() {
        text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
    }
    text.push_str(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "127.0.0.1:5000";

    fn whole(address: &str) -> String {
        super::whole(&[address.to_owned()], &Speaks::Plain)
    }

    fn hub(address: &str) -> String {
        super::hub(&[address.to_owned()], &Speaks::Plain)
    }

    fn merge(text: &str, address: &str) -> anyhow::Result<String> {
        super::merge(text, &[address.to_owned()], &Speaks::Plain)
    }

    #[test]
    fn several_nodes_are_mirrors_in_their_order() {
        let nodes = ["a:1".to_owned(), "b:1".to_owned()];
        let text = super::whole(&nodes, &Speaks::Plain);
        let parsed: Table = text.parse().expect("TOML");
        let registries = parsed["registry"].as_array().expect("a list");
        assert_eq!(registries.len(), 3);
        let mirrors = registries[2]["mirror"].as_array().expect("a list");
        assert_eq!(
            mirrors.iter().map(|mirror| mirror["location"].as_str()).collect::<Vec<_>>(),
            [Some("a:1/docker.io"), Some("b:1/docker.io")]
        );
        assert_eq!(super::merge(&text, &nodes, &Speaks::Plain).expect("merge"), text);
        let turned = ["b:1".to_owned(), "a:1".to_owned()];
        assert_eq!(super::merge(&text, &turned, &Speaks::Plain).expect("merge"), super::whole(&turned, &Speaks::Plain));
        assert_eq!(merge(&text, ADDRESS).expect("merge"), whole(ADDRESS));
    }

    #[test]
    fn the_file_says_two_things() {
        let text = whole(ADDRESS);
        let parsed: Table = text.parse().expect("TOML");
        let registries = parsed["registry"].as_array().expect("a list");
        assert_eq!(registries[0]["location"].as_str(), Some(ADDRESS));
        assert_eq!(registries[0]["insecure"].as_bool(), Some(true));
        assert_eq!(registries[1]["mirror"][0]["location"].as_str(), Some("127.0.0.1:5000/docker.io"));
        assert_eq!(merge(&text, ADDRESS).expect("merge"), text);
        assert_eq!(merge("", ADDRESS).expect("merge"), text);
    }

    #[test]
    fn another_address_replaces_what_was_written_before_and_leaves_what_people_wrote() {
        assert_eq!(merge(&whole("10.0.0.7:5000"), ADDRESS).expect("merge"), whole(ADDRESS));
        let mine = "# mine\nunqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"10.0.0.7:5000\"\nblocked = true\n";
        assert_eq!(merge(mine, ADDRESS).expect("merge"), format!("{mine}\n{}\n{}", own(ADDRESS, &Speaks::Plain), hub(ADDRESS)));
    }

    #[test]
    fn a_registry_with_tls_is_not_called_insecure_also_after_plain_http() {
        let tls = Speaks::private("PEM");
        let text = super::merge(&whole(ADDRESS), &[ADDRESS.to_owned()], &tls).expect("merge");
        assert!(!text.contains("insecure") && text.contains(ADDRESS), "{text}");
        assert_eq!(merge(&text, ADDRESS).expect("merge"), whole(ADDRESS));
        let root = tempfile::tempdir().expect("a temp folder");
        let changes = plan(root.path(), &[ADDRESS.to_owned()], &tls).expect("a plan");
        assert_eq!(changes[0].path, root.path().join("etc/containers/certs.d/127.0.0.1:5000/ca.crt"));
    }

    #[test]
    fn what_stands_against_it_is_refused() {
        for wrong in [
            "[[registry]]\nlocation = \"docker.io\"\n",
            "[[registry]]\nlocation = \"127.0.0.1:5000\"\n",
            "registry = 5\n",
            "registry = []\n",
            "[[registry]\n",
        ] {
            assert!(merge(wrong, ADDRESS).is_err(), "{wrong}");
        }
    }
}
