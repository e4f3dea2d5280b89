//! The datagrams by which nodes tell each other who is alive.
//!
//! SWIM (Das, Gupta and Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership Protocol", 2002) with
//! suspicion: a node asks one member after the other whether it is there, has others ask when no answer comes, and what is learned
//! travels along with the questions. All fields have a fixed size and stand in network order, so nothing that is read
//! sizes an allocation. No address is in here: what is said about a node can't make anyone call somewhere.
//!
//! ```text
//! 0      1          41            43       83     84       85
//! +------+----------+-------------+--------+------+--------+-------------------+----------------------+
//! | kind | from     | incarnation | to     | word | number | about, if the     | count (2), and news  |
//! | 1    | 40 bytes | of `from`   | 40     |      |        | word has it: 40   | of 43 bytes each     |
//! +------+----------+-------------+--------+------+--------+-------------------+----------------------+
//!
//! a life:  node id (32), number of the life (8)
//! news:    a life (40), incarnation (2), condition (1): 0 alive, 1 suspect, 2 down
//! ```
//!
//! `Announce` and `TurnUndead` end behind the header; with all other words the count may be missing and then means none. Datagrams of
//! another kind are a later program's, and are skipped.

use crate::stamp::NodeId;

/// What the first byte of these datagrams is.
pub const KIND: u8 = 1;
/// Longest datagram: fits the smallest packet that QUIC must be able to send, less what QUIC itself needs.
pub const DATAGRAM_MAX: usize = 1100;

const LIFE_SIZE: usize = 40;
const NEWS_SIZE: usize = LIFE_SIZE + 3;

/// A node from one start to its end: who is declared dead and isn't, begins another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Greater in each later life.
    pub number: u64,
}

/// How a life is, as someone saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answered.
    Alive,
    /// It did not answer, and has some time left to object.
    Suspect,
    /// It is over.
    Down,
}

/// What is said about a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Who.
    pub life: Life,
    /// How often that life has objected to being suspected.
    pub incarnation: u16,
    /// How it is.
    pub state: State,
}

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Are you there?
    Ping,
    /// I am: the answer to a `Ping`.
    Ack,
    /// Ask this one for me.
    PingRequest(Life),
    /// Are you there? I ask for this one.
    IndirectPing(Life),
    /// I am; pass it on to this one.
    IndirectAck(Life),
    /// This one is there.
    ForwardedAck(Life),
    /// Who is there?
    Announce,
    /// These are: the answer to an `Announce`.
    Feed,
    /// Only news.
    Gossip,
    /// You are taken for dead.
    TurnUndead,
}

/// The first part of a datagram, behind its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sends it.
    pub from: Life,
    /// How often the sender has objected to being suspected.
    pub incarnation: u16,
    /// Whom it is for.
    pub to: Life,
    /// What it is for.
    pub word: Word,
    /// Which question, or the answer to which.
    pub number: u8,
}

/// A whole datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who to whom, and what for.
    pub header: Header,
    /// What else the sender knows.
    pub news: Vec<News>,
}

/// Bytes that are no such datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a damaged datagram")]
pub struct InvalidDatagram;

impl Datagram {
    /// Reads a datagram, its kind included.
    ///
    /// # Errors
    /// Anything that [`Datagram::to_bytes`] did not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidDatagram> {
        if bytes.len() > DATAGRAM_MAX || bytes.first() != Some(&KIND) {
            return Err(InvalidDatagram);
        }
        let mut rest = &bytes[1..];
        let header = Header::read(&mut rest)?;
        let mut news = Vec::new();
        if !rest.is_empty() {
            let count = u16::from_be_bytes(take(&mut rest)?);
            if rest.len() != usize::from(count) * NEWS_SIZE || matches!(header.word, Word::Announce | Word::TurnUndead) {
                return Err(InvalidDatagram);
            }
            while !rest.is_empty() {
                news.push(News::read(&mut rest)?);
            }
        }
        Ok(Self { header, news })
    }

    /// The datagram as it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![KIND];
        self.header.write(&mut bytes);
        if !matches!(self.header.word, Word::Announce | Word::TurnUndead) {
            let count = u16::try_from(self.news.len()).expect("a datagram has room for far less");
            bytes.extend_from_slice(&count.to_be_bytes());
            self.news.iter().for_each(|news| news.write(&mut bytes));
        }
        bytes
    }
}

impl Header {
    /// Appends the header.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        self.from.write(bytes);
        bytes.extend_from_slice(&self.incarnation.to_be_bytes());
        self.to.write(bytes);
        let (word, about) = match &self.word {
            Word::Ping => (0, None),
            Word::Ack => (1, None),
            Word::PingRequest(life) => (2, Some(life)),
            Word::IndirectPing(life) => (3, Some(life)),
            Word::IndirectAck(life) => (4, Some(life)),
            Word::ForwardedAck(life) => (5, Some(life)),
            Word::Announce => (6, None),
            Word::Feed => (7, None),
            Word::Gossip => (8, None),
            Word::TurnUndead => (9, None),
        };
        bytes.extend_from_slice(&[word, self.number]);
        if let Some(life) = about {
            life.write(bytes);
        }
    }

    /// Reads a header off the front of some bytes.
    ///
    /// # Errors
    /// They begin with none.
    pub fn read(bytes: &mut &[u8]) -> Result<Self, InvalidDatagram> {
        let from = Life::read(bytes)?;
        let incarnation = u16::from_be_bytes(take(bytes)?);
        let to = Life::read(bytes)?;
        let [word, number] = take(bytes)?;
        let word = match word {
            0 => Word::Ping,
            1 => Word::Ack,
            2 => Word::PingRequest(Life::read(bytes)?),
            3 => Word::IndirectPing(Life::read(bytes)?),
            4 => Word::IndirectAck(Life::read(bytes)?),
            5 => Word::ForwardedAck(Life::read(bytes)?),
            6 => Word::Announce,
            7 => Word::Feed,
            8 => Word::Gossip,
            9 => Word::TurnUndead,
            _ => return Err(InvalidDatagram),
        };
        Ok(Self { from, incarnation, to, word, number })
    }
}

impl News {
    /// Appends the news.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        self.life.write(bytes);
        bytes.extend_from_slice(&self.incarnation.to_be_bytes());
        bytes.push(match self.state {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
    }

    /// Reads news off the front of some bytes.
    ///
    /// # Errors
    /// They begin with none.
    pub fn read(bytes: &mut &[u8]) -> Result<Self, InvalidDatagram> {
        let life = Life::read(bytes)?;
        let incarnation = u16::from_be_bytes(take(bytes)?);
        let state = match take(bytes)? {
            [0] => State::Alive,
            [1] => State::Suspect,
            [2] => State::Down,
            _ => return Err(InvalidDatagram),
        };
        Ok(Self { life, incarnation, state })
    }
}

impl Life {
    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.node.0);
        bytes.extend_from_slice(&self.number.to_be_bytes());
    }

    fn read(bytes: &mut &[u8]) -> Result<Self, InvalidDatagram> {
        Ok(Self { node: NodeId(take(bytes)?), number: u64::from_be_bytes(take(bytes)?) })
    }
}

fn take<const SIZE: usize>(bytes: &mut &[u8]) -> Result<[u8; SIZE], InvalidDatagram> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(InvalidDatagram)?;
    *bytes = rest;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn life(number: u8) -> Life {
        Life { node: NodeId([number; 32]), number: 1_700_000_000_000 + u64::from(number) }
    }

    fn datagrams() -> Vec<(&'static str, Datagram)> {
        let words = [
            ("ping", Word::Ping),
            ("ack", Word::Ack),
            ("ping-request", Word::PingRequest(life(3))),
            ("indirect-ping", Word::IndirectPing(life(3))),
            ("indirect-ack", Word::IndirectAck(life(3))),
            ("forwarded-ack", Word::ForwardedAck(life(3))),
            ("announce", Word::Announce),
            ("feed", Word::Feed),
            ("gossip", Word::Gossip),
            ("turn-undead", Word::TurnUndead),
        ];
        let news: Vec<_> = [State::Alive, State::Suspect, State::Down]
            .into_iter()
            .map(|state| News { life: life(4 + state as u8), incarnation: 0x102, state })
            .collect();
        let of = |(name, word)| {
            let header = Header { from: life(1), incarnation: 7, to: life(2), word, number: 9 };
            let news = if matches!(word, Word::Announce | Word::TurnUndead) { Vec::new() } else { news.clone() };
            (name, Datagram { header, news })
        };
        words.into_iter().map(of).collect()
    }

    #[test]
    fn datagrams_read_back_what_they_wrote() {
        for (name, datagram) in datagrams() {
            assert_eq!(Datagram::parse(&datagram.to_bytes()).as_ref(), Ok(&datagram), "{name}");
        }
        let ping = Datagram { news: Vec::new(), ..datagrams()[0].1.clone() };
        let without_count = &ping.to_bytes()[..85];
        assert_eq!(Datagram::parse(without_count), Ok(ping));
    }

    #[test]
    fn golden_bytes_of_version_2_stand() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/v2");
        for (name, datagram) in datagrams() {
            let file = folder.join(format!("swim-{name}.datagram"));
            let expected = std::fs::read(&file).unwrap_or_else(|_| {
                std::fs::create_dir_all(&folder).expect("make the folder");
                std::fs::write(&file, datagram.to_bytes()).expect("write the golden file");
                panic!("{} was missing and is written: look at it and commit it", file.display())
            });
            assert!(datagram.to_bytes() == expected, "{name} is encoded differently from {}", file.display());
        }
    }

    #[test]
    fn s34_truncated_and_longer_datagrams_are_errors() {
        for (name, datagram) in datagrams() {
            let bytes = datagram.to_bytes();
            // Behind the header it may end: there is no news then.
            let header_size = 85
                + if matches!(
                    datagram.header.word,
                    Word::PingRequest(_) | Word::IndirectPing(_) | Word::IndirectAck(_) | Word::ForwardedAck(_)
                ) {
                    40
                } else {
                    0
                };
            for length in (0..bytes.len()).filter(|length| *length != header_size) {
                assert!(Datagram::parse(&bytes[..length]).is_err(), "{name} cut at {length}");
            }
            assert!(Datagram::parse(&[&bytes[..], &[0]].concat()).is_err(), "{name} with a byte too many");
        }
        let many = Datagram { news: vec![News { life: life(1), incarnation: 0, state: State::Alive }; 40], ..datagrams()[0].1.clone() };
        assert!(Datagram::parse(&many.to_bytes()).is_err(), "longer than a datagram may be");
    }

    proptest! {
        #[test]
        fn s34_random_datagrams_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..1200), which in 0usize..10, bit in any::<prop::sample::Index>()) {
            let _ = Datagram::parse(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = KIND;
            }
            let _ = Datagram::parse(&bytes);
            let mut flipped = datagrams()[which].1.to_bytes();
            let at = bit.index(flipped.len() * 8);
            flipped[at / 8] ^= 1 << (at % 8);
            if let Ok(read) = Datagram::parse(&flipped) {
                // Not always byte for byte: a count that is missing is written as none.
                prop_assert_eq!(Datagram::parse(&read.to_bytes()), Ok(read));
            }
        }
    }
}
