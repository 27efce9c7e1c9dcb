//! The path in use: kept alive, searched for its size, challenged by a newer address, lost.

use std::time::{Duration, Instant};

use super::super::{Pair, Remote};
use super::candidates::is_better;
use super::lead::Lead;
use super::lossy::{HASTE, Tried};
use super::mtu::{self, Search};
use super::{
    BASE, BUSY_LOST, BUSY_PROBE_INTERVAL, CHALLENGE, CHALLENGE_REPEAT, Cause, DWELL, Entropy, LOST,
    LOST_PROBES, MAX_ANSWER_TIME, Output, PRESSING, Paths, Pending, REPEAT, SETTLED, SPARE,
    SUSPECT, jittered,
};

#[derive(Debug)]
pub(super) struct Live {
    pub(super) to: Pair,
    /// When it came up, or moved to this address of the peer.
    pub(super) since: Instant,
    /// When it last moved, our own address included.
    pub(super) moved: Instant,
    pub(super) rtt: Option<Duration>,
    pub(super) answered: Instant,
    /// Keep-alive probes sent since then.
    pub(super) missed: u32,
    /// When the last of [`LOST_PROBES`] was sent.
    pub(super) enough: Option<Instant>,
    pub(super) next: Instant,
    pub(super) lead: Lead,
    /// When the spares are probed.
    pub(super) spare_at: Instant,
    /// Since when there is reason to think that the peer is gone.
    pub(super) suspect: Option<Instant>,
    /// The first packets after a rest were sent, and nothing was answered since.
    pub(super) woken: bool,
    /// Whether packets had been sent when the first of the missed probes was.
    pub(super) busy: bool,
    pub(super) search: Search,
    /// [`Paths::data`] at the last keep-alive.
    pub(super) data: u64,
    pub(super) tried: Tried,
    pub(super) hole: Option<Hole>,
    pub(super) challenge: Option<Challenge>,
    /// When the old address won the last one.
    pub(super) settled: Option<Instant>,
    /// Where newer frames came from since, if not from the path's address.
    pub(super) elsewhere: Option<Pair>,
}

/// A padded keep-alive was missed.
#[derive(Debug)]
pub(super) struct Hole {
    pub(super) size: u16,
    pub(super) first: Instant,
    /// When it was sent again, with a small one beside it.
    pub(super) again: Option<Instant>,
    /// Whether a small one was answered meanwhile.
    pub(super) small: bool,
}

/// Another address may take the path over: newer frames came from there, or the path is silent.
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) to: Pair,
    pub(super) started: Instant,
    pub(super) next: Instant,
    /// Probes answered by the other address since then, and by the path's own.
    pub(super) answers: u32,
    pub(super) own: u32,
    /// Whether the path lost probes before: then one answer of its own does not settle it.
    pub(super) is_silent: bool,
    /// Whether the peer says itself that it moves there.
    pub(super) is_announced: bool,
}

impl Challenge {
    pub(super) fn is_answered(&self) -> bool {
        self.answers > 0
    }

    /// Whether the other address takes the path over.
    fn is_won(&self) -> bool {
        self.is_answered() && (self.own == 0 || self.answers >= 3 && self.own * 2 < self.answers)
    }
}

impl Live {
    /// How long an answer may take before its probe counts as missed; at least `least`.
    pub(super) fn patience(&self, least: Duration) -> Duration {
        self.rtt.map_or(least, |rtt| {
            rtt.saturating_mul(2)
                .clamp(least, MAX_ANSWER_TIME.max(least))
        })
    }

    /// What the path is compared by, like a round trip: ten milliseconds for each hundredth that is clearly lost, of the last
    /// 64 or of the last eight, three off where it is IPv6. None before the first round trip.
    pub(super) fn score(&self) -> Option<Duration> {
        let lost = Duration::from_secs(1).mul_f64(self.tried.compared());
        let bonus = if self.to.remote.address.is_ipv6() {
            3
        } else {
            0
        };
        Some((self.rtt? + lost).saturating_sub(Duration::from_millis(bonus)))
    }

    pub(super) fn search_wait(&self) -> Duration {
        self.patience(mtu::PROBE_TIMEOUT)
    }

    /// The time after which a missed keep-alive is sent again.
    pub(super) fn repeat(&self) -> Duration {
        self.patience(if self.suspect.is_some() {
            SUSPECT
        } else if self.missed >= 2 {
            PRESSING
        } else {
            REPEAT
        })
    }

    /// When the path is lost, should nothing be answered any more.
    pub(super) fn lost_at(&self) -> Option<Instant> {
        let settled = self.enough? + self.repeat();
        Some(if self.suspect.is_some() || self.woken {
            settled
        } else {
            settled.max(self.answered + if self.busy { BUSY_LOST } else { LOST })
        })
    }

    /// Whether the path does not answer, or answers so seldom that another one may be better. The second probe is sent when
    /// the first was missed.
    pub(super) fn is_silent(&self) -> bool {
        self.missed >= 2 || (self.missed == 1 && self.tried.is_lossy())
    }

    /// Whether frames from elsewhere are a reason to ask: not while that is being done, and not soon after the path's own
    /// address has answered, unless it is silent by now.
    pub(super) fn may_be_challenged(&self, now: Instant) -> bool {
        self.challenge.is_none()
            && (self.is_silent() || self.settled.is_none_or(|settled| settled + SETTLED <= now))
    }

    /// When a missed padded probe means a hole.
    pub(super) fn hole_at(&self) -> Option<Instant> {
        let hole = self.hole.as_ref().filter(|hole| hole.small)?;
        Some(hole.again? + self.patience(REPEAT))
    }
}

impl Paths {
    pub(super) fn on_live(
        &mut self,
        now: Instant,
        probe: &Pending,
        rtt: Duration,
        entropy: Entropy<'_>,
    ) {
        let interval = jittered(BUSY_PROBE_INTERVAL, entropy);
        let Some(live) = &mut self.live else { return };
        let has_spare = self.candidates.spare(live.to).is_some();
        live.rtt = Some(live.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
        if probe.counts {
            live.tried.answered(rtt);
        }
        live.suspect.take_if(|since| probe.sent >= *since);
        // An answer that was under way already proves nothing to one who suspects.
        if live.suspect.is_none() {
            live.answered = now;
            let was_missed = std::mem::take(&mut live.missed);
            live.woken = false;
            live.enough = None;
            live.lead.answered();
            if probe.counts && was_missed == 1 && self.aging.lifetime().is_none() {
                self.quiet.answered(now);
            }
            // Something to go to, and reason to ask: soon it is known whether it loses.
            let is_doubtful = has_spare && !live.tried.is_clean();
            live.next = now + if is_doubtful { REPEAT } else { interval };
        }
        let to = live.to;
        let is_over = |challenge: &mut Challenge| {
            if probe.sent < challenge.started {
                return false;
            }
            challenge.own = challenge.own.saturating_add(1);
            // A path that loses much is held against another one of its class, answer by answer.
            !challenge.is_announced && (!challenge.is_silent || is_better(to, challenge.to))
        };
        if live.challenge.take_if(is_over).is_some() {
            live.settled = Some(now);
        }
        if let Some(hole) = live.hole.as_mut().filter(|hole| probe.sent >= hole.first) {
            hole.small |= probe.size < hole.size;
            if probe.size >= hole.size {
                live.hole = None;
            } else if hole.again.is_none() {
                // The padded one has not been sent twice yet: do that first, at its own time.
                live.next = live.next.min(hole.first + REPEAT);
            }
        }
        if live.search.answered(now, probe.size) {
            self.tell();
        }
    }

    /// A probe was answered from elsewhere than the path leads to, and not from a better class.
    pub(super) fn on_spare(
        &mut self,
        now: Instant,
        probe: &Pending,
        rtt: Duration,
        entropy: Entropy<'_>,
    ) {
        let Some(live) = &mut self.live else { return };
        let score = live.score().filter(|_| !is_better(live.to, probe.to));
        let is_held = self.candidates.is_held(now, probe.to);
        let clearly = self.candidates.is_there(now, probe.to, rtt, score) && !is_held;
        let is_bad = live.tried.is_bad();
        let may_leave = if live.tried.seems_bad() {
            is_bad && self.haste.may_leave(live.moved, now)
        } else {
            live.moved + DWELL <= now
        };
        if clearly && probe.size >= BASE && may_leave {
            if is_bad {
                self.haste.left(now);
            }
            return self.up(now, probe, rtt, Cause::Faster, entropy);
        }
        if let Some(challenge) = &mut live.challenge
            && challenge.to == probe.to
        {
            challenge.answers = challenge.answers.saturating_add(1);
            if challenge.is_announced {
                return self.end_announced(now);
            }
        }
        // A challenge decides sooner, unless the path answers now and then.
        if clearly && may_leave && (is_bad || live.challenge.is_none()) {
            self.pad(now, probe.to, entropy);
        }
    }

    /// A padded probe was answered: packets go where it went from now on.
    pub(super) fn up(
        &mut self,
        now: Instant,
        probe: &Pending,
        rtt: Duration,
        cause: Cause,
        entropy: Entropy<'_>,
    ) {
        let (to, size) = (probe.to, probe.size);
        let same = self
            .live
            .as_ref()
            .filter(|live| live.to.remote == to.remote);
        let since = same.map_or(now, |live| live.since);
        let mut live = Live {
            to,
            since,
            moved: now,
            rtt: Some(rtt),
            answered: now,
            missed: 0,
            enough: None,
            next: now + jittered(BUSY_PROBE_INTERVAL, entropy),
            lead: Lead::default(),
            spare_at: now + jittered(SPARE, entropy),
            suspect: None,
            woken: false,
            busy: false,
            search: Search::new(now, mtu::PROBE_TIMEOUT),
            data: self.data,
            tried: Tried::default(),
            hole: None,
            challenge: None,
            settled: None,
            elsewhere: None,
        };
        let wait = live.search_wait();
        live.search = Search::new(now, wait);
        live.search.answered(now, size);
        let before = self.live.replace(live).map(|live| live.to);
        self.history.add(now, before, Some(to), cause);
        self.tell();
    }

    pub(super) fn lose(&mut self, now: Instant, cause: Cause) {
        let Some(live) = self.live.take() else {
            return;
        };
        self.history.add(now, Some(live.to), None, cause);
        if cause == Cause::Silent {
            self.candidates.left(now, live.to);
        }
        self.pending.clear();
        self.candidates.forget_ways();
        self.candidates.rush(now);
        self.outputs.push_back(Output::Lost);
    }

    /// Helper sockets were closed: those that `gone` names. A path by one of them is lost.
    pub fn drop_helpers(&mut self, now: Instant, gone: impl Fn(u16) -> bool) {
        let gone = |remote: Remote| remote.helper.is_some_and(&gone);
        if self.live.as_ref().is_some_and(|live| gone(live.to.remote)) {
            self.lose(now, Cause::HelperGone);
        }
        self.candidates.drop_where(gone);
    }

    /// Asks the spares whether they are there.
    pub(super) fn keep_spares(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        let every = if live.tried.seems_bad() { HASTE } else { SPARE };
        live.spare_at = now + jittered(every, entropy);
        if self.quiet.is_quiet() {
            return;
        }
        let path = live.to;
        for to in self.candidates.take_spares(path) {
            self.probe(now, to, 0, entropy);
        }
    }

    /// That address has to answer, and the path's must not.
    pub(super) fn begin_challenge(&mut self, now: Instant, to: Pair, entropy: Entropy<'_>) {
        if let Some(live) = &mut self.live {
            live.challenge = Some(Challenge {
                to,
                started: now,
                next: now,
                answers: 0,
                own: 0,
                is_silent: live.is_silent(),
                is_announced: false,
            });
            self.challenge(now, entropy);
        }
    }

    /// Sends the two probes of a challenge, or decides it.
    pub(super) fn challenge(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        let is_silent = live.missed >= LOST_PROBES;
        let Some(challenge) = &mut live.challenge else {
            return;
        };
        let is_clear = is_silent && challenge.own == 0 && challenge.is_answered();
        if now < challenge.started + CHALLENGE && !is_clear {
            let (old, new) = (live.to, challenge.to);
            challenge.next = (now + CHALLENGE_REPEAT).min(challenge.started + CHALLENGE);
            self.probe(now, old, 0, entropy);
            self.probe(now, new, 0, entropy);
            return;
        }
        let (to, is_won, is_answered) = (challenge.to, challenge.is_won(), challenge.is_answered());
        let cause = if challenge.is_silent || live.missed >= 2 {
            Cause::Silent
        } else {
            Cause::PeerMoved
        };
        if challenge.own > 0 {
            live.settled = Some(now);
        }
        live.challenge = None;
        if is_won {
            self.move_to(now, to, cause, entropy);
        } else if !is_answered {
            self.candidates.failed(to);
        }
    }

    /// Another address takes the path over.
    pub(super) fn move_to(&mut self, now: Instant, to: Pair, cause: Cause, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        let before = std::mem::replace(&mut live.to, to);
        if before.remote != to.remote {
            live.since = now;
        }
        live.moved = now;
        live.settled = None;
        (live.challenge, live.elsewhere, live.hole) = (None, None, None);
        live.tried = Tried::default();
        live.answered = now;
        live.missed = 0;
        live.enough = None;
        live.next = now + REPEAT;
        live.lead = Lead::default();
        self.history.add(now, Some(before), Some(to), cause);
        if matches!(cause, Cause::Silent | Cause::DataLost) {
            self.candidates.left(now, before);
        }
        if is_better(before, to) {
            // From the peer itself to a relay: the way back is looked for at once.
            self.candidates.rush(now);
        }
        // What the old way carried says nothing about the new one.
        self.fall(now, entropy);
    }

    /// Goes back to what every path carries, and up again from there.
    pub(super) fn fall(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        live.hole = None;
        live.search.fall(now);
        self.tell();
        self.search(now, entropy);
    }

    pub(super) fn search(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        let (to, wait, settled) = (live.to, live.search_wait(), live.search.is_settled());
        if settled && self.quiet.is_quiet() {
            return live.search.put_off(now);
        }
        match live.search.step(now, wait, jittered(mtu::RAISE, entropy)) {
            Some(sizes) => {
                if live.search.is_settled() != settled {
                    self.tell();
                }
                for size in sizes {
                    self.probe(now, to, size, entropy);
                }
            }
            None => {
                // Not even the least size arrives: this address is of no use.
                self.lose(now, Cause::Thin);
                self.candidates.thin(now, to);
            }
        }
    }

    pub(super) fn keep_alive(&mut self, now: Instant, entropy: Entropy<'_>) {
        let (busy, repeat) = match &self.live {
            Some(live) => (live.data != self.data, live.repeat()),
            None => return,
        };
        let Some(live) = &mut self.live else { return };
        let to = live.to;
        let is_doubtful = !live.tried.is_clean() && self.candidates.spare(to).is_some();
        if busy && self.quiet.is_quiet() {
            // The first packets after a rest: whether the way is still open is to be known soon.
            live.spare_at = now;
            live.woken = true;
        }
        if busy {
            self.quiet.wake(now);
        }
        let pause = self.quiet.pause();
        let calm = live.suspect.is_none() && live.hole.is_none() && !busy && !is_doubtful;
        let put_off = live.lead.until(pause, self.waits_longer);
        let earliest = put_off.max(Some(live.answered + pause - pause / 16));
        if live.missed == 0 && calm && Some(now) < earliest {
            // Whether packets flow is looked at meanwhile: then it is not to be waited for.
            let next = (live.answered + jittered(pause, entropy)).max(put_off.unwrap_or(now));
            live.next = next.min(now + BUSY_PROBE_INTERVAL);
            return;
        }
        if live.missed == 0 {
            live.busy = busy;
        } else {
            live.tried.missed();
            if live.tried.seems_bad() {
                live.spare_at = live.spare_at.min(now + HASTE);
            }
        }
        live.missed = live.missed.saturating_add(1);
        if live.missed == LOST_PROBES {
            // Two in a row are missed: behind a pause a NAT has closed the way.
            self.quiet.closed(now);
            live.enough = Some(now);
        }
        live.next = now + repeat;
        let (mut padded, mut small) = (None, true);
        match &mut live.hole {
            None if busy && live.missed == 1 && live.suspect.is_none() => {
                // Traffic of that size went out: does it arrive?
                live.data = self.data;
                let size = live.search.mtu();
                live.hole = Some(Hole {
                    size,
                    first: now,
                    again: None,
                    small: false,
                });
                (padded, small) = (Some(size), false);
            }
            Some(hole) if hole.again.is_none() => {
                hole.again = Some(now);
                padded = Some(hole.size);
            }
            _ => live.data = self.data,
        }
        for size in padded.into_iter().chain(small.then_some(0)) {
            self.probe(now, to, size, entropy);
            if let Some(probe) = self.pending.back_mut() {
                probe.counts = true;
            }
        }
        if self.live.as_ref().is_some_and(|live| {
            live.missed >= LOST_PROBES
                && live.challenge.as_ref().is_some_and(Challenge::is_answered)
        }) {
            // Two keep-alives and the challenge's own probes were missed, and the other address answers.
            self.challenge(now, entropy);
        }
        if let Some(live) = self
            .live
            .as_mut()
            .filter(|live| live.is_silent() && live.may_be_challenged(now))
            && let Some(to) = live
                .elsewhere
                .take()
                .or_else(|| self.candidates.spare(live.to))
        {
            self.begin_challenge(now, to, entropy);
        }
    }
}
