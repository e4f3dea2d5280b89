//! What stands in the bucket can be read by anyone, with tools of today and of then.

use std::path::{Path, PathBuf};
use std::process::Command;

use larder_harness::{CountingS3, Image, Kind, sha256};

use super::{flush, node, registry};

/// Runs a program to its end; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}; packaging/setup test installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Unpacks a pack with stock tar and checks every blob; the digests that are in it.
fn unpack(pack: &Path, into: &Path) -> Vec<String> {
    std::fs::create_dir_all(into).expect("make a folder");
    run("tar", &["--extract", "--file", pack.to_str().expect("UTF-8"), "--directory", into.to_str().expect("UTF-8")]);
    assert!(into.join("oci-layout").is_file() && into.join("index.json").is_file());
    let mut digests = Vec::new();
    for blob in std::fs::read_dir(into.join("blobs/sha256")).expect("blobs") {
        let blob = blob.expect("entry");
        let digest = sha256(&std::fs::read(blob.path()).expect("read"));
        assert_eq!(digest, format!("sha256:{}", blob.file_name().to_string_lossy()));
        digests.push(digest);
    }
    digests
}

pub fn only_pack(folder: &Path) -> PathBuf {
    let mut packs = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("list") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "tar") {
                packs.push(path);
            }
        }
    }
    assert_eq!(packs.len(), 1, "{packs:?}");
    packs.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_a_tar_whose_blobs_hash_to_their_names_and_an_oci_archive() {
    let s3 = CountingS3::start().await;
    let node = node("node").s3(&s3, "fleet").start().await;
    let image = Image::of_kind(Kind::Oci, 60, &[1_500_000, 70_000, 10]);
    registry(&node).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&node).await, 1);
    let pack = only_pack(&s3.bucket_dir());
    let found = unpack(&pack, &node.scratch().join("pack"));
    for digest in image.layers.iter().map(|layer| layer.digest()).chain([sha256(&image.config), image.digest()]) {
        assert!(found.contains(&digest), "{digest} in {found:?}");
    }
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{}", pack.display())]);
    assert_eq!(sha256(raw.trim_end().as_bytes()), image.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_as_the_bucket_holds_the_same() {
    let node = node("node").start().await;
    let image = Image::from_seed(61, &[1_500_000, 10]);
    registry(&node).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&node).await, 1);
    let found = unpack(&only_pack(&node.data_dir().join("archive")), &node.scratch().join("pack"));
    assert!(found.contains(&image.digest()) && found.len() == 4, "{found:?}");
    let listed = node.cli_json(&["archive", "list"]).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_manifest_names_is_not_archived() {
    let node = node("node").start().await;
    let orphan = registry(&node).push_bytes("team/app", &vec![7; 5000].into()).await;
    let image = Image::from_seed(62, &[1000]);
    registry(&node).push_image("team/app", "v1", &image).await;
    assert_eq!(flush(&node).await, 1);
    let found = unpack(&only_pack(&node.data_dir().join("archive")), &node.scratch().join("pack"));
    assert!(!found.contains(&orphan), "{found:?}");
}
