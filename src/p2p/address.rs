//! Addresses of peers on the underlay: what is dialled, announced and believed.
//!
//! Decides which multiaddr is usable, and tells a person's word ([`Typed`]) from hearsay ([`Heard`]); never resolves a name
//! and never opens a socket.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::own::{Own, index_of, name_of, with_link};
use super::web::{Host, Target, Web, is_named};
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

/// An address that came from anybody else: a member's announcement, identify, mDNS, an invite. It is no name but for a
/// WebSocket's inside TLS at port 443, and is dialled only where [`heard`] allows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    address: Address,
    /// Whether it was said on a local network of this machine, where link-local addresses mean
    /// something.
    on_link: bool,
    /// Whether another program of this machine said so, which is reached at this machine's own address.
    is_here: bool,
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
            Carrier::Web => {
                let hop = bare(&first_hop(&address));
                is_plain_web(&hop) || is_named(&hop)
            }
            Carrier::Relay => false,
        };
        literal.then_some(Heard {
            address: Address(canonical(address)),
            on_link,
            is_here: false,
        })
    }

    /// An address that was heard on a link of this machine. One of IPv6 that is link-local names its link by its scope; none
    /// where there is no such link, and for a carrier without an address of IP.
    pub fn on_link(address: SocketAddr, carrier: Carrier) -> Option<Heard> {
        let host = host(address)?;
        let address = match carrier {
            Carrier::Tcp => host.with(Protocol::Tcp(address.port())),
            Carrier::Quic => quic(host, address.port()),
            Carrier::Memory | Carrier::Web | Carrier::Relay => return None,
        };
        Heard::of(address, true)
    }

    /// The same on the word of another program of this machine: it may be an address of this machine, other than loopback.
    /// What listens there has to prove that it is the peer, as anywhere.
    pub fn here(self) -> Heard {
        Heard {
            is_here: true,
            ..self
        }
    }

    /// Whether another program of this machine said so.
    pub(super) fn is_here(&self) -> bool {
        self.is_here
    }

    /// The address that was heard, whether or not it may be dialled.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it may be dialled: not the overlay, and see [`heard::may_dial`]. Link-local ones only where they were heard,
    /// and where the link is named or one alone can be meant; those of IPv6 without a name by QUIC only, whose socket is told
    /// that one. Of one through a relay the relay's address counts: that is what is dialled.
    pub(super) fn may_dial(&self, overlay: &[IpNet], own: &Own) -> bool {
        let address = &first_hop(&self.address.0);
        let Some(ip) = ip_of(address) else {
            // What a name leads to is judged when it is known.
            return carrier_of(address) == Some(Carrier::Memory) || is_named(&bare(address));
        };
        let named = ip.is_ipv4() || carrier_of(address) == Some(Carrier::Quic);
        let is_one = || match zone_of(address) {
            Some(zone) => own.has_link(&zone),
            None => named && own.one_local_link(ip).is_some(),
        };
        let on_this_link = !heard::is_link_local(ip) || (self.on_link && is_one());
        let port = port_of(address).unwrap_or(0);
        on_this_link
            && !address::is_within(ip, overlay)
            && heard::may_dial(ip, port, &|ip| !self.is_here && own.is_own(ip))
    }
}

/// Whether a name that was heard led to an address that may be dialled; true of every address that came of no such name.
pub(super) fn may_lead_to(address: &Multiaddr) -> bool {
    let Some(Target {
        host: Host::Ip(ip),
        port,
        heard: true,
        ..
    }) = Target::of(address)
    else {
        return true;
    };
    let mut own = Own::default();
    own.refresh(tokio::time::Instant::now());
    !heard::is_link_local(ip) && heard::may_dial(ip, port, &|ip| own.is_own(ip))
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

/// Where datagrams may be sent to a peer, of the addresses that this node itself keeps of it: those of QUIC, by the rule for
/// addresses that are dialled. Unlike what a message says, they may be link-local: they were heard on that link.
pub fn sendable(addresses: &[Address]) -> Vec<SocketAddr> {
    let mut own = Own::default();
    own.refresh(tokio::time::Instant::now());
    sendable_beside(addresses, &own)
}

fn sendable_beside(addresses: &[Address], own: &Own) -> Vec<SocketAddr> {
    let of = |address: &Address| {
        Heard::of(address.0.clone(), true).filter(|heard| heard.may_dial(&[], own))?;
        let udp = address.udp()?;
        let canonical = SocketAddr::new(udp.ip().to_canonical(), udp.port());
        // Only an address that stays one of IPv6 has a scope to keep.
        Some(if canonical.is_ipv4() {
            canonical
        } else {
            with_link(udp)
        })
    };
    addresses.iter().filter_map(of).collect()
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
        is_of_link
            || self
                .ip()
                .is_some_and(|ip| address::is_private(ip.to_canonical()))
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

    /// The UDP socket address, if it is one of QUIC's and no name. Where it names a link it has that link's index as scope.
    pub fn udp(&self) -> Option<SocketAddr> {
        udp_of(&self.0)
    }

    /// The socket address of either transport, if it is no name and leads through no relay, with the scope where it names a
    /// link.
    pub fn socket(&self) -> Option<SocketAddr> {
        scoped(&self.0, self.ip()?, self.port()?)
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
    let host = match parts.next()? {
        // A link is named for an address that means nothing without one, and for no other.
        Protocol::Ip6zone(_) => parts
            .next()
            .filter(|host| matches!(host, Protocol::Ip6(ip) if ip.is_unicast_link_local()))?,
        host => host,
    };
    let carrier = match host {
        Protocol::Memory(_) => Carrier::Memory,
        Protocol::Ip4(_)
        | Protocol::Ip6(_)
        | Protocol::Dns(_)
        | Protocol::Dns4(_)
        | Protocol::Dns6(_) => match parts.next()? {
            // At an address of a link plain TCP is spoken.
            Protocol::Tcp(_) if zone_of(address).is_some() => Carrier::Tcp,
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
pub(super) fn canonical(address: Multiaddr) -> Multiaddr {
    if !address.iter().any(|part| part == Protocol::Tls) {
        return address;
    }
    let parts: Vec<_> = address.iter().collect();
    let mut rest = parts.as_slice();
    let mut whole = Multiaddr::empty();
    while let [first, behind @ ..] = rest {
        rest = match (first, behind) {
            (Protocol::Tls, [Protocol::Ws(path), behind @ ..]) => {
                whole.push(Protocol::Wss(path.clone()));
                behind
            }
            // How this node dials a name that it has heard.
            (Protocol::Tls, [Protocol::Sni(_), behind @ ..])
                if matches!(behind, [Protocol::Wss(_), ..]) =>
            {
                behind
            }
            _ => {
                whole.push(first.clone());
                behind
            }
        };
    }
    whole
}

/// The socket address of `/ip4|ip6/A/udp/P/quic-v1`, perhaps with `/p2p/PEER` behind it, and with `/ip6zone/LINK` before it.
pub(super) fn udp_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = without_zone(address);
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else {
        return None;
    };
    let is_whole = parts.all(|part| matches!(part, Protocol::P2p(_)));
    scoped(address, ip, port).filter(|_| is_whole)
}

/// The parts of an address behind the name of its link.
fn without_zone(address: &Multiaddr) -> impl Iterator<Item = Protocol<'_>> {
    let mut parts = address.iter().peekable();
    parts.next_if(|part| matches!(part, Protocol::Ip6zone(_)));
    parts
}

/// The link that an address names.
pub(super) fn zone_of(address: &Multiaddr) -> Option<String> {
    match address.iter().next()? {
        Protocol::Ip6zone(zone) => Some(zone.into_owned()),
        _ => None,
    }
}

/// The socket address with the index of the link that `address` names; none where there is no such link.
pub(super) fn scoped(address: &Multiaddr, ip: IpAddr, port: u16) -> Option<SocketAddr> {
    match (zone_of(address), ip) {
        (Some(zone), IpAddr::V6(v6)) => {
            Some(SocketAddrV6::new(v6, port, 0, index_of(&zone)?).into())
        }
        (Some(_), IpAddr::V4(_)) => None,
        (None, ip) => Some(SocketAddr::new(ip, port)),
    }
}

/// The host's part of an address: with its link where it has a scope; none where there is no such link.
fn host(address: SocketAddr) -> Option<Multiaddr> {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 && v6.ip().is_unicast_link_local() => {
            let zone = Protocol::Ip6zone(name_of(v6.scope_id())?.into());
            Some(Multiaddr::empty().with(zone).with(Protocol::Ip6(*v6.ip())))
        }
        _ => Some(address.ip().into()),
    }
}

fn quic(host: Multiaddr, port: u16) -> Multiaddr {
    host.with(Protocol::Udp(port)).with(Protocol::QuicV1)
}

/// The multiaddr of QUIC at a socket address. One of IPv6 that is link-local names its link, if that is there.
pub(super) fn quic_at(address: SocketAddr) -> Multiaddr {
    let host = host(address).unwrap_or_else(|| address.ip().into());
    quic(host, address.port())
}

/// The IP address an address begins with, or has behind the name of its link.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match without_zone(address).next()? {
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
pub(super) fn port_of(address: &Multiaddr) -> Option<u16> {
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
    let rest = address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)));
    canonical(rest.collect())
}

/// Whether the address is one of this host only.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// Whether other hosts can use the address without knowing an interface of theirs.
pub(super) fn is_link_local_v6(address: &Multiaddr) -> bool {
    matches!(ip_of(address), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local())
}
