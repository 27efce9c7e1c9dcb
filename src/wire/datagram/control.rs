//! The control messages that go in frames of their own.

use std::net::SocketAddr;

use super::OVERHEAD;
use super::knock::Knock;
use crate::wire::address;

const PROBE: u8 = 1;
const ANSWER: u8 = 2;
const REKEY: u8 = 3;
const CLOSE: u8 = 4;
const SPRAY: u8 = 5;
const RENEWED: u8 = 6;
const KNOCK: u8 = 7;
/// Bytes of the largest control body: what a datagram takes.
pub const MAX_CONTROL: usize = 65_507 - OVERHEAD;

/// The body of a control frame. Zeros may follow each message, to make the datagram as long as it shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control<'a> {
    /// Asks for an answer; padded, it asks whether the path carries datagrams of that size.
    Probe {
        /// A random number that tells answers apart.
        token: u64,
    },
    /// Answers a probe, and goes to where that came from.
    Answer {
        /// The token of the probe that is answered.
        token: u64,
        /// The address that the probe came from.
        seen: SocketAddr,
        /// Frames that carried packets and were opened under the probe's key so far.
        arrived: u64,
    },
    /// Carries a message of `peer::session`.
    Rekey(&'a [u8]),
    /// The sender leaves this session.
    Close,
    /// Agrees on a search for a port that nobody can name.
    Spray(Spray),
    /// The sender leaves a mapping that its NAT will end for the one that this message comes by.
    Renewed {
        /// Where the receiver sees the sender by it, as an answer said.
        address: SocketAddr,
    },
    /// Agrees on a knock, by which a member finds out what its NAT lets in.
    Knock(Knock),
}

/// What two peers say to each other about such a search (`peer::spray`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spray {
    /// The NAT before the sender is symmetric: it asks the peer to guess, while it opens many sockets.
    Ask,
    /// The sender guesses from now on.
    Go,
    /// The sender does not guess now.
    Later,
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
            Control::Answer {
                token,
                seen,
                arrived,
            } => {
                out.push(ANSWER);
                out.extend_from_slice(&token.to_be_bytes());
                address::put(*seen, out);
                out.extend_from_slice(&arrived.to_be_bytes());
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
            Control::Renewed { address } => {
                out.push(RENEWED);
                address::put(*address, out);
            }
            Control::Spray(word) => out.extend_from_slice(&[
                SPRAY,
                match word {
                    Spray::Ask => 1,
                    Spray::Go => 2,
                    Spray::Later => 3,
                },
            ]),
            Control::Knock(word) => {
                out.push(KNOCK);
                word.put(out);
            }
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
                let (seen, rest) = address::take(rest)?;
                let (arrived, rest) = rest.split_first_chunk()?;
                let arrived = u64::from_be_bytes(*arrived);
                (
                    Control::Answer {
                        token: u64::from_be_bytes(*token),
                        seen,
                        arrived,
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
            SPRAY => {
                let (word, rest) = rest.split_first()?;
                let word = match *word {
                    1 => Spray::Ask,
                    2 => Spray::Go,
                    3 => Spray::Later,
                    _ => return None,
                };
                (Control::Spray(word), rest)
            }
            RENEWED => {
                let (address, rest) = address::take(rest)?;
                (Control::Renewed { address }, rest)
            }
            KNOCK => {
                let (word, rest) = Knock::take(rest)?;
                (Control::Knock(word), rest)
            }
            _ => return None,
        };
        padding.iter().all(|byte| *byte == 0).then_some(control)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_as_written_down() {
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
            encoded(
                Control::Answer {
                    token: 9,
                    seen,
                    arrived: 5
                },
                0
            ),
            [
                2, 0, 0, 0, 0, 0, 0, 0, 9, 0x10, 0x04, 4, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 5
            ]
        );
        let mapped = "[::ffff:192.0.2.7]:4100".parse().unwrap();
        assert_eq!(
            Control::decode(&encoded(
                Control::Answer {
                    token: 9,
                    seen: mapped,
                    arrived: 5
                },
                0
            )),
            Some(Control::Answer {
                token: 9,
                seen,
                arrived: 5
            })
        );
        assert_eq!(
            encoded(
                Control::Answer {
                    token: 9,
                    seen: "[2001:db8::1]:1".parse().unwrap(),
                    arrived: 0
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
        assert_eq!(encoded(Control::Spray(Spray::Ask), 3), [5, 1, 0]);
        assert_eq!(encoded(Control::Spray(Spray::Later), 0), [5, 3]);
        assert_eq!(
            encoded(Control::Renewed { address: seen }, 0),
            [6, 0x10, 0x04, 4, 192, 0, 2, 7]
        );
        assert_eq!(
            encoded(Control::Knock(Knock::Sent { token: 9 }), 12),
            [7, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]
        );
        for bad in [
            &[][..],
            &[0],
            &[5],
            &[5, 0],
            &[5, 4],
            &[6],
            &[6, 0, 1, 4, 192, 0, 2],
            &[7],
            &[7, 4, 0],
            &[8],
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn control_reads_back(token: u64, port: u16, v4: [u8; 4], v6: [u8; 16], which in 0u8..8, message in prop::collection::vec(any::<u8>(), 0..1300), pad in 0usize..1500) {
            let sent = match which {
                0 => Control::Probe { token },
                1 => Control::Answer { token, seen: (Ipv4Addr::from(v4), port).into(), arrived: token },
                2 => Control::Answer { token, seen: SocketAddr::new(IpAddr::V6(v6.into()).to_canonical(), port), arrived: token },
                3 => Control::Rekey(&message),
                5 => Control::Renewed { address: (Ipv4Addr::from(v4), port).into() },
                4 => Control::Spray([Spray::Ask, Spray::Go, Spray::Later][usize::from(v4[0] % 3)]),
                6 => Control::Knock(Knock::Ask { token, to: (Ipv4Addr::from(v4), port).into(), other_port: v6[0] > 127 }),
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
}
