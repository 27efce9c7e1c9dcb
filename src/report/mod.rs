//! What is said of the state: `status` with its problems, metrics, the log of what happens, and what systemd is told.
//!
//! Everything here looks and changes nothing. A problem is worded where its cause is known: `unwell` a subnet, its members
//! and this one's place in it; `found` what stands in the way although the kernel matches; `condition` the machine's links
//! and port maps; `router` the ports of the router in front; `proxy` the proxy that leads out; `host_names` how this machine's
//! programs find names; `certificate` what is shown inside TLS; `storage` the state directory; `lives` an identity that runs twice.

mod certificate;
mod condition;
pub(crate) mod doctor;
mod engines;
mod exposition;
mod found;
mod handshakes;
pub(crate) mod happenings;
mod host_names;
mod lan;
mod lives;
pub(crate) mod maps;
pub(crate) mod metrics;
pub(crate) mod netcheck;
pub(crate) mod notify;
pub(crate) mod outside;
mod paths;
pub(crate) mod peers;
mod preflight;
mod proxy;
mod reach;
mod reason;
pub(crate) mod resolve;
pub(crate) mod router;
pub(crate) mod status;
mod storage;
pub(crate) mod unwell;
mod waiting;
pub(crate) mod workloads;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

pub(crate) use condition::Probes;
pub(crate) use preflight::PlatformKind;

use crate::config::Config;
use crate::datapath::Datapath;
use crate::dns::Dns;
use crate::host::split_dns::HostNames;
use crate::host::{Applied, Rules};
use crate::link::Links;
use crate::model::unwritten::Unwritten;
use crate::node::Node;
use crate::p2p;
use crate::service::Mesh;

/// What a report is made of. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Report {
    /// The configuration that the daemon was started with.
    pub config: Arc<Config>,
    /// The configuration that is in force now.
    pub settings: watch::Receiver<Arc<Config>>,
    pub platform: PlatformKind,
    pub node: Node,
    pub peers: p2p::Handle,
    pub links: Links,
    pub datapath: Datapath,
    pub dns: Dns,
    /// Whether this machine's own programs resolve our names.
    pub host_names: watch::Receiver<HostNames>,
    /// What the kernel has taken of the last generation.
    pub applied: watch::Receiver<Applied>,
    /// Counters of the ruleset, and who else stops our packets; none in memory.
    pub rules: Option<Rules>,
    /// The files of the state directory that cannot be written, by who writes them.
    pub unwritten: Vec<watch::Receiver<Unwritten>>,
    /// What the targets of port maps said last.
    pub probes: Arc<Probes>,
    /// The protocols with peers, and what they count.
    pub mesh: Arc<Mesh>,
    pub started: Instant,
}
