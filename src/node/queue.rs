//! What waits for the node's thread, and how it gets there from any other.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Semaphore, oneshot};

use super::saver::Reply;
use super::turns::{Lane, Turns};
use super::{Core, Node};
use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::store::StoreError;

/// Something the node's thread shall do; it gives what answers who asked.
pub(super) type Job = Box<dyn FnOnce(&mut Core) -> Reply + Send>;

/// One job in so many is one that reads, though own commands wait to decide something.
const READING: u32 = 8;
/// Own commands that wait at once: a full queue slows those who ask, which is the bound we want.
const OWN_JOBS: usize = 256;

/// What the node's thread does next.
pub(super) enum Next {
    Job(Job),
    /// What was being saved is saved, or was refused.
    Saved(Result<(), StoreError>),
    /// The moment has come that the thread asked to be woken at.
    Due,
    /// The last [`Node`] has gone, and nobody can ask for anything any more.
    Closed,
}

struct Inner {
    /// Jobs that may decide something: they wait while something is being saved.
    deciding: Turns<Job>,
    /// Jobs that only read, or judge what came.
    reading: Turns<Job>,
    served: u32,
    saved: Option<Result<(), StoreError>>,
    closed: bool,
    /// The thread has ended, or is about to.
    stopped: bool,
}

/// The queue of jobs for the node's thread.
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
        let (deciding, reading) = Default::default();
        let inner = Inner {
            deciding,
            reading,
            served: 0,
            saved: None,
            closed: false,
            stopped: false,
        };
        Arc::new(Queue {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            own: Arc::new(Semaphore::new(OWN_JOBS)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Waits for the next job, or for `due`. While something is being `saving` only for jobs that read.
    pub(super) fn next(&self, due: Option<Instant>, saving: bool) -> Next {
        let due = due.filter(|_| !saving);
        let mut inner = self.lock();
        loop {
            if let Some(result) = inner.saved.take() {
                return Next::Saved(result);
            }
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                return Next::Due;
            }
            if let Some(job) = if saving {
                inner.reading.pop()
            } else {
                inner.any()
            } {
                return Next::Job(job);
            }
            if inner.closed && !saving {
                return Next::Closed;
            }
            match due {
                Some(due) => {
                    let _ = self
                        .wake
                        .wait_for(&mut inner, due.saturating_duration_since(now));
                }
                None => self.wake.wait(&mut inner),
            }
        }
    }

    /// Lets a job wait. `false` where the queue of who sent it is full, or nobody serves it any more.
    pub(super) fn push(&self, lane: Lane, job: Job, decides: bool) -> bool {
        let mut inner = self.lock();
        let stopped = inner.stopped;
        let turns = if decides {
            &mut inner.deciding
        } else {
            &mut inner.reading
        };
        let taken = !stopped && turns.push(lane, job).is_ok();
        drop(inner);
        self.wake.notify_one();
        taken
    }

    /// Tells what came of what is being saved.
    pub(super) fn saved(&self, result: Result<(), StoreError>) {
        self.lock().saved = Some(result);
        self.wake.notify_one();
    }

    /// Waits until what is being saved is saved, or was refused.
    pub(super) fn wait_saved(&self) -> Result<(), StoreError> {
        let mut inner = self.lock();
        loop {
            match inner.saved.take() {
                Some(result) => return result,
                None => self.wake.wait(&mut inner),
            }
        }
    }

    /// Refuses everything from now on. Who waits for an answer gets none.
    fn stop(&self) {
        self.own.close();
        let mut inner = self.lock();
        inner.stopped = true;
        let waiting = (
            std::mem::take(&mut inner.deciding),
            std::mem::take(&mut inner.reading),
        );
        drop(inner);
        drop(waiting);
    }
}

impl Inner {
    /// Own commands first, whichever they are; else both kinds take turns.
    fn any(&mut self) -> Option<Job> {
        self.served = self.served.wrapping_add(1);
        let reads = match (self.deciding.has_own(), self.reading.has_own()) {
            (true, _) => self.served.is_multiple_of(READING),
            (false, true) => true,
            (false, false) => self.served.is_multiple_of(2),
        };
        let (first, then) = if reads {
            (&mut self.reading, &mut self.deciding)
        } else {
            (&mut self.deciding, &mut self.reading)
        };
        first.pop().or_else(|| then.pop())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Failed, Code::Stopping, "the daemon is stopping")
}

impl Node {
    /// Runs `job` on the node's thread, before anything that waits for a peer. This is for the node's own commands. What it
    /// decides is saved before this returns.
    ///
    /// # Errors
    /// `E-STOPPING` when the node is gone; why it could not be saved, and then nothing has changed.
    ///
    /// # Cancel safety
    /// A job that was queued runs even if the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let place = Arc::clone(&self.door.0.own)
            .acquire_owned()
            .await
            .map_err(|_| gone())?;
        let placed = move |core: &mut Core| {
            drop(place);
            job(core)
        };
        self.queue(Lane::Own, placed, true).await
    }

    /// Runs `job`, which only reads, on the node's thread before anything that waits for a peer: also while something is
    /// being saved.
    ///
    /// # Errors
    /// `E-STOPPING` when the node is gone.
    ///
    /// # Cancel safety
    /// As [`Node::run`].
    pub(super) async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let place = Arc::clone(&self.door.0.own)
            .acquire_owned()
            .await
            .map_err(|_| gone())?;
        let placed = move |core: &mut Core| {
            drop(place);
            job(core)
        };
        self.queue(Lane::Own, placed, false).await
    }

    /// Runs `job` on the node's thread when it is the turn of who it is for: see [`Lane`].
    ///
    /// # Errors
    /// `E-BUSY` when too much of the same peer waits already, `E-STOPPING` when the node is gone.
    ///
    /// # Cancel safety
    /// A job that was queued runs even if the caller stops waiting.
    pub async fn run_in<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.queue(lane, job, true).await
    }

    /// The same for a job that only reads, or judges what came: it has its turn also while something is being saved.
    ///
    /// # Errors
    /// As [`Node::run_in`].
    ///
    /// # Cancel safety
    /// As [`Node::run`].
    pub(super) async fn read_in<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.queue(lane, job, false).await
    }

    /// As [`Node::run_in`], for a job that fails by itself, too: that what it decided could not be saved is one of its
    /// errors.
    ///
    /// # Errors
    /// `E-STOPPING` when the node is gone.
    pub(super) async fn decide<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(&mut Core) -> Result<T, Error> + Send + 'static,
    ) -> Result<Result<T, Error>, Error> {
        match self.run_in(lane, job).await {
            Err(error) if error.code != gone().code => Ok(Err(error)),
            done => done,
        }
    }

    async fn queue<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce(&mut Core) -> T + Send + 'static,
        decides: bool,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let boxed: Job = Box::new(move |core| {
            let value = job(core);
            // Whoever asked may have gone.
            Box::new(move |saved| drop(reply.send(saved.map(|()| value))))
        });
        if self.door.0.push(lane, boxed, decides) {
            answer.await.map_err(|_| gone())?
        } else if self.door.0.own.is_closed() {
            Err(gone())
        } else {
            Err(Error::new(
                ErrorKind::Failed,
                Code::Busy,
                "too much of this peer waits already",
            ))
        }
    }
}
