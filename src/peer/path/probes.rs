//! Probes under way: sent, remembered until their answer comes, and forgotten.

use std::net::IpAddr;
use std::time::Instant;

use super::{Output, Paths, bytes, payload};
use crate::peer::{Entropy, Pair, Remote};

/// Probes remembered; the oldest is forgotten for a new one.
pub(super) const MAX_PENDING: usize = 96;

/// A probe whose answer is waited for.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) token: u64,
    pub(super) to: Pair,
    pub(super) sent: Instant,
    /// Bytes of the IP packet; 0: small.
    pub(super) size: u16,
    /// A keep-alive: what becomes of it is counted in `lossy::Tried`.
    pub(super) counts: bool,
    /// It left from another address of ours than the path does: its answer tells from which.
    pub(super) is_free: bool,
}

impl Paths {
    /// Probes the path now, for somebody who waits for the round trip: the token [`on_answer`](Self::on_answer) will see.
    pub fn ping(&mut self, now: Instant, entropy: Entropy<'_>) -> Option<u64> {
        let (token, _) = self.echo(now, None, entropy)?;
        Some(token)
    }

    /// The same of one kind of way: by a leg at a relay, or straight to the peer. It is the path in use where that is one, else
    /// the best spare that has answered; with it the far end. None where there is no path, or no such way.
    pub fn echo(
        &mut self,
        now: Instant,
        by_relay: Option<bool>,
        entropy: Entropy<'_>,
    ) -> Option<(u64, Remote)> {
        let live = self.live.as_ref()?.to;
        let is_meant = by_relay.is_none_or(|by_relay| live.remote.leg.is_some() == by_relay);
        let to = match by_relay {
            Some(by_relay) if !is_meant => self.candidates.best_spare(live, by_relay)?,
            _ => live,
        };
        Some((self.probe(now, to, 0, entropy), to.remote))
    }

    /// Sends a probe that makes an IP packet of `size` bytes; 0: small.
    pub(super) fn probe(&mut self, now: Instant, to: Pair, size: u16, entropy: Entropy<'_>) -> u64 {
        let token = u64::from_be_bytes(bytes(entropy));
        if self.pending.len() >= MAX_PENDING {
            self.forget_oldest();
        }
        let free = self.other_way(to);
        self.pending.push_back(Pending {
            token,
            to,
            sent: now,
            size,
            counts: false,
            is_free: free.is_some(),
        });
        let pad_to = if size == 0 {
            0
        } else {
            payload(to.remote, size)
        };
        let pair = free.unwrap_or_else(|| self.candidates.way(to));
        self.output(Output::Probe {
            pair,
            token,
            pad_to,
        });
        token
    }

    /// Of keep-alives that are sent again, every second one leaves from what the kernel chooses, which may know a better
    /// address of ours by now, and then from our other addresses in turn.
    fn other_way(&self, to: Pair) -> Option<Pair> {
        let live = self.live.as_ref().filter(|live| live.to == to)?;
        if live.missed == 0 || !live.missed.is_multiple_of(2) {
            return None;
        }
        let current = self.candidates.way(to).local;
        let others = self.candidates.locals_to(to.remote);
        let others = others.into_iter().map(Some).filter(|l| *l != current);
        let all: Vec<Option<IpAddr>> = std::iter::once(None).chain(others).collect();
        let turn = usize::try_from(live.missed / 2 - 1).unwrap_or(0);
        let local = *all.get(turn % all.len())?;
        Some(Pair {
            local,
            remote: to.remote,
        })
    }

    /// Nobody answered the oldest probe.
    pub(super) fn forget_oldest(&mut self) {
        if let Some(probe) = self.pending.pop_front()
            && let Some(live) = self
                .live
                .as_mut()
                .filter(|live| probe.counts && live.to == probe.to)
        {
            live.tried.lost();
        }
    }
}
