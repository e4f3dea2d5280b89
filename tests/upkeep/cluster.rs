//! Garbage of a fleet: it is told only when everybody is heard.

use larder_harness::{Content, Image, wait_until};

use crate::{GRACE, SOON, blob, collected, files, gc, node, registry};

#[tokio::test]
async fn garbage_waits_for_a_member_that_is_not_heard_and_goes_everywhere_then() {
    let first = node("node-1").start().await;
    let mut second = node("node-2").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let content = Content::new(1, 100_000);
    registry(&first).try_push_blob("team/app", content).await.expect("push");
    // Both are owners: the second node fetches its copy.
    wait_until("the second node has its copy", SOON, async || (files(&second) == 1).then_some(())).await;
    second.stop().await;
    tokio::time::sleep(2 * GRACE).await;
    let report = gc(&first).await;
    assert_eq!(report["links"], 0, "{report}");
    assert!(report["waiting_for"][0].as_str().is_some_and(|name| name.starts_with("node-2")), "{report}");
    registry(&first).head(&blob("team/app", &content.digest())).await.expect(200, "a blob of a fleet that is not whole");

    second.start().await;
    wait_until("both disks are empty", SOON, async || {
        for node in [&first, &second] {
            gc(node).await;
        }
        (files(&first) + files(&second) == 0).then_some(())
    })
    .await;
    for node in [&first, &second] {
        registry(node).head(&blob("team/app", &content.digest())).await.expect(404, "a collected blob");
    }
}

#[tokio::test]
async fn an_image_pushed_on_another_node_is_nobodys_garbage() {
    let first = node("node-1").start().await;
    let second = node("node-2").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    let image = Image::from_seed(2, &[100_000]);
    registry(&first).try_push_blobs("team/app", &image).await.expect("blobs on the first node");
    registry(&first).try_push_blob("team/app", Content::new(3, 100_000)).await.expect("and one that nothing needs");
    wait_until("the second node takes the manifest", SOON, async || {
        let answer = registry(&second).put_manifest("team/app", "latest", image.media_type(), image.manifest.clone()).await;
        (answer.status == 201).then_some(())
    })
    .await;
    // Whichever of them comes first for the digest.
    wait_until("one link is collected", SOON, async || {
        let gone = gc(&first).await["links"].as_u64().unwrap_or(0) + gc(&second).await["links"].as_u64().unwrap_or(0);
        (gone == 1).then_some(())
    })
    .await;
    for node in [&first, &second] {
        registry(node).pull_image("team/app", "latest", &image).await;
    }
    collected(&first, 0).await;
}
