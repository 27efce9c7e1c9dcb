//! The only replicated thing: signed, numbered statements about one subnet.
//!
//! A record is its exact bytes: the body is [postcard](https://postcard.jamesmunns.com/wire-format), which has one
//! encoding for every value we use; what does not encode back to the same bytes is refused. The ed25519 signature
//! (RFC 8032, strict verification) covers
//!
//! ```text
//! context | 0x00 | subnet ID, 16 bytes | body
//! ```
//!
//! with a context for each kind (`byway/grant/1`, `byway/head/1`, `byway/doc/1`, `byway/revocation/1`,
//! `byway/registration/1`, `byway/item/1`), so that no statement can be taken for one of another kind or of another subnet.

mod bounds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::counted::{Step, note};
pub use super::genesis::{Admission, Genesis, Prefix6, is_domain};
use super::id::{Name, PeerId, SubnetId};
pub use super::verified::{Statement, Verified};
use super::zone::RecordData;
use crate::codec;
pub(super) use bounds::check;
pub use bounds::{
    MAX_ADMIN_GENERATION, MAX_ENTRIES, MAX_ITEM, MAX_LEASES, MAX_RECORD, MAX_REGISTERED,
    MAX_REGISTRATION, MAX_RUNS, MAX_SEATS, MAX_SLOT, data_fits, is_record_name,
};

/// What a member may do in the subnet, beside taking part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes part, and decides about nobody else.
    #[default]
    Member,
    /// Admits, renews and removes members.
    Admin,
    /// Founded the subnet; it does what an admin does, and names the admins.
    Owner,
}

/// How long a grant is meant to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum Term {
    /// The subnet's grant life; renewed whether its member is there or not.
    #[default]
    Full,
    /// Lasts an hour, renewed while the member is seen.
    Ephemeral,
    /// An hour for who came in without anybody's word; a full one follows once the member is seen.
    Trial,
}

/// How long an ephemeral or trial grant lasts, in seconds.
pub const SHORT_LIFE: u64 = 3600;

/// A member's admission, signed by the owner or an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The peer that is admitted.
    pub subject: PeerId,
    /// The subject's X25519 key for data sessions.
    pub data_key: [u8; 32],
    /// The subject's X25519 key for sealing what only it shall read (RFC 9180), and for nothing else. It is never the key
    /// of sessions: a key that serves two protocols is as safe as the weaker use of it.
    pub seal_key: [u8; 32],
    /// The name that the issuer gave the member.
    pub name: Name,
    /// What it may do; `Admin` counts only while the head names it.
    pub role: Role,
    /// Grows when a removed member is admitted again: revocations name a generation. Above [`MAX_ADMIN_GENERATION`] only
    /// the owner may sign.
    pub generation: u32,
    /// Counts the grants of one subject, whoever signs them: the greater replaces.
    pub version: u64,
    /// The issuer's [`Seat::since`]; 0 for the owner.
    pub seat: u64,
    /// The member's own addresses, inside its leases.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of the subnet's pools that belong to the member.
    pub leases: Vec<IpNet>,
    /// When the grant begins, in seconds since 1970.
    pub not_before: u64,
    /// When the grant ends, in seconds since 1970: at most the subnet's grant life after
    /// `not_before`.
    pub not_after: u64,
    /// How long it is meant to last.
    pub term: Term,
    /// Pairs of key and value that people gave.
    pub labels: BTreeMap<String, String>,
}

/// Consecutive blocks of the pool, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blocks {
    /// Number of the first block.
    pub first: u32,
    /// How many blocks follow each other, at least one.
    pub count: u32,
}

impl Blocks {
    /// Whether block `index` is among them.
    pub fn contains(&self, index: u32) -> bool {
        index
            .checked_sub(self.first)
            .is_some_and(|i| i < self.count)
    }
}

/// An admin, as the owner's head names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The peer that is an admin.
    pub admin: PeerId,
    /// Number of the head that gave the seat. Each record of an admin repeats it, so that what it signed in a former seat
    /// counts no more, whatever it is named later.
    pub since: u64,
    /// The part of the pool it gives blocks from.
    pub part: Vec<Blocks>,
}

/// The owner's numbered statement of who administers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Grows by one with each head; the greatest counts.
    pub number: u64,
    /// The admins, who may admit and remove; the order settles what two of them did unseen by each
    /// other.
    pub seats: Vec<Seat>,
    /// Grants of a smaller generation count no more: the owner raises it, and grants the living anew, so that
    /// revocations end.
    pub least: u32,
    /// Whether the owner has ended the subnet.
    pub destroyed: bool,
    /// When it was signed, in seconds since 1970; for people only.
    pub issued: u64,
}

impl Head {
    /// The seat of this admin, if the head names it.
    pub fn seat(&self, admin: PeerId) -> Option<&Seat> {
        self.seats.iter().find(|s| s.admin == admin)
    }
}

/// A member is out. It lives as long as a grant that it ends is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The member that is removed.
    pub subject: PeerId,
    /// Ends the subject's grants up to and with this generation.
    pub generation: u32,
    /// Digest of the grant that it ends; the two travel together.
    pub ends: Digest,
    /// The issuer's [`Seat::since`]; 0 for the owner.
    pub seat: u64,
}

/// Flat names that the issuer saw a member claim first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The member that holds the names, as long as its announcement claims them.
    pub holder: PeerId,
    /// Grows with each change; the greatest of one issuer and holder counts.
    pub version: u64,
    /// The issuer's [`Seat::since`]; 0 for the owner.
    pub seat: u64,
    /// The names that are held, relative to the zone.
    pub names: BTreeSet<String>,
    /// Names taken from the holder, each with the version of its announcement that claimed it: any later one claims it
    /// anew.
    pub released: BTreeMap<String, u64>,
}

/// One workload in a member's announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadEntry {
    /// Name of the workload in the subnet.
    pub name: Name,
    /// Addresses of the workload, inside the member's leases.
    pub addresses: Vec<IpAddr>,
}

/// One name in a member's announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntry {
    /// The name relative to the zone: labels with dots between; `_` may begin one for SRV.
    pub name: String,
    /// The answer that the name gets.
    pub data: RecordData,
    /// How long a resolver may keep the answer, in seconds.
    pub ttl: u32,
}

/// What a member says of itself; the highest version holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Announcement {
    /// Counts the member's announcements; the greatest counts.
    pub version: u64,
    /// When it was signed, in seconds since 1970; for people only.
    pub issued: u64,
    /// Tells one start of the member's daemon from another: see [`lives`](super::lives).
    pub life: u64,
    /// The generation that was left, if the member left. Such an announcement says nothing else.
    pub left: Option<u32>,
    /// Where the member can be dialled: multiaddrs.
    pub endpoints: Vec<String>,
    /// The workloads attached to the member.
    pub workloads: Vec<WorkloadEntry>,
    /// The names that the member adds to those of its workloads.
    pub names: Vec<NameEntry>,
}

/// A statement of a kind that a later version may know: held and passed on, and without meaning where it is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The kind of statement, which a version of the program may not know.
    pub kind: u16,
    /// The slot, which tells items of one kind apart, at most [`MAX_SLOT`] bytes: the greatest
    /// version of a slot replaces the others.
    pub slot: Vec<u8>,
    /// Counts the statements of one slot.
    pub version: u64,
    /// When it was signed, in seconds since 1970; for people only.
    pub issued: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// What is stated, at most [`MAX_ITEM`] bytes; no bytes take the slot back.
    pub data: Vec<u8>,
}

/// One statement. New kinds of statements are kinds of [`Item`]: this list does not grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Admits a member to the subnet.
    Grant(Grant),
    /// Names the admins of the subnet.
    Head(Head),
    /// What a member says of itself.
    Announcement(Announcement),
    /// Removes a member from the subnet.
    Revocation(Revocation),
    /// Gives names to a member.
    Registration(Registration),
    /// Says something that a later version may know.
    Item(Item),
}

impl Body {
    fn context(&self) -> &'static [u8] {
        match self {
            Body::Grant(_) => b"byway/grant/1",
            Body::Head(_) => b"byway/head/1",
            Body::Announcement(_) => b"byway/doc/1",
            Body::Revocation(_) => b"byway/revocation/1",
            Body::Registration(_) => b"byway/registration/1",
            Body::Item(_) => b"byway/item/1",
        }
    }
}

/// A statement with its signature, as stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The subnet that it is about.
    pub subnet: SubnetId,
    /// The peer that signed it.
    pub issuer: PeerId,
    /// The canonical bytes of the [`Body`], which the signature covers.
    pub body: Vec<u8>,
    /// First half of the ed25519 signature.
    pub signature_r: [u8; 32],
    /// Second half of the ed25519 signature.
    pub signature_s: [u8; 32],
}

/// A SHA-256 digest of a record's exact bytes.
pub type Digest = [u8; 32];

/// A record that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are no record, or not the canonical ones.
    #[error("not a canonical record")]
    Encoding,
    /// The body is larger than [`MAX_RECORD`]; the value is its size in bytes.
    #[error("record of {0} bytes is too large")]
    Size(usize),
    /// The signature is not the issuer's.
    #[error("signature does not verify")]
    Signature,
    /// The signature holds, and what is signed makes no sense.
    #[error("{0} states what cannot be")]
    Nonsense(&'static str),
}

impl Signed {
    /// Encodes `body` and signs it with `key` for this subnet.
    pub fn new(subnet: SubnetId, body: &Body, key: &SigningKey) -> Signed {
        Signed::of_bytes(subnet, body, encode(body), key)
    }

    /// Signs a body whose canonical bytes are known.
    pub(super) fn of_bytes(
        subnet: SubnetId,
        body: &Body,
        bytes: Vec<u8>,
        key: &SigningKey,
    ) -> Signed {
        let signature = key.sign(&message(subnet, body.context(), &bytes));
        Signed {
            subnet,
            issuer: PeerId(key.verifying_key().to_bytes()),
            body: bytes,
            signature_r: *signature.r_bytes(),
            signature_s: *signature.s_bytes(),
        }
    }

    /// Checks signature, encoding and bounds, and reads the body.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong; nothing of such a record may be used.
    pub fn verify(&self) -> Result<Body, RecordError> {
        note(Step::Verified);
        if self.body.len() > MAX_RECORD {
            return Err(RecordError::Size(self.body.len()));
        }
        let body: Body = decode(&self.body)?;
        let key = VerifyingKey::from_bytes(&self.issuer.0).map_err(|_| RecordError::Signature)?;
        let signature = Signature::from_components(self.signature_r, self.signature_s);
        key.verify_strict(
            &message(self.subnet, body.context(), &self.body),
            &signature,
        )
        .map_err(|_| RecordError::Signature)?;
        check(&body, self.body.len())?;
        Ok(body)
    }

    /// The digest of the record's exact bytes, by which stores and peers name it.
    pub fn digest(&self) -> Digest {
        note(Step::Digested);
        let mut hash = Sha256::new();
        self.pieces(&varint(self.body.len()), |piece| hash.update(piece));
        hash.finalize().into()
    }

    /// The canonical bytes, as they are stored and sent.
    pub fn encode(&self) -> Vec<u8> {
        let length = varint(self.body.len());
        let mut bytes = Vec::with_capacity(
            self.body
                .len()
                .saturating_add(112)
                .saturating_add(length.len()),
        );
        self.pieces(&length, |piece| bytes.extend_from_slice(piece));
        bytes
    }

    /// The stored bytes, piece by piece: what postcard writes, byte by byte, of this value.
    fn pieces(&self, length: &[u8], mut piece: impl FnMut(&[u8])) {
        [
            &self.subnet.0,
            self.issuer.0.as_slice(),
            length,
            &self.body,
            &self.signature_r,
            &self.signature_s,
        ]
        .into_iter()
        .for_each(&mut piece);
    }

    /// Reads stored bytes; the signature is not checked here.
    ///
    /// # Errors
    /// [`RecordError::Encoding`].
    pub fn parse(bytes: &[u8]) -> Result<Signed, RecordError> {
        decode(bytes)
    }
}

fn message(subnet: SubnetId, context: &[u8], body: &[u8]) -> Vec<u8> {
    [context, b"\0", &subnet.0, body].concat()
}

/// A number as postcard writes it: seven bits in each byte, the lowest first.
fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(3);
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Bytes of a value, by [`codec::encode`]; counted for the tests.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    note(Step::Encoded);
    codec::encode(value)
}

/// Reads canonical bytes, by [`codec::decode_canonical`]; counted for the tests.
pub(crate) fn decode<T: Serialize + serde::de::DeserializeOwned>(
    bytes: &[u8],
) -> Result<T, RecordError> {
    note(Step::Parsed);
    codec::decode_canonical(bytes).map_err(|_| RecordError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn grant() -> Body {
        Body::Grant(Grant {
            subject: PeerId([2; 32]),
            data_key: [3; 32],
            name: "web".parse().unwrap(),
            role: Role::Member,
            generation: 1,
            version: 1,
            seat: 0,
            seal_key: [4; 32],
            term: Term::Full,
            addresses: vec!["10.77.1.1".parse().unwrap()],
            leases: vec![
                "10.77.1.0/24".parse().unwrap(),
                "fd00::/64".parse().unwrap(),
            ],
            not_before: 10,
            not_after: 20,
            labels: BTreeMap::new(),
        })
    }

    #[test]
    fn every_changed_byte_of_a_record_is_refused() {
        let signed = Signed::new(SubnetId([1; 16]), &grant(), &key(9));
        assert_eq!(signed.verify(), Ok(grant()));
        let checked = signed.clone().check().unwrap();
        assert_eq!(
            checked,
            Verified::sign(SubnetId([1; 16]), grant(), &key(9)).unwrap()
        );
        assert_eq!(
            (checked.signed(), checked.digest()),
            (&signed, signed.digest())
        );
        let bytes = signed.encode();
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut forged = bytes.clone();
                forged[i] ^= 1 << bit;
                let accepted =
                    Signed::parse(&forged).is_ok_and(|s| s.verify().is_ok() || s.check().is_ok());
                assert!(!accepted, "byte {i} bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_of_another_subnet_is_refused() {
        let mut signed = Signed::new(SubnetId([1; 16]), &grant(), &key(9));
        signed.subnet = SubnetId([2; 16]);
        assert_eq!(signed.verify(), Err(RecordError::Signature));
    }

    proptest! {
        #[test]
        fn decoders_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Signed::parse(&bytes).map(|s| s.verify());
            let _ = decode::<Body>(&bytes);
        }
    }
}
