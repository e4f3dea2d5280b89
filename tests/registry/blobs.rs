//! Pull, check, mount and delete blobs; byte ranges.

use crate::node;
use larder_harness::content::sha512;
use larder_harness::{Body, Content, Registry, sha256};

/// Around every boundary at which a blob is kept or moved differently.
const SIZES: [u64; 9] = [
    0,                // nothing at all
    1,                // the smallest
    (64 << 10) - 1,   // one less than what the index keeps
    64 << 10,         // the largest that the index keeps
    (64 << 10) + 1,   // the smallest file
    (1 << 20) - 1,    // one less than a chunk of the chunk list
    1 << 20,          // one chunk
    (1 << 20) + 1,    // one chunk and a byte
    (3 << 20) + 4567, // several and a rest
];

async fn check(registry: &Registry, range: &str, status: u16, expected: &[u8], digest: &str) {
    let path = format!("/v2/team/app/blobs/{digest}");
    let answer = registry.request("GET", &path, &[("range", range)], Body::empty()).await;
    assert_eq!(answer.status, status, "{range}");
    assert_eq!(answer.body.len(), expected.len(), "{range}");
    assert!(answer.body == expected, "{range}: other bytes");
}

#[tokio::test]
async fn end_1_says_that_this_is_a_registry() {
    let (_node, registry) = node().await;
    registry.get("/v2/").await.expect(200, "ping");
    registry.head("/v2/").await.expect(200, "ping without a body");
    registry.request("POST", "/v2/", &[], Body::empty()).await.expect(405, "ping with another method");
    registry.get("/somewhere").await.expect(404, "an address that means nothing");
}

#[tokio::test]
async fn end_2_blobs_of_every_size_come_back_as_they_were_pushed() {
    let (_node, registry) = node().await;
    for (seed, size) in SIZES.into_iter().enumerate() {
        let content = Content::new(seed as u64, size);
        registry.try_push_blob("team/app", content).await.unwrap_or_else(|error| panic!("push {size} bytes: {error}"));
        let (digest, path) = (content.digest(), format!("/v2/team/app/blobs/{}", content.digest()));
        let head = registry.head(&path).await.expect(200, "check a blob");
        assert_eq!(head.header("content-length"), size.to_string(), "{size}");
        assert_eq!(head.header("docker-content-digest"), digest, "{size}");
        let pulled = registry.pull_blob("team/app", &digest).await.expect("pull a blob");
        assert_eq!((pulled.status, pulled.size, &pulled.digest), (200, size, &digest));
    }
}

#[tokio::test]
async fn end_2_ranges_of_small_and_large_blobs_are_exact() {
    let (_node, registry) = node().await;
    // One kept in the index, one as a file of several chunks.
    for size in [1000, (2 << 20) + 77] {
        let bytes = Content::new(5, size).bytes();
        let digest = registry.push_bytes("team/app", &bytes).await;
        let end = bytes.len();
        check(&registry, "bytes=0-0", 206, &bytes[..1], &digest).await;
        check(&registry, "bytes=10-99", 206, &bytes[10..100], &digest).await;
        check(&registry, &format!("bytes={}-", end - 3), 206, &bytes[end - 3..], &digest).await;
        check(&registry, "bytes=-5", 206, &bytes[end - 5..], &digest).await;
        check(&registry, &format!("bytes=7-{}", u64::MAX), 206, &bytes[7..], &digest).await;
        let beyond =
            registry.request("GET", &format!("/v2/team/app/blobs/{digest}"), &[("range", &format!("bytes={end}-"))], Body::empty()).await;
        assert_eq!(beyond.expect(416, "a range behind the end").header("content-range"), format!("bytes */{end}"));
    }
    let bytes = Content::new(6, (2 << 20) + 5).bytes();
    let digest = registry.push_bytes("team/app", &bytes).await;
    // Across the border of two chunks.
    check(&registry, "bytes=1048570-1048580", 206, &bytes[1_048_570..1_048_581], &digest).await;
}

#[tokio::test]
async fn s22_a_thousand_ranges_get_the_whole_blob() {
    let (_node, registry) = node().await;
    let bytes = Content::new(1, 5000).bytes();
    let digest = registry.push_bytes("team/app", &bytes).await;
    let many: Vec<String> = (0..1000).map(|at| format!("{at}-{at}")).collect();
    check(&registry, &format!("bytes={}", many.join(",")), 200, &bytes, &digest).await;
    check(&registry, "bytes=0-1,3-4", 200, &bytes, &digest).await;
    check(&registry, "bytes=nonsense", 200, &bytes, &digest).await;
}

#[tokio::test]
async fn end_10_a_deleted_blob_is_gone_from_its_repository_only() {
    let (_node, registry) = node().await;
    let bytes = Content::new(2, 200_000).bytes();
    let digest = registry.push_bytes("team/one", &bytes).await;
    registry.push_bytes("team/two", &bytes).await;
    let one = format!("/v2/team/one/blobs/{digest}");
    registry.request("DELETE", &one, &[], Body::empty()).await.expect(202, "delete a blob");
    registry.get(&one).await.expect_error(404, "BLOB_UNKNOWN", "pull a deleted blob");
    registry.request("DELETE", &one, &[], Body::empty()).await.expect_error(404, "BLOB_UNKNOWN", "delete it again");
    let two = registry.pull_blob("team/two", &digest).await.expect("pull from the other repository");
    assert_eq!((two.status, two.digest), (200, digest));
}

#[tokio::test]
async fn end_11_s9_a_mount_takes_a_blob_over_or_opens_an_upload() {
    let (_node, registry) = node().await;
    let digest = registry.push_bytes("team/one", &Content::new(3, 100_000).bytes()).await;
    let mount = |digest: &str, from: &str| format!("/v2/team/two/blobs/uploads/?mount={digest}&from={from}");
    let mounted = registry.request("POST", &mount(&digest, "team/one"), &[], Body::empty()).await.expect(201, "mount");
    assert_eq!(mounted.header("docker-content-digest"), digest);
    registry.get(mounted.header("location")).await.expect(200, "pull from the address that the mount gave");
    let missing = sha256(b"never pushed");
    let upload = registry.request("POST", &mount(&missing, "team/one"), &[], Body::empty()).await.expect(202, "mount what is not there");
    assert!(upload.header("location").contains("/blobs/uploads/"), "{upload:?}");
    // That it is elsewhere is not said: the client named a repository, and that one does not have it.
    let answer = registry.request("POST", &mount(&digest, "team/three"), &[], Body::empty()).await.expect(202, "mount from the wrong one");
    assert_eq!(answer.header("docker-content-digest"), "");
    registry.get(&format!("/v2/team/three/blobs/{digest}")).await.expect(404, "the wrong one still does not have it");
}

#[tokio::test]
async fn end_11_a_mount_without_a_source_takes_the_blob_from_any_repository_that_has_it() {
    let (_node, registry) = node().await;
    let digest = registry.push_bytes("team/one", &Content::new(6, 100_000).bytes()).await;
    let mount = |digest: &str| format!("/v2/team/two/blobs/uploads/?mount={digest}");
    let mounted = registry.request("POST", &mount(&digest), &[], Body::empty()).await.expect(201, "mount");
    assert_eq!(mounted.header("docker-content-digest"), digest);
    registry.get(mounted.header("location")).await.expect(200, "pull from the address that the mount gave");
    registry.request("POST", &mount(&sha256(b"never pushed")), &[], Body::empty()).await.expect(202, "mount what nobody has");
    // Only links count, not what may lie on the disk still.
    for repository in ["one", "two"] {
        let path = format!("/v2/team/{repository}/blobs/{digest}");
        registry.request("DELETE", &path, &[], Body::empty()).await.expect(202, "delete it");
    }
    registry.request("POST", &mount(&digest), &[], Body::empty()).await.expect(202, "mount what nobody has any more");
}

#[tokio::test]
async fn s10_a_blob_is_not_readable_through_a_repository_that_never_linked_it() {
    let (_node, registry) = node().await;
    for size in [1000, 200_000] {
        let bytes = Content::new(size, size).bytes();
        let digest = registry.push_bytes("team/one", &bytes).await;
        // Read once, so that it is in every cache that there may be.
        registry.pull_blob("team/one", &digest).await.expect("pull");
        for repository in ["team/two", "team", "team/one/more", "one"] {
            let path = format!("/v2/{repository}/blobs/{digest}");
            registry.get(&path).await.expect_error(404, "BLOB_UNKNOWN", &path);
            registry.head(&path).await.expect(404, &path);
            registry.request("GET", &path, &[("range", "bytes=0-0")], Body::empty()).await.expect(404, &path);
            registry.request("DELETE", &path, &[], Body::empty()).await.expect(404, &path);
        }
        let path = format!("/v2/team/one/blobs/{digest}");
        registry.request("DELETE", &path, &[], Body::empty()).await.expect(202, "delete it");
        registry.get(&path).await.expect(404, "right after the delete");
        registry.head(&path).await.expect(404, "right after the delete");
        assert_eq!(registry.push_bytes("team/one", &bytes).await, digest, "and pushed again it is back");
        registry.pull_blob("team/one", &digest).await.expect("pull again");
    }
}

#[tokio::test]
async fn s3_a_sha512_blob_is_another_identity_than_the_same_bytes_in_sha256() {
    let (_node, registry) = node().await;
    let bytes = Content::new(4, 3000).bytes();
    let long = sha512(&bytes);
    let post = registry.request("POST", "/v2/team/app/blobs/uploads/?digest-algorithm=sha512", &[], Body::empty()).await;
    let location = larder_harness::registry::with_digest(post.expect(202, "open an upload").header("location"), &long);
    registry.request("PUT", &location, &[], bytes.clone()).await.expect(201, "push under sha512");
    let pulled = registry.get(&format!("/v2/team/app/blobs/{long}")).await.expect(200, "pull under sha512");
    assert_eq!(pulled.body, bytes);
    registry.get(&format!("/v2/team/app/blobs/{}", sha256(&bytes))).await.expect(404, "the same bytes under a name that nobody pushed");
    // The right hex behind the wrong algorithm is no digest at all.
    let confused = long.replace("sha512:", "sha256:");
    registry.get(&format!("/v2/team/app/blobs/{confused}")).await.expect_error(400, "DIGEST_INVALID", "sha512 hex called sha256");
    let wrong = format!("sha512:{}", "0".repeat(128));
    let location = larder_harness::registry::with_digest(&registry.open_upload("team/app").await, &wrong);
    registry.request("PUT", &location, &[], bytes).await.expect_error(400, "DIGEST_INVALID", "a sha512 that is not that of the bytes");
}
