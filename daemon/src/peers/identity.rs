//! Who this node is: its id, and the key by which it proves that.
//!
//! The key is an Ed25519 pair and lies in `node.key` (PKCS#8, 0600) in the data folder; it is made at the first start, and read nowhere else. The public half of
//! the first is the node's id, for ever. TLS uses the key as a raw public key (RFC 7250), so there is no certificate, no authority and no date.
//!
//! A key can be changed ([`super::own`]): the next lies in `node.key.next` until it is used, and `node.keys` has the id and how each key was signed in by the
//! one before; what the others are told of it is a record.
//!
//! # What a crash leaves
//!
//! `node.key.next` is there before it is announced, and takes the place of `node.key` by one renaming. A start reads which of the keys in `node.keys` it has:
//! the one that is announced, and then it is in use from now on; or the one before, and then the change goes on where `node.key.next` is there, and is
//! forgotten where it is not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use larder_protocol::codec;
use larder_protocol::keys::Keys;
use larder_protocol::stamp::NodeId;

use super::error::{Error, Result};

/// What stands before the 32 bytes of an Ed25519 public key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// A key file is far smaller.
const KEY_FILE_MAX: u64 = 4096;
/// As many keys as a node may have had.
const KEYS_FILE_MAX: u64 = 64 << 10;

/// This node, and its keys.
pub struct Identity {
    node: NodeId,
    folder: PathBuf,
    used: ArcSwap<Pair>,
    keys: Mutex<Kept>,
}

/// What is known of the keys after the first.
#[derive(Clone, Default)]
struct Kept {
    keys: Keys,
    next: Option<Arc<Pair>>,
}

/// A key of this node.
pub struct Pair {
    key: NodeId,
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity of {:?}", self.node)
    }
}

impl Pair {
    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let key = NodeId(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { key, pair, pkcs8 })
    }

    /// The public key, which for a node's first is its id.
    pub fn key(&self) -> NodeId {
        self.key
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

impl Identity {
    /// Reads this node's keys in a data folder, or makes the first.
    ///
    /// # Errors
    /// `Key`: one can't be read or written, others may read it, or it is no key, or none of this node's.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("node.key");
        let wrong = |why: &str| Error::Key { doing: "read", path: path.clone(), why: why.to_owned() };
        let kept = read_keys(&folder.join("node.keys"))?;
        let pkcs8 = match File::open(&path) {
            Ok(file) => read_key(file, &path)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound && kept.is_none() => make_key(&path)?,
            Err(source) => return Err(failed("open", &path)(source)),
        };
        let pair = Pair::from_pkcs8(pkcs8).ok_or_else(|| wrong("it holds no Ed25519 key"))?;
        let (node, mut keys) = kept.unwrap_or_else(|| (pair.key, Keys::default()));
        let mut line: Vec<_> = std::iter::once(node).chain(keys.later.iter().map(|later| later.key)).collect();
        let is_pending = keys.later.last().is_some_and(|last| last.before_until_ms.is_none());
        let last = line.pop();
        let mut next = None;
        if is_pending && line.last() == Some(&pair.key) {
            let there = File::open(next_path(folder)).ok().and_then(|file| read_key(file, &next_path(folder)).ok());
            next = there.and_then(Pair::from_pkcs8).filter(|next| Some(next.key) == last).map(Arc::new);
            if next.is_none() {
                tracing::warn!("the next key of this node is gone; its change of keys is given up");
                keys.later.pop();
            }
        } else if last != Some(pair.key) {
            return Err(wrong(
                "it is not the last of the keys that node.keys names: another copy of this data folder has changed it since",
            ));
        }
        let kept = Kept { keys, next };
        Ok(Self { node, folder: folder.to_owned(), used: ArcSwap::from_pointee(pair), keys: Mutex::new(kept) })
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The key in use.
    pub fn used(&self) -> Arc<Pair> {
        self.used.load_full()
    }

    /// What the others are to be told of this node's keys.
    pub(super) fn keys(&self) -> Keys {
        self.kept().keys.clone()
    }

    /// Whether a key is announced and not used yet, in what the others are told; after a start that was cut short it may be in use here already.
    pub(super) fn is_changing(&self) -> bool {
        self.kept().keys.later.last().is_some_and(|last| last.before_until_ms.is_none())
    }

    /// Whether the key that is announced is in use here already.
    pub(super) fn is_next_used(&self) -> bool {
        self.kept().keys.later.last().is_some_and(|last| last.key == self.used().key)
    }

    /// Makes the next key, and has it signed in by the one in use. Blocks on the disk.
    pub(super) fn announce(&self) -> Result<()> {
        let mut kept = self.kept();
        let path = next_path(&self.folder);
        let next = Pair::from_pkcs8(make_key(&path)?).expect("it was made just now");
        let used = self.used();
        let mut keys = kept.keys.clone();
        keys.announce(self.node, next.key, |bytes| used.sign(bytes));
        self.write_keys(&keys)?;
        *kept = Kept { keys, next: Some(Arc::new(next)) };
        Ok(())
    }

    /// Uses the key that is announced, from now on. Blocks on the disk.
    pub(super) fn use_next(&self) -> Result<()> {
        let mut kept = self.kept();
        let Some(next) = kept.next.take() else { return Ok(()) };
        let (from, to) = (next_path(&self.folder), self.folder.join("node.key"));
        if let Err(error) = fs::rename(&from, &to).map_err(failed("put in place", &from)).and_then(|()| sync(&to)) {
            kept.next = Some(next);
            return Err(error);
        }
        self.used.store(next);
        Ok(())
    }

    /// Takes note of that the announced key is in use, and until when what the one before has signed counts. Blocks on the disk.
    pub(super) fn note_used(&self, before_until_ms: u64) -> Result<()> {
        let mut kept = self.kept();
        let mut keys = kept.keys.clone();
        keys.use_announced(before_until_ms);
        self.write_keys(&keys)?;
        kept.keys = keys;
        Ok(())
    }

    fn write_keys(&self, keys: &Keys) -> Result<()> {
        let text = format!("{}\n{}\n", self.node.letters(), hex::encode(codec::encode(keys)));
        write_whole(&self.folder.join("node.keys"), text.as_bytes())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_path(folder: &Path) -> PathBuf {
    folder.join("node.key.next")
}

/// The id and the keys after the first; `None`: there is no such file, and there were none.
fn read_keys(path: &Path) -> Result<Option<(NodeId, Keys)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("open", path)(source)),
    };
    let mut text = String::new();
    file.take(KEYS_FILE_MAX).read_to_string(&mut text).map_err(failed("read", path))?;
    let parsed = text.split_once('\n').and_then(|(node, keys)| {
        let keys = hex::decode(keys.trim()).ok()?;
        Some((NodeId::parse(node)?, codec::decode::<Keys>(&keys).ok()?))
    });
    parsed.map(Some).ok_or_else(|| Error::Key { doing: "read", path: path.to_owned(), why: "it is damaged".to_owned() })
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

fn make_key(path: &Path) -> Result<Vec<u8>> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system gives random bytes").as_ref().to_vec();
    write_whole(path, &pkcs8)?;
    Ok(pkcs8)
}

/// CRASH: the file gets its name when it is whole; a start that was cut short leaves `*.new`, which the next overwrites.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh).map_err(failed("create", &fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("name", path))?;
    sync(path)
}

fn sync(path: &Path) -> Result<()> {
    let folder = path.parent().expect("a file of the data folder has a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of", path))
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

    #[test]
    fn a_change_of_keys_that_was_cut_short_anywhere_goes_on_or_never_was() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let load = || Identity::load(folder.path()).expect("keys");
        let first = load();
        let id = first.node();
        first.announce().expect("announced");
        // Before it is used.
        let again = load();
        assert!(again.is_changing() && again.used().key() == id && again.keys() == first.keys());
        // The next key is lost: then it was never announced, as far as this node goes.
        let next = fs::read(next_path(folder.path())).expect("read");
        fs::remove_file(next_path(folder.path())).expect("remove");
        assert!(!load().is_changing() && load().keys().later.is_empty());
        write_whole(&next_path(folder.path()), &next).expect("put back");
        // Between its use and the note of that.
        again.use_next().expect("used");
        let used = again.used().key();
        let again = load();
        assert!(again.is_changing() && again.used().key() == used && used != id && again.node() == id);
        again.note_used(5).expect("noted");
        let again = load();
        assert!(!again.is_changing() && again.used().key() == used && again.node() == id);
        assert_eq!(again.keys().later[0].before_until_ms, Some(5));
        // A second time.
        again.announce().expect("announced");
        again.use_next().expect("used");
        again.note_used(6).expect("noted");
        assert_eq!((load().node(), load().keys().later.len()), (id, 2));
        // A copy of the key before.
        write_whole(&folder.path().join("node.key"), &next).expect("an older key");
        let error = Identity::load(folder.path()).expect_err("an older key").to_string();
        assert!(error.contains("another copy of this data folder"), "{error}");
        fs::remove_file(folder.path().join("node.key")).expect("remove");
        assert!(Identity::load(folder.path()).is_err(), "no other key is made for a node that has had several");
    }
}
