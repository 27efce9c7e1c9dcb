//! What `netcheck` and `doctor` answer: what stands between this machine and its peers.

use serde::{Deserialize, Serialize};

use super::{Path, PathChange, Problem, Tried};
use crate::model::id::PeerId;

/// What stands between one end and the others, as far as it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatInfo {
    /// Whether an IPv4 address leads out.
    pub ipv4: bool,
    /// Whether an IPv6 address leads out.
    pub ipv6: bool,
    /// Whether datagrams pass: `works`, `blocked`, `unknown`, or `off` where no port is opened.
    pub udp: String,
    /// How the NAT chooses the port that others see: `none` (there is no NAT), `independent` (the same for everybody),
    /// `dependent` (another one for each: a symmetric NAT), or `unknown`.
    pub mapping: String,
    /// How far that port moves from one peer to the next, where it is always as far.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<i16>,
    /// From whom datagrams are let in that nobody asked for: `open` (everybody), `restricted`, or `unknown`.
    pub filtering: String,
}

/// An address of this machine's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnAddress {
    /// Address and port.
    pub address: String,
    /// How it is known, as [`Tried::kind`].
    pub kind: String,
    /// Who sees this machine's datagrams come from there, as names, or peer IDs of who has none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub seen_by: Vec<String>,
}

/// A meeting point: a relay that the configuration names, or that keeps a place for this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeetingPoint {
    /// The relay.
    pub peer_id: PeerId,
    /// Its name, where it is a member that has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Where it is reached, or was looked for.
    pub address: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it keeps a place for this machine, so that others come in through it.
    pub reserved: bool,
    /// Microseconds of the round trip to it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rtt_us: Option<u64>,
}

/// The answer to `netcheck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetcheckInfo {
    /// What stands before this machine.
    #[serde(flatten)]
    pub nat: NatInfo,
    /// Where it may be reached, best first.
    pub addresses: Vec<OwnAddress>,
    /// The meeting points.
    pub meeting_points: Vec<MeetingPoint>,
    /// What is not well, each with its cause and its remedy.
    pub findings: Vec<Problem>,
}

/// How one peer is reached, and why not better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The peer.
    pub peer_id: PeerId,
    /// What it is called.
    pub name: String,
    /// How packets reach it.
    pub path: Path,
    /// Why that is no better, in words; absent where it is direct.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// What stands before this machine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub here: Option<NatInfo>,
    /// What stands before the peer, as it says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub there: Option<NatInfo>,
    /// Where datagrams were tried.
    pub tried: Vec<Tried>,
    /// The last 20 changes of the path, the newest last.
    pub changes: Vec<PathChange>,
}

/// The answer to `doctor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DoctorInfo {
    /// The peer that was asked about, or all.
    pub peers: Vec<Diagnosis>,
    /// What is not well, each with its cause and its remedy.
    pub findings: Vec<Problem>,
}
