//! What is answered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::import::{ImportInfo, Imported};
use super::reach::{
    DoctorInfo, NatInfo, NetcheckInfo, Path, PathChange, ProbeInfo, ResolvedPeer, Tried,
};
use super::relay::RelayInfo;
use super::workload::{Attached, DnsInfo, MapInfo, WorkloadInfo};
use crate::model::host::HostPolicy;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::policy::Terms;
use crate::model::record::{Admission, Role};

/// What a verb answers; as JSON the fields of the variant's struct with `schema` in front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "schema")]
#[expect(missing_docs, reason = "each is the answer of the verbs of its name")]
pub enum Response {
    #[serde(rename = "byway.create/1")]
    Created(Created),
    #[serde(rename = "byway.join/1")]
    Joined(Joined),
    #[serde(rename = "byway.done/1")]
    Done(Done),
    #[serde(rename = "byway.subnets/1")]
    Subnets { subnets: Vec<SubnetInfo> },
    #[serde(rename = "byway.subnet/1")]
    Subnet(Box<SubnetInfo>),
    #[serde(rename = "byway.host/1")]
    Host(HostInfo),
    #[serde(rename = "byway.invite/1")]
    Invite(InviteCreated),
    #[serde(rename = "byway.invites/1")]
    Invites { invites: Vec<InviteInfo> },
    #[serde(rename = "byway.members/1")]
    Members { members: Vec<MemberInfo> },
    #[serde(rename = "byway.requests/1")]
    Requests { requests: Vec<JoinRequestInfo> },
    #[serde(rename = "byway.leases/1")]
    Leases { leases: Vec<LeaseInfo> },
    #[serde(rename = "byway.attach/1")]
    Attached(Attached),
    #[serde(rename = "byway.workloads/1")]
    Workloads { workloads: Vec<WorkloadInfo> },
    #[serde(rename = "byway.workload/1")]
    Workload(WorkloadInfo),
    #[serde(rename = "byway.import/1")]
    Imported(Imported),
    #[serde(rename = "byway.imports/1")]
    Imports { imports: Vec<ImportInfo> },
    #[serde(rename = "byway.dns/1")]
    Dns { records: Vec<DnsInfo> },
    #[serde(rename = "byway.maps/1")]
    Maps { maps: Vec<MapInfo> },
    #[serde(rename = "byway.map/1")]
    Map(MapInfo),
    #[serde(rename = "byway.status/1")]
    Status(Box<Status>),
    #[serde(rename = "byway.id/1")]
    Id(IdInfo),
    #[serde(rename = "byway.peers/1")]
    Peers { peers: Vec<PeerInfo> },
    #[serde(rename = "byway.peer/1")]
    Peer(Box<PeerInfo>),
    #[serde(rename = "byway.resolve/1")]
    Resolved(ResolvedPeer),
    #[serde(rename = "byway.ping/1")]
    Ping(PingInfo),
    #[serde(rename = "byway.relay/1")]
    Relay(RelayInfo),
    #[serde(rename = "byway.netcheck/1")]
    Netcheck(NetcheckInfo),
    #[serde(rename = "byway.doctor/1")]
    Doctor(DoctorInfo),
    #[serde(rename = "byway.probe/1")]
    Probe(ProbeInfo),
    #[serde(rename = "byway.config/1")]
    Config(ConfigInfo),
    #[serde(rename = "byway.metrics/1")]
    Metrics { text: String },
    #[serde(rename = "byway.version/1")]
    Version { version: String, wire: u32 },
}

/// `config show` of a running daemon: what is in force there, and what the command line changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct ConfigInfo {
    pub values: BTreeMap<String, ConfigValue>,
    pub subnets: Vec<ConfigSubnet>,
}

/// One setting: its value in force, and where that comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct ConfigValue {
    pub value: serde_json::Value,
    /// The place it was set: `FILE:LINE`, a flag, a variable, or `default`.
    pub origin: String,
}

/// One membership, whether a file declares it or the command line made it; or a declaration that is no membership yet. What
/// a file declares beside is null where none does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct ConfigSubnet {
    /// Null of a declaration whose invite cannot be read.
    pub id: Option<SubnetId>,
    /// The file with the invite, where the table names one.
    pub invite_file: Option<PathBuf>,
    /// The name that was asked for, as declared.
    pub name: Option<Name>,
    /// The name that it has here; before it is a membership, the one that was declared.
    pub r#as: Option<Name>,
    /// The address that was asked for, as declared.
    pub ip: Option<IpAddr>,
    /// What is in force; before it is a membership, as declared.
    pub host: Option<HostPolicy>,
    pub peer: Vec<String>,
    /// Whether the subnet is used here; null of what is no membership yet.
    pub up: Option<bool>,
    /// `FILE:LINE` where a file declares it, else the command line and the verb that made it.
    pub origin: String,
    /// The place where `host` was set, where it stands otherwise than in the file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_origin: Option<String>,
}

/// The answer to `create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Created {
    pub id: SubnetId,
    pub name: Name,
    pub cidr4: Option<Ipv4Net>,
    pub cidr6: Option<Ipv6Net>,
    pub addresses: Vec<IpAddr>,
    pub interface: String,
    /// None where the subnet was created before, with the same values.
    pub invite: Option<String>,
    pub member: Name,
    #[serde(default)]
    pub host: HostPolicy,
    /// What a joiner has to type beside the invite; empty where prefixes and domain are private.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub join_flags: String,
    /// What whoever passes the invite on should know, as sentences with their remedy.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

/// Whether a membership can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "words of the contract")]
pub enum SubnetState {
    Ready,
    Pending,
    /// The join was refused; it stands until it is asked for again or left.
    Refused,
    Down,
    Removed,
}

/// The answer to `join`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Joined {
    pub id: SubnetId,
    pub name: Option<Name>,
    pub state: SubnetState,
    pub addresses: Vec<IpAddr>,
    pub interface: Option<String>,
    pub member: Option<Name>,
    /// This peer's fingerprint while it waits: what whoever approves compares.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fingerprint: Option<String>,
    /// While it waits: whether for who issued its invite, and not for an approval.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub invite: bool,
    #[serde(default)]
    pub host: HostPolicy,
    /// Flags that had no effect, because this peer was a member already and is called, or reached, otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ignored: Vec<String>,
    /// What was founded, as soon as somebody told: name, prefixes, domain, the owner's fingerprint.
    #[serde(flatten)]
    pub terms: Option<Terms>,
}

/// `subnet host`: what of this machine itself a subnet reaches, beside ping and names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct HostInfo {
    pub subnet: Name,
    pub host: HostPolicy,
    /// Whether this call changed it.
    #[serde(default)]
    pub changed: bool,
}

/// A verb that only does something: one line that says what, and whether anything changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Done {
    pub message: String,
    pub changed: bool,
}

/// A subnet, as `subnet ls` and `subnet show` have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct SubnetInfo {
    pub id: SubnetId,
    pub name: Name,
    pub state: SubnetState,
    pub role: Role,
    pub cidr4: Option<Ipv4Net>,
    pub cidr6: Option<Ipv6Net>,
    pub block4: u8,
    pub domain: String,
    pub admission: Admission,
    pub owner: PeerId,
    pub interface: String,
    pub mtu: u16,
    pub head: u64,
    #[serde(default)]
    pub host: HostPolicy,
    pub addresses: Vec<IpAddr>,
    pub members: Vec<MemberInfo>,
    pub leases: Vec<LeaseInfo>,
    pub routes: Vec<LeaseInfo>,
    pub names: Vec<DnsInfo>,
    pub maps: Vec<MapInfo>,
}

/// A member. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct MemberInfo {
    pub peer_id: PeerId,
    pub name: Name,
    pub role: Role,
    pub addresses: Vec<IpAddr>,
    pub leases: Vec<IpNet>,
    pub generation: u32,
    pub expires: u64,
    pub labels: BTreeMap<String, String>,
    pub me: bool,
}

/// A joiner that asked by ID and waits for approval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct JoinRequestInfo {
    pub peer_id: PeerId,
    pub name: Name,
    pub fingerprint: String,
    pub since: u64,
}

/// A prefix that belongs to one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct LeaseInfo {
    pub prefix: IpNet,
    pub peer_id: PeerId,
    pub member: Name,
}

/// The answer to `invite create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct InviteCreated {
    pub id: String,
    pub invite: String,
    pub uses: u32,
    pub expires: u64,
    /// What a joiner has to type beside the invite, as [`Created::join_flags`].
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub join_flags: String,
    /// What whoever passes the invite on should know, as [`Created::notes`].
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

/// An invite, as `invite ls` has it: never with its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct InviteInfo {
    pub id: String,
    pub subnet: Name,
    pub uses: u32,
    pub left: u32,
    pub expires: u64,
    pub role: Role,
    /// Whether those who join by it are members for an hour at a time, as long as they are seen.
    #[serde(default)]
    pub ephemeral: bool,
    pub revoked: bool,
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Status {
    pub peer_id: PeerId,
    pub name: Name,
    pub version: String,
    pub ready: bool,
    pub uptime_s: u64,
    /// The cipher of datagrams that this machine prefers, and who computes it: `aes-256-gcm by ring`.
    pub sealing: String,
    /// Whether it forwards for others and is in no subnet.
    #[serde(default)]
    pub relay_only: bool,
    /// What stands before this machine, as in `netcheck`; absent of a daemon that only relays.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nat: Option<NatInfo>,
    /// Whether programs of this machine itself resolve the subnets' names; absent where there are none, or it is not tried.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_names: Option<HostNamesInfo>,
    pub subnets: Vec<SubnetStatus>,
    pub problems: Vec<Problem>,
}

/// How programs of a machine resolve the names of its subnets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNamesInfo {
    /// The resolver that asks this node: `systemd-resolved`; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// `works`: a random name was looked up as programs do, and this node answered; `not-asked`: it was not asked;
    /// `refused`: the resolver would not be told; `no-service`: none runs that can be.
    pub state: String,
}

/// A membership, as `status` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct SubnetStatus {
    pub id: SubnetId,
    pub name: Name,
    pub state: SubnetState,
    pub member: Name,
    pub addresses: Vec<IpAddr>,
    pub interface: String,
    pub mtu: u16,
    pub members: usize,
    pub peers: Vec<PeerStatus>,
    pub workloads: Vec<WorkloadInfo>,
    pub drops: BTreeMap<String, u64>,
    /// While this peer asks to be let in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting: Option<Waiting>,
}

/// A join that waits for an answer, as `status` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// This peer's fingerprint, which whoever approves compares.
    pub fingerprint: String,
    /// When it began to wait, in seconds since 1970.
    pub since: u64,
    /// Whether it waits for who issued its invite, and not for an approval.
    #[serde(default)]
    pub invite: bool,
    /// Those that know the subnet and have the question.
    pub asked: Vec<Asked>,
    /// Whether a member that may decide has the question.
    pub reached: bool,
    /// What was founded, as soon as somebody told.
    #[serde(flatten)]
    pub terms: Option<Terms>,
}

/// A peer that a join has asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Asked {
    pub peer_id: PeerId,
    /// Address and port it is connected at, as `A:P`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
}

/// What a carrier moved: inner bytes, and packets before they are cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Carried {
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub rx_packets: u64,
}

/// How much each carrier moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Carriers {
    pub datagram: Carried,
    pub stream: Carried,
}

/// The datagram session with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The cipher, `aes-256-gcm` or `chacha20-poly1305`; absent without a key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cipher: Option<String>,
    /// Whether ML-KEM-768 is in the key beside X25519; absent without a key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub post_quantum: Option<bool>,
    /// Keys used so far, the first one included.
    pub keys: u64,
    /// Datagram paths gained, lost or moved so far.
    pub path_changes: u64,
}

/// A peer, as `status` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct PeerStatus {
    pub peer_id: PeerId,
    pub name: Name,
    pub addresses: Vec<IpAddr>,
    pub path: Path,
    pub rtt_ms: Option<f64>,
    /// Share of the datagram path's keep-alives of the last two minutes without an answer, 0 to 1.
    pub loss: Option<f64>,
    /// Bytes of the largest packet of the subnet that reaches the peer whole.
    pub mtu: u16,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    #[serde(default)]
    pub carriers: Carriers,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<SessionInfo>,
    /// Where datagrams were tried while the path is not direct.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tried: Vec<Tried>,
    /// The last 20 changes of its path, the newest last.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub changes: Vec<PathChange>,
    pub workloads: Vec<Name>,
}

/// Something a person should know. `severity` is `error`, `warning` or `info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct Problem {
    pub code: String,
    pub severity: String,
    pub message: String,
    pub help: String,
}

/// The answer to `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct IdInfo {
    pub peer_id: PeerId,
    pub name: Name,
    pub fingerprint: String,
    pub addresses: Vec<String>,
}

/// A peer, as `peer ls` and `peer show` have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct PeerInfo {
    pub peer_id: PeerId,
    pub names: Vec<String>,
    pub fingerprint: String,
    pub connected: bool,
    /// Why this node keeps a connection to it though nothing travels: `everybody`, `home`, `ring`, `near`, `trial`; none
    /// where it keeps none of its own accord.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<String>,
    pub path: Path,
    pub addresses: Vec<String>,
    pub rtt_ms: Option<f64>,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    #[serde(default)]
    pub carriers: Carriers,
    /// The datagram sessions, one of each common subnet that has one.
    #[serde(default)]
    pub sessions: Vec<SessionInfo>,
    /// What stands before this end, on the way to the peer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub here: Option<NatInfo>,
    /// What stands before the peer, as it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub there: Option<NatInfo>,
    /// Where datagrams were tried.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tried: Vec<Tried>,
    /// The last 20 changes of its path, the newest last.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub changes: Vec<PathChange>,
}

/// `ping`: control and data path apart. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct PingInfo {
    pub target: String,
    pub peer_id: PeerId,
    pub address: Option<IpAddr>,
    pub sent: u32,
    pub received: u32,
    pub control_rtt_ms: Vec<Option<f64>>,
    pub rtt_ms: Vec<Option<f64>>,
    pub path: Path,
    /// The way that was measured, where a kind was asked for: another one than `path`, where packets take the other kind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub over: Option<Path>,
    /// Whether no way of the kind that was asked for leads to the peer now.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub absent: bool,
    /// What the peer's machine refused lately, with what opens it there.
    #[serde(default)]
    pub refused: Vec<Problem>,
}
