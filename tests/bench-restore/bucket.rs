//! A bucket as a large fleet has filled it, written without the fleet: its packs, a checkpoint, and packs behind that.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use bytes::Bytes;
use larder_harness::Random;
use larder_protocol::checkpoint::{Scope, Writer};
use larder_protocol::digest::Digest;
use larder_protocol::pack::{BlobPart, Company, Covered, Draft, ManifestPart, Piece, link_of, record_line};
use larder_protocol::record::{Archived, Key, Manifest, Numbered, PackId, Record, TagTarget, Value};
use larder_protocol::stamp::{HybridTime, NodeId, Stamp};
use larder_protocol::vector::Origin;
use serde_json::json;
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Blobs of an image.
pub const BLOBS: usize = 10;
/// Images of a repository.
const IMAGES: u64 = 10;
/// Images of a pack: with their manifests they are as many contents as one may hold.
const PACKED: u64 = 900;
const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CLUSTER: [u8; 16] = [7; 16];
const MONTH_MS: u64 = 30 * 86_400_000;

/// An image: its manifest, and its blobs.
pub struct Image {
    pub repository: String,
    pub tag: String,
    pub manifest: Bytes,
    pub blobs: Vec<Bytes>,
}

/// The image of a number, the same each time.
pub fn image(number: u64) -> Image {
    let mut random = Random::new(number.wrapping_mul(0x9e37_79b9) + 1);
    let blobs: Vec<Bytes> = (0..BLOBS)
        .map(|_| {
            let mut bytes = vec![0; 40 + random.below(100) as usize];
            random.fill(&mut bytes);
            Bytes::from(bytes)
        })
        .collect();
    let described: Vec<_> = blobs
        .iter()
        .map(|bytes| json!({"mediaType": "application/octet-stream", "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()}))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MEDIA_TYPE, "config": described[0], "layers": described[1..]});
    let repository = format!("team-{:03}/app-{:06}", number / IMAGES % 500, number / IMAGES);
    Image { repository, tag: format!("v{}", number % IMAGES), manifest: manifest.to_string().into(), blobs }
}

/// What a bucket is filled with.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Images that the checkpoint tells of.
    pub images: u64,
    /// Packs behind it, each with one image more.
    pub tail: u64,
}

struct Fleet<'a> {
    folder: &'a Path,
    bucket: String,
    key: Ed25519KeyPair,
    origin: Origin,
    began_ms: u64,
    sequence: u64,
    /// Up to where packs tell everything.
    covered: u64,
    packs: Vec<(PackId, Archived)>,
}

/// Fills `fleet` in a bucket that is the folder, under the id `bucket`.
pub fn fill(folder: &Path, bucket: &str, size: Size) {
    let key = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a key");
    let node = NodeId(key.public_key().as_ref().try_into().expect("32 bytes"));
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let origin = Origin { node, incarnation: now_ms - MONTH_MS };
    let mut fleet =
        Fleet { folder, bucket: bucket.to_owned(), key, origin, began_ms: now_ms - MONTH_MS, sequence: 0, covered: 0, packs: Vec::new() };
    let mark = json!({
        "larder": "cluster", "version": 1, "cluster": hex::encode(CLUSTER), "founder": node.letters(), "created_ms": fleet.began_ms,
    });
    std::fs::create_dir_all(folder.join("fleet/v1/checkpoints")).expect("make a folder");
    std::fs::write(folder.join("fleet/v1/cluster"), format!("{:<511}\n", mark.to_string())).expect("write the mark");
    for begin in (0..size.images).step_by(PACKED as usize) {
        fleet.pack(begin..size.images.min(begin + PACKED));
    }
    let seen = fleet.sequence;
    fleet.checkpoint(size.images, seen);
    for number in 0..size.tail {
        fleet.pack(size.images + number..size.images + number + 1);
    }
}

impl Fleet<'_> {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).as_ref().try_into().expect("64 bytes")
    }

    fn company(&self) -> Company {
        Company { founder: Some(self.origin.node), members: vec![self.origin.node], expelled: Vec::new() }
    }

    fn numbered(&self, sequence: u64, key: Key, value: Value) -> Numbered {
        let stamp = Stamp { time: HybridTime(((self.began_ms + sequence / 8) << 16) | (sequence % 8)), node: self.origin.node };
        Numbered { origin: self.origin, sequence, record: Record { key, value: Some(value), stamp } }
    }

    /// The records of an image, which begin behind `sequence`.
    fn records(&self, image: &Image, mut sequence: u64) -> Vec<Numbered> {
        let repository: larder_protocol::name::RepositoryName = image.repository.parse().expect("a name");
        let mut records: Vec<(Key, Value)> =
            image.blobs.iter().map(|bytes| (Key::Link(repository.clone(), Digest::sha256(bytes)), Value::Link(link_of(bytes)))).collect();
        let digest = Digest::sha256(&image.manifest);
        let manifest = Manifest { media_type: MEDIA_TYPE.to_owned(), bytes: image.manifest.to_vec() };
        records.push((Key::Manifest(repository.clone(), digest), Value::Manifest(manifest)));
        let tag = Key::Tag(repository, image.tag.parse().expect("a tag"));
        records.push((tag, Value::Tag(TagTarget { digest, replaced: None })));
        records
            .into_iter()
            .map(|(key, value)| {
                sequence += 1;
                self.numbered(sequence, key, value)
            })
            .collect()
    }

    fn pack(&mut self, images: std::ops::Range<u64>) {
        let after = self.covered;
        let (mut lines, mut parts, mut manifests, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
        for number in images {
            let image = image(number);
            for numbered in self.records(&image, self.sequence) {
                self.sequence = numbered.sequence;
                lines.push(record_line(&numbered, false));
            }
            for blob in image.blobs {
                let digest = Digest::sha256(&blob);
                parts.push(BlobPart { digest, link: link_of(&blob), chunks: None });
                bytes.insert(digest, blob);
            }
            let names = vec![format!("{}:{}", image.repository, image.tag)];
            let (digest, media_type) = (Digest::sha256(&image.manifest), MEDIA_TYPE.to_owned());
            manifests.push(ManifestPart { digest, media_type, bytes: image.manifest, names });
        }
        let id = PackId { origin: self.origin, sequence: self.packs.len() as u64 + 1 };
        let draft = Draft {
            cluster: CLUSTER,
            pack: id,
            created_ms: self.began_ms + self.sequence / 8,
            blobs: parts,
            manifests,
            records: lines,
            covers: [(self.origin, Covered { after, upto: self.sequence })].into(),
            company: self.company(),
        };
        let created_ms = draft.created_ms;
        let sealed = draft.seal(|bytes| self.sign(bytes));
        let object_key = format!("fleet/v1/packs/{}-{}/{:012}.tar", self.origin.node.letters(), self.origin.incarnation, id.sequence);
        let path = self.folder.join(&object_key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        let mut out = BufWriter::new(std::fs::File::create(&path).expect("make a file"));
        for piece in &sealed.pieces {
            let written = match piece {
                Piece::Bytes(bytes) => out.write_all(bytes),
                Piece::Blob { digest, .. } => out.write_all(&bytes[digest]),
            };
            written.expect("write a pack");
        }
        out.flush().expect("write a pack");
        let (size, records) = (sealed.size(), sealed.footer.record_count);
        let archived = Archived { bucket: self.bucket.clone(), object_key, size, created_ms, records, contents: sealed.contents };
        self.packs.push((id, archived));
        self.covered = self.sequence;
        // The record of the pack itself, which the next one covers.
        self.sequence += 1;
    }

    fn checkpoint(&mut self, images: u64, seen: u64) {
        let created_ms = self.began_ms + self.sequence / 8;
        let path = self.folder.join(format!("fleet/v1/checkpoints/{created_ms:016}-{}", self.origin.node.letters()));
        let mut out = Writer::new(BufWriter::new(std::fs::File::create(path).expect("make a file")));
        let mut push = |numbered: Numbered| out.push(&numbered).expect("write a checkpoint");
        // The number of an image's first record: each pack ends with one of its own.
        let first = |number: u64| number * (BLOBS as u64 + 2) + number / PACKED;
        for (index, (id, archived)) in self.packs.iter().enumerate() {
            let end = first(images.min((index as u64 + 1) * PACKED) - 1) + BLOBS as u64 + 3;
            push(self.numbered(end, Key::Archived(*id), Value::Archived(archived.clone())));
        }
        for repository in (0..images.div_ceil(IMAGES)).rev() {
            for number in repository * IMAGES..images.min((repository + 1) * IMAGES) {
                self.records(&image(number), first(number)).into_iter().for_each(&mut push);
            }
        }
        let scope = Scope {
            bucket: self.bucket.clone(),
            prefix: "fleet".to_owned(),
            seen: [(self.origin, seen)].into_iter().collect(),
            horizon: Default::default(),
            packs: [(self.origin, self.packs.len() as u64)].into(),
            company: self.company(),
        };
        out.finish(&scope, CLUSTER, (self.origin, created_ms), |bytes| self.sign(bytes)).expect("write a checkpoint");
    }
}
