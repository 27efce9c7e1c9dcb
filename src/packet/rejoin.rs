//! Joining pieces of a super-packet, as they came, into a packet for the kernel.
//!
//! The other half of [`cut`](super::cut). Each piece brought the headers of the whole super-packet and its share of the
//! payload; a run of consecutive pieces becomes one smaller super-packet, with the headers that the sender's kernel would
//! have given those segments (the rules of [`segment`](super::segment)). What was lost between two runs costs nothing but
//! itself.

use super::drops::DropReason;
use super::offload::{Kind, Offload, write_ip_lengths};
use super::parse::{TCP, UDP, Version, parse};
use super::segment::{Place, number_headers};

/// What a sender says about one piece of a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Kind of the super-packet: one of the four that are one.
    pub kind: Kind,
    /// Bytes of the super-packet's headers, at most 255.
    pub headers: usize,
    /// Which piece, from 0; at most 255.
    pub index: usize,
    /// Index of the super-packet's last piece.
    pub last: usize,
    /// Payload bytes of every piece but the last, which holds 1 to this many.
    pub size: usize,
}

impl Piece {
    /// Whether this piece may hold `payload` bytes.
    pub fn holds(&self, payload: usize) -> bool {
        if self.index < self.last { payload == self.size } else { (1..=self.size).contains(&payload) }
    }

    /// Whether `next` is the piece behind a run of `count` that began with this one, as far as numbers tell; that both
    /// have the same super-packet's ID is the caller's to see.
    pub fn is_followed_by(&self, count: usize, next: &Piece) -> bool {
        self.index.checked_add(count) == Some(next.index) && *next == Piece { index: next.index, ..*self }
    }
}

/// Makes a packet of a run of `count` consecutive pieces that begins with `first`: `bytes` are the headers as they came
/// with `first`, then the payloads. Writes lengths, IPv4 identification and header checksum, TCP sequence number and flags
/// (FIN and PSH stay with the last piece, CWR with the first), UDP length; the TCP or UDP checksum is the business of
/// [`Rebuild`](super::offload::Rebuild), for the kind that is returned. Nothing is allocated, nothing but headers written.
///
/// # Errors
/// [`DropReason::Malformed`] where a number of the sender does not agree with the bytes, which are spoilt then.
pub fn rejoin(bytes: &mut [u8], first: &Piece, count: usize) -> Result<Offload, DropReason> {
    let (version, protocol) = match first.kind {
        Kind::None | Kind::Partial => return Err(DropReason::Malformed),
        Kind::Tcp4 => (Version::V4, TCP),
        Kind::Tcp6 => (Version::V6, TCP),
        Kind::Udp4 => (Version::V4, UDP),
        Kind::Udp6 => (Version::V6, UDP),
    };
    let ends = run_ends_with_last(bytes.len(), first, count).ok_or(DropReason::Malformed)?;
    // The whole super-packet's length stands there; the reader wants that of these bytes.
    write_ip_lengths(bytes, version);
    let packet = parse(bytes)?;
    let agrees = packet.version == version
        && packet.protocol == protocol
        && packet.is_tcp_or_udp()
        && packet.headers == first.headers;
    if !agrees {
        return Err(DropReason::Malformed);
    }
    let offset = first.index.saturating_mul(first.size);
    number_headers(bytes, &packet, Place { index: first.index, offset, last: ends });
    if count == 1 {
        return Ok(Offload { kind: Kind::Partial, ..Offload::NONE });
    }
    let number = |value: usize| u16::try_from(value).map_err(|_| DropReason::Malformed);
    Ok(Offload { kind: first.kind, gso_size: number(first.size)?, header_len: number(first.headers)? })
}

/// Whether the run ends with the super-packet's last piece; none where headers and `count` payloads do not make `length`
/// bytes.
fn run_ends_with_last(length: usize, first: &Piece, count: usize) -> Option<bool> {
    let before = count.checked_sub(1)?;
    let end = first.index.checked_add(before).filter(|end| *end <= first.last)?;
    let payload = length.checked_sub(first.headers)?;
    let tail = payload.checked_sub(before.checked_mul(first.size)?)?;
    Piece { index: end, ..*first }.holds(tail).then_some(end == first.last)
}
