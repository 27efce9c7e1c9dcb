//! What the peers' task tells the rest of the daemon.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Address, DataStream, Heard, Protocol};
use crate::model::id::{PeerId, SubnetId};

/// What a connection may speak; settled when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Its peer had a valid grant in a common subnet.
    Member,
    /// Anybody else: the join protocol and nothing more.
    Stranger,
}

/// Something happened. Events of one connection arrive in order: `Connected` first, `Closed` last.
#[derive(Debug)]
pub enum Event {
    /// A connection is there.
    Connected {
        /// Who is at its other end, authenticated.
        peer: PeerId,
        /// Its number: grows with each connection of this process, so that the largest is the newest.
        connection: u64,
        /// What may be spoken on it.
        class: Class,
        /// `tcp`, `quic` or `memory`.
        transport: &'static str,
        /// Address at the other end.
        remote: String,
        /// Whether we dialled.
        outbound: bool,
    },
    /// A connection is gone. Its streams have failed already.
    Closed {
        /// Whose.
        peer: PeerId,
        /// Which.
        connection: u64,
        /// Connections left to this peer.
        remaining: usize,
    },
    /// A request to be answered within 10 s.
    Asked {
        /// From whom, authenticated.
        peer: PeerId,
        /// On which connection.
        connection: u64,
        /// The connection's class.
        class: Class,
        /// On which protocol.
        protocol: Protocol,
        /// Where it came from, for rate limits.
        remote_ip: Option<IpAddr>,
        /// The request.
        body: Vec<u8>,
        /// Takes the answer.
        responder: Responder,
    },
    /// A stream to write the packets of a subnet to; the peer has accepted it. Takes the place of an earlier one of the
    /// same connection and subnet.
    StreamOut {
        /// To whom.
        peer: PeerId,
        /// On which connection.
        connection: u64,
        /// For which subnet.
        subnet: SubnetId,
        /// `tcp`, `quic` or `memory`.
        transport: &'static str,
        /// Address at the other end.
        remote: String,
        /// Where to write.
        stream: DataStream,
    },
    /// A stream to read the packets of a subnet from. Takes the place of an earlier one of the same connection and
    /// subnet, which fails.
    StreamIn {
        /// From whom.
        peer: PeerId,
        /// On which connection.
        connection: u64,
        /// For which subnet: one that the peer is a member of.
        subnet: SubnetId,
        /// Where to read.
        stream: DataStream,
    },
    /// A peer answered on a local network. Anybody can claim anything there: only a connection proves who it is.
    Discovered {
        /// Who it says it is.
        peer: PeerId,
        /// Where; only such as may be dialled.
        addresses: Vec<Heard>,
    },
    /// A ping came back.
    Rtt {
        /// From whom.
        peer: PeerId,
        /// On which connection.
        connection: u64,
        /// How long it took.
        rtt: Duration,
    },
    /// The addresses peers can dial have changed: overlay and link-local ones are left out, loopback ones too unless
    /// there are no others.
    Listening {
        /// All of them.
        addresses: Vec<Address>,
    },
    /// A member sees us at this address.
    Observed {
        /// Who says so.
        peer: PeerId,
        /// What it sees: behind a NAT, the NAT's address and a port that need not be open.
        address: Address,
    },
}

/// Takes the answer to one request. Dropping it tells the peer that there will be none.
#[derive(Debug)]
pub struct Responder(pub(super) oneshot::Sender<Vec<u8>>);

impl Responder {
    /// Answers. An answer over the protocol's cap, or to a connection that is gone, is dropped.
    pub fn respond(self, body: Vec<u8>) {
        // The receiver is gone only when the task has stopped.
        let _ = self.0.send(body);
    }
}
