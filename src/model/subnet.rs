//! The records of one subnet.
//!
//! [`Records`] is a join-semilattice: per key the greater record stays, and whether a record may be held at all follows
//! from the other records, never from a date or the order of arrival, so that members who have seen the same records hold
//! the same. [`Records::roll`] derives who is in, [`Records::resolve`] who holds what at one moment.
//!
//! Every record has an owner who pays for it, a number, a size and an end:
//!
//! | record | key | held while | bound |
//! |---|---|---|---|
//! | head | number | it is the owner's highest | 4 of one number |
//! | grant | subject, issuer | its issuer's seat stands, until a day after all grants of the subject have ended | 1,024 of 8 KiB for an admin, those with the smallest keys |
//! | revocation | subject, issuer | a grant that it ends is held | as grants |
//! | registration | holder, issuer | a grant of the holder is held | as grants, 64 KiB each |
//! | announcement | member | a grant of the member is held | 128 KiB, of a trial member 1 KiB |
//! | item | issuer, kind, slot | a grant of the issuer is held, until it expires | see [`items`](super::items); on trial none |

mod absorb;

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::chunks::Chunks;
use super::claims::Claims;
use super::held::{ByPair, Mark, about, keep, moved};
use super::id::{PeerId, SubnetId};
use super::ipam::Pools;
use super::items::Slot;
use super::record::{
    Announcement, Digest, Genesis, Grant, Head, Item, Registration, Revocation, Seat, Signed,
    Statement, Verified,
};
pub use super::resolve::{Member, Resolved};

/// Seconds between two moments at which what has ended is forgotten: the same moments at everybody, counted from 1970, so
/// that members disagree about it no longer than their clocks do.
const FORGET_EVERY: u64 = 3600;
/// How long records are held after their end, in seconds, so that who was away a little longer is
/// still known.
pub const GRACE: u64 = 86_400;

/// All records of one subnet that may be held. A copy shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The ID, which is the hash of the genesis.
    pub id: SubnetId,
    /// The founding statement, which the ID is the hash of.
    pub genesis: Genesis,
    /// The owner's heads, all of one number: more than one after a backup was restored.
    pub(super) heads: Vec<Arc<Statement<Head>>>,
    pub(super) top: Arc<Head>,
    pub(super) grants: ByPair<Grant>,
    pub(super) revocations: ByPair<Revocation>,
    pub(super) registrations: ByPair<Registration>,
    pub(super) announcements: Chunks<PeerId, Arc<Statement<Announcement>>>,
    /// The members that say a name in an announcement that is held.
    pub(super) claims: Claims,
    pub(super) items: Chunks<Slot, Arc<Statement<Item>>>,
    pub(super) index: Chunks<Digest, ()>,
    pub(super) mark: Mark,
    /// Well signed, and of use only once other records are here.
    pub(super) parked: Vec<Verified>,
    /// What ended before this moment (seconds since 1970) is not taken again.
    horizon: u64,
    /// The latest time (seconds since 1970) that someone with a say signed at.
    latest: u64,
}

/// What became of a record that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absorbed {
    /// It changed what is held.
    New,
    /// We had it or something greater, or it has ended.
    Known,
    /// It waits for its issuer's standing, or for whom it is about.
    Parked,
    /// It can never count: wrong subnet, bounds or issuer.
    Refused,
}

impl Records {
    /// A subnet that only has its genesis.
    pub fn new(genesis: Genesis) -> Records {
        Records {
            id: genesis.id(),
            genesis,
            heads: Vec::new(),
            top: Arc::new(Head {
                number: 0,
                seats: vec![],
                least: 0,
                destroyed: false,
                issued: 0,
            }),
            grants: Chunks::default(),
            revocations: Chunks::default(),
            registrations: Chunks::default(),
            announcements: Chunks::default(),
            claims: Claims::default(),
            items: Chunks::default(),
            index: Chunks::default(),
            mark: Mark::default(),
            parked: Vec::new(),
            horizon: 0,
            latest: 0,
        }
    }

    /// The address pools that the genesis names.
    pub fn pools(&self) -> Pools {
        Pools {
            v4: self.genesis.cidr4,
            block4: self.genesis.block4,
            v6: self.genesis.prefix6(self.id),
        }
    }

    /// The prefixes of the pools, of each family that the subnet has.
    pub fn prefixes(&self) -> Vec<IpNet> {
        let pools = self.pools();
        pools
            .v4
            .map(IpNet::V4)
            .into_iter()
            .chain(pools.v6.map(IpNet::V6))
            .collect()
    }

    /// Every record held with its digest, parked ones not among them: heads, grants, revocations, registrations,
    /// announcements, items.
    pub fn entries(&self) -> impl Iterator<Item = (&Digest, &Signed)> {
        fn pair<T>(held: &Arc<Statement<T>>) -> (&Digest, &Signed) {
            (&held.digest, &held.signed)
        }
        let roll = self
            .heads
            .iter()
            .map(pair)
            .chain(self.grants.values().map(pair));
        let roll = roll.chain(self.revocations.values().map(pair));
        let rest = self
            .registrations
            .values()
            .map(pair)
            .chain(self.announcements.values().map(pair));
        roll.chain(rest).chain(self.items.values().map(pair))
    }

    /// Every record held, in the order of [`Records::entries`].
    pub fn all(&self) -> impl Iterator<Item = &Signed> {
        self.entries().map(|(_, signed)| signed)
    }

    /// The same as they were taken in, each with what it says and its digest.
    pub fn verified(&self) -> impl Iterator<Item = Verified> {
        fn share<T>(held: &Arc<Statement<T>>) -> Verified
        where
            Verified: From<Arc<Statement<T>>>,
        {
            Arc::clone(held).into()
        }
        let roll = self
            .heads
            .iter()
            .map(share)
            .chain(self.grants.values().map(share));
        let roll = roll.chain(self.revocations.values().map(share));
        let rest = self
            .registrations
            .values()
            .map(share)
            .chain(self.announcements.values().map(share));
        roll.chain(rest).chain(self.items.values().map(share))
    }

    /// Records that `new` does not hold any more, and those that it holds beyond these.
    pub(super) fn changes(&self, new: &Records) -> (Vec<Digest>, Vec<Verified>) {
        let (mut went, mut came) = (Vec::new(), Vec::new());
        let (old_heads, new_heads) = (self.heads.iter(), new.heads.iter());
        went.extend(
            old_heads
                .filter(|h| !new.knows(&h.digest))
                .map(|h| h.digest),
        );
        came.extend(
            new_heads
                .filter(|h| !self.knows(&h.digest))
                .map(|h| Verified::Head(Arc::clone(h))),
        );
        moved(&self.grants, &new.grants, &mut went, &mut came);
        moved(&self.revocations, &new.revocations, &mut went, &mut came);
        moved(
            &self.registrations,
            &new.registrations,
            &mut went,
            &mut came,
        );
        moved(
            &self.announcements,
            &new.announcements,
            &mut went,
            &mut came,
        );
        moved(&self.items, &new.items, &mut went, &mut came);
        (went, came)
    }

    /// Digests of every record held: what two members compare.
    pub fn held(&self) -> BTreeSet<Digest> {
        self.index.keys().copied().collect()
    }

    /// The digests of every record held, in order; copies share them.
    pub fn index(&self) -> &Chunks<Digest, ()> {
        &self.index
    }

    /// The digests of the records that wait for others.
    pub fn parked_digests(&self) -> impl Iterator<Item = Digest> {
        self.parked.iter().map(Verified::digest)
    }

    /// Digests of every record held or parked: what a peer need not send.
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.index
            .keys()
            .copied()
            .chain(self.parked.iter().map(Verified::digest))
            .collect()
    }

    /// Whether a record is held, by its digest.
    pub fn knows(&self, digest: &Digest) -> bool {
        self.index.contains_key(digest)
    }

    /// The announcements that are held, one of each member that has made one.
    pub fn announcements(&self) -> impl Iterator<Item = (PeerId, &Announcement)> {
        self.announcements
            .iter()
            .map(|(peer, held)| (*peer, &held.body))
    }

    /// The announcement that is held of a member.
    pub fn announcement(&self, member: PeerId) -> Option<&Announcement> {
        self.announcements.get(&member).map(|d| &d.body)
    }

    /// What decides which of two announcements of a member holds: the greater version, of equal ones the greater digest.
    pub fn announcement_rank(&self, member: PeerId) -> Option<(u64, Digest)> {
        let held = self.announcements.get(&member)?;
        Some((held.body.version, held.digest))
    }

    /// The announcement in which a member says that it left.
    pub(super) fn goodbye(&self, member: PeerId) -> Option<&Signed> {
        self.announcements
            .get(&member)
            .filter(|held| held.body.left.is_some())
            .map(|held| &held.signed)
    }

    /// Every grant held of a subject, whether it counts or not.
    pub fn grants_of(&self, subject: PeerId) -> impl Iterator<Item = &Grant> {
        self.granted(subject).map(|(_, held)| &held.body)
    }

    pub(super) fn granted(
        &self,
        subject: PeerId,
    ) -> impl Iterator<Item = (PeerId, &Arc<Statement<Grant>>)> {
        about(&self.grants, subject)
    }

    /// What the owner's heads say together. Of two with one number both remove: who was an admin before has to be named by
    /// both, and the subnet has ended if either says so; for the rest, whom they name anew too, the greater digest decides.
    pub fn head(&self) -> &Head {
        &self.top
    }

    /// The owner's heads that are held.
    pub fn head_records(&self) -> Vec<Signed> {
        self.heads.iter().map(|h| h.signed.clone()).collect()
    }

    /// Whether the owner signed one number twice: a restored backup, or a clone.
    pub fn forked(&self) -> bool {
        self.heads.len() > 1
    }

    /// Whether the owner ended the subnet.
    pub fn destroyed(&self) -> bool {
        self.top.destroyed
    }

    /// The latest time (seconds since 1970) that someone with a say signed at.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// What shows a stranger to others, or proves to it that it is out: the heads, and what is held of its grants and
    /// revocations.
    pub fn proof_about(&self, subject: PeerId) -> Vec<Signed> {
        self.proving(subject)
            .map(|record| record.signed().clone())
            .collect()
    }

    /// The same as they were taken in.
    pub fn proving(&self, subject: PeerId) -> impl Iterator<Item = Verified> {
        let heads = self
            .heads
            .iter()
            .map(|held| Verified::Head(Arc::clone(held)));
        let grants = self
            .granted(subject)
            .map(|(_, held)| Verified::Grant(Arc::clone(held)));
        let revocations = about(&self.revocations, subject)
            .map(|(_, held)| Verified::Revocation(Arc::clone(held)));
        heads.chain(grants).chain(revocations)
    }

    /// Whether [`Records::forget`] would look: at each full hour.
    pub fn may_forget(&self, now: u64) -> bool {
        now >= self.horizon.saturating_add(FORGET_EVERY)
    }

    /// What ended before this moment (seconds since 1970), and [`GRACE`] before it, is not taken again.
    pub(super) fn horizon(&self) -> u64 {
        self.horizon
    }

    /// Forgets who is gone: everything about a member all of whose grants ended a day before `now` (seconds since 1970,
    /// by a clock that others agree with). Nothing that ended before is taken again. Gives whether anything went.
    pub fn forget(&mut self, now: u64) -> bool {
        if !self.may_forget(now) {
            return false;
        }
        self.horizon = now - now % FORGET_EVERY;
        self.mark = Mark::default();
        let (horizon, owner) = (self.horizon, self.genesis.owner);
        let ended = |end: u64| end.saturating_add(GRACE) <= horizon;
        let before = self.index.len();
        let living: BTreeSet<PeerId> = (self.grants.iter())
            .filter(|((subject, _), g)| *subject == owner || !ended(g.body.not_after))
            .map(|((subject, _), _)| *subject)
            .collect();
        keep(&mut self.grants, &mut self.index, |(subject, _), _| {
            living.contains(subject)
        });
        let index = &mut self.index;
        self.items
            .retain(|_, held| !ended(held.body.expires) || index.remove(&held.digest).is_none());
        if self.index.len() != before {
            self.drop_all_orphans();
        }
        self.index.len() != before
    }

    /// The seat of an issuer, for what it signs: 0 for the owner, `None` without one.
    pub fn seat_of(&self, issuer: PeerId) -> Option<u64> {
        if issuer == self.genesis.owner {
            Some(0)
        } else {
            self.top.seat(issuer).map(|s| s.since)
        }
    }

    /// The owner's next head, which says what the present one says.
    pub fn next_head(&self, now: u64) -> Head {
        let top = self.head();
        Head {
            number: top.number.saturating_add(1),
            issued: now,
            ..top.clone()
        }
    }

    /// Generation that the next grant of `subject` needs: above every revoked and every left one, and under none it had.
    pub fn next_generation(&self, subject: PeerId) -> u32 {
        let revoked = about(&self.revocations, subject)
            .map(|(_, r)| r.body.generation)
            .max()
            .unwrap_or(0);
        // A goodbye may have come before the grant that makes it count: who forgot a member is shown it first.
        let waiting = self.parked.iter().filter_map(|record| match record {
            Verified::Announcement(said) if said.signed.issuer == subject => said.body.left,
            _ => None,
        });
        let left = self.announcement(subject).and_then(|d| d.left);
        let left = waiting.chain(left).max().unwrap_or(0);
        let had = self
            .grants_of(subject)
            .map(|g| g.generation)
            .max()
            .unwrap_or(0);
        revoked
            .max(left)
            .saturating_add(1)
            .max(had)
            .max(self.top.least)
    }

    /// Version that the next grant of `subject` needs.
    pub fn next_version(&self, subject: PeerId) -> u64 {
        self.grants_of(subject)
            .map(|g| g.version)
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The parts of the pool that are allotted, with who has them.
    pub fn seats(&self) -> &[Seat] {
        &self.top.seats
    }
}
