//! The node: the only writer of [`State`].
//!
//! One thread owns the state, one beside it the store. Whoever wants something makes one typed call: commands and timers
//! in `handle`, looks in `looks` and `overview`. Every change goes the same way: decide on a copy, save (synced), absorb,
//! publish the View, tell the others, answer. What could not be saved has changed nothing and is told to nobody. While
//! something is being saved (`saver`) the thread goes on with what only reads.
//!
//! Who pays before work is done:
//!
//! 1. The connection that carries a message, by its size and by what is forged in it (`service/inbox.rs`).
//! 2. Its place in the queue: own commands and removals first, then peers in fair turns (`turns`).
//! 3. The issuer of a record, once its signature holds (`check`, beside this thread) and it says something new
//!    (`intake`).
//!
//! What peers' records change is saved and published together (`intake`, `viewer`), and what follows from it is made anew
//! only where it changed, so that the work of this thread is bounded for each message and does not grow with the subnet for
//! each record.

mod admission;
mod again;
mod check;
mod commands;
mod expiry;
mod handle;
mod intake;
mod looks;
mod nonces;
mod notice;
mod overview;
mod own_joins;
mod protocol;
mod publish;
mod pulse;
mod queue;
mod reached;
mod saver;
mod show;
mod sync;
mod turns;
mod viewer;
mod withheld;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

pub use admission::JoinDecision;
pub use check::{Checked, Checker, PIECE, PIECE_BYTES, Question};
pub use commands::{
    Addition, Asker, Beside, Container, ContainerNames, Examined, Former, Leaving, Made, Named,
    NewEndpoint, NewImport, NewMap, NewWorkload, Own, Pursued, Runner, Seen, Silent, Staged,
    Underlying, prepare_map, warning,
};
pub use expiry::{Nearness, nearness};
pub use handle::Effect;
pub use intake::Verdict;
pub use looks::{Called, Claim, Membership, TargetPeer, Whereabouts};
pub use overview::{Overview, SubnetOverview, Twice};
pub use protocol::NotTaken;
pub use pulse::{Judged, Reading, Word};
pub use sync::{difference, wanted};
pub use turns::{Lane, MAX_COST};
pub use withheld::Withheld;

use check::Known;
use commands::{Engines, Proven};
use intake::Intake;
use queue::{Door, Next, Queue, Served};
use saver::{Decided, Flight, Saver};
use viewer::Viewer;

use crate::api::types::{Error, ErrorKind};
use crate::model::build::Here;
use crate::model::error::{Code, Kind};
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::lives::Lives;
use crate::model::members::Identity;
use crate::model::notice::RelayNotice;
use crate::model::record::{Digest, Verified};
use crate::model::roll::Roll;
use crate::model::state::{Damage, Draft, State};
use crate::model::upkeep::Attendance;
use crate::model::view::View;
use crate::store::Store;

/// Records to tell others of after they were saved.
#[derive(Debug, Clone)]
pub struct Push {
    /// The subnet that the records are about.
    pub subnet: SubnetId,
    /// The records, saved here already.
    pub records: Vec<Verified>,
    /// The peers that are told.
    pub to: Told,
}

/// The peers that are told of saved records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Every connected member but the one who told us.
    Members {
        /// The member that told us; none where this node decided.
        except: Option<PeerId>,
        /// Whether that member's daemon has just begun a new life by what it told: should the
        /// former one go on elsewhere, that one is to hear of it.
        new_life: bool,
    },
    /// Those that are members no more: told once, before their connections close.
    Removed(Vec<PeerId>),
}

/// State, store and what is published; lives on the node's thread.
pub struct Core {
    /// Everything this node believes, saved ahead of being told to others.
    pub state: State,
    saver: Saver,
    /// What the job under way has decided.
    decided: Option<Decided>,
    /// What is being saved; until it is there nothing is decided.
    flight: Option<Flight>,
    view: Arc<ArcSwap<View>>,
    published: watch::Sender<u64>,
    pushes: mpsc::UnboundedSender<Push>,
    here: Here,
    /// Default name of this node in a subnet.
    pub node_name: Name,
    /// The multiaddrs at which this node can be dialled.
    pub endpoints: Vec<String>,
    /// What this node says of relays; none before that is known, so that a start takes back nothing that still holds.
    notice: Option<RelayNotice>,
    /// Records and memberships that were damaged on disk.
    pub damage: Vec<Damage>,
    /// Subnets whose owner signed one number twice, and when (seconds since 1970) that was last seen.
    pub forks: BTreeMap<SubnetId, u64>,
    /// Subnets of which others knew what this node had signed and did not know: when, and how many invites that cost.
    pub restored: BTreeMap<SubnetId, (u64, usize)>,
    /// Members that seem to run on two machines.
    pub lives: Lives,
    /// When this node last contradicted another machine that has its identity.
    contradicted: Option<Instant>,
    opened: VecDeque<(SubnetId, u64)>,
    nonces: nonces::Nonces,
    generation: u64,
    /// Hash of what is held, by subnet; emptied by every change.
    hashes: BTreeMap<SubnetId, [u8; 32]>,
    /// The roll of each subnet; emptied by every change.
    rolls: BTreeMap<SubnetId, Arc<Roll>>,
    known: Arc<Known>,
    intake: Intake,
    viewer: Viewer,
    /// Saved, and not told to the others before the View that follows from it: by subnet and who told us.
    untold: BTreeMap<(SubnetId, Option<PeerId>), Vec<Verified>>,
    /// Where members have answered, to be saved with the next [tick](Core::tick).
    reached: Vec<(PeerId, String)>,
    warned: expiry::Warned,
    /// When (seconds since 1970) the View changes by itself.
    next_change: Option<u64>,
    work: Work,
    /// How long one piece of work held the thread at most, since it was last asked for.
    longest: Duration,
    /// The time (seconds since 1970) that the View was built for.
    built_at: u64,
    pulse: pulse::Pulse,
    again: again::Again,
    /// The members that are connected, and whether this node's clock can be believed in the subnet
    /// that is looked after.
    attendance: Attendance,
    engines: Engines,
    /// Why workloads are unhealthy, in words, as far as this process has seen it.
    ailments: BTreeMap<(SubnetId, Name), String>,
    /// Workloads that have succeeded since they are asked: until then it is not said that they are well.
    proven: BTreeMap<(SubnetId, Name), Proven>,
    /// Notified when the thread has let go of the state directory.
    closing: Option<oneshot::Sender<()>>,
}

/// Work that costs more the larger a subnet is, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Writes that were synced to the disk.
    pub writes: u64,
    /// Views built on the node's thread.
    pub views: u64,
    /// Views built beside the node's thread.
    pub views_beside: u64,
    /// Looks for which a subnet was copied: those at what needs nothing are not counted.
    pub looks: u64,
}

/// Where a node is reached; cheap to clone.
#[derive(Clone)]
pub struct Node {
    door: Arc<Door>,
    checker: Checker,
    view: Arc<ArcSwap<View>>,
    published: watch::Receiver<u64>,
}

/// Time between two contradictions of another machine that has this node's identity.
const CONTRADICT_EVERY: Duration = Duration::from_secs(30);

/// What a node is started with.
pub struct Parts {
    /// The state as it was loaded from the store.
    pub state: State,
    /// Items of the store that were damaged and left out.
    pub damage: Vec<Damage>,
    /// The store in which changes are saved.
    pub store: Store,
    /// What the machine adds to the state to make a View.
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
        let queue = Queue::new();
        // Unbounded on purpose: the node must never wait for the network; what is queued is bounded by our own commands
        // and by records that were new, and the reader only ever sends.
        let (pushes, pushes_rx) = mpsc::unbounded_channel();
        let known = Arc::new(Known::of(&parts.state));
        let core = Core {
            state: parts.state,
            saver: Saver::start(parts.store, Arc::clone(&queue))?,
            decided: None,
            flight: None,
            view: view.clone(),
            published,
            pushes,
            here: parts.here,
            node_name: parts.node_name,
            endpoints: Vec::new(),
            notice: None,
            damage: parts.damage,
            forks: BTreeMap::new(),
            restored: BTreeMap::new(),
            lives: Lives::default(),
            contradicted: None,
            opened: VecDeque::new(),
            nonces: nonces::Nonces::default(),
            generation: 0,
            hashes: BTreeMap::new(),
            rolls: BTreeMap::new(),
            known: Arc::clone(&known),
            intake: Intake::default(),
            viewer: Viewer::start(Arc::clone(&queue))?,
            untold: BTreeMap::new(),
            reached: Vec::new(),
            warned: expiry::Warned::default(),
            next_change: None,
            work: Work::default(),
            longest: Duration::ZERO,
            built_at: 0,
            pulse: pulse::Pulse::new(Reading::now()),
            again: again::Again::default(),
            attendance: Attendance::default(),
            engines: Engines::default(),
            ailments: BTreeMap::new(),
            proven: BTreeMap::new(),
            closing: None,
        };
        let served = Arc::clone(&queue);
        std::thread::Builder::new()
            .name("node".into())
            // Also where a job panics: whoever waits for this thread hears that it is gone.
            .spawn(move || core.serve(Served(served)))?;
        let node = Node {
            door: Arc::new(Door(queue)),
            checker: Checker::new(known),
            view,
            published: published_rx,
        };
        Ok((node, pushes_rx))
    }

    /// Ends the node's thread, whoever still holds a [`Node`], and waits until the state directory is free.
    pub async fn close(&self) {
        let (sender, closed) = oneshot::channel();
        if self
            .run(move |core| core.closing = Some(sender))
            .await
            .is_ok()
        {
            let _ = closed.await;
        }
    }

    /// Checks signatures beside the node's thread.
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Waits until every record received so far is saved. Gives whether that went well.
    ///
    /// # Errors
    /// `E-STOPPING` when the node is gone, `E-BUSY` as [`Node::run_in`].
    pub async fn saved(&self, lane: Lane) -> Result<bool, Error> {
        Ok(self.run_in(lane, Core::saved).await?.await.unwrap_or(false))
    }

    /// The current View, which changes under the reader.
    pub fn view(&self) -> Arc<ArcSwap<View>> {
        self.view.clone()
    }

    /// Ticks with every published generation.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.clone()
    }
}

/// The system's clock, in seconds since 1970.
pub fn unix_now() -> u64 {
    unix_now_ms() / 1000
}

/// The system's clock, in milliseconds since 1970.
pub fn unix_now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    /// The time to judge and sign by, in seconds.
    pub fn now(&self) -> u64 {
        self.state.clock(unix_now())
    }

    /// This node's time in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        unix_now_ms().max(self.now().saturating_mul(1000))
    }

    /// Decides on a draft of this node's own: it is saved after the job that runs now, and true, published and told before
    /// that job is answered. Gives the generation that the View will have. Where it cannot be saved nothing has changed, and
    /// who asked for the job gets the error in place of its answer.
    ///
    /// # Errors
    /// `E-BUSY` in a job that only reads, which runs while something is being saved.
    pub fn commit(&mut self, draft: Draft) -> Result<u64, Error> {
        if self.settle(draft, &BTreeMap::new())? {
            self.publish();
        }
        Ok(self.generation)
    }

    /// Decides on a draft. `from` says who sent which record. Gives whether anything that is saved has changed; then a View
    /// has to follow, with which the others are told.
    ///
    /// # Errors
    /// As [`Core::commit`].
    fn settle(&mut self, draft: Draft, from: &BTreeMap<Digest, PeerId>) -> Result<bool, Error> {
        if self.flight.is_some() {
            let message = "something is being saved: this job may only read";
            return Err(Error::new(ErrorKind::Failed, Code::Busy, message));
        }
        let changes = draft.changes(&self.state);
        let undo = self.state.absorb(draft);
        if changes.is_empty() {
            // Only what is not saved (who waits for approval) has changed.
            if let Some(decided) = &mut self.decided {
                decided.add(changes, from, undo);
            }
            return Ok(false);
        }
        self.hashes.clear();
        self.rolls.clear();
        self.decided
            .get_or_insert_default()
            .add(changes, from, undo);
        Ok(true)
    }

    /// Serves jobs until the node is closed, then saves what is left and lets go of the state directory.
    fn serve(mut self, served: Served) {
        self.publish();
        while self.closing.is_none() {
            let next = served.0.next(self.intake.due(), self.flight.is_some());
            let began = Instant::now();
            match next {
                Next::Job(job) => {
                    let reply = job(&mut self);
                    self.launch(reply);
                }
                Next::Saved(result) => self.landed(result),
                Next::Due => self.save_due(),
                Next::Closed => break,
            }
            self.longest = self.longest.max(began.elapsed());
        }
        for _ in 0..2 {
            // What is being saved first, then what was received meanwhile.
            if self.flight.is_some() {
                self.landed(served.0.wait_saved());
            }
            self.save_due();
        }
        drop(served);
        let done = self.closing.take();
        drop(self);
        if let Some(done) = done {
            // Whoever asked may have gone away.
            let _ = done.send(());
        }
    }

    /// Saves what was received. Who sent it hears of an error, and so does the log.
    fn save_due(&mut self) {
        let saved = self.save_received();
        self.launch(Box::new(move |_| drop(saved)));
    }

    /// Who is in a subnet, dates aside; computed once for each state.
    fn roll(&mut self, id: SubnetId) -> Option<Arc<Roll>> {
        let records = &self.state.subnets.get(&id)?.records;
        Some(Arc::clone(
            self.rolls
                .entry(id)
                .or_insert_with(|| Arc::new(records.roll())),
        ))
    }

    /// Hears what was found of this machine's clock.
    pub fn clock_judged(&mut self, judged: Judged) {
        self.pulse.judged(judged.clock, judged.words);
        self.attendance.seen = judged.seen;
    }

    /// What happens by the passing of time: renewals, expiries, forgotten requests. Called about every second.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn tick(&mut self) -> Result<(), Error> {
        // One reading for both: what is signed at a time and whether that time is believed.
        let clock = Reading::now();
        let now = self.state.clock(clock.unix_ms / 1000);
        self.pulse
            .watch_clock(clock, self.state.subnets.keys().copied());
        // A grant that ran out changes the View without any record, and so does a clock that was set back.
        let moved = self.next_change.is_some_and(|at| at <= now) || now < self.built_at;
        let mut draft = Draft::default();
        let mut ended = Vec::new();
        let look = self.pulse.is_due(moved);
        let began = Instant::now();
        if look {
            self.state.remember(now);
        }
        let me = self.state.me.clone();
        // Two machines with one identity would contradict each other for ever, a synced write and a message to everybody
        // each time.
        let patient = self.lives.is_twice(me.peer, now)
            && self
                .contradicted
                .is_some_and(|at| at.elapsed() < CONTRADICT_EVERY);
        if look {
            if !patient {
                self.contradicted = Some(Instant::now());
            }
            draft = self.look_after(&me, patient, now);
            ended = self.ended();
            self.pulse.took(began.elapsed());
        }
        if !draft.is_empty() && self.settle(draft, &BTreeMap::new())? {
            self.want_view(true);
        }
        for id in ended {
            // Whoever ends it here is told by the verb, which forgets it, too.
            let draft = self.state.forget(id, false);
            self.commit(draft)?;
        }
        self.save_reached()?;
        self.warn_of_expiry();
        if moved {
            // Wanted once is enough, however long it takes.
            self.next_change = None;
            self.want_view(true);
        }
        Ok(())
    }

    /// Looks after every subnet; a `patient` node does not contradict another machine that has its identity. Gives what that
    /// changes.
    fn look_after(&mut self, me: &Identity, patient: bool, now: u64) -> Draft {
        let mut draft = Draft::default();
        let mut memos = Vec::new();
        for subnet in self.state.subnets.values() {
            let attested = self.pulse.attested(subnet.records.id);
            self.attendance.clock_is_off = self.pulse.is_off(subnet.records.id);
            let forgets = attested.is_some_and(|attested| subnet.records.may_forget(attested));
            let seated = subnet.records.seat_of(me.peer).is_some();
            let noticed = self.notice.as_ref();
            let noticed = noticed.is_none_or(|notice| subnet.notice_is_true(me, notice, now));
            if !seated && !forgets && noticed && subnet.own_is_true(me, &self.endpoints, now) {
                continue;
            }
            self.work.looks = self.work.looks.saturating_add(1);
            let mut copy = subnet.clone();
            // What fails in one subnet keeps no other from being looked after, nor the rest of its own upkeep.
            if seated && let Err(error) = copy.upkeep(me, &self.attendance, now) {
                tracing::warn!(subnet = %subnet.name(), %error, "upkeep");
            }
            if !patient && let Err(error) = copy.keep_own(me, &self.endpoints, now) {
                tracing::warn!(subnet = %subnet.name(), %error, "publish what this node says of itself");
            }
            if !patient
                && let Some(notice) = &self.notice
                && let Err(error) = copy.keep_notice(me, notice, now)
            {
                tracing::warn!(subnet = %subnet.name(), %error, "publish what this node says of relays");
            }
            if attested.is_some_and(|attested| copy.records.forget(attested)) {
                tracing::debug!(subnet = %subnet.name(), "forgot members whose grants have ended");
            }
            if copy == *subnet {
                memos.push((subnet.records.id, copy.memo));
            } else {
                draft.put(copy);
            }
        }
        self.state.keep_memos(memos);
        draft
    }

    /// Subnets that were ended.
    fn ended(&self) -> Vec<SubnetId> {
        let ended = self.state.subnets.values();
        ended
            .filter(|subnet| subnet.records.destroyed())
            .map(|subnet| subnet.records.id)
            .collect()
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
        if !draft.is_empty() && self.settle(draft, &BTreeMap::new())? {
            self.want_view(false);
        }
        Ok(())
    }

    /// The generation of the newest View, published or being built.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the node's thread has done since its start.
    pub fn work(&self) -> Work {
        self.work
    }

    /// How long one piece of work held the node's thread at most since this was last asked.
    pub fn longest(&mut self) -> Duration {
        std::mem::take(&mut self.longest)
    }

    /// The View that was last published.
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
        Error {
            code: e.code.into(),
            message: e.message,
            hint: e.hint.map(String::from).unwrap_or_default(),
            kind,
        }
    }
}

#[cfg(test)]
mod tests;
