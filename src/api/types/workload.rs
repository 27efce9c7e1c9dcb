//! What is answered of workloads, their names and the ports that lead to them.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::host::Proto;
use crate::model::id::Name;
use crate::model::ports::PortRange;

/// The answer to `attach`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Attached {
    pub workload: Name,
    pub subnet: Name,
    pub addresses: Vec<IpAddr>,
    pub interface: String,
    pub mtu: u16,
    pub dns: Vec<IpAddr>,
    /// The domain that its resolver searches.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub search: String,
    pub resolver: bool,
    pub already: bool,
    /// Hardware address that the virtual machine at a TAP is to have; absent of other workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The socket at which QEMU may have the TAP as a stream; absent of other workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Whether the subnet is down here: then the interface comes with `up`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub down: bool,
}

/// A question to a workload, as a person asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum HealthProbe {
    /// Whether a TCP port takes a connection.
    Tcp(u16),
    /// Whether a GET of this URL answers with a status from 200 to 399. Its host is the workload itself.
    Http(String),
    /// Whether a command ends with 0.
    Exec(Vec<String>),
}

/// How a workload is to be asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The question that is asked each time.
    pub probe: HealthProbe,
    /// Seconds between two questions, 1 to 3600; 10 where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_s: Option<u32>,
    /// Failures in a row that make the workload unhealthy, 1 to 100; 3 where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<u16>,
}

/// The health of a workload that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthInfo {
    /// The question, as it is typed: `tcp 80`.
    pub check: String,
    /// Seconds between two questions.
    pub interval_s: u32,
    /// Failures in a row that make the workload unhealthy.
    pub fail: u16,
    /// `starting` until it has succeeded for the first time, `healthy`, or `unhealthy`.
    pub state: String,
    /// Since when it is unhealthy, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Why it became so, where it did while this daemon ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Whether a label of its container asked for the check.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_label: bool,
}

/// What one direction of a workload's link carried since the link was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedInfo {
    /// Bytes, with the link's headers.
    pub bytes: u64,
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Packets that the link lost.
    pub drops: u64,
    /// Packets that this machine's packet filter refused since the workload was attached. Of those that the workload sent,
    /// they are in `packets`; of those that were sent to it, they are not, and whoever sent them may be anyone.
    #[serde(default)]
    pub refused: u64,
}

/// What passed a workload's link, as the workload sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficInfo {
    /// What the workload sent.
    pub sent: PassedInfo,
    /// What reached the workload.
    pub received: PassedInfo,
}

/// A workload, as `workload ls` and `workload show` have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct WorkloadInfo {
    pub workload: Name,
    pub subnet: Name,
    pub kind: String,
    pub target: String,
    /// The engine's ID of the container, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The user, other than root, who had it attached and may detach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The socket of the engine that it is followed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Since when it is not here, in seconds since 1970; absent while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_since: Option<u64>,
    pub addresses: Vec<IpAddr>,
    pub interface: String,
    pub mtu: u16,
    pub fqdn: String,
    pub dns: Vec<IpAddr>,
    pub state: String,
    /// What its engine calls the network that it was attached by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Its further names, which go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Absent of a workload that is not asked whether it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthInfo>,
    /// What passed its link, in `workload show`; absent where it has none now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficInfo>,
    /// The socket at which QEMU may have the TAP as a stream, in `workload show`; absent of other workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Absent of a workload that has no namespace yet, and while its subnet is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkInfo>,
}

impl WorkloadInfo {
    /// The domain that its name is in: behind the workload's own name, and its member's where another has the short one.
    pub fn domain(&self) -> &str {
        let rest = self.fqdn.strip_prefix(self.workload.as_str());
        rest.and_then(|rest| rest.strip_prefix('.'))
            .unwrap_or(&self.fqdn)
    }
}

/// The veth pair or TAP of a workload, as the kernel is to have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// Name of its end on this machine.
    pub host_interface: String,
    /// Hardware address of that end, as `02:62:77:…`.
    pub host_mac: String,
    /// Hardware address of the workload's end, or of the virtual machine.
    pub mac: String,
    /// Prefixes that the workload reaches by it.
    pub routes: Vec<IpNet>,
    /// Path of the namespace that the workload's end is in, as this machine sees it; absent of a TAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
}

/// A name, as `dns ls` and `dns query` have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct DnsInfo {
    pub name: String,
    pub r#type: String,
    pub value: String,
    pub ttl: u32,
    pub source: String,
}

/// A port map with its counters. `state` is `ok`, `blocked`, `no-target`, `contested`, `unhealthy` where its target is a
/// workload here that fails its health check, or `refused` where the target is another member's machine that is closed to
/// this port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct MapInfo {
    pub subnet: Name,
    pub name: Name,
    pub proto: Proto,
    pub listen: String,
    pub target: String,
    pub address: Option<IpAddr>,
    pub state: String,
    /// Whether Docker publishes the ports by itself now, in the place of byway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_engine: bool,
    /// What is not well with it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What to do about `note`; absent where nothing helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    pub connections: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub allow: Vec<IpNet>,
}

impl MapInfo {
    /// The address and the ports that it listens on.
    pub fn listens(&self) -> Option<(IpAddr, PortRange)> {
        let (host, ports) = self.listen.rsplit_once(':')?;
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        Some((inner.unwrap_or(host).parse().ok()?, ports.parse().ok()?))
    }

    /// The ports of its target.
    pub fn target_ports(&self) -> Option<PortRange> {
        self.target.rsplit_once(':')?.1.parse().ok()
    }
}
