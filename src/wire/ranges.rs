//! Where the records that two members hold of a subnet differ, and those that one of them lacks: requests of the kind
//! [`RANGES`](super::service::kind::RANGES), about the subnet that the request names.
//!
//! A question is the salt of the comparison (8 bytes), the [`Part`]s that the asker says of its records, and the records
//! that it asks for, by the first eight bytes of their digests. The answer has parts where both differ, and those of the
//! records that the other holds, as many as fit. Both are values of [`codec`](crate::codec); what a later version appends
//! is passed over. How a comparison goes is [`model::ranges`](crate::model::ranges).

use serde::{Deserialize, Serialize};

use crate::codec::{decode_front, encode};
use crate::model::ranges::{Part, Short};
use crate::model::record::Signed;

/// Records that one question asks for.
pub const MAX_WANT: usize = 4096;
/// Bytes of the largest question that is read: as many parts and records as one asks for, and what a later version says
/// behind them.
pub const MAX_QUESTION: usize = 128 * 1024;

/// What one end asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What the hashes of this comparison begin with; random.
    pub salt: Short,
    /// What the asker holds of the ranges in which both may differ.
    pub parts: Vec<Part>,
    /// Records that are asked for; the first [`MAX_WANT`] are looked for.
    pub want: Vec<Short>,
}

/// What the other end says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What it holds of those ranges in which both differ.
    pub parts: Vec<Part>,
    /// Those of the records asked for that it holds.
    pub records: Vec<Signed>,
}

impl Question {
    /// Writes it as the body of a request.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the body of a request. `None` for anything that is no question.
    pub fn parse(body: &[u8]) -> Option<Question> {
        decode_front(body).ok()
    }
}

impl Answer {
    /// Writes it as the body of an answer.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the body of an answer. `None` for anything that is no answer.
    pub fn parse(body: &[u8]) -> Option<Answer> {
        decode_front(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chunks::Chunks;
    use crate::model::ranges::{Differing, MAX_PARTS};
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_whatever_a_later_version_appends() {
        let mut held = Chunks::default();
        for n in 0..2000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
            held.insert(digest, ());
        }
        let question = Question {
            salt: [1; 8],
            parts: Differing::new(&held, [1; 8]).question(),
            want: vec![[2; 8]; 3],
        };
        let mut body = question.encode();
        body.extend([9; 5]);
        assert_eq!(Question::parse(&body), Some(question.clone()));
        assert_eq!(Question::parse(&body[..100]), None);
        let answer = Answer {
            parts: question.parts,
            records: vec![],
        };
        let mut body = answer.encode();
        body.push(9);
        assert_eq!(Answer::parse(&body), Some(answer));
    }

    #[test]
    fn the_largest_question_that_is_asked_is_read() {
        let mut held = Chunks::default();
        for n in 0..40_000_u64 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            held.insert(digest, ());
        }
        // Everything differs: each question has as many parts as it may.
        let (empty, mut differing) = (Chunks::default(), Differing::new(&held, [1; 8]));
        let mut most = 0;
        loop {
            let parts = differing.question();
            if parts.is_empty() {
                break;
            }
            let asked = Question {
                salt: [1; 8],
                parts,
                want: vec![],
            };
            most = most.max(asked.encode().len());
            let said = crate::model::ranges::answer(&empty, [1; 8], &asked.parts);
            differing.answered(&held, &said);
        }
        assert!(
            most <= MAX_PARTS * 160 && MAX_PARTS * 160 + MAX_WANT * 8 < MAX_QUESTION,
            "{most}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Question::parse(&body);
            let _ = Answer::parse(&body);
        }
    }
}
