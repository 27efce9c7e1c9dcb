//! Requests that members ask each other beside records and sessions: `/byway/service/1`.
//!
//! One request, one typed answer ([`wire::service`](crate::wire::service) has the bytes). A kind is answered by the handler
//! that the [`Router`] names; one that nobody knows is answered, too, so that a later version learns at once whom it talks
//! to. Here are the rules for all of them: a bucket for each peer, bounds on what runs, a deadline, and no second run of
//! one request ([`Inflight`]). What a request means is its handler's; who may be connected at all is `p2p`'s.
//!
//! The [`Inflight`], its [`dedup`] and the [`Router`] are pure: time is an argument. This file runs the handlers, each in a
//! task of its own that [`Service::stop`] waits for.

pub mod dedup;
pub mod inflight;
pub mod router;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::inflight::{Admit, Arrival, Inflight, Pace};
pub use self::router::{KindTaken, Method, Router};
use crate::model::id::{PeerId, SubnetId};
use crate::model::view::View;
use crate::p2p::{AskError, Handle, Protocol};
use crate::wire::service::{MAX_BODY, Refusal, ServiceAnswer, ServiceCode, ServiceRequest};

/// Longest time a handler has: the exchange itself ends after ten seconds.
const MOST_TIME: Duration = Duration::from_millis(9500);
/// How long a sender that does not heed refusals waits for the next one.
const SLOW: Duration = Duration::from_secs(1);
/// Time between two looks for answers that need not be kept any more.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// A request, as its handler gets it.
#[derive(Debug)]
pub struct Call {
    /// The peer that asks: it is at the other end of the connection.
    pub peer: PeerId,
    /// The subnet it is about; both are in it.
    pub subnet: Option<SubnetId>,
    /// The body, which only the handler understands.
    pub body: Vec<u8>,
}

/// A function that answers requests of one kind.
pub type Handler = Box<dyn Fn(Call) -> BoxFuture<'static, Result<Vec<u8>, Refusal>> + Send + Sync>;

/// Takes the answer to one request. Dropped, it tells the peer that there will be none.
pub type Respond = Box<dyn FnOnce(Vec<u8>) + Send>;

/// Why a question to a peer has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It was not carried there, or nothing came back.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The peer refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What came back is no answer to the request.
    #[error("what came back is no answer")]
    Malformed,
}

/// Counts of requests since the start of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Requests by the name of their kind; `unknown` for those of no kind that is known here.
    pub requests: BTreeMap<&'static str, u64>,
    /// Requests that were refused, by code.
    pub refused: BTreeMap<u16, u64>,
    /// How many requests run now.
    pub running: usize,
}

struct Inner {
    router: Router<Handler>,
    view: Arc<ArcSwap<View>>,
    peers: Handle,
    inflight: Mutex<Inflight<Respond>>,
    counts: Mutex<ServiceCounts>,
    tidied: Mutex<Instant>,
    /// The number that the next request gets.
    next: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Serves requests of members, and asks them. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// A request that runs: ends its entry in the books however it ends.
struct Running {
    service: Service,
    peer: PeerId,
    id: u64,
    answered: bool,
}

impl Running {
    fn answer(mut self, result: Result<Vec<u8>, Refusal>) {
        self.answered = true;
        // What cannot be carried was made in vain.
        let result = result.and_then(|body| {
            if body.len() > MAX_BODY {
                Err(ServiceCode::Failed.into())
            } else {
                Ok(body)
            }
        });
        if let Err(refusal) = &result {
            self.service.count_refused(refusal.code);
        }
        let bytes = ServiceAnswer {
            id: self.id,
            result,
        }
        .encode();
        let waiters = self
            .service
            .inflight()
            .finish(self.peer, self.id, &bytes, Instant::now());
        waiters
            .into_iter()
            .for_each(|respond| respond(bytes.clone()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.answered {
            self.service.inflight().abandon(self.peer, self.id);
        }
    }
}

impl Service {
    /// A service of these handlers. `seed` is a random number: ids count from there, so that those of two starts of one
    /// daemon are told apart.
    pub fn new(
        router: Router<Handler>,
        view: Arc<ArcSwap<View>>,
        peers: Handle,
        seed: u64,
    ) -> Service {
        Service(Arc::new(Inner {
            router,
            view,
            peers,
            inflight: Mutex::default(),
            counts: Mutex::default(),
            tidied: Mutex::new(Instant::now()),
            next: AtomicU64::new(seed),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    fn inflight(&self) -> MutexGuard<'_, Inflight<Respond>> {
        self.0.inflight.lock()
    }

    fn count(&self, change: impl FnOnce(&mut ServiceCounts)) {
        change(&mut self.0.counts.lock());
    }

    fn count_refused(&self, code: ServiceCode) {
        self.count(|counts| {
            let refused = counts.refused.entry(code.number()).or_default();
            *refused = refused.saturating_add(1);
        });
    }

    /// The counts since the start of the daemon.
    pub fn counts(&self) -> ServiceCounts {
        let running = self.inflight().running();
        let counts = self.0.counts.lock();
        let mut counts = ServiceCounts {
            running,
            ..counts.clone()
        };
        for (_, name) in self.0.router.names() {
            counts.requests.entry(name).or_default();
        }
        counts
    }

    /// A request that a member has sent. It is answered by `respond` sooner or later, which is dropped where no answer is
    /// possible.
    ///
    /// # Errors
    /// What was wrong with it, for the log, where its sender is at fault.
    pub fn arrived(
        &self,
        peer: PeerId,
        bytes: Vec<u8>,
        respond: Respond,
    ) -> Result<(), &'static str> {
        let now = Instant::now();
        self.tidy(now);
        let Ok(request) = ServiceRequest::parse(bytes) else {
            self.count_refused(ServiceCode::Invalid);
            if self.inflight().malformed(peer, now) == Pace::Slow {
                self.later(move || drop(respond));
            }
            return Err("a malformed request");
        };
        let route = self.0.router.route(request.kind);
        self.count(|counts| {
            let requests = counts
                .requests
                .entry(route.map_or("unknown", |route| route.name))
                .or_default();
            *requests = requests.saturating_add(1);
        });
        let asked = Arrival {
            peer,
            id: request.id,
            kind: request.kind,
            bytes: request.body.len(),
            route: route.map(|route| (route.cost, route.most)),
        };
        let verdict = self.inflight().admit(&asked, respond, now);
        match (verdict, route) {
            (Admit::Run, Some(route)) => self.run(peer, request, route),
            (Admit::Run, None) | (Admit::Waits, _) => {}
            (Admit::Again(respond, answer), _) => respond(answer),
            (Admit::Refused(respond, refusal, pace), _) => {
                return self.refuse(request.id, refusal, pace, respond);
            }
        }
        Ok(())
    }

    /// Refuses a request for which there is no room among what its sender has waiting.
    ///
    /// # Errors
    /// As [`Service::arrived`].
    pub fn crowded(
        &self,
        peer: PeerId,
        bytes: Vec<u8>,
        respond: Respond,
    ) -> Result<(), &'static str> {
        let retry = u32::try_from(SLOW.as_millis()).unwrap_or(u32::MAX);
        let Ok(request) = ServiceRequest::parse(bytes) else {
            return Err("a malformed request");
        };
        let verdict = self
            .inflight()
            .slow_down(peer, respond, retry, Instant::now());
        match verdict {
            Admit::Refused(respond, refusal, pace) => {
                self.refuse(request.id, refusal, pace, respond)
            }
            _ => Ok(()),
        }
    }

    fn refuse(
        &self,
        id: u64,
        refusal: Refusal,
        pace: Pace,
        respond: Respond,
    ) -> Result<(), &'static str> {
        self.count_refused(refusal.code);
        let answer = ServiceAnswer {
            id,
            result: Err(refusal),
        }
        .encode();
        match pace {
            Pace::Now => respond(answer),
            Pace::Slow => self.later(move || respond(answer)),
        }
        if refusal.code == ServiceCode::SlowDown {
            Err("too many service requests from a member")
        } else {
            Ok(())
        }
    }

    /// Does something after [`SLOW`]. As many wait as a peer's connections carry requests.
    fn later(&self, act: impl FnOnce() + Send + 'static) {
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(SLOW) => act(),
            }
        });
    }

    fn run(&self, peer: PeerId, request: ServiceRequest, route: &Method<Handler>) {
        let ServiceRequest {
            id,
            subnet,
            deadline_ms,
            body,
            ..
        } = request;
        let running = Running {
            service: self.clone(),
            peer,
            id,
            answered: false,
        };
        if subnet.is_some_and(|subnet| !self.0.view.load().in_roll(subnet, peer)) {
            return running.answer(Err(ServiceCode::NotPermitted.into()));
        }
        let time = Duration::from_millis(u64::from(deadline_ms)).min(MOST_TIME);
        let answer = tokio::time::timeout(time, (route.handler)(Call { peer, subnet, body }));
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => drop(running),
                result = answer => running.answer(result.unwrap_or(Err(ServiceCode::Timeout.into()))),
            }
        });
    }

    fn tidy(&self, now: Instant) {
        let mut tidied = self.0.tidied.lock();
        if now.saturating_duration_since(*tidied) >= TIDY_EVERY {
            *tidied = now;
            self.inflight().tidy(now);
        }
    }

    /// Asks a member, and waits for the answer. A peer that is not connected is dialled.
    ///
    /// # Errors
    /// [`Unanswered`].
    ///
    /// # Cancel safety
    /// Dropped before it is done, the request may have been sent all the same.
    pub async fn ask(
        &self,
        peer: PeerId,
        kind: u16,
        subnet: Option<SubnetId>,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, Unanswered> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = ServiceRequest {
            kind,
            id,
            subnet,
            deadline_ms,
            body,
        };
        let bytes = self
            .0
            .peers
            .ask(peer, Protocol::Service, request.encode(), timeout)
            .await?;
        let answer = ServiceAnswer::parse(bytes).map_err(|_| Unanswered::Malformed)?;
        if answer.id != id {
            return Err(Unanswered::Malformed);
        }
        Ok(answer.result?)
    }

    /// Ends every handler, and waits until all have.
    ///
    /// # Cancel safety
    /// Dropped before it is done, they end all the same.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
