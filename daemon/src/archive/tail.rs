//! Packs as a restore finds them: which are there, what their ends say, and up to where they tell everything.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use bytes::Bytes;
use larder_protocol::pack::{Contents, Covered, FOOTER_SIZE, Footer, InvalidPack};
use larder_protocol::record::PackId;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::{Origin, VersionVector};
use serde::Serialize;

use super::bucket::{self, Bucket, Listed};
use super::{Error, Skipped, keys};

/// Bytes of a pack's end that are asked for at first: nearly always all that is needed.
const SUFFIX_SIZE: u64 = 64 << 10;
/// Objects listed in one restore.
pub(super) const LISTED_MAX: usize = 1_000_000;

/// What a pack's end says.
#[derive(Debug)]
pub(super) struct Opened {
    pub listed: Listed,
    pub footer: Footer,
    pub contents: Contents,
}

/// Numbers of an origin that no pack brings: what was written under them is lost, unless something later says the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Who wrote them.
    pub node: String,
    /// In which life.
    pub incarnation: u64,
    /// Behind this.
    pub after: u64,
    /// Up to this.
    pub upto: u64,
}

/// The packs in a bucket behind those that are `known`, by writer, in order of their keys; and what lies among them that is none.
///
/// The known ones of a writer are leapt over where that saves requests: a page of a listing has a thousand keys.
pub(super) async fn list(bucket: &dyn Bucket, known: &BTreeMap<Origin, u64>) -> Result<(Vec<(PackId, Listed)>, Vec<Skipped>), Error> {
    let prefix = keys::packs(bucket.prefix());
    let last_known = |origin: &Origin| known.get(origin).map(|sequence| PackId { origin: *origin, sequence: *sequence });
    let (mut packs, mut skipped) = (Vec::new(), Vec::new());
    let mut after = None::<String>;
    loop {
        let page = bucket.list(&prefix, after.as_deref()).await?;
        let last = page.objects.last().map(|listed| listed.key.clone());
        let mut within = None;
        for listed in page.objects {
            match keys::parse_pack(bucket.prefix(), &listed.key) {
                Some(id) => {
                    within = Some(id);
                    if last_known(&id.origin).is_none_or(|known| id.sequence > known.sequence) {
                        packs.push((id, listed));
                    }
                }
                None => {
                    within = None;
                    skipped.push(Skipped { key: listed.key, why: "its name is not that of a pack".to_owned() });
                }
            }
        }
        if !page.more || last.is_none() || packs.len() >= LISTED_MAX {
            return Ok((packs, skipped));
        }
        // The page ended among packs that are known: on behind them.
        let leap = within.and_then(|id| last_known(&id.origin).filter(|known| known.sequence > id.sequence));
        after = match leap {
            Some(known) => Some(keys::pack(bucket.prefix(), &known)).max(last),
            None => last,
        };
    }
}

/// Reads and checks the end of a pack.
///
/// # Errors
/// `Pack` when it can't be used; the bucket's refusal.
pub(super) async fn open(bucket: &dyn Bucket, id: PackId, listed: Listed) -> Result<Opened, Error> {
    let (footer, contents) = read(bucket, id, &listed).await?;
    Ok(Opened { listed, footer, contents })
}

/// The same, without its place.
pub(super) async fn read(bucket: &dyn Bucket, id: PackId, listed: &Listed) -> Result<(Footer, Contents), Error> {
    let Listed { key, size, .. } = listed;
    let invalid = |source| Error::Pack { key: key.clone(), source: Box::new(source) };
    if *size < FOOTER_SIZE {
        return Err(invalid(InvalidPack::NoFooter));
    }
    let start = size.saturating_sub(SUFFIX_SIZE);
    let suffix = bucket::get_whole(bucket, key, start..*size).await?;
    let footer = Footer::parse(&suffix[suffix.len() - FOOTER_SIZE as usize..], *size, verify).map_err(invalid)?;
    if footer.pack != id {
        return Err(invalid(InvalidPack::Footer { what: "another pack than its name does" }));
    }
    let tail: Bytes = if footer.tail >= start {
        suffix.slice((footer.tail - start) as usize..)
    } else {
        let before = bucket::get_whole(bucket, key, footer.tail..start).await?;
        [before, suffix].concat().into()
    };
    tokio::task::spawn_blocking(move || Contents::parse(&footer, &tail).map(|contents| (footer, contents)))
        .await
        .expect("reading a pack does not panic")
        .map_err(invalid)
}

/// Whether a signature is a node's: its id is its public key.
pub(super) fn verify(node: &NodeId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, &node.0).verify(bytes, signature).is_ok()
}

/// How far each origin is known without a gap, from where a checkpoint left off; and the gaps.
pub(super) fn dense(from: VersionVector, mut covers: Vec<(Origin, Covered)>) -> (VersionVector, Vec<Gap>) {
    covers.sort_by_key(|(origin, covered)| (*origin, covered.after));
    let mut known = from;
    // Beyond a gap: up to where something was brought.
    let (mut beyond, mut gaps) = (BTreeMap::<Origin, u64>::new(), Vec::new());
    for (origin, covered) in covers {
        let end = beyond.get(&origin).copied();
        let reached = end.unwrap_or(0).max(known.get(&origin));
        if covered.after > reached {
            gaps.push(Gap { node: origin.node.letters(), incarnation: origin.incarnation, after: reached, upto: covered.after });
        }
        if covered.after <= known.get(&origin) && end.is_none() {
            known.advance(origin, covered.upto);
        } else {
            let end = beyond.entry(origin).or_default();
            *end = covered.upto.max(*end);
        }
    }
    (known, gaps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_what_is_known_ends_at_the_first_gap() {
        let origin = |name| Origin { node: NodeId([name; 32]), incarnation: 1 };
        let cover = |name, after, upto| (origin(name), Covered { after, upto });
        let covers =
            vec![cover(1, 10, 20), cover(1, 0, 12), cover(1, 30, 40), cover(1, 39, 50), cover(2, 5, 9), cover(3, 0, 7), cover(3, 0, 3)];
        let (known, gaps) = dense(VersionVector::default(), covers.clone());
        assert_eq!((known.get(&origin(1)), known.get(&origin(2)), known.get(&origin(3))), (20, 0, 7));
        assert_eq!(gaps.iter().map(|gap| (gap.after, gap.upto)).collect::<Vec<_>>(), [(20, 30), (0, 5)]);
        // A checkpoint that knew what the lost packs brought.
        let (known, gaps) = dense([(origin(1), 33), (origin(2), 5)].into_iter().collect(), covers);
        assert_eq!((known.get(&origin(1)), known.get(&origin(2)), gaps.len()), (50, 9, 0));
    }
}
