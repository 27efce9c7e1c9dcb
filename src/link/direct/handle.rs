//! What the rest of the daemon asks of the control task, and what the task asks of it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::echo::Echo;
use super::exchange::PathsAnswerer;
use crate::crypto::frame::Cipher;
use crate::link::Key;
use crate::model::id::PeerId;
use crate::model::view::View;
use crate::peer::Remote;
use crate::peer::knock::{Stats as KnockStats, Unsure};
use crate::peer::path::{Cause, Origin};
use crate::peer::spray::Stats as SprayStats;
use crate::udp::Exit;
use crate::wire::paths::{Candidate, Kind, NatFacts, Paths};
use crate::wire::relay::Ticket;

/// What goes with a message of a session over the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionMessage {
    /// The bytes of a message of [`peer::session`](crate::peer::session).
    pub message: Vec<u8>,
    /// Where its sender may be reached by datagrams, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// What the task wants of whoever has the streams.
#[derive(Debug)]
pub enum Ask {
    /// A session's question for a peer, to be asked over the stream.
    Session {
        /// The peer that is asked, and the subnet in which.
        key: Key,
        /// The message to the peer.
        message: SessionMessage,
        /// Takes the peer's answer.
        answer: Answerer,
    },
    /// Tells a peer where this node may be reached, and asks the same.
    Paths {
        /// The peer that is told.
        peer: PeerId,
        /// What it is told.
        paths: Paths,
        /// Takes what it says of itself.
        answer: PathsAnswerer,
    },
    /// Datagrams pass straight to a peer: a connection may be dialled there.
    Punched {
        /// The peer.
        peer: PeerId,
        /// Its address.
        address: SocketAddr,
    },
    /// Datagrams pass straight to a peer no more.
    DirectLost {
        /// The peer.
        peer: PeerId,
    },
    /// Packets go to a peer by the stream, because somebody drops them as datagrams.
    DataLost {
        /// The peer.
        peer: PeerId,
    },
    /// This machine has other addresses or default routes than before.
    Roamed,
    /// Datagrams do not reach a peer at all, or do again.
    UdpBlocked {
        /// The peer.
        peer: PeerId,
        /// Whether they do not.
        blocked: bool,
    },
    /// A peer is reached by datagrams over a relay alone, or not at all, and this end is to ask relays for legs.
    Leg {
        /// The peer.
        peer: PeerId,
    },
}

/// Takes the answer to one [`Ask`]. Dropping it says that there is none.
#[derive(Debug)]
pub struct Answerer {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) orders: Option<mpsc::Sender<Command>>,
}

impl Answerer {
    /// Hands the answer in; waits while the task is busy.
    pub async fn give(mut self, answer: Option<SessionMessage>) {
        if let Some(orders) = self.orders.take() {
            // The receiver is gone only when the task has stopped.
            let _ = orders
                .send(Command::Answer {
                    key: self.key,
                    number: self.number,
                    answer,
                })
                .await;
        }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        if let Some(orders) = self.orders.take() {
            // Full: the session's own timer ends the question.
            let _ = orders.try_send(Command::Answer {
                key: self.key,
                number: self.number,
                answer: None,
            });
        }
    }
}

/// Why the addresses that a peer told were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untold {
    /// No subnet that is up here has it as a member: it may not have heard of that yet.
    NoSession,
    /// It told others a moment before, again and again.
    TooOften,
}

/// What the task is asked for.
#[derive(Debug)]
pub(super) enum Command {
    Connected {
        peer: PeerId,
    },
    Begin {
        peer: PeerId,
    },
    Closed {
        peer: PeerId,
    },
    LetGo {
        peer: PeerId,
    },
    Request {
        key: Key,
        message: SessionMessage,
        answer: oneshot::Sender<SessionMessage>,
    },
    Answer {
        key: Key,
        number: u64,
        answer: Option<SessionMessage>,
    },
    Candidates {
        peer: PeerId,
        addresses: Vec<SocketAddr>,
        origin: Origin,
    },
    Own(Vec<Candidate>),
    External(Vec<SocketAddr>),
    Deny(Vec<IpNet>),
    /// The links, our addresses on them, and how those leave.
    Uplinks(Vec<u32>, Vec<IpAddr>, Vec<Exit>),
    Paths {
        peer: PeerId,
        said: Paths,
        answer: oneshot::Sender<Result<Paths, Untold>>,
    },
    Told {
        peer: PeerId,
        answer: Option<Paths>,
    },
    Observed {
        address: SocketAddr,
        by: PeerId,
    },
    Retain(Arc<View>),
    Echo {
        key: Key,
        /// By a relay, or straight to the peer; none for the path in use.
        by_relay: Option<bool>,
        answer: oneshot::Sender<Echo>,
    },
    WantLeg {
        peer: PeerId,
    },
    Look {
        peer: PeerId,
    },
    Rebind {
        relay: PeerId,
    },
    Leave {
        relay: PeerId,
    },
    Leg {
        peer: PeerId,
        call: Call,
        over: oneshot::Sender<LegOver>,
    },
    Status(oneshot::Sender<HashMap<Key, DirectStatus>>),
    Here(oneshot::Sender<Here>),
}

/// A way to a peer through a relay, ready to take frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The relay that the leg is at.
    pub relay: PeerId,
    /// Its address, and the index of our leg there.
    pub remote: Remote,
}

/// What a leg at a relay, which leads to a peer, is bound with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The relay that the leg is at.
    pub relay: PeerId,
    /// Where it takes datagrams, best first; the first four are tried.
    pub addresses: Vec<SocketAddr>,
    /// The IP addresses of the relay that our own connections with it lead to, whatever others say.
    pub reached: Vec<IpAddr>,
    /// What the leg is bound with.
    pub ticket: Ticket,
    /// Who vouches for what is said by that leg: the relay where it gave the leg to us, else the peer that named it.
    pub by: PeerId,
}

/// Why a leg is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegOver {
    /// The relay never answered.
    NoAnswer,
    /// The relay answered once, and does not any more.
    Lost,
    /// Another leg at the same relay took its place.
    Replaced,
    /// Too many legs at other relays came after it.
    Displaced,
    /// The peer has been reached without a relay for five minutes, or the relay's addresses may not be used any more.
    Unneeded,
    /// The peer is no member any more, the relay is named no more, or the task has stopped.
    Gone,
}

/// Asks things of the control task. Clones ask the same task.
#[derive(Debug, Clone)]
pub struct Handle(pub(super) mpsc::Sender<Command>);

/// What this node knows of its own ways out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// What stands before it.
    pub facts: NatFacts,
    /// Where datagrams come in from everywhere all the same: a port that a router opened, or that is forwarded.
    pub open: Option<SocketAddr>,
    /// Where peers are told to look for it, best first.
    pub candidates: Vec<Candidate>,
    /// Where others see its datagrams come from, and who does.
    pub observed: Vec<(SocketAddr, PeerId)>,
    /// How its searches for ports that nobody can name fare.
    pub sprays: SprayStats,
    /// How its tests of what the NAT lets in fare, and its help for those of others.
    pub knocks: KnockStats,
    /// Why it is not known what the NAT lets in, where it is not.
    pub unsure: Unsure,
}

/// How the datagrams to one peer fare.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectStatus {
    /// The path that packets take; none where the stream carries them.
    pub path: Option<PathStatus>,
    /// The cipher of the key in use; none without a key.
    pub cipher: Option<Cipher>,
    /// Whether an ML-KEM secret is in that key; none without a key.
    pub hybrid: Option<bool>,
    /// Whether there is no key because one end requires ML-KEM and the other does not do it.
    pub unmet: bool,
    /// Keys used so far, the first one included.
    pub keys: u64,
    /// Paths gained, lost or moved so far.
    pub path_changes: u64,
    /// What stands between this node and others.
    pub here: NatFacts,
    /// Where datagrams come in to this node from everywhere all the same: a port that a router opened, or that is forwarded.
    pub open: Option<SocketAddr>,
    /// What stands before the peer, as it says; none before it has said so.
    pub there: Option<NatFacts>,
    /// Whether a search for a port that nobody can name is under way, or waits for its turn.
    pub spraying: bool,
    /// Where the peer is looked for.
    pub tried: Arc<[Tried]>,
    /// The last twenty changes of the path, the oldest first.
    pub changes: Arc<[PathChange]>,
}

/// An address at which a peer is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The peer's address; of a leg the relay's.
    pub address: SocketAddr,
    /// How the address was learnt.
    pub kind: Kind,
    /// The relay that a leg is at.
    pub relay: Option<PeerId>,
    /// Whether a probe was ever answered from there.
    pub answered: bool,
    /// Probes sent there since the last search began.
    pub tries: u32,
    /// When the last of them went out.
    pub last: Option<SystemTime>,
}

/// One end of a [`PathChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathEnd {
    /// The peer's address; of a leg the relay's.
    pub to: SocketAddr,
    /// The relay, where the path leads through one.
    pub relay: Option<PeerId>,
    /// Our address, where it was chosen among several.
    pub from: Option<IpAddr>,
}

/// The datagram path to a peer came up, moved or was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathChange {
    /// When it changed.
    pub at: SystemTime,
    /// What was used before; none where nothing was.
    pub from: Option<PathEnd>,
    /// What is used since; none where the stream carries.
    pub to: Option<PathEnd>,
    /// Why it changed.
    pub cause: Cause,
}

/// The datagram path that packets take now.
#[derive(Debug, Clone, PartialEq)]
pub struct PathStatus {
    /// The UDP address which packets go to: the peer's, or that of a relay.
    pub to: SocketAddr,
    /// The relay, where the path leads through one.
    pub relay: Option<PeerId>,
    /// When the path came up, or moved to this address.
    pub since: SystemTime,
    /// Smoothed round trip of the probes.
    pub rtt: Option<Duration>,
    /// Bytes of the largest IP packet of the underlay.
    pub mtu: u16,
    /// The share of keep-alives of the last two minutes that was not answered, 0 to 1.
    pub loss: Option<f64>,
}

impl Handle {
    async fn order(&self, order: Command) {
        // The receiver is gone only when the task has stopped.
        let _ = self.0.send(order).await;
    }

    /// A member's connection is there: sessions with it begin, in every common subnet. Where there is a path already, the
    /// member may have begun anew.
    pub async fn connected(&self, peer: PeerId) {
        self.order(Command::Connected { peer }).await;
    }

    /// Subnets may be new in common with a member that is connected: sessions begin where there is none.
    pub async fn begin(&self, peer: PeerId) {
        self.order(Command::Begin { peer }).await;
    }

    /// The last connection to a peer is gone: so may be the peer.
    pub async fn closed(&self, peer: PeerId) {
        self.order(Command::Closed { peer }).await;
    }

    /// The last connection to a peer was not used for long and is gone: its sessions end with it, as if they had never been. The
    /// next connection begins new ones.
    pub async fn let_go(&self, peer: PeerId) {
        self.order(Command::LetGo { peer }).await;
    }

    /// A member's message over the stream; the answer, or none where it is refused.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the message may have been taken all the same.
    pub async fn request(&self, key: Key, message: SessionMessage) -> Option<SessionMessage> {
        let (answer, answered) = oneshot::channel();
        self.order(Command::Request {
            key,
            message,
            answer,
        })
        .await;
        answered.await.ok()
    }

    /// Tells where a peer may be, best first.
    pub async fn candidates(&self, peer: PeerId, addresses: Vec<SocketAddr>, origin: Origin) {
        self.order(Command::Candidates {
            peer,
            addresses,
            origin,
        })
        .await;
    }

    /// Tells where this node may be reached, as its interfaces and its configuration say, best first. It replaces what was
    /// said before.
    pub async fn own(&self, named: Vec<Candidate>) {
        self.order(Command::Own(named)).await;
    }

    /// Tells where those see this node whom the configuration names. It replaces what was said before.
    pub async fn external(&self, seen: Vec<SocketAddr>) {
        self.order(Command::External(seen)).await;
    }

    /// Tells which networks are neither told to peers nor sent to. It replaces what was said before.
    pub async fn deny(&self, networks: Vec<IpNet>) {
        self.order(Command::Deny(networks)).await;
    }

    /// Tells the indexes of the links that default routes lead over, in order, and the addresses of this machine on them, those
    /// first that the kernel prefers. Where a link is gone, what others saw of this node by way of it holds no more. Where
    /// anything is other than before, every path is probed at once. `exits`: by which link the datagrams from some of these
    /// addresses leave, where the kernel would choose another.
    pub async fn uplinks(&self, links: Vec<u32>, preferred: Vec<IpAddr>, exits: Vec<Exit>) {
        let uplinks = Command::Uplinks(links, preferred, exits);
        self.order(uplinks).await;
    }

    /// A member says where it may be reached; what this node says of itself.
    ///
    /// # Cancel safety
    /// Dropped before it is done, what the member said may have been taken all the same.
    ///
    /// # Errors
    /// See [`Untold`].
    pub async fn paths(&self, peer: PeerId, said: Paths) -> Result<Paths, Untold> {
        let (answer, answered) = oneshot::channel();
        self.order(Command::Paths { peer, said, answer }).await;
        answered.await.unwrap_or(Err(Untold::NoSession))
    }

    /// Tells at which address somebody sees our datagrams come from: a member, a relay, a meeting point.
    pub async fn observed(&self, address: SocketAddr, by: PeerId) {
        self.order(Command::Observed { address, by }).await;
    }

    /// Tells who is a member with which key, and which addresses are the overlay's. It replaces
    /// what was said before.
    pub async fn retain(&self, view: Arc<View>) {
        self.order(Command::Retain(view)).await;
    }

    /// A peer is connected through a relay alone: legs at relays are asked for without waiting for a path.
    pub async fn want_leg(&self, peer: PeerId) {
        self.order(Command::WantLeg { peer }).await;
    }

    /// A person asks for a straight way to the peer: all that has not answered is probed anew, and at once.
    pub async fn look(&self, peer: PeerId) {
        self.order(Command::Look { peer }).await;
    }

    /// A relay may have begun anew: what it forgot of our legs is found out now, not at their next refresh.
    pub async fn rebind(&self, relay: PeerId) {
        self.order(Command::Rebind { relay }).await;
    }

    /// A relay is to be used no more: the legs at it are given up, and others are asked for where they are needed. The relay is
    /// not told: what it keeps of them ends by itself.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the order may not have been given.
    pub async fn leave(&self, relay: PeerId) {
        self.order(Command::Leave { relay }).await;
    }

    /// Binds a leg at a relay that leads to the peer, and keeps it bound while it is of use: by it the peer may be reached as
    /// by an address of its own. Gives the reason when it is over.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the leg there.
    pub async fn leg(&self, peer: PeerId, call: Call) -> LegOver {
        let (over, ended) = oneshot::channel();
        self.order(Command::Leg { peer, call, over }).await;
        ended.await.unwrap_or(LegOver::Gone)
    }

    /// The round trip of one probe on the datagram path; none where there is no path. The caller sets the time limit.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the probe.
    pub async fn ping(&self, key: Key) -> Option<Duration> {
        self.echo(key, None).await.map(|echo| echo.rtt)
    }

    /// One probe by a relay, or straight to the peer: along the path in use where it is of that kind, else along the best spare
    /// that has answered. None, and at once, where there is no path or no such way. The caller sets the time limit.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the probe.
    pub async fn echo(&self, key: Key, by_relay: Option<bool>) -> Option<Echo> {
        let (answer, answered) = oneshot::channel();
        let order = Command::Echo {
            key,
            by_relay,
            answer,
        };
        self.order(order).await;
        answered.await.ok()
    }

    /// What this node knows of its own ways out; none where the task has stopped.
    pub async fn here(&self) -> Option<Here> {
        let (answer, answered) = oneshot::channel();
        self.order(Command::Here(answer)).await;
        answered.await.ok()
    }

    /// How the datagrams to every peer fare, in each subnet.
    pub async fn status(&self) -> HashMap<Key, DirectStatus> {
        let (answer, answered) = oneshot::channel();
        self.order(Command::Status(answer)).await;
        answered.await.unwrap_or_default()
    }
}
