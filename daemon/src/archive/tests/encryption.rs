//! A bucket whose packs and checkpoints are encrypted: who gets what out of it, and what its damage costs.

use std::path::{Path, PathBuf};

use super::checkpoints::url;
use super::*;

const IDENTITY: &str = include_str!("../../../testdata/test-identity.txt");
const OTHER: &str = include_str!("../../../testdata/other-test-identity.txt");

fn identities(text: &str) -> Vec<Arc<Identity>> {
    age::parse_identities("test", text).expect("identities")
}

/// Encrypts to the test's identity, and reads by these.
fn keyring(read: &str) -> Keyring {
    let identities = if read.is_empty() { Vec::new() } else { identities(read) };
    Keyring::new(vec![self::identities(IDENTITY)[0].recipient()], identities)
}

fn with(text: &str) -> RestoreOptions {
    RestoreOptions { identities: identities(text), ..RestoreOptions::default() }
}

/// Every file of a bucket.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn i7_what_is_encrypted_comes_back_by_an_identity_and_by_nothing_else() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (first, layer) = (node_with(folder.path(), 1, keyring("")).await, layer());
    push(&first.store, "v1", &[b"{\"a config\":1}", &layer, b"a small layer"]);
    let pack = first.archive.flush().await.expect("flushed").remove(0);
    assert!(pack.key.ends_with(".tar.age"), "{}", pack.key);
    let checkpoint = first.archive.checkpoint().await.expect("a checkpoint");
    assert!(checkpoint.ends_with(".age"), "{checkpoint}");
    push(&first.store, "v2", &[b"{\"a config\":1}", &layer, b"another"]);
    first.archive.flush().await.expect("flushed");
    let verified = first.archive.verify(None, false).await.expect("listed");
    assert!(verified.is_whole() && verified.orphans.is_empty(), "{verified:?}");
    // Neither content nor names.
    for file in files(folder.path()) {
        let bytes = std::fs::read(&file).expect("readable");
        for part in [&b"a small layer"[..], b"a config", b"team/app", b"oci-layout", &layer[..64], &layer[layer.len() - 64..]] {
            assert!(!has(&bytes, part), "{} has {}", file.display(), part.escape_ascii());
        }
    }
    // The one that wrote it can't read it, and says what it lacks.
    let refused = first.archive.verify(Some("1/1".parse().expect("all")), true).await;
    assert!(matches!(&refused, Err(Error::Locked { .. })), "{refused:?}");
    assert_eq!(first.archive.status().await.expect("a status").packs, 2, "nothing was taken for damaged");

    let second = node(&own.path().join("second"), 2).await;
    let refused = second.archive.restore(&url(folder.path()), RestoreOptions::default()).await.expect_err("no identity").to_string();
    assert!(refused.contains("is encrypted, and this node has no identity") && refused.contains("archive.identity_file"), "{refused}");
    let refused = second.archive.restore(&url(folder.path()), with(OTHER)).await.expect_err("another's").to_string();
    assert!(refused.contains("none of this node's identities opens it"), "{refused}");
    let before = second.archive.inner.ledger.tally().requests;
    let restored = second.archive.restore(&url(folder.path()), with(IDENTITY)).await.expect("restored");
    assert_eq!((restored.tags, restored.packs, restored.skipped.len()), (2, 1, 0), "{restored:?}");
    let after = second.archive.inner.ledger.tally().requests;
    // The mark; header, end and body of the checkpoint; header and end of the pack behind it.
    assert_eq!((after.list - before.list, after.get - before.get), (2, 1 + 3 + 2));
    // A blob is one ranged GET, and the key of a pack that was not met before is another.
    for (blob, requests) in [(&layer[..], 2), (b"a small layer", 1), (b"another", 1), (b"{\"a config\":1}", 1)] {
        let before = gets(&second);
        assert!(pull(&second, blob).await);
        assert_eq!(gets(&second) - before, requests, "{}", blob.escape_ascii());
    }
}

#[tokio::test]
async fn f27_what_is_put_again_is_encrypted_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node_with(folder.path(), 1, keyring("")).await;
    push(&node.store, "v1", &[b"{}", &layer()]);
    node.flaky.failures.store(2, Ordering::SeqCst);
    let mut seen = Vec::new();
    for landed in [false, false, true] {
        assert_eq!(node.archive.flush().await.is_ok(), landed);
        let key = node.flaky.keys.lock().expect("no panic").last().cloned().expect("a put");
        seen.push((key.clone(), std::fs::read(folder.path().join(key)).expect("it landed")));
    }
    assert!(seen.iter().all(|(key, bytes)| *key == seen[0].0 && *bytes == seen[0].1));
    // Another pack has another key.
    push(&node.store, "v2", &[b"{}", b"more"]);
    node.archive.flush().await.expect("flushed");
    let key = node.flaky.keys.lock().expect("no panic").last().cloned().expect("a put");
    let header = |bytes: &[u8]| bytes[..300].to_vec();
    assert!(header(&std::fs::read(folder.path().join(key)).expect("there")) != header(&seen[0].1));
}

#[tokio::test]
async fn f8_nothing_is_evicted_for_a_pack_that_can_not_be_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    for (read, can) in [("", false), (OTHER, false), (IDENTITY, true)] {
        let own = folder.path().join(can.to_string()).join(read.len().to_string());
        let node = node_with(&own, 1, keyring(read)).await;
        push(&node.store, "v1", &[b"{}", b"layer"]);
        node.archive.flush().await.expect("flushed");
        let (_, archived) = node.store.packs(None, 9).expect("readable").remove(0);
        assert!(!node.archive.gives_back(&archived, true), "not before it was tried");
        let mut reads = false;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            reads = node.archive.gives_back(&archived, true);
            if reads {
                break;
            }
        }
        assert_eq!(reads, can, "{}", read.lines().next().unwrap_or("no identity"));
        // What can't be read is not asked for again and again.
        assert!(gets(&node) <= 2, "the mark, and the header");
        // Plain packs are read by everybody.
        let plain = Archived { object_key: archived.object_key.trim_end_matches(".age").to_owned(), ..archived };
        assert!(node.archive.gives_back(&plain, true));
    }
}

#[tokio::test]
async fn f35_a_flipped_bit_costs_what_lies_in_its_64_kib() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (first, layer) = (node_with(folder.path(), 1, keyring(IDENTITY)).await, layer());
    push(&first.store, "v1", &[b"{}", &layer, b"small"]);
    let key = first.archive.flush().await.expect("flushed").remove(0).key;
    let mut bytes = std::fs::read(folder.path().join(&key)).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(folder.path().join(&key), bytes).expect("written");
    let verified = first.archive.verify(Some("1/1".parse().expect("all")), false).await.expect("looked").read.expect("read");
    assert_eq!(verified.damaged.iter().map(|damaged| damaged.digest).collect::<Vec<_>>(), [Digest::sha256(&layer)]);
    assert!(verified.unreadable.is_empty(), "{verified:?}");
    let second = node(&own.path().join("second"), 2).await;
    second.archive.restore(&url(folder.path()), with(IDENTITY)).await.expect("its end is whole");
    assert!(pull(&second, b"small").await && pull(&second, b"{}").await);
    assert!(second.archive.inner.fill_all().await);
    let progress = second.archive.restoring().await.expect("its progress");
    assert_eq!((progress.state.as_str(), progress.lost_blobs), ("done", vec![Digest::sha256(&layer)]));
}

#[tokio::test]
async fn f31_what_a_gateway_cut_short_shows_in_the_listing() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = node_with(folder.path(), 1, keyring("")).await;
    push(&node.store, "v1", &[b"{}", &layer()]);
    let key = node.archive.flush().await.expect("flushed").remove(0).key;
    let whole = std::fs::read(folder.path().join(&key)).expect("readable");
    for cut in [1, 15, 16, 17, 65_552, whole.len() - 2048, whole.len()] {
        std::fs::write(folder.path().join(&key), &whole[..whole.len() - cut]).expect("written");
        let verified = node.archive.verify(None, false).await.expect("looked");
        assert_eq!(verified.wrong_size.len(), 1, "{cut}: {verified:?}");
    }
    std::fs::write(folder.path().join(&key), whole).expect("written");
    assert!(node.archive.verify(None, false).await.expect("looked").is_whole());
}

#[tokio::test]
async fn s37_headers_of_others_are_told_and_not_believed() {
    let (folder, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = node_with(folder.path(), 1, keyring("")).await;
    push(&first.store, "v1", &[b"{}", b"one"]);
    let old = first.archive.flush().await.expect("flushed").remove(0).key;
    push(&first.store, "v2", &[b"{}", b"two"]);
    let new = first.archive.flush().await.expect("flushed").remove(0).key;
    // An older pack under the name of a newer one: it opens, and is not the one that it is called.
    std::fs::copy(folder.path().join(&old), folder.path().join(&new)).expect("copied");
    let second = node(&own.path().join("second"), 2).await;
    let restored = second.archive.restore(&url(folder.path()), with(IDENTITY)).await.expect("what there is");
    assert_eq!((restored.tags, restored.skipped.len()), (1, 1), "{restored:?}");
    assert!(restored.skipped[0].why.contains("another pack than its name"), "{restored:?}");
    // A pack whose header is damaged is for nobody: all stops, unless the loss is accepted.
    let mut bytes = std::fs::read(folder.path().join(&old)).expect("readable");
    // Another letter of base64: what is none is no header, and a pack without one is left out.
    bytes[100] = if bytes[100] == b'A' { b'B' } else { b'A' };
    std::fs::write(folder.path().join(&new), bytes).expect("written");
    let third = node(&own.path().join("third"), 3).await;
    assert!(third.archive.restore(&url(folder.path()), with(IDENTITY)).await.is_err());
    let options = RestoreOptions { allow_gaps: true, ..with(IDENTITY) };
    let restored = third.archive.restore(&url(folder.path()), options).await.expect("what there is");
    assert_eq!((restored.tags, restored.skipped.len()), (1, 1), "{restored:?}");
}
