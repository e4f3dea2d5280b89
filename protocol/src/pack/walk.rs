//! What is in a pack whose index can't be read: its tar is walked from the first byte, as it comes.
//!
//! Nothing that a header says is believed: a name only says which digest the bytes that follow must have, a size only how many they are. Who walks
//! hashes them, and keeps what its name is true of. Members with other names are passed over.

use crate::digest::Digest;

use super::tar::BLOCK;

/// Most bytes of a pax header; it has two short lines in a pack.
const PAX_SIZE_MAX: u64 = 64 << 10;

/// What the walk comes by.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A blob begins, or something that says so.
    Begin {
        /// What its name says.
        digest: Digest,
        /// Its first byte, from the start of the tar.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// Its next bytes.
    Bytes(&'a [u8]),
    /// They were all.
    End,
}

/// Why the walk ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTar {
    /// Not a header.
    #[error("at byte {at}: no header of a tar")]
    Header {
        /// Where.
        at: u64,
    },
    /// A size that no object has.
    #[error("at byte {at}: a member that reaches beyond what can be")]
    Size {
        /// Where.
        at: u64,
    },
}

/// A walk under way.
#[derive(Debug)]
pub struct Walk {
    at: u64,
    state: State,
    /// Of a header or a pax header, as far as it has come.
    held: Vec<u8>,
    /// What a pax header says of the next member.
    path: Option<String>,
    size: Option<u64>,
}

#[derive(Debug)]
enum State {
    Header,
    Pax(u64),
    /// Bytes left, and whether somebody wants them.
    Content(u64, bool),
    /// Of padding, or of a member that nobody wants.
    Skip(u64),
    Over,
}

impl Default for Walk {
    fn default() -> Self {
        Self { at: 0, state: State::Header, held: Vec::new(), path: None, size: None }
    }
}

impl Walk {
    /// Whether the end of the tar was seen.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Takes the next bytes, whatever their number.
    ///
    /// # Errors
    /// What is no tar, or not as this program writes one.
    pub fn feed(&mut self, mut bytes: &[u8], take: &mut impl FnMut(Event<'_>)) -> Result<(), InvalidTar> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Over => return Ok(()),
                State::Header => {
                    self.hold(&mut bytes, BLOCK);
                    if self.held.len() as u64 == BLOCK {
                        let block = std::mem::take(&mut self.held);
                        self.header(&block, take)?;
                    }
                }
                State::Pax(size) => {
                    let size = *size;
                    self.hold(&mut bytes, size);
                    if self.held.len() as u64 == size {
                        let text = std::mem::take(&mut self.held);
                        self.pax(&text);
                        self.state = State::Skip(super::tar::padding(size));
                        self.settle();
                    }
                }
                State::Content(left, wanted) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (now, later) = bytes.split_at(count);
                    if *wanted {
                        take(Event::Bytes(now));
                    }
                    *left -= count as u64;
                    self.at += count as u64;
                    bytes = later;
                    if let State::Content(0, wanted) = self.state {
                        if wanted {
                            take(Event::End);
                        }
                        self.state = State::Skip(self.at.next_multiple_of(BLOCK) - self.at);
                        self.settle();
                    }
                }
                State::Skip(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= count as u64;
                    self.at += count as u64;
                    bytes = &bytes[count..];
                    self.settle();
                }
            }
        }
        Ok(())
    }

    fn settle(&mut self) {
        if let State::Skip(0) = self.state {
            self.state = State::Header;
        }
    }

    fn hold(&mut self, bytes: &mut &[u8], whole: u64) {
        let count = ((whole - self.held.len() as u64) as usize).min(bytes.len());
        self.held.extend_from_slice(&bytes[..count]);
        self.at += count as u64;
        *bytes = &bytes[count..];
    }

    fn header(&mut self, block: &[u8], take: &mut impl FnMut(Event<'_>)) -> Result<(), InvalidTar> {
        let at = self.at - BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            self.state = State::Over;
            return Ok(());
        }
        let sum: u64 = block.iter().enumerate().map(|(index, byte)| if (148..156).contains(&index) { 32 } else { u64::from(*byte) }).sum();
        if &block[257..262] != b"ustar" || octal(&block[148..156]) != Some(sum) {
            return Err(InvalidTar::Header { at });
        }
        let plain = octal(&block[124..136]).ok_or(InvalidTar::Header { at })?;
        let (path, size) = (self.path.take(), self.size.take());
        match block[156] {
            b'x' => {
                if plain == 0 || plain > PAX_SIZE_MAX {
                    return Err(InvalidTar::Size { at });
                }
                self.state = State::Pax(plain);
            }
            b'0' | 0 => {
                let size = size.unwrap_or(plain);
                self.at.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK)).ok_or(InvalidTar::Size { at })?;
                let name = path.unwrap_or_else(|| text(&block[..100]));
                let digest = name.strip_prefix("blobs/").and_then(|name| name.split_once('/'));
                let digest = digest.and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().ok());
                if let Some(digest) = digest {
                    take(Event::Begin { digest, offset: self.at, size });
                    if size == 0 {
                        take(Event::End);
                    }
                }
                self.state = if size == 0 { State::Header } else { State::Content(size, digest.is_some()) };
            }
            // A folder, a link, whatever: this program writes none, and nothing here follows one.
            _ => {
                self.at.checked_add(plain).and_then(|end| end.checked_next_multiple_of(BLOCK)).ok_or(InvalidTar::Size { at })?;
                self.state = State::Skip(plain.next_multiple_of(BLOCK));
                self.settle();
            }
        }
        Ok(())
    }

    fn pax(&mut self, bytes: &[u8]) {
        for line in bytes.split(|byte| *byte == b'\n') {
            let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')?.1.split_once('=')) else {
                continue;
            };
            match key {
                "path" => self.path = Some(value.to_owned()),
                "size" => self.size = value.parse().ok(),
                _ => {}
            }
        }
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits: Vec<u8> = field.iter().copied().filter(|byte| *byte != b' ' && *byte != 0).collect();
    if digits.is_empty() || digits.iter().any(|digit| !(b'0'..=b'7').contains(digit)) {
        return None;
    }
    Some(digits.iter().fold(0u64, |number, digit| number.wrapping_mul(8).wrapping_add(u64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{object, sample_with_chunks, sign};
    use super::*;
    use crate::digest::Algorithm;

    /// What a walk in steps of `step` bytes finds, each with whether its bytes are its name's.
    fn found(tar: &[u8], step: usize) -> Result<Vec<(Digest, u64, u64, bool)>, InvalidTar> {
        let (mut walk, mut found, mut open, mut bytes) = (Walk::default(), Vec::new(), None, Vec::new());
        for part in tar.chunks(step) {
            walk.feed(part, &mut |event| match event {
                Event::Begin { digest, offset, size } => open = Some((digest, offset, size)),
                Event::Bytes(part) => bytes.extend_from_slice(part),
                Event::End => {
                    let (digest, offset, size) = open.take().expect("it began");
                    found.push((digest, offset, size, Digest::of(digest.algorithm(), &std::mem::take(&mut bytes)) == digest));
                }
            })?;
        }
        assert!(walk.is_over());
        Ok(found)
    }

    #[test]
    fn f34_an_index_is_rebuilt_by_walking_in_any_steps() {
        let sample = sample_with_chunks();
        let sealed = sample.draft.seal(sign);
        let tar = object(&sealed, &sample.blobs);
        let mut expected: Vec<_> = sealed.contents.iter().map(|located| (located.digest, located.offset, located.length, true)).collect();
        expected.sort_by_key(|(_, offset, ..)| *offset);
        assert!(expected.iter().any(|(digest, ..)| digest.algorithm() == Algorithm::Sha512), "a name that needs a pax header");
        for step in [1, 511, 512, 513, 100_000, tar.len()] {
            assert_eq!(found(&tar, step), Ok(expected.clone()), "{step}");
        }
        // One that was changed is found, and its bytes tell.
        let mut changed = tar;
        changed[expected[0].1 as usize] ^= 1;
        assert!(!found(&changed, 4096).expect("walkable")[0].3);
    }

    #[test]
    fn s37_what_headers_say_leads_nowhere() {
        let header = |name: &str, size: u64| super::super::tar::header(name, size, 0);
        // Names that climb, and a size that would overflow.
        for name in ["../../etc/passwd", "/etc/passwd", "blobs/sha256/../x", "blobs/md5/00", "blobs/sha256/AA"] {
            let tar = [header(name, 3), b"abc".to_vec(), vec![0; 509], vec![0; 1024]].concat();
            assert_eq!(found(&tar, 600), Ok(Vec::new()), "{name}");
        }
        let huge = [header("x", u64::MAX), vec![0; 1024]].concat();
        assert!(matches!(found(&huge, 512), Err(InvalidTar::Size { .. })), "{:?}", found(&huge, 512));
        let mut wrong = header("x", 1);
        wrong[0] ^= 1;
        assert!(matches!(found(&wrong, 512), Err(InvalidTar::Header { at: 0 })));
        assert_eq!(octal(b"7777777777777777777777777777"), Some(u64::MAX), "too many digits wrap, and are checked");
    }
}
