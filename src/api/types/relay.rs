//! What this node forwards for others, and what others forward for it, as `relay` answers it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reach::MeetingPoint;
use crate::model::id::PeerId;

/// The answer to `relay ls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct RelayInfo {
    /// Whom this node relays for and how much, as a sentence.
    pub offers: String,
    /// What is in force of `transport.relay.offer`: `"auto"`, true or false.
    #[serde(default)]
    pub offer: serde_json::Value,
    /// Where that was said: `FILE:LINE`, a flag, a variable, `command line (relay offer)`, `(relay off)` or `(relay auto)`, or
    /// `default`.
    #[serde(default)]
    pub offer_origin: String,
    /// The most Mbit/s that it forwards for all peers together; absent where it relays for nobody.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_mbit: Option<u32>,
    pub sessions: Vec<RelaySession>,
    /// Bytes forwarded since the start, of sessions that are over as well.
    pub bytes: u64,
    /// Datagrams not forwarded since the start, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Questions for a session that were refused since the start, by reason; those without any are left out.
    pub refused: BTreeMap<String, u64>,
    /// Relays that this node may use without its configuration naming them.
    #[serde(default)]
    pub known: Vec<KnownRelay>,
    /// The relays that the configuration names, and those that keep a place for this node, as in `netcheck`.
    #[serde(default)]
    pub places: Vec<MeetingPoint>,
    /// The relays that packets of this node go through now.
    #[serde(default)]
    pub uses: Vec<RelayUse>,
}

/// A relay that packets of this node go through now, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayUse {
    /// The relay.
    pub relay: PeerId,
    /// The peers at the other end.
    pub peers: Vec<PeerId>,
    /// What they are called, in the same order; the ID of who has no name.
    pub names: Vec<String>,
}

/// A relay that this node may use without its configuration naming it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields of the contract")]
pub struct KnownRelay {
    pub peer_id: PeerId,
    /// How this node knows: `connection` from the member itself, `record` from records alone.
    pub source: String,
    /// The most Mbit/s that it forwards for all peers together; absent of a relay that is no member.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_mbit: Option<u32>,
    /// Whether its owner offers it; else it forwards for those who have no other way.
    pub offered: bool,
    /// The members whose records say that it keeps a place for them; empty of a member.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub named_by: Vec<PeerId>,
    /// The round trip to it in milliseconds; absent before it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rtt_ms: Option<f64>,
}

/// Two peers whose packets are forwarded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelaySession {
    /// The peer that asked for the session, then the other one.
    pub peers: Vec<PeerId>,
    /// Where each is, as `A:P`; null before it has come.
    pub addresses: Vec<Option<String>>,
    /// Mbit/s, both ways together, as measured while this was asked.
    pub mbit: f64,
    /// Mbit/s that the asker may have in all its sessions; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_mbit: Option<u32>,
    /// Bytes that came from the first peer, and were forwarded.
    pub rx_bytes: u64,
    /// Bytes that were forwarded to the first peer.
    pub tx_bytes: u64,
    /// Datagrams that were not forwarded, by reason; those without any are left out.
    pub drops: BTreeMap<String, u64>,
    /// How long it has been there, in seconds.
    pub age_s: u64,
}
