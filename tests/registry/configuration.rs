//! S43: configurations that cannot be meant are refused with the place and the mend, by `check-config` and by `serve`.

use larder_harness::Node;
use std::process::Output;

fn check(what: &str, text: &str, place: &str, words: &[&str]) {
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).create();
    let file = node.scratch().join("larder.toml");
    std::fs::write(&file, text).expect("write a configuration");
    let path = file.to_str().expect("a temporary folder has a plain name");
    for command in [["check-config", "--config", path], ["serve", "--config", path]] {
        let Output { status, stderr, .. } = node.command(command).output().expect("run larder");
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(2), "{what}: {said}");
        assert!(said.contains(&format!("larder.toml:{place}")), "{what}: no place in: {said}");
        for word in words {
            assert!(said.contains(word), "{what}: no {word:?} in: {said}");
        }
    }
    assert!(!node.data_dir().exists(), "{what}: a data folder was made");
}

#[test]
fn s43_an_unknown_key_is_named_with_its_line() {
    check("a misspelt key", "[http]\n\nlisten = \"127.0.0.1:5000\"\ninsecur = true\n", "4", &["insecur"]);
    check("an unknown section", "[node]\nname = \"a\"\n[htttp]\nlisten = \"127.0.0.1:5000\"\n", "3", &["htttp"]);
}

#[test]
fn s43_port_0_is_refused() {
    check("port 0", "[http]\nlisten = \"127.0.0.1:0\"\n", "2", &["listen", "port"]);
    check("the peers' port 0", "[peers]\nlisten = \"127.0.0.1:0\"\n", "2", &["listen", "port"]);
}

#[test]
fn s43_plain_http_off_loopback_has_to_be_asked_for() {
    check("all addresses", "[http]\nlisten = \"0.0.0.0:5000\"\n", "2", &["insecure"]);
    check("all IPv6 addresses", "[http]\nlisten = \"[::]:5000\"\n", "2", &["insecure"]);
}

#[test]
fn s43_sizes_and_numbers_that_cannot_be_are_refused() {
    for (line, key) in [
        ("[registry]\nmanifest_size_max = \"4 Mib of text\"\n", "manifest_size_max"),
        ("[registry]\nblob_size_max = \"99999999999999999999TiB\"\n", "blob_size_max"),
        ("[registry]\nuploads_max = -1\n", "uploads_max"),
        ("[registry]\nuploads_max = 99999999999999999999999\n", ""),
        ("[http]\nheader_timeout = \"soon\"\n", "header_timeout"),
        ("[peers]\nreplicas = 2.5\n", "replicas"),
        ("[log]\nformat = \"xml\"\n", "format"),
    ] {
        check(line, line, "2", &[key]);
    }
    check("no TOML at all", "this is = = not\n", "1", &[]);
}

#[test]
fn a_good_configuration_is_said_to_be_good() {
    let node = Node::builder(env!("CARGO_BIN_EXE_larder")).create();
    let file = node.scratch().join("larder.toml");
    std::fs::write(&file, "[http]\nlisten = \"0.0.0.0:5000\"\ninsecure = true\n").expect("write a configuration");
    let output = node.command(["check-config", "--config", file.to_str().expect("plain")]).output().expect("run larder");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("{}: ok", file.display()));
}
