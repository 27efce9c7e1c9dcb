//! What an answer to a probe changes: a path comes up, another one takes its place, or a spare is known to be there.

use std::time::{Duration, Instant};

use super::candidates::is_better;
use super::live::Live;
use super::probes::Pending;
use super::{BASE, Cause, Entropy, Pair, Paths, mtu};

impl Paths {
    /// An answer came that way in an opened frame. Gives the round trip; none for a token that was not asked or is forgotten.
    pub fn on_answer(
        &mut self,
        now: Instant,
        pair: Pair,
        token: u64,
        entropy: Entropy<'_>,
    ) -> Option<Duration> {
        let index = self.pending.iter().position(|probe| probe.token == token)?;
        let mut probe = self.pending.remove(index)?;
        let rtt = now.saturating_duration_since(probe.sent);
        let came = Pair {
            remote: probe.to.remote,
            ..pair
        };
        if probe.to.local.is_none() && !probe.is_free {
            self.learn(|candidates| candidates.settle(came));
        }
        probe.to = self
            .candidates
            .key(if probe.is_free { came } else { probe.to });
        self.follow_free(now, &probe, entropy);
        let is_held = self.candidates.is_held(now, probe.to);
        let is_fresh = self.is_fresh(probe.to);
        match &mut self.live {
            Some(live) if live.to == probe.to => self.on_live(now, &probe, rtt, entropy),
            Some(_) if is_fresh => self.on_fresh(now, &probe, entropy),
            Some(live) if is_better(probe.to, live.to) && !is_held => {
                if probe.size >= BASE {
                    self.up(now, &probe, rtt, Cause::Better, entropy);
                } else {
                    self.pad(now, probe.to, entropy);
                }
            }
            Some(_) => self.on_spare(now, &probe, rtt, entropy),
            None if probe.size >= BASE => self.up(now, &probe, rtt, Cause::Found, entropy),
            None => self.pad(now, probe.to, entropy),
        }
        Some(rtt)
    }

    /// The path is silent, and a probe of its from another address of ours was answered: packets leave from there.
    fn follow_free(&mut self, now: Instant, probe: &Pending, entropy: Entropy<'_>) {
        let is_silent = |live: &&Live| live.missed >= 2 && live.to.remote == probe.to.remote;
        let live = self.live.as_ref().filter(is_silent);
        if probe.is_free && live.is_some_and(|live| live.to != probe.to) {
            self.move_to(now, probe.to, Cause::Silent, entropy);
        }
    }

    /// A small probe was answered from there: does it carry what packets need?
    pub(super) fn pad(&mut self, now: Instant, to: Pair, entropy: Entropy<'_>) {
        if self.candidates.answered(now, to) {
            self.probe(now, to, BASE, entropy);
            self.probe(now, to, mtu::FIRST, entropy);
        }
    }
}
