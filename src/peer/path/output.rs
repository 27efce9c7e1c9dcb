//! What the paths want done, and the path in use as others see it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::peer::Pair;

/// What the paths want done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Send a sealed probe.
    Probe {
        /// Where it leaves from and goes to.
        pair: Pair,
        /// The token that the answer has to carry.
        token: u64,
        /// Bytes of the frame; 0: as few as it takes.
        pad_to: usize,
    },
    /// Answer a probe: small, whatever its size was.
    Answer {
        /// The way the probe came.
        pair: Pair,
        /// The token of the probe that is answered.
        token: u64,
    },
    /// Packets go there from now on. Takes the place of an earlier one.
    Up {
        /// Where it leaves from and goes to.
        pair: Pair,
        /// Bytes of the largest frame that the path carries so far.
        payload: usize,
        /// Whether that is what the path carries at most, not only what was tried so far.
        settled: bool,
    },
    /// There is no path any more.
    Lost,
    /// Open a helper socket, and hand it to [`Paths::fresh`](super::Paths::fresh).
    Fresh,
    /// Tell the peer that its packets are to go to another mapping of ours.
    Renewed {
        /// The way the peer is told by: that mapping.
        pair: Pair,
        /// Where the peer sees us by it.
        address: SocketAddr,
    },
}

/// The path in use, as `status` shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// Where packets leave from and go to.
    pub pair: Pair,
    /// When the path came up, or moved to this address.
    pub since: Instant,
    /// The smoothed round trip of its probes; none while none was measured.
    pub rtt: Option<Duration>,
    /// Bytes of the largest IP packet that is sent on the path.
    pub mtu: u16,
    /// The share of the last 64 keep-alive probes, two minutes of them, whose answer did not come: loss of both ways
    /// together, 0 to 1. None before the first answer.
    pub loss: Option<f64>,
}
