//! What is no image: build caches, charts, modules, signatures; kept and served as it is, by clients that look at every header.

use crate::{builder, node};
use bytes::Bytes;
use larder_harness::{Body, Content, Image, Registry, sha256};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Pushes a blob; gives a descriptor of it.
async fn blob(registry: &Registry, media_type: &str, bytes: impl Into<Bytes>) -> Value {
    let bytes = bytes.into();
    json!({"mediaType": media_type, "digest": registry.push_bytes("team/app", &bytes).await, "size": bytes.len()})
}

/// Pushes a manifest under a tag and checks that it comes back as it is, by tag and by digest, by GET and by HEAD.
async fn check(registry: &Registry, tag: &str, media_type: &str, manifest: &Value) {
    let bytes = manifest.to_string();
    registry.put_manifest("team/app", tag, media_type, bytes.as_str()).await.expect(201, tag);
    for reference in [tag, &sha256(bytes.as_bytes())] {
        let path = format!("/v2/team/app/manifests/{reference}");
        let (pulled, head) = (registry.get(&path).await.expect(200, &path), registry.head(&path).await.expect(200, &path));
        assert_eq!(pulled.body, bytes.as_bytes(), "{tag}");
        for answer in [pulled, head] {
            assert_eq!(answer.header("content-type"), media_type, "{tag}");
            assert_eq!(answer.header("content-length"), bytes.len().to_string(), "{tag}");
            assert_eq!(answer.header("docker-content-digest"), sha256(bytes.as_bytes()), "{tag}");
        }
    }
}

#[tokio::test]
async fn a_build_cache_is_an_index_over_layers() {
    let (_node, registry) = node().await;
    let layer = "application/vnd.oci.image.layer.v1.tar+zstd";
    let mut manifests = Vec::new();
    for seed in 0..3 {
        manifests.push(blob(&registry, layer, Content::new(seed, 70_000).bytes()).await);
    }
    manifests.push(blob(&registry, "application/vnd.buildkit.cacheconfig.v0", "{\"layers\":[]}").await);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    check(&registry, "cache", INDEX, &index).await;
    // The newer form, and one whose layers were never pushed.
    let image = json!({
        "schemaVersion": 2, "mediaType": OCI, "config": manifests[3], "layers": manifests[..3],
    });
    check(&registry, "cache-image", OCI, &image).await;
    let mut incomplete = index;
    incomplete["manifests"][0]["digest"] = sha256(b"never pushed").into();
    let answer = registry.put_manifest("team/app", "incomplete", INDEX, incomplete.to_string().as_str()).await;
    answer.expect_error(400, "MANIFEST_BLOB_UNKNOWN", "a cache without one of its layers");
}

#[tokio::test]
async fn charts_modules_empty_configs_and_types_that_nobody_knows_are_kept_as_they_are() {
    let (_node, registry) = node().await;
    let chart = blob(&registry, "application/vnd.cncf.helm.chart.content.v1.tar+gzip", Content::new(1, 5000).bytes()).await;
    let config = blob(&registry, "application/vnd.cncf.helm.config.v1+json", "{\"name\":\"app\"}").await;
    // Helm leaves the media type out of the manifest: what the header said is all there is.
    check(&registry, "chart", OCI, &json!({"schemaVersion": 2, "config": config, "layers": [chart]})).await;
    let empty = blob(&registry, EMPTY, "{}").await;
    let module = blob(&registry, "application/wasm", Content::new(2, 9000).bytes()).await;
    let wasm = json!({
        "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/vnd.wasm.module.v1", "config": empty, "layers": [module],
        "annotations": {"note": "ünïcode", "org.example/x": ""}, "of-a-later-version": {"unknown": [1, 2.5, null, true]},
    });
    check(&registry, "wasm", OCI, &wasm).await;
    // The empty descriptor as clients write it, with its content inside.
    let mut inline = empty.clone();
    inline["data"] = "e30=".into();
    let bare = json!({"schemaVersion": 2, "mediaType": OCI, "artifactType": "a/b", "config": inline, "layers": [inline]});
    check(&registry, "bare", OCI, &bare).await;
    check(&registry, "no-layers", OCI, &json!({"schemaVersion": 2, "mediaType": OCI, "config": empty, "layers": []})).await;
    let nothing = blob(&registry, "application/octet-stream", "").await;
    check(&registry, "nothing", OCI, &json!({"schemaVersion": 2, "mediaType": OCI, "config": empty, "layers": [nothing]})).await;
    let artifact = "application/vnd.oci.artifact.manifest.v1+json";
    check(&registry, "artifact", artifact, &json!({"mediaType": artifact, "artifactType": "a/b", "blobs": [module]})).await;
    check(&registry, "unknown", "application/vnd.example.thing.v7+json", &json!({"what": "ever", "layers": [chart]})).await;
}

#[tokio::test]
async fn parts_of_a_layer_come_without_the_rest_as_lazy_pullers_ask_for_them() {
    let (_node, registry) = node().await;
    let bytes = Content::new(3, 3_000_000).bytes();
    let digest = registry.push_bytes("team/app", &bytes).await;
    let path = format!("/v2/team/app/blobs/{digest}");
    // The footer first, then the table of contents, then a file.
    for (range, part) in [("bytes=-47", 2_999_953..3_000_000), ("bytes=2900000-2999952", 2_900_000..2_999_953), ("bytes=0-9", 0..10)] {
        let answer = registry.request("GET", &path, &[("range", range)], Body::empty()).await.expect(206, range);
        assert_eq!(answer.header("content-range"), format!("bytes {}-{}/3000000", part.start, part.end - 1));
        assert!(answer.body == bytes[part], "{range}");
    }
    assert_eq!(registry.head(&path).await.expect(200, "check").header("accept-ranges"), "bytes");
}

#[tokio::test]
async fn s26_urls_in_descriptors_are_stored_and_never_fetched() {
    let (_node, registry) = node().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/layer", listener.local_addr().expect("an address"));
    let config = blob(&registry, "application/vnd.oci.image.config.v1+json", "{}").await;
    for (number, media_type) in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar",
    ]
    .into_iter()
    .enumerate()
    {
        let digest = sha256(&[number as u8]);
        let layer = json!({"mediaType": media_type, "digest": digest, "size": 1, "urls": [url, "file:///etc/passwd"]});
        let tag = format!("foreign-{number}");
        check(&registry, &tag, OCI, &json!({"schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [layer]})).await;
        registry.get(&format!("/v2/team/app/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN", "a layer that lies elsewhere");
    }
    let asked = tokio::time::timeout(std::time::Duration::from_millis(300), listener.accept()).await;
    assert!(asked.is_err(), "somebody asked for the layer: {asked:?}");
}

#[tokio::test]
async fn s23_compressed_layers_are_never_unpacked() {
    let (node, registry) = node().await;
    // Well-formed, and nothing but zeros: 64 KiB that would become 64 MiB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for _ in 0..512 {
        bomb.extend([0x02, 0x00, 0x10, 0x00]);
    }
    let layer = blob(&registry, "application/vnd.oci.image.layer.v1.tar+zstd", bomb.clone()).await;
    let config = blob(&registry, EMPTY, "{}").await;
    check(&registry, "bomb", OCI, &json!({"schemaVersion": 2, "mediaType": OCI, "config": config, "layers": [layer]})).await;
    let pulled = registry.get(&format!("/v2/team/app/blobs/{}", sha256(&bomb))).await.expect(200, "pull it");
    assert_eq!((pulled.body.as_ref(), pulled.header("content-encoding")), (bomb.as_slice(), ""));
    assert!(node.memory_peak_bytes() < 200 << 20, "{} bytes", node.memory_peak_bytes());
}

#[tokio::test]
async fn a_manifest_without_its_parts_is_taken_with_a_warning_only_where_that_is_allowed() {
    let node = builder().env("LARDER_REGISTRY__SPARSE_MANIFESTS", "true").start().await;
    let registry = Registry::new(node.url());
    let (here, elsewhere) = (Image::from_seed(7, &[100]), Image::from_seed(8, &[100]));
    registry.push_image("team/app", &here.digest(), &here).await;
    let index = larder_harness::image::index(larder_harness::Kind::Oci, &[here.clone(), elsewhere.clone()]);
    let answer = registry.put_manifest("team/app", "v1", INDEX, index.clone()).await.expect(201, "an index without one of its images");
    assert_eq!(answer.header("warning"), "299 - \"1 of the blobs and manifests that it names are not in team/app\"");
    let complete = registry.put_manifest("team/app", "v2", OCI, here.manifest.clone()).await.expect(201, "a manifest with all its parts");
    assert_eq!(complete.header("warning"), "");
    assert_eq!(registry.pull_manifest("team/app", "v1").await.expect(200, "pull it").body, index);
    registry.pull_image("team/app", &here.digest(), &here).await;
    registry.get(&format!("/v2/team/app/manifests/{}", elsewhere.digest())).await.expect_error(
        404,
        "MANIFEST_UNKNOWN",
        "what was left out",
    );
    // What came to nobody is readable by nobody (I8).
    registry.get(&format!("/v2/team/app/blobs/{}", elsewhere.layers[0].digest())).await.expect(404, "its layer");
}
