//! The verbs that only look.

use std::net::IpAddr;

use super::Core;
use crate::api::types::{
    DnsInfo, Error, ErrorKind, InviteInfo, JoinRequestInfo, LeaseInfo, LinkInfo, MapInfo,
    MemberInfo, SubnetInfo, SubnetState, WorkloadInfo,
};
use crate::model::build::{MTU, NAME_TTL};
use crate::model::error::Code;
use crate::model::followed::{Away, Why};
use crate::model::host::{WorkloadConfig, host_mac, inner_mac};
use crate::model::id::{Name, PeerId};
use crate::model::join::fingerprint;
use crate::model::local::{Local, Map, PendingJoin};
use crate::model::mac;
use crate::model::members::Subnet;
use crate::model::record::{Admission, NameEntry, Role, Term};
use crate::model::resolve::Resolved;
use crate::model::workload::{Target, Workload};
use crate::model::zone::RecordData;

/// An answer as text: `10.0.0.1`, `web`, `"text"`, `10 5 80 web`.
pub fn value_text(data: &RecordData) -> String {
    match data {
        RecordData::Address(address) => address.to_string(),
        RecordData::Cname(name) => name.clone(),
        RecordData::Txt(text) => text.clone(),
        RecordData::Srv {
            priority,
            weight,
            port,
            target,
        } => format!("{priority} {weight} {port} {target}"),
    }
}

/// What is known of a subnet before it let this node in: its ID.
fn pending_info(join: &PendingJoin) -> SubnetInfo {
    let owner = join.invite.as_ref().map_or(PeerId([0; 32]), |i| i.issuer);
    SubnetInfo {
        id: join.subnet,
        name: join.shown(),
        state: if join.refused.is_some() {
            SubnetState::Refused
        } else {
            SubnetState::Pending
        },
        role: Role::Member,
        cidr4: None,
        cidr6: None,
        block4: 0,
        domain: String::new(),
        admission: Admission::Approve,
        owner,
        interface: String::new(),
        mtu: MTU,
        head: 0,
        host: join.host.clone(),
        addresses: vec![],
        members: vec![],
        leases: vec![],
        routes: vec![],
        names: vec![],
        maps: vec![],
    }
}

impl Core {
    /// State of one membership.
    pub fn subnet_state(&self, subnet: &Subnet, resolved: &Resolved) -> SubnetState {
        if resolved.destroyed || !resolved.members.contains_key(&self.state.me.peer) {
            SubnetState::Removed
        } else if subnet.local.up {
            SubnetState::Ready
        } else {
            SubnetState::Down
        }
    }

    /// The link of a subnet on this machine; empty where there is none, since it is down or this node is no member of it.
    pub fn interface(&self, subnet: &Subnet, resolved: &Resolved) -> String {
        let there = self.subnet_state(subnet, resolved) == SubnetState::Ready;
        if there {
            subnet.local.interface.clone()
        } else {
            String::new()
        }
    }

    /// `subnet ls`: joined ones, and those whose join waits for an answer.
    pub fn subnets(&self) -> Vec<SubnetInfo> {
        let joined = self.state.subnets.values().map(|s| self.subnet_info(s));
        let away = self
            .state
            .joins
            .values()
            .filter(|join| !self.state.subnets.contains_key(&join.subnet));
        let mut all: Vec<SubnetInfo> = joined.chain(away.map(pending_info)).collect();
        all.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        all
    }

    /// Answers `subnet show`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn subnet_show(&self, text: &str) -> Result<SubnetInfo, Error> {
        let id = self.state.find_joined_or_waiting(text)?;
        match (self.state.subnets.get(&id), self.state.joins.get(&id)) {
            (None, Some(join)) => Ok(pending_info(join)),
            _ => Ok(self.subnet_info(self.state.find(&id.to_string())?)),
        }
    }

    fn subnet_info(&self, subnet: &Subnet) -> SubnetInfo {
        let resolved = subnet.resolve(self.now());
        let genesis = &subnet.records.genesis;
        let mine = resolved.members.get(&self.state.me.peer);
        SubnetInfo {
            id: subnet.records.id,
            name: subnet.name().clone(),
            state: self.subnet_state(subnet, &resolved),
            role: mine.map_or(Role::Member, |m| m.role),
            cidr4: genesis.cidr4,
            cidr6: subnet.records.pools().v6,
            block4: genesis.block4,
            domain: genesis.domain.clone(),
            admission: genesis.admission,
            owner: genesis.owner,
            interface: self.interface(subnet, &resolved),
            mtu: MTU,
            head: resolved.head,
            host: subnet.local.host.clone(),
            addresses: mine.map(|m| m.addresses.clone()).unwrap_or_default(),
            members: self.member_infos(&resolved),
            leases: self.lease_infos(subnet, &resolved),
            routes: vec![],
            names: self.dns_infos(subnet, &resolved),
            maps: self.map_infos(subnet, &resolved, |_| true),
        }
    }

    fn member_infos(&self, resolved: &Resolved) -> Vec<MemberInfo> {
        let mut members: Vec<MemberInfo> = resolved
            .members
            .iter()
            .map(|(peer, m)| MemberInfo {
                peer_id: *peer,
                name: m.name.clone(),
                role: m.role,
                addresses: m.addresses.clone(),
                leases: m.leases.clone(),
                generation: m.grant.generation,
                expires: m.grant.not_after,
                labels: m.grant.labels.clone(),
                me: *peer == self.state.me.peer,
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    /// Answers `member ls`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn members(&self, text: &str) -> Result<Vec<MemberInfo>, Error> {
        Ok(self.member_infos(&self.state.find(text)?.resolve(self.now())))
    }

    /// Answers `member requests`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-NOT-ADMIN`.
    pub fn requests(&self, text: &str) -> Result<Vec<JoinRequestInfo>, Error> {
        let subnet = self.state.find(text)?;
        let resolved = subnet.resolve(self.now());
        subnet.require_admin(&self.state.me, &resolved)?;
        let info = |(peer, r): (&_, &crate::model::members::Request)| JoinRequestInfo {
            peer_id: *peer,
            name: r.ask.name.clone(),
            fingerprint: fingerprint(*peer),
            since: r.since,
        };
        Ok(subnet.open_requests(&resolved).map(info).collect())
    }

    fn lease_infos(&self, subnet: &Subnet, resolved: &Resolved) -> Vec<LeaseInfo> {
        let held = resolved.members.iter().flat_map(|(peer, m)| {
            m.leases.iter().map(move |prefix| LeaseInfo {
                prefix: *prefix,
                peer_id: *peer,
                member: m.name.clone(),
            })
        });
        let reserved = subnet.local.reserved.iter().flat_map(|(peer, leases)| {
            leases.iter().map(move |prefix| LeaseInfo {
                prefix: *prefix,
                peer_id: *peer,
                member: Name::from_host("reserved"),
            })
        });
        let mut all: Vec<LeaseInfo> = held.chain(reserved).collect();
        all.sort_by_key(|l| l.prefix);
        all
    }

    /// Answers `lease ls`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn leases(&self, text: &str) -> Result<Vec<LeaseInfo>, Error> {
        let subnet = self.state.find(text)?;
        Ok(self.lease_infos(subnet, &subnet.resolve(self.now())))
    }

    fn dns_infos(&self, subnet: &Subnet, resolved: &Resolved) -> Vec<DnsInfo> {
        let domain = &subnet.records.genesis.domain;
        let mut all = Vec::new();
        let mut add = |name: String, data: &RecordData, ttl: u32, source: String| {
            let name = format!("{name}.{domain}");
            all.push(DnsInfo {
                name,
                r#type: data.kind().into(),
                value: value_text(data),
                ttl,
                source,
            });
        };
        for (peer, member) in &resolved.members {
            for address in &member.addresses {
                add(
                    member.name.to_string(),
                    &RecordData::Address(*address),
                    NAME_TTL,
                    "member".into(),
                );
            }
            for (name, addresses) in &member.workloads {
                // A name that is another's, or nobody's yet, is answered below the member's own.
                let flat = resolved.holds(*peer, name.as_str());
                let shown = if flat {
                    name.to_string()
                } else {
                    format!("{name}.{}", member.name)
                };
                for address in addresses {
                    add(
                        shown.clone(),
                        &RecordData::Address(*address),
                        NAME_TTL,
                        "workload".into(),
                    );
                }
            }
        }
        for (by, NameEntry { name, data, ttl }) in resolved.names() {
            let source = resolved
                .members
                .get(&by)
                .map_or_else(|| by.to_string(), |m| m.name.to_string());
            let shown = if resolved.holds(by, name) {
                name.clone()
            } else {
                format!("{name}.{source}")
            };
            add(shown, data, *ttl, source);
        }
        all.sort_by(|a, b| (&a.name, &a.r#type, &a.value).cmp(&(&b.name, &b.r#type, &b.value)));
        all
    }

    /// Answers `dns ls`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn names(&self, text: &str) -> Result<Vec<DnsInfo>, Error> {
        let subnet = self.state.find(text)?;
        Ok(self.dns_infos(subnet, &subnet.resolve(self.now())))
    }

    /// What keeps all maps of a subnet from working, said instead of what follows from it for each: their state, and why.
    fn maps_off(&self, subnet: &Subnet, resolved: &Resolved) -> Option<(&'static str, String)> {
        let name = subnet.name();
        match self.subnet_state(subnet, resolved) {
            SubnetState::Removed => Some((
                "no-target",
                format!("this node is no member of {name} any more"),
            )),
            SubnetState::Down => Some(("blocked", format!("subnet {name} is down"))),
            SubnetState::Ready | SubnetState::Pending | SubnetState::Refused => None,
        }
    }

    pub(super) fn map_infos(
        &self,
        subnet: &Subnet,
        resolved: &Resolved,
        chosen: impl Fn(&Map) -> bool,
    ) -> Vec<MapInfo> {
        let (off, note) = self.maps_off(subnet, resolved).unzip();
        let info = |m: &Map| {
            let target = subnet.target_address(&self.state.me, resolved, &m.target, m.listen);
            let absent = match (off, target) {
                (None, None) => subnet
                    .absent_target(&self.state.me, resolved, &m.target)
                    .map(said_of_absent),
                _ => None,
            };
            let ill = match (off, target) {
                (None, None) if absent.is_none() => {
                    subnet.draining_target(&self.state.me, resolved, &m.target, m.listen)
                }
                _ => None,
            };
            let ill = ill.and_then(|address| {
                let meant = subnet.workload_of_target(&self.state.me, resolved, &m.target)?;
                Some((address, said_of_unhealthy(subnet, meant)))
            });
            let lost = off.is_none() && target.is_none() && absent.is_none() && ill.is_none();
            let withheld = lost && subnet.is_withheld(&self.state.me, resolved, &m.target);
            let withheld = withheld.then(|| said_of_withheld(&m.target));
            let said = absent.or_else(|| ill.clone().map(|(_, said)| said));
            let (note, help) = match said.or(withheld) {
                Some((note, help)) => (Some(note), help),
                None => (note.clone(), None),
            };
            let target = target.map(|(a, _)| a).or(ill.as_ref().map(|(a, _)| *a));
            MapInfo {
                subnet: subnet.name().clone(),
                name: m.name.clone(),
                proto: m.proto,
                listen: m.listens_at(),
                target: m.leads_to(),
                address: target,
                state: match (off, target) {
                    (Some(off), _) => off,
                    _ if ill.is_some() => "unhealthy",
                    _ if subnet.is_contested(resolved, &m.target) => "contested",
                    (None, Some(_)) => "ok",
                    (None, None) => "no-target",
                }
                .into(),
                by_engine: subnet.is_published_by_engine(m),
                note,
                help,
                connections: 0,
                rx_bytes: 0,
                tx_bytes: 0,
                allow: m.allow.clone(),
            }
        };
        subnet
            .local
            .maps
            .iter()
            .filter(|map| chosen(map))
            .map(info)
            .collect()
    }

    /// Answers `map ls`, without counters.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn maps(&self, text: Option<&str>) -> Result<Vec<MapInfo>, Error> {
        let chosen: Vec<&Subnet> = match text {
            Some(text) => vec![self.state.find(text)?],
            None => self.state.subnets.values().collect(),
        };
        let now = self.now();
        Ok(chosen
            .into_iter()
            .flat_map(|s| self.map_infos(s, &s.resolve(now), |_| true))
            .collect())
    }

    /// Answers `invite ls`.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn invites(&self, text: Option<&str>) -> Result<Vec<InviteInfo>, Error> {
        let chosen: Vec<&Subnet> = match text {
            Some(text) => vec![self.state.find(text)?],
            None => self.state.subnets.values().collect(),
        };
        let infos = |s: &&Subnet| {
            let Local { alias, invites, .. } = &*s.local;
            let alias = alias.clone();
            let info = |i: &crate::model::join::Issued| InviteInfo {
                id: i.id(),
                subnet: alias.clone(),
                uses: i.uses,
                left: i
                    .uses
                    .saturating_sub(u32::try_from(i.used.len()).unwrap_or(u32::MAX)),
                expires: i.expires,
                role: i.role,
                ephemeral: i.term == Term::Ephemeral,
                revoked: i.revoked,
            };
            invites.iter().map(info).collect::<Vec<_>>()
        };
        Ok(chosen.iter().flat_map(infos).collect())
    }

    /// Workloads of one subnet, or of all.
    pub fn workloads(&self, only: Option<&Subnet>) -> Vec<WorkloadInfo> {
        let now = self.now();
        let mut all = Vec::new();
        for subnet in self
            .state
            .subnets
            .values()
            .filter(|s| only.is_none_or(|o| o.records.id == s.records.id))
        {
            let resolved = subnet.resolve(now);
            let mine = resolved.members.get(&self.state.me.peer);
            let domain = &subnet.records.genesis.domain;
            let with = |w: &Workload| subnet.local.companions.get(&w.name);
            let membership = self.subnet_state(subnet, &resolved);
            all.extend(subnet.local.workloads.iter().map(|w| {
                let named = mine.is_some() && resolved.holds(self.state.me.peer, w.name.as_str());
                let contested = resolved.contested.contains_key(w.name.as_str());
                let is_ours =
                    |a: &IpAddr| mine.is_none_or(|m| m.leases.iter().any(|l| l.contains(a)));
                let leased = w.addresses.iter().all(is_ours);
                let followed = subnet.followed(&w.name);
                let away = followed.and_then(|f| f.away);
                let engine = followed.and_then(|f| f.engine.clone());
                let paused = followed.is_some_and(|f| f.paused);
                // It keeps its name without an address, as one that is away does.
                let ill = subnet.unhealthy(&w.name).is_some() && !contested && !paused;
                let silent = engine
                    .as_ref()
                    .is_some_and(|at| self.engines.silent.contains(at));
                WorkloadInfo {
                    workload: w.name.clone(),
                    subnet: subnet.name().clone(),
                    kind: w.target.kind().into(),
                    target: self
                        .container_of(w)
                        .map_or_else(|| w.target.shown(), |c| c.name.clone()),
                    container: match self.container_of(w) {
                        Some(container) => Some(container.id.clone()),
                        None => w.target.container().map(str::to_owned),
                    },
                    user: w.target.user(),
                    engine: engine.map(|at| at.display().to_string()),
                    away_since: away.map(|a| a.since),
                    addresses: w.addresses.clone(),
                    interface: w.inner_link.clone(),
                    mtu: MTU,
                    fqdn: match mine {
                        // Its own for ever.
                        Some(m) if !named && away.is_none() && !ill => {
                            format!("{}.{}.{domain}", w.name, m.name)
                        }
                        _ => format!("{}.{domain}", w.name),
                    },
                    dns: mine.map(|m| m.addresses.clone()).unwrap_or_default(),
                    state: match (membership, named, contested) {
                        (SubnetState::Removed, ..) => "not-member",
                        (SubnetState::Down, ..) => "down",
                        _ if !leased => "not-leased",
                        _ if away.is_some() && silent => "engine-gone",
                        _ if away.is_some() => away.map_or("", |a| a.why.word()),
                        _ if ill => "unhealthy",
                        (_, _, true) => "contested",
                        (_, true, _) if w.netns.is_none() && w.target.tap_link().is_none() => {
                            "no-namespace"
                        }
                        (_, true, _) if paused => "paused",
                        (_, true, _) => "ok",
                        _ if resolved.flat.contains_key(w.name.as_str()) => "name-taken",
                        _ if subnet.is_released(&resolved, self.state.me.peer, &w.name) => {
                            "name-released"
                        }
                        // By a member that is called so.
                        (_, false, _) => "name-taken",
                    }
                    .into(),
                    network: with(w).and_then(|with| with.network.clone()),
                    aliases: with(w)
                        .map_or_else(Vec::new, |with| with.aliases.keys().cloned().collect()),
                    health: self.health_info(subnet, &w.name),
                    traffic: None,
                    socket: None,
                    link: self.link_info(subnet, w),
                }
            }));
        }
        all
    }

    /// The link of a workload, where the kernel is to have it.
    fn link_info(&self, subnet: &Subnet, workload: &Workload) -> Option<LinkInfo> {
        let view = self.view();
        let is = |w: &&WorkloadConfig| w.subnet == subnet.records.id && w.name == workload.name;
        let wanted = view.host.workloads.iter().find(is)?;
        let own = || inner_mac(&view.host.instance, &wanted.host_link);
        if wanted.netns.is_none() && wanted.tap.is_none() {
            return None;
        }
        Some(LinkInfo {
            host_interface: wanted.host_link.clone(),
            host_mac: mac::text(host_mac(&view.host.instance, &wanted.host_link)),
            mac: mac::text(wanted.mac.unwrap_or_else(own)),
            routes: wanted.prefixes.clone(),
            netns: wanted.netns.as_ref().map(|netns| netns.path.clone()),
        })
    }

    /// Answers `workload show`.
    ///
    /// # Errors
    /// `E-NO-WORKLOAD`, `E-AMBIGUOUS`.
    pub fn workload(&self, name: &str, subnet: Option<&str>) -> Result<WorkloadInfo, Error> {
        let (id, found) = self.find_workload(name, subnet, None)?;
        let subnet = self.state.find(&id.to_string())?;
        let gone = || {
            Error::new(
                ErrorKind::NotFound,
                Code::NoWorkload,
                format!("no workload {found} here"),
            )
        };
        self.workloads(Some(subnet))
            .into_iter()
            .find(|w| w.workload == found)
            .ok_or_else(gone)
    }
}

/// What is said of a map whose target is unhealthy, and what to do.
fn said_of_unhealthy(subnet: &Subnet, workload: &Workload) -> (String, Option<String>) {
    let name = &workload.name;
    let help = format!(
        "mend {name}; what is wrong with it: byway workload show {name} --subnet {}",
        subnet.name()
    );
    let note = format!("{name} is unhealthy: nobody new is let in, what began before goes on");
    (note, Some(help))
}

/// What is said of a map whose target another member sends nobody to, and what to do.
fn said_of_withheld(target: &str) -> (String, Option<String>) {
    let note = format!(
        "{target} is unhealthy or not running: nobody new is let in, what began before goes on"
    );
    let help = "on its own machine: byway status".to_owned();
    (note, Some(help))
}

/// What is said of a map whose target is away, and what to do.
fn said_of_absent((workload, away): (&Workload, Away)) -> (String, Option<String>) {
    let Workload { name, target, .. } = workload;
    let help = match (target, away.why) {
        (Target::Docker { name, .. } | Target::Podman { name, .. }, Why::Stopped) => {
            Some(format!("{} start {name}", target.kind()))
        }
        (Target::Netns(at), Why::Removed) => Some(format!(
            "make the network namespace {at} again, or: byway detach {name}"
        )),
        (_, Why::Removed) => Some(format!(
            "run a container of that name again, or: byway detach {name}"
        )),
        (_, Why::NoNamespace) => Some(format!(
            "give the container a network of its own, or: byway detach {name}"
        )),
        _ => None,
    };
    let what = match away.why {
        Why::NoNamespace => "has no network namespace of its own now",
        Why::Stopped => "is stopped",
        Why::Restarting => "is restarting",
        Why::Removed => "is removed",
    };
    (format!("{name} {what}"), help)
}
