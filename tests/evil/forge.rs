//! Records no honest node would sign. All that the program knows of their formats is here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use byway::model::id::{Name, PeerId, SubnetId};
use byway::model::join::{Ask, Invite, Proof, SignedAsk};
use byway::model::record::{
    Announcement, Blocks, Body, Digest, Grant, Head, Item, NameEntry, Registration, Revocation,
    Role, Seat, Signed, Term, WorkloadEntry,
};
use byway::model::zone::RecordData;
use ed25519_dalek::SigningKey;
use ipnet::IpNet;
use x25519_dalek::{PublicKey, StaticSecret};

use super::dice::Dice;
use super::peer::peer_of;

/// Seconds since 1970.
pub fn now() -> u64 {
    since_1970().as_secs()
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// What the records of a victim say, as far as a move needs it.
#[derive(Debug, Default)]
pub struct Seen {
    /// All of them, as they came.
    pub records: Vec<Signed>,
    /// Who signed it, and the grant.
    pub grants: Vec<(PeerId, Grant)>,
    /// Who signed it, and the head.
    pub heads: Vec<(PeerId, Head)>,
    /// Who signed it, and the revocation.
    pub revocations: Vec<(PeerId, Revocation)>,
    /// Whose it is, and the announcement.
    pub announcements: Vec<(PeerId, Announcement)>,
}

impl Seen {
    /// Reads records; what does not verify is kept unread.
    pub fn of(records: Vec<Signed>) -> Seen {
        let mut seen = Seen::default();
        for record in &records {
            match record.verify() {
                Ok(Body::Grant(grant)) => seen.grants.push((record.issuer, grant)),
                Ok(Body::Head(head)) => seen.heads.push((record.issuer, head)),
                Ok(Body::Revocation(revocation)) => {
                    seen.revocations.push((record.issuer, revocation))
                }
                Ok(Body::Announcement(announcement)) => {
                    seen.announcements.push((record.issuer, announcement))
                }
                Ok(Body::Registration(_) | Body::Item(_)) | Err(_) => {}
            }
        }
        seen.records = records;
        seen
    }

    /// The newest grant of a peer.
    pub fn grant(&self, peer: PeerId) -> Option<&Grant> {
        let of_peer = self
            .grants
            .iter()
            .map(|(_, g)| g)
            .filter(|g| g.subject == peer);
        of_peer.max_by_key(|g| (g.generation, g.version))
    }

    /// A member's announcement.
    pub fn announcement(&self, peer: PeerId) -> Option<&Announcement> {
        self.announcements
            .iter()
            .find(|(p, _)| *p == peer)
            .map(|(_, d)| d)
    }

    /// The highest number of a head.
    pub fn number(&self) -> u64 {
        self.heads.iter().map(|(_, h)| h.number).max().unwrap_or(0)
    }

    /// The number of an admin's seat; that of the owner where there is none.
    pub fn seat(&self, admin: PeerId) -> u64 {
        self.heads
            .iter()
            .filter_map(|(_, h)| h.seat(admin))
            .map(|s| s.since)
            .max()
            .unwrap_or(0)
    }

    /// The digest of the newest grant of a peer: what a revocation of it has to name.
    fn digest(&self, peer: PeerId) -> Digest {
        let of_peer = |r: &&Signed| matches!(r.verify(), Ok(Body::Grant(g)) if g.subject == peer);
        self.records
            .iter()
            .rfind(of_peer)
            .map_or([0; 32], Signed::digest)
    }
}

/// Signs with a key, for a subnet, whatever is wanted.
pub struct Forge<'a> {
    /// The subnet.
    pub subnet: SubnetId,
    /// Who signs.
    pub key: &'a SigningKey,
}

impl Forge<'_> {
    fn sign(&self, body: Body) -> Signed {
        Signed::new(self.subnet, &body, self.key)
    }

    /// A grant as given.
    pub fn grant(&self, grant: Grant) -> Signed {
        self.sign(Body::Grant(grant))
    }

    /// An announcement as given.
    pub fn announcement(&self, announcement: Announcement) -> Signed {
        self.sign(Body::Announcement(announcement))
    }

    /// Puts peers out, up to and with a generation.
    pub fn revocations(&self, seen: &Seen, out: &BTreeMap<PeerId, u32>) -> Vec<Signed> {
        let seat = seen.seat(peer_of(self.key));
        let revoke = |(subject, generation): (&PeerId, &u32)| {
            let ends = seen.digest(*subject);
            self.sign(Body::Revocation(Revocation {
                subject: *subject,
                generation: *generation,
                ends,
                seat,
            }))
        };
        out.iter().map(revoke).collect()
    }

    /// Members that exist nowhere, each with its revocation.
    pub fn made_up_and_out(&self, seen: &Seen, dice: &mut Dice, count: u64) -> Vec<Signed> {
        let seat = seen.seat(peer_of(self.key));
        let mut both = |_| {
            let grant = Grant {
                labels: BTreeMap::new(),
                ..made_up(dice, now(), seat)
            };
            let subject = grant.subject;
            let grant = self.grant(grant);
            let ends = grant.digest();
            [
                grant,
                self.sign(Body::Revocation(Revocation {
                    subject,
                    generation: 1,
                    ends,
                    seat,
                })),
            ]
        };
        (0..count).flat_map(&mut both).collect()
    }

    /// A head that gives an admin the whole pool, or ends the subnet: the owner's word from whoever signs it.
    pub fn head(&self, admin: PeerId, ends: bool, number: u64, issued: u64) -> Signed {
        let seat = Seat {
            admin,
            since: 1,
            part: vec![Blocks {
                first: 0,
                count: 65_536,
            }],
        };
        self.sign(Body::Head(Head {
            number,
            seats: vec![seat],
            least: 0,
            destroyed: ends,
            issued,
        }))
    }

    /// Names of another, registered for a holder and taken from everybody else.
    pub fn registration(
        &self,
        seen: &Seen,
        holder: PeerId,
        from: &[PeerId],
        names: &[String],
    ) -> Vec<Signed> {
        let (seat, version) = (seen.seat(peer_of(self.key)), u64::MAX - 1);
        let held = Registration {
            holder,
            version,
            seat,
            names: names.iter().cloned().collect(),
            released: [].into(),
        };
        let taken = |from: &PeerId| {
            let released = names.iter().map(|n| (n.clone(), u64::MAX)).collect();
            Registration {
                holder: *from,
                version,
                seat,
                names: [].into(),
                released,
            }
        };
        std::iter::once(held)
            .chain(from.iter().map(taken))
            .map(|r| self.sign(Body::Registration(r)))
            .collect()
    }

    /// Statements of a kind nobody knows, as large and as many as given.
    pub fn items(&self, dice: &mut Dice, count: u64) -> Vec<Signed> {
        let mut item = |_| {
            let (slot, data) = (dice.bytes(16), dice.bytes(4096));
            self.sign(Body::Item(Item {
                kind: 9,
                slot,
                version: 1,
                issued: now(),
                expires: u64::MAX,
                data,
            }))
        };
        (0..count).map(&mut item).collect()
    }

    /// "I left", with names beside it so that it is as large as an announcement may be.
    pub fn farewell(&self, names: usize) -> Signed {
        self.announcement(Announcement {
            left: Some(1),
            ..stuffed(names)
        })
    }
}

/// An announcement with so many names; 850 are 45 KB.
pub fn stuffed(names: usize) -> Announcement {
    let entry = |n: usize| {
        name(
            &format!("n{n}-{}", "x".repeat(40)),
            RecordData::Address(IpAddr::from([10, 0, 0, 1])),
        )
    };
    Announcement {
        names: (0..names).map(entry).collect(),
        ..announcement(now_ms(), now())
    }
}

/// An announcement that says nothing.
pub fn announcement(version: u64, issued: u64) -> Announcement {
    Announcement {
        version,
        issued,
        ..Announcement::default()
    }
}

/// A workload in an announcement.
pub fn workload(name: Name, addresses: Vec<IpAddr>) -> WorkloadEntry {
    WorkloadEntry { name, addresses }
}

/// A name in an announcement.
pub fn name(name: &str, data: RecordData) -> NameEntry {
    NameEntry {
        name: name.to_owned(),
        data,
        ttl: 60,
    }
}

/// A grant for a peer that exists nowhere, of about 20 KB, good for a minute.
pub fn made_up(dice: &mut Dice, at: u64, seat: u64) -> Grant {
    let label = |n: usize| (format!("{n:02}{}", "k".repeat(61)), "v".repeat(255));
    Grant {
        subject: PeerId(
            SigningKey::from_bytes(&dice.key())
                .verifying_key()
                .to_bytes(),
        ),
        data_key: dice.key(),
        seal_key: dice.key(),
        name: Name::from_host(&format!("m{:x}", dice.roll())),
        role: Role::Member,
        generation: 1,
        version: 1,
        seat,
        addresses: vec![],
        leases: vec![],
        not_before: at,
        not_after: at.saturating_add(60),
        term: Term::Full,
        labels: (0..64).map(label).collect(),
    }
}

/// A grant with everything a claimant could count or measure for himself set to its advantage, and yet one that can be
/// read: within a day.
pub fn greedy(mine: &Grant, seat: u64, addresses: Vec<IpAddr>, leases: Vec<IpNet>) -> Grant {
    Grant {
        role: Role::Admin,
        addresses,
        leases,
        seat,
        version: u64::MAX,
        not_before: now(),
        not_after: now().saturating_add(86_400),
        term: Term::Full,
        ..mine.clone()
    }
}

/// A record that nobody signed, in another's name.
pub fn unsigned(subnet: SubnetId, issuer: PeerId, body: Vec<u8>) -> Signed {
    Signed {
        subnet,
        issuer,
        body,
        signature_r: [0; 32],
        signature_s: [0; 32],
    }
}

/// The bytes of an announcement that was begun and not finished: the shortest that a receiver has to look at.
pub fn stub(dice: &mut Dice) -> Vec<u8> {
    [vec![2], dice.bytes(8)].concat()
}

/// The secret of the data key that we join with.
pub fn data_secret(key: &SigningKey) -> [u8; 32] {
    Dice::new(u64::from(key.to_bytes()[0])).key()
}

/// A joiner's question.
pub fn ask(subnet: SubnetId, key: &SigningKey, name: &str, proof: Option<Proof>) -> SignedAsk {
    let ask = Ask {
        subnet,
        joiner: peer_of(key),
        data_key: PublicKey::from(&StaticSecret::from(data_secret(key))).to_bytes(),
        seal_key: Dice::new(u64::from(key.to_bytes()[1]) + 256).key(),
        name: Name::from_host(name),
        name_is_default: true,
        ip: None,
        asked: now(),
        proof,
    };
    SignedAsk::new(&ask, key)
}

/// The proof that a joiner holds an invite.
pub fn proof(invite: &Invite, key: &SigningKey, nonce: [u8; 16]) -> Proof {
    Proof::new(invite, peer_of(key), nonce)
}
