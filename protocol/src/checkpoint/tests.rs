use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::record::{Archived, Key, Link, Located, Manifest, PackId, Record, TagTarget, Value};
use crate::stamp::{HybridTime, Stamp};

const WRITER: NodeId = NodeId([7; 32]);
const ORIGIN: Origin = Origin { node: WRITER, incarnation: 1_700_000_000_000 };

/// No crypto in this crate: a hash stands for a signature. The daemon's tests have the real one.
fn sign(bytes: &[u8]) -> [u8; 64] {
    sha2::Sha512::new().chain_update(WRITER.0).chain_update(bytes).finalize().into()
}

fn verify(node: &NodeId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    *node == WRITER && sign(bytes) == *signature
}

fn records() -> Vec<Numbered> {
    let repository: crate::name::RepositoryName = "team/app".parse().expect("a name");
    let text = br#"{"schemaVersion":2}"#.to_vec();
    // Bytes that are no text: nobody checks what a manifest's type means.
    let noise = vec![0xff, 0, 0xfe];
    let manifest = |bytes: &Vec<u8>| {
        let value = Manifest { media_type: "m/x".to_owned(), bytes: bytes.clone() };
        (Key::Manifest(repository.clone(), Digest::sha256(bytes)), Some(Value::Manifest(value)))
    };
    let archived = Archived {
        bucket: "s3://b/p".to_owned(),
        object_key: "p/v1/packs/x/1.tar".to_owned(),
        size: 4096,
        created_ms: 5,
        records: 2,
        contents: vec![Located { digest: Digest::sha256(b"x"), offset: 512, length: 9 }],
    };
    let all = vec![
        (Key::Archived(PackId { origin: ORIGIN, sequence: 1 }), Some(Value::Archived(archived))),
        manifest(&text),
        manifest(&noise),
        (
            Key::Tag(repository.clone(), "v1".parse().expect("a tag")),
            Some(Value::Tag(TagTarget { digest: Digest::sha256(&text), replaced: None })),
        ),
        (Key::Link(repository.clone(), Digest::sha256(b"x")), Some(Value::Link(Link { size: 9, root: [3; 32], crc64: 4 }))),
        (Key::Link(repository, Digest::sha256(b"gone")), None),
        (Key::Unknown { kind: 900, key: vec![1, 2] }, Some(Value::Unknown(vec![0, 255]))),
    ];
    let numbered = |(index, (key, value)): (usize, (Key, Option<Value>))| {
        let sequence = index as u64 + 1;
        let stamp = Stamp { time: HybridTime((1_700_000_000_123 << 16) | sequence), node: WRITER };
        Numbered { origin: ORIGIN, sequence, record: Record { key, value, stamp } }
    };
    all.into_iter().enumerate().map(numbered).collect()
}

fn scope() -> Scope {
    Scope {
        bucket: "s3://b/p".to_owned(),
        prefix: "p".to_owned(),
        seen: [(ORIGIN, 7)].into_iter().collect(),
        horizon: [(ORIGIN, 2)].into_iter().collect(),
        packs: [(ORIGIN, 1)].into(),
        company: Company::default(),
    }
}

fn written(records: &[Numbered]) -> (Vec<u8>, Written) {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    records.iter().for_each(|numbered| writer.push(numbered).expect("written into memory"));
    let written = writer.finish(&scope(), [9; 16], (ORIGIN, 1_700_000_000_999), sign).expect("written into memory");
    (bytes, written)
}

#[test]
fn a_checkpoint_names_its_writers_company() {
    let company = Company { founder: Some(WRITER), members: vec![WRITER, NodeId([8; 32])], expelled: vec![NodeId([9; 32])] };
    let named = Scope { company, ..scope() };
    assert_eq!(parse_scope_line(scope_line(&named).as_bytes()).expect("own line"), named);
    assert!(!scope_line(&scope()).contains("members"), "what there is not is left out");
}

fn read(object: &[u8]) -> Result<(Footer, Directory, Vec<Numbered>), InvalidCheckpoint> {
    let split = object.len().saturating_sub(FOOTER_SIZE as usize);
    let footer = Footer::parse(&object[split..], object.len() as u64, verify)?;
    let bytes = |section: &Section| &object[section.offset as usize..][..section.length as usize];
    let directory = Directory::parse(&footer, bytes(&footer.directory))?;
    let mut records = Vec::new();
    for page in &directory.pages {
        records.extend(page.parse(bytes(&page.section))?);
    }
    Ok((footer, directory, records))
}

#[test]
fn what_was_written_reads_back_over_several_pages() {
    let mut many = records();
    // Lines that fill more than one page, and don't compress away.
    for number in 0..9_000u64 {
        let mut numbered = many[4].clone();
        numbered.record.key = Key::Link("team/app".parse().expect("a name"), Digest::sha256(&number.to_be_bytes()));
        many.push(Numbered { sequence: 100 + number, ..numbered });
    }
    let (bytes, written) = written(&many);
    assert_eq!(written.footer.size, bytes.len() as u64);
    assert_eq!(written.crc64, crc_fast::checksum(Crc64Nvme, &bytes));
    let (footer, directory, found) = read(&bytes).expect("own checkpoint");
    assert_eq!((footer, directory.scope), (written.footer, scope()));
    assert!(directory.pages.len() > 3, "{}", directory.pages.len());
    // Packs, and what no repository has, have pages of their own.
    let about: Vec<_> = directory.pages.iter().map(|page| page.repositories.len()).collect();
    assert_eq!((about[0], about[1], about[2], about.last()), (0, 1, 0, Some(&1)), "{about:?}");
    assert_eq!(found, many);
}

#[test]
fn stock_zstd_prints_it() {
    let (bytes, _) = written(&records());
    let text = zstd::stream::decode_all(&bytes[..]).expect("zstd, and frames that it skips");
    let lines: Vec<serde_json::Value> =
        text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).expect("JSON")).collect();
    // The directory: what it covers, and a line for each of three pages.
    assert_eq!(lines.len(), records().len() + 1 + 3);
    assert_eq!(lines[1]["text"], r#"{"schemaVersion":2}"#);
}

#[test]
fn a_checkpoint_of_format_1_still_opens() {
    let golden = include_bytes!("../../testdata/v1/checkpoint.zst");
    let (_, directory, found) = read(golden).expect("golden checkpoint");
    assert_eq!((directory.scope, found), (scope(), records()));
}

#[test]
fn a_checkpoint_with_company_still_opens() {
    let golden = include_bytes!("../../testdata/v2/checkpoint-company.zst");
    let company = Company { founder: Some(WRITER), members: vec![WRITER, NodeId([8; 32])], expelled: vec![NodeId([9; 32])] };
    let mut expected = records();
    expected.insert(1, retired());
    let (_, directory, found) = read(golden).expect("golden checkpoint");
    assert_eq!((directory.scope, found), (Scope { company, ..scope() }, expected));
}

/// The end of a pack.
fn retired() -> Numbered {
    let stamp = Stamp { time: HybridTime((1_700_000_000_123 << 16) | 9), node: WRITER };
    let key = Key::Archived(PackId { origin: ORIGIN, sequence: 2 });
    Numbered { origin: ORIGIN, sequence: 9, record: Record { key, value: None, stamp } }
}

#[test]
fn f33_s38_nothing_but_the_whole_of_it_opens() {
    let (bytes, _) = written(&records());
    for cut in (1..=600).chain([bytes.len() / 2, bytes.len() - 1, bytes.len()]) {
        assert!(read(&bytes[..bytes.len() - cut]).is_err(), "{cut} bytes cut off");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(read(&changed).is_err(), "byte {at}");
    }
}

/// A checkpoint with another directory, signed as a member gone bad would.
fn with_directory(lines: &[String], pages: &[u8]) -> Result<(Footer, Directory, Vec<Numbered>), InvalidCheckpoint> {
    let mut object = pages.to_vec();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let bytes = zstd::stream::encode_all(text.as_bytes(), 3).expect("compresses");
    let sha256 = sha2::Sha256::digest(&bytes).into();
    let directory = Section { offset: object.len() as u64, length: bytes.len() as u64, output: text.len() as u64, sha256 };
    object.extend(bytes);
    let footer = Footer {
        cluster: [9; 16],
        writer: ORIGIN,
        created_ms: 1,
        size: object.len() as u64 + FOOTER_SIZE,
        record_count: lines.len() as u64 - 1,
        page_count: lines.len() as u32 - 1,
        directory,
    };
    object.extend(footer.to_bytes(sign));
    read(&object)
}

#[test]
fn s37_pages_that_lie_elsewhere_are_refused() {
    let line = scope_line(&scope());
    let page = zstd::stream::encode_all(&b"x\n"[..], 3).expect("compresses");
    let section = |offset, length| Section { offset, length, output: 2, sha256: sha2::Sha256::digest(&page).into() };
    for (offset, length) in [(1, page.len() as u64), (0, 1), (0, u64::MAX), (u64::MAX, 2), (0, page.len() as u64 + 1)] {
        let found = with_directory(
            &[line.clone(), page_line(&Page { section: section(offset, length), records: 1, repositories: Vec::new() })],
            &page,
        );
        assert!(matches!(found, Err(InvalidCheckpoint::Rule { .. })), "{offset} {length}: {found:?}");
    }
}

#[test]
fn s40_a_page_never_unfolds_beyond_what_was_signed() {
    let line = scope_line(&scope());
    let bomb = zstd::stream::encode_all(&vec![b' '; 100 << 20][..], 19).expect("compresses");
    let page = |output| {
        let section = Section { offset: 0, length: bomb.len() as u64, output, sha256: sha2::Sha256::digest(&bomb).into() };
        page_line(&Page { section, records: 1, repositories: Vec::new() })
    };
    let found = with_directory(&[line.clone(), page(100 << 20)], &bomb);
    assert!(matches!(found, Err(InvalidCheckpoint::Rule { .. })), "{found:?}");
    assert!(with_directory(&[line, page(1000)], &bomb).is_err());
}

proptest! {
    #[test]
    fn s34_noise_is_never_a_checkpoint(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(read(&bytes).is_err());
    }
}
