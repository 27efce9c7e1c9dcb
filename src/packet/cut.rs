//! Cutting a super-packet for a path, without touching it: which payload goes into which piece.
//!
//! Cheaper than [`segment`](super::segment): the headers travel with every piece as they are and the receiver, which joins
//! consecutive pieces again ([`rejoin`](super::rejoin)), works out what changes from piece to piece.

use std::ops::Range;

use super::offload::{Kind, Offload};
use super::parse::Packet;
use super::rejoin::Piece;

/// Most pieces of one super-packet: an index is one byte.
const MAX_PIECES: usize = 256;
/// Bytes of the largest headers: their length is one byte.
const MAX_HEADERS: usize = 255;
/// Least payload of a piece of TCP, as the receiver wants it: the kernel's least MSS without its options.
const MIN_TCP_SIZE: usize = 8;

/// How one super-packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of its headers, which every piece carries.
    pub headers: usize,
    /// Payload bytes of every piece but the last.
    pub size: usize,
    /// Pieces, 1 to 256.
    pub count: usize,
    kind: Kind,
    length: usize,
}

impl Cut {
    /// How to cut a super-packet whose `offload` was checked by [`Outgoing`](super::offload::Outgoing), for frames that
    /// take `room` bytes of headers and payload. None where it is no super-packet or cannot be cut so: the caller makes
    /// packets of it by [`segment`](super::segment::segment).
    ///
    /// TCP is a stream of bytes and may be cut smaller than its kernel asked for; of UDP every piece is a datagram.
    pub fn plan(packet: &Packet, offload: &Offload, room: usize) -> Option<Cut> {
        let (headers, wanted) = (packet.headers, usize::from(offload.gso_size));
        let fitting = room.checked_sub(headers)?;
        let (size, least) = match offload.kind {
            Kind::None | Kind::Partial => return None,
            Kind::Tcp4 | Kind::Tcp6 => (wanted.min(fitting), MIN_TCP_SIZE),
            Kind::Udp4 | Kind::Udp6 => (wanted, 1),
        };
        if headers > MAX_HEADERS || size < least || size > fitting {
            return None;
        }
        let count = packet.payload().div_ceil(size);
        let cut = Cut { headers, size, count, kind: offload.kind, length: packet.length };
        (1..=MAX_PIECES).contains(&count).then_some(cut)
    }

    /// Where the payload of piece `index` lies in the packet; empty behind the last.
    pub fn piece(&self, index: usize) -> Range<usize> {
        let start = self.headers.saturating_add(index.saturating_mul(self.size)).min(self.length);
        start..start.saturating_add(self.size).min(self.length)
    }

    /// What the receiver is told about piece `index`.
    pub fn describe(&self, index: usize) -> Piece {
        let last = self.count.saturating_sub(1);
        Piece { kind: self.kind, headers: self.headers, index, last, size: self.size }
    }
}
