//! How much of what arrives at one socket is read at all. Whoever is on a link can send any number of datagrams, and to take one
//! apart costs more than to count it: so the limit stands before the reading.

use std::net::IpAddr;
use std::time::Instant;

use crate::limit::{Limit, SharedBuckets, TokenBucket};

/// Datagrams of one source: at once, and a second after that.
const OF_A_SOURCE: Limit = Limit::new(32, 8);
/// Datagrams of all sources together. A machine of the link may use any number of addresses, so that no limit by source keeps
/// it from taking all of this: it is as much as costs a few hundredths of a processor, and a flood that silences others in spite of
/// it fills the link.
const OF_ALL: Limit = Limit::new(1024, 512);
/// Buckets that limit sources: more of them share one.
const SOURCES: usize = 256;

/// The limits of one socket, which has a link and a family of its own: so a flood by the one family does not silence the other.
#[derive(Debug)]
pub struct Gate {
    sources: SharedBuckets,
    all: TokenBucket,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate {
            sources: SharedBuckets::new(OF_A_SOURCE, SOURCES),
            all: TokenBucket::new(OF_ALL),
        }
    }
}

impl Gate {
    /// Whether a datagram of `source` may be read. What one source has too many of costs the others nothing.
    pub fn admits(&mut self, source: IpAddr, now: Instant) -> bool {
        self.sources.take(source, now) && self.all.take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    fn source(n: u64) -> IpAddr {
        format!("192.0.2.{n}").parse().unwrap()
    }

    #[test]
    fn one_source_that_floods_has_its_share_and_leaves_the_others_theirs() {
        let (start, mut gate) = (some_moment(), Gate::default());
        let flood = (0..10_000).filter(|_| gate.admits(source(2), start));
        assert_eq!(flood.count(), 32);
        // The hash of sources is keyed anew each time: of so few others most have a bucket of their own.
        let others = (3..19).filter(|n| gate.admits(source(*n), start));
        assert!(others.count() >= 14);
    }

    #[test]
    fn many_sources_together_have_no_more_than_the_socket_reads() {
        let (start, mut gate) = (some_moment(), Gate::default());
        let mut admitted = |ms: u64| {
            let now = start + std::time::Duration::from_millis(ms);
            let all = (0..10_000).filter(|n| gate.admits(source(n % 250), now));
            all.count()
        };
        assert_eq!(
            (admitted(0), admitted(500), admitted(1000)),
            (1024, 256, 256)
        );
    }

    #[test]
    fn three_hundred_datagrams_a_second_from_many_addresses_silence_nobody() {
        let (start, mut gate) = (some_moment(), Gate::default());
        for ms in 0..20_000u64 {
            let now = start + std::time::Duration::from_millis(ms);
            if ms % 10 < 3 {
                gate.admits(source(100 + ms % 40), now);
            }
            if ms % 1000 == 999 {
                assert!(gate.admits("fe80::7".parse().unwrap(), now), "{ms}");
            }
        }
    }
}
