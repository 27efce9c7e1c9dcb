//! Which end asks where nothing travels: one is enough.
//!
//! A probe of the peer that comes to the path shows that the peer is there and that the way in is open, and its answer keeps
//! the NATs on the way open as a keep-alive of our own would. So an end whose path rests puts its own keep-alive off for each
//! probe of the peer, to somewhat later than the peer's next one; whoever asks first goes on for a while. Where both ask at the
//! same moment the end with the smaller peer ID waits less long, and is the first the next time.
//!
//! Whether our own packets arrive is not known by that:
//!
//! - A probe that comes sooner than any keep-alive follows an answered one says that our answer was missed: we ask at once.
//! - After [`MOST`] probes of the peer in a row we ask all the same.
//! - Packets of ours have the path asked at once, as ever.
//!
//! An end behind a NAT asks itself where the peer is behind none: it alone can open the way again, and it learns when the NAT
//! has closed it. With its probe the way goes on at once; the peer would lose the path.

use std::time::{Duration, Instant};

use super::{IDLE_PROBE_INTERVAL, Paths};
use crate::peer::Pair;
use crate::wire::paths::Kind;

/// Probes of the peer in a row that put our own keep-alive off.
const MOST: u32 = 8;
/// The least time between two probes of the peer of which the first was answered: a little less than the shortest pause.
const ANSWERED: Duration = Duration::from_millis(1750);
/// How much later than the peer's next probe our own is: an eighth of the pause, within these; and half as much at the end with
/// the smaller peer ID. A NAT that keeps a mapping for thirty seconds bears the longest pause and that.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));

/// What the peer's probes on the path in use say.
#[derive(Debug, Default)]
pub(super) struct Lead {
    /// When the last one came.
    heard: Option<Instant>,
    /// When our own keep-alive was last put off, and how often in a row.
    put_off: Option<Instant>,
    times: u32,
}

impl Lead {
    /// A probe came; `may`: whether our own may be put off by it. Gives the silence that it ended, where it is put off.
    pub(super) fn hear(&mut self, now: Instant, may: bool) -> Option<Duration> {
        let before = self.heard.replace(now);
        let silence = now.saturating_duration_since(before?);
        if !may || silence < ANSWERED {
            self.put_off = None;
            return None;
        }
        if self.times >= MOST {
            return None;
        }
        self.times = self.times.saturating_add(1);
        self.put_off = Some(now);
        Some(silence)
    }

    /// A probe of ours was answered.
    pub(super) fn answered(&mut self) {
        self.times = 0;
    }

    /// Until when our own keep-alive is put off.
    pub(super) fn until(&self, pause: Duration, waits_longer: bool) -> Option<Instant> {
        let wait = (pause / 8).clamp(WAIT.0, WAIT.1);
        let wait = if waits_longer { wait } else { wait / 2 };
        Some(self.put_off? + pause + wait)
    }
}

impl Paths {
    /// Of two ends that ask at the same moment, this one is the later next time, or the sooner.
    pub fn waits_longer(self, waits_longer: bool) -> Paths {
        Paths {
            waits_longer,
            ..self
        }
    }

    /// A probe of the peer came that way, and is answered.
    pub(super) fn hear(&mut self, now: Instant, from: Pair) {
        let asks = self.asks_itself() || self.aging.lifetime().is_some();
        let pause = self.quiet.pause();
        let is_quiet = self.quiet.is_quiet();
        let Some(live) = self.live.as_mut().filter(|live| live.to == from) else {
            return;
        };
        let is_calm = live.missed == 0
            && live.suspect.is_none()
            && live.hole.is_none()
            && live.challenge.is_none();
        let silence = live.lead.hear(now, is_calm && is_quiet && !asks);
        if silence.is_some_and(|silence| silence >= pause - pause / 8) {
            // The peer's next pause is longer, too.
            self.quiet.answered(now);
        }
    }

    /// Whether we are behind a NAT and the peer is not, as far as is known.
    fn asks_itself(&self) -> bool {
        let Some(to) = self.live.as_ref().map(|live| live.to) else {
            return false;
        };
        let outside = self.aging.outside(to.remote);
        outside.is_some_and(|outside| self.candidates.is_translated(outside.ip()))
            && self.candidates.kind(to).is_some_and(|kind| match kind {
                Kind::Host | Kind::Advertised | Kind::Mapped => true,
                Kind::Observed | Kind::Predicted | Kind::Relay => false,
            })
    }
}

/// The shortest pause at rest, less what jitter takes off, is longer than what tells a missed answer.
const _: () = assert!(ANSWERED.as_millis() < IDLE_PROBE_INTERVAL.as_millis() * 15 / 16);
