//! Every decoder of peers' bytes under fire: frames and what is in them, datagrams, join tokens.
//!
//! The corpus is the golden bytes of all versions, so that a message that is new in a version is fuzzed by being there.

use std::path::Path;
use std::time::{Duration, Instant};

use larder_harness::{fuzz, fuzz_bytes};
use larder_protocol::digest::ChunkList;
use larder_protocol::frame::{Frame, HEADER_SIZE, Header, Kind};
use larder_protocol::message::{Answer, Message, Request, Seen, Update};
use larder_protocol::stamp::NodeId;
use larder_protocol::swim::{Datagram, Life};

use super::liveness::{DATAGRAMS_SINCE, Liveness};
use super::token::Token;

/// The golden files of all versions with this ending.
fn golden(ending: &str) -> Vec<Vec<u8>> {
    let versions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/testdata");
    let mut files = Vec::new();
    for version in std::fs::read_dir(versions).expect("the golden files") {
        for file in std::fs::read_dir(version.expect("a version").path()).expect("a version") {
            let path = file.expect("a file").path();
            if path.extension().is_some_and(|extension| extension == ending) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    files.into_iter().map(|path| std::fs::read(path).expect("read")).collect()
}

/// What is read is written and read again as the same.
fn through<M: Message + PartialEq + std::fmt::Debug>(frame: &Frame) -> Option<M> {
    let message = M::from_frame(frame).ok()?;
    assert_eq!(M::from_frame(&message.to_frame()).ok().as_ref(), Some(&message));
    Some(message)
}

#[test]
fn s34_frames_of_peers_are_read_or_refused() {
    fuzz_bytes("frames", golden("frame"), &["\u{1}", "\0\0\0\0", "library/app\0"], |input| {
        let Some((head, body)) = input.split_first_chunk::<HEADER_SIZE>() else { return false.into() };
        let Ok(Header { kind, length }) = Header::parse(head) else { return false.into() };
        // The length may lie, as on a stream that ends: then nothing is read.
        let frame = Frame { kind, body: body[..length.min(body.len())].to_vec() };
        let kinds = [Kind::Request, Kind::Answer, Kind::Update, Kind::Seen];
        let taken = match kinds.into_iter().find(|known| known.number() == kind) {
            Some(Kind::Request) => through::<Request>(&frame).is_some(),
            Some(Kind::Answer) => match through::<Answer>(&frame) {
                Some(Answer::ChunkList(values)) => {
                    let size = values.len() as u64 * (1 << 20);
                    assert!(values.is_empty() || ChunkList::checked(size, values, &[7; 32]).is_err(), "no list has this root");
                    true
                }
                answer => answer.is_some(),
            },
            Some(Kind::Update) => match through::<Update>(&frame) {
                Some(Update::Records(records)) => {
                    for record in &records {
                        let Ok(parsed) = record.parse() else { continue };
                        assert_eq!(parsed.record.to_raw().parse().ok(), Some(parsed.record));
                    }
                    true
                }
                update => update.is_some(),
            },
            Some(Kind::Seen) => through::<Seen>(&frame).is_some(),
            // Kinds that another module reads.
            _ => false,
        };
        taken.into()
    });
}

#[test]
fn s34_s36_datagrams_are_heard_from_members_and_answered_to_members() {
    let (own, peer, third) = (NodeId([2; 32]), NodeId([1; 32]), NodeId([3; 32]));
    let number = 1_700_000_000_000;
    let start = Instant::now();
    let fresh = || {
        let mut liveness = Liveness::new(Life { node: own, number: number + 2 }, 1);
        liveness.members([own, peer, third], start);
        liveness.linked(peer, number + 1, DATAGRAMS_SINCE, start);
        liveness
    };
    let (mut liveness, mut heard) = (fresh(), 0u32);
    fuzz_bytes("datagrams", golden("datagram"), &["\u{1}", "\u{2}", "\u{9}"], |input| {
        let parsed = Datagram::parse(input).ok();
        if let Some(datagram) = &parsed {
            assert_eq!(Datagram::parse(&datagram.to_bytes()).as_ref(), Ok(datagram));
        }
        heard += 1;
        if heard.is_multiple_of(1000) {
            liveness = fresh();
        }
        // Slow enough that none is refused as too many.
        let now = start + Duration::from_millis(u64::from(heard % 1000) * 20);
        let taken = liveness.datagram(peer, input, now);
        assert!(!taken || parsed.is_some());
        liveness.tick(now);
        assert!(liveness.take().iter().all(|(to, _)| *to == peer), "nothing goes where no connection is");
        assert!(liveness.conditions(now).iter().all(|(node, _)| [peer, third].contains(node)));
        taken.into()
    });
}

#[test]
fn s30_s34_tokens_are_read_or_refused() {
    let token = Token {
        cluster: [1; 16],
        issuer: NodeId([2; 32]),
        addresses: vec!["10.0.0.1:5000".to_owned()],
        id: [3; 8],
        secret: [4; 16],
        expires_ms: 5,
    };
    let text = token.to_text();
    fuzz("tokens", &[&text], &["larder1-", "=", "-", "_", "AAAA"], |input| {
        let Ok(text) = std::str::from_utf8(input) else { return false.into() };
        let parsed = Token::parse(text);
        if let Ok(parsed) = &parsed {
            assert_eq!(Token::parse(&parsed.to_text()).ok().as_ref(), Some(parsed));
        }
        parsed.is_ok().into()
    });
}
