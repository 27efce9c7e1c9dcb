//! Frames that travel through a relay: how a leg is asked for, how it is bound, and what stands in front of each frame.
//!
//! A relay forwards sealed frames ([`datagram`](super::datagram)) between two peers that have no way of their own. It
//! learns their peer IDs, their addresses, and the sizes and times of what they send; subnets, names and inner addresses
//! are inside the frames, whose keys it does not have. This text and `crate::relay` are what a second implementation
//! needs. All numbers are big-endian; "must be zero" is checked by the receiver.
//!
//! # Asking
//!
//! ```text
//! A, the smaller peer ID            relay                     B
//!   | Allocate{B} ------------------> |                       |       /byway/relay/1, a libp2p stream
//!   | <-- leg A, leg B, addresses --- |                       |       codec values of this module, at most 1 KiB
//!   | leg B and the addresses ------------------------------> |       /byway/control/1 (CallVia), any connection
//!   | Bind, Challenge, Confirm, Bound |                       |
//!   |                                 | Bind ... Bound ------ |       datagrams, as below
//!   | 0x06, leg A, frame -----------> | 0x06, leg B, frame -> |
//! ```
//!
//! A session of the relay has two legs. A leg has an index, which the relay chose at random, and a key of 16 bytes, which
//! only the relay, the asker and the leg's peer know. Frames that come by one leg leave by the other.
//!
//! Which relay is asked follows from [`Relaying`]: members tell each other, as a kind of `/byway/service/1`, what they relay
//! and how far they are from relays.
//!
//! # Binding
//!
//! Four messages of one length, so that no answer is larger than what asked for it:
//!
//! ```text
//! 0      1        4         8       9        12        20                44        60
//! +------+--------+---------+-------+--------+---------+-----------------+---------+
//! | 0x05 | 0 0 0  | index   | kind  | 0 0 0  | counter | body            | MAC     |
//! +------+--------+---------+-------+--------+---------+-----------------+---------+
//!
//! kind             from     body, then zeros
//! 1  Bind          client   nothing
//! 2  Challenge     relay    cookie, 16 bytes; port (2), 4 (1), address (4): where the relay sees the client, if by IPv4
//! 3  Confirm       client   the cookie of the challenge
//! 4  Bound         relay    port (2), family 4 or 6 (1), address (4 or 16): where the relay saw the client; behind an
//!                           IPv4 address the same of the other leg, where that is known and IPv4, too
//! ```
//!
//! MAC: the first 16 bytes of HMAC-SHA256 under the leg's key over the 44 bytes before it. `counter` of a client's message
//! is greater than that of every message of this leg that the client sent before; an answer repeats the one of its
//! question. A Challenge that nobody asked for has the greatest counter that the relay has heard. The cookie is what the
//! relay chooses so that it knows it again without keeping anything: it holds for the leg and the source address, for one
//! or two minutes.
//!
//! - The relay answers a Bind by Bound where the leg is bound to that source already, else by a Challenge to the source.
//!   It answers a Confirm with a good cookie by Bound, and the leg is bound to the source from then on. A counter that is
//!   not greater than the last one of this leg gets no answer.
//! - A client with several uplinks sends a Bind from each of them. The Challenge tells where the relay sees that uplink; a
//!   client that does not confirm it leaves the leg bound where it is. Over IPv6 there is no room to tell it, nor a NAT.
//! - A frame of the leg that comes from elsewhere than it is bound to is dropped; the relay may send a Challenge there, at
//!   most four a second. So a client whose NAT gave it another address is bound to that one a round trip later.
//! - A Bound tells where the other leg is bound while something came by that leg in the last 30 s, so that a client knows an
//!   address that is in use from somebody else than its peer.
//! - A leg ends when it was not bound within 30 s, and when for 5 minutes no frame and no Bind came by it; with it ends its
//!   session. The client binds anew every 25 s, which keeps its NAT's mapping as well.
//!
//! # Frames
//!
//! ```text
//! 0      1        4         8
//! +------+--------+---------+------------------
//! | 0x06 | 0 0 0  | index   | frame: 0x04 ...
//! +------+--------+---------+------------------
//! ```
//!
//! `index` is the leg by which the frame comes to the relay, and the leg of the receiver when it leaves the relay: nothing
//! else is changed. A frame without its 40 bytes, and any other first byte behind the index, is dropped by the relay.

use std::net::{SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use super::address;
use crate::crypto::frame::SEALED;
use crate::crypto::mac::{MAC, MAC_KEY, Mac};
use crate::model::id::PeerId;

/// First byte of the messages that bind a leg.
pub const BIND: u8 = 0x05;
/// First byte of a frame that travels through a relay.
pub const RELAYED: u8 = 0x06;
/// Bytes in front of a frame that travels through a relay.
pub const PREFIX: usize = 8;
/// Bytes of each message that binds a leg.
pub const MESSAGE: usize = 60;
/// Bytes of a challenge's cookie.
pub const COOKIE: usize = 16;
/// Bytes of the largest question or answer of `/byway/relay/1`.
pub const MAX_RELAY: usize = 1024;
/// The most addresses of a relay that are told.
pub const MAX_ADDRESSES: usize = 8;

/// Bytes that the MAC covers.
const SIGNED: usize = MESSAGE - MAC;
/// Where the body begins.
const BODY: usize = 20;

/// What is asked on `/byway/relay/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayRequest {
    /// Asks for a session with that peer; one that the asker has with it already ends.
    Allocate {
        /// The peer that the second leg is for.
        peer: PeerId,
    },
    /// Ends a session of the asker's.
    Release {
        /// The index of the asker's leg.
        index: u32,
    },
}

/// What is answered on `/byway/relay/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayAnswer {
    /// The session is there.
    Allocated {
        /// The asker's leg.
        mine: Ticket,
        /// The leg of the other peer.
        theirs: Ticket,
        /// Where the relay takes datagrams, best first; at most [`MAX_ADDRESSES`].
        addresses: Vec<SocketAddr>,
    },
    /// The session is over.
    Released,
    /// The relay serves the asker no session, or no further one.
    Refused(Refusal),
}

/// Why a relay refuses a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// This node relays for nobody, or not for the asker.
    #[error("it does not relay for this node")]
    NotServed,
    /// The asker has as many sessions as one of its kind may have.
    #[error("this node has all the relayed sessions it may have there")]
    TooMany,
    /// The relay has as many sessions as it can serve.
    #[error("it relays for as many as it can")]
    Full,
    /// The node has no UDP port that it could relay by.
    #[error("it has no UDP port")]
    NoPort,
    /// Others whom the relay does not know have all the sessions that it gives to one address, IPv6 /64 or relay.
    #[error(
        "others at this node's address have all the relayed sessions that one address may have there"
    )]
    Crowded,
}

/// The most relays that a member tells its way to.
pub const MAX_WAYS: usize = 8;
/// Bytes of the largest [`Relaying`].
pub const MAX_RELAYING: usize = 512;

/// What two members tell each other of relays, as question and as answer ([`kind::RELAYS`](super::service::kind::RELAYS)): on
/// connect, and whenever it has changed. It replaces what was said before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relaying {
    /// What the sender relays for the receiver; none where it does not.
    pub offer: Option<Offer>,
    /// How far the sender is from relays; the first [`MAX_WAYS`] are read.
    pub ways: Vec<Way>,
}

/// What a member relays for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Mbit/s of UDP payload for all peers together.
    pub mbit: u32,
    /// Whether its owner offers it; else it relays only for those who have no other way.
    pub is_offered: bool,
    /// Sessions that it has, in quarters of what it serves: 0 to 4.
    pub load: u8,
}

/// How far a member is from a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The relay, which need not be a member.
    pub relay: PeerId,
    /// The round trip to it in milliseconds; the longest are said to be of 65,535.
    pub rtt_ms: u16,
}

/// What a peer needs to bind its leg.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The index of the leg at the relay.
    pub index: u32,
    /// The key of the messages that bind it.
    pub key: [u8; MAC_KEY],
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// A message that binds a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The client asks the relay to take frames from where this comes from.
    Bind {
        /// A greater number than ever before on this leg.
        counter: u64,
    },
    /// The relay asks whether the client is where a message came from.
    Challenge {
        /// The counter of what is answered.
        counter: u64,
        /// What the client has to give back.
        cookie: [u8; COOKIE],
        /// Where the relay sees the client, if by IPv4.
        seen: Option<SocketAddr>,
    },
    /// The client is there.
    Confirm {
        /// A greater number than ever before on this leg.
        counter: u64,
        /// The cookie of the challenge.
        cookie: [u8; COOKIE],
    },
    /// The leg is bound.
    Bound {
        /// The counter of what is answered.
        counter: u64,
        /// Where the relay sees the client.
        seen: SocketAddr,
        /// Where the relay saw the client of the other leg in the last 30 s; told only where `seen` is IPv4 as well.
        other: Option<SocketAddrV4>,
    },
}

impl Message {
    /// The bytes of the message for the leg of that index and key.
    pub fn encode(&self, index: u32, key: &Mac) -> [u8; MESSAGE] {
        let (kind, counter) = match self {
            Message::Bind { counter } => (1, counter),
            Message::Challenge { counter, .. } => (2, counter),
            Message::Confirm { counter, .. } => (3, counter),
            Message::Bound { counter, .. } => (4, counter),
        };
        let mut bytes = Vec::with_capacity(MESSAGE);
        bytes.extend_from_slice(&head(BIND, index));
        bytes.extend_from_slice(&[kind, 0, 0, 0]);
        bytes.extend_from_slice(&counter.to_be_bytes());
        match self {
            Message::Bind { .. } => {}
            Message::Challenge { cookie, seen, .. } => {
                bytes.extend_from_slice(cookie);
                if let Some(seen) = seen.filter(|seen| seen.ip().to_canonical().is_ipv4()) {
                    address::put(seen, &mut bytes);
                }
            }
            Message::Confirm { cookie, .. } => bytes.extend_from_slice(cookie),
            Message::Bound { seen, other, .. } => {
                address::put(*seen, &mut bytes);
                if let Some(other) = other.filter(|_| seen.ip().to_canonical().is_ipv4()) {
                    address::put(other.into(), &mut bytes);
                }
            }
        }
        bytes.resize(SIGNED, 0);
        bytes.extend_from_slice(&key.sign(&bytes));
        let mut out = [0; MESSAGE];
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        out
    }

    /// Reads a message whose MAC is good under `key`; none else.
    pub fn decode(bytes: &[u8], key: &Mac) -> Option<Message> {
        let (signed, mac) = bytes.split_last_chunk::<MAC>()?;
        if signed.len() != SIGNED || index(bytes)?.0 != BIND || !key.verify(signed, mac) {
            return None;
        }
        let (kind, rest) = signed.get(PREFIX..)?.split_first_chunk::<4>()?;
        let (counter, body) = rest.split_first_chunk()?;
        let counter = u64::from_be_bytes(*counter);
        let [kind, 0, 0, 0] = *kind else { return None };
        let (message, rest) = match kind {
            1 => (Message::Bind { counter }, body),
            2 | 3 => {
                let (cookie, rest) = body.split_first_chunk()?;
                let cookie = *cookie;
                if kind == 3 {
                    (Message::Confirm { counter, cookie }, rest)
                } else {
                    let told = address::take(rest).filter(|(seen, _)| seen.is_ipv4());
                    let (seen, rest) = told.map_or((None, rest), |(seen, rest)| (Some(seen), rest));
                    let challenge = Message::Challenge {
                        counter,
                        cookie,
                        seen,
                    };
                    (challenge, rest)
                }
            }
            4 => {
                let (seen, rest) = address::take(body)?;
                let (other, rest) = match address::take(rest) {
                    Some((SocketAddr::V4(other), rest)) if seen.is_ipv4() => (Some(other), rest),
                    _ => (None, rest),
                };
                let bound = Message::Bound {
                    counter,
                    seen,
                    other,
                };
                (bound, rest)
            }
            _ => return None,
        };
        rest.iter().all(|byte| *byte == 0).then_some(message)
    }
}

/// The eight bytes that begin a datagram of that first byte and leg.
fn head(first: u8, index: u32) -> [u8; PREFIX] {
    let mut head = [0; PREFIX];
    let (kind, rest) = head.split_at_mut(4);
    kind.copy_from_slice(&[first, 0, 0, 0]);
    rest.copy_from_slice(&index.to_be_bytes());
    head
}

/// What stands in front of a frame that is sent by the leg of that index.
pub fn prefix(index: u32) -> [u8; PREFIX] {
    head(RELAYED, index)
}

/// The first byte and the index of a datagram for or from a relay; none where it is neither.
pub fn index(bytes: &[u8]) -> Option<(u8, u32)> {
    let (kind, rest) = bytes.split_first_chunk::<4>()?;
    let index = u32::from_be_bytes(*rest.first_chunk()?);
    match *kind {
        [first @ (BIND | RELAYED), 0, 0, 0] => Some((first, index)),
        _ => None,
    }
}

/// Whether what is behind the prefix can be a frame: the relay forwards nothing else.
pub fn carries_frame(bytes: &[u8]) -> bool {
    bytes.get(PREFIX) == Some(&SEALED)
        && bytes.len() >= PREFIX.saturating_add(super::datagram::OVERHEAD)
}

/// Puts the index of the leg that the frame leaves by.
pub fn readdress(bytes: &mut [u8], index: u32) {
    if let Some(at) = bytes.get_mut(4..PREFIX) {
        at.copy_from_slice(&index.to_be_bytes());
    }
}

const _: () = assert!(BODY + address::MAX_ADDRESS <= SIGNED && BODY + COOKIE <= SIGNED);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use proptest::prelude::*;

    fn messages() -> [Message; 7] {
        let (counter, cookie) = (0x0102_0304_0506_0708, [9; COOKIE]);
        let seen = |text: &str| Message::Bound {
            counter,
            seen: text.parse().unwrap(),
            other: None,
        };
        [
            Message::Bind { counter },
            Message::Challenge {
                counter,
                cookie,
                seen: None,
            },
            Message::Challenge {
                counter,
                cookie,
                seen: Some("192.0.2.1:4100".parse().unwrap()),
            },
            Message::Confirm { counter, cookie },
            seen("192.0.2.1:4100"),
            seen("[2001:db8::1]:4100"),
            Message::Bound {
                counter,
                seen: "192.0.2.1:4100".parse().unwrap(),
                other: Some("198.51.100.2:7".parse().unwrap()),
            },
        ]
    }

    #[test]
    fn each_message_reads_back_and_none_is_longer_than_another() {
        let key = Mac::new(&[3; 16]);
        for message in messages() {
            let bytes = message.encode(7, &key);
            assert_eq!(index(&bytes), Some((BIND, 7)));
            assert_eq!(Message::decode(&bytes, &key), Some(message));
            assert_eq!(bytes.len(), MESSAGE, "no answer is larger than a question");
        }
    }

    #[test]
    fn a_message_by_hand_is_the_documented_layout() {
        let key = Mac::new(&[3; 16]);
        let bytes = messages()[4].encode(0x1122_3344, &key);
        let mut by_hand = vec![5, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 4, 0, 0, 0];
        by_hand.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        by_hand.extend([0x10, 0x04, 4, 192, 0, 2, 1]);
        by_hand.resize(44, 0);
        by_hand.extend(key.sign(&by_hand));
        assert_eq!(bytes.as_slice(), by_hand);
        by_hand.truncate(27);
        by_hand.extend([0, 7, 4, 198, 51, 100, 2]);
        by_hand.resize(44, 0);
        by_hand.extend(key.sign(&by_hand));
        assert_eq!(messages()[6].encode(0x1122_3344, &key).as_slice(), by_hand);
    }

    #[test]
    fn no_bit_can_be_changed_and_no_other_key_signs() {
        let key = Mac::new(&[3; 16]);
        let bytes = messages()[1].encode(7, &key);
        for bit in 0..MESSAGE * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Message::decode(&other, &key), None, "bit {bit}");
        }
        assert_eq!(Message::decode(&bytes, &Mac::new(&[4; 16])), None);
        assert_eq!(Message::decode(&bytes[..MESSAGE - 1], &key), None);
    }

    #[test]
    fn nothing_but_zeros_follows_a_body() {
        let key = Mac::new(&[3; 16]);
        let mut bytes = messages()[0].encode(7, &key);
        bytes[SIGNED - 1] = 1;
        let mac = key.sign(&bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(&mac);
        assert_eq!(Message::decode(&bytes, &key), None);
    }

    #[test]
    fn only_a_frame_is_carried_and_only_its_index_changes() {
        let mut bytes = prefix(7).to_vec();
        bytes.extend([4; 40]);
        assert!(carries_frame(&bytes));
        assert_eq!(index(&bytes), Some((RELAYED, 7)));
        let before = bytes.clone();
        readdress(&mut bytes, 0xa1b2_c3d4);
        assert_eq!(index(&bytes), Some((RELAYED, 0xa1b2_c3d4)));
        assert_eq!(
            (&bytes[..4], &bytes[8..]),
            (&before[..4], &before[8..]),
            "nothing else"
        );
        bytes[PREFIX] = 0x40;
        assert!(!carries_frame(&bytes), "QUIC is no frame");
        assert!(!carries_frame(&before[..47]), "cut short");
    }

    #[test]
    fn the_largest_question_and_answer_fit() {
        let ticket = Ticket {
            index: u32::MAX,
            key: [255; 16],
        };
        let answer = RelayAnswer::Allocated {
            mine: ticket,
            theirs: ticket,
            addresses: vec![
                "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
                    .parse()
                    .unwrap();
                8
            ],
        };
        assert!(codec::encode(&answer).len() <= MAX_RELAY);
    }

    proptest! {
        #[test]
        fn decoders_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::decode(&bytes, &Mac::new(&[0; 16]));
            let _ = index(&bytes);
            let _ = carries_frame(&bytes);
            let _ = codec::decode::<RelayRequest>(&bytes);
            let _ = codec::decode::<RelayAnswer>(&bytes);
        }
    }
}
