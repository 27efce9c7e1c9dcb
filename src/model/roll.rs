//! Who is a member and who has a say, as it follows from heads, grants, revocations and what members left: a function of
//! the set of records, without a date and without an order of arrival.
//!
//! The roll decides who may speak control with whom. A member without an address, whose grant ran out, or whose clock is
//! wrong is in it all the same, so that what would repair it still reaches it; what packets it may send is the View's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

use super::held::about;
use super::id::PeerId;
use super::record::{Digest, Grant, Registration, Revocation, Seat, Signed, Statement};
use super::subnet::Records;

/// A grant that counts, with its place among those of other issuers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    held: Arc<Statement<Grant>>,
    /// The owner or admin that signed it.
    pub issuer: PeerId,
    /// 0 for the owner, then the admins in the head's order from 1.
    pub order: usize,
}

impl Granted {
    /// The record as it is stored and sent.
    pub fn signed(&self) -> &Signed {
        &self.held.signed
    }

    /// What names the record: a hash of it with its signature.
    pub fn digest(&self) -> Digest {
        self.held.digest
    }

    /// What the record says.
    pub fn grant(&self) -> &Grant {
        &self.held.body
    }

    /// The grant as it counts where no other adds to it: the record itself.
    pub(super) fn counted(&self) -> Counted {
        Counted(Same::Record(Arc::clone(&self.held)))
    }

    /// The order of grants of one subject, of which the greatest counts.
    fn rank(&self) -> (u32, u64, std::cmp::Reverse<usize>, Digest) {
        let grant = self.grant();
        (
            grant.generation,
            grant.version,
            std::cmp::Reverse(self.order),
            self.held.digest,
        )
    }
}

/// A grant as it counts for its member, read as a [`Grant`]. It shares the record that says so, and is one of its own only
/// where another grant of the member adds to it: there are as many as members, each of some hundred bytes.
#[derive(Debug, Clone)]
pub struct Counted(Same);

#[derive(Debug, Clone)]
enum Same {
    Record(Arc<Statement<Grant>>),
    Added(Box<Grant>),
}

impl Counted {
    /// A grant to which another of the member has added.
    pub(super) fn added(grant: Grant) -> Counted {
        Counted(Same::Added(Box::new(grant)))
    }
}

impl Deref for Counted {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        match &self.0 {
            Same::Record(record) => &record.body,
            Same::Added(grant) => grant,
        }
    }
}

impl PartialEq for Counted {
    fn eq(&self, other: &Counted) -> bool {
        **self == **other
    }
}

impl Eq for Counted {}

/// A member: every grant of its that counts, the one that counts most first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    grants: Vec<Granted>,
}

impl Entry {
    /// The one grant that counts.
    pub fn best(&self) -> Option<&Granted> {
        self.grants.first()
    }

    /// The one that counts at `now`: a former one stands in while a later one is not due or has run out.
    pub fn at(&self, valid: impl Fn(&Grant) -> bool) -> Option<&Granted> {
        self.grants.iter().find(|g| valid(g.grant()))
    }

    /// All of them, the one that counts most first.
    pub fn grants(&self) -> &[Granted] {
        &self.grants
    }
}

/// A peer that was removed from the subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// Grants up to and with this generation count no more.
    pub generation: u32,
    /// The peer that said so: it, or the owner, may let the peer in again.
    pub by: PeerId,
}

/// The members and those who have a say, as they follow from the records without dates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roll {
    /// Number of the owner's head.
    pub number: u64,
    /// Whether the owner has ended the subnet.
    pub destroyed: bool,
    /// The founder's key; a roll made by default has none.
    pub owner: Option<PeerId>,
    /// Admins whose word counts, in the head's order.
    pub admins: Vec<PeerId>,
    /// All members, by their keys.
    pub members: BTreeMap<PeerId, Entry>,
    /// Peers that were removed and not let in again.
    pub out: BTreeMap<PeerId, Out>,
}

impl Roll {
    /// Whether somebody may admit and remove, the owner aside.
    pub fn is_admin(&self, peer: PeerId) -> bool {
        self.admins.contains(&peer)
    }
}

/// Who is out by these revocations, of which those that are spent end nothing above them.
fn out_by(ends: &[(PeerId, &Revocation, bool)], owner: PeerId) -> Option<Out> {
    let unspent = ends.iter().filter(|(.., spent)| !spent);
    let (by, r, _) = unspent.max_by_key(|(by, r, _)| (r.generation, *by == owner))?;
    Some(Out {
        generation: r.generation,
        by: *by,
    })
}

impl Records {
    /// Who is in.
    ///
    /// A revocation by the owner or an admin ends every grant up to its generation, and those above it that neither its
    /// issuer nor the owner signed: what one admin removed another cannot bring back. An admin that another admin removed
    /// has no say any more; two that remove each other are both out, since no order of theirs could be trusted.
    pub fn roll(&self) -> Roll {
        let head = self.head();
        let owner = self.genesis.owner;
        let seats: &[Seat] = &head.seats;
        let named = |peer: PeerId| peer == owner || head.seat(peer).is_some();
        let admins = self.admins(&named);
        let counts = |issuer: PeerId| issuer == owner || admins.contains(&issuer);
        let order: BTreeMap<PeerId, usize> = std::iter::once(owner)
            .chain(seats.iter().map(|s| s.admin))
            .zip(0..)
            .collect();
        let mut roll = Roll {
            number: head.number,
            destroyed: head.destroyed,
            owner: Some(owner),
            admins: admins.clone(),
            ..Roll::default()
        };
        let mut granted = self.grants.iter().peekable();
        while let Some(((subject, _), _)) = granted.peek().copied() {
            let subject = *subject;
            // Who has a seat may be removed by any other admin, also by one who is out.
            let judged = |by: PeerId| {
                if head.seat(subject).is_some() {
                    named(by)
                } else {
                    counts(by)
                }
            };
            let left = self.announcement(subject).and_then(|d| d.left).unwrap_or(0);
            let ends: Vec<(PeerId, &Revocation, bool)> = about(&self.revocations, subject)
                .filter(|(by, _)| judged(*by))
                .map(|(by, r)| (by, &r.body, self.is_spent(&r.body, by, &counts)))
                .collect();
            let mut grants: Vec<Granted> = Vec::new();
            while let Some(((_, issuer), held)) = granted.next_if(|((s, _), _)| *s == subject) {
                let generation = held.body.generation;
                let ended = ends
                    .iter()
                    .any(|(_, r, spent)| !spent || generation <= r.generation);
                let stands = subject == owner || (!ended && (left == 0 || generation > left));
                if counts(*issuer) && stands {
                    let order = order.get(issuer).copied().unwrap_or(usize::MAX);
                    grants.push(Granted {
                        held: Arc::clone(held),
                        issuer: *issuer,
                        order,
                    });
                }
            }
            // Of most members there is one.
            grants.shrink_to_fit();
            grants.sort_by_key(|g| std::cmp::Reverse(g.rank()));
            if !grants.is_empty() {
                roll.members.insert(subject, Entry { grants });
            } else if let Some(out) = out_by(&ends, owner) {
                roll.out.insert(subject, out);
            }
        }
        roll
    }

    /// Admins whose word counts, in the head's order; `named` are all that the head names, and the owner.
    fn admins(&self, named: &dyn Fn(PeerId) -> bool) -> Vec<PeerId> {
        let removed = |admin: PeerId| {
            about(&self.revocations, admin)
                .any(|(by, r)| named(by) && !self.is_spent(&r.body, by, named))
        };
        let seated = self.seats().iter().map(|s| s.admin);
        seated.filter(|a| self.is_in(*a) && !removed(*a)).collect()
    }

    /// Whether the peer holds any grant of somebody named, left ones aside: an admin that never was a member has no say.
    fn is_in(&self, peer: PeerId) -> bool {
        self.granted(peer).next().is_some()
    }

    /// Whether who revoked, or the owner, has let the subject in again.
    fn is_spent(
        &self,
        revocation: &Revocation,
        by: PeerId,
        counts: &dyn Fn(PeerId) -> bool,
    ) -> bool {
        let again =
            |issuer: PeerId| (issuer == self.genesis.owner || issuer == by) && counts(issuer);
        self.granted(revocation.subject)
            .any(|(issuer, held)| again(issuer) && held.body.generation > revocation.generation)
    }

    /// Revocations that `admin` signed of admins that removed it: what it shows by itself once it is out, since nobody
    /// takes its records any more and both are to be out.
    pub fn returned_by(&self, admin: PeerId) -> Vec<Signed> {
        let own = self.revocations.iter().filter(|((_, by), _)| *by == admin);
        own.filter(|(_, held)| self.is_returned(&held.body, admin))
            .map(|(_, held)| held.signed.clone())
            .collect()
    }

    /// Whether a revocation that its issuer shows, who is no member, is taken: it ends somebody, and none of this issuer's
    /// about that subject is held. Any other word of who was removed would let a removed admin remove all the others.
    pub fn takes_returned(&self, revocation: &Revocation, issuer: PeerId) -> bool {
        let held = self.revocations.contains_key(&(revocation.subject, issuer));
        self.is_returned(revocation, issuer) && !held && self.ends_something(revocation)
    }

    /// Whether both have a seat, the issuer signed in its present one, and the subject removed the issuer.
    fn is_returned(&self, revocation: &Revocation, issuer: PeerId) -> bool {
        let head = self.head();
        head.seat(issuer)
            .is_some_and(|seat| seat.since == revocation.seat)
            && head.seat(revocation.subject).is_some()
            && self.revocations.contains_key(&(issuer, revocation.subject))
    }

    /// Revocations that are held: what the owner's next epoch ends.
    pub fn live_revocations(&self) -> usize {
        self.revocations.len()
    }

    /// The greatest generation of a subject that is held, and the digest of the grant that has it.
    pub fn last_grant(&self, subject: PeerId) -> Option<(u32, Digest)> {
        self.granted(subject)
            .map(|(_, g)| (g.body.generation, g.digest))
            .max()
    }

    /// The grant of a subject with the greatest generation that is held, whether it counts or not.
    pub fn newest_grant(&self, subject: PeerId) -> Option<&Grant> {
        self.granted(subject)
            .map(|(_, g)| &g.body)
            .max_by_key(|g| (g.generation, g.version))
    }

    /// What an issuer registered: holders with their names, and what it released.
    pub(super) fn registered_by(
        &self,
        issuer: PeerId,
    ) -> Vec<(PeerId, BTreeSet<String>, BTreeMap<String, u64>)> {
        let own = self
            .registrations
            .iter()
            .filter(|((_, by), _)| *by == issuer);
        own.map(|((holder, _), r)| (*holder, r.body.names.clone(), r.body.released.clone()))
            .collect()
    }

    /// One issuer's registration of a member's names.
    pub fn registration(&self, holder: PeerId, issuer: PeerId) -> Option<&Registration> {
        self.registrations.get(&(holder, issuer)).map(|r| &r.body)
    }

    /// The greatest generation below `limit` that anything held names: the next epoch begins above it.
    pub(super) fn generations_below(&self, limit: u32) -> u32 {
        let revoked = self.revocations.values().map(|r| r.body.generation);
        let granted = self.grants.values().map(|g| g.body.generation);
        let left = self.announcements.values().filter_map(|d| d.body.left);
        revoked
            .chain(granted)
            .chain(left)
            .filter(|g| *g < limit)
            .max()
            .unwrap_or(0)
    }
}
