//! Bech32, in which keys are written: letters that are hard to confuse, and a checksum that finds slips. SPEC: BIP 173, without its limit of 90 letters.

const LETTERS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// Letters of the checksum.
const CHECK: usize = 6;

/// Writes bytes behind `prefix`, in small letters.
pub(super) fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut values = regroup(bytes, 8, 5, true).expect("padding takes everything");
    let sum = polymod(prefix, values.iter().copied().chain([0; CHECK])) ^ 1;
    values.extend((0..CHECK).map(|at| (sum >> (5 * (CHECK - 1 - at))) as u8 & 31));
    let letters = values.iter().map(|value| char::from(LETTERS[usize::from(*value)]));
    format!("{prefix}1{}", letters.collect::<String>())
}

/// The bytes that stand behind `prefix`, which is in small letters; `None` for what is no such text, or has a slip in it.
pub(super) fn decode(prefix: &str, text: &str) -> Option<Vec<u8>> {
    // All small or all large.
    let small = text.to_ascii_lowercase();
    if text != small && text != text.to_ascii_uppercase() {
        return None;
    }
    let letters = small.strip_prefix(prefix)?.strip_prefix('1')?;
    let value = |letter: u8| LETTERS.iter().position(|known| *known == letter).map(|at| at as u8);
    let values: Vec<u8> = letters.bytes().map(value).collect::<Option<_>>()?;
    if values.len() < CHECK || polymod(prefix, values.iter().copied()) != 1 {
        return None;
    }
    regroup(&values[..values.len() - CHECK], 5, 8, false)
}

fn polymod(prefix: &str, values: impl Iterator<Item = u8>) -> u32 {
    const GENERATORS: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let high = prefix.bytes().map(|byte| byte >> 5);
    let low = prefix.bytes().map(|byte| byte & 31);
    high.chain([0]).chain(low).chain(values).fold(1, |sum, value| {
        let top = sum >> 25;
        let shifted = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
        GENERATORS.iter().enumerate().filter(|(bit, _)| top >> bit & 1 == 1).fold(shifted, |sum, (_, generator)| sum ^ generator)
    })
}

/// Bits in groups of `from` to groups of `to`. What is left over is padded with zeros; without `pad` it has to be such a padding.
fn regroup(values: &[u8], from: u32, to: u32, pad: bool) -> Option<Vec<u8>> {
    let (mut held, mut bits, mut out) = (0u32, 0, Vec::new());
    for value in values {
        held = (held << from | u32::from(*value)) & 0xffff;
        bits += from;
        while bits >= to {
            bits -= to;
            out.push((held >> bits & ((1 << to) - 1)) as u8);
        }
    }
    let rest = held & ((1 << bits) - 1);
    if pad && bits > 0 {
        out.push((rest << (to - bits)) as u8);
    }
    (pad || (bits < from && rest == 0)).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_slips_are_found() {
        for size in [0, 1, 4, 5, 32, 33] {
            let bytes: Vec<u8> = (0..size).map(|number| number * 7 + 1).collect();
            let text = encode("age", &bytes);
            assert_eq!(decode("age", &text), Some(bytes.clone()));
            assert_eq!(decode("age", &text.to_uppercase()), Some(bytes));
            assert_eq!(decode("agf", &text), None);
            for at in 4..text.len() {
                let mut slip = text.clone().into_bytes();
                slip[at] = if slip[at] == b'q' { b'p' } else { b'q' };
                assert_eq!(decode("age", std::str::from_utf8(&slip).expect("ASCII")), None, "{at}");
            }
        }
        for bad in ["", "age", "age1", "age1qqq", "Age1lkddxz", "age1 lkddxz", "age1bbbbbb", "äge1lkddxz"] {
            assert_eq!(decode("age", bad), None, "{bad}");
        }
        // Of the specification.
        assert_eq!(decode("a", "A12UEL5L"), Some(Vec::new()));
        let data: Vec<u8> = regroup(&(0..32).collect::<Vec<u8>>(), 5, 8, false).expect("160 bits");
        assert_eq!(decode("abcdef", "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw"), Some(data));
    }
}
