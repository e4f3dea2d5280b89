//! A pack into a folder, without a daemon: what is in it can be had as long as this program, or any `tar`, can be run.
//!
//! ```text
//! <folder>/
//!   oci-layout  index.json            an OCI image layout: `skopeo inspect oci:<folder>:repository:tag`
//!   blobs/<algorithm>/<hex>           every blob and manifest whose digest is right
//!   records.jsonl                     the records, a line each, as they stand in the pack
//! ```
//!
//! `tar x` does the same for a pack that is not encrypted, and believes what it reads. Here the index says where everything lies, names in the
//! tar are not looked at (S37), and a blob has its name only once its digest was checked.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use larder_protocol::digest::Digest;
use larder_protocol::pack::{Contents, Entry, FOOTER_SIZE, Footer, InvalidPack, ManifestPart, OCI_LAYOUT, index_json, record_line};
use larder_protocol::record::{Key, Value};
use serde::Serialize;
use sha2::Digest as _;

use super::{Error, tail};

const PIECE_SIZE: usize = 1 << 20;

/// What came out of a pack.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unpacked {
    /// Blobs and manifests written.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Records written.
    pub records: usize,
    /// `repository:tag` of what can be opened by name.
    pub images: Vec<String>,
    /// Blobs whose bytes are not what their digest says; they were not written.
    pub damaged: Vec<Digest>,
}

/// Unpacks a file into a folder that is made for it.
///
/// # Errors
/// `Pack` when it is none that can be used; `Io`.
pub fn unpack(path: &Path, into: &Path) -> Result<Unpacked, Error> {
    let file = File::open(path).map_err(failed("open", path))?;
    let size = file.metadata().map_err(failed("look at", path))?.len();
    let read = |offset, length: u64| {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes).map_err(failed("read", path))
    };
    let invalid = |source| Error::Pack { key: path.display().to_string(), source: Box::new(source) };
    if size < FOOTER_SIZE {
        return Err(invalid(InvalidPack::NoFooter));
    }
    let footer = Footer::parse(&read(size - FOOTER_SIZE, FOOTER_SIZE)?, size, tail::verify).map_err(invalid)?;
    // The footer has bounded it.
    let contents = Contents::parse(&footer, &read(footer.tail, footer.tail_length())?).map_err(invalid)?;

    fs::create_dir_all(into).map_err(failed("create", into))?;
    let mut unpacked = Unpacked::default();
    for entry in &contents.index {
        let folder = into.join("blobs").join(entry.digest.algorithm().to_string());
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        if extract(&file, path, entry, &folder)? {
            unpacked.blobs += 1;
            unpacked.bytes += entry.link.size;
        } else {
            unpacked.damaged.push(entry.digest);
        }
    }
    let manifests = manifests(&contents);
    unpacked.images = manifests.iter().flat_map(|part| part.names.iter().cloned()).collect();
    unpacked.records = contents.records.len();
    write(&into.join("index.json"), &index_json(&manifests))?;
    write(&into.join("oci-layout"), OCI_LAYOUT)?;
    let lines: String = contents.records.iter().map(|numbered| record_line(numbered, false) + "\n").collect();
    write(&into.join("records.jsonl"), lines.as_bytes())?;
    Ok(unpacked)
}

/// Copies a blob out, and gives it its name if it is what it should be.
fn extract(file: &File, path: &Path, entry: &Entry, folder: &Path) -> Result<bool, Error> {
    let staged = folder.join(format!(".{}", entry.digest.hex()));
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).open(&staged).map_err(failed("create", &staged))?;
    let mut hasher = Hasher::new(&entry.digest);
    let (mut at, end) = (entry.offset, entry.offset + entry.link.size);
    let mut piece = vec![0; PIECE_SIZE.min(entry.link.size as usize)];
    while at < end {
        let piece = &mut piece[..PIECE_SIZE.min((end - at) as usize)];
        file.read_exact_at(piece, at).map_err(failed("read", path))?;
        hasher.update(piece);
        out.write_all(piece).map_err(failed("write", &staged))?;
        at += piece.len() as u64;
    }
    let is_right = hasher.is(&entry.digest);
    if is_right {
        let named = folder.join(entry.digest.hex());
        fs::rename(&staged, &named).map_err(failed("rename to", &named))?;
    } else {
        fs::remove_file(&staged).map_err(failed("remove", &staged))?;
    }
    Ok(is_right)
}

/// Every manifest that the records tell of, with its names.
fn manifests(contents: &Contents) -> Vec<ManifestPart> {
    let (mut parts, mut at): (Vec<ManifestPart>, HashMap<Digest, usize>) = Default::default();
    for numbered in &contents.records {
        if let (Key::Manifest(_, digest), Some(Value::Manifest(manifest))) = (&numbered.record.key, &numbered.record.value) {
            at.entry(*digest).or_insert_with(|| {
                let (media_type, bytes) = (manifest.media_type.clone(), manifest.bytes.clone().into());
                parts.push(ManifestPart { digest: *digest, media_type, bytes, names: Vec::new() });
                parts.len() - 1
            });
        }
    }
    for numbered in &contents.records {
        if let (Key::Tag(repository, tag), Some(Value::Tag(target))) = (&numbered.record.key, &numbered.record.value)
            && let Some(at) = at.get(&target.digest)
        {
            parts[*at].names.push(format!("{repository}:{tag}"));
        }
    }
    parts
}

/// The hash that a digest is of, while bytes come.
pub(super) enum Hasher {
    /// SHA-256
    Sha256(sha2::Sha256),
    /// SHA-512
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// For bytes that shall have this digest.
    pub(super) fn new(digest: &Digest) -> Self {
        match digest.algorithm() {
            larder_protocol::digest::Algorithm::Sha256 => Self::Sha256(Default::default()),
            larder_protocol::digest::Algorithm::Sha512 => Self::Sha512(Default::default()),
        }
    }

    /// The next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Whether they had it.
    pub(super) fn is(self, digest: &Digest) -> bool {
        match self {
            Self::Sha256(hasher) => hex::encode(hasher.finalize()) == digest.hex(),
            Self::Sha512(hasher) => hex::encode(hasher.finalize()) == digest.hex(),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(failed("write", path))
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Io { doing, path: PathBuf::from(path), source }
}
