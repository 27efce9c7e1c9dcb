//! When to say that a grant of this node ends: 30, 7 and 1 days before, in the log once each and in `status` as long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Core;
use crate::model::id::SubnetId;

const DAY: u64 = 86_400;
/// Time between two looks at the ends of grants.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How near the end of a grant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// Less than 30 days are left.
    Month,
    /// Less than 7 days are left.
    Week,
    /// Less than 1 day is left.
    Day,
}

/// How near the end of a grant is with `left` of `life` seconds to go. Of a short life the thresholds are a third, a
/// sixth and a twelfth: a grant that is renewed in time is never near its end.
pub fn nearness(left: u64, life: u64) -> Option<Nearness> {
    match left {
        _ if left < DAY.min(life / 12) => Some(Nearness::Day),
        _ if left < (7 * DAY).min(life / 6) => Some(Nearness::Week),
        _ if left < (30 * DAY).min(life / 3) => Some(Nearness::Month),
        _ => None,
    }
}

/// What was said of grants that end, so that each is said once.
#[derive(Debug, Default)]
pub(super) struct Warned {
    looked: Option<Instant>,
    /// The end that was spoken of, and how near it was.
    said: BTreeMap<SubnetId, (u64, Nearness)>,
}

impl Warned {
    /// Whether this has not been said yet.
    fn is_news(&mut self, subnet: SubnetId, ends: u64, near: Nearness) -> bool {
        let known = self
            .said
            .get(&subnet)
            .is_some_and(|(end, said)| *end == ends && *said >= near);
        if !known {
            self.said.insert(subnet, (ends, near));
        }
        !known
    }
}

impl Core {
    /// Writes a warning to the log for each grant of this node that comes to a threshold.
    pub(super) fn warn_of_expiry(&mut self) {
        if self
            .warned
            .looked
            .is_some_and(|at| at.elapsed() < LOOK_EVERY)
        {
            return;
        }
        self.warned.looked = Some(Instant::now());
        let now = self.now();
        let subnets = &self.state.subnets;
        self.warned.said.retain(|id, _| subnets.contains_key(id));
        for subnet in self.state.subnets.values() {
            let resolved = subnet.resolve(now);
            let Some(mine) = resolved.members.get(&self.state.me.peer) else {
                continue;
            };
            let (starts, ends) = (mine.grant.not_before, mine.grant.not_after);
            let left = ends.saturating_sub(now);
            let Some(near) = nearness(left, ends.saturating_sub(starts)) else {
                continue;
            };
            if self.warned.is_news(subnet.records.id, ends, near) {
                tracing::warn!(
                    subnet = %subnet.name(), days = left / DAY, hours = left / 3600,
                    "this node's grant ends soon; an online owner or admin renews it by itself"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warned_30_7_and_1_days_before() {
        let life = 90 * DAY;
        for (left, near) in [
            (life, None),
            (45 * DAY, None),
            (30 * DAY, None),
            (30 * DAY - 1, Some(Nearness::Month)),
            (7 * DAY, Some(Nearness::Month)),
            (7 * DAY - 1, Some(Nearness::Week)),
            (DAY, Some(Nearness::Week)),
            (DAY - 1, Some(Nearness::Day)),
            (0, Some(Nearness::Day)),
        ] {
            assert_eq!(nearness(left, life), near, "{left} s");
        }
    }

    #[test]
    fn a_short_grant_that_is_renewed_in_time_is_never_near_its_end() {
        for life in [60, 3600, DAY, 10 * DAY, 90 * DAY, 3650 * DAY] {
            // The owner renews at half, admins at five eighths of a life.
            assert_eq!(nearness(life - life * 5 / 8, life), None, "{life} s");
            assert_eq!(
                nearness(life / 24, life).is_some(),
                life / 24 < 30 * DAY,
                "{life} s"
            );
        }
    }

    #[test]
    fn each_threshold_is_said_once_for_each_end() {
        let (mut warned, id) = (Warned::default(), SubnetId([1; 16]));
        assert!(warned.is_news(id, 100, Nearness::Month));
        assert!(!warned.is_news(id, 100, Nearness::Month));
        assert!(warned.is_news(id, 100, Nearness::Week));
        assert!(warned.is_news(id, 100, Nearness::Day));
        assert!(!warned.is_news(id, 100, Nearness::Day));
        assert!(
            warned.is_news(id, 200, Nearness::Month),
            "renewed, and near its end again"
        );
    }
}
