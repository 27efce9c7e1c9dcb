//! Which keys the receiving thread opens frames with: told by the control task, carried out between two reads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Session;
use crate::crypto::frame::Opener;
use crate::crypto::replay::Window;
use crate::link::{Link, lock};

/// Orders to the receiving thread. Clones are the same ring.
#[derive(Debug, Clone, Default)]
pub(in crate::link) struct SessionUpdates(Arc<Ring>);

#[derive(Debug, Default)]
struct Ring {
    orders: Mutex<Orders<Box<Session>>>,
    /// Looked at once per batch, so that the thread takes the lock only when something is there.
    changed: AtomicBool,
}

/// What the receiving thread has not carried out yet.
///
/// It carries out only when a datagram comes, and where UDP is blocked none does: a key that goes before the thread saw
/// it is forgotten here, so that no number of rekeys leaves keys behind. At most one removal waits for each key that the
/// thread holds.
#[derive(Debug)]
struct Orders<S> {
    /// What the thread was given and was not told to forget.
    held: HashSet<u32>,
    installs: HashMap<u32, S>,
    removals: Vec<u32>,
}

impl<S> Default for Orders<S> {
    fn default() -> Self {
        Orders {
            held: HashSet::new(),
            installs: HashMap::new(),
            removals: Vec::new(),
        }
    }
}

impl<S> Orders<S> {
    fn install(&mut self, index: u32, session: S) {
        self.installs.insert(index, session);
    }

    fn remove(&mut self, index: u32) {
        self.installs.remove(&index);
        if self.held.remove(&index) {
            self.removals.push(index);
        }
    }

    fn carry_out(&mut self, sessions: &mut HashMap<u32, S>) {
        // An index that was removed and installed again is installed.
        for index in std::mem::take(&mut self.removals) {
            sessions.remove(&index);
        }
        self.held.extend(self.installs.keys());
        sessions.extend(std::mem::take(&mut self.installs));
    }
}

impl SessionUpdates {
    /// Accepts frames under `index` from now on; the next frame read is opened with it.
    pub(in crate::link) fn install(&self, index: u32, opener: Opener, link: Arc<Link>) {
        let session = Session {
            index,
            opener,
            window: Window::default(),
            link,
            return_path: None,
            came: None,
            traffic: 0,
        };
        self.order(|orders| orders.install(index, Box::new(session)));
    }

    /// Accepts no more frames under `index`.
    pub(in crate::link) fn remove(&self, index: u32) {
        self.order(|orders| orders.remove(index));
    }

    fn order(&self, give: impl FnOnce(&mut Orders<Box<Session>>)) {
        give(&mut lock(&self.0.orders));
        self.0.changed.store(true, Ordering::Release);
    }

    pub(super) fn carry_out(&self, sessions: &mut HashMap<u32, Box<Session>>) {
        if self.0.changed.swap(false, Ordering::Acquire) {
            lock(&self.0.orders).carry_out(sessions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rekeys_that_no_datagram_follows_leave_no_key_behind() {
        let (mut orders, mut thread) = (Orders::default(), HashMap::new());
        orders.install(0, "first");
        orders.carry_out(&mut thread);
        for index in 1..10_000 {
            orders.install(index, "later");
            orders.remove(index.saturating_sub(1));
        }
        assert_eq!((orders.installs.len(), orders.removals.len()), (1, 1));
        orders.carry_out(&mut thread);
        assert_eq!(thread.into_iter().collect::<Vec<_>>(), [(9_999, "later")]);
        assert_eq!(
            (
                orders.installs.len(),
                orders.removals.len(),
                orders.held.len()
            ),
            (0, 0, 1)
        );
    }

    #[test]
    fn an_index_that_was_removed_and_installed_again_is_installed() {
        let (mut orders, mut thread) = (Orders::default(), HashMap::new());
        orders.install(7, "old");
        orders.carry_out(&mut thread);
        orders.remove(7);
        orders.install(7, "new");
        orders.carry_out(&mut thread);
        assert_eq!(thread.get(&7), Some(&"new"));
        orders.remove(7);
        orders.remove(7);
        orders.remove(8);
        orders.carry_out(&mut thread);
        assert!(thread.is_empty() && orders.held.is_empty());
    }
}
