//! Round trips, what stock `age` wrote, and files that somebody changed.

use super::*;

const IDENTITY: &str = include_str!("../../testdata/test-identity.txt");
const OTHER: &str = include_str!("../../testdata/other-test-identity.txt");
/// `age -r RECIPIENT`, version 1.1.1, of what [`stock_content`] gives.
const STOCK: &[u8] = include_bytes!("../../testdata/stock.age");

fn identities(text: &str) -> Vec<Arc<Identity>> {
    parse_identities("test", text).expect("identities")
}

fn recipient() -> Recipient {
    identities(IDENTITY)[0].recipient()
}

fn bytes(size: u64) -> Vec<u8> {
    (0..size).map(|number| (number % 251) as u8).collect()
}

/// Encrypts for a part of the file.
fn part(seal: &Seal, content: &[u8], file: Range<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    let needs = seal.needs(&file);
    let mut sealing = seal.sealing(file);
    let mut take = |bytes: Bytes| {
        out.extend_from_slice(&bytes);
        Ok::<_, ()>(())
    };
    for step in content[needs.start as usize..needs.end as usize].chunks(10_007) {
        sealing.push(step, &mut take).expect("taken");
    }
    sealing.finish(&mut take).expect("taken");
    out
}

fn whole(seal: &Seal, content: &[u8]) -> Vec<u8> {
    part(seal, content, 0..seal.size())
}

/// Decrypts a part of the content.
fn read(opened: &Arc<Opened>, file: &[u8], content: Range<u64>) -> (Vec<u8>, Option<Invalid>) {
    let (mut out, mut opening) = (Vec::new(), opened.opening(content.clone()));
    let within = opened.within_file(&content);
    for step in file[within.start as usize..within.end as usize].chunks(9_973) {
        opening.push(step, |bytes| out.extend_from_slice(&bytes));
    }
    (out, opening.damaged())
}

fn open(file: &[u8]) -> Arc<Opened> {
    Arc::new(Opened::own(&file[..HEADER_SIZE], &identities(IDENTITY)).expect("it opens"))
}

#[test]
fn what_is_written_is_read_whole_and_in_parts() {
    // Nothing; one byte; a chunk, and one byte less and more; several.
    for size in [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE, 3 * CHUNK_SIZE + 77] {
        let content = bytes(size);
        let seal = Seal::new(&[recipient()], size).expect("a seal");
        let file = whole(&seal, &content);
        assert_eq!((file.len() as u64, seal.size()), (file_size(size), file_size(size)), "{size}");
        assert_eq!(content_size(file.len() as u64), Some(size));
        let opened = open(&file);
        assert_eq!(opened.size(), size);
        assert_eq!(read(&opened, &file, 0..size), (content.clone(), None), "{size}");
        for at in [0, 1, size / 3, CHUNK_SIZE - 1, CHUNK_SIZE, size.saturating_sub(1)] {
            for length in [0, 1, 100, CHUNK_SIZE, CHUNK_SIZE + 1] {
                let (from, to) = (at.min(size), (at + length).min(size));
                assert_eq!(read(&opened, &file, from..to).0, content[from as usize..to as usize], "{from}..{to} of {size}");
            }
        }
    }
}

#[test]
fn f27_what_is_encrypted_again_is_the_same_in_any_parts() {
    let content = bytes(3 * CHUNK_SIZE + 77);
    let seal = Seal::new(&[recipient()], content.len() as u64).expect("a seal");
    let file = whole(&seal, &content);
    assert!(whole(&seal, &content) == file);
    for step in [1_000, HEADER_SIZE as u64, CHUNK_SIZE, CHUNK_SIZE + 16, CHUNK_SIZE + 17, 150_001] {
        let mut parts = Vec::new();
        for at in (0..seal.size()).step_by(step as usize) {
            let range = at..(at + step).min(seal.size());
            let part = part(&seal, &content, range.clone());
            assert_eq!(part.len() as u64, range.end - range.start);
            parts.extend(part);
        }
        assert!(parts == file, "{step}");
    }
    assert!(whole(&Seal::new(&[recipient()], content.len() as u64).expect("another"), &content) != file, "a key of its own");
}

#[test]
fn everyone_named_can_read_and_nobody_else() {
    let other = identities(OTHER)[0].recipient();
    let content = bytes(100);
    let one = whole(&Seal::new(&[recipient()], 100).expect("a seal"), &content);
    assert!(matches!(Opened::own(&one, &identities(OTHER)), Err(Invalid::OtherRecipients)));
    assert!(matches!(Opened::own(&one, &[]), Err(Invalid::OtherRecipients)));
    let many: Vec<Recipient> = [other].into_iter().cycle().take(RECIPIENTS_MAX - 1).chain([recipient()]).collect();
    let file = whole(&Seal::new(&many, 100).expect("a seal"), &content);
    for text in [IDENTITY, OTHER, &format!("{OTHER}{IDENTITY}")] {
        let opened = Arc::new(Opened::own(&file, &identities(text)).expect("one of them"));
        assert_eq!(read(&opened, &file, 0..100).0, content);
    }
    // A point that everybody has everything in common with.
    assert_eq!(Seal::new(&[Recipient([0; 32])], 1).expect_err("refused"), Invalid::Recipient(Recipient([0; 32])));
}

#[test]
fn what_stock_age_wrote_opens() {
    let content = bytes(2 * CHUNK_SIZE + 5);
    let opened = Arc::new(Opened::any(STOCK, STOCK.len() as u64, &identities(IDENTITY)).expect("it opens"));
    assert_eq!(read(&opened, STOCK, 0..content.len() as u64), (content, None));
    assert!(matches!(Opened::own(STOCK, &identities(IDENTITY)), Err(Invalid::Header { .. })), "its header has another size");
}

#[test]
fn s37_chunks_that_were_changed_swapped_or_cut_read_as_zeros_and_are_told() {
    let content = bytes(3 * CHUNK_SIZE + 77);
    let seal = Seal::new(&[recipient()], content.len() as u64).expect("a seal");
    let file = whole(&seal, &content);
    let (chunk, start) = ((CHUNK_SIZE + 16) as usize, HEADER_SIZE);
    let check = |change: &dyn Fn(&mut Vec<u8>), damaged: &[u64]| {
        let mut changed = file.clone();
        change(&mut changed);
        let opened = open(&changed);
        for index in 0..4 {
            let range = index * CHUNK_SIZE..((index + 1) * CHUNK_SIZE).min(content.len() as u64);
            let within = opened.within_file(&range);
            let mut opening = opened.opening(range.clone());
            let mut out = Vec::new();
            let there = &changed[(within.start as usize).min(changed.len())..(within.end as usize).min(changed.len())];
            opening.push(there, |bytes| out.extend_from_slice(&bytes));
            if damaged.contains(&index) {
                assert!(out.iter().all(|byte| *byte == 0), "{index}");
                assert!(opening.damaged() == Some(Invalid::Chunk { at: index * CHUNK_SIZE }) || out.is_empty(), "{index}");
            } else {
                assert!(out == content[range.start as usize..range.end as usize] && opening.damaged().is_none(), "{index}");
            }
        }
    };
    check(&|_| {}, &[]);
    check(&|file| file[start + chunk + 5] ^= 1, &[1]);
    check(&|file| file[start + 2 * chunk - 1] ^= 1, &[1]);
    check(
        &|file| {
            let (one, two) = file.split_at_mut(start + chunk);
            one[start..].swap_with_slice(&mut two[..chunk]);
        },
        &[0, 1],
    );
    check(&|file| file.copy_within(start..start + chunk, start + 2 * chunk), &[2]);
    check(&|file| file.truncate(start + 3 * chunk), &[3]);
    check(&|file| file.truncate(start + 3 * chunk + 20), &[3]);
    // The last but one is not taken for the last.
    assert_eq!(content_size(file.len() as u64 - 93), Some(3 * CHUNK_SIZE));
    assert!(Opened::any(&file, file.len() as u64 - 93, &identities(IDENTITY)).is_err(), "the header says how much there was");
}

#[test]
fn s37_headers_that_were_changed_are_refused() {
    let seal = Seal::new(&[recipient()], 9).expect("a seal");
    let file = whole(&seal, &bytes(9));
    let open = |file: &[u8]| Opened::own(file, &identities(IDENTITY)).map(|opened| opened.size());
    assert_eq!(open(&file), Ok(9));
    for at in 0..HEADER_SIZE - NONCE_SIZE {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert!(open(&changed).is_err(), "byte {at}");
    }
    for cut in [0, 10, 22, 100, HEADER_SIZE - 17, HEADER_SIZE - 1] {
        assert!(open(&file[..cut]).is_err(), "{cut}");
    }
    // Another size, under the right MAC's text.
    let text = String::from_utf8_lossy(&file[..HEADER_SIZE - NONCE_SIZE]).replace("larder 9 ", "larder 8 ");
    assert_eq!(open(&[text.as_bytes(), &file[HEADER_SIZE - NONCE_SIZE..]].concat()), Err(Invalid::Mac));
}

#[test]
fn sizes_that_no_file_has_are_told() {
    let header = HEADER_SIZE as u64;
    for (file, content) in
        [(header + 16, Some(0)), (header + 17, Some(1)), (header + 15, None), (header, None), (0, None), (u64::MAX, None)]
    {
        assert_eq!(content_size(file), content, "{file}");
    }
    // A second chunk has at least a byte.
    let full = header + CHUNK_SIZE + 16;
    assert_eq!((content_size(full), content_size(full + 16), content_size(full + 17)), (Some(CHUNK_SIZE), None, Some(CHUNK_SIZE + 1)));
}
