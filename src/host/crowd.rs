//! Looks now and then how full the kernel's table of connections is, and who of ours fills it.
//!
//! How full is one small file. Whose entries they are is told by the whole table, which is read only where that matters:
//! entry by entry, so that it costs no memory, and no more than a twentieth of the time.

use std::time::{Duration, Instant};

use super::{conntrack, sysctl};
use crate::model::host::{Census, Crowd, HostConfig, Occupancy};

/// Time between two looks at how full the table is.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two readings of a table that is as full as it was.
const SELDOM: Duration = Duration::from_secs(30);
/// Time between two readings for each unit of time that one takes.
const REST_FACTOR: u32 = 20;

/// The table of the network namespace of the calling thread.
#[derive(Debug, Default)]
pub struct Conntrack {
    /// Whether any lease or workload of ours can hold entries.
    in_use: bool,
    read: Option<Read>,
    crowd: Crowd,
    /// The bound that tests set in place of the kernel's, which only the first namespace can
    /// change.
    #[cfg(test)]
    most: Option<u64>,
}

/// The last reading of the table.
#[derive(Debug)]
struct Read {
    room: Occupancy,
    at: Instant,
    took: Duration,
}

impl Conntrack {
    #[cfg(test)]
    pub fn with_room_for(most: u64) -> Conntrack {
        Conntrack {
            most: Some(most),
            ..Conntrack::default()
        }
    }

    fn room(&self) -> Option<Occupancy> {
        let figure = |key: &str| sysctl::read(key)?.parse().ok();
        let most = figure("net/netfilter/nf_conntrack_max")?;
        #[cfg(test)]
        let most = self.most.unwrap_or(most);
        Some(Occupancy {
            entries: figure("net/netfilter/nf_conntrack_count")?,
            most,
        })
    }

    /// Whether the table is to be read, or to be thought of no more.
    fn is_due(&self, room: Occupancy, now: Instant) -> bool {
        let found = !self.crowd.is_empty();
        if !room.is_scarce(found) {
            return found;
        }
        self.read.as_ref().is_none_or(|read| {
            let since = now.saturating_duration_since(read.at);
            since >= read.took.saturating_mul(REST_FACTOR)
                && (since >= SELDOM || room.differs(&read.room))
        })
    }

    /// Resolves when the table should be read.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn changed(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.in_use
                && self
                    .room()
                    .is_some_and(|room| self.is_due(room, Instant::now()))
            {
                return;
            }
        }
    }

    /// The leases and workloads that hold too much of the table.
    pub async fn crowd(&mut self, desired: &HostConfig) -> Crowd {
        self.in_use = !desired.tuns.is_empty();
        let Some(room) = self
            .room()
            .filter(|room| self.in_use && self.is_due(*room, Instant::now()))
        else {
            if !self.in_use {
                self.crowd.clear();
            }
            return self.crowd.clone();
        };
        let began = Instant::now();
        let mut crowd = Crowd::new();
        if room.is_scarce(!self.crowd.is_empty()) {
            match conntrack::census(Census::of(desired)).await {
                Ok(census) => crowd = census.crowd(room.most, &self.crowd),
                // What was found stands until the table can be read again.
                Err(error) => {
                    tracing::warn!(%error, "the table of connections is filling up and cannot be read");
                    crowd = self.crowd.clone();
                }
            }
            self.read = Some(Read {
                room,
                at: Instant::now(),
                took: began.elapsed(),
            });
        }
        self.crowd = crowd;
        self.crowd.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{Beginner, Excess};
    use crate::model::id::SubnetId;

    #[test]
    fn the_table_is_read_where_it_matters_and_seldom() {
        let room = |entries| Occupancy {
            entries,
            most: 64_000,
        };
        let mut table = Conntrack::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!table.is_due(room(32_000), at(0)), "half of it is free");
        assert!(table.is_due(room(32_001), at(0)));
        table.read = Some(Read {
            room: room(32_001),
            at: at(0),
            took: Duration::from_millis(100),
        });
        assert!(
            !table.is_due(room(33_000), at(5)),
            "nothing much has changed"
        );
        assert!(table.is_due(room(33_001), at(5)) && table.is_due(room(32_001), at(30)));
        table.read = Some(Read {
            room: room(32_001),
            at: at(0),
            took: Duration::from_secs(2),
        });
        assert!(!table.is_due(room(60_000), at(39)), "reading it takes long");
        assert!(table.is_due(room(60_000), at(40)));
        // Somebody was found: that ends with the want.
        let who = Beginner::Lease {
            subnet: SubnetId([1; 16]),
            net: "10.7.2.0/24".parse().unwrap(),
        };
        table.crowd.insert(
            who,
            Excess {
                held: 40_000,
                share: 32_000,
            },
        );
        assert!(table.is_due(room(28_000), at(1)) && !table.is_due(room(28_001), at(1)));
    }
}
