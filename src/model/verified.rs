//! A record that was checked, or that this node signed: its bytes, what they say and their digest.
//!
//! These three are found out once. Whoever takes the record in, holds it, saves it or sends it on shares one allocation, so
//! that on its way nothing is parsed, digested or copied again.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::id::SubnetId;
use super::record::{
    Announcement, Body, Digest, Grant, Head, Item, MAX_RECORD, RecordError, Registration,
    Revocation, Signed, check, encode,
};

/// A record that was checked, with its body as a value of one kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement<T> {
    pub(super) body: T,
    pub(super) signed: Signed,
    pub(super) digest: Digest,
}

impl<T> Statement<T> {
    /// What the record says.
    pub fn body(&self) -> &T {
        &self.body
    }
}

/// A record whose signature, encoding and bounds hold. [`Signed::check`] and [`Verified::sign`] are the only ways to one,
/// so that the check can be made elsewhere than where records are taken in, and is made once. A copy is a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// A head, which names the admins.
    Head(Arc<Statement<Head>>),
    /// A grant, which admits a member.
    Grant(Arc<Statement<Grant>>),
    /// A revocation, which removes a member.
    Revocation(Arc<Statement<Revocation>>),
    /// A registration, which gives names to a member.
    Registration(Arc<Statement<Registration>>),
    /// What a member says of itself.
    Announcement(Arc<Statement<Announcement>>),
    /// An item, of a kind that this version may not know.
    Item(Arc<Statement<Item>>),
}

macro_rules! of_every_kind {
    ($($kind:ident)*) => {
        $(impl From<Arc<Statement<$kind>>> for Verified {
            fn from(statement: Arc<Statement<$kind>>) -> Verified {
                Verified::$kind(statement)
            }
        })*

        impl Verified {
            pub(super) fn new(signed: Signed, body: Body, digest: Digest) -> Verified {
                match body {
                    $(Body::$kind(body) => Verified::$kind(Arc::new(Statement { body, signed, digest })),)*
                }
            }

            /// The record as stored and sent.
            pub fn signed(&self) -> &Signed {
                match self {
                    $(Verified::$kind(statement) => &statement.signed,)*
                }
            }

            /// The digest of the record's exact bytes, by which stores and peers name it.
            pub fn digest(&self) -> Digest {
                match self {
                    $(Verified::$kind(statement) => statement.digest,)*
                }
            }
        }
    };
}

of_every_kind!(Head Grant Revocation Registration Announcement Item);

impl Verified {
    /// Signs what this node says. Its own words need no parsing and no look at the signature; the bounds hold for it as
    /// for everybody.
    ///
    /// # Errors
    /// [`RecordError::Size`] and [`RecordError::Nonsense`] for what others would refuse.
    pub fn sign(subnet: SubnetId, body: Body, key: &SigningKey) -> Result<Verified, RecordError> {
        let bytes = encode(&body);
        if bytes.len() > MAX_RECORD {
            return Err(RecordError::Size(bytes.len()));
        }
        check(&body, bytes.len())?;
        let signed = Signed::of_bytes(subnet, &body, bytes, key);
        let digest = signed.digest();
        Ok(Verified::new(signed, body, digest))
    }

    /// Whether both are one record of one taking in, not only equal ones.
    pub fn is_same(&self, other: &Verified) -> bool {
        std::ptr::eq(self.signed(), other.signed())
    }

    /// The order in which records are best read: each kind after those that give its issuers their standing.
    pub fn rank(&self) -> u8 {
        match self {
            Verified::Head(_) => 0,
            Verified::Grant(_) => 1,
            Verified::Revocation(_) => 2,
            Verified::Registration(_) => 3,
            Verified::Announcement(_) => 4,
            Verified::Item(_) => 5,
        }
    }

    /// What it is, as people are told.
    pub fn kind(&self) -> &'static str {
        match self {
            Verified::Head(_) => "head",
            Verified::Grant(_) => "grant",
            Verified::Revocation(_) => "revocation",
            Verified::Registration(_) => "registration",
            Verified::Announcement(_) => "announcement",
            Verified::Item(_) => "item",
        }
    }

    /// Whether it decides about membership, not about what members say.
    pub fn is_roll(&self) -> bool {
        matches!(
            self,
            Verified::Head(_) | Verified::Grant(_) | Verified::Revocation(_)
        )
    }
}

/// A record with its digest, and nothing else of it checked: what is known already is recognised by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digested {
    signed: Signed,
    digest: Digest,
}

impl Digested {
    /// The record as it came, of which nothing but the digest is known.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }

    /// The digest of the record's exact bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Checks as [`Signed::check`] does.
    ///
    /// # Errors
    /// As [`Signed::verify`].
    pub fn check(self) -> Result<Verified, RecordError> {
        let body = self.signed.verify()?;
        Ok(Verified::new(self.signed, body, self.digest))
    }
}

impl Signed {
    /// Computes the digest and keeps it with the record.
    pub fn digested(self) -> Digested {
        Digested {
            digest: self.digest(),
            signed: self,
        }
    }

    /// Checks as [`Signed::verify`] does, and keeps record, body and digest together.
    ///
    /// # Errors
    /// As [`Signed::verify`].
    pub fn check(self) -> Result<Verified, RecordError> {
        self.digested().check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;
    use crate::model::record::{MAX_ITEM, MAX_REGISTERED, NameEntry, Seat, WorkloadEntry};
    use crate::model::zone::RecordData;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    /// Statements of every kind, some of them of the largest size.
    fn bodies() -> impl Strategy<Value = Body> {
        let head = (1u64..9, 0usize..4).prop_map(|(number, seats)| {
            let seat = |n: usize| Seat {
                admin: PeerId([n as u8; 32]),
                since: 1,
                part: vec![],
            };
            Body::Head(Head {
                number,
                seats: (0..seats).map(seat).collect(),
                least: 3,
                destroyed: false,
                issued: 5,
            })
        });
        let revocation = any::<(u32, u64, [u8; 32])>().prop_map(|(generation, seat, ends)| {
            Body::Revocation(Revocation {
                subject: PeerId(ends),
                generation,
                ends,
                seat,
            })
        });
        let registration = (0..2 * MAX_REGISTERED, 1usize..250).prop_map(|(count, length)| {
            let name = |n: usize| format!("{}-{n}", "x".repeat(length.min(50)));
            let names = (0..count).map(name).collect();
            Body::Registration(Registration {
                holder: PeerId([1; 32]),
                version: 1,
                seat: 0,
                names,
                released: BTreeMap::from([("y".repeat(length), 3)]),
            })
        });
        let announcement = (
            0..60usize,
            proptest::collection::vec("[a-zé]{0,300}", 0..4),
            any::<u64>(),
        )
            .prop_map(|(workloads, said, version)| {
                let workload = |n: usize| {
                    let address = std::net::Ipv4Addr::new(10, 0, 0, n as u8);
                    WorkloadEntry {
                        name: format!("w{n}").parse().unwrap(),
                        addresses: vec![address.into()],
                    }
                };
                let entry = |text: String| NameEntry {
                    name: "a.b".into(),
                    data: RecordData::Txt(text),
                    ttl: 60,
                };
                let (workloads, names) = (
                    (0..workloads).map(workload).collect(),
                    said.into_iter().map(entry).collect(),
                );
                Body::Announcement(Announcement {
                    version,
                    workloads,
                    names,
                    ..Announcement::default()
                })
            });
        let item =
            (any::<u16>(), 0..MAX_ITEM + 9, any::<u64>()).prop_map(|(kind, bytes, version)| {
                Body::Item(Item {
                    kind,
                    slot: vec![1; 40],
                    version,
                    issued: 1,
                    expires: 2,
                    data: vec![9; bytes],
                })
            });
        prop_oneof![head, revocation, registration, announcement, item]
    }

    proptest! {
        #[test]
        fn what_a_node_signs_is_what_others_read_and_what_they_refuse_it_does_not_sign(body in bodies()) {
            let id = SubnetId([3; 16]);
            let read = Signed::new(id, &body, &key()).check();
            prop_assert_eq!(Verified::sign(id, body, &key()), read);
        }

        #[test]
        fn the_digest_is_that_of_the_encoded_record(length in prop_oneof![0usize..300, 16_300usize..16_500, Just(MAX_RECORD)]) {
            use sha2::Digest as _;
            let signed = Signed {
                subnet: SubnetId([1; 16]),
                issuer: PeerId([2; 32]),
                body: vec![5; length],
                signature_r: [3; 32],
                signature_s: [4; 32],
            };
            let bytes = signed.encode();
            prop_assert_eq!(&bytes, &encode(&signed));
            prop_assert_eq!(signed.digest(), <[u8; 32]>::from(sha2::Sha256::digest(&bytes)));
            prop_assert_eq!(Signed::parse(&bytes), Ok(signed));
        }
    }
}
