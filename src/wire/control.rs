//! Control messages between peers: joining (`/byway/join/1`, for everyone) and records (`/byway/control/1`, members).
//!
//! Each is one value of [`codec`](crate::codec) in one request or answer; the carrier bounds its size. Unknown variants do not decode and
//! are refused as malformed: this list of messages does not grow. New questions are kinds of [`service`](super::service),
//! new statements kinds of [`Item`](crate::model::record::Item).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use crate::codec::{Malformed, decode, encode};
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::SignedAsk;
use crate::model::record::{Digest, Signed};

/// Bytes of the largest join message that a stranger sends.
pub const MAX_JOIN: usize = 64 * 1024;
/// Bytes of the largest control message or answer to a join.
pub const MAX_CONTROL: usize = 1024 * 1024;
/// Bytes of records put into one message; the rest follows in the next.
pub const RECORDS_BUDGET: usize = 768 * 1024;
/// Bytes of records put into the answer to a join; the rest follows once the joiner is a member.
pub const BUNDLE_BUDGET: usize = 48 * 1024;
/// The same of what decides whether the joiner is a member, which is mostly a few of them: a head has less than 8 KiB, and
/// so has a grant of each of 64 admins.
pub const DECIDING_BUDGET: usize = 960 * 1024;

/// Bytes of records that a stranger may show.
pub const MAX_SHOWN: usize = 8 * 1024;

/// Addresses of datagrams that one message tells.
pub const MAX_ENDPOINTS: usize = 8;

/// A stranger's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRequest {
    /// Do you know this subnet, and does it still want me?
    Probe(SubnetId),
    /// A nonce of the issuer for one attempt with an invite.
    Nonce {
        /// The subnet.
        subnet: SubnetId,
        /// The invite's issuer.
        issuer: PeerId,
        /// Who will use it.
        joiner: PeerId,
    },
    /// The question itself.
    Ask(SignedAsk),
    /// Who asked to be let in wants it no more.
    Withdraw {
        /// The subnet.
        subnet: SubnetId,
        /// Who asked.
        joiner: PeerId,
    },
    /// I was let in and cannot come after all: my own announcement, which gives the leases back.
    Decline(Signed),
    /// You do not know me as a member, or not what the owner said last: the owner's head, or a grant of mine with the head
    /// that names its issuer, or my revocation of an admin that removed me with the head that names both of us. At most
    /// [`MAX_SHOWN`] bytes.
    Show {
        /// The subnet.
        subnet: SubnetId,
        /// Head; grant or revocation.
        records: Vec<Signed>,
    },
    /// The genesis of the subnet with this [`lookup`](crate::model::join::lookup): what a joiner judges before it asks.
    Genesis([u8; 16]),
}

/// The answer to a stranger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// I do not know that subnet.
    Unknown,
    /// I am a member of it.
    Known,
    /// The nonce to sign.
    Nonce([u8; 16]),
    /// The owner or an admin has the question and will decide; `reached` tells whether one could be asked at all.
    Pending {
        /// Whether someone who may decide has it.
        reached: bool,
    },
    /// You are in.
    Admitted {
        /// Genesis bytes.
        genesis: Vec<u8>,
        /// Records: heads, your grant, then everyone's, as many as fit.
        records: Vec<Signed>,
    },
    /// You are not let in.
    Refused {
        /// `E-…`.
        code: String,
        /// Why.
        message: String,
    },
    /// The subnet is over, or over for you: the records prove it.
    Ended {
        /// Genesis bytes.
        genesis: Vec<u8>,
        /// The owner's head, and what is held of the asker's grants and revocations.
        heads: Vec<Signed>,
    },
    /// Genesis bytes: some 400 at most. The ID is their hash, so that nobody can make up others.
    Genesis(Vec<u8>),
}

/// A member's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Compare what we hold: a hash over all digests.
    Compare {
        /// The subnet.
        subnet: SubnetId,
        /// [`set_hash`] of the digests held.
        hash: Digest,
    },
    /// Here is what I hold; send what I lack, say what you lack.
    Pull {
        /// The subnet.
        subnet: SubnetId,
        /// First eight bytes of each digest held.
        have: Vec<[u8; 8]>,
    },
    /// New records.
    Push {
        /// The subnet.
        subnet: SubnetId,
        /// The records.
        records: Vec<Signed>,
    },
    /// A stranger's request, passed on to who may decide.
    Forward(JoinRequest),
    /// A message of a datagram session.
    Session {
        /// The subnet.
        subnet: SubnetId,
        /// Of `peer::session`.
        message: Vec<u8>,
        /// Where the sender may be reached by datagrams, best first; the first [`MAX_ENDPOINTS`] are read.
        endpoints: Vec<SocketAddr>,
    },
}

/// The answer to a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlAnswer {
    /// We hold the same.
    Same,
    /// We do not.
    Different,
    /// What you lack (as much as fits), and which of yours I lack.
    Records {
        /// Records you lack.
        records: Vec<Signed>,
        /// First eight bytes of digests I lack.
        want: Vec<[u8; 8]>,
    },
    /// Taken.
    Done,
    /// Answer to [`ControlRequest::Forward`].
    Forwarded(JoinAnswer),
    /// I am no member of that subnet, or you are not for me.
    NotMember,
    /// The answer to [`ControlRequest::Session`].
    Session {
        /// Of `peer::session`.
        message: Vec<u8>,
        /// As in the request.
        endpoints: Vec<SocketAddr>,
    },
    /// I carry no datagrams, or refuse that message.
    NoSession,
}

/// SHA-256 over all digests in order: equal sets have equal hashes.
pub fn set_hash(digests: &BTreeSet<Digest>) -> Digest {
    let mut hash = Sha256::new();
    digests.iter().for_each(|d| hash.update(d));
    hash.finalize().into()
}

/// The first eight bytes of a digest: enough to tell records of one subnet apart; a collision only delays one.
pub fn short(digest: &Digest) -> [u8; 8] {
    let mut short = [0; 8];
    short
        .iter_mut()
        .zip(digest)
        .for_each(|(to, from)| *to = *from);
    short
}

/// Bytes that a record takes in a message, at most.
fn size(record: &Signed) -> usize {
    record.body.len().saturating_add(128)
}

/// The first records, as many as fit into `budget` bytes.
pub fn fitting<'a>(records: impl Iterator<Item = &'a Signed>, budget: usize) -> Vec<Signed> {
    let mut room = budget;
    records
        .take_while(|r| {
            let fits = size(r) <= room;
            room = room.saturating_sub(size(r));
            fits
        })
        .cloned()
        .collect()
}

/// Records to let a joiner in with. What does not fit is passed over and keeps nothing else out; the `rest` has the room
/// that what `decides` leaves of [`BUNDLE_BUDGET`].
pub fn answer(decides: &[&Signed], rest: &[&Signed]) -> Vec<Signed> {
    let mut used = 0usize;
    let mut take = |records: &[&Signed], budget: usize| -> Vec<Signed> {
        let fits = |r: &&&Signed| {
            let after = used.saturating_add(size(r));
            let fits = after <= budget;
            used = if fits { after } else { used };
            fits
        };
        records.iter().filter(fits).map(|r| (*r).clone()).collect()
    };
    let mut all = take(decides, DECIDING_BUDGET);
    all.extend(take(rest, BUNDLE_BUDGET));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoders_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode::<JoinRequest>(&bytes);
            let _ = decode::<JoinAnswer>(&bytes);
            let _ = decode::<ControlRequest>(&bytes);
            let _ = decode::<ControlAnswer>(&bytes);
        }
    }

    #[test]
    fn bytes_behind_a_message_are_refused() {
        let question = ControlRequest::Pull {
            subnet: SubnetId([1; 16]),
            have: vec![[2; 8]],
        };
        let mut bytes = encode(&question);
        assert_eq!(decode::<ControlRequest>(&bytes), Ok(question));
        bytes.push(0);
        assert_eq!(decode::<ControlRequest>(&bytes), Err(Malformed));
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // Variant 2 (Push), subnet, then a record count of 2^32 - 1 and no bytes.
        let mut bytes = vec![2u8];
        bytes.extend([0; 16]);
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(decode::<ControlRequest>(&bytes), Err(Malformed));
    }
}
