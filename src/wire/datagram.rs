//! Sealed datagrams between members: what stands in their plaintext.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::packet::DropReason;
use crate::packet::offload::Kind;
use crate::packet::parse::MAX_PACKET;
use crate::packet::rejoin::Piece;

/// Bytes of the trailer, the last of every plaintext.
pub const TRAILER: usize = 8;
/// Bytes a frame adds to its body: the clear header (16), the trailer and the tag (16).
pub const OVERHEAD: usize = 16 + TRAILER + 16;
/// Bytes in front of each packet of a bundle.
pub const ENTRY: usize = 4;
/// Bytes of the smallest packet in a bundle: an IPv4 header.
const MIN_PACKET: usize = 20;
/// Flag of a bundle's entry: the packet's checksum is still to be computed.
const PARTIAL: u8 = 1;

const PACKET: u8 = 1;
const BUNDLE: u8 = 2;
const PIECE: u8 = 3;
const CONTROL: u8 = 4;

/// The end of a plaintext: what the bytes before it, the body, are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trailer {
    /// One packet.
    Packet {
        /// Its TCP or UDP checksum is still to be computed.
        partial: bool,
    },
    /// A piece of a super-packet: payload, then the super-packet's headers.
    Piece {
        /// Which piece.
        piece: Piece,
        /// Which super-packet of this sender, to tell neighbours apart.
        id: u16,
    },
    /// Small packets, each behind its [`ENTRY`]; see [`Bundle`].
    Bundle,
    /// A [`Control`] message.
    Control,
}

impl Trailer {
    /// The eight bytes. Numbers of a piece beyond their field (which [`Cut`](crate::packet::cut::Cut) never makes) give
    /// a trailer that no receiver takes.
    pub fn encode(&self) -> [u8; TRAILER] {
        match *self {
            Trailer::Packet { partial } => first_byte(PACKET, if partial { Kind::Partial } else { Kind::None }),
            Trailer::Bundle => first_byte(BUNDLE, Kind::None),
            Trailer::Control => first_byte(CONTROL, Kind::None),
            Trailer::Piece { piece, id } => {
                let byte = |value: usize| u8::try_from(value);
                let (Ok(headers), Ok(index), Ok(last), Ok(size)) =
                    (byte(piece.headers), byte(piece.index), byte(piece.last), u16::try_from(piece.size))
                else {
                    return [0; TRAILER];
                };
                let ([s0, s1], [i0, i1]) = (size.to_be_bytes(), id.to_be_bytes());
                [PIECE << 4 | piece.kind as u8, headers, index, last, s0, s1, i0, i1]
            }
        }
    }

    /// Reads the eight bytes; none where a field has a value that no sender gives it.
    pub fn decode(bytes: [u8; TRAILER]) -> Option<Trailer> {
        let [kinds, headers, index, last, s0, s1, i0, i1] = bytes;
        let kind = Kind::from_number(kinds & 15)?;
        if kinds >> 4 == PIECE {
            let size = usize::from(u16::from_be_bytes([s0, s1]));
            let (headers, index, last) = (usize::from(headers), usize::from(index), usize::from(last));
            let piece = Piece { kind, headers, index, last, size };
            let fits = headers.saturating_add(last.saturating_mul(size)) < MAX_PACKET;
            let good = !matches!(kind, Kind::None | Kind::Partial) && index <= last && size > 0 && fits;
            return good.then_some(Trailer::Piece { piece, id: u16::from_be_bytes([i0, i1]) });
        }
        if [headers, index, last, s0, s1, i0, i1] != [0; TRAILER - 1] {
            return None;
        }
        match (kinds >> 4, kind) {
            (PACKET, Kind::None) => Some(Trailer::Packet { partial: false }),
            (PACKET, Kind::Partial) => Some(Trailer::Packet { partial: true }),
            (BUNDLE, Kind::None) => Some(Trailer::Bundle),
            (CONTROL, Kind::None) => Some(Trailer::Control),
            _ => None,
        }
    }
}

/// A trailer whose other fields are unused.
fn first_byte(frame: u8, kind: Kind) -> [u8; TRAILER] {
    [frame << 4 | kind as u8, 0, 0, 0, 0, 0, 0, 0]
}

/// Takes a plaintext apart: the bytes of its body, which are its first, and its trailer. None where it has no good one.
pub fn split(plaintext: &[u8]) -> Option<(usize, Trailer)> {
    let (body, trailer) = plaintext.split_last_chunk()?;
    Some((body.len(), Trailer::decode(*trailer)?))
}

/// Adds a packet to the body of a bundle; false, and nothing added, where it is shorter than an IPv4 header or longer than
/// 65,535 bytes.
pub fn append(out: &mut Vec<u8>, packet: &[u8], partial: bool) -> bool {
    let Ok(length) = u16::try_from(packet.len()) else { return false };
    if packet.len() < MIN_PACKET {
        return false;
    }
    let [l0, l1] = length.to_be_bytes();
    out.extend_from_slice(&[l0, l1, if partial { PARTIAL } else { 0 }, 0]);
    out.extend_from_slice(packet);
    true
}

/// Reads the body of a bundle, packet by packet.
///
/// Holds a place and no reference, so that the reader may change the packets in between.
#[derive(Debug, Clone, Default)]
pub struct Bundle {
    at: usize,
}

impl Bundle {
    /// The next packet of `body`, the same one every time: whether its checksum is still to be computed, and where it lies.
    ///
    /// # Errors
    /// [`DropReason::Malformed`], once, where what is left is no packet.
    pub fn next(&mut self, body: &[u8]) -> Option<Result<(bool, Range<usize>), DropReason>> {
        let rest = body.get(self.at..).filter(|rest| !rest.is_empty())?;
        match entry(rest) {
            Some((partial, length)) => {
                let start = self.at.saturating_add(ENTRY);
                self.at = start.saturating_add(length);
                Some(Ok((partial, start..self.at)))
            }
            None => {
                self.at = body.len();
                Some(Err(DropReason::Malformed))
            }
        }
    }
}

/// The first entry of what is left of a bundle: its flag, and the bytes of the packet behind it.
fn entry(rest: &[u8]) -> Option<(bool, usize)> {
    let ([l0, l1, flags, zero], behind) = rest.split_first_chunk::<ENTRY>()?;
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    let good = *flags & !PARTIAL == 0 && *zero == 0 && (MIN_PACKET..=behind.len()).contains(&length);
    good.then_some((*flags & PARTIAL != 0, length))
}

const PROBE: u8 = 1;
const ANSWER: u8 = 2;
const REKEY: u8 = 3;
const CLOSE: u8 = 4;
/// Bytes of the largest control body: what a datagram takes.
pub const MAX_CONTROL: usize = 65_507 - OVERHEAD;

/// The body of a control frame. Zeros may follow each message, to make the datagram as long as it shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control<'a> {
    /// To be answered; padded, it asks whether the path carries datagrams of that size.
    Probe {
        /// Random: tells answers apart.
        token: u64,
    },
    /// The answer, to where the probe came from.
    Answer {
        /// The probe's.
        token: u64,
        /// Where the probe came from.
        seen: SocketAddr,
    },
    /// A message of `crypto::session`.
    Rekey(&'a [u8]),
    /// The sender leaves this session.
    Close,
}

impl<'a> Control<'a> {
    /// Replaces what `out` holds by the body: the message, then zeros up to `pad_to` bytes (a longer one is not cut; 0 for
    /// no padding). False, and `out` empty, where it would be larger than [`MAX_CONTROL`].
    pub fn encode(&self, pad_to: usize, out: &mut Vec<u8>) -> bool {
        out.clear();
        match self {
            Control::Probe { token } => {
                out.push(PROBE);
                out.extend_from_slice(&token.to_be_bytes());
            }
            Control::Answer { token, seen } => {
                out.push(ANSWER);
                out.extend_from_slice(&token.to_be_bytes());
                out.extend_from_slice(&seen.port().to_be_bytes());
                match seen.ip().to_canonical() {
                    IpAddr::V4(ip) => {
                        out.push(4);
                        out.extend_from_slice(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        out.push(6);
                        out.extend_from_slice(&ip.octets());
                    }
                }
            }
            Control::Rekey(message) => {
                let Ok(length) = u16::try_from(message.len()) else { return false };
                out.push(REKEY);
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(message);
            }
            Control::Close => out.push(CLOSE),
        }
        if out.len().max(pad_to) > MAX_CONTROL {
            out.clear();
            return false;
        }
        out.resize(out.len().max(pad_to), 0);
        true
    }

    /// Reads a body; none where it is of no known kind, cut short, or padded with anything but zeros.
    pub fn decode(body: &'a [u8]) -> Option<Control<'a>> {
        let (kind, rest) = body.split_first()?;
        let (control, padding) = match *kind {
            PROBE => {
                let (token, rest) = rest.split_first_chunk()?;
                (Control::Probe { token: u64::from_be_bytes(*token) }, rest)
            }
            ANSWER => {
                let (token, rest) = rest.split_first_chunk()?;
                let ([p0, p1, family], rest) = rest.split_first_chunk()?;
                let (ip, rest) = match *family {
                    4 => rest.split_first_chunk().map(|(ip, rest)| (IpAddr::V4(Ipv4Addr::from(*ip)), rest))?,
                    6 => rest.split_first_chunk().map(|(ip, rest)| (IpAddr::V6(Ipv6Addr::from(*ip)), rest))?,
                    _ => return None,
                };
                let seen = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes([*p0, *p1]));
                (Control::Answer { token: u64::from_be_bytes(*token), seen }, rest)
            }
            REKEY => {
                let (length, rest) = rest.split_first_chunk()?;
                let (message, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                (Control::Rekey(message), rest)
            }
            CLOSE => (Control::Close, rest),
            _ => return None,
        };
        padding.iter().all(|byte| *byte == 0).then_some(control)
    }
}
