//! Images on a stick: out of one cluster, into another.

use std::path::Path;

use bytes::Bytes;
use larder_harness::{Image, Kind, sha256};
use serde_json::json;

use super::{node, registry};

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn images_leave_by_name_and_wildcard_and_arrive_whole_elsewhere() {
    let (from, to) = (node("from").start().await, node("to").start().await);
    let (one, two, other) = (Image::from_seed(70, &[3_000_000, 70_000]), Image::from_seed(71, &[10]), Image::from_seed(72, &[20]));
    let platforms = [Image::from_seed(73, &[100_000]), Image::from_seed(74, &[1])];
    let source = registry(&from);
    source.push_image("team/app", "v1", &one).await;
    source.push_image("team/app", "v2", &two).await;
    source.push_image("team/app", "dev", &other).await;
    let index = source.push_index("team/multi", "latest", Kind::Oci, &platforms).await;
    // A signature, as clients attach it: it belongs to what it is attached to.
    let config = source.push_bytes("team/app", &Bytes::from_static(b"{}")).await;
    let signature = json!({
        "schemaVersion": 2, "mediaType": Kind::Oci.manifest(), "artifactType": "application/vnd.example.signature", "layers": [],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "subject": {"mediaType": Kind::Oci.manifest(), "digest": one.digest(), "size": one.manifest.len()},
    });
    let signature = Bytes::from(signature.to_string());
    source.put_manifest("team/app", &sha256(&signature), Kind::Oci.manifest(), signature.clone()).await.expect(201, "the signature");

    let file = from.scratch().join("images.tar");
    let said = from.cli(&["export", "team/app:v*", "team/multi", text(&file)]).await.expect("exported");
    assert!(said.contains("with 3 images"), "{said}");
    assert!(!file.with_file_name("images.tar.partial").exists());

    for round in 0..2 {
        let imported = to.cli_json(&["import", text(&file)]).await;
        assert_eq!(imported["images"], json!(["team/app:v1", "team/app:v2", "team/multi:latest"]), "{imported}");
        assert_eq!(imported["refused"], json!([]));
        // A second time there is nothing new: one config and two layers, a config and a layer, two of each, and the signature's config.
        assert_eq!(imported["blobs"], json!(if round == 0 { 10 } else { 0 }), "{imported}");
    }
    let arrived = registry(&to);
    arrived.pull_image("team/app", "v1", &one).await;
    arrived.pull_image("team/app", "v2", &two).await;
    assert_eq!(arrived.pull_manifest("team/multi", "latest").await.expect(200, "the index").body, index);
    for platform in &platforms {
        arrived.pull_image("team/multi", &platform.digest(), platform).await;
    }
    assert_eq!(arrived.pull_manifest("team/app", &sha256(&signature)).await.expect(200, "the signature").body, signature);
    assert_eq!(arrived.tags("team/app").await, ["v1", "v2"]);
    // It is a push like any other: the archive of the other cluster takes it.
    assert_eq!(super::flush(&to).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_and_what_is_no_such_file_is_told() {
    let node = node("node").start().await;
    let image = Image::from_seed(75, &[200_000]);
    registry(&node).push_image("team/app", "v1", &image).await;
    let file = node.scratch().join("images.tar");
    let said = node.cli(&["export", "team/app:v1", "team/ap:v1", text(&file)]).await.expect_err("no such image");
    assert!(said.contains("team/ap:v1: no tag") && !file.exists(), "{said}");
    let said = node.cli(&["export", "team app", text(&file)]).await.expect_err("no name");
    assert!(said.contains("\"team app\""), "{said}");

    node.cli(&["export", &format!("team/app@{}", image.digest()), text(&file)]).await.expect("exported by digest");
    let whole = std::fs::read(&file).expect("the file");
    let damaged = node.scratch().join("damaged.tar");
    let import = async |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).expect("write");
        node.cli(&["import", text(&damaged)]).await.expect_err("damaged")
    };
    let said = import(&whole[..whole.len() - 1]).await;
    assert!(said.contains("footer"), "{said}");
    let mut forged = whole.clone();
    let cluster = forged.len() - 512 + 16;
    forged[cluster] ^= 1;
    let said = import(&forged).await;
    assert!(said.contains("forged or damaged"), "{said}");
    let said = import(b"").await;
    assert!(said.contains("too short"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_a_blob_that_was_changed_on_the_way_is_refused() {
    let (from, to) = (node("from").start().await, node("to").start().await);
    let image = Image::from_seed(76, &[200_000]);
    registry(&from).push_image("team/app", "v1", &image).await;
    let file = from.scratch().join("images.tar");
    from.cli(&["export", "team/app", text(&file)]).await.expect("exported");
    let mut bytes = std::fs::read(&file).expect("the file");
    // Somewhere in the layer, which is nearly all of the file.
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).expect("write");
    let said = to.cli(&["import", text(&file)]).await.expect_err("a wrong digest");
    assert!(said.contains(&image.layers[0].digest()), "{said}");
    assert_eq!(registry(&to).pull_manifest("team/app", "v1").await.status, 404);

    let folder = to.scratch().join("unpacked");
    let said = to.cli(&["unpack", text(&file), text(&folder)]).await.expect_err("a damaged blob");
    assert!(said.contains("1 blobs are damaged"), "{said}");
    let layer = image.layers[0].digest().replace("sha256:", "");
    assert!(!folder.join("blobs/sha256").join(layer).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_and_an_exported_file_unpack_without_a_daemon() {
    let mut node = node("node").start().await;
    let image = Image::of_kind(Kind::Oci, 77, &[2_500_000, 30]);
    registry(&node).push_image("team/app", "v1", &image).await;
    let file = node.scratch().join("images.tar");
    node.cli(&["export", "team/app:v1", text(&file)]).await.expect("exported");
    super::flush(&node).await;
    let pack = super::packs::only_pack(&node.data_dir().join("archive"));
    node.stop().await;
    for (file, name) in [(file, "images"), (pack, "pack")] {
        let folder = node.scratch().join(name);
        let unpacked = node.cli_json(&["unpack", text(&file), text(&folder)]).await;
        assert_eq!((&unpacked["blobs"], &unpacked["images"], &unpacked["damaged"]), (&json!(4), &json!(["team/app:v1"]), &json!([])));
        for blob in std::fs::read_dir(folder.join("blobs/sha256")).expect("blobs") {
            let blob = blob.expect("entry");
            let digest = sha256(&std::fs::read(blob.path()).expect("read"));
            assert_eq!(digest, format!("sha256:{}", blob.file_name().to_string_lossy()));
        }
        let raw = super::packs::run("skopeo", &["inspect", "--raw", &format!("oci:{}:team/app:v1", folder.display())]);
        assert_eq!(sha256(raw.trim_end().as_bytes()), image.digest());
        let records = std::fs::read_to_string(folder.join("records.jsonl")).expect("the records");
        assert!(records.lines().any(|line| line.contains(r#""kind":"tag""#)), "{records}");
    }
}
