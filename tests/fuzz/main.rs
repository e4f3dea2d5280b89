//! Names, tags, digests, references and manifests out of strangers' hands. What only the front door reads (addresses, queries, ranges) is
//! fuzzed there, in `registry/fuzz.rs`, because nobody else can reach it.
//!
//! `make fuzz` runs all of it for longer.

mod manifests;

use larder_harness::fuzz;
use larder_protocol::digest::{Algorithm, Digest};
use larder_protocol::name::{NAME_LENGTH_MAX, Reference, RepositoryName, TAG_LENGTH_MAX, Tag};
use regex::Regex;

/// Of the specification, "Pulling manifests".
const NAME: &str = r"\A[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\z";
const TAG: &str = r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\z";
const DIGEST: &str = r"\A(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})\z";
const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Feeds texts to a parser: it takes exactly what `grammar` and `limit` say, and what it took prints as it was and is read again.
fn check<T>(target: &str, corpus: &[&str], words: &[&str], grammar: &str, limit: usize)
where
    T: std::str::FromStr + std::fmt::Display + PartialEq,
{
    let grammar = Regex::new(grammar).expect("a grammar");
    fuzz(target, corpus, words, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let parsed = text.parse::<T>().ok();
        assert_eq!(parsed.is_some(), text.len() <= limit && grammar.is_match(text), "taken, and by its grammar");
        if let Some(parsed) = &parsed {
            assert_eq!(parsed.to_string(), text);
            assert!(parsed.to_string().parse::<T>().is_ok_and(|again| again == *parsed));
        }
        parsed.is_some().into()
    });
}

#[test]
fn s1_repository_names_are_what_the_specification_says() {
    let longest = "a".repeat(NAME_LENGTH_MAX);
    let corpus = ["library/busybox", "a.b/c_d/e__f/g-h/i---j", "ghcr.io/x/y", "0", &longest, "../../etc/x", "a//b"];
    check::<RepositoryName>(
        "repository names",
        &corpus,
        &["__", "___", "--", "..", "/", "._", "a", "%2e", "_catalog", "blobs"],
        NAME,
        NAME_LENGTH_MAX,
    );
}

#[test]
fn s1_tags_are_what_the_specification_says() {
    let longest = "t".repeat(TAG_LENGTH_MAX);
    check::<Tag>("tags", &["latest", "_x", "1.0-rc.1", "UPPER", &longest], &["-", ".", "_", "..", "é", ":"], TAG, TAG_LENGTH_MAX);
}

#[test]
fn s2_digests_are_what_the_specification_says() {
    let (short, long) = (format!("sha256:{HEX}"), format!("sha512:{HEX}{HEX}"));
    let words = ["sha256:", "sha512:", "SHA256:", "md5:", ":", HEX, "A", "g"];
    check::<Digest>("digests", &[&short, &long], &words, DIGEST, long.len());
    fuzz(
        "keys of digests",
        &["\0aaaaaaaabbbbbbbbccccccccdddddddd", "\x01aaaaaaaabbbbbbbb"],
        &["\0", "\x01", "aaaaaaaabbbbbbbb"],
        |input| {
            let digest = Digest::from_key(input);
            assert!(digest.is_none_or(|digest| digest.to_key() == input), "a key is the only one of its digest");
            digest.is_some().into()
        },
    );
}

#[test]
fn s2_references_are_tags_or_digests() {
    let digest = format!("sha256:{HEX}");
    let grammar = format!("{TAG}|{DIGEST}");
    check::<Reference>(
        "references",
        &["latest", "v1.0", &digest],
        &["sha256:", "sha512:", ":", HEX, "-", "."],
        &grammar,
        digest.len() + 64,
    );
    check::<Algorithm>("algorithms", &["sha256", "sha512", "sha384"], &["sha", "256", "512"], r"\A(sha256|sha512)\z", 6);
}
