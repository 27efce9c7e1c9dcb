//! What waits for the node's thread, and how it gets there from any other.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Semaphore, oneshot};

use super::turns::{Lane, Turns};
use super::{Core, Node};
use crate::api::types::{Error, ErrorKind};

/// Something the node's thread shall do.
pub(super) type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Own commands that wait at once: a full queue slows those who ask, which is the bound we want.
const OWN_JOBS: usize = 256;

/// What the node's thread does next.
pub(super) enum Next {
    Job(Job),
    /// The moment it asked for has come.
    Due,
    /// Nobody can ask for anything any more.
    Closed,
}

struct Inner {
    turns: Turns<Job>,
    /// No [`Node`] is left.
    closed: bool,
    /// The thread has ended, or is about to.
    stopped: bool,
}

/// The queue itself.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    own: Arc<Semaphore>,
}

/// Closes the queue when the last [`Node`] goes.
pub(super) struct Door(pub(super) Arc<Queue>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_one();
    }
}

/// Stops the queue when the thread that serves it ends, however it ends.
pub(super) struct Served(pub(super) Arc<Queue>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Queue {
    pub(super) fn new() -> Arc<Queue> {
        let inner = Inner { turns: Turns::default(), closed: false, stopped: false };
        Arc::new(Queue { inner: Mutex::new(inner), wake: Condvar::new(), own: Arc::new(Semaphore::new(OWN_JOBS)) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job, or for `due`.
    pub(super) fn next(&self, due: Option<Instant>) -> Next {
        let mut inner = self.lock();
        loop {
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                return Next::Due;
            }
            if let Some(job) = inner.turns.pop() {
                return Next::Job(job);
            }
            if inner.closed {
                return Next::Closed;
            }
            inner = match due {
                Some(due) => {
                    let wait = due.saturating_duration_since(now);
                    self.wake.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Lets a job wait. `false` where the queue of who sent it is full, or nobody serves it any more.
    pub(super) fn push(&self, lane: Lane, job: Job) -> bool {
        let mut inner = self.lock();
        let taken = !inner.stopped && inner.turns.push(lane, job).is_ok();
        drop(inner);
        self.wake.notify_one();
        taken
    }

    /// Refuses everything from now on. Who waits for an answer gets none.
    fn stop(&self) {
        self.own.close();
        let mut inner = self.lock();
        inner.stopped = true;
        let waiting = std::mem::take(&mut inner.turns);
        drop(inner);
        drop(waiting);
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping")
}

impl Node {
    /// Runs `job` on the node's thread, before anything that waits for a peer. This is for the node's own commands.
    ///
    /// # Errors
    /// `E-STOPPING` when the node is gone.
    ///
    /// # Cancel safety
    /// A job that was queued runs even if the caller stops waiting.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Core) -> T + Send + 'static) -> Result<T, Error> {
        let place = Arc::clone(&self.door.0.own).acquire_owned().await.map_err(|_| gone())?;
        let placed = move |core: &mut Core| {
            drop(place);
            job(core)
        };
        self.queue(Lane::Own, placed)?.await.map_err(|_| gone())
    }

    /// Runs `job` on the node's thread when it is the turn of who it is for: see [`Lane`].
    ///
    /// # Errors
    /// `E-BUSY` when too much of the same peer waits already, `E-STOPPING` when the node is gone.
    ///
    /// # Cancel safety
    /// As [`Node::run`].
    pub async fn run_in<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.queue(lane, job)?.await.map_err(|_| gone())
    }

    fn queue<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Error> {
        let (reply, answer) = oneshot::channel();
        let boxed: Job = Box::new(move |core| drop(reply.send(job(core))));
        if self.door.0.push(lane, boxed) {
            Ok(answer)
        } else if self.door.0.own.is_closed() {
            Err(gone())
        } else {
            Err(Error::new(ErrorKind::Failed, "E-BUSY", "too much of this peer waits already"))
        }
    }
}
