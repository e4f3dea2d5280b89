//! Upload sessions: every way in, what is refused, and what a session knows after it.

use crate::node;
use bytes::Bytes;
use larder_harness::registry::with_digest;
use larder_harness::{Body, Content, Registry, sha256};
use std::io;

async fn append(registry: &Registry, location: &str, range: &str, bytes: Bytes) -> larder_harness::Response {
    registry.request("PATCH", location, &[("content-range", range), ("content-type", "application/octet-stream")], bytes).await
}

#[tokio::test]
async fn end_4a_5_6_every_way_to_push_a_blob_ends_in_the_same_blob() {
    let (_node, registry) = node().await;
    // Larger than what the index keeps, so that it is a file.
    let content = Content::new(1, 300_000);
    registry.try_push_blob("way/stream", content).await.expect("push with POST, a streamed PATCH, PUT");
    registry.try_push_blob_at_once("way/once", content).await.expect("push with POST, PUT");
    registry.try_push_blob_in_parts("way/parts", &content.bytes(), 70_000).await.expect("push with POST, many PATCH, PUT");
    let single = format!("/v2/way/single/blobs/uploads/?digest={}", content.digest());
    let answer = registry.request("POST", &single, &[], Body::content(content)).await.expect(201, "end-4b: push with one POST");
    assert_eq!(answer.header("docker-content-digest"), content.digest());
    for repository in ["way/stream", "way/once", "way/parts", "way/single"] {
        let pulled = registry.pull_blob(repository, &content.digest()).await.expect("pull");
        assert_eq!((pulled.status, pulled.digest), (200, content.digest()), "{repository}");
    }
}

#[tokio::test]
async fn end_4b_one_post_takes_a_blob_whole_in_both_algorithms() {
    let (_node, registry) = node().await;
    for size in [0, 1000, 300_000] {
        let bytes = Content::new(size, size).bytes();
        for digest in [sha256(&bytes), larder_harness::content::sha512(&bytes)] {
            let path = with_digest("/v2/team/app/blobs/uploads/", &digest);
            let answer = registry.request("POST", &path, &[], bytes.clone()).await.expect(201, "push at once");
            assert_eq!(answer.header("docker-content-digest"), digest);
            assert_eq!(registry.get(answer.header("location")).await.expect(200, "pull").body, bytes);
        }
    }
}

#[tokio::test]
async fn end_4c_a_session_is_hashed_by_the_algorithm_that_it_was_opened_with() {
    let (_node, registry) = node().await;
    let bytes = Content::new(9, 200_000).bytes();
    for (algorithm, digest) in [("sha256", sha256(&bytes)), ("sha512", larder_harness::content::sha512(&bytes))] {
        let path = format!("/v2/team/app/blobs/uploads/?digest-algorithm={algorithm}");
        let opened = registry.request("POST", &path, &[], Body::empty()).await.expect(202, "open a session");
        let appended = append(&registry, opened.header("location"), "0-99999", bytes.slice(..100_000)).await.expect(202, "append");
        let location = with_digest(appended.header("location"), &digest);
        let done = registry.request("PUT", &location, &[], bytes.slice(100_000..)).await.expect(201, "finish");
        assert_eq!(done.header("docker-content-digest"), digest);
    }
    for algorithm in ["md5", "SHA512", "", "sha512:"] {
        let path = format!("/v2/team/app/blobs/uploads/?digest-algorithm={algorithm}");
        registry.request("POST", &path, &[], Body::empty()).await.expect_error(400, "DIGEST_INVALID", &path);
    }
}

#[tokio::test]
async fn end_5_each_chunk_is_answered_with_where_the_session_stands() {
    let (_node, registry) = node().await;
    let mut location = registry.open_upload("team/app").await;
    let bytes = Content::new(10, 5000).bytes();
    for (at, end) in [(0, 1), (1, 1000), (1000, 5000)] {
        let answer = append(&registry, &location, &format!("{at}-{}", end - 1), bytes.slice(at..end)).await.expect(202, "append");
        assert_eq!(answer.header("range"), format!("0-{}", end - 1));
        location = answer.header("location").to_owned();
        // No chunk is too small here.
        assert_eq!(answer.header("oci-chunk-min-length"), "");
    }
    registry.try_finish_upload(&location, &sha256(&bytes)).await.expect("finish");
}

#[tokio::test]
async fn end_6_the_last_bytes_may_come_with_the_put() {
    let (_node, registry) = node().await;
    let bytes = Content::new(2, 100_000).bytes();
    let location = registry.open_upload("team/app").await;
    let answer = append(&registry, &location, "0-59999", bytes.slice(..60_000)).await.expect(202, "append");
    let location = with_digest(answer.header("location"), &sha256(&bytes));
    registry.request("PUT", &location, &[("content-range", "60000-99999")], bytes.slice(60_000..)).await.expect(201, "finish with bytes");
    registry.get(&format!("/v2/team/app/blobs/{}", sha256(&bytes))).await.expect(200, "pull");
}

#[tokio::test]
async fn end_13_14_a_session_says_where_it_stands_and_can_be_cancelled() {
    let (_node, registry) = node().await;
    let location = registry.open_upload("team/app").await;
    let answer = append(&registry, &location, "0-999", Content::new(3, 1000).bytes()).await.expect(202, "append");
    assert_eq!(answer.header("range"), "0-999");
    let status = registry.get(&location).await.expect(204, "ask a session");
    assert_eq!(status.header("range"), "0-999");
    assert!(!status.header("location").is_empty());
    registry.request("DELETE", &location, &[], Body::empty()).await.expect(204, "cancel");
    registry.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", "ask a cancelled session");
}

#[tokio::test]
async fn an_upload_goes_on_after_its_connection_broke() {
    let (_node, registry) = node().await;
    let bytes = Content::new(4, 2_000_000).bytes();
    let location = registry.open_upload("team/app").await;
    let half = bytes.slice(..1_000_000);
    let broken = Body::chunked([Ok(half), Err(io::Error::other("the client goes away"))].into_iter());
    assert!(registry.try_request("PATCH", &location, &[], broken).await.is_err(), "a broken request has no answer");
    // The node may notice the break later than its client does: until then a request is told where the session really stands, and
    // the client goes on from there, as clients do.
    let mut at = registry.get(&location).await.expect(204, "ask where it stands");
    let answer = loop {
        let last: usize = at.header("range").trim_start_matches("0-").parse().expect("a range");
        let offset = if last == 0 { 0 } else { last + 1 };
        assert!(offset <= 1_000_000, "the session claims more than was sent: {offset}");
        let range = format!("{offset}-{}", bytes.len() - 1);
        let answer = append(&registry, &location, &range, bytes.slice(offset..)).await;
        if answer.status != 416 || answer.header("range") == at.header("range") {
            break answer.expect(202, "go on");
        }
        at = answer;
    };
    registry.try_finish_upload(answer.header("location"), &sha256(&bytes)).await.expect("finish");
    let pulled = registry.pull_blob("team/app", &sha256(&bytes)).await.expect("pull");
    assert_eq!(pulled.digest, sha256(&bytes));
}

#[tokio::test]
async fn s4_a_digest_that_does_not_match_is_refused_and_nothing_becomes_visible() {
    let (_node, registry) = node().await;
    // In the index, and as a file.
    for size in [1000, 300_000] {
        let bytes = Content::new(5, size).bytes();
        let other = sha256(b"other bytes");
        let location = with_digest(&registry.open_upload("team/app").await, &other);
        registry.request("PUT", &location, &[], bytes.clone()).await.expect_error(400, "DIGEST_INVALID", "finish under another digest");
        registry.get(&format!("/v2/team/app/blobs/{other}")).await.expect(404, "the digest that was claimed");
        registry.get(&format!("/v2/team/app/blobs/{}", sha256(&bytes))).await.expect(404, "the digest that it would have had");
        let single = format!("/v2/team/app/blobs/uploads/?digest={other}");
        registry.request("POST", &single, &[], bytes).await.expect_error(400, "DIGEST_INVALID", "push at once under another digest");
    }
    assert_eq!(registry.tags("team/app").await, Vec::<String>::new());
}

#[tokio::test]
async fn s20_a_session_answers_only_under_its_own_id_and_repository() {
    let (_node, registry) = node().await;
    let location = registry.open_upload("team/one").await;
    let foreign = location.replace("/team/one/", "/team/two/");
    let forged = format!("/v2/team/one/blobs/uploads/{}", "00000000-0000-4000-8000-000000000000");
    let path = "/v2/team/one/blobs/uploads/..%2f..%2fnode.key".to_owned();
    for address in [foreign, forged, path, "/v2/team/one/blobs/uploads/nonsense".to_owned()] {
        registry.get(&address).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", &address);
        registry.request("PATCH", &address, &[], "bytes").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", &address);
        let put = with_digest(&address, &sha256(b"bytes"));
        registry.request("PUT", &put, &[], "bytes").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", &address);
        registry.request("DELETE", &address, &[], Body::empty()).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN", &address);
    }
    registry.get(&location).await.expect(204, "the session itself is still there");
}

#[tokio::test]
async fn s21_chunks_out_of_order_overlapping_or_of_another_size_are_refused() {
    let (_node, registry) = node().await;
    let bytes = Content::new(6, 3000).bytes();
    let location = registry.open_upload("team/app").await;
    append(&registry, &location, "0-999", bytes.slice(..1000)).await.expect(202, "the first chunk");
    let refused = [
        ("2000-2999", 2000..3000),                         // a gap
        ("0-999", 0..1000),                                // the same again
        ("500-1499", 500..1500),                           // an overlap
        ("1000-1499", 1000..2000),                         // more than declared
        ("1000-2999", 1000..2000),                         // less than declared
        ("9223372036854775808-9223372036854775809", 0..2), // 2^63
        ("99999999999999999999999-99999999999999999999999", 0..1),
    ];
    for (range, part) in refused {
        let answer = append(&registry, &location, range, bytes.slice(part)).await;
        assert_eq!(answer.status, 416, "{range}");
        let status = registry.get(&location).await.expect(204, "ask after a refused chunk");
        assert_eq!(status.header("range"), "0-999", "{range} moved the session");
    }
    append(&registry, &location, "nonsense", bytes.slice(..10)).await.expect(400, "a range that is none");
    append(&registry, &location, "1000-2999", bytes.slice(1000..)).await.expect(202, "the right chunk");
    registry.try_finish_upload(&location, &sha256(&bytes)).await.expect("the blob is whole all the same");
}

#[tokio::test]
async fn s21_a_blob_above_the_limit_is_refused_before_and_while_it_comes() {
    let node = larder_harness::Node::builder(env!("CARGO_BIN_EXE_larder")).archive("none");
    let node = node.env("LARDER_REGISTRY__BLOB_SIZE_MAX", "1MiB").start().await;
    let registry = Registry::new(node.url());
    registry.try_push_blob("team/app", Content::new(7, 1 << 20)).await.expect("as large as allowed");
    let content = Content::new(8, (1 << 20) + 1);
    let at_once = format!("/v2/team/app/blobs/uploads/?digest={}", content.digest());
    let answer = registry.try_request("POST", &at_once, &[], Body::content(content)).await;
    // The node may close before all of it is sent, which the client sees as a broken connection.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 413), "a byte more, declared");
    let location = registry.open_upload("team/app").await;
    let answer = registry.try_request("PATCH", &location, &[], Body::chunked(content.chunks().map(Ok))).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 413), "a byte more, not declared");
    registry.get(&format!("/v2/team/app/blobs/{}", content.digest())).await.expect(404, "it is not there");
}

#[tokio::test]
async fn s23_uploads_with_a_content_encoding_are_refused() {
    let (_node, registry) = node().await;
    let location = registry.open_upload("team/app").await;
    let encoded = [("content-encoding", "gzip")];
    registry.request("PATCH", &location, &encoded, "bytes").await.expect(415, "append something encoded");
    registry.request("PUT", "/v2/team/app/manifests/v1", &encoded, "{}").await.expect(415, "push an encoded manifest");
}

#[tokio::test]
async fn one_more_session_than_allowed_is_told_to_come_back() {
    let node = larder_harness::Node::builder(env!("CARGO_BIN_EXE_larder")).archive("none");
    let node = node.env("LARDER_REGISTRY__UPLOADS_MAX", "2").start().await;
    let registry = Registry::new(node.url());
    let first = registry.open_upload("team/app").await;
    registry.open_upload("team/app").await;
    let path = "/v2/team/app/blobs/uploads/";
    let refused = registry.request("POST", path, &[], Body::empty()).await.expect_error(429, "TOOMANYREQUESTS", "a third session");
    assert!(!refused.header("retry-after").is_empty());
    registry.request("DELETE", &first, &[], Body::empty()).await.expect(204, "cancel one");
    registry.request("POST", path, &[], Body::empty()).await.expect(202, "then there is room");
}
