//! What encryption costs: the same layers into packs and back, in plain ones and in encrypted ones, one after the other on one machine.

use std::time::Instant;

use larder_harness::{Content, CountingS3, Figure, Image, Kind, Node, Registry, figures};

use super::{LAYER, LAYER_MIB_MAX, MIB, PROGRAM, RESTORE_MIB_MAX, percent};

/// Layers of [`LAYER`] bytes.
const LAYERS: u64 = 12;
/// A test's identity, which is no secret: see the files beside it.
const IDENTITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/test-identity.txt");

/// What one way took.
struct Took {
    archived_s: f64,
    archived_cpu_s: f64,
    archived_mib: f64,
    restored_s: f64,
    restored_mib: f64,
}

async fn take(recipient: Option<&str>, identity: &str) -> (u64, Took) {
    let s3 = CountingS3::start().await;
    let builder = Node::builder(PROGRAM).name("plain").in_memory().s3(&s3, "fleet").env("LARDER_STORE__DURABILITY", "relaxed");
    let mut node = builder.env("LARDER_ARCHIVE__RECIPIENTS", recipient.unwrap_or_default()).start().await;
    let layers: Vec<Content> = (0..LAYERS).map(|seed| Content::new(8_000 + seed, LAYER * percent() / 100)).collect();
    for (number, layer) in layers.iter().enumerate() {
        let image = Image::of_layers(Kind::Oci, number as u64, vec![*layer]);
        Registry::new(node.url()).push_image("team/app", &format!("v{number}"), &image).await;
    }
    let (begin, cpu) = (Instant::now(), node.cpu_seconds());
    node.cli(&["archive", "flush"]).await.expect("flush");
    let (archived_s, archived_cpu_s, archived_mib) =
        (begin.elapsed().as_secs_f64(), node.cpu_seconds() - cpu, node.memory_peak_bytes() as f64 / MIB);
    let encrypted = s3.objects().iter().filter(|(key, _)| key.ends_with(".age")).count();
    assert_eq!(encrypted > 0, recipient.is_some());
    node.lose_disk();
    let fresh = Node::builder(PROGRAM).name("fresh").in_memory().s3(&s3, "fleet").start().await;
    let begin = Instant::now();
    let restored = fresh.cli_json(&["restore", &s3.url("fleet"), "--identity", identity]).await;
    let restored_s = begin.elapsed().as_secs_f64();
    assert_eq!((restored["blobs"]["state"].as_str(), restored["blobs"]["lost"].as_u64()), (Some("done"), Some(0)), "{restored}");
    let restored_mib = fresh.memory_peak_bytes() as f64 / MIB;
    let total = layers.iter().map(|layer| layer.size).sum();
    (total, Took { archived_s, archived_cpu_s, archived_mib, restored_s, restored_mib })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_packs_beside_plain_ones() {
    let text = std::fs::read_to_string(IDENTITY).expect("a test's identity");
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).expect("as age-keygen writes it");
    // Nobody else may read an identity.
    let folder = tempfile::tempdir().expect("a folder");
    let identity = folder.path().join("identity");
    std::fs::write(&identity, &text).expect("write");
    std::fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    let identity = identity.to_str().expect("UTF-8");
    let (total, plain) = take(None, identity).await;
    let (_, sealed) = take(Some(recipient), identity).await;
    let rate = |seconds: f64| total as f64 / 1e6 / seconds;
    let figures = [
        Figure::new("bytes of layers", total as f64 / 1e9, "GB"),
        Figure::new("archived, plain", rate(plain.archived_s), "MB/s"),
        Figure::new("archived, encrypted", rate(sealed.archived_s), "MB/s"),
        Figure::new("processor time to archive, encrypted by plain", sealed.archived_cpu_s / plain.archived_cpu_s, ""),
        Figure::new("peak memory, pushed and archived encrypted", sealed.archived_mib.max(plain.archived_mib), "MiB")
            .at_most(LAYER_MIB_MAX),
        Figure::new("restored, plain", rate(plain.restored_s), "MB/s"),
        Figure::new("restored, encrypted", rate(sealed.restored_s), "MB/s"),
        Figure::new("peak memory of the restore, encrypted", sealed.restored_mib.max(plain.restored_mib), "MiB").at_most(RESTORE_MIB_MAX),
    ];
    figures::publish(PROGRAM, if percent() == 100 { "restore-encrypted" } else { "restore-encrypted-short" }, &figures);
}
