//! How many circuits may be silent at a time: their other end has been named by the relay and has shown nothing yet.
//!
//! A stranger who opens circuits and says nothing holds a place of its own, never a member's: each peer that a relay names has
//! [`OF_A_PEER`] handshakes, all that are no members have three quarters of what one relay may bring. A relay can lie about
//! who is there; it harms itself only, because nothing else comes through it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use libp2p::Multiaddr;
use libp2p::core::transport::Boxed;
use parking_lot::Mutex;

use crate::model::id::PeerId;
use crate::p2p::Members;
use crate::p2p::address::{Circuit, relay_of};
use crate::p2p::layer::{Layer, Layered, Making};

/// Handshakes under way through one relay.
const OF_A_RELAY: usize = 32;
/// Those of them whose other end is named as no member.
const OF_STRANGERS: usize = 24;
/// Handshakes under way with whom a relay names.
const OF_A_PEER: usize = 4;

/// The handshakes under way inside circuits that came in. Cheap to clone, all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Handshakes(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    members: Arc<Members>,
    /// By relay and by whom it names.
    under_way: HashMap<(PeerId, PeerId), usize>,
    refused: u64,
}

/// One handshake, which counts until this is dropped.
struct UnderWay {
    all: Handshakes,
    who: (PeerId, PeerId),
}

impl Handshakes {
    pub(crate) fn set_members(&self, members: Arc<Members>) {
        self.0.lock().members = members;
    }

    /// How many circuits were closed because too many were silent.
    pub(crate) fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    fn begin(&self, relay: PeerId, peer: PeerId) -> Option<UnderWay> {
        let mut counts = self.0.lock();
        let is_member = |peer: &PeerId| counts.members.contains_key(peer);
        let (mut all, mut strangers) = (0, 0);
        for ((_, peer), n) in counts.under_way.iter().filter(|((r, _), _)| *r == relay) {
            all += n;
            strangers += if is_member(peer) { 0 } else { *n };
        }
        let of_peer = counts.under_way.get(&(relay, peer)).copied().unwrap_or(0);
        let full = all >= OF_A_RELAY
            || of_peer >= OF_A_PEER
            || (!is_member(&peer) && strangers >= OF_STRANGERS);
        if full {
            counts.refused += 1;
            return None;
        }
        let who = (relay, peer);
        *counts.under_way.entry(who).or_default() += 1;
        drop(counts);
        let all = self.clone();
        Some(UnderWay { all, who })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock();
        if let Some(n) = counts.under_way.get_mut(&self.who) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                counts.under_way.remove(&self.who);
            }
        }
    }
}

/// The transport of circuits with all that is inside them, whose handshakes are counted.
pub(crate) struct Bounded<T> {
    inner: Boxed<T>,
    handshakes: Handshakes,
}

impl<T> Bounded<T> {
    pub(crate) fn around(inner: Boxed<T>, handshakes: Handshakes) -> Layered<Self> {
        Layered(Bounded { inner, handshakes })
    }

    fn begin(&self, from: &Multiaddr) -> Option<UnderWay> {
        let peer = crate::p2p::peer_from_lib(&Circuit::of(from)?.peer?)?;
        self.handshakes.begin(relay_of(from)?, peer)
    }
}

impl<T: Send + 'static> Layer for Bounded<T> {
    type Output = T;

    fn inner(&mut self) -> &mut Boxed<T> {
        &mut self.inner
    }

    fn take_in(&mut self, from: &Multiaddr, handshake: Making<T>) -> Option<Making<T>> {
        let Some(under_way) = self.begin(from) else {
            tracing::debug!(remote = %from, "too many silent circuits");
            return None;
        };
        let counted = async move {
            let done = handshake.await;
            drop(under_way);
            done
        };
        Some(counted.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_strangers_hold_no_place_of_a_member() {
        let (all, relay) = (Handshakes::default(), PeerId([1; 32]));
        let member = PeerId([255; 32]);
        all.set_members(Arc::new([(member, vec![])].into()));
        let strangers = (2..40u8).flat_map(|n| [PeerId([n; 32]); 10]);
        let held: Vec<_> = strangers
            .filter_map(|peer| all.begin(relay, peer))
            .collect();
        assert_eq!(held.len(), OF_STRANGERS);
        let of_one = held.iter().filter(|h| h.who.1 == PeerId([2; 32])).count();
        assert_eq!(of_one, OF_A_PEER);
        let ours: Vec<_> = (0..10).filter_map(|_| all.begin(relay, member)).collect();
        assert_eq!(ours.len(), OF_A_PEER);
        // Another relay has its own.
        assert!(all.begin(PeerId([9; 32]), PeerId([2; 32])).is_some());
        assert_eq!(all.refused(), 380 - 24 + 6);
        drop((held, ours));
        assert!(all.0.lock().under_way.is_empty());
    }
}
