//! The node: the only writer of [`State`].
//!
//! One thread owns state and store. Whoever wants something sends it a closure and gets the result back; every change
//! goes the same way: decide on a copy, save (synced), absorb, publish the View, tell the others. What could not be saved
//! has changed nothing and is told to nobody.

mod admission;
mod again;
mod commands;
mod expiry;
mod nonces;
mod pulse;
mod show;
mod sync;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

pub use admission::JoinDecision;
pub use commands::{Leaving, NewWorkload, prepare_map};
pub use expiry::{Nearness, nearness};

use crate::api::types::{Error, ErrorKind};
use crate::model::build::Here;
use crate::model::error::Kind;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::record::Signed;
use crate::model::state::{Damage, Draft, State};
use crate::model::upkeep::Surroundings;
use crate::model::view::View;
use crate::store::{Batch, Store};

/// Something to tell the others after it was saved.
#[derive(Debug, Clone)]
pub struct Push {
    /// The subnet.
    pub subnet: SubnetId,
    /// What is new.
    pub records: Vec<Signed>,
    /// Who told us, and need not be told.
    pub except: Option<PeerId>,
    /// Members that are members no more: told once, before their connections close.
    pub removed: Vec<PeerId>,
}

/// State, store and what is published; lives on the node's thread.
pub struct Core {
    /// What we believe.
    pub state: State,
    store: Store,
    view: Arc<ArcSwap<View>>,
    published: watch::Sender<u64>,
    pushes: mpsc::UnboundedSender<Push>,
    here: Here,
    /// Default name of this node in a subnet.
    pub node_name: Name,
    /// Where this node can be dialled: multiaddrs.
    pub endpoints: Vec<String>,
    /// Records and memberships that were damaged on disk.
    pub damage: Vec<Damage>,
    opened: VecDeque<(SubnetId, u64)>,
    nonces: nonces::Nonces,
    generation: u64,
    /// Hash of what is held, by subnet; emptied by every change.
    hashes: BTreeMap<SubnetId, [u8; 32]>,
    rates: sync::Rates,
    warned: expiry::Warned,
    /// When (seconds since 1970) the View changes by itself.
    next_change: Option<u64>,
    /// The time the View was built for.
    built_at: u64,
    pulse: pulse::Pulse,
    again: again::Again,
    /// Who is connected, and whether this node's clock can be believed.
    pub surroundings: Surroundings,
    /// A time (seconds since 1970) that other members' clocks agree with: what ended before it may be forgotten.
    pub forget_before: Option<u64>,
    /// Told when the thread has let go of the state directory.
    closing: Option<oneshot::Sender<()>>,
}

/// Where a node is reached; cheap to clone.
#[derive(Clone)]
pub struct Node {
    jobs: mpsc::Sender<Job>,
    view: Arc<ArcSwap<View>>,
    published: watch::Receiver<u64>,
}

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Jobs that wait for the node's thread: a full queue slows those who ask, which is the bound we want.
const JOBS: usize = 256;

/// What a node is started with.
pub struct Parts {
    /// State as loaded.
    pub state: State,
    /// What was damaged.
    pub damage: Vec<Damage>,
    /// Where changes are saved.
    pub store: Store,
    /// See [`Here`].
    pub here: Here,
    /// Default name of this node in a subnet.
    pub node_name: Name,
}

impl Node {
    /// Starts the node's thread. It ends when every [`Node`] is gone. The receiver gets what is to be told to others.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(parts: Parts) -> std::io::Result<(Node, mpsc::UnboundedReceiver<Push>)> {
        let view = Arc::new(ArcSwap::from_pointee(View::default()));
        let (published, published_rx) = watch::channel(0);
        let (jobs, mut queue) = mpsc::channel::<Job>(JOBS);
        // Unbounded on purpose: the node must never wait for the network; what is queued is bounded by our own commands
        // and by records that were new, and the reader only ever sends.
        let (pushes, pushes_rx) = mpsc::unbounded_channel();
        let mut core = Core {
            state: parts.state,
            store: parts.store,
            view: view.clone(),
            published,
            pushes,
            here: parts.here,
            node_name: parts.node_name,
            endpoints: Vec::new(),
            damage: parts.damage,
            opened: VecDeque::new(),
            nonces: nonces::Nonces::default(),
            generation: 0,
            hashes: BTreeMap::new(),
            rates: sync::Rates::default(),
            warned: expiry::Warned::default(),
            next_change: None,
            built_at: 0,
            pulse: pulse::Pulse::default(),
            again: again::Again::default(),
            surroundings: Surroundings::default(),
            forget_before: None,
            closing: None,
        };
        std::thread::Builder::new().name("node".into()).spawn(move || {
            core.publish();
            while core.closing.is_none()
                && let Some(job) = queue.blocking_recv()
            {
                job(&mut core);
            }
            let done = core.closing.take();
            drop(core);
            if let Some(done) = done {
                // Whoever asked may have gone away.
                let _ = done.send(());
            }
        })?;
        Ok((Node { jobs, view, published: published_rx }, pushes_rx))
    }

    /// Runs `job` on the node's thread.
    ///
    /// # Errors
    /// `E-STOPPING` when the node is gone.
    ///
    /// # Cancel safety
    /// A job that was queued runs even if the caller stops waiting.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Core) -> T + Send + 'static) -> Result<T, Error> {
        let gone = || Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping");
        let (reply, answer) = oneshot::channel();
        let boxed: Job = Box::new(move |core| drop(reply.send(job(core))));
        self.jobs.send(boxed).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Ends the node's thread, whoever still holds a [`Node`], and waits until the state directory is free.
    pub async fn close(&self) {
        let (sender, closed) = oneshot::channel();
        if self.run(move |core| core.closing = Some(sender)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// The current View.
    pub fn view(&self) -> Arc<ArcSwap<View>> {
        self.view.clone()
    }

    /// Ticks with every published generation.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.clone()
    }
}

/// Seconds since 1970 by the system's clock.
pub fn unix_now() -> u64 {
    unix_now_ms() / 1000
}

/// Milliseconds since 1970 by the system's clock.
pub fn unix_now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    /// The time to judge and sign by, in seconds.
    pub fn now(&self) -> u64 {
        self.state.clock(unix_now())
    }

    /// The same in milliseconds.
    pub fn now_ms(&self) -> u64 {
        unix_now_ms().max(self.now().saturating_mul(1000))
    }

    /// Saves a draft, makes it true, publishes the View and tells the others. Gives the View's generation.
    ///
    /// # Errors
    /// `E-STATE-WRITE` when it could not be saved: then nothing has changed.
    pub fn commit(&mut self, draft: Draft, except: Option<PeerId>) -> Result<u64, Error> {
        let mut batch = Batch::default();
        let mut pushes: BTreeMap<SubnetId, Vec<Signed>> = BTreeMap::new();
        for (key, value) in draft.writes(&self.state) {
            if key.first() == Some(&b'r')
                && let Some(signed) = value.as_deref().and_then(|v| Signed::parse(v).ok())
            {
                pushes.entry(signed.subnet).or_default().push(signed);
            }
            match value {
                Some(value) => batch.put_records.push((key, value)),
                None => batch.delete_records.push(key),
            }
        }
        if batch.put_records.is_empty() && batch.delete_records.is_empty() {
            // Only what is not saved (who waits for approval) has changed.
            self.state.absorb(draft);
            self.hashes.clear();
            return Ok(self.generation);
        }
        self.store
            .commit(&batch)
            .map_err(|e| Error::new(ErrorKind::Failed, e.code(), format!("save the change: {e}")).hint(e.hint()))?;
        let before = self.view.load_full();
        self.state.absorb(draft);
        self.hashes.clear();
        self.pulse.changed();
        self.publish();
        let after = self.view.load_full();
        for (subnet, mut records) in pushes {
            let gone = |v: &View| v.rolls.get(&subnet).cloned().unwrap_or_default();
            let removed: Vec<PeerId> = gone(&before).difference(&gone(&after)).copied().collect();
            records.sort_by_key(|r| r.body.first().map(|kind| (*kind != 1, *kind)));
            let _ = self.pushes.send(Push { subnet, records, except, removed });
        }
        Ok(self.generation)
    }

    /// Builds and publishes the View anew.
    pub fn publish(&mut self) {
        self.generation = unix_now_ms().max(self.generation.saturating_add(1));
        let view = self.state.view(self.generation, unix_now(), &self.here);
        self.next_change = view.changes_at;
        self.view.store(Arc::new(view));
        self.built_at = self.now();
        self.published.send_replace(self.generation);
    }

    /// What happens by the passing of time: renewals, expiries, forgotten requests. Called about every second.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn tick(&mut self) -> Result<(), Error> {
        let now = self.now();
        self.pulse.watch_clock(&mut self.surroundings);
        // A grant that ran out changes the View without any record, and so does a clock that was set back.
        let moved = self.next_change.is_some_and(|at| at <= now) || now < self.built_at;
        let mut draft = Draft::default();
        let mut ended = Vec::new();
        let look = self.pulse.is_due(moved);
        for subnet in self.state.subnets.values().filter(|_| look) {
            let me = self.state.me.peer;
            let mut copy = subnet.clone();
            if subnet.records.seat_of(me).is_some() {
                copy.upkeep(&self.state.me, &self.surroundings, now)?;
            }
            copy.keep_own(&self.state.me, &self.endpoints, now)?;
            if self.forget_before.is_some_and(|attested| copy.records.forget(attested)) {
                tracing::debug!(subnet = %subnet.name(), "forgot members whose grants have ended");
            }
            if copy != *subnet {
                draft.put(copy);
            }
            if subnet.records.destroyed() {
                ended.push(subnet.records.id);
            }
        }
        if !draft.is_empty() {
            self.commit(draft, None)?;
        }
        for id in ended {
            let draft = self.state.forget(id);
            self.commit(draft, None)?;
        }
        self.warn_of_expiry();
        if moved {
            self.publish();
        }
        Ok(())
    }

    /// Says in every subnet where this node can be dialled.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn set_endpoints(&mut self, endpoints: Vec<String>) -> Result<(), Error> {
        self.endpoints = endpoints;
        let now = self.now();
        let mut draft = Draft::default();
        for subnet in self.state.subnets.values() {
            let mut copy = subnet.clone();
            copy.keep_own(&self.state.me, &self.endpoints, now)?;
            draft.put(copy);
        }
        if !draft.is_empty() {
            self.commit(draft, None)?;
        }
        Ok(())
    }

    /// The generation last published.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The View last published.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }
}

impl From<crate::model::error::Error> for Error {
    fn from(e: crate::model::error::Error) -> Error {
        let kind = match e.kind {
            Kind::Failed => ErrorKind::Failed,
            Kind::Usage => ErrorKind::Usage,
            Kind::NotPermitted => ErrorKind::NotPermitted,
            Kind::NotFound => ErrorKind::NotFound,
            Kind::Conflict => ErrorKind::Conflict,
            Kind::Refused => ErrorKind::Refused,
        };
        Error { code: e.code.to_owned(), message: e.message, hint: e.hint, kind }
    }
}
