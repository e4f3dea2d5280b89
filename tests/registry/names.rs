//! Names and digests that are none: refused by their grammar, before anything is looked up.

use crate::node;
use larder_harness::{Body, http, sha256};

#[tokio::test]
async fn s1_names_that_break_the_grammar_are_refused_before_any_lookup() {
    let (node, registry) = node().await;
    let long = "a".repeat(256);
    let names = [
        "../../etc/x",
        "a//b",
        "a/../b",
        "%2e%2e/x",
        "%2e%2e%2f%2e%2e",
        "a%00b",
        "Upper",
        "a/B",
        "-a",
        "a-",
        ".a",
        "a..b",
        "a___b",
        "a/",
        "/a",
        "a%20b",
        "%ff",
        "a:b",
        "ä",
        long.as_str(),
    ];
    for name in names {
        for rest in ["tags/list", "manifests/latest", &format!("blobs/{}", sha256(b""))] {
            let request = format!("GET /v2/{name}/{rest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let answer = http::raw(&node.url(), request.as_bytes()).await.expect("an answer");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 400"), "{name} {rest}: {answer}");
            // What is no legal address at all is refused by HTTP itself, without an OCI body.
            assert!(answer.contains("NAME_INVALID") || !name.is_ascii(), "{name} {rest}: {answer}");
        }
        let request = format!("POST /v2/{name}/blobs/uploads/ HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let answer = http::raw(&node.url(), request.as_bytes()).await.expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 400"), "open an upload in {name}: {}", String::from_utf8_lossy(&answer));
    }
    let longest = "a".repeat(255);
    registry.get(&format!("/v2/{longest}/tags/list")).await.expect(404, "the longest name is legal");
    let entries: Vec<_> = std::fs::read_dir(node.scratch()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(entries, ["data"], "something was made outside the data folder");
}

#[tokio::test]
async fn s1_tags_that_break_the_grammar_are_refused() {
    let (_node, registry) = node().await;
    for tag in [".a", "-a", "a%2fb", "a%00", "%2e%2e", &"a".repeat(129), "a%20b"] {
        let path = format!("/v2/team/app/manifests/{tag}");
        registry.get(&path).await.expect(400, &path);
        let headers = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
        registry.request("PUT", &path, &headers, "{}").await.expect(400, &path);
    }
}

#[tokio::test]
async fn s2_digests_that_break_the_grammar_are_refused_everywhere() {
    let (_node, registry) = node().await;
    let hex = &sha256(b"x")["sha256:".len()..];
    let digests = [
        "sha256:..%2f..%2fnode.key".to_owned(),
        "sha256:../../node.key".to_owned(),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}g", &hex[1..]),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}"),
        format!("sha256%00:{hex}"),
        format!("md5:{}", &hex[..32]),
        "md5:".to_owned(),
        "sha256:".to_owned(),
        ":".to_owned(),
    ];
    let location = registry.open_upload("team/app").await;
    for digest in &digests {
        for method in ["GET", "HEAD", "DELETE"] {
            let answer = registry.request(method, &format!("/v2/team/app/blobs/{digest}"), &[], Body::empty()).await;
            // A slash makes another address of it; its name is then what is wrong.
            assert!(answer.status == 400 || digest.contains("../") && answer.status == 404, "{method} {digest}: {}", answer.status);
        }
        if !digest.contains("../") {
            registry.get(&format!("/v2/team/app/blobs/{digest}")).await.expect_error(400, "DIGEST_INVALID", digest);
            registry.get(&format!("/v2/team/app/manifests/{digest}")).await.expect(400, digest);
        }
        let put = larder_harness::registry::with_digest(&location, digest);
        registry.request("PUT", &put, &[], "x").await.expect_error(400, "DIGEST_INVALID", &format!("finish as {digest}"));
    }
    registry.request("PUT", &location, &[], "x").await.expect_error(400, "DIGEST_INVALID", "finish without a digest");
    registry.get(&location).await.expect(204, "the session is still there");
    registry.try_finish_upload(&location, &sha256(b"")).await.expect("and still empty");
}
