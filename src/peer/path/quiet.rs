//! A path over which nothing travels: its keep-alives become rarer, as far as the NATs on the way let them.
//!
//! After a minute without a packet of ours each answered keep-alive makes the next pause half as long again, from two up to
//! 25 seconds: NATs keep a UDP mapping for 30 seconds at least (RFC 4787 asks for two minutes). Spares and larger sizes are
//! not asked meanwhile. Whether packets flow again is looked at every 700 ms, without sending anything; the first of them has
//! the path asked at once, so that a path which died unnoticed is left within two seconds of it.
//!
//! A NAT that ends a mapping sooner is noticed in one of two ways: two keep-alives in a row are missed behind a pause, or the
//! peer sees us at another address behind it. Half of that pause is the longest one for ten minutes; then a longer one is
//! tried again.

use std::time::{Duration, Instant};

use super::IDLE_PROBE_INTERVAL;

/// How long no packet was sent before the pauses grow.
pub(super) const AFTER: Duration = Duration::from_secs(60);
/// The longest pause.
pub(super) const LONGEST: Duration = Duration::from_secs(25);
/// How long a shorter bound holds before twice that is tried.
const RELEARN: Duration = Duration::from_secs(600);
/// How soon behind a pause the way must be found closed for the pause to be the reason.
const JUST: Duration = Duration::from_secs(3);

/// How rare the keep-alives of the path in use are.
#[derive(Debug)]
pub(super) struct Quiet {
    /// When packets were last seen to flow.
    active: Option<Instant>,
    /// The pause between two keep-alives.
    pause: Duration,
    /// The longest pause that is tried, where that is less than [`LONGEST`], and since when.
    bound: Option<(Duration, Instant)>,
    /// The pause that the first packets ended, and when.
    ended: Option<(Duration, Instant)>,
}

impl Default for Quiet {
    fn default() -> Quiet {
        Quiet {
            active: None,
            pause: IDLE_PROBE_INTERVAL,
            bound: None,
            ended: None,
        }
    }
}

impl Quiet {
    /// Packets flow, or there is a path for the first time.
    pub(super) fn wake(&mut self, now: Instant) {
        self.active = Some(now);
        if self.is_quiet() {
            self.ended = Some((self.pause, now));
        }
        self.pause = IDLE_PROBE_INTERVAL;
    }

    /// The pause between two keep-alives without traffic.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Whether the pauses are longer than of a path that was just in use.
    pub(super) fn is_quiet(&self) -> bool {
        self.pause > IDLE_PROBE_INTERVAL
    }

    /// A keep-alive was answered at once, behind a pause: the next one may be longer.
    pub(super) fn answered(&mut self, now: Instant) {
        let active = *self.active.get_or_insert(now);
        if now.saturating_duration_since(active) < AFTER {
            return;
        }
        if let Some((bound, since)) = self.bound
            && since + RELEARN <= now
        {
            let longer = bound * 2;
            self.bound = (longer < LONGEST).then_some((longer, now));
        }
        let most = self.bound.map_or(LONGEST, |(bound, _)| bound);
        self.pause = (self.pause * 3 / 2).min(most).max(IDLE_PROBE_INTERVAL);
    }

    /// The way was closed during a pause, or the one that has just ended: it was too long.
    pub(super) fn closed(&mut self, now: Instant) {
        let ended = self.ended.filter(|(_, at)| now < *at + JUST);
        let pause = ended.map(|(pause, _)| pause);
        if let Some(pause) = pause.or(Some(self.pause).filter(|_| self.is_quiet())) {
            let half = (pause / 2).max(IDLE_PROBE_INTERVAL);
            let bound = self.bound.map_or(half, |(bound, _)| bound.min(half));
            self.bound = Some((bound, now));
            self.pause = IDLE_PROBE_INTERVAL;
            self.ended = None;
        }
    }

    /// Nothing that was learnt of NATs holds any more.
    pub(super) fn forget(&mut self) {
        self.bound = None;
        self.pause = IDLE_PROBE_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    const SECOND: Duration = Duration::from_secs(1);

    /// Keep-alives that are answered at once, for so long; when it is over.
    fn rest(quiet: &mut Quiet, mut now: Instant, time: Duration) -> Instant {
        let end = now + time;
        while now < end {
            now += quiet.pause();
            quiet.answered(now);
        }
        now
    }

    #[test]
    fn pauses_grow_after_a_minute_and_end_with_the_first_packet() {
        let (mut quiet, start) = (Quiet::default(), some_moment());
        quiet.wake(start);
        let now = rest(&mut quiet, start, 58 * SECOND);
        assert!(!quiet.is_quiet());
        let now = rest(&mut quiet, now, 80 * SECOND);
        assert_eq!(quiet.pause(), LONGEST);
        quiet.wake(now);
        assert_eq!(quiet.pause(), IDLE_PROBE_INTERVAL);
    }

    #[test]
    fn a_pause_that_was_too_long_is_halved_for_ten_minutes() {
        let (mut quiet, start) = (Quiet::default(), some_moment());
        quiet.wake(start);
        let now = rest(&mut quiet, start, 200 * SECOND);
        quiet.closed(now);
        let now = rest(&mut quiet, now, 500 * SECOND);
        assert_eq!(quiet.pause(), LONGEST / 2);
        let now = rest(&mut quiet, now, 200 * SECOND);
        assert_eq!(quiet.pause(), LONGEST, "and tried again");
        // The least is what an idle path has anyway.
        let mut now = now;
        for _ in 0..4 {
            quiet.closed(now);
            now = rest(&mut quiet, now, 60 * SECOND);
        }
        assert_eq!(quiet.pause(), IDLE_PROBE_INTERVAL);
    }

    #[test]
    fn a_path_in_use_learns_nothing_of_pauses() {
        let (mut quiet, start) = (Quiet::default(), some_moment());
        quiet.wake(start);
        quiet.closed(start);
        rest(&mut quiet, start, 200 * SECOND);
        assert_eq!(quiet.pause(), LONGEST);
    }
}
