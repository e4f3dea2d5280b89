//! Damaged blobs: no wrong byte leaves the node, and what somebody else has comes back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use larder_harness::{Content, Image, Node, wait_until};

use super::{SOON, node, registry};

/// Several chunks, and a damaged one in the middle.
const SIZE: u64 = 5 << 20;
const PLACE: u64 = (2 << 20) + 12_345;

/// The file of a blob.
fn file(data: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").expect("a SHA-256");
    data.join("blobs/sha256").join(&hex[..2]).join(hex)
}

fn flip(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open a blob file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, PLACE).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], PLACE).expect("flip a bit");
}

fn cut(path: &Path) {
    File::options().write(true).open(path).expect("open a blob file").set_len(PLACE).expect("cut it");
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("remove a blob file");
}

type Harm = (&'static str, fn(&Path));

const HARMS: [Harm; 3] = [("a flipped bit", flip), ("a cut file", cut), ("a lost file", remove)];

async fn metric(node: &Node, name: &str) -> u64 {
    let page = registry(node).get("/metrics").await;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no metric {name}")).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_a_damaged_blob_comes_from_the_archive_in_the_same_answer() {
    let node = node("node").start().await;
    let registry = registry(&node);
    for (number, (harm, damage)) in HARMS.into_iter().enumerate() {
        let image = Image::from_seed(number as u64, &[SIZE]);
        registry.push_image("team/app", "v1", &image).await;
        node.cli(&["archive", "flush"]).await.expect("flush");
        let digest = image.layers[0].digest();
        damage(&file(node.data_dir(), &digest));
        let pulled = registry.pull_blob("team/app", &digest).await.unwrap_or_else(|error| panic!("{harm}: {error}"));
        assert_eq!(pulled.digest, digest, "{harm}");
        wait_until("it is whole on this disk again", SOON, async || {
            std::fs::metadata(file(node.data_dir(), &digest)).is_ok_and(|found| found.len() == SIZE).then_some(())
        })
        .await;
        // A part of it, right at the place.
        let range = format!("bytes={PLACE}-{}", PLACE + 9);
        let part = registry.request("GET", &format!("/v2/team/app/blobs/{digest}"), &[("range", &range)], bytes::Bytes::new()).await;
        assert_eq!(part.expect(206, harm).body, image.layers[0].bytes().slice(PLACE as usize..PLACE as usize + 10), "{harm}");
    }
    assert_eq!(metric(&node, "larder_quarantined_blobs_total").await, HARMS.len() as u64);
    let kept = std::fs::read_dir(node.data_dir().join("quarantine")).expect("the folder").count();
    assert_eq!(kept, 2, "a lost file can't be kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn f7_a_blob_that_cannot_be_read_comes_from_a_peer_in_the_same_answer() {
    let first = node("node-1").archive("none").start().await;
    let mut second = node("node-2").archive("none").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let content = Content::new(7, SIZE);
    registry(&first).try_push_blob("team/app", content).await.expect("push");
    let digest = content.digest();
    wait_until("the second node has its copy", SOON, async || file(second.data_dir(), &digest).exists().then_some(())).await;
    // From now on, its disk refuses the third read of a blob.
    second.set_env("LARDER_FAILPOINTS", Some("store/blob/read=error"));
    second.restart().await;
    wait_until("they are connected", SOON, async || (metric(&second, "larder_peers_connected").await == 1).then_some(())).await;
    // The first reads come out of the page cache and don't wait; so that one has to, the pages go.
    let cached = File::open(file(second.data_dir(), &digest)).expect("open a blob file");
    rustix::fs::fadvise(&cached, 0, None, rustix::fs::Advice::DontNeed).expect("drop its pages");
    drop(cached);
    let pulled = registry(&second).pull_blob("team/app", &digest).await.expect("pull");
    assert_eq!(pulled.digest, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_a_blob_that_nobody_else_has_breaks_off_and_a_push_mends_it() {
    let node = node("node").archive("none").start().await;
    let registry = registry(&node);
    for (harm, damage) in HARMS {
        let content = Content::new(11, SIZE);
        let digest = content.digest();
        registry.try_push_blob("team/app", content).await.expect("push");
        damage(&file(node.data_dir(), &digest));
        // The first client may get the sound part and no more; nobody ever gets a wrong byte.
        if let Ok(pulled) = registry.pull_blob("team/app", &digest).await
            && pulled.status == 200
        {
            panic!("{harm}: {} bytes of a damaged blob were sent as if it were whole", pulled.size);
        }
        let answer = registry.get(&format!("/v2/team/app/blobs/{digest}")).await;
        answer.expect_error(404, "BLOB_UNKNOWN", "a blob that is nowhere");
        registry.try_push_blob("team/app", content).await.unwrap_or_else(|error| panic!("{harm}: push it again: {error}"));
        assert_eq!(registry.pull_blob("team/app", &digest).await.expect("pull").digest, digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_scrub_finds_what_nobody_reads_and_names_what_is_lost() {
    let node = node("node").start().await;
    let registry = registry(&node);
    let (archived, alone) = (Image::from_seed(21, &[SIZE]), Content::new(22, SIZE));
    registry.push_image("team/app", "v1", &archived).await;
    node.cli(&["archive", "flush"]).await.expect("flush");
    registry.try_push_blob("team/app", alone).await.expect("push");
    let found = node.cli_json(&["scrub"]).await;
    assert_eq!((found["blobs"].as_u64(), found["damaged_count"].as_u64()), (Some(3), Some(0)), "{found}");

    flip(&file(node.data_dir(), &archived.layers[0].digest()));
    let found = node.cli_json(&["scrub"]).await;
    assert_eq!((found["damaged_count"].as_u64(), found["healed_count"].as_u64()), (Some(1), Some(1)), "{found}");
    flip(&file(node.data_dir(), &alone.digest()));
    let error = node.cli(&["scrub"]).await.expect_err("something is lost");
    assert!(error.contains("1 layers are lost"), "{error}");
    registry.try_push_blob("team/app", alone).await.expect("push it again");
    let found = node.cli_json(&["scrub"]).await;
    assert_eq!((found["blobs"].as_u64(), found["damaged_count"].as_u64()), (Some(3), Some(0)), "{found}");
    registry.pull_image("team/app", "v1", &archived).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_a_damaged_blob_goes_into_no_pack() {
    let node = node("node").archive("none").start().await;
    let bucket = node.scratch().join("bucket");
    let registry = registry(&node);
    let image = Image::from_seed(31, &[SIZE]);
    registry.push_image("team/app", "v1", &image).await;
    flip(&file(node.data_dir(), &image.layers[0].digest()));
    let mut node = node;
    node.expect_errors();
    node.stop().await;
    node.set_env("LARDER_ARCHIVE__URL", Some(&format!("file://{}", bucket.display())));
    node.start().await;
    let _ = node.cli(&["archive", "flush"]).await;
    let status = node.cli_json(&["archive", "status"]).await;
    let missing = status["missing"].as_array().is_some_and(|missing| missing.iter().any(|one| *one == image.layers[0].digest()));
    assert!(missing || status["pending_records"].as_u64() > Some(0), "the damaged layer counts as archived: {status}");
    let registry = larder_harness::Registry::new(node.url());
    registry.push_image("team/app", "v1", &image).await;
    wait_until("the mended image is archived", SOON, async || {
        let _ = node.cli(&["archive", "flush"]).await;
        let status = node.cli_json(&["archive", "status"]).await;
        (status["missing"].as_array().is_some_and(Vec::is_empty) && status["pending_records"] == 0).then_some(())
    })
    .await;
    remove(&file(node.data_dir(), &image.layers[0].digest()));
    registry.pull_image("team/app", "v1", &image).await;
}
