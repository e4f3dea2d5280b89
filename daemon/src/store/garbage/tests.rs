//! Collection through the store's door, on one node and between two.

use std::time::Duration;

use super::super::tests::{IMAGE, Place, bytes, image, push, push_image, put, repository, sync, tag};
use super::super::{Error, Store};
use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn idle(store: &Store) -> Vec<IdleLink> {
    store.idle_links(None, 100).expect("readable").0
}

fn digests(links: &[IdleLink]) -> Vec<Digest> {
    links.iter().map(|link| link.digest).collect()
}

fn index(children: &[Digest]) -> Vec<u8> {
    let entries: Vec<_> = children.iter().map(|digest| serde_json::json!({"mediaType": IMAGE, "digest": digest, "size": 1})).collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes()
}

fn attached(store: &Store, name: &str, subject: &Digest, content: &[u8]) -> Digest {
    let blob = push(store, name, content);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image(&[(blob, content.len())])).expect("JSON");
    manifest["subject"] = serde_json::json!({"mediaType": IMAGE, "digest": subject, "size": 1});
    put(store, name, &[], IMAGE, manifest.to_string().as_bytes()).expect("attached")
}

fn is_there(store: &Store, name: &str, digest: &Digest) -> bool {
    store.manifest(&repository(name), digest).expect("readable").is_some()
}

fn stamp(store: &Store, name: &str, of: &str) -> Stamp {
    store.tag(&repository(name), &tag(of)).expect("readable").expect("there").stamp
}

#[test]
fn a_link_goes_when_no_manifest_needs_it_and_its_blob_with_it() {
    let place = Place::new(1);
    let store = place.open();
    let (lost, kept) = (push(&store, "a", b"lost"), push(&store, "b", b"lost"));
    assert_eq!(lost, kept);
    push_image(&store, "a", "latest", b"needed");
    let links = idle(&store);
    assert_eq!(digests(&links), [lost, lost]);
    assert_eq!(digests(&store.collect_links(links[..1].to_vec()).expect("collected")), [lost]);
    assert!(store.link(&repository("a"), &lost).expect("readable").is_none());
    assert!(store.idle_blobs(None, 100).expect("readable").0.is_empty(), "the other repository has it");
    store.collect_links(idle(&store)).expect("collected");
    assert_eq!(store.idle_blobs(None, 100).expect("readable"), (vec![(lost, 4)], None));
}

#[test]
fn lists_are_read_in_parts() {
    let place = Place::new(1);
    let store = place.open();
    let mut all: Vec<_> = (0..10u64).map(|i| push(&store, "a", &bytes(i, 100 + i))).collect();
    all.sort();
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let (part, next) = store.idle_links(from.as_deref(), 3).expect("readable");
        found.extend(digests(&part));
        from = next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(found, all);
    let first = store.collect_links(idle(&store)).map(|gone| gone.len()).expect("collected");
    assert_eq!(first, 10);
    let (part, next) = store.idle_blobs(None, 4).expect("readable");
    assert_eq!((part.len(), next), (4, Some(all[3])));
    let (part, next) = store.idle_blobs(next.as_ref(), 100).expect("readable");
    assert_eq!((part.len(), next), (6, None));
}

#[test]
fn f41_what_a_manifest_came_to_need_meanwhile_stays() {
    let place = Place::new(1);
    let store = place.open();
    let blob = push(&store, "a", b"blob");
    let seen = idle(&store);
    put(&store, "a", &["latest"], IMAGE, &image(&[(blob, 4)])).expect("pushed in between");
    assert!(store.collect_links(seen).expect("nothing to do").is_empty());
    assert!(store.link(&repository("a"), &blob).expect("readable").is_some());
}

#[test]
fn f42_a_link_that_a_client_relied_on_meanwhile_stays() {
    let place = Place::new(1);
    // Everything is due for renewal at once.
    let store = place.open_with(Duration::ZERO);
    let name = repository("a");
    let blob = push(&store, "a", b"blob");
    type Rely = fn(&Store, &RepositoryName, &Digest);
    let ways: [Rely; 3] = [
        |store, name, blob| assert!(store.check_blob(name, blob).expect("readable").is_some()),
        |store, name, blob| assert!(store.mount(name, name, blob).expect("mounted")),
        |store, _, blob| assert_eq!(push(store, "a", b"blob"), *blob),
    ];
    for rely in ways {
        let seen = idle(&store);
        assert_eq!(digests(&seen), [blob]);
        // A clock of milliseconds may stand still, its counter does not.
        rely(&store, &name, &blob);
        assert!(store.collect_links(seen).expect("nothing to do").is_empty());
    }
    assert_eq!(store.collect_links(idle(&store)).expect("collected").len(), 1);
    assert!(store.check_blob(&name, &blob).expect("readable").is_none());
}

#[test]
fn a_fresh_link_is_not_written_again() {
    let place = Place::new(1);
    let store = place.open();
    let blob = push(&store, "a", b"blob");
    let vector = store.vector();
    store.check_blob(&repository("a"), &blob).expect("readable").expect("there");
    push(&store, "a", b"blob");
    assert_eq!(store.vector(), vector);
}

#[test]
fn a_push_elsewhere_wins_over_a_collection_that_did_not_know_of_it() {
    let (here, there) = (Place::new(1), Place::new(2));
    let (here, there) = (here.open(), there.open());
    let blob = push(&here, "a", b"blob");
    sync(&here, &there);
    // One collects, the other pushes a manifest, and neither knows of it.
    let manifest = put(&there, "a", &["latest"], IMAGE, &image(&[(blob, 4)])).expect("pushed there");
    here.collect_links(idle(&here)).expect("collected here");
    sync(&here, &there);
    sync(&there, &here);
    sync(&here, &there);
    for store in [&here, &there] {
        assert!(store.link(&repository("a"), &blob).expect("readable").is_some());
        assert!(is_there(store, "a", &manifest));
    }
}

#[test]
fn a_client_that_deletes_a_blob_which_a_manifest_names_is_obeyed_everywhere() {
    let (here, there) = (Place::new(1), Place::new(2));
    let (here, there) = (here.open(), there.open());
    push_image(&here, "a", "latest", b"blob");
    sync(&here, &there);
    // Two ticks of the clock later at the least, as any delete: only a collector's tombstone is the very next stamp.
    push(&here, "a", b"other");
    assert!(here.unlink(&repository("a"), &Digest::sha256(b"blob")).expect("deleted"));
    sync(&here, &there);
    assert!(there.link(&repository("a"), &Digest::sha256(b"blob")).expect("readable").is_none());
}

#[test]
fn with_a_tag_goes_what_it_alone_held() {
    let place = Place::new(1);
    let store = place.open();
    let (name, blob) = (repository("a"), push(&store, "a", b"blob"));
    let child = put(&store, "a", &[], IMAGE, &image(&[(blob, 4)])).expect("child");
    let shared = push_image(&store, "a", "keep", b"shared");
    let root = put(&store, "a", &["old"], INDEX, &index(&[child, shared])).expect("index");
    let signature = attached(&store, "a", &root, b"signature");
    let of_signature = attached(&store, "a", &signature, b"countersignature");
    let kept = attached(&store, "a", &shared, b"signature of what stays");
    let gone = store.retire_tags(&name, &[(tag("old"), stamp(&store, "a", "old"))]).expect("retired");
    assert_eq!(gone, 4);
    for digest in [root, child, signature, of_signature] {
        assert!(!is_there(&store, "a", &digest));
    }
    assert!(is_there(&store, "a", &shared) && is_there(&store, "a", &kept));
}

#[test]
fn a_tag_that_was_pushed_meanwhile_stays() {
    let place = Place::new(1);
    let store = place.open();
    push_image(&store, "a", "old", b"one");
    let seen = stamp(&store, "a", "old");
    let now = push_image(&store, "a", "old", b"two");
    assert_eq!(store.retire_tags(&repository("a"), &[(tag("old"), seen)]).expect("nothing to do"), 0);
    assert_eq!(store.tag(&repository("a"), &tag("old")).expect("readable").expect("there").digest, now);
}

#[test]
fn s13_what_holds_only_itself_or_each_other_goes() {
    let place = Place::new(1);
    let store = place.open();
    // A manifest whose subject never came, and one attached to it: a chain that nothing holds.
    let loose = attached(&store, "a", &Digest::sha256(b"never pushed"), b"loose");
    let second = attached(&store, "a", &loose, b"second");
    let (found, next) = store.idle_manifests(&repository("a"), None, 100).expect("readable");
    assert_eq!((found.iter().map(|one| one.digest).collect::<Vec<_>>(), next), (vec![loose], None), "the second is held by the first");
    assert_eq!(store.retire_manifests(&repository("a"), &found).expect("retired"), 2);
    assert!(!is_there(&store, "a", &second));
}

#[test]
fn a_wrong_tag_is_undone_from_its_history() {
    let place = Place::new(1);
    let store = place.open();
    let name = repository("a");
    let good = push_image(&store, "a", "latest", b"good");
    let bad = push_image(&store, "a", "latest", b"bad");
    let history = store.tag_history(&name, &tag("latest"), 9).expect("readable");
    assert_eq!(history.iter().map(|version| (version.digest, version.current)).collect::<Vec<_>>(), [(bad, true), (good, false)]);
    assert_eq!(history[1].until, Some(history[0].stamp));
    assert!(store.restore_tag(&name, &tag("latest"), &good).expect("restored"));
    assert!(!store.restore_tag(&name, &tag("latest"), &good).expect("no change"));
    assert_eq!(store.tag(&name, &tag("latest")).expect("readable").expect("there").digest, good);
    assert_eq!(store.tag_history(&name, &tag("latest"), 9).expect("readable").len(), 3);

    assert!(store.delete_tag(&name, &tag("latest")).expect("deleted"));
    let history = store.tag_history(&name, &tag("latest"), 9).expect("readable");
    assert!(!history[0].current && history[0].digest == good && history[0].until > Some(history[0].stamp));
    assert!(store.restore_tag(&name, &tag("latest"), &bad).expect("restored"));
    assert!(matches!(store.restore_tag(&name, &tag("latest"), &Digest::sha256(b"no manifest")), Err(Error::Missing(_))));
    assert!(store.tag_history(&name, &tag("never"), 9).expect("readable").is_empty());
}

#[test]
fn the_history_of_a_tag_is_bounded() {
    let place = Place::new(1);
    let store = place.open();
    for i in 0..120u64 {
        push_image(&store, "a", "busy", &i.to_be_bytes());
        if i < 3 {
            push_image(&store, "a", "calm", &i.to_be_bytes());
        }
    }
    let mut from = None;
    let mut trimmed = 0;
    loop {
        let (count, next) = store.trim_history(from.as_deref(), 110).expect("trimmed");
        trimmed += count;
        from = next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(trimmed, 19, "119 versions were replaced, 100 stay");
    let history = store.tag_history(&repository("a"), &tag("busy"), 1000).expect("readable");
    assert_eq!(history.len(), 101);
    assert_eq!(store.tag_history(&repository("a"), &tag("calm"), 1000).expect("readable").len(), 3);
}

#[test]
fn immutable_tags_keep_their_manifest() {
    let place = Place::new(1);
    let store = place.open();
    let name = repository("team/fixed");
    let first = push_image(&store, "team/fixed", "v1", b"first");
    push_image(&store, "team/fixed", "v1", b"first");
    let second = push_image(&store, "team/fixed", "latest", b"second");
    let refused = |result: Result<()>| assert!(matches!(result, Err(Error::Immutable { .. })), "{result:?}");
    refused(store.restore_tag(&name, &tag("v1"), &second).map(drop));
    refused(store.delete_tag(&name, &tag("v1")).map(drop));
    refused(store.delete_manifest(&name, &first).map(drop));
    let bytes = store.manifest(&name, &second).expect("readable").expect("there").bytes;
    refused(put(&store, "team/fixed", &["v1"], IMAGE, &bytes).map(drop));
    assert_eq!(store.tag(&name, &tag("v1")).expect("readable").expect("there").digest, first);
    assert!(store.delete_manifest(&name, &second).expect("others can go"));
}
