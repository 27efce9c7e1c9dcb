//! Who has how many of the places: each user a share, and one is root's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

/// Places of all clients; cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Places {
    all: Arc<AtomicUsize>,
    taken: Arc<Mutex<HashMap<u32, usize>>>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Places {
        Places {
            all,
            taken: Arc::default(),
        }
    }

    /// A place for a client of that user, if there is one. Users other than root have a quarter of all each, and never
    /// the last one.
    pub(super) fn take(&self, uid: u32, is_root: bool) -> Option<Place> {
        let mut taken = self.lock();
        let all = self.all.load(Ordering::Relaxed);
        let in_all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or(0);
        let free = if is_root {
            in_all < all
        } else {
            own < (all / 4).max(1) && in_all < all.saturating_sub(usize::from(all > 1))
        };
        if !free {
            return None;
        }
        *taken.entry(uid).or_default() += 1;
        drop(taken);
        Some(Place {
            places: self.clone(),
            uid,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_takes_the_places_of_others_and_root_has_one_always() {
        let places = Places::new(Arc::new(64.into()));
        let take = |uid: u32| {
            (0..1000)
                .map_while(|_| places.take(uid, false))
                .collect::<Vec<_>>()
        };
        let (one, two, three) = (take(1000), take(1001), take(1002));
        assert_eq!((one.len(), two.len(), three.len()), (16, 16, 16));
        let fourth = take(1003);
        assert_eq!(
            (fourth.len(), take(1004).len()),
            (15, 0),
            "the last one is root's"
        );
        let root = places.take(0, true);
        assert!(root.is_some() && places.take(0, true).is_none());
        drop((one, two, three, fourth, root));
        assert!(places.lock().is_empty());
    }

    #[test]
    fn a_single_place_is_anybody_s() {
        let places = Places::new(Arc::new(1.into()));
        let one = places.take(1000, false);
        assert!(one.is_some() && places.take(0, true).is_none());
    }
}
