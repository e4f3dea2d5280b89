//! What is larger than one request takes goes in parts.

use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image};

use super::{flush, marked_node, node, packs_in, registry};

#[tokio::test(flavor = "multi_thread")]
async fn f30_a_large_pack_goes_in_parts_and_an_error_in_an_answer_of_200_is_one() {
    let s3 = CountingS3::start().await;
    let node = marked_node(node("node").s3(&s3, "fleet").env("LARDER_ARCHIVE__MULTIPART_ABOVE", "5MiB"), &s3).await;
    let image = Image::from_seed(450, &[13 << 20, 100]);
    registry(&node).push_image("team/app", "v1", &image).await;
    s3.inject(Operation::Part, Fault::Unavailable);
    s3.inject(Operation::Part, Fault::DropAnswer);
    s3.inject(Operation::Complete, Fault::Refuse(200, "InternalError"));
    assert_eq!(flush(&node).await, 1);
    assert_eq!(s3.faults_left(), 0, "{:?}", s3.requests());
    assert_eq!((s3.open_uploads(), packs_in(&s3).len()), (0, 2));
    assert_eq!((s3.count(Operation::Begin), s3.count(Operation::Complete)), (1, 2));
    let restored = super::node("fresh").s3(&s3, "fleet").start().await;
    restored.cli(&["restore", &s3.url("fleet")]).await.expect("restore");
    registry(&restored).pull_image("team/app", "v1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f30_an_upload_that_does_not_end_is_given_up_and_put_again_later() {
    let s3 = CountingS3::start().await;
    let node = marked_node(node("node").s3(&s3, "fleet").env("LARDER_ARCHIVE__MULTIPART_ABOVE", "5MiB"), &s3).await;
    let image = Image::from_seed(451, &[11 << 20]);
    registry(&node).push_image("team/app", "v1", &image).await;
    for _ in 0..8 {
        s3.inject(Operation::Complete, Fault::Refuse(200, "InternalError"));
    }
    assert!(node.cli(&["archive", "flush"]).await.is_err());
    s3.clear_faults();
    assert_eq!((s3.open_uploads(), packs_in(&s3).len()), (0, 1), "nobody pays for parts");
    // The completion is done, and its answer is lost.
    s3.inject(Operation::Complete, Fault::DropAnswer);
    assert_eq!(flush(&node).await, 1);
    assert_eq!((s3.open_uploads(), packs_in(&s3).len()), (0, 2));
    registry(&node).pull_image("team/app", "v1", &image).await;
}
