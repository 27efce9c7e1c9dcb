//! Who holds what at one moment: members with a grant that is valid now, their addresses, and what names mean.
//!
//! Blocks and names come from the granting side: where two claims meet, who granted decides (the owner, then the admins
//! in the head's order), then the generation; never a field or a date of who claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::id::{Name, PeerId};
use super::ipam::Prefixes;
use super::record::{Doc, Grant, Role};
use super::roll::{Entry, Granted, Roll};
use super::subnet::Records;
use super::zone::RecordData;

/// Seconds by which clocks of members may ordinarily differ: a grant that begins so much later is due.
pub const SKEW: u64 = 300;

/// A member as it follows from the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its grant.
    pub grant: Grant,
    /// Who signed the grant.
    pub issuer: PeerId,
    /// Its name after conflicts are settled.
    pub name: Name,
    /// Its role after the head is heard.
    pub role: Role,
    /// Its leases after conflicts are settled.
    pub leases: Vec<IpNet>,
    /// Its own addresses that lie in those leases.
    pub addresses: Vec<IpAddr>,
    /// Where it can be dialled.
    pub endpoints: Vec<String>,
    /// Its workloads; [`Resolved::flat`] says whose name alone means them.
    pub workloads: Vec<(Name, Vec<IpAddr>)>,
}

/// Who is in, who holds what, what names mean: the same at everyone with the same records and the same time, but for names
/// that two claim and nobody registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Members by key.
    pub members: BTreeMap<PeerId, Member>,
    /// Added names with TTL and who said so. Those that are also flat answer without the member's name behind them.
    pub names: Vec<(String, RecordData, u32, PeerId)>,
    /// Who holds a flat name: a workload's, or an added one.
    pub flat: BTreeMap<String, PeerId>,
    /// Names that several members claim and nobody registered, with who they are.
    pub contested: BTreeMap<String, Vec<PeerId>>,
    /// Flat names with one claimant, or with an answer kept from before, that are not registered yet.
    pub unregistered: BTreeMap<String, PeerId>,
    /// Who is in and who has a say, dates aside.
    pub roll: Roll,
    /// The head's number.
    pub head: u64,
    /// The owner ended the subnet.
    pub destroyed: bool,
    /// The next moment (seconds since 1970) at which this changes by itself: a grant ends or begins.
    pub changes_at: Option<u64>,
}

impl Resolved {
    /// Whether a flat name is this member's.
    pub fn holds(&self, member: PeerId, name: &str) -> bool {
        self.flat.get(name) == Some(&member)
    }

    /// Added names that answer without a member's name behind them.
    pub fn flat_names(&self) -> impl Iterator<Item = &(String, RecordData, u32, PeerId)> {
        self.names.iter().filter(|(name, _, _, by)| self.holds(*by, name))
    }

    /// The member that holds a name as its own.
    pub fn member_named(&self, name: &str) -> Option<PeerId> {
        self.members.iter().find(|(_, m)| m.name.as_str() == name).map(|(peer, _)| *peer)
    }
}

/// A member's grant that is valid, and its place in the order that settles conflicts.
struct Placed {
    grant: Grant,
    issuer: PeerId,
    order: usize,
}

impl Placed {
    /// The grant that counts most of those that are valid. What the owner gave stays beside it: an admin that signs a
    /// later grant of the same member adds to it, and takes or renames nothing.
    fn new(entry: &Entry, valid: impl Fn(&Grant) -> bool) -> Option<Placed> {
        let best = entry.at(&valid)?;
        let anchor = entry.grants().iter().find(|g| g.order == 0 && valid(g.grant())).unwrap_or(best);
        let mut grant = best.grant().clone();
        let given = anchor.grant();
        if anchor.order != best.order {
            grant.name = given.name.clone();
            (grant.data_key, grant.seal_key) = (given.data_key, given.seal_key);
            let more = given.leases.iter().filter(|l| !grant.leases.contains(l)).copied().collect::<Vec<_>>();
            grant.leases.extend(more);
            if !given.addresses.is_empty() {
                grant.addresses = given.addresses.clone();
            }
        }
        Some(Placed { grant, issuer: best.issuer, order: anchor.order })
    }
}

/// What one member says a name means.
struct Claims<'a> {
    by: PeerId,
    doc: &'a Doc,
    names: BTreeSet<String>,
}

impl Records {
    /// What follows from the records at `now` (seconds since 1970), at who has given no answer yet.
    pub fn resolve(&self, now: u64) -> Resolved {
        self.resolve_with(now, &BTreeMap::new())
    }

    /// What follows from the records at `now`. `seen` holds the names this node has answered before anybody registered
    /// them, with whose they were: that answer stands while others come to claim the same.
    pub fn resolve_with(&self, now: u64, seen: &BTreeMap<String, PeerId>) -> Resolved {
        let roll = self.roll();
        let owner = self.genesis.owner;
        let mut changes_at: Option<u64> = None;
        let mut change = |at: u64| changes_at = Some(changes_at.map_or(at, |c| c.min(at)));
        let mut valid: Vec<Placed> = Vec::new();
        for (subject, entry) in &roll.members {
            for grant in entry.grants().iter().map(Granted::grant) {
                let begins = grant.not_before.saturating_sub(SKEW);
                [begins, grant.not_after].into_iter().filter(|at| *at > now).for_each(&mut change);
            }
            // The owner's own place is founded by the genesis: it does not run out while the owner is away, who could else
            // never come back to renew anything.
            let due = |g: &Grant| g.not_before.saturating_sub(SKEW) <= now && now < g.not_after;
            valid.extend(Placed::new(entry, |g| *subject == owner || due(g)));
        }
        valid.sort_by_key(|p| (p.order, p.grant.generation, p.grant.subject));
        let mut resolved = Resolved { head: roll.number, destroyed: roll.destroyed, changes_at, ..Resolved::default() };
        self.settle_members(valid, &roll, &mut resolved);
        self.settle_names(&roll, seen, &mut resolved);
        resolved.roll = roll;
        resolved
    }

    /// Whether a lease counts: what the owner gave, what an admin gave from its part, and what repeats such a lease of the
    /// same subject, so that a renewal by another keeps it.
    pub fn lease_counts(&self, subject: PeerId, issuer: PeerId, lease: IpNet) -> bool {
        let pools = self.pools();
        let may =
            |by: PeerId| by == self.genesis.owner || self.head().seat(by).is_some_and(|s| pools.within(lease, &s.part));
        may(issuer) || self.granted(subject).any(|(by, held)| may(by) && held.body.leases.contains(&lease))
    }

    fn settle_members(&self, valid: Vec<Placed>, roll: &Roll, resolved: &mut Resolved) {
        let mut taken: Prefixes<()> = Prefixes::default();
        let mut names: BTreeMap<Name, usize> = BTreeMap::new();
        for Placed { grant, issuer, .. } in valid {
            let subject = grant.subject;
            let free = |l: &IpNet| taken.overlapping(*l).is_none() && self.lease_counts(subject, issuer, *l);
            let leases: Vec<IpNet> = grant.leases.iter().copied().filter(free).collect();
            leases.iter().for_each(|l| taken.insert(*l, ()));
            let name = free_name(&mut names, &grant.name);
            let role = if subject == self.genesis.owner {
                Role::Owner
            } else if roll.is_admin(subject) {
                Role::Admin
            } else {
                Role::Member
            };
            let addresses = grant.addresses.iter().copied().filter(|a| leases.iter().any(|l| l.contains(a))).collect();
            let doc = self.doc(subject).filter(|d| d.left.is_none());
            let mut used = BTreeSet::new();
            let mut own = |a: &IpAddr| leases.iter().any(|l| l.contains(a)) && used.insert(*a);
            let workloads = doc.map(|d| {
                let entries = d.workloads.iter().map(|w| {
                    let addresses: Vec<IpAddr> = w.addresses.iter().copied().filter(&mut own).collect();
                    (w.name.clone(), addresses)
                });
                entries.filter(|(_, addresses)| !addresses.is_empty()).collect()
            });
            let member = Member {
                issuer,
                name,
                role,
                addresses,
                endpoints: doc.map(|d| d.endpoints.clone()).unwrap_or_default(),
                workloads: workloads.unwrap_or_default(),
                leases,
                grant,
            };
            resolved.members.insert(subject, member);
        }
    }

    /// Names: a member's own name and all below it are its own. Any other name with one claimant is that claimant's; of
    /// several the registered one's; of several unregistered ones the one this node has answered before.
    fn settle_names(&self, roll: &Roll, seen: &BTreeMap<String, PeerId>, resolved: &mut Resolved) {
        let own: BTreeMap<&str, PeerId> = resolved.members.iter().map(|(p, m)| (m.name.as_str(), *p)).collect();
        let mut claims: Vec<Claims<'_>> = Vec::new();
        for (peer, member) in &resolved.members {
            let Some(doc) = self.doc(*peer).filter(|d| d.left.is_none()) else { continue };
            let workloads = member.workloads.iter().map(|(name, _)| name.as_str());
            let added = doc.names.iter().map(|n| n.name.as_str());
            let may = |name: &&str| {
                let last = name.rsplit('.').next().unwrap_or(name);
                own.get(last).is_none_or(|holder| holder == peer && last != *name)
                    && !self.is_released(roll, *peer, name)
            };
            let names = workloads.chain(added).filter(may).map(str::to_owned).collect();
            claims.push(Claims { by: *peer, doc, names });
        }
        let mut claimants: BTreeMap<&str, Vec<PeerId>> = BTreeMap::new();
        for claim in &claims {
            claim.names.iter().for_each(|name| claimants.entry(name).or_default().push(claim.by));
        }
        let registered = self.registered(roll, resolved);
        let mut flat = BTreeMap::new();
        for (name, by) in claimants {
            let holder = registered.get(name).and_then(|holders| holders.iter().find(|h| by.contains(*h))).copied();
            let kept = seen.get(name).filter(|held| by.contains(*held)).copied();
            let found = match (holder, by.as_slice()) {
                (Some(holder), _) => Some(holder),
                (None, [only]) => Some(*only),
                (None, _) => {
                    resolved.contested.insert(name.to_owned(), by.clone());
                    kept
                }
            };
            if let Some(found) = found {
                flat.insert(name.to_owned(), found);
                if holder.is_none() {
                    resolved.unregistered.insert(name.to_owned(), found);
                }
            }
        }
        // A workload's name is not also an added one's.
        for claim in &claims {
            let member = resolved.members.get(&claim.by);
            let workload = |name: &str| member.is_some_and(|m| m.workloads.iter().any(|(w, _)| w.as_str() == name));
            let answers = claim.doc.names.iter().filter(|n| !workload(&n.name));
            resolved.names.extend(answers.map(|n| (n.name.clone(), n.data.clone(), n.ttl, claim.by)));
        }
        resolved.flat = flat;
    }

    /// Holders of each registered name, whose word counts most first.
    fn registered(&self, roll: &Roll, resolved: &Resolved) -> BTreeMap<&str, Vec<PeerId>> {
        let order = |by: &PeerId| {
            let place = || roll.admins.iter().position(|a| a == by).map(|n| n.saturating_add(1));
            if *by == self.genesis.owner { Some(0) } else { place() }
        };
        let mut all: Vec<_> = (self.registrations.iter())
            .filter_map(|((holder, by), r)| {
                let member = resolved.members.get(holder)?;
                Some(((order(by)?, member.grant.generation, *holder), *holder, &r.body.names))
            })
            .collect();
        all.sort_by_key(|(rank, ..)| *rank);
        let mut names: BTreeMap<&str, Vec<PeerId>> = BTreeMap::new();
        for (_, holder, registered) in all {
            registered.iter().for_each(|name| names.entry(name).or_default().push(holder));
        }
        names
    }

    /// Whether somebody with a say took a name from a member, which has not claimed it anew since. It names the document
    /// that it answers, so that nobody can take a name for ever.
    pub(super) fn is_released(&self, roll: &Roll, member: PeerId, name: &str) -> bool {
        let version = self.doc(member).map_or(0, |d| d.version);
        let says = |by: PeerId| by == self.genesis.owner || roll.is_admin(by);
        super::subnet::about(&self.registrations, member)
            .any(|(by, r)| says(by) && r.body.released.get(name) == Some(&version))
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
