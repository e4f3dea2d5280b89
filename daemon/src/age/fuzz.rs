//! The reader of age files under fire. Everybody may encrypt to a public key: so MACs are made to fit, else nothing but they would be tried.

use larder_harness::fuzz_bytes;

use super::*;

const IDENTITY: &str = include_str!("../../testdata/test-identity.txt");
const STOCK: &[u8] = include_bytes!("../../testdata/stock.age");
/// The key of the corpus: whoever makes a file knows it.
const FILE_KEY: [u8; 16] = [7; 16];

#[test]
fn s37_age_files_are_read_or_refused() {
    let identities = parse_identities("test", IDENTITY).expect("identities");
    let other = Recipient([9; 32]);
    let own = |recipients: &[Recipient], content| header::write(recipients, &FILE_KEY, content).expect("a header");
    let corpus: Vec<Vec<u8>> = [own(&[identities[0].recipient()], 100), own(&[other, identities[0].recipient()], 0)]
        .into_iter()
        .map(|header| [&header[..header.len() - 48], b"\0", &[1; 16 + 100 + 16]].concat())
        .chain([[&STOCK[..150], b"\0"].concat()])
        .collect();
    let words = ["-> X25519 ", "-> larder ", "-> scrypt ", "\n--- ", "\n\n", "18446744073709551615", "1125899906842624", " .\n\n"];
    fuzz_bytes("age files", corpus, &words, |input| {
        let end = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
        let file = [&header::ended(&input[..end], &FILE_KEY)[..], input.get(end + 1..).unwrap_or_default()].concat();
        let opened = [Opened::own(&file, &identities), Opened::any(&file, file.len() as u64, &identities)];
        // As they come, too: without anybody's MAC.
        let _ = Opened::any(input, input.len() as u64, &identities);
        let mut taken = false;
        for opened in opened.into_iter().flatten().map(Arc::new) {
            taken = true;
            let size = opened.size();
            for wanted in [0..size, size / 2..size, 0..size.min(1)] {
                let within = opened.within_file(&wanted);
                assert!(within.start <= within.end);
                let (mut opening, mut count) = (opened.opening(wanted.clone()), 0);
                let there = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(file.len());
                opening.push(&file[there(within.start)..there(within.end)], |bytes| count += bytes.len() as u64);
                assert!(count <= wanted.end - wanted.start, "never more than is wanted");
            }
        }
        taken.into()
    });
}
