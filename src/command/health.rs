//! Asks workloads whether they are well, and tells the node what became of them.
//!
//! Each question has a task of its own, so one that hangs holds nothing. What is found is told once in [`PAUSE`] at most,
//! so that many workloads which fail at one moment are one change of what the others hear.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Commands, kernel};
use crate::api::types::{Error, ErrorKind, HealthCheck, HealthProbe, Request, Response};
use crate::host::health;
use crate::model::error::Code;
use crate::model::health::{Check, Checks, Health, Probe, Subject, Turn};
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
        probe: HealthProbe::Exec(_),
        ..
    }) = check
    {
        let message = "this version runs no command to ask a workload";
        return Err(Error::new(ErrorKind::Usage, Code::Health, message)
            .hint("workload health WORKLOAD tcp PORT, or http URL"));
    }
    kernel::recorded(ctx, ctx.node.set_health(workload, subnet, check)).await
}

/// Asks one workload.
async fn ask(subject: &Subject, check: &Check, asked: &Examined) -> Result<(), String> {
    let limit = Duration::from_millis(check.timeout());
    let answer = async {
        match &check.probe {
            Probe::Tcp(port) => health::tcp(&asked.addresses, *port).await,
            Probe::Http { port, path } => {
                health::http(&asked.addresses, *port, subject.1.as_str(), path).await
            }
            Probe::Exec(_) => Err("this version runs no command".to_owned()),
        }
    };
    match tokio::time::timeout(limit, answer).await {
        Ok(answered) => answered,
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// What came of a question: why the workload is not well.
type Answered = (Subject, Result<(), String>);

struct Asking {
    node: Node,
    checks: Checks,
    wanted: BTreeMap<Subject, Examined>,
    start: Instant,
    running: JoinSet<Answered>,
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
        Ok(())
    }

    /// Begins the questions that are due. Gives when the next one is.
    fn begin(&mut self) -> Option<Instant> {
        let now = self.now();
        for (subject, check) in self.checks.due(now) {
            match self.wanted.get(&subject).cloned() {
                Some(asked) => drop(self.running.spawn(async move {
                    let answered = ask(&subject, &check, &asked).await;
                    (subject, answered)
                })),
                None => self.checks.unasked(&subject),
            }
        }
        let next = self.checks.next()?;
        Some(self.start + Duration::from_millis(next))
    }

    fn answered(&mut self, (subject, answered): Answered) {
        let now = self.now();
        let Some(turn) = self.checks.answered(&subject, answered.is_ok(), now) else {
            return;
        };
        let why = answered.err().unwrap_or_default();
        match turn {
            Turn::Begun => {}
            Turn::Healthy => tracing::info!(workload = %subject.1, "the workload is well again"),
            Turn::Unhealthy => {
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
