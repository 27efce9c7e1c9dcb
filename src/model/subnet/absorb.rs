//! How a record comes in: what it replaces, and what no longer counts beside it goes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Absorbed, Records};
use crate::model::held::{Entered, Mark, about, drop_about, enter, keep};
use crate::model::id::PeerId;
use crate::model::parked::MAX_PARKED;
use crate::model::record::{
    Announcement, Grant, Head, Registration, Revocation, Statement, Verified,
};
use crate::model::standing::{MAX_TRIAL_ANNOUNCEMENT, Standing};

/// Owner's heads of one number: more is no restored backup.
const MAX_FORKS: usize = 4;
/// Grants, revocations and registrations of each kind that one admin may have.
const MAX_OF_ADMIN: usize = 1024;
/// How many of the same the owner may have.
const MAX_OF_OWNER: usize = 65_536;

impl Records {
    /// Takes a record in, and with one that gives standing the parked ones that waited for it.
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
    pub(in crate::model) fn place(&mut self, record: Verified) -> Absorbed {
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
            Verified::Announcement(announcement) => self.enter_announcement(announcement),
            Verified::Item(item) => self.enter_item(item),
        }
    }

    fn enter_announcement(&mut self, announcement: Arc<Statement<Announcement>>) -> Absorbed {
        let (issuer, rank) = (announcement.signed.issuer, |h: &Statement<Announcement>| {
            (h.body.version, h.digest)
        });
        if self
            .announcements
            .get(&issuer)
            .is_some_and(|old| rank(old) >= rank(&announcement))
        {
            return Absorbed::Known;
        }
        self.index.insert(announcement.digest, ());
        let old = self.announcements.insert(issuer, Arc::clone(&announcement));
        self.claims.change(
            issuer,
            old.as_ref().map(|old| &old.body),
            Some(&announcement.body),
        );
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

    /// Follows another head: what no longer counts goes, what waits for a member waits again.
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

    /// Follows a grant of a subject that came or went: what its grants do not carry any more goes.
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
            .announcements
            .get(&member)
            .is_some_and(|held| held.signed.body.len() > MAX_TRIAL_ANNOUNCEMENT)
        {
            let _ = self.drop_announcement(member);
        }
    }

    fn drop_announcement(&mut self, member: PeerId) -> Option<Arc<Statement<Announcement>>> {
        let old = self.announcements.remove(&member)?;
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
    pub(super) fn drop_all_orphans(&mut self) {
        let subjects: BTreeSet<PeerId> = self.grants.keys().map(|(subject, _)| *subject).collect();
        let about = self
            .revocations
            .keys()
            .chain(self.registrations.keys())
            .map(|(about, _)| about);
        let of = self
            .announcements
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
        let (mut announcements, mut items) = (Vec::new(), Vec::new());
        for subject in orphaned {
            let index = &mut self.index;
            drop_about(&mut self.revocations, index, subject);
            drop_about(&mut self.registrations, index, subject);
            announcements.extend(self.drop_announcement(subject).map(Verified::Announcement));
            items.extend(self.drop_items_of(subject).into_iter().map(Verified::Item));
        }
        // A member whose admin lost its seat is mostly granted anew in a moment. What finds no place is sent again by others.
        items.truncate(MAX_PARKED / 4);
        for record in items.into_iter().chain(announcements) {
            let _ = self.park(record);
        }
    }
}
