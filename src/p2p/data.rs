//! The data behaviour: one stream per common subnet and direction, pinned to its connection.
//!
//! libp2p-stream is not used: it drops inbound streams silently and opens outbound ones on a connection it picks itself.
//! Here each member connection has its own [`handler`]; the behaviour tells it which subnets both sides share and passes
//! finished streams on.

mod handler;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId as LibPeer};

use self::handler::{FromHandler, Handler, Order};
use super::Members;
use super::address::is_circuit;
use super::stream::{Activity, DataStream};
use crate::model::id::{PeerId, SubnetId};

/// Subnets two peers can share: 24 streams each way leave 16 of a connection's 64 for control, join, identify and ping.
const SUBNETS: usize = 24;

/// A stream that is ready for packets.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: ConnectionId,
    pub(super) subnet: SubnetId,
    pub(super) direction: Direction,
    pub(super) stream: DataStream,
}

/// Which end writes a stream: ours an outbound one, the peer's an inbound one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Outbound,
    Inbound,
}

struct Connection {
    peer: LibPeer,
    /// Whether it runs through a relay.
    relayed: bool,
    activity: Arc<Activity>,
    subnets: BTreeSet<SubnetId>,
}

/// The peers whose packets circuits carry, because no datagram does.
struct Circuits {
    /// Whether datagrams carry packets here at all; else circuits carry everybody's.
    datagrams: bool,
    /// The peers that datagrams cannot reach.
    blocked: BTreeSet<PeerId>,
}

impl Circuits {
    fn carry(&self, peer: &PeerId) -> bool {
        !self.datagrams || self.blocked.contains(peer)
    }
}

/// Opens and hands on the data streams of all member connections.
pub(super) struct Behaviour {
    members: Arc<Members>,
    /// To whom circuits carry packets.
    circuits: Circuits,
    connections: HashMap<ConnectionId, Connection>,
    events: VecDeque<ToSwarm<Opened, Order>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// `datagrams`: as in [`Config`](super::Config).
    pub(super) fn new(datagrams: bool) -> Self {
        Behaviour {
            members: Arc::default(),
            circuits: Circuits {
                datagrams,
                blocked: BTreeSet::new(),
            },
            connections: HashMap::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Tells every connection which subnets it carries from now on.
    pub(super) fn set_members(&mut self, members: Arc<Members>) {
        self.members = members;
        let Behaviour {
            members, circuits, ..
        } = self;
        // Of who comes back it is found out anew.
        circuits.blocked.retain(|peer| members.contains_key(peer));
        self.tell();
    }

    /// Tells whether datagrams cannot reach a peer, so that circuits carry its packets.
    pub(super) fn set_blocked(&mut self, peer: PeerId, blocked: bool) {
        if blocked && self.members.contains_key(&peer) {
            self.circuits.blocked.insert(peer);
        } else {
            self.circuits.blocked.remove(&peer);
        }
        self.tell();
    }

    /// Tells each connection what is new of the subnets it carries.
    fn tell(&mut self) {
        for (id, connection) in &mut self.connections {
            let subnets = carried(
                &self.members,
                &self.circuits,
                &connection.peer,
                connection.relayed,
            );
            if connection.subnets != subnets {
                connection.subnets.clone_from(&subnets);
                self.events.push_back(ToSwarm::NotifyHandler {
                    peer_id: connection.peer,
                    handler: NotifyHandler::One(*id),
                    event: Order::Carry(subnets),
                });
            }
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Makes all streams of a connection fail at once, before the connection itself has closed.
    pub(super) fn cut(&mut self, connection: ConnectionId) {
        if let Some(gone) = self.connections.get(&connection) {
            gone.activity.cut();
            self.open_beside(connection, gone.peer);
        }
    }

    /// A connection of the peer carries nothing more: streams of the others, which may have been closed for its sake, are
    /// opened again.
    fn open_beside(&mut self, gone: ConnectionId, peer: LibPeer) {
        for (id, other) in &self.connections {
            if other.peer == peer && *id != gone {
                self.events.push_back(ToSwarm::NotifyHandler {
                    peer_id: peer,
                    handler: NotifyHandler::One(*id),
                    event: Order::OpenSoon,
                });
            }
        }
        self.wake();
    }

    /// Whether packets have come in on the connection since the last call.
    pub(super) fn take_heard(&self, connection: ConnectionId) -> bool {
        self.connections
            .get(&connection)
            .is_some_and(|c| c.activity.take_heard())
    }

    /// Whether packets have passed on the connection, in or out, since the last call.
    pub(super) fn take_moved(&self, connection: ConnectionId) -> bool {
        self.connections
            .get(&connection)
            .is_some_and(|c| c.activity.take_moved())
    }

    fn handler(&mut self, id: ConnectionId, peer: LibPeer, remote: &Multiaddr) -> Handler {
        let activity = Arc::new(Activity::default());
        let relayed = is_circuit(remote);
        let subnets = carried(&self.members, &self.circuits, &peer, relayed);
        let handler = Handler::new(subnets.clone(), activity.clone());
        self.connections.insert(
            id,
            Connection {
                peer,
                relayed,
                activity,
                subnets,
            },
        );
        handler
    }
}

/// The subnets whose packets a connection carries: those in common; through a relay none, unless nothing else reaches the
/// peer.
fn carried(
    members: &Members,
    circuits: &Circuits,
    peer: &LibPeer,
    relayed: bool,
) -> BTreeSet<SubnetId> {
    let peer = super::peer_from_lib(peer).filter(|peer| !relayed || circuits.carry(peer));
    let subnets = peer.and_then(|peer| members.get(&peer));
    subnets
        .into_iter()
        .flatten()
        .copied()
        .take(SUBNETS)
        .collect()
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Opened;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id, peer, remote))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(id, peer, remote))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let gone = match event {
            FromSwarm::ConnectionClosed(closed) => closed.connection_id,
            // Another behaviour refused the connection after this one had made its handler.
            FromSwarm::ListenFailure(failure) => failure.connection_id,
            FromSwarm::DialFailure(failure) => failure.connection_id,
            _ => return,
        };
        if let Some(connection) = self.connections.remove(&gone) {
            connection.activity.cut();
            self.open_beside(gone, connection.peer);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: LibPeer,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let FromHandler {
            subnet,
            direction,
            stream,
        } = event;
        // The set may have shrunk while the handler was finishing: the stream is then dropped here.
        if self
            .connections
            .get(&id)
            .is_some_and(|c| c.subnets.contains(&subnet))
        {
            self.events.push_back(ToSwarm::GenerateEvent(Opened {
                connection: id,
                subnet,
                direction,
                stream,
            }));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Opened, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circuits_carry_packets_only_of_members_that_no_datagram_reaches_now() {
        let subnet = SubnetId([7; 16]);
        let key = libp2p::identity::Keypair::ed25519_from_bytes([5; 32]).unwrap();
        let lib = key.public().to_peer_id();
        let peer = crate::p2p::peer_from_lib(&lib).unwrap();
        let nobody = || Arc::new(Members::new());
        let member = || Arc::new(Members::from([(peer, vec![subnet])]));
        let carries = |data: &Behaviour, relayed| {
            !carried(&data.members, &data.circuits, &lib, relayed).is_empty()
        };
        let mut data = Behaviour::new(true);
        data.set_blocked(peer, true);
        data.set_members(member());
        assert!(!carries(&data, true), "it was no member when that was said");
        data.set_blocked(peer, true);
        assert!(carries(&data, true) && carries(&data, false));
        data.set_members(nobody());
        data.set_members(member());
        assert!(!carries(&data, true), "of who comes back it is not known");
        data.set_blocked(peer, true);
        data.set_blocked(peer, false);
        assert!(!carries(&data, true) && carries(&data, false));
        let mut without = Behaviour::new(false);
        without.set_members(member());
        assert!(carries(&without, true));
        without.set_members(nobody());
        assert!(!carries(&without, true));
    }
}
