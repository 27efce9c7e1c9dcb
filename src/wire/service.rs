//! Requests between members: `/byway/service/1`.
//!
//! One request and one answer on a stream, each with its length in front (`p2p` has that). All numbers are big-endian; the
//! body is the rest.
//!
//! ```text
//! request   0      2        10          26            30
//!          +------+--------+-----------+-------------+------+
//!          | kind | id     | subnet ID | deadline ms | body |
//!          +------+--------+-----------+-------------+------+
//!
//! answer    0        8      10         14
//!          +--------+------+----------+------+
//!          | id     | code | retry ms | body |
//!          +--------+------+----------+------+
//! ```
//!
//! What a kind's body means, only its handler knows: a frame of a kind that nobody here knows is read like any other and
//! answered with [`ServiceCode::Unknown`]. Who asks is whoever is at the other end of the connection; no body says so. The `id` is
//! chosen by who asks, never twice for two requests: the same one again is the same request again, and gets the same
//! answer. A subnet ID of zeroes names none. `deadline ms` is how long who asks waits from when it is read. Code 0 is an
//! answer whose body counts; any other is a [`Refusal`], whose body is left to later versions. Bodies grow at their end:
//! who reads one ignores what it does not know behind it.

use super::control::Malformed;
use crate::model::id::SubnetId;

/// Bytes of a request in front of its body.
pub const REQUEST_HEADER: usize = 30;
/// Bytes of an answer in front of its body.
pub const ANSWER_HEADER: usize = 14;
/// Bytes of the largest body.
pub const MAX_BODY: usize = 1024 * 1024;

/// The kinds of requests that this version knows.
pub mod kind {
    /// Asks for the text of [`agent`](crate::wire::agent), which is answered at once. The body is
    /// empty.
    pub const PING: u16 = 1;
    /// Asks for the time, in milliseconds since 1970 and eight bytes: the asker's in the question,
    /// the other's in the answer.
    pub const CLOCK: u16 = 2;
    /// Do we hold the same records? Of all subnets in common at once; see [`summary`](crate::wire::summary).
    pub const RECORDS: u16 = 3;
    /// Measures what packets' carrier moves in one subnet: agrees to a round of fillers, or tells what arrived of one. See
    /// [`Measure`](super::Measure).
    pub const MEASURE: u16 = 4;
    /// What do you relay for me, and how far are you from relays? The question says the same of the asker. See
    /// [`Relaying`](crate::wire::relay::Relaying).
    pub const RELAYS: u16 = 5;
    /// When was each member of a subnet last seen? The question says the same of what the asker knows; see
    /// [`presence`](crate::wire::presence).
    pub const PRESENCE: u16 = 6;
    /// Where do our records of this subnet differ, and give me those that I lack. See [`ranges`](crate::wire::ranges).
    pub const RANGES: u16 = 7;
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceCode {
    /// Nobody here knows that kind.
    Unknown,
    /// The body is none of that kind, is too large, or the request was answered before and the answer is not kept.
    Invalid,
    /// The asker may not ask that.
    NotPermitted,
    /// What the request is about is not here.
    NotFound,
    /// The request was tried and failed.
    Failed,
    /// The request was not done before its deadline.
    Timeout,
    /// There were too many requests; the answer names the time after which to ask again.
    SlowDown,
    /// The code is one of a later version.
    Other(u16),
}

impl ServiceCode {
    /// Every code that this version gives.
    pub const ALL: [ServiceCode; 7] = [
        ServiceCode::Unknown,
        ServiceCode::Invalid,
        ServiceCode::NotPermitted,
        ServiceCode::NotFound,
        ServiceCode::Failed,
        ServiceCode::Timeout,
        ServiceCode::SlowDown,
    ];

    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            ServiceCode::Unknown => 1000,
            ServiceCode::Invalid => 1001,
            ServiceCode::NotPermitted => 1002,
            ServiceCode::NotFound => 1003,
            ServiceCode::Failed => 1004,
            ServiceCode::Timeout => 1005,
            ServiceCode::SlowDown => 1006,
            ServiceCode::Other(number) => number,
        }
    }

    fn of(number: u16) -> ServiceCode {
        ServiceCode::ALL
            .into_iter()
            .find(|code| code.number() == number)
            .unwrap_or(ServiceCode::Other(number))
    }
}

/// An answer that carries no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("refused with code {}", .code.number())]
pub struct Refusal {
    /// The reason that programs tell apart.
    pub code: ServiceCode,
    /// Milliseconds after which to ask again; 0 where that would bring the same.
    pub retry_ms: u32,
}

impl From<ServiceCode> for Refusal {
    fn from(code: ServiceCode) -> Refusal {
        Refusal { code, retry_ms: 0 }
    }
}

/// A request as it is read from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRequest {
    /// The number of what is asked; see [`kind`].
    pub kind: u16,
    /// Names this request among all of its sender.
    pub id: u64,
    /// The subnet that the request is about; none where it is about none.
    pub subnet: Option<SubnetId>,
    /// How long the sender waits, in milliseconds.
    pub deadline_ms: u32,
    /// The body of the kind that is asked, at most [`MAX_BODY`] bytes.
    pub body: Vec<u8>,
}

/// An answer as it is read from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// The id of the request that is answered.
    pub id: u64,
    /// The body, or why there is none.
    pub result: Result<Vec<u8>, Refusal>,
}

impl ServiceRequest {
    /// Writes the header and the body, as they are sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(REQUEST_HEADER.saturating_add(self.body.len()));
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.subnet.map_or([0; 16], |subnet| subnet.0));
        bytes.extend(self.deadline_ms.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`] where it is shorter than its header, or longer than may be.
    pub fn parse(mut bytes: Vec<u8>) -> Result<ServiceRequest, Malformed> {
        if bytes.len() > REQUEST_HEADER + MAX_BODY {
            return Err(Malformed);
        }
        let (kind, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
        let (id, rest) = rest.split_first_chunk().ok_or(Malformed)?;
        let (subnet, rest) = rest.split_first_chunk::<16>().ok_or(Malformed)?;
        let (deadline, _) = rest.split_first_chunk().ok_or(Malformed)?;
        let (kind, id, deadline_ms) = (
            u16::from_be_bytes(*kind),
            u64::from_be_bytes(*id),
            u32::from_be_bytes(*deadline),
        );
        let subnet = Some(SubnetId(*subnet)).filter(|subnet| subnet.0 != [0; 16]);
        Ok(ServiceRequest {
            kind,
            id,
            subnet,
            deadline_ms,
            body: bytes.split_off(REQUEST_HEADER),
        })
    }
}

impl ServiceAnswer {
    /// Writes the header and the body, as they are sent; a refusal has no body.
    pub fn encode(&self) -> Vec<u8> {
        let (code, retry_ms, body) = match &self.result {
            Ok(body) => (0, 0, body.as_slice()),
            Err(refusal) => (refusal.code.number(), refusal.retry_ms, &[][..]),
        };
        [
            &self.id.to_be_bytes()[..],
            &code.to_be_bytes(),
            &retry_ms.to_be_bytes(),
            body,
        ]
        .concat()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// As [`ServiceRequest::parse`].
    pub fn parse(mut bytes: Vec<u8>) -> Result<ServiceAnswer, Malformed> {
        if bytes.len() > ANSWER_HEADER + MAX_BODY {
            return Err(Malformed);
        }
        let (id, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
        let (code, rest) = rest.split_first_chunk().ok_or(Malformed)?;
        let (retry, _) = rest.split_first_chunk().ok_or(Malformed)?;
        let (id, code, retry_ms) = (
            u64::from_be_bytes(*id),
            u16::from_be_bytes(*code),
            u32::from_be_bytes(*retry),
        );
        let result = match code {
            0 => Ok(bytes.split_off(ANSWER_HEADER)),
            number => Err(Refusal {
                code: ServiceCode::of(number),
                retry_ms,
            }),
        };
        Ok(ServiceAnswer { id, result })
    }
}

/// A question of [`kind::MEASURE`]: 13 bytes, a 0 or 1, the number of the round, and a number of bytes or frames. Fillers
/// are sent over what carries packets, from who asks to who answers.
///
/// ```text
/// question  0   1       5                 13      answer    0        8       16           24
///          +---+-------+-----------------+       (to 1)    +--------+-------+------------+
///          | 0 | round | bytes to come   |                 | frames | bytes | span in µs |
///          | 1 | round | frames sent     |                 +--------+-------+------------+
///          +---+-------+-----------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Asks to count the fillers of a round up to so many bytes; the answer is empty.
    Begin {
        /// The number of the round, which its fillers carry.
        round: u32,
        /// The most bytes of fillers that will come.
        bytes: u64,
    },
    /// Asks what arrived of that round, once all did or no more comes.
    Read {
        /// The number of the round.
        round: u32,
        /// The fillers that were sent.
        frames: u64,
    },
}

impl Measure {
    /// Writes the question.
    pub fn encode(self) -> Vec<u8> {
        let (kind, round, number) = match self {
            Measure::Begin { round, bytes } => (0, round, bytes),
            Measure::Read { round, frames } => (1, round, frames),
        };
        [&[kind], &round.to_be_bytes()[..], &number.to_be_bytes()].concat()
    }

    /// Reads a question, and ignores what is behind it; none where it is none.
    pub fn parse(bytes: &[u8]) -> Option<Measure> {
        let ([kind], rest) = bytes.split_first_chunk()?;
        let (round, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let (round, number) = (u32::from_be_bytes(*round), u64::from_be_bytes(*number));
        match kind {
            0 => Some(Measure::Begin {
                round,
                bytes: number,
            }),
            1 => Some(Measure::Read {
                round,
                frames: number,
            }),
            _ => None,
        }
    }
}

/// What arrived of a round, as the answer to [`Measure::Read`] tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Fillers that arrived.
    pub frames: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Microseconds from the first of them to the last.
    pub span_us: u64,
}

impl Measured {
    /// Writes the answer.
    pub fn encode(self) -> Vec<u8> {
        [self.frames, self.bytes, self.span_us]
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect()
    }

    /// Reads an answer, and ignores what is behind it; none where it is too short.
    pub fn parse(bytes: &[u8]) -> Option<Measured> {
        let (frames, rest) = bytes.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        let (span, _) = rest.split_first_chunk()?;
        Some(Measured {
            frames: u64::from_be_bytes(*frames),
            bytes: u64::from_be_bytes(*bytes),
            span_us: u64::from_be_bytes(*span),
        })
    }
}

/// The eight bytes of [`kind::CLOCK`].
pub fn clock(now_ms: u64) -> Vec<u8> {
    now_ms.to_be_bytes().to_vec()
}

/// Reads what [`clock`] writes, and ignores what is behind it.
pub fn parse_clock(body: &[u8]) -> Option<u64> {
    body.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            match ServiceRequest::parse(bytes.clone()) {
                Ok(request) => prop_assert_eq!(request.encode(), bytes.clone()),
                Err(Malformed) => prop_assert!(bytes.len() < REQUEST_HEADER),
            }
            match ServiceAnswer::parse(bytes.clone()) {
                Ok(answer) => prop_assert_eq!(ServiceAnswer::parse(answer.encode()), Ok(answer)),
                Err(Malformed) => prop_assert!(bytes.len() < ANSWER_HEADER),
            }
            prop_assert_eq!(parse_clock(&bytes).is_some(), bytes.len() >= 8);
            if let Some(question) = Measure::parse(&bytes) {
                prop_assert_eq!(question.encode(), bytes.get(..13).unwrap());
            }
            prop_assert_eq!(Measured::parse(&bytes).map(Measured::encode), bytes.get(..24).map(<[u8]>::to_vec));
        }
    }

    #[test]
    fn a_kind_and_a_code_of_a_later_version_are_read() {
        let request = ServiceRequest {
            kind: 40_000,
            id: 7,
            subnet: None,
            deadline_ms: 1,
            body: b"later".to_vec(),
        };
        assert_eq!(ServiceRequest::parse(request.encode()), Ok(request));
        let refusal = Refusal {
            code: ServiceCode::Other(1999),
            retry_ms: 5,
        };
        let later = [
            ServiceAnswer {
                id: 7,
                result: Err(refusal),
            }
            .encode(),
            b"in words".to_vec(),
        ]
        .concat();
        assert_eq!(
            ServiceAnswer::parse(later),
            Ok(ServiceAnswer {
                id: 7,
                result: Err(refusal)
            })
        );
        assert!(
            ServiceCode::ALL
                .into_iter()
                .all(|code| ServiceCode::of(code.number()) == code)
        );
    }

    #[test]
    fn nothing_larger_than_a_body_may_be_is_read() {
        let body = vec![0; MAX_BODY + 1];
        let request = ServiceRequest {
            kind: 1,
            id: 1,
            subnet: None,
            deadline_ms: 1,
            body: body.clone(),
        };
        assert_eq!(ServiceRequest::parse(request.encode()), Err(Malformed));
        assert_eq!(
            ServiceAnswer::parse(
                ServiceAnswer {
                    id: 1,
                    result: Ok(body)
                }
                .encode()
            ),
            Err(Malformed)
        );
    }
}
