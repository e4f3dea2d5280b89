//! A pack into a folder, or looked through, without a daemon: what is in it can be had as long as this program, or any `tar`, can be run.
//!
//! ```text
//! <folder>/
//!   oci-layout  index.json            an OCI image layout: `skopeo inspect oci:<folder>:repository:tag`
//!   blobs/<algorithm>/<hex>           every blob and manifest whose digest is right
//!   records.jsonl                     the records, a line each, as they stand in the pack
//! ```
//!
//! `tar x` does the same, behind `age -d` for a pack that is encrypted, and believes what it reads. Here the index says where everything lies, names in the
//! tar are not looked at (S37), and a blob has its name only once its digest was checked.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use larder_protocol::digest::Digest;
use larder_protocol::pack::{Contents, Entry, FOOTER_SIZE, Footer, InvalidPack, ManifestPart, OCI_LAYOUT, index_json, record_line};
use larder_protocol::record::{Key, Value};
use serde::Serialize;
use sha2::Digest as _;

use super::packfile::PackFile;
use super::{Error, moment, tail};

const PIECE_SIZE: usize = 1 << 20;

/// What is in a pack.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unpacked {
    /// The cluster, in hex.
    pub cluster: String,
    /// Who signed it.
    pub writer: String,
    /// When: RFC 3339.
    pub created: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Blobs and manifests that are whole.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Records.
    pub records: usize,
    /// `repository:tag` of what can be opened by name.
    pub images: Vec<String>,
    /// Blobs whose bytes are not what their digest says; they are not written.
    pub damaged: Vec<Digest>,
}

/// Unpacks a file into a folder that is made for it.
///
/// # Errors
/// `Pack` when it is none that can be used; `Io`.
pub fn unpack(file: &PackFile, into: &Path) -> Result<Unpacked, Error> {
    let (mut unpacked, contents) = read(file)?;
    fs::create_dir_all(into).map_err(failed("create", into))?;
    for entry in &contents.index {
        let folder = into.join("blobs").join(entry.digest.algorithm().to_string());
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let is_whole = extract(file, entry, &folder)?;
        unpacked.count(entry, is_whole);
    }
    write(&into.join("index.json"), &index_json(&manifests(&contents)))?;
    write(&into.join("oci-layout"), OCI_LAYOUT)?;
    let lines: String = contents.records.iter().map(|numbered| record_line(numbered, false) + "\n").collect();
    write(&into.join("records.jsonl"), lines.as_bytes())?;
    Ok(unpacked)
}

/// Checks everything in a file, and writes nothing.
///
/// # Errors
/// As [`unpack`].
pub fn look(file: &PackFile) -> Result<Unpacked, Error> {
    let (mut unpacked, contents) = read(file)?;
    for entry in &contents.index {
        let is_whole = copy(file, entry, &mut |_| Ok(()))?;
        unpacked.count(entry, is_whole);
    }
    Ok(unpacked)
}

impl Unpacked {
    fn count(&mut self, entry: &Entry, is_whole: bool) {
        if is_whole {
            self.blobs += 1;
            self.bytes += entry.link.size;
        } else {
            self.damaged.push(entry.digest);
        }
    }
}

/// What the end of a file says.
fn read(file: &PackFile) -> Result<(Unpacked, Contents), Error> {
    let (path, size) = (file.path(), file.size());
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
    let unpacked = Unpacked {
        cluster: hex::encode(footer.cluster),
        writer: footer.pack.origin.node.letters(),
        created: moment(footer.created_ms),
        encrypted: file.is_encrypted(),
        records: contents.records.len(),
        images: manifests(&contents).into_iter().flat_map(|part| part.names).collect(),
        ..Unpacked::default()
    };
    Ok((unpacked, contents))
}

/// Copies a blob out, and gives it its name if it is what it should be.
fn extract(file: &PackFile, entry: &Entry, folder: &Path) -> Result<bool, Error> {
    let staged = folder.join(format!(".{}", entry.digest.hex()));
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).open(&staged).map_err(failed("create", &staged))?;
    let is_right = copy(file, entry, &mut |piece| out.write_all(piece).map_err(failed("write", &staged)))?;
    if is_right {
        let named = folder.join(entry.digest.hex());
        fs::rename(&staged, &named).map_err(failed("rename to", &named))?;
    } else {
        fs::remove_file(&staged).map_err(failed("remove", &staged))?;
    }
    Ok(is_right)
}

/// Hands a blob's bytes to `take`; whether they are what they should be.
fn copy(file: &PackFile, entry: &Entry, take: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<bool, Error> {
    let mut hasher = Hasher::new(&entry.digest);
    let (mut at, end) = (entry.offset, entry.offset + entry.link.size);
    let mut piece = vec![0; PIECE_SIZE.min(entry.link.size as usize)];
    while at < end {
        let piece = &mut piece[..PIECE_SIZE.min((end - at) as usize)];
        file.read_exact_at(piece, at).map_err(failed("read", file.path()))?;
        hasher.update(piece);
        take(piece)?;
        at += piece.len() as u64;
    }
    Ok(hasher.is(&entry.digest))
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
