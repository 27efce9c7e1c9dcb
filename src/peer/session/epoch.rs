//! The keys a session holds: which one seals, which ones are opened, when each of them ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::messages::{Control, Id, encode, id_of};
use super::rekey::Timer;
use super::{
    Action, Entropy, FRAME_RATE, OVERLAP, REFUSE_AFTER, REKEY_AFTER, REKEY_FRAMES, RETIRED,
    RETRY_FIRST, STAGGER, Session,
};
use crate::crypto::frame::{Cipher, Opener, Sealer};
use crate::crypto::handshake::{Keys, Secret};

/// Gives out the receiver indices of one machine: no two of its keys have the same. Clones give out of the same ones.
///
/// A counter, and a permutation of its numbers under a secret key: they look random to others, and nothing has to be
/// remembered or given back. They come round again after 2^28 of them, long after the keys of the first are gone.
#[derive(Clone)]
pub struct Indices(Arc<Numbers>);

struct Numbers {
    secret: [u8; 32],
    next: AtomicU32,
}

/// Bits of half an index, without the four of the queue.
const HALF: u32 = 14;

impl Indices {
    /// Indices in an order that only who knows the entropy can tell.
    pub fn new(entropy: Entropy<'_>) -> Indices {
        let mut secret = [0; 32];
        entropy(&mut secret);
        Indices(Arc::new(Numbers {
            secret,
            next: AtomicU32::new(0),
        }))
    }

    /// One that no other key of this machine has; never 0.
    pub(super) fn take(&self) -> u32 {
        loop {
            // Relaxed: the number itself is all that is shared.
            let index = self.0.permuted(self.0.next.fetch_add(1, Ordering::Relaxed));
            if index != 0 {
                return index;
            }
        }
    }
}

impl Numbers {
    /// Four rounds of a Feistel network over 28 bits, above the four bits of the queue.
    fn permuted(&self, number: u32) -> u32 {
        let mask = (1 << HALF) - 1;
        let (mut left, mut right) = (number >> HALF & mask, number & mask);
        for round in 0..4u8 {
            let hash = Sha256::new()
                .chain_update(self.secret)
                .chain_update([round])
                .chain_update(right.to_be_bytes());
            let bytes: [u8; 32] = hash.finalize().into();
            let [first, second, ..] = bytes;
            let mixed = u32::from(u16::from_be_bytes([first, second])) & mask;
            (left, right) = (right, left ^ mixed);
        }
        (left << HALF | right) << 4
    }
}

/// The keys of one handshake, and how far they are used.
pub(super) struct Epoch {
    pub(super) id: Id,
    pub(super) hash: [u8; 32],
    pub(super) index: u32,
    pub(super) sealer: Arc<Sealer>,
    pub(super) next_psk: Secret,
    /// Whether an ML-KEM secret is in it.
    pub(super) hybrid: bool,
    pub(super) made: Instant,
    /// Whether we began its handshake.
    pub(super) initiator: bool,
    /// Whether the other end was seen using it.
    pub(super) confirmed: bool,
    /// When a rekey was found to be due.
    pub(super) due: Option<Instant>,
    /// The highest attempt to rekey it: ours, and the peer's that we answered.
    pub(super) attempts: u32,
    pub(super) answered: u32,
}

impl Epoch {
    pub(super) fn refused_at(&self) -> Instant {
        self.made + REFUSE_AFTER
    }

    pub(super) fn rekey_at(&self) -> Instant {
        self.made
            + REKEY_AFTER
            + if self.initiator {
                Duration::ZERO
            } else {
                STAGGER
            }
    }

    /// When to look at the counter: the earliest moment it could reach its limit, at least a second from now.
    pub(super) fn look_at(&self, now: Instant) -> Instant {
        let left = REKEY_FRAMES.saturating_sub(self.sealer.used());
        now + Duration::from_secs((left / FRAME_RATE).max(1))
    }
}

/// A key made by the peer's handshake that the peer was not yet seen using.
pub(super) struct Next {
    pub(super) epoch: Epoch,
    /// The rekey message it came from and the answer to give again; `None` for one made over the stream.
    pub(super) again: Option<(Vec<u8>, Vec<u8>)>,
}

/// A former key that is still opened.
pub(super) struct Retired {
    pub(super) index: u32,
    pub(super) sealer: Arc<Sealer>,
    pub(super) until: Instant,
}

impl Session {
    /// Our handshake is done: the keys are used at once.
    pub(super) fn began(&mut self, now: Instant, keys: Keys, index: u32, cipher: Cipher) {
        let epoch = self.install(now, keys, index, cipher, true);
        let former = [self.next.take().map(|n| n.epoch), self.current.take()];
        former
            .into_iter()
            .flatten()
            .for_each(|old| self.retire(old));
        let id = epoch.id;
        self.use_now(now, epoch);
        self.confirming = Some(Timer::start(now));
        self.actions
            .push_back(Action::Send(encode(&Control::Confirm { id })));
    }

    /// The peer's handshake is answered: the keys are used when the peer was seen using them, or if there are no others.
    pub(super) fn joined(
        &mut self,
        now: Instant,
        keys: Keys,
        index: u32,
        cipher: Cipher,
        again: Option<(Vec<u8>, Vec<u8>)>,
    ) {
        let epoch = self.install(now, keys, index, cipher, false);
        self.rekeying = None;
        if let Some(old) = self.next.take() {
            self.retire(old.epoch);
        }
        if self.current.is_some() {
            self.next = Some(Next { epoch, again });
        } else {
            self.use_now(now, epoch);
        }
    }

    pub(super) fn install(
        &mut self,
        now: Instant,
        keys: Keys,
        index: u32,
        cipher: Cipher,
        initiator: bool,
    ) -> Epoch {
        let library = self.config.aes.unwrap_or_default();
        let opener = Opener::new(cipher, library, &keys.receive);
        self.actions.push_back(Action::Install { index, opener });
        (self.made, self.again, self.retry, self.unmet) = (Some(now), None, RETRY_FIRST, false);
        let sealer = Arc::new(Sealer::new(cipher, library, &keys.send, keys.peer_index));
        Epoch {
            id: id_of(&keys.hash),
            hash: keys.hash,
            index,
            sealer,
            next_psk: keys.next_psk,
            hybrid: keys.hybrid,
            made: now,
            initiator,
            confirmed: false,
            due: None,
            attempts: 0,
            answered: 0,
        }
    }

    pub(super) fn use_now(&mut self, now: Instant, epoch: Epoch) {
        self.actions
            .push_back(Action::Use(Arc::clone(&epoch.sealer)));
        self.look = Some(epoch.look_at(now));
        (self.rekeying, self.confirming) = (None, None);
        self.current = Some(epoch);
    }

    /// The peer uses the key it began: so do we.
    pub(super) fn promote(&mut self, now: Instant) {
        let Some(Next { epoch, .. }) = self.next.take() else {
            return;
        };
        if let Some(old) = self.current.take() {
            self.retire(old);
        }
        let id = epoch.id;
        self.use_now(now, epoch);
        self.confirmed(now);
        self.actions
            .push_back(Action::Send(encode(&Control::Confirmed { id })));
    }

    /// The peer was seen using the current key: the former ones end soon.
    pub(super) fn confirmed(&mut self, now: Instant) {
        let Some(current) = self.current.as_mut().filter(|c| !c.confirmed) else {
            return;
        };
        current.confirmed = true;
        self.confirming = None;
        self.retired
            .iter_mut()
            .for_each(|r| r.until = r.until.min(now + OVERLAP));
    }

    /// Opens frames of that key for a while yet.
    pub(super) fn retire(&mut self, epoch: Epoch) {
        let until = epoch.refused_at();
        self.retired.push_back(Retired {
            index: epoch.index,
            sealer: epoch.sealer,
            until,
        });
        if self.retired.len() > RETIRED
            && let Some(oldest) = self.retired.pop_front()
        {
            self.remove(oldest);
        }
    }

    pub(super) fn remove(&mut self, retired: Retired) {
        retired.sealer.close();
        self.actions.push_back(Action::Remove {
            index: retired.index,
        });
    }
}
