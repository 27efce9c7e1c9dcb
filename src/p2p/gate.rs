//! The gate: what a connection may speak is decided when it is made, by who is at its other end.
//!
//! A member (a valid grant in a common subnet) gets the inner behaviours' handlers; anybody else gets a handler that
//! supports nothing, so that not even the names of the other protocols can be learned. The inner behaviours never hear
//! of a stranger's connections. The class of a connection never changes: when membership does, the connection is
//! replaced.
//!
//! The gate also counts: connections of strangers in all and per source, and unfinished handshakes per source, so that
//! a flood from one place leaves room for members.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId as LibPeer};

use super::address::ip_of;
use super::{Class, Limits, Members};

/// Why the gate refused a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the peer's identity is no ed25519 key")]
    Key,
    #[error("too many connections of peers that are no members")]
    Strangers,
    #[error("too many unfinished connections from {0}")]
    Source(IpAddr),
}

struct Known {
    peer: LibPeer,
    class: Class,
    source: Option<IpAddr>,
    /// Whether the inner behaviours have heard of it.
    established: bool,
}

/// Gives the inner behaviours to members only.
pub(super) struct Gate<B> {
    pub(super) inner: B,
    members: Arc<Members>,
    limits: Limits,
    connections: HashMap<ConnectionId, Known>,
    /// Unfinished inbound handshakes.
    pending: HashMap<ConnectionId, IpAddr>,
}

impl<B> Gate<B> {
    pub(super) fn new(inner: B, limits: Limits) -> Self {
        Gate { inner, members: Arc::default(), limits, connections: HashMap::new(), pending: HashMap::new() }
    }

    /// Who is let in from now on; existing connections keep their class.
    pub(super) fn set_members(&mut self, members: Arc<Members>) {
        self.members = members;
    }

    /// The class a connection was given.
    pub(super) fn class(&self, connection: ConnectionId) -> Class {
        self.connections.get(&connection).map_or(Class::Stranger, |known| known.class)
    }

    fn members_of(&self, peer: &LibPeer) -> usize {
        self.connections.values().filter(|c| c.peer == *peer && c.class == Class::Member && c.established).count()
    }

    fn admit(&mut self, id: ConnectionId, peer: LibPeer, remote: &Multiaddr) -> Result<Class, ConnectionDenied> {
        self.pending.remove(&id);
        let key = super::peer_from_lib(&peer).ok_or_else(|| ConnectionDenied::new(Refused::Key))?;
        let source = ip_of(remote);
        let class = if self.members.contains_key(&key) { Class::Member } else { Class::Stranger };
        if class == Class::Stranger {
            let strangers = || self.connections.values().filter(|c| c.class == Class::Stranger);
            let same = source.map_or(0, |ip| strangers().filter(|c| c.source == Some(ip)).count());
            if strangers().count() >= self.limits.strangers || same >= self.limits.per_source {
                return Err(ConnectionDenied::new(Refused::Strangers));
            }
        }
        self.connections.insert(id, Known { peer, class, source, established: false });
        Ok(class)
    }

    /// The connection a message to a peer's handlers goes to: only a member connection has one.
    fn target(&self, peer: &LibPeer, handler: NotifyHandler) -> Option<ConnectionId> {
        let fits = |c: &Known| c.peer == *peer && c.class == Class::Member;
        match handler {
            NotifyHandler::One(id) => self.connections.get(&id).filter(|c| fits(c)).map(|_| id),
            NotifyHandler::Any => self.connections.iter().find(|(_, c)| fits(c)).map(|(id, _)| *id),
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Gate<B> {
    type ConnectionHandler = Either<THandler<B>, dummy::ConnectionHandler>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if let Some(source) = ip_of(remote) {
            if self.pending.values().filter(|ip| **ip == source).count() >= self.limits.per_source {
                return Err(ConnectionDenied::new(Refused::Source(source)));
            }
            self.pending.insert(id, source);
        }
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        match self.admit(id, peer, remote)? {
            Class::Member => {
                self.inner.handle_established_inbound_connection(id, peer, local, remote).map(Either::Left)
            }
            Class::Stranger => Ok(Either::Right(dummy::ConnectionHandler)),
        }
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<LibPeer>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        match self.admit(id, peer, address)? {
            Class::Member => {
                self.inner.handle_established_outbound_connection(id, peer, address, role, port).map(Either::Left)
            }
            Class::Stranger => Ok(Either::Right(dummy::ConnectionHandler)),
        }
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // The inner behaviours keep books of their own: they see their connections only, and count only those.
            FromSwarm::ConnectionEstablished(event) => {
                let other_established = self.members_of(&event.peer_id);
                if let Some(known) = self.connections.get_mut(&event.connection_id)
                    && known.class == Class::Member
                {
                    known.established = true;
                    let seen = ConnectionEstablished { other_established, ..event };
                    self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(seen));
                }
            }
            FromSwarm::ConnectionClosed(event) => {
                if let Some(known) = self.connections.remove(&event.connection_id)
                    && known.class == Class::Member
                {
                    let remaining_established = self.members_of(&event.peer_id);
                    let seen = ConnectionClosed { remaining_established, ..event };
                    self.inner.on_swarm_event(FromSwarm::ConnectionClosed(seen));
                }
            }
            FromSwarm::AddressChange(event) => {
                if self.class(event.connection_id) == Class::Member {
                    self.inner.on_swarm_event(FromSwarm::AddressChange(event));
                }
            }
            FromSwarm::ListenFailure(event) => {
                self.pending.remove(&event.connection_id);
                self.connections.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::ListenFailure(event));
            }
            FromSwarm::DialFailure(event) => {
                self.connections.remove(&event.connection_id);
                self.inner.on_swarm_event(FromSwarm::DialFailure(event));
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(&mut self, peer: LibPeer, id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            Either::Left(event) => self.inner.on_connection_handler_event(peer, id, event),
            Either::Right(never) => match never {},
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match std::task::ready!(self.inner.poll(cx)) {
                // `Any` would let the swarm pick a stranger's connection, whose handler takes no messages.
                ToSwarm::NotifyHandler { peer_id, handler, event } => {
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
