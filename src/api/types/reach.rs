//! How peers are reached and why not better, as `status`, `peer`, `probe`, `netcheck` and `doctor` answer it.

use std::net::IpAddr;

use super::LanInfo;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::model::id::PeerId;

/// How packets reach a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The kind of way: `direct`, `relay` or `offline`.
    pub kind: String,
    /// What carries the packets: `datagram` or `stream`; absent when offline.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub carrier: Option<String>,
    /// The transport below it: `udp`, `tcp`, `quic` or `ws`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transport: Option<String>,
    /// The peer's address, or the relay's peer ID.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub via: Option<String>,
    /// The relay's name, where it is a member that has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub via_name: Option<String>,
    /// Why it is no better one, in a word.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What a person can do about `reason`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
    /// When it began to be so, in seconds since 1970.
    pub since: u64,
    /// Bytes of the largest IP packet that datagrams may be; absent for streams, which have no such limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u16>,
}

impl Path {
    /// The places where an offline peer was not reached, as people read them: an address through a relay stands as
    /// `relay ID` with the first characters of the relay's ID, for it is over a hundred characters long. Each place stands
    /// once.
    pub fn places(&self) -> String {
        let via = self.via.as_deref().unwrap_or_default();
        let (list, more) = match via.split_once(" and ") {
            Some((list, more)) => (list, format!(" and {more}")),
            None => (via, String::new()),
        };
        let mut places: Vec<String> = Vec::new();
        for address in list.split(", ") {
            let relay = relay_in(address).map(|relay| format!("relay {}", relay.short()));
            let place = relay.unwrap_or_else(|| address.to_owned());
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places.join(", ") + &more
    }
}

/// The relay in the address of a circuit, `…/p2p/RELAY/p2p-circuit…`.
pub(crate) fn relay_in(address: &str) -> Option<PeerId> {
    let (ahead, _) = address.split_once("/p2p-circuit")?;
    ahead.rsplit_once("/p2p/")?.1.parse().ok()
}

/// An address of a peer that datagrams were tried at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Address and port, or the relay's peer ID where `kind` is `relay`.
    pub address: String,
    /// How it is known: `host`, `advertised`, `observed`, `predicted`, `mapped`, `relay`, or another word.
    pub kind: String,
    /// Whether the peer answered there since the last change of its addresses.
    pub answered: bool,
    /// Probes that were sent there.
    pub tries: u32,
    /// When the last of them was sent, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last: Option<u64>,
}

/// One change of the path to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChange {
    /// When it happened, in seconds since 1970.
    pub at: u64,
    /// The path before, as `direct udp A:P`; absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<String>,
    /// The path that packets took from then on; none where there was none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<String>,
    /// Why it changed, in words.
    pub cause: String,
}

/// The answer to `peer resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct ResolvedPeer {
    pub peer_id: PeerId,
    pub names: Vec<String>,
    pub addresses: Vec<KnownAddress>,
}

/// An address where a peer may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAddress {
    /// A multiaddr; `A:P` of a datagram path, the relay's where `relay` is given.
    pub address: String,
    /// Who says so: `typed` (a person), `announcement` (the peer, to all members), `identify` (the peer, over its
    /// connection), `invite` (whoever told of the peer), `mdns` (the local network), `reached` (it answered there in an
    /// earlier run), `connection` or `relay` (it is connected from there), `datagram` (its datagrams come from there).
    pub source: String,
    /// Whether the peer has answered there, or is there now: what is `used` is reached.
    pub reached: bool,
    /// Whether a connection, or the datagram path, goes there now.
    pub used: bool,
    /// The relay, where the address leads through one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relay: Option<PeerId>,
}

/// `probe`: what the carrier of packets to a peer is worth now. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct ProbeInfo {
    pub target: String,
    pub peer_id: PeerId,
    /// The median of the round trips of packets.
    pub rtt_ms: f64,
    /// The median of the round trips of questions over the control connection; null where none was answered.
    #[serde(default)]
    pub control_rtt_ms: Option<f64>,
    /// The mean difference of one round trip to the next.
    pub jitter_ms: f64,
    /// The share of probes that was not answered, 0 to 1.
    pub loss: f64,
    /// Megabits of packets a second that reach the peer; null where that was not measured.
    pub mbit: Option<f64>,
    /// Bytes of the largest IP packet of the datagram path; null for a stream.
    pub mtu: Option<u16>,
    pub path: Path,
    /// What was not measured, and why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

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
    /// From where datagrams are let in to a socket that sends: `endpoint-independent` (everywhere), `address-dependent` (every
    /// port of an address that it sent to), `address-and-port-dependent` (only where it sent to), or `unknown`.
    pub filtering: String,
    /// Why that is not known, in words; only of this machine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filtering_unknown: Option<String>,
    /// The address and port at which everybody is let in all the same: a router opened it, or `transport.advertise` names it.
    /// Of a peer it is what the peer tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub open: Option<String>,
}

/// An address of this machine's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnAddress {
    /// The address and port that datagrams are sent to.
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
    /// The peer ID of the relay.
    pub peer_id: PeerId,
    /// Its name, where it is a member that has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Where it is reached, or was looked for.
    pub address: String,
    /// Whether `transport.bootstrap` names it: of other relays that keep a place, invites say nothing.
    #[serde(default)]
    pub configured: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it keeps a place for this machine, so that others come in through it.
    pub reserved: bool,
    /// Since when it keeps that place, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reserved_since: Option<u64>,
    /// Why it keeps none although it is reached, in a word: `not-served` (it serves others only), `full`, `refused`, `denied`,
    /// `timeout`, `malformed`, or another one. Absent where it is not so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// Since when it says so, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused_since: Option<u64>,
    /// Whether `transport.deny_cidrs` of this machine covers each address that is known of it: it is never dialled. Absent
    /// where it is not so.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub denied: bool,
    /// Microseconds of the round trip to it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rtt_us: Option<u64>,
}

impl MeetingPoint {
    /// Why a relay that is reached keeps no place for this machine, in words; absent where it is not so.
    pub fn refusal(&self) -> Option<&str> {
        let words = match self.refused.as_deref()? {
            "not-served" => "it does not serve this machine",
            "full" => "it has no room",
            "denied" => "it does not permit it",
            "timeout" => "it does not answer the question for one",
            "malformed" => "what it answers makes no sense",
            "refused" => "it refuses one",
            other => other,
        };
        Some(words)
    }
}

/// The answer to `netcheck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetcheckInfo {
    /// What stands before this machine.
    #[serde(flatten)]
    pub nat: NatInfo,
    /// Where it may be reached, best first.
    pub addresses: Vec<OwnAddress>,
    /// The relays that this node knows, with whether each keeps a place for it.
    pub meeting_points: Vec<MeetingPoint>,
    /// How the search on the local networks goes; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lan: Option<LanInfo>,
    /// The proxy that connections out over TCP go through; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proxy: Option<ProxyInfo>,
    /// The router in front of this machine, with others in it; absent where it is to open no port (`transport.port_mapping`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub router: Option<RouterInfo>,
    /// What those say whom `transport.external` has asked; absent where that is `members`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub external: Option<ExternalInfo>,
    /// What is not well, each with its cause and its remedy.
    pub findings: Vec<Problem>,
}

/// The proxy of `transport.proxy`, and how it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyInfo {
    /// Its host and port.
    pub address: String,
    /// When it connected last, in seconds since 1970; absent: not since the daemon's start.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connected_at: Option<u64>,
    /// What it said when it last connected to nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// The place that `refused` is about, `HOST:PORT`; absent where it is the same for every place.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused_place: Option<String>,
    /// When it said so, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused_at: Option<u64>,
}

/// Where this machine is seen from outside, as STUN servers and pages say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalInfo {
    /// The value of `transport.external`: `stun`, `url` or `consensus`.
    pub by: String,
    /// The address and port that peers are told; absent where nobody answered, or too few agree.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// Whom was asked last, in order.
    pub sources: Vec<ExternalSource>,
}

/// A STUN server, or a page, that was asked where it sees this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalSource {
    /// `HOST:PORT` of a server, or the address of a page.
    pub name: String,
    /// What it said; absent where it said nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub said: Option<String>,
    /// Why it said nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// A router in front of this machine, and the ports that it opened. At one of IPv6 these are pinholes: ports of our own
/// address that its firewall lets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterInfo {
    /// The gateway of a default route; absent without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gateway: Option<IpAddr>,
    /// The ports that lead to this machine.
    pub ports: Vec<RouterPort>,
    /// Why there are none, or why they are of no use: `no-gateway`, `not-needed` (this machine has a public address),
    /// `not-offered` (the router speaks no protocol for it), `refused`, `double-nat`, `unsaved`, `no-randomness` or another
    /// word.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trouble: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
    /// The ports of this machine that it is asked for, as `udp/4100`; absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub wanted: Vec<String>,
    /// Seconds until it is asked for them again, by PCP, NAT-PMP and UPnP in turn; absent where nothing is amiss, or asking is of
    /// no use.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub again_s: Option<u64>,
    /// The routers of further default routes, and those of IPv6, each without others; absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub others: Vec<RouterInfo>,
}

/// A port of the router that leads to this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterPort {
    /// The protocol of the port, `udp` or `tcp`.
    pub proto: String,
    /// The port of this machine.
    pub port: u16,
    /// The address and port outside, as the router says.
    pub external: String,
    /// How the router was asked: `pcp`, `nat-pmp` or `upnp`.
    pub protocol: String,
    /// Seconds that it stays open unless it is renewed; absent where it stays for ever.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lease_s: Option<u64>,
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
    /// What was done to mend it, and what came of that, as sentences; only where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub done: Vec<String>,
    /// The peer that was asked about, or all.
    pub peers: Vec<Diagnosis>,
    /// As in [`NetcheckInfo`]; absent, too, where one peer was asked about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub router: Option<RouterInfo>,
    /// What is not well, each with its cause and its remedy.
    pub findings: Vec<Problem>,
}
