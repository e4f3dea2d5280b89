//! Every node killed and every disk lost, at random moments, again and again: the bucket alone gives the state of the last pack that was committed, never
//! less, and says how old it is (I6, I7).
//!
//! What that state is, is told by the packs and checkpoints themselves, read here without the daemon: of each tag the record with the latest stamp. A
//! checkpoint may know of later deletes than any pack, and of tags; whatever it names must be in the packs.
//!
//! `make losses` does it 200 times; the suite a few times.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use larder_harness::s3::{Fault, Operation};
use larder_harness::{CountingS3, Image, Node, Random, Registry, wait_until};
use larder_protocol::checkpoint;
use larder_protocol::digest::Digest;
use larder_protocol::pack::{Contents, FOOTER_SIZE, Footer, Section};
use larder_protocol::record::{Key, Numbered, Value};
use larder_protocol::stamp::{NodeId, Stamp};

const PROGRAM: &str = env!("CARGO_BIN_EXE_larder");
const SOON: Duration = Duration::from_secs(60);
/// Longest time from the first push until everything is lost.
const LIFE_MS_MAX: u64 = 4_000;

/// What the packs of a bucket add up to.
#[derive(Debug, Default)]
struct State {
    tags: BTreeMap<String, (Stamp, Option<Digest>)>,
    manifests: BTreeMap<Digest, (Stamp, bool)>,
    blobs: HashSet<Digest>,
    newest_ms: u64,
}

impl State {
    /// Reads every pack and checkpoint below `folder`.
    fn read(folder: &Path) -> Self {
        let (mut state, mut folders) = (Self::default(), vec![folder.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "tar") {
                    state.add_pack(&std::fs::read(path).expect("read a pack"));
                } else if path.parent().is_some_and(|folder| folder.ends_with("checkpoints")) {
                    state.add_checkpoint(&std::fs::read(path).expect("read a checkpoint"));
                }
            }
        }
        state
    }

    fn add_checkpoint(&mut self, bytes: &[u8]) {
        let footer = &bytes[bytes.len() - checkpoint::FOOTER_SIZE as usize..];
        let footer = checkpoint::Footer::parse(footer, bytes.len() as u64, verify).expect("a whole checkpoint");
        let part = |section: Section| &bytes[section.offset as usize..][..section.length as usize];
        let directory = checkpoint::Directory::parse(&footer, part(footer.directory)).expect("its directory");
        for page in &directory.pages {
            self.add_records(page.parse(part(page.section)).expect("its records"));
        }
        self.newest_ms = self.newest_ms.max(footer.created_ms);
    }

    fn add_pack(&mut self, pack: &[u8]) {
        let footer = Footer::parse(&pack[pack.len() - FOOTER_SIZE as usize..], pack.len() as u64, verify).expect("a whole pack");
        let contents = Contents::parse(&footer, &pack[footer.tail as usize..]).expect("its tables");
        for entry in &contents.index {
            let bytes = &pack[entry.offset as usize..][..entry.link.size as usize];
            assert_eq!(Digest::of(entry.digest.algorithm(), bytes), entry.digest, "I6");
            self.blobs.insert(entry.digest);
        }
        self.newest_ms = self.newest_ms.max(footer.created_ms);
        self.add_records(contents.records);
    }

    fn add_records(&mut self, records: Vec<Numbered>) {
        for numbered in records {
            let (stamp, value) = (numbered.record.stamp, numbered.record.value);
            match numbered.record.key {
                Key::Tag(repository, tag) => {
                    let digest = if let Some(Value::Tag(target)) = value { Some(target.digest) } else { None };
                    let known = self.tags.entry(format!("{repository}:{tag}")).or_insert((stamp, digest));
                    if stamp > known.0 {
                        *known = (stamp, digest);
                    }
                }
                Key::Manifest(_, digest) => {
                    let known = self.manifests.entry(digest).or_insert((stamp, value.is_some()));
                    if stamp > known.0 {
                        *known = (stamp, value.is_some());
                    }
                }
                _ => {}
            }
        }
    }

    fn live(&self) -> BTreeMap<&str, Digest> {
        self.tags.iter().filter_map(|(name, (_, digest))| Some((name.as_str(), (*digest)?))).collect()
    }
}

/// Whether a signature is a node's: its id is its key.
fn verify(node: &NodeId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, &node.0).verify(bytes, signature).is_ok()
}

/// Pushes and deletes until told otherwise; the pushes that were answered do not matter here, only what was archived.
async fn pushing(url: String, seed: u64, until: Instant) {
    let (registry, mut random, mut number) = (Registry::new(url), Random::new(seed), 0);
    while Instant::now() < until {
        number += 1;
        let sizes: Vec<u64> = (0..1 + random.below(3)).map(|_| 10 + random.below(200_000)).collect();
        let image = Image::from_seed(seed * 1_000 + number, &sizes);
        let tag = format!("t{}", random.below(6));
        if random.below(5) == 0 {
            let _ = registry.try_request("DELETE", &format!("/v2/team/app/manifests/{tag}"), &[], larder_harness::Body::empty()).await;
        } else {
            let _ = registry.try_push_image("team/app", &tag, &image).await;
        }
    }
}

fn builder(name: &str, s3: &CountingS3) -> larder_harness::NodeBuilder {
    let builder = Node::builder(PROGRAM).name(name).s3(s3, "fleet").errors_expected();
    builder.env("LARDER_ARCHIVE__MAX_DELAY", "1s").env("LARDER_ARCHIVE__CHECKPOINT_PACKS", "3")
}

/// How an operator restores who knows which nodes were his: each was restored from the bucket before, or joined one that was and had no time to be named.
fn restore(s3: &CountingS3) -> Vec<String> {
    let writers = std::fs::read_dir(s3.object_path("fleet/v1/packs")).into_iter().flatten();
    let nodes = writers.map(|entry| entry.expect("an entry").file_name().to_string_lossy().split('-').next().unwrap_or("").to_owned());
    let trusted = nodes.flat_map(|node| ["--trust".to_owned(), node]);
    ["restore".to_owned(), "--no-wait".to_owned(), s3.url("fleet")].into_iter().chain(trusted).collect()
}

/// A node that collects garbage and compacts the bucket all the time.
fn compacting(builder: larder_harness::NodeBuilder) -> larder_harness::NodeBuilder {
    let settings = [
        ("GC__PERIOD", "1s"),
        ("GC__GRACE", "1s"),
        ("ARCHIVE__COMPACT", "on"),
        ("ARCHIVE__COMPACT_WAIT", "0s"),
        ("ARCHIVE__COMPACT_PAYBACK", "1000000"),
    ];
    settings.into_iter().fold(builder, |builder, (name, value)| builder.env(&format!("LARDER_{name}"), value))
}

/// Two nodes live for a while, and nothing but the bucket is left.
async fn lose_everything(s3: &CountingS3, random: &mut Random, restore_first: bool) {
    // F39: every other time what they leave is being compacted.
    let compacts = random.below(2) == 0;
    let builder = |name: &str| if compacts { compacting(builder(name, s3)) } else { builder(name, s3) };
    let mut first = builder("first").start().await;
    if restore_first {
        let restore = restore(s3);
        first
            .cli(&restore.iter().map(String::as_str).collect::<Vec<_>>())
            .await
            .unwrap_or_else(|error| panic!("restore: {error}\n{}", first.log_tail()));
    }
    let mut second = builder("second").start().await;
    let token = first.cli(&["token"]).await.expect("token");
    second.cli(&["join", &token]).await.expect("join");
    for _ in 0..random.below(4) {
        let fault = [Fault::Unavailable, Fault::DropAnswer, Fault::Stall(Duration::from_millis(300))][random.below(3) as usize];
        s3.inject(Operation::Put, fault);
    }
    let until = Instant::now() + Duration::from_millis(200 + random.below(LIFE_MS_MAX));
    let clients = [first.url(), second.url()].map(|url| tokio::spawn(pushing(url, random.below(1 << 32), until)));
    tokio::time::sleep_until(until.into()).await;
    first.kill();
    second.kill();
    first.lose_disk();
    second.lose_disk();
    for client in clients {
        client.await.expect("a client does not panic");
    }
    s3.clear_faults();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_whatever_is_lost_and_when_the_bucket_gives_the_state_of_its_last_pack() {
    let times: u64 = std::env::var("LOSSES").ok().map_or(3, |text| text.parse().expect("LOSSES is a number"));
    let mut random = Random::printed("losses");
    let mut s3 = CountingS3::start().await;
    let (mut restored_tags, mut in_row) = (0, 0);
    for round in 0..times {
        // Now and then the fleet begins anew; else it goes on from what came back, again and again.
        if random.below(6) == 0 {
            s3 = CountingS3::start().await;
            in_row = 0;
        }
        lose_everything(&s3, &mut random, in_row > 0).await;
        let folder = s3.object_path("fleet");
        let state = tokio::task::spawn_blocking(move || State::read(&folder)).await.expect("every pack can be read");
        if state.newest_ms == 0 {
            // Killed before the first pack.
            s3 = CountingS3::start().await;
            in_row = 0;
            continue;
        }
        in_row += 1;
        let fresh = builder("fresh", &s3).env("LARDER_ARCHIVE__URL", "none").start().await;
        let restored = fresh.cli_json(&restore(&s3).iter().map(String::as_str).collect::<Vec<_>>()).await;
        let as_of: jiff::Timestamp = restored["as_of"].as_str().and_then(|text| text.parse().ok()).expect("how old it is");
        assert!(as_of.as_millisecond() as u64 >= state.newest_ms, "round {round}: {restored}");
        assert_eq!(restored["gaps"].as_array().map(Vec::len), Some(0), "round {round}: {restored}");
        let registry = Registry::new(fresh.url());
        let live = state.live();
        let listed = registry.tags("team/app").await;
        let listed: HashSet<String> = listed.into_iter().map(|tag| format!("team/app:{tag}")).collect();
        let expected: HashSet<String> = live.keys().map(|name| (*name).to_owned()).collect();
        assert_eq!(listed, expected, "round {round}");
        for (name, digest) in &live {
            let tag = name.rsplit(':').next().expect("a tag");
            let pulled = registry.pull_manifest("team/app", tag).await;
            assert_eq!(Digest::sha256(&pulled.body), *digest, "round {round}: {name}");
            let manifest = pulled.json();
            let blobs = manifest["layers"].as_array().into_iter().flatten().chain([&manifest["config"]]);
            for blob in blobs {
                let blob = blob["digest"].as_str().expect("a digest");
                let pulled = registry.pull_blob("team/app", blob).await.expect("pull a blob");
                assert_eq!((pulled.status, pulled.digest.as_str()), (200, blob), "round {round}: {name}");
            }
        }
        restored_tags += live.len();
        // All of it comes by itself, too.
        wait_until("the blobs are there", SOON, async || {
            let status = fresh.cli_json(&["archive", "status"]).await;
            assert_eq!(status["restore"]["lost"], 0, "round {round}: {status}");
            (status["restore"]["state"] == "done").then_some(())
        })
        .await;
    }
    println!("everything was lost {times} times; {restored_tags} tags came back, each with all of its bytes");
}
