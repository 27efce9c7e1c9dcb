//! Which prefixes of the pools are whose: who may give what, and how it is given and taken back.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::{Code, Error, Hint, Kind, Result};
use super::id::PeerId;
use super::ipam::{Block, Prefixes, overlaps};
use super::members::{Identity, Subnet};
use super::record::{MAX_LEASES, Term};
use super::resolve::Resolved;
use super::roll::Granted;

impl Subnet {
    /// Prefixes that are somebody's, or kept for somebody: also of members whose grant has run out and may be renewed.
    pub(super) fn taken(&self, resolved: &Resolved) -> Vec<IpNet> {
        let away = resolved
            .roll
            .members
            .iter()
            .filter(|(peer, _)| !resolved.members.contains_key(peer));
        let away = away.filter_map(|(_, entry)| entry.best().map(super::roll::Granted::grant));
        let away = away
            .filter(|g| g.term == Term::Full)
            .flat_map(|g| g.leases.iter().copied());
        let held = resolved
            .members
            .values()
            .flat_map(|m| m.leases.iter().copied());
        held.chain(away)
            .chain(self.local.reserved.values().flatten().copied())
            .collect()
    }

    /// Whether this node may give block `index`: an admin those of its part, the owner those of nobody's.
    pub(super) fn may_give(&self, me: &Identity) -> impl Fn(u32) -> bool + use<'_> {
        let part = self.records.head().seat(me.peer).map(|s| s.part.as_slice());
        let seats = self.records.seats();
        move |index| match part {
            Some(part) => part.iter().any(|b| b.contains(index)),
            None => !seats
                .iter()
                .flat_map(|s| &s.part)
                .any(|b| b.contains(index)),
        }
    }

    /// A free block for a member, or why there is none.
    pub(super) fn block_for(
        &self,
        me: &Identity,
        resolved: &Resolved,
        reserved: &[IpNet],
        wanted: Option<IpAddr>,
    ) -> Result<Block> {
        let owner = me.peer == self.records.genesis.owner;
        let pools = self.records.pools();
        if let Some(address) = wanted.filter(|a| !owner && !pools.is_given(*a, self.may_give(me))) {
            return Err(self.not_in_part(resolved, &address.to_string()));
        }
        let mut taken = self.taken(resolved);
        taken.retain(|p| !reserved.contains(p));
        // What was typed may lie in a part of somebody's; what is picked never does.
        let anywhere = owner && wanted.is_some();
        let give = self.may_give(me);
        pools.free_block(&taken, wanted, |index| anywhere || give(index)).map_err(|error| {
            if error.code != Code::PoolFull || owner {
                return error;
            }
            let message = format!(
                "this admin's part of the pool is full; the owner {} allots more when it is online",
                self.owner_name(resolved)
            );
            Error::new(Kind::Conflict, Code::PoolFull, message).hint(Hint::ListLeases(self.name().clone()))
        })
    }

    pub(super) fn not_in_part(&self, resolved: &Resolved, what: &str) -> Error {
        let owner = self.owner_name(resolved);
        let message = format!(
            "{what} is not in this admin's part of the pool: only the owner {owner} may give it"
        );
        Error::new(Kind::Conflict, Code::NotInPart, message).hint(Hint::AskForAddress)
    }

    /// Gives `prefixes` to members, or keeps them for peers that are none yet: all or nothing.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-LEASE-OUTSIDE`, `E-LEASE-TAKEN`.
    pub fn lease(&mut self, me: &Identity, entries: &[(IpNet, PeerId)], now: u64) -> Result<bool> {
        let resolved = self.resolve(now);
        self.require_admin(me, &resolved)?;
        let pools = self.records.pools();
        let mut fresh: BTreeMap<PeerId, Vec<IpNet>> = BTreeMap::new();
        let mut held = self.holders(&resolved);
        for (prefix, owner) in entries {
            if *prefix == prefix.trunc() && pools.covers(*prefix) && !self.may_lease(me, *prefix) {
                return Err(self.not_in_part(&resolved, &prefix.to_string()));
            }
            if *prefix != prefix.trunc() || !pools.covers(*prefix) {
                return Err(Error::new(
                    Kind::Conflict,
                    Code::LeaseOutside,
                    format!("{prefix} is no prefix of subnet {}'s pools", self.name()),
                ));
            }
            match held.overlapping(*prefix) {
                Some((lease, holder)) if holder == *owner && lease.contains(prefix) => {}
                Some((lease, holder)) => {
                    let name = resolved
                        .members
                        .get(&holder)
                        .map_or_else(|| holder.to_string(), |m| m.name.to_string());
                    return Err(Error::new(
                        Kind::Conflict,
                        Code::LeaseTaken,
                        format!("{prefix} overlaps {lease}, which is leased to {name}"),
                    ));
                }
                None => {
                    held.insert(*prefix, *owner);
                    fresh.entry(*owner).or_default().push(*prefix);
                }
            }
        }
        self.check_number(&fresh, &resolved)?;
        let changed = !fresh.is_empty();
        for (owner, prefixes) in fresh {
            match resolved.members.get(&owner) {
                Some(member) => self.regrant(me, member, now, |g| g.leases.extend(prefixes))?,
                None => self
                    .local
                    .reserved
                    .entry(owner)
                    .or_default()
                    .extend(prefixes),
            }
        }
        Ok(changed)
    }

    /// The prefixes that are held or are to be held, each with its holder.
    fn holders(&self, resolved: &Resolved) -> Prefixes<PeerId> {
        let leased = resolved
            .members
            .iter()
            .flat_map(|(p, m)| m.leases.iter().map(move |l| (*l, *p)));
        let reserved = self
            .local
            .reserved
            .iter()
            .flat_map(|(p, leases)| leases.iter().map(move |l| (*l, *p)));
        let mut held = Prefixes::default();
        leased
            .chain(reserved)
            .for_each(|(lease, peer)| held.insert(lease, peer));
        held
    }

    /// Refuses more leases for one member than a grant has room for.
    fn check_number(
        &self,
        fresh: &BTreeMap<PeerId, Vec<IpNet>>,
        resolved: &Resolved,
    ) -> Result<()> {
        for (owner, prefixes) in fresh {
            let before = resolved.members.get(owner).map_or_else(
                || self.local.reserved.get(owner).map_or(0, Vec::len),
                |member| member.grant.leases.len(),
            );
            // Two places are left for the block a peer gets when it joins.
            if before.saturating_add(prefixes.len()).saturating_add(2) > MAX_LEASES {
                return Err(Error::new(
                    Kind::Conflict,
                    Code::LeaseMany,
                    format!("one member holds at most {} leases", MAX_LEASES - 2),
                ));
            }
        }
        Ok(())
    }

    fn may_lease(&self, me: &Identity, prefix: IpNet) -> bool {
        let seat = self.records.head().seat(me.peer);
        me.peer == self.records.genesis.owner
            || seat.is_some_and(|s| self.records.pools().within(prefix, &s.part))
    }

    /// Whether nobody holds or is to hold anything of a prefix, though somebody could: `Ok(false)`, for nothing was taken back.
    ///
    /// # Errors
    /// `E-NO-LEASE` where the prefix is a part of a lease or around one, or nobody can hold it.
    fn holds_nobody(&self, prefix: IpNet, resolved: &Resolved) -> Result<bool> {
        let refuse = |message: String| {
            Err(Error::new(Kind::NotFound, Code::NoLease, message)
                .hint(Hint::ListLeases(self.name().clone())))
        };
        let held = resolved
            .members
            .values()
            .flat_map(|m| m.leases.iter().map(move |l| (m.name.to_string(), *l)));
        let reserved = self
            .local
            .reserved
            .iter()
            .flat_map(|(peer, all)| all.iter().map(|l| (peer.short(), *l)));
        if let Some((who, lease)) = held
            .chain(reserved)
            .find(|(_, lease)| overlaps(*lease, prefix))
        {
            return refuse(format!(
                "nobody holds {prefix} in subnet {}: {who} holds {lease}",
                self.name()
            ));
        }
        // Of what may be leased nothing tells whether it ever was.
        if !self
            .records
            .prefixes()
            .iter()
            .any(|pool| pool.contains(&prefix))
        {
            return refuse(format!(
                "{prefix} is no part of subnet {}: nobody ever held it",
                self.name()
            ));
        }
        Ok(false)
    }

    /// Keeps a prefix no longer for peers that are no members yet, or for one of them; whether it was kept.
    fn unreserve(&mut self, prefix: IpNet, from: Option<PeerId>) -> bool {
        let mut found = false;
        self.local.reserved.retain(|peer, leases| {
            let before = leases.len();
            leases.retain(|l| *l != prefix || from.is_some_and(|from| from != *peer));
            found |= leases.len() != before;
            !leases.is_empty()
        });
        found
    }

    /// Takes a lease back, from a member where one is named; whether anybody held it. The block that holds the member's own
    /// address stays, and what the owner gave only the owner takes back.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-NOT-OWNER`, `E-NO-LEASE`, `E-LEASE-OWN`.
    pub fn unlease(
        &mut self,
        me: &Identity,
        prefix: IpNet,
        from: Option<PeerId>,
        now: u64,
    ) -> Result<bool> {
        let resolved = self.resolve(now);
        self.require_admin(me, &resolved)?;
        let holder = resolved
            .members
            .values()
            .find(|m| m.leases.contains(&prefix))
            .cloned();
        if let (Some(from), Some(holder)) = (from, &holder)
            && from != holder.grant.subject
        {
            let name = resolved
                .members
                .get(&from)
                .map_or_else(|| from.short(), |m| m.name.to_string());
            let message = format!(
                "{name} does not hold {prefix} in subnet {}: {} does",
                self.name(),
                holder.name
            );
            return Err(Error::new(Kind::NotFound, Code::NoLease, message)
                .hint(Hint::ListLeases(self.name().clone())));
        }
        let Some(member) = holder else {
            return if self.unreserve(prefix, from) {
                Ok(true)
            } else {
                self.holds_nobody(prefix, &resolved)
            };
        };
        if member.addresses.iter().any(|a| prefix.contains(a)) {
            return Err(Error::new(
                Kind::Conflict,
                Code::LeaseOwn,
                format!("{prefix} holds the own address of member {}", member.name),
            ));
        }
        let owner = self.records.genesis.owner;
        let by_owner = |g: &Granted| g.issuer == owner && g.grant().leases.contains(&prefix);
        let entry = resolved.roll.members.get(&member.grant.subject);
        if me.peer != owner && entry.is_some_and(|e| e.grants().iter().any(by_owner)) {
            let name = self.owner_name(&resolved);
            let message =
                format!("{prefix} was leased by the owner {name}: only the owner takes it back");
            return Err(Error::new(Kind::NotPermitted, Code::NotOwner, message));
        }
        self.regrant(me, &member, now, |g| g.leases.retain(|l| *l != prefix))?;
        Ok(true)
    }
}
