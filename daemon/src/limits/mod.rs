//! What a stranger may take of this node: shares of its work, and guesses at passwords.
//!
//! Everything here is a state machine without I/O and without a clock, and its memory is bounded by constants however many
//! strangers come. Strangers are told apart by [`origin`]: an address, or the network that an IPv6 host picks its addresses from.
//!
//! - [`Guesses`]: how often a password may be tried, for each origin and each user.
//! - [`Shares`]: how much one origin, and all together, may have under way at once.

use std::net::{IpAddr, Ipv6Addr};

mod guesses;
mod shares;

pub use guesses::{Attempt, Guesses};
pub use shares::{Refused, Share, Shares};

/// The part of an IPv6 address that names a network.
const IPV6_NETWORK: u128 = !0 << 64;

/// Who is counted as one: an IPv4 address, also when it comes as IPv6; of IPv6 the network, since a host has as many addresses as it likes.
pub fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_origin_and_an_ipv4_address_is_another_one_only_by_its_number() {
        let of = |text: &str| origin(text.parse().expect("an address"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_ne!(of("10.0.0.8"), of("10.0.0.7"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
