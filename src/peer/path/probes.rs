//! Probes under way: sent, remembered until their answer comes, and forgotten.

use std::time::Instant;

use super::{Output, Paths, bytes, payload};
use crate::peer::{Entropy, Pair, Remote};

/// Probes remembered; the oldest is forgotten for a new one.
pub(super) const MAX_PENDING: usize = 96;

/// A probe whose answer is waited for.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) token: u64,
    pub(super) to: Remote,
    pub(super) sent: Instant,
    /// Bytes of the IP packet; 0: small.
    pub(super) size: u16,
    /// A keep-alive: what becomes of it is counted in `live::Tried`.
    pub(super) counts: bool,
}

impl Paths {
    /// Sends a probe that makes an IP packet of `size` bytes; 0: small.
    pub(super) fn probe(
        &mut self,
        now: Instant,
        to: Remote,
        size: u16,
        entropy: Entropy<'_>,
    ) -> u64 {
        let token = u64::from_be_bytes(bytes(entropy));
        if self.pending.len() >= MAX_PENDING {
            self.forget_oldest();
        }
        self.pending.push_back(Pending {
            token,
            to,
            sent: now,
            size,
            counts: false,
        });
        let pad_to = if size == 0 { 0 } else { payload(to, size) };
        // Of keep-alives that are sent again, every second one leaves from what the kernel chooses: it may know a better
        // address of ours by now.
        let missed = self.live.as_ref().map_or(0, |live| live.missed);
        let is_free = missed > 0 && missed.is_multiple_of(2);
        let pair = if is_free {
            Pair {
                local: None,
                remote: to,
            }
        } else {
            self.ways.to(to)
        };
        self.output(Output::Probe {
            pair,
            token,
            pad_to,
        });
        token
    }

    /// Nobody answered the oldest probe.
    pub(super) fn forget_oldest(&mut self) {
        if let Some(probe) = self.pending.pop_front()
            && let Some(live) = self
                .live
                .as_mut()
                .filter(|live| probe.counts && live.to == probe.to)
        {
            live.tried.add(true);
        }
    }
}
