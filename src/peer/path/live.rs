//! The path in use: kept alive, searched for its size, challenged by a newer address, lost.

use std::time::{Duration, Instant};

use super::super::Remote;
use super::candidates::is_better;
use super::lossy::{HASTE, LATE, Recent};
use super::mtu::{self, Search};
use super::{
    BASE, BUSY_PROBE_INTERVAL, CHALLENGE, CHALLENGE_REPEAT, Cause, DWELL, Entropy,
    IDLE_PROBE_INTERVAL, LOST, LOST_PROBES, MAX_ANSWER_TIME, Output, Paths, Pending, REPEAT,
    SETTLED, SPARE, SPARED_PROBE_INTERVAL, SUSPECT, jittered,
};

/// Keep-alives of the last 64 that must be lost before they count against a path.
const CLEARLY_LOST: u32 = 4;

/// What became of the last keep-alives: a bit each, set where it was lost, the newest one lowest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tried {
    pub(super) lost: u64,
    pub(super) count: u32,
}

impl Tried {
    pub(super) fn add(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u64::from(lost);
        self.count = self.count.saturating_add(1).min(u64::BITS);
    }

    pub(super) fn loss(self) -> Option<f64> {
        (self.count > 0).then(|| f64::from(self.lost.count_ones()) / f64::from(self.count))
    }

    /// The same where enough were lost to tell a path from another: of a single one nothing is concluded, or two paths that
    /// lose one of a hundred would take turns.
    fn clear_loss(self) -> f64 {
        let is_clear = self.lost.count_ones() >= CLEARLY_LOST;
        self.loss().filter(|_| is_clear).unwrap_or(0.0)
    }
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) to: Remote,
    pub(super) since: Instant,
    pub(super) rtt: Option<Duration>,
    pub(super) answered: Instant,
    /// Keep-alive probes sent since then.
    pub(super) missed: u32,
    /// When the last of [`LOST_PROBES`] was sent.
    pub(super) enough: Option<Instant>,
    pub(super) next: Instant,
    /// When the spares are probed.
    pub(super) spare_at: Instant,
    /// Since when there is reason to think that the peer is gone.
    pub(super) suspect: Option<Instant>,
    pub(super) search: Search,
    /// [`Paths::data`] at the last keep-alive.
    pub(super) data: u64,
    pub(super) tried: Tried,
    pub(super) recent: Recent,
    pub(super) hole: Option<Hole>,
    pub(super) challenge: Option<Challenge>,
    /// When the old address won the last one.
    pub(super) settled: Option<Instant>,
    /// Where newer frames came from since, if not from the path's address.
    pub(super) elsewhere: Option<Remote>,
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
    pub(super) to: Remote,
    pub(super) started: Instant,
    pub(super) next: Instant,
    pub(super) answered: bool,
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
        // One that seems bad is compared by that; whether it is left is another question.
        let recent = if self.recent.seems_bad() {
            self.recent.loss()
        } else {
            0.0
        };
        let lost = Duration::from_secs(1).mul_f64(self.tried.clear_loss().max(recent));
        let bonus = if self.to.address.is_ipv6() { 3 } else { 0 };
        Some((self.rtt? + lost).saturating_sub(Duration::from_millis(bonus)))
    }

    pub(super) fn search_wait(&self) -> Duration {
        self.patience(mtu::PROBE_TIMEOUT)
    }

    /// The time after which a missed keep-alive is sent again.
    pub(super) fn repeat(&self) -> Duration {
        self.patience(if self.suspect.is_some() {
            SUSPECT
        } else {
            REPEAT
        })
    }

    /// When the path is lost, should nothing be answered any more.
    pub(super) fn lost_at(&self) -> Option<Instant> {
        let settled = self.enough? + self.repeat();
        Some(if self.suspect.is_some() {
            settled
        } else {
            settled.max(self.answered + LOST)
        })
    }

    /// Whether frames from elsewhere are a reason to ask: not while that is being done, and not soon after the path's own
    /// address has answered, unless it is silent by now.
    pub(super) fn may_be_challenged(&self, now: Instant) -> bool {
        // The second probe is sent when the first was missed.
        let silent = self.missed >= 2;
        self.challenge.is_none()
            && (silent || self.settled.is_none_or(|settled| settled + SETTLED <= now))
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
        let has_spare = self
            .live
            .as_ref()
            .is_some_and(|live| self.candidates.spare(live.to).is_some());
        let interval = if has_spare {
            SPARED_PROBE_INTERVAL
        } else {
            BUSY_PROBE_INTERVAL
        };
        let interval = jittered(interval, entropy);
        let Some(live) = &mut self.live else { return };
        live.rtt = Some(live.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
        if probe.counts {
            live.tried.add(false);
            live.recent.add(rtt > LATE);
        }
        live.suspect.take_if(|since| probe.sent >= *since);
        // An answer that was under way already proves nothing to one who suspects.
        if live.suspect.is_none() {
            live.answered = now;
            live.missed = 0;
            live.enough = None;
            // Something to go to, and reason to ask: soon it is known whether it loses.
            let is_doubtful = has_spare && !live.recent.is_clean();
            live.next = now + if is_doubtful { REPEAT } else { interval };
        }
        if live
            .challenge
            .take_if(|challenge| probe.sent >= challenge.started)
            .is_some()
        {
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
        let clearly = self.candidates.is_there(probe.to, rtt, score);
        let is_bad = live.recent.is_bad();
        let may_leave = if live.recent.seems_bad() {
            is_bad && self.haste.may_leave(live.since, now)
        } else {
            live.since + DWELL <= now
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
            challenge.answered = true;
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
        let mut live = Live {
            to,
            since: now,
            rtt: Some(rtt),
            answered: now,
            missed: 0,
            enough: None,
            next: now + jittered(BUSY_PROBE_INTERVAL, entropy),
            spare_at: now + jittered(SPARE, entropy),
            suspect: None,
            search: Search::new(now, mtu::PROBE_TIMEOUT),
            data: self.data,
            tried: Tried::default(),
            recent: Recent::default(),
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
        self.pending.clear();
        self.ways.clear();
        self.candidates.restart(now);
        self.outputs.push_back(Output::Lost);
    }

    /// Helper sockets were closed: those that `gone` names. A path by one of them is lost.
    pub fn drop_helpers(&mut self, now: Instant, gone: impl Fn(u16) -> bool) {
        let gone = |remote: Remote| remote.helper.is_some_and(&gone);
        if self.live.as_ref().is_some_and(|live| gone(live.to)) {
            self.lose(now, Cause::HelperGone);
        }
        self.candidates.drop_where(gone);
    }

    /// Asks the spares whether they are there.
    pub(super) fn keep_spares(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        let every = if live.recent.seems_bad() {
            HASTE
        } else {
            SPARE
        };
        live.spare_at = now + jittered(every, entropy);
        let path = live.to;
        for to in self.candidates.take_spares(path) {
            self.probe(now, to, 0, entropy);
        }
    }

    /// That address has to answer, and the path's must not.
    pub(super) fn begin_challenge(&mut self, now: Instant, to: Remote, entropy: Entropy<'_>) {
        if let Some(live) = &mut self.live {
            live.challenge = Some(Challenge {
                to,
                started: now,
                next: now,
                answered: false,
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
        if now < challenge.started + CHALLENGE && !(is_silent && challenge.answered) {
            let (old, new) = (live.to, challenge.to);
            challenge.next = (now + CHALLENGE_REPEAT).min(challenge.started + CHALLENGE);
            self.probe(now, old, 0, entropy);
            self.probe(now, new, 0, entropy);
            return;
        }
        let moved = challenge.answered.then_some(challenge.to);
        let cause = if live.missed >= 2 {
            Cause::Silent
        } else {
            Cause::PeerMoved
        };
        live.challenge = None;
        if let Some(to) = moved {
            self.move_to(now, to, cause, entropy);
        }
    }

    /// Another address takes the path over.
    pub(super) fn move_to(&mut self, now: Instant, to: Remote, cause: Cause, entropy: Entropy<'_>) {
        let Some(live) = &mut self.live else { return };
        let before = std::mem::replace(&mut live.to, to);
        live.since = now;
        live.settled = None;
        (live.tried, live.recent) = Default::default();
        live.answered = now;
        live.missed = 0;
        live.enough = None;
        live.next = now + REPEAT;
        self.history.add(now, Some(before), Some(to), cause);
        if is_better(before, to) {
            // From the peer itself to a relay: the way back is looked for at once.
            self.candidates.restart(now);
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
        let is_doubtful = !live.recent.is_clean() && self.candidates.spare(to).is_some();
        let calm = live.suspect.is_none() && live.hole.is_none() && !busy && !is_doubtful;
        if live.missed == 0
            && calm
            && now < live.answered + IDLE_PROBE_INTERVAL - IDLE_PROBE_INTERVAL / 16
        {
            live.next = live.answered + jittered(IDLE_PROBE_INTERVAL, entropy);
            return;
        }
        if live.missed > 0 {
            live.recent.add(true);
            if live.recent.seems_bad() {
                live.spare_at = live.spare_at.min(now + HASTE);
            }
        }
        live.missed = live.missed.saturating_add(1);
        if live.missed == LOST_PROBES {
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
            live.missed >= LOST_PROBES && live.challenge.as_ref().is_some_and(|c| c.answered)
        }) {
            // Two keep-alives and the challenge's own probes were missed, and the other address answers.
            self.challenge(now, entropy);
        }
        if let Some(live) = self
            .live
            .as_mut()
            .filter(|live| live.missed >= 2 && live.may_be_challenged(now))
            && let Some(to) = live
                .elsewhere
                .take()
                .or_else(|| self.candidates.spare(live.to))
        {
            self.begin_challenge(now, to, entropy);
        }
    }
}
