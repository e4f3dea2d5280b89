//! BuildKit: `/etc/buildkit/buildkitd.toml`, where each registry has a table.
//!
//! Docker Hub gets this registry as a mirror; the registry's own table says whether it is spoken to without TLS, or who vouches for it.

use std::path::Path;

use anyhow::{Context, ensure};
use toml::{Table, Value};

use super::speaks::Speaks;
use super::{Change, below, read};

const FILE: &str = "/etc/buildkit/buildkitd.toml";
const CERTIFICATES: &str = "/etc/buildkit/certs.d";
const HUB: &str = "docker.io";

/// What has to change for registries at these addresses.
pub(super) fn plan(root: &Path, addresses: &[String], speaks: &Speaks) -> anyhow::Result<Vec<Change>> {
    let path = below(root, FILE);
    let before = read(&path)?;
    let after = merge(before.as_deref().unwrap_or_default(), addresses, speaks).with_context(|| {
        format!("add to {}; mend it, or add by hand what `larder setup buildkit --root /tmp/empty` prints", path.display())
    })?;
    let mut changes = speaks.files(root, CERTIFICATES, addresses)?;
    changes.push(Change { path, before, after, is_secret: false });
    Ok(changes)
}

fn own(address: &str, speaks: &Speaks) -> String {
    let paths = speaks.paths(CERTIFICATES, address);
    let plain = if speaks.is_plain() { "http = true\n" } else { "" };
    let ca = paths.ca.map_or(String::new(), |ca| format!("ca = [{ca:?}]\n"));
    let client =
        paths.client.map_or(String::new(), |(certificate, key)| format!("keypair = [{{ key = {key:?}, cert = {certificate:?} }}]\n"));
    format!("[registry.{address:?}]\n{plain}{ca}{client}")
}

fn hub(addresses: &[String]) -> String {
    format!("[registry.{HUB:?}]\nmirrors = {addresses:?}\n")
}

fn whole(addresses: &[String], speaks: &Speaks) -> String {
    let own: String = addresses.iter().map(|address| own(address, speaks) + "\n").collect();
    own + &hub(addresses)
}

/// The text with what it lacks behind it.
fn merge(text: &str, addresses: &[String], speaks: &Speaks) -> anyhow::Result<String> {
    let settings: Table = text.parse()?;
    let registries = match settings.get("registry") {
        None => Table::new(),
        Some(Value::Table(registries)) => registries.clone(),
        Some(_) => anyhow::bail!("registry is no table"),
    };
    // As this program wrote it, perhaps for other addresses: nobody's own words are in it.
    let mirrors = |table: &Value| -> Vec<String> {
        let list = table.get("mirrors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let earlier = registries.get(HUB).map(mirrors).unwrap_or_default();
    let is_ours = |speaks: &Speaks| whole(&earlier, speaks) == text;
    if text.trim().is_empty() || Speaks::forms().any(|form| is_ours(&form)) {
        return Ok(whole(addresses, speaks));
    }
    let mut merged = text.to_owned();
    let mut append = |part: &str| {
        merged.push_str(if merged.ends_with('\n') { "\n" } else { "\n\n" });
        merged.push_str(part);
    };
    for address in addresses {
        match registries.get(address) {
            None => append(&own(address, speaks)),
            Some(table) => {
                let wanted: Table = own(address, speaks).parse()?;
                let wanted = wanted["registry"][address].as_table().cloned().unwrap_or_default();
                let has = wanted.iter().all(|(key, value)| table.get(key) == Some(value));
                ensure!(has, "it has a table for {address} that says something else; there has to stand: {}", wanted.to_string().trim());
            }
        }
    }
    match registries.get(HUB) {
        None => append(&hub(addresses)),
        Some(table) => {
            let there = mirrors(table);
            let all = addresses.iter().all(|address| there.contains(address));
            ensure!(all, "it has a table for {HUB}, whose mirrors have to begin with {addresses:?}");
        }
    }
    merged.parse::<Table>().context("it has a form that can't be added to")?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<String> {
        vec!["127.0.0.1:5000".to_owned()]
    }

    #[test]
    fn a_new_file_says_how_the_registry_is_spoken_to_and_that_it_is_a_mirror() {
        for (speaks, keys) in [
            (Speaks::Plain, vec!["http"]),
            (Speaks::private("PEM"), vec!["ca"]),
            (Speaks::public(), vec![]),
            (Speaks::mutual("PEM"), vec!["ca", "keypair"]),
        ] {
            let text = merge("", &addresses(), &speaks).expect("merge");
            let parsed: Table = text.parse().expect("TOML");
            let own = parsed["registry"]["127.0.0.1:5000"].as_table().expect("its table");
            assert_eq!(own.keys().map(String::as_str).collect::<Vec<_>>(), keys, "{text}");
            assert_eq!(parsed["registry"][HUB]["mirrors"][0].as_str(), Some("127.0.0.1:5000"));
            assert_eq!(merge(&text, &addresses(), &speaks).expect("merge"), text);
            // What was ours is written anew for other addresses, and when TLS comes.
            let other = vec!["a:1".to_owned(), "b:1".to_owned()];
            assert_eq!(merge(&text, &other, &Speaks::Plain).expect("merge"), whole(&other, &Speaks::Plain));
        }
    }

    #[test]
    fn what_people_wrote_stays_and_what_stands_against_it_is_refused() {
        let mine = "# mine\ndebug = true\n[registry.\"10.0.0.7:5000\"]\n  http = true\n";
        let merged = merge(mine, &addresses(), &Speaks::Plain).expect("merge");
        assert_eq!(merged, format!("{mine}\n{}\n{}", own("127.0.0.1:5000", &Speaks::Plain), hub(&addresses())));
        assert_eq!(merge(&merged, &addresses(), &Speaks::Plain).expect("merge"), merged);
        for wrong in [
            "registry = 5\n",
            "[registry.\"127.0.0.1:5000\"]\nhttp = false\n",
            "[registry.\"docker.io\"]\nmirrors = [\"mirror.example.org\"]\n",
            "registry = {}\n",
            "[registry\n",
        ] {
            assert!(merge(wrong, &addresses(), &Speaks::Plain).is_err(), "{wrong}");
        }
    }
}
