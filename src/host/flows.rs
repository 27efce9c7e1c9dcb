//! The flows of all loopback proxies together, and the descriptors they may use.
//!
//! A proxy must not use up the descriptors of the daemon, and who sits on its connections must not keep others out. So
//! all flows share a budget, and a new one never waits: the flow that has been silent longest makes room, of its own map
//! where that has its share, else of the map that holds most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use parking_lot::{Mutex, MutexGuard};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::nft::MapKey;

/// Flows of all maps; cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Flows {
    start: Instant,
    budget: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    flows: BTreeMap<u64, Flow>,
}

#[derive(Debug)]
struct Flow {
    map: MapKey,
    cost: usize,
    last: Arc<AtomicU64>,
    end: Option<AbortHandle>,
}

/// One flow: what it cost is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    flows: Flows,
    number: u64,
    last: Arc<AtomicU64>,
}

impl Flows {
    /// Room for a quarter of the descriptors that this process may have.
    pub(super) fn new() -> Flows {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Flows::within(usize::try_from(limit / 4).unwrap_or(usize::MAX).max(2))
    }

    pub(super) fn within(budget: usize) -> Flows {
        Flows {
            start: Instant::now(),
            budget,
            open: Arc::default(),
        }
    }

    /// A place for a flow of `cost` descriptors, of at most `most` flows of that map.
    pub(super) fn enter(&self, map: MapKey, cost: usize, most: usize) -> Ticket {
        let mut open = self.lock();
        while open.flows.values().filter(|f| f.map == map).count() >= most && open.end_of(map) {}
        while open.used() + cost > self.budget
            && let Some(largest) = open.largest()
            && open.end_of(largest)
        {}
        let last = Arc::new(AtomicU64::new(self.now()));
        let number = open.next;
        open.next = number.wrapping_add(1);
        open.flows.insert(
            number,
            Flow {
                map,
                cost,
                last: last.clone(),
                end: None,
            },
        );
        drop(open);
        Ticket {
            flows: self.clone(),
            number,
            last,
        }
    }

    /// The task of a flow: what ends it for another. It may have ended already.
    pub(super) fn runs(&self, number: u64, task: AbortHandle) {
        if let Some(flow) = self.lock().flows.get_mut(&number) {
            flow.end = Some(task);
        } else {
            task.abort();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.lock().used()
    }
}

impl Open {
    fn used(&self) -> usize {
        self.flows.values().map(|f| f.cost).sum()
    }

    fn largest(&self) -> Option<MapKey> {
        let mut held: BTreeMap<MapKey, usize> = BTreeMap::new();
        self.flows
            .values()
            .for_each(|f| *held.entry(f.map).or_default() += f.cost);
        held.into_iter()
            .max_by_key(|(_, cost)| *cost)
            .map(|(map, _)| map)
    }

    /// Ends the flow of a map that has been silent longest; `false` where it has none.
    fn end_of(&mut self, map: MapKey) -> bool {
        let of = self.flows.iter().filter(|(_, f)| f.map == map);
        let longest = of
            .min_by_key(|(number, f)| (f.last.load(Ordering::Relaxed), **number))
            .map(|(number, _)| *number);
        let Some(flow) = longest.and_then(|number| self.flows.remove(&number)) else {
            return false;
        };
        if let Some(end) = flow.end {
            end.abort();
        }
        true
    }
}

impl Ticket {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Notes that something passed, so that the flow does not count as silent.
    pub(super) fn touch(&self) {
        self.last.store(self.flows.now(), Ordering::Relaxed);
    }

    /// Waits until nothing has passed for so long.
    pub(super) async fn silent(&self, limit: Duration) {
        loop {
            let until =
                self.flows.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.flows.lock().flows.remove(&self.number);
    }
}
