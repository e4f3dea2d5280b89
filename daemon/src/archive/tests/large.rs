//! Compaction of a large bucket: what it takes, and whether anybody waits for it. `SCALE=100` makes 1,000,000 blobs in 10,000 packs.

use std::time::Instant;

use larder_protocol::pack::link_of;
use larder_protocol::record::{Key, Link, Located, PackId, Value};

use super::*;
use crate::store::Commit;

/// Packs, where `SCALE` is 1.
const PACKS: u64 = 100;
/// Blobs of each.
const BLOBS: u64 = 100;
const BLOB_SIZE: u64 = 100_000;
/// Packs that are recorded at a time.
const BATCH: u64 = 25;

fn blob(number: u64) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

/// How many blobs of a pack are linked: of every fourth none, of every fourth a few.
fn linked(pack: u64) -> u64 {
    [0, BLOBS / 10, BLOBS * 6 / 10, BLOBS][pack as usize % 4]
}

/// A catalogue without the packs. A blob of each pack of which a few are linked is in the next one as well, which counts.
fn record(store: &Store, bucket: &str, packs: u64) {
    let (origin, link) = (store.origin(), Link { size: BLOB_SIZE, ..link_of(b"any") });
    for first in (0..packs).step_by(BATCH as usize) {
        let mut records: Vec<(Key, Option<Value>)> = Vec::new();
        for pack in first..packs.min(first + BATCH) {
            let numbers = pack * BLOBS..(pack + 1) * BLOBS;
            let repository: RepositoryName = format!("team-{:03}/app", pack % 500).parse().expect("a name");
            let links = numbers.clone().take(linked(pack) as usize);
            records.extend(links.map(|number| (Key::Link(repository.clone(), blob(number)), Some(Value::Link(link)))));
            let id = PackId { origin, sequence: pack + 2 };
            let place = |(at, number): (u64, u64)| {
                let number = if at == 0 && pack % 4 == 2 { number - BLOBS } else { number };
                Located { digest: blob(number), offset: at * BLOB_SIZE, length: BLOB_SIZE }
            };
            let archived = Archived {
                bucket: bucket.to_owned(),
                object_key: keys::pack("", &id),
                size: BLOBS * BLOB_SIZE + 200_000,
                created_ms: writer::now_ms() - (packs - pack) * 1000,
                records: 0,
                contents: (0..).zip(numbers).map(place).collect(),
            };
            records.push((Key::Archived(id), Some(Value::Archived(archived))));
        }
        store.commit(Commit { records, settings: Vec::new() }).expect("recorded");
    }
    // What was recorded needs no pack of its own; the next one has a number of its own.
    let archived = (queue::cursor_setting(bucket, &origin), store.vector().get(&origin));
    let settings =
        [archived, ("archive/sequence".to_owned(), packs + 1)].map(|(name, number)| (name, Some(number.to_string().into()))).into();
    store.commit(Commit { records: Vec::<(Key, Option<Value>)>::new(), settings }).expect("archived");
}

/// Mebibytes of memory that this process had at most since it was last asked.
fn memory_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    let peak = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024;
    std::fs::write("/proc/self/clear_refs", "5").expect("one's own peak can be set back");
    peak
}

/// Runs something while images are pushed; what it gave, how long it took, and the slowest push.
async fn beside_pushes<T>(node: &Node, what: impl Future<Output = T>) -> (T, Duration, Duration) {
    let (store, is_over) = (node.store.clone(), Arc::new(AtomicBool::new(false)));
    let over = is_over.clone();
    let pushing = std::thread::spawn(move || {
        let mut slowest = Duration::ZERO;
        while !over.load(Ordering::SeqCst) {
            let begin = Instant::now();
            push(&store, "latest", &[b"{}", b"layer"]);
            slowest = slowest.max(begin.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        slowest
    });
    let begin = Instant::now();
    let gave = what.await;
    let took = begin.elapsed();
    is_over.store(true, Ordering::SeqCst);
    (gave, took, pushing.join().expect("pushes go on"))
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_a_large_bucket_is_planned_in_seconds_and_no_push_waits_for_it() {
    let scale: u64 = std::env::var("SCALE").ok().map_or(1, |text| text.parse().expect("SCALE is a number"));
    let (folder, packs) = (tempfile::tempdir().expect("a folder"), scale * PACKS);
    let mut node = node(folder.path(), 1).await;
    // A pack is full, so nothing is put together only because it is small.
    Arc::get_mut(&mut node.archive.inner).expect("not shared").settings.pack_size = BLOBS * BLOB_SIZE;
    // A pack that is there, and the mark that says whose bucket it is.
    push(&node.store, "latest", &[b"{}", &vec![1; BLOBS as usize * BLOB_SIZE as usize / 3]]);
    node.archive.flush().await.expect("flushed");
    record(&node.store, &node.archive.bucket().expect("a bucket"), packs);
    memory_peak();

    let (plan, took, slowest) = beside_pushes(&node, node.archive.plan_compaction()).await;
    let plan = plan.expect("planned");
    let going = plan.rewrites.iter().map(|group| group.packs.len() as u64).sum::<u64>();
    println!(
        "{packs} packs, {} blobs: planned in {took:.1?}, slowest push {slowest:.1?}, memory at most {} MiB",
        packs * BLOBS,
        memory_peak()
    );
    // A report names so many.
    assert_eq!((plan.packs, plan.drops.len() as u64), (packs + 1, (packs / 4).min(1_000)), "{:?}", plan.stays);
    assert_eq!(going, packs / 4);
    assert_eq!(plan.rewrites.iter().map(|group| group.moved).sum::<u64>(), going * (linked(1) - 1) * BLOB_SIZE);
}
