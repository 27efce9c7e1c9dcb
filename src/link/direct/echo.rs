//! Probes that somebody waits for: along the path in use, or along a way of one kind.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Direct, entropy};
use crate::link::Key;
use crate::model::id::PeerId;

/// Probes for one peer that are waited for at once.
const PINGS: usize = 16;

/// What came back of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The round trip.
    pub rtt: Duration,
    /// The UDP address it went to: the peer's, or that of a relay.
    pub to: SocketAddr,
    /// The relay, where it went through one.
    pub relay: Option<PeerId>,
}

/// A probe under way, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) token: u64,
    to: SocketAddr,
    relay: Option<PeerId>,
    answer: oneshot::Sender<Echo>,
}

impl Waiting {
    /// Hands the round trip to who waits for it, and may have gone away.
    pub(super) fn answer(self, rtt: Duration) {
        let Waiting {
            to, relay, answer, ..
        } = self;
        let _ = answer.send(Echo { rtt, to, relay });
    }
}

impl Direct {
    /// Somebody waits for a probe to a peer. Where there is no way of that kind, `answer` is dropped.
    pub(super) fn on_echo(
        &mut self,
        now: Instant,
        key: Key,
        by_relay: Option<bool>,
        answer: oneshot::Sender<Echo>,
    ) {
        let Some(entry) = self.peers.get_mut(&key.peer) else {
            return;
        };
        entry.pings.retain(|waiting| !waiting.answer.is_closed());
        if entry.pings.len() < PINGS
            && let Some((token, remote)) = entry.peer.echo(now, key.subnet, by_relay, &mut entropy)
        {
            let relay = entry.relay(remote);
            entry.pings.push(Waiting {
                token,
                to: remote.address,
                relay,
                answer,
            });
        }
        self.carry_out(key.peer);
    }
}
