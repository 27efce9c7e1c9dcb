//! Connections that lead where none may be: over the overlay, or into networks that the configuration denies.

use std::sync::Arc;

use super::Driver;
use crate::p2p::Class;
use crate::p2p::address::{bare, ip_of, is_within};
use crate::p2p::gate::Moved;
use crate::p2p::transport::Avoided;

/// Why such a connection is closed.
const AVOIDED: &str = "it leads over the overlay or into transport.deny_cidrs";

impl Driver {
    /// Takes the prefixes to keep away from. What leads there already is closed, through relays there as well.
    pub(super) fn handle_avoided(&mut self, avoided: Avoided) {
        self.overlay.store(Arc::new(avoided));
        let avoided = self.overlay.load_full();
        let there = self.links.iter();
        let there = there.filter(|(_, l)| !l.closing && is_within(&l.remote, &avoided));
        let there: Vec<_> = there.map(|(id, _)| *id).collect();
        for id in there {
            self.close(id, AVOIDED);
        }
    }

    /// The peer goes on from another address, over the same connection.
    pub(super) fn handle_moved(&mut self, moved: Moved) {
        let Some(link) = self.links.get_mut(&moved.connection) else {
            return;
        };
        link.remote = bare(&moved.remote);
        if is_within(&link.remote, &self.overlay.load()) {
            self.close(moved.connection, AVOIDED);
            return;
        }
        tracing::debug!(peer = %link.peer, connection = link.number, remote = %link.remote, "moved");
        if let Some(address) = ip_of(&link.remote).filter(|_| link.class == Class::Member) {
            self.seen.see(link.peer, address);
        }
    }
}
