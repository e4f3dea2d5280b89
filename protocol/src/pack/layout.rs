//! The two files that make a tar an OCI image layout, and the one that makes it something that `docker load` takes.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{ManifestPart, blob_name};
use crate::digest::Digest;

/// `oci-layout`. SPEC: image-layout.
pub const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageIndex<'a> {
    schema_version: u8,
    media_type: &'a str,
    manifests: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations<'a>>,
}

#[derive(Serialize)]
struct Annotations<'a> {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: &'a str,
}

/// What of a manifest tells its children.
#[derive(Deserialize)]
struct Parent {
    #[serde(default)]
    manifests: Vec<Child>,
}

#[derive(Deserialize)]
struct Child {
    digest: String,
}

/// `index.json`: every manifest under each of its names. One without a name is listed too, unless it is the child of another:
/// `skopeo inspect oci-archive:PACK` then finds the one image of a pack with one image.
pub fn index_json(manifests: &[ManifestPart]) -> Vec<u8> {
    let children: HashSet<String> = manifests
        .iter()
        .filter_map(|manifest| serde_json::from_slice::<Parent>(&manifest.bytes).ok())
        .flat_map(|parent| parent.manifests.into_iter().map(|child| child.digest))
        .collect();
    let mut listed = Vec::new();
    for manifest in manifests {
        let digest = manifest.digest.to_string();
        let descriptor =
            |annotations| Descriptor { media_type: &manifest.media_type, digest: digest.clone(), size: manifest.bytes.len(), annotations };
        if manifest.names.is_empty() && !children.contains(&digest) {
            listed.push(descriptor(None));
        }
        listed.extend(manifest.names.iter().map(|name| descriptor(Some(Annotations { name }))));
    }
    let index = ImageIndex { schema_version: 2, media_type: INDEX_MEDIA_TYPE, manifests: listed };
    serde_json::to_vec(&index).expect("texts and numbers are JSON")
}

/// Configurations of images that run; others are charts, signatures, and what else is kept in registries.
const IMAGE_CONFIGS: [&str; 2] = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// An image in `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// What of a manifest an engine needs.
#[derive(Deserialize)]
struct Pulled {
    config: Option<Named>,
    layers: Option<Vec<Named>>,
    manifests: Option<Vec<Named>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// `manifest.json`, which `docker load` and `podman load` read: every image that has a name. An engine keeps one platform under
/// a name, so of an image index it is the one of Linux on `architecture`, or else the first.
pub fn docker_json(manifests: &[ManifestPart], architecture: &str) -> Vec<u8> {
    let read = |digest: &Digest| {
        let part = manifests.iter().find(|part| part.digest == *digest)?;
        serde_json::from_slice::<Pulled>(&part.bytes).ok()
    };
    let suits = |named: &Named| named.platform.as_ref().is_some_and(|it| it.os == "linux" && it.architecture == architecture);
    let mut images = Vec::new();
    for part in manifests.iter().filter(|part| !part.names.is_empty()) {
        let mut pulled = read(&part.digest);
        if let Some(children) = pulled.as_ref().and_then(|pulled| pulled.manifests.as_ref()) {
            pulled = children.iter().find(|child| suits(child)).or(children.first()).and_then(|child| read(&child.digest));
        }
        if let Some(Pulled { config: Some(config), layers: Some(layers), .. }) = pulled
            && IMAGE_CONFIGS.contains(&config.media_type.as_str())
        {
            let layers = layers.iter().map(|layer| blob_name(&layer.digest)).collect();
            images.push(DockerImage { config: blob_name(&config.digest), repo_tags: part.names.clone(), layers });
        }
    }
    serde_json::to_vec(&images).expect("texts are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str, names: &[&str]) -> ManifestPart {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let bytes = bytes::Bytes::copy_from_slice(text.as_bytes());
        ManifestPart { digest: Digest::sha256(text.as_bytes()), media_type: "m".to_owned(), bytes, names }
    }

    fn image(kind: &str, names: &[&str]) -> ManifestPart {
        let (config, layer) = (Digest::sha256(kind.as_bytes()), Digest::sha256(b"layer"));
        part(&format!(r#"{{"config":{{"mediaType":"{kind}","digest":"{config}"}},"layers":[{{"digest":"{layer}"}}]}}"#), names)
    }

    #[test]
    fn an_engine_gets_images_with_a_name_and_of_an_index_the_platform_that_runs() {
        let (plain, arm) = (image(IMAGE_CONFIGS[0], &["a:1", "a:2"]), image(IMAGE_CONFIGS[1], &[]));
        let child = |digest: &Digest, architecture: &str| {
            format!(r#"{{"digest":"{digest}","platform":{{"os":"linux","architecture":"{architecture}"}}}}"#)
        };
        let both = [child(&plain.digest, "amd64"), child(&arm.digest, "arm64")].join(",");
        let index = part(&format!(r#"{{"manifests":[{both}]}}"#), &["b:1"]);
        let chart = image("application/vnd.cncf.helm.config.v1+json", &["c:1"]);
        let manifests = [plain, arm, index, chart];
        let listed = |architecture| -> serde_json::Value { serde_json::from_slice(&docker_json(&manifests, architecture)).expect("JSON") };
        let config = |kind: &str| format!("blobs/sha256/{}", Digest::sha256(kind.as_bytes()).hex());
        let layers = [format!("blobs/sha256/{}", Digest::sha256(b"layer").hex())];
        let entry = |kind: &str, tags: &[&str]| serde_json::json!({ "Config": config(kind), "RepoTags": tags, "Layers": layers });
        let first = entry(IMAGE_CONFIGS[0], &["a:1", "a:2"]);
        assert_eq!(listed("arm64"), serde_json::json!([first, entry(IMAGE_CONFIGS[1], &["b:1"])]));
        // Nothing fits: the first is better than none.
        assert_eq!(listed("riscv64"), serde_json::json!([first, entry(IMAGE_CONFIGS[0], &["b:1"])]));
    }
}
