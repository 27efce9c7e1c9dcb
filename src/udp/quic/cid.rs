//! Connection IDs that only this process makes, and tells from all others without looking its connections up.
//!
//! ```text
//! nonce [4]   tag [4] = SipHash of the nonce under a key of this socket
//! ```
//! To others they are random bytes, and those of one connection have nothing in common.

use std::hash::{BuildHasher, RandomState};

use super::CID;

/// Bytes that are drawn for each.
pub const NONCE: usize = 4;

/// Makes the connection IDs of one socket. Clones have the same key.
#[derive(Debug, Clone, Default)]
pub struct Cids(RandomState);

impl Cids {
    /// The ID with this nonce, which is drawn at random.
    pub fn make(&self, nonce: [u8; NONCE]) -> [u8; CID] {
        let tag = self.0.hash_one(nonce).to_le_bytes();
        let mut id = [0; CID];
        for (to, from) in id.iter_mut().zip(nonce.into_iter().chain(tag)) {
            *to = from;
        }
        id
    }

    /// Whether it was made here; one of 2^32 others is taken for such.
    pub(super) fn made(&self, id: &[u8; CID]) -> bool {
        id.first_chunk::<NONCE>()
            .is_some_and(|nonce| self.make(*nonce) == *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_to_who_made_it_and_to_nobody_else() {
        let (ours, theirs) = (Cids::default(), Cids::default());
        for n in 0..1000u32 {
            let id = ours.make(n.to_be_bytes());
            assert!(ours.made(&id) && ours.clone().made(&id) && !theirs.made(&id));
            for bit in 0..64 {
                let mut other = id;
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(!ours.made(&other), "{n} {bit}");
            }
        }
    }
}
