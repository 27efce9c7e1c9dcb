//! Stock DCUtR through two NATs and a relay of ours, with our transport at one end. Needs root.
//!
//! Our nodes do not speak DCUtR: their own probes find the way. But a libp2p program that uses our transport, or talks to one,
//! must get through with it. Whoever has the place at the relay begins, and lets the other one in (`Endpoint::Listener`); so
//! each case runs with our transport at either end.

use futures::StreamExt;
use libp2p::core::multiaddr::Protocol;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Transport as _};
use libp2p::swarm::{ConnectionId, NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId as LibPeer, Swarm, identify, noise, ping, relay, swarm, tcp, yamux,
};
use tokio::sync::oneshot;

use super::nat::{A, B, Nats, SWITCH};
use super::stock::key;
use super::*;
use crate::p2p::circuits::{self, Kept};
use crate::p2p::transport;

/// What a stock program has that wants to be reached behind a NAT. `C` asks relays for places and circuits.
#[derive(NetworkBehaviour)]
struct Puncher<C: NetworkBehaviour> {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    dcutr: libp2p_dcutr::Behaviour,
    circuits: C,
}

/// A client of relays, and what it says when it has a place.
trait Client: NetworkBehaviour {
    fn has_place(event: &Self::ToSwarm) -> bool;
}

impl Client for circuits::Client {
    fn has_place(_: &Kept) -> bool {
        true
    }
}

impl Client for relay::client::Behaviour {
    fn has_place(event: &relay::client::Event) -> bool {
        matches!(event, relay::client::Event::ReservationReqAccepted { .. })
    }
}

fn swarm<C: NetworkBehaviour>(
    seed: u8,
    transport: super::stock::Transport,
    circuits: C,
) -> Swarm<Puncher<C>> {
    let (key, peer) = (key(seed), key(seed).public().to_peer_id());
    let ping = ping::Config::new().with_interval(Duration::from_millis(300));
    let behaviour = Puncher {
        identify: identify::Behaviour::new(identify::Config::new("x/1".to_owned(), key.public())),
        ping: ping::Behaviour::new(ping),
        dcutr: libp2p_dcutr::Behaviour::new(peer),
        circuits,
    };
    let settings =
        swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(transport, behaviour, peer, settings)
}

/// Our transport, with our client of relays.
fn ours(seed: u8, listen: &str) -> Swarm<Puncher<circuits::Client>> {
    let config = on_loopback(seed, listen);
    let built = transport::build(
        &config,
        &key(seed),
        &Default::default(),
        &Default::default(),
        &Default::default(),
    )
    .unwrap();
    swarm(seed, built.transport, built.circuits)
}

/// Nothing of ours.
fn stock(seed: u8, _: &str) -> Swarm<Puncher<relay::client::Behaviour>> {
    let (relayed, client) = relay::client::new(key(seed).public().to_peer_id());
    let noise = || noise::Config::new(&key(seed)).unwrap();
    let relayed = relayed
        .upgrade(Version::V1)
        .authenticate(noise())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let tcp = tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(Version::V1)
        .authenticate(noise())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let quic = super::stock::stock_quic(seed);
    let direct = tcp.or_transport(quic).map(|either, _| either.into_inner());
    let all = relayed
        .or_transport(direct)
        .map(|either, _| either.into_inner());
    swarm(seed, all.boxed(), client)
}

/// One end, and the relay that it knows.
struct End<C: Client> {
    swarm: Swarm<Puncher<C>>,
    relay: Multiaddr,
}

impl<C: Client> End<C>
where
    C::ToSwarm: std::fmt::Debug,
{
    /// Listens, and lets the relay see it: DCUtR tells of the addresses that it has seen when a circuit begins.
    async fn begin(mut swarm: Swarm<Puncher<C>>, listen: &str, relay: Multiaddr) -> End<C> {
        swarm.listen_on(listen.parse().unwrap()).unwrap();
        swarm.dial(relay.clone()).unwrap();
        let mut end = End { swarm, relay };
        end.until("the relay has seen us", |event| {
            let seen = matches!(event, SwarmEvent::NewExternalAddrCandidate { .. });
            seen.then_some(())
        })
        .await;
        end
    }

    async fn until<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&SwarmEvent<PuncherEvent<C>>) -> Option<T>,
    ) -> T {
        let found = async {
            loop {
                if let Some(found) = pick(&self.swarm.select_next_some().await) {
                    return found;
                }
            }
        };
        let found = timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("in vain until {what}"))
    }

    /// Keeps its connections going until the sender is done or gone.
    async fn serve_until(&mut self, done: oneshot::Receiver<()>) {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                _ = &mut done => return,
                _ = self.swarm.select_next_some() => {}
            }
        }
    }

    fn circuit(&self) -> Multiaddr {
        self.relay.clone().with(Protocol::P2pCircuit)
    }

    async fn take_place(&mut self) {
        self.swarm.listen_on(self.circuit()).unwrap();
        self.until("a place at the relay", |event| match event {
            SwarmEvent::Behaviour(PuncherEvent::Circuits(event)) => {
                C::has_place(event).then_some(())
            }
            _ => None,
        })
        .await;
    }

    fn dial_through(&mut self, peer: LibPeer) {
        let to = self.circuit().with(Protocol::P2p(peer));
        self.swarm.dial(to).unwrap();
    }

    /// Waits until DCUtR is done with `peer` and the direct connection carries a ping; its remote address.
    async fn direct(&mut self, peer: LibPeer) -> Multiaddr {
        let mut addresses: Vec<(ConnectionId, Multiaddr)> = Vec::new();
        let mut upgraded = None;
        self.until("a ping over the direct connection", |event| {
            match event {
                SwarmEvent::ConnectionEstablished {
                    peer_id,
                    connection_id,
                    endpoint: ConnectedPoint::Dialer { address, .. },
                    ..
                } if *peer_id == peer => addresses.push((*connection_id, address.clone())),
                SwarmEvent::Behaviour(PuncherEvent::Dcutr(event)) => {
                    assert_eq!(event.remote_peer_id, peer);
                    upgraded = Some(*event.result.as_ref().expect("DCUtR succeeds"));
                }
                SwarmEvent::Behaviour(PuncherEvent::Ping(event))
                    if Some(event.connection) == upgraded =>
                {
                    event.result.as_ref().expect("the ping is answered");
                    return addresses
                        .iter()
                        .find(|(id, _)| Some(*id) == upgraded)
                        .map(|(_, address)| address.clone());
                }
                _ => {}
            }
            None
        })
        .await
    }
}

type Thread = std::thread::JoinHandle<()>;

/// The relay: a node of ours that serves everybody, and listens when this returns.
fn relay_at(nats: &Nats, listen: &'static str, done: oneshot::Receiver<()>) -> (LibPeer, Thread) {
    let (listens, listening) = std::sync::mpsc::channel();
    let thread = nats.at(SWITCH, move || async move {
        let mut config = on_loopback(250, listen);
        (config.serve, config.join) = (Serve::Anyone, false);
        let node = Node::start(config).await;
        listens.send(()).unwrap();
        // Its sender is dropped when both ends are done, or have failed.
        let _ = done.await;
        node.stop().await;
    });
    listening.recv().unwrap();
    (key(250).public().to_peer_id(), thread)
}

/// `first` has the place, and `second` comes through it.
fn meets<C, D>(
    protocol: &'static str,
    relay_listens: &'static str,
    first: fn(u8, &str) -> Swarm<Puncher<C>>,
    second: fn(u8, &str) -> Swarm<Puncher<D>>,
) where
    C: Client + 'static,
    D: Client + 'static,
    C::ToSwarm: std::fmt::Debug,
    D::ToSwarm: std::fmt::Debug,
{
    let nats = Nats::new();
    let (done, finish) = oneshot::channel();
    let (relay, serving) = relay_at(&nats, relay_listens, finish);
    let relay: Multiaddr = format!("{relay_listens}/p2p/{relay}").parse().unwrap();
    let listen = |host: &str| format!("/ip4/{host}/{protocol}");
    let (there, here) = (relay.clone(), relay);
    let (is_placed, placed) = oneshot::channel();
    let (a_done, b_waits) = oneshot::channel::<()>();
    let (b_done, a_waits) = oneshot::channel::<()>();
    let [a, b] = [251, 252].map(|seed| key(seed).public().to_peer_id());
    let at_a = nats.at(A, {
        let listen = listen("10.1.0.2");
        move || async move {
            let swarm = first(251, &listen);
            let mut end = End::begin(swarm, &listen, there).await;
            end.take_place().await;
            is_placed.send(()).unwrap();
            let through = end.direct(b).await;
            assert!(
                through.to_string().starts_with("/ip4/192.0.2.2/"),
                "{through}"
            );
            drop(a_done);
            end.serve_until(a_waits).await;
        }
    });
    let at_b = nats.at(B, {
        let listen = listen("10.2.0.2");
        move || async move {
            let swarm = second(252, &listen);
            let mut end = End::begin(swarm, &listen, here).await;
            end.serve_until(placed).await;
            end.dial_through(a);
            let through = end.direct(a).await;
            assert!(
                through.to_string().starts_with("/ip4/192.0.2.1/"),
                "{through}"
            );
            drop(b_done);
            end.serve_until(b_waits).await;
        }
    });
    let ended = [at_a.join(), at_b.join()];
    drop(done);
    serving.join().unwrap();
    ended.into_iter().for_each(|end| end.unwrap());
}

const QUIC: (&str, &str) = ("udp/4100/quic-v1", "/ip4/192.0.2.3/udp/4100/quic-v1");
const TCP: (&str, &str) = ("tcp/4100", "/ip4/192.0.2.3/tcp/4100");

#[test]
#[ignore = "needs root"]
fn a_stock_dcutr_peer_is_let_in_through_two_nats_by_our_transport() {
    meets(QUIC.0, QUIC.1, ours, stock);
    meets(TCP.0, TCP.1, ours, stock);
}

#[test]
#[ignore = "needs root"]
fn our_transport_is_let_in_through_two_nats_by_a_stock_dcutr_peer() {
    meets(QUIC.0, QUIC.1, stock, ours);
    meets(TCP.0, TCP.1, stock, ours);
}
