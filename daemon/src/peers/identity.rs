//! This node's key: an Ed25519 pair whose public half is the node's id.
//!
//! It lies in `node.key` (PKCS#8, 0600) in the data folder, is made at the first start, and is read nowhere else. TLS uses it as a
//! raw public key (RFC 7250), so there is no certificate, no authority and no date.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use larder_protocol::stamp::NodeId;

use super::error::{Error, Result};

/// What stands before the 32 bytes of an Ed25519 public key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// A key file is far smaller.
const KEY_FILE_MAX: u64 = 4096;

/// This node's key.
pub struct Identity {
    node: NodeId,
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity of {:?}", self.node)
    }
}

impl Identity {
    /// Reads `node.key` in a data folder, or makes it.
    ///
    /// # Errors
    /// `Key`: it can't be read or written, others may read it, or it is no key.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("node.key");
        let pkcs8 = match File::open(&path) {
            Ok(file) => read_key(file, &path)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => make_key(folder, &path)?,
            Err(source) => return Err(failed("open", &path)(source)),
        };
        Self::from_pkcs8(pkcs8).ok_or_else(|| Error::Key { doing: "read", path, why: "it holds no Ed25519 key".to_owned() })
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let node = NodeId(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { node, pair, pkcs8 })
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Signs bytes (Ed25519, RFC 8032).
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.pair.sign(bytes).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// The key, for TLS.
    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// The public key that a peer showed, if it is an Ed25519 key.
pub(super) fn node_of(spki: &[u8]) -> Option<NodeId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    key.try_into().ok().map(NodeId)
}

/// A node's public key, as TLS shows it.
pub(super) fn spki_of(node: &NodeId) -> Vec<u8> {
    [&SPKI_PREFIX[..], &node.0].concat()
}

fn read_key(file: File, path: &Path) -> Result<Vec<u8>> {
    let mode = file.metadata().map_err(failed("look at", path))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("others may read it (mode {mode:03o}); chmod 0600");
        return Err(Error::Key { doing: "read", path: path.to_owned(), why });
    }
    let mut pkcs8 = Vec::new();
    file.take(KEY_FILE_MAX).read_to_end(&mut pkcs8).map_err(failed("read", path))?;
    Ok(pkcs8)
}

/// CRASH: the file gets its name when it is whole; a start that was cut short leaves `node.key.new`, which the next overwrites.
fn make_key(folder: &Path, path: &Path) -> Result<Vec<u8>> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system gives random bytes").as_ref().to_vec();
    let fresh = path.with_extension("key.new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh).map_err(failed("create", &fresh))?;
    file.write_all(&pkcs8).and_then(|()| file.sync_all()).map_err(failed("write", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("name", path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of", path))?;
    Ok(pkcs8)
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    move |source| Error::Key { doing, path, why: source.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let first = Identity::load(folder.path()).expect("made");
        assert_eq!(Identity::load(folder.path()).expect("read").node(), first.node());
        let path = folder.path().join("node.key");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(node_of(&spki_of(&first.node())), Some(first.node()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(Identity::load(folder.path()), Err(Error::Key { .. })), "S42");
        fs::remove_file(&path).expect("remove");
        fs::write(&path, b"garbage").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(matches!(Identity::load(folder.path()), Err(Error::Key { .. })));
    }
}
