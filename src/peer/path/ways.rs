//! The ways that frames of a peer came by, so that what goes back takes the same.

use crate::peer::{Pair, Remote};

/// The most ways that are remembered of one peer.
const MAX_WAYS: usize = 4;

/// The pairs that frames came by, one for each address of the peer's; the newest last. What goes back leaves from the address
/// of ours they came to, or a NAT on the way lets it not in.
#[derive(Debug, Default)]
pub(super) struct Ways(Vec<Pair>);

impl Ways {
    pub(super) fn note(&mut self, pair: Pair) {
        if self.0.last() == Some(&pair) {
            return;
        }
        self.0.retain(|way| way.remote != pair.remote);
        if self.0.len() >= MAX_WAYS {
            self.0.remove(0);
        }
        self.0.push(pair);
    }

    /// Forgets all: nothing that was learnt of our own ends holds any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The pair for what goes to that address.
    pub(super) fn to(&self, remote: Remote) -> Pair {
        let known = self.0.iter().find(|way| way.remote == remote);
        known.copied().unwrap_or(Pair {
            local: None,
            remote,
        })
    }
}
