//! What the owner and admins decide: who is admitted, renewed, removed, and which leases are whose.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ed25519_dalek::SigningKey;
use ipnet::IpNet;

use super::error::{Error, Kind, Result};
use super::id::{Name, PeerId};
use super::ipam::Prefixes;
use super::join::Ask;
use super::local::Local;
use super::record::{Body, Grant, MAX_LEASES, Role, Signed};
use super::subnet::{Absorbed, Member, Records, Resolved};

/// This node's keys, as the core needs them.
#[derive(Clone)]
pub struct Identity {
    /// Signs records.
    pub key: SigningKey,
    /// Its public half.
    pub peer: PeerId,
    /// Public X25519 key for data sessions.
    pub data_key: [u8; 32],
}

impl Identity {
    /// From the seed on disk.
    pub fn new(seed: &[u8; 32], data_key: [u8; 32]) -> Identity {
        let key = SigningKey::from_bytes(seed);
        let peer = PeerId(key.verifying_key().to_bytes());
        Identity { key, peer, data_key }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.peer).finish()
    }
}

/// One subnet at this node: the shared records and this node's own side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// Replicated.
    pub records: Records,
    /// Not replicated.
    pub local: Local,
    /// Who asked to join by ID and waits; not kept over a restart, since askers go on asking.
    pub requests: BTreeMap<PeerId, Request>,
}

/// One who waits for approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The question.
    pub ask: Ask,
    /// First asked at (seconds since 1970).
    pub since: u64,
    /// Last asked at: who stops asking is forgotten after 15 minutes.
    pub seen: u64,
}

/// Requests kept at once.
pub const MAX_REQUESTS: usize = 32;
/// Seconds after which a request nobody repeats is forgotten, and a denial ends.
pub const REQUEST_LIFE: u64 = 15 * 60;

impl Subnet {
    /// Takes in a record this node signed.
    pub(super) fn issue(&mut self, me: &Identity, body: &Body, now: u64) -> Result<()> {
        let signed = Signed::new(self.records.id, body, &me.key);
        match self.records.absorb(&signed, now) {
            Absorbed::New | Absorbed::Known => Ok(()),
            Absorbed::Parked | Absorbed::Refused => Err(Error::new(
                Kind::Failed,
                "E-RECORD",
                "the record this command makes would be refused by the others",
            )),
        }
    }

    /// The name people know the subnet by here.
    pub fn name(&self) -> &Name {
        &self.local.alias
    }

    /// Refuses what only the owner or an admin may do.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`.
    pub fn require_admin(&self, me: &Identity, resolved: &Resolved) -> Result<()> {
        let role = resolved.members.get(&me.peer).map(|m| m.role);
        if matches!(role, Some(Role::Owner | Role::Admin)) {
            return Ok(());
        }
        Err(Error::new(
            Kind::NotPermitted,
            "E-NOT-ADMIN",
            format!("only the owner or an admin of subnet {} may do this", self.name()),
        )
        .hint(format!("byway member role {} MEMBER admin   (on the owner)", self.name())))
    }

    /// Refuses what only the owner may do.
    ///
    /// # Errors
    /// `E-NOT-OWNER`.
    pub fn require_owner(&self, me: &Identity) -> Result<()> {
        if self.records.genesis.owner == me.peer {
            return Ok(());
        }
        Err(Error::new(
            Kind::NotPermitted,
            "E-NOT-OWNER",
            format!("only the owner of subnet {} may do this", self.name()),
        ))
    }

    /// Finds a member by name, peer ID, or a unique beginning or end of the ID.
    ///
    /// # Errors
    /// `E-NO-MEMBER`.
    pub fn find_member(&self, resolved: &Resolved, text: &str) -> Result<PeerId> {
        let by_name =
            resolved.members.iter().find(|(_, m)| m.name.as_str().eq_ignore_ascii_case(text)).map(|(p, _)| *p);
        by_name.or_else(|| match_peer(resolved.members.keys().copied(), text)).ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                "E-NO-MEMBER",
                format!("subnet {} has no member {}", self.name(), printable(text)),
            )
            .hint(format!("byway member ls {}", self.name()))
        })
    }

    /// Admits who asked: a new grant with a free name and block. A current member is given what it has.
    ///
    /// # Errors
    /// `E-NAME-TAKEN` for a name that was asked for, `E-POOL-FULL`, `E-ADDRESS-…`.
    pub fn admit(
        &mut self,
        me: &Identity,
        ask: &Ask,
        role: Role,
        labels: &BTreeMap<String, String>,
        now: u64,
    ) -> Result<()> {
        let resolved = self.records.resolve(now);
        self.require_admin(me, &resolved)?;
        if resolved.members.contains_key(&ask.joiner) {
            self.requests.remove(&ask.joiner);
            return Ok(());
        }
        let name = free_member_name(&resolved, &ask.name, ask.name_is_default)?;
        let mut taken: Vec<IpNet> = resolved.members.values().flat_map(|m| m.leases.iter().copied()).collect();
        let reserved = self.local.reserved.remove(&ask.joiner).unwrap_or_default();
        taken.extend(self.local.reserved.values().flatten().copied().filter(|p| !reserved.contains(p)));
        // An address reserved for this peer becomes its own address.
        let wanted = ask.ip.or_else(|| reserved.iter().find(|p| is_single(p)).map(IpNet::addr));
        let mut block = self.records.pools().free_block(&taken, wanted)?;
        block
            .leases
            .extend(reserved.into_iter().filter(|r| !block.leases.iter().any(|l| l.contains(r))).collect::<Vec<_>>());
        let life = self.records.genesis.grant_life;
        let grant = Grant {
            subject: ask.joiner,
            data_key: ask.data_key,
            name,
            role,
            generation: self.records.next_generation(ask.joiner),
            addresses: block.addresses,
            leases: block.leases,
            leased_at: now,
            not_before: now,
            not_after: now.saturating_add(life),
            labels: labels.clone(),
        };
        self.issue(me, &Body::Grant(grant), now)?;
        if role == Role::Admin {
            self.set_admin(me, ask.joiner, true, now)?;
        }
        self.requests.remove(&ask.joiner);
        self.local.denied.remove(&ask.joiner);
        Ok(())
    }

    /// Signs a member's grant anew with `change` applied.
    fn regrant(&mut self, me: &Identity, member: &Member, now: u64, change: impl FnOnce(&mut Grant)) -> Result<()> {
        let mut grant = member.grant.clone();
        // Strictly newer than what it replaces, also within one second.
        grant.not_before = now.max(grant.not_before.saturating_add(1));
        grant.not_after = now.saturating_add(self.records.genesis.grant_life);
        change(&mut grant);
        self.issue(me, &Body::Grant(grant), now.saturating_add(1))
    }

    /// Removes a member: a head that revokes its generation. What it had granted as an admin is granted anew.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-OWNER-STAYS`.
    pub fn remove(&mut self, me: &Identity, member: PeerId, now: u64) -> Result<()> {
        let resolved = self.records.resolve(now);
        self.require_admin(me, &resolved)?;
        if member == self.records.genesis.owner {
            return Err(Error::new(Kind::Conflict, "E-OWNER-STAYS", "the owner cannot be removed")
                .hint(format!("byway destroy {}   (ends the subnet for everyone)", self.name())));
        }
        self.adopt_grants_of(me, member, &resolved, now)?;
        let mut head = self.records.next_head(me.peer, now);
        let generation = self.records.grants_of(member).map(|g| g.generation).max().unwrap_or(1);
        let entry = head.revoked.entry(member).or_insert(0);
        *entry = (*entry).max(generation);
        if self.records.genesis.owner == me.peer {
            head.admins.remove(&member);
        }
        self.issue(me, &Body::Head(head), now)
    }

    fn adopt_grants_of(&mut self, me: &Identity, issuer: PeerId, resolved: &Resolved, now: u64) -> Result<()> {
        let orphans =
            resolved.members.iter().filter(|(peer, m)| m.issuer == issuer && **peer != issuer && **peer != me.peer);
        orphans.map(|(_, m)| m.clone()).collect::<Vec<_>>().iter().try_for_each(|m| self.regrant(me, m, now, |_| {}))
    }

    /// Names or un-names an admin: the owner's head says who they are.
    ///
    /// # Errors
    /// `E-NOT-OWNER`.
    pub fn set_admin(&mut self, me: &Identity, member: PeerId, admin: bool, now: u64) -> Result<()> {
        self.require_owner(me)?;
        let resolved = self.records.resolve(now);
        if !admin {
            self.adopt_grants_of(me, member, &resolved, now)?;
        }
        let mut head = self.records.next_head(me.peer, now);
        let changed = if admin { head.admins.insert(member) } else { head.admins.remove(&member) };
        if changed { self.issue(me, &Body::Head(head), now) } else { Ok(()) }
    }

    /// Ends the subnet for everyone.
    ///
    /// # Errors
    /// `E-NOT-OWNER`.
    pub fn destroy(&mut self, me: &Identity, now: u64) -> Result<()> {
        self.require_owner(me)?;
        let mut head = self.records.next_head(me.peer, now);
        head.destroyed = true;
        self.issue(me, &Body::Head(head), now)
    }

    /// Replaces a member's labels.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`.
    pub fn label(&mut self, me: &Identity, member: PeerId, labels: &BTreeMap<String, String>, now: u64) -> Result<()> {
        let resolved = self.records.resolve(now);
        self.require_admin(me, &resolved)?;
        let Some(m) = resolved.members.get(&member) else { return Ok(()) };
        self.regrant(me, m, now, |g| {
            for (key, value) in labels {
                if value.is_empty() {
                    g.labels.remove(key);
                } else {
                    g.labels.insert(key.clone(), value.clone());
                }
            }
        })
    }

    /// Gives `prefixes` to members, or keeps them for peers that are none yet: all or nothing.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-LEASE-OUTSIDE`, `E-LEASE-TAKEN`.
    pub fn lease(&mut self, me: &Identity, entries: &[(IpNet, PeerId)], now: u64) -> Result<bool> {
        let resolved = self.records.resolve(now);
        self.require_admin(me, &resolved)?;
        let pools = self.records.pools();
        let mut fresh: BTreeMap<PeerId, Vec<IpNet>> = BTreeMap::new();
        let mut held: Prefixes<PeerId> = Prefixes::default();
        let leased = resolved.members.iter().flat_map(|(p, m)| m.leases.iter().map(move |l| (*l, *p)));
        let reserved = self.local.reserved.iter().flat_map(|(p, leases)| leases.iter().map(move |l| (*l, *p)));
        leased.chain(reserved).for_each(|(lease, peer)| held.insert(lease, peer));
        for (prefix, owner) in entries {
            if *prefix != prefix.trunc() || !pools.covers(*prefix) {
                return Err(Error::new(
                    Kind::Conflict,
                    "E-LEASE-OUTSIDE",
                    format!("{prefix} is no prefix of subnet {}'s pools", self.name()),
                ));
            }
            match held.overlapping(*prefix) {
                Some((lease, holder)) if holder == *owner && lease.contains(prefix) => {}
                Some((lease, holder)) => {
                    let name = resolved.members.get(&holder).map_or_else(|| holder.to_string(), |m| m.name.to_string());
                    return Err(Error::new(
                        Kind::Conflict,
                        "E-LEASE-TAKEN",
                        format!("{prefix} overlaps {lease}, which is leased to {name}"),
                    ));
                }
                None => {
                    held.insert(*prefix, *owner);
                    fresh.entry(*owner).or_default().push(*prefix);
                }
            }
        }
        for (owner, prefixes) in &fresh {
            let before = resolved
                .members
                .get(owner)
                .map_or_else(|| self.local.reserved.get(owner).map_or(0, Vec::len), |member| member.grant.leases.len());
            // Two places are left for the block a peer gets when it joins.
            if before.saturating_add(prefixes.len()).saturating_add(2) > MAX_LEASES {
                return Err(Error::new(
                    Kind::Conflict,
                    "E-LEASE-MANY",
                    format!("one member holds at most {} leases", MAX_LEASES - 2),
                ));
            }
        }
        let changed = !fresh.is_empty();
        for (owner, prefixes) in fresh {
            match resolved.members.get(&owner) {
                Some(member) => self.regrant(me, member, now, |g| g.leases.extend(prefixes))?,
                None => self.local.reserved.entry(owner).or_default().extend(prefixes),
            }
        }
        Ok(changed)
    }

    /// Takes a lease back. The block that holds the member's own address stays.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-NO-LEASE`, `E-LEASE-OWN`.
    pub fn unlease(&mut self, me: &Identity, prefix: IpNet, now: u64) -> Result<()> {
        let resolved = self.records.resolve(now);
        self.require_admin(me, &resolved)?;
        let holder = resolved.members.values().find(|m| m.leases.contains(&prefix)).cloned();
        let Some(member) = holder else {
            let mut found = false;
            self.local.reserved.retain(|_, leases| {
                let before = leases.len();
                leases.retain(|l| *l != prefix);
                found |= leases.len() != before;
                !leases.is_empty()
            });
            return if found {
                Ok(())
            } else {
                Err(Error::new(
                    Kind::NotFound,
                    "E-NO-LEASE",
                    format!("nobody in subnet {} holds {prefix}", self.name()),
                )
                .hint(format!("byway lease ls {}", self.name())))
            };
        };
        if member.addresses.iter().any(|a| prefix.contains(a)) {
            return Err(Error::new(
                Kind::Conflict,
                "E-LEASE-OWN",
                format!("{prefix} holds the own address of member {}", member.name),
            ));
        }
        self.regrant(me, &member, now, |g| g.leases.retain(|l| *l != prefix))
    }

    /// What the owner and admins do without being asked: renew grants past half their life, repeat a union of
    /// revocations after a fork, give a block to who lost one in a conflict.
    pub fn upkeep(&mut self, me: &Identity, now: u64) -> Result<()> {
        let resolved = self.records.resolve(now);
        let role = resolved.members.get(&me.peer).map(|m| m.role);
        let owner = role == Some(Role::Owner);
        if !matches!(role, Some(Role::Owner | Role::Admin)) || resolved.destroyed {
            return Ok(());
        }
        if owner {
            // Who left, was removed or ran out administers nothing; what it granted is granted anew.
            let gone = self.records.admins().into_iter().filter(|admin| !resolved.members.contains_key(admin));
            for admin in gone.collect::<Vec<_>>() {
                self.set_admin(me, admin, false, now)?;
            }
        }
        if self.records.forked() {
            let head = self.records.next_head(me.peer, now);
            self.issue(me, &Body::Head(head), now)?;
        }
        for (peer, member) in &resolved.members {
            // The owner's own place is nobody else's to renew.
            if *peer == self.records.genesis.owner && !owner {
                continue;
            }
            let life = member.grant.not_after.saturating_sub(member.grant.not_before);
            // The owner renews first; admins step in an eighth of a life later.
            let wait = if owner { life / 2 } else { life / 2 + life / 8 };
            if now >= member.grant.not_before.saturating_add(wait) {
                self.regrant(me, member, now, |_| {})?;
            } else if member.addresses.is_empty()
                && now >= member.grant.not_before.saturating_add(if owner { 2 } else { 60 })
            {
                let taken: Vec<IpNet> = resolved.members.values().flat_map(|m| m.leases.iter().copied()).collect();
                if let Ok(block) = self.records.pools().free_block(&taken, None) {
                    self.regrant(me, member, now, |g| {
                        g.leases = block.leases;
                        g.addresses = block.addresses;
                        g.leased_at = now;
                    })?;
                }
            }
        }
        self.requests.retain(|_, r| now < r.seen.saturating_add(REQUEST_LIFE));
        self.local.denied.retain(|_, until| now < *until);
        Ok(())
    }
}

/// A name no member or workload has: the asked one, or for a default one the next numbered.
fn free_member_name(resolved: &Resolved, wanted: &Name, is_default: bool) -> Result<Name> {
    let taken = |name: &Name| {
        resolved.members.values().any(|m| m.name == *name || m.workloads.iter().any(|(w, _)| w == name))
            || resolved.names.iter().any(|(n, ..)| n == name.as_str())
    };
    if !taken(wanted) {
        return Ok(wanted.clone());
    }
    if !is_default {
        return Err(Error::new(Kind::Conflict, "E-NAME-TAKEN", format!("the name {wanted} is taken in this subnet"))
            .hint("byway join … --name OTHER"));
    }
    Ok((2..).map(|n| wanted.numbered(n)).find(|n| !taken(n)).unwrap_or_else(|| wanted.clone()))
}

fn is_single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// Finds one peer by its ID or a unique beginning (past the common `12D3KooW`) or end of it.
pub fn match_peer(peers: impl Iterator<Item = PeerId>, text: &str) -> Option<PeerId> {
    if let Ok(peer) = text.parse::<PeerId>() {
        return peers.into_iter().find(|p| *p == peer);
    }
    if text.len() < 4 {
        return None;
    }
    let mut found = peers.filter(|p| {
        let id = p.to_string();
        id.starts_with(text) || id.ends_with(text) || id.get(8..).is_some_and(|tail| tail.starts_with(text))
    });
    let first = found.next();
    if found.next().is_some() { None } else { first }
}

/// A person's word, safe to echo.
pub fn printable(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    cut.escape_debug().to_string()
}

/// Whether an address is one of a member's own or of its workloads.
pub fn holds_address(member: &Member, address: IpAddr) -> bool {
    member.addresses.contains(&address) || member.workloads.iter().any(|(_, a)| a.contains(&address))
}
