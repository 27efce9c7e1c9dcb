//! The address book: where each peer may be.
//!
//! Pure and bounded: 32 addresses per peer, and 256 peers that are not pinned. Addresses that worked are tried first.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::Multiaddr;

use super::address::{Carrier, bare, carrier_of};
use crate::model::id::PeerId;

/// Addresses kept of one peer.
const ADDRESSES: usize = 32;
/// Peers kept that nobody needs: what a LAN full of strangers announces.
const LOOSE: usize = 256;

#[derive(Debug, Default)]
struct Page {
    /// Best first.
    addresses: Vec<Multiaddr>,
    /// When it was last written, in calls.
    touched: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: BTreeMap<PeerId, Page>,
    pinned: BTreeSet<PeerId>,
    clock: u64,
}

impl Book {
    /// Peers whose pages are never given up.
    pub(super) fn pin(&mut self, peers: BTreeSet<PeerId>) {
        self.pinned = peers;
    }

    /// Adds an address at the end. Says whether it was new.
    pub(super) fn add(&mut self, peer: PeerId, address: &Multiaddr) -> bool {
        let address = bare(address);
        self.clock += 1;
        let page = self.pages.entry(peer).or_default();
        page.touched = self.clock;
        let new = !page.addresses.contains(&address);
        if new {
            // The last one is the one that was tried without success for longest.
            page.addresses.truncate(ADDRESSES - 1);
            page.addresses.push(address);
        }
        self.forget_the_oldest();
        new
    }

    /// The address works: it comes first, and is added if it is new.
    pub(super) fn worked(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = bare(address);
        self.add(peer, &address);
        if let Some(page) = self.pages.get_mut(&peer) {
            page.addresses.retain(|a| *a != address);
            page.addresses.insert(0, address);
        }
    }

    /// All addresses of a peer, best first.
    pub(super) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.pages.get(peer).map_or(&[], |page| &page.addresses)
    }

    /// The addresses in two rounds: those of the preferred carrier, then the others.
    pub(super) fn rounds(&self, peer: &PeerId, prefer: Carrier) -> (Vec<Multiaddr>, Vec<Multiaddr>) {
        self.addresses(peer).iter().cloned().partition(|a| carrier_of(a) == Some(prefer))
    }

    fn forget_the_oldest(&mut self) {
        let loose = || self.pages.iter().filter(|(peer, _)| !self.pinned.contains(peer));
        if loose().count() > LOOSE
            && let Some(oldest) = loose().min_by_key(|(_, page)| page.touched).map(|(peer, _)| *peer)
        {
            self.pages.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{}", 1000 + n).parse().unwrap()
    }

    #[test]
    fn addresses_are_capped_and_the_working_one_is_first() {
        let (mut book, peer) = (Book::default(), PeerId([1; 32]));
        for n in 0..10_000 {
            book.add(peer, &address(n));
        }
        assert_eq!(book.addresses(&peer).len(), ADDRESSES);
        book.worked(peer, &address(7));
        assert_eq!(book.addresses(&peer).first(), Some(&address(7)));
        assert_eq!(book.addresses(&peer).iter().filter(|a| **a == address(7)).count(), 1);
        assert!(!book.add(peer, &address(7)));
    }

    #[test]
    fn strangers_cannot_push_members_out() {
        let (mut book, member) = (Book::default(), PeerId([255; 32]));
        book.pin([member].into());
        book.add(member, &address(1));
        for n in 0..2000u16 {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            book.add(PeerId(key), &address(1));
        }
        assert_eq!(book.addresses(&member).len(), 1);
        assert_eq!(book.pages.len(), LOOSE + 1);
    }
}
