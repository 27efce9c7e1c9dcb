//! Where this node's place at each relay stands, and when a relay is asked, or met, again.
//!
//! Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::core::transport::ListenerId;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::model::id::PeerId;
use crate::p2p::Refusal;

/// The pause before a relay that refused a place is asked again.
const REFUSED: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(600));
/// The pause before a place is asked for on the connection that took the place of the one where it was.
const REPLACED: Duration = Duration::from_millis(250);
/// How long a place is kept before its loss is no sign that the relay gives places and takes them back.
const LASTED: Duration = Duration::from_secs(30);
/// The pause before a peer that takes us for a stranger is met again.
const STRANGE: Duration = Duration::from_secs(120);
/// The longest pause while no relay keeps a place for this node: until then nobody reaches it through any.
const ALONE: Duration = Duration::from_secs(60);

/// Where our place at a relay stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    None,
    Asked(ListenerId),
    /// Since when it is kept.
    Kept(ListenerId, Instant),
}

impl Place {
    pub(super) fn listener(self) -> Option<ListenerId> {
        match self {
            Place::None => None,
            Place::Asked(id) | Place::Kept(id, _) => Some(id),
        }
    }

    pub(super) fn is_kept(self) -> bool {
        matches!(self, Place::Kept(..))
    }
}

/// Why a place is kept no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The relay refused it.
    Refused,
    /// Its connection gave way to another of the same relay, as when a stranger becomes a member.
    Replaced,
    /// Its connection ended.
    Ended,
}

/// What a relay said when it was reached, and gave no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: Refusal,
    /// When it began to refuse; it has neither given a place nor been out of reach since.
    pub(super) since: Instant,
}

/// A relay that this node uses.
#[derive(Debug)]
pub(super) struct Point {
    /// Until when it is of use, where only circuits need it; none: as long as it is configured.
    pub(super) until: Option<Instant>,
    pub(super) place: Place,
    /// Refusals, and places that were lost at once, in a row.
    failures: u32,
    /// When the last pause began, and when it ends.
    since: Instant,
    next: Instant,
    /// Whether that pause is for a relay that takes this node for a stranger.
    is_strange: bool,
    refused: Option<Refused>,
}

impl Point {
    pub(super) fn new(until: Option<Instant>, now: Instant) -> Self {
        Point {
            until,
            place: Place::None,
            failures: 0,
            since: now,
            next: now,
            is_strange: false,
            refused: None,
        }
    }

    /// Why it refuses a place, as long as it does.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.refused.filter(|_| !self.place.is_kept())
    }

    /// The relay refuses a place. That its connection ended, or that this node asks too much at once, says nothing of it.
    pub(super) fn refuses(&mut self, why: Refusal, now: Instant) {
        if self.place.is_kept() || matches!(why, Refusal::Ended | Refusal::Crowded) {
            return;
        }
        let since = self.refused.map_or(now, |refused| refused.since);
        self.refused = Some(Refused { why, since });
    }

    /// The relay keeps a place for this node from now on.
    pub(super) fn keeps(&mut self, listener: ListenerId, now: Instant) {
        self.place = Place::Kept(listener, now);
        self.refused = None;
    }

    /// No connection to the relay can be made: what it said before holds no more.
    pub(super) fn is_out_of_reach(&mut self) {
        self.refused = None;
    }

    /// A person names it, and may know better than what was tried.
    pub(super) fn named(&mut self, now: Instant) {
        (self.until, self.failures, self.next) = (None, 0, now);
        self.is_strange = false;
    }

    /// Whether nothing speaks against it.
    pub(super) fn is_good(&self) -> bool {
        self.failures == 0
    }

    /// A place could not be had.
    pub(super) fn failed(&mut self, now: Instant) {
        self.rest(REFUSED.pause(self.failures), now);
        self.failures = self.failures.saturating_add(1);
    }

    /// The relay takes this node for a stranger.
    pub(super) fn is_strange_to(&mut self, now: Instant) {
        self.rest(STRANGE, now);
        self.is_strange = true;
    }

    /// The relay answers this node, as it answers no stranger: where that was why it is let alone, it is asked at once.
    pub(super) fn answers(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_strange) {
            self.next = self.next.min(now);
        }
    }

    /// The place, or the question for it, is over; whether it was kept before.
    pub(super) fn lost(&mut self, why: Loss, now: Instant) -> bool {
        let place = std::mem::replace(&mut self.place, Place::None);
        if let Place::Kept(_, since) = place
            && now.saturating_duration_since(since) >= LASTED
        {
            self.failures = 0;
        }
        match why {
            Loss::Replaced => self.rest(REPLACED, now),
            Loss::Refused => self.failed(now),
            Loss::Ended if place.is_kept() => self.failed(now),
            Loss::Ended => {}
        }
        place.is_kept()
    }

    fn rest(&mut self, pause: Duration, now: Instant) {
        (self.since, self.next, self.is_strange) = (now, now + pause, false);
    }
}

/// When a relay may be asked, or met; none for one that this node does not use. The only one that could give a place is asked
/// once in [`ALONE`] at the least: what it refuses may be over in a moment.
pub(super) fn due(points: &BTreeMap<PeerId, Point>, relay: PeerId) -> Option<Instant> {
    let point = points.get(&relay)?;
    let is_served = points.values().any(|point| point.place.is_kept());
    let soonest = point.since + ALONE;
    Some(if is_served {
        point.next
    } else {
        point.next.min(soonest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The pauses between two questions to a relay that refuses each of them for so long.
    fn pauses(points: &mut BTreeMap<PeerId, Point>, now: &mut Instant, time: Duration) -> Vec<u64> {
        let (relay, end, mut asked) = (PeerId([1; 32]), *now + time, Vec::new());
        while *now < end {
            if due(points, relay).is_some_and(|due| due <= *now) {
                asked.push(*now);
                let point = points.get_mut(&relay).unwrap();
                point.place = Place::Asked(ListenerId::next());
                assert!(!point.lost(Loss::Refused, *now));
            }
            *now += Duration::from_millis(250);
        }
        asked.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect()
    }

    #[test]
    fn the_only_relay_is_asked_once_a_minute_however_often_it_refuses() {
        let mut now = Instant::now();
        let mut points = BTreeMap::new();
        points.insert(PeerId([1; 32]), Point::new(None, now));
        let alone = pauses(&mut points, &mut now, HOUR);
        assert_eq!(alone[..7], [1, 2, 4, 8, 16, 32, 60]);
        assert!(alone[7..].iter().all(|pause| *pause == 60), "{alone:?}");

        // Another one keeps a place: this one is let alone.
        let mut other = Point::new(None, now);
        other.place = Place::Kept(ListenerId::next(), now);
        points.insert(PeerId([2; 32]), other);
        let beside = pauses(&mut points, &mut now, 2 * HOUR);
        assert!(beside.iter().all(|pause| *pause == 600), "{beside:?}");

        // That one goes: within a minute the first is asked again, although it was told to wait for ten.
        let point = points.get_mut(&PeerId([1; 32])).unwrap();
        assert!(!point.lost(Loss::Refused, now));
        let other = points.get_mut(&PeerId([2; 32])).unwrap();
        assert!(other.lost(Loss::Ended, now));
        let again = due(&points, PeerId([1; 32])).unwrap();
        assert_eq!(again, now + ALONE);
    }

    #[test]
    fn who_takes_us_for_a_stranger_is_met_again_in_a_minute_only_where_nobody_else_serves() {
        let (now, relay) = (Instant::now(), PeerId([1; 32]));
        let mut point = Point::new(None, now);
        point.is_strange_to(now);
        let mut points = BTreeMap::from([(relay, point)]);
        assert_eq!(due(&points, relay), Some(now + ALONE));
        let mut other = Point::new(None, now);
        other.place = Place::Kept(ListenerId::next(), now);
        points.insert(PeerId([2; 32]), other);
        assert_eq!(due(&points, relay), Some(now + STRANGE));
        assert_eq!(due(&points, PeerId([3; 32])), None);
    }

    #[test]
    fn a_relay_that_answers_again_is_asked_at_once_where_it_took_us_for_a_stranger() {
        let (now, relay) = (Instant::now(), PeerId([1; 32]));
        let mut points = BTreeMap::from([(relay, Point::new(None, now))]);
        let mut after = |begin: &dyn Fn(&mut Point)| {
            let point = points.get_mut(&relay).unwrap();
            begin(point);
            point.answers(now);
            due(&points, relay)
        };
        assert_eq!(after(&|point| point.is_strange_to(now)), Some(now));
        // What it refused in so many words it goes on to refuse.
        assert_eq!(
            after(&|point| point.failed(now)),
            Some(now + Duration::from_secs(1))
        );
        let both = |point: &mut Point| {
            point.is_strange_to(now);
            point.failed(now);
        };
        assert_eq!(after(&both), Some(now + Duration::from_secs(2)));
    }

    #[test]
    fn a_relay_refuses_from_its_first_no_until_it_gives_a_place_or_is_out_of_reach() {
        let now = Instant::now();
        let later = now + LASTED;
        let mut point = Point::new(None, now);
        let said = |point: &Point| point.refused().map(|r| (r.why, r.since));
        for why in [Refusal::Ended, Refusal::Crowded] {
            point.refuses(why, now);
            assert_eq!(said(&point), None, "that is not the relay's word");
        }
        point.refuses(Refusal::Unsupported, now);
        point.refuses(Refusal::Full, later);
        assert_eq!(said(&point), Some((Refusal::Full, now)));
        point.keeps(ListenerId::next(), later);
        assert_eq!(said(&point), None);
        // Another connection, on which it takes us for a stranger, takes nothing away.
        point.refuses(Refusal::Unsupported, later);
        assert!(point.lost(Loss::Ended, later));
        assert_eq!(said(&point), None);
        point.refuses(Refusal::Denied, later);
        point.is_out_of_reach();
        assert_eq!(said(&point), None);
    }

    #[test]
    fn a_place_that_lasted_is_no_failure_and_a_connection_that_is_replaced_none_either() {
        let now = Instant::now();
        let mut point = Point::new(None, now);
        for _ in 0..5 {
            point.failed(now);
        }
        point.place = Place::Kept(ListenerId::next(), now);
        assert!(point.lost(Loss::Replaced, now));
        assert_eq!((point.next, point.failures), (now + REPLACED, 5));
        point.place = Place::Kept(ListenerId::next(), now);
        let later = now + LASTED;
        assert!(point.lost(Loss::Ended, later));
        assert_eq!(point.next, later + Duration::from_secs(1));
        // A question whose connection ends says nothing of the relay.
        point.place = Place::Asked(ListenerId::next());
        let before = point.next;
        assert!(!point.lost(Loss::Ended, later));
        assert_eq!((point.next, point.failures), (before, 1));
    }
}
