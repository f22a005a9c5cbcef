//! Addresses that are no place for a database.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses, outside of link-local networks, at which clouds give machines their credentials: Amazon's over IPv6,
/// Alibaba's, Oracle's.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Why no database is expected at an address; `None` for all others.
///
/// A tenant's settings come from outside. Whoever can change them could have a worker ask the services that a cloud gives
/// its machines, which trust all who reach them.
#[must_use]
pub fn link_local(address: IpAddr) -> Option<&'static str> {
    // An IPv4 address written as one of IPv6 leads to the same place.
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local {
        Some("a link-local address")
    } else if METADATA.contains(&address) {
        Some("an address of a cloud's metadata service")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_machines_services_and_of_others() {
        for (address, is) in [
            ("169.254.0.1", Some("a link-local address")),
            ("::ffff:169.254.0.1", Some("a link-local address")),
            ("fe80::1", Some("a link-local address")),
            ("fd00:ec2::254", Some("an address of a cloud's metadata service")),
            ("100.100.100.200", Some("an address of a cloud's metadata service")),
            ("192.0.0.192", Some("an address of a cloud's metadata service")),
            ("10.0.0.7", None),
            ("127.0.0.1", None),
            ("::1", None),
            ("fd00::7", None),
            ("100.100.100.201", None),
        ] {
            assert_eq!(address.parse().ok().and_then(link_local), is, "{address}");
        }
    }
}
