//! The store through its door, in a temporary folder.

use std::collections::BTreeMap;

use bytes::Bytes;
use larder_protocol::digest::{Algorithm, CHUNK_SIZE, tree_hash};
use larder_protocol::name::{RepositoryName, Tag};
use larder_protocol::record::{Link, Manifest, TagTarget};
use larder_protocol::stamp::{HybridTime, Stamp};
use tempfile::TempDir;

use super::*;

mod elsewhere;

pub(super) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) struct Place {
    folder: TempDir,
    node: u8,
}

impl Place {
    pub(super) fn new(node: u8) -> Self {
        Self { folder: tempfile::tempdir().expect("temporary folder"), node }
    }

    /// The data folder.
    pub(super) fn folder(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    pub(super) fn open(&self) -> Store {
        self.open_with(Duration::from_secs(3600))
    }

    /// With the age at which links are renewed.
    pub(super) fn open_with(&self, renew_after: Duration) -> Store {
        self.open_limited(renew_after, SpaceLimits::default())
    }

    pub(super) fn open_limited(&self, renew_after: Duration, space: SpaceLimits) -> Store {
        let options = Options {
            node: NodeId([self.node; 32]),
            durability: Durability::Relaxed,
            max_clock_drift: Duration::from_secs(300),
            uploads_max: 8,
            uploads_per_client_max: 8,
            sparse_manifests: false,
            blob_size_max: 64 << 20,
            renew_after,
            immutable_tags: vec!["team/fixed:v*".parse().expect("pattern")],
            space,
        };
        Store::open(DataFolder::open(&self.folder.path().join("data")).expect("folder"), options).expect("store")
    }
}

pub(super) fn repository(name: &str) -> RepositoryName {
    name.parse().expect("name")
}

pub(super) fn tag(name: &str) -> Tag {
    name.parse().expect("tag")
}

pub(super) fn bytes(seed: u64, size: u64) -> Vec<u8> {
    (0..size).map(|i| (i.wrapping_mul(31) ^ seed.wrapping_mul(i / 509 + 7)) as u8).collect()
}

pub(super) fn push(store: &Store, name: &str, blob: &[u8]) -> Digest {
    let digest = Digest::sha256(blob);
    let mut upload = store.create_upload(&repository(name), Algorithm::Sha256, "").expect("session");
    upload.append(blob).expect("append");
    upload.finish(digest).expect("finish");
    digest
}

pub(super) fn image(layers: &[(Digest, usize)]) -> Vec<u8> {
    let descriptor =
        |(digest, size): &(Digest, usize)| serde_json::json!({"mediaType": "application/octet-stream", "digest": digest, "size": size});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": IMAGE,
        "config": descriptor(&layers[0]), "layers": layers[1..].iter().map(descriptor).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

pub(super) fn put(store: &Store, name: &str, tags: &[&str], media_type: &str, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::sha256(bytes);
    let tags = tags.iter().map(|name| tag(name)).collect();
    let push = ManifestPush { repository: repository(name), tags, digest, media_type: media_type.to_owned(), bytes: bytes.to_vec().into() };
    store.put_manifest(push).map(|_| digest)
}

/// Pushes an image of one small blob under a tag.
pub(super) fn push_image(store: &Store, name: &str, tag: &str, content: &[u8]) -> Digest {
    let blob = push(store, name, content);
    put(store, name, &[tag], IMAGE, &image(&[(blob, content.len())])).expect("manifest")
}

pub(super) fn read(content: Content) -> Vec<u8> {
    match content {
        Content::Memory(bytes) => bytes.to_vec(),
        Content::File(file) => {
            let mut bytes = vec![0; file.size() as usize];
            for (index, chunk) in bytes.chunks_mut(CHUNK_SIZE as usize).enumerate() {
                file.read_chunk(index as u64, chunk).expect("read");
            }
            bytes
        }
    }
}

/// Sends what `to` lacks, in one exchange.
pub(super) fn sync(from: &Store, to: &Store) {
    let exchange = from.exchange(&to.vector()).expect("exchange");
    let vector = exchange.vector().clone();
    to.apply(exchange.map(|numbered| numbered.expect("record")).collect(), &vector).expect("apply");
}

/// Every tag of every repository.
fn state(store: &Store) -> BTreeMap<String, Digest> {
    let mut state = BTreeMap::new();
    for name in store.repositories(None, 1000).expect("repositories") {
        for info in store.tags(&name, None, 1000).expect("tags") {
            state.insert(format!("{name}:{}", info.tag), info.digest);
        }
    }
    state
}

#[test]
fn a_pushed_blob_is_there_and_after_a_restart_too() {
    // Nothing; around what lives in the index; around one chunk; several chunks.
    let sizes = [0, 1, SMALL_MAX - 1, SMALL_MAX, SMALL_MAX + 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE + 5];
    let place = Place::new(1);
    let blobs: Vec<_> = sizes.iter().map(|size| bytes(*size, *size)).collect();
    let store = place.open();
    for blob in &blobs {
        push(&store, "a", blob);
    }
    store.close();
    drop(store);
    let store = place.open();
    for blob in &blobs {
        let digest = Digest::sha256(blob);
        assert!(read(store.open_blob(&digest).expect("open").expect("there")) == *blob, "{} bytes", blob.len());
        let expected =
            Link { size: blob.len() as u64, root: tree_hash(blob), crc64: crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, blob) };
        assert_eq!(store.blob(&digest).expect("blob"), Some(expected));
        assert_eq!(store.link(&repository("a"), &digest).expect("link"), Some(expected));
        assert_eq!(store.link(&repository("b"), &digest).expect("link"), None, "I8");
        assert_eq!(store.chunk_values(&digest).expect("values").is_some(), blob.len() as u64 > CHUNK_SIZE);
    }
    assert_eq!(std::fs::read_dir(place.folder.path().join("data/uploads")).expect("list").count(), 0);
}

#[test]
fn f1_an_upload_goes_on_after_a_restart_at_any_offset() {
    let place = Place::new(1);
    let blob = bytes(9, 2 * CHUNK_SIZE + 77);
    for (algorithm, cut) in
        [(Algorithm::Sha256, 1_000_000), (Algorithm::Sha512, CHUNK_SIZE as usize + 1), (Algorithm::Sha256, 2 * CHUNK_SIZE as usize)]
    {
        let store = place.open();
        let mut upload = store.create_upload(&repository("a"), algorithm, "").expect("session");
        let id = upload.id();
        upload.append(&blob[..cut]).expect("append");
        assert!(matches!(store.open_upload(&repository("a"), id), Err(Error::UploadBusy)));
        assert_eq!(upload.suspend().expect("suspend"), cut as u64);
        store.close();
        drop(store);
        let store = place.open();
        assert_eq!(store.upload_offset(&repository("a"), id).expect("offset"), cut as u64);
        assert!(matches!(store.open_upload(&repository("b"), id), Err(Error::UploadUnknown)), "S20");
        let mut upload = store.open_upload(&repository("a"), id).expect("open");
        upload.append(&blob[cut..]).expect("append");
        upload.finish(Digest::of(algorithm, &blob)).expect("finish");
        assert!(store.open_blob(&Digest::of(algorithm, &blob)).expect("open").is_some());
        assert!(matches!(store.open_upload(&repository("a"), id), Err(Error::UploadUnknown)));
        store.close();
    }
}

#[test]
fn f5_a_session_says_where_the_disk_stands_when_a_power_cut_took_the_last_bytes() {
    let place = Place::new(1);
    let blob = bytes(9, 2 * CHUNK_SIZE + 77);
    let saved = CHUNK_SIZE as usize + 500;
    // Nothing is left, the first chunk, all but a byte, all; and bytes that came after the last save.
    for left in [0, CHUNK_SIZE as usize, saved - 1, saved, saved + 9] {
        let store = place.open();
        let mut upload = store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("session");
        let id = upload.id();
        upload.append(&blob[..saved]).expect("append");
        upload.suspend().expect("suspend");
        store.close();
        let file = std::fs::OpenOptions::new().write(true).open(store.inner.folder.upload(id)).expect("open");
        drop(store);
        file.set_len(left as u64).expect("cut or grow it");
        let store = place.open();
        let stands = left.min(saved);
        assert_eq!(store.upload_offset(&repository("a"), id).expect("offset"), stands as u64, "{left}");
        let mut upload = store.open_upload(&repository("a"), id).expect("open");
        assert_eq!(upload.offset(), stands as u64, "what was said holds");
        upload.append(&blob[stands..]).expect("append");
        upload.finish(Digest::sha256(&blob)).expect("finish");
        store.close();
    }
}

#[test]
fn f5_bytes_that_a_power_cut_changed_in_a_session_never_become_a_blob() {
    use std::os::unix::fs::FileExt;
    let place = Place::new(1);
    let blob = bytes(9, 2 * CHUNK_SIZE + 77);
    let saved = CHUNK_SIZE as usize + 5000;
    for (algorithm, changed) in [(Algorithm::Sha256, 100), (Algorithm::Sha256, CHUNK_SIZE + 4000), (Algorithm::Sha512, 100)] {
        let store = place.open();
        let mut upload = store.create_upload(&repository("a"), algorithm, "").expect("session");
        let id = upload.id();
        upload.append(&blob[..saved]).expect("append");
        upload.suspend().expect("suspend");
        store.close();
        let file = std::fs::OpenOptions::new().write(true).open(store.inner.folder.upload(id)).expect("open");
        drop(store);
        // As a page that was never written looks.
        file.write_all_at(&[0; 900], changed).expect("change it");
        let store = place.open();
        let mut upload = store.open_upload(&repository("a"), id).expect("open");
        upload.append(&blob[saved..saved + 10]).expect("append");
        upload.suspend().expect("suspend");
        let mut upload = store.open_upload(&repository("a"), id).expect("open again");
        upload.append(&blob[saved + 10..]).expect("append");
        let digest = Digest::of(algorithm, &blob);
        assert!(matches!(upload.finish(digest), Err(Error::DigestMismatch { .. })), "changed at {changed}");
        assert!(store.open_blob(&digest).expect("open").is_none());
        store.close();
    }
}

#[test]
fn s3_a_session_of_one_algorithm_ends_with_a_digest_of_the_other() {
    let place = Place::new(1);
    let store = place.open();
    let blob = bytes(5, 200_000);
    let mut upload = store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("session");
    upload.append(&blob).expect("append");
    upload.finish(Digest::of(Algorithm::Sha512, &blob)).expect("finish");
    assert!(store.blob(&Digest::of(Algorithm::Sha512, &blob)).expect("blob").is_some());
    assert!(store.blob(&Digest::sha256(&blob)).expect("blob").is_none());
}

#[test]
fn s4_a_wrong_digest_leaves_nothing() {
    let place = Place::new(1);
    let store = place.open();
    for size in [10, 100_000] {
        let mut upload = store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("session");
        upload.append(&bytes(1, size)).expect("append");
        let wrong = Digest::sha256(b"something else");
        assert!(matches!(upload.finish(wrong), Err(Error::DigestMismatch { .. })));
        assert!(store.blob(&wrong).expect("blob").is_none() && store.link(&repository("a"), &wrong).expect("link").is_none());
    }
    assert_eq!(std::fs::read_dir(place.folder.path().join("data/uploads")).expect("list").count(), 0);
}

#[test]
fn f44_sessions_are_bounded_and_expire() {
    let place = Place::new(1);
    let store = place.open();
    let ids: Vec<_> = (0..8).map(|_| store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("session").id()).collect();
    assert!(matches!(store.create_upload(&repository("a"), Algorithm::Sha256, ""), Err(Error::TooManyUploads { limit: 8, .. })));
    store.cancel_upload(&repository("a"), ids[0]).expect("cancel");
    assert_eq!(store.expire_uploads(Duration::from_secs(3600)).expect("expire"), 0);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(store.expire_uploads(Duration::ZERO).expect("expire"), 7);
    store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("room again");
}

#[test]
fn f2_a_file_that_was_renamed_and_not_indexed_is_undone() {
    let place = Place::new(1);
    let store = place.open();
    let digest = Digest::sha256(b"orphan");
    let path = store.inner.folder.blob(&digest);
    std::fs::create_dir_all(path.parent().expect("folder")).expect("create");
    std::fs::write(&path, b"orphan").expect("write");
    let mut batch = Batch::default();
    store.inner.index.put(&mut batch, Table::Meta, format!("{}{digest}", staged::INTENT).as_bytes(), &[]);
    store.inner.index.write(batch).expect("intent");
    store.close();
    drop(store);
    let store = place.open();
    assert!(!path.exists() && store.open_blob(&digest).expect("open").is_none());
}

#[test]
fn f9_files_that_a_lost_index_left_become_blobs_again_when_they_are_what_a_link_says() {
    let place = Place::new(1);
    // Of one chunk, of several; one that will be changed, one that will be cut.
    let sizes = [SMALL_MAX + 1, 3 * CHUNK_SIZE + 7, CHUNK_SIZE + 1, CHUNK_SIZE + 2];
    let blobs: Vec<_> = sizes.into_iter().map(|size| bytes(size, size)).collect();
    let store = place.open();
    let digests: Vec<_> = blobs.iter().map(|blob| push(&store, "a", blob)).collect();
    let small = push(&store, "a", b"small");
    let link = |digest: &Digest| store.link(&repository("a"), digest).expect("link").expect("live");
    let links: Vec<_> = digests.iter().map(link).collect();
    let small_link = link(&small);
    let paths: Vec<_> = digests.iter().map(|digest| store.inner.folder.blob(digest)).collect();
    store.close();
    drop(store);
    std::fs::remove_dir_all(place.folder().join("index")).expect("lose the index");
    std::fs::write(&paths[2], bytes(9, sizes[2])).expect("other bytes");
    std::fs::OpenOptions::new().write(true).open(&paths[3]).expect("open").set_len(5).expect("cut it");

    let store = place.open();
    for (number, digest) in digests[..2].iter().enumerate() {
        assert!(store.open_blob(digest).expect("open").is_none(), "nobody vouches for it yet");
        let wrong = Link { root: [0; 32], ..links[number] };
        assert!(matches!(store.adopt_file(*digest, wrong), Err(Error::Damaged { .. })), "the link lies");
        assert!(store.open_blob(digest).expect("open").is_none());
        assert!(store.adopt_file(*digest, links[number]).expect("adopt"));
        assert_eq!(read(store.open_blob(digest).expect("open").expect("here")), blobs[number]);
        assert_eq!(store.verify(digest).expect("readable"), Verdict::Good);
    }
    assert!(matches!(store.adopt_file(digests[2], links[2]), Err(Error::DigestMismatch { .. })));
    assert!(!store.adopt_file(digests[3], links[3]).expect("another size"));
    assert!(!store.adopt_file(small, small_link).expect("it lay in the index"));
    assert!(!store.adopt_file(Digest::sha256(b"never here"), links[0]).expect("no file"));
    // What was refused is in nobody's way.
    push(&store, "a", &blobs[2]);
    assert_eq!(read(store.open_blob(&digests[2]).expect("open").expect("here")), blobs[2]);
    store.close();
    drop(store);
    let store = place.open();
    assert!(digests[..3].iter().all(|digest| store.verify(digest).expect("readable") == Verdict::Good), "and they stay");
}

#[test]
fn f15_an_upload_under_way_outlives_a_long_sleep_and_one_that_rests_ends_cleanly() {
    let place = Place::new(1);
    let store = place.open();
    let blob = bytes(1, SMALL_MAX + 1);
    let mut upload = store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("session");
    upload.append(&blob[..1000]).expect("append");
    let resting = store.create_upload(&repository("a"), Algorithm::Sha256, "").expect("session").id();
    std::thread::sleep(Duration::from_millis(2));
    // As after a night: by the calendar both are older than any session may get.
    assert_eq!(store.expire_uploads(Duration::ZERO).expect("expire"), 1);
    upload.append(&blob[1000..]).expect("the one that a request holds goes on");
    upload.finish(Digest::sha256(&blob)).expect("finish");
    assert!(matches!(store.open_upload(&repository("a"), resting), Err(Error::UploadUnknown)));
    assert_eq!(std::fs::read_dir(place.folder().join("uploads")).expect("folder").count(), 0);
}

#[test]
fn s8_a_manifest_names_only_what_its_repository_has() {
    let place = Place::new(1);
    let store = place.open();
    let blob = push(&store, "other", b"layer");
    let manifest = image(&[(blob, 5)]);
    assert!(matches!(put(&store, "a", &["latest"], IMAGE, &manifest), Err(Error::Missing(missing)) if missing == [blob]));
    assert!(store.tag(&repository("a"), &tag("latest")).expect("tag").is_none());
    assert!(!store.mount(&repository("third"), &repository("a"), &blob).expect("mount"));
    assert!(store.mount(&repository("other"), &repository("a"), &blob).expect("mount"));
    let digest = put(&store, "a", &["latest", "1"], IMAGE, &manifest).expect("manifest");
    assert_eq!(store.manifest(&repository("a"), &digest).expect("manifest").expect("there").bytes, manifest);
    assert_eq!(store.closure(&repository("a"), &digest).expect("closure").len(), 1);
    let absent = Digest::sha256(b"absent");
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": IMAGE, "digest": absent, "size": 1}]}).to_string();
    assert!(matches!(put(&store, "a", &[], IMAGE_INDEX, index.as_bytes()), Err(Error::Missing(_))));
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": IMAGE, "digest": digest, "size": 1}]}).to_string();
    let index = put(&store, "a", &["multi"], IMAGE_INDEX, index.as_bytes()).expect("index");
    assert_eq!(store.closure(&repository("a"), &index).expect("closure").len(), 1);
}

#[test]
fn s6_malformed_manifests_are_refused() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(40), "]".repeat(40));
    let descriptor = format!("{{\"mediaType\":\"x\",\"digest\":\"{}\",\"size\":1}}", Digest::sha256(b""));
    let many = format!("{{\"manifests\":[{}]}}", vec![descriptor.as_str(); 10_001].join(","));
    let sized = |size: &str| format!("{{\"config\":{},\"layers\":[]}}", descriptor.replace("\"size\":1", &format!("\"size\":{size}")));
    for bad in [
        "",
        "null",
        "[]",
        "1",
        "{",
        "{}x",
        "{\"a\":1,\"a\":2}",
        &deep,
        &many,
        &sized("-1"),
        &sized("9223372036854775808"),
        &sized("\"1\""),
        "{\"layers\":[{\"digest\":\"md5:1\",\"size\":1}]}",
    ] {
        assert!(ManifestView::parse("application/x", bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(60)]);
    }
    assert!(ManifestView::parse("application/x", b"{\"a\":\"\xff\"}").is_err());
    assert!(ManifestView::parse("application/x", b"{\"anything\":{\"goes\":[1,2.5,null,true]}}").is_ok());
}

#[test]
fn s7_a_manifest_is_of_one_kind_and_says_the_same_as_its_header() {
    let both =
        format!("{{\"manifests\":[],\"config\":{{\"mediaType\":\"x\",\"digest\":\"{}\",\"size\":1}},\"layers\":[]}}", Digest::sha256(b""));
    assert!(matches!(ManifestView::parse(IMAGE, both.as_bytes()), Err(InvalidManifest::Ambiguous)));
    let named = format!("{{\"mediaType\":\"{IMAGE_INDEX}\",\"manifests\":[]}}");
    assert!(matches!(ManifestView::parse(IMAGE, named.as_bytes()), Err(InvalidManifest::MediaType { .. })));
    assert!(ManifestView::parse(IMAGE_INDEX, named.as_bytes()).is_ok());
    assert!(ManifestView::parse(IMAGE, b"{\"manifests\":[]}").is_err());
}

#[test]
fn listings_are_ordered_paged_and_skip_what_is_deleted() {
    let place = Place::new(1);
    let store = place.open();
    for name in ["b", "a-b", "a", "a/c"] {
        push_image(&store, name, "latest", name.as_bytes());
    }
    let names =
        |after: Option<&str>, limit| store.repositories(after, limit).expect("list").iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(None, 10), ["a", "a-b", "a/c", "b"]);
    assert_eq!(names(Some("a"), 2), ["a-b", "a/c"]);
    assert_eq!(names(Some("b"), 2), [""; 0]);
    for name in ["v2", "v10", "V1", "latest-1"] {
        push_image(&store, "a", name, name.as_bytes());
    }
    let tags = |after: Option<&str>, limit| {
        store.tags(&repository("a"), after, limit).expect("list").iter().map(|info| info.tag.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(tags(None, 10), ["V1", "latest", "latest-1", "v10", "v2"]);
    assert_eq!(tags(Some("latest"), 2), ["latest-1", "v10"]);
    assert!(store.delete_tag(&repository("a"), &tag("latest-1")).expect("delete"));
    assert!(!store.delete_tag(&repository("a"), &tag("latest-1")).expect("delete"));
    assert_eq!(tags(Some("latest"), 2), ["v10", "v2"]);
    let digest = store.tag(&repository("b"), &tag("latest")).expect("tag").expect("there").digest;
    assert!(store.delete_manifest(&repository("b"), &digest).expect("delete"));
    assert!(store.tag(&repository("b"), &tag("latest")).expect("tag").is_none());
    assert_eq!(names(None, 10), ["a", "a-b", "a/c"]);
    assert!(store.repository_exists(&repository("b")).expect("exists"));
    assert!(!store.repository_exists(&repository("c")).expect("exists"));
}

#[test]
fn f3_pushing_a_blob_again_writes_nothing() {
    let place = Place::new(1);
    let store = place.open();
    push(&store, "a", b"content");
    let vector = store.vector();
    push(&store, "a", b"content");
    assert_eq!(store.vector(), vector);
}

#[test]
fn a_manifest_from_a_peer_must_be_what_its_key_names() {
    let place = Place::new(1);
    let store = place.open();
    let origin = Origin { node: NodeId([2; 32]), incarnation: 7 };
    let value = Value::Manifest(Manifest { media_type: IMAGE.to_owned(), bytes: b"{}".to_vec() });
    let key = Key::Manifest(repository("a"), Digest::sha256(b"something else"));
    let record = Record { key, value: Some(value), stamp: Stamp { time: HybridTime::from_ms(1), node: origin.node } };
    let applied = store.apply(vec![Numbered { origin, sequence: 1, record }], &VersionVector::default()).expect("apply");
    assert_eq!(applied.refused, 1);
    assert!(store.is_empty().expect("empty"));
}

#[test]
fn settings_members_and_packs_are_kept() {
    let place = Place::new(1);
    let store = place.open();
    let pack = PackId { origin: store.origin(), sequence: 3 };
    let located = larder_protocol::record::Located { digest: Digest::sha256(b"x"), offset: 512, length: 9 };
    let archived = Archived { bucket: "b".into(), object_key: "k".into(), size: 99, created_ms: 1, records: 0, contents: vec![located] };
    let member = Member { name: "n".into(), zone: "z".into(), addresses: vec![], bucket: None, version: "1".into() };
    let records = vec![
        (Key::Archived(pack), Some(Value::Archived(archived.clone()))),
        (Key::Member(NodeId([9; 32])), Some(Value::Member(member.clone()))),
    ];
    let settings = vec![("p/one".to_owned(), Some(vec![1])), ("p/two".to_owned(), Some(vec![2])), ("q".to_owned(), Some(vec![]))];
    store.commit(Commit { records, settings }).expect("commit");
    assert!(store.is_empty().expect("members and packs are no content"));
    store.close();
    drop(store);
    let store = place.open();
    assert_eq!(store.settings("p/").expect("settings"), [("p/one".to_owned(), vec![1]), ("p/two".to_owned(), vec![2])]);
    store.commit(Commit { settings: vec![("p/one".to_owned(), None)], ..Commit::default() }).expect("commit");
    assert_eq!(store.setting("p/one").expect("setting"), None);
    assert_eq!(store.members().expect("members"), [(NodeId([9; 32]), Some(member))]);
    assert_eq!(store.locations(&located.digest).expect("locations"), [(pack, 512, 9)]);
    assert_eq!(store.packs(None, 10).expect("packs"), [(pack, archived)]);
    assert!(store.packs(Some(&pack), 10).expect("packs").is_empty());
    store.commit(Commit { records: vec![(Key::Archived(pack), None)], ..Commit::default() }).expect("commit");
    assert!(store.locations(&located.digest).expect("locations").is_empty());
}

#[tokio::test]
async fn readers_follow_a_staged_blob_and_get_its_last_byte_when_it_is_checked() {
    let place = Place::new(1);
    let store = place.open();
    let blob = bytes(3, 300_000);
    let link =
        Link { size: blob.len() as u64, root: tree_hash(&blob), crc64: crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &blob) };
    let mut staging = store.stage(Digest::sha256(&blob), link).expect("stage");
    let mut reader = staging.reader();
    staging.append(Bytes::copy_from_slice(&blob[..100_000])).await.expect("append");
    assert!(reader.read(0, usize::MAX).await.expect("read") == blob[..100_000]);
    staging.append(Bytes::copy_from_slice(&blob[100_000..])).await.expect("append");
    assert_eq!(reader.read(100_000, usize::MAX).await.expect("read").len(), 199_999);
    assert!(matches!(staging.append(Bytes::from_static(b"x")).await, Err(Error::TooLarge { .. })));
    staging.finish().await.expect("finish");
    assert_eq!(reader.read(299_999, usize::MAX).await.expect("read").len(), 1);
    assert!(reader.read(300_000, usize::MAX).await.expect("read").is_empty());
    assert!(store.open_blob(&Digest::sha256(&blob)).expect("open").is_some());
}

#[tokio::test]
async fn f24_a_staged_blob_that_is_not_what_it_should_be_goes() {
    let place = Place::new(1);
    let store = place.open();
    let blob = bytes(3, 100_000);
    let link =
        Link { size: blob.len() as u64, root: tree_hash(&blob), crc64: crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &blob) };
    for (digest, link) in [(Digest::sha256(b"other"), link), (Digest::sha256(&blob), Link { root: [0; 32], ..link })] {
        let mut staging = store.stage(digest, link).expect("stage");
        let mut reader = staging.reader();
        staging.append(blob.clone().into()).await.expect("append");
        assert!(staging.finish().await.is_err());
        assert!(matches!(reader.read(99_999, 1).await, Err(Error::Abandoned)));
        assert!(store.open_blob(&digest).expect("open").is_none());
    }
    drop(store.stage(Digest::sha256(&blob), link).expect("stage"));
    assert_eq!(std::fs::read_dir(place.folder.path().join("data/uploads")).expect("list").count(), 0);
}

#[test]
fn many_pushes_at_once_share_their_syncs() {
    let place = Place::new(1);
    let store = place.open();
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..20u8 {
                    push_image(store, &format!("r{thread}"), &format!("t{round}"), &[thread, round]);
                }
            });
        }
    });
    assert_eq!(state(&store).len(), 160);
    let numbers: Vec<_> = store.tail(&store.origin(), 0, 10_000).expect("tail").iter().map(|numbered| numbered.sequence).collect();
    assert_eq!(numbers, (1..=480).collect::<Vec<_>>(), "every number once, none left out");
}

#[test]
fn a_journal_that_is_read_while_it_is_written_leaves_nothing_out() {
    let place = Place::new(1);
    let store = place.open();
    for round in 0..300u16 {
        push_image(&store, "a", &format!("t{round}"), &round.to_be_bytes());
    }
    // One tag is written again and again, so that it moves through the journal while it is read; all others stand still.
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 300..700u16 {
                push_image(&store, "a", "t299", &round.to_be_bytes());
            }
        });
        while !writer.is_finished() {
            let (mut after, mut tags) = (0, std::collections::BTreeSet::new());
            loop {
                let records = store.tail(&store.origin(), after, 7).expect("tail");
                let Some(last) = records.last() else { break };
                assert!(records.is_sorted_by_key(|numbered| numbered.sequence) && last.sequence > after);
                after = last.sequence;
                tags.extend(records.iter().filter_map(|numbered| match &numbered.record.key {
                    Key::Tag(_, tag) => Some(tag.to_string()),
                    _ => None,
                }));
            }
            assert!((0..299).all(|round| tags.contains(&format!("t{round}"))), "{} tags", tags.len());
        }
    });
}

/// Rows of version 1: a change here needs a new version byte, and a program that still reads the old one.
pub(super) fn golden(name: &str, bytes: &[u8]) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/v1").join(name);
    let expected = std::fs::read(&file).unwrap_or_else(|_| {
        // A row that is new in this version has no file yet.
        std::fs::write(&file, bytes).expect("write the golden file");
        panic!("{} was missing and is written: look at it and commit it", file.display())
    });
    assert!(bytes == expected, "{name} is encoded differently from {}", file.display());
}
