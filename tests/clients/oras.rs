//! ORAS for Python: attaches an SBOM and a signature to an image, and finds both again.

use std::path::{Path, PathBuf};

use larder_harness::{Image, Kind, Registry};

use crate::node;
use crate::tools::{run, text, try_run};

const SBOM: &str = "application/spdx+json";
const SIGNATURE: &str = "application/vnd.example.signature.ed25519";

/// The python that `packaging/setup test` makes, with ORAS in it.
fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).expect("there is a HOME");
    cache.join("larder/tools/bin/python")
}

fn oras(home: &Path, arguments: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/attach.py");
    let arguments: Vec<_> = [script].into_iter().chain(arguments.iter().copied()).collect();
    run(home, text(&python()), &arguments)
}

fn written(folder: &Path, name: &str, content: &str) -> PathBuf {
    std::fs::create_dir_all(folder).expect("make a folder");
    let path = folder.join(name);
    std::fs::write(&path, content).expect("write");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sbom_and_a_signature_are_attached_with_oras_found_again_and_hold() {
    let node = node("node").start().await;
    let (home, registry, host) = (node.scratch(), Registry::new(node.url()), node.address());
    let image = Image::of_kind(Kind::Oci, 1, &[300_000, 20]);
    registry.push_image("team/app", "1.0", &image).await;
    let (made, found) = (home.join("made"), home.join("found"));

    let packages = r#"{"name":"busybox","SPDXID":"SPDXRef-Package","versionInfo":"1.35","downloadLocation":"NOASSERTION"}"#;
    let sbom = format!(r#"{{"spdxVersion":"SPDX-2.3","name":"{}","packages":[{packages}]}}"#, image.digest());
    let sbom = written(&made, "sbom.json", &sbom);
    let (key, public) = (made.join("key.pem"), made.join("public.pem"));
    let (signed, signature) = (written(&made, "signed", &image.digest()), made.join("image.sig"));
    run(home, "openssl", &["genpkey", "-algorithm", "ed25519", "-out", text(&key)]);
    run(home, "openssl", &["pkey", "-in", text(&key), "-pubout", "-out", text(&public)]);
    run(home, "openssl", &["pkeyutl", "-sign", "-rawin", "-inkey", text(&key), "-in", text(&signed), "-out", text(&signature)]);

    let of_sbom = oras(home, &["attach", &host, "team/app", "1.0", text(&sbom), SBOM]);
    let of_signature = oras(home, &["attach", &host, "team/app", "1.0", text(&signature), SIGNATURE]);
    assert_ne!(of_sbom, of_signature);

    assert_eq!(oras(home, &["find", &host, "team/app", "1.0", SBOM, text(&found)]), of_sbom);
    assert_eq!(oras(home, &["find", &host, "team/app", "1.0", SIGNATURE, text(&found)]), of_signature);
    assert_eq!(oras(home, &["find", &host, "team/app", "1.0", "application/of-nobody", text(&found)]), "");
    assert_eq!(std::fs::read(found.join("sbom.json")).expect("the SBOM"), std::fs::read(&sbom).expect("the SBOM that was attached"));
    let check = |what: &Path| {
        let (public, signature) = (text(&public), found.join("image.sig"));
        try_run(
            home,
            "openssl",
            &["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-in", text(what), "-sigfile", text(&signature)],
        )
    };
    check(&signed).expect("the signature that was found is the image's");
    assert!(check(&written(&made, "other", "another digest")).is_err(), "a signature is checked at all");

    // It goes along: another image has nothing attached, and this one keeps both when its tag moves.
    let other = Image::of_kind(Kind::Docker, 2, &[100]);
    registry.push_image("team/app", "2.0", &other).await;
    assert_eq!(oras(home, &["find", &host, "team/app", "2.0", SBOM, text(&found)]), "");
    registry.put_manifest("team/app", "stable", image.media_type(), image.manifest.clone()).await.expect(201, "another tag");
    assert_eq!(oras(home, &["find", &host, "team/app", "stable", SBOM, text(&found)]), of_sbom);
}
