//! The records of one subnet and what follows from them.
//!
//! [`Records`] is a join-semilattice: per key the greater record stays, whatever the order of arrival, so every member
//! that has seen the same records believes the same. [`Records::resolve`] derives who is in and who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::id::{Name, PeerId, SubnetId};
use super::ipam::{Pools, Prefixes};
use super::record::{Body, Digest, Doc, Genesis, Grant, Head, Role, Signed};
use super::zone::RecordData;

/// Heads one issuer may have with the same number: more is an attack on memory, not a fork.
const MAX_FORKS: usize = 4;
/// Records that wait for their issuer to become known; half of the places are kept for issuers that hold a grant.
const MAX_PARKED: usize = 256;
/// Bytes of those records together.
const MAX_PARKED_BYTES: usize = 4 * 1024 * 1024;
/// How far a head's number may run ahead of the highest seen: a jump to the end of the numbers would end the subnet.
const MAX_HEAD_JUMP: u64 = 1 << 32;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held<T> {
    body: T,
    signed: Signed,
    digest: Digest,
}

/// A record that waits for its issuer's standing. Its signature was checked once and is not checked again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parked {
    body: Body,
    signed: Signed,
    digest: Digest,
}

/// What the heads say together.
struct Standing {
    /// Admins by the owner's word, those not among them whom another head puts out.
    active: BTreeSet<PeerId>,
    /// Union of the revocations that count.
    revoked: BTreeMap<PeerId, u32>,
    /// The highest number that counts.
    number: u64,
    /// Digest of a head with that number; zeros where there is none.
    top: Digest,
    /// Whether no head of the highest number repeats the union.
    forked: bool,
}

/// All records of one subnet that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    /// The subnet.
    pub id: SubnetId,
    /// Its founding statement.
    pub genesis: Genesis,
    /// Per issuer those that no later one of the same issuer repeats: usually one.
    heads: BTreeMap<PeerId, Vec<Held<Head>>>,
    /// Per (subject, issuer) the greatest.
    grants: BTreeMap<(PeerId, PeerId), Held<Grant>>,
    /// Per member the highest version.
    docs: BTreeMap<PeerId, Held<Doc>>,
    /// Well signed, issuer not known to have a say: an admin whose head is still under way.
    parked: Vec<Parked>,
    /// The latest time (seconds since 1970) someone with a say signed at.
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

    /// Every record held with its digest; parked ones not among them.
    pub fn entries(&self) -> impl Iterator<Item = (&Digest, &Signed)> {
        let heads = self.heads.values().flatten().map(|h| (&h.digest, &h.signed));
        heads
            .chain(self.grants.values().map(|g| (&g.digest, &g.signed)))
            .chain(self.docs.values().map(|d| (&d.digest, &d.signed)))
    }

    /// Digests of every record held: what two members compare.
    pub fn held(&self) -> BTreeSet<Digest> {
        self.entries().map(|(digest, _)| *digest).collect()
    }

    /// Digests of every record held or parked: what a peer need not send.
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.entries().map(|(digest, _)| *digest).chain(self.parked.iter().map(|p| p.digest)).collect()
    }

    /// Members' documents.
    pub fn docs(&self) -> impl Iterator<Item = (PeerId, &Doc)> {
        self.docs.iter().map(|(peer, held)| (*peer, &held.body))
    }

    /// Takes one record in. `now` (seconds since 1970) refuses what claims to be signed in the future.
    pub fn absorb(&mut self, signed: &Signed, now: u64) -> Absorbed {
        if signed.subnet != self.id {
            return Absorbed::Refused;
        }
        let digest = signed.digest();
        if self.holds(&digest) || self.parked.iter().any(|p| p.digest == digest) {
            return Absorbed::Known;
        }
        let Ok(body) = signed.verify() else { return Absorbed::Refused };
        // Five minutes of clock difference between members are ordinary.
        if body.signed_at() > now.saturating_add(300) {
            return Absorbed::Refused;
        }
        let gives_standing = !matches!(body, Body::Doc(_));
        let verdict = self.place(Parked { body, signed: signed.clone(), digest });
        if verdict == Absorbed::New && gives_standing {
            self.retry_parked();
        }
        verdict
    }

    /// Enters a record whose signature holds, or parks it.
    fn place(&mut self, record: Parked) -> Absorbed {
        let issuer = record.signed.issuer;
        let known = match record.body {
            Body::Doc(_) => self.is_subject(issuer),
            Body::Head(_) | Body::Grant(_) => self.has_say(issuer),
        };
        if !known {
            return self.park(record);
        }
        let Parked { body, signed, digest } = record;
        // A mere member's word about the time moves no clock.
        let time = if matches!(body, Body::Doc(_)) { 0 } else { body.signed_at() };
        let verdict = match body {
            Body::Head(head) => self.absorb_head(head, &signed, digest),
            Body::Grant(grant) => self.absorb_grant(grant, &signed, digest),
            Body::Doc(doc) => self.absorb_doc(doc, &signed, digest),
        };
        if verdict == Absorbed::New {
            self.latest = self.latest.max(time);
        }
        verdict
    }

    /// Whether a record is held, by its digest.
    pub fn knows(&self, digest: &Digest) -> bool {
        self.holds(digest)
    }

    /// The latest time (seconds since 1970) someone with a say signed at.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    fn holds(&self, digest: &Digest) -> bool {
        self.heads.values().flatten().any(|h| h.digest == *digest)
            || self.grants.values().any(|g| g.digest == *digest)
            || self.docs.values().any(|d| d.digest == *digest)
    }

    fn absorb_head(&mut self, head: Head, signed: &Signed, digest: Digest) -> Absorbed {
        if head.number > self.head_number().saturating_add(MAX_HEAD_JUMP) {
            return Absorbed::Refused;
        }
        // Revocations only grow: what an issuer revoked once holds until a later head of its own repeats it, whichever of
        // the two arrives first. (An owner restored from a backup signs a number twice.)
        let repeats = |new: &Head, old: &Head| {
            new.number > old.number
                && (new.destroyed || !old.destroyed)
                && old.revoked.iter().all(|(p, g)| new.revoked.get(p).is_some_and(|r| r >= g))
        };
        let held = self.heads.get(&signed.issuer).map(Vec::as_slice).unwrap_or_default();
        let kept = held.iter().filter(|h| !repeats(&head, &h.body)).count();
        if kept >= MAX_FORKS || held.iter().any(|h| repeats(&h.body, &head)) {
            return Absorbed::Known;
        }
        let held = self.heads.entry(signed.issuer).or_default();
        held.retain(|h| !repeats(&head, &h.body));
        held.push(Held { body: head, signed: signed.clone(), digest });
        held.sort_by_key(|h| (h.body.number, h.digest));
        Absorbed::New
    }

    fn absorb_grant(&mut self, grant: Grant, signed: &Signed, digest: Digest) -> Absorbed {
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
        if self.docs.get(&signed.issuer).is_some_and(|h| (h.body.version, h.digest) >= (doc.version, digest)) {
            return Absorbed::Known;
        }
        self.docs.insert(signed.issuer, Held { body: doc, signed: signed.clone(), digest });
        Absorbed::New
    }

    /// Keeps a record for later. Anybody can make up issuers, so those that hold no grant go first, and have half the
    /// places at most.
    fn park(&mut self, record: Parked) -> Absorbed {
        self.parked.push(record);
        loop {
            let bytes: usize = self.parked.iter().map(|p| p.signed.body.len()).sum();
            let made_up: Vec<usize> = (0..)
                .zip(&self.parked)
                .filter(|(_, p)| !self.is_subject(p.signed.issuer))
                .map(|(place, _)| place)
                .collect();
            let over = self.parked.len() > MAX_PARKED || bytes > MAX_PARKED_BYTES || made_up.len() > MAX_PARKED / 2;
            if !over || self.parked.is_empty() {
                return Absorbed::Parked;
            }
            self.parked.remove(made_up.first().copied().unwrap_or(0));
        }
    }

    fn retry_parked(&mut self) {
        let mut progress = true;
        while progress && !self.parked.is_empty() {
            progress = false;
            for record in std::mem::take(&mut self.parked) {
                progress |= self.place(record) == Absorbed::New;
            }
        }
    }

    /// Whether a grant of this peer is held, valid or not.
    fn is_subject(&self, peer: PeerId) -> bool {
        self.grants.range((peer, PeerId([0; 32]))..=(peer, PeerId([0xff; 32]))).next().is_some()
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
        let heads = self.heads.get(&self.genesis.owner).map(Vec::as_slice).unwrap_or_default();
        let newest = heads.last().map_or(0, |h| h.body.number);
        heads.iter().filter(|h| h.body.number == newest).flat_map(|h| h.body.admins.iter().copied()).collect()
    }

    /// Reads the heads in the order of their numbers. A removed admin's word ends with the number that removed it: what
    /// it signed at that number or before holds, what it signs later does not, unless someone else admitted it again.
    ///
    /// Two admins that remove each other with the same number, each unseen by the other, are both out: no order of theirs
    /// could be trusted. What only they granted counts no more and has to be approved again: were it to count until the
    /// owner has heard of it, a removed admin could sign such a number at any later time and let strangers in by it.
    ///
    /// An admin the *owner* un-names loses its word altogether, also what it revoked and the owner had not heard of: the
    /// owner has to say that again. Nothing else is the same at everyone. That it was an admin once stood in a head of the
    /// owner's that the newer one has replaced, so who hears the newer first can never tell its heads from a stranger's;
    /// and if heads up to the number that un-named it went on counting, it could sign such a number at any later time and
    /// put everybody out. The owner's next head repeats every revocation it has heard of, which closes the gap for all
    /// that reached it in time.
    fn standing(&self) -> Standing {
        let admins = self.admins();
        let owner = self.genesis.owner;
        let mut heads: Vec<(PeerId, &Held<Head>)> = self
            .heads
            .iter()
            .filter(|(issuer, _)| **issuer == owner || admins.contains(issuer))
            .flat_map(|(issuer, heads)| heads.iter().map(move |h| (*issuer, h)))
            .collect();
        heads.sort_by_key(|(_, h)| (h.body.number, h.digest));
        let mut revoked = BTreeMap::new();
        let (mut number, mut top, mut tops) = (0, [0; 32], Vec::new());
        for same in heads.chunk_by(|a, b| a.1.body.number == b.1.body.number) {
            let counts = |issuer: PeerId| issuer == owner || !self.is_out(&revoked, &admins, issuer);
            let counting: Vec<&Held<Head>> = same.iter().filter(|(i, _)| counts(*i)).map(|(_, h)| *h).collect();
            for head in &counting {
                merge_revoked(&mut revoked, &head.body.revoked);
                (number, top) = (head.body.number, head.digest);
            }
            if !counting.is_empty() {
                tops = counting;
            }
        }
        // Nobody but the owner ends the owner.
        revoked.remove(&owner);
        let whole = |h: &&Held<Head>| revoked.iter().all(|(p, g)| h.body.revoked.get(p).is_some_and(|r| r >= g));
        let forked = !tops.is_empty() && !tops.iter().any(whole);
        let active = admins.iter().copied().filter(|a| !self.is_out(&revoked, &admins, *a)).collect();
        Standing { active, revoked, number, top, forked }
    }

    /// Whether an admin was removed and not admitted again by somebody else.
    fn is_out(&self, revoked: &BTreeMap<PeerId, u32>, admins: &BTreeSet<PeerId>, admin: PeerId) -> bool {
        revoked.get(&admin).is_some_and(|out| {
            let held = self.grants.range((admin, PeerId([0; 32]))..=(admin, PeerId([0xff; 32])));
            let by_others =
                held.filter(|((_, by), _)| *by != admin && (*by == self.genesis.owner || admins.contains(by)));
            !by_others.into_iter().any(|(_, grant)| grant.body.generation > *out)
        })
    }

    /// The highest head number of those with a say.
    pub fn head_number(&self) -> u64 {
        self.standing().number
    }

    /// Union of the revocations of everyone with a say.
    pub fn revoked(&self) -> BTreeMap<PeerId, u32> {
        self.standing().revoked
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
        let counts = |issuer: &PeerId| *issuer == self.genesis.owner || admins.contains(issuer);
        let counting = self.heads.iter().filter(|(issuer, _)| counts(issuer)).flat_map(|(_, heads)| heads);
        let issuers: Vec<PeerId> = counting.filter(tops).map(|h| h.signed.issuer).collect();
        if issuers.len() > 1 { issuers } else { Vec::new() }
    }

    /// The heads that prove who is out and whether the subnet has ended.
    pub fn head_records(&self) -> Vec<Signed> {
        self.heads.values().flatten().map(|h| h.signed.clone()).collect()
    }

    /// The next head: one number up, repeating the union of all revocations; `issuer` decides whose admins count.
    pub fn next_head(&self, issuer: PeerId, now: u64) -> Head {
        let standing = self.standing();
        // An issuer's own numbers only grow, also where its last word does not count.
        let own = self.heads.get(&issuer).and_then(|h| h.last()).map_or(0, |h| h.body.number);
        Head {
            number: standing.number.max(own).saturating_add(1),
            previous: standing.top,
            revoked: standing.revoked,
            destroyed: self.destroyed(),
            admins: self.admins(),
            issued: now,
        }
    }

    /// Whether some head of the highest number lacks a revocation another head holds: then the next head must repeat
    /// the union.
    pub fn forked(&self) -> bool {
        self.standing().forked
    }

    /// When (seconds since 1970) the next grant that has not run out at `now` will: who is a member cannot change by
    /// itself before.
    pub fn next_end(&self, now: u64) -> Option<u64> {
        self.grants.values().map(|g| g.body.not_after).filter(|end| *end > now).min()
    }

    /// Generation the next grant of `subject` needs: above every revoked and every left one, and under none it had.
    pub fn next_generation(&self, subject: PeerId) -> u32 {
        let revoked = self.revoked().get(&subject).copied().unwrap_or(0);
        let left = self.docs.get(&subject).and_then(|d| d.body.left).unwrap_or(0);
        let had = self.grants_of(subject).map(|g| g.generation).max().unwrap_or(0);
        revoked.max(left).saturating_add(1).max(had)
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
        let Standing { active, revoked, number, .. } = self.standing();
        let owner = self.genesis.owner;
        let mut changes_at: Option<u64> = None;
        let mut best: BTreeMap<PeerId, (&Held<Grant>, PeerId)> = BTreeMap::new();
        for ((subject, issuer), held) in &self.grants {
            let grant = &held.body;
            let issuer_counts = *issuer == owner || active.contains(issuer);
            let out = revoked.get(subject).is_some_and(|g| *g >= grant.generation);
            let left = self.docs.get(subject).and_then(|d| d.body.left).is_some_and(|g| g >= grant.generation);
            // The owner's own place is founded by the genesis: no head ends it, nobody else grants it, and it does not run
            // out while the owner is away, who could else never come back to renew anything.
            if !issuer_counts || out || left || (*subject == owner && *issuer != owner) {
                continue;
            }
            if *subject != owner {
                if now >= grant.not_after {
                    continue;
                }
                changes_at = Some(changes_at.map_or(grant.not_after, |c: u64| c.min(grant.not_after)));
            }
            let rank = |h: &Held<Grant>, by: PeerId| (h.body.generation, h.body.not_before, by == owner, h.digest);
            let better = best.get(subject).is_none_or(|(old, by)| rank(held, *issuer) > rank(old, *by));
            if better {
                best.insert(*subject, (held, *issuer));
            }
        }
        let mut resolved = Resolved {
            head: number,
            destroyed: self.destroyed(),
            admins: active,
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
        let mut taken: Prefixes<()> = Prefixes::default();
        let mut names: BTreeSet<Name> = BTreeSet::new();
        for (subject, (held, issuer)) in order {
            let grant = &held.body;
            let leases: Vec<IpNet> = grant.leases.iter().copied().filter(|l| taken.overlapping(*l).is_none()).collect();
            leases.iter().for_each(|l| taken.insert(*l, ()));
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
        // When a name was claimed is the member's own word: it cannot have been before the member was there, or a
        // newcomer could take any name by a date.
        let there = |member: &PeerId| resolved.members.get(member).map_or(u64::MAX, |m| m.grant.leased_at);
        let mut claims: Vec<_> = docs()
            .flat_map(|(member, d)| d.body.workloads.iter().map(move |w| (w.since.max(there(member)), *member, w)))
            .collect();
        claims.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));
        let mut records: Vec<_> = docs()
            .flat_map(|(member, d)| d.body.names.iter().map(move |n| (n.since.max(there(member)), *member, n)))
            .collect();
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
