//! What a joiner is told when it is let in: first whatever decides about itself, then of the others what fits.
//!
//! The answer is a part of what is held, and a part may say something else than the whole: where a revocation is left out,
//! what it ended counts, and where the grant of an admin is left out, whom it let in is a stranger. So everything about the
//! joiner goes together, with one grant of each issuer whose word counts and no word of the others'. Of other members only
//! what counts is told, and nothing that could take from the joiner what it holds.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::held::about;
use super::id::PeerId;
use super::ipam::Prefixes;
use super::record::Signed;
use super::resolve::{Member, Resolved};
use super::roll::{Entry, Granted};
use super::subnet::Records;

/// The answer to a joiner, each part with what matters most in front.
#[derive(Debug, Default)]
pub struct Told<'a> {
    /// The records that alone give the joiner its standing.
    pub decides: Vec<&'a Signed>,
    /// The remaining records, of which as many are sent as fit.
    pub rest: Vec<&'a Signed>,
}

impl Records {
    /// What a joiner is told. `resolved` is what follows from these records now.
    pub fn told_to<'a>(&'a self, joiner: PeerId, resolved: &'a Resolved) -> Told<'a> {
        let mut told = Told {
            decides: self.deciding(joiner, resolved),
            rest: self.others(joiner, resolved),
        };
        let mut seen = BTreeSet::new();
        let mut first = |signed: &&Signed| seen.insert((signed.signature_r, signed.signature_s));
        told.decides.retain(&mut first);
        told.rest.retain(&mut first);
        told
    }

    /// The heads, everything about the joiner, whose word about it counts, and who holds an address that it was granted.
    fn deciding<'a>(&'a self, joiner: PeerId, resolved: &'a Resolved) -> Vec<&'a Signed> {
        let mut all: Vec<&Signed> = self.heads.iter().map(|head| &head.signed).collect();
        all.extend(
            self.announcements
                .get(&joiner)
                .filter(|announcement| announcement.body.left.is_some())
                .map(|announcement| &announcement.signed),
        );
        let mine = resolved.members.get(&joiner);
        let held = prefixes(mine);
        let voice = |issuer: PeerId| {
            let absence = self.absence_of(issuer, resolved);
            self.voice_of(issuer, resolved, &held)
                .into_iter()
                .chain(absence)
        };
        let entry = resolved.roll.members.get(&joiner);
        for granted in entry
            .into_iter()
            .flat_map(|entry| self.standing_grants(joiner, entry, resolved))
        {
            all.push(granted.signed());
            all.extend(voice(granted.issuer));
        }
        let lost = |m: &&Arc<Member>| {
            let addresses = mine.into_iter().flat_map(|mine| &mine.grant.addresses);
            m.grant.subject != joiner
                && addresses
                    .into_iter()
                    .any(|a| m.leases.iter().any(|l| l.contains(a)))
        };
        for winner in resolved.members.values().filter(lost) {
            let entry = resolved.roll.members.get(&winner.grant.subject);
            for granted in entry
                .into_iter()
                .flat_map(|e| self.standing_grants(winner.grant.subject, e, resolved))
            {
                all.push(granted.signed());
                all.extend(voice(granted.issuer));
            }
        }
        all.extend(about(&self.revocations, joiner).map(|(_, revocation)| &revocation.signed));
        all.extend(about(&self.revocations, joiner).flat_map(|(by, _)| voice(by)));
        all.extend(self.granted(joiner).map(|(_, grant)| &grant.signed));
        all.extend(self.granted(joiner).flat_map(|(by, _)| voice(by)));
        // A lease may count by another grant of the same member that has it.
        for winner in resolved.members.values().filter(lost) {
            let keeps = |lease: &ipnet::IpNet| winner.leases.contains(lease);
            let support = self
                .granted(winner.grant.subject)
                .filter(|(_, g)| g.body.leases.iter().any(keeps));
            all.extend(support.map(|(_, grant)| &grant.signed));
        }
        all
    }

    /// A grant by which an admin has a say: the smallest, unless that is of what the joiner holds.
    fn voice_of<'a>(
        &'a self,
        admin: PeerId,
        resolved: &Resolved,
        held: &Prefixes<()>,
    ) -> Option<&'a Signed> {
        if !resolved.roll.is_admin(admin) {
            return None;
        }
        let entry = resolved.roll.members.get(&admin);
        let place = |by: PeerId| entry.and_then(|e| e.grants().iter().position(|g| g.issuer == by));
        let least = self.granted(admin).min_by_key(|(by, grant)| {
            let takes = grant
                .body
                .leases
                .iter()
                .any(|lease| held.overlapping(*lease).is_some());
            (
                takes,
                if takes {
                    place(*by).unwrap_or(usize::MAX)
                } else {
                    grant.signed.body.len()
                },
            )
        });
        least.map(|(_, grant)| &grant.signed)
    }

    /// What makes an admin who has a say, and is no member, so: its goodbye, or a revocation by who let it in again, and has no
    /// say itself any more. Without them it would be a member where the answer is heard, and hold what it had.
    fn absence_of<'a>(&'a self, admin: PeerId, resolved: &Resolved) -> Vec<&'a Signed> {
        let roll = &resolved.roll;
        if !roll.is_admin(admin) || roll.members.contains_key(&admin) {
            return Vec::new();
        }
        let ends: Vec<(PeerId, &Signed)> = about(&self.revocations, admin)
            .map(|(by, revocation)| (by, &revocation.signed))
            .collect();
        let again: Vec<&Signed> = (self.granted(admin))
            .filter(|(by, _)| ends.iter().any(|(who, _)| who == by))
            .map(|(_, grant)| &grant.signed)
            .collect();
        let goodbye = self
            .announcements
            .get(&admin)
            .filter(|announcement| announcement.body.left.is_some())
            .map(|announcement| &announcement.signed);
        let ends = ends.iter().map(|(_, signed)| *signed);
        goodbye.into_iter().chain(ends).chain(again).collect()
    }

    /// The grant that a member's place follows from, and the owner's, which stays beside it.
    fn standing_grants<'a>(
        &self,
        member: PeerId,
        entry: &'a Entry,
        resolved: &Resolved,
    ) -> impl Iterator<Item = &'a Granted> + use<'a> {
        let best = entry.best().map(|granted| granted.issuer);
        let by = resolved.members.get(&member).map(|m| m.issuer).or(best);
        let owner = self.genesis.owner;
        entry
            .grants()
            .iter()
            .filter(move |granted| Some(granted.issuer) == by || granted.issuer == owner)
    }

    /// Of everybody else: those with a say before the others, grants and revocations before what members say, small records
    /// before large ones, and last what the joiner itself has said.
    fn others<'a>(&'a self, joiner: PeerId, resolved: &'a Resolved) -> Vec<&'a Signed> {
        let roll = &resolved.roll;
        let held = prefixes(resolved.members.get(&joiner));
        let has_seat = |peer: PeerId| peer == self.genesis.owner || self.top.seat(peer).is_some();
        let mut all: Vec<(u8, &Signed)> = Vec::new();
        for (member, entry) in roll.members.iter().filter(|(member, _)| **member != joiner) {
            let tier = if has_seat(*member) { 1 } else { 4 };
            let takes = |g: &&Granted| {
                g.grant()
                    .leases
                    .iter()
                    .any(|lease| held.overlapping(*lease).is_some())
            };
            let standing: Vec<&Granted> = self.standing_grants(*member, entry, resolved).collect();
            // It lost there, by the word of somebody who may be left out.
            if !standing.iter().any(takes) {
                all.extend(standing.iter().map(|granted| (tier, granted.signed())));
            }
        }
        // A revocation of who is in again ends it where the grant after it is left out.
        let is_out = |peer: PeerId| {
            peer != joiner && !roll.members.contains_key(&peer) && !roll.is_admin(peer)
        };
        let out = self
            .revocations
            .iter()
            .filter(|((subject, _), _)| is_out(*subject));
        all.extend(
            out.map(|((subject, _), r)| (if has_seat(*subject) { 0 } else { 2 }, &r.signed)),
        );
        for (member, announcement) in self.announcements.iter() {
            let tier = match () {
                () if *member == joiner => 7,
                () if has_seat(*member) => 3,
                () => 5,
            };
            all.push((tier, &announcement.signed));
        }
        all.extend(
            self.registrations
                .values()
                .map(|registration| (6, &registration.signed)),
        );
        all.extend(self.items.values().map(|item| (6, &item.signed)));
        all.sort_by_key(|(tier, signed)| (*tier, signed.body.len()));
        all.into_iter().map(|(_, signed)| signed).collect()
    }
}

/// The leases of one member; nothing for somebody who is none.
fn prefixes(member: Option<&Arc<Member>>) -> Prefixes<()> {
    let mut held = Prefixes::default();
    member
        .into_iter()
        .flat_map(|m| &m.leases)
        .for_each(|lease| held.insert(*lease, ()));
    held
}
