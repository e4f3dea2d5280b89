//! Push, pull and delete manifests by tag and by digest.

use crate::node;
use larder_harness::{Body, Image, Kind, sha256};

#[tokio::test]
async fn end_3_7a_images_of_both_kinds_come_back_by_tag_and_by_digest() {
    let (_node, registry) = node().await;
    for (kind, tag) in [(Kind::Oci, "oci"), (Kind::Docker, "docker")] {
        let image = Image::of_kind(kind, 1, &[1000, 200_000]);
        registry.push_image("team/app", tag, &image).await;
        registry.pull_image("team/app", tag, &image).await;
        registry.pull_image("team/app", &image.digest(), &image).await;
        let head = registry.head(&format!("/v2/team/app/manifests/{tag}")).await.expect(200, "check a manifest");
        assert_eq!(head.header("docker-content-digest"), image.digest());
        assert_eq!(head.header("content-type"), kind.manifest());
        assert_eq!(head.header("content-length"), image.manifest.len().to_string());
    }
}

#[tokio::test]
async fn end_7a_an_index_and_its_images_come_back() {
    let (_node, registry) = node().await;
    for (kind, tag) in [(Kind::Oci, "oci"), (Kind::Docker, "docker")] {
        let images = [Image::of_kind(kind, 2, &[500]), Image::of_kind(kind, 3, &[600])];
        let index = registry.push_index("team/multi", tag, kind, &images).await;
        let pulled = registry.pull_manifest("team/multi", tag).await.expect(200, "pull an index");
        assert_eq!(pulled.body, index);
        assert_eq!(pulled.header("content-type"), kind.index());
        for image in &images {
            registry.pull_image("team/multi", &image.digest(), image).await;
        }
    }
}

#[tokio::test]
async fn end_7a_a_tag_moves_to_what_was_pushed_last() {
    let (_node, registry) = node().await;
    let (first, second) = (Image::from_seed(4, &[100]), Image::from_seed(5, &[100]));
    registry.push_image("team/app", "latest", &first).await;
    registry.push_image("team/app", "latest", &second).await;
    registry.pull_image("team/app", "latest", &second).await;
    registry.pull_image("team/app", &first.digest(), &first).await;
}

#[tokio::test]
async fn end_7a_the_digest_of_the_address_must_be_that_of_the_manifest() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(6, &[100]);
    registry.try_push_blobs("team/app", &image).await.expect("push the blobs");
    let wrong = sha256(b"another manifest");
    let answer = registry.put_manifest("team/app", &wrong, image.media_type(), image.manifest.clone()).await;
    answer.expect_error(400, "DIGEST_INVALID", "a manifest under another digest");
    registry.get(&format!("/v2/team/app/manifests/{}", image.digest())).await.expect(404, "it was not stored");
}

#[tokio::test]
async fn end_7a_what_a_manifest_is_pushed_as_is_what_it_is_served_as_byte_for_byte() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(7, &[100]);
    registry.try_push_blobs("team/app", &image).await.expect("push the blobs");
    // Spaces and the order of keys are part of the digest.
    let spaced = String::from_utf8(image.manifest.to_vec()).expect("JSON is text").replace("\":", "\" :\n  ");
    registry.put_manifest("team/app", "spaced", image.media_type(), spaced.as_str()).await.expect(201, "push with spaces");
    let pulled = registry.pull_manifest("team/app", "spaced").await.expect(200, "pull with spaces");
    assert_eq!(pulled.body, spaced.as_bytes());
}

#[tokio::test]
async fn end_7b_a_push_by_digest_may_name_tags_and_the_answer_says_which() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(10, &[100]);
    registry.try_push_blobs("team/app", &image).await.expect("push the blobs");
    for digest in [image.digest(), larder_harness::content::sha512(&image.manifest)] {
        let tags: Vec<String> = (0..12).map(|number| format!("{}-{number}", &digest[..6])).collect();
        let query = tags.iter().map(|tag| format!("tag={tag}")).collect::<Vec<_>>().join("&");
        let reference = format!("{digest}?{query}");
        let answer = registry.put_manifest("team/app", &reference, image.media_type(), image.manifest.clone()).await.expect(201, "push");
        assert_eq!(answer.header("docker-content-digest"), digest);
        let named: Vec<_> = answer.headers.get_all("oci-tag").iter().flat_map(|value| value.to_str().expect("text").split(", ")).collect();
        assert_eq!(named, tags);
        for tag in &tags {
            let head = registry.head(&format!("/v2/team/app/manifests/{tag}")).await.expect(200, tag);
            assert_eq!(head.header("docker-content-digest"), digest);
        }
    }
    // All of them or none.
    for query in ["tag=good&tag=-bad-".to_owned(), format!("tag=good&{}", vec!["tag=t"; 100].join("&"))] {
        let reference = format!("{}?{query}", image.digest());
        let answer = registry.put_manifest("team/app", &reference, image.media_type(), image.manifest.clone()).await;
        assert!(matches!(answer.status, 400 | 414), "{query}: {}", answer.status);
        registry.get("/v2/team/app/manifests/good").await.expect(404, "a tag of a push that was refused");
    }
    let plain = registry.put_manifest("team/app", &image.digest(), image.media_type(), image.manifest.clone()).await;
    assert_eq!(plain.expect(201, "without tags").header("oci-tag"), "");
}

#[tokio::test]
async fn end_7a_a_push_replaces_only_what_its_client_has_seen_when_it_says_so() {
    let (_node, registry) = node().await;
    let images = [11, 12, 13].map(|seed| Image::from_seed(seed, &[100]));
    for image in &images {
        registry.try_push_blobs("team/app", image).await.expect("push the blobs");
    }
    let push = async |image: &Image, header: &str, value: &str| {
        let headers = [("content-type", image.media_type()), (header, value)];
        registry.request("PUT", "/v2/team/app/manifests/latest", &headers, image.manifest.clone()).await
    };
    let tag = |image: &Image| format!("\"{}\"", image.digest());
    push(&images[0], "if-match", "*").await.expect_error(412, "DENIED", "replace what is not there");
    push(&images[0], "if-none-match", "*").await.expect(201, "be the first");
    let refused = push(&images[1], "if-none-match", "*").await.expect_error(412, "DENIED", "be the first again");
    assert_eq!(refused.header("etag"), tag(&images[0]), "it says what stands");
    push(&images[1], "if-match", &tag(&images[2])).await.expect_error(412, "DENIED", "replace another one");
    registry.pull_image("team/app", "latest", &images[0]).await;
    // Two have seen the same; one comes first.
    let seen = tag(&images[0]);
    let (one, two) = tokio::join!(push(&images[1], "if-match", &seen), push(&images[2], "if-match", &seen));
    let mut statuses = [one.status, two.status];
    statuses.sort();
    assert_eq!(statuses, [201, 412]);
}

#[tokio::test]
async fn end_9_deleting_a_tag_keeps_the_manifest_and_deleting_the_manifest_takes_its_tags() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(8, &[100]);
    for tag in ["one", "two", "three"] {
        registry.push_image("team/app", tag, &image).await;
    }
    registry.request("DELETE", "/v2/team/app/manifests/one", &[], Body::empty()).await.expect(202, "delete a tag");
    registry.get("/v2/team/app/manifests/one").await.expect_error(404, "MANIFEST_UNKNOWN", "a deleted tag");
    registry.pull_image("team/app", "two", &image).await;
    let path = format!("/v2/team/app/manifests/{}", image.digest());
    registry.request("DELETE", &path, &[], Body::empty()).await.expect(202, "delete a manifest");
    for reference in ["two", "three", &image.digest()] {
        registry.get(&format!("/v2/team/app/manifests/{reference}")).await.expect_error(404, "MANIFEST_UNKNOWN", reference);
    }
    registry.request("DELETE", &path, &[], Body::empty()).await.expect_error(404, "MANIFEST_UNKNOWN", "delete it again");
    // What was deleted can be pushed again.
    registry.push_image("team/app", "two", &image).await;
    registry.pull_image("team/app", "two", &image).await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let (mut node, registry) = node().await;
    let image = Image::from_seed(9, &[0, 1, 70_000, 2_000_000]);
    registry.push_image("team/app", "v1", &image).await;
    registry.push_image("team/gone", "v1", &image).await;
    registry.request("DELETE", "/v2/team/gone/manifests/v1", &[], Body::empty()).await.expect(202, "delete a tag");
    node.restart().await;
    registry.pull_image("team/app", "v1", &image).await;
    registry.get("/v2/team/gone/manifests/v1").await.expect(404, "a tag deleted before the restart");
}
