//! The gate: what a connection may speak is decided when it is made, by who is at its other end.
//!
//! It settles the [`Class`] of each, which never changes: when membership does, the connection is replaced. What each class
//! gets is up to the behaviours behind it ([`only`](super::only)).
//!
//! The gate also counts connections: in all, of each peer, and those that strangers made to us by their source, so that
//! a flood from one place leaves room for members, and no number of strangers keeps the next one out for good: the one
//! that has been there longest, of the source that has most, makes room. Loopback has the places of all, as everybody behind a
//! reverse proxy of this machine comes from there. Strangers who come through a relay are counted by that relay. Unfinished handshakes are counted before the
//! gate, by [`admission`](super::admission).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId as LibPeer};
use parking_lot::Mutex;

use super::address::{ip_of, is_circuit, relay_of};
use super::admission::Seen;
use super::{Class, Limits, Members, Serve};
use crate::model::id::PeerId;
use crate::model::source::{Places, Sizes, Source, Taken};

/// A stranger has at least this long for its question before another may take its place.
const SETTLED: Duration = Duration::from_secs(2);
/// How long a look at our memory is believed.
const BELIEVED: Duration = Duration::from_millis(100);
/// The part of the guests that one source may be: a whole site behind one NAT comes back at once when a relay restarts.
const GUESTS_OF_A_SOURCE: usize = 8;

/// Whom this node serves as a relay, as the behaviours see it.
pub(super) type Served = Arc<ArcSwap<Serve>>;

/// The class of each connection, as the gate has settled it. Cheap to clone, all clones are one.
#[derive(Clone, Default)]
pub(super) struct Classes(Arc<Mutex<HashMap<ConnectionId, Class>>>);

impl Classes {
    /// The class that a connection was given; that of a stranger where it is not known.
    pub(super) fn of(&self, id: ConnectionId) -> Class {
        let classes = self.0.lock();
        classes.get(&id).copied().unwrap_or(Class::Stranger)
    }

    fn settle(&self, id: ConnectionId, class: Class) {
        self.0.lock().insert(id, class);
    }

    fn forget(&self, id: ConnectionId) {
        self.0.lock().remove(&id);
    }
}

/// Why the gate refused a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the peer's identity is no ed25519 key")]
    Key,
    #[error("too many connections of peers that are no members")]
    Strangers,
    #[error("too many connections of peers that are served as by a relay")]
    Guests,
    #[error("too many connections")]
    All,
    #[error("too many connections of this peer")]
    Peer,
    #[error("too many dials")]
    Dials,
    #[error("this process has as much memory as it may")]
    Memory,
}

/// The peer of a connection has another address now.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) connection: ConnectionId,
    pub(super) remote: Multiaddr,
}

struct Known {
    peer: LibPeer,
    class: Class,
    outbound: bool,
}

/// Settles the class of each connection, or refuses it.
pub(super) struct Gate {
    members: Arc<Members>,
    /// The relays of this node.
    meeting: BTreeSet<PeerId>,
    served: Served,
    classes: Classes,
    limits: Limits,
    connections: HashMap<ConnectionId, Known>,
    /// Dials that have not ended yet.
    dials: HashSet<ConnectionId>,
    /// The connections that strangers made to us.
    strangers: Places<ConnectionId>,
    /// The connections of those that are served and are no members.
    guests: Places<ConnectionId>,
    seen: Seen,
    /// Connections that were chosen to make room.
    closing: VecDeque<(LibPeer, ConnectionId)>,
    moved: VecDeque<Moved>,
    /// Whether we have more memory than we may, and when that was looked at.
    memory: (bool, Option<Instant>),
}

impl Gate {
    pub(super) fn new(limits: Limits, seen: Seen, classes: Classes, served: Served) -> Self {
        let of_a_source = limits.guests.div_ceil(GUESTS_OF_A_SOURCE);
        let strangers = Sizes::shared(limits.strangers, limits.per_source, SETTLED);
        Gate {
            members: Arc::default(),
            meeting: BTreeSet::new(),
            served,
            classes,
            limits,
            connections: HashMap::new(),
            dials: HashSet::new(),
            strangers: Places::new(strangers.with_all_for_loopback()),
            guests: Places::new(Sizes::shared(limits.guests, of_a_source, SETTLED)),
            seen,
            closing: VecDeque::new(),
            moved: VecDeque::new(),
            memory: (false, None),
        }
    }

    /// Tells who is let in from now on; existing connections keep their class.
    pub(super) fn set_members(&mut self, members: Arc<Members>) {
        self.members = members;
    }

    /// Tells which relays are ours from now on; existing connections keep their class.
    pub(super) fn set_meeting(&mut self, meeting: BTreeSet<PeerId>) {
        self.meeting = meeting;
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

    /// Whether more than three quarters of the connections that there may be are there.
    pub(super) fn is_crowded(&self) -> bool {
        let most = self.limits.connections as usize;
        self.connections.len().saturating_mul(4) > most.saturating_mul(3)
    }

    /// The class that a connection was given; that of a stranger where it is not known.
    pub(super) fn class(&self, connection: ConnectionId) -> Class {
        self.classes.of(connection)
    }

    /// The class of a new connection, and whether its peer is a guest. What comes through a relay is a member's or a
    /// stranger's: circuits do not lead through two relays.
    fn class_of(&self, peer: &PeerId, remote: &Multiaddr, outbound: bool) -> (Class, bool) {
        if self.members.contains_key(peer) {
            (Class::Member, false)
        } else if is_circuit(remote) {
            (Class::Stranger, false)
        } else if self.meeting.contains(peer) {
            (Class::Meeting, false)
        } else if !outbound && self.served.load().serves(peer, false) {
            (Class::Meeting, true)
        } else {
            (Class::Stranger, false)
        }
    }

    fn admit(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        remote: &Multiaddr,
        outbound: bool,
    ) -> Result<(), ConnectionDenied> {
        let denied = |why: Refused| Err(ConnectionDenied::new(why));
        self.dials.remove(&id);
        let Some(key) = super::peer_from_lib(&peer) else {
            return denied(Refused::Key);
        };
        let (class, guest) = self.class_of(&key, remote, outbound);
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
        if guest && !self.take(id, remote, true) {
            return denied(Refused::Guests);
        }
        let known = Known {
            peer,
            class,
            outbound,
        };
        self.connections.insert(id, known);
        self.classes.settle(id, class);
        Ok(())
    }

    /// Whether one more stranger's connection may stand, perhaps instead of another.
    fn has_place(&mut self, id: ConnectionId, remote: &Multiaddr, outbound: bool) -> bool {
        // Whom we dial is our choice: no stranger's connection keeps us from asking to be let in.
        if outbound {
            let of = |c: &&Known| c.class == Class::Stranger && c.outbound;
            return self.connections.values().filter(of).count() < self.limits.pending_out as usize;
        }
        self.take(id, remote, false)
    }

    /// Takes a place among the guests or the strangers, perhaps another's.
    fn take(&mut self, id: ConnectionId, remote: &Multiaddr, guest: bool) -> bool {
        let (source, member) = match (relay_of(remote), ip_of(remote)) {
            (Some(relay), _) => (Source::Relay(relay), None),
            (None, Some(address)) => (Source::of(address), self.seen.member_at(address)),
            // Inside this process, where nobody has an address.
            (None, None) => {
                let of = |c: &&Known| {
                    !c.outbound && (c.class == Class::Meeting) == guest && c.class != Class::Member
                };
                let most = if guest {
                    self.limits.guests
                } else {
                    self.limits.strangers
                };
                return self.connections.values().filter(of).count() < most;
            }
        };
        let places = if guest {
            &mut self.guests
        } else {
            &mut self.strangers
        };
        match places.take(id, source, member, Instant::now()) {
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

    fn forget(&mut self, id: ConnectionId) {
        self.strangers.give_back(id);
        self.guests.give_back(id);
        self.connections.remove(&id);
        self.classes.forget(id);
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
}

/// Resident bytes of this process.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    pages.checked_mul(usize::try_from(page).ok()?)
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Moved;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer, remote, false)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        _: Option<LibPeer>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if self.dials.len() >= self.limits.pending_out as usize {
            return Err(ConnectionDenied::new(Refused::Dials));
        }
        self.dials.insert(id);
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: LibPeer,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer, address, true)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(event) => self.forget(event.connection_id),
            FromSwarm::ListenFailure(event) => self.forget(event.connection_id),
            FromSwarm::AddressChange(event) => self.moved.push_back(Moved {
                connection: event.connection_id,
                remote: event.new.get_remote_address().clone(),
            }),
            FromSwarm::DialFailure(event) => {
                self.dials.remove(&event.connection_id);
                self.forget(event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: LibPeer,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, id)) = self.closing.pop_front() {
            return Poll::Ready(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(id),
            });
        }
        match self.moved.pop_front() {
            Some(moved) => Poll::Ready(ToSwarm::GenerateEvent(moved)),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn a_source_s_strangers_leave_places_to_others_and_loopback_has_those_of_all() {
        let limits = Limits {
            strangers: 32,
            per_source: 4,
            ..Limits::default()
        };
        let served = Arc::new(ArcSwap::from_pointee(Serve::Nobody));
        let mut gate = Gate::new(limits, Seen::default(), Classes::default(), served);
        let mut next = 0;
        let mut admitted = |from: &str, times: usize| {
            let admit = |_: &usize| {
                next += 1;
                let peer = Keypair::generate_ed25519().public().to_peer_id();
                let remote: Multiaddr = format!("/ip4/{from}/tcp/{next}").parse().unwrap();
                let id = ConnectionId::new_unchecked(next);
                gate.admit(id, peer, &remote, false).is_ok()
            };
            (0..times).filter(admit).count()
        };
        assert_eq!(admitted("192.0.2.1", 10), 4);
        assert_eq!(admitted("192.0.2.2", 1), 1);
        let rest = 24 - 5;
        assert_eq!(admitted("127.0.0.1", 30), rest, "a quarter is kept");
    }
}
