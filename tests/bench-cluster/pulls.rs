//! Images for figures, and pulling them as docker does: by tag, three layers at a time, every byte verified.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use larder_harness::rig::Host;
use larder_harness::{Body, Image, Node, Registry, http, sha256, wait_until};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// Layers that a client pulls at a time.
const LAYERS_AT_ONCE: usize = 3;
/// Layers of an image, in parts of the whole: a large one, some in the middle, some small ones.
const LAYERS: [u64; 8] = [64, 32, 16, 8, 4, 2, 1, 1];
const LAYERS_SUM: u64 = 128;
pub const REPOSITORY: &str = "bench/app";

/// An image, and what a pull of it has to give.
pub struct Pushed {
    pub tag: String,
    pub image: Image,
    pub size: u64,
    blobs: Vec<(String, u64)>,
}

impl Pushed {
    /// An image of this size; `seed` makes its bytes and its tag.
    pub fn new(seed: u64, size: u64) -> Self {
        let sizes: Vec<u64> = LAYERS.iter().map(|part| size * part / LAYERS_SUM).collect();
        let image = Image::from_seed(seed, &sizes);
        // Made once: their digests cost as much as a pull.
        let mut blobs: Vec<(String, u64)> = image.layers.iter().map(|layer| (layer.digest(), layer.size)).collect();
        blobs.push((sha256(&image.config), image.config.len() as u64));
        let size = blobs.iter().map(|(_, size)| size).sum();
        Self { tag: format!("v{seed}"), image, size, blobs }
    }

    /// Pushes it to the registry at `url`.
    pub async fn push(&self, url: &str) {
        Registry::new(url).push_image(REPOSITORY, &self.tag, &self.image).await;
    }

    /// Pulls it from the registry at `url`; gives the seconds that it took.
    pub async fn pull(&self, url: &str) -> f64 {
        let begin = Instant::now();
        let manifest = Registry::new(url).pull_manifest(REPOSITORY, &self.tag).await.expect(200, "pull a manifest");
        assert_eq!(manifest.body, self.image.manifest);
        let mut pulls = stream::iter(&self.blobs).map(|(digest, size)| blob(url, digest, *size)).buffer_unordered(LAYERS_AT_ONCE);
        while pulls.next().await.is_some() {}
        begin.elapsed().as_secs_f64()
    }

    /// Waits until the tag means this image on a node.
    pub async fn visible(&self, node: &Node) {
        let path = format!("/v2/{REPOSITORY}/manifests/{}", self.tag);
        wait_until("a tag is visible", Duration::from_secs(60), async || {
            (Registry::new(node.url()).head(&path).await.status == 200).then_some(())
        })
        .await;
    }

    /// How many of its bytes a node has on its disk.
    pub fn held(&self, node: &Node) -> u64 {
        let file = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").expect("a digest");
            node.data_dir().join("blobs/sha256").join(&hex[..2]).join(hex)
        };
        self.blobs.iter().filter(|(digest, _)| file(digest).exists()).map(|(_, size)| size).sum()
    }
}

async fn blob(url: &str, digest: &str, size: u64) {
    let from = format!("{url}/v2/{REPOSITORY}/blobs/{digest}");
    let (parts, mut body) =
        http::send("GET", &from, &[], Body::empty()).await.unwrap_or_else(|error| panic!("{from}: {error}")).into_parts();
    assert_eq!(parts.status.as_u16(), 200, "{from}");
    let (mut hash, mut got) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        let data: Bytes = frame.unwrap_or_else(|error| panic!("{from} after {got} bytes: {error}")).into_data().unwrap_or_default();
        got += data.len() as u64;
        hash.update(&data);
    }
    assert_eq!((got, format!("sha256:{}", hex::encode(hash.finalize()))), (size, digest.to_owned()), "{from}");
}

/// Waits until the cables of all hosts are as good as idle: what owners copy by themselves has come to rest.
pub async fn quiet(hosts: &[Host]) {
    /// Bytes in a second on all cables that are no transfer: connections are kept alive, clocks compared.
    const NOISE: u64 = 100_000;
    let sent = || hosts.iter().map(|host| host.traffic().sent).sum::<u64>();
    let (mut before, mut since) = (sent(), Instant::now());
    wait_until("the cables are idle", Duration::from_secs(180), async || {
        if since.elapsed() < Duration::from_secs(1) {
            return None;
        }
        let now = sent();
        let is_quiet = now - before < NOISE;
        (before, since) = (now, Instant::now());
        is_quiet.then_some(())
    })
    .await;
}
