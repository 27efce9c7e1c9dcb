//! Control messages between peers: joining (`/byway/join/1`, for everyone) and records (`/byway/control/1`, members).
//!
//! Each is one value of [`codec`](crate::codec) in one request or answer; the carrier bounds its size. Unknown variants do not decode and
//! are refused as malformed: this list of messages does not grow. New questions are kinds of [`service`](super::service),
//! new statements kinds of [`Item`](crate::model::record::Item).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use crate::codec::{Malformed, decode, encode};
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::SignedAsk;
use crate::model::record::{Digest, Signed};
use crate::wire::paths::Paths;
use crate::wire::relay::Ticket;

/// Bytes of the largest join message that a stranger sends.
pub const MAX_JOIN: usize = 64 * 1024;
/// Bytes of the largest control message or answer to a join.
pub const MAX_CONTROL: usize = 1024 * 1024;
/// Bytes of records put into one message; the rest follows in the next.
pub const RECORDS_BUDGET: usize = 768 * 1024;
/// Bytes of records put into the answer to a join; the rest follows once the joiner is a member.
pub const BUNDLE_BUDGET: usize = 48 * 1024;
/// Bytes of those records in the answer to a join that decide whether the joiner is a member. They
/// are mostly a few: a head has less than 8 KiB, and so has a grant of each of 64 admins.
pub const DECIDING_BUDGET: usize = 960 * 1024;

/// Bytes of records that a stranger may show.
pub const MAX_SHOWN: usize = 8 * 1024;

/// The most datagram addresses that one message tells.
pub const MAX_ENDPOINTS: usize = 8;

/// What a peer asks on `/byway/join/1`, where it need not be a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRequest {
    /// Asks whether the receiver knows this subnet, and whether it is over for the sender.
    Probe(SubnetId),
    /// Asks for a nonce of the invite's issuer, which is good for one attempt with the invite.
    Nonce {
        /// The subnet that the invite is for.
        subnet: SubnetId,
        /// The peer that issued the invite and gives the nonce.
        issuer: PeerId,
        /// The peer that will sign the nonce.
        joiner: PeerId,
    },
    /// Asks to be let in.
    Ask(SignedAsk),
    /// Says that the joiner does not want to be let in any more.
    Withdraw {
        /// The subnet that was asked for.
        subnet: SubnetId,
        /// The peer that asked and does not want it any more.
        joiner: PeerId,
    },
    /// Says that the sender was let in and does not come after all: its own announcement, which
    /// gives the leases back.
    Decline(Signed),
    /// Shows why the sender is a member where the receiver does not know it, or what the owner said
    /// last: the owner's head, or a grant of the sender's with the head that names its issuer, or
    /// the sender's revocation of an admin that removed it with the head that names both. At most
    /// [`MAX_SHOWN`] bytes.
    Show {
        /// The subnet that the records are of.
        subnet: SubnetId,
        /// The head, and the grant or revocation where there is one.
        records: Vec<Signed>,
    },
    /// Asks for the genesis of the subnet with this [`lookup`](crate::model::join::lookup), which a
    /// joiner judges before it asks.
    Genesis([u8; 16]),
}

/// What a peer answers on `/byway/join/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// The peer does not know that subnet.
    Unknown,
    /// The peer is a member of that subnet.
    Known,
    /// The nonce that the joiner has to sign.
    Nonce([u8; 16]),
    /// The owner or an admin has the question and will decide; `reached` tells whether one could be asked at all.
    Pending {
        /// Whether someone who may decide has the question.
        reached: bool,
    },
    /// The joiner is let in.
    Admitted {
        /// The genesis as its bytes, whose hash is the subnet's ID.
        genesis: Vec<u8>,
        /// The heads, the joiner's grant, then the records of everyone, as many as fit.
        records: Vec<Signed>,
    },
    /// The joiner is not let in.
    Refused {
        /// The stable code of the reason, `E-…`.
        code: String,
        /// The reason as text for people.
        message: String,
    },
    /// The subnet is over, or over for the asker: the records prove it.
    Ended {
        /// The genesis as its bytes, whose hash is the subnet's ID.
        genesis: Vec<u8>,
        /// The owner's head, and what is held of the asker's grants and revocations.
        heads: Vec<Signed>,
    },
    /// The bytes of the genesis, some 400 at most. The ID is their hash, so that nobody can make up
    /// others.
    Genesis(Vec<u8>),
}

/// What a member asks on `/byway/control/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Compares what both hold, by a hash over all digests.
    Compare {
        /// The subnet whose records are compared.
        subnet: SubnetId,
        /// [`set_hash`] of the digests held.
        hash: Digest,
    },
    /// Tells what the sender holds, and asks for what it lacks and for what the receiver lacks.
    Pull {
        /// The subnet whose records are asked for.
        subnet: SubnetId,
        /// The first eight bytes of each digest that the sender holds.
        have: Vec<[u8; 8]>,
    },
    /// Brings records that the sender thinks are new to the receiver.
    Push {
        /// The subnet that the records are of.
        subnet: SubnetId,
        /// The records, each with its signature.
        records: Vec<Signed>,
    },
    /// Passes a joiner's request on to a member that may decide it.
    Forward(JoinRequest),
    /// Carries a message of a datagram session.
    Session {
        /// The subnet that the session is in.
        subnet: SubnetId,
        /// The bytes of a message of `peer::session`.
        message: Vec<u8>,
        /// Where the sender may be reached by datagrams, best first; the first [`MAX_ENDPOINTS`] are read.
        endpoints: Vec<SocketAddr>,
    },
    /// Tells where the sender may be reached by datagrams, and asks the same.
    Paths(Paths),
    /// Tells the receiver its leg of a session that the sender asked a relay for.
    CallVia {
        /// The relay that gave the leg.
        relay: PeerId,
        /// Where it takes datagrams, best first; the first [`relay::MAX_ADDRESSES`](super::relay::MAX_ADDRESSES) are read.
        addresses: Vec<SocketAddr>,
        /// What the leg is bound with.
        ticket: Ticket,
    },
}

/// What a member answers on `/byway/control/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlAnswer {
    /// The peer holds the same records.
    Same,
    /// The peer holds other records; the asker goes on with [`ControlRequest::Pull`].
    Different,
    /// What the asker lacks (as much as fits), and which of its records the answerer lacks.
    Records {
        /// Records that the asker lacks.
        records: Vec<Signed>,
        /// The first eight bytes of each digest that the answerer lacks.
        want: Vec<[u8; 8]>,
    },
    /// The request was carried out, and there is nothing to say.
    Done,
    /// The answer to [`ControlRequest::Forward`], which the joiner is given.
    Forwarded(JoinAnswer),
    /// The answerer is no member of that subnet, or the asker is none to it.
    NotMember,
    /// The answer to [`ControlRequest::Session`].
    Session {
        /// The bytes of a message of `peer::session`.
        message: Vec<u8>,
        /// Where the answerer may be reached by datagrams, as in the request.
        endpoints: Vec<SocketAddr>,
    },
    /// The answerer carries no datagrams, or refuses that message.
    NoSession,
    /// Where the answerer may be reached by datagrams.
    Paths(Paths),
}

/// SHA-256 over all digests in order: equal sets have equal hashes.
pub fn set_hash<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut hash = Sha256::new();
    digests.into_iter().for_each(|d| hash.update(d));
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

/// The most bytes that a record takes in a message.
fn size(record: &Signed) -> usize {
    record.body.len().saturating_add(128)
}

/// Takes records from the front, as many as fit into `budget` bytes.
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
