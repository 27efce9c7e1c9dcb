//! What flat names mean: a member's own name and all below it are its own. Any other name with one claimant is that
//! claimant's; of several the registered one's; of several unregistered ones the one this node has answered before.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Changed, Member, Origin, Places, Resolved};
use crate::model::chunks::Chunks;
use crate::model::held::about;
use crate::model::id::PeerId;
use crate::model::record::Registration;
use crate::model::roll::Roll;
use crate::model::subnet::Records;

/// What the meaning of a name follows from.
pub(super) struct Names<'a> {
    pub(super) records: &'a Records,
    pub(super) roll: &'a Roll,
    pub(super) places: &'a Places,
    pub(super) seen: &'a Chunks<Arc<str>, PeerId>,
}

impl Names<'_> {
    /// Names that may mean something else than they did when `old` was what everything followed from.
    pub(super) fn affected(
        &self,
        changed: &[Changed],
        old: &Origin,
        old_roll: &Roll,
    ) -> BTreeSet<Arc<str>> {
        let mut all: BTreeSet<Arc<str>> = BTreeSet::new();
        for member in changed {
            self.said(member, old, &mut all);
        }
        // A member's name rules all that ends with it.
        let (here, there) = (&self.places.names, &old.places.names);
        if !std::ptr::eq(here, there) {
            let gone = there
                .iter()
                .filter(|(name, by)| here.get(*name) != Some(*by));
            let came = here
                .iter()
                .filter(|(name, by)| there.get(*name) != Some(*by));
            all.extend(
                gone.chain(came)
                    .flat_map(|(name, _)| self.records.claims.at_or_below(name)),
            );
        }
        for (_, new, old) in self
            .records
            .registrations
            .differences(&old.records.registrations, Arc::ptr_eq)
        {
            different(new.map(|r| &r.body), old.map(|r| &r.body), &mut all);
        }
        if self.roll.admins != old_roll.admins {
            self.of_admins(&old_roll.admins, &mut all);
        }
        all.extend(
            self.seen
                .differences(&old.seen, PeerId::eq)
                .into_iter()
                .map(|(name, ..)| Arc::clone(name)),
        );
        all
    }

    /// Names that a member says or said.
    fn said(&self, member: &Changed, old: &Origin, all: &mut BTreeSet<Arc<str>>) {
        let claims = |m: &'_ Option<Arc<Member>>| -> BTreeSet<Arc<str>> {
            m.iter().flat_map(|m| m.claims()).map(Arc::from).collect()
        };
        let generation = |m: &Option<Arc<Member>>| m.as_ref().map(|m| m.grant.generation);
        // A release names the version of the announcement that it answers; who is registered goes by its generation.
        let released = |records: &Records| {
            about(&records.registrations, member.peer).any(|(_, r)| !r.body.released.is_empty())
        };
        if generation(&member.new) != generation(&member.old)
            || released(self.records)
            || released(&old.records)
        {
            all.extend(claims(&member.new));
            all.extend(claims(&member.old));
        } else if !same(&member.new, &member.old) {
            all.extend(
                claims(&member.new)
                    .symmetric_difference(&claims(&member.old))
                    .cloned(),
            );
        }
    }

    /// Names that admins registered or released whose word counts more or less than it did.
    fn of_admins(&self, old: &[PeerId], all: &mut BTreeSet<Arc<str>>) {
        let new = &self.roll.admins;
        let same_order = new
            .iter()
            .filter(|a| old.contains(a))
            .eq(old.iter().filter(|a| new.contains(a)));
        let same_word = |by: &PeerId| same_order && new.contains(by) == old.contains(by);
        for ((_, by), held) in self.records.registrations.iter() {
            if !same_word(by) {
                different(Some(&held.body), None, all);
            }
        }
    }

    /// Settles what each of these names means, and notes it in `next`.
    pub(super) fn settle(&self, names: BTreeSet<Arc<str>>, next: &mut Resolved) {
        next.work.names = names.len();
        for name in names {
            let said = self.records.claims.of(&name).iter().copied();
            let by: Vec<PeerId> = said.filter(|peer| self.may(*peer, &name, next)).collect();
            let ranked = by
                .iter()
                .filter_map(|peer| Some((self.rank(*peer, &name, next)?, *peer)));
            let holder = ranked.min().map(|(_, peer)| peer);
            let kept = self
                .seen
                .get(&name)
                .filter(|held| by.contains(held))
                .copied();
            let (found, contested) = match (holder, by.as_slice()) {
                (Some(holder), _) => (Some(holder), false),
                (None, [only]) => (Some(*only), false),
                (None, []) => (None, false),
                (None, _) => (kept, true),
            };
            enter(&mut next.flat, &name, found);
            enter(
                &mut next.unregistered,
                &name,
                found.filter(|_| holder.is_none()),
            );
            enter(&mut next.contested, &name, contested.then_some(by));
        }
    }

    /// Whether a member that says a name may have it.
    fn may(&self, peer: PeerId, name: &str, next: &Resolved) -> bool {
        let Some(member) = next.members.get(&peer) else {
            return false;
        };
        let last = name.rsplit('.').next().unwrap_or(name);
        !member.void.contains(name)
            && self
                .places
                .names
                .get(last)
                .is_none_or(|holder| *holder == peer && last != name)
            && !self.records.is_released(self.roll, peer, name)
    }

    /// How much the word counts that registered a name for a member, the least the most; `None` where nobody did.
    fn rank(&self, peer: PeerId, name: &str, next: &Resolved) -> Option<(usize, u32)> {
        let member = next.members.get(&peer)?;
        let order = |by: PeerId| {
            let place = || {
                self.roll
                    .admins
                    .iter()
                    .position(|a| *a == by)
                    .map(|n| n.saturating_add(1))
            };
            if by == self.records.genesis.owner {
                Some(0)
            } else {
                place()
            }
        };
        about(&self.records.registrations, peer)
            .filter(|(_, r)| r.body.names.contains(name))
            .filter_map(|(by, _)| Some((order(by)?, member.grant.generation)))
            .min()
    }
}

fn same(a: &Option<Arc<Member>>, b: &Option<Arc<Member>>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
}

/// Names that two registrations say something else about.
fn different(a: Option<&Registration>, b: Option<&Registration>, all: &mut BTreeSet<Arc<str>>) {
    let only = |a: Option<&Registration>, b: Option<&Registration>| -> Vec<Arc<str>> {
        let Some(a) = a else { return vec![] };
        let names = a
            .names
            .iter()
            .filter(|n| !b.is_some_and(|b| b.names.contains(*n)));
        let released = a
            .released
            .iter()
            .filter(|(n, v)| b.and_then(|b| b.released.get(*n)) != Some(*v));
        names
            .chain(released.map(|(name, _)| name))
            .map(|name| name.as_str().into())
            .collect()
    };
    all.extend(only(a, b));
    all.extend(only(b, a));
}

fn enter<V: Clone + PartialEq>(map: &mut Chunks<Arc<str>, V>, name: &Arc<str>, value: Option<V>) {
    if map.get(name) == value.as_ref() {
        return;
    }
    match value {
        Some(value) => drop(map.insert(Arc::clone(name), value)),
        None => drop(map.remove(name)),
    }
}

impl Records {
    /// Whether somebody with a say took a name from a member, which has not claimed it anew since. It names the
    /// announcement that it answers, so that nobody can take a name for ever.
    pub(in crate::model) fn is_released(&self, roll: &Roll, member: PeerId, name: &str) -> bool {
        let version = self.announcement(member).map_or(0, |d| d.version);
        let says = |by: PeerId| by == self.genesis.owner || roll.is_admin(by);
        about(&self.registrations, member)
            .any(|(by, r)| says(by) && r.body.released.get(name) == Some(&version))
    }
}
