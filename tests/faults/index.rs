//! A damaged index: nothing wrong is served, the node says what is broken and what to do, and that brings everything back.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use larder_harness::{Image, Node, Registry, wait_until};

use super::{SOON, node, registry};

/// Files of the node's index with this in their name.
fn files(node: &Node, part: &str) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(node.data_dir().join("index")).expect("the index");
    let mut files: Vec<_> =
        listed.map(|entry| entry.expect("readable").path()).filter(|path| path.to_string_lossy().contains(part)).collect();
    files.sort();
    assert!(!files.is_empty(), "no {part} in the index");
    files
}

/// A stopped node with images, whose index rests in table files.
async fn filled() -> (Node, Vec<Image>) {
    let mut node = node("node").archive("none").errors_expected().start().await;
    let images: Vec<_> = (0..20).map(|seed| Image::from_seed(seed, &[1000])).collect();
    for (number, image) in images.iter().enumerate() {
        registry(&node).push_image("team/app", &format!("v{number}"), image).await;
    }
    // A start writes what it finds in the log into tables.
    node.restart().await;
    node.stop().await;
    (node, images)
}

/// What a start that is refused has to say.
async fn refused(node: &mut Node) {
    let status = node.ended(Duration::from_secs(20)).await;
    let log = node.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("index") && log.contains("is damaged") && log.contains("move that folder away"), "{log}");
}

#[tokio::test]
async fn f9_a_damaged_list_of_tables_is_refused_with_what_to_do() {
    let (mut node, _) = filled().await;
    damage_the_list_of_tables(&node);
    node.spawn();
    refused(&mut node).await;
}

#[tokio::test]
async fn f9_damaged_tables_serve_nothing_that_is_wrong() {
    // In the middle of each table, and at its end, where it says what is in it.
    for at_the_end in [false, true] {
        let (mut node, images) = filled().await;
        for path in files(&node, ".sst") {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
            let size = file.metadata().expect("look").len();
            let place = if at_the_end { size - 60 } else { size / 3 };
            file.write_all_at(&[0xaa; 40], place).expect("damage it");
        }
        node.spawn();
        let ready = larder_harness::wait::try_until(Duration::from_secs(20), async || {
            let url = format!("{}/readyz", node.url());
            let answers = larder_harness::http::request("GET", &url, &[], larder_harness::Body::empty())
                .await
                .is_ok_and(|answer| answer.status == 200);
            if answers || !node.is_running() { Some(answers) } else { None }
        });
        if ready.await != Some(true) {
            refused(&mut node).await;
            continue;
        }
        let registry = Registry::new(node.url());
        for (number, image) in images.iter().enumerate() {
            for reference in [format!("v{number}"), image.digest()] {
                let answer = registry.get(&format!("/v2/team/app/manifests/{reference}")).await;
                match answer.status {
                    200 => assert_eq!(answer.body, image.manifest, "{reference}"),
                    500 => {}
                    other => panic!("{reference}: {other}, as if it had never been pushed"),
                }
            }
        }
        let found = node.cli(&["scrub"]).await;
        assert!(found.as_ref().is_err_and(|error| error.contains("index")), "the scrub finds it: {found:?}");
    }
}

/// Moves the index away, as a person does who was told to.
fn move_the_index_away(node: &Node) {
    let index = node.data_dir().join("index");
    std::fs::rename(&index, node.scratch().join("damaged-index")).expect("move the index away");
}

fn damage_the_list_of_tables(node: &Node) {
    for path in files(node, "MANIFEST") {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("open");
        file.write_all_at(&[0x55; 64], 20).expect("damage it");
    }
}

/// Images with layers in the index and in files, under tags of their own.
async fn push_images(node: &Node) -> Vec<(String, Image)> {
    let images: Vec<_> = (0..6).map(|seed| (format!("v{seed}"), Image::from_seed(50 + seed, &[1000, 200_000, (1 << 20) + 7]))).collect();
    for (tag, image) in &images {
        registry(node).push_image("team/app", tag, image).await;
    }
    images
}

async fn served(node: &Node, images: &[(String, Image)]) {
    for (tag, image) in images {
        registry(node).pull_image("team/app", tag, image).await;
    }
    assert_eq!(registry(node).tags("team/app").await.len(), images.len());
}

async fn metric(node: &Node, line: &str) -> u64 {
    let page = registry(node).get("/metrics").await;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    text.lines().find_map(|found| found.strip_prefix(&format!("{line} "))?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn f9_without_its_index_a_node_gets_records_from_a_peer_and_layers_from_its_own_files() {
    let mut first = node("node-1").archive("none").errors_expected().start().await;
    let second = node("node-2").archive("none").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let images = push_images(&first).await;
    wait_until("the second node knows all tags", SOON, async || {
        (registry(&second).tags("team/app").await.len() == images.len()).then_some(())
    })
    .await;
    // What lies in the index itself goes with it, so the other has to have it.
    for digest in images.iter().flat_map(|(_, image)| [larder_harness::sha256(&image.config), image.layers[0].digest()]) {
        assert_eq!(registry(&second).pull_blob("team/app", &digest).await.expect("pull a small blob").digest, digest);
    }
    // The second node may owe no copy of this one, so that only the first has it.
    first.restart().await;
    first.stop().await;
    damage_the_list_of_tables(&first);
    first.spawn();
    refused(&mut first).await;

    move_the_index_away(&first);
    first.start().await;
    let token = second.cli(&["token"]).await.expect("token");
    first.cli(&["join", &token]).await.expect("join again");
    wait_until("the tags are back", SOON, async || (registry(&first).tags("team/app").await.len() == images.len()).then_some(())).await;
    served(&first, &images).await;
    served(&second, &images).await;
    // It is a member as before, and what it writes now is taken by the other.
    let image = Image::from_seed(70, &[100_000]);
    registry(&first).push_image("team/app", "after", &image).await;
    wait_until("the other has it", SOON, async || {
        (registry(&second).head("/v2/team/app/manifests/after").await.status == 200).then_some(())
    })
    .await;
    registry(&second).pull_image("team/app", "after", &image).await;
    // Not one of the layers that lay here came over the network.
    let fetched = metric(&first, "larder_fetched_bytes_total{kind=\"peer\"}").await;
    assert!(fetched < 200_000, "{fetched} bytes came from the peer");
}

#[tokio::test(flavor = "multi_thread")]
async fn f9_without_its_index_a_node_gets_everything_from_its_archive() {
    let mut node = node("node").errors_expected().start().await;
    let images = push_images(&node).await;
    node.cli(&["archive", "flush"]).await.expect("flush");
    let archive = format!("file://{}", node.data_dir().join("archive").display());
    node.restart().await;
    node.stop().await;
    damage_the_list_of_tables(&node);
    node.spawn();
    refused(&mut node).await;

    move_the_index_away(&node);
    // One layer that lay in a file here is not what it was: it comes from the archive.
    let hex = images[0].1.layers[2].digest()["sha256:".len()..].to_owned();
    let file = node.data_dir().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("open a blob file");
    file.write_all_at(b"something else", 500_000).expect("damage it");
    node.start().await;
    node.cli(&["restore", &archive]).await.expect("restore");
    served(&node, &images).await;
    // And what it says is kept: a second start needs nothing of it.
    node.restart().await;
    served(&node, &images).await;
    assert_eq!(metric(&node, "larder_fetched_blobs_total{kind=\"archive\"}").await, 0);
}
