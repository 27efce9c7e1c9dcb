//! Saves beside the node's thread.
//!
//! What a job decides is true for that job alone: before the next one the thread takes it back, hands it to the store's
//! thread as one batch, and goes on with jobs that only read (comparisons, pulls, lists) and with judging what peers
//! send. Whatever decides anything waits until the batch is on the disk or refused. Only then is it absorbed, published,
//! told, and answered; of what was refused nothing is left, and who asked hears why. So nobody ever sees what is not
//! saved, and a decision is never made on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::queue::Queue;
use super::{Core, unix_now};
use crate::api::types::{Error, ErrorKind};
use crate::model::draft::{Changes, Draft, record_key};
use crate::model::error::Code;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::{Digest, Verified};
use crate::store::{Batch, Store, StoreError};

/// How long nothing is to be saved before it is tried again whether anything can be.
const RETRY: Duration = Duration::from_secs(3);

/// Tells who asked for a job what came of it, once what it decided is saved.
pub(super) type Reply = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// The thread that owns the store.
pub(super) struct Saver {
    batches: Option<mpsc::Sender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Starts the thread. It hands what came of each batch to `queue`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(store: Store, queue: Arc<Queue>) -> std::io::Result<Saver> {
        let (batches, waiting) = mpsc::channel::<Batch>();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let told = Told(queue);
                loop {
                    match waiting.recv_timeout(RETRY) {
                        Ok(batch) => told.0.saved(store.commit(&batch)),
                        Err(mpsc::RecvTimeoutError::Timeout) => store.retry(),
                        Err(mpsc::RecvTimeoutError::Disconnected) => break,
                    }
                }
            })?;
        Ok(Saver {
            batches: Some(batches),
            thread: Some(thread),
        })
    }

    /// Hands a batch over; `false` where the thread is gone.
    fn save(&self, batch: Batch) -> bool {
        self.batches
            .as_ref()
            .is_some_and(|batches| batches.send(batch).is_ok())
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            // The state directory is free after this; a panic in it has been told already.
            let _ = thread.join();
        }
    }
}

/// Tells the node's thread where this one ends before its time, so that nobody waits for it.
struct Told(Arc<Queue>);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.saved(Err(StoreError::Fatal {
                path: Default::default(),
                what: "the store's thread ended".into(),
            }));
        }
    }
}

/// The View that follows from a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is built before the answer is given.
    Now,
    /// It is built beside the thread, and the answer does not wait for it.
    Beside {
        /// Whether somebody may be out by it: such a View is not put off.
        urgent: bool,
    },
}

/// Records that came, each with who sent it.
type Came = BTreeMap<(SubnetId, Digest), (Verified, Option<PeerId>)>;

/// What a job decided.
#[derive(Default)]
pub(super) struct Decided {
    /// What takes it back, in the order it was decided; after the job what does it again.
    steps: Vec<Draft>,
    came: Came,
    went: BTreeSet<(SubnetId, Digest)>,
    /// The other items that are saved, by their keys.
    rest: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    view: Option<(Wish, u64)>,
    /// The generation before, to which it goes back where nothing of this is saved.
    before: Option<u64>,
    /// Those who wait to be told that received records are saved.
    askers: Vec<oneshot::Sender<bool>>,
    received: bool,
}

impl Decided {
    /// Adds a draft that was absorbed: what it changes, who sent which record, and what takes it back. A record that came
    /// and went in one job, or went and came, is no change.
    pub(super) fn add(&mut self, changes: Changes, from: &BTreeMap<Digest, PeerId>, undo: Draft) {
        for gone in changes.went {
            if self.came.remove(&gone).is_none() {
                self.went.insert(gone);
            }
        }
        for record in changes.came {
            let key = (record.signed().subnet, record.digest());
            if !self.went.remove(&key) {
                let sender = from.get(&key.1).copied();
                self.came.insert(key, (record, sender));
            }
        }
        self.rest.extend(changes.rest);
        self.steps.push(undo);
    }

    /// Wants a View of what was decided; `before` is the generation without it.
    pub(super) fn want(&mut self, wish: Wish, generation: u64, before: u64) {
        self.before.get_or_insert(before);
        let wish = match (wish, self.view) {
            (_, Some((Wish::Now, _))) => Wish::Now,
            (Wish::Beside { urgent }, Some((Wish::Beside { urgent: former }, _))) => Wish::Beside {
                urgent: urgent || former,
            },
            (wish, _) => wish,
        };
        self.view = Some((wish, generation));
    }

    /// Notes that received records are among it, and who waits for them.
    pub(super) fn received(&mut self, askers: Vec<oneshot::Sender<bool>>) {
        self.received = true;
        self.askers.extend(askers);
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        batch
            .delete_records
            .extend(self.went.iter().map(|(id, digest)| record_key(*id, digest)));
        let came = self.came.iter();
        batch
            .put_records
            .extend(came.map(|((id, digest), (record, _))| {
                (record_key(*id, digest), record.signed().encode())
            }));
        for (key, value) in std::mem::take(&mut self.rest) {
            match value {
                Some(value) => batch.put_records.push((key, value)),
                None => batch.delete_records.push(key),
            }
        }
        batch
    }
}

/// A decision that is being saved, with who waits for it.
pub(super) struct Flight {
    decided: Decided,
    reply: Reply,
    began: Instant,
}

impl Core {
    /// After a job: answers at once where nothing was decided, else once it is saved.
    pub(super) fn launch(&mut self, reply: Reply) {
        let Some(mut decided) = self.decided.take() else {
            return reply(Ok(()));
        };
        let undo: Vec<Draft> = decided.steps.drain(..).rev().collect();
        decided.steps = undo
            .into_iter()
            .map(|undo| self.state.absorb(undo))
            .collect();
        decided.steps.reverse();
        self.forget_derived();
        let batch = decided.batch();
        self.flight = Some(Flight {
            decided,
            reply,
            began: Instant::now(),
        });
        if !self.saver.save(batch) {
            self.land(Err(Error::new(
                ErrorKind::Failed,
                Code::Stopping,
                "the daemon is stopping",
            )));
        }
    }

    /// What is being saved is saved, or was refused.
    pub(super) fn landed(&mut self, result: Result<(), StoreError>) {
        let error = |e: StoreError| {
            Error::new(ErrorKind::Failed, e.code(), format!("save the change: {e}")).hint(e.hint())
        };
        self.land(result.map_err(error));
    }

    fn land(&mut self, result: Result<(), Error>) {
        let Some(Flight {
            decided,
            reply,
            began,
        }) = self.flight.take()
        else {
            return;
        };
        if decided.received {
            self.intake.landed(began.elapsed());
            if let Err(error) = &result {
                // The others send them again.
                tracing::warn!(%error, "records from peers were not saved");
            }
        }
        if result.is_ok() {
            self.make_true(decided.steps, decided.came, decided.went);
            match decided.view {
                Some((Wish::Now, generation)) => self.build(generation),
                Some((Wish::Beside { urgent }, generation)) => self.want_built(generation, urgent),
                None => {}
            }
        } else if let Some(before) = decided.before {
            // Else whoever changes nothing would wait for a View that never comes.
            self.generation = before;
        }
        for asker in decided.askers {
            // Whoever asked may have gone.
            let _ = asker.send(result.is_ok());
        }
        reply(result);
    }

    fn make_true(&mut self, steps: Vec<Draft>, came: Came, went: BTreeSet<(SubnetId, Digest)>) {
        self.work.writes = self.work.writes.saturating_add(1);
        for step in steps {
            let _ = self.state.absorb(step);
        }
        self.known.change(came.keys().copied(), went);
        self.note_lives(
            came.iter()
                .map(|((subnet, _), (record, _))| (*subnet, record.signed().issuer)),
        );
        self.forget_derived();
        self.pulse.changed(Instant::now());
        for ((subnet, _), (record, sender)) in came {
            self.untold
                .entry((subnet, sender))
                .or_default()
                .push(record);
        }
    }

    /// Notes which start of their daemons the announcements that now hold are from.
    fn note_lives(&mut self, said: impl Iterator<Item = (SubnetId, PeerId)>) {
        let (now, me) = (unix_now(), (self.state.me.peer, self.state.me.life));
        for (subnet, issuer) in said {
            let records = self.state.subnets.get(&subnet).map(|s| &s.records);
            let Some(announcement) = records.and_then(|r| r.announcement(issuer)) else {
                continue;
            };
            let known = self.lives.is_twice(issuer, now);
            self.lives.note(
                (subnet, issuer),
                announcement.life,
                &announcement.endpoints,
                me == (issuer, announcement.life),
                now,
            );
            if !known && self.lives.is_twice(issuer, now) {
                tracing::warn!(%subnet, peer = %issuer, "two machines take turns to speak with one identity: was its disk cloned?");
            }
        }
    }

    fn forget_derived(&mut self) {
        self.hashes.clear();
        self.rolls.clear();
    }

    /// Builds and publishes the View with a number that was given to it.
    pub(super) fn build(&mut self, generation: u64) {
        let now = unix_now();
        self.state.remember(self.state.clock(now));
        let view = self
            .state
            .view(generation, now, &self.here, &self.view.load_full());
        self.work.views = self.work.views.saturating_add(1);
        self.install(view);
    }
}
