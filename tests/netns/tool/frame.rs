//! Ethernet, IPv4 and UDP as bytes: enough to find our datagrams in a capture and to make some that are not ours.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of the Ethernet, IPv4 (no options) and UDP headers.
pub const ETHERNET: usize = 14;
/// Where the UDP payload of a made frame begins.
pub const HEADERS: usize = ETHERNET + 20 + 8;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A UDP datagram over IPv4 inside an Ethernet frame.
pub struct Udp<'a> {
    /// Sender.
    pub from: SocketAddrV4,
    /// Receiver.
    pub to: SocketAddrV4,
    /// What it carries; with segmentation offload several datagrams of one length.
    pub payload: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(
        <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?,
    ))
}

/// The datagram in a frame that begins at its IP header, if it is one over IPv4.
pub fn inner_udp(ip: &[u8]) -> Option<Udp<'_>> {
    let first = *ip.first()?;
    if first >> 4 != 4 || *ip.get(9)? != 17 {
        return None;
    }
    let head = usize::from(first & 15) * 4;
    let from = SocketAddrV4::new(v4_at(ip, 12)?, u16_at(ip, head)?);
    let to = SocketAddrV4::new(v4_at(ip, 16)?, u16_at(ip, head + 2)?);
    Some(Udp {
        from,
        to,
        payload: ip.get(head + 8..)?,
    })
}

/// The datagram in an Ethernet frame, if it is one over IPv4.
pub fn udp(frame: &[u8]) -> Option<Udp<'_>> {
    if u16_at(frame, 12)? != 0x0800 {
        return None;
    }
    inner_udp(frame.get(ETHERNET..)?)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        .sum()
}

fn fold(mut total: u32) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// An Ethernet frame with one datagram; both checksums are right.
pub fn make(
    source: Mac,
    target: Mac,
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADERS + payload.len());
    frame.extend(target);
    frame.extend(source);
    frame.extend([0x08, 0x00]);
    let length = (28 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.ip().octets());
    ip.extend(to.ip().octets());
    let check = fold(sum(&ip));
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    datagram.extend((length - 20).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let pseudo = sum(&from.ip().octets()) + sum(&to.ip().octets()) + 17 + u32::from(length - 20);
    let check = match fold(pseudo + sum(&datagram)) {
        0 => 0xffff,
        check => check,
    };
    datagram[6..8].copy_from_slice(&check.to_be_bytes());
    frame.extend(ip);
    frame.extend(datagram);
    frame
}

/// A sealed datagram of ours as anybody on the underlay sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Receiver index.
    pub receiver: u32,
    /// Counter.
    pub counter: u64,
}

/// The clear header, from the documents and not from the code under test: `04 00 00 00`, receiver index, counter.
pub fn sealed(payload: &[u8]) -> Option<Sealed> {
    if payload.get(..4)? != [4, 0, 0, 0] {
        return None;
    }
    Some(Sealed {
        receiver: u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?),
        counter: u64::from_be_bytes(payload.get(8..16)?.try_into().ok()?),
    })
}
