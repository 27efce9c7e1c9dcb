//! What can be asked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::import::ImportWorkload;
use super::workload::HealthCheck;
use crate::model::host::{HostPolicy, Proto};
use crate::model::id::{Name, PeerId};
use crate::model::policy::Allowed;
use crate::model::ports::PortRange;
use crate::model::record::{Admission, Role};
use crate::model::zone::RecordData;

/// A pool as it is asked for: `auto`, `none`, or a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Cidr<T> {
    /// A pool is picked that is free here.
    #[default]
    Auto,
    /// The subnet gets no pool of this family.
    None,
    /// The subnet gets this prefix.
    #[serde(untagged)]
    Given(T),
}

/// How the workload to attach is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// A network namespace: its name under `/run/netns`, or a path.
    Netns(String),
    /// A running container, by name or ID.
    Docker(String),
    /// A running container of Podman, by name or ID.
    Podman(String),
    /// An interface of a container, told by the engine that runs it.
    Container(ContainerInterface),
    /// A TAP device for a virtual machine, which is made.
    Tap(TapDevice),
}

/// A TAP device that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapDevice {
    /// Its name: 1 to 11 letters, digits, `-`, `_` and `.`. The device is called `bwv-NAME`.
    pub name: String,
    /// The user who may open it, beside root; the asker where none is given. Only root may name another than itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

/// One attachment of a container, as its engine knows it: the same again changes nothing, and a namespace that is told later
/// completes it. Until then it has its lease and its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerInterface {
    /// The engine that runs the container: `cni`, `netavark` and others.
    pub engine: Name,
    /// The engine's ID of the container: 1 to 255 letters, digits, `-`, `_` and `.`.
    pub container: String,
    /// Name of the interface inside, at most 15 bytes.
    pub interface: String,
    /// The namespace, by name or path; none while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// What the engine calls the network that it attaches the container to, at most 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What the engine calls the container. Its workload is named so where nobody names it, with `-` for what no name may
    /// hold, and numbered where the name is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<String>,
    /// Addresses that it is to have, one of each family at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Further names of the workload, which go with it. Several workloads of one member may share one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

/// The kind of path that a measurement goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// From here to the peer itself.
    Direct,
    /// Only probes that went through a relay count.
    Relay,
}

impl PathKind {
    /// The word that [`Path::kind`](super::Path::kind) has for it.
    pub fn word(self) -> &'static str {
        match self {
            PathKind::Direct => "direct",
            PathKind::Relay => "relay",
        }
    }
}

/// An engine that makes networks over subnets by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Integration {
    /// Docker, by its network and IPAM driver.
    Docker,
}

/// Everything that can be asked of a daemon. Sent as `POST /v1/call` with this as JSON.
///
/// `subnet`, `member`, `peer`, `workload` and `invite` fields take a full ID, a whole name, or a prefix of an ID of at least
/// eight characters, as [`find`](crate::model::find) says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "verbs and fields are those of the command line, documented there"
)]
pub enum Request {
    Create {
        name: Name,
        cidr4: Cidr<Ipv4Net>,
        cidr6: Cidr<Ipv6Net>,
        block4: Option<u8>,
        admission: Admission,
        domain: Option<String>,
        grant_life_s: Option<u64>,
        #[serde(default)]
        host: Option<HostPolicy>,
    },
    Join {
        target: String,
        peers: Vec<String>,
        name: Option<Name>,
        alias: Option<Name>,
        ip: Option<IpAddr>,
        /// What of this machine the subnet reaches; closed where it is not given.
        #[serde(default)]
        host: Option<HostPolicy>,
        #[serde(default)]
        allow: Allowed,
        timeout_ms: u64,
        wait: bool,
    },
    Leave {
        subnet: String,
    },
    Destroy {
        subnet: String,
    },
    Up {
        subnet: Option<String>,
    },
    Down {
        subnet: Option<String>,
    },
    SubnetLs,
    SubnetShow {
        subnet: String,
    },
    SubnetHost {
        subnet: String,
        host: Option<HostPolicy>,
    },
    InviteCreate {
        subnet: String,
        uses: u32,
        expires_ms: u64,
        role: Role,
        labels: BTreeMap<String, String>,
        #[serde(default)]
        ephemeral: bool,
    },
    InviteLs {
        subnet: Option<String>,
    },
    InviteRevoke {
        /// Where it is named, an invite of another subnet is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subnet: Option<String>,
        invite: String,
    },
    MemberLs {
        subnet: String,
    },
    MemberRequests {
        subnet: String,
    },
    MemberApprove {
        subnet: String,
        member: String,
    },
    MemberDeny {
        subnet: String,
        member: String,
    },
    MemberRemove {
        subnet: String,
        member: String,
    },
    MemberRole {
        subnet: String,
        member: String,
        role: Role,
    },
    MemberLabel {
        subnet: String,
        member: String,
        labels: BTreeMap<String, String>,
    },
    LeaseLs {
        subnet: String,
    },
    LeaseAdd {
        subnet: String,
        prefix: IpNet,
        member: Option<String>,
    },
    LeaseRm {
        subnet: String,
        prefix: IpNet,
        member: Option<String>,
    },
    LeaseImport {
        subnet: String,
        entries: Vec<(IpNet, PeerId)>,
    },
    Attach {
        workload: WorkloadKind,
        subnet: String,
        name: Option<Name>,
        ip: Option<IpAddr>,
        mac: Option<String>,
        /// The engine to ask: the asker's `DOCKER_HOST` or `CONTAINER_HOST`, where it has one.
        #[serde(default)]
        engine: Option<String>,
    },
    Detach {
        workload: String,
        subnet: Option<String>,
        /// The interface that says which of a container's workloads is meant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
    },
    /// Detaches an interface of a container, told by the engine that runs it. It is no error where there is none.
    DetachContainer {
        engine: Name,
        container: String,
        interface: String,
    },
    /// Has this machine have of a file what it says, and nothing else.
    Import {
        /// Absolute path of the file, by which it is known when it is imported again.
        source: String,
        workloads: Vec<ImportWorkload>,
    },
    /// Brings back what was before the last import of a file.
    ImportBack {
        source: String,
    },
    ImportLs,
    WorkloadLs,
    WorkloadShow {
        workload: String,
        #[serde(default)]
        subnet: Option<String>,
    },
    WorkloadHealth {
        workload: String,
        #[serde(default)]
        subnet: Option<String>,
        /// It is asked no more where none is given.
        #[serde(default)]
        check: Option<HealthCheck>,
    },
    DnsAdd {
        subnet: String,
        name: String,
        data: Vec<RecordData>,
        ttl: u32,
    },
    DnsRm {
        subnet: String,
        name: String,
        kind: Option<String>,
    },
    DnsRelease {
        subnet: String,
        name: String,
        member: Option<String>,
    },
    DnsLs {
        subnet: String,
    },
    DnsQuery {
        name: String,
        kind: String,
    },
    MapAdd {
        subnet: String,
        proto: Proto,
        /// Every address of both families where none is given.
        #[serde(default)]
        listen: Option<IpAddr>,
        ports: PortRange,
        target: String,
        target_ports: PortRange,
        name: Option<Name>,
        allow: Vec<IpNet>,
        /// The workload here that it leads to and goes with, whatever the target says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workload: Option<Name>,
    },
    MapRm {
        subnet: String,
        name: Option<String>,
        proto: Option<Proto>,
        /// With a port and without this: every address of both families.
        listen: Option<IpAddr>,
        ports: Option<PortRange>,
    },
    MapLs {
        subnet: Option<String>,
    },
    Status {
        subnet: Option<String>,
    },
    Id,
    PeerLs,
    PeerShow {
        peer: String,
    },
    PeerResolve {
        peer: String,
    },
    PeerConnect {
        peer: String,
    },
    RelayOffer {
        /// Mbit/s at most; as configured where it is not given.
        #[serde(default)]
        max_mbit: Option<u32>,
    },
    RelayOff,
    /// Back to what a node does whose owner says nothing, whatever the configuration says.
    RelayAuto,
    RelayLs,
    PeerDisconnect {
        peer: String,
    },
    Ping {
        target: String,
        count: u32,
        timeout_ms: u64,
        /// The kind of path that is measured; the one in use where none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathKind>,
    },
    Netcheck,
    Doctor {
        /// Everything where none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
        /// Whether what can be mended without harm is mended first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        fix: bool,
    },
    Probe {
        target: String,
    },
    /// The engine uses this daemon for networks of its own from now on, also after restarts of both.
    IntegrationInstall {
        engine: Integration,
        /// The engine's socket, `unix://PATH`; the usual places where none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    IntegrationRemove {
        engine: Integration,
    },
    Reload,
    Config,
    Metrics,
    Version,
}

impl Request {
    /// Whether a user who is listed in `workloads.users` may ask it: about what is that user's own.
    pub fn is_for_users(&self) -> bool {
        matches!(
            self,
            Request::Attach { .. }
                | Request::Detach { .. }
                | Request::DetachContainer { .. }
                | Request::MapAdd { .. }
                | Request::MapLs { .. }
                | Request::SubnetLs
                | Request::SubnetShow { .. }
                | Request::WorkloadLs
                | Request::WorkloadShow { .. }
        )
    }

    /// Whether the request changes anything: those need group `byway-admin`, the others `byway`.
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Request::SubnetLs
                | Request::SubnetShow { .. }
                | Request::SubnetHost { host: None, .. }
                | Request::InviteLs { .. }
                | Request::MemberLs { .. }
                | Request::MemberRequests { .. }
                | Request::LeaseLs { .. }
                | Request::ImportLs
                | Request::WorkloadLs
                | Request::WorkloadShow { .. }
                | Request::DnsLs { .. }
                | Request::DnsQuery { .. }
                | Request::MapLs { .. }
                | Request::Status { .. }
                | Request::Id
                | Request::PeerLs
                | Request::PeerShow { .. }
                | Request::PeerResolve { .. }
                | Request::RelayLs
                | Request::Ping { .. }
                | Request::Probe { .. }
                | Request::Netcheck
                | Request::Doctor { fix: false, .. }
                | Request::Config
                | Request::Metrics
                | Request::Version
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_the_fuzzer_are_requests() {
        let seeds = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/api"))
            .unwrap();
        for seed in seeds {
            let path = seed.unwrap().path();
            let read = serde_json::from_slice::<Request>(&std::fs::read(&path).unwrap());
            assert!(read.is_ok(), "{}: {read:?}", path.display());
        }
    }
}
