//! How old a NAT lets our mapping grow: learnt from mappings that ended, and used to leave the next one before it does.
//!
//! Some carriers end a mapping at a fixed age, whatever passes. The peer then sends to a port that nobody has, until it has
//! seen ours. Each answer names the address that the peer sees of us, so the age at which it changes is known to within two
//! probes. After two mappings whose ages agree, a further socket is asked for when the next mapping has lived for four fifths
//! of that age. It has a mapping of its own; once a probe by it is answered, packets leave by it, and the peer is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Cause, Entropy, Output, Pair, Paths, REPEAT, Remote};
use crate::peer::path::candidates::is_better;
use crate::peer::path::lead::Lead;
use crate::peer::path::probes::Pending;

/// A mapping that ended sooner says nothing: it may have been idle for a moment, or the NAT began anew.
const LEAST_AGE: Duration = Duration::from_secs(8);
/// How long what was learnt counts. The next mapping is left to its end then, and one that ends at that age confirms it.
const KNOWN: Duration = Duration::from_secs(3600);
/// How long no further socket is asked for after one by which nothing was answered.
const HOPELESS: Duration = Duration::from_secs(600);
/// Within which a new socket's probe must be answered.
const ANSWERED: Duration = Duration::from_secs(4);
/// How often the peer is told of the new mapping, and the time between: one of these may be lost.
const NOTICES: u8 = 3;
const NOTICE: Duration = Duration::from_millis(200);

/// The bounds of the age that one mapping reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Age {
    least: Duration,
    most: Duration,
}

impl Age {
    /// Whether it is known well enough to be compared with another.
    fn is_telling(self) -> bool {
        self.least >= LEAST_AGE && self.most.saturating_sub(self.least) <= self.most / 4
    }

    /// What one age has to be to explain both; none where none does.
    fn agreed(self, other: Age) -> Option<Age> {
        let (least, most) = (self.least.max(other.least), self.most.min(other.most));
        (least <= most).then_some(Age { least, most })
    }
}

/// The mapping that the path leaves by.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    by: Remote,
    /// Where the peer sees us.
    outside: SocketAddr,
    /// When it was not there yet; none where it may be as old as can be.
    after: Option<Instant>,
    first: Instant,
    last: Instant,
}

/// A socket that was opened to take the path over.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    to: Pair,
    opened: Instant,
    /// When it is probed once more: a probe may be lost, or the path may carry more by now than was asked.
    again: Instant,
    outside: Option<SocketAddr>,
}

/// What is known of the age at which our NAT ends a mapping.
#[derive(Debug, Default)]
pub(super) struct Aging {
    mapping: Option<Mapping>,
    /// What the last mappings that ended say.
    last: Option<Age>,
    /// The age that every mapping is expected to reach, and when that was last confirmed.
    known: Option<(Duration, Instant)>,
    /// Not before that is another socket asked for.
    again: Option<Instant>,
    fresh: Option<Fresh>,
    /// When the peer is told next, and how often still.
    notice: Option<(Instant, u8)>,
}

impl Aging {
    /// The age that mappings reach here, where that is known.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        Some(self.known?.0)
    }

    /// Where the peer sees what leaves for it by that way, as far as is known.
    pub(super) fn outside(&self, by: Remote) -> Option<SocketAddr> {
        let mapping = self.mapping.filter(|mapping| mapping.by == by)?;
        Some(mapping.outside)
    }

    /// This machine may be behind another NAT now.
    pub(super) fn forget(&mut self) {
        *self = Aging::default();
    }

    /// The peer sees us at that address, by a probe that went that way. Whether a mapping has ended since the one before.
    fn seen(&mut self, now: Instant, sent: Instant, by: Remote, outside: SocketAddr) -> bool {
        let fresh = |after| Mapping {
            by,
            outside,
            after,
            first: now,
            last: sent,
        };
        let Some(mapping) = &mut self.mapping else {
            self.mapping = Some(fresh(None));
            return false;
        };
        if mapping.by.helper == by.helper && mapping.outside == outside {
            mapping.last = mapping.last.max(sent);
            mapping.by = by;
            let age = sent.saturating_duration_since(mapping.first);
            // It has outlived what was expected: that holds no more.
            self.known.take_if(|(known, _)| *known + *known / 4 < age);
            return false;
        }
        let ended = *mapping;
        if ended.by != by {
            // Another way of ours, or a NAT that maps each of the peer's addresses by itself.
            *mapping = fresh(None);
            return false;
        }
        if sent < ended.last {
            // An answer that was overtaken by a newer one.
            return false;
        }
        *mapping = fresh(Some(ended.last));
        if let Some(after) = ended.after {
            self.ended(
                now,
                Age {
                    least: ended.last.saturating_duration_since(ended.first),
                    most: now.saturating_duration_since(after),
                },
            );
        }
        true
    }

    /// A mapping of that age is over.
    fn ended(&mut self, now: Instant, age: Age) {
        if !age.is_telling() {
            (self.last, self.known) = (None, None);
            return;
        }
        let agreed = self.last.and_then(|last| last.agreed(age));
        self.known = agreed.map(|agreed| (agreed.least, now));
        self.last = Some(agreed.unwrap_or(age));
    }

    /// When a further socket is to be asked for.
    fn wanted(&self) -> Option<Instant> {
        let (age, since) = self.known?;
        let mapping = self.mapping.filter(|_| self.fresh.is_none())?;
        // Of an unknown age: it may end at any moment.
        let at = mapping
            .after
            .map_or(mapping.first, |after| after + age * 4 / 5);
        let at = self.again.map_or(at, |again| at.max(again));
        (at < since + KNOWN).then_some(at)
    }

    /// When [`Paths::keep_young`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let fresh = self.fresh.map(|f| f.again.min(f.opened + ANSWERED));
        let notice = self.notice.map(|(at, _)| at);
        [self.wanted(), fresh, notice].into_iter().flatten().min()
    }
}

impl Paths {
    /// The answer to that probe says where the peer sees us.
    pub fn seen(&mut self, now: Instant, token: u64, outside: SocketAddr) {
        let Some(probe) = self.pending.iter().find(|probe| probe.token == token) else {
            return;
        };
        let is_live = self.live.as_ref().is_some_and(|live| live.to == probe.to);
        if let Some(fresh) = self.aging.fresh.as_mut().filter(|f| f.to == probe.to) {
            fresh.outside = Some(outside);
        } else if is_live && !probe.is_free && probe.to.remote.leg.is_none() {
            let (sent, by) = (probe.sent, probe.to.remote);
            if self.aging.seen(now, sent, by, outside) {
                self.quiet.closed(now);
            }
        }
    }

    /// Asks for a further socket in time, tells the peer of it, and gives up one by which nothing is answered.
    pub(super) fn keep_young(&mut self, now: Instant, entropy: Entropy<'_>) {
        let live = self.live.as_ref().map(|live| live.to.remote);
        // A further socket is one of IPv4.
        let may_leave = |to: Remote| to.leg.is_none() && to.address.is_ipv4();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(fresh) = self.aging.fresh
            && fresh.opened + ANSWERED <= now
        {
            self.aging.fresh = None;
            self.aging.again = Some(now + HOPELESS);
        }
        if let Some(fresh) = self.aging.fresh.as_mut().filter(|fresh| fresh.again <= now) {
            fresh.again = now + REPEAT;
            let (to, is_met) = (fresh.to, fresh.outside.is_some());
            let live = self.live.as_ref().filter(|_| is_met);
            let size = live.map_or(0, |live| live.search.mtu());
            self.probe(now, to, size, entropy);
        }
        if is_due(self.aging.wanted()) {
            let age = self.aging.lifetime().unwrap_or(KNOWN);
            self.aging.again = Some(now + age / 2);
            if live.is_some_and(may_leave) {
                self.output(Output::Fresh);
            }
        }
        if let Some((at, left)) = self.aging.notice
            && at <= now
        {
            self.aging.notice = left.checked_sub(1).map(|left| (now + NOTICE, left));
            let outside = self.aging.mapping.map(|mapping| mapping.outside);
            let pair = self.live.as_ref().map(|live| self.candidates.way(live.to));
            if let Some((pair, address)) = pair.zip(outside) {
                self.output(Output::Renewed { pair, address });
            }
        }
    }

    /// A helper socket was opened, as [`Output::Fresh`] asked for: it takes the path over when a probe by it is answered.
    pub fn fresh(&mut self, now: Instant, helper: u16) {
        let Some(live) = self.live.as_ref().filter(|l| l.to.remote.leg.is_none()) else {
            return;
        };
        let remote = Remote {
            helper: Some(helper),
            ..live.to.remote
        };
        self.candidates.add_helper(now, live.to, remote);
        self.aging.fresh = Some(Fresh {
            to: remote.into(),
            opened: now,
            again: now + REPEAT,
            outside: None,
        });
    }

    /// Whether that is the socket which is to take the path over.
    pub(super) fn is_fresh(&self, to: Pair) -> bool {
        let is_direct = self
            .live
            .as_ref()
            .is_some_and(|live| !is_better(to, live.to));
        is_direct && self.aging.fresh.is_some_and(|fresh| fresh.to == to)
    }

    /// A probe by that socket was answered: once it was as large as what the path carries, packets leave by it.
    pub(super) fn on_fresh(&mut self, now: Instant, probe: &Pending, entropy: Entropy<'_>) {
        let Some(size) = self.live.as_ref().map(|live| live.search.mtu()) else {
            return;
        };
        let fresh = self.aging.fresh;
        let Some((fresh, outside)) = fresh.and_then(|f| f.outside.map(|outside| (f, outside)))
        else {
            return;
        };
        if probe.size < size {
            if self.candidates.answered(now, probe.to) {
                self.probe(now, probe.to, size, entropy);
            }
            return;
        }
        self.aging.fresh = None;
        self.aging.mapping = Some(Mapping {
            by: probe.to.remote,
            outside,
            after: Some(fresh.opened),
            first: now,
            last: probe.sent,
        });
        self.aging.notice = Some((now, NOTICES - 1));
        self.renew(now, probe.to);
    }

    /// The peer leaves a mapping for another one, by which this frame came, before its NAT ends it. `seen`: where it was
    /// told that its frames come from, so that nobody on the way gives another address out for it.
    pub fn on_renewed(
        &mut self,
        now: Instant,
        pair: Pair,
        seen: SocketAddr,
        overlay: &[ipnet::IpNet],
        entropy: Entropy<'_>,
    ) {
        let from = pair.remote.usable(super::Origin::Frame, overlay);
        let Some(from) = from.filter(|from| from.address == seen && from.leg.is_none()) else {
            return;
        };
        self.found(now, from, overlay);
        let from = self.candidates.key(Pair {
            remote: from,
            ..pair
        });
        let Some(live) = self.live.as_mut().filter(|live| live.to != from) else {
            return;
        };
        if is_better(from, live.to) {
            return self.candidates.hurry(now, from);
        }
        let known = live.challenge.as_mut().filter(|c| c.to == from);
        if let Some(challenge) = known {
            challenge.is_announced = true;
        } else {
            self.begin_challenge(now, from, entropy);
            if let Some(challenge) = self.live.as_mut().and_then(|l| l.challenge.as_mut()) {
                challenge.is_announced = true;
            }
        }
        self.end_announced(now);
    }

    /// Where the peer said that it moves, one answer from there is enough.
    pub(super) fn end_announced(&mut self, now: Instant) {
        let challenge = self.live.as_ref().and_then(|live| live.challenge.as_ref());
        let won = challenge.filter(|c| c.is_announced && c.is_answered());
        if let Some(to) = won.map(|challenge| challenge.to) {
            self.renew(now, to);
        }
    }

    /// The path goes on by another mapping of the same NATs: what it carries is known already.
    fn renew(&mut self, now: Instant, to: Pair) {
        let Some(live) = &mut self.live else { return };
        let before = std::mem::replace(&mut live.to, to);
        (live.since, live.moved, live.answered) = (now, now, now);
        (live.challenge, live.elsewhere, live.hole) = (None, None, None);
        (live.settled, live.enough) = (None, None);
        live.missed = 0;
        live.next = now + REPEAT;
        live.lead = Lead::default();
        self.history.add(now, Some(before), Some(to), Cause::Aged);
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    const SECOND: Duration = Duration::from_secs(1);

    fn outside(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 9], port))
    }

    /// Probes each second by one socket whose mappings reach these ages; what is known at last.
    fn after(ages: &[u64], quiet: u64) -> Aging {
        let (mut aging, mut now) = (Aging::default(), some_moment());
        let by = Remote::from(SocketAddr::from(([192, 0, 2, 1], 4100)));
        for (n, age) in ages.iter().enumerate() {
            for _ in 0..age / quiet {
                aging.seen(now, now, by, outside(n as u16 + 1));
                now += quiet as u32 * SECOND;
            }
        }
        aging.seen(now, now, by, outside(999));
        aging
    }

    #[test]
    fn two_mappings_that_reach_one_age_tell_it() {
        let known = |ages: &[u64]| after(ages, 1).lifetime().map(|age| age.as_secs());
        assert_eq!(known(&[9, 20]), None, "one, and one that was there before");
        assert_eq!(known(&[9, 20, 20]), Some(19));
        assert_eq!(known(&[9, 60, 60, 60]), Some(59));
        assert_eq!(known(&[20, 20, 31]), None, "ages that differ");
        assert_eq!(known(&[9, 20, 20, 31]), None, "nor do they any more");
        assert_eq!(known(&[9, 20, 20, 31, 31]), Some(30), "another NAT");
        assert_eq!(known(&[9, 5, 5, 5]), None, "too short to tell");
    }

    #[test]
    fn what_is_seen_too_seldom_tells_no_age() {
        assert_eq!(after(&[25, 50, 50, 50], 25).lifetime(), None);
    }

    #[test]
    fn a_mapping_that_outlives_the_age_voids_it() {
        assert!(after(&[9, 20, 20], 1).lifetime().is_some());
        let mut aging = after(&[9, 20, 20], 1);
        let by = aging.mapping.unwrap().by;
        let first = aging.mapping.unwrap().first;
        for second in 0..40 {
            let now = first + second * SECOND;
            aging.seen(now, now, by, outside(999));
        }
        assert_eq!(aging.lifetime(), None);
    }
}
