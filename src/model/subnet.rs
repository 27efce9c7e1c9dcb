//! The records of one subnet and what follows from them.
//!
//! [`Records`] is a join-semilattice: per key the greater record stays, whatever the order of arrival, so every member
//! that has seen the same records believes the same. [`Records::resolve`] derives who is in and who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::id::{Name, PeerId, SubnetId};
use super::ipam::{Pools, overlaps};
use super::record::{Body, Digest, Doc, Genesis, Grant, Head, Role, Signed};
use super::zone::RecordData;

/// Heads one issuer may have with the same number: more is an attack on memory, not a fork.
const MAX_FORKS: usize = 4;
/// Records that wait for their issuer to become known.
const MAX_PARKED: usize = 256;
/// How far a head's number may run ahead of the highest seen: a jump to the end of the numbers would end the subnet.
const MAX_HEAD_JUMP: u64 = 1 << 32;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held<T> {
    body: T,
    signed: Signed,
    digest: Digest,
}

/// All records of one subnet that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The subnet.
    pub id: SubnetId,
    /// Its founding statement.
    pub genesis: Genesis,
    /// Per issuer those of the highest number.
    heads: BTreeMap<PeerId, Vec<Held<Head>>>,
    /// Per (subject, issuer) the greatest.
    grants: BTreeMap<(PeerId, PeerId), Held<Grant>>,
    /// Per member the highest version.
    docs: BTreeMap<PeerId, Held<Doc>>,
    /// Well signed, issuer not known to have a say: an admin whose head is still under way.
    parked: Vec<Signed>,
    /// The latest time (seconds since 1970) an accepted record was signed at.
    latest: u64,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absorbed {
    /// It changed what we hold.
    New,
    /// We had it or something greater.
    Known,
    /// It waits for its issuer's standing.
    Parked,
    /// It can never count: wrong subnet, signature, bounds or issuer.
    Refused,
}

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
    /// Its workloads after conflicts are settled.
    pub workloads: Vec<(Name, Vec<IpAddr>)>,
}

/// Who is in, who holds what, what names mean: the same at everyone with the same records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Members by key.
    pub members: BTreeMap<PeerId, Member>,
    /// Added names that no member or workload holds, with TTL and who said so.
    pub names: Vec<(String, RecordData, u32, PeerId)>,
    /// The highest head number.
    pub head: u64,
    /// Who may admit and remove, the owner not among them.
    pub admins: BTreeSet<PeerId>,
    /// Identities that are out, up to and with a generation.
    pub revoked: BTreeMap<PeerId, u32>,
    /// The owner ended the subnet.
    pub destroyed: bool,
    /// The next moment (seconds since 1970) at which this changes by itself: a grant ends or begins.
    pub changes_at: Option<u64>,
}

impl Records {
    /// A subnet that only has its genesis.
    pub fn new(genesis: Genesis) -> Records {
        Records {
            id: genesis.id(),
            genesis,
            heads: BTreeMap::new(),
            grants: BTreeMap::new(),
            docs: BTreeMap::new(),
            parked: Vec::new(),
            latest: 0,
        }
    }

    /// The address pools.
    pub fn pools(&self) -> Pools {
        Pools { v4: self.genesis.cidr4, block4: self.genesis.block4, v6: self.genesis.prefix6(self.id) }
    }

    /// The subnet's prefixes.
    pub fn prefixes(&self) -> Vec<IpNet> {
        let pools = self.pools();
        pools.v4.map(IpNet::V4).into_iter().chain(pools.v6.map(IpNet::V6)).collect()
    }

    /// Every record held, parked ones not among them; heads first, then grants, then documents.
    pub fn all(&self) -> impl Iterator<Item = &Signed> {
        let heads = self.heads.values().flatten().map(|h| &h.signed);
        heads.chain(self.grants.values().map(|g| &g.signed)).chain(self.docs.values().map(|d| &d.signed))
    }

    /// Digests of every record held or parked: what a peer need not send.
    pub fn digests(&self) -> BTreeSet<Digest> {
        let heads = self.heads.values().flatten().map(|h| h.digest);
        let parked = self.parked.iter().map(Signed::digest);
        heads
            .chain(self.grants.values().map(|g| g.digest))
            .chain(self.docs.values().map(|d| d.digest))
            .chain(parked)
            .collect()
    }

    /// Takes one record in. `now` (seconds since 1970) refuses what claims to be signed in the future.
    pub fn absorb(&mut self, signed: &Signed, now: u64) -> Absorbed {
        let verdict = self.absorb_one(signed, now);
        if verdict == Absorbed::New {
            self.retry_parked(now);
        }
        verdict
    }

    fn absorb_one(&mut self, signed: &Signed, now: u64) -> Absorbed {
        if signed.subnet != self.id {
            return Absorbed::Refused;
        }
        let digest = signed.digest();
        if self.holds(&digest) {
            return Absorbed::Known;
        }
        let Ok(body) = signed.verify() else { return Absorbed::Refused };
        // Five minutes of clock difference between members are ordinary.
        if body.signed_at() > now.saturating_add(300) {
            return Absorbed::Refused;
        }
        let signed_at = body.signed_at();
        let verdict = match body {
            Body::Head(head) => self.absorb_head(head, signed, digest),
            Body::Grant(grant) => self.absorb_grant(grant, signed, digest),
            Body::Doc(doc) => self.absorb_doc(doc, signed, digest),
        };
        if verdict == Absorbed::New {
            self.latest = self.latest.max(signed_at);
        }
        verdict
    }

    /// The latest time (seconds since 1970) an accepted record was signed at.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    fn holds(&self, digest: &Digest) -> bool {
        self.heads.values().flatten().any(|h| h.digest == *digest)
            || self.grants.values().any(|g| g.digest == *digest)
            || self.docs.values().any(|d| d.digest == *digest)
    }

    fn absorb_head(&mut self, head: Head, signed: &Signed, digest: Digest) -> Absorbed {
        if !self.has_say(signed.issuer) {
            return self.park(signed);
        }
        if head.number > self.head_number().saturating_add(MAX_HEAD_JUMP) {
            return Absorbed::Refused;
        }
        let held = self.heads.entry(signed.issuer).or_default();
        let highest = held.first().map_or(0, |h| h.body.number);
        if head.number < highest || (head.number == highest && held.len() >= MAX_FORKS) {
            return Absorbed::Known;
        }
        if head.number > highest {
            // Revocations only grow: what an issuer revoked once holds, whatever its next head says.
            let mut merged = head.clone();
            for old in held.iter() {
                merge_revoked(&mut merged.revoked, &old.body.revoked);
                merged.destroyed |= old.body.destroyed;
            }
            if merged.revoked != head.revoked || merged.destroyed != head.destroyed {
                return Absorbed::Refused;
            }
            held.clear();
        }
        held.push(Held { body: head, signed: signed.clone(), digest });
        held.sort_by_key(|h| h.digest);
        Absorbed::New
    }

    fn absorb_grant(&mut self, grant: Grant, signed: &Signed, digest: Digest) -> Absorbed {
        if !self.has_say(signed.issuer) {
            return self.park(signed);
        }
        let pools = self.pools();
        if !grant.leases.iter().all(|l| pools.covers(*l)) {
            return Absorbed::Refused;
        }
        let key = (grant.subject, signed.issuer);
        let rank = |g: &Grant, d: &Digest| (g.generation, g.not_before, *d);
        if self.grants.get(&key).is_some_and(|h| rank(&h.body, &h.digest) >= rank(&grant, &digest)) {
            return Absorbed::Known;
        }
        self.grants.insert(key, Held { body: grant, signed: signed.clone(), digest });
        Absorbed::New
    }

    fn absorb_doc(&mut self, doc: Doc, signed: &Signed, digest: Digest) -> Absorbed {
        if !self.grants.keys().any(|(subject, _)| *subject == signed.issuer) {
            return self.park(signed);
        }
        if self.docs.get(&signed.issuer).is_some_and(|h| (h.body.version, h.digest) >= (doc.version, digest)) {
            return Absorbed::Known;
        }
        self.docs.insert(signed.issuer, Held { body: doc, signed: signed.clone(), digest });
        Absorbed::New
    }

    fn park(&mut self, signed: &Signed) -> Absorbed {
        if !self.parked.contains(signed) {
            if self.parked.len() >= MAX_PARKED {
                self.parked.remove(0);
            }
            self.parked.push(signed.clone());
        }
        Absorbed::Parked
    }

    fn retry_parked(&mut self, now: u64) {
        loop {
            let waiting = std::mem::take(&mut self.parked);
            let before = waiting.len();
            let mut progress = false;
            for signed in waiting {
                progress |= self.absorb_one(&signed, now) == Absorbed::New;
            }
            if !progress || self.parked.is_empty() || before == 0 {
                return;
            }
        }
    }

    /// Whether an identity was ever given a say: the owner, or an admin in some head the owner signed.
    ///
    /// A former admin's records stay held (so that holding them does not depend on the order of arrival) and count no
    /// more.
    fn has_say(&self, issuer: PeerId) -> bool {
        issuer == self.genesis.owner
            || self.admins().contains(&issuer)
            || self.grants.keys().any(|(_, by)| *by == issuer)
    }

    /// Admins by the owner's word alone.
    pub fn admins(&self) -> BTreeSet<PeerId> {
        self.heads.get(&self.genesis.owner).into_iter().flatten().flat_map(|h| h.body.admins.iter().copied()).collect()
    }

    /// The highest head number of those with a say.
    pub fn head_number(&self) -> u64 {
        let admins = self.admins();
        self.counting_heads(&admins).map(|h| h.body.number).max().unwrap_or(0)
    }

    fn counting_heads<'a>(&'a self, admins: &'a BTreeSet<PeerId>) -> impl Iterator<Item = &'a Held<Head>> {
        self.heads
            .iter()
            .filter(|(issuer, _)| **issuer == self.genesis.owner || admins.contains(issuer))
            .flat_map(|(_, heads)| heads)
    }

    /// Union of the revocations of everyone with a say.
    pub fn revoked(&self) -> BTreeMap<PeerId, u32> {
        let admins = self.admins();
        let mut all = BTreeMap::new();
        for head in self.counting_heads(&admins) {
            merge_revoked(&mut all, &head.body.revoked);
        }
        // Nobody but the owner ends the owner.
        all.remove(&self.genesis.owner);
        all
    }

    /// Whether the owner ended the subnet.
    pub fn destroyed(&self) -> bool {
        self.heads.get(&self.genesis.owner).into_iter().flatten().any(|h| h.body.destroyed)
    }

    /// Issuers whose heads bear the same, highest number: nobody saw the other's. Empty where there is one.
    pub fn fork(&self) -> Vec<PeerId> {
        let admins = self.admins();
        let top = self.head_number();
        let tops = |h: &&Held<Head>| h.body.number == top;
        let issuers: Vec<PeerId> = self.counting_heads(&admins).filter(tops).map(|h| h.signed.issuer).collect();
        if issuers.len() > 1 { issuers } else { Vec::new() }
    }

    /// The heads that prove who is out and whether the subnet has ended.
    pub fn head_records(&self) -> Vec<Signed> {
        self.heads.values().flatten().map(|h| h.signed.clone()).collect()
    }

    /// The next head: one number up, repeating the union of all revocations; `issuer` decides whose admins count.
    pub fn next_head(&self, now: u64) -> Head {
        let admins = self.admins();
        let previous =
            self.counting_heads(&admins).max_by_key(|h| (h.body.number, h.digest)).map_or([0; 32], |h| h.digest);
        Head {
            number: self.head_number().saturating_add(1),
            previous,
            revoked: self.revoked(),
            destroyed: self.destroyed(),
            admins,
            issued: now,
        }
    }

    /// Whether some head of the highest number lacks a revocation another head holds: then the next head must repeat
    /// the union.
    pub fn forked(&self) -> bool {
        let admins = self.admins();
        let top = self.head_number();
        let union = self.revoked();
        let tops: Vec<_> = self.counting_heads(&admins).filter(|h| h.body.number == top).collect();
        !tops.is_empty()
            && !tops.iter().any(|h| union.iter().all(|(p, g)| h.body.revoked.get(p).is_some_and(|r| r >= g)))
    }

    /// Generation the next grant of `subject` needs: above every revoked and every left one.
    pub fn next_generation(&self, subject: PeerId) -> u32 {
        let revoked = self.revoked().get(&subject).copied().unwrap_or(0);
        let left = self.docs.get(&subject).and_then(|d| d.body.left).unwrap_or(0);
        revoked.max(left).saturating_add(1)
    }

    /// A member's own document.
    pub fn doc(&self, member: PeerId) -> Option<&Doc> {
        self.docs.get(&member).map(|d| &d.body)
    }

    /// Every grant of a subject, whether it counts or not.
    pub fn grants_of(&self, subject: PeerId) -> impl Iterator<Item = &Grant> {
        self.grants.iter().filter(move |((s, _), _)| *s == subject).map(|(_, g)| &g.body)
    }

    /// What follows from the records at `now` (seconds since 1970).
    pub fn resolve(&self, now: u64) -> Resolved {
        let admins = self.admins();
        let revoked = self.revoked();
        let mut changes_at: Option<u64> = None;
        let mut best: BTreeMap<PeerId, (&Held<Grant>, PeerId)> = BTreeMap::new();
        for ((subject, issuer), held) in &self.grants {
            let grant = &held.body;
            let issuer_counts =
                *issuer == self.genesis.owner || (admins.contains(issuer) && !revoked.contains_key(issuer));
            let out = revoked.get(subject).is_some_and(|g| *g >= grant.generation);
            let left = self.docs.get(subject).and_then(|d| d.body.left).is_some_and(|g| g >= grant.generation);
            // The owner's own place is founded by the genesis, not by a head.
            if !issuer_counts || out || left || (*subject == self.genesis.owner && *issuer != self.genesis.owner) {
                continue;
            }
            if now >= grant.not_after {
                continue;
            }
            changes_at = Some(changes_at.map_or(grant.not_after, |c: u64| c.min(grant.not_after)));
            let rank = |h: &Held<Grant>, by: PeerId| {
                (h.body.generation, h.body.not_before, by == self.genesis.owner, h.digest)
            };
            let better = best.get(subject).is_none_or(|(old, by)| rank(held, *issuer) > rank(old, *by));
            if better {
                best.insert(*subject, (held, *issuer));
            }
        }
        let mut resolved = Resolved {
            head: self.head_number(),
            destroyed: self.destroyed(),
            admins,
            revoked,
            changes_at,
            ..Resolved::default()
        };
        self.settle(&best, &mut resolved);
        resolved
    }

    /// Settles claims to one address or name: the earlier claim holds, of two at one time the smaller key's.
    fn settle(&self, best: &BTreeMap<PeerId, (&Held<Grant>, PeerId)>, resolved: &mut Resolved) {
        let mut order: Vec<_> = best.iter().collect();
        order.sort_by_key(|(subject, (held, _))| (held.body.leased_at, **subject));
        let mut taken: Vec<IpNet> = Vec::new();
        let mut blocks: BTreeSet<IpNet> = BTreeSet::new();
        let mut names: BTreeSet<Name> = BTreeSet::new();
        for (subject, (held, issuer)) in order {
            let grant = &held.body;
            let leases: Vec<IpNet> = grant
                .leases
                .iter()
                .copied()
                // Equal prefixes are the usual conflict and are found without a scan.
                .filter(|l| !blocks.contains(l) && !taken.iter().any(|t| overlaps(*l, *t)))
                .collect();
            blocks.extend(leases.iter().copied());
            taken.extend(leases.iter().copied());
            let mut name = grant.name.clone();
            let mut n = 2;
            while !names.insert(name.clone()) {
                name = grant.name.numbered(n);
                n += 1;
            }
            let role = if *subject == self.genesis.owner {
                Role::Owner
            } else if resolved.admins.contains(subject) {
                Role::Admin
            } else {
                Role::Member
            };
            let addresses = grant.addresses.iter().copied().filter(|a| leases.iter().any(|l| l.contains(a))).collect();
            let endpoints = self.docs.get(subject).map(|d| d.body.endpoints.clone()).unwrap_or_default();
            let member = Member {
                grant: grant.clone(),
                issuer: *issuer,
                name,
                role,
                leases,
                addresses,
                endpoints,
                workloads: Vec::new(),
            };
            resolved.members.insert(*subject, member);
        }
        self.settle_names(&mut names, resolved);
    }

    fn settle_names(&self, names: &mut BTreeSet<Name>, resolved: &mut Resolved) {
        let docs = || self.docs.iter().filter(|(member, _)| best_member(resolved, **member));
        let mut claims: Vec<_> =
            docs().flat_map(|(member, d)| d.body.workloads.iter().map(move |w| (w.since, *member, w))).collect();
        claims.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));
        let mut records: Vec<_> =
            docs().flat_map(|(member, d)| d.body.names.iter().map(move |n| (n.since, *member, n))).collect();
        records.sort_by(|a, b| (a.0, a.1, &a.2.name, &a.2.data).cmp(&(b.0, b.1, &b.2.name, &b.2.data)));
        let mut workloads: Vec<(PeerId, Name, Vec<IpAddr>)> = Vec::new();
        let mut used: BTreeSet<IpAddr> = resolved.members.values().flat_map(|m| m.addresses.iter().copied()).collect();
        for (_, member, entry) in claims {
            let leases = resolved.members.get(&member).map(|m| m.leases.as_slice()).unwrap_or_default();
            let addresses: Vec<IpAddr> = entry
                .addresses
                .iter()
                .copied()
                .filter(|a| leases.iter().any(|l| l.contains(a)) && used.insert(*a))
                .collect();
            if !addresses.is_empty() && names.insert(entry.name.clone()) {
                workloads.push((member, entry.name.clone(), addresses));
            }
        }
        // A name said twice belongs to who said it first; only that member may give it several answers.
        let mut holders: BTreeMap<String, PeerId> = BTreeMap::new();
        let mut answers = Vec::new();
        for (_, member, entry) in records {
            let reserved = entry.name.parse::<Name>().is_ok_and(|n| names.contains(&n));
            if !reserved && *holders.entry(entry.name.clone()).or_insert(member) == member {
                answers.push((entry.name.clone(), entry.data.clone(), entry.ttl, member));
            }
        }
        for (member, name, addresses) in workloads {
            if let Some(member) = resolved.members.get_mut(&member) {
                member.workloads.push((name, addresses));
            }
        }
        resolved.names = answers;
    }
}

fn best_member(resolved: &Resolved, member: PeerId) -> bool {
    resolved.members.contains_key(&member)
}

fn merge_revoked(into: &mut BTreeMap<PeerId, u32>, from: &BTreeMap<PeerId, u32>) {
    for (peer, generation) in from {
        let held = into.entry(*peer).or_insert(0);
        *held = (*held).max(*generation);
    }
}
