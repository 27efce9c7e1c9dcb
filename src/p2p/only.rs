//! A behaviour for connections of some classes only.
//!
//! The inner behaviour never hears of other connections. They get a handler that supports no protocol, so that their peers
//! cannot even learn the names of its protocols. This module remembers which connections the inner behaviour has heard of,
//! so that it hears of each beginning and each end exactly once: libp2p's behaviours panic otherwise.

use std::collections::HashMap;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId as LibPeer};

use super::Class;
use super::gate::Classes;

/// Whether a connection of this class to this peer is the inner behaviour's.
pub(super) type Rule = Box<dyn Fn(Class, &LibPeer) -> bool + Send>;

struct Told {
    peer: LibPeer,
    /// Whether the inner behaviour has heard of it.
    established: bool,
}

/// Gives the inner behaviour the connections that a rule names.
pub(super) struct Only<B> {
    pub(super) inner: B,
    classes: Classes,
    rule: Rule,
    told: HashMap<ConnectionId, Told>,
}

impl<B> Only<B> {
    pub(super) fn new(inner: B, classes: Classes, rule: Rule) -> Self {
        Only {
            inner,
            classes,
            rule,
            told: HashMap::new(),
        }
    }

    /// The connections that the inner behaviour has.
    pub(super) fn connections(&self) -> impl Iterator<Item = (ConnectionId, LibPeer)> + '_ {
        self.told.iter().map(|(id, told)| (*id, told.peer))
    }

    fn takes(&mut self, id: ConnectionId, peer: LibPeer) -> bool {
        let takes = (self.rule)(self.classes.of(id), &peer);
        if takes {
            let established = false;
            self.told.insert(id, Told { peer, established });
        }
        takes
    }

    fn established_of(&self, peer: &LibPeer) -> usize {
        self.told
            .values()
            .filter(|told| told.peer == *peer && told.established)
            .count()
    }

    /// The connection a message to a peer's handlers goes to.
    fn target(&self, peer: &LibPeer, handler: NotifyHandler) -> Option<ConnectionId> {
        match handler {
            // By its number alone: libp2p's relay names the peer of the other end of a circuit beside it.
            NotifyHandler::One(id) => self.told.contains_key(&id).then_some(id),
            NotifyHandler::Any => self
                .told
                .iter()
                .find(|(_, t)| t.peer == *peer)
                .map(|(id, _)| *id),
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Only<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.takes(id, peer) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner
            .handle_established_inbound_connection(id, peer, local, remote)
            .map(Either::Left)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<LibPeer>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if !self.takes(id, peer) {
            return Ok(Either::Right(dummy::ConnectionHandler));
        }
        self.inner
            .handle_established_outbound_connection(id, peer, address, role, port)
            .map(Either::Left)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // The inner behaviour keeps books of its own: it sees its connections only, and counts only those.
            FromSwarm::ConnectionEstablished(event) => {
                let other_established = self.established_of(&event.peer_id);
                if let Some(told) = self.told.get_mut(&event.connection_id) {
                    told.established = true;
                    let seen = ConnectionEstablished {
                        other_established,
                        ..event
                    };
                    self.inner
                        .on_swarm_event(FromSwarm::ConnectionEstablished(seen));
                }
            }
            FromSwarm::ConnectionClosed(event) => {
                if self.told.remove(&event.connection_id).is_some() {
                    let remaining_established = self.established_of(&event.peer_id);
                    let seen = ConnectionClosed {
                        remaining_established,
                        ..event
                    };
                    self.inner.on_swarm_event(FromSwarm::ConnectionClosed(seen));
                }
            }
            FromSwarm::AddressChange(event) => {
                if self.told.contains_key(&event.connection_id) {
                    self.inner.on_swarm_event(FromSwarm::AddressChange(event));
                }
            }
            FromSwarm::ListenFailure(event) => {
                self.told.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::ListenFailure(event));
            }
            FromSwarm::DialFailure(event) => {
                self.told.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::DialFailure(event));
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: LibPeer,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            Either::Left(event) => self.inner.on_connection_handler_event(peer, id, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match std::task::ready!(self.inner.poll(cx)) {
                // `Any` would let the swarm pick a connection whose handler takes no messages.
                ToSwarm::NotifyHandler {
                    peer_id,
                    handler,
                    event,
                } => {
                    if let Some(id) = self.target(&peer_id, handler) {
                        return Poll::Ready(ToSwarm::NotifyHandler {
                            peer_id,
                            handler: NotifyHandler::One(id),
                            event: Either::Left(event),
                        });
                    }
                }
                other => return Poll::Ready(other.map_in(Either::Left)),
            }
        }
    }
}
