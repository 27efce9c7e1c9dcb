//! Circuits through relays: this node as a client of circuit relay v2, and who may hold how much of it as a relay.
//!
//! The client is our own. Whoever is named as a relay may send anything: each answer has a time and a size, a place is renewed
//! between 30 s and an hour after it was given, whatever the relay says of its life, and what a relay refuses is counted by its
//! reason. The addresses that a relay claims for itself are not announced, because it could name anybody's.
//!
//! | file | |
//! |---|---|
//! | `messages` | protobuf: what is sent, what is taken |
//! | `handler` | one connection to a relay |
//! | `client` | which connection our places are kept on |
//! | `transport` | places as listeners, circuits as dials |
//! | `handshakes` | how many circuits may be silent at a time |
//! | `shares` | what one source may hold of this node as a relay |

mod client;
mod handler;
mod handshakes;
mod messages;
mod shares;
mod transport;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::channel::mpsc;

pub(super) use self::client::Client;
#[cfg(test)]
pub(super) use self::client::Kept;
pub(super) use self::handshakes::{Bounded, Handshakes};
#[cfg(test)]
pub(super) use self::messages::{connect as circuit_to, kept_until};
pub(super) use self::shares::Shares;
use self::transport::Transport;

/// When a place at a relay is asked for again.
#[derive(Debug, Clone, Copy)]
pub struct Renewals {
    /// Never sooner than this: a relay that gives places for a moment only costs no more.
    pub soonest: Duration,
    /// Never later than this.
    pub latest: Duration,
}

/// Why there is no place at a relay, or no circuit through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// The relay refuses this node a place.
    #[error("it refuses a place")]
    Refused,
    /// One of the relay's limits is reached.
    #[error("it has no room")]
    Full,
    /// The relay does not permit it.
    #[error("it does not permit it")]
    Denied,
    /// The relay does not reach the peer at the other end.
    #[error("it does not reach the peer")]
    Unreached,
    /// Whoever is asked for has no place at the relay.
    #[error("the peer has no place there")]
    NoReservation,
    /// It takes us for a stranger, or is no relay.
    #[error("it is no relay for this node")]
    Unsupported,
    /// No answer came in time.
    #[error("it does not answer in time")]
    Timeout,
    /// What came makes no sense.
    #[error("it answers what makes no sense")]
    Malformed,
    /// The stream or the connection ended.
    #[error("its connection ended")]
    Ended,
    /// More is under way than this node takes on.
    #[error("too much is under way with it")]
    Crowded,
}

impl Refusal {
    /// The reason in one word, for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Refused => "refused",
            Refusal::Full => "full",
            Refusal::Denied => "denied",
            Refusal::Unreached => "unreached",
            Refusal::NoReservation => "no-reservation",
            Refusal::Unsupported => "unsupported",
            Refusal::Timeout => "timeout",
            Refusal::Malformed => "malformed",
            Refusal::Ended => "ended",
            Refusal::Crowded => "crowded",
        }
    }

    /// What a status of the protocol means; none: it is done.
    fn of_status(status: u64) -> Option<Refusal> {
        Some(match status {
            messages::OK => return None,
            200 => Refusal::Refused,
            201 => Refusal::Full,
            202 => Refusal::Denied,
            203 => Refusal::Unreached,
            messages::NO_RESERVATION => Refusal::NoReservation,
            _ => Refusal::Malformed,
        })
    }
}

/// How often something was refused, by reason.
pub type Refusals = BTreeMap<Refusal, u64>;

/// Makes the client: the transport that opens circuits, and the behaviour that asks relays for them.
pub(super) fn new(renewals: Renewals) -> (Transport, Client) {
    // As many messages wait in these as there are dials and listeners, and circuits that a connection may be brought.
    let (orders, from_transport) = mpsc::unbounded();
    let (news, from_client) = mpsc::unbounded();
    let client = Client::new(renewals, from_transport, news);
    (Transport::new(orders, from_client), client)
}
