//! Every message and record: round trip, truncation, random bytes, and the bytes that never change.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::access::{Actions, Grant, Robot, Rule, Site, User};
use crate::digest::Algorithm;
use crate::keys::{Keys, Later};
use crate::record::{Archived, Key, Link, Located, Manifest, PackId, Record, Roles, TagTarget, Value};
use crate::stamp::{HybridTime, Stamp};
use crate::starts::{Start, Starts};

fn origin() -> Origin {
    Origin { node: NodeId([7; 32]), incarnation: 1_700_000_000_000 }
}

fn member() -> Member {
    Member {
        name: "build-07".into(),
        zone: "north".into(),
        addresses: vec!["10.0.0.7:5000".into()],
        bucket: Some("s3://b/p".into()),
        version: "0.1.0".into(),
    }
}

fn records() -> Vec<(&'static str, Record)> {
    let repository: crate::name::RepositoryName = "team/app".parse().expect("name");
    let (digest, stamp) = (Digest::sha256(b"manifest"), Stamp { time: HybridTime::from_ms(1_700_000_000_001), node: NodeId([7; 32]) });
    let link = Link { size: 9, root: [3; 32], crc64: 5 };
    let located = Located { digest: Digest::of(Algorithm::Sha512, b"blob"), offset: 512, length: 9 };
    let archived = Archived {
        bucket: "s3://b/p".into(),
        object_key: "p/v1/packs/x/1.tar".into(),
        size: 4096,
        created_ms: 2,
        records: 3,
        contents: vec![located],
    };
    let record = |key, value| Record { key, value, stamp };
    vec![
        (
            "manifest",
            record(
                Key::Manifest(repository.clone(), digest),
                Some(Value::Manifest(Manifest { media_type: "application/json".into(), bytes: b"{}".to_vec() })),
            ),
        ),
        (
            "tag",
            record(
                Key::Tag(repository.clone(), "1.0".parse().expect("tag")),
                Some(Value::Tag(TagTarget { digest, replaced: Some(stamp) })),
            ),
        ),
        ("tag-deleted", record(Key::Tag(repository.clone(), "old".parse().expect("tag")), None)),
        ("link", record(Key::Link(repository, located.digest), Some(Value::Link(link)))),
        ("archived", record(Key::Archived(PackId { origin: origin(), sequence: 4 }), Some(Value::Archived(archived)))),
        ("member", record(Key::Member(NodeId([9; 32])), Some(Value::Member(member())))),
        ("unknown", record(Key::Unknown { kind: 900, key: b"later".to_vec() }, Some(Value::Unknown(b"things".to_vec())))),
    ]
}

fn frames() -> Vec<(String, Frame)> {
    let vector: VersionVector = [(origin(), 42)].into_iter().collect();
    let hello = Hello { cluster: [1; 16], life: 2, program: "0.1.0".into(), oldest: 1, newest: 1 };
    let digest = Digest::sha256(b"blob");
    let join = Join { token: [4; 8], secret: [5; 16], member: member() };
    let read = Read { digest, offset: 1 << 20, length: 1 << 20 };
    let numbered: Vec<_> = records()
        .iter()
        .enumerate()
        .map(|(i, (_, record))| NumberedRecord { origin: origin(), sequence: i as u64 + 1, record: record.to_raw() })
        .collect();
    let mut frames = vec![
        ("request-hello", Request::Hello(hello.clone()).to_frame()),
        ("request-join", Request::Join(join).to_frame()),
        ("request-sync", Request::Sync(vector.clone()).to_frame()),
        ("request-who-has", Request::WhoHas(vec![digest]).to_frame()),
        ("request-chunk-list", Request::ChunkList(digest).to_frame()),
        ("request-read", Request::Read(read).to_frame()),
        ("answer-hello", Answer::Hello(hello).to_frame()),
        ("answer-joined", Answer::Joined(Joined { cluster: [1; 16], members: vec![([9; 32], member())] }).to_frame()),
        ("answer-holders", Answer::Holders(vec![true, false]).to_frame()),
        ("answer-chunk-list", Answer::ChunkList(vec![[6; 32]; 2]).to_frame()),
        ("answer-read", Answer::Read { length: 9 }.to_frame()),
        ("answer-refused", Answer::Refused(Refusal::NOT_HERE).to_frame()),
        ("update-caught", Update::Caught(vector.clone()).to_frame()),
        ("seen", Seen(vector).to_frame()),
    ];
    frames.extend(numbered.into_iter().zip(records()).map(|(numbered, (name, _))| (name, Update::Records(vec![numbered]).to_frame())));
    frames.into_iter().map(|(name, frame)| (name.to_owned(), frame)).collect()
}

/// What version 2 brought.
fn frames_of_version_2() -> Vec<(String, Frame)> {
    let digest = Digest::sha256(b"blob");
    let chunk = ChunkRead { digest, index: 7, class: Class::Replication, insist: true };
    let part = Standing::Part { have: ChunkBits(vec![5, 1]), coming: ChunkBits(vec![2, 0]) };
    let change = Standing::Change { landed: vec![1], coming: vec![3, 300], dropped: vec![] };
    let vector: VersionVector = [(origin(), 42)].into_iter().collect();
    let digests = vec![digest, Digest::of(Algorithm::Sha512, b"other")];
    let role = Record {
        key: Key::Role(NodeId([9; 32])),
        value: Some(Value::Role(Roles::default().with_writer(false))),
        stamp: Stamp { time: HybridTime::from_ms(1_700_000_000_001), node: NodeId([7; 32]) },
    };
    let access = |key, value| {
        let record =
            Record { key, value: Some(value), stamp: Stamp { time: HybridTime::from_ms(1_700_000_000_002), node: NodeId([7; 32]) } };
        Update::Records(vec![NumberedRecord { origin: origin(), sequence: 2, record: record.to_raw() }]).to_frame()
    };
    let extra = vec![("name".to_owned(), "text".to_owned())];
    let hash = "$2b$04$......................................................".to_owned();
    let user = User { hash, groups: vec!["dev".to_owned()], extra: extra.clone() };
    let grants = vec![Grant { repositories: "team/**".to_owned(), actions: Actions::PULL.and(Actions::PUSH) }];
    let robot = Robot { secret: [5; 32], expires_ms: Some(1_800_000_000_000), grants, extra: extra.clone() };
    let site = Site { repositories: vec!["shop/**".to_owned()], extra: extra.clone() };
    let later = |number: u8, before_until_ms| Later { key: NodeId([number; 32]), signature: ([3; 32], [4; 32]), before_until_ms };
    let keys = Keys { later: vec![later(5, Some(1_800_000_000_000)), later(6, None)], extra: extra.clone() };
    let rule = Rule { actions: Actions::DELETE, extra };
    let frames = vec![
        ("user", access(Key::User("alice".to_owned()), Value::User(user))),
        ("robot", access(Key::Robot("ci".to_owned()), Value::Robot(robot))),
        ("site", access(Key::Site(NodeId([9; 32])), Value::Site(site))),
        ("keys", access(Key::Keys(NodeId([9; 32])), Value::Keys(keys))),
        ("starts", access(Key::Starts(origin()), Value::Starts(Starts(vec![Start { after: 7, mark: 99 }])))),
        ("rule", access(Key::Rule("group:dev".to_owned(), "team/**".to_owned()), Value::Rule(rule))),
        ("role", Update::Records(vec![NumberedRecord { origin: origin(), sequence: 1, record: role.to_raw() }]).to_frame()),
        ("request-follow", Request::Follow(digest).to_frame()),
        ("request-chunk", Request::Chunk(chunk).to_frame()),
        ("request-opening", Request::Opening(digest).to_frame()),
        ("answer-standing-nothing", Answer::Standing(Standing::Nothing).to_frame()),
        ("answer-standing-whole", Answer::Standing(Standing::Whole).to_frame()),
        ("answer-standing-part", Answer::Standing(part).to_frame()),
        ("answer-standing-change", Answer::Standing(change).to_frame()),
        ("answer-elsewhere", Answer::Elsewhere(vec![NodeId([7; 32])]).to_frame()),
        ("answer-opening", Answer::Opening(Opening::new(4, &[], b"blob")).to_frame()),
        ("request-keep", Request::Keep(Keep { vector, digests: digests.clone() }).to_frame()),
        ("request-vouch", Request::Vouch(digests).to_frame()),
        ("request-describe", Request::Describe(digest).to_frame()),
        ("answer-described", Answer::Described(Link { size: 9, root: [3; 32], crc64: 5 }).to_frame()),
    ];
    frames.into_iter().map(|(name, frame)| (name.to_owned(), frame)).collect()
}

fn all_frames() -> Vec<(String, Frame)> {
    frames().into_iter().chain(frames_of_version_2()).collect()
}

/// Decodes a frame as its kind says, and writes it again.
fn through(frame: &Frame) -> Result<Frame, InvalidMessage> {
    match frame.kind {
        1 => Request::from_frame(frame).map(|message| message.to_frame()),
        2 => Answer::from_frame(frame).map(|message| message.to_frame()),
        3 => Update::from_frame(frame).map(|message| message.to_frame()),
        _ => Seen::from_frame(frame).map(|message| message.to_frame()),
    }
}

#[test]
fn messages_read_back_what_they_wrote() {
    for (name, frame) in all_frames() {
        assert_eq!(through(&frame).expect("own frame"), frame, "{name}");
    }
    for (name, record) in records() {
        assert_eq!(record.to_raw().parse().expect("own record"), record, "{name}");
    }
}

#[test]
fn s34_truncated_messages_are_errors() {
    for (name, frame) in all_frames() {
        for length in 0..frame.body.len() {
            let cut = Frame { kind: frame.kind, body: frame.body[..length].to_vec() };
            assert!(through(&cut).is_err(), "{name} cut at {length}");
        }
        let mut longer = frame.clone();
        longer.body.push(0);
        assert!(through(&longer).is_err(), "{name} with a byte too many");
    }
}

/// The bytes of each version: a change here is a change of the protocol, and makes a new folder.
#[test]
fn golden_bytes_stand() {
    golden("v1", frames());
    golden("v2", frames_of_version_2());
}

fn golden(version: &str, frames: Vec<(String, Frame)>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(version);
    for (name, frame) in frames {
        let file = folder.join(format!("{name}.frame"));
        let expected = std::fs::read(&file).unwrap_or_else(|_| {
            // A message that is new in this version has no file yet.
            std::fs::write(&file, frame.to_bytes()).expect("write the golden file");
            panic!("{} was missing and is written: look at it and commit it", file.display())
        });
        assert!(frame.to_bytes() == expected, "{name} is encoded differently from {}", file.display());
    }
}

proptest! {
    #[test]
    fn s34_random_bytes_never_panic(kind in 1u16..5, body in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = through(&Frame { kind, body });
    }

    #[test]
    fn s34_flipped_bits_never_panic(which in 0usize..66, bit in any::<prop::sample::Index>()) {
        let frames = all_frames();
        let mut frame = frames[which % frames.len()].1.clone();
        let at = bit.index(frame.body.len() * 8);
        frame.body[at / 8] ^= 1 << (at % 8);
        if let Ok(Update::Records(records)) = Update::from_frame(&frame) {
            for record in records {
                let _ = record.parse();
            }
        }
        let _ = through(&frame);
    }
}
