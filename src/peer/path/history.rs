//! The last changes of the path to a peer, each with its cause.

use std::collections::VecDeque;
use std::time::Instant;

use super::Pair;

/// The most changes that are remembered.
const KEPT: usize = 20;

/// Why a path came up, moved or was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The first address that answered.
    Found,
    /// An address of a better class answered: the peer itself, rather than a relay.
    Better,
    /// Another address of the same class answers sooner, or loses less.
    Faster,
    /// The peer's frames come from another address, and the old one answers no more.
    PeerMoved,
    /// The NAT of one end was about to end the mapping at the age that it lets mappings reach.
    Aged,
    /// Probes were not answered any more.
    Silent,
    /// Probes were answered and packets did not arrive.
    DataLost,
    /// No padded probe of the least size, 1280 bytes, was answered.
    Thin,
    /// The relay gave the leg up, or this node did.
    LegGone,
    /// The address lies in the overlay, or is one that nobody may send to.
    Forbidden,
    /// The helper socket that it left by was closed.
    HelperGone,
    /// There is no key any more.
    NoKey,
}

/// A path came up, moved or was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When it changed.
    pub at: Instant,
    /// What was used before; none where nothing was.
    pub from: Option<Pair>,
    /// What is used since; none where the stream carries.
    pub to: Option<Pair>,
    /// Why it changed.
    pub cause: Cause,
}

/// The last changes of the path to one peer, and how many there were.
#[derive(Debug, Default)]
pub(super) struct History {
    count: u64,
    last: VecDeque<Change>,
}

impl History {
    pub(super) fn add(&mut self, at: Instant, from: Option<Pair>, to: Option<Pair>, cause: Cause) {
        self.count = self.count.saturating_add(1);
        if self.last.len() >= KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Change {
            at,
            from,
            to,
            cause,
        });
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn last(&self) -> impl Iterator<Item = &Change> {
        self.last.iter()
    }
}
