use proptest::prelude::*;

use super::*;
use crate::record::{Archived, Key, Manifest, Member, Record, TagTarget, Value};
use crate::stamp::{HybridTime, NodeId, Stamp};

const WRITER: NodeId = NodeId([7; 32]);
const ORIGIN: Origin = Origin { node: WRITER, incarnation: 1_700_000_000_000 };

/// No crypto in this crate: a hash stands for a signature. The daemon's tests have the real one.
pub(super) fn sign(bytes: &[u8]) -> [u8; 64] {
    sha2::Sha512::new().chain_update(WRITER.0).chain_update(bytes).finalize().into()
}

fn verify(node: &NodeId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    *node == WRITER && sign(bytes) == *signature
}

fn numbered(sequence: u64, key: Key, value: Option<Value>) -> Numbered {
    let stamp = Stamp { time: HybridTime((1_700_000_000_123 << 16) | sequence), node: WRITER };
    Numbered { origin: ORIGIN, sequence, record: Record { key, value, stamp } }
}

pub(super) struct Sample {
    pub(super) draft: Draft,
    pub(super) blobs: Vec<Vec<u8>>,
    records: Vec<Numbered>,
}

/// One record of each kind, two blobs, one manifest.
fn sample() -> Sample {
    sample_with(vec![b"layer".to_vec(), Vec::new()])
}

/// The first byte that needs a chunk list.
pub(super) fn sample_with_chunks() -> Sample {
    sample_with(vec![b"layer".to_vec(), Vec::new(), (0..=1usize << 20).map(|i| (i / 7) as u8).collect()])
}

fn sample_with(blobs: Vec<Vec<u8>>) -> Sample {
    let parts: Vec<BlobPart> = blobs
        .iter()
        .map(|bytes| BlobPart {
            digest: Digest::of(if bytes.is_empty() { crate::digest::Algorithm::Sha512 } else { crate::digest::Algorithm::Sha256 }, bytes),
            link: link_of(bytes),
            chunks: (bytes.len() > 1 << 20)
                .then(|| bytes.chunks(1 << 20).enumerate().map(|(i, chunk)| crate::digest::chunk_value(i as u64, chunk)).collect()),
        })
        .collect();
    let repository: crate::name::RepositoryName = "team/app".parse().expect("a name");
    let tag: crate::name::Tag = "v1".parse().expect("a tag");
    let (media_type, bytes) = ("application/vnd.oci.image.manifest.v1+json".to_owned(), br#"{"schemaVersion":2}"#.to_vec());
    let digest = Digest::sha256(&bytes);
    let pack = PackId { origin: ORIGIN, sequence: 3 };
    let archived = Archived {
        bucket: "s3://b/p".to_owned(),
        object_key: "p/v1/packs/x/1.tar".to_owned(),
        size: 4096,
        created_ms: 5,
        records: 2,
        contents: vec![Located { digest, offset: 512, length: 9 }],
    };
    let member = Member {
        name: "build-07".to_owned(),
        zone: "default".to_owned(),
        addresses: vec!["[::1]:5000".to_owned()],
        bucket: None,
        version: "0.1.0".to_owned(),
    };
    let replaced = Some(Stamp { time: HybridTime(77), node: NodeId([1; 32]) });
    let records = vec![
        numbered(1, Key::Link(repository.clone(), parts[0].digest), Some(Value::Link(parts[0].link))),
        numbered(
            2,
            Key::Manifest(repository.clone(), digest),
            Some(Value::Manifest(Manifest { media_type: media_type.clone(), bytes: bytes.clone() })),
        ),
        numbered(3, Key::Tag(repository.clone(), tag.clone()), Some(Value::Tag(TagTarget { digest, replaced }))),
        numbered(4, Key::Tag(repository.clone(), "gone".parse().expect("a tag")), None),
        numbered(5, Key::Manifest(repository.clone(), Digest::sha256(b"gone")), None),
        numbered(6, Key::Link(repository, parts[1].digest), None),
        numbered(7, Key::Archived(PackId { origin: ORIGIN, sequence: 1 }), Some(Value::Archived(archived))),
        numbered(8, Key::Member(WRITER), Some(Value::Member(member))),
        numbered(9, Key::Unknown { kind: 900, key: vec![1, 2] }, Some(Value::Unknown(vec![0, 255]))),
        numbered(12, Key::Unknown { kind: 901, key: vec![3] }, None),
    ];
    let draft = Draft {
        cluster: [9; 16],
        pack,
        created_ms: 1_700_000_000_999,
        blobs: parts,
        manifests: vec![ManifestPart { digest, media_type, bytes: bytes.into(), names: vec!["team/app:v1".to_owned()] }],
        records: records.iter().map(|numbered| record_line(numbered, false)).collect(),
        covers: [(ORIGIN, Covered { after: 0, upto: 12 })].into(),
        company: Company::default(),
    };
    Sample { draft, blobs, records }
}

/// The object as a bucket gets it.
pub(super) fn object(sealed: &Sealed, blobs: &[Vec<u8>]) -> Vec<u8> {
    let by_digest: HashMap<Digest, &Vec<u8>> = blobs
        .iter()
        .flat_map(|bytes| [crate::digest::Algorithm::Sha256, crate::digest::Algorithm::Sha512].map(|a| (Digest::of(a, bytes), bytes)))
        .collect();
    let mut object = Vec::new();
    for piece in &sealed.pieces {
        match piece {
            Piece::Bytes(bytes) => object.extend_from_slice(bytes),
            Piece::Blob { digest, .. } => object.extend_from_slice(by_digest[digest]),
        }
    }
    object
}

fn read(object: &[u8]) -> Result<(Footer, Contents), InvalidPack> {
    let split = object.len().saturating_sub(FOOTER_SIZE as usize);
    let footer = Footer::parse(&object[split..], object.len() as u64, verify)?;
    let contents = Contents::parse(&footer, &object[footer.tail as usize..])?;
    Ok((footer, contents))
}

#[test]
fn what_was_sealed_reads_back() {
    let mut sample = sample_with_chunks();
    let node = |name| NodeId([name; 32]);
    sample.draft.company = Company { founder: Some(node(7)), members: vec![node(7), node(8)], expelled: vec![node(9)] };
    let sealed = sample.draft.clone().seal(sign);
    let object = object(&sealed, &sample.blobs);
    assert_eq!(object.len() as u64, sealed.size());
    let (footer, contents) = read(&object).expect("own pack");
    assert_eq!(footer, sealed.footer);
    assert_eq!(contents.records, sample.records);
    assert_eq!(contents.covers, sample.draft.covers);
    assert_eq!(contents.company, sample.draft.company);
    assert_eq!(contents.located(), sealed.contents);
    for entry in &contents.index {
        let bytes = &object[entry.offset as usize..][..entry.link.size as usize];
        assert_eq!(Digest::of(entry.digest.algorithm(), bytes), entry.digest);
        assert_eq!(link_of(bytes), entry.link);
    }
}

#[test]
fn the_checksum_is_combined_from_the_parts() {
    let sample = sample_with_chunks();
    let sealed = sample.draft.seal(sign);
    assert_eq!(sealed.crc64, crc_fast::checksum(Crc64Nvme, &object(&sealed, &sample.blobs)));
}

#[test]
fn manifests_may_stand_in_their_line() {
    let sample = sample();
    let line = record_line(&sample.records[1], true);
    assert_eq!(lines::parse_record_line(line.as_bytes(), &|_| None).expect("bytes are inline"), sample.records[1]);
    let line = record_line(&sample.records[1], false);
    assert!(matches!(lines::parse_record_line(line.as_bytes(), &|_| None), Err(InvalidLine::Manifest(_))));
    assert!(matches!(lines::parse_record_line(line.as_bytes(), &|_| Some(b"others")), Err(InvalidLine::Manifest(_))));
}

#[test]
fn a_pack_of_format_1_still_opens() {
    let golden = include_bytes!("../../testdata/v1/pack.tar");
    let sample = sample();
    let (footer, contents) = read(golden).expect("golden pack");
    assert_eq!(footer.pack, sample.draft.pack);
    assert_eq!(contents.records, sample.records);
    assert_eq!(contents.covers, sample.draft.covers);
    // Everything before the compressed tables is today's bytes as well.
    let today = object(&sample.draft.seal(sign), &sample.blobs);
    assert_eq!(golden[..footer.records.offset as usize - 512], today[..footer.records.offset as usize - 512]);
}

/// What came into packs after their first version: the writer's company, the end of a pack, and kinds that stand by their number.
fn sample_of_today() -> Sample {
    let mut sample = sample();
    let node = |name| NodeId([name; 32]);
    sample.draft.company = Company { founder: Some(node(7)), members: vec![node(7), node(8)], expelled: vec![node(9)] };
    let user = crate::access::User { hash: "$argon2id$x".to_owned(), groups: vec!["ops".to_owned()], extra: Vec::new() };
    sample.records.extend([
        numbered(13, Key::Archived(PackId { origin: ORIGIN, sequence: 2 }), None),
        numbered(14, Key::Role(node(8)), Some(Value::Role(crate::record::Roles(2)))),
        numbered(15, Key::User("ann".to_owned()), Some(Value::User(user))),
        numbered(16, Key::Rule("ann".to_owned(), "team/**".to_owned()), None),
    ]);
    sample.draft.records = sample.records.iter().map(|numbered| record_line(numbered, false)).collect();
    sample.draft.covers =
        [(ORIGIN, Covered { after: 0, upto: 16 }), (Origin { node: node(8), incarnation: 1 }, Covered { after: 4, upto: 9 })].into();
    sample
}

#[test]
fn a_pack_with_company_and_the_end_of_another_still_opens() {
    let golden = include_bytes!("../../testdata/v2/pack-company.tar");
    let sample = sample_of_today();
    let (_, contents) = read(golden).expect("golden pack");
    assert_eq!((contents.records, contents.covers, contents.company), (sample.records, sample.draft.covers, sample.draft.company));
}

#[test]
fn s38_company_that_is_none_is_refused() {
    for bad in [r#""founder":"x""#, r#""members":["../x"]"#, r#""expelled":[""]"#, r#""members":7"#] {
        let line = format!(r#"{{"larder":"records","covers":[],{bad}}}"#);
        assert!(lines::parse_header_line(line.as_bytes()).is_err(), "{bad}");
    }
    // A field of a later program says nothing.
    assert!(lines::parse_header_line(br#"{"larder":"records","covers":[],"later":1}"#).is_ok());
}

#[test]
fn nothing_but_a_whole_pack_opens() {
    let sample = sample();
    let object = object(&sample.draft.seal(sign), &sample.blobs);
    for cut in (1..=2048).chain([object.len() / 2, object.len() - 1, object.len()]) {
        assert!(read(&object[..object.len() - cut]).is_err(), "{cut} bytes cut off");
    }
}

#[test]
fn s38_a_forged_footer_is_refused() {
    let sample = sample();
    let object = object(&sample.draft.seal(sign), &sample.blobs);
    let footer = object.len() - FOOTER_SIZE as usize;
    for at in 0..FOOTER_SIZE as usize {
        let mut forged = object.clone();
        forged[footer + at] ^= 1;
        assert!(read(&forged).is_err(), "byte {at} of the footer");
    }
}

#[test]
fn a_changed_table_is_refused() {
    let sample = sample();
    let sealed = sample.draft.seal(sign);
    let object = object(&sealed, &sample.blobs);
    for section in [sealed.footer.records, sealed.footer.index] {
        for at in 0..section.length {
            let mut changed = object.clone();
            changed[(section.offset + at) as usize] ^= 0x80;
            assert!(matches!(read(&changed), Err(InvalidPack::Digest { .. })));
        }
    }
}

/// A pack with other tables, signed as a member gone bad would.
fn with_tables(index: &[String], records: &[String], change: impl FnOnce(&mut Footer)) -> Result<(Footer, Contents), InvalidPack> {
    let mut out = Assembly::default();
    out.file("blobs", Bytes::from_static(&[1; 4096]));
    let tail = out.size;
    let header = lines::header_line(&BTreeMap::new(), &Company::default());
    let table = |out: &mut Assembly, lines: &[String]| out.table("t", lines.iter().cloned());
    let records_section = table(&mut out, &[&[header], records].concat());
    let index_section = table(&mut out, index);
    out.push(Bytes::from_static(&[0; 1024]));
    let mut footer = Footer {
        cluster: [9; 16],
        pack: PackId { origin: ORIGIN, sequence: 1 },
        created_ms: 1,
        size: out.size + FOOTER_SIZE,
        tail,
        record_count: records.len() as u64,
        blob_count: index.len() as u32,
        records: records_section,
        index: index_section,
    };
    let mut object = Vec::new();
    for piece in &out.pieces {
        if let Piece::Bytes(bytes) = piece {
            object.extend_from_slice(bytes);
        }
    }
    // The honest footer is written first, then its numbers are replaced behind the writer's own check.
    let honest = footer.to_bytes(sign);
    let before = footer.clone();
    change(&mut footer);
    let mut bytes = honest.to_vec();
    let mut replace = |at: usize, was: u64, is: u64| {
        assert_eq!(bytes[at..at + 8], was.to_le_bytes());
        bytes[at..at + 8].copy_from_slice(&is.to_le_bytes());
    };
    replace(88, before.size, footer.size);
    replace(96, before.tail, footer.tail);
    replace(104, before.record_count, footer.record_count);
    for (at, was, is) in [(112, before.records, footer.records), (168, before.index, footer.index)] {
        replace(at, was.offset, is.offset);
        replace(at + 8, was.length, is.length);
        replace(at + 16, was.output, is.output);
    }
    let signature = sign(&bytes[..448]);
    bytes[448..].copy_from_slice(&signature);
    object.extend_from_slice(&bytes);
    let size = object.len() as u64;
    let footer = Footer::parse(&bytes, size, verify)?;
    Contents::parse(&footer, &object[footer.tail as usize..]).map(|contents| (footer, contents))
}

fn index_line(digest: &str, offset: &str, length: &str, size: &str) -> String {
    let root = "0".repeat(64);
    format!(r#"{{"digest":"{digest}","size":{size},"offset":{offset},"length":{length},"root":"{root}","crc64":"0000000000000000"}}"#)
}

#[test]
fn s37_places_outside_the_pack_or_over_each_other_are_refused() {
    let (a, b) = (Digest::sha256(b"a").to_string(), Digest::sha256(b"b").to_string());
    let refused = |lines: &[String]| with_tables(lines, &[], |_| {}).expect_err("must be refused").to_string();
    assert!(with_tables(&[index_line(&a, "512", "100", "100"), index_line(&b, "612", "100", "100")], &[], |_| {}).is_ok());
    // Overlapping offsets.
    assert!(refused(&[index_line(&a, "512", "100", "100"), index_line(&b, "611", "100", "100")]).contains("something else"));
    // Over the first header; length > size; behind the end; 2^64 and its neighbours.
    assert!(refused(&[index_line(&a, "0", "100", "100")]).contains("something else"));
    assert!(refused(&[index_line(&a, "512", "101", "100")]).contains("length"));
    assert!(refused(&[index_line(&a, "512", "1000000", "1000000")]).contains("behind the end"));
    for huge in ["18446744073709551615", "18446744073709551104", "9223372036854775808"] {
        assert!(refused(&[index_line(&a, huge, "512", "512")]).contains("behind the end"));
        assert!(refused(&[index_line(&a, "512", huge, huge)]).contains("behind the end"));
    }
    for wrong in ["18446744073709551616", "-1", "1.5", "\"512\"", "null"] {
        assert!(refused(&[index_line(&a, wrong, "100", "100")]).contains("line 1 of the index"));
    }
    // The same blob twice.
    assert!(refused(&[index_line(&a, "512", "100", "100"), index_line(&a, "612", "100", "100")]).contains("twice"));
}

#[test]
fn s37_names_that_climb_out_are_no_names() {
    let refused = |lines: &[String], records: &[String]| with_tables(lines, records, |_| {}).expect_err("must be refused");
    for name in ["../../../etc/passwd", "/etc/passwd", "sha256:../../x", "blobs/sha256/aa", "sha256:AA"] {
        assert!(matches!(refused(&[index_line(name, "512", "1", "1")], &[]), InvalidPack::Line { table: "index", .. }), "{name}");
    }
    let good = record_line(&sample().records[3], false);
    assert!(with_tables(&[], std::slice::from_ref(&good), |_| {}).is_ok());
    for (name, bad) in [("team/app", "../app"), ("team/app", "/app"), ("gone", "../x"), ("gone", ".")] {
        assert!(matches!(refused(&[], &[good.replace(name, bad)]), InvalidPack::Line { table: "records", number: 2, .. }), "{bad}");
    }
}

#[test]
fn s37_sections_outside_the_pack_are_refused() {
    type Change = fn(&mut Footer);
    let changes: [Change; 9] = [
        |footer| footer.tail = u64::MAX,
        |footer| footer.tail = footer.size,
        |footer| footer.records.offset = u64::MAX,
        |footer| footer.records.length = u64::MAX,
        |footer| footer.records.offset = footer.index.offset,
        |footer| footer.index.offset = u64::MAX,
        |footer| footer.index.length += 4096,
        |footer| footer.index.offset = footer.size,
        |footer| footer.size += 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert!(with_tables(&[], &[], change).is_err(), "change {number}");
    }
}

#[test]
fn s40_output_ends_where_it_was_signed() {
    let line = format!("{{\"larder\":\"{}\"}}", "x".repeat(1 << 20));
    let bomb: Vec<String> = (0..8).map(|_| line.clone()).collect();
    // Signed as small: cut off after that many bytes.
    let error = with_tables(&bomb, &[], |footer| footer.index.output = 1000).expect_err("more than was signed");
    assert!(matches!(error, InvalidPack::Compression { .. } | InvalidPack::Line { .. }), "{error}");
    // Signed as huge: never begun.
    let error = with_tables(&bomb, &[], |footer| footer.index.output = INDEX_OUTPUT_MAX + 1).expect_err("too large");
    assert!(matches!(error, InvalidPack::Footer { .. }), "{error}");
    // Signed as more than there is.
    assert!(with_tables(&[], &[], |footer| footer.records.output += 1).is_err());
}

#[test]
fn s40_a_huge_window_is_refused() {
    let sample = sample();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("an encoder");
    encoder.window_log(27).expect("a window");
    encoder.write_all(&vec![b'\n'; 1 << 20]).expect("memory");
    let bytes = encoder.finish().expect("memory");
    let section = Section { offset: 0, length: bytes.len() as u64, output: 1 << 20, sha256: sha2::Sha256::digest(&bytes).into() };
    let mut footer = sample.draft.seal(sign).footer;
    footer.tail = 0;
    let error = each_line(&footer, &bytes, "index", &section, |_, _| Ok(())).expect_err("128 MiB of window");
    assert!(matches!(error, InvalidPack::Compression { .. }), "{error}");
}

#[test]
fn an_image_is_listed_once_and_its_children_not_at_all() {
    let child = ManifestPart { digest: Digest::sha256(b"{}"), media_type: "m".to_owned(), bytes: Bytes::from_static(b"{}"), names: vec![] };
    let bytes: Bytes = format!(r#"{{"manifests":[{{"digest":"{}"}}]}}"#, child.digest).into();
    let parent = ManifestPart { digest: Digest::sha256(&bytes), media_type: "i".to_owned(), bytes, names: vec![] };
    let listed = |manifests: &[ManifestPart]| {
        let json: serde_json::Value = serde_json::from_slice(&layout::index_json(manifests)).expect("JSON");
        json["manifests"].as_array().expect("a list").len()
    };
    assert_eq!(listed(&[child.clone(), parent.clone()]), 1);
    assert_eq!(listed(std::slice::from_ref(&child)), 1);
    let named = ManifestPart { names: vec!["a:1".to_owned(), "a:2".to_owned()], ..parent };
    assert_eq!(listed(&[child, named]), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Footer::parse(&bytes, bytes.len() as u64, |_, _, _| true);
        let _ = read(&bytes);
        let _ = lines::parse_record_line(&bytes, &|_| None);
        let _ = lines::parse_index_line(&bytes);
        let _ = lines::parse_header_line(&bytes);
    }

    #[test]
    fn random_footers_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 512), size in any::<u64>(), small in any::<bool>()) {
        bytes[..10].copy_from_slice(b"LARDERPK\x01\0");
        if small {
            // Numbers small enough to get past the first checks.
            for at in (80..112).step_by(8).chain([112, 120, 128, 168, 176, 184]) {
                bytes[at + 1..at + 8].fill(0);
            }
        }
        if let Ok(footer) = Footer::parse(&bytes, u64::from_le_bytes(bytes[88..96].try_into().expect("8 bytes")), |_, _, _| true) {
            let _ = Contents::parse(&footer, &vec![0; footer.tail_length() as usize]);
        }
        let _ = Footer::parse(&bytes, size, |_, _, _| true);
    }

    #[test]
    fn blobs_of_any_size_lie_where_the_index_says(sizes in prop::collection::vec(0..3000usize, 0..12)) {
        let blobs: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, size)| vec![i as u8; *size]).collect();
        let mut parts: Vec<BlobPart> = blobs.iter().map(|bytes| BlobPart { digest: Digest::sha256(bytes), link: link_of(bytes), chunks: None }).collect();
        let mut seen = std::collections::HashSet::new();
        parts.retain(|part| seen.insert(part.digest));
        let draft = Draft { cluster: [0; 16], pack: PackId { origin: ORIGIN, sequence: 1 }, created_ms: 0, blobs: parts, manifests: vec![], records: vec![], covers: BTreeMap::new(), company: Company::default() };
        let sealed = draft.seal(sign);
        let object = object(&sealed, &blobs);
        prop_assert_eq!(sealed.crc64, crc_fast::checksum(Crc64Nvme, &object));
        let (_, contents) = read(&object).expect("own pack");
        for entry in contents.index {
            prop_assert_eq!(Digest::sha256(&object[entry.offset as usize..][..entry.link.size as usize]), entry.digest);
        }
    }
}
