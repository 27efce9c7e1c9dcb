//! State to View: routes, zones and what the kernel must match, each member's part shared with the view before where it did not
//! change.

mod zone;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::host::{HostConfig, MapConfig, Proto, TunConfig, WorkloadConfig};
use super::id::{Name, PeerId, SubnetId};
use super::local::Map;
use super::members::Subnet;
use super::ports::PortRange;
use super::record::Digest;
use super::resolve::{Member, Resolved};
use super::roll::{Entry, Roll};
use super::routes::Owner;
use super::state::State;
use super::view::{SubnetView, View};
use super::workload::Workload;

use zone::{Added, Fragments};

/// Bytes of the largest inner packet. A 1500-byte underlay carries 1432 over IPv4 and 1412 over IPv6 in one sealed datagram,
/// one of 1492 bytes (PPPoE) 1424 and 1404: a full packet fits all of them, whatever path is taken.
pub const MTU: u16 = 1400;
/// Seconds a member's or workload's name may be kept by a client: a withdrawn one is gone soon.
pub const NAME_TTL: u32 = 5;

/// What the machine adds to the state to make a view.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// The machine's [`HostConfig::instance`], which goes into every view.
    pub instance: String,
    /// UDP and TCP ports the underlay listens on; they become [`HostConfig::underlay_ports`].
    pub underlay_ports: Vec<u16>,
}

/// What a subnet's part of a view was made of.
#[derive(Debug, Clone, Default)]
pub struct Built {
    resolved: Arc<Resolved>,
    fragments: Fragments,
    pointers: Added,
    work: Work,
}

impl Built {
    /// What followed from the subnet's records.
    pub fn resolved(&self) -> &Arc<Resolved> {
        &self.resolved
    }

    /// What of the view was made for it, and not shared with the one before.
    pub fn work(&self) -> Work {
        self.work
    }
}

/// Work that a subnet's part of a view took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Members whose part of the zone was made.
    pub fragments: usize,
    /// Names set or taken away in the zone.
    pub names: usize,
    /// Members whose routes were entered: all or none.
    pub routes: usize,
}

impl State {
    /// The view that follows from this state at `now` (seconds since 1970). It shares with `former` what did not change.
    pub fn view(&self, generation: u64, now: u64, here: &Here, former: &View) -> View {
        let now = self.clock(now);
        let mut host = HostConfig {
            instance: here.instance.clone(),
            underlay_ports: here.underlay_ports.clone(),
            ..HostConfig::default()
        };
        let mut view = View {
            generation,
            ..View::default()
        };
        for (id, subnet) in &self.subnets {
            let resolved = subnet.resolve(now);
            view.changes_at = view.changes_at.into_iter().chain(resolved.changes_at).min();
            let before = former.built.get(id);
            let roll = former
                .rolls
                .get(id)
                .filter(|_| before.is_some_and(|b| Arc::ptr_eq(&b.resolved.roll, &resolved.roll)));
            view.rolls.insert(
                *id,
                roll.map_or_else(
                    || Arc::new(others(resolved.roll.members.keys(), &self.me.peer)),
                    Arc::clone,
                ),
            );
            let known = former.grants.get(id).filter(|_| roll.is_some());
            let known = known.map_or_else(|| Arc::new(grants(&resolved.roll)), Arc::clone);
            view.grants.insert(*id, known);
            let mut built = Built {
                resolved: Arc::clone(&resolved),
                ..Built::default()
            };
            let me = resolved.members.get(&self.me.peer);
            if let Some(me) =
                me.filter(|me| subnet.local.up && !resolved.destroyed && !me.addresses.is_empty())
            {
                self.add_host(&mut host, subnet, (&resolved, me), &former.host);
                let before = former.subnets.get(id).map(AsRef::as_ref).zip(before);
                let part = self.subnet_view(subnet, me, generation, &mut built, before);
                view.subnets.insert(*id, Arc::new(part));
            } else {
                host.resting.extend(taps(subnet));
            }
            view.built.insert(*id, built);
        }
        view.host = if host == *former.host {
            Arc::clone(&former.host)
        } else {
            Arc::new(host)
        };
        view
    }

    fn subnet_view(
        &self,
        subnet: &Subnet,
        me: &Member,
        generation: u64,
        built: &mut Built,
        before: Option<(&SubnetView, &Built)>,
    ) -> SubnetView {
        let (pools, resolved) = (subnet.records.pools(), Arc::clone(&built.resolved));
        let zone = zone::of(
            subnet,
            generation,
            built,
            before.map(|(view, built)| (&view.zone, built)),
        );
        // Nobody is at the address of a workload that has nothing in the kernel yet.
        let attached = subnet
            .local
            .workloads
            .iter()
            .filter(|w| w.has_link())
            .flat_map(|w| own_addresses(w, me));
        let mut view = SubnetView {
            id: subnet.records.id,
            name: subnet.name().clone(),
            interface: subnet.local.interface.clone(),
            cidr4: pools.v4,
            cidr6: pools.v6,
            addresses: me.addresses.clone(),
            mtu: MTU,
            here: me.addresses.iter().copied().chain(attached).collect(),
            routes: Arc::default(),
            hosts: Arc::default(),
            members: Arc::default(),
            data_keys: Arc::default(),
            zone,
        };
        match before.filter(|(_, before)| before.resolved.shares_places(&resolved)) {
            Some((before, _)) => {
                (view.routes, view.hosts) = (Arc::clone(&before.routes), Arc::clone(&before.hosts));
                (view.members, view.data_keys) =
                    (Arc::clone(&before.members), Arc::clone(&before.data_keys));
            }
            None => {
                built.work.routes = resolved.members.len();
                self.add_members(&mut view, &resolved);
            }
        }
        view
    }

    /// Who is a member, what it holds, and its key.
    fn add_members(&self, view: &mut SubnetView, resolved: &Resolved) {
        let me = self.me.peer;
        let owner = |peer: PeerId| {
            if peer == me {
                Owner::Local
            } else {
                Owner::Member(peer)
            }
        };
        let leases = resolved
            .members
            .iter()
            .flat_map(|(peer, m)| m.leases.iter().map(move |l| (*l, owner(*peer))));
        view.routes = Arc::new(leases.collect());
        let others_of = resolved.members.iter().filter(|(peer, _)| **peer != me);
        view.hosts = Arc::new(
            others_of
                .flat_map(|(_, m)| m.addresses.iter().copied())
                .collect(),
        );
        view.members = Arc::new(others(resolved.members.keys(), &self.me.peer));
        view.data_keys = Arc::new(
            resolved
                .members
                .iter()
                .map(|(peer, m)| (*peer, m.grant.data_key))
                .collect(),
        );
    }

    fn add_host(
        &self,
        host: &mut HostConfig,
        subnet: &Subnet,
        (resolved, me): (&Resolved, &Member),
        former: &HostConfig,
    ) {
        let prefixes = subnet.records.prefixes();
        host.tuns.push(TunConfig {
            subnet: subnet.records.id,
            name: subnet.local.interface.clone(),
            mtu: MTU,
            addresses: me.addresses.clone(),
            prefixes: prefixes.clone(),
            host: subnet.local.host.clone(),
            held: resolved
                .members
                .values()
                .flat_map(|member| member.leases.iter().copied())
                .collect(),
            others: (resolved.members.iter())
                .filter(|(peer, _)| **peer != self.me.peer)
                .flat_map(|(_, member)| member.leases.iter().copied())
                .collect(),
        });
        for workload in &subnet.local.workloads {
            if !workload.has_link() {
                continue;
            }
            let addresses = own_addresses(workload, me).collect();
            host.workloads.push(WorkloadConfig {
                subnet: subnet.records.id,
                name: workload.name.clone(),
                tun: subnet.local.interface.clone(),
                host_link: workload.host_link.clone(),
                inner_link: workload.inner_link.clone(),
                netns: workload.netns.clone(),
                by_engine: workload.target.moves_links(),
                tap: workload.target.tap_owner(),
                mtu: MTU,
                addresses,
                gateways: me.addresses.clone(),
                prefixes: prefixes.clone(),
                resolv_conf: workload.resolv_conf.clone(),
                search: subnet.records.genesis.domain.clone(),
                mac: workload.mac,
            });
        }
        let led_before = LazyCell::new(|| former_targets(former, subnet.records.id));
        let maps = subnet.local.maps.iter();
        for map in maps.filter(|map| !subnet.is_published_by_engine(map)) {
            let led = subnet.target_address(&self.me, resolved, &map.target, map.listen);
            let drain = || subnet.draining_target(&self.me, resolved, &map.target, map.listen);
            let draining = led.is_none().then(drain).flatten();
            // Another member does not tell where its unhealthy workload is: where the map led until now.
            let is_withheld =
                || led.is_none() && subnet.is_withheld(&self.me, resolved, &map.target);
            let draining = match draining.map(|address| (address, true)) {
                None if is_withheld() => led_before
                    .get(&(&map.name, map.listen, map.proto))
                    .map(|address| (*address, false)),
                other => other,
            };
            let target = led.or(draining);
            let ports = map_ports(map, target, me, subnet.records.id);
            host.maps.extend(ports.map(|port| MapConfig {
                draining: draining.is_some(),
                ..port
            }));
        }
    }
}

/// Where the maps of a subnet to other members led.
fn former_targets(
    former: &HostConfig,
    subnet: SubnetId,
) -> BTreeMap<(&Name, IpAddr, Proto), IpAddr> {
    let maps = former.maps.iter();
    maps.filter(|m| m.subnet == subnet && !m.local)
        .filter_map(|m| Some(((&m.name, m.listen, m.proto), m.target?)))
        .collect()
}

/// What the kernel needs of a map: an element for each port, for it cannot add an offset to one. `target` is the address it
/// leads to, and whether that is attached here.
fn map_ports(
    map: &Map,
    target: Option<(IpAddr, bool)>,
    me: &Member,
    subnet: SubnetId,
) -> impl Iterator<Item = MapConfig> {
    let same_family = |a: &IpAddr| a.is_ipv4() == map.listen.is_ipv4();
    let source = me.addresses.iter().copied().find(same_family);
    let targets = map.target_ports().into_iter().flat_map(PortRange::iter);
    let each = map.ports.iter().zip(targets);
    each.map(move |(port, target_port)| MapConfig {
        subnet,
        name: map.name.clone(),
        proto: map.proto,
        listen: map.listen,
        port,
        target: target.map(|(address, _)| address),
        target_port,
        local: target.is_some_and(|(_, local)| local),
        source,
        allow: map.allow.clone(),
        draining: false,
    })
}

/// Addresses of a workload; one that a conflict took away is no longer ours to hand out.
fn own_addresses<'a>(workload: &'a Workload, me: &'a Member) -> impl Iterator<Item = IpAddr> + 'a {
    workload
        .addresses
        .iter()
        .copied()
        .filter(|a| me.leases.iter().any(|l| l.contains(a)))
}

/// The TAPs of the workloads that are attached to a subnet.
fn taps(subnet: &Subnet) -> impl Iterator<Item = String> {
    let workloads = subnet.local.workloads.iter();
    let taps = workloads.filter(|w| w.has_link() && w.target.tap_owner().is_some());
    taps.map(|w| w.host_link.clone())
}

/// The digest of the grant that counts, of each member.
fn grants(roll: &Roll) -> BTreeMap<PeerId, Digest> {
    let members = roll.members.iter();
    let granted = |(peer, entry): (&PeerId, &Entry)| Some((*peer, entry.best()?.digest()));
    members.filter_map(granted).collect()
}

fn others<'a>(all: impl Iterator<Item = &'a PeerId>, me: &PeerId) -> BTreeSet<PeerId> {
    all.filter(|peer| *peer != me).copied().collect()
}
