//! WebSocket frames (RFC 6455), as far as they carry one stream of bytes.
//!
//! Where only HTTPS is let out, a connection to a peer runs inside the binary frames of a WebSocket; the borders of messages
//! mean nothing. A frame is never held whole: its payload goes on as it comes in, so that the length that a sender states
//! reserves no memory. What a peer may send before it has shown who it is, is bounded all the same:
//!
//! - The first [`FIRST`] bytes of each direction travel in frames of at most [`SMALL`] bytes. The Noise handshake, which names
//!   the peer, is shorter than that. Later frames have at most [`MOST`] bytes; this end sends at most [`SENT`] in one.
//! - Control frames have at most [`CONTROL`] bytes, and at most [`BARREN`] frames in a row may carry no byte of the stream.
//! - Text, extensions, reserved codes, lengths in a longer form than needed, and masks that the RFC does not want are refused.
//!
//! Pure: the caller reads, writes and chooses the masks.

/// Bytes of one direction that travel in small frames, counted at the beginning of a frame.
pub const FIRST: u64 = 16 * 1024;
/// The longest payload of a small frame, in bytes.
pub const SMALL: u64 = 4 * 1024;
/// The longest payload of a frame that this end sends, in bytes: a Noise message with its length fits.
pub const SENT: u64 = 64 * 1024;
/// The longest payload of a frame that is taken, in bytes. A proxy on the way may join frames.
pub const MOST: u64 = 1024 * 1024;
/// The longest payload of a control frame, in bytes.
pub const CONTROL: usize = 125;
/// The most frames in a row that carry no byte of the stream.
pub const BARREN: u32 = 64;
/// The longest head of a frame, in bytes.
pub const HEAD: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// Which end of the connection this is: clients mask what they send, servers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The end that asked for the connection.
    Client,
    /// The end that was asked.
    Server,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The frame carries bytes of the stream.
    Data,
    /// The frame says that the sender sends no more.
    Close,
    /// The frame wants its payload back in a [`Kind::Pong`].
    Ping,
    /// The frame answers a ping, or nothing.
    Pong,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What the frame carries.
    pub kind: Kind,
    /// Bytes of its payload, at most [`MOST`].
    pub len: u64,
    /// What the payload is masked with; none of what a server sends.
    pub mask: Option<[u8; 4]>,
}

/// Why a frame is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// The frame has bits or a code that only extensions use.
    #[error("a WebSocket frame of an extension that nobody agreed on")]
    Extension,
    /// The frame is one of text.
    #[error("a WebSocket frame of text")]
    Text,
    /// The frame goes on with a message that has not begun, or begins one inside another.
    #[error("a WebSocket message out of order")]
    Order,
    /// The frame is longer than its kind may be, or its length has a longer form than it needs.
    #[error("a WebSocket frame whose length is not allowed")]
    Length,
    /// The frame is masked and must not be, or the other way round.
    #[error("a WebSocket frame with the wrong kind of mask")]
    Mask,
    /// Too many frames in a row carried nothing.
    #[error("a flood of WebSocket frames that carry nothing")]
    Flood,
}

/// How many bytes of a frame are needed to know its head, as far as `begun` tells: 2 to [`HEAD`].
pub fn needed(begun: &[u8]) -> usize {
    let Some(second) = begun.get(1) else { return 2 };
    let length = match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & MASKED == 0 { 0 } else { 4 }
}

/// Judges the frames that come in.
#[derive(Debug)]
pub struct Inbound {
    role: Role,
    /// Whether a message has begun and not ended.
    inside: bool,
    /// Bytes of the stream in the frames so far.
    taken: u64,
    /// Frames in a row that carried nothing.
    barren: u32,
}

impl Inbound {
    /// The judge of a new connection, at this end of it.
    pub fn new(role: Role) -> Inbound {
        Inbound {
            role,
            inside: false,
            taken: 0,
            barren: 0,
        }
    }

    /// Reads a head of [`needed`] bytes, whose payload follows.
    ///
    /// # Errors
    /// The frame is refused; nothing that follows it can be read.
    pub fn take(&mut self, head: &[u8]) -> Result<Head, Bad> {
        let (Some(first), Some(second)) = (head.first(), head.get(1)) else {
            return Err(Bad::Length);
        };
        if first & RESERVED != 0 {
            return Err(Bad::Extension);
        }
        let ends = first & FIN != 0;
        let kind = self.kind(first & 0x0f, ends)?;
        if (second & MASKED != 0) != (self.role == Role::Server) {
            return Err(Bad::Mask);
        }
        let (len, rest) = length(second & !MASKED, head.get(2..).unwrap_or_default())?;
        let most = match kind {
            Kind::Data if self.taken < FIRST => SMALL,
            Kind::Data => MOST,
            _ => CONTROL as u64,
        };
        if len > most {
            return Err(Bad::Length);
        }
        let mask = match self.role {
            Role::Server => Some(rest.try_into().map_err(|_| Bad::Mask)?),
            Role::Client => None,
        };
        if kind == Kind::Data && len > 0 {
            self.taken = self.taken.saturating_add(len);
            self.barren = 0;
        } else {
            self.barren = self.barren.saturating_add(1);
        }
        if self.barren > BARREN {
            return Err(Bad::Flood);
        }
        Ok(Head { kind, len, mask })
    }

    fn kind(&mut self, code: u8, ends: bool) -> Result<Kind, Bad> {
        match code {
            0 if self.inside => {
                self.inside = !ends;
                Ok(Kind::Data)
            }
            2 if !self.inside => {
                self.inside = !ends;
                Ok(Kind::Data)
            }
            0 | 2 => Err(Bad::Order),
            1 => Err(Bad::Text),
            8..=10 if !ends => Err(Bad::Order),
            8 => Ok(Kind::Close),
            9 => Ok(Kind::Ping),
            10 => Ok(Kind::Pong),
            _ => Err(Bad::Extension),
        }
    }
}

/// The length that a head states, and what follows it.
fn length(short: u8, rest: &[u8]) -> Result<(u64, &[u8]), Bad> {
    match short {
        126 => {
            let (bytes, rest) = rest.split_first_chunk().ok_or(Bad::Length)?;
            let len = u16::from_be_bytes(*bytes);
            (len > 125).then_some((len.into(), rest)).ok_or(Bad::Length)
        }
        127 => {
            let (bytes, rest) = rest.split_first_chunk().ok_or(Bad::Length)?;
            let len = u64::from_be_bytes(*bytes);
            (len > u64::from(u16::MAX))
                .then_some((len, rest))
                .ok_or(Bad::Length)
        }
        len => Ok((len.into(), rest)),
    }
}

/// Writes the heads of frames.
#[derive(Debug)]
pub struct Outbound {
    role: Role,
    /// Bytes of the stream in the frames so far.
    sent: u64,
}

impl Outbound {
    /// What writes for this end of a new connection.
    pub fn new(role: Role) -> Outbound {
        Outbound { role, sent: 0 }
    }

    /// The most bytes that the next frame of data may carry.
    pub fn most(&self) -> usize {
        let most = if self.sent < FIRST { SMALL } else { SENT };
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Appends a whole frame to `out`; a client's payload is masked with `mask`. Of data at most [`Outbound::most`] bytes are
    /// to be given, of another kind at most [`CONTROL`].
    pub fn put(&mut self, kind: Kind, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
        let code = match kind {
            Kind::Data => 2,
            Kind::Close => 8,
            Kind::Ping => 9,
            Kind::Pong => 10,
        };
        if kind == Kind::Data {
            self.sent = self.sent.saturating_add(payload.len() as u64);
        }
        let masked = if self.role == Role::Client { MASKED } else { 0 };
        out.push(FIN | code);
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(len @ ..=125), _) => out.push(masked | len),
            (_, Ok(len)) => {
                out.push(masked | 126);
                out.extend_from_slice(&len.to_be_bytes());
            }
            _ => {
                out.push(masked | 127);
                out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        if self.role == Role::Client {
            out.extend_from_slice(&mask);
        }
        let begin = out.len();
        out.extend_from_slice(payload);
        if self.role == Role::Client {
            apply(mask, 0, out.get_mut(begin..).unwrap_or_default());
        }
    }
}

/// Masks a part of a payload, or takes the mask off; `offset` is where the part begins in the payload.
pub fn apply(mut mask: [u8; 4], offset: u64, part: &mut [u8]) {
    mask.rotate_left(usize::from((offset & 3) as u8));
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = part.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a server makes of one frame after `taken` bytes of the stream.
    fn at_server(frame: &[u8], taken: u64) -> Result<Head, Bad> {
        let mut inbound = Inbound::new(Role::Server);
        inbound.taken = taken;
        inbound.take(&frame[..needed(frame).min(frame.len())])
    }

    #[test]
    fn what_the_rfc_shows_reads_as_it_says() {
        // Section 5.7: "Hello" masked, as binary; an unmasked ping.
        let hello = [
            0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let head = at_server(&hello, 0).unwrap();
        assert_eq!((head.kind, head.len), (Kind::Data, 5));
        let mut payload = hello[6..].to_vec();
        apply(head.mask.unwrap(), 0, &mut payload);
        assert_eq!(payload, b"Hello");
        let ping = Inbound::new(Role::Client).take(&[0x89, 5]).unwrap();
        assert_eq!((ping.kind, ping.len, ping.mask), (Kind::Ping, 5, None));
    }

    #[test]
    fn frames_are_small_until_the_peer_can_have_shown_who_it_is() {
        let frame = |len: u16| {
            let [high, low] = len.to_be_bytes();
            [0x82, 0xfe, high, low, 1, 2, 3, 4]
        };
        assert!(at_server(&frame(4096), FIRST - 1).is_ok());
        assert_eq!(at_server(&frame(4097), FIRST - 1), Err(Bad::Length));
        assert!(at_server(&frame(4097), FIRST).is_ok());
        let long = |len: u64| {
            let mut frame = vec![0x82, 0xff];
            frame.extend(len.to_be_bytes());
            frame.extend([1, 2, 3, 4]);
            frame
        };
        assert!(at_server(&long(MOST), FIRST).is_ok());
        assert_eq!(at_server(&long(MOST + 1), FIRST), Err(Bad::Length));
        assert_eq!(at_server(&long(u64::MAX), FIRST), Err(Bad::Length));
    }

    #[test]
    fn what_is_no_frame_of_a_stream_is_refused_by_its_kind() {
        let masked = [1, 2, 3, 4];
        let frame = |bytes: &[u8]| [bytes, &masked].concat();
        for (bytes, why) in [
            (frame(&[0x81, 0x85]), Bad::Text),
            (frame(&[0xc2, 0x85]), Bad::Extension),
            (frame(&[0x83, 0x85]), Bad::Extension),
            (frame(&[0x8f, 0x85]), Bad::Extension),
            (frame(&[0x80, 0x85]), Bad::Order),
            (frame(&[0x09, 0x80]), Bad::Order),
            (frame(&[0x89, 0xfe, 0, 126]), Bad::Length),
            (frame(&[0x82, 0xfe, 0, 125]), Bad::Length),
            (
                frame(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
                Bad::Length,
            ),
            (vec![0x82, 0x05], Bad::Mask),
            (vec![0x82, 0x85, 1, 2], Bad::Mask),
            (vec![0x82], Bad::Length),
        ] {
            assert_eq!(at_server(&bytes, FIRST), Err(why), "{bytes:x?}");
        }
        let mut client = Inbound::new(Role::Client);
        assert_eq!(client.take(&frame(&[0x82, 0x85])), Err(Bad::Mask));
    }

    #[test]
    fn a_message_in_parts_is_one_stream_and_another_inside_it_is_refused() {
        let mut inbound = Inbound::new(Role::Client);
        assert!(inbound.take(&[0x02, 3]).is_ok());
        assert!(
            inbound.take(&[0x89, 0]).is_ok(),
            "control may stand between"
        );
        assert!(inbound.take(&[0x00, 3]).is_ok());
        assert_eq!(inbound.take(&[0x82, 3]), Err(Bad::Order));
        let mut inbound = Inbound::new(Role::Client);
        assert!(inbound.take(&[0x02, 3]).is_ok());
        assert!(inbound.take(&[0x80, 3]).is_ok());
        assert!(inbound.take(&[0x82, 3]).is_ok());
    }

    #[test]
    fn a_flood_of_frames_that_carry_nothing_ends_the_connection() {
        for frame in [[0x89, 0], [0x8a, 0], [0x00, 0]] {
            let mut inbound = Inbound::new(Role::Client);
            inbound.take(&[0x02, 1]).unwrap();
            let taken = (0..1000).take_while(|_| inbound.take(&frame).is_ok());
            assert_eq!(taken.count(), 64, "{frame:x?}");
        }
        let mut inbound = Inbound::new(Role::Client);
        for _ in 0..1000 {
            inbound.take(&[0x89, 0]).unwrap();
            inbound.take(&[0x82, 1]).unwrap();
        }
    }

    proptest! {
        #[test]
        fn what_one_end_writes_the_other_reads(
            lens in proptest::collection::vec(0usize..70_000, 1..12),
            mask: [u8; 4],
            client: bool,
        ) {
            let (here, there) = if client { (Role::Client, Role::Server) } else { (Role::Server, Role::Client) };
            let (mut outbound, mut inbound) = (Outbound::new(here), Inbound::new(there));
            for len in lens {
                let payload: Vec<u8> = (0..len.min(outbound.most())).map(|n| (n % 251) as u8).collect();
                let mut frame = Vec::new();
                outbound.put(Kind::Data, &payload, mask, &mut frame);
                let needed = needed(&frame);
                let head = inbound.take(&frame[..needed]).unwrap();
                let mut read = frame[needed..].to_vec();
                prop_assert_eq!(head.len, read.len() as u64);
                if let Some(mask) = head.mask {
                    let (one, two) = read.split_at_mut(payload.len() / 3);
                    apply(mask, 0, one);
                    apply(mask, one.len() as u64, two);
                }
                prop_assert!(read == payload);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic_or_promise_more_than_is_allowed(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let needed = needed(&bytes);
            prop_assert!((2..=HEAD).contains(&needed));
            for role in [Role::Client, Role::Server] {
                if let Ok(head) = Inbound::new(role).take(&bytes[..needed.min(bytes.len())]) {
                    prop_assert!(head.len <= SMALL);
                }
            }
        }
    }
}
