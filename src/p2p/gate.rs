//! The gate: what a connection may speak is decided when it is made, by who is at its other end.
//!
//! A member (a valid grant in a common subnet) gets the inner behaviours' handlers; anybody else gets a handler that
//! supports nothing, so that not even the names of the other protocols can be learned. The inner behaviours never hear
//! of a stranger's connections. The class of a connection never changes: when membership does, the connection is
//! replaced.
//!
//! The gate also counts connections: in all, of each peer, and those that strangers made to us by their source, so that
//! a flood from one place leaves room for members, and no number of strangers keeps the next one out for good: the one
//! that has been there longest, of the source that has most, makes room. Unfinished handshakes are counted before the
//! gate, by [`admission`](super::admission).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId as LibPeer};

use super::address::ip_of;
use super::admission::Seen;
use super::{Class, Limits, Members};
use crate::model::source::{Places, Sizes, Taken};

/// A stranger has at least this long for its question before another may take its place.
const SETTLED: Duration = Duration::from_secs(2);
/// How long a look at our memory is believed.
const BELIEVED: Duration = Duration::from_millis(100);

/// Why the gate refused a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the peer's identity is no ed25519 key")]
    Key,
    #[error("too many connections of peers that are no members")]
    Strangers,
    #[error("too many connections")]
    All,
    #[error("too many connections of this peer")]
    Peer,
    #[error("too many dials")]
    Dials,
    #[error("this process has as much memory as it may")]
    Memory,
}

struct Known {
    peer: LibPeer,
    class: Class,
    outbound: bool,
    /// Whether the inner behaviours have heard of it.
    established: bool,
}

/// Gives the inner behaviours to members only.
pub(super) struct Gate<B> {
    pub(super) inner: B,
    members: Arc<Members>,
    limits: Limits,
    connections: HashMap<ConnectionId, Known>,
    /// Dials that have not ended yet.
    dials: HashSet<ConnectionId>,
    /// The connections that strangers made to us.
    strangers: Places<ConnectionId>,
    seen: Seen,
    /// Connections that were chosen to make room.
    closing: VecDeque<(LibPeer, ConnectionId)>,
    /// Whether we have more memory than we may, and when that was looked at.
    memory: (bool, Option<Instant>),
}

impl<B> Gate<B> {
    pub(super) fn new(inner: B, limits: Limits, seen: Seen) -> Self {
        Gate {
            inner,
            members: Arc::default(),
            limits,
            connections: HashMap::new(),
            dials: HashSet::new(),
            strangers: Places::new(Sizes::shared(limits.strangers, limits.per_source, SETTLED)),
            seen,
            closing: VecDeque::new(),
            memory: (false, None),
        }
    }

    /// Tells who is let in from now on; existing connections keep their class.
    pub(super) fn set_members(&mut self, members: Arc<Members>) {
        self.members = members;
    }

    /// Tells how many connections there may be from now on; those that are there stay.
    pub(super) fn set_limits(&mut self, connections: u32, per_peer: u32, memory: usize) {
        self.limits = Limits {
            connections,
            per_peer,
            memory,
            ..self.limits
        };
    }

    /// The class that a connection was given; that of a stranger where it is not known.
    pub(super) fn class(&self, connection: ConnectionId) -> Class {
        self.connections
            .get(&connection)
            .map_or(Class::Stranger, |known| known.class)
    }

    fn members_of(&self, peer: &LibPeer) -> usize {
        self.connections
            .values()
            .filter(|c| c.peer == *peer && c.class == Class::Member && c.established)
            .count()
    }

    fn admit(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        remote: &Multiaddr,
        outbound: bool,
    ) -> Result<Class, ConnectionDenied> {
        let denied = |why: Refused| Err(ConnectionDenied::new(why));
        self.dials.remove(&id);
        let Some(key) = super::peer_from_lib(&peer) else {
            return denied(Refused::Key);
        };
        let class = if self.members.contains_key(&key) {
            Class::Member
        } else {
            Class::Stranger
        };
        let of_peer = self.connections.values().filter(|c| c.peer == peer).count();
        if of_peer >= self.limits.per_peer as usize {
            return denied(Refused::Peer);
        }
        if self.connections.len() >= self.limits.connections as usize {
            return denied(Refused::All);
        }
        if self.lacks_memory() && !(class == Class::Member && of_peer == 0) {
            return denied(Refused::Memory);
        }
        if class == Class::Stranger && !self.has_place(id, remote, outbound) {
            return denied(Refused::Strangers);
        }
        self.connections.insert(
            id,
            Known {
                peer,
                class,
                outbound,
                established: false,
            },
        );
        Ok(class)
    }

    /// Whether one more stranger's connection may stand, perhaps instead of another.
    fn has_place(&mut self, id: ConnectionId, remote: &Multiaddr, outbound: bool) -> bool {
        let others = |outbound: bool| {
            let of = |c: &&Known| c.class == Class::Stranger && c.outbound == outbound;
            self.connections.values().filter(of).count()
        };
        // Whom we dial is our choice: no stranger's connection keeps us from asking to be let in.
        if outbound {
            return others(true) < self.limits.pending_out as usize;
        }
        let Some(address) = ip_of(remote) else {
            return others(false) < self.limits.strangers;
        };
        let member = self.seen.member_at(address);
        match self.strangers.take(id, address, member, Instant::now()) {
            Taken::Free => true,
            Taken::Full => false,
            Taken::Instead(other) => {
                if let Some(known) = self.connections.get(&other) {
                    self.closing.push_back((known.peer, other));
                }
                true
            }
        }
    }

    fn forget(&mut self, id: ConnectionId) -> Option<Known> {
        self.strangers.give_back(id);
        self.connections.remove(&id)
    }

    fn lacks_memory(&mut self) -> bool {
        let (lacks, looked) = self.memory;
        let now = Instant::now();
        if looked.is_some_and(|at| now.saturating_duration_since(at) < BELIEVED) {
            return lacks;
        }
        let lacks = resident().is_some_and(|bytes| bytes > self.limits.memory);
        if lacks && !self.memory.0 {
            tracing::warn!(
                limit = self.limits.memory,
                "no more memory for connections: members only, one each"
            );
        }
        self.memory = (lacks, Some(now));
        lacks
    }

    /// The connection a message to a peer's handlers goes to: only a member connection has one.
    fn target(&self, peer: &LibPeer, handler: NotifyHandler) -> Option<ConnectionId> {
        let fits = |c: &Known| c.peer == *peer && c.class == Class::Member;
        match handler {
            NotifyHandler::One(id) => self.connections.get(&id).filter(|c| fits(c)).map(|_| id),
            NotifyHandler::Any => self
                .connections
                .iter()
                .find(|(_, c)| fits(c))
                .map(|(id, _)| *id),
        }
    }
}

/// Resident bytes of this process.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    pages.checked_mul(usize::try_from(page).ok()?)
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
        match self.admit(id, peer, remote, false)? {
            Class::Member => self
                .inner
                .handle_established_inbound_connection(id, peer, local, remote)
                .map(Either::Left),
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
        if self.dials.len() >= self.limits.pending_out as usize {
            return Err(ConnectionDenied::new(Refused::Dials));
        }
        self.dials.insert(id);
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
        match self.admit(id, peer, address, true)? {
            Class::Member => self
                .inner
                .handle_established_outbound_connection(id, peer, address, role, port)
                .map(Either::Left),
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
                    let seen = ConnectionEstablished {
                        other_established,
                        ..event
                    };
                    self.inner
                        .on_swarm_event(FromSwarm::ConnectionEstablished(seen));
                }
            }
            FromSwarm::ConnectionClosed(event) => {
                if let Some(known) = self.forget(event.connection_id)
                    && known.class == Class::Member
                {
                    let remaining_established = self.members_of(&event.peer_id);
                    let seen = ConnectionClosed {
                        remaining_established,
                        ..event
                    };
                    self.inner.on_swarm_event(FromSwarm::ConnectionClosed(seen));
                }
            }
            FromSwarm::AddressChange(event) => {
                if self.class(event.connection_id) == Class::Member {
                    self.inner.on_swarm_event(FromSwarm::AddressChange(event));
                }
            }
            FromSwarm::ListenFailure(event) => {
                self.forget(event.connection_id);
                self.inner.on_swarm_event(FromSwarm::ListenFailure(event));
            }
            FromSwarm::DialFailure(event) => {
                self.dials.remove(&event.connection_id);
                self.forget(event.connection_id);
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
        if let Some((peer_id, id)) = self.closing.pop_front() {
            return Poll::Ready(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(id),
            });
        }
        loop {
            match std::task::ready!(self.inner.poll(cx)) {
                // `Any` would let the swarm pick a stranger's connection, whose handler takes no messages.
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
