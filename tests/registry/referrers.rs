//! What is attached to a manifest, and finding it again: signatures, SBOMs, lists that clients kept themselves.

use crate::node;
use larder_harness::{Body, Image, Registry, Response, sha256};
use serde_json::{Value, json};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const SBOM: &str = "application/vnd.example.sbom.v1+json";
const SIGNATURE: &str = "application/vnd.example.signature";

/// Pushes a manifest by digest; gives the digest and the answer.
async fn push(registry: &Registry, media_type: &str, manifest: &Value) -> (String, Response) {
    let bytes = manifest.to_string();
    let digest = sha256(bytes.as_bytes());
    (digest.clone(), registry.put_manifest("team/app", &digest, media_type, bytes.as_str()).await.expect(201, "push a manifest"))
}

/// An artifact of a type, attached to a digest.
async fn attach(registry: &Registry, subject: &str, artifact_type: Option<&str>, note: &str) -> String {
    let config = registry.push_bytes("team/app", &"{}".into()).await;
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI, "config": {"mediaType": EMPTY, "digest": config, "size": 2}, "layers": [],
        "subject": {"mediaType": OCI, "digest": subject, "size": 7}, "annotations": {"note": note},
    });
    if let Some(artifact_type) = artifact_type {
        manifest["artifactType"] = artifact_type.into();
    }
    let (digest, answer) = push(registry, OCI, &manifest).await;
    assert_eq!(answer.header("oci-subject"), subject);
    digest
}

/// One page: its descriptors, and the address of the next.
async fn page(registry: &Registry, path: &str) -> (Vec<Value>, Option<String>) {
    let answer = registry.get(path).await.expect(200, path);
    assert_eq!(answer.header("content-type"), INDEX);
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(INDEX)));
    let link = answer.header("link");
    assert!(link.is_empty() || link.ends_with("; rel=\"next\""), "{link}");
    (index["manifests"].as_array().expect("a list").clone(), link.split(['<', '>']).nth(1).map(str::to_owned))
}

/// The digests of every page.
async fn list(registry: &Registry, subject: &str, query: &str) -> Vec<String> {
    let (mut found, mut next) = (Vec::new(), Some(format!("/v2/team/app/referrers/{subject}{query}")));
    while let Some(path) = next {
        let descriptors;
        (descriptors, next) = page(registry, &path).await;
        found.extend(descriptors.iter().map(|descriptor| descriptor["digest"].as_str().expect("a digest").to_owned()));
        assert!(found.len() < 100, "the pages never end");
    }
    found
}

fn sorted<const N: usize>(mut digests: [String; N]) -> Vec<String> {
    digests.sort();
    digests.to_vec()
}

#[tokio::test]
async fn end_12a_what_was_attached_is_listed_with_its_type_size_and_annotations() {
    let (mut node, registry) = node().await;
    let image = Image::from_seed(1, &[100]);
    registry.push_image("team/app", "v1", &image).await;
    let subject = image.digest();
    let (sbom, untyped) = (attach(&registry, &subject, Some(SBOM), "1").await, attach(&registry, &subject, None, "2").await);
    let index =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": {"mediaType": OCI, "digest": subject, "size": 7}});
    let (index, answer) = push(&registry, INDEX, &index).await;
    assert_eq!(answer.header("oci-subject"), subject);
    node.restart().await;
    let (descriptors, next) = page(&registry, &format!("/v2/team/app/referrers/{subject}")).await;
    assert_eq!((descriptors.len(), next), (3, None));
    for descriptor in descriptors {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let manifest = registry.pull_manifest("team/app", digest).await.expect(200, "a referrer");
        assert_eq!(descriptor["size"], json!(manifest.body.len()));
        assert_eq!(descriptor["mediaType"], manifest.header("content-type"));
        let (artifact_type, annotations) = match digest {
            digest if digest == sbom => (json!(SBOM), json!({"note": "1"})),
            // SPEC: an image without a type is of its config's, an index of none.
            digest if digest == untyped => (json!(EMPTY), json!({"note": "2"})),
            digest if digest == index => (Value::Null, Value::Null),
            other => panic!("{other} was never attached"),
        };
        assert_eq!((&descriptor["artifactType"], &descriptor["annotations"]), (&artifact_type, &annotations));
    }
    // What is deleted is attached no more.
    registry.request("DELETE", &format!("/v2/team/app/manifests/{sbom}"), &[], Body::empty()).await.expect(202, "delete a referrer");
    assert_eq!(list(&registry, &subject, "").await, sorted([untyped, index]));
}

#[tokio::test]
async fn end_12b_only_the_type_that_was_asked_for_is_listed_and_the_answer_says_so() {
    let (_node, registry) = node().await;
    let subject = Image::from_seed(2, &[]).digest();
    let sbom = attach(&registry, &subject, Some(SBOM), "").await;
    attach(&registry, &subject, Some(SIGNATURE), "").await;
    let path = format!("/v2/team/app/referrers/{subject}");
    let sbom_only = std::slice::from_ref(&sbom);
    // A plus may be sent as it is, or encoded.
    for wanted in [SBOM.replace('+', "%2B"), SBOM.replace('+', "%2b").replace('/', "%2F")] {
        let answer = registry.get(&format!("{path}?artifactType={wanted}")).await.expect(200, "with a filter");
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
        assert_eq!(answer.json()["manifests"][0]["digest"], json!(sbom));
        assert_eq!(list(&registry, &subject, &format!("?artifactType={wanted}")).await, sbom_only);
    }
    assert_eq!(list(&registry, &subject, "?artifactType=nobody/knows").await, Vec::<String>::new());
    let answer = registry.get(&path).await.expect(200, "without a filter");
    assert_eq!(answer.header("oci-filters-applied"), "");
}

#[tokio::test]
async fn end_12a_pages_hold_what_was_asked_for_and_lead_on() {
    let (_node, registry) = node().await;
    let subject = Image::from_seed(3, &[]).digest();
    let mut all = Vec::new();
    for number in 0..7 {
        let artifact_type = if number % 2 == 0 { SBOM } else { SIGNATURE };
        all.push(attach(&registry, &subject, Some(artifact_type), &number.to_string()).await);
    }
    let signatures = sorted([1, 3, 5].map(|number| all[number].clone()));
    all.sort();
    for size in [1, 2, 3, 6, 7, 8] {
        assert_eq!(list(&registry, &subject, &format!("?n={size}")).await, all, "n={size}");
        let (first, next) = page(&registry, &format!("/v2/team/app/referrers/{subject}?n={size}")).await;
        assert_eq!((first.len(), next.is_some()), (size.min(7), size < 7), "n={size}");
        let filter = format!("?n={size}&artifactType={SIGNATURE}");
        assert_eq!(list(&registry, &subject, &filter).await, signatures, "{filter}");
    }
    let path = format!("/v2/team/app/referrers/{subject}");
    assert_eq!(page(&registry, &format!("{path}?n=0")).await, (vec![], None));
    registry.get(&format!("{path}?n=-1")).await.expect_error(400, "PAGINATION_NUMBER_INVALID", "a page of -1");
    registry.get(&format!("{path}?last=x")).await.expect_error(400, "DIGEST_INVALID", "behind no digest");
}

#[tokio::test]
async fn s13_subjects_that_are_absent_or_attached_to_each_other_are_listed_like_others() {
    let (_node, registry) = node().await;
    // Nobody has it, nor the repository; a 404 would say that this registry can list no referrers.
    let absent = Image::from_seed(4, &[]).digest();
    assert_eq!(list(&registry, &absent, "").await, Vec::<String>::new());
    let sha512 = format!("sha512:{}", "a".repeat(128));
    registry.get(&format!("/v2/team/none/referrers/{sha512}")).await.expect(200, "an unknown repository");
    for digest in ["sha256:short", "latest", "md5:0123"] {
        registry.get(&format!("/v2/team/app/referrers/{digest}")).await.expect_error(400, "DIGEST_INVALID", digest);
    }
    registry.get(&format!("/v2/UPPER/referrers/{absent}")).await.expect_error(400, "NAME_INVALID", "a name that is none");
    registry.request("POST", &format!("/v2/team/app/referrers/{absent}"), &[], Body::empty()).await.expect(405, "another method");
    // A chain: each attached to the one before, the first to nothing that is there. Nothing may name itself: its digest would have to
    // be known before it is made; so a ring is one of claimed digests, and only what names the one asked for is listed.
    let first = attach(&registry, &absent, Some(SBOM), "first").await;
    let second = attach(&registry, &first, Some(SIGNATURE), "second").await;
    let third = attach(&registry, &second, Some(SIGNATURE), "third").await;
    assert_eq!(list(&registry, &absent, "").await, std::slice::from_ref(&first));
    assert_eq!(list(&registry, &first, "").await, std::slice::from_ref(&second));
    assert_eq!(list(&registry, &third, "").await, Vec::<String>::new());
    // The middle goes; what is attached to it stays found by the digest that it names.
    registry.request("DELETE", &format!("/v2/team/app/manifests/{second}"), &[], Body::empty()).await.expect(202, "delete the middle");
    assert_eq!(list(&registry, &second, "").await, [third]);
    assert_eq!(list(&registry, &first, "").await, Vec::<String>::new());
}

#[tokio::test]
async fn end_12a_lists_that_clients_kept_under_the_subjects_tag_are_merged_in_once() {
    let (_node, registry) = node().await;
    let image = Image::from_seed(5, &[10]);
    registry.push_image("team/app", "v1", &image).await;
    let subject = image.digest();
    let attached = attach(&registry, &subject, Some(SIGNATURE), "by its subject").await;
    let listed = Image::from_seed(6, &[10]);
    registry.push_image("team/app", &listed.digest(), &listed).await;
    let entries = [&attached, &listed.digest()].map(|digest| json!({"mediaType": OCI, "digest": digest, "size": 1}));
    let list_of_client = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    registry.put_manifest("team/app", &subject.replace(':', "-"), INDEX, list_of_client.as_str()).await.expect(201, "the client's list");
    assert_eq!(list(&registry, &subject, "").await, sorted([attached, listed.digest()]));
    for size in [1, 2] {
        assert_eq!(list(&registry, &subject, &format!("?n={size}")).await.len(), 2, "n={size}");
    }
}

#[tokio::test]
async fn a_subject_by_sha512_is_found_by_sha512() {
    let (_node, registry) = node().await;
    let subject = larder_harness::content::sha512(b"something else");
    let sbom = attach(&registry, &subject, Some(SBOM), "").await;
    assert_eq!(list(&registry, &subject, "").await, [sbom]);
}
