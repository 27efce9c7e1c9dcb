//! The behaviours and how they are stacked: the gate, what relays and their clients get, what members get, and the join
//! protocol.

use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{Multiaddr, StreamProtocol, identify, relay};

use super::admission::Seen;
use super::circuits::{Client, Shares};
use super::codec::Codec;
use super::gate::{Classes, Gate, Served};
use super::only::Only;
use super::{Class, Config, Protocol, Serve, data, ping};

/// Time for one request and its answer.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Exchanges of one connection and protocol at a time: a stranger's questions cost 64 KiB each, a member's 1 MiB.
const EXCHANGES: (usize, usize) = (4, 8);

/// Circuits of one client: each is a stream of its connection, of which there are 64.
const CIRCUITS_OF_A_PEER: usize = 48;
/// Places of one client: that of a connection, and that of the one which takes its place.
const PLACES_OF_A_PEER: usize = 1;
/// How long one circuit stands, and the bytes that it carries both ways: after that its ends open another. Far above what
/// control needs in that time; two members without UDP between them send their packets so, too.
const CIRCUIT: (Duration, u64) = (Duration::from_secs(7 * 86_400), 64 << 30);

/// All behaviours. The order matters: the gate, which refuses connections, comes before those that
/// keep books about them.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) gate: Gate,
    pub(super) meeting: Only<Meeting>,
    pub(super) server: Only<relay::Behaviour>,
    pub(super) members: Only<Members>,
    pub(super) join: Toggle<request_response::Behaviour<Codec>>,
}

/// The behaviours that connections of members, of relays and of their clients get.
#[derive(NetworkBehaviour)]
pub(super) struct Meeting {
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) circuits: Client,
    pub(super) relay: request_response::Behaviour<Codec>,
}

/// The behaviours that members' connections get.
#[derive(NetworkBehaviour)]
pub(super) struct Members {
    pub(super) control: request_response::Behaviour<Codec>,
    pub(super) service: request_response::Behaviour<Codec>,
    pub(super) data: data::Behaviour,
}

/// Makes the behaviours.
pub(super) fn build(
    config: &Config,
    key: &Keypair,
    seen: &Seen,
    served: &Served,
    shares: &Shares,
    circuits: Client,
) -> Behaviour {
    let identify = identify::Config::new("byway/1".to_owned(), key.public())
        .with_agent_version(config.agent.clone())
        // A link that comes up gives new addresses: members hear of them at once.
        .with_push_listen_addr_updates(true)
        .with_cache_size(0);
    let meeting = Meeting {
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(config.timing.ping),
        circuits,
        relay: exchange(Protocol::Relay, EXCHANGES.0),
    };
    let members = Members {
        control: exchange(Protocol::Control, EXCHANGES.1),
        service: exchange(Protocol::Service, EXCHANGES.1),
        data: data::Behaviour::new(config.datagrams),
    };
    let classes = Classes::default();
    let until = |most: Class| Box::new(move |class, _: &_| class <= most);
    let server = {
        let served = served.clone();
        move |class, peer: &libp2p::PeerId| {
            class <= Class::Meeting
                && super::peer_from_lib(peer)
                    .is_some_and(|peer| served.load().serves(&peer, class == Class::Member))
        }
    };
    let join = config.join.then(|| exchange(Protocol::Join, EXCHANGES.0));
    Behaviour {
        gate: Gate::new(config.limits, seen.clone(), classes.clone(), served.clone()),
        meeting: Only::new(meeting, classes.clone(), until(Class::Meeting)),
        server: Only::new(
            relay_of(config, key, shares),
            classes.clone(),
            Box::new(server),
        ),
        members: Only::new(members, classes, until(Class::Member)),
        join: join.into(),
    }
}

/// The server of circuits. Who may use it is up to the gate. What a source may hold, and how often it may ask, is up to the
/// shares: libp2p's own limits by rate would shut out a whole site behind one NAT after a restart of the relay.
fn relay_of(config: &Config, key: &Keypair, shares: &Shares) -> relay::Behaviour {
    let (places, circuits) = (shares.clone(), shares.clone());
    let may_have = move |peer, from: &Multiaddr, now| places.take_place(peer, from, now);
    let may_open = move |peer, from: &Multiaddr, now| circuits.may_open(peer, from, now);
    let limits = relay::Config {
        max_reservations: config.limits.circuits,
        max_reservations_per_peer: PLACES_OF_A_PEER,
        reservation_duration: config.timing.reservation,
        reservation_rate_limiters: vec![Box::new(may_have)],
        max_circuits: config.limits.circuits,
        max_circuits_per_peer: CIRCUITS_OF_A_PEER,
        max_circuit_duration: CIRCUIT.0,
        max_circuit_bytes: CIRCUIT.1,
        circuit_src_rate_limiters: vec![Box::new(may_open)],
    };
    let mut server = relay::Behaviour::new(key.public().to_peer_id(), limits);
    server.set_status(Some(status_of(&config.serve)));
    server
}

/// Whether the server says that it is one.
pub(super) fn status_of(serve: &Serve) -> relay::Status {
    match serve {
        Serve::Nobody => relay::Status::Disable,
        Serve::Members | Serve::Only(_) | Serve::Anyone => relay::Status::Enable,
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
