//! What the owner and admins decide: who is admitted, renewed and removed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::error::{Code, Error, Hint, Kind, Result};
use super::find::{Named, find};
use super::id::{Name, PeerId, SubnetId};
pub use super::identity::Identity;
use super::join::Ask;
use super::local::Local;
use super::memo::Memo;
use super::record::{Body, Grant, MAX_SEATS, Revocation, Role, SHORT_LIFE, Seat, Term, Verified};
use super::resolve::{Member, Resolved};
use super::roll::Out;
use super::shared::Shared;
use super::source::Payer;
use super::subnet::{Absorbed, Records};

/// One subnet at this node: the shared records and this node's own side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The records, which all members replicate.
    pub records: Records,
    /// This node's own side, which no other peer is told.
    pub local: Shared<Local>,
    /// Joiners that asked by ID and wait; they are not kept over a restart, since they go on
    /// asking.
    pub requests: BTreeMap<PeerId, Request>,
    /// What was last found to follow from the records, so that it is not found out again.
    pub memo: Memo,
}

/// A request to join that waits for an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The joiner's question, which an approval answers.
    pub ask: Ask,
    /// The payer whose allowance the request counts against.
    pub payer: Payer,
    /// When it was first asked, in seconds since 1970.
    pub since: u64,
    /// When it was last asked: a joiner that stops asking is forgotten after 15 minutes.
    pub seen: u64,
}

/// How many requests of one subnet are kept at once.
pub const MAX_REQUESTS: usize = 256;
/// How long a request is kept that nobody repeats, and how long a denial lasts, in seconds.
pub const REQUEST_LIFE: u64 = 15 * 60;

impl Subnet {
    /// A subnet that nobody has asked to join yet.
    pub(super) fn new(records: Records, local: Local) -> Subnet {
        Subnet {
            records,
            local: Shared::new(local),
            requests: BTreeMap::new(),
            memo: Memo::default(),
        }
    }

    /// Signs a statement of this node's and takes it in.
    pub(super) fn issue(&mut self, me: &Identity, body: Body) -> Result<()> {
        let record =
            Verified::sign(self.records.id, body, &me.key).map_err(|_| would_be_refused())?;
        self.take_own(record)
    }

    pub(super) fn take_own(&mut self, record: Verified) -> Result<()> {
        match self.records.absorb(record) {
            Absorbed::New | Absorbed::Known => Ok(()),
            Absorbed::Parked | Absorbed::Refused => Err(would_be_refused()),
        }
    }

    /// The number of this node's seat, which its records repeat.
    pub(super) fn seat(&self, me: &Identity) -> Result<u64> {
        self.records
            .seat_of(me.peer)
            .ok_or_else(|| self.not_admin())
    }

    fn not_admin(&self) -> Error {
        let message = format!(
            "only the owner or an admin of subnet {} may do this",
            self.name()
        );
        Error::new(Kind::NotPermitted, Code::NotAdmin, message)
            .hint(Hint::MakeAdmin(self.name().clone()))
    }

    /// The owner as people know it.
    pub(super) fn owner_name(&self, resolved: &Resolved) -> String {
        let owner = self.records.genesis.owner;
        resolved
            .members
            .get(&owner)
            .map_or_else(|| owner.to_string(), |m| m.name.to_string())
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
        let owner = self.records.genesis.owner;
        if me.peer == owner || resolved.roll.is_admin(me.peer) {
            Ok(())
        } else {
            Err(self.not_admin())
        }
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
            Code::NotOwner,
            format!("only the owner of subnet {} may do this", self.name()),
        ))
    }

    /// Finds a member by peer ID, name, or a prefix of the ID; see [`find`](super::find). `resolved` is what follows at
    /// `now`.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-AMBIGUOUS`; `E-CLOCK` for one whose grant has not begun by this machine's clock.
    pub fn find_member(&self, resolved: &Resolved, text: &str, now: u64) -> Result<PeerId> {
        let members: Vec<Named<PeerId>> = resolved
            .members
            .iter()
            .map(|(peer, m)| Named::new(*peer, *peer, &m.name))
            .collect();
        let none = || {
            if let Some(error) = self.untimely(resolved, text, now) {
                return error;
            }
            Error::new(
                Kind::NotFound,
                Code::NoMember,
                format!("subnet {} has no member {}", self.name(), printable(text)),
            )
            .hint(Hint::ListMembers(self.name().clone()))
        };
        find(&members, text).map_err(|miss| miss.error(text, none))
    }

    /// The name of who is meant among those that were removed, while that is remembered and nobody let it in again.
    pub fn was_removed(&self, resolved: &Resolved, text: &str) -> Option<Name> {
        let named = |peer: PeerId| Some((peer, self.records.newest_grant(peer)?.name.clone()));
        let out: Vec<(PeerId, Name)> = resolved
            .roll
            .out
            .keys()
            .filter_map(|peer| named(*peer))
            .collect();
        let all: Vec<Named<PeerId>> = out
            .iter()
            .map(|(peer, name)| Named::new(*peer, *peer, name))
            .collect();
        let peer = find(&all, text).ok()?;
        out.into_iter()
            .find(|(removed, _)| *removed == peer)
            .map(|(_, name)| name)
    }

    /// What to say of somebody who is in, but not at this time: often it is the clock that is wrong.
    fn untimely(&self, resolved: &Resolved, text: &str, now: u64) -> Option<Error> {
        let absent = resolved
            .roll
            .members
            .iter()
            .filter(|(peer, _)| !resolved.members.contains_key(peer));
        let absent: Vec<Named<PeerId>> = absent
            .filter_map(|(peer, e)| Some(Named::new(*peer, *peer, &e.best()?.grant().name)))
            .collect();
        let peer = find(&absent, text).ok()?;
        let grant = resolved.roll.members.get(&peer)?.best()?.grant();
        let who = printable(text);
        Some(if now < grant.not_before {
            let off = grant.not_before.saturating_sub(now);
            let message = format!(
                "the grant of {who} begins in {off} s by this machine's clock: it is behind, or that of who granted is ahead"
            );
            Error::new(Kind::Failed, Code::Clock, message).hint(Hint::SetClock)
        } else {
            let past = now.saturating_sub(grant.not_after);
            let message = format!(
                "{who} is no member of {} any more: its grant ended {past} s ago, unless this machine's clock is ahead",
                self.name()
            );
            Error::new(Kind::NotFound, Code::NoMember, message)
                .hint(Hint::ListMembers(self.name().clone()))
        })
    }

    /// Finds who asks to join, as [`find_member`](Self::find_member) finds a member.
    ///
    /// # Errors
    /// `E-NO-REQUEST`, `E-AMBIGUOUS`.
    pub fn find_request(&self, text: &str) -> Result<PeerId> {
        let asking: Vec<Named<PeerId>> = self
            .requests
            .iter()
            .map(|(peer, r)| Named::new(*peer, *peer, &r.ask.name))
            .collect();
        let none = || {
            Error::new(
                Kind::NotFound,
                Code::NoRequest,
                format!(
                    "nobody called {} asks to join {}",
                    printable(text),
                    self.name()
                ),
            )
            .hint(Hint::ListRequests(self.name().clone()))
        };
        find(&asking, text).map_err(|miss| miss.error(text, none))
    }

    /// How long a grant of this term lasts, in seconds.
    fn life(&self, term: Term) -> u64 {
        let full = self.records.genesis.grant_life;
        if term == Term::Full {
            full
        } else {
            full.min(SHORT_LIFE)
        }
    }

    /// Admits who asked: a new grant with a free name and block. A current member is given what it has.
    ///
    /// # Errors
    /// `E-REMOVED` for who was removed by somebody else than this node or the owner, `E-NAME-TAKEN` for a name that was
    /// asked for, `E-POOL-FULL`, `E-NOT-IN-PART`, `E-ADDRESS-…`.
    pub fn admit(
        &mut self,
        me: &Identity,
        ask: &Ask,
        (role, term): (Role, Term),
        labels: &BTreeMap<String, String>,
        now: u64,
    ) -> Result<()> {
        let resolved = self.resolve(now);
        self.require_admin(me, &resolved)?;
        if resolved.members.contains_key(&ask.joiner) {
            self.requests.remove(&ask.joiner);
            return Ok(());
        }
        self.may_let_in(me, &resolved, ask.joiner)?;
        let name = free_member_name(&resolved, self.records.id, &ask.name, ask.name_is_default)?;
        let reserved = self
            .local
            .reserved
            .get(&ask.joiner)
            .cloned()
            .unwrap_or_default();
        // An address reserved for this peer becomes its own address.
        let wanted = ask
            .ip
            .or_else(|| reserved.iter().find(|p| is_single(p)).map(IpNet::addr));
        let mut block = self.block_for(me, &resolved, &reserved, wanted)?;
        self.local.reserved.remove(&ask.joiner);
        block.leases.extend(
            reserved
                .into_iter()
                .filter(|r| !block.leases.iter().any(|l| l.contains(r)))
                .collect::<Vec<_>>(),
        );
        let grant = Grant {
            subject: ask.joiner,
            data_key: ask.data_key,
            seal_key: ask.seal_key,
            name,
            role,
            generation: self.records.next_generation(ask.joiner),
            version: self.records.next_version(ask.joiner),
            seat: self.seat(me)?,
            addresses: block.addresses,
            leases: block.leases,
            not_before: now,
            not_after: now.saturating_add(self.life(term)),
            term,
            labels: labels.clone(),
        };
        self.issue(me, Body::Grant(grant))?;
        if role == Role::Admin {
            self.set_admin(me, ask.joiner, true, now)?;
        }
        self.requests.remove(&ask.joiner);
        self.local.denied.remove(&ask.joiner);
        Ok(())
    }

    /// Who was removed comes back by who removed it, or by the owner.
    fn may_let_in(&self, me: &Identity, resolved: &Resolved, joiner: PeerId) -> Result<()> {
        let owner = self.records.genesis.owner;
        match resolved.roll.out.get(&joiner) {
            Some(Out { by, .. }) if *by != me.peer && me.peer != owner => {
                let name = resolved
                    .members
                    .get(by)
                    .map_or_else(|| by.to_string(), |m| m.name.to_string());
                let message = format!(
                    "{name} removed this peer: only {name} or the owner may let it in again"
                );
                let hint = Hint::ApproveThere {
                    subnet: self.name().clone(),
                    joiner: joiner.short().to_string(),
                    by: name,
                };
                Err(Error::new(Kind::NotPermitted, Code::Removed, message).hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// Signs a member's grant anew with `change` applied: what the member holds now, whoever gave it.
    pub(super) fn regrant(
        &mut self,
        me: &Identity,
        member: &Member,
        now: u64,
        change: impl FnOnce(&mut Grant),
    ) -> Result<()> {
        let mut grant = Grant::clone(&member.grant);
        grant.name = member.name.clone();
        grant.leases = member.leases.clone();
        grant.addresses = member.addresses.clone();
        self.regrant_as(me, grant, now, change)
    }

    pub(super) fn regrant_as(
        &mut self,
        me: &Identity,
        mut grant: Grant,
        now: u64,
        change: impl FnOnce(&mut Grant),
    ) -> Result<()> {
        grant.seat = self.seat(me)?;
        grant.version = self.records.next_version(grant.subject);
        change(&mut grant);
        grant.not_before = now;
        grant.not_after = now.saturating_add(self.life(grant.term));
        self.issue(me, Body::Grant(grant))
    }

    /// Removes a member. What it had granted, revoked and registered as an admin is said anew.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-OWNER-STAYS`, `E-LEAVE` for this node itself.
    pub fn remove(&mut self, me: &Identity, member: PeerId, now: u64) -> Result<()> {
        let resolved = self.resolve(now);
        self.require_admin(me, &resolved)?;
        if member == self.records.genesis.owner {
            return Err(Error::new(
                Kind::Conflict,
                Code::OwnerStays,
                "the owner cannot be removed",
            )
            .hint(Hint::Destroy(self.name().clone())));
        }
        if member == me.peer {
            return Err(Error::new(
                Kind::Conflict,
                Code::Leave,
                "a member does not remove itself",
            )
            .hint(Hint::Leave(self.name().clone())));
        }
        self.adopt(me, member, &resolved, now)?;
        self.revoke(me, member)?;
        if me.peer == self.records.genesis.owner && self.records.head().seat(member).is_some() {
            let mut head = self.records.next_head(now);
            head.seats.retain(|s| s.admin != member);
            self.issue(me, Body::Head(head))?;
        }
        Ok(())
    }

    /// Ends every grant held of a peer.
    pub(super) fn revoke(&mut self, me: &Identity, subject: PeerId) -> Result<()> {
        let Some((generation, ends)) = self.records.last_grant(subject) else {
            return Ok(());
        };
        let seat = self.seat(me)?;
        self.issue(
            me,
            Body::Revocation(Revocation {
                subject,
                generation,
                ends,
                seat,
            }),
        )
    }

    /// Says anew what counts through an admin that is about to lose its seat, and what relied on it.
    pub(super) fn adopt(
        &mut self,
        me: &Identity,
        issuer: PeerId,
        resolved: &Resolved,
        now: u64,
    ) -> Result<()> {
        let Some(seat) = self.records.head().seat(issuer).cloned() else {
            return Ok(());
        };
        let pools = self.records.pools();
        let relies = |m: &Member| {
            m.issuer == issuer || m.leases.iter().any(|l| pools.within(*l, &seat.part))
        };
        let members: Vec<Arc<Member>> = resolved
            .members
            .values()
            .filter(|m| m.grant.subject != me.peer && relies(m))
            .cloned()
            .collect();
        for member in &members {
            self.regrant(me, member, now, |_| {})?;
        }
        let revoked: Vec<PeerId> = resolved
            .roll
            .out
            .iter()
            .filter(|(_, out)| out.by == issuer)
            .map(|(peer, _)| *peer)
            .collect();
        for subject in revoked {
            self.revoke(me, subject)?;
        }
        for (holder, names, released) in self.records.registered_by(issuer) {
            let names = names
                .into_iter()
                .filter(|n| resolved.holds(holder, n))
                .collect::<Vec<_>>();
            self.register(me, holder, |r| {
                r.names.extend(names);
                r.released.extend(released);
            })?;
        }
        Ok(())
    }

    /// Names or un-names an admin: the owner's head says who they are.
    ///
    /// # Errors
    /// `E-NOT-OWNER`, `E-OWNER-STAYS`, `E-ADMINS-MANY`.
    pub fn set_admin(
        &mut self,
        me: &Identity,
        member: PeerId,
        admin: bool,
        now: u64,
    ) -> Result<()> {
        self.require_owner(me)?;
        if member == me.peer {
            let message = "the owner is the owner: it has no other role";
            return Err(Error::new(Kind::Conflict, Code::OwnerStays, message));
        }
        let seated = self.records.head().seat(member).is_some();
        if seated == admin {
            return Ok(());
        }
        let resolved = self.resolve(now);
        if !admin {
            self.adopt(me, member, &resolved, now)?;
        }
        let mut head = self.records.next_head(now);
        if !admin {
            head.seats.retain(|s| s.admin != member);
            return self.issue(me, Body::Head(head));
        }
        if head.seats.len() >= MAX_SEATS {
            let message = format!("a subnet has at most {MAX_SEATS} admins");
            return Err(Error::new(Kind::Conflict, Code::AdminsMany, message));
        }
        let pools = self.records.pools();
        let part = pools.allot(&self.taken(&resolved), &head.seats, pools.part_size());
        head.seats.push(Seat {
            admin: member,
            since: head.number,
            part,
        });
        self.issue(me, Body::Head(head))
    }

    /// Requests that wait for a decision: whoever another admin has let in meanwhile waits no more.
    pub fn open_requests<'a>(
        &'a self,
        resolved: &'a Resolved,
    ) -> impl Iterator<Item = (&'a PeerId, &'a Request)> {
        self.requests
            .iter()
            .filter(|(peer, _)| !resolved.members.contains_key(peer))
    }

    /// Ends the subnet for everyone.
    ///
    /// # Errors
    /// `E-NOT-OWNER`.
    pub fn destroy(&mut self, me: &Identity, now: u64) -> Result<()> {
        self.require_owner(me)?;
        let mut head = self.records.next_head(now);
        head.destroyed = true;
        self.issue(me, Body::Head(head))
    }

    /// Replaces a member's labels.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`.
    pub fn label(
        &mut self,
        me: &Identity,
        member: PeerId,
        labels: &BTreeMap<String, String>,
        now: u64,
    ) -> Result<()> {
        let resolved = self.resolve(now);
        self.require_admin(me, &resolved)?;
        let Some(m) = resolved.members.get(&member) else {
            return Ok(());
        };
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
}

/// A name no member or workload has: the asked one, or for a default one the next numbered.
fn free_member_name(
    resolved: &Resolved,
    subnet: SubnetId,
    wanted: &Name,
    is_default: bool,
) -> Result<Name> {
    // A member's name rules all below it, so nobody else may hold one there.
    let taken = |name: &Name| {
        resolved.members.values().any(|m| m.name == *name) || resolved.is_claimed_at(name.as_str())
    };
    if !taken(wanted) {
        return Ok(wanted.clone());
    }
    if !is_default {
        return Err(Error::new(
            Kind::Conflict,
            Code::NameTaken,
            format!("the name {wanted} is taken in this subnet"),
        )
        .hint(Hint::JoinNamed(subnet)));
    }
    Ok(wanted.free(taken))
}

/// A record of this node's own that breaks a bound: a fault of this program.
pub(super) fn would_be_refused() -> Error {
    Error::new(
        Kind::Failed,
        Code::Record,
        "the record this command makes would be refused by the others",
    )
}

fn is_single(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// A person's word, safe to echo.
pub fn printable(text: &str) -> String {
    crate::text::short(text, 80)
}

/// Whether an address is one of a member's own or of its workloads.
pub fn holds_address(member: &Member, address: IpAddr) -> bool {
    member.addresses.contains(&address)
        || member.workloads.iter().any(|(_, a)| a.contains(&address))
}
