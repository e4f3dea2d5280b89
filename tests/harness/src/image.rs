//! Images made from a seed: a config, layers and the manifest over them, and indexes over such images.

use crate::content::{Content, sha256};
use bytes::Bytes;
use serde_json::{Value, json};

/// Whose media types an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The OCI image specification.
    Oci,
    /// Docker's schema 2, which docker still pushes by default.
    Docker,
}

impl Kind {
    /// The media type of a manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    /// The media type of an index of manifests.
    pub fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// An image as a registry sees it. Its layers are noise: no registry looks into them.
#[derive(Debug, Clone)]
pub struct Image {
    /// Whose media types.
    pub kind: Kind,
    /// The config's bytes.
    pub config: Bytes,
    /// The layers, in order.
    pub layers: Vec<Content>,
    /// The manifest's bytes, exactly as they are pushed.
    pub manifest: Bytes,
}

impl Image {
    /// An OCI image with a config and one layer for each size.
    pub fn from_seed(seed: u64, layer_sizes: &[u64]) -> Self {
        Self::of_kind(Kind::Oci, seed, layer_sizes)
    }

    /// The same with the media types of `kind`.
    pub fn of_kind(kind: Kind, seed: u64, layer_sizes: &[u64]) -> Self {
        let layers: Vec<Content> = layer_sizes
            .iter()
            .enumerate()
            .map(|(index, size)| Content::new(seed.wrapping_mul(1009).wrapping_add(index as u64), *size))
            .collect();
        Self::of_layers(kind, seed, layers)
    }

    /// An image over layers that other images may have too.
    pub fn of_layers(kind: Kind, seed: u64, layers: Vec<Content>) -> Self {
        let digests: Vec<String> = layers.iter().map(|layer| layer.digest()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": [format!("SEED={seed}")]},
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let config = Bytes::from(config.to_string());
        let described: Vec<Value> = layers
            .iter()
            .zip(&digests)
            .map(|(layer, digest)| json!({"mediaType": kind.layer(), "digest": digest, "size": layer.size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind.manifest(), "layers": described,
            "config": {"mediaType": kind.config(), "digest": sha256(&config), "size": config.len()},
        });
        Self { kind, config, layers, manifest: Bytes::from(manifest.to_string()) }
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// The media type of the manifest.
    pub fn media_type(&self) -> &'static str {
        self.kind.manifest()
    }
}

/// The bytes of an index over `images`, one platform each.
pub fn index(kind: Kind, images: &[Image]) -> Bytes {
    let architectures = ["amd64", "arm64", "riscv64", "s390x", "ppc64le"];
    let manifests: Vec<Value> = images
        .iter()
        .zip(architectures)
        .map(|(image, architecture)| {
            json!({
                "mediaType": image.media_type(), "digest": image.digest(), "size": image.manifest.len(),
                "platform": {"architecture": architecture, "os": "linux"},
            })
        })
        .collect();
    Bytes::from(json!({"schemaVersion": 2, "mediaType": kind.index(), "manifests": manifests}).to_string())
}
