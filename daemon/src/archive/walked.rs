//! A pack whose end can't be used: its tar is walked from the first byte, each blob hashed as it passes, and what its name is true of is findable again (F34).
//!
//! Blobs prove themselves. Records don't: they count only where the footer is whole and signed, and they have the hash that it says; so a damaged index
//! costs nothing but a reading of the whole pack, and a damaged footer costs the records that stand in this pack alone.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::StreamExt;
use larder_protocol::digest::Digest;
use larder_protocol::pack::walk::{Event, Walk};
use larder_protocol::pack::{Contents, FOOTER_SIZE, Footer, PACK_CONTENTS_MAX, Told};
use larder_protocol::record::{Archived, Located, PackId};
use tokio::sync::mpsc;

use super::Error;
use super::bucket::{self, Bucket, Listed};
use super::hashed::PIECES_AHEAD;
use super::tail::{self, Opened};
use super::unpack::Hasher;

/// What a walk has found.
pub(super) struct Walked {
    /// Where blobs lie that are what their names say.
    pub archived: Archived,
    /// What the pack says, when that is signed; without its index.
    pub opened: Option<Opened>,
    /// Blobs that are not what their names say.
    damaged: usize,
    /// Why the walk ended before its end.
    ended: Option<String>,
}

impl Walked {
    /// In words, for the report.
    pub(super) fn what(&self) -> String {
        let records =
            if self.opened.is_some() { "its records are signed and count" } else { "its records can't be proven and don't count" };
        let damaged = if self.damaged > 0 { format!(", {} are damaged", self.damaged) } else { String::new() };
        let ended = self.ended.as_ref().map(|why| format!(" (as far as it could be read: {why})")).unwrap_or_default();
        format!("walked through, it has {} whole blobs{damaged}{ended}; {records}", self.archived.contents.len())
    }
}

/// Reads a whole pack; `None` when that would bring nothing: where its blobs are is known, and its records can't be proven.
///
/// # Errors
/// The bucket's refusal.
pub(super) async fn walk(bucket: &Arc<dyn Bucket>, id: PackId, listed: &Listed, is_placed: bool) -> Result<Option<Walked>, Error> {
    let Listed { key, size, .. } = listed.clone();
    let footer = match size.checked_sub(FOOTER_SIZE) {
        Some(start) => Footer::parse(&bucket::get_whole(&**bucket, &key, start..size).await?, size, tail::verify).ok(),
        None => None,
    };
    let footer = footer.filter(|footer| footer.pack == id);
    if footer.is_none() && is_placed {
        return Ok(None);
    }
    let (end, kept_from) = footer.as_ref().map_or((size, u64::MAX), |footer| (footer.records.offset, footer.tail));
    let (pieces, taken) = mpsc::channel::<Bytes>(PIECES_AHEAD);
    let hashing = tokio::task::spawn_blocking(move || hash(taken, kept_from));
    let mut chunks = bucket.get_range(&key, 0..end).await?;
    while let Some(chunk) = chunks.next().await {
        // It takes no more when it can't go on.
        if pieces.send(chunk?).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let Found { contents, kept, damaged, ended } = hashing.await.expect("walking through a pack does not panic");
    let opened = match footer {
        Some(footer) => told(&**bucket, listed, &footer, kept).await?.map(|contents| Opened { listed: listed.clone(), footer, contents }),
        None => None,
    };
    let created_ms = opened.as_ref().map_or(0, |opened| opened.footer.created_ms);
    let records = opened.as_ref().map_or(0, |opened| opened.footer.record_count);
    let archived = Archived { bucket: bucket.id().to_owned(), object_key: key, size, created_ms, records, contents };
    Ok(Some(Walked { archived, opened, damaged, ended }))
}

/// The records, if they are what was signed.
async fn told(bucket: &dyn Bucket, listed: &Listed, footer: &Footer, kept: HashMap<Digest, Vec<u8>>) -> Result<Option<Contents>, Error> {
    let range = footer.records.offset..footer.records.offset + footer.records.length;
    let (bytes, footer) = (bucket::get_whole(bucket, &listed.key, range).await?, footer.clone());
    let told = tokio::task::spawn_blocking(move || Told::parse(&footer, &bytes, &|digest| kept.get(digest).map(Vec::as_slice)));
    let told = told.await.expect("reading records does not panic").ok();
    Ok(told.map(|Told { records, covers, company }| Contents { index: Vec::new(), records, covers, company }))
}

/// What the hashing thread has found.
#[derive(Default)]
struct Found {
    contents: Vec<Located>,
    /// The bytes of what lies behind the place where manifests begin: no more than the footer lets a tail have.
    kept: HashMap<Digest, Vec<u8>>,
    damaged: usize,
    ended: Option<String>,
}

fn hash(mut pieces: mpsc::Receiver<Bytes>, kept_from: u64) -> Found {
    let (mut walk, mut found) = (Walk::default(), Found::default());
    let mut open: Option<(Located, Hasher, Option<Vec<u8>>)> = None;
    while let Some(piece) = pieces.blocking_recv() {
        let fed = walk.feed(&piece, &mut |event| match event {
            Event::Begin { digest, offset, size } => {
                let kept = (offset >= kept_from).then(Vec::new);
                open = Some((Located { digest, offset, length: size }, Hasher::new(&digest), kept));
            }
            Event::Bytes(bytes) => {
                if let Some((_, hasher, kept)) = &mut open {
                    hasher.update(bytes);
                    kept.iter_mut().for_each(|kept| kept.extend_from_slice(bytes));
                }
            }
            Event::End => {
                let Some((located, hasher, kept)) = open.take() else { return };
                if !hasher.is(&located.digest) {
                    found.damaged += 1;
                } else if found.contents.len() < PACK_CONTENTS_MAX {
                    found.contents.push(located);
                    found.kept.extend(kept.map(|kept| (located.digest, kept)));
                }
            }
        });
        if let Err(error) = fed {
            found.ended = Some(error.to_string());
            break;
        }
    }
    found
}
