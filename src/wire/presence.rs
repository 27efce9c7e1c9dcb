//! When the members of one subnet were last seen: a question of the kind [`PRESENCE`](super::service::kind::PRESENCE), whose
//! answer says the same of what the other knows.
//!
//! ```text
//!  0      16     24
//! +------+------+---------------------+
//! | ID   | hash | one age a member    |
//! +------+------+---------------------+
//! ```
//!
//! The ages are in the order of the members' peer IDs, both ends of the question among them: the first in the low half of the
//! first byte, the second in its high half, and so on. An age is the number of minutes since the member was seen, rounded up;
//! 15 where that is longer ago or is not known. The hash is the first eight bytes of the SHA-256 of all these peer IDs one after
//! the other: ages of another list say nothing, and are not read. An answer without ages says that the lists differ.
//!
//! Of 1,000 members a question and its answer have 524 bytes each, once a minute with each neighbour.

use crate::model::id::{PeerId, SubnetId};
use crate::model::presence::AGES;
use sha2::{Digest as _, Sha256};

/// Bytes in front of the ages.
const HEADER: usize = 24;
/// Bytes of the largest question that is read: one about 16,336 members.
pub const MAX_BODY: usize = 8192;

/// What one member knows of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ages {
    /// The subnet that they are members of.
    pub subnet: SubnetId,
    /// Names the list of members ([`list_hash`]).
    pub list: [u8; 8],
    /// One age for each member in the order of the list, and one more where their number is odd.
    pub ages: Vec<u8>,
}

/// Names a list of members, which is in the order of their IDs.
pub fn list_hash<'a>(members: impl IntoIterator<Item = &'a PeerId>) -> [u8; 8] {
    let mut hash = Sha256::new();
    for peer in members {
        hash.update(peer.0);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = hash;
    [a, b, c, d, e, f, g, h]
}

impl Ages {
    /// Writes a question or an answer. Ages above [`AGES`] are written as that.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEADER.saturating_add(self.ages.len() / 2 + 1));
        body.extend(self.subnet.0);
        body.extend(self.list);
        for pair in self.ages.chunks(2) {
            let age = |at: usize| pair.get(at).map_or(AGES, |age| (*age).min(AGES));
            body.push(age(0) | (age(1) << 4));
        }
        body
    }

    /// Reads one. None where it is shorter than its header, or longer than [`MAX_BODY`].
    pub fn decode(body: &[u8]) -> Option<Ages> {
        if body.len() > MAX_BODY {
            return None;
        }
        let (subnet, rest) = body.split_first_chunk()?;
        let (list, ages) = rest.split_first_chunk()?;
        Some(Ages {
            subnet: SubnetId(*subnet),
            list: *list,
            ages: ages
                .iter()
                .flat_map(|byte| [byte & 15, byte >> 4])
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            subnet in any::<[u8; 16]>(),
            list in any::<[u8; 8]>(),
            mut ages in proptest::collection::vec(0..=AGES, 0..80),
        ) {
            let told = Ages { subnet: SubnetId(subnet), list, ages: ages.clone() };
            let read = Ages::decode(&told.encode()).unwrap();
            if ages.len() % 2 == 1 {
                ages.push(AGES);
            }
            prop_assert_eq!(read, Ages { ages, ..told });
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            match Ages::decode(&body) {
                Some(told) => prop_assert_eq!(told.encode(), body),
                None => prop_assert!(body.len() < HEADER),
            }
        }
    }

    #[test]
    fn a_thousand_members_take_524_bytes_and_a_body_is_bounded() {
        let told = Ages {
            subnet: SubnetId([1; 16]),
            list: list_hash(&[PeerId([1; 32]), PeerId([2; 32])]),
            ages: vec![0; 1000],
        };
        assert_eq!(told.encode().len(), 524);
        assert_eq!(Ages::decode(&[0; MAX_BODY + 1]), None);
        assert_ne!(told.list, list_hash(&[PeerId([1; 32])]));
    }
}
