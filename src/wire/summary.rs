//! Whether two members hold the same records of the subnets they share: one question for all of them, of the kind
//! [`RECORDS`](super::service::kind::RECORDS).
//!
//! ```text
//! question  0       1                        answer  0
//!          +-------+----------------------+         +------+
//!          | count | count x (ID, hash)   |         | byte | count times
//!          +-------+----------------------+         +------+
//! ```
//!
//! A subnet ID has 16 bytes and a hash 32 ([`set_hash`](super::control::set_hash)). The answer has one byte for each subnet
//! in the order of the question: 0 where the hash is that of what the other holds, 1 where it is not or where it will not
//! say. Later versions may give out other bytes, which mean 1 to this one, and may append to either.

use crate::model::id::SubnetId;
use crate::model::record::Digest;

/// Subnets of one question.
pub const MAX_SUBNETS: usize = 32;
/// Bytes of the largest question that is read: a later version may say more behind the subnets.
pub const MAX_BODY: usize = 4096;
/// Bytes of one subnet in a question.
const ENTRY: usize = 48;

/// Writes a question about at most [`MAX_SUBNETS`] subnets; more are left out.
pub fn question(held: &[(SubnetId, Digest)]) -> Vec<u8> {
    let held = held.get(..MAX_SUBNETS).unwrap_or(held);
    let mut body = Vec::with_capacity(held.len().saturating_mul(ENTRY).saturating_add(1));
    body.push(u8::try_from(held.len()).unwrap_or(u8::MAX));
    for (subnet, hash) in held {
        body.extend(subnet.0);
        body.extend(hash);
    }
    body
}

/// Reads a question. `None` where it says that it has more subnets than it has, or than [`MAX_SUBNETS`].
pub fn parse_question(body: &[u8]) -> Option<Vec<(SubnetId, Digest)>> {
    let (count, rest) = body.split_first()?;
    let count = usize::from(*count);
    if count > MAX_SUBNETS {
        return None;
    }
    let entries = rest.get(..count.checked_mul(ENTRY)?)?;
    entries
        .chunks_exact(ENTRY)
        .map(|entry| {
            let (subnet, hash) = entry.split_first_chunk()?;
            Some((SubnetId(*subnet), *hash.first_chunk()?))
        })
        .collect()
}

/// Writes the answer to a question: for each of its subnets whether both hold the same.
pub fn answer(same: &[bool]) -> Vec<u8> {
    same.iter().map(|same| u8::from(!same)).collect()
}

/// Whether both hold the same, for each of `count` subnets that were asked about. `None` for an answer that is too short.
pub fn parse_answer(body: &[u8], count: usize) -> Option<Vec<bool>> {
    Some(body.get(..count)?.iter().map(|byte| *byte == 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_a_later_version_appends(
            held in proptest::collection::vec((any::<[u8; 16]>(), any::<[u8; 32]>()), 0..=MAX_SUBNETS),
            same in proptest::collection::vec(any::<bool>(), 0..40),
            more in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let held: Vec<_> = held.into_iter().map(|(id, hash)| (SubnetId(id), hash)).collect();
            let mut body = question(&held);
            body.extend(&more);
            prop_assert_eq!(parse_question(&body), Some(held));
            let mut body = answer(&same);
            body.extend(&more);
            prop_assert_eq!(parse_answer(&body, same.len()), Some(same));
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200), count in 0_usize..40) {
            if let Some(held) = parse_question(&body) {
                prop_assert!(held.len() <= MAX_SUBNETS && body.len() > held.len() * ENTRY);
            }
            prop_assert_eq!(parse_answer(&body, count).is_some(), body.len() >= count);
        }
    }

    #[test]
    fn a_count_that_lies_is_refused() {
        let one = question(&[(SubnetId([1; 16]), [2; 32])]);
        assert_eq!(parse_question(&one[..48]), None, "a byte is missing");
        let mut many = vec![33];
        many.extend(vec![0; 33 * ENTRY]);
        assert_eq!(parse_question(&many), None);
        assert_eq!(parse_question(&[]), None);
        let too_many = vec![(SubnetId([1; 16]), [2; 32]); MAX_SUBNETS + 1];
        assert_eq!(
            parse_question(&question(&too_many)).map(|held| held.len()),
            Some(MAX_SUBNETS)
        );
    }
}
