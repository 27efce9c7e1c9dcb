//! Who holds what at one moment: members with a grant that is valid now, their addresses, and what names mean.
//!
//! Blocks and names come from the granting side: where two claims meet, who granted decides (the owner, then the admins
//! in the head's order), then the generation; never a field or a date of who claims.
//!
//! It is a function of the set of records, of the names answered before, and of the time, and follows them in steps: what
//! did not change is shared with what followed before ([`Records::resolve_after`]). Three layers, each from the one above:
//!
//! | layer | follows from | made anew |
//! |---|---|---|
//! | the roll, and each member's `Place`: name, role, leases | heads, grants, revocations, goodbyes, and the time | whole |
//! | [`Member`] | its place, its announcement | alone |
//! | what a name means | who says it, who registered it, whose names are members' | alone |

mod names;
#[cfg(test)]
mod twin;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;

use super::chunks::Chunks;
use super::id::{Name, PeerId};
use super::ipam::Prefixes;
use super::record::{Announcement, Grant, NameEntry, Role, Statement};
use super::roll::{Counted, Entry, Granted, Roll};
use super::subnet::Records;

use names::Names;

/// Seconds by which clocks of members may ordinarily differ: a grant that begins so much later is due.
pub const SKEW: u64 = 300;

/// A member as it follows from the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What follows without its announcement, shared by every state in which that is the same.
    place: Arc<Place>,
    /// Its workloads; [`Resolved::flat`] says whose name alone means them.
    pub workloads: Vec<(Name, Vec<IpAddr>)>,
    /// Names it added that are not its workloads'; those that are also flat answer without its own name behind them.
    pub names: Vec<NameEntry>,
    /// Workloads that have none of its addresses, and so no name.
    void: BTreeSet<String>,
}

/// What of a member follows without its announcement.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The grant by which it is a member.
    pub grant: Counted,
    /// The peer that signed the grant.
    pub issuer: PeerId,
    /// Its name after conflicts are settled.
    pub name: Name,
    /// Its role after the head is heard.
    pub role: Role,
    /// Its leases after conflicts are settled.
    pub leases: Vec<IpNet>,
    /// Its own addresses that lie in those leases.
    pub addresses: Vec<IpAddr>,
}

/// A member is read as what it is without its announcement, and what that adds.
impl Deref for Member {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// The places of all members, as long as no grant begins or ends.
#[derive(Debug, Default)]
pub(super) struct Places {
    by: BTreeMap<PeerId, Arc<Place>>,
    names: BTreeMap<String, PeerId>,
    /// The moment (seconds since 1970) from which it is so.
    since: u64,
    /// The moment at which it ends by itself, where it does.
    changes_at: Option<u64>,
}

impl Places {
    fn hold_at(&self, now: u64) -> bool {
        self.since <= now && self.changes_at.is_none_or(|at| now < at)
    }
}

#[derive(Debug)]
struct Origin {
    records: Records,
    seen: Chunks<Arc<str>, PeerId>,
    places: Arc<Places>,
}

/// Who is in, who holds what, what names mean: the same at everyone with the same records and the same time, but for names
/// that two claim and nobody registered. A copy shares what is large.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// All members with a valid grant, by their keys.
    pub members: BTreeMap<PeerId, Arc<Member>>,
    /// The members that hold flat names: a workload's, or an added one.
    pub flat: Chunks<Arc<str>, PeerId>,
    /// Names that several members claim and nobody registered, with who they are.
    pub contested: Chunks<Arc<str>, Vec<PeerId>>,
    /// Flat names with one claimant, or with an answer kept from before, that are not registered yet.
    pub unregistered: Chunks<Arc<str>, PeerId>,
    /// The members and those who have a say, dates aside.
    pub roll: Arc<Roll>,
    /// Number of the owner's head.
    pub head: u64,
    /// Whether the owner has ended the subnet.
    pub destroyed: bool,
    /// The next moment (seconds since 1970) at which this changes by itself: a grant ends or begins.
    pub changes_at: Option<u64>,
    origin: Option<Arc<Origin>>,
    /// The work that was done anew for it.
    pub work: Work,
}

/// Work that a [`Resolved`] took beyond what it shares with the former one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// How many members were given their places anew: all or none.
    pub places: usize,
    /// How many members were made anew.
    pub members: usize,
    /// How many names had their meaning settled anew.
    pub names: usize,
}

/// What it follows from and what it took is no part of what it says.
impl PartialEq for Resolved {
    fn eq(&self, other: &Resolved) -> bool {
        let word = |r: &Resolved| (r.head, r.destroyed, r.changes_at);
        word(self) == word(other)
            && (self.members == other.members && self.roll == other.roll)
            && (self.flat == other.flat && self.contested == other.contested)
            && self.unregistered == other.unregistered
    }
}

impl Eq for Resolved {}

impl Resolved {
    /// Whether a flat name is this member's.
    pub fn holds(&self, member: PeerId, name: &str) -> bool {
        self.flat.get(name) == Some(&member)
    }

    /// Added names with who said so.
    pub fn names(&self) -> impl Iterator<Item = (PeerId, &NameEntry)> {
        self.members
            .iter()
            .flat_map(|(peer, member)| member.names.iter().map(|entry| (*peer, entry)))
    }

    /// What was added for a name by who holds it.
    pub fn answers(&self, name: &str) -> impl Iterator<Item = &NameEntry> {
        let holder = self.flat.get(name).and_then(|by| self.members.get(by));
        holder
            .into_iter()
            .flat_map(|member| &member.names)
            .filter(move |entry| entry.name == name)
    }

    /// The member that holds a name as its own.
    pub fn member_named(&self, name: &str) -> Option<PeerId> {
        self.members
            .iter()
            .find(|(_, m)| m.name.as_str() == name)
            .map(|(peer, _)| *peer)
    }

    /// Whether any flat or contested name is `label` or stands below it.
    pub fn is_claimed_at(&self, label: &str) -> bool {
        let counts =
            |name: Arc<str>| self.flat.contains_key(&name) || self.contested.contains_key(&name);
        self.origin
            .as_ref()
            .is_some_and(|origin| origin.records.claims.at_or_below(label).any(counts))
    }

    /// Whether both give every member the same place.
    pub(super) fn shares_places(&self, other: &Resolved) -> bool {
        let places = |r: &Resolved| r.origin.as_ref().map(|o| Arc::as_ptr(&o.places));
        places(self).is_some() && places(self) == places(other)
    }

    /// Whether this is what follows from the records at `now` for sure.
    pub(super) fn is_of(
        &self,
        records: &Records,
        seen: &Chunks<Arc<str>, PeerId>,
        now: u64,
    ) -> bool {
        self.origin.as_ref().is_some_and(|origin| {
            origin.records.mark.is_same(&records.mark)
                && origin.seen.is_same(seen)
                && origin.places.hold_at(now)
        })
    }
}

/// A member's grant that is valid, and its place in the order that settles conflicts.
struct Placed {
    grant: Counted,
    issuer: PeerId,
    order: usize,
}

impl Placed {
    /// The grant that counts most of those that are valid. What the owner gave stays beside it: an admin that signs a
    /// later grant of the same member adds to it, and takes or renames nothing.
    fn new(entry: &Entry, valid: impl Fn(&Grant) -> bool) -> Option<Placed> {
        let best = entry.at(&valid)?;
        let anchor = entry
            .grants()
            .iter()
            .find(|g| g.order == 0 && valid(g.grant()))
            .unwrap_or(best);
        let given = anchor.grant();
        let mut counted = best.counted();
        if anchor.order != best.order {
            let mut grant = best.grant().clone();
            grant.name = given.name.clone();
            (grant.data_key, grant.seal_key) = (given.data_key, given.seal_key);
            let more = given
                .leases
                .iter()
                .filter(|l| !grant.leases.contains(l))
                .copied()
                .collect::<Vec<_>>();
            grant.leases.extend(more);
            if !given.addresses.is_empty() {
                grant.addresses = given.addresses.clone();
            }
            counted = Counted::added(grant);
        }
        Some(Placed {
            grant: counted,
            issuer: best.issuer,
            order: anchor.order,
        })
    }
}

impl Member {
    fn new(place: &Arc<Place>, announcement: Option<&Announcement>) -> Member {
        let mut used = BTreeSet::new();
        let mut own = |a: &IpAddr| place.leases.iter().any(|l| l.contains(a)) && used.insert(*a);
        let (mut workloads, mut without) = (Vec::new(), Vec::new());
        for entry in announcement.iter().flat_map(|d| &d.workloads) {
            let addresses: Vec<IpAddr> = entry.addresses.iter().copied().filter(&mut own).collect();
            if addresses.is_empty() {
                without.push(&entry.name)
            } else {
                workloads.push((entry.name.clone(), addresses))
            }
        }
        let named: BTreeSet<&str> = workloads.iter().map(|(name, _)| name.as_str()).collect();
        let added = announcement.iter().flat_map(|d| &d.names);
        let names: Vec<NameEntry> = added
            .filter(|n| !named.contains(n.name.as_str()))
            .cloned()
            .collect();
        let has = |name: &Name| {
            named.contains(name.as_str()) || names.iter().any(|n| n.name == name.as_str())
        };
        let void = without
            .into_iter()
            .filter(|name| !has(name))
            .map(Name::to_string)
            .collect();
        Member {
            place: Arc::clone(place),
            workloads,
            names,
            void,
        }
    }

    /// Names of its workloads that lead nowhere now: unhealthy, not running, or yet to come.
    pub fn withheld(&self) -> impl Iterator<Item = &str> {
        self.void.iter().map(String::as_str)
    }

    /// Names it says that count, its own aside.
    fn claims(&self) -> BTreeSet<&str> {
        let workloads = self.workloads.iter().map(|(name, _)| name.as_str());
        workloads
            .chain(self.names.iter().map(|n| n.name.as_str()))
            .collect()
    }
}

/// A member that is not what it was.
struct Changed {
    peer: PeerId,
    old: Option<Arc<Member>>,
    new: Option<Arc<Member>>,
}

impl Records {
    /// What follows from the records at `now` (seconds since 1970), at who has given no answer yet.
    pub fn resolve(&self, now: u64) -> Resolved {
        self.resolve_with(now, &Chunks::default())
    }

    /// What follows from the records at `now`. `seen` holds the names this node has answered before anybody registered
    /// them, with whose they were: that answer stands while others come to claim the same.
    pub fn resolve_with(&self, now: u64, seen: &Chunks<Arc<str>, PeerId>) -> Resolved {
        self.resolve_after(now, seen, &Resolved::default())
    }

    /// The same, made from what followed from other records, names or times: only what differs is made anew.
    pub fn resolve_after(
        &self,
        now: u64,
        seen: &Chunks<Arc<str>, PeerId>,
        former: &Resolved,
    ) -> Resolved {
        let nothing = || {
            let records = Records::new(self.genesis.clone());
            Arc::new(Origin {
                records,
                seen: Chunks::default(),
                places: Arc::default(),
            })
        };
        let old = former.origin.clone().unwrap_or_else(nothing);
        let kept = former.origin.is_some() && self.has_roll_of(&old.records);
        let roll = if kept {
            Arc::clone(&former.roll)
        } else {
            Arc::new(self.roll())
        };
        let kept = kept && old.places.hold_at(now);
        let places = if kept {
            Arc::clone(&old.places)
        } else {
            Arc::new(self.places(&roll, now, &old.places))
        };
        let mut next = former.clone();
        next.work = Work {
            places: if kept { 0 } else { places.by.len() },
            ..Work::default()
        };
        (next.head, next.destroyed, next.changes_at) =
            (roll.number, roll.destroyed, places.changes_at);
        let changed = self.settle_members(&places, &old, &mut next);
        let names = Names {
            records: self,
            roll: &roll,
            places: &places,
            seen,
        };
        let affected = names.affected(&changed, &old, &former.roll);
        names.settle(affected, &mut next);
        next.roll = roll;
        next.origin = Some(Arc::new(Origin {
            records: self.clone(),
            seen: seen.clone(),
            places,
        }));
        next
    }

    /// Whether the same roll follows from `old`.
    fn has_roll_of(&self, old: &Records) -> bool {
        let left = |announcement: Option<&Arc<Statement<Announcement>>>| {
            announcement.and_then(|d| d.body.left)
        };
        Arc::ptr_eq(&self.top, &old.top)
            && self.grants.differences(&old.grants, Arc::ptr_eq).is_empty()
            && self
                .revocations
                .differences(&old.revocations, Arc::ptr_eq)
                .is_empty()
            && self
                .announcements
                .differences(&old.announcements, Arc::ptr_eq)
                .iter()
                .all(|(_, new, old)| left(*new) == left(*old))
    }

    /// Whether a lease counts: what the owner gave, what an admin gave from its part, and what repeats such a lease of the
    /// same subject, so that a renewal by another keeps it.
    pub fn lease_counts(&self, subject: PeerId, issuer: PeerId, lease: IpNet) -> bool {
        let pools = self.pools();
        let may = |by: PeerId| {
            by == self.genesis.owner
                || self
                    .head()
                    .seat(by)
                    .is_some_and(|s| pools.within(lease, &s.part))
        };
        may(issuer)
            || self
                .granted(subject)
                .any(|(by, held)| may(by) && held.body.leases.contains(&lease))
    }

    /// Everybody's place at `now`; one that is as it was is the former one.
    fn places(&self, roll: &Roll, now: u64, former: &Places) -> Places {
        let owner = self.genesis.owner;
        let mut places = Places::default();
        let mut valid: Vec<Placed> = Vec::new();
        for (subject, entry) in &roll.members {
            for grant in entry.grants().iter().map(Granted::grant) {
                for at in [grant.not_before.saturating_sub(SKEW), grant.not_after] {
                    if at > now {
                        places.changes_at = Some(places.changes_at.map_or(at, |c| c.min(at)));
                    } else {
                        places.since = places.since.max(at);
                    }
                }
            }
            // The owner's own place is founded by the genesis: it does not run out while the owner is away, who could else
            // never come back to renew anything.
            let due = |g: &Grant| g.not_before.saturating_sub(SKEW) <= now && now < g.not_after;
            valid.extend(Placed::new(entry, |g| *subject == owner || due(g)));
        }
        valid.sort_by_key(|p| (p.order, p.grant.generation, p.grant.subject));
        let mut taken: Prefixes<()> = Prefixes::default();
        let mut names: BTreeMap<Name, usize> = BTreeMap::new();
        for Placed { grant, issuer, .. } in valid {
            let subject = grant.subject;
            let free = |l: &IpNet| {
                taken.overlapping(*l).is_none() && self.lease_counts(subject, issuer, *l)
            };
            let leases: Vec<IpNet> = grant.leases.iter().copied().filter(free).collect();
            leases.iter().for_each(|l| taken.insert(*l, ()));
            let name = free_name(&mut names, &grant.name);
            let role = if subject == owner {
                Role::Owner
            } else if roll.is_admin(subject) {
                Role::Admin
            } else {
                Role::Member
            };
            let addresses = grant
                .addresses
                .iter()
                .copied()
                .filter(|a| leases.iter().any(|l| l.contains(a)))
                .collect();
            places.names.insert(name.to_string(), subject);
            let place = Place {
                grant,
                issuer,
                name,
                role,
                leases,
                addresses,
            };
            let same = former.by.get(&subject).filter(|old| ***old == place);
            let place = same.map_or_else(|| Arc::new(place), Arc::clone);
            places.by.insert(subject, place);
        }
        places
    }

    /// Makes the members anew whose place or announcement is another one.
    fn settle_members(
        &self,
        places: &Arc<Places>,
        old: &Origin,
        next: &mut Resolved,
    ) -> Vec<Changed> {
        let announcements = self
            .announcements
            .differences(&old.records.announcements, Arc::ptr_eq);
        let mut touched: BTreeSet<PeerId> =
            announcements.into_iter().map(|(peer, ..)| *peer).collect();
        if !Arc::ptr_eq(places, &old.places) {
            let moved = |from: &Places, to: &Places| -> Vec<PeerId> {
                let same = |peer, place| {
                    to.by
                        .get(peer)
                        .is_some_and(|other| Arc::ptr_eq(place, other))
                };
                from.by
                    .iter()
                    .filter(|(peer, place)| !same(*peer, *place))
                    .map(|(peer, _)| *peer)
                    .collect()
            };
            touched.extend(moved(places, &old.places));
            touched.extend(moved(&old.places, places));
        }
        let mut changed = Vec::new();
        for peer in touched {
            let announcement = self.announcement(peer).filter(|d| d.left.is_none());
            let new = places
                .by
                .get(&peer)
                .map(|place| Member::new(place, announcement));
            next.work.members = next.work.members.saturating_add(usize::from(new.is_some()));
            let former = next.members.get(&peer).cloned();
            // An announcement that says the same in another version leaves its member as it is.
            let new = match (new, &former) {
                (Some(new), Some(same)) if new == **same => Some(Arc::clone(same)),
                (new, _) => new.map(Arc::new),
            };
            match &new {
                Some(member) => drop(next.members.insert(peer, Arc::clone(member))),
                None => drop(next.members.remove(&peer)),
            }
            if new.is_some() || former.is_some() {
                changed.push(Changed {
                    peer,
                    old: former,
                    new,
                });
            }
        }
        changed
    }
}

/// The name itself, or the next numbered one that is free. `next` holds where to go on, so that many members of one name
/// cost no search each.
fn free_name(next: &mut BTreeMap<Name, usize>, wanted: &Name) -> Name {
    let mut name = wanted.clone();
    while next.contains_key(&name) {
        let n = next.entry(wanted.clone()).or_insert(2);
        name = wanted.numbered(*n);
        *n = n.saturating_add(1);
    }
    next.insert(name.clone(), 2);
    name
}
