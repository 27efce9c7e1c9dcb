//! Whether a record may be held: what its signer may say follows from the other records, never from a date or the order of
//! arrival.

use super::id::PeerId;
use super::record::{Grant, MAX_ADMIN_GENERATION, Revocation, Signed, Term, Verified};
use super::subnet::{GRACE, Records};

/// How many bytes a grant may have that an admin signed.
const MAX_ADMIN_GRANT: usize = 8 * 1024;
/// How many bytes the announcement of a member on trial may have.
pub(super) const MAX_TRIAL_ANNOUNCEMENT: usize = 1024;
/// Whether a record may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Counts,
    /// Another record has to come first.
    Later,
    /// It has ended, and counts no more.
    Ended,
    Never,
}

impl Records {
    /// Whether a record says what its signer has no right to say: it can never count here.
    pub fn oversteps(&self, record: &Verified) -> bool {
        let judged = matches!(record, Verified::Registration(_)) || record.is_roll();
        judged && record.signed().subnet == self.id && self.standing(record) == Standing::Never
    }

    pub(super) fn standing(&self, record: &Verified) -> Standing {
        let issuer = record.signed().issuer;
        let of_subject = |subject: PeerId| {
            if self.is_subject(subject) {
                Standing::Counts
            } else {
                Standing::Later
            }
        };
        match record {
            Verified::Head(_) if issuer == self.genesis.owner => Standing::Counts,
            Verified::Head(_) => Standing::Never,
            Verified::Grant(grant) => self.grant_standing(&grant.body, record.signed()),
            Verified::Revocation(r) => match (&r.body, self.seat_standing(issuer, r.body.seat)) {
                (r, _) if r.subject == self.genesis.owner || r.subject == issuer => Standing::Never,
                (r, _) if issuer != self.genesis.owner && r.generation > MAX_ADMIN_GENERATION => {
                    Standing::Never
                }
                (r, Standing::Counts) if !self.is_subject(r.subject) => Standing::Later,
                // Nothing that it could end is left.
                (r, Standing::Counts) if !self.ends_something(r) => Standing::Ended,
                (_, seat) => seat,
            },
            Verified::Registration(r) => match self.seat_standing(issuer, r.body.seat) {
                Standing::Counts => of_subject(r.body.holder),
                seat => seat,
            },
            Verified::Announcement(_) => match of_subject(issuer) {
                Standing::Counts
                    if record.signed().body.len() > MAX_TRIAL_ANNOUNCEMENT
                        && self.on_trial(issuer) =>
                {
                    Standing::Never
                }
                standing => standing,
            },
            Verified::Item(item) if self.is_over(&item.body) => Standing::Ended,
            // Who came in without anybody's word leaves nothing behind but the word itself.
            Verified::Item(_) if self.on_trial(issuer) && self.is_subject(issuer) => {
                Standing::Never
            }
            Verified::Item(_) => of_subject(issuer),
        }
    }

    fn grant_standing(&self, grant: &Grant, signed: &Signed) -> Standing {
        let (by_owner, pools) = (signed.issuer == self.genesis.owner, self.pools());
        let fits = by_owner
            || (grant.generation <= MAX_ADMIN_GENERATION
                && signed.body.len() <= MAX_ADMIN_GRANT
                && grant.subject != self.genesis.owner);
        let lasts = grant.not_after.saturating_sub(grant.not_before) <= self.genesis.grant_life;
        if !fits || !lasts || !grant.leases.iter().all(|l| pools.covers(*l)) {
            return Standing::Never;
        }
        if grant.not_after.saturating_add(GRACE) <= self.horizon()
            && grant.subject != self.genesis.owner
        {
            return Standing::Ended;
        }
        match self.seat_standing(signed.issuer, grant.seat) {
            // A grant below the least generation counts at nobody who has heard the head.
            Standing::Counts if grant.generation < self.top.least => Standing::Ended,
            seat => seat,
        }
    }

    /// Whether what `issuer` signed in the seat with number `seat` counts. A seat's number is that of the head which gave
    /// it: above the highest head seen it may still come, below it stands in that head or never again.
    fn seat_standing(&self, issuer: PeerId, seat: u64) -> Standing {
        if issuer == self.genesis.owner {
            return if seat == 0 {
                Standing::Counts
            } else {
                Standing::Never
            };
        }
        match self.top.seat(issuer) {
            _ if seat > self.top.number => Standing::Later,
            Some(held) if held.since == seat => Standing::Counts,
            _ => Standing::Never,
        }
    }

    pub(super) fn on_trial(&self, member: PeerId) -> bool {
        member != self.genesis.owner && self.grants_of(member).all(|g| g.term == Term::Trial)
    }

    pub(super) fn ends_something(&self, revocation: &Revocation) -> bool {
        self.grants_of(revocation.subject)
            .any(|g| g.generation <= revocation.generation)
    }

    /// Whether a grant of this peer is held, valid or not.
    pub fn is_subject(&self, peer: PeerId) -> bool {
        self.granted(peer).next().is_some()
    }
}
