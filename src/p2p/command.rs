//! What the rest of the daemon asks of the peers' task.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::address_book::Known;
use super::admission::{HandshakeCounts, Losses};
use super::web::{CertificateStatus, ClientCounts, Fresh, Proxied, Proxies, ProxyStatus, Shown};
use super::{Address, Certificate, Class, Heard, Members, Refusal, Refusals, Serve, Typed};
use crate::model::id::{PeerId, SubnetId};
use crate::model::neighbours::Why;
use crate::model::notice::RelayNotice;
use crate::model::record::Digest;
use crate::wire::agent::Agent;
use crate::wire::service::{MAX_BODY, REQUEST_HEADER};

/// A protocol of requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `/byway/join/1`: open to everybody. Questions up to 64 KiB, answers up to 1 MiB.
    Join,
    /// `/byway/control/1`: members only. Bodies up to 1 MiB.
    Control,
    /// `/byway/service/1`: members only. Bodies up to 1 MiB, and their headers.
    Service,
    /// `/byway/relay/1`: members, and relays with whom they serve; never through a relay. Bodies up to 1 KiB.
    Relay,
}

impl Protocol {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Join => "/byway/join/1",
            Protocol::Control => "/byway/control/1",
            Protocol::Service => "/byway/service/1",
            Protocol::Relay => "/byway/relay/1",
        }
    }

    /// Bytes of the largest request.
    pub fn cap(self) -> usize {
        match self {
            Protocol::Join => 64 * 1024,
            Protocol::Control => 1024 * 1024,
            Protocol::Service => REQUEST_HEADER + MAX_BODY,
            Protocol::Relay => 1024,
        }
    }

    /// Largest answer in bytes. Who asks has chosen whom, so that a stranger costs it no more than a member.
    pub fn answer_cap(self) -> usize {
        match self {
            Protocol::Join | Protocol::Control => 1024 * 1024,
            Protocol::Service | Protocol::Relay => self.cap(),
        }
    }

    /// Whether it is spoken with members only.
    pub(super) fn is_for_members(self) -> bool {
        matches!(self, Protocol::Control | Protocol::Service)
    }

    /// Whether it is spoken on connections of this class, through a relay or not.
    pub(super) fn is_spoken(self, class: Class, relayed: bool) -> bool {
        match self {
            Protocol::Join => true,
            Protocol::Control | Protocol::Service => class == Class::Member,
            Protocol::Relay => class <= Class::Meeting && !relayed,
        }
    }
}

/// An order for the [`Driver`](super::Driver).
#[derive(Debug)]
pub enum Command {
    /// Who is a member, and of which common subnets. Replaces what was said before. Connections of peers that are not in
    /// it any more are cut at once; strangers' connections of peers that are new in it are replaced.
    Members(Arc<Members>),
    /// Who is in each subnet of this node, and the digest of the grant by which: says whom to hold a connection to though nothing travels
    /// ([`neighbours`](crate::model::neighbours)). Replaces what was said before; without it every member is held. To be sent
    /// before the `Members` that it fits.
    Grants(BTreeMap<SubnetId, Arc<BTreeMap<PeerId, Digest>>>),
    /// Packets travel to or from a member by datagrams, or a relay's forwarding needs it: its connections are not let go, and
    /// it is dialled where it has none. To be said again within 20 s for as long as it is so.
    InUse {
        /// The member, or the relay.
        peer: PeerId,
    },
    /// Dials; a peer that was disconnected by command is kept connected again. Without `peer`, whoever answers there.
    Connect {
        /// Where a person says that it is.
        typed: Vec<Typed>,
        /// Where others say so; without `peer` they are not tried, since nobody could be told from whoever answers.
        heard: Vec<Heard>,
        /// The peer that has to answer; none for whoever answers.
        peer: Option<PeerId>,
        /// Takes the ID of the peer that answered.
        reply: oneshot::Sender<Result<PeerId, ConnectError>>,
    },
    /// Closes all connections to a peer, and dials it no more until `Connect` or until it comes by itself.
    Disconnect {
        /// The peer that is to be left alone.
        peer: PeerId,
    },
    /// Sends a request and waits for the answer. A peer that is not connected is dialled.
    Ask {
        /// The peer that is asked.
        peer: PeerId,
        /// The protocol that the request is spoken on.
        protocol: Protocol,
        /// The request, at most [`Protocol::cap`] bytes. One of a protocol for members may arrive more than once: it is sent again
        /// when its connection ends before the answer, and while the peer does not see us as a member yet.
        body: Vec<u8>,
        /// Time for everything, the dial included. The exchange itself has 10 s at most: whoever waits longer asks again.
        timeout: Duration,
        /// Takes the answer, or why there is none.
        reply: oneshot::Sender<Result<Vec<u8>, AskError>>,
    },
    /// What a peer says of itself, for the address book. Each is tried once, and again only where the peer has answered.
    Known {
        /// The peer whose addresses they are.
        peer: PeerId,
        /// Where it may be, in place of what it said before: of those that may be dialled at most eight are kept.
        heard: Vec<Heard>,
        /// Where it has answered in an earlier run.
        answered: Vec<Heard>,
    },
    /// Somebody on a local network says that a peer is there. Anybody can claim anything: each address is tried once for each
    /// time that it is said, as far as the address book lets it.
    OnLan {
        /// The peer that it says it is.
        peer: PeerId,
        /// Where it says it is; what may not be dialled is left out.
        heard: Vec<Heard>,
    },
    /// The overlay prefixes: never announced, never dialled, never accepted from. Replaces what was said before; to be
    /// sent before a TUN gets an address.
    Overlay(Vec<IpNet>),
    /// The prefixes that the configuration denies: never announced, never dialled, never accepted from; connections that lead
    /// there are closed. Replaces what [`Config::denied`](super::Config::denied) said.
    Deny(Vec<IpNet>),
    /// Packets wait for this peer: dial it now if it is not connected.
    Wanted {
        /// The peer that packets wait for.
        peer: PeerId,
    },
    /// Who is a member, and where their announcements say they are: places for handshakes are kept for these addresses.
    /// Replaces what was said before; the first four of each count.
    Whereabouts(BTreeMap<PeerId, Vec<IpAddr>>),
    /// The caps on connections that may change while the swarm runs: in all, of one peer, and the memory above which only
    /// members get one. Connections that are there stay.
    Limits {
        /// The new [`Limits::connections`](super::Limits::connections).
        connections: u32,
        /// The new [`Limits::per_peer`](super::Limits::per_peer).
        per_peer: u32,
        /// The new [`Limits::memory`](super::Limits::memory), in bytes.
        memory: usize,
    },
    /// The relays to keep a place at, in the order of preference. Replaces what [`Config::meeting`](super::Config::meeting)
    /// said.
    Meeting(Vec<Typed>),
    /// What the records of members say of relays. Replaces what was said before; of those who are no members nothing is taken.
    Noted(Arc<BTreeMap<PeerId, RelayNotice>>),
    /// Whom this node serves as a relay. Replaces what [`Config::serve`](super::Config::serve) said; connections of those
    /// that are not served any more are closed.
    Serve(Serve),
    /// Datagrams pass to this address of a member: dial QUIC there, unless a direct connection stands. Once one does,
    /// circuits of that peer are closed after 10 s.
    Punched {
        /// The member.
        peer: PeerId,
        /// Where its datagram port answers.
        address: SocketAddr,
    },
    /// Datagrams pass straight to a member no more: its QUIC connections, which use the same ports, are in doubt until
    /// something is heard over them. Other ways to it are dialled meanwhile.
    DirectLost {
        /// The member.
        peer: PeerId,
    },
    /// Somebody drops a member's packets as datagrams, and the stream has to carry them: where that is one of QUIC, which uses the
    /// same ports, the member's TCP addresses are dialled beside.
    DataLost {
        /// The member.
        peer: PeerId,
    },
    /// This machine has other addresses or default routes than before: a connection that answers no ping within 2 s is in doubt,
    /// and its peer is dialled.
    Roamed,
    /// Whether datagrams cannot reach a member at all: only then circuits carry data streams to it. Both ends have to say
    /// so.
    UdpBlocked {
        /// The member.
        peer: PeerId,
        /// Whether they cannot.
        blocked: bool,
    },
    /// Asks for the state of all peers.
    Status {
        /// Takes one entry for each connected or wanted peer.
        reply: oneshot::Sender<Vec<PeerStatus>>,
    },
    /// Asks for the state of one peer, whatever is known of it.
    StatusOf {
        /// The peer that is asked about.
        peer: PeerId,
        /// Takes the entry of the peer.
        reply: oneshot::Sender<PeerStatus>,
    },
    /// Asks where the places of this node at relays stand.
    Places {
        /// Takes one entry for each relay that this node uses.
        reply: oneshot::Sender<Vec<PlaceStatus>>,
    },
    /// Asks what was refused of circuits, and of places at relays.
    Circuits {
        /// Takes the counts.
        reply: oneshot::Sender<CircuitCounts>,
    },
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There is no connection, and no address to dial.
    #[error("no address of the peer is known")]
    NoAddress,
    /// The peer was not connected (for all but joining: not as a member) before the time was over.
    #[error("the peer could not be reached")]
    Unreachable,
    /// The peer did not answer in time.
    #[error("the peer did not answer in time")]
    Timeout,
    /// The connection ended, or the peer dropped the request.
    #[error("the connection ended before the answer came")]
    Closed,
    /// The peer does not offer the protocol to us: it does not see us as a member.
    #[error("the peer does not speak this protocol with us")]
    Refused,
    /// The request is larger than the protocol allows.
    #[error("the request has {0} bytes, more than the protocol allows")]
    TooLarge(usize),
    /// Too many requests wait for this peer already.
    #[error("too many requests wait for this peer")]
    Busy,
    /// The exchange failed otherwise.
    #[error("request: {0}")]
    Failed(String),
    /// The peers' task is not running.
    #[error("the peers' task has stopped")]
    Stopped,
}

/// Why a dial reached nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is no address to try.
    #[error("no address to dial")]
    NoAddress,
    /// Every address failed; the text is what each said.
    #[error("dial: {0}")]
    Failed(String),
    /// The peers' task is not running.
    #[error("the peers' task has stopped")]
    Stopped,
}

/// What was refused of circuits and of places at relays, since the start.
#[derive(Debug, Clone, Default)]
pub struct CircuitCounts {
    /// To this node as a client, and by it as one: by reason.
    pub client: Refusals,
    /// Circuits that came in and were closed because too many were silent already.
    pub silent: u64,
    /// By this node as a relay: sources that wanted more than their share.
    pub beyond_share: u64,
    /// Tries of relays that members' records name and that did not answer.
    pub home_silent: u64,
    /// Relays that members' records name with no address that may be dialled, each time they were to be tried.
    pub home_unusable: u64,
}

/// Where the place of this node at one relay stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceStatus {
    /// The relay.
    pub relay: PeerId,
    /// Whether a person names it; else a member or an address led to it, and it is used for a while.
    pub is_configured: bool,
    /// How long it has kept a place for this node; none where it keeps none.
    pub kept: Option<Duration>,
    /// Why it gives none although it is reached, and for how long it has said no; none where it was not asked, keeps one, or
    /// is out of reach.
    pub refused: Option<(Refusal, Duration)>,
}

/// What people are shown of one peer.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The peer that the entry is about.
    pub peer: PeerId,
    /// Whether it is a member or a stranger, by the members known now.
    pub class: Class,
    /// The connections to the peer, oldest first.
    pub connections: Vec<ConnectionStatus>,
    /// The addresses where the peer may be, best first.
    pub addresses: Vec<Address>,
    /// The same, each with who said so.
    pub known: Vec<Known>,
    /// The addresses of these where it has answered, and those a person gave.
    pub reached: Vec<Address>,
    /// Failed dials since it was last connected.
    pub failures: u32,
    /// For how long it has not answered dials; none where it does, or nobody has dialled it.
    pub away: Option<Duration>,
    /// What it says of its program and of the versions it speaks, where it is connected as a member and has said so.
    pub agent: Option<Agent>,
}

/// What people are shown of one connection.
#[derive(Debug, Clone)]
pub struct ConnectionStatus {
    /// The number of the connection, which grows with each one of this process.
    pub connection: u64,
    /// What may be spoken on it, settled when it was made.
    pub class: Class,
    /// The transport below it: `tcp`, `quic`, `ws`, `memory` or `relay`.
    pub transport: &'static str,
    /// The multiaddr of the other end.
    pub remote: String,
    /// The relay that it runs through, if it does.
    pub relay: Option<PeerId>,
    /// The transport of our own connection to that relay. What the address of a circuit names is how the far end reaches it.
    pub below: Option<&'static str>,
    /// Whether this end dialled it.
    pub outbound: bool,
    /// How long it has been open.
    pub age: Duration,
    /// The round trip of the last ping; none before the first.
    pub rtt: Option<Duration>,
}

/// The peers' task has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peers' task has stopped")]
pub struct Stopped;

/// Sends commands to the [`Driver`](super::Driver). Cheap to clone; bounded: a full queue makes the sender wait.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) peer: PeerId,
    pub(super) neighbourhood: Neighbourhood,
    pub(super) shown: Shown,
    pub(super) proxies: Proxies,
    pub(super) proxied: Proxied,
    pub(super) losses: Losses,
}

/// Whom this node holds a connection to though nothing travels; every member before that is known. Cheap to clone, all
/// clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Neighbourhood(Arc<ArcSwapOption<BTreeMap<PeerId, Why>>>);

impl Neighbourhood {
    pub(super) fn get(&self) -> Option<Arc<BTreeMap<PeerId, Why>>> {
        self.0.load_full()
    }

    pub(super) fn set(&self, chosen: BTreeMap<PeerId, Why>) {
        self.0.store(Some(Arc::new(chosen)));
    }

    pub(super) fn holds(&self, peer: PeerId) -> bool {
        let chosen = self.0.load();
        chosen.as_ref().is_none_or(|c| c.contains_key(&peer))
    }
}

impl Handle {
    /// Our own peer ID.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Whether this node holds a connection to a member though nothing travels: every member before [`Command::Grants`].
    pub fn holds(&self, peer: PeerId) -> bool {
        self.neighbourhood.holds(peer)
    }

    /// Whom it holds, each with the reason; none before [`Command::Grants`].
    pub fn neighbours(&self) -> Option<Arc<BTreeMap<PeerId, Why>>> {
        self.neighbourhood.get()
    }

    /// Reads the certificate that is shown inside TLS again: its files, or none where one is to be made. Where nothing is
    /// listened on that needs one, nothing is read. It blocks on the files, each of which has 1 MiB at most.
    ///
    /// # Errors
    /// The files cannot be used; which and why. What is shown stays.
    pub fn read_certificate(&self, files: Option<&Certificate>) -> Result<Fresh, String> {
        self.shown.read(files)
    }

    /// The certificate that is shown inside TLS; none where nothing is listened on that needs one.
    pub fn certificate(&self) -> Option<CertificateStatus> {
        self.shown.status()
    }

    /// How connections through trusted reverse proxies were counted.
    pub fn clients(&self) -> ClientCounts {
        self.proxies.counts()
    }

    /// The proxy that connections out over TCP go through, with what it said last; none where there is no proxy.
    pub fn proxy(&self) -> Option<ProxyStatus> {
        self.proxied.status()
    }

    /// What became of handshakes for which there was no room.
    pub fn handshakes(&self) -> HandshakeCounts {
        self.losses.counts()
    }

    /// Sends a command.
    ///
    /// # Errors
    /// When the task has stopped.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the command is not sent.
    pub async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    /// Sends a command if there is room for it: for callers that must not wait, and may try again (`Wanted`).
    pub fn try_send(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Sends a request and waits for the answer; see [`Command::Ask`].
    ///
    /// # Errors
    /// See [`AskError`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the request may have been sent all the same.
    pub async fn ask(
        &self,
        peer: PeerId,
        protocol: Protocol,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Ask {
            peer,
            protocol,
            body,
            timeout,
            reply,
        };
        self.send(command).await.map_err(|_| AskError::Stopped)?;
        answer.await.unwrap_or(Err(AskError::Stopped))
    }

    /// Dials where a person says and says who answered; see [`Command::Connect`].
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        &self,
        typed: Vec<Typed>,
        peer: Option<PeerId>,
    ) -> Result<PeerId, ConnectError> {
        self.dial(typed, Vec::new(), peer).await
    }

    /// Dials where others say that a peer is; see [`Command::Connect`].
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_heard(
        &self,
        heard: Vec<Heard>,
        peer: PeerId,
    ) -> Result<PeerId, ConnectError> {
        self.dial(Vec::new(), heard, Some(peer)).await
    }

    async fn dial(
        &self,
        typed: Vec<Typed>,
        heard: Vec<Heard>,
        peer: Option<PeerId>,
    ) -> Result<PeerId, ConnectError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Connect {
            typed,
            heard,
            peer,
            reply,
        };
        self.send(command)
            .await
            .map_err(|_| ConnectError::Stopped)?;
        answer.await.unwrap_or(Err(ConnectError::Stopped))
    }

    /// The state of every peer that is connected or wanted.
    ///
    /// # Errors
    /// When the task has stopped.
    pub async fn status(&self) -> Result<Vec<PeerStatus>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Status { reply }).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// The state of one peer; see [`Command::StatusOf`].
    ///
    /// # Errors
    /// When the task has stopped.
    pub async fn status_of(&self, peer: PeerId) -> Result<PeerStatus, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::StatusOf { peer, reply }).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// Where the places of this node at relays stand; see [`Command::Places`].
    ///
    /// # Errors
    /// When the task has stopped.
    pub async fn places(&self) -> Result<Vec<PlaceStatus>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Places { reply }).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// What was refused of circuits; see [`Command::Circuits`].
    ///
    /// # Errors
    /// When the task has stopped.
    pub async fn circuits(&self) -> Result<CircuitCounts, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Circuits { reply }).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// Says who is a member; see [`Command::Members`].
    ///
    /// # Errors
    /// When the task has stopped.
    pub async fn members(&self, members: BTreeMap<PeerId, Vec<SubnetId>>) -> Result<(), Stopped> {
        self.send(Command::Members(Arc::new(members))).await
    }
}
