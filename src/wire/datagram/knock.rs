//! What members say to each other to find out what a NAT lets in (`peer::knock`), and the knock itself.
//!
//! The words are sealed control messages and go by the path in use. A knock is a bare datagram of 12 bytes: it has to come
//! from a socket, or to one, that the other end has never seen, and there it must not count as a frame of the session. It is
//! known by a random token that the two agreed on under seal; any other token is dropped.

use std::net::SocketAddr;

use crate::wire::address;

/// The first byte of a knock.
const KNOCK: u8 = 0x07;
/// Bytes of a knock: the first byte, three zeros, the token.
pub const KNOCK_BYTES: usize = 12;

const EXPECT: u8 = 1;
const SEEN: u8 = 2;
const ASK: u8 = 3;
const SENT: u8 = 4;
const REFUSED: u8 = 5;

/// A word about knocks. The token tells which knock is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// The sender knocks at the receiver from a new socket, and asks where that is seen.
    Expect {
        /// The token of that knock.
        token: u64,
    },
    /// The knock came.
    Seen {
        /// Its token.
        token: u64,
        /// The address that it came from.
        from: SocketAddr,
    },
    /// Asks the receiver to knock once.
    Ask {
        /// The token that the knock is to carry.
        token: u64,
        /// Where it is to go: an address of the sender's own.
        to: SocketAddr,
        /// Whether it is to come from another port than the receiver's usual one.
        other_port: bool,
    },
    /// The sender has knocked.
    Sent {
        /// The token of that knock.
        token: u64,
    },
    /// The sender does not knock.
    Refused {
        /// The token of the question.
        token: u64,
        /// Why it does not.
        why: Refusal,
    },
}

/// Why a member does not knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It did so for this asker, or for too many others, within a minute.
    TooOften,
    /// The address is not the one at which it sees the asker: somebody else may be there.
    Elsewhere,
    /// It does not know at which address the asker is.
    NotSeen,
    /// It could not send.
    Failed,
}

impl Refusal {
    /// Every reason, in the order of their numbers on the wire, which begin at 1.
    pub const ALL: [Refusal; 4] = [
        Refusal::TooOften,
        Refusal::Elsewhere,
        Refusal::NotSeen,
        Refusal::Failed,
    ];

    fn number(self) -> u8 {
        match self {
            Refusal::TooOften => 1,
            Refusal::Elsewhere => 2,
            Refusal::NotSeen => 3,
            Refusal::Failed => 4,
        }
    }
}

impl Knock {
    /// The token of the knock that is spoken of.
    pub fn token(self) -> u64 {
        match self {
            Knock::Expect { token }
            | Knock::Seen { token, .. }
            | Knock::Ask { token, .. }
            | Knock::Sent { token }
            | Knock::Refused { token, .. } => token,
        }
    }

    /// Appends the word.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let word = match self {
            Knock::Expect { .. } => EXPECT,
            Knock::Seen { .. } => SEEN,
            Knock::Ask { .. } => ASK,
            Knock::Sent { .. } => SENT,
            Knock::Refused { .. } => REFUSED,
        };
        out.push(word);
        out.extend_from_slice(&self.token().to_be_bytes());
        match self {
            Knock::Seen { from, .. } => address::put(from, out),
            Knock::Ask { to, other_port, .. } => {
                out.push(u8::from(other_port));
                address::put(to, out);
            }
            Knock::Refused { why, .. } => out.push(why.number()),
            Knock::Expect { .. } | Knock::Sent { .. } => {}
        }
    }

    /// Reads a word from the front, and gives what is behind it; none where it is of no known kind, or cut short.
    pub(super) fn take(bytes: &[u8]) -> Option<(Knock, &[u8])> {
        let ([word], rest) = bytes.split_first_chunk()?;
        let (token, rest) = rest.split_first_chunk()?;
        let token = u64::from_be_bytes(*token);
        Some(match *word {
            EXPECT => (Knock::Expect { token }, rest),
            SEEN => {
                let (from, rest) = address::take(rest)?;
                (Knock::Seen { token, from }, rest)
            }
            ASK => {
                let ([other], rest) = rest.split_first_chunk()?;
                let (to, rest) = address::take(rest)?;
                let other_port = match *other {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
                let ask = Knock::Ask {
                    token,
                    to,
                    other_port,
                };
                (ask, rest)
            }
            SENT => (Knock::Sent { token }, rest),
            REFUSED => {
                let ([why], rest) = rest.split_first_chunk()?;
                let why = Refusal::ALL.into_iter().find(|of| of.number() == *why)?;
                (Knock::Refused { token, why }, rest)
            }
            _ => return None,
        })
    }
}

/// The bytes of a knock.
pub fn knock(token: u64) -> [u8; KNOCK_BYTES] {
    let [a, b, c, d, e, f, g, h] = token.to_be_bytes();
    [KNOCK, 0, 0, 0, a, b, c, d, e, f, g, h]
}

/// The token of a datagram that is a knock; none of any other.
pub fn token_of(datagram: &[u8]) -> Option<u64> {
    let ([KNOCK, 0, 0, 0], token) = datagram.split_first_chunk()? else {
        return None;
    };
    let token: &[u8; 8] = token.try_into().ok()?;
    Some(u64::from_be_bytes(*token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_knock_is_twelve_bytes_and_nothing_else_is_one() {
        let bytes = knock(0x0102_0304_0506_0708);
        assert_eq!(bytes, [7, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(token_of(&bytes), Some(0x0102_0304_0506_0708));
        for bad in [
            &bytes[..11],
            &[&bytes[..], &[0]].concat(),
            &[7, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8],
            &[4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
            &[],
        ] {
            assert_eq!(token_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn words_are_as_written_down() {
        let at: SocketAddr = "192.0.2.7:4100".parse().unwrap();
        let encoded = |word: Knock| {
            let mut out = Vec::new();
            word.put(&mut out);
            out
        };
        let token = [0, 0, 0, 0, 0, 0, 0, 9];
        let address = [0x10, 0x04, 4, 192, 0, 2, 7];
        let all = [
            (Knock::Expect { token: 9 }, [&[1], &token[..]].concat()),
            (
                Knock::Seen { token: 9, from: at },
                [&[2], &token[..], &address].concat(),
            ),
            (
                Knock::Ask {
                    token: 9,
                    to: at,
                    other_port: true,
                },
                [&[3], &token[..], &[1], &address].concat(),
            ),
            (Knock::Sent { token: 9 }, [&[4], &token[..]].concat()),
            (
                Knock::Refused {
                    token: 9,
                    why: Refusal::Elsewhere,
                },
                [&[5], &token[..], &[2]].concat(),
            ),
        ];
        for (word, bytes) in all {
            assert_eq!(encoded(word), bytes);
            assert_eq!(Knock::take(&bytes), Some((word, &[][..])));
            for short in 0..bytes.len() {
                assert_eq!(Knock::take(&bytes[..short]), None, "{word:?}");
            }
        }
        for bad in [
            [&[0], &token[..]].concat(),
            [&[6], &token[..]].concat(),
            [&[3], &token[..], &[2], &address].concat(),
            [&[5], &token[..], &[0]].concat(),
            [&[5], &token[..], &[5]].concat(),
        ] {
            assert_eq!(Knock::take(&bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(bytes in prop::collection::vec(0u8..8, 0..40)) {
            if let Some((word, rest)) = Knock::take(&bytes) {
                let mut again = Vec::new();
                word.put(&mut again);
                again.extend_from_slice(rest);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
