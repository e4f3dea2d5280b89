//! Every decoder of a bucket's bytes under fire: footers, the tables of packs and checkpoints, the walk through a tar, keys.
//!
//! Signatures and hashes are made to fit, as those of a member gone bad would: else nothing but them would be tried.

use larder_harness::fuzz_bytes;
use larder_protocol::checkpoint;
use larder_protocol::digest::Digest;
use larder_protocol::pack::walk::{Event, Walk};
use larder_protocol::pack::{Contents, FOOTER_SIZE, Footer, Section};
use larder_protocol::record::PackId;
use larder_protocol::stamp::NodeId;
use larder_protocol::vector::Origin;

use super::keys;

const PACK: &[u8] = include_bytes!("../../../protocol/testdata/v1/pack.tar");
const CHECKPOINT: &[u8] = include_bytes!("../../../protocol/testdata/v1/checkpoint.zst");
/// Where a pack of a fuzzed table has its blobs.
const BLOBS: u64 = 8192;
const WORDS: &[&str] =
    &["\"", "{", "}", "[", "null", "\"kind\":\"tag\"", "\"deleted\":true", "sha256:", "\"offset\":512", "18446744073709551615"];

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Digest::sha256(bytes).to_key()[1..].try_into().expect("32 bytes behind the algorithm")
}

fn section(offset: u64, packed: &[u8], output: usize) -> Section {
    Section { offset, length: packed.len() as u64, output: output as u64, sha256: sha256(packed) }
}

fn zstd_of(text: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(text, 1).expect("compresses into memory")
}

fn lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The decompressed tables of the golden pack.
fn golden_tables() -> (Vec<u8>, Vec<u8>) {
    let footer = Footer::parse(&PACK[PACK.len() - FOOTER_SIZE as usize..], PACK.len() as u64, |_, _, _| true).expect("golden");
    let table = |section: &Section| zstd::stream::decode_all(&PACK[section.offset as usize..][..section.length as usize]).expect("golden");
    (table(&footer.records), table(&footer.index))
}

/// A pack with these tables.
fn contents(records: &[u8], index: &[u8]) -> bool {
    let (packed_records, packed_index) = (zstd_of(records), zstd_of(index));
    let records_section = section(BLOBS, &packed_records, records.len());
    let index_section = section(BLOBS + packed_records.len() as u64, &packed_index, index.len());
    let size = BLOBS + (packed_records.len() + packed_index.len()) as u64 + 1024 + FOOTER_SIZE;
    let origin = Origin { node: NodeId([1; 32]), incarnation: 1 };
    let footer = Footer {
        cluster: [9; 16],
        pack: PackId { origin, sequence: 1 },
        created_ms: 1,
        size,
        tail: 0,
        record_count: lines(records).saturating_sub(1),
        blob_count: lines(index) as u32,
        records: records_section,
        index: index_section,
    };
    let mut tail = vec![0; size as usize];
    tail[BLOBS as usize..][..packed_records.len()].copy_from_slice(&packed_records);
    tail[BLOBS as usize + packed_records.len()..][..packed_index.len()].copy_from_slice(&packed_index);
    let Ok(contents) = Contents::parse(&footer, &tail) else { return false };
    for located in contents.located() {
        assert!(located.offset >= 512 && located.offset.checked_add(located.length).is_some_and(|end| end <= BLOBS), "S37");
    }
    true
}

#[test]
fn s37_tables_of_packs_are_read_or_refused() {
    let (records, index) = golden_tables();
    // Manifests of the golden pack lie where this one has nothing: without them.
    let records: Vec<u8> = records
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !line.windows(11).any(|part| part == b"\"media_type"))
        .flatten()
        .copied()
        .collect();
    let corpus = vec![[&records[..], b"\0", &index].concat(), [&records[..], b"\0"].concat()];
    fuzz_bytes("tables of packs", corpus, WORDS, |input| {
        let (records, index) = match input.iter().position(|byte| *byte == 0) {
            Some(at) => (&input[..at], &input[at + 1..]),
            None => (input, &[][..]),
        };
        contents(records, index).into()
    });
}

#[test]
fn s38_footers_are_read_or_refused() {
    let corpus = vec![PACK[PACK.len() - 512..].to_vec(), CHECKPOINT[CHECKPOINT.len() - 512..].to_vec()];
    fuzz_bytes("footers", corpus, &["LARDERPK", "LARDERCP"], |input| {
        // The size of the object is what the footer says it is: else nothing but that would be looked at.
        let size = input.get(88..96).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight")));
        let pack = Footer::parse(input, size, |_, _, _| true);
        if let Ok(footer) = &pack {
            assert!(footer.tail_length() <= larder_protocol::pack::TAIL_SIZE_MAX, "it sizes an allocation");
        }
        let checkpoint = checkpoint::Footer::parse(input, size, |_, _, _| true);
        if let Ok(footer) = &checkpoint {
            assert!(footer.directory.length <= checkpoint::DIRECTORY_SIZE_MAX);
        }
        (pack.is_ok() || checkpoint.is_ok()).into()
    });
}

#[test]
fn s40_pages_and_directories_of_checkpoints_are_read_or_refused() {
    let text = zstd::stream::decode_all(CHECKPOINT).expect("golden");
    let directory_at = text.windows(10).rposition(|part| part == b"{\"larder\":").expect("the directory's first line");
    let corpus = vec![[b"p", &text[..directory_at]].concat(), [b"d", &text[directory_at..]].concat()];
    fuzz_bytes("checkpoints", corpus, WORDS, |input| {
        let Some((kind, text)) = input.split_first() else { return false.into() };
        let packed = zstd_of(text);
        if *kind == b'd' {
            let footer = checkpoint::Footer {
                cluster: [9; 16],
                writer: Origin { node: NodeId([1; 32]), incarnation: 1 },
                created_ms: 1,
                size: 0,
                record_count: 7,
                page_count: lines(text).saturating_sub(1) as u32,
                directory: section(0, &packed, text.len()),
            };
            // Where it lies is what its pages add up to.
            let offsets = [0, CHECKPOINT.len() as u64];
            return offsets
                .into_iter()
                .any(|offset| {
                    let directory = Section { offset, ..footer.directory };
                    let Ok(directory) = checkpoint::Directory::parse(&checkpoint::Footer { directory, ..footer.clone() }, &packed) else {
                        return false;
                    };
                    assert!(directory.pages.iter().all(|page| page.section.length <= checkpoint::PAGE_SIZE_MAX));
                    true
                })
                .into();
        }
        let page = checkpoint::Page { section: section(0, &packed, text.len()), records: lines(text), repositories: Vec::new() };
        // And what is not even compressed.
        let noise = checkpoint::Page { section: section(0, text, text.len() * 4), ..page.clone() };
        (page.parse(&packed).is_ok() | noise.parse(text).is_ok()).into()
    });
}

#[test]
fn f34_s37_walks_through_tars_end() {
    fuzz_bytes("walks", vec![PACK.to_vec(), PACK[..2048].to_vec()], &["ustar", "blobs/sha256/", "path=", "size=", "0000644"], |input| {
        let (mut walk, mut open, mut blobs) = (Walk::default(), None::<u64>, 0);
        let mut bytes = 0u64;
        let (first, second) = input.split_at(input.len() / 3);
        let mut walked = true;
        for part in [first, second] {
            let fed = walk.feed(part, &mut |event| match event {
                Event::Begin { size, offset, .. } => {
                    assert!(open.is_none() && offset % 512 == 0);
                    (open, bytes) = (Some(size), 0);
                }
                Event::Bytes(part) => bytes += part.len() as u64,
                Event::End => {
                    assert_eq!(open.take(), Some(bytes));
                    blobs += 1;
                }
            });
            walked &= fed.is_ok();
            if !walked {
                break;
            }
        }
        (walked && blobs > 0).into()
    });
}

#[test]
fn s37_keys_are_read_as_they_are_written_or_refused() {
    let origin = Origin { node: NodeId([5; 32]), incarnation: 17 };
    let pack = keys::pack("a/b", &PackId { origin, sequence: 1 });
    let checkpoint = keys::checkpoint("a/b", 1_700_000_000_000, &origin.node);
    fuzz_bytes(
        "keys",
        vec![pack.into_bytes(), checkpoint.into_bytes()],
        &["a/b/v1/", "packs/", "checkpoints/", ".tar", "../", "-"],
        |input| {
            let Ok(key) = std::str::from_utf8(input) else { return false.into() };
            let pack = keys::parse_pack("a/b", key);
            let plain = key.strip_suffix(keys::ENDING).unwrap_or(key);
            assert!(pack.is_none_or(|id| keys::pack("a/b", &id) == plain));
            let checkpoint = keys::parse_checkpoint("a/b", key);
            assert!(checkpoint.is_none_or(|(stamp, node)| keys::checkpoint("a/b", stamp, &node) == plain));
            (pack.is_some() || checkpoint.is_some()).into()
        },
    );
}
