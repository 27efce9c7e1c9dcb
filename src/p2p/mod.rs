//! Peers: libp2p connections, requests, and the streams that packets travel on.
//!
//! Owns every connection to another peer and the decision what may be spoken on it. Never decides who is a member
//! (that arrives as [`Command::Members`]), never looks into a request or a packet, and lets nothing of libp2p out except
//! the opaque [`DataStream`].
//!
//! [`start()`] opens the listeners and returns three things: a [`Handle`] for commands, a receiver of [`Event`]s, and the
//! [`Driver`] whose [`run`](Driver::run) is the task.
//!
//! # The gate
//! A connection's [`Class`] is settled when it is made and never changes. A stranger is offered `/byway/join/1` and
//! nothing else. Relays, and whom this node serves as one, get identify, ping, circuit relay v2 and `/byway/relay/1` besides:
//! nothing that names a subnet. Members get `/byway/control/1`, `/byway/service/1` and `/byway/data/1`, too. A peer that
//! becomes a member has its other connections replaced; one that is removed is cut at once. There is no DHT.
//!
//! # Relays
//! A node keeps a place at up to two relays, and tells the addresses that lead through them ([`Event::Reserved`]). Circuits
//! carry control, never packets, unless datagrams cannot reach the peer at all ([`Command::UdpBlocked`]) or this node has none; a direct connection
//! ends them. Whom this node serves as a relay is [`Config::serve`].

mod address;
mod address_book;
mod admission;
mod behaviour;
mod buffered_io;
mod circuits;
mod codec;
mod command;
mod data;
mod driver;
mod duplicates;
mod event;
mod gate;
mod layer;
mod only;
mod own;
mod ping;
mod place;
mod quic;
mod redial;
mod start;
mod stream;
mod stream_header;
mod transport;
mod web;
mod zoned;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use self::address::{Address, AddressError, Carrier, Heard, Typed, keep_sendable, sendable};
pub use self::address_book::{Known, Source};
pub use self::admission::HandshakeCounts;
pub use self::circuits::{Refusal, Refusals, Renewals};
pub use self::command::{
    AskError, CircuitCounts, Command, ConnectError, ConnectionStatus, Handle, PeerStatus,
    PlaceStatus, Protocol, Stopped,
};
pub use self::driver::Driver;
pub use self::event::{Class, Event, Responder};
pub use self::own::named;
pub use self::start::{Error, lacks_ipv6, start};
pub use self::stream::DataStream;
pub use self::web::{CertificateStatus, ClientCounts, Fresh, ProxyStatus};

use crate::model::id::{PeerId, SubnetId};
use crate::model::neighbours::Bounds;
use crate::model::proxy::Way;
use crate::udp::QuicSocket;

/// Who may speak control with us, each with the subnets whose packets both ends take: none while its grant, ours, or a
/// clock says that it is not the time.
pub type Members = BTreeMap<PeerId, Vec<SubnetId>>;

/// Whom this node serves as a relay: circuits, and sealed datagrams by `/byway/relay/1`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Serve {
    /// Serves nobody.
    #[default]
    Nobody,
    /// Serves members of subnets in common.
    Members,
    /// Serves these peers, members or not.
    Only(BTreeSet<PeerId>),
    /// Serves whoever asks.
    Anyone,
}

impl Serve {
    /// Whether it serves this peer, which is a member of a subnet in common or is not.
    pub fn serves(&self, peer: &PeerId, member: bool) -> bool {
        match self {
            Serve::Nobody => false,
            Serve::Members => member,
            Serve::Only(peers) => peers.contains(peer),
            Serve::Anyone => true,
        }
    }
}

/// The transports to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// TCP and QUIC sockets.
    Network,
    /// Channels inside this process (`/memory/N`): tests of many nodes.
    Memory,
}

/// How a daemon meets its peers.
#[derive(Clone)]
pub struct Config {
    /// Seed of the ed25519 identity.
    pub secret: [u8; 32],
    /// Addresses to listen on; empty: none.
    pub listen: Vec<Address>,
    /// UDP sockets for QUIC, one per local address: dials leave from them, and a QUIC address in `listen` needs one that
    /// is bound there. Empty: no QUIC. Their owner may put datagrams on the same port whose first byte is below 0x40.
    pub quic: Vec<Arc<QuicSocket>>,
    /// Whether the owner of these sockets, or anybody else, moves packets by datagrams. Without, circuits through relays carry
    /// packets as other connections do; else only those of peers that datagrams do not reach ([`Command::UdpBlocked`]).
    pub datagrams: bool,
    /// The transports to open.
    pub transport: TransportKind,
    /// Which transport is dialled first where a peer offers both; the other follows 300 ms later. TCP by default: on a
    /// LAN it moves several times the bytes of QUIC per CPU second.
    pub prefer: Carrier,
    /// What strangers and members may use up.
    pub limits: Limits,
    /// How often the task acts, and how long it waits.
    pub timing: Timing,
    /// What members are told of this program: see [`agent`](crate::wire::agent).
    pub agent: String,
    /// The relays to keep a place at, in the order of preference; each names its peer.
    pub meeting: Vec<Typed>,
    /// Whom this node serves as a relay.
    pub serve: Serve,
    /// Prefixes whose addresses are neither dialled nor told to others, and from which no connection is taken.
    pub denied: Vec<IpNet>,
    /// How many members of a subnet are held though nothing travels.
    pub neighbours: Bounds,
    /// Whether questions of `/byway/join/1` are taken: not by a node that is in no subnet and will be in none, so that
    /// nobody tells it which one is meant.
    pub join: bool,
    /// Which dials over TCP go through a proxy.
    pub way: Arc<Way>,
    /// Reverse proxies that are believed when they name the client of a WebSocket: it counts as that client's then.
    pub trusted_proxies: Vec<IpNet>,
    /// What is shown where a WebSocket is inside TLS; none: a certificate is made at each start.
    pub certificate: Option<Certificate>,
}

/// The files of a certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The file of the certificate, perhaps with those behind it that lead to its authority.
    pub chain: PathBuf,
    /// The file of the certificate's private key.
    pub key: PathBuf,
}

impl Certificate {
    /// Reads the files, and looks whether they belong together. Blocks on them; each has 1 MiB at most.
    ///
    /// # Errors
    /// They cannot be used; the file, or both, and why.
    pub fn check(&self) -> Result<(), String> {
        web::check(self)
    }
}

impl Config {
    /// The defaults for an identity: the network, no listeners.
    pub fn new(secret: [u8; 32]) -> Self {
        Config {
            secret,
            listen: Vec::new(),
            quic: Vec::new(),
            datagrams: true,
            transport: TransportKind::Network,
            prefer: Carrier::Tcp,
            limits: Limits::default(),
            timing: Timing::default(),
            agent: crate::wire::agent::text(),
            meeting: Vec::new(),
            serve: Serve::Nobody,
            denied: Vec::new(),
            neighbours: Bounds::default(),
            join: true,
            way: Arc::default(),
            trusted_proxies: Vec::new(),
            certificate: None,
        }
    }
}

/// Caps on what the outside can make us hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Unfinished inbound handshakes of TCP, and as many of QUIC. Each is one socket and a few KiB, and ends after 5 s. A
    /// quarter is kept for the addresses where members were last seen.
    pub pending_in: u32,
    /// Unfinished outbound dials in all.
    pub pending_out: u32,
    /// Unfinished handshakes, and strangers' connections, of one source (an IPv4 address, an IPv6 /64): one flooder cannot
    /// use up the rest. A site (an IPv6 /48) has a quarter of all; loopback, where a reverse proxy may be, has three quarters of
    /// the strangers' and of the unfinished handshakes of TCP.
    pub per_source: usize,
    /// Connections of one peer: two carriers, two directions, and their replacements.
    pub per_peer: u32,
    /// The most connections of all peers together.
    pub connections: u32,
    /// Connections that peers who are no members made to us: what is left is kept for members. A quarter of these is kept
    /// for the addresses where members were last seen. Those who come through one relay have a quarter together.
    pub strangers: usize,
    /// Connections of peers that this node serves as a relay and that are no members; a source has an eighth of them.
    pub guests: usize,
    /// Places that this node keeps as a relay, and as many circuits that it carries. A quarter is kept for members; a source
    /// has an eighth.
    pub circuits: usize,
    /// Memory of the process in bytes above which only a member that has no connection yet gets one. A peer that never
    /// reads can pin the windows of its streams; this bounds all of them together.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            pending_in: 256,
            pending_out: 256,
            per_source: 8,
            per_peer: 8,
            connections: 1024,
            strangers: 64,
            guests: 512,
            circuits: 1024,
            memory: 1024 * 1024 * 1024,
        }
    }
}

/// Intervals and patience. The defaults are what the daemon uses; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Pause between two pings on a connection in use.
    pub ping: Duration,
    /// The same on one that rests: NATs keep a UDP mapping for 30 s at least. See [`Timing::rest_of`].
    pub rest: Duration,
    /// How long nothing is wanted of a peer's only connection before it rests.
    pub rest_after: Duration,
    /// A connection in use on which nothing has been heard for so long is dead: two pings and a little more. One that was
    /// just woken has half of it.
    pub silence: Duration,
    /// A connection that rests is dead after so long. More than [`Timing::rest`], by what an answer takes and a packet that
    /// is lost. See [`Timing::dead_of`].
    pub dead: Duration,
    /// Longest pause between two dials of a member that is away for more than a minute.
    pub redial: Duration,
    /// Age at which a second connection to the same peer is surplus; a tenth of it for one of a worse carrier.
    pub surplus: Duration,
    /// Life of an idle stranger's connection.
    pub idle: Duration,
    /// How long a stranger's connection outlives its peer's admission, so that the answer which tells of it arrives.
    pub grace: Duration,
    /// How long neither end has used the connections of a member that is no neighbour before it is let go. It is to be longer
    /// than two comparisons of records are apart.
    pub let_go: Duration,
    /// How long a circuit stays beside a direct connection.
    pub circuit: Duration,
    /// Life of a place that this node keeps for a client, as a relay. Long, because a
    /// client that answers its renewal late makes libp2p-relay 0.22 panic (`expect("valid connection")`).
    pub reservation: Duration,
    /// When this node asks again for a place that a relay keeps for it.
    pub renewals: Renewals,
}

/// The longest pause between two pings on a TCP connection that rests, where [`Timing::rest`] is shorter.
const TCP_REST: Duration = Duration::from_secs(60);

impl Timing {
    /// Pause between two pings on a connection that rests: over TCP to the peer itself twice [`Timing::rest`], up to a
    /// minute. NATs keep a TCP connection for two hours and more (RFC 5382, REQ-5), and of what a member of a large
    /// subnet moves, pings are the most. A WebSocket has what stands before the peer to hold out, which often cuts off at
    /// a minute.
    pub(crate) fn rest_of(&self, carrier: Carrier) -> Duration {
        match carrier {
            Carrier::Tcp => self.rest.max(TCP_REST.min(self.rest * 2)),
            Carrier::Quic | Carrier::Web | Carrier::Memory | Carrier::Relay => self.rest,
        }
    }

    /// Silence after which a connection that rests is dead: as much longer than [`Timing::dead`] as its pause is longer
    /// than [`Timing::rest`].
    pub(crate) fn dead_of(&self, carrier: Carrier) -> Duration {
        self.dead + self.rest_of(carrier).saturating_sub(self.rest)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            ping: Duration::from_secs(5),
            rest: Duration::from_secs(25),
            rest_after: Duration::from_secs(30),
            silence: Duration::from_secs(12),
            dead: Duration::from_secs(40),
            redial: Duration::from_secs(30),
            surplus: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            grace: Duration::from_millis(250),
            let_go: Duration::from_secs(600),
            circuit: Duration::from_secs(10),
            reservation: Duration::from_secs(365 * 86_400),
            renewals: Renewals {
                soonest: Duration::from_secs(30),
                latest: Duration::from_secs(2700),
            },
        }
    }
}

/// Our name of a libp2p peer; `None` for keys that are not ed25519.
fn peer_from_lib(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes())
}

/// libp2p's name of a peer.
fn peer_to_lib(peer: PeerId) -> Option<libp2p::PeerId> {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).ok()
}
