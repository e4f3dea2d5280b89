//! Whether two nodes that know the same also hold the same; and if not, making it so. The only file that knows `negentropy`.
//!
//! Version vectors say what was exchanged, not what became of it. Now and then one of each two connected nodes asks the other for the sums
//! of what it holds. They mean something only while both know the same and have the same records waiting; and they count only when they
//! differ twice, because an exchange may be half applied. Then the kinds and places that differ are found by their sums, the records among them by
//! range-based set reconciliation over time and id, and each side sends the other what it lacks, to be merged like any record. So a bug, a
//! damaged row or a lost write is found, told and mended, and costs next to nothing while there is none.
//!
//! What a peer sends here is bounded in number and size, and only moves this node to where the merge rule takes it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::message::compare::{KINDS_MAX, Reconcile, Reconciling, Summary, WANT_MAX};
use larder_protocol::message::{Answer, NumberedRecord, Request, Update};
use larder_protocol::record::Numbered;
use larder_protocol::state::{KINDS, PLACES, Sum};
use larder_protocol::vector::VersionVector;
use negentropy::{Id, Negentropy, NegentropyStorageVector};

use super::Inner;
use super::endpoint::{Receiver, Sender, Stream};
use super::error::{Error, Result};
use super::links::Link;
use super::sync::next_batch;
use super::{roles, site};
use crate::store::Mark;

/// How often two nodes compare; up to a quarter more, so that not all do at once.
const COMPARE: Duration = Duration::from_secs(60);
/// When they compare again what differed.
const AGAIN: Duration = Duration::from_secs(2);
/// Places that are gone through on one stream: their records' marks are in memory, 40 bytes each.
const PLACES_AT_ONCE: usize = 64;
/// Bytes of one round.
const ROUND_BYTES: u64 = 60 << 10;
/// Rounds on one stream.
const ROUNDS_MAX: usize = 1000;
/// How long a step may take: a node reads its records for it.
const STEP: Duration = Duration::from_secs(60);
/// The protocol version that has these requests.
const SINCE: u16 = 2;

/// What two nodes had when they differed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspicion {
    vector: [u8; 32],
    kinds: Vec<(u16, Sum, Sum)>,
}

/// What comparing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Different things are known; sums mean nothing.
    Apart,
    Same,
    Differs(Suspicion),
}

/// What was mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mended {
    /// Records that came.
    pub received: usize,
    /// Records that went.
    pub sent: usize,
}

/// Compares with a peer now and then, and does not end: its owner drops it. One side of each two does.
pub(super) async fn watch(inner: &Arc<Inner>, link: &Arc<Link>) {
    let peer = link.connection.peer();
    if link.version() < SINCE || inner.identity.node() > peer {
        return std::future::pending().await;
    }
    let spread = f64::from(peer.0[0]) / 255.0;
    let mut suspicion = None;
    loop {
        tokio::time::sleep(if suspicion.is_some() { AGAIN } else { COMPARE.mul_f64(1.0 + spread / 4.0) }).await;
        let own = inner.identity.node();
        // Who may not have everything holds something else, and is right to.
        if [own, peer].iter().any(|node| !matches!(site::of(inner, node), Ok(None))) {
            continue;
        }
        match check(inner, link, suspicion.take()).await {
            Ok(found) => suspicion = found,
            Err(error) => tracing::debug!(?peer, %error, "two nodes could not compare what they hold"),
        }
    }
}

/// Compares once, and mends what differs as it did before.
pub(super) async fn check(inner: &Arc<Inner>, link: &Arc<Link>, before: Option<Suspicion>) -> Result<Option<Suspicion>> {
    let ours = inner.store.run(|store| store.summary()).await;
    let answer = link.connection.ask(&Request::Compare(ours.in_short())).await?;
    let (Answer::Compared(theirs), _) = answer else { return Err(nonsense(link)) };
    let outcome = outcome(&ours, &theirs);
    // What was written while the peer was asked may be in its sums and not in these.
    let Outcome::Differs(found) = outcome else { return Ok(None) };
    if inner.store.run(|store| store.summary()).await.vector != ours.vector {
        return Ok(None);
    }
    if before.as_ref() != Some(&found) {
        return Ok(Some(found));
    }
    inner.metrics.state_differences.inc();
    for (kind, ..) in &found.kinds {
        let mended = mend(inner, link, *kind).await?;
        inner.metrics.repaired_records.inc_by((mended.received + mended.sent) as u64);
        tracing::warn!(
            peer = ?link.connection.peer(), kind, received = mended.received, sent = mended.sent,
            "two nodes that know the same did not hold the same records; they have told each other"
        );
    }
    Ok(None)
}

/// What a node that holds `ours` answers to who asks with `theirs`.
pub(super) fn compared(ours: Summary, theirs: &Summary) -> Summary {
    let short = ours.in_short();
    if theirs.kinds == short.kinds { short } else { ours }
}

fn outcome(ours: &Summary, theirs: &Summary) -> Outcome {
    if ours.vector != theirs.vector || ours.waiting != theirs.waiting || theirs.kinds.len() > KINDS_MAX {
        return Outcome::Apart;
    }
    if theirs.kinds == ours.in_short().kinds {
        return Outcome::Same;
    }
    let sum = |kinds: &[(u16, Sum)], kind| kinds.iter().find(|(of, _)| *of == kind).map(|(_, sum)| *sum).unwrap_or_default();
    let mut kinds: Vec<u16> = ours.kinds.iter().chain(&theirs.kinds).map(|(kind, _)| *kind).filter(|kind| *kind <= KINDS).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let pairs = kinds.into_iter().map(|kind| (kind, sum(&ours.kinds, kind), sum(&theirs.kinds, kind)));
    let kinds: Vec<_> = pairs.filter(|(_, ours, theirs)| ours != theirs).collect();
    if kinds.is_empty() { Outcome::Same } else { Outcome::Differs(Suspicion { vector: ours.vector, kinds }) }
}

/// Makes both sides hold the same records of a kind.
pub(super) async fn mend(inner: &Arc<Inner>, link: &Arc<Link>, kind: u16) -> Result<Mended> {
    let (Answer::Places(theirs), _) = link.connection.ask(&Request::Places(kind)).await? else { return Err(nonsense(link)) };
    let ours = inner.store.run(move |store| store.places(kind)).await;
    let differ: Vec<u8> =
        (0..=u8::MAX).zip(ours.iter().zip(&theirs)).filter(|(_, (ours, theirs))| ours != theirs).map(|(place, _)| place).collect();
    let mut mended = Mended::default();
    for places in differ.chunks(PLACES_AT_ONCE) {
        let ask = Reconcile { kind, places: places.to_vec() };
        let stream = link.connection.open(&Request::Reconcile(ask.clone())).await?;
        let part = tokio::time::timeout(STEP * 10, lead(inner, link, stream, ask)).await.map_err(|_| slow(link))??;
        mended.received += part.received;
        mended.sent += part.sent;
    }
    Ok(mended)
}

/// The asker's half of a stream.
async fn lead(inner: &Arc<Inner>, link: &Arc<Link>, stream: Stream, ask: Reconcile) -> Result<Mended> {
    let Stream { mut send, mut receive } = stream;
    let set = marks(inner, &ask).await?;
    let mut set = Set::new(set).ok_or_else(|| nonsense(link))?;
    let mut round = set.0.initiate().map_err(|_| nonsense(link))?;
    let (mut have, mut need) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS_MAX {
        send.message(&Reconciling::Round(round)).await?;
        let Reconciling::Round(reply) = step(link, &mut receive).await? else { return Err(nonsense(link)) };
        let next;
        (set, have, need, next) = tokio::task::spawn_blocking(move || {
            let next = set.0.reconcile_with_ids(&reply, &mut have, &mut need);
            (set, have, need, next)
        })
        .await
        .expect("reconciling does not panic");
        match next.map_err(|_| nonsense(link))? {
            Some(next) if have.len().max(need.len()) < WANT_MAX => round = next,
            // What is left differs still the next time.
            _ => break,
        }
        round.shrink_to_fit();
    }
    let ids = |list: Vec<Id>| list.into_iter().take(WANT_MAX).map(|id| *id.as_bytes()).collect::<Vec<_>>();
    send.message(&Reconciling::Want(ids(need))).await?;
    let received = take(inner, link, &mut receive).await?;
    let sent = give(inner, &mut send, &ask, ids(have)).await?;
    match step(link, &mut receive).await? {
        Reconciling::Done => Ok(Mended { received, sent }),
        _ => Err(nonsense(link)),
    }
}

/// Answers a stream.
pub(super) async fn serve(inner: &Arc<Inner>, link: &Arc<Link>, stream: Stream, ask: Reconcile) -> Result<()> {
    let Stream { mut send, mut receive } = stream;
    if ask.places.len() > PLACES || ask.kind > KINDS {
        return Err(nonsense(link));
    }
    let marks = marks(inner, &ask).await?;
    let mut set = Set::new(marks).ok_or_else(|| nonsense(link))?;
    for _ in 0..ROUNDS_MAX {
        let wanted = match step(link, &mut receive).await? {
            Reconciling::Round(round) => {
                let reply;
                (set, reply) = tokio::task::spawn_blocking(move || {
                    let reply = set.0.reconcile(&round);
                    (set, reply)
                })
                .await
                .expect("reconciling does not panic");
                send.message(&Reconciling::Round(reply.map_err(|_| nonsense(link))?)).await?;
                continue;
            }
            Reconciling::Want(wanted) if wanted.len() <= WANT_MAX => wanted,
            _ => return Err(nonsense(link)),
        };
        drop(set);
        give(inner, &mut send, &ask, wanted).await?;
        let received = take(inner, link, &mut receive).await?;
        inner.metrics.repaired_records.inc_by(received as u64);
        send.message(&Reconciling::Done).await?;
        send.finish();
        return Ok(());
    }
    Err(nonsense(link))
}

/// Sends records by their ids, and that it was all.
async fn give(inner: &Arc<Inner>, send: &mut Sender, ask: &Reconcile, ids: Vec<[u8; 32]>) -> Result<usize> {
    let (ids, of): (HashSet<_>, _) = (ids.into_iter().collect(), ask.clone());
    let records = inner.store.run(move |store| store.records_of(of.kind, &of.places, &ids)).await?;
    let count = records.len();
    let mut records = records.into_iter().map(Ok::<Numbered, Error>);
    loop {
        let batch = next_batch(&mut records)?;
        if batch.is_empty() {
            break;
        }
        send.message(&Reconciling::Records(batch)).await?;
    }
    send.message(&Reconciling::Done).await?;
    Ok(count)
}

/// Merges what comes until that was all; says how much it was.
async fn take(inner: &Arc<Inner>, link: &Arc<Link>, receive: &mut Receiver) -> Result<usize> {
    let mut count = 0;
    loop {
        let batch: Vec<NumberedRecord> = match step(link, receive).await? {
            Reconciling::Records(batch) => batch,
            Reconciling::Done => return Ok(count),
            _ => return Err(nonsense(link)),
        };
        count += batch.len();
        if count > WANT_MAX {
            return Err(nonsense(link));
        }
        let Update::Records(batch) = roles::admit(inner, link, Update::Records(batch)).await? else { return Err(nonsense(link)) };
        let peer = link.connection.peer();
        let parsed = batch.iter().map(NumberedRecord::parse).collect::<std::result::Result<Vec<_>, _>>();
        let records = parsed.map_err(|error| Error::Violation { peer, what: error.to_string() })?;
        let applied = inner.store.run(move |store| store.apply(records, &VersionVector::default())).await?;
        inner.applied(&applied);
    }
}

async fn marks(inner: &Arc<Inner>, ask: &Reconcile) -> Result<Vec<Mark>> {
    let ask = ask.clone();
    Ok(inner.store.run(move |store| store.marks(ask.kind, &ask.places)).await?)
}

/// The next message of a stream, within its time.
async fn step(link: &Link, receive: &mut Receiver) -> Result<Reconciling> {
    let message = tokio::time::timeout(STEP, receive.message::<Reconciling>()).await.map_err(|_| slow(link))??;
    message.ok_or_else(|| nonsense(link))
}

fn nonsense(link: &Link) -> Error {
    Error::Violation { peer: link.connection.peer(), what: "something else than reconciling needs".to_owned() }
}

fn slow(link: &Link) -> Error {
    Error::Connection { doing: "reconcile records with", peer: link.connection.peer(), why: "it took too long".to_owned() }
}

/// Records to find the difference of.
struct Set(Negentropy<'static, NegentropyStorageVector>);

impl Set {
    /// `None`: these are no marks of records.
    fn new(marks: Vec<Mark>) -> Option<Self> {
        let mut set = NegentropyStorageVector::with_capacity(marks.len());
        for (time, id) in marks {
            // The last two times are not times there.
            set.insert(time.min(u64::MAX - 2), Id::from_byte_array(id)).ok()?;
        }
        set.seal().ok()?;
        Some(Self(Negentropy::owned(set, ROUND_BYTES).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark(n: u64) -> Mark {
        (n / 7, *blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    /// The rounds, bytes, and what each side found the other lacks.
    fn reconcile(ours: Vec<Mark>, theirs: Vec<Mark>) -> (usize, usize, usize, usize) {
        let (mut ours, mut theirs) = (Set::new(ours).expect("marks").0, Set::new(theirs).expect("marks").0);
        let mut round = ours.initiate().expect("first");
        let (mut have, mut need, mut rounds, mut bytes) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            let reply = theirs.reconcile(&round).expect("sound");
            (rounds, bytes) = (rounds + 1, bytes + round.len() + reply.len());
            match ours.reconcile_with_ids(&reply, &mut have, &mut need).expect("sound") {
                Some(next) => round = next,
                None => return (rounds, bytes, have.len(), need.len()),
            }
        }
    }

    #[test]
    fn the_difference_is_found_and_nothing_else() {
        let all = || (0..10_000).map(mark);
        assert_eq!(reconcile(all().collect(), all().collect()).2, 0);
        let without = |skip: u64| (0..10_000).filter(move |n| n % 1000 != skip).map(mark).collect::<Vec<_>>();
        let (_, bytes, have, need) = reconcile(without(3), without(5));
        assert_eq!((have, need), (10, 10));
        assert!(bytes < 64 << 10, "{bytes}");
        assert_eq!(reconcile(Vec::new(), (0..300).map(mark).collect()).3, 300);
        assert_eq!(reconcile(vec![(u64::MAX, [1; 32])], Vec::new()).2, 1);
    }

    #[test]
    fn sums_of_nodes_that_know_different_things_are_not_compared() {
        let mut one = Sum::default();
        one.add(&[1; 32]);
        let summary = |vector, waiting, kinds| Summary { now_ms: 1, vector: [vector; 32], waiting: [waiting; 32], kinds };
        let ours = summary(1, 1, vec![(3, one)]);
        assert_eq!(outcome(&ours, &ours), Outcome::Same);
        assert_eq!(outcome(&ours, &summary(2, 1, vec![])), Outcome::Apart);
        assert_eq!(outcome(&ours, &summary(1, 2, vec![])), Outcome::Apart);
        let short = ours.in_short();
        assert_eq!((compared(ours.clone(), &short), outcome(&ours, &short)), (short.clone(), Outcome::Same), "when all is the same");
        // A program that knows nothing of short ones asks, or answers, with all.
        assert_eq!((compared(ours.clone(), &ours), outcome(&ours, &ours)), (ours.clone(), Outcome::Same));
        assert_eq!(compared(ours.clone(), &Summary { kinds: vec![], ..short.clone() }), ours);
        let mut two = summary(1, 1, vec![(4, one)]);
        two.kinds.extend(ours.kinds.clone());
        assert_eq!(compared(two.clone(), &short), two, "where something differs, what");
        for (kinds, expected) in [(vec![], vec![3]), (vec![(3, one), (4, one)], vec![4]), (vec![(3, Sum::default())], vec![3])] {
            let Outcome::Differs(found) = outcome(&ours, &summary(1, 1, kinds)) else { panic!("a difference") };
            assert_eq!(found.kinds.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), expected);
        }
    }

    proptest! {
        #[test]
        fn s34_rounds_of_random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), first in prop::bool::ANY) {
            let mut set = Set::new((0..100).map(mark).collect()).expect("marks").0;
            let bytes = if first { [&[0x61], &bytes[..]].concat() } else { bytes };
            let _ = set.reconcile(&bytes);
            let mut set = Set::new((0..100).map(mark).collect()).expect("marks").0;
            let _ = set.initiate();
            let _ = set.reconcile_with_ids(&bytes, &mut Vec::new(), &mut Vec::new());
        }
    }
}
