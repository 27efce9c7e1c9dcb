//! What the kernel is, as far as it concerns us.
//!
//! Holds only what bears our mark (alias, route protocol, or a record of ours) or stands in its way by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Change, Crowd, HostConfig, Moved, NetnsRef, TABLE, WorkloadConfig};
use crate::model::id::{Name, SubnetId};

/// A network namespace we work in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespace {
    /// The namespace that the daemon runs in.
    Host,
    /// The namespace of a workload.
    Netns(NetnsRef),
}

/// The address family of an address, a route or a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// Version 4 (`AF_INET`).
    V4,
    /// Version 6 (`AF_INET6`).
    V6,
}

impl Family {
    /// The family that the address belongs to.
    pub fn of(address: &IpAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

/// A route of ours: unicast, protocol 98.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Number of the routing table it stands in.
    pub table: u32,
    /// The prefix it leads to, host bits zero.
    pub destination: IpNet,
    /// Name of the link that packets leave by.
    pub link: String,
    /// Next hop; without one the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Preferred source of what this machine sends along it.
    pub source: Option<IpAddr>,
}

/// A rule of ours, known by its protocol 98.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// The family whose packets it selects.
    pub family: Family,
    /// The source address it selects; without one it selects every source.
    pub source: Option<IpAddr>,
    /// Number of the routing table that is looked up.
    pub table: u32,
    /// The lower, the earlier it is asked: [`PRIORITY`](super::PRIORITY) or less, so that no rule of another program is
    /// asked before; [`LAST_PRIORITY`](super::LAST_PRIORITY) where only nothing else is to know a way.
    pub priority: u32,
}

impl Rule {
    /// Whether both do the same, wherever they stand.
    pub fn is_same_as(&self, other: &Rule) -> bool {
        (self.family, self.source, self.table) == (other.family, other.source, other.table)
    }
}

/// The first rule of another program, of those that may lead our packets elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Its priority; the lower, the earlier it is asked.
    pub priority: u32,
    /// Priority of the rule for the machine's own addresses: nothing of ours may be asked before it.
    pub local: u32,
    /// What it does, as `ip rule` shows it: `lookup 51820`.
    pub what: String,
}

/// A rule of ours and the namespace it was entered in.
pub type NetnsRule = (NetnsRef, Rule);

/// A link of ours, as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name now; someone may have renamed it.
    pub name: String,
    /// The alias; it says that the link is ours and how it should be called.
    pub alias: String,
    /// Whether the administrator has set it up (`IFF_UP`).
    pub up: bool,
    /// The user who may open it beside root, of a TAP that has one (`IFLA_TUN_OWNER`).
    pub owner: Option<u32>,
    /// Whether something is at the other end (`IFLA_CARRIER`): of a TAP, whether a program has it open.
    pub carrier: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// The length of the transmit queue, in packets.
    pub txqueuelen: u32,
    /// The largest super-packet the kernel hands over (generic segmentation offload), in bytes.
    pub gso_max_size: u32,
    /// The hardware address, for links that have one.
    pub mac: Option<[u8; 6]>,
    /// Addresses with global scope, all of them entered as /32 or /128.
    pub addresses: BTreeSet<IpAddr>,
    /// Permanent neighbour entries: addresses with their hardware addresses.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

impl Link {
    /// What a change of this one link makes of it; any other change makes nothing of it.
    fn absorb(&mut self, change: &Change) {
        match change {
            Change::Rename { to, .. } => self.name.clone_from(to),
            Change::SetLink { set, .. } => {
                if let Some(alias) = &set.alias {
                    self.alias.clone_from(alias);
                }
                self.mtu = set.mtu.unwrap_or(self.mtu);
                self.txqueuelen = set.txqueuelen.unwrap_or(self.txqueuelen);
                self.gso_max_size = set.gso_max_size.unwrap_or(self.gso_max_size);
                self.mac = set.mac.or(self.mac);
                self.up |= set.up;
            }
            Change::AddAddress { address, .. } => {
                self.addresses.insert(*address);
            }
            Change::DelAddress { address, .. } => {
                self.addresses.remove(address);
            }
            Change::SetNeighbour { address, mac, .. } => {
                self.neighbours.insert(*address, *mac);
            }
            Change::DelNeighbour { address, .. } => {
                self.neighbours.remove(address);
            }
            _ => {}
        }
    }
}

/// Path of a sysctl below `/proc/sys`, with slashes: `net/ipv4/conf/eth0/forwarding`.
pub type SysctlKey = String;

/// What one namespace has of ours, and what of others is in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceState {
    /// Our links by the name they should have.
    pub links: BTreeMap<String, Link>,
    /// Names of links that are not ours.
    pub foreign: BTreeSet<String>,
    /// Our routes, told from others by their protocol.
    pub routes: BTreeSet<Route>,
    /// Our rules, told from others by their protocol.
    pub rules: BTreeSet<Rule>,
    /// The rules of other programs that are asked before ours, one of each family.
    pub ahead: BTreeMap<Family, Ahead>,
    /// Values of the sysctls that concern us; a missing key does not exist.
    pub sysctls: BTreeMap<SysctlKey, String>,
}

/// The kernel's state as far as it concerns us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our share of the host's namespace and of the workloads'.
    pub namespaces: BTreeMap<Namespace, NamespaceState>,
    /// Namespaces that exist and could not be read: nothing of theirs is changed.
    pub unreadable: BTreeSet<NetnsRef>,
    /// Whether the kernel supports IPv6.
    pub ipv6: bool,
    /// Whether this process is refused sockets of IPv6, whatever the kernel speaks.
    pub no_ipv6_sockets: bool,
    /// Whether IPv6 can be forwarded per link (`force_forwarding`, Linux 6.17).
    pub force_forwarding: bool,
    /// Whether somebody else (another daemon) has routes in our table: the rules stay.
    pub table_shared: bool,
    /// Other links with global addresses: where clients of port maps may come from.
    pub uplinks: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Networks that links of others are in, each with its link.
    pub connected: Vec<(IpNet, String)>,
    /// Link-local addresses of other links, each with the index of its link: they are local there only.
    pub link_local: BTreeSet<(Ipv6Addr, u32)>,
    /// Sysctls outside our own links that we set and whose former value we keep; and whether the switch of every link
    /// (see [`switch_of_every_link`](super::switch_of_every_link)) was on already when we did.
    pub kept_sysctls: BTreeMap<SysctlKey, bool>,
    /// Resolver files that exist, with their text.
    pub resolvers: BTreeMap<PathBuf, String>,
    /// What stood in a resolver file before us, or, where there is none, in the one that was used instead.
    pub formers: BTreeMap<PathBuf, String>,
    /// Resolver files we wrote and whose former content we keep.
    pub kept_resolvers: BTreeSet<PathBuf>,
    /// Far ends of the veth pairs [`Observed::absorb`] made; the kernel deletes them by itself.
    pub pairs: BTreeMap<String, (NetnsRef, String)>,
    /// Namespaces where our rules were moved so often that they stay where they are.
    pub stay: BTreeSet<Namespace>,
    /// Those of ours who hold too much of the kernel's table of connections.
    pub crowd: Crowd,
    /// Workloads whose namespace is gone or is another one.
    pub dead: BTreeSet<(SubnetId, Name)>,
    /// Workloads that wait for their engine, which has moved their link.
    pub moved: Vec<Moved>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        write!(f, "dev {} table {}", self.link, self.table)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 {
            "IPv4"
        } else {
            "IPv6"
        };
        match self.source {
            Some(source) => write!(
                f,
                "{} of {family} from {source} lookup {}",
                self.priority, self.table
            ),
            None => write!(f, "{} of {family} lookup {}", self.priority, self.table),
        }
    }
}

impl Observed {
    /// What one change leads to when the kernel does as told: the slow twin of the kernel for tests and the memory
    /// host.
    pub fn absorb(&mut self, desired: &HostConfig, change: &Change) {
        match change {
            Change::Conflict { .. } => {}
            Change::OpenTun(tun) => self.add_link(&Namespace::Host, &tun.name, None),
            Change::CloseTun { link, .. } | Change::DeleteLink { link, .. } => self.drop_link(link),
            Change::RestLink { link, .. } => self.rest_link(link),
            Change::CreateVeth(workload) => self.add_pair(&desired.instance, workload),
            Change::CreateTap(workload) => {
                let link = &workload.host_link;
                let mac = super::host_mac(&desired.instance, link);
                self.add_link(&Namespace::Host, link, Some(mac));
                self.set_owner(link, workload.tap);
            }
            Change::SetOwner { link, owner } => self.set_owner(link, Some(*owner)),
            Change::Rename { ns, to: link, .. }
            | Change::SetLink { ns, link, .. }
            | Change::AddAddress { ns, link, .. }
            | Change::DelAddress { ns, link, .. }
            | Change::SetNeighbour { ns, link, .. }
            | Change::DelNeighbour { ns, link, .. } => {
                if let Some(link) = self.namespace_mut(ns).links.get_mut(link) {
                    link.absorb(change);
                }
            }
            Change::SetRoute { ns, route, .. } => {
                let routes = &mut self.namespace_mut(ns).routes;
                routes.retain(|r| (r.table, r.destination) != (route.table, route.destination));
                routes.insert(route.clone());
            }
            Change::DelRoute { ns, route } => {
                self.namespace_mut(ns).routes.remove(route);
            }
            Change::AddRule { ns, rule } => {
                self.namespace_mut(ns).rules.insert(rule.clone());
            }
            Change::DelRule { ns, rule } => {
                self.namespace_mut(ns).rules.remove(rule);
            }
            Change::SetSysctl {
                ns,
                key,
                value,
                keep,
            } => {
                self.namespace_mut(ns)
                    .sysctls
                    .insert(key.clone(), value.clone());
                if *keep {
                    self.keep_sysctl(key);
                }
            }
            Change::RestoreSysctl { key } => {
                self.kept_sysctls.remove(key);
                self.namespace_mut(&Namespace::Host).sysctls.remove(key);
            }
            Change::ForgetSysctl { key } => {
                self.kept_sysctls.remove(key);
            }
            Change::WriteResolver { path, text } => {
                self.resolvers.insert(path.clone(), text.clone());
                self.kept_resolvers.insert(path.clone());
            }
            Change::RestoreResolver { path } => {
                self.kept_resolvers.remove(path);
                self.resolvers.remove(path);
            }
        }
    }

    /// Our share of a namespace, made if there was none.
    pub fn namespace_mut(&mut self, ns: &Namespace) -> &mut NamespaceState {
        self.namespaces.entry(ns.clone()).or_default()
    }

    /// Our share of the host's namespace: its links by the name they should have, with routes of [`TABLE`].
    pub fn host_links(&self) -> impl Iterator<Item = &Link> {
        self.namespaces
            .get(&Namespace::Host)
            .into_iter()
            .flat_map(|state| state.links.values())
    }

    /// Whether any route of ours is in the host's table.
    pub fn has_host_routes(&self) -> bool {
        self.namespaces
            .get(&Namespace::Host)
            .is_some_and(|state| state.routes.iter().any(|r| r.table == TABLE))
    }

    /// The former value of a sysctl is kept from now on.
    fn keep_sysctl(&mut self, key: &SysctlKey) {
        let beside = super::switch_of_every_link(key).is_some_and(|every| self.is_on(&every));
        self.kept_sysctls.entry(key.clone()).or_insert(beside);
    }

    /// A new link, as the kernel makes one.
    fn add_link(&mut self, ns: &Namespace, name: &str, mac: Option<[u8; 6]>) {
        let link = Link {
            name: name.to_owned(),
            mtu: 1500,
            mac,
            ..Link::default()
        };
        self.namespace_mut(ns).links.insert(name.to_owned(), link);
    }

    /// A new veth pair, one end here and one in the workload's namespace.
    fn add_pair(&mut self, instance: &str, workload: &WorkloadConfig) {
        let (host, inner) = (&workload.host_link, &workload.inner_link);
        let inner_mac = workload
            .mac
            .unwrap_or_else(|| super::inner_mac(instance, host));
        let host_mac = super::host_mac(instance, host);
        self.add_link(&Namespace::Host, host, Some(host_mac));
        let Some(netns) = &workload.netns else {
            return;
        };
        self.pairs
            .insert(host.clone(), (netns.clone(), inner.clone()));
        let netns = Namespace::Netns(netns.clone());
        self.add_link(&netns, inner, Some(inner_mac));
    }

    fn set_owner(&mut self, link: &str, owner: Option<u32>) {
        let links = &mut self.namespace_mut(&Namespace::Host).links;
        if let Some(link) = links.get_mut(link) {
            link.owner = owner;
        }
    }

    /// A host link is set down, and with that its routes and neighbours go.
    fn rest_link(&mut self, link: &str) {
        let state = self.namespace_mut(&Namespace::Host);
        state.routes.retain(|r| r.link != link);
        if let Some(link) = state.links.get_mut(link) {
            link.up = false;
            link.neighbours.clear();
        }
    }

    /// A host link goes, and with it its routes, its sysctls and, of a pair, the other end.
    fn drop_link(&mut self, link: &str) {
        let other = self
            .pairs
            .remove(link)
            .map(|(netns, inner)| (Namespace::Netns(netns), inner));
        let ends = [Some((Namespace::Host, link.to_owned())), other];
        for (ns, name) in ends.into_iter().flatten() {
            let state = self.namespace_mut(&ns);
            state.links.remove(&name);
            state.routes.retain(|r| r.link != name);
            state
                .sysctls
                .retain(|key, _| key.split('/').nth(3) != Some(name.as_str()));
        }
    }
}
