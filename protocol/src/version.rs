//! Every protocol version with one line of history; how two nodes agree on one.
//!
//! | version | since | what changed |
//! | --- | --- | --- |
//! | 1 | 0.1 | the first: hello, join, sync, who-has, chunk list, read |
//! | 2 | 0.2 | swarms (parts of blobs, followed as they come), reconciliation of what vectors can't tell, roles, liveness |
//!
//! A node says which versions it speaks in its hello; the highest that both speak is used. A node speaks its newest
//! version and the one before, so that a fleet upgrades one host at a time, and back.

/// What QUIC negotiates; changes only when even the hello could not be understood.
pub const ALPN: &[u8] = b"larder/1";

/// The newest version that this program speaks.
pub const NEWEST: u16 = 2;
/// The oldest version that this program speaks.
pub const OLDEST: u16 = 1;

/// The version to speak with a node that speaks `oldest` to `newest`; `None` when there is none in common.
pub fn agree(oldest: u16, newest: u16) -> Option<u16> {
    let version = newest.min(NEWEST);
    (version >= oldest.max(OLDEST)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(agree(OLDEST, NEWEST), Some(NEWEST));
        assert_eq!(agree(OLDEST, NEWEST + 5), Some(NEWEST));
        assert_eq!(agree(NEWEST + 1, NEWEST + 5), None);
        assert_eq!(agree(0, OLDEST - 1), None);
    }
}
