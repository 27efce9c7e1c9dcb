//! The verbs that change something, each decided on a copy and committed whole.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ed25519_dalek::SigningKey;
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::Core;
use crate::api::types::{Attached, Created, Done, Error, ErrorKind, InviteCreated, Response};
use crate::model::build::MTU;
use crate::model::host::{NetnsRef, Proto, ResolvConf};
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::join::{Invite, Issued};
use crate::model::local::{Map, Target, Workload};
use crate::model::members::{REQUEST_LIFE, Subnet, match_peer, printable};
use crate::model::publish::endpoint;
use crate::model::record::Role;
use crate::model::state::{Draft, Founding};
use crate::model::zone::RecordData;

/// A workload as it was found on this machine, before it has addresses.
#[derive(Debug, Clone)]
pub struct NewWorkload {
    /// Name asked for, or the default.
    pub name: Name,
    /// What it is.
    pub target: Target,
    /// Its namespace.
    pub netns: NetnsRef,
    /// End of the veth inside.
    pub inner_link: String,
    /// Where its resolver is written.
    pub resolv_conf: ResolvConf,
    /// Hardware address asked for.
    pub mac: Option<[u8; 6]>,
}

/// What `leave` came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// A membership: goodbye is said, forgetting follows.
    Said(SubnetId),
    /// A join that waited; it waits no more.
    Withdrawn,
    /// It was left before.
    Gone,
}

/// Checks a map's form and gives it a name.
///
/// # Errors
/// `E-PORT`, `E-FAMILY`.
pub fn prepare_map(
    proto: Proto,
    listen: IpAddr,
    port: u16,
    target: String,
    target_port: u16,
    name: Option<Name>,
    allow: Vec<IpNet>,
) -> Result<Map, Error> {
    let usage = |code: &str, message: String| Error::new(ErrorKind::Usage, code, message);
    if port == 0 || target_port == 0 {
        return Err(usage("E-PORT", "a port is a number from 1 to 65535".into()));
    }
    if let Ok(address) = target.parse::<IpAddr>()
        && address.is_ipv4() != listen.is_ipv4()
    {
        return Err(usage("E-FAMILY", format!("{listen} and {address} are of different families")));
    }
    if let Some(other) = allow.iter().find(|p| p.addr().is_ipv4() != listen.is_ipv4()) {
        return Err(usage("E-FAMILY", format!("--allow {other} is not of the family of {listen}")));
    }
    let family = if listen.is_ipv4() { "" } else { "6" };
    let default = format!("{proto}{family}-{port}").parse::<Name>().map_err(|e| usage("E-NAME", e.to_string()))?;
    Ok(Map { name: name.unwrap_or(default), proto, listen, port, target, target_port, allow })
}

fn done(message: impl Into<String>, changed: bool) -> Response {
    Response::Done(Done { message: message.into(), changed })
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Failed, "E-RANDOM", format!("read randomness: {e}")))?;
    Ok(bytes)
}

impl Core {
    fn save(&mut self, subnet: Subnet) -> Result<u64, Error> {
        let mut draft = Draft::default();
        draft.put(subnet);
        self.commit(draft, None)
    }

    /// `create`. Gives the answer with the one-use invite.
    ///
    /// # Errors
    /// See [`State::found`](crate::model::state::State::found).
    pub fn create(&mut self, mut founding: Founding) -> Result<Response, Error> {
        founding.salt = random()?;
        let now_ms = self.now_ms();
        let name = founding.name.clone();
        let mut subnet = self.state.found(founding, now_ms / 1000)?;
        subnet.set_endpoints(&self.state.me, &self.endpoints, now_ms)?;
        let (issued, text) = self.new_invite(&subnet, 1, 86_400_000, Role::Member, BTreeMap::new())?;
        subnet.local.invites.push(issued);
        let resolved = subnet.records.resolve(now_ms / 1000);
        let me = subnet.myself(&self.state.me, &resolved)?.clone();
        let created = Created {
            id: subnet.records.id,
            name: name.clone(),
            cidr4: subnet.records.pools().v4,
            cidr6: subnet.records.pools().v6,
            addresses: me.addresses.clone(),
            interface: subnet.local.interface.clone(),
            invite: text,
            member: me.name,
        };
        let mut draft = Draft::default();
        draft.put(subnet);
        let past = self.state.past.iter().filter(|p| p.name != name).cloned().collect();
        draft.remember(past);
        self.commit(draft, None)?;
        Ok(Response::Created(created))
    }

    fn new_invite(
        &self,
        subnet: &Subnet,
        uses: u32,
        expires_ms: u64,
        role: Role,
        labels: BTreeMap<String, String>,
    ) -> Result<(Issued, String), Error> {
        let expires = self.now().saturating_add((expires_ms / 1000).max(1));
        let mut invite = Invite {
            subnet: subnet.records.id,
            issuer: self.state.me.peer,
            secret: random()?,
            expires,
            addresses: vec![],
        };
        // A few of our addresses are enough to find us; the text stays short enough to paste.
        invite.addresses = self.endpoints.iter().take(6).cloned().collect();
        let key: SigningKey = invite.key();
        let issued = Issued {
            public: key.verifying_key().to_bytes(),
            uses,
            used: vec![],
            expires,
            role,
            labels,
            revoked: false,
        };
        Ok((issued, invite.to_text()))
    }

    /// `invite create`.
    ///
    /// # Errors
    /// `E-NOT-ADMIN`, `E-NOT-OWNER` for an admin's invite.
    pub fn invite_create(
        &mut self,
        text: &str,
        uses: u32,
        expires_ms: u64,
        role: Role,
        labels: BTreeMap<String, String>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.records.resolve(now);
        subnet.require_admin(&self.state.me, &resolved)?;
        if role != Role::Member {
            subnet.require_owner(&self.state.me)?;
        }
        if role == Role::Owner {
            return Err(Error::new(ErrorKind::Usage, "E-ROLE", "an invite is for a member or an admin"));
        }
        let (issued, invite) = self.new_invite(&subnet, uses.max(1), expires_ms, role, labels)?;
        let (id, expires, uses) = (issued.id(), issued.expires, issued.uses);
        // Spent invites of long ago tell nothing any more.
        subnet.local.invites.retain(|i| now < i.expires.saturating_add(7 * 86_400));
        subnet.local.invites.push(issued);
        self.save(subnet)?;
        Ok(Response::Invite(InviteCreated { id, invite, uses, expires }))
    }

    /// `invite revoke`.
    ///
    /// # Errors
    /// `E-NO-INVITE`.
    pub fn invite_revoke(&mut self, id: &str) -> Result<Response, Error> {
        // People paste the invite itself as well as its short name.
        let public = Invite::parse(id).ok().map(|i| i.key().verifying_key().to_bytes());
        let matches = |i: &Issued| public == Some(i.public) || (id.len() >= 4 && i.id().starts_with(id));
        let found = self.state.subnets.values().find(|s| s.local.invites.iter().any(matches)).cloned();
        let Some(mut subnet) = found else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "E-NO-INVITE",
                format!("no invite {} was issued here", printable(id)),
            )
            .hint("byway invite ls"));
        };
        let mut changed = false;
        for invite in subnet.local.invites.iter_mut().filter(|i| matches(i)) {
            changed |= !invite.revoked;
            invite.revoked = true;
        }
        self.save(subnet)?;
        Ok(done("invite revoked", changed))
    }

    /// `leave`: says goodbye, then removes every trace here. The caller tells the others before it calls
    /// [`Core::forget`].
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-OWNER-STAYS`.
    pub fn leave(&mut self, text: &str) -> Result<Leaving, Error> {
        // A subnet that is here goes before a join that waits under a like name.
        if let Some(id) = self.pending_join(text).filter(|_| self.state.find(text).is_err()) {
            self.drop_join(id)?;
            return Ok(Leaving::Withdrawn);
        }
        let mut subnet = match self.state.edit(text) {
            Ok(subnet) => subnet,
            Err(_) if self.state.find_past(text).is_some() => return Ok(Leaving::Gone),
            Err(error) => return Err(error.into()),
        };
        let me = self.state.me.clone();
        let resolved = subnet.records.resolve(self.now());
        if subnet.records.genesis.owner == me.peer && resolved.members.len() > 1 {
            return Err(Error::new(
                ErrorKind::Conflict,
                "E-OWNER-STAYS",
                format!("the owner cannot leave subnet {} while it has other members", subnet.name()),
            )
            .hint(format!("byway destroy {}   (ends the subnet for everyone)", subnet.name())));
        }
        let id = subnet.records.id;
        if resolved.members.contains_key(&me.peer) {
            subnet.say_goodbye(&me, self.now_ms())?;
            self.save(subnet)?;
        }
        Ok(Leaving::Said(id))
    }

    fn pending_join(&self, text: &str) -> Option<SubnetId> {
        let lower = text.to_ascii_lowercase();
        let named = |j: &&crate::model::local::PendingJoin| {
            (crate::model::id::is_id_prefix(&lower) && j.subnet.to_string().starts_with(&lower))
                || j.alias.as_ref().is_some_and(|a| a.as_str() == lower)
        };
        self.state.joins.values().find(named).map(|j| j.subnet)
    }

    /// Removes a subnet from this node and remembers its name.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn forget(&mut self, id: SubnetId) -> Result<u64, Error> {
        let draft = self.state.forget(id);
        self.commit(draft, None)
    }

    /// `destroy`: the owner's head ends the subnet; forgetting follows once the others were told.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-NOT-OWNER`.
    pub fn destroy(&mut self, text: &str) -> Result<Option<SubnetId>, Error> {
        let mut subnet = match self.state.edit(text) {
            Ok(subnet) => subnet,
            Err(_) if self.state.find_past(text).is_some() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        subnet.destroy(&self.state.me.clone(), self.now())?;
        let id = subnet.records.id;
        self.save(subnet)?;
        Ok(Some(id))
    }

    /// `up` and `down`; without a subnet all of them.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn set_up(&mut self, text: Option<&str>, up: bool) -> Result<Response, Error> {
        let mut chosen: Vec<Subnet> = match text {
            Some(text) => vec![self.state.edit(text)?],
            None => self.state.subnets.values().cloned().collect(),
        };
        let mut draft = Draft::default();
        let mut changed = false;
        for subnet in &mut chosen {
            changed |= subnet.local.up != up;
            subnet.local.up = up;
            draft.put(subnet.clone());
        }
        self.commit(draft, None)?;
        let names: Vec<&str> = chosen.iter().map(|s| s.name().as_str()).collect();
        Ok(done(format!("{} {}", names.join(", "), if up { "up" } else { "down" }), changed))
    }

    fn on_member(
        &mut self,
        text: &str,
        member: &str,
        act: impl FnOnce(&mut Subnet, &crate::model::members::Identity, PeerId, u64) -> crate::model::error::Result<()>,
    ) -> Result<Name, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.records.resolve(now);
        let peer = subnet.find_member(&resolved, member)?;
        let name = resolved.members.get(&peer).map(|m| m.name.clone()).unwrap_or_else(|| Name::from_host("member"));
        act(&mut subnet, &self.state.me.clone(), peer, now)?;
        self.save(subnet)?;
        Ok(name)
    }

    /// `member approve` and `member deny`.
    ///
    /// # Errors
    /// `E-NO-REQUEST`, `E-NOT-ADMIN`, `E-POOL-FULL`.
    pub fn decide_request(&mut self, text: &str, who: &str, approve: bool) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let now = self.now();
        let resolved = subnet.records.resolve(now);
        subnet.require_admin(&self.state.me, &resolved)?;
        let by_name = || {
            let mut found =
                subnet.requests.iter().filter(|(_, r)| r.ask.name.as_str().eq_ignore_ascii_case(who)).map(|(p, _)| *p);
            let first = found.next();
            if found.next().is_some() { None } else { first }
        };
        let peer = match_peer(subnet.requests.keys().copied(), who).or_else(by_name);
        let Some(request) = peer.and_then(|p| subnet.requests.get(&p).cloned()) else {
            // Approving twice is no error.
            if approve && subnet.find_member(&resolved, who).is_ok() {
                return Ok(done(format!("{} is a member already", printable(who)), false));
            }
            return Err(Error::new(
                ErrorKind::NotFound,
                "E-NO-REQUEST",
                format!("nobody called {} asks to join {}", printable(who), subnet.name()),
            )
            .hint(format!("byway member requests {}", subnet.name())));
        };
        let me = self.state.me.clone();
        if approve {
            subnet.admit(&me, &request.ask, Role::Member, &BTreeMap::new(), now)?;
        } else {
            subnet.requests.remove(&request.ask.joiner);
            subnet.local.denied.insert(request.ask.joiner, now.saturating_add(REQUEST_LIFE));
        }
        self.save(subnet)?;
        let word = if approve { "approved" } else { "denied" };
        Ok(done(format!("{word} {} ({})", request.ask.name, request.ask.joiner), true))
    }

    /// `member remove`.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NOT-ADMIN`, `E-OWNER-STAYS`.
    pub fn member_remove(&mut self, text: &str, member: &str) -> Result<Response, Error> {
        let name = self.on_member(text, member, |s, me, peer, now| s.remove(me, peer, now))?;
        Ok(done(format!("removed {name}"), true))
    }

    /// `member role`.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NOT-OWNER`.
    pub fn member_role(&mut self, text: &str, member: &str, role: Role) -> Result<Response, Error> {
        if role == Role::Owner {
            return Err(Error::new(
                ErrorKind::Usage,
                "E-ROLE",
                "a subnet has one owner, its founder; roles to give are member and admin",
            ));
        }
        let name = self.on_member(text, member, |s, me, peer, now| s.set_admin(me, peer, role == Role::Admin, now))?;
        Ok(done(format!("{name} is {} now", if role == Role::Admin { "an admin" } else { "a member" }), true))
    }

    /// `member label`: an empty value takes a label away.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NOT-ADMIN`.
    pub fn member_label(
        &mut self,
        text: &str,
        member: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Response, Error> {
        let name = self.on_member(text, member, |s, me, peer, now| s.label(me, peer, labels, now))?;
        Ok(done(format!("labelled {name}"), true))
    }

    /// `lease add` (one entry) and `lease import` (a whole routing table): all or nothing.
    ///
    /// # Errors
    /// `E-NO-MEMBER`, `E-NOT-ADMIN`, `E-LEASE-OUTSIDE`, `E-LEASE-TAKEN`.
    pub fn lease_add(&mut self, text: &str, entries: &[(IpNet, PeerId)]) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let changed = subnet.lease(&self.state.me.clone(), entries, self.now())?;
        self.save(subnet)?;
        Ok(done(
            format!(
                "{} leased",
                if entries.len() == 1 { "1 prefix".to_owned() } else { format!("{} prefixes", entries.len()) }
            ),
            changed,
        ))
    }

    /// The peer a lease goes to: a member by name or ID, any full peer ID, or this node.
    ///
    /// # Errors
    /// `E-NO-MEMBER`.
    pub fn lease_owner(&self, text: &str, member: Option<&str>) -> Result<PeerId, Error> {
        let subnet = self.state.find(text)?;
        let Some(member) = member else { return Ok(self.state.me.peer) };
        match member.parse::<PeerId>() {
            Ok(peer) => Ok(peer),
            Err(_) => Ok(subnet.find_member(&subnet.records.resolve(self.now()), member)?),
        }
    }

    /// `lease rm`.
    ///
    /// # Errors
    /// `E-NO-LEASE`, `E-NOT-ADMIN`, `E-LEASE-OWN`.
    pub fn lease_rm(&mut self, text: &str, prefix: IpNet) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        subnet.unlease(&self.state.me.clone(), prefix, self.now())?;
        self.save(subnet)?;
        Ok(done(format!("{prefix} given back"), true))
    }

    /// `attach`: gives the answer; the kernel follows the View.
    ///
    /// # Errors
    /// See [`Subnet::attach`].
    pub fn attach(&mut self, text: &str, new: NewWorkload, ip: Option<IpAddr>) -> Result<Attached, Error> {
        let mut subnet = self.state.edit(text)?;
        let elsewhere = self.state.subnets.values().any(|s| {
            s.records.id != subnet.records.id
                && s.local.workloads.iter().any(|w| w.netns == new.netns && w.inner_link == new.inner_link)
        });
        if elsewhere {
            return Err(Error::new(
                ErrorKind::Conflict,
                "E-ATTACHED",
                format!("{} has a link {} of another subnet", new.name, new.inner_link),
            ));
        }
        let mut hash = Sha256::new();
        hash.update(subnet.records.id.0);
        hash.update(self.state.me.peer.0);
        hash.update(new.name.as_str());
        let tail: String = hash.finalize().iter().take(5).map(|b| format!("{b:02x}")).collect();
        let workload = Workload {
            name: new.name,
            target: new.target,
            netns: new.netns,
            host_link: format!("bwv{tail}"),
            inner_link: new.inner_link,
            addresses: vec![],
            resolv_conf: new.resolv_conf,
            mac: new.mac,
            since: 0,
        };
        let workload = subnet.attach(&self.state.me.clone(), workload, ip, self.now_ms())?;
        let resolved = subnet.records.resolve(self.now());
        let gateways = subnet.myself(&self.state.me, &resolved)?.addresses.clone();
        let attached = Attached {
            workload: workload.name.clone(),
            subnet: subnet.name().clone(),
            addresses: workload.addresses.clone(),
            interface: workload.inner_link.clone(),
            mtu: MTU,
            dns: gateways,
            resolver: workload.resolv_conf != ResolvConf::None,
        };
        self.save(subnet)?;
        Ok(attached)
    }

    /// `detach`; without a subnet the workload is looked for in all of them.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`, `E-AMBIGUOUS`.
    pub fn detach(&mut self, workload: &str, subnet: Option<&str>) -> Result<Response, Error> {
        let lower = workload.to_ascii_lowercase();
        let named =
            |s: &&Subnet| s.local.workloads.iter().any(|w| w.name.as_str() == lower || w.target.text() == workload);
        let candidates: Vec<Subnet> = match subnet {
            Some(text) => vec![self.state.edit(text)?],
            None => self.state.subnets.values().filter(named).cloned().collect(),
        };
        if candidates.len() > 1 {
            return Err(Error::new(
                ErrorKind::Usage,
                "E-AMBIGUOUS",
                format!("{} is attached to several subnets", printable(workload)),
            )
            .hint("byway detach WORKLOAD --subnet SUBNET"));
        }
        let Some(mut subnet) = candidates.into_iter().next() else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "E-NO-WORKLOAD",
                format!("no workload {} here", printable(workload)),
            )
            .hint("byway workload ls"));
        };
        let by_target = subnet.local.workloads.iter().find(|w| w.target.text() == workload).map(|w| w.name.to_string());
        let name = if subnet.local.workloads.iter().any(|w| w.name.as_str() == lower) {
            lower
        } else {
            by_target.unwrap_or(lower)
        };
        let gone = subnet.detach(&self.state.me.clone(), &name, self.now_ms())?;
        self.save(subnet)?;
        Ok(done(format!("detached {}", gone.name), true))
    }

    /// A workload whose namespace died: name and addresses are free again.
    pub fn workload_died(&mut self, subnet: SubnetId, name: &Name) {
        let Some(mut copy) = self.state.subnets.get(&subnet).cloned() else { return };
        if copy.detach(&self.state.me.clone(), name.as_str(), self.now_ms()).is_ok() {
            tracing::info!(workload = %name, "namespace is gone, detached");
            if let Err(error) = self.save(copy) {
                tracing::warn!(%error, workload = %name, "could not save that it is gone");
            }
        }
    }

    /// `dns add`.
    ///
    /// # Errors
    /// See [`Subnet::dns_add`].
    pub fn dns_add(&mut self, text: &str, name: &str, data: &[RecordData], ttl: u32) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        subnet.dns_add(&self.state.me.clone(), name, data, ttl, self.now_ms())?;
        let full = format!("{}.{}", subnet.relative(name), subnet.records.genesis.domain);
        self.save(subnet)?;
        Ok(done(format!("added {full}"), true))
    }

    /// `dns rm`.
    ///
    /// # Errors
    /// `E-NO-NAME`.
    pub fn dns_rm(&mut self, text: &str, name: &str, kind: Option<&str>) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let count = subnet.dns_rm(&self.state.me.clone(), name, kind, self.now_ms())?;
        self.save(subnet)?;
        Ok(done(format!("removed {count} record{}", if count == 1 { "" } else { "s" }), true))
    }

    /// `map add`.
    ///
    /// # Errors
    /// See [`Subnet::map_add`].
    pub fn map_add(&mut self, text: &str, map: Map) -> Result<(), Error> {
        let mut subnet = self.state.edit(text)?;
        let others: Vec<Map> = self.state.subnets.values().flat_map(|s| s.local.maps.iter().cloned()).collect();
        subnet.map_add(&self.state.me.clone(), map, &others, self.now())?;
        self.save(subnet).map(drop)
    }

    /// `map rm`, by name or by protocol and listening address.
    ///
    /// # Errors
    /// `E-NO-MAP`.
    pub fn map_rm(
        &mut self,
        text: &str,
        name: Option<&str>,
        key: Option<(Proto, IpAddr, u16)>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let matches = |m: &Map| match (name, key) {
            (Some(name), _) => m.name.as_str().eq_ignore_ascii_case(name),
            (None, Some(key)) => (m.proto, m.listen, m.port) == key,
            (None, None) => false,
        };
        let Some(place) = subnet.local.maps.iter().position(matches) else {
            let what = name
                .map(printable)
                .or_else(|| key.map(|(p, a, port)| format!("{p} {}", endpoint(a, port))))
                .unwrap_or_default();
            return Err(Error::new(
                ErrorKind::NotFound,
                "E-NO-MAP",
                format!("subnet {} has no map {what} here", subnet.name()),
            )
            .hint("byway map ls"));
        };
        let gone = subnet.local.maps.remove(place);
        self.save(subnet)?;
        Ok(done(format!("removed map {}", gone.name), true))
    }
}
