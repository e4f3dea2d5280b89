//! A bucket that is a folder on this host: the default, and the one that tests use.
//!
//! ```text
//! <folder>/
//!   larder-bucket                     the bucket's id, `file:<uuid>`: two hosts' folders are never taken for one
//!   v1/packs/...                      see `keys`
//!   .put-<uuid>                       an object on its way in; left behind by a crash, removed when it is a day old
//! ```
//!
//! An object is written to the side, synced and renamed, then its folder is synced: it is there whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use uuid::Uuid;

use crate::config::{FOLDER, Prices, StorageClass};

use super::Error;
use super::bucket::{Bucket, Chunks, Listed, Object, Page};
use super::ledger::{Ledger, Request};

const ID_FILE: &str = "larder-bucket";
const ID_SIZE_MAX: u64 = 256;
const STAGED: &str = ".put-";
/// A staged file that is older belongs to nobody.
const STAGED_AGE_MAX: Duration = Duration::from_secs(86_400);
const PIECE_SIZE: u64 = 256 << 10;
/// Objects on one page, as S3 has it.
const PAGE: usize = 1000;

/// See the module.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    id: String,
    ledger: Ledger,
}

impl Directory {
    /// Makes the folder and its id where there is none.
    pub async fn open(root: &Path, ledger: Ledger) -> Result<Self, Error> {
        let root = root.to_owned();
        blocking(move || {
            fs::create_dir_all(&root).map_err(io_error("create bucket folder", &root))?;
            let id = bucket_id(&root)?;
            sweep_staged(&root);
            Ok(Self { root, id, ledger })
        })
        .await
    }

    /// The file of a key. Keys come from other nodes' records too: only plain names are taken.
    fn path(&self, key: &str) -> Result<PathBuf, Error> {
        let plain = |part: &str| {
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        };
        if key.split('/').all(plain) {
            Ok(self.root.join(key))
        } else {
            let detail = "that is no key of a pack".to_owned();
            Err(Error::Bucket { doing: "open", key: key.to_owned(), bucket: self.id.clone(), detail })
        }
    }
}

impl Bucket for Directory {
    fn id(&self) -> &str {
        &self.id
    }

    fn prefix(&self) -> &str {
        ""
    }

    fn object_size_max(&self) -> u64 {
        i64::MAX as u64
    }

    fn prices(&self) -> &Prices {
        &FOLDER
    }

    fn put_once(&self, object: Object) -> BoxFuture<'_, Result<(), Error>> {
        self.ledger.request(Request::Put, &StorageClass::STANDARD);
        self.ledger.sent(object.body.size());
        Box::pin(async move {
            let (path, staged) = (self.path(&object.key)?, self.root.join(format!("{STAGED}{}", Uuid::new_v4())));
            let root = self.root.clone();
            blocking(move || {
                let written = write(&staged, &object).and_then(|()| publish(&root, &staged, &path));
                if written.is_err() {
                    let _ = fs::remove_file(&staged);
                }
                written
            })
            .await
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Chunks, Error>> {
        self.ledger.request(Request::Get, &StorageClass::STANDARD);
        Box::pin(async move {
            let path = self.path(key)?;
            let opened = path.clone();
            let missing = || Error::NoObject { key: key.to_owned(), bucket: self.id.clone() };
            let file = blocking(move || match File::open(&opened) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                opening => opening.map(Some).map_err(io_error("open pack", &opened)),
            });
            let file = file.await?.ok_or_else(missing)?;
            let ledger = self.ledger.clone();
            let chunks = stream::try_unfold((file, range, path), move |(file, range, path)| {
                let ledger = ledger.clone();
                async move {
                    if range.is_empty() {
                        return Ok(None);
                    }
                    let (bytes, file, path) = blocking(move || {
                        let mut piece = vec![0; PIECE_SIZE.min(range.end - range.start) as usize];
                        file.read_exact_at(&mut piece, range.start).map_err(io_error("read pack", &path))?;
                        Ok((Bytes::from(piece), file, path))
                    })
                    .await?;
                    ledger.received(bytes.len() as u64, &StorageClass::STANDARD);
                    let rest = range.start + bytes.len() as u64..range.end;
                    Ok(Some((bytes, (file, rest, path))))
                }
            });
            Ok(chunks.boxed())
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.ledger.request(Request::Delete, &StorageClass::STANDARD);
        Box::pin(async move {
            let path = self.path(key)?;
            blocking(move || match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("delete", &path)(error)),
                _ => Ok(()),
            })
            .await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> BoxFuture<'a, Result<Page, Error>> {
        self.ledger.request(Request::List, &StorageClass::STANDARD);
        let (root, prefix, after) = (self.root.clone(), prefix.to_owned(), after.map(str::to_owned));
        Box::pin(blocking(move || {
            let mut found = Vec::new();
            walk(&root, "", &mut found)?;
            found.retain(|listed| listed.key.starts_with(&prefix) && after.as_ref().is_none_or(|after| listed.key > *after));
            found.sort_by(|a, b| a.key.cmp(&b.key));
            let more = found.len() > PAGE;
            found.truncate(PAGE);
            Ok(Page { objects: found, more })
        }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.expect("work on a bucket's folder does not panic")
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}

fn bucket_id(root: &Path) -> Result<String, Error> {
    let path = root.join(ID_FILE);
    match File::open(&path) {
        Ok(file) => {
            let mut text = String::new();
            file.take(ID_SIZE_MAX).read_to_string(&mut text).map_err(io_error("read bucket id", &path))?;
            let id = text.trim();
            match id.strip_prefix("file:").map(Uuid::parse_str) {
                Some(Ok(_)) => Ok(id.to_owned()),
                _ => Err(io_error("read bucket id", &path)(io::Error::new(io::ErrorKind::InvalidData, "not `file:` and a UUID"))),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (id, staged) = (format!("file:{}", Uuid::new_v4()), root.join(format!("{STAGED}{}", Uuid::new_v4())));
            let mut file = create(&staged)?;
            writeln!(file, "{id}").and_then(|()| file.sync_all()).map_err(io_error("write bucket id", &staged))?;
            publish(root, &staged, &path)?;
            Ok(id)
        }
        Err(error) => Err(io_error("open bucket id", &path)(error)),
    }
}

fn create(path: &Path) -> Result<File, Error> {
    OpenOptions::new().write(true).create_new(true).open(path).map_err(io_error("create", path))
}

/// Writes and syncs an object's bytes, and checks them against its checksum as S3 does.
fn write(staged: &Path, object: &Object) -> Result<(), Error> {
    let mut file = create(staged)?;
    let mut crc = crc_fast::Digest::new(Crc64Nvme);
    let mut take = |bytes: Bytes| {
        crc.update(&bytes);
        file.write_all(&bytes)
    };
    object.body.read(&mut take).map_err(io_error("write pack", staged))?;
    let actual = crc.finalize();
    if actual != object.crc64 {
        let detail = format!("CRC-64 {actual:016x}, not {:016x}", object.crc64);
        return Err(Error::Checksum { key: object.key.clone(), detail });
    }
    file.sync_all().map_err(io_error("sync pack", staged))
}

/// Gives a synced file its name, durably.
fn publish(root: &Path, staged: &Path, path: &Path) -> Result<(), Error> {
    let folder = path.parent().expect("a key is below the root");
    fs::create_dir_all(folder).map_err(io_error("create", folder))?;
    fs::rename(staged, path).map_err(io_error("rename to", path))?;
    // ORDER: every folder up to the root may be new; each is durable once the one above it is synced.
    let mut folder = folder;
    loop {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync folder", folder))?;
        match folder.parent() {
            Some(above) if folder != root => folder = above,
            _ => return Ok(()),
        }
    }
}

/// Removes what a crash left. Best effort: another process may be writing, or the folder may be read-only.
fn sweep_staged(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().filter(|age| *age > STAGED_AGE_MAX);
        if entry.file_name().to_string_lossy().starts_with(STAGED) && old().is_some() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Regular files below `folder`, but for those that are on their way; links are not followed.
fn walk(folder: &Path, name: &str, found: &mut Vec<Listed>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let entry = entry.map_err(io_error("list", folder))?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        if file.starts_with('.') {
            continue;
        }
        let key = if name.is_empty() { file } else { format!("{name}/{file}") };
        let about = entry.metadata().map_err(io_error("look at", &entry.path()))?;
        if about.is_dir() {
            walk(&entry.path(), &key, found)?;
        } else if about.is_file() {
            found.push(Listed::new(key, about.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::body::Body;
    use super::super::bucket::get_whole;
    use super::*;
    use larder_protocol::pack::Piece;
    use std::sync::Arc;

    fn object(key: &str, bytes: &'static [u8], crc64: u64) -> Object {
        let pieces = vec![Piece::Bytes(Bytes::from_static(bytes))];
        let body = Body::new(pieces.into(), Arc::new(|_| Err(io::ErrorKind::NotFound.into())));
        Object { key: key.to_owned(), crc64, body }
    }

    async fn bucket() -> (tempfile::TempDir, Directory) {
        let folder = tempfile::tempdir().expect("a folder");
        let bucket = Directory::open(&folder.path().join("archive"), Ledger::new(None, Arc::default())).await.expect("a bucket");
        (folder, bucket)
    }

    #[tokio::test]
    async fn what_was_put_is_listed_and_read() {
        let (_folder, bucket) = bucket().await;
        let bytes = b"0123456789";
        for key in ["v1/packs/b/2.tar", "v1/packs/a/1.tar", "other/x"] {
            bucket.put_once(object(key, bytes, crc_fast::checksum(Crc64Nvme, bytes))).await.expect("put");
        }
        let page = bucket.list("v1/packs/", None).await.expect("list");
        assert_eq!(
            page.objects.iter().map(|listed| (listed.key.as_str(), listed.size)).collect::<Vec<_>>(),
            [("v1/packs/a/1.tar", 10), ("v1/packs/b/2.tar", 10)]
        );
        assert_eq!(bucket.list("v1/packs/", Some("v1/packs/a/1.tar")).await.expect("list").objects.len(), 1);
        assert_eq!(get_whole(&bucket, "v1/packs/a/1.tar", 3..7).await.expect("get"), &bytes[3..7]);
        assert!(get_whole(&bucket, "v1/packs/a/1.tar", 3..11).await.is_err());
        let tally = bucket.ledger.tally();
        assert_eq!((tally.requests.put, tally.requests.list, tally.requests.get, tally.bytes_out), (3, 2, 2, 30));
    }

    #[tokio::test]
    async fn an_object_with_another_checksum_is_not_there() {
        let (_folder, bucket) = bucket().await;
        assert!(matches!(bucket.put_once(object("v1/packs/a/1.tar", b"x", 1)).await, Err(Error::Checksum { .. })));
        assert_eq!(bucket.list("", None).await.expect("list").objects, [Listed::new(ID_FILE.to_owned(), 42)]);
    }

    #[tokio::test]
    async fn a_folder_keeps_its_id_and_two_folders_differ() {
        let (folder, bucket) = bucket().await;
        let again = Directory::open(&folder.path().join("archive"), bucket.ledger.clone()).await.expect("a bucket");
        assert_eq!(again.id(), bucket.id());
        let other = Directory::open(&folder.path().join("other"), bucket.ledger.clone()).await.expect("a bucket");
        assert_ne!(other.id(), bucket.id());
        fs::write(folder.path().join("other").join(ID_FILE), "x").expect("write");
        assert!(Directory::open(&folder.path().join("other"), bucket.ledger.clone()).await.is_err());
    }

    #[tokio::test]
    async fn s37_keys_that_climb_out_are_refused() {
        let (folder, bucket) = bucket().await;
        fs::write(folder.path().join("secret"), "x").expect("write");
        for key in ["../secret", "/etc/passwd", "v1/../../secret", "", "a//b", ".hidden", "a\0b"] {
            assert!(bucket.get_range(key, 0..1).await.is_err(), "{key:?}");
        }
    }
}
