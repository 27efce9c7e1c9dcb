//! Asks workloads whether they are well, and tells the node what became of them.
//!
//! Each question has a task of its own, so one that hangs holds nothing. What is found is told once in [`PAUSE`] at most,
//! so that many workloads which fail at one moment are one change of what the others hear.

mod exec;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Commands, kernel};
use crate::api::types::{Error, HealthCheck, HealthProbe, Request, Response};
use crate::helper::Former;
use crate::host::health;
use crate::model::health::{COMMANDS_AT_ONCE, Check, Checks, Health, Probe, Subject, Turn};
use crate::node::{Examined, Node};

/// Between two times that the node is told of.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers `workload health`.
pub(super) async fn set(ctx: &Commands, request: Request) -> Result<Response, Error> {
    let Request::WorkloadHealth {
        workload,
        subnet,
        check,
    } = request
    else {
        return Err(super::unknown());
    };
    if let Some(HealthCheck {
        probe: HealthProbe::Exec(words),
        ..
    }) = &check
    {
        exec::check(ctx, workload.clone(), subnet.clone(), words).await?;
    }
    kernel::recorded(ctx, ctx.node.set_health(workload, subnet, check)).await
}

/// What came of a question.
enum Answer {
    Well,
    /// Why not, in words.
    Ill(String),
    /// It could not be put to the workload: why, in words. Nothing is known then.
    Unknown(String),
}

/// Asks one workload. `former` is what is known of the command that it was asked by before.
async fn ask(
    subject: &Subject,
    check: &Check,
    asked: &Examined,
    former: Former,
) -> (Answer, Former) {
    let limit = Duration::from_millis(check.timeout());
    let within =
        async |answer: BoxFuture<'_, Result<(), String>>| match tokio::time::timeout(limit, answer)
            .await
        {
            Ok(Ok(())) => Answer::Well,
            Ok(Err(why)) => Answer::Ill(why),
            Err(_) => Answer::Ill(format!("no answer within {} ms", limit.as_millis())),
        };
    let at = &asked.addresses;
    let answer = match &check.probe {
        Probe::Tcp(port) => within(health::tcp(at, *port).boxed()).await,
        Probe::Http { port, path } => {
            within(health::http(at, *port, subject.1.as_str(), path).boxed()).await
        }
        // The engine is waited for beside the command, so whoever runs it keeps to the limit.
        Probe::Exec(words) => return exec::ask(&asked.runner, words, limit, former).await,
    };
    (answer, former)
}

/// What came of a question to a workload, and what is known of its command.
type Answered = (Subject, Answer, Former);

struct Asking {
    node: Node,
    checks: Checks,
    wanted: BTreeMap<Subject, Examined>,
    start: Instant,
    running: JoinSet<Answered>,
    /// What is known of the commands that workloads were asked by; nothing of those that are missing.
    formers: BTreeMap<Subject, Former>,
    /// Commands that may run at the same time. [`Checks`] begins no more, and forgets those of workloads that are gone:
    /// what still runs of these is waited for.
    commands: Arc<Semaphore>,
    /// Workloads of which the node was told why they are unhealthy. It forgets that when it ends, and keeps that they are.
    reasoned: BTreeSet<Subject>,
    /// What the node is to be told.
    turns: Vec<(Subject, Turn, String)>,
}

impl Asking {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn follow(&mut self) -> Result<(), Error> {
        self.wanted = self.node.asked().await?;
        let all: BTreeMap<Subject, Health> = self
            .wanted
            .iter()
            .map(|(subject, asked)| (subject.clone(), asked.health.clone()))
            .collect();
        let now = self.now();
        self.checks.follow(all, now);
        let wanted = &self.wanted;
        self.formers
            .retain(|subject, _| wanted.contains_key(subject));
        self.reasoned.retain(|subject| wanted.contains_key(subject));
        Ok(())
    }

    /// Begins the questions that are due. Gives when the next one is.
    fn begin(&mut self) -> Option<Instant> {
        let now = self.now();
        for (subject, check) in self.checks.due(now) {
            match self.wanted.get(&subject).cloned() {
                Some(asked) => {
                    let former = self.formers.get(&subject).cloned();
                    let former = former.unwrap_or(Former::Unknown);
                    let commands = Arc::clone(&self.commands);
                    self.running.spawn(async move {
                        let _turn = match check.probe {
                            Probe::Exec(_) => commands.acquire_owned().await.ok(),
                            _ => None,
                        };
                        let (answer, former) = ask(&subject, &check, &asked, former).await;
                        (subject, answer, former)
                    });
                }
                None => self.checks.unasked(&subject),
            }
        }
        let next = self.checks.next()?;
        Some(self.start + Duration::from_millis(next))
    }

    fn answered(&mut self, (subject, answer, former): Answered) {
        let now = self.now();
        if self.wanted.contains_key(&subject) {
            self.formers.insert(subject.clone(), former);
        }
        let (well, why) = match answer {
            Answer::Well => (true, String::new()),
            Answer::Ill(why) => (false, why),
            Answer::Unknown(why) => {
                tracing::debug!(workload = %subject.1, why, "the workload could not be asked");
                self.checks.unasked(&subject);
                return;
            }
        };
        let turn = self.checks.answered(&subject, well, now);
        let is_unhealthy = |asked: &Examined| asked.health.unhealthy.is_some();
        let unreasoned = !well
            && self.wanted.get(&subject).is_some_and(is_unhealthy)
            && !self.reasoned.contains(&subject);
        let Some(turn) = turn.or(unreasoned.then_some(Turn::Unhealthy)) else {
            return;
        };
        match turn {
            Turn::Begun => {}
            Turn::Healthy => tracing::info!(workload = %subject.1, "the workload is well again"),
            Turn::Unhealthy => {
                self.reasoned.insert(subject.clone());
                tracing::warn!(workload = %subject.1, why, "the workload is unhealthy");
            }
        }
        self.turns.push((subject, turn, why));
    }

    /// Tells the node what was found. What could not be saved is asked anew: the node still has it as it was.
    async fn tell(&mut self) {
        let turns = std::mem::take(&mut self.turns);
        if let Err(error) = self.node.judged(turns).await {
            tracing::warn!(%error, "could not save how workloads are");
        }
    }
}

/// Asks the workloads of `node` until it is stopped.
///
/// # Errors
/// When the node is gone.
pub(crate) async fn run(node: Node, stop: CancellationToken) -> anyhow::Result<()> {
    let mut published = node.published();
    let mut asking = Asking {
        node,
        checks: Checks::default(),
        wanted: BTreeMap::new(),
        start: Instant::now(),
        running: JoinSet::new(),
        formers: BTreeMap::new(),
        reasoned: BTreeSet::new(),
        commands: Arc::new(Semaphore::new(COMMANDS_AT_ONCE)),
        turns: Vec::new(),
    };
    let mut told = Instant::now();
    published.mark_changed();
    loop {
        let next = asking.begin();
        let due = next
            .into_iter()
            .chain((!asking.turns.is_empty()).then_some(told + PAUSE));
        let due = due.min();
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = published.changed() => {
                changed?;
                asking.follow().await?;
            }
            Some(answered) = asking.running.join_next() => {
                if let Ok(answered) = answered {
                    asking.answered(answered);
                }
            }
            () = sleep => {}
        }
        if !asking.turns.is_empty() && told.elapsed() >= PAUSE {
            told = Instant::now();
            asking.tell().await;
        }
    }
}
