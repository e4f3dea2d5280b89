//! A bucket as a large fleet leaves it, made in moments and without a node: packs of small blobs, and the checkpoint over them.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use larder_harness::Random;
use larder_protocol::checkpoint::{Scope, Writer};
use larder_protocol::digest::Digest;
use larder_protocol::pack::{BlobPart, Covered, Draft, ManifestPart, Piece, link_of};
use larder_protocol::record::{Archived, Key, Manifest, Numbered, PackId, Record, TagTarget, Value};
use larder_protocol::stamp::{HybridTime, NodeId, Stamp};
use larder_protocol::vector::Origin;
use serde_json::json;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Blobs of each image, all its own.
pub const BLOBS: u64 = 10;
const BLOB_SIZE: usize = 1_000;
/// Images whose blobs and manifests lie in one pack.
const IMAGES_IN_PACK: u64 = 900;
/// Images of one repository.
const TAGS: u64 = 100;
const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// When the first of them was pushed.
const BEGAN_MS: u64 = 1_750_000_000_000;
const CLUSTER: [u8; 16] = [7; 16];
const BUCKET: &str = "s3://larder-test/fleet";

/// What was made.
pub struct Generated {
    /// The image with the newest tag.
    pub newest: Made,
    /// Any other.
    pub random: Made,
    pub checkpoint_size: u64,
    pub records: u64,
}

/// An image as a client sees it.
pub struct Made {
    pub repository: String,
    pub tag: String,
    pub blobs: Vec<String>,
}

struct Node {
    key: Ed25519KeyPair,
    origin: Origin,
}

fn blob(image: u64, index: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOB_SIZE];
    Random::new(image * BLOBS + index).fill(&mut bytes);
    bytes
}

fn repository(image: u64) -> String {
    format!("team-{}/app-{}", image / TAGS / 100, image / TAGS)
}

fn manifest(digests: &[(Digest, usize)]) -> Vec<u8> {
    let descriptor =
        |(digest, size): &(Digest, usize), media_type: &str| json!({ "mediaType": media_type, "digest": digest, "size": size });
    let layers: Vec<_> = digests[1..].iter().map(|layer| descriptor(layer, "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
    let config = descriptor(&digests[0], "application/vnd.oci.image.config.v1+json");
    json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE, "config": config, "layers": layers }).to_string().into()
}

/// The image of this number, as it was made.
pub fn made(image: u64) -> Made {
    let blobs = (0..BLOBS).map(|index| Digest::sha256(&blob(image, index)).to_string()).collect();
    Made { repository: repository(image), tag: format!("build-{image}"), blobs }
}

/// Makes a bucket with so many images in `folder`.
pub fn generate(folder: &Path, images: u64) -> Generated {
    let key = Ed25519KeyPair::from_seed_unchecked(&[42; 32]).expect("a key");
    let node = NodeId(key.public_key().as_ref().try_into().expect("32 bytes"));
    let node = Node { key, origin: Origin { node, incarnation: BEGAN_MS } };
    let mut sequence = 0;
    let mut packs = Vec::new();
    // By repository, as a checkpoint has them: newest first.
    let mut records: Vec<Vec<Numbered>> = Vec::new();
    for (number, first) in (0..images).step_by(IMAGES_IN_PACK as usize).enumerate() {
        let range = first..(first + IMAGES_IN_PACK).min(images);
        packs.push(pack(folder, &node, number as u64 + 1, range, &mut sequence, &mut records));
    }
    let pack_count = packs.len() as u64;
    let stones = packs.into_iter().map(|(id, archived)| (Key::Archived(id), Some(Value::Archived(archived))));
    let writer_folder = folder.join("v1/checkpoints");
    std::fs::create_dir_all(&writer_folder).expect("make a folder");
    let created_ms = BEGAN_MS + images + 1;
    let path = writer_folder.join(format!("{created_ms:016}-{}", node.origin.node.letters()));
    let mut out = Writer::new(BufWriter::new(File::create(&path).expect("create")));
    let mut count = 0;
    for (key, value) in stones {
        out.push(&numbered(&node, &mut sequence, created_ms, key, value)).expect("write");
        count += 1;
    }
    for numbered in records.iter().rev().flatten() {
        out.push(numbered).expect("write");
        count += 1;
    }
    let scope = Scope {
        bucket: BUCKET.to_owned(),
        prefix: "fleet".to_owned(),
        seen: [(node.origin, sequence)].into_iter().collect(),
        packs: [(node.origin, pack_count)].into(),
        ..Scope::default()
    };
    let sign = |bytes: &[u8]| node.key.sign(bytes).as_ref().try_into().expect("64 bytes");
    out.finish(&scope, CLUSTER, (node.origin, created_ms), sign).expect("write");
    let mut random = Random::printed("bench-restore");
    let checkpoint_size = std::fs::metadata(&path).expect("it is there").len();
    Generated { newest: made(images - 1), random: made(random.below(images)), checkpoint_size, records: count }
}

fn numbered(node: &Node, sequence: &mut u64, ms: u64, key: Key, value: Option<Value>) -> Numbered {
    *sequence += 1;
    let stamp = Stamp { time: HybridTime::from_ms(ms), node: node.origin.node };
    Numbered { origin: node.origin, sequence: *sequence, record: Record { key, value, stamp } }
}

/// Writes a pack with these images, and what a checkpoint says of them.
fn pack(
    folder: &Path,
    node: &Node,
    number: u64,
    images: std::ops::Range<u64>,
    sequence: &mut u64,
    records: &mut Vec<Vec<Numbered>>,
) -> (PackId, Archived) {
    let id = PackId { origin: node.origin, sequence: number };
    let (mut blobs, mut manifests, mut bytes) = (Vec::new(), Vec::new(), HashMap::new());
    let after = *sequence;
    for image in images {
        let name: larder_protocol::name::RepositoryName = repository(image).parse().expect("a name");
        let ms = BEGAN_MS + image;
        if image % TAGS == 0 {
            records.push(Vec::new());
        }
        let of_repository = records.last_mut().expect("begun above");
        let mut digests = Vec::new();
        for index in 0..BLOBS {
            let content = blob(image, index);
            let (digest, link) = (Digest::sha256(&content), link_of(&content));
            digests.push((digest, content.len()));
            of_repository.push(numbered(node, sequence, ms, Key::Link(name.clone(), digest), Some(Value::Link(link))));
            blobs.push(BlobPart { digest, link, chunks: None });
            bytes.insert(digest, content);
        }
        let text = manifest(&digests);
        let digest = Digest::sha256(&text);
        let value = Manifest { media_type: MEDIA_TYPE.to_owned(), bytes: text.clone() };
        of_repository.push(numbered(node, sequence, ms, Key::Manifest(name.clone(), digest), Some(Value::Manifest(value))));
        let tag = format!("build-{image}").parse().expect("a tag");
        let target = Value::Tag(TagTarget { digest, replaced: None });
        of_repository.push(numbered(node, sequence, ms, Key::Tag(name, tag), Some(target)));
        manifests.push(ManifestPart { digest, media_type: MEDIA_TYPE.to_owned(), bytes: text.into(), names: Vec::new() });
    }
    let covers = [(node.origin, Covered { after, upto: *sequence })].into();
    // What the pack itself tells is in the checkpoint; nobody reads it here.
    let draft = Draft { cluster: CLUSTER, pack: id, created_ms: BEGAN_MS, blobs, manifests, records: Vec::new(), covers };
    let sealed = draft.seal(|bytes| node.key.sign(bytes).as_ref().try_into().expect("64 bytes"));
    let name = format!("v1/packs/{}-{}/{number:012}.tar", node.origin.node.letters(), node.origin.incarnation);
    let path = folder.join(&name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    let mut file = BufWriter::new(File::create(path).expect("create"));
    for piece in &sealed.pieces {
        match piece {
            Piece::Bytes(bytes) => file.write_all(bytes).expect("write"),
            Piece::Blob { digest, .. } => file.write_all(&bytes[digest]).expect("write"),
        }
    }
    file.flush().expect("write");
    let archived = Archived {
        bucket: BUCKET.to_owned(),
        object_key: format!("fleet/{name}"),
        size: sealed.size(),
        created_ms: BEGAN_MS,
        records: 0,
        contents: sealed.contents,
    };
    (id, archived)
}
