//! A damaged index: nothing wrong is served, and the node says what is broken and what to do.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use larder_harness::{Image, Node, Registry};

use super::{node, registry};

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
    assert!(log.contains("index") && log.contains("is damaged") && log.contains("move the data folder away"), "{log}");
}

#[tokio::test]
async fn f9_a_damaged_list_of_tables_is_refused_with_what_to_do() {
    let (mut node, _) = filled().await;
    for path in files(&node, "MANIFEST") {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("open");
        file.write_all_at(&[0x55; 64], 20).expect("damage it");
    }
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
