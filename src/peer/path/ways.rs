//! Return paths: the pairs of addresses that a peer's frames came by, so that answers go back the same way.

use crate::peer::{Pair, Remote};

/// The most pairs that are remembered of one peer.
const MAX_WAYS: usize = 4;

/// The pairs that frames came by, one for each address of the peer, the newest last. An answer has to leave from the
/// address of ours that the frame came to: a NAT on the way would drop it otherwise.
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
