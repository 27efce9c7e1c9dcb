//! State to View: routes, zones and what the kernel must match, built whole each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::host::{HostConfig, MapConfig, TunConfig, WorkloadConfig};
use super::id::PeerId;
use super::local::Workload;
use super::members::Subnet;
use super::record::{Role, data_fits};
use super::resolve::{Member, Resolved};
use super::state::State;
use super::view::{Owner, RouteTable, SubnetView, View};
use super::zone::{Entry, RecordData, Zone};

/// Bytes of the largest inner packet. A 1500-byte underlay carries 1432 over IPv4 and 1412 over IPv6 in one sealed datagram,
/// one of 1492 bytes (PPPoE) 1424 and 1404: a full packet fits all of them, whatever path is taken.
pub const MTU: u16 = 1400;
/// Seconds a member's or workload's name may be kept by a client: a withdrawn one is gone soon.
pub const NAME_TTL: u32 = 5;

/// What the machine adds to the state to make a view.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// See [`HostConfig::instance`].
    pub instance: String,
    /// Ports of the underlay.
    pub underlay_ports: Vec<u16>,
}

impl State {
    /// The view that follows from this state at `now` (seconds since 1970).
    pub fn view(&self, generation: u64, now: u64, here: &Here) -> View {
        let now = self.clock(now);
        let mut host = HostConfig {
            instance: here.instance.clone(),
            underlay_ports: here.underlay_ports.clone(),
            ..HostConfig::default()
        };
        let mut changes_at: Option<u64> = None;
        let (mut subnets, mut rolls) = (BTreeMap::new(), BTreeMap::new());
        for (id, subnet) in &self.subnets {
            let resolved = subnet.resolve(now);
            changes_at = changes_at.into_iter().chain(resolved.changes_at).min();
            rolls.insert(*id, resolved.roll.members.keys().copied().filter(|p| *p != self.me.peer).collect());
            let Some(me) = resolved.members.get(&self.me.peer) else { continue };
            if !subnet.local.up || resolved.destroyed || me.addresses.is_empty() {
                continue;
            }
            self.add_host(&mut host, subnet, &resolved, me);
            subnets.insert(*id, Arc::new(self.subnet_view(subnet, &resolved, me, generation)));
        }
        View { generation, subnets, rolls: Arc::new(rolls), changes_at, host: Arc::new(host) }
    }

    fn subnet_view(&self, subnet: &Subnet, resolved: &Resolved, me: &Member, generation: u64) -> SubnetView {
        let mut routes = RouteTable::default();
        for (peer, member) in &resolved.members {
            let owner = if *peer == self.me.peer { Owner::Local } else { Owner::Member(*peer) };
            for lease in &member.leases {
                let _ = routes.insert(*lease, owner);
            }
        }
        let pools = subnet.records.pools();
        let attached = subnet.local.workloads.iter().flat_map(|w| own_addresses(w, me));
        SubnetView {
            id: subnet.records.id,
            name: subnet.name().clone(),
            interface: subnet.local.interface.clone(),
            cidr4: pools.v4,
            cidr6: pools.v6,
            addresses: me.addresses.clone(),
            mtu: MTU,
            here: me.addresses.iter().copied().chain(attached).collect(),
            routes,
            hosts: others(&self.me.peer, resolved).flat_map(|member| member.addresses.iter().copied()).collect(),
            members: resolved.members.keys().copied().filter(|p| *p != self.me.peer).collect(),
            data_keys: resolved.members.iter().map(|(peer, member)| (*peer, member.grant.data_key)).collect(),
            zone: Arc::new(zone(subnet, resolved, generation)),
        }
    }

    fn add_host(&self, host: &mut HostConfig, subnet: &Subnet, resolved: &Resolved, me: &Member) {
        let prefixes = subnet.records.prefixes();
        host.tuns.push(TunConfig {
            subnet: subnet.records.id,
            name: subnet.local.interface.clone(),
            mtu: MTU,
            addresses: me.addresses.clone(),
            prefixes: prefixes.clone(),
            host: subnet.local.host.clone(),
            held: resolved.members.values().flat_map(|member| member.leases.iter().copied()).collect(),
            others: others(&self.me.peer, resolved).flat_map(|member| member.leases.iter().copied()).collect(),
        });
        for workload in &subnet.local.workloads {
            let addresses = own_addresses(workload, me).collect();
            host.workloads.push(WorkloadConfig {
                subnet: subnet.records.id,
                name: workload.name.clone(),
                tun: subnet.local.interface.clone(),
                host_link: workload.host_link.clone(),
                inner_link: workload.inner_link.clone(),
                netns: workload.netns.clone(),
                mtu: MTU,
                addresses,
                gateways: me.addresses.clone(),
                prefixes: prefixes.clone(),
                resolv_conf: workload.resolv_conf.clone(),
                search: subnet.records.genesis.domain.clone(),
                mac: workload.mac,
            });
        }
        for map in &subnet.local.maps {
            let target = subnet.target_address(&self.me, resolved, &map.target, map.listen);
            host.maps.push(MapConfig {
                subnet: subnet.records.id,
                name: map.name.clone(),
                proto: map.proto,
                listen: map.listen,
                port: map.port,
                target: target.map(|(a, _)| a),
                target_port: map.target_port,
                local: target.is_some_and(|(_, local)| local),
                source: me.addresses.iter().copied().find(|a| a.is_ipv4() == map.listen.is_ipv4()),
                allow: map.allow.clone(),
            });
        }
    }
}

/// Addresses of a workload; one that a conflict took away is no longer ours to hand out.
fn own_addresses<'a>(workload: &'a Workload, me: &'a Member) -> impl Iterator<Item = IpAddr> + 'a {
    workload.addresses.iter().copied().filter(|a| me.leases.iter().any(|l| l.contains(a)))
}

/// Every member but this node.
fn others<'a>(me: &'a PeerId, resolved: &'a Resolved) -> impl Iterator<Item = &'a Member> {
    resolved.members.iter().filter(move |(peer, _)| *peer != me).map(|(_, member)| member)
}

/// Makes of the answers of one name what DNS asks for: none twice, one time to live for each type (RFC 2181, 5 and 5.2).
/// A name may be said in two ways: that of a member `e` for `svc` is also `svc.e`.
fn as_sets(answers: &mut Vec<Entry>) {
    let mut least: BTreeMap<&'static str, u32> = BTreeMap::new();
    for Entry { ttl, data } in answers.iter() {
        let of_kind = least.entry(data.kind()).or_insert(*ttl);
        *of_kind = (*of_kind).min(*ttl);
    }
    let mut seen = BTreeSet::new();
    answers.retain(|entry| seen.insert(entry.data.clone()));
    for entry in answers {
        entry.ttl = least.get(entry.data.kind()).copied().unwrap_or(entry.ttl);
    }
}

/// What added names give addresses as their own, below the zone: those of the address's holder first, then those of who has
/// a say in the subnet. Nobody else names what is another's. A name with `*` is no name of anything.
fn added_pointers(resolved: &Resolved) -> Vec<(IpAddr, String)> {
    let mut found = Vec::new();
    for (name, data, _, by) in &resolved.names {
        let (RecordData::Address(address), Some(member)) = (data, resolved.members.get(by)) else { continue };
        let holds = member.leases.iter().any(|lease| lease.contains(address));
        if name.starts_with('*') || !(holds || member.role != Role::Member) {
            continue;
        }
        let flat = resolved.holds(*by, name);
        let shown = if flat { name.clone() } else { format!("{name}.{}", member.name) };
        found.push((!holds, !flat, *address, shown));
    }
    found.sort();
    found.into_iter().map(|(_, _, address, name)| (address, name)).collect()
}

/// The names of a subnet: members, workloads, and what members added.
fn zone(subnet: &Subnet, resolved: &Resolved, generation: u64) -> Zone {
    let domain = &subnet.records.genesis.domain;
    let mut names: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    let mut pointers = BTreeMap::new();
    let mut add = |name: String, ttl: u32, data: &RecordData| {
        names.entry(name).or_default().push(Entry { ttl, data: data.clone() });
    };
    for (peer, member) in &resolved.members {
        for address in &member.addresses {
            add(member.name.to_string(), NAME_TTL, &RecordData::Address(*address));
            pointers.insert(*address, format!("{}.{domain}", member.name));
        }
        // Below its member's name a workload has a name that nobody can contest; the flat one is whose it is.
        for (name, addresses) in &member.workloads {
            let flat = resolved.holds(*peer, name.as_str());
            for address in addresses {
                let data = RecordData::Address(*address);
                add(format!("{name}.{}", member.name), NAME_TTL, &data);
                if flat {
                    add(name.to_string(), NAME_TTL, &data);
                }
                let shown = if flat { name.to_string() } else { format!("{name}.{}", member.name) };
                pointers.insert(*address, format!("{shown}.{domain}"));
            }
        }
    }
    for (address, name) in added_pointers(resolved) {
        pointers.entry(address).or_insert_with(|| format!("{name}.{domain}"));
    }
    for (name, data, ttl, by) in resolved.names.iter().filter(|(_, d, ..)| data_fits(d)) {
        if let Some(member) = resolved.members.get(by) {
            add(format!("{name}.{}", member.name), *ttl, data);
        }
        if resolved.holds(*by, name) {
            add(name.clone(), *ttl, data);
        }
    }
    names.values_mut().for_each(as_sets);
    // Generations are milliseconds since 1970 or more: their seconds fit a serial until 2106.
    let serial = u32::try_from((generation / 1000) & u64::from(u32::MAX)).unwrap_or(1);
    Zone { origin: domain.clone(), serial, names, pointers, prefixes: subnet.records.prefixes() }
}
