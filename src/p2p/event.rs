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
    /// Its peer is a relay that the configuration or a member names, or this node serves it as one: identify, ping,
    /// circuits and `/byway/relay/1`, nothing that names a subnet.
    Meeting,
    /// Its peer is anybody else, and may speak the join protocol and nothing more.
    Stranger,
}

/// What happened to connections, streams and addresses. Events of one connection arrive in order:
/// `Connected` first, `Closed` last.
#[derive(Debug)]
pub enum Event {
    /// A connection is there.
    Connected {
        /// The peer at its other end, authenticated.
        peer: PeerId,
        /// Its number, which grows with each connection of this process, so that the largest is the
        /// newest.
        connection: u64,
        /// What may be spoken on it.
        class: Class,
        /// The transport below it: `tcp`, `quic`, `ws`, `memory` or `relay`.
        transport: &'static str,
        /// The multiaddr of the other end.
        remote: String,
        /// Whether this end dialled it.
        outbound: bool,
        /// The relay that it runs through, if it does.
        relay: Option<PeerId>,
    },
    /// A relay keeps a place for us: whoever may come in through it, and [`Event::Listening`] names the addresses.
    Reserved {
        /// The relay.
        relay: PeerId,
    },
    /// A relay keeps no place for us any more; another is looked for, and this one is asked again.
    Unreserved {
        /// The relay.
        relay: PeerId,
        /// Why, for people.
        why: String,
    },
    /// A relay is named no more, and left: what leads through it otherwise is to be given up as well.
    Left {
        /// The relay.
        relay: PeerId,
    },
    /// A connection is gone. Its streams have failed already.
    Closed {
        /// The peer at its other end.
        peer: PeerId,
        /// The number that it had in [`Event::Connected`].
        connection: u64,
        /// Connections left to this peer.
        remaining: usize,
    },
    /// A request to be answered within 10 s.
    Asked {
        /// The peer that asks, authenticated.
        peer: PeerId,
        /// The number of the connection that the request came on.
        connection: u64,
        /// What may be spoken on that connection.
        class: Class,
        /// The protocol that the request came on.
        protocol: Protocol,
        /// Where it came from, for rate limits; none of who came through a relay.
        remote_ip: Option<IpAddr>,
        /// The relay that the connection runs through, if it does.
        relay: Option<PeerId>,
        /// The request, at most [`Protocol::cap`] bytes.
        body: Vec<u8>,
        /// Takes the answer to the request.
        responder: Responder,
    },
    /// A stream to write the packets of a subnet to; the peer has accepted it. Takes the place of an earlier one of the
    /// same connection and subnet.
    StreamOut {
        /// The peer that will read the stream.
        peer: PeerId,
        /// The number of the connection that it is on.
        connection: u64,
        /// The subnet whose packets it carries.
        subnet: SubnetId,
        /// The transport below it: `tcp`, `quic`, `ws`, `memory` or `relay`.
        transport: &'static str,
        /// The multiaddr of the other end.
        remote: String,
        /// The transport of our own connection to the relay, where the stream runs through one.
        below: Option<&'static str>,
        /// The stream that packets are written to.
        stream: DataStream,
    },
    /// A stream to read the packets of a subnet from. Takes the place of an earlier one of the same connection and
    /// subnet, which fails.
    StreamIn {
        /// The peer that writes the stream.
        peer: PeerId,
        /// The number of the connection that it is on.
        connection: u64,
        /// The subnet whose packets it carries; the peer is a member of it.
        subnet: SubnetId,
        /// The stream that packets are read from.
        stream: DataStream,
    },
    /// A peer answered on a local network. Anybody can claim anything there: only a connection proves who it is.
    Discovered {
        /// The peer that it says it is.
        peer: PeerId,
        /// Where it says it is; only addresses that may be dialled.
        addresses: Vec<Heard>,
    },
    /// A ping came back.
    Rtt {
        /// The peer that answered the ping.
        peer: PeerId,
        /// The number of the connection that was pinged.
        connection: u64,
        /// The time from the ping to its answer.
        rtt: Duration,
    },
    /// The addresses peers can dial have changed: overlay and link-local ones are left out, loopback ones too unless
    /// there are no others. Those through relays that keep a place for us are among them.
    Listening {
        /// Every address that peers can dial now.
        addresses: Vec<Address>,
    },
    /// The link-local IPv6 addresses that peers can dial have changed: they mean something to LAN peers alone, and name no
    /// link here. Follows each [`Event::Listening`].
    OnLink {
        /// Every such address.
        addresses: Vec<Address>,
    },
    /// A member, or a relay of ours, sees us at this address.
    Observed {
        /// The peer that says so.
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
