//! F6: the disk is full. Pushes are put off with words that help, reads and deletes go on, nothing is restarted.

use larder_harness::{Content, Image, Node, http, wait_until};

use super::mount::Mount;
use super::{SOON, logged, node, registry};

const MIB: u64 = 1 << 20;
/// Room for one of the images below and not for two: the reserve is 16 MiB, and the index takes some.
const DISK: u64 = 64 * MIB;
const LAYER: u64 = 30 * MIB;
/// More than is left then, and little enough that a node reads it to its end to get its answer through.
const SECOND: u64 = 12 * MIB;

async fn start(mount: &Mount) -> Node {
    let node = node("node").archive("none").env("LARDER_DATA_DIR", mount.data().to_string_lossy());
    node.env("LARDER_GC__GRACE", "1s").env("LARDER_GC__TRASH", "0s").env("LARDER_GC__PERIOD", "0s").start().await
}

async fn push(node: &Node, repository: &str, content: Content) -> http::Response {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", content.digest());
    registry(node).request("POST", &path, &[], http::Body::content(content)).await
}

fn assert_put_off(answer: &http::Response) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.error_code(), "UNAVAILABLE");
    assert!(!answer.header("retry-after").is_empty());
    let words = answer.json()["errors"][0]["message"].as_str().expect("a message").to_owned();
    assert!(words.contains("disk is full") && !words.contains("/tmp"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_pushes_are_put_off_reads_go_on_and_a_delete_makes_room() {
    let Some(mount) = Mount::new(DISK) else { return };
    let mut node = start(&mount).await;
    let image = Image::from_seed(1, &[LAYER]);
    registry(&node).push_image("team/app", "v1", &image).await;

    let second = Content::new(2, SECOND);
    for _ in 0..5 {
        let answer = push(&node, "team/app", second).await;
        assert_put_off(&answer);
        assert!(answer.json()["errors"][0]["message"].to_string().contains("12.0 MiB more are needed"), "{answer:?}");
    }
    // A client that asks before it sends is told so before it has sent anything.
    let head = format!(
        "POST /v2/team/app/blobs/uploads/?digest={} HTTP/1.1\r\nhost: a\r\ncontent-length: {SECOND}\r\nexpect: 100-continue\r\n\
         connection: close\r\n\r\n",
        second.digest()
    );
    let answer = http::raw(&node.url(), head.as_bytes()).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&answer));
    // One that does not say how much comes is stopped on the way.
    let location = registry(&node).open_upload("team/app").await;
    let body = http::Body::chunked(second.chunks().map(Ok));
    let answer = registry(&node).request("PATCH", &location, &[], body).await;
    assert_put_off(&answer);
    registry(&node).request("DELETE", &location, &[], http::Body::empty()).await.expect(204, "cancel");

    registry(&node).pull_image("team/app", "v1", &image).await;
    let small = push(&node, "team/app", Content::new(3, MIB)).await;
    assert_eq!(small.status, 201, "what fits is taken: {small:?}");
    let disk = node.cli_json(&["status"]).await["disk"].clone();
    assert_eq!(disk["reserved"], 0, "what was refused or has ended gives back what it reserved: {disk}");
    assert_eq!((disk["capacity"].as_u64(), disk["reserve"].as_u64()), (Some(DISK), Some(16 * MIB)));
    assert_eq!(logged(&node, "the disk is full: pushes are refused"), 1, "once, and not for each request");

    registry(&node).request("DELETE", &format!("/v2/team/app/manifests/{}", image.digest()), &[], http::Body::empty()).await;
    wait_until("the garbage is gone", SOON, async || {
        node.cli(&["gc"]).await.expect("gc");
        (!mount.holds(&image.layers[0].digest())).then_some(())
    })
    .await;
    assert_eq!(push(&node, "team/app", second).await.status, 201);
    wait_until("the log says that there is room", SOON, async || (logged(&node, "the disk has room again") == 1).then_some(())).await;
    assert!(node.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_a_disk_that_another_program_fills_is_used_again_when_it_is_freed() {
    let Some(mount) = Mount::new(DISK) else { return };
    let mut node = start(&mount).await;
    let image = Image::from_seed(1, &[2 * MIB, 10_000]);
    registry(&node).push_image("team/app", "v1", &image).await;
    for round in 0..2 {
        let others = mount.fill();
        assert_put_off(&push(&node, "team/app", Content::new(2, 10)).await);
        let manifest = registry(&node).put_manifest("team/app", "v2", image.media_type(), image.manifest.clone()).await;
        assert_put_off(&manifest);
        // A delete is not held back by the reserve: it reaches the index, whose log takes it or not.
        let mut deletes = Vec::new();
        for number in 0..2000 {
            let deleted = registry(&node).request("DELETE", "/v2/team/app/manifests/v1", &[], http::Body::empty()).await.status;
            deletes.push(deleted);
            if deleted == 503 || number > 0 && deleted == 404 {
                break;
            }
        }
        assert!(deletes.iter().all(|status| [202, 404, 503].contains(status)), "{deletes:?}");
        for layer in &image.layers {
            let pulled = registry(&node).pull_blob("team/app", &layer.digest()).await.expect("reads go on");
            assert_eq!((pulled.status, pulled.digest), (200, layer.digest()));
        }
        std::fs::remove_file(others).expect("make room");
        wait_until("pushes are taken again", SOON, async || {
            let pushed = registry(&node).put_manifest("team/app", "v1", image.media_type(), image.manifest.clone()).await;
            (pushed.status == 201).then_some(())
        })
        .await;
        let more = Image::from_seed(10 + round, &[MIB]);
        registry(&node).push_image("team/app", "v3", &more).await;
        registry(&node).pull_image("team/app", "v3", &more).await;
        registry(&node).pull_image("team/app", "v1", &image).await;
    }
    assert!(node.is_running());
    // What was written is there after a start, too.
    node.kill_and_restart().await;
    registry(&node).pull_image("team/app", "v1", &image).await;
}
