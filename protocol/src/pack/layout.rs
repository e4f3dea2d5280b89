//! The two files that make a tar an OCI image layout.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::ManifestPart;

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
