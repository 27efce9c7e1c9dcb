//! Follows workloads that come and go: a container that is stopped, started, renamed or made anew is the same workload again,
//! and so is a namespace under its former name (`named`).
//!
//! One task for each engine that has workloads here, which listens to that engine's events and asks it for a container only
//! when something happened to that. What it saw it tells the node, which knows what follows from it. An engine that tells
//! much, or the same over and over, is asked for one workload at most [`OFTEN`] times.

mod look;
mod named;

pub(super) use named::may_come_back;

pub(super) use look::{Miss, lives};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, future};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::types::Error;
use crate::backoff::Accepting;
use crate::engine::docker::{DockerError, Events, News};
use crate::limit::{Limit, TokenBucket};
use crate::model::id::{Name, SubnetId};
use crate::node::{Node, Pursued, Seen};

/// What of all that happens to containers is listened to. Podman says `died` and `remove` for Docker's `die` and `destroy`.
const ACTIONS: [&str; 8] = [
    "start", "die", "died", "pause", "unpause", "rename", "destroy", "remove",
];

/// How often the engine is asked for one workload, whatever it tells of it.
const OFTEN: Limit = Limit::new(20, 1);

/// Containers that an engine is asked for at the same time.
const AT_ONCE: usize = 8;

/// Time until an engine is asked again that did not answer a question while it told events.
const RETRY: Duration = Duration::from_secs(1);

/// Time until a workload is looked at again that changed while it was looked at, or could not be saved.
const STALE: Duration = Duration::from_millis(200);

/// Between two times that it is looked for places to give up.
const TIDY: Duration = Duration::from_secs(600);

type Workloads = Arc<Vec<Pursued>>;

/// Follows all workloads until it is stopped.
///
/// # Errors
/// When the node is gone.
pub(crate) async fn run(node: Node, stop: CancellationToken) -> anyhow::Result<()> {
    let mut published = node.published();
    let mut followers: BTreeMap<PathBuf, (watch::Sender<Workloads>, CancellationToken)> =
        BTreeMap::new();
    let mut tasks = JoinSet::new();
    let (by_name, named) = watch::channel(Workloads::default());
    tasks.spawn(named::run(node.clone(), named, stop.child_token()));
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        published.mark_unchanged();
        let mut wanted: BTreeMap<PathBuf, Vec<Pursued>> = BTreeMap::new();
        let mut without_engine = Vec::new();
        for workload in node.followed().await? {
            match workload.engine.clone() {
                Some(engine) => wanted.entry(engine).or_default().push(workload),
                None => without_engine.push(workload),
            }
        }
        by_name.send_replace(Arc::new(without_engine));
        followers.retain(|engine, (_, ended)| {
            let stays = wanted.contains_key(engine);
            if !stays {
                ended.cancel();
            }
            stays
        });
        for (engine, workloads) in wanted {
            let workloads = Arc::new(workloads);
            if let Some((told, _)) = followers.get(&engine) {
                told.send_if_modified(|known| {
                    let is_news = **known != *workloads;
                    *known = workloads;
                    is_news
                });
                continue;
            }
            let (tell, told) = watch::channel(workloads);
            let ended = stop.child_token();
            let follower = Follower::new(node.clone(), engine.clone(), told);
            tasks.spawn(follower.run(ended.clone()));
            followers.insert(engine, (tell, ended));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = published.changed() => changed?,
            Some(_) = tasks.join_next() => {}
            _ = tidy.tick() => {
                if let Err(error) = node.end_removed().await {
                    tracing::warn!(%error, "could not give up the places of removed containers");
                }
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Which workload, and which attachment of that name.
type Key = (SubnetId, Name, u64);

fn key(workload: &Pursued) -> Key {
    (workload.subnet, workload.name.clone(), workload.since)
}

/// What came of a look: none where the engine did not answer.
type Looked = (Pursued, Result<Seen, DockerError>);

/// When a workload is to be looked at, and how often it was.
struct Watched {
    due: Option<Instant>,
    in_flight: bool,
    looks: TokenBucket,
}

/// Follows the workloads of one engine.
struct Follower {
    node: Node,
    engine: PathBuf,
    workloads: watch::Receiver<Workloads>,
    events: Events,
    /// Whether the engine tells events now; none before that is known.
    stands: Option<bool>,
    said: Accepting,
    watched: BTreeMap<Key, Watched>,
    looks: FuturesUnordered<BoxFuture<'static, Looked>>,
}

impl Follower {
    fn new(node: Node, engine: PathBuf, workloads: watch::Receiver<Workloads>) -> Follower {
        Follower {
            events: Events::new(&engine, &["container"], &ACTIONS),
            node,
            engine,
            workloads,
            stands: None,
            said: Accepting::default(),
            watched: BTreeMap::new(),
            looks: FuturesUnordered::new(),
        }
    }

    /// Follows until it is stopped, or the node is gone.
    async fn run(mut self, stop: CancellationToken) {
        self.take_workloads();
        loop {
            let next = self.begin_looks();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => future::pending().await,
                }
            };
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.workloads.changed() => match changed {
                    Ok(()) => { self.take_workloads(); Ok(()) }
                    // Its sender is gone: nothing of this engine is followed any more.
                    Err(_) => break,
                },
                Some(looked) = self.looks.next(), if !self.looks.is_empty() => self.looked(looked).await,
                news = self.events.next() => self.heard(news).await,
                () = wait => Ok(()),
            };
            if told.is_err() {
                return;
            }
        }
        // Nobody asks this engine any more: whether it answers is not known.
        drop(self.node.engine_answers(self.engine, true).await);
    }

    /// Workloads that are new here are looked at: something may have happened since they were attached.
    fn take_workloads(&mut self) {
        let workloads = Arc::clone(&self.workloads.borrow_and_update());
        let keys: BTreeSet<Key> = workloads.iter().map(key).collect();
        self.watched.retain(|key, _| keys.contains(key));
        for key in keys {
            self.watched.entry(key).or_insert_with(|| Watched {
                due: Some(Instant::now()),
                in_flight: false,
                looks: TokenBucket::new(OFTEN),
            });
        }
    }

    /// Begins the looks that are due. Gives when the next is.
    fn begin_looks(&mut self) -> Option<Instant> {
        if self.stands != Some(true) {
            return None;
        }
        let now = Instant::now();
        let workloads = Arc::clone(&self.workloads.borrow());
        for workload in workloads.iter() {
            if self.looks.len() >= AT_ONCE {
                return None;
            }
            let Some(watched) = self.watched.get_mut(&key(workload)) else {
                continue;
            };
            if watched.in_flight || watched.due.is_none_or(|due| due > now) {
                continue;
            }
            if !watched.looks.take(now.into_std()) {
                watched.due = Some(now + RETRY);
                continue;
            }
            (watched.due, watched.in_flight) = (None, true);
            let (engine, workload) = (self.engine.clone(), workload.clone());
            self.looks.push(
                async move {
                    let seen = look::look(&engine, &workload).await;
                    (workload, seen)
                }
                .boxed(),
            );
        }
        let waiting = self.watched.values().filter(|w| !w.in_flight);
        waiting.filter_map(|w| w.due).min()
    }

    /// Tells the node what was seen, by this look and by all others that have ended.
    async fn looked(&mut self, first: Looked) -> Result<(), Error> {
        let mut all = vec![first];
        while let Some(Some(more)) = self.looks.next().now_or_never() {
            all.push(more);
        }
        let mut sightings = Vec::new();
        for (workload, seen) in all {
            let watched = self.watched.get_mut(&key(&workload));
            match seen {
                Ok(seen) => {
                    if let Some(watched) = watched {
                        watched.in_flight = false;
                    }
                    sightings.push((workload, seen));
                }
                Err(error) => {
                    tracing::debug!(%error, workload = %workload.name, "the engine told nothing of a container");
                    if let Some(watched) = watched {
                        watched.in_flight = false;
                        watched.due = Some(Instant::now() + RETRY);
                    }
                }
            }
        }
        for workload in self.node.sighted(sightings).await? {
            if let Some(watched) = self.watched.get_mut(&key(&workload)) {
                watched.due = Some(Instant::now() + STALE);
            }
        }
        Ok(())
    }

    async fn heard(&mut self, news: News) -> Result<(), Error> {
        let now = Instant::now();
        match news {
            News::Event(event) => {
                let workloads = Arc::clone(&self.workloads.borrow());
                for workload in workloads.iter().filter(|w| look::concerns(w, &event)) {
                    if let Some(watched) = self.watched.get_mut(&key(workload)) {
                        watched.due = Some(now);
                    }
                }
                Ok(())
            }
            News::Standing => {
                if self.stands == Some(false) {
                    tracing::debug!(engine = %self.engine.display(), "a container engine answers again");
                }
                self.stands = Some(true);
                self.watched.values_mut().for_each(|w| w.due = Some(now));
                self.node.engine_answers(self.engine.clone(), true).await
            }
            News::Gone(error) => {
                if self.said.failed(now.into_std()).1 {
                    tracing::warn!(%error, "a container engine tells nothing of its containers; it is tried again");
                }
                self.stands = Some(false);
                self.node.engine_answers(self.engine.clone(), false).await
            }
        }
    }
}
