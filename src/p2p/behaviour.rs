//! The behaviours and how they are stacked: the gate with everything members get, then the join protocol.

use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, identify, mdns, ping};

use super::admission::Seen;
use super::codec::Codec;
use super::gate::Gate;
use super::{Config, Protocol, TransportKind, data};

/// Time for one request and its answer.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Exchanges of one connection and protocol at a time: a stranger's questions cost 64 KiB each, a member's 1 MiB.
const EXCHANGES: (usize, usize) = (4, 8);
/// What is asked on the local networks: often enough that a peer behind a switch is found soon; any answer heard
/// resets every listener's timer, so that one node asks for all.
const QUERY: Duration = Duration::from_secs(10);
/// How long others may believe an answer.
const TTL: Duration = Duration::from_secs(120);

/// All behaviours. The order matters: the gate, which refuses connections, comes before those that
/// keep books about them.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) gate: Gate<Members>,
    pub(super) join: request_response::Behaviour<Codec>,
}

/// The behaviours that members' connections get.
#[derive(NetworkBehaviour)]
pub(super) struct Members {
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) control: request_response::Behaviour<Codec>,
    pub(super) service: request_response::Behaviour<Codec>,
    pub(super) data: data::Behaviour,
    pub(super) mdns4: Toggle<mdns::tokio::Behaviour>,
    pub(super) mdns6: Toggle<mdns::tokio::Behaviour>,
}

/// Makes the behaviours; mDNS is left out where `config` does not want it.
pub(super) fn build(config: &Config, key: &Keypair, seen: &Seen) -> Behaviour {
    let identify = identify::Config::new("byway/1".to_owned(), key.public())
        .with_agent_version(config.agent.clone())
        // A link that comes up gives new addresses: members hear of them at once.
        .with_push_listen_addr_updates(true)
        .with_cache_size(0);
    let members = Members {
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(
            ping::Config::new()
                .with_interval(config.timing.ping)
                .with_timeout(config.timing.ping),
        ),
        control: exchange(Protocol::Control, EXCHANGES.1),
        service: exchange(Protocol::Service, EXCHANGES.1),
        data: data::Behaviour::new(),
        mdns4: discovery(config, key, false).into(),
        mdns6: discovery(config, key, true).into(),
    };
    Behaviour {
        gate: Gate::new(members, config.limits, seen.clone()),
        join: exchange(Protocol::Join, EXCHANGES.0),
    }
}

fn exchange(protocol: Protocol, streams: usize) -> request_response::Behaviour<Codec> {
    request_response::Behaviour::with_codec(
        Codec {
            asked: protocol.cap(),
            answered: protocol.answer_cap(),
        },
        [(
            StreamProtocol::new(protocol.as_str()),
            ProtocolSupport::Full,
        )],
        request_response::Config::default()
            .with_request_timeout(EXCHANGE)
            .with_max_concurrent_streams(streams),
    )
}

/// Makes the discovery of one family, because libp2p's behaviour serves one only.
fn discovery(config: &Config, key: &Keypair, enable_ipv6: bool) -> Option<mdns::tokio::Behaviour> {
    if !config.lan_discovery || config.transport == TransportKind::Memory {
        return None;
    }
    let settings = mdns::Config {
        ttl: TTL,
        query_interval: QUERY,
        enable_ipv6,
    };
    mdns::tokio::Behaviour::new(settings, key.public().to_peer_id())
        .inspect_err(
            |error| tracing::warn!(%error, ipv6 = enable_ipv6, "no discovery on local networks"),
        )
        .ok()
}
