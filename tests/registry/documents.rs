//! Manifests that are too large, too deep, ambiguous, or about content that is not there.

use crate::node;
use bytes::Bytes;
use larder_harness::{Body, Image, Kind, Registry, http};
use serde_json::{Value, json};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A valid manifest, its blobs pushed, to be changed.
async fn manifest(registry: &Registry) -> Value {
    let image = Image::from_seed(1, &[100, 200]);
    registry.try_push_blobs("team/app", &image).await.expect("push the blobs");
    serde_json::from_slice(&image.manifest).expect("a manifest is JSON")
}

async fn check(registry: &Registry, media_type: &str, body: impl Into<Bytes>, status: u16, what: &str) {
    let answer = registry.put_manifest("team/app", "tag", media_type, body.into()).await;
    assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
    assert!(!answer.error_code().is_empty(), "{what}: no error body");
    registry.get("/v2/team/app/manifests/tag").await.expect(404, what);
}

#[tokio::test]
async fn s5_a_manifest_above_the_limit_is_refused_without_reading_it() {
    let (node, registry) = node().await;
    let mut padded = manifest(&registry).await.to_string();
    padded.insert_str(1, &" ".repeat((5 << 20) - padded.len()));
    let headers = [("content-type", OCI)];
    let big = registry.try_request("PUT", "/v2/team/app/manifests/tag", &headers, padded.into_bytes()).await;
    // A node that answers and closes while the client still sends may look like a broken connection.
    assert!(big.is_err() || big.is_ok_and(|answer| answer.status == 413), "5 MiB");
    // A gigabyte that is only announced: the answer comes before any of it does.
    let announced = format!(
        "PUT /v2/team/app/manifests/tag HTTP/1.1\r\nhost: x\r\ncontent-type: {OCI}\r\ncontent-length: 1073741824\r\nconnection: close\r\n\r\n{{"
    );
    let answer = http::raw(&node.url(), announced.as_bytes()).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    // Endless, without a length.
    let endless = Body::chunked(std::iter::repeat_with(|| Ok(Bytes::from(vec![b' '; 65_536]))));
    let answer = registry.try_request("PUT", "/v2/team/app/manifests/tag", &headers, endless).await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 413), "endless");
    registry.get("/v2/team/app/manifests/tag").await.expect(404, "nothing was stored");
    assert!(node.memory_peak_bytes() < 200 << 20, "{} bytes", node.memory_peak_bytes());
}

#[tokio::test]
async fn s6_json_that_is_too_deep_too_wide_or_no_json_is_refused() {
    let (_node, registry) = node().await;
    let valid = manifest(&registry).await;
    let text = valid.to_string();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = valid.clone();
        change(&mut manifest);
        manifest.to_string()
    };
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let descriptor = valid["layers"][0].to_string();
    let many = vec![descriptor.as_str(); 10_001].join(",");
    let layers = valid["layers"].to_string();
    let mut latin = text.clone().into_bytes();
    latin.splice(1..1, *b"\"note\":\"\xff\xfe\",");
    check(&registry, OCI, "", 400, "nothing").await;
    check(&registry, OCI, "[]", 400, "no object").await;
    check(&registry, OCI, "null", 400, "null").await;
    check(&registry, OCI, "{}", 400, "an empty object").await;
    check(&registry, OCI, text[..text.len() - 1].to_owned(), 400, "cut off").await;
    check(&registry, OCI, format!("{text}x"), 400, "something behind it").await;
    check(&registry, OCI, latin, 400, "not UTF-8").await;
    check(&registry, OCI, text.replacen('{', &format!("{{\"annotations\":{nested},"), 1), 400, "10,000 levels").await;
    check(&registry, OCI, text.replacen('{', "{\"schemaVersion\":2,", 1), 400, "a key twice").await;
    check(&registry, OCI, text.replace(&layers, &format!("[{many}]")), 400, "10,001 layers").await;
    check(&registry, OCI, changed(&|manifest| manifest["layers"][0]["size"] = json!(-1)), 400, "a size of -1").await;
    check(&registry, OCI, changed(&|manifest| manifest["layers"][0]["size"] = json!(1_u64 << 63)), 400, "a size of 2^63").await;
    check(&registry, OCI, changed(&|manifest| manifest["layers"][0]["size"] = json!("100")), 400, "a size that is text").await;
    check(&registry, OCI, changed(&|manifest| manifest["layers"][0]["digest"] = json!("sha256:../x")), 400, "a digest that is none").await;
    check(&registry, OCI, changed(&|manifest| manifest["layers"] = json!(7)), 400, "layers that are no list").await;
    // The descriptors of 1 million layers are more than a manifest may have bytes.
    let million = format!("{{\"layers\":[{}]}}", vec!["{}"; 1_000_000].join(","));
    check(&registry, OCI, million, 400, "1,000,000 descriptors").await;
    registry.put_manifest("team/app", "tag", OCI, text.as_str()).await.expect(201, "and unchanged it is taken");
}

#[tokio::test]
async fn s7_a_manifest_that_may_be_read_in_two_ways_is_refused() {
    let (_node, registry) = node().await;
    let valid = manifest(&registry).await;
    let text = valid.to_string();
    let mut both = valid.clone();
    both["manifests"] = json!([]);
    let mut untyped = both.clone();
    untyped.as_object_mut().expect("an object").remove("mediaType");
    check(&registry, INDEX, text.clone(), 400, "an image pushed as an index").await;
    check(&registry, Kind::Docker.manifest(), text.clone(), 400, "an OCI image pushed as Docker's").await;
    check(&registry, OCI, both.to_string(), 400, "layers and manifests").await;
    check(&registry, OCI, untyped.to_string(), 400, "layers and manifests, without a type, as an image").await;
    check(&registry, INDEX, untyped.to_string(), 400, "layers and manifests, without a type, as an index").await;
    let answer = registry.put_manifest("team/app", "tag", "text", text.as_str()).await;
    answer.expect_error(400, "MANIFEST_INVALID", "a media type that is none");
}

#[tokio::test]
async fn s8_a_manifest_over_blobs_that_this_repository_lacks_is_refused_alike_wherever_they_are() {
    let (_node, registry) = node().await;
    let (elsewhere, nowhere) = (Image::from_seed(2, &[100]), Image::from_seed(3, &[100]));
    registry.push_image("team/other", "v1", &elsewhere).await;
    let mut answers = Vec::new();
    for image in [&elsewhere, &nowhere] {
        let answer = registry.put_manifest("team/app", "v1", image.media_type(), image.manifest.clone()).await;
        let answer = answer.expect_error(400, "MANIFEST_BLOB_UNKNOWN", "a manifest without its blobs");
        // Apart from the digests, nothing tells the two apart.
        let digests: Vec<String> = image.layers.iter().map(|layer| layer.digest()).chain([larder_harness::sha256(&image.config)]).collect();
        let text = String::from_utf8(answer.body.to_vec()).expect("text");
        answers.push(digests.iter().fold(text, |text, digest| text.replace(digest, "DIGEST")));
    }
    assert_eq!(answers[0], answers[1]);
    let index = larder_harness::image::index(Kind::Oci, &[elsewhere]);
    let answer = registry.put_manifest("team/app", "index", INDEX, index).await;
    answer.expect_error(400, "MANIFEST_BLOB_UNKNOWN", "an index over an image of another repository");
    assert_eq!(registry.tags("team/app").await, Vec::<String>::new());
}
