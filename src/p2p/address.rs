//! Addresses of peers on the underlay: what is dialled, announced and believed.
//!
//! Pure. Decides which multiaddr is usable; never resolves a name and never opens a socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::model::id::PeerId;

/// A multiaddr (`/ip4/192.0.2.7/tcp/4100`), perhaps with `/p2p/PEER` behind it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub(super) Multiaddr);

/// The text is not a multiaddr, or is one of a transport that byway does not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address of a peer: expected for example /ip4/192.0.2.7/tcp/4100 or /ip6/2001:db8::7/udp/4100/quic-v1"
)]
pub struct AddressError(String);

/// How bytes travel to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carrier {
    /// TCP, Noise, Yamux: the cheapest per byte where nothing is in the way.
    Tcp,
    /// QUIC.
    Quic,
    /// Inside this process: tests of many nodes.
    Memory,
}

impl Carrier {
    /// `tcp`, `quic` or `memory`.
    pub fn as_str(self) -> &'static str {
        match self {
            Carrier::Tcp => "tcp",
            Carrier::Quic => "quic",
            Carrier::Memory => "memory",
        }
    }
}

impl Address {
    /// The peer named at the end, if one is.
    pub fn peer(&self) -> Option<PeerId> {
        self.0.iter().find_map(|part| match part {
            Protocol::P2p(id) => super::peer_from_lib(&id),
            _ => None,
        })
    }

    /// The IP address in front, if it is not a name. An IPv4-mapped IPv6 address is read as IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        ip_of(&self.0)
    }

    /// Its TCP or UDP port.
    pub fn port(&self) -> Option<u16> {
        self.0.iter().find_map(|part| match part {
            Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
            _ => None,
        })
    }

    /// The UDP socket address, if it is one of QUIC's and no name.
    pub fn udp(&self) -> Option<SocketAddr> {
        udp_of(&self.0)
    }

    /// Whether it begins with an IP address inside one of `prefixes`.
    pub fn is_within(&self, prefixes: &[IpNet]) -> bool {
        is_within(&self.0, prefixes)
    }

    /// The transport it names.
    pub fn carrier(&self) -> Option<Carrier> {
        carrier_of(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // A multiaddr of ours has at most about 350 characters (the longest DNS name); what is echoed is cut.
        let refused = || AddressError(text.chars().take(120).collect());
        let address: Multiaddr =
            Some(text).filter(|t| t.len() <= 512).and_then(|t| t.parse().ok()).ok_or_else(refused)?;
        if carrier_of(&address).is_some() { Ok(Address(address)) } else { Err(refused()) }
    }
}

/// The transport of an address byway can dial, `None` for every other shape (relays, websockets, unix sockets…).
pub(super) fn carrier_of(address: &Multiaddr) -> Option<Carrier> {
    let mut parts = address.iter().filter(|part| !matches!(part, Protocol::P2p(_)));
    let carrier = match parts.next()? {
        Protocol::Memory(_) => Carrier::Memory,
        Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => {
            match parts.next()? {
                Protocol::Tcp(_) => Carrier::Tcp,
                Protocol::Udp(_) if parts.next() == Some(Protocol::QuicV1) => Carrier::Quic,
                _ => return None,
            }
        }
        _ => return None,
    };
    parts.next().is_none().then_some(carrier)
}

/// The socket address of `/ip4|ip6/A/udp/P/quic-v1`, perhaps with `/p2p/PEER` behind it.
pub(super) fn udp_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else { return None };
    parts.all(|part| matches!(part, Protocol::P2p(_))).then_some(SocketAddr::new(ip, port))
}

/// The IP address an address begins with.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
        _ => None,
    }
}

/// Whether the address begins with an IP address inside one of `prefixes`.
pub(super) fn is_within(address: &Multiaddr, prefixes: &[IpNet]) -> bool {
    ip_of(address).is_some_and(|ip| prefixes.iter().any(|net| net.contains(&ip)))
}

/// Port of the address, if it has one.
fn port_of(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

/// The address without `/p2p/…`, as the address book keeps it.
pub(super) fn bare(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// Whether an address that somebody else told us may be dialled.
///
/// Only literal addresses: a name would let a stranger make us ask DNS. No link-local IPv6, which means nothing without
/// an interface. Loopback only where `loopback` says so, for peers that are reached over loopback themselves.
pub(super) fn is_believable(address: &Multiaddr, overlay: &[IpNet], loopback: bool) -> bool {
    let literal = match (carrier_of(address), ip_of(address)) {
        (Some(Carrier::Memory), _) => return true,
        (Some(_), Some(ip)) => ip,
        _ => return false,
    };
    let usable = match literal {
        IpAddr::V4(ip) => {
            ip.octets().first() != Some(&0)
                && !ip.is_multicast()
                && !ip.is_broadcast()
                && (loopback || !ip.is_loopback())
        }
        IpAddr::V6(ip) => {
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local() && (loopback || !ip.is_loopback())
        }
    };
    usable && port_of(address).is_some_and(|port| port != 0) && !is_within(address, overlay)
}

/// Whether the address is one of this host only.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// Whether other hosts can use the address without knowing an interface of theirs.
pub(super) fn is_link_local_v6(address: &Multiaddr) -> bool {
    matches!(ip_of(address), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn believable(text: &str) -> bool {
        let overlay = ["10.7.0.0/16".parse().unwrap(), "fd00:7::/48".parse().unwrap()];
        is_believable(&text.parse().unwrap(), &overlay, false)
    }

    #[test]
    fn overlay_addresses_are_never_dialled() {
        for bad in ["/ip4/10.7.1.1/tcp/4100", "/ip6/fd00:7::1/udp/4100/quic-v1", "/ip6/::ffff:10.7.1.1/tcp/4100"] {
            assert!(!believable(bad), "{bad}");
        }
        for good in ["/ip4/10.8.1.1/tcp/4100", "/ip6/fd00:8::1/udp/4100/quic-v1"] {
            assert!(believable(good), "{good}");
        }
    }

    #[test]
    fn hearsay_names_no_dns_loopback_or_scoped_address() {
        for bad in [
            "/dns4/example.org/tcp/4100",
            "/ip4/127.0.0.1/tcp/4100",
            "/ip6/::1/tcp/4100",
            "/ip6/fe80::1/tcp/4100",
            "/ip4/0.0.0.0/tcp/4100",
            "/ip4/224.0.0.251/udp/4100/quic-v1",
            "/ip4/192.0.2.1/tcp/0",
            "/ip4/192.0.2.1/udp/4100",
            "/unix/tmp",
        ] {
            assert!(!believable(bad), "{bad}");
        }
    }

    #[test]
    fn other_transports_are_refused_as_text() {
        for bad in ["", "192.0.2.1:4100", "/ip4/192.0.2.1", "/ip4/192.0.2.1/tcp/4100/ws", "/unix/tmp"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        let with_peer = format!("/ip4/192.0.2.1/tcp/4100/p2p/{}", peer());
        assert_eq!(with_peer.parse::<Address>().unwrap().peer(), Some(peer()));
        assert_eq!(with_peer.parse::<Address>().unwrap().carrier(), Some(Carrier::Tcp));
    }

    fn peer() -> PeerId {
        let key = libp2p::identity::Keypair::ed25519_from_bytes([3; 32]).unwrap();
        super::super::peer_from_lib(&key.public().to_peer_id()).unwrap()
    }

    proptest! {
        #[test]
        fn address_parser_never_panics(text in ".{0,100}") {
            let _ = text.parse::<Address>();
        }

        #[test]
        fn address_reader_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(address) = Multiaddr::try_from(bytes) {
                let _ = is_believable(&address, &[], true);
                let _ = Address(address).peer();
            }
        }
    }
}
