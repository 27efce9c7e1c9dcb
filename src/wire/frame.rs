//! Packets on a byte stream: frames, one behind the other.
//!
//! All numbers are big-endian. The side that opened the stream first sends a stream header, which names the version and the
//! subnet, and waits for the other side's consent: both belong to `p2p`, which opens streams, and are shown here to have the
//! whole stream in one place. From then on the stream carries frames in the opener's direction only.
//!
//! ```text
//! header     0         1                                17       consent    0          1
//!           +---------+--------------------------------+                   +----------+
//!           | version | subnet ID                      |                   | accepted |
//!           +---------+--------------------------------+                   +----------+
//!
//! frame      0        4      5         6          8            10
//!           +--------+------+---------+----------+------------+---------+
//!           | length | kind | offload | gso size | header len | body    |
//!           +--------+------+---------+----------+------------+---------+
//! ```
//!
//! `length` counts what follows it: 6 to 65,581 bytes. Kinds: 0 a packet; 1 a ping and 2 its answer, whose body is an
//! 8-byte token and whose other fields are zero; 3 a filler, as [`datagram`](super::datagram) has it; 4 the number by which
//! its writer calls the stream, in 8 bytes, which comes first in it; 5 a receipt, which goes the other way: the number of the
//! stream that it is about and the bytes that were read of that stream in all, 8 bytes each. Frames of other kinds are
//! skipped, so that a later version may send them.
//! `offload` is a [`Kind`], `gso size` and `header len` are those of [`Offload`]: claims of the sender, which the receiver
//! checks against the packet.

use crate::packet::offload::{Kind, Offload};
use crate::packet::parse::MAX_PACKET;

/// Bytes of a frame in front of its body.
pub const HEADER_LEN: usize = 10;
/// Bytes of the largest frame, header included.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PACKET;
/// Bytes of a ping or pong frame.
pub const PING_LEN: usize = HEADER_LEN + 8;
/// Bytes of a receipt frame.
pub const RECEIPT_LEN: usize = HEADER_LEN + 16;

/// Bytes a frame's length field does not count: itself.
const LENGTH_FIELD: usize = 4;
/// Buffer of a quiet stream, in bytes.
const SMALL_BUFFER: usize = 16 * 1024;
/// Buffer of a busy stream, in bytes: room behind the largest unfinished frame keeps reads large and moves rare.
const LARGE_BUFFER: usize = 3 * MAX_FRAME;

const PACKET: u8 = 0;
const PING: u8 = 1;
const PONG: u8 = 2;
const FILLER: u8 = 3;
const NUMBER: u8 = 4;
const RECEIPT: u8 = 5;

/// The stream cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame states a length above that of the largest frame.
    #[error("frame of {0} bytes, the largest has 65585")]
    Oversize(u64),
    /// The frame states a length too small for its own header.
    #[error("frame of {0} bytes is shorter than its header")]
    Short(u64),
}

/// The header of a packet frame whose body has `packet` bytes (at most [`MAX_PACKET`]).
pub fn packet_header(offload: &Offload, packet: usize) -> [u8; HEADER_LEN] {
    header(PACKET, offload, packet)
}

/// Makes a ping frame, whose answer repeats `token`.
pub fn ping(token: u64) -> [u8; PING_LEN] {
    token_frame(PING, token)
}

/// Makes the answer to a ping with that token.
pub fn pong(token: u64) -> [u8; PING_LEN] {
    token_frame(PONG, token)
}

/// Makes the frame that begins a stream: the number by which receipts call it.
pub fn number(stream: u64) -> [u8; PING_LEN] {
    token_frame(NUMBER, stream)
}

/// Makes a receipt: so many bytes were read of the peer's stream of that number.
pub fn receipt(receipt: Receipt) -> [u8; RECEIPT_LEN] {
    let mut out = [0; RECEIPT_LEN];
    let parts = header(RECEIPT, &Offload::NONE, 16)
        .into_iter()
        .chain(receipt.stream.to_be_bytes())
        .chain(receipt.bytes.to_be_bytes());
    out.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    out
}

/// Makes a filler frame of that body, whose end is cut off beyond [`MAX_PACKET`] bytes.
pub fn filler(body: &[u8]) -> Vec<u8> {
    let body = body.get(..MAX_PACKET).unwrap_or(body);
    [&header(FILLER, &Offload::NONE, body.len()), body].concat()
}

fn header(kind: u8, offload: &Offload, body: usize) -> [u8; HEADER_LEN] {
    let length = body.saturating_add(HEADER_LEN - LENGTH_FIELD);
    let [l0, l1, l2, l3] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let [g0, g1] = offload.gso_size.to_be_bytes();
    let [h0, h1] = offload.header_len.to_be_bytes();
    [l0, l1, l2, l3, kind, offload.kind as u8, g0, g1, h0, h1]
}

fn token_frame(kind: u8, token: u64) -> [u8; PING_LEN] {
    let mut out = [0; PING_LEN];
    let (head, body) = out.split_at_mut(HEADER_LEN);
    head.copy_from_slice(&header(kind, &Offload::NONE, 8));
    body.copy_from_slice(&token.to_be_bytes());
    out
}

/// Bytes of the first of several whole frames, and whether it is a packet; none where it does not end within `frames`.
pub fn first(frames: &[u8]) -> Option<(usize, bool)> {
    let ([l0, l1, l2, l3, kind], _) = frames.split_first_chunk()?;
    let stated = u32::from_be_bytes([*l0, *l1, *l2, *l3]);
    let whole = usize::try_from(stated).ok()?.checked_add(LENGTH_FIELD)?;
    (HEADER_LEN..=frames.len())
        .contains(&whole)
        .then_some((whole, *kind == PACKET))
}

/// How far the reader of a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The number that the stream's writer gave it.
    pub stream: u64,
    /// Bytes read of it in all, frames' headers included.
    pub bytes: u64,
}

/// A frame that was read whole from the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The frame is a packet, with what the sender claims about it.
    Packet {
        /// The work that the sender says is left undone; it is not checked against the packet.
        offload: Offload,
        /// Where the packet lies, for [`Decoder::body`].
        body: Body,
    },
    /// The frame has to be answered with a pong of this token.
    Ping(u64),
    /// The frame answers our ping of this token.
    Pong(u64),
    /// The frame says by which number receipts are to call the stream it stands in.
    Number(u64),
    /// The frame is a receipt for a stream of ours.
    Receipt(Receipt),
    /// The frame is a filler, whose body is to be counted and dropped.
    Filler(Body),
    /// The frame is of a known kind and holds something else: it is dropped and counted, and the
    /// stream goes on.
    Malformed,
}

/// Where a frame's body lies in its decoder, until [`Decoder::space`] is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    start: usize,
    end: usize,
}

/// Takes bytes as they come and gives frames. Its buffer grows with what was received, never by a stated length.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            buffer: vec![0; SMALL_BUFFER],
            start: 0,
            end: 0,
        }
    }
}

impl Decoder {
    /// Where the next bytes of the stream go; never empty once [`decode`](Self::decode) gave `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && self.buffer.len().saturating_sub(self.end) < MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        if self.end.saturating_mul(2) > self.buffer.len() && self.buffer.len() < LARGE_BUFFER {
            // Half full with one unfinished frame: the stream is busy.
            self.buffer.resize(LARGE_BUFFER, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that the first `count` bytes of [`space`](Self::space) now hold bytes of the stream.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// The next complete frame, if there is one.
    ///
    /// # Errors
    /// [`FrameError::Oversize`] and [`FrameError::Short`]: where the next frame begins is unknown, the stream is over.
    pub fn decode(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(pending) = self.buffer.get(self.start..self.end) else {
                return Ok(None);
            };
            let Some((length, _)) = pending.split_first_chunk::<LENGTH_FIELD>() else {
                return Ok(None);
            };
            let stated = u32::from_be_bytes(*length);
            let whole = usize::try_from(stated)
                .unwrap_or(usize::MAX)
                .saturating_add(LENGTH_FIELD);
            if whole > MAX_FRAME {
                return Err(FrameError::Oversize(u64::from(stated).saturating_add(4)));
            }
            if whole < HEADER_LEN {
                return Err(FrameError::Short(u64::from(stated).saturating_add(4)));
            }
            if pending.len() < whole {
                return Ok(None);
            }
            let from = self.start;
            self.start = self.start.saturating_add(whole);
            let body = Body {
                start: from.saturating_add(HEADER_LEN),
                end: self.start,
            };
            if let Some(frame) = self
                .buffer
                .get(from..self.start)
                .and_then(|frame| read_frame(frame, body))
            {
                return Ok(Some(frame));
            }
        }
    }

    /// The bytes of a packet frame; the receiver may change them in place.
    pub fn body(&mut self, body: Body) -> &mut [u8] {
        self.buffer
            .get_mut(body.start..body.end)
            .unwrap_or_default()
    }
}

/// Reads one complete frame; none of an unknown kind.
fn read_frame(frame: &[u8], body: Body) -> Option<Frame> {
    let ([_, _, _, _, kind, offload, g0, g1, h0, h1], bytes) =
        frame.split_first_chunk::<HEADER_LEN>()?;
    let token = || <[u8; 8]>::try_from(bytes).map(u64::from_be_bytes);
    let gso_size = u16::from_be_bytes([*g0, *g1]);
    let header_len = u16::from_be_bytes([*h0, *h1]);
    match *kind {
        PACKET => Some(
            Kind::from_number(*offload).map_or(Frame::Malformed, |kind| {
                let offload = Offload {
                    kind,
                    gso_size,
                    header_len,
                };
                Frame::Packet { offload, body }
            }),
        ),
        PING => Some(token().map_or(Frame::Malformed, Frame::Ping)),
        PONG => Some(token().map_or(Frame::Malformed, Frame::Pong)),
        NUMBER => Some(token().map_or(Frame::Malformed, Frame::Number)),
        RECEIPT => Some(read_receipt(bytes).map_or(Frame::Malformed, Frame::Receipt)),
        FILLER => Some(Frame::Filler(body)),
        _ => None,
    }
}

fn read_receipt(bytes: &[u8]) -> Option<Receipt> {
    let (stream, bytes) = bytes.split_first_chunk::<8>()?;
    Some(Receipt {
        stream: u64::from_be_bytes(*stream),
        bytes: u64::from_be_bytes(*bytes.first_chunk::<8>().filter(|_| bytes.len() == 8)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq)]
    enum Sent {
        Packet(Offload, Vec<u8>),
        Ping(u64),
        Pong(u64),
        Number(u64),
        Receipt(u64, u64),
        Filler(Vec<u8>),
        Unknown(u8, Vec<u8>),
    }

    fn encode(sent: &Sent, out: &mut Vec<u8>) {
        match sent {
            Sent::Packet(offload, bytes) => {
                out.extend_from_slice(&packet_header(offload, bytes.len()));
                out.extend_from_slice(bytes);
            }
            Sent::Ping(token) => out.extend_from_slice(&ping(*token)),
            Sent::Pong(token) => out.extend_from_slice(&pong(*token)),
            Sent::Number(stream) => out.extend_from_slice(&number(*stream)),
            Sent::Receipt(stream, bytes) => {
                let (stream, bytes) = (*stream, *bytes);
                out.extend_from_slice(&receipt(Receipt { stream, bytes }));
            }
            Sent::Filler(bytes) => out.extend_from_slice(&filler(bytes)),
            Sent::Unknown(kind, bytes) => {
                out.extend_from_slice(&header(*kind, &Offload::NONE, bytes.len()));
                out.extend_from_slice(bytes);
            }
        }
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let body = || {
            prop_oneof![Just(0usize), 0usize..200, Just(1400), Just(MAX_PACKET)]
                .prop_map(|n| vec![0x5a; n])
        };
        prop_oneof![
            (0u8..6, any::<u16>(), any::<u16>(), body()).prop_map(
                |(k, gso_size, header_len, b)| {
                    Sent::Packet(
                        Offload {
                            kind: Kind::from_number(k).unwrap(),
                            gso_size,
                            header_len,
                        },
                        b,
                    )
                }
            ),
            any::<u64>().prop_map(Sent::Ping),
            any::<u64>().prop_map(Sent::Pong),
            any::<u64>().prop_map(Sent::Number),
            any::<(u64, u64)>().prop_map(|(stream, bytes)| Sent::Receipt(stream, bytes)),
            body().prop_map(Sent::Filler),
            (6u8..=255, body()).prop_map(|(k, b)| Sent::Unknown(k, b)),
        ]
    }

    fn decode_all(bytes: &[u8], chunk: usize) -> Result<Vec<Sent>, FrameError> {
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = decoder.space();
            let n = space.len().min(chunk).min(rest.len());
            assert!(n > 0, "a decoder that wants more has room for more");
            space[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            decoder.filled(n);
            while let Some(frame) = decoder.decode()? {
                match frame {
                    Frame::Packet { offload, body } => {
                        got.push(Sent::Packet(offload, decoder.body(body).to_vec()))
                    }
                    Frame::Ping(token) => got.push(Sent::Ping(token)),
                    Frame::Pong(token) => got.push(Sent::Pong(token)),
                    Frame::Number(stream) => got.push(Sent::Number(stream)),
                    Frame::Receipt(read) => got.push(Sent::Receipt(read.stream, read.bytes)),
                    Frame::Filler(body) => got.push(Sent::Filler(decoder.body(body).to_vec())),
                    Frame::Malformed => {}
                }
            }
        }
        Ok(got)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_read_back_however_they_are_cut(frames in proptest::collection::vec(sent(), 0..12), chunk in 1usize..70_000) {
            let mut bytes = Vec::new();
            frames.iter().for_each(|f| encode(f, &mut bytes));
            let chunk = if bytes.len() > 20_000 { chunk.max(50) } else { chunk };
            let known: Vec<_> = frames.into_iter().filter(|f| !matches!(f, Sent::Unknown(..))).collect();
            prop_assert_eq!(decode_all(&bytes, chunk), Ok(known));
        }

        #[test]
        fn decoder_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..500), chunk in 1usize..100, small: bool) {
            if small {
                // Lengths that are in range, so that the bytes behind them are read.
                for at in (0..bytes.len()).step_by(5) { bytes[at] = 0; }
            }
            let _ = decode_all(&bytes, chunk);
        }
    }

    #[test]
    fn stated_length_allocates_nothing() {
        let mut decoder = Decoder::default();
        decoder.space()[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        decoder.filled(4);
        assert_eq!(
            decoder.decode(),
            Err(FrameError::Oversize(u64::from(u32::MAX) + 4))
        );
        let mut decoder = Decoder::default();
        decoder.space()[..4].copy_from_slice(&60_000u32.to_be_bytes());
        decoder.filled(4);
        assert_eq!(decoder.decode(), Ok(None));
        assert_eq!(decoder.space().len(), SMALL_BUFFER - 4);
        assert!(matches!(
            decode_all(&[0, 0, 0, 5, 0], 5),
            Err(FrameError::Short(9))
        ));
    }

    #[test]
    fn a_body_of_the_wrong_kind_is_malformed() {
        let mut bytes = header(PING, &Offload::NONE, 3).to_vec();
        bytes.extend_from_slice(b"abc");
        bytes.extend_from_slice(&ping(5));
        for length in [8, 15, 17] {
            bytes.extend_from_slice(&header(RECEIPT, &Offload::NONE, length));
            bytes.extend_from_slice(&vec![0; length]);
        }
        assert_eq!(decode_all(&bytes, 100), Ok(vec![Sent::Ping(5)]));
    }
}
