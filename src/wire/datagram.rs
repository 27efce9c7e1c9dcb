//! Sealed datagrams between two members of a subnet: the format of the fast path, whole.
//!
//! This text, `crypto::frame`, `crypto::handshake` and `peer::session` are what a second implementation needs.
//! All numbers are big-endian; "must be zero" is checked by the receiver. Every rule for receivers also protects against a
//! member who lies: nothing the sender states is believed before it agrees with the bytes.
//!
//! # On the port
//!
//! One UDP port carries everything; the first byte of a datagram tells what it is (RFC 9443):
//!
//! ```text
//! 0x00-0x03   left to STUN: dropped
//! 0x04        a sealed frame, as below;  0x05-0x3f reserved: dropped
//! 0x40-0xff   QUIC (fixed bit set), for libp2p
//! ```
//!
//! One datagram is one frame. It is never cut by IP: DF is set, and the sender learns by probes what the path carries.
//!
//! # Keys
//!
//! A session is between two peers in one subnet; the same two peers have another one for each subnet they share. The first
//! handshake goes over their libp2p stream (`/byway/control/1`), later ones inside the session:
//!
//! ```text
//! smaller peer ID                       greater peer ID
//!        |  <---- Want: asks for what follows |           over the stream
//!        |  Offer: version, ML-KEM-768 key -> |
//!        |  <-------- Accept: its ciphertext  |
//!        |  Begin: Noise message 1 ---------> |           both messages of Noise IKpsk2 name the index
//!        |  <------- Finish: Noise message 2  |           that their sender will receive by
//!        |====================================|
//!        |  sealed frames, both ways          |           datagrams
//!        |  Control: Rekey                    |           the next handshake, begun by either
//! ```
//!
//! Messages, times and who may begin: `peer::session`. Hashes, pre-shared keys and the two keys that come out, one for
//! each direction: `crypto::handshake`. There is no handshake by bare datagrams, so a datagram under an unknown index is
//! never answered.
//!
//! # Frame
//!
//! ```text
//! 0      1            4                8                  16            n-16   n
//! +------+------------+----------------+------------------+-------------+-----+
//! | 0x04 | 0 0 0      | receiver index | counter          | ciphertext  | tag |
//! +------+------------+----------------+------------------+-------------+-----+
//! |<------------- header, 16 bytes, in clear ------------>|<- of the plaintext ->
//! ```
//!
//! `receiver index` is what the receiver chose in the handshake: it names session and key. `counter` is the number of the
//! frame under that key, from 0; gaps are allowed, a number is never used twice. AEAD (AES-256-GCM or ChaCha20-Poly1305, as
//! agreed): nonce = 4 zero bytes and the counter, additional data = the 16 bytes of the header, tag = 16 bytes.
//!
//! # Plaintext
//!
//! The body, and behind it 8 bytes of trailer ([`Trailer`]). What a frame adds to its body is [`OVERHEAD`], 40 bytes; to
//! the datagram's size IP and UDP add 28 (IPv4) or 48 (IPv6).
//!
//! ```text
//! 0                 n-8     n-7      n-6     n-5    n-4      n-2     n
//! +-----------------+-------+--------+-------+------+--------+-------+
//! | body            | kinds | header | piece | last | size   | id    |
//! |                 |       | length | index |      |        |       |
//! +-----------------+-------+--------+-------+------+--------+-------+
//!
//! kinds   body                                                       other fields
//! 0x10    one packet, complete                                       must be zero
//! 0x11    one packet, its TCP or UDP checksum to be computed         must be zero
//! 0x20    a bundle of small packets                                  must be zero
//! 0x32    a piece of a super-packet: TCP over IPv4                   used
//! 0x33                               TCP over IPv6                   used
//! 0x34                               UDP over IPv4                   used
//! 0x35                               UDP over IPv6                   used
//! 0x40    a control message                                          must be zero
//! ```
//!
//! The high half of `kinds` is the frame's kind, the low half is [`Kind`]. Frames of any other value are dropped, so that a
//! later version may use them where both ends know of it.
//!
//! ## One packet
//!
//! An IPv4 or IPv6 packet, exactly as long as its header says. With 0x11 the field of the TCP or UDP checksum is to be
//! ignored (0x11 for any other packet: drop it). The receiver computes the checksum or hands the packet to a kernel that
//! will: the AEAD has protected the bytes on the way.
//!
//! ## A bundle
//!
//! Packets one behind the other, each behind four bytes. A sender bundles what is queued already and waits for nothing.
//!
//! ```text
//! 0        2       3   4           4+length
//! +--------+-------+---+-----------+--------+-------+---+---- ...
//! | length | flags | 0 | packet    | length | flags | 0 |
//! +--------+-------+---+-----------+--------+-------+---+---- ...
//! ```
//!
//! `length` counts the packet's bytes, at least 20. Bit 0 of `flags` says that the checksum is to be computed; the other
//! bits and the fourth byte must be zero. At the first entry that is wrong the receiver drops the rest of the bundle; what
//! came before it counts.
//!
//! ## A piece of a super-packet
//!
//! A kernel with segmentation offload hands over TCP segments or UDP datagrams of one flow as one super-packet: headers,
//! and up to 64 KB of payload. Its payload is cut into pieces of `size` bytes, the last may be shorter (1 to `size`); each
//! travels in a frame of its own, the payload first and the super-packet's headers, unchanged, behind it:
//!
//! ```text
//! 0           p                p + header length
//! +-----------+----------------+---------+
//! | payload   | IP, TCP or UDP | trailer |
//! +-----------+----------------+---------+
//! ```
//!
//! `header length` counts IP header, options, extension headers and the TCP header with its options, or the UDP header; 255
//! at most. `piece index` is from 0, `last` the index of the last piece. For UDP `size` is the payload of one datagram; for
//! TCP the sender may choose it smaller than its kernel asked for, so that a frame fits the path. `id` is a number that the
//! sender changes with every super-packet. IP length, IPv4 header checksum, UDP length and transport checksum in those
//! headers are of no meaning.
//!
//! Piece *i* is the packet of these headers and its payload with
//! - the IP length that follows, and in IPv4 the identification plus *i* (modulo 2^16) and a new header checksum;
//! - TCP: sequence number plus *i* * `size` (modulo 2^32); FIN and PSH cleared but in the last piece, CWR but in the first;
//! - UDP: the length that follows;
//! - the checksum of TCP or UDP computed.
//!
//! A receiver may write each piece so, by itself. Better, it joins a *run*: frames that it opened one directly after the
//! other, with equal `kinds`, `header length`, `last`, `size` and `id`, and indices that follow each other. The payloads of
//! a run behind the headers of its first piece are a super-packet again: identification and sequence number as of the first
//! piece, FIN and PSH if the last piece is in it, CWR if the first is, segment size `size`. Since the payload comes
//! first, each frame can be opened to the end of the payload before it, over that one's headers and trailer. A lost frame
//! ends a run and costs its own segment only. [`Piece`] and [`rejoin`](crate::packet::rejoin) do this.
//!
//! A piece must be dropped when
//! - `piece index` > `last`, or `size` is 0, or `header length` + `last` * `size` is above 65,574;
//! - its payload has not `size` bytes (in the last piece: not 1 to `size`), or the body is shorter than `header length`;
//! - IP version, protocol or the end of the TCP or UDP header in the headers are not what `kinds` and `header length` say,
//!   or they are those of a fragment;
//! - joined, it would make more than an IP packet can hold (65,535 bytes; with IPv6, behind its header), or less than 8
//!   bytes (TCP) in a segment, or more than 128 datagrams (UDP).
//!
//! ## A control message
//!
//! ```text
//! 0   1                9
//! +---+----------------+                                        Probe
//! | 1 | token          |
//! +---+----------------+------+--------+---------------+
//! | 2 | token          | port | family | address       |        Answer: family 4 or 6, address of 4 or 16 bytes
//! +---+--------+-------+------+--------+---------------+
//! | 3 | length | message                                        Rekey: length in 2 bytes, see `peer::session`
//! +---+--------+----------
//! | 4 |                                                         Close
//! +---+
//! ```
//!
//! Zeros may follow, up to the end of the body: padding. A probe is padded to make its datagram as large as what it asks
//! the path about; whatever its size, it is answered by an unpadded answer with its token, sent to the address that the
//! probe came from, which the answer names as well. An answer proves that its path works both ways, and that datagrams of
//! the probe's size arrive. A peer whose frames begin to come from another address is probed there before it is sent more
//! than three times what came from there. A path belongs to the two peers, not to one of their sessions: its probes may go
//! in frames of any of them, and each is answered in a frame of the session it came in. A session's packets take the path
//! only after a probe in one of its own frames was answered. Close: the sender has dropped the session's keys.
//! Messages of other kinds, too short, or padded with anything but zeros are dropped.
//!
//! # What a receiver does, in this order
//!
//! 1. First byte, reserved bytes, at least 40 bytes in all, a known index: else drop.
//! 2. The counter must not have been seen, nor be 8192 or more behind the newest: else drop.
//! 3. Open. A frame that does not open changes nothing but a statistic.
//! 4. Only now the counter is marked as seen, and only now a newer counter than any before may move the peer's address.
//! 5. Trailer and body, as above.
//! 6. Every packet that comes out: exactly as long as its IP header says, its source leased in this subnet to this peer, its
//!    destination ours; else drop. Then it is written.
//!
//! A receiver answers nothing but control messages, and tells the sender of no drop.

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
            Trailer::Packet { partial } => {
                first_byte(PACKET, if partial { Kind::Partial } else { Kind::None })
            }
            Trailer::Bundle => first_byte(BUNDLE, Kind::None),
            Trailer::Control => first_byte(CONTROL, Kind::None),
            Trailer::Piece { piece, id } => {
                let byte = |value: usize| u8::try_from(value);
                let (Ok(headers), Ok(index), Ok(last), Ok(size)) = (
                    byte(piece.headers),
                    byte(piece.index),
                    byte(piece.last),
                    u16::try_from(piece.size),
                ) else {
                    return [0; TRAILER];
                };
                let ([s0, s1], [i0, i1]) = (size.to_be_bytes(), id.to_be_bytes());
                [
                    PIECE << 4 | piece.kind as u8,
                    headers,
                    index,
                    last,
                    s0,
                    s1,
                    i0,
                    i1,
                ]
            }
        }
    }

    /// Reads the eight bytes; none where a field has a value that no sender gives it.
    pub fn decode(bytes: [u8; TRAILER]) -> Option<Trailer> {
        let [kinds, headers, index, last, s0, s1, i0, i1] = bytes;
        let kind = Kind::from_number(kinds & 15)?;
        if kinds >> 4 == PIECE {
            let size = usize::from(u16::from_be_bytes([s0, s1]));
            let (headers, index, last) =
                (usize::from(headers), usize::from(index), usize::from(last));
            let piece = Piece {
                kind,
                headers,
                index,
                last,
                size,
            };
            let fits = headers.saturating_add(last.saturating_mul(size)) < MAX_PACKET;
            let good =
                !matches!(kind, Kind::None | Kind::Partial) && index <= last && size > 0 && fits;
            return good.then_some(Trailer::Piece {
                piece,
                id: u16::from_be_bytes([i0, i1]),
            });
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
    let Ok(length) = u16::try_from(packet.len()) else {
        return false;
    };
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
    let good =
        *flags & !PARTIAL == 0 && *zero == 0 && (MIN_PACKET..=behind.len()).contains(&length);
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
    /// A message of `peer::session`.
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
                let Ok(length) = u16::try_from(message.len()) else {
                    return false;
                };
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
                (
                    Control::Probe {
                        token: u64::from_be_bytes(*token),
                    },
                    rest,
                )
            }
            ANSWER => {
                let (token, rest) = rest.split_first_chunk()?;
                let ([p0, p1, family], rest) = rest.split_first_chunk()?;
                let (ip, rest) = match *family {
                    4 => rest
                        .split_first_chunk()
                        .map(|(ip, rest)| (IpAddr::V4(Ipv4Addr::from(*ip)), rest))?,
                    6 => rest
                        .split_first_chunk()
                        .map(|(ip, rest)| (IpAddr::V6(Ipv6Addr::from(*ip)), rest))?,
                    _ => return None,
                };
                let seen = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes([*p0, *p1]));
                (
                    Control::Answer {
                        token: u64::from_be_bytes(*token),
                        seen,
                    },
                    rest,
                )
            }
            REKEY => {
                let (length, rest) = rest.split_first_chunk()?;
                let (message, rest) =
                    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
                (Control::Rekey(message), rest)
            }
            CLOSE => (Control::Close, rest),
            _ => return None,
        };
        padding.iter().all(|byte| *byte == 0).then_some(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::cut::Cut;
    use crate::packet::parse::samples::{arrivals, fates, ip, super_packets, udp};
    use crate::packet::rejoin::rejoin;
    use crate::packet::segment::{segment, tests::slow_twin};
    use crate::packet::{offload::Rebuild, parse};
    use proptest::prelude::*;

    /// A second reading of the format, made from this module's text alone: no function of the codec, of `rejoin` or of the
    /// checksums is called. Every piece becomes a packet of its own, as a receiver without offload would write it.
    mod by_hand {
        fn number(bytes: &[u8]) -> u64 {
            bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
        }

        /// The checksum of RFC 1071, word by word.
        fn checksum(parts: &[&[u8]]) -> [u8; 2] {
            let all: Vec<u8> = parts.concat();
            let mut sum = 0u64;
            for i in (0..all.len()).step_by(2) {
                sum += u64::from(all[i]) * 256 + all.get(i + 1).map_or(0, |b| u64::from(*b));
            }
            while sum >= 0x1_0000 {
                sum = sum % 0x1_0000 + sum / 0x1_0000;
            }
            let value = 0xffff - sum as u16;
            if value == 0 {
                [0xff, 0xff]
            } else {
                value.to_be_bytes()
            }
        }

        /// Writes the TCP or UDP checksum into a packet whose transport header begins at `at`.
        fn finish(packet: &mut [u8], at: usize, protocol: u8) {
            let field = at + if protocol == 6 { 16 } else { 6 };
            packet[field..field + 2].fill(0);
            let addresses = if packet[0] >> 4 == 4 {
                packet[12..20].to_vec()
            } else {
                packet[8..40].to_vec()
            };
            let length = ((packet.len() - at) as u32).to_be_bytes();
            let sum = checksum(&[&addresses, &[0, protocol], &length, &packet[at..]]);
            packet[field..field + 2].copy_from_slice(&sum);
        }

        /// The packets of one plaintext that is no control message.
        pub fn packets(plaintext: &[u8]) -> Vec<Vec<u8>> {
            let (body, t) = plaintext.split_at(plaintext.len() - 8);
            match t[0] >> 4 {
                1 => {
                    assert!(t[0] & 15 < 2 && t[1..] == [0; 7]);
                    vec![packet(body, t[0] & 15 == 1)]
                }
                2 => {
                    assert!(t[0] & 15 == 0 && t[1..] == [0; 7]);
                    let (mut out, mut rest) = (Vec::new(), body);
                    while !rest.is_empty() {
                        let length = number(&rest[..2]) as usize;
                        assert!(rest[2] < 2 && rest[3] == 0);
                        out.push(packet(&rest[4..4 + length], rest[2] == 1));
                        rest = &rest[4 + length..];
                    }
                    out
                }
                3 => vec![piece(body, t)],
                kind => panic!("kind {kind}"),
            }
        }

        /// A whole packet, its checksum computed if that was left undone.
        fn packet(bytes: &[u8], partial: bool) -> Vec<u8> {
            let mut out = bytes.to_vec();
            if partial {
                // Enough for what the tests send: no extension headers.
                let (at, protocol) = if out[0] >> 4 == 4 {
                    (usize::from(out[0] % 16) * 4, out[9])
                } else {
                    (40, out[6])
                };
                finish(&mut out, at, protocol);
            }
            out
        }

        fn piece(body: &[u8], t: &[u8]) -> Vec<u8> {
            let (kind, headers, index, last) =
                (t[0] & 15, usize::from(t[1]), usize::from(t[2]), t[3]);
            let (v4, tcp) = (kind == 2 || kind == 4, kind == 2 || kind == 3);
            let size = number(&t[4..6]) as usize;
            let (payload, head) = body.split_at(body.len() - headers);
            let ends = index == usize::from(last);
            assert!(if ends {
                !payload.is_empty() && payload.len() <= size
            } else {
                payload.len() == size
            });
            let mut out = [head, payload].concat();
            let length = out.len();
            if v4 {
                out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                let id = number(&out[4..6]) as usize + index;
                out[4..6].copy_from_slice(&(id as u16).to_be_bytes());
                out[10..12].fill(0);
                let head = usize::from(out[0] % 16) * 4;
                let sum = match checksum(&[&out[..head]]) {
                    // The header's own checksum has no two zeros to choose from.
                    [0xff, 0xff] => [0, 0],
                    sum => sum,
                };
                out[10..12].copy_from_slice(&sum);
            } else {
                out[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            }
            // The transport header is the last of the headers.
            let at = if !tcp {
                headers - 8
            } else if v4 {
                usize::from(out[0] % 16) * 4
            } else {
                let (mut next, mut at) = (out[6], 40);
                while next != 6 {
                    (next, at) = (out[at], at + (usize::from(out[at + 1]) + 1) * 8);
                }
                at
            };
            if tcp {
                let sequence = number(&out[at + 4..at + 8]) + (index * size) as u64;
                out[at + 4..at + 8].copy_from_slice(&(sequence as u32).to_be_bytes());
                if !ends {
                    // FIN and PSH.
                    out[at + 13] &= 0b1111_0110;
                }
                if index > 0 {
                    // CWR.
                    out[at + 13] &= 0b0111_1111;
                }
            } else {
                out[at + 4..at + 6].copy_from_slice(&((length - at) as u16).to_be_bytes());
            }
            finish(&mut out, at, if tcp { 6 } else { 17 });
            out
        }
    }

    /// What a sender seals: one plaintext for each piece.
    fn plaintexts(bytes: &[u8], cut: &Cut, id: u16) -> Vec<Vec<u8>> {
        let plaintext = |index| {
            let trailer = Trailer::Piece {
                piece: cut.describe(index),
                id,
            }
            .encode();
            [&bytes[cut.piece(index)], &bytes[..cut.headers], &trailer].concat()
        };
        (0..cut.count).map(plaintext).collect()
    }

    /// A receiver as `link` has it: every plaintext is opened to the end of the growing packet, over the headers and the
    /// trailer of the one before.
    struct Receiver {
        buffer: Vec<u8>,
        run: Option<(Piece, u16, usize)>,
        end: usize,
        got: Vec<Vec<u8>>,
    }

    impl Receiver {
        const BASE: usize = 256;

        fn new() -> Receiver {
            Receiver {
                buffer: vec![0; Self::BASE + 2 * MAX_PACKET],
                run: None,
                end: Self::BASE,
                got: Vec::new(),
            }
        }

        fn take(&mut self, plaintext: &[u8]) {
            if self.end + plaintext.len() > self.buffer.len() {
                self.flush();
            }
            let at = if self.run.is_some() {
                self.end
            } else {
                Self::BASE
            };
            self.buffer[at..at + plaintext.len()].copy_from_slice(plaintext);
            let Some((body, Trailer::Piece { piece, id })) =
                split(&self.buffer[at..at + plaintext.len()])
            else {
                return;
            };
            let Some(payload) = body.checked_sub(piece.headers).filter(|p| piece.holds(*p)) else {
                return;
            };
            match &mut self.run {
                Some((first, former, count))
                    if *former == id && first.is_followed_by(*count, &piece) =>
                {
                    *count += 1
                }
                _ => {
                    self.flush();
                    self.buffer.copy_within(at..at + body, Self::BASE);
                    let headers = Self::BASE + payload..Self::BASE + body;
                    self.buffer.copy_within(headers, Self::BASE - piece.headers);
                    self.run = Some((piece, id, 1));
                    self.end = Self::BASE;
                }
            }
            self.end += payload;
        }

        fn flush(&mut self) {
            let Some((first, _, count)) = self.run.take() else {
                return;
            };
            let bytes = &mut self.buffer[Self::BASE - first.headers..self.end];
            self.end = Self::BASE;
            let Ok(offload) = rejoin(bytes, &first, count) else {
                return;
            };
            let Ok(packet) = parse(bytes) else { return };
            let Ok(rebuild) = Rebuild::plan(&packet, &offload) else {
                return;
            };
            rebuild.apply(bytes);
            segment(bytes, &packet, &offload, &mut Vec::new(), |p| {
                self.got.push(p.to_vec())
            })
            .unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn two_readings_of_the_format_agree((bytes, offload) in super_packets(), room in 60usize..2000, id: u16, fates in fates()) {
            let packet = parse(&bytes).unwrap();
            prop_assume!(Rebuild::plan(&packet, &offload).is_ok());
            let Some(cut) = Cut::plan(&packet, &offload, room) else { return Ok(()) };
            let sent = plaintexts(&bytes, &cut, id);
            let twin = slow_twin(&bytes, cut.size);
            let by_hand: Vec<_> = sent.iter().flat_map(|p| by_hand::packets(p)).collect();
            prop_assert_eq!(&by_hand, &twin);
            let (mut receiver, mut want) = (Receiver::new(), Vec::new());
            for index in arrivals(cut.count, &fates) {
                prop_assert!(sent[index].len() <= room + TRAILER);
                receiver.take(&sent[index]);
                want.push(twin[index].clone());
            }
            receiver.flush();
            prop_assert_eq!(receiver.got, want);
        }

        #[test]
        fn trailers_read_back_and_nothing_else_does(bytes: [u8; 8], frame in 0u8..6, kind in 0u8..8, zeros: bool) {
            let mut bytes = bytes;
            bytes[0] = frame << 4 | kind;
            if zeros { bytes[1..].fill(0); }
            if let Some(trailer) = Trailer::decode(bytes) {
                prop_assert_eq!(trailer.encode(), bytes);
                if let Trailer::Piece { piece, .. } = trailer {
                    prop_assert!(piece.index <= piece.last && piece.headers + piece.last * piece.size < MAX_PACKET);
                }
            }
        }

        #[test]
        fn damage_never_panics_nor_grows_a_packet((bytes, offload) in super_packets(), room in 100usize..2000, damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..150, any::<u8>()), 1..40)) {
            let packet = parse(&bytes).unwrap();
            let Some(cut) = Cut::plan(&packet, &offload, room) else { return Ok(()) };
            let (mut sent, mut receiver) = (plaintexts(&bytes, &cut, 7), Receiver::new());
            for (which, back, value) in damage {
                // Trailer and headers are at the end.
                let plaintext = which.get_mut(&mut sent);
                let at = plaintext.len().saturating_sub(back + 1);
                plaintext[at] = if value < 100 { plaintext[at] ^ 1 << (value % 8) } else { value };
                if value > 240 { plaintext.truncate(at); }
                if plaintext.is_empty() { plaintext.push(value); }
            }
            for plaintext in &sent { receiver.take(plaintext); }
            receiver.flush();
            for packet in &receiver.got { prop_assert_eq!(parse(packet).map(|p| p.length), Ok(packet.len())); }
        }

        #[test]
        fn garbage_never_panics(frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 0u8..8), 1..60)) {
            let mut receiver = Receiver::new();
            for (mut frame, kind) in frames {
                let at = frame.len().saturating_sub(8);
                if let Some(first) = frame.get_mut(at) && kind > 0 { *first = 0x30 + kind % 6; }
                receiver.take(&frame);
            }
            receiver.flush();
        }

        #[test]
        fn bundles_read_back(packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 20..200), any::<bool>()), 0..12)) {
            let mut body = Vec::new();
            for (packet, partial) in &packets { prop_assert!(append(&mut body, packet, *partial)); }
            let (mut bundle, mut got) = (Bundle::default(), Vec::new());
            while let Some(entry) = bundle.next(&body) {
                let (partial, range) = entry.unwrap();
                got.push((body[range].to_vec(), partial));
            }
            prop_assert_eq!(got, packets);
        }

        #[test]
        fn garbage_in_a_bundle_ends_it(mut body in prop::collection::vec(any::<u8>(), 0..300), small: bool) {
            if small { for at in (0..body.len()).step_by(2) { body[at] = 0; } }
            let (mut bundle, mut end, mut failed) = (Bundle::default(), 0, false);
            while let Some(entry) = bundle.next(&body) {
                prop_assert!(!failed, "nothing comes behind an error");
                match entry {
                    Ok((_, range)) => {
                        prop_assert!(range.start == end + ENTRY && range.len() >= 20 && range.end <= body.len());
                        end = range.end;
                    }
                    Err(_) => failed = true,
                }
            }
            prop_assert!(failed || end == body.len());
        }

        #[test]
        fn control_reads_back(token: u64, port: u16, v4: [u8; 4], v6: [u8; 16], which in 0u8..5, message in prop::collection::vec(any::<u8>(), 0..1300), pad in 0usize..1500) {
            let sent = match which {
                0 => Control::Probe { token },
                1 => Control::Answer { token, seen: (Ipv4Addr::from(v4), port).into() },
                2 => Control::Answer { token, seen: SocketAddr::new(IpAddr::V6(v6.into()).to_canonical(), port) },
                3 => Control::Rekey(&message),
                _ => Control::Close,
            };
            let mut body = vec![7; 3];
            prop_assert!(sent.encode(pad, &mut body));
            prop_assert!(body.len() >= pad);
            prop_assert_eq!(Control::decode(&body), Some(sent));
            if pad < body.len() {
                for short in 0..body.len() { prop_assert_eq!(Control::decode(&body[..short]), None); }
            }
            body.push(1);
            prop_assert_eq!(Control::decode(&body), None, "padding is zeros");
        }

        #[test]
        fn control_decode_never_panics(body in prop::collection::vec(0u8..8, 0..60)) {
            if let Some(control) = Control::decode(&body) {
                let mut again = Vec::new();
                prop_assert!(control.encode(body.len(), &mut again));
                prop_assert!(Control::decode(&again) == Some(control) && again.len() == body.len());
            }
        }
    }

    #[test]
    fn bytes_are_as_written_down() {
        // Frame kind in the high half, offload kind in the low; the rest of these is unused.
        assert_eq!(
            Trailer::Packet { partial: false }.encode(),
            [0x10, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Trailer::Packet { partial: true }.encode(),
            [0x11, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(Trailer::Bundle.encode(), [0x20, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Trailer::Control.encode(), [0x40, 0, 0, 0, 0, 0, 0, 0]);
        // TCP over IPv4, 52 bytes of headers, piece 3 of 44 (0 to 43), 1368 bytes each, super-packet 0xabcd.
        let piece = Piece {
            kind: Kind::Tcp4,
            headers: 52,
            index: 3,
            last: 43,
            size: 1368,
        };
        assert_eq!(
            Trailer::Piece { piece, id: 0xabcd }.encode(),
            [0x32, 52, 3, 43, 0x05, 0x58, 0xab, 0xcd]
        );
        let udp6 = Piece {
            kind: Kind::Udp6,
            headers: 48,
            index: 0,
            last: 255,
            size: 1,
        };
        assert_eq!(
            Trailer::decode([0x35, 48, 0, 255, 0, 1, 0, 0]),
            Some(Trailer::Piece { piece: udp6, id: 0 })
        );
        for (bad, why) in [
            ([0x00, 0, 0, 0, 0, 0, 0, 0], "no kind"),
            ([0x50, 0, 0, 0, 0, 0, 0, 0], "unknown frame kind"),
            (
                [0x12, 0, 0, 0, 0, 0, 0, 0],
                "a packet that is a super-packet",
            ),
            ([0x10, 0, 0, 0, 0, 0, 0, 1], "an unused field in use"),
            ([0x21, 0, 0, 0, 0, 0, 0, 0], "an unused field in use"),
            ([0x41, 0, 0, 0, 0, 0, 0, 0], "an unused field in use"),
            ([0x31, 52, 0, 0, 0, 100, 0, 0], "a piece of no super-packet"),
            ([0x36, 52, 0, 0, 0, 100, 0, 0], "unknown offload kind"),
            ([0x32, 52, 2, 1, 0, 100, 0, 0], "behind the last"),
            ([0x32, 52, 0, 1, 0, 0, 0, 0], "no size"),
            (
                [0x32, 52, 0, 255, 1, 1, 0, 0],
                "larger than a packet can be",
            ),
        ] {
            assert_eq!(Trailer::decode(bad), None, "{why}");
        }
        let too_many = Piece {
            index: 256,
            last: 256,
            ..udp6
        };
        assert_eq!(
            Trailer::decode(
                Trailer::Piece {
                    piece: too_many,
                    id: 0
                }
                .encode()
            ),
            None
        );
        assert_eq!(
            (split(&[0x20; 7]), split(&[0x10, 0, 0, 0, 0, 0, 0, 0])),
            (None, Some((0, Trailer::Packet { partial: false })))
        );

        // Length, flags, zero; then the packet.
        let mut body = Vec::new();
        assert!(append(&mut body, &[0x45; 20], true) && append(&mut body, &[0x60; 300], false));
        assert_eq!(
            (&body[..5], &body[24..29]),
            (&[0, 20, 1, 0, 0x45][..], &[1, 44, 0, 0, 0x60][..])
        );
        assert!(
            !append(&mut body, &[0x45; 19], false)
                && !append(&mut body, &vec![0x45; 65_536], false)
        );
        assert_eq!(body.len(), 24 + 304);
        for (at, value) in [(1, 19), (2, 2), (2, 3), (3, 1), (24, 2), (26, 0x80)] {
            let mut bad = body.clone();
            bad[at] = value;
            let mut bundle = Bundle::default();
            let read: Vec<_> = std::iter::from_fn(|| bundle.next(&bad)).collect();
            assert_eq!(
                read.last(),
                Some(&Err(DropReason::Malformed)),
                "byte {at} is {value}"
            );
        }

        let encoded = |control: Control<'_>, pad| {
            let mut out = Vec::new();
            assert!(control.encode(pad, &mut out));
            out
        };
        assert_eq!(
            encoded(
                Control::Probe {
                    token: 0x0102_0304_0506_0708
                },
                12
            ),
            [1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0]
        );
        let seen = "192.0.2.7:4100".parse().unwrap();
        assert_eq!(
            encoded(Control::Answer { token: 9, seen }, 0),
            [2, 0, 0, 0, 0, 0, 0, 0, 9, 0x10, 0x04, 4, 192, 0, 2, 7]
        );
        let mapped = "[::ffff:192.0.2.7]:4100".parse().unwrap();
        assert_eq!(
            Control::decode(&encoded(
                Control::Answer {
                    token: 9,
                    seen: mapped
                },
                0
            )),
            Some(Control::Answer { token: 9, seen })
        );
        assert_eq!(
            encoded(
                Control::Answer {
                    token: 9,
                    seen: "[2001:db8::1]:1".parse().unwrap()
                },
                0
            )[9..14],
            [0, 1, 6, 0x20, 0x01]
        );
        assert_eq!(
            encoded(Control::Rekey(b"abc"), 7),
            [3, 0, 3, b'a', b'b', b'c', 0]
        );
        assert_eq!(encoded(Control::Close, 0), [4]);
        for bad in [
            &[][..],
            &[0],
            &[5],
            &[2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 5, 1, 2, 3, 4],
            &[3, 0, 4, 1, 2, 3],
            &[4, 0, 1],
        ] {
            assert_eq!(Control::decode(bad), None, "{bad:?}");
        }
        let mut out = Vec::new();
        assert!(
            !Control::Close.encode(MAX_CONTROL + 1, &mut out)
                && !Control::Rekey(&[0; 65_505]).encode(0, &mut out)
        );
        assert!(out.is_empty());
    }

    #[test]
    fn small_packets_are_read_by_hand_too() {
        let whole = udp(ip("10.0.0.1"), ip("10.0.0.2"), b"whole");
        let mut partial = whole.clone();
        partial[26..28].copy_from_slice(&[1, 2]);
        let mut body = Vec::new();
        assert!(append(&mut body, &whole, false) && append(&mut body, &partial, true));
        body.extend_from_slice(&Trailer::Bundle.encode());
        assert_eq!(by_hand::packets(&body), [whole.clone(), whole.clone()]);
        let single = [&partial[..], &Trailer::Packet { partial: true }.encode()].concat();
        assert_eq!(by_hand::packets(&single), [whole]);
    }
}
