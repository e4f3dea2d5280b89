//! Cutting a byte stream into messages: kind, length, limit.
//!
//! ```text
//! 0        2            6
//! +--------+------------+------------------+
//! | kind   | length     | body             |     kind u16, length u32, little-endian
//! +--------+------------+------------------+
//! ```
//!
//! The length is checked against the kind's limit before a byte of the body is waited for; the reader lets its buffer
//! grow as bytes arrive, so that a claimed length alone costs nothing.

/// Bytes in front of a body.
pub const HEADER_SIZE: usize = 6;

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a stream.
    Request,
    /// Answers it.
    Answer,
    /// Records, on a sync stream.
    Update,
    /// How far the reader of records has come.
    Seen,
    /// Finding out which records differ.
    Reconciling,
}

impl Kind {
    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Kind::Request => 1,
            Kind::Answer => 2,
            Kind::Update => 3,
            Kind::Seen => 4,
            Kind::Reconciling => 20,
        }
    }

    fn length_max(self) -> usize {
        match self {
            Kind::Request | Kind::Seen => 1 << 20,
            // The chunk list of the largest blob that may be configured to be usual: 32 bytes a MiB.
            Kind::Answer => 8 << 20,
            // One manifest of the largest configurable size, and what goes with it.
            Kind::Update | Kind::Reconciling => 20 << 20,
        }
    }

    fn of(number: u16) -> Option<Self> {
        [Kind::Request, Kind::Answer, Kind::Update, Kind::Seen, Kind::Reconciling].into_iter().find(|kind| kind.number() == number)
    }
}

/// One message, still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number of its kind.
    pub kind: u16,
    /// What the codec made of it.
    pub body: Vec<u8>,
}

/// A header that promises a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the kind.
    pub kind: u16,
    /// Bytes of the body.
    pub length: usize,
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrame {
    /// A kind of a later program: the stream can't be read on.
    #[error("a frame of unknown kind {kind}")]
    Kind {
        /// Its number.
        kind: u16,
    },
    /// Longer than its kind may be.
    #[error("a frame of kind {kind} claims {length} bytes, {max} are allowed")]
    Length {
        /// Number of the kind.
        kind: u16,
        /// What it claims.
        length: usize,
        /// What it may have.
        max: usize,
    },
}

impl Frame {
    /// Header and body, to be written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len()).expect("bodies are far below 4 GiB");
        [&self.kind.to_le_bytes()[..], &length.to_le_bytes(), &self.body].concat()
    }
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// An unknown kind, or a length beyond the kind's limit.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, InvalidFrame> {
        let [k0, k1, l0, l1, l2, l3] = *bytes;
        let kind = u16::from_le_bytes([k0, k1]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let max = Kind::of(kind).ok_or(InvalidFrame::Kind { kind })?.length_max();
        if length > max { Err(InvalidFrame::Length { kind, length, max }) } else { Ok(Self { kind, length }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn s34_a_length_beyond_the_limit_is_refused_before_its_body() {
        for kind in [Kind::Request, Kind::Answer, Kind::Update, Kind::Seen, Kind::Reconciling] {
            let claim = |length: usize| {
                let mut bytes = [0; HEADER_SIZE];
                bytes[..2].copy_from_slice(&kind.number().to_le_bytes());
                bytes[2..].copy_from_slice(&u32::try_from(length).expect("small").to_le_bytes());
                Header::parse(&bytes)
            };
            assert!(claim(kind.length_max()).is_ok());
            assert!(matches!(claim(kind.length_max() + 1), Err(InvalidFrame::Length { .. })));
            assert!(claim(u32::MAX as usize).is_err());
        }
        assert_eq!(Header::parse(&[9, 0, 0, 0, 0, 0]), Err(InvalidFrame::Kind { kind: 9 }));
    }

    proptest! {
        #[test]
        fn frames_read_back_what_they_wrote(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Frame { kind: 1, body: body.clone() }.to_bytes();
            let header = Header::parse(bytes[..HEADER_SIZE].try_into().expect("a header")).expect("own header");
            prop_assert_eq!((header.kind, &bytes[HEADER_SIZE..]), (1, &body[..]));
            prop_assert_eq!(header.length, body.len());
        }
    }
}
