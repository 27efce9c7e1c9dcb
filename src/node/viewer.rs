//! Builds Views beside the node's thread.
//!
//! A View shares with the one before what did not change, but peers may change much at once. What this node's own commands
//! change is published before they answer; what peers' records change is built here, from a copy of the state, and handed
//! back to the node's thread with all that was found out for it. However many records come, at most one View is being built and one is
//! wanted, and the processor rests in between.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Core;
use super::queue::Queue;
use super::saver::Reply;
use super::turns::Lane;
use crate::model::build::Here;
use crate::model::state::State;
use crate::model::view::View;

/// The shortest time between the end of a View and the beginning of the next.
const REST: Duration = Duration::from_millis(50);
/// Rest after a View for each unit of time that it took: a quarter of one processor at most is spent on Views.
const REST_FACTOR: u32 = 3;

/// An order to build a View.
pub(super) struct Wanted {
    /// The state that it shall follow from.
    pub state: State,
    /// The generation that it gets.
    pub generation: u64,
    /// The system's clock, in seconds since 1970.
    pub now: u64,
    /// What the machine adds to the state.
    pub here: Here,
    /// Whether somebody may be out by it: such a View is not put off.
    pub urgent: bool,
    /// The View that was published then: what did not change since is shared with it.
    pub former: Arc<View>,
}

#[derive(Default)]
struct Slot {
    wanted: Option<Box<Wanted>>,
    closed: bool,
}

#[derive(Default)]
struct Desk {
    slot: Mutex<Slot>,
    wake: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock()
    }
}

/// The thread that builds Views beside the node's.
pub(super) struct Viewer {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Viewer {
    /// Starts the thread. It hands what it builds to `queue`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(queue: Arc<Queue>) -> std::io::Result<Viewer> {
        let desk = Arc::new(Desk::default());
        let seat = Arc::clone(&desk);
        let thread = std::thread::Builder::new()
            .name("view".into())
            .spawn(move || work(&seat, &queue))?;
        Ok(Viewer {
            desk,
            thread: Some(thread),
        })
    }

    /// Wants a View. It takes the place of one that is wanted and not begun.
    pub(super) fn want(&self, mut wanted: Box<Wanted>) {
        let mut slot = self.desk.lock();
        wanted.urgent |= slot.wanted.as_ref().is_some_and(|former| former.urgent);
        let former = slot.wanted.replace(wanted);
        drop(slot);
        self.desk.wake.notify_one();
        drop(former);
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.desk.lock().closed = true;
        self.desk.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends after the View it is building; a panic in it has been told already.
            let _ = thread.join();
        }
    }
}

fn work(desk: &Desk, queue: &Queue) {
    let mut rested = Instant::now();
    while let Some(wanted) = next(desk, rested) {
        let began = Instant::now();
        let view = wanted
            .state
            .view(wanted.generation, wanted.now, &wanted.here, &wanted.former);
        // The state may be the last copy of much; freeing it is work of this thread, too.
        drop(wanted);
        let took = began.elapsed();
        let publish = move |core: &mut Core| {
            core.built_beside(view);
            Box::new(|_| ()) as Reply
        };
        queue.push(Lane::Own, Box::new(publish), false);
        rested = Instant::now() + took.saturating_mul(REST_FACTOR).max(REST);
    }
}

/// Waits until a View is wanted and the rest is over, which an urgent one cuts short.
fn next(desk: &Desk, rested: Instant) -> Option<Box<Wanted>> {
    let mut slot = desk.lock();
    loop {
        if slot.closed {
            return None;
        }
        let rest = rested.saturating_duration_since(Instant::now());
        match &slot.wanted {
            Some(wanted) if wanted.urgent || rest.is_zero() => return slot.wanted.take(),
            Some(_) => {
                let _ = desk.wake.wait_for(&mut slot, rest);
            }
            None => desk.wake.wait(&mut slot),
        }
    }
}
