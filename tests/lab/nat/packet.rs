//! What a NAT reads and writes of a packet: the flow it belongs to, and addresses changed with their checksums (RFC 1624).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

/// What has ports, or an identifier in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    Udp,
    Tcp,
    /// ICMP echo: the identifier of the request is the port of who asks, and the other port is 0.
    Echo,
}

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub proto: Proto,
    pub source: SocketAddr,
    pub target: SocketAddr,
}

/// A packet as a NAT sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A packet of a flow.
    Flow(Flow),
    /// An ICMP error about a packet of this flow.
    Error(Flow),
    /// Fragments, other protocols, echo requests from outside, what is cut short.
    Other,
}

const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Bytes of the IPv4 header, where the packet holds one and is no later fragment.
fn header4(packet: &[u8]) -> Option<usize> {
    let length = usize::from(packet.first()? & 15) * 4;
    let later_fragment = word(packet, 6)? & 0x1fff != 0;
    (packet.first()? >> 4 == 4 && length >= 20 && packet.len() >= length + 8 && !later_fragment)
        .then_some(length)
}

fn address4(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

fn address6(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(bytes))
}

/// The flow of a transport header that follows `length` bytes of IP.
fn flow(proto: u8, packet: &[u8], length: usize, source: IpAddr, target: IpAddr) -> Option<Flow> {
    let (proto, from, to) = match (proto, *packet.get(length)?) {
        (UDP, _) => (Proto::Udp, word(packet, length)?, word(packet, length + 2)?),
        (TCP, _) => (Proto::Tcp, word(packet, length)?, word(packet, length + 2)?),
        (ICMP, 8) | (ICMP6, 128) => (Proto::Echo, word(packet, length + 4)?, 0),
        (ICMP, 0) | (ICMP6, 129) => (Proto::Echo, 0, word(packet, length + 4)?),
        _ => return None,
    };
    Some(Flow {
        proto,
        source: SocketAddr::new(source, from),
        target: SocketAddr::new(target, to),
    })
}

fn seen4(packet: &[u8], within: bool) -> Option<Seen> {
    let length = header4(packet)?;
    let (proto, source, target) = (
        *packet.get(9)?,
        address4(packet, 12)?.into(),
        address4(packet, 16)?.into(),
    );
    if let Some(flow) = flow(proto, packet, length, source, target) {
        return Some(Seen::Flow(flow));
    }
    let error = proto == ICMP && !within && matches!(packet.get(length)?, 3 | 11 | 12);
    match seen4(packet.get(length + 8..)?, true)? {
        Seen::Flow(flow) if error => Some(Seen::Error(flow)),
        _ => None,
    }
}

fn seen6(packet: &[u8], within: bool) -> Option<Seen> {
    let (proto, source, target) = (
        *packet.get(6)?,
        address6(packet, 8)?.into(),
        address6(packet, 24)?.into(),
    );
    if let Some(flow) = flow(proto, packet, 40, source, target) {
        return Some(Seen::Flow(flow));
    }
    let error = proto == ICMP6 && !within && (1..=4).contains(packet.get(40)?);
    match seen6(packet.get(48..)?, true)? {
        Seen::Flow(flow) if error => Some(Seen::Error(flow)),
        _ => None,
    }
}

/// What this packet is.
pub fn seen(packet: &[u8]) -> Seen {
    let found = match packet.first().map(|b| b >> 4) {
        Some(4) => seen4(packet, false),
        Some(6) => seen6(packet, false),
        _ => None,
    };
    found.unwrap_or(Seen::Other)
}

/// Whether the packet is one of UDP, of either version of IP.
pub fn is_udp(packet: &[u8]) -> bool {
    match packet.first().map(|b| b >> 4) {
        Some(4) => packet.get(9) == Some(&UDP),
        Some(6) => packet.get(6) == Some(&UDP),
        _ => false,
    }
}

/// Folds what a checksum loses by `old` and wins by `new` (RFC 1624, equation 3).
fn adjust(sum: u16, old: &[u8], new: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes
            .chunks(2)
            .map(|p| u16::from_be_bytes([p[0], p.get(1).copied().unwrap_or(0)]))
            .collect()
    };
    let mut total = u32::from(!sum);
    total += words(old).iter().map(|w| u32::from(!w)).sum::<u32>();
    total += words(new).iter().map(|w| u32::from(*w)).sum::<u32>();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// The Internet checksum over these bytes.
pub fn checksum(bytes: &[u8]) -> u16 {
    adjust(0xffff, &[], bytes)
}

/// Which end of a packet is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Target,
}

/// Writes another address and port to one end of an IPv4 packet, and what the checksums become by it. A transport header
/// that is cut short, as in an ICMP error, is changed as far as it goes.
pub fn rewrite(packet: &mut [u8], end: End, to: SocketAddrV4) {
    let Some(length) = header4(packet) else {
        return;
    };
    let proto = packet[9];
    let place = if end == End::Source { 12 } else { 16 };
    let mut old = packet[place..place + 4].to_vec();
    let mut new = to.ip().octets().to_vec();
    put(
        packet,
        10,
        adjust(word(packet, 10).unwrap_or(0), &old, &new),
    );
    packet[place..place + 4].copy_from_slice(&new);
    let (port, sum) = match proto {
        UDP => (length + if end == End::Source { 0 } else { 2 }, length + 6),
        TCP => (length + if end == End::Source { 0 } else { 2 }, length + 16),
        // No address is in the checksum of ICMP.
        ICMP => {
            (old, new) = (Vec::new(), Vec::new());
            (length + 4, length + 2)
        }
        _ => return,
    };
    old.extend(word(packet, port).unwrap_or(0).to_be_bytes());
    new.extend(to.port().to_be_bytes());
    put(packet, port, to.port());
    let Some(before) = word(packet, sum) else {
        return;
    };
    // A datagram of IPv4 may go without a checksum; a computed one is never written as zero.
    if proto == UDP && before == 0 {
        return;
    }
    let after = adjust(before, &old, &new);
    let after = if proto == UDP && after == 0 {
        0xffff
    } else {
        after
    };
    put(packet, sum, after);
}

/// Writes other ends to an ICMP error: to the error itself and to the packet it speaks of, whose end is the other one.
pub fn rewrite_error(packet: &mut [u8], end: End, outer: Ipv4Addr, inner: SocketAddrV4) {
    let Some(length) = header4(packet) else {
        return;
    };
    let place = if end == End::Source { 12 } else { 16 };
    let old = packet[place..place + 4].to_vec();
    let new = outer.octets();
    put(
        packet,
        10,
        adjust(word(packet, 10).unwrap_or(0), &old, &new),
    );
    packet[place..place + 4].copy_from_slice(&new);
    let other = if end == End::Source {
        End::Target
    } else {
        End::Source
    };
    if let Some(about) = packet.get_mut(length + 8..) {
        rewrite(about, other, inner);
    }
    put(packet, length + 2, 0);
    let sum = checksum(&packet[length..]);
    put(packet, length + 2, sum);
}

/// The answer of a router that refuses a packet aloud: ICMP port unreachable, with what it speaks of.
pub fn refusal(packet: &[u8], from: Ipv4Addr) -> Option<Vec<u8>> {
    let length = header4(packet)?;
    let to = address4(packet, 12)?;
    let about = packet.get(..length + 8)?;
    let total = u16::try_from(28 + about.len()).ok()?;
    let mut answer = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, ICMP, 0, 0];
    put(&mut answer, 2, total);
    answer.extend(from.octets());
    answer.extend(to.octets());
    let sum = checksum(&answer);
    put(&mut answer, 10, sum);
    let mut body = vec![3, 3, 0, 0, 0, 0, 0, 0];
    body.extend(about);
    let sum = checksum(&body);
    put(&mut body, 2, sum);
    answer.extend(body);
    Some(answer)
}
