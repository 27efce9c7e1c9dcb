//! `peer resolve`: where a peer may be, and who says so.

use super::Report;
use super::paths::{RELAYED, endpoint_text, sessions};
use super::peers::peer_show;
use crate::api::types::{Error, KnownAddress, ResolvedPeer, relay_in};
use crate::model::id::PeerId;
use crate::p2p::{self, ConnectionStatus, Known, PeerStatus, Source};

/// The word for who said that a peer is at an address.
fn word(source: Source) -> &'static str {
    match source {
        Source::Typed => "typed",
        Source::Announcement => "announcement",
        Source::Identify => "identify",
        Source::Hint => "invite",
        Source::Record => "record",
        Source::Earlier => "reached",
        Source::Connection => "connection",
        Source::Lan => "mdns",
    }
}

/// Every address of one peer, by ID, name or the beginning of its ID.
///
/// # Errors
/// `E-NO-PEER`, `E-AMBIGUOUS`, as `peer show`.
pub(crate) async fn resolve(ctx: &Report, text: &str) -> Result<ResolvedPeer, Error> {
    let info = peer_show(ctx, text).await?;
    let mut addresses = match ctx.peers.status_of(info.peer_id).await {
        Ok(status) => of_streams(&status),
        Err(_) => Vec::new(),
    };
    let found = sessions(ctx).await;
    let path = found
        .iter()
        .filter(|(key, _)| key.peer == info.peer_id)
        .find_map(|(_, session)| session.path.as_ref());
    addresses.extend(path.map(|path| KnownAddress {
        address: p2p::named(path.to),
        source: "datagram".into(),
        reached: true,
        used: true,
        relay: path.relay,
    }));
    Ok(ResolvedPeer {
        peer_id: info.peer_id,
        names: info.names,
        addresses,
    })
}

/// What the peers' task knows: the address book, and where connections come from that is not in it.
fn of_streams(status: &PeerStatus) -> Vec<KnownAddress> {
    let connected = |address: &str| {
        let ends = |c: &ConnectionStatus| endpoint_text(&c.remote) == endpoint_text(address);
        status.connections.iter().any(ends)
    };
    let entry = |address: String, source: &str, answered: bool, relay: Option<PeerId>| {
        let used = connected(&address);
        KnownAddress {
            used,
            source: source.to_owned(),
            // Whoever is connected there answers there, also where this end has dialled nothing.
            reached: answered || used,
            relay,
            address,
        }
    };
    let known = |known: &Known| {
        let address = known.address.to_string();
        let relay = relay_in(&address);
        entry(address, word(known.source), known.answered, relay)
    };
    let mut all: Vec<KnownAddress> = status.known.iter().map(known).collect();
    for connection in &status.connections {
        let remote = &connection.remote;
        if !all
            .iter()
            .any(|known| endpoint_text(&known.address) == endpoint_text(remote))
        {
            let source = match connection.transport {
                RELAYED => "relay",
                _ => "connection",
            };
            all.push(entry(remote.clone(), source, true, relay_in(remote)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::p2p::Class;

    #[test]
    fn what_is_used_is_reached() {
        let circuit = format!(
            "/ip4/192.0.2.9/tcp/4100/p2p/{}/p2p-circuit",
            PeerId([2; 32])
        );
        let status = PeerStatus {
            peer: PeerId([1; 32]),
            class: Class::Member,
            connections: vec![ConnectionStatus {
                connection: 1,
                class: Class::Member,
                transport: RELAYED,
                remote: circuit.clone(),
                relay: Some(PeerId([2; 32])),
                below: Some("tcp"),
                outbound: false,
                age: Duration::ZERO,
                rtt: None,
            }],
            addresses: vec![],
            // Told by the peer, and never dialled from here: it came through there by itself.
            known: vec![Known {
                address: circuit.parse().unwrap(),
                source: Source::Announcement,
                answered: false,
            }],
            reached: vec![],
            away: None,
            failures: 0,
            agent: None,
        };
        let all = of_streams(&status);
        let [only] = all.as_slice() else {
            unreachable!("{all:?}")
        };
        assert!(only.used && only.reached, "{only:?}");
    }

    #[test]
    fn each_address_has_its_source_and_a_connection_from_elsewhere_is_one_more() {
        let relay = PeerId([2; 32]);
        let known = |address: &str, source, answered| Known {
            address: address.parse().unwrap(),
            source,
            answered,
        };
        let connection = |transport, remote: &str| ConnectionStatus {
            connection: 1,
            class: Class::Member,
            transport,
            remote: remote.to_owned(),
            relay: None,
            below: None,
            outbound: false,
            age: Duration::ZERO,
            rtt: None,
        };
        let circuit = format!("/ip4/192.0.2.9/udp/4100/quic-v1/p2p/{relay}/p2p-circuit");
        let status = PeerStatus {
            peer: PeerId([1; 32]),
            class: Class::Member,
            connections: vec![
                connection("tcp", "/ip4/192.0.2.1/tcp/4100"),
                connection("quic", "/ip4/192.0.2.1/udp/50000/quic-v1"),
                connection(RELAYED, &circuit),
            ],
            addresses: vec![],
            known: vec![
                known("/ip4/192.0.2.1/tcp/4100", Source::Typed, true),
                known("/ip4/10.0.0.1/tcp/4100", Source::Announcement, false),
                known("/ip4/10.0.0.1/tcp/4101", Source::Lan, false),
            ],
            reached: vec![],
            away: None,
            failures: 0,
            agent: None,
        };
        let all = of_streams(&status);
        let told: Vec<(&str, bool, bool, Option<PeerId>)> = all
            .iter()
            .map(|a| (a.source.as_str(), a.reached, a.used, a.relay))
            .collect();
        assert_eq!(
            told,
            [
                ("typed", true, true, None),
                ("announcement", false, false, None),
                ("mdns", false, false, None),
                ("connection", true, true, None),
                ("relay", true, true, Some(relay)),
            ]
        );
    }
}
