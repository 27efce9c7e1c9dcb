//! Addresses of peers on the underlay: what is dialled, announced and believed.
//!
//! Decides which multiaddr is usable, and tells a person's word ([`Typed`]) from hearsay ([`Heard`]); never resolves a name
//! and never opens a socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::own::Own;
use super::web::{Host, Target, Web};
use crate::model::id::PeerId;
use crate::model::{address, heard};

/// A multiaddr (`/ip4/192.0.2.7/tcp/4100`), perhaps with `/p2p/PEER` behind it; or one that leads through a relay:
/// `/ip4/192.0.2.7/udp/4100/quic-v1/p2p/RELAY/p2p-circuit`, perhaps with `/p2p/PEER` behind it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub(super) Multiaddr);

/// An address that a person gave: on the command line, or in the configuration. It is dialled as it stands, names included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed(pub(super) Address);

impl Typed {
    /// Takes an address on the word of a person.
    pub fn new(address: Address) -> Typed {
        Typed(address)
    }

    /// The address as the person gave it.
    pub fn address(&self) -> &Address {
        &self.0
    }
}

impl FromStr for Typed {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        text.parse().map(Typed)
    }
}

/// An address that came from anybody else: a member's announcement, identify, mDNS, an invite. It is never a name, and
/// is dialled only where [`heard`] allows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    address: Address,
    /// Whether it was said on a local network of this machine, where link-local addresses mean
    /// something.
    on_link: bool,
}

impl Heard {
    /// Reads a text that somebody sent; none where it is no address of a peer, or a name, which is
    /// never looked up on hearsay.
    pub fn parse(text: &str) -> Option<Heard> {
        Heard::of(text.parse::<Address>().ok()?.0, false)
    }

    pub(super) fn of(address: Multiaddr, on_link: bool) -> Option<Heard> {
        let literal = match carrier_of(&first_hop(&address))? {
            Carrier::Memory => true,
            Carrier::Tcp | Carrier::Quic => ip_of(&address).is_some(),
            Carrier::Web => is_plain_web(&first_hop(&address)),
            Carrier::Relay => false,
        };
        literal.then_some(Heard {
            address: Address(canonical(address)),
            on_link,
        })
    }

    /// The address that was heard, whether or not it may be dialled.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it may be dialled: not the overlay, and see [`heard::may_dial`]. Link-local ones only where they were heard,
    /// and where one link alone can be meant; those of IPv6 by QUIC only, whose socket is told the link. Of one through a
    /// relay the relay's address counts: that is what is dialled.
    pub(super) fn may_dial(&self, overlay: &[IpNet], own: &Own) -> bool {
        let address = &first_hop(&self.address.0);
        let Some(ip) = ip_of(address) else {
            return carrier_of(address) == Some(Carrier::Memory);
        };
        let named = ip.is_ipv4() || carrier_of(address) == Some(Carrier::Quic);
        let on_this_link = !heard::is_link_local(ip)
            || (self.on_link && named && own.one_local_link(ip).is_some());
        let port = port_of(address).unwrap_or(0);
        on_this_link
            && !address::is_within(ip, overlay)
            && heard::may_dial(ip, port, &|ip| own.is_own(ip))
    }
}

/// Keeps those of the socket addresses somebody told that datagrams may be sent to: the rule for addresses that are dialled.
pub fn keep_sendable(addresses: &mut Vec<SocketAddr>) {
    let mut own = Own::default();
    own.refresh(tokio::time::Instant::now());
    addresses.retain(|address| {
        let ip = address.ip().to_canonical();
        !heard::is_link_local(ip) && heard::may_dial(ip, address.port(), &|ip| own.is_own(ip))
    });
}

/// Whether an address at which a member sees us may be told on. It may be one of this machine's own.
pub(super) fn may_tell(address: &Multiaddr, overlay: &[IpNet]) -> bool {
    let direct = |carrier| matches!(carrier, Carrier::Tcp | Carrier::Quic);
    let Some(ip) = ip_of(address).filter(|_| carrier_of(address).is_some_and(direct)) else {
        return false;
    };
    let port = port_of(address).unwrap_or(0);
    !heard::is_link_local(ip)
        && !address::is_within(ip, overlay)
        && heard::may_dial(ip, port, &|_| false)
}

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
    /// QUIC over UDP, with TLS 1.3.
    Quic,
    /// A WebSocket over TCP, perhaps inside TLS, with Noise and Yamux inside: where little else is let out.
    Web,
    /// Channels inside this process, for tests of many nodes.
    Memory,
    /// A circuit through a relay, with Noise and Yamux between its ends: where nothing better is to be had.
    Relay,
}

impl Carrier {
    /// Whether it is a TCP connection to the peer itself, or to what stands before it.
    pub(super) fn is_over_tcp(self) -> bool {
        matches!(self, Carrier::Tcp | Carrier::Web)
    }

    /// `tcp`, `quic`, `ws`, `memory` or `relay`.
    pub fn as_str(self) -> &'static str {
        match self {
            Carrier::Tcp => "tcp",
            Carrier::Quic => "quic",
            Carrier::Web => "ws",
            Carrier::Memory => "memory",
            Carrier::Relay => "relay",
        }
    }
}

impl Address {
    /// The peer named at the end, if one is.
    pub fn peer(&self) -> Option<PeerId> {
        let last = match Circuit::of(&self.0) {
            Some(circuit) => circuit.peer,
            None => self.0.iter().find_map(|part| match part {
                Protocol::P2p(id) => Some(id),
                _ => None,
            }),
        };
        super::peer_from_lib(&last?)
    }

    /// The relay that it leads through, if it does.
    pub fn relay(&self) -> Option<PeerId> {
        relay_of(&self.0)
    }

    /// Whether it leads no further than this machine or its site: by an address of a site's own numbering (RFC 1918, 100.64/10,
    /// unique local), of one link, or of this host. A name may lead anywhere.
    pub fn is_of_site(&self) -> bool {
        let is_of_link = is_loopback(&self.0) || is_link_local_v6(&self.0);
        is_of_link || self.ip().is_some_and(|ip| is_private(ip.to_canonical()))
    }

    /// Where the relay is that it leads through, without the relay's name; none where it leads through none.
    pub fn hop(&self) -> Option<Address> {
        Circuit::of(&self.0).map(|circuit| Address(circuit.hop))
    }

    /// The IP address of the peer, if it is not a name; none of one that is reached through a relay. An IPv4-mapped IPv6
    /// address is read as IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        ip_of(&self.0).filter(|_| !is_circuit(&self.0))
    }

    /// The TCP or UDP port; none where it has neither.
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
        let address: Multiaddr = Some(text)
            .filter(|t| t.len() <= 512)
            .and_then(|t| t.parse().ok())
            .map(canonical)
            .ok_or_else(refused)?;
        if carrier_of(&address).is_some() {
            Ok(Address(address))
        } else {
            Err(refused())
        }
    }
}

/// An address that leads through a relay, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Circuit {
    /// Where the relay is, without its name.
    pub(super) hop: Multiaddr,
    pub(super) relay: libp2p::PeerId,
    /// The peer at the other end, if it is named.
    pub(super) peer: Option<libp2p::PeerId>,
}

impl Circuit {
    /// None for every other address, and for one through several relays.
    pub(super) fn of(address: &Multiaddr) -> Option<Circuit> {
        let mut parts = address.iter();
        let mut hop = Multiaddr::empty();
        let relay = loop {
            match parts.next()? {
                Protocol::P2p(relay) => break relay,
                Protocol::P2pCircuit => return None,
                part => hop.push(part),
            }
        };
        if parts.next()? != Protocol::P2pCircuit {
            return None;
        }
        let peer = match parts.next() {
            None => None,
            Some(Protocol::P2p(peer)) => Some(peer),
            Some(_) => return None,
        };
        (parts.next().is_none() && peer != Some(relay)).then_some(Circuit { hop, relay, peer })
    }

    /// The address of whoever reserved a place at the relay.
    pub(super) fn through(hop: &Multiaddr, relay: libp2p::PeerId) -> Multiaddr {
        bare(hop)
            .with(Protocol::P2p(relay))
            .with(Protocol::P2pCircuit)
    }
}

/// Whether the address leads through a relay, well-formed or not.
pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The relay that an address leads through.
pub(super) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    super::peer_from_lib(&Circuit::of(address)?.relay)
}

/// What is dialled for an address: the relay's where it leads through one, else itself.
pub(super) fn first_hop(address: &Multiaddr) -> Multiaddr {
    Circuit::of(address).map_or_else(|| address.clone(), |circuit| circuit.hop)
}

/// The transport of an address byway can dial, `None` for every other shape (several relays, unix sockets…).
pub(super) fn carrier_of(address: &Multiaddr) -> Option<Carrier> {
    if is_circuit(address) {
        let hop = carrier_of(&Circuit::of(address)?.hop);
        return hop.map(|_| Carrier::Relay);
    }
    let mut parts = address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)));
    let carrier = match parts.next()? {
        Protocol::Memory(_) => Carrier::Memory,
        Protocol::Ip4(_)
        | Protocol::Ip6(_)
        | Protocol::Dns(_)
        | Protocol::Dns4(_)
        | Protocol::Dns6(_) => match parts.next()? {
            Protocol::Tcp(_) => return stream_of(address),
            Protocol::Udp(_) if parts.next() == Some(Protocol::QuicV1) => Carrier::Quic,
            _ => return None,
        },
        _ => return None,
    };
    parts.next().is_none().then_some(carrier)
}

/// The carrier of an address over TCP, perhaps with a peer behind it.
fn stream_of(address: &Multiaddr) -> Option<Carrier> {
    let target = Target::of(&bare(address))?;
    match (target.web, target.name) {
        (None, _) => Some(Carrier::Tcp),
        (Some(_), None) => Some(Carrier::Web),
        // A name behind the port is how this node itself writes what it has looked up.
        (Some(_), Some(_)) => None,
    }
}

/// Whether it is a WebSocket at an IP address and the shortest path: nobody who was only heard of chooses what this node asks
/// a server for.
fn is_plain_web(address: &Multiaddr) -> bool {
    let plain = |web: Web| web.path == "/";
    Target::of(&bare(address))
        .is_some_and(|at| matches!(at.host, Host::Ip(_)) && at.web.is_some_and(plain))
}

/// The address in the one form that it is kept in: a WebSocket inside TLS is `/wss`, however it was written.
fn canonical(address: Multiaddr) -> Multiaddr {
    if !address.iter().any(|part| part == Protocol::Tls) {
        return address;
    }
    let mut parts = address.iter().peekable();
    let mut whole = Multiaddr::empty();
    while let Some(part) = parts.next() {
        match (&part, parts.peek()) {
            (Protocol::Tls, Some(Protocol::Ws(path))) => {
                whole.push(Protocol::Wss(path.clone()));
                parts.next();
            }
            _ => whole.push(part),
        }
    }
    whole
}

/// The socket address of `/ip4|ip6/A/udp/P/quic-v1`, perhaps with `/p2p/PEER` behind it.
pub(super) fn udp_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else {
        return None;
    };
    parts
        .all(|part| matches!(part, Protocol::P2p(_)))
        .then_some(SocketAddr::new(ip, port))
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

/// The address without `/p2p/…` of its peer, as the address book keeps it. A relay on the way keeps its name.
pub(super) fn bare(address: &Multiaddr) -> Multiaddr {
    if let Some(Circuit { hop, relay, .. }) = Circuit::of(address) {
        return hop.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
    }
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}

/// Whether an address is of a site's own numbering.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_link_local()
                || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
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

    fn dialled(text: &str, on_link: bool) -> bool {
        let overlay = [
            "10.7.0.0/16".parse().unwrap(),
            "fd00:7::/48".parse().unwrap(),
        ];
        let own = Own::of(&[
            ("eth0", "10.99.0.1/24"),
            ("eth0", "fd99::1/64"),
            ("eth1", "169.254.3.4/16"),
            ("eth1", "fe80::3/64"),
        ]);
        Heard::of(text.parse().unwrap(), on_link)
            .is_some_and(|heard| heard.may_dial(&overlay, &own))
    }

    #[test]
    fn overlay_addresses_are_never_dialled() {
        for bad in [
            "/ip4/10.7.1.1/tcp/4100",
            "/ip6/fd00:7::1/udp/4100/quic-v1",
            "/ip6/::ffff:10.7.1.1/tcp/4100",
            "/ip6/64:ff9b::10.7.1.1/tcp/4100",
            "/ip6/2002:a07:101::1/tcp/4100",
        ] {
            assert!(!dialled(bad, false), "{bad}");
        }
        for good in [
            "/ip4/10.8.1.1/tcp/4100",
            "/ip6/fd00:8::1/udp/4100/quic-v1",
            "/ip4/10.8.1.1/tcp/443",
        ] {
            assert!(dialled(good, false), "{good}");
        }
    }

    #[test]
    fn hearsay_names_no_host_name_and_nothing_of_this_machine() {
        for bad in [
            "/dns4/example.org/tcp/4100",
            "/dns/example.org/udp/4100/quic-v1",
            "/ip4/127.0.0.1/tcp/6379",
            "/ip6/::1/tcp/6379",
            "/ip4/10.99.0.1/tcp/6379",
            "/ip6/fd99::1/tcp/6379",
            "/ip4/0.0.0.0/tcp/4100",
            "/ip4/224.0.0.251/udp/4100/quic-v1",
            "/ip4/192.0.2.1/tcp/0",
            "/ip4/192.0.2.1/tcp/25",
            "/ip4/169.254.169.254/tcp/4100",
            "/ip6/fd00:ec2::254/tcp/4100",
            "/ip4/192.0.2.1/udp/4100",
            "/unix/tmp",
        ] {
            assert!(!dialled(bad, false) && !dialled(bad, true), "{bad}");
        }
        assert_eq!(Heard::parse("/dns4/example.org/tcp/4100"), None);
        assert!(
            Typed::from_str("/dns4/example.org/tcp/4100").is_ok(),
            "a person may mean a name"
        );
    }

    #[test]
    fn link_local_addresses_are_dialled_only_on_the_link_they_were_heard_on() {
        assert!(dialled("/ip4/169.254.9.9/tcp/4100", true));
        assert!(dialled("/ip6/fe80::1/udp/4100/quic-v1", true));
        for (bad, on_link) in [
            ("/ip4/169.254.9.9/tcp/4100", false),
            ("/ip4/169.254.3.4/tcp/4100", true),
            ("/ip4/169.254.169.254/tcp/4100", true),
            ("/ip6/fe80::1/tcp/4100", true),
            ("/ip6/fe80::1/udp/4100/quic-v1", false),
            ("/ip6/fe80::3/udp/4100/quic-v1", true),
            ("/ip6/::ffff:169.254.9.9/tcp/4100", false),
        ] {
            assert!(!dialled(bad, on_link), "{bad}");
        }
    }

    #[test]
    fn what_a_member_sees_us_at_may_be_ours_but_no_other_special_address() {
        let told = |text: &str| may_tell(&text.parse().unwrap(), &["10.7.0.0/16".parse().unwrap()]);
        assert!(told("/ip4/10.99.0.1/udp/4100/quic-v1"));
        for bad in [
            "/ip4/127.0.0.1/tcp/4100",
            "/ip4/10.7.0.1/tcp/4100",
            "/ip4/203.0.113.1/tcp/25",
            "/ip6/fe80::1/tcp/4100",
        ] {
            assert!(!told(bad), "{bad}");
        }
    }

    #[test]
    fn other_transports_are_refused_as_text() {
        for bad in [
            "",
            "192.0.2.1:4100",
            "/ip4/192.0.2.1",
            "/ip4/192.0.2.1/tcp/4100/tls",
            "/ip4/192.0.2.1/tcp/443/tls/sni/a.example/ws",
            "/unix/tmp",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        let with_peer = format!("/ip4/192.0.2.1/tcp/4100/p2p/{}", peer());
        assert_eq!(with_peer.parse::<Address>().unwrap().peer(), Some(peer()));
        assert_eq!(
            with_peer.parse::<Address>().unwrap().carrier(),
            Some(Carrier::Tcp)
        );
    }

    #[test]
    fn a_websocket_is_dialled_on_hearsay_at_an_address_and_at_no_path() {
        let secure = "/ip4/192.0.2.1/tcp/443/wss";
        let same: Address = "/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap();
        assert_eq!(
            (same.to_string().as_str(), same.carrier()),
            (secure, Some(Carrier::Web))
        );
        let heard = Heard::of("/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap(), false);
        assert_eq!(heard.unwrap().address(), &same);
        for good in [secure, "/ip6/2001:db8::1/tcp/8080/ws"] {
            assert!(dialled(good, false), "{good}");
        }
        for bad in [
            "/ip4/192.0.2.1/tcp/80/ws",
            "/ip4/10.7.1.1/tcp/443/wss",
            "/ip4/127.0.0.1/tcp/443/wss",
            "/dns4/a.example/tcp/443/wss",
            "/ip4/192.0.2.1/tcp/443/x-parity-wss/%2fadmin",
        ] {
            assert!(!dialled(bad, false), "{bad}");
            let typed: Typed = bad.parse().unwrap();
            assert_eq!(
                typed.address().carrier(),
                Some(Carrier::Web),
                "a person may mean it"
            );
        }
        assert!(!may_tell(&same.0, &[]), "its port is of one connection");
        let relay = peer();
        let through = format!("{secure}/p2p/{relay}/p2p-circuit");
        assert!(dialled(&through, false));
    }

    #[test]
    fn an_address_through_a_relay_is_dialled_where_the_relay_may_be() {
        let relay = peer();
        let through = |hop: &str| format!("{hop}/p2p/{relay}/p2p-circuit");
        let good = through("/ip4/198.51.100.7/udp/4100/quic-v1");
        let address: Address = good.parse().unwrap();
        assert_eq!(address.carrier(), Some(Carrier::Relay));
        assert_eq!((address.relay(), address.peer()), (Some(relay), None));
        assert_eq!((address.ip(), address.udp()), (None, None));
        assert!(dialled(&good, false));
        assert_eq!(bare(&address.0), address.0);
        let other = PeerId([7; 32]);
        let named: Address = format!("{good}/p2p/{other}").parse().unwrap();
        assert_eq!((named.relay(), named.peer()), (Some(relay), Some(other)));
        assert_eq!(bare(&named.0), address.0);
        assert!(!may_tell(&address.0, &[]));
        for bad in [
            through("/ip4/10.7.1.1/udp/4100/quic-v1"),
            through("/ip4/127.0.0.1/tcp/4100"),
            through("/ip4/169.254.169.254/tcp/4100"),
        ] {
            assert!(!dialled(&bad, false) && !dialled(&bad, true), "{bad}");
        }
        assert_eq!(Heard::parse(&through("/dns4/example.org/tcp/4100")), None);
        for bad in [
            format!("/ip4/198.51.100.7/tcp/4100/p2p-circuit/p2p/{other}"),
            format!("{good}/p2p/{relay}"),
            format!("{good}/p2p/{other}/p2p-circuit"),
            format!("/p2p/{relay}/p2p-circuit"),
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
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
                let _ = may_tell(&address, &[]);
                let _ = Heard::of(address.clone(), true).map(|h| h.may_dial(&[], &Own::default()));
                let _ = Address(address).peer();
            }
        }
    }
}
