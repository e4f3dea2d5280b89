//! What holds for every request: headers that say which content it is, conditions, errors in the specification's form, parameters that
//! mean nothing here.

use crate::node;
use larder_harness::{Body, Image, sha256};
use serde_json::Value;

/// SPEC: error codes; and what the listings of Docker's own specification say of a bad `n`.
const CODES: [&str; 15] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
    "PAGINATION_NUMBER_INVALID",
];

#[tokio::test]
async fn end_2_3_content_is_named_by_digest_and_tag_and_sent_again_only_when_it_differs() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(1, &[100, 200_000]);
    registry.push_image("team/app", "v1", &image).await;
    let mut content = vec![("manifests/v1".to_owned(), image.digest()), (format!("manifests/{}", image.digest()), image.digest())];
    content.extend(image.layers.iter().map(|layer| (format!("blobs/{}", layer.digest()), layer.digest())));
    for (path, digest) in content {
        let path = format!("/v2/team/app/{path}");
        let etag = format!("\"{digest}\"");
        for method in ["GET", "HEAD"] {
            let answer = registry.request(method, &path, &[], Body::empty()).await.expect(200, &path);
            assert_eq!((answer.header("docker-content-digest"), answer.header("etag")), (&*digest, &*etag), "{method} {path}");
            let same = registry.request(method, &path, &[("if-none-match", &etag)], Body::empty()).await.expect(304, &path);
            assert_eq!((same.header("docker-content-digest"), same.header("etag"), same.body.len()), (&*digest, &*etag, 0));
            registry.request(method, &path, &[("if-none-match", "\"other\"")], Body::empty()).await.expect(200, &path);
        }
    }
}

#[tokio::test]
async fn parameters_that_mean_nothing_here_are_ignored() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(2, &[100]);
    registry.push_image("team/app", "v1", &image).await;
    // What a mirror is asked by containerd, and what nobody asks.
    for query in ["ns=docker.io", "ns=docker.io&unknown=1", "%ff", "n=-1"] {
        for path in [format!("manifests/v1?{query}"), format!("blobs/{}?{query}", image.layers[0].digest())] {
            let answer = registry.get(&format!("/v2/team/app/{path}")).await.expect(200, &path);
            // It is only for those who went by it.
            assert_eq!(answer.header("oci-namespace"), "");
        }
    }
    registry.get("/v2/team/app/tags/list?ns=docker.io").await.expect(200, "tags with a namespace");
}

#[tokio::test]
async fn every_refusal_has_a_code_of_the_specification_and_words() {
    let (_node, registry) = node().await;
    registry.push_image("team/app", "v1", &Image::from_seed(3, &[100])).await;
    let nobody = sha256(b"nobody has it");
    let session = registry.open_upload("team/app").await;
    let requests = [
        ("GET", "/v2/nothing".to_owned(), 404),
        ("PUT", "/v2/team/app/tags/list".to_owned(), 405),
        ("GET", "/v2/TEAM/tags/list".to_owned(), 400),
        ("GET", "/v2/team/none/tags/list".to_owned(), 404),
        ("GET", format!("/v2/team/app/blobs/{nobody}"), 404),
        ("GET", "/v2/team/app/blobs/sha256:0".to_owned(), 400),
        ("GET", "/v2/team/app/manifests/none".to_owned(), 404),
        ("GET", "/v2/team/app/manifests/-bad-".to_owned(), 400),
        ("PUT", "/v2/team/app/manifests/v2".to_owned(), 400),
        ("DELETE", format!("/v2/team/app/manifests/{nobody}"), 404),
        ("DELETE", format!("/v2/team/app/blobs/{nobody}"), 404),
        ("DELETE", "/v2/team/none/manifests/v1".to_owned(), 404),
        ("GET", "/v2/team/app/referrers/sha256:0".to_owned(), 400),
        ("POST", "/v2/team/app/blobs/uploads/?digest-algorithm=md5".to_owned(), 400),
        ("POST", format!("/v2/team/app/blobs/uploads/?digest={nobody}"), 400),
        ("POST", "/v2/team/app/blobs/uploads/?mount=sha256:0".to_owned(), 400),
        ("PUT", session.clone(), 400),
        ("PUT", format!("{session}?digest=md5:0"), 400),
        ("PATCH", "/v2/team/app/blobs/uploads/gone".to_owned(), 404),
    ];
    for (method, path, status) in requests {
        let answer = registry.request(method, &path, &[], Body::empty()).await.expect(status, &format!("{method} {path}"));
        assert_eq!(answer.header("content-type"), "application/json", "{method} {path}");
        let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
        assert!(!errors.is_empty(), "{method} {path}");
        for error in errors {
            assert!(CODES.contains(&error["code"].as_str().unwrap_or_default()), "{method} {path}: {error}");
            assert!(matches!(&error["message"], Value::String(words) if !words.is_empty()), "{method} {path}: {error}");
        }
    }
}
