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
//! | document | member | a grant of the member is held | 128 KiB, of a trial member 1 KiB |
//! | item | issuer, kind, slot | a grant of the issuer is held, until it expires | see [`items`](super::items); on trial none |

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::chunks::Chunks;
use super::claims::Claims;
use super::held::{ByPair, Entered, Mark, about, drop_about, enter, keep, moved};
use super::id::{PeerId, SubnetId};
use super::ipam::Pools;
use super::items::Slot;
use super::parked::MAX_PARKED;
use super::record::{
    Digest, Doc, Genesis, Grant, Head, Item, Registration, Revocation, Seat, Signed, Statement,
    Verified,
};
pub use super::resolve::{Member, Resolved};
use super::standing::{MAX_TRIAL_DOC, Standing};

/// Owner's heads of one number: more is no restored backup.
const MAX_FORKS: usize = 4;
/// Grants, revocations and registrations of each kind that one admin may have.
const MAX_OF_ADMIN: usize = 1024;
/// The same for the owner.
const MAX_OF_OWNER: usize = 65_536;
/// Seconds between two moments at which what has ended is forgotten: the same moments at everybody, counted from 1970, so
/// that members disagree about it no longer than their clocks do.
const FORGET_EVERY: u64 = 3600;
/// Seconds that records are held after their end, so that who was away a little longer is still known.
pub const GRACE: u64 = 86_400;

/// All records of one subnet that may be held. A copy shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The subnet.
    pub id: SubnetId,
    /// Its founding statement.
    pub genesis: Genesis,
    /// The owner's, all of one number.
    pub(super) heads: Vec<Arc<Statement<Head>>>,
    /// What the heads say together.
    pub(super) top: Arc<Head>,
    pub(super) grants: ByPair<Grant>,
    pub(super) revocations: ByPair<Revocation>,
    pub(super) registrations: ByPair<Registration>,
    pub(super) docs: Chunks<PeerId, Arc<Statement<Doc>>>,
    /// Who says which name in a document that is held.
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

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absorbed {
    /// It changed what we hold.
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
            docs: Chunks::default(),
            claims: Claims::default(),
            items: Chunks::default(),
            index: Chunks::default(),
            mark: Mark::default(),
            parked: Vec::new(),
            horizon: 0,
            latest: 0,
        }
    }

    /// The address pools.
    pub fn pools(&self) -> Pools {
        Pools {
            v4: self.genesis.cidr4,
            block4: self.genesis.block4,
            v6: self.genesis.prefix6(self.id),
        }
    }

    /// The subnet's prefixes.
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
    /// documents, items.
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
            .chain(self.docs.values().map(pair));
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
            .chain(self.docs.values().map(share));
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
        moved(&self.docs, &new.docs, &mut went, &mut came);
        moved(&self.items, &new.items, &mut went, &mut came);
        (went, came)
    }

    /// Digests of every record held: what two members compare.
    pub fn held(&self) -> BTreeSet<Digest> {
        self.index.keys().copied().collect()
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

    /// Members' documents.
    pub fn docs(&self) -> impl Iterator<Item = (PeerId, &Doc)> {
        self.docs.iter().map(|(peer, held)| (*peer, &held.body))
    }

    /// A member's own document.
    pub fn doc(&self, member: PeerId) -> Option<&Doc> {
        self.docs.get(&member).map(|d| &d.body)
    }

    /// The document in which a member says that it left.
    pub(super) fn goodbye(&self, member: PeerId) -> Option<&Signed> {
        self.docs
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

    /// Takes one record in.
    pub fn absorb(&mut self, record: Verified) -> Absorbed {
        if record.signed().subnet != self.id {
            return Absorbed::Refused;
        }
        if self.knows(&record.digest()) || self.parked.iter().any(|p| p.digest() == record.digest())
        {
            return Absorbed::Known;
        }
        let gives_standing = matches!(record, Verified::Head(_) | Verified::Grant(_));
        self.mark = Mark::default();
        let verdict = self.place(record);
        if verdict == Absorbed::New && gives_standing {
            self.retry_parked();
        }
        verdict
    }

    /// Enters a record, or parks it.
    pub(super) fn place(&mut self, record: Verified) -> Absorbed {
        match self.standing(&record) {
            Standing::Counts => self.enter(record),
            Standing::Later => self.park(record),
            Standing::Ended => Absorbed::Known,
            Standing::Never => Absorbed::Refused,
        }
    }

    fn enter(&mut self, record: Verified) -> Absorbed {
        let issuer = record.signed().issuer;
        let most = if issuer == self.genesis.owner {
            MAX_OF_OWNER
        } else {
            MAX_OF_ADMIN
        };
        match record {
            Verified::Head(head) => self.enter_head(head),
            Verified::Grant(grant) => {
                let (subject, time) = (grant.body.subject, grant.body.not_before);
                let rank = |h: &Statement<Grant>| (h.body.generation, h.body.version, h.digest);
                let Entered { verdict, evicted } = enter(
                    &mut self.grants,
                    &mut self.index,
                    most,
                    (subject, issuer),
                    grant,
                    rank,
                );
                if verdict == Absorbed::New {
                    self.latest = self.latest.max(time);
                    self.regranted(subject);
                }
                evicted
                    .into_iter()
                    .for_each(|(subject, _)| self.regranted(subject));
                verdict
            }
            Verified::Revocation(revocation) => {
                let key = (revocation.body.subject, issuer);
                let rank = |h: &Statement<Revocation>| (h.body.generation, h.digest);
                enter(
                    &mut self.revocations,
                    &mut self.index,
                    most,
                    key,
                    revocation,
                    rank,
                )
                .verdict
            }
            Verified::Registration(registration) => {
                let key = (registration.body.holder, issuer);
                let rank = |h: &Statement<Registration>| (h.body.version, h.digest);
                enter(
                    &mut self.registrations,
                    &mut self.index,
                    most,
                    key,
                    registration,
                    rank,
                )
                .verdict
            }
            Verified::Doc(doc) => self.enter_doc(doc),
            Verified::Item(item) => self.enter_item(item),
        }
    }

    fn enter_doc(&mut self, doc: Arc<Statement<Doc>>) -> Absorbed {
        let (issuer, rank) = (doc.signed.issuer, |h: &Statement<Doc>| {
            (h.body.version, h.digest)
        });
        if self
            .docs
            .get(&issuer)
            .is_some_and(|old| rank(old) >= rank(&doc))
        {
            return Absorbed::Known;
        }
        self.index.insert(doc.digest, ());
        let old = self.docs.insert(issuer, Arc::clone(&doc));
        self.claims
            .change(issuer, old.as_ref().map(|old| &old.body), Some(&doc.body));
        if let Some(old) = old {
            self.index.remove(&old.digest);
        }
        Absorbed::New
    }

    fn enter_head(&mut self, head: Arc<Statement<Head>>) -> Absorbed {
        if head.body.number < self.top.number {
            return Absorbed::Known;
        }
        if head.body.number > self.top.number {
            self.heads.drain(..).for_each(|old| {
                self.index.remove(&old.digest);
            });
        }
        let digest = head.digest;
        self.index.insert(digest, ());
        self.heads.push(head);
        self.heads.sort_by_key(|h| std::cmp::Reverse(h.digest));
        self.heads
            .drain(MAX_FORKS.min(self.heads.len())..)
            .for_each(|old| {
                self.index.remove(&old.digest);
            });
        if !self.index.contains_key(&digest) {
            return Absorbed::Known;
        }
        let Some(greatest) = self.heads.first() else {
            return Absorbed::Known;
        };
        let mut top = greatest.body.clone();
        for other in self.heads.iter().skip(1).map(|h| &h.body) {
            // A seat that this very head gave is one the other could not know of.
            let number = top.number;
            top.seats.retain(|s| {
                s.since == number || other.seat(s.admin).is_some_and(|o| o.since == s.since)
            });
            top.least = top.least.max(other.least);
            top.destroyed |= other.destroyed;
        }
        self.latest = self.latest.max(top.issued);
        self.top = Arc::new(top);
        self.reseat();
        Absorbed::New
    }

    /// After another head: what no longer counts goes, what waits for a member waits again.
    fn reseat(&mut self) {
        let (owner, top) = (self.genesis.owner, Arc::clone(&self.top));
        let stands = |issuer: PeerId, seat: u64| {
            issuer == owner || top.seat(issuer).is_some_and(|s| s.since == seat)
        };
        let index = &mut self.index;
        keep(&mut self.grants, index, |(_, by), g: &Grant| {
            stands(*by, g.seat) && g.generation >= top.least
        });
        keep(&mut self.revocations, index, |(_, by), r: &Revocation| {
            stands(*by, r.seat)
        });
        keep(
            &mut self.registrations,
            index,
            |(_, by), r: &Registration| stands(*by, r.seat),
        );
        self.drop_all_orphans();
        let members: BTreeSet<PeerId> = self.grants.keys().map(|(subject, _)| *subject).collect();
        members
            .into_iter()
            .for_each(|member| self.drop_beyond_trial(member));
        self.trim_all_items();
    }

    /// After a grant of a subject came or went: what its grants do not carry any more goes.
    fn regranted(&mut self, subject: PeerId) {
        if self.is_subject(subject) {
            self.drop_moot(subject);
            self.drop_beyond_trial(subject);
        } else {
            self.drop_orphans(BTreeSet::from([subject]));
        }
    }

    /// What a member on trial may not say: nobody who hears it now would take it.
    fn drop_beyond_trial(&mut self, member: PeerId) {
        if !self.on_trial(member) {
            return;
        }
        let _ = self.drop_items_of(member);
        if self
            .docs
            .get(&member)
            .is_some_and(|held| held.signed.body.len() > MAX_TRIAL_DOC)
        {
            let _ = self.drop_doc(member);
        }
    }

    fn drop_doc(&mut self, member: PeerId) -> Option<Arc<Statement<Doc>>> {
        let old = self.docs.remove(&member)?;
        self.index.remove(&old.digest);
        self.claims.change(member, Some(&old.body), None);
        Some(old)
    }

    /// Revocations of a subject that end no grant that is held.
    fn drop_moot(&mut self, subject: PeerId) {
        let moot: Vec<PeerId> = about(&self.revocations, subject)
            .filter(|(_, r)| !self.ends_something(&r.body))
            .map(|(by, _)| by)
            .collect();
        for by in moot {
            if let Some(old) = self.revocations.remove(&(subject, by)) {
                self.index.remove(&old.digest);
            }
        }
    }

    /// What is about somebody of whom no grant is held, or of its own.
    fn drop_all_orphans(&mut self) {
        let subjects: BTreeSet<PeerId> = self.grants.keys().map(|(subject, _)| *subject).collect();
        let about = self
            .revocations
            .keys()
            .chain(self.registrations.keys())
            .map(|(about, _)| about);
        let of = self
            .docs
            .keys()
            .chain(self.items.keys().map(|(issuer, ..)| issuer));
        let orphaned = about
            .chain(of)
            .filter(|peer| !subjects.contains(peer))
            .copied()
            .collect();
        self.drop_orphans(orphaned);
        let revoked: BTreeSet<PeerId> = self
            .revocations
            .keys()
            .map(|(subject, _)| *subject)
            .collect();
        revoked
            .into_iter()
            .for_each(|subject| self.drop_moot(subject));
    }

    /// What is about these, of whom no grant is held, or of their own.
    fn drop_orphans(&mut self, orphaned: BTreeSet<PeerId>) {
        let (mut docs, mut items) = (Vec::new(), Vec::new());
        for subject in orphaned {
            let index = &mut self.index;
            drop_about(&mut self.revocations, index, subject);
            drop_about(&mut self.registrations, index, subject);
            docs.extend(self.drop_doc(subject).map(Verified::Doc));
            items.extend(self.drop_items_of(subject).into_iter().map(Verified::Item));
        }
        // A member whose admin lost its seat is mostly granted anew in a moment. What finds no place is sent again by others.
        items.truncate(MAX_PARKED / 4);
        for record in items.into_iter().chain(docs) {
            let _ = self.park(record);
        }
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
        let left = self.doc(subject).and_then(|d| d.left).unwrap_or(0);
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
