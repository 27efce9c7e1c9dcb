//! Return paths: the address of ours that what the kernel may choose leaves from, for each address of the peer.

use std::net::IpAddr;

use crate::peer::{Pair, Remote};

/// The most of the peer's addresses for which that is remembered.
const MAX_WAYS: usize = 8;

/// Where frames came by, one pair for each address of the peer, the newest last. What goes there has to leave from the
/// address of ours that the frames came to: a NAT on the way would drop it otherwise.
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

    /// Our address that frames of that one came to.
    pub(super) fn of(&self, remote: Remote) -> Option<IpAddr> {
        self.0.iter().find(|way| way.remote == remote)?.local
    }
}
