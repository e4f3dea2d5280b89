//! Packs that only the owner of an identity can read, as the bucket, the operator and stock tools see them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image, Node, fleet, sha256, wait_until};

use super::packs::run;
use super::{SOON, flush, node, packs_in, registry};

/// Test keys that are no secret: see the files.
const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
pub(super) const RECIPIENTS: &str = "LARDER_ARCHIVE__RECIPIENTS";

/// An identity file that only its owner may read, and its recipient.
pub(super) fn identity(folder: &Path, name: &str) -> (String, String) {
    use std::os::unix::fs::PermissionsExt;
    let text = std::fs::read_to_string(Path::new(TESTDATA).join(name)).expect("a test's identity");
    let path = folder.join(name);
    std::fs::write(&path, &text).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).expect("as age-keygen writes it");
    (path.to_str().expect("UTF-8").to_owned(), recipient.to_owned())
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    // By a first byte that is rare in neither: this is a test.
    let first = part[0];
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == first) {
        if bytes[at + next..].starts_with(part) {
            return true;
        }
        at += next + 1;
    }
    false
}

/// Neither bytes nor names of images are in the bucket.
fn tells_nothing(s3: &CountingS3, images: &[Image]) {
    for (key, _) in s3.objects() {
        let bytes = std::fs::read(s3.object_path(&key)).expect("an object");
        for name in [&b"team/app"[..], b"team%2Fapp", b"oci-layout", b"blobs/sha256"] {
            assert!(!has(&bytes, name) && !has(key.as_bytes(), name), "{key} has {}", name.escape_ascii());
        }
        for image in images {
            for part in image.layers.iter().map(|layer| layer.bytes()).chain([image.config.clone(), image.manifest.clone()]) {
                let part = &part[part.len() / 2..][..part.len().div_ceil(2).min(64)];
                assert!(part.len() < 16 || !has(&bytes, part), "{key} has bytes of an image");
            }
            let digest = image.digest();
            assert!(!has(&bytes, digest.as_bytes()) && !has(&bytes, &digest.as_bytes()[7..]), "{key} names {digest}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i7_three_nodes_that_can_only_encrypt_are_lost_and_all_comes_back_by_the_identity() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let (file, recipient) = identity(keys.path(), "test-identity.txt");
    let mut nodes: Vec<Node> = ["a", "b", "c"].map(|name| node(name).s3(&s3, "fleet").env(RECIPIENTS, &recipient).create()).into();
    fleet::found(&mut nodes).await;
    let images: Vec<Image> = (0..3).map(|seed| Image::from_seed(600 + seed, &[300_000, 70_000, 2_000_000])).collect();
    for (number, image) in images.iter().enumerate() {
        registry(&nodes[number]).push_image("team/app", &format!("v{number}"), image).await;
        flush(&nodes[number]).await;
    }
    nodes[1].cli(&["archive", "checkpoint"]).await.expect("a checkpoint needs no identity");
    let verified = nodes[2].cli(&["archive", "verify"]).await.expect("a listing needs no identity");
    assert!(verified.contains("0 missing, 0 with another length"), "{verified}");
    let refused = nodes[2].cli(&["archive", "verify", "--read-data-subset", "1/1", "--mend"]).await.expect_err("it can't read");
    assert!(refused.contains("archive.identity_file"), "{refused}");
    assert!(packs_in(&s3).len() >= 3 && packs_in(&s3).iter().all(|(key, _)| key.ends_with(".tar.age")), "{:?}", packs_in(&s3));
    tells_nothing(&s3, &images);
    nodes.iter_mut().for_each(Node::lose_disk);

    let fresh = node("fresh").s3(&s3, "fleet").env("LARDER_PEERS__REPLICAS", "1").start().await;
    let refused = fresh.cli(&["restore", &s3.url("fleet")]).await.expect_err("without the identity");
    assert!(refused.contains("is encrypted") && refused.contains("--identity FILE"), "{refused}");
    let other = identity(keys.path(), "other-test-identity.txt").0;
    let refused = fresh.cli(&["restore", &s3.url("fleet"), "--identity", &other]).await.expect_err("another's identity");
    assert!(refused.contains("none of this node's identities opens it"), "{refused}");
    let restored = fresh.cli_json(&["restore", "--metadata-only", &s3.url("fleet"), "--identity", &file]).await;
    assert_eq!(restored["tags"].as_u64(), Some(3), "{restored}");
    s3.forget();
    for (number, image) in images.iter().enumerate() {
        registry(&fresh).pull_image("team/app", &format!("v{number}"), image).await;
    }
    // One ranged GET for each blob that is not here yet: a config and three layers each. The key of a pack that the checkpoint covers is asked for once.
    let mut asked: Vec<_> = s3.requests().into_iter().filter(|it| it.operation == Operation::Get).map(|it| (it.key, it.range)).collect();
    asked.sort();
    let count = asked.len();
    asked.dedup();
    let headers = asked.iter().filter(|(_, range)| range == "bytes=0-2047").count();
    assert!(asked.len() == count && count - headers <= 3 * 4 && headers <= packs_in(&s3).len(), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_packs_and_those_for_earlier_recipients_stay_readable_beside_new_ones() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let ((new_file, new), (old_file, old)) = (identity(keys.path(), "test-identity.txt"), identity(keys.path(), "other-test-identity.txt"));
    let mut first = node("first").s3(&s3, "fleet").start().await;
    let images: Vec<Image> = (0..3).map(|seed| Image::from_seed(610 + seed, &[150_000, 10])).collect();
    for (number, recipients) in [None, Some(old.as_str()), Some(new.as_str())].into_iter().enumerate() {
        first.set_env(RECIPIENTS, recipients);
        first.restart().await;
        registry(&first).push_image("team/app", &format!("v{number}"), &images[number]).await;
        assert_eq!(flush(&first).await, 1);
    }
    assert_eq!(packs_in(&s3).iter().filter(|(key, _)| key.ends_with(".age")).count(), 2);
    first.lose_disk();
    // Both identities in one file, as it is when they were changed.
    let both = keys.path().join("both");
    std::fs::copy(&new_file, &both).expect("copy");
    let text = [std::fs::read(&new_file).expect("read"), std::fs::read(&old_file).expect("read")].concat();
    std::fs::write(&both, text).expect("write");
    let mut second = node("second").s3(&s3, "fleet").env("LARDER_ARCHIVE__IDENTITY_FILE", both.to_str().expect("UTF-8")).start().await;
    second.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    for (number, image) in images.iter().enumerate() {
        registry(&second).pull_image("team/app", &format!("v{number}"), image).await;
    }
    // A file that everybody may read is no secret: the start is refused.
    std::process::Command::new("chmod").arg("644").arg(&both).status().expect("chmod");
    second.stop().await;
    second.expect_errors();
    second.spawn();
    assert!(!second.ended(SOON).await.success());
    assert!(second.log_tail().contains("others may read or change it"), "{}", second.log_tail());
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_age_tar_and_zstd_get_everything_out_and_so_does_unpack() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let (file, recipient) = identity(keys.path(), "test-identity.txt");
    let mut node = node("node").s3(&s3, "fleet").env(RECIPIENTS, &recipient).start().await;
    let image = Image::from_seed(620, &[1_500_000, 70_000, 10]);
    registry(&node).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&node).await, 1);
    node.cli(&["archive", "checkpoint"]).await.expect("a checkpoint");
    let exported = node.scratch().join("images.tar.age");
    node.cli(&["export", "team/app:v1", exported.to_str().expect("UTF-8"), "--recipient", &recipient]).await.expect("exported");
    node.stop().await;

    let pack = s3.object_path(&packs_in(&s3)[0].0);
    let wanted: Vec<String> = image.layers.iter().map(|layer| layer.digest()).chain([sha256(&image.config), image.digest()]).collect();
    for (number, pack) in [pack, exported].iter().enumerate() {
        let folder = node.scratch().join(format!("stock-{number}"));
        std::fs::create_dir(&folder).expect("make a folder");
        run("bash", &["-c", &format!("set -o pipefail; age -d -i {file} {} | tar x -C {}", pack.display(), folder.display())]);
        for digest in &wanted {
            let blob = std::fs::read(folder.join("blobs/sha256").join(&digest[7..])).expect("a blob");
            assert_eq!(&sha256(&blob), digest);
        }
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let listed = node.cli_json(&["unpack", &text(pack), "--identity", &file, "--list"]).await;
        assert_eq!((listed["blobs"].as_u64(), listed["encrypted"].as_bool()), (Some(5), Some(true)), "{listed}");
        assert_eq!((&listed["images"][0], listed["damaged"].as_array().map(Vec::len)), (&"team/app:v1".into(), Some(0)), "{listed}");
        let own: PathBuf = node.scratch().join(format!("own-{number}"));
        node.cli(&["unpack", &text(pack), "--identity", &file, "--to", &text(&own)]).await.expect("unpacked");
        for digest in &wanted {
            assert_eq!(&sha256(&std::fs::read(own.join("blobs/sha256").join(&digest[7..])).expect("a blob")), digest);
        }
        let refused = node.cli(&["unpack", &text(pack), "--list"]).await.expect_err("no identity");
        assert!(refused.contains("it is encrypted, and no identity is given"), "{refused}");
    }
    let checkpoint = s3.objects().into_iter().find(|(key, _)| key.contains("/checkpoints/")).expect("a checkpoint").0;
    let lines = run("bash", &["-c", &format!("set -o pipefail; age -d -i {file} {} | zstd -d", s3.object_path(&checkpoint).display())]);
    assert!(lines.contains(r#""kind":"tag","repository":"team/app","tag":"v1""#), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_file_of_images_is_taken_in_by_its_identity() {
    let keys = tempfile::tempdir().expect("a folder");
    let (file, recipient) = identity(keys.path(), "test-identity.txt");
    let (from, to) = (node("from").start().await, node("to").start().await);
    let image = Image::from_seed(630, &[1_500_000, 10]);
    registry(&from).push_image("team/app", "v1", &image).await;
    let path = from.scratch().join("images.tar.age");
    let stick = path.to_str().expect("UTF-8");
    from.cli(&["export", "team/app:v1", stick, "--recipient", &recipient]).await.expect("exported");
    assert!(!has(&std::fs::read(&path).expect("the file"), b"team/app"));
    let refused = to.cli(&["import", stick]).await.expect_err("without the identity");
    assert!(refused.contains("it is encrypted"), "{refused}");
    let refused = from.cli(&["export", "team/app:v1", stick, "--recipient", "age1nobody"]).await.expect_err("no recipient");
    assert!(refused.contains("age-keygen"), "{refused}");
    let imported = to.cli_json(&["import", stick, "--identity", &file]).await;
    assert_eq!(imported["blobs"].as_u64(), Some(3), "{imported}");
    registry(&to).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f27_an_encrypted_pack_whose_answer_was_lost_is_sent_again_as_it_was() {
    let s3 = CountingS3::start().await;
    let keys = tempfile::tempdir().expect("a folder");
    let (file, recipient) = identity(keys.path(), "test-identity.txt");
    // In one request, and in parts.
    for (prefix, above) in [("one", "5GiB"), ("parts", "5MiB")] {
        let mut node = node(prefix).s3(&s3, prefix).env(RECIPIENTS, &recipient).env("LARDER_ARCHIVE__MULTIPART_ABOVE", above).start().await;
        let image = Image::from_seed(640, &[13_000_000]);
        registry(&node).push_image("team/app", "v1", &image).await;
        // Whose bucket it is: that is not what is to fail.
        let key = |s3: &CountingS3| packs_in(s3).into_iter().find(|(key, _)| key.starts_with(prefix));
        let (failing, kind) = if prefix == "one" { (Operation::Put, 5) } else { (Operation::Complete, 2) };
        s3.forget();
        s3.inject(Operation::Put, Fault::Stall(Duration::from_millis(1)));
        for _ in 0..kind {
            s3.inject(failing, Fault::DropAnswer);
        }
        let mut landed = Vec::new();
        wait_until("the pack is recorded", SOON * 4, async || {
            let flushed = node.cli(&["archive", "flush"]).await;
            landed.extend(key(&s3).map(|(key, _)| std::fs::read(s3.object_path(&key)).expect("an object")));
            flushed.ok().filter(|_| !landed.is_empty())
        })
        .await;
        assert!(landed.iter().all(|bytes| *bytes == landed[0]));
        assert_eq!(packs_in(&s3).iter().filter(|(key, _)| key.starts_with(prefix)).count(), 1, "one effect");
        node.lose_disk();
        let fresh = super::node("fresh").s3(&s3, prefix).start().await;
        fresh.cli(&["restore", &s3.url(prefix), "--identity", &file]).await.expect("restore");
        registry(&fresh).pull_image("team/app", "v1", &image).await;
    }
}
