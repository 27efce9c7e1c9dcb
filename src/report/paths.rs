//! How packets reach each peer: by datagrams, by a stream, or since when by nothing. What links, sessions and connections
//! know of that, as the API shows it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Report;
use crate::api::types::{self, Carriers, Path, SessionInfo, relay_in};
use crate::config::PostQuantum;
use crate::link::direct::{DirectStatus, PathStatus};
use crate::link::{Carried, Key, LinkStatus};
use crate::model::build::MTU;
use crate::model::id::PeerId;
use crate::node::unix_now;
use crate::p2p;
use crate::wire::datagram::OVERHEAD;
use crate::wire::relay;

/// What `p2p` calls the transport of a connection through a relay.
pub(super) const RELAYED: &str = "relay";
/// Addresses shown of a peer that is offline.
const SHOWN: usize = 2;

/// What the peers' task knows, by peer.
pub(super) type Peers = BTreeMap<PeerId, p2p::PeerStatus>;

/// What the control task of the datagrams knows.
pub(super) type Sessions = HashMap<Key, DirectStatus>;

pub(super) async fn peers(ctx: &Report) -> Peers {
    ctx.peers
        .status()
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|p| (p.peer, p))
        .collect()
}

pub(super) fn rtt_ms(status: Option<&p2p::PeerStatus>) -> Option<f64> {
    status?
        .connections
        .iter()
        .rev()
        .find_map(|c| c.rtt)
        .map(millis)
}

/// Milliseconds, to the microsecond.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The place of a multiaddr, as a person types it; of one through a relay the whole.
pub(super) fn endpoint_text(remote: &str) -> String {
    let address = remote.parse::<p2p::Address>().ok();
    let place = address.as_ref().and_then(p2p::Address::place);
    place.unwrap_or_else(|| remote.to_owned())
}

pub(super) async fn sessions(ctx: &Report) -> Sessions {
    match &ctx.mesh.direct {
        Some(direct) => direct.status().await,
        None => Sessions::new(),
    }
}

pub(super) fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

pub(super) fn carried(carried: Carried) -> types::Carried {
    let Carried {
        tx_bytes,
        rx_bytes,
        tx_packets,
        rx_packets,
    } = carried;
    types::Carried {
        tx_bytes,
        rx_bytes,
        tx_packets,
        rx_packets,
    }
}

pub(super) fn carriers(link: &LinkStatus) -> Carriers {
    Carriers {
        datagram: carried(link.datagrams),
        stream: carried(link.streams),
    }
}

pub(super) fn session(status: &DirectStatus) -> SessionInfo {
    SessionInfo {
        cipher: status.cipher.map(|cipher| cipher.to_string()),
        post_quantum: status.hybrid,
        keys: status.keys,
        path_changes: status.path_changes,
    }
}

/// Bytes of the largest packet of a subnet on a path: what the underlay's headers and the frame leave of it.
pub(super) fn inner_mtu(path: &PathStatus) -> u16 {
    let headers = if path.to.is_ipv4() { 28 } else { 48 };
    let leg = path.relay.map_or(0, |_| relay::PREFIX);
    let frame = u16::try_from(OVERHEAD + leg).unwrap_or(u16::MAX);
    path.mtu
        .saturating_sub(headers)
        .saturating_sub(frame)
        .min(MTU)
}

/// The path of datagrams as `status` and `peer show` have it.
fn datagrams(path: &PathStatus) -> Path {
    let (kind, via) = match path.relay {
        Some(relay) => ("relay", relay.to_string()),
        None => ("direct", p2p::named(path.to)),
    };
    Path {
        kind: kind.into(),
        carrier: Some("datagram".into()),
        transport: Some("udp".into()),
        via: Some(via),
        since: seconds(path.since).unwrap_or_else(unix_now),
        mtu: Some(path.mtu),
        ..Path::default()
    }
}

/// The path of a stream to the far end `remote` of a connection. `below`: the transport to the relay, where it leads through
/// one.
fn stream(transport: &str, remote: &str, below: Option<&str>, since: u64) -> Path {
    let path = Path {
        kind: "direct".into(),
        carrier: Some("stream".into()),
        transport: Some(transport.to_owned()),
        via: Some(endpoint_text(remote)),
        since,
        ..Path::default()
    };
    if transport != RELAYED {
        return path;
    }
    Path {
        kind: "relay".into(),
        transport: below.map(str::to_owned),
        via: relay_in(remote).map(|relay| relay.to_string()),
        ..path
    }
}

/// How packets reach a peer: by datagrams, by the stream in use, or since when by nothing.
pub(super) fn path(
    ctx: &Report,
    peer: PeerId,
    link: Option<&LinkStatus>,
    direct: Option<&PathStatus>,
    status: Option<&p2p::PeerStatus>,
) -> Path {
    if let Some(direct) = direct {
        return datagrams(direct);
    }
    let since = link.and_then(|l| l.since).and_then(seconds);
    if let Some(via) = link.and_then(|l| l.via.as_ref()) {
        let since = since.unwrap_or_else(unix_now);
        return stream(via.transport, &via.remote, via.below, since);
    }
    // Through a relay that carries control only, until a way for packets is found.
    let circuit = status.and_then(|s| s.connections.iter().rev().find(|c| c.relay.is_some()));
    if let Some(circuit) = circuit {
        let since = unix_now().saturating_sub(circuit.age.as_secs());
        return Path {
            carrier: None,
            via: circuit.relay.map(|relay| relay.to_string()),
            ..stream(circuit.transport, &circuit.remote, circuit.below, since)
        };
    }
    // Where no stream may carry packets, a connection is no way for them.
    let by_streams = ctx.config.post_quantum != PostQuantum::Require;
    // Connected, but in no common subnet's stream yet.
    if let (None, Some(connection)) = (
        link,
        status
            .and_then(|s| s.connections.last())
            .filter(|_| by_streams),
    ) {
        return stream(
            connection.transport,
            &connection.remote,
            connection.below,
            unix_now().saturating_sub(connection.age.as_secs()),
        );
    }
    let gone = ctx
        .mesh
        .table
        .gone_since(peer)
        .or(since)
        .unwrap_or_else(|| unix_now().saturating_sub(ctx.started.elapsed().as_secs()));
    // A connection that is there and carries no packets may be dead, or not: it is not said where nobody was reached.
    let apart = status.is_none_or(|status| status.connections.is_empty());
    let (reason, via) = apart.then(|| unreached(status)).flatten().unzip();
    let reason = reason.map(str::to_owned);
    let seen = ctx.mesh.sightings.ago(peer);
    let seen_at = seen.map(|ago| unix_now().saturating_sub(ago.as_secs()));
    let gone = seen_at.map_or(gone, |at| at.max(gone));
    if apart && !ctx.peers.holds(peer) && is_idle(ctx, peer, seen, status) {
        return Path {
            kind: "idle".into(),
            since: gone,
            ..Path::default()
        };
    }
    Path {
        kind: "offline".into(),
        via: via.flatten(),
        reason,
        since: gone,
        ..Path::default()
    }
}

/// Whether a member that this node is not connected to, and need not be, is there as far as is known: somebody saw it lately,
/// and no dial has failed since. `seen`: how long ago it was last seen by anybody.
fn is_idle(
    ctx: &Report,
    peer: PeerId,
    seen: Option<Duration>,
    status: Option<&p2p::PeerStatus>,
) -> bool {
    let Some(status) = status.filter(|status| !status.addresses.is_empty()) else {
        return false;
    };
    match (status.away, seen) {
        (Some(away), seen) => seen.is_some_and(|seen| seen < away),
        (None, _) => !ctx.mesh.sightings.is_gone(peer),
    }
}

/// Why a peer that is not connected is not, and where it was not reached; nothing where nobody has tried yet.
fn unreached(status: Option<&p2p::PeerStatus>) -> Option<(&'static str, Option<String>)> {
    let Some(status) = status.filter(|s| !s.addresses.is_empty()) else {
        return Some(("no-address", None));
    };
    let mut tried: Vec<String> = Vec::new();
    for address in &status.addresses {
        let text = endpoint_text(&address.to_string());
        if !tried.contains(&text) {
            tried.push(text);
        }
    }
    let more = tried.len().saturating_sub(SHOWN);
    tried.truncate(SHOWN);
    let list = tried.join(", ");
    let list = if more > 0 {
        format!("{list} and {more} more")
    } else {
        list
    };
    (status.failures > 0).then_some(("not-reached", Some(list)))
}

/// How packets reach each member that is connected, or has a path of datagrams.
pub(super) async fn paths(ctx: &Report) -> BTreeMap<Key, Path> {
    let view = ctx.node.view().load_full();
    let sessions = sessions(ctx).await;
    let connected = ctx.mesh.table.members();
    let mut paths = BTreeMap::new();
    for subnet in view.subnets.values() {
        let by_datagrams = sessions
            .iter()
            .filter(|(key, s)| key.subnet == subnet.id && s.path.is_some());
        let peers = by_datagrams
            .map(|(key, _)| key.peer)
            .chain(connected.iter().copied());
        for peer in peers.filter(|peer| subnet.members.contains(peer)) {
            let key = Key {
                subnet: subnet.id,
                peer,
            };
            let direct = sessions.get(&key).and_then(|s| s.path.as_ref());
            paths
                .entry(key)
                .or_insert_with(|| path(ctx, peer, Some(&ctx.links.status(key)), direct, None));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_through_a_relay_names_the_relay_and_how_this_node_reaches_it() {
        let (relay, peer) = (PeerId([2; 32]), PeerId([3; 32]));
        let at = "/ip4/192.0.2.7/udp/4100/quic-v1";
        // The far end says that it reaches the relay by QUIC. This node does by a WebSocket.
        for remote in [
            format!("{at}/p2p/{relay}/p2p-circuit"),
            format!("{at}/p2p/{relay}/p2p-circuit/p2p/{peer}"),
        ] {
            let path = stream(RELAYED, &remote, Some("ws"), 7);
            assert_eq!(path.kind, "relay", "{remote}");
            assert_eq!(path.via, Some(relay.to_string()), "{remote}");
            assert_eq!(path.transport.as_deref(), Some("ws"), "{remote}");
        }
        // No relay is named where the address has none.
        let nameless = stream(RELAYED, &format!("/p2p/{peer}"), None, 7);
        assert_eq!((nameless.kind.as_str(), nameless.via), ("relay", None));
        let direct = stream("quic", at, None, 7);
        assert_eq!(
            (direct.kind.as_str(), direct.via.as_deref()),
            ("direct", Some("192.0.2.7:4100"))
        );
    }
}
