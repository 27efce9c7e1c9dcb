//! Clients of port maps that nobody answers, by the counters of the maps. Pure: who calls says what time it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::host::nft::{MapCount, MapKey};
use crate::model::host::Family;

/// How long a map counts as stopped after the last client that did not come through.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Time between two readings of the counters for each unit of time that one takes: where there are thousands of maps it is a
/// second.
const REST_FACTOR: u32 = 20;

/// What was seen of the clients of every map.
#[derive(Debug, Default)]
pub(super) struct Clients(BTreeMap<MapKey, Seen>, Option<Instant>);

#[derive(Debug, Default)]
struct Seen {
    count: MapCount,
    /// Whether somebody was connected at the last look, and nothing had left the machine yet.
    waits: bool,
    /// When a client last did not come through.
    stopped: Option<Instant>,
}

impl Clients {
    /// Whether the counters may be read again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.1.is_none_or(|next| now >= next)
    }

    /// The counters were read, which took so long.
    pub(super) fn was_read(&mut self, now: Instant, took: Duration) {
        self.1 = now.checked_add(took.saturating_mul(REST_FACTOR));
    }

    /// Takes the counters of this look. Of what was counted while rules of ours were missing (`repaired`) nothing follows.
    pub(super) fn count(
        &mut self,
        counts: BTreeMap<MapKey, MapCount>,
        repaired: bool,
        now: Instant,
    ) {
        self.0.retain(|key, _| counts.contains_key(key));
        for (key, count) in counts {
            let known = self.0.entry(key).or_insert(Seen {
                count,
                ..Seen::default()
            });
            if repaired || count.rx_bytes != known.count.rx_bytes {
                (known.waits, known.stopped) = (false, None);
            } else if known.waits {
                // Its packets had a whole look to pass.
                (known.waits, known.stopped) = (false, Some(now));
            } else if known
                .stopped
                .is_some_and(|when| now.saturating_duration_since(when) > REMEMBERED)
            {
                known.stopped = None;
            }
            known.waits |= !repaired
                && count.connections > known.count.connections
                && count.rx_bytes == known.count.rx_bytes;
            known.count = count;
        }
    }

    /// Whether the next look will tell of somebody who connected just now.
    pub(super) fn wait_for_answers(&self) -> bool {
        self.0.values().any(|seen| seen.waits)
    }

    /// The families in which clients do not come through.
    pub(super) fn stopped(&self) -> impl Iterator<Item = Family> {
        [Family::V4, Family::V6].into_iter().filter(|family| {
            self.0
                .iter()
                .any(|(key, seen)| Family::of(&key.listen) == *family && seen.stopped.is_some())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::Proto;

    const MAP: MapKey = MapKey {
        proto: Proto::Tcp,
        listen: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        port: 8080,
    };

    /// One look a second, each with the connections begun and bytes passed until then, and whether rules were missing.
    fn looks(looks: &[(u64, u64, bool)]) -> Vec<bool> {
        let (mut clients, start) = (Clients::default(), Instant::now());
        let look = |(second, &(connections, rx_bytes, repaired)): (u64, &(u64, u64, bool))| {
            let counts = BTreeMap::from([(
                MAP,
                MapCount {
                    connections,
                    rx_bytes,
                    tx_bytes: 0,
                },
            )]);
            clients.count(counts, repaired, start + Duration::from_secs(second));
            clients.stopped().next().is_some()
        };
        (0..).zip(looks).map(look).collect()
    }

    #[test]
    fn who_did_not_come_through_by_the_next_look_was_stopped() {
        assert_eq!(
            looks(&[(0, 0, false), (1, 0, false), (1, 0, false), (1, 0, false)]),
            [false, false, true, true]
        );
        // Its first packet was under way at the look.
        assert_eq!(
            looks(&[(0, 0, false), (1, 0, false), (1, 60, false), (1, 60, false)]),
            [false; 4]
        );
        // One comes through: nobody is stopped.
        assert!(!looks(&[(0, 0, false), (1, 0, false), (2, 0, false), (3, 60, false)])[3]);
        assert!(looks(&[(0, 0, false), (1, 0, false), (2, 0, false), (3, 0, false)])[3]);
    }

    #[test]
    fn nothing_follows_from_who_came_while_our_rules_were_missing() {
        assert_eq!(
            looks(&[(0, 0, false), (5, 0, true), (5, 0, false), (5, 0, false)]),
            [false; 4]
        );
        // It was waiting when they were made again.
        assert_eq!(
            looks(&[(0, 0, false), (5, 0, false), (5, 0, true), (5, 0, false)]),
            [false; 4]
        );
    }

    #[test]
    fn a_map_counts_as_stopped_for_a_minute_after_its_last_client() {
        let mut seen = vec![(0, 0, false), (1, 0, false)];
        seen.extend([(1, 0, false); 62]);
        let stopped = looks(&seen);
        assert!(stopped[2..=62].iter().all(|stopped| *stopped) && !stopped[63]);
    }
}
