//! What the kernel must match: links, addresses, routes, port maps, resolvers.
//!
//! PURE. `HostConfig` is derived from the state; `host` makes the kernel follow it: it observes ([`Observed`]), plans
//! ([`plan()`]) and applies ([`Change`]).

mod change;
mod crowd;
mod desired;
mod finding;
pub mod firewalls;
mod former;
mod forwarding;
mod observed;
mod overlap;
mod part;
mod plan;
mod policy;
mod resolver_files;
mod sysctls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use change::{Change, LinkSet};
pub use crowd::{Beginner, Census, Crowd, Excess, Occupancy, shut};
pub use desired::{inner_table, sysctl_keys};
pub use finding::{Finding, findings};
pub use former::{Former, Server};
pub use forwarding::{Barred, barred, is_link_name, switch_of_every_link};
pub use observed::{
    Ahead, Family, Link, Namespace, NamespaceState, NetnsRule, Observed, Route, Rule, SysctlKey,
};
pub use part::Part;
pub use plan::plan;
pub use policy::{HostPolicy, PolicyError, Ports};
pub use resolver_files::{Resolver, former_servers, resolver_text, resolvers};

use super::id::{Name, SubnetId};

/// The routing table our routes of the host live in.
pub const TABLE: u32 = 4110;
/// Priority of our rules: ahead of `main` (32766), behind `local` (0). Where another program has one before it, ours stand
/// before that.
pub const PRIORITY: u32 = 4110;
/// Priority of the rules that hold where nothing else does: behind `main` and `default` (32767).
pub const LAST_PRIORITY: u32 = 40_000;
/// Protocol number our routes and rules bear (`rtnetlink(7)`, `RTA_PROTOCOL`): those of others are never touched.
pub const PROTOCOL: u8 = 98;
/// Largest segmentation-offload packet on our links, bytes: one that the stream of a peer carries whole.
pub const GSO_MAX_SIZE: u32 = 60_000;
/// Packets the kernel queues in front of a TUN; each may be a super-packet of [`GSO_MAX_SIZE`].
pub const TX_QUEUE: u32 = 128;

/// The alias a link of ours bears: `byway:INSTANCE:ROLE:NAME`, with role `tun`, `veth`, `inner` or `tap`.
pub fn alias(instance: &str, role: &str, name: &str) -> String {
    format!("byway:{instance}:{role}:{name}")
}

/// The name in an alias of this instance, or nothing if the alias is not ours.
pub fn alias_name<'a>(instance: &str, alias: &'a str) -> Option<&'a str> {
    let (role, name) = alias
        .strip_prefix("byway:")?
        .strip_prefix(instance)?
        .strip_prefix(':')?
        .split_once(':')?;
    (["tun", "veth", "inner", "tap"].contains(&role) && !name.is_empty()).then_some(name)
}

/// Hardware address of the host end of a veth pair, or of a TAP: the same for the same name, so that neighbour entries are known
/// before the link is made, and locally administered (`02:62:77`).
pub fn host_mac(instance: &str, host_link: &str) -> [u8; 6] {
    hashed_mac(&format!("{instance}/{host_link}/host"))
}

/// Hardware address of the workload's end of a veth pair, or of the virtual machine at a TAP, where none was asked for.
pub fn inner_mac(instance: &str, host_link: &str) -> [u8; 6] {
    hashed_mac(&format!("{instance}/{host_link}/inner"))
}

/// FNV-1a of the text, behind the prefix of ours.
fn hashed_mac(text: &str) -> [u8; 6] {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, ..] = hash.to_be_bytes();
    [0x02, 0x62, 0x77, a, b, c]
}

/// The inner end of a pair that an engine has moved out of this namespace, as the host end tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The subnet that the workload is in.
    pub subnet: SubnetId,
    /// Name of the workload.
    pub workload: Name,
    /// The number that this namespace has for the one which the end is in (`IFLA_LINK_NETNSID`).
    pub number: i32,
    /// Index of the end there.
    pub index: u32,
}

/// Something the kernel did not do, in words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// What was being done: `add route 10.7.0.0/16 to bw-lab`.
    pub what: String,
    /// The reason, as the kernel or the tool gave it.
    pub why: String,
    /// What is not as it should be for it. Empty: nothing that is wanted.
    pub of: BTreeSet<Part>,
}

impl Failure {
    /// The same of other parts than the machine.
    #[must_use]
    pub fn of(self, parts: impl IntoIterator<Item = Part>) -> Failure {
        Failure {
            of: parts.into_iter().collect(),
            ..self
        }
    }
}

/// What came of one generation of the desired state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Number of the desired state this answers.
    pub generation: u64,
    /// What could not be done; empty: the kernel matches.
    pub failures: Vec<Failure>,
    /// Obstacles that stand in the way although the kernel matches.
    pub findings: Vec<Finding>,
    /// Names of links we need that somebody else's link has: ours are to be called otherwise.
    pub taken: Vec<String>,
    /// The nameservers that the resolver files we wrote had before: they are still asked, behind
    /// us.
    pub former_servers: BTreeMap<PathBuf, Vec<Server>>,
    /// Workloads whose namespace is gone: their lease and name are to be freed.
    pub dead_workloads: Vec<(SubnetId, Name, NetnsRef)>,
    /// Workloads that waited for their engine, which has taken their link now.
    pub moved: Vec<Moved>,
}

/// Everything this daemon wants from the kernel. The default wants nothing: applying it removes every trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Eight hex digits that tell this daemon's objects from those of another one on the same machine.
    pub instance: String,
    /// One TUN per subnet that is up.
    pub tuns: Vec<TunConfig>,
    /// Workloads with an address of their own in their own namespace.
    pub workloads: Vec<WorkloadConfig>,
    /// TAPs of workloads that stay attached while nothing of theirs is wanted: their subnet is down, or the daemon stops. One
    /// that a guest has open is only set down, since a guest whose device is deleted cannot have another.
    pub resting: BTreeSet<String>,
    /// Port maps, each with its target resolved to an address.
    pub maps: Vec<MapConfig>,
    /// UDP and TCP ports the underlay listens on: no port map may take them.
    pub underlay_ports: Vec<u16>,
    /// Networks this machine is connected to by links of its own, with the link: not wanted but seen, and what nobody holds
    /// of them is left to them.
    pub connected: Vec<(IpNet, String)>,
}

impl HostConfig {
    /// What a daemon that has stopped leaves: nothing but TAPs that a guest has open.
    pub fn at_rest(&self) -> HostConfig {
        let taps = self.workloads.iter().filter(|w| w.tap.is_some());
        let taps = taps.map(|w| w.host_link.clone());
        HostConfig {
            instance: self.instance.clone(),
            resting: taps.chain(self.resting.iter().cloned()).collect(),
            ..HostConfig::default()
        }
    }
}

/// The TUN of one subnet, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunConfig {
    /// The subnet whose packets it carries.
    pub subnet: SubnetId,
    /// Name of the link, `bw-NAME`; the kernel allows 15 bytes.
    pub name: String,
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// This node's addresses (entered as /32 and /128 without a prefix route).
    pub addresses: Vec<IpAddr>,
    /// The subnet's prefixes, routed to this TUN.
    pub prefixes: Vec<IpNet>,
    /// Leases of every member, this node's among them: they are the subnet's whatever network the machine comes to.
    pub held: Vec<IpNet>,
    /// What of this machine itself the subnet reaches.
    pub host: HostPolicy,
    /// Leases of the other members: each may have so many connections into this machine and no more.
    pub others: Vec<IpNet>,
}

/// A network namespace, told apart from a later one at the same path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsRef {
    /// Where the namespace is found: `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub path: PathBuf,
    /// Device number of the namespace file when it was attached.
    pub device: u64,
    /// Inode number of the namespace file when it was attached.
    pub inode: u64,
    /// A number no other namespace has had since boot, where the kernel tells: inode numbers are used again at once.
    pub cookie: Option<u64>,
}

impl NetnsRef {
    /// Whether both are one namespace, by whatever path.
    pub fn is_same(&self, other: &NetnsRef) -> bool {
        let apart = self.cookie.zip(other.cookie).is_some_and(|(a, b)| a != b);
        (self.device, self.inode) == (other.device, other.inode) && !apart
    }
}

/// Where a workload's resolver is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ResolvConf {
    /// The resolver is written nowhere: its address is only reported.
    None,
    /// The file `/etc/netns/NAME/resolv.conf`, made where none exists and removed on detach.
    Create(PathBuf),
    /// The file that the engine made for a container, on the host: rewritten, its former content kept and restored on
    /// detach.
    Replace(PathBuf),
}

/// One workload's way into its subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadConfig {
    /// The subnet that the workload is in.
    pub subnet: SubnetId,
    /// Name of the workload in the subnet.
    pub name: Name,
    /// The TUN of the subnet on the host.
    pub tun: String,
    /// Host end of the veth pair, or the TAP.
    pub host_link: String,
    /// Workload end of the veth pair, inside the namespace.
    pub inner_link: String,
    /// The namespace that has the inner end of the veth pair; none of a TAP, and none while the end waits beside the host end
    /// for an engine that moves it by itself.
    pub netns: Option<NetnsRef>,
    /// Whether the engine moves, names and configures the inner end itself. What it has entered there is made ours, where
    /// it differs: routes of the same destination are replaced.
    pub by_engine: bool,
    /// The user who may open the TAP, where the link is one and no veth pair.
    pub tap: Option<u32>,
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// The workload's own addresses, entered as /32 and /128.
    pub addresses: Vec<IpAddr>,
    /// This node's addresses in the subnet: gateway and resolver of the workload.
    pub gateways: Vec<IpAddr>,
    /// Prefixes the workload reaches through the gateway.
    pub prefixes: Vec<IpNet>,
    /// The file that names the workload's resolver and search domain.
    pub resolv_conf: ResolvConf,
    /// Search domain written to the same file: `<subnet>.internal`.
    pub search: String,
    /// Fixed hardware address, if one was asked for.
    pub mac: Option<[u8; 6]>,
}

/// Transport protocol of a port map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
    }
}

/// One port of a port map with its target resolved; those of a range are one each, under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapConfig {
    /// The subnet that the target is in.
    pub subnet: SubnetId,
    /// Name of the map, unique in the subnet on this node.
    pub name: Name,
    /// The transport protocol; a map carries one.
    pub proto: Proto,
    /// Address listened on: unspecified (`0.0.0.0`, `::`) for every local one, loopback, or one of this machine's.
    pub listen: IpAddr,
    /// The port that the machine listens on.
    pub port: u16,
    /// The workload's address, of the same family as `listen`; none while the target has no address (nothing is mapped).
    pub target: Option<IpAddr>,
    /// The port that the target is reached at.
    pub target_port: u16,
    /// Whether the target is attached to this machine: it then sees the client's address, else this node's overlay
    /// address.
    pub local: bool,
    /// This node's overlay address of the target's family: the source of what goes to other peers.
    pub source: Option<IpAddr>,
    /// Prefixes of the clients that are let in; an empty list lets everyone in.
    pub allow: Vec<IpNet>,
    /// Whether nobody new is let in, and what began before goes on: the target is unhealthy.
    pub draining: bool,
}
