//! The loop that makes the kernel follow the desired state: on a new one, on an event of the kernel, and on a slow tick.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Applied, Failure, Host, failure};
use crate::backoff::Backoff;
use crate::limit::{Limit, TokenBucket};
use crate::model::host::{
    Change, Finding, HostConfig, Moved, Namespace, NetnsRef, Observed, Part, Server, findings,
    former_servers, plan, sysctl_keys,
};
use crate::model::id::{Name, SubnetId};

/// Between a kernel event and the look at the kernel: events come in swarms.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Longest wait after an event when passes go on failing.
const SLOWEST: Duration = Duration::from_secs(2);
/// Between two looks at a quiet kernel.
const TICK: Duration = Duration::from_secs(10);
/// For removing everything at the end: with what comes before and after it, a stop takes less than five seconds.
const STOP: Duration = Duration::from_millis(3800);

/// Changes that one line of the log names.
const LISTED: usize = 5;
/// Characters of each of them: it may name a path.
const LONGEST: usize = 200;

/// Why a pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Desired,
    Kernel,
    Tick,
}

/// Follows `desired` until `stop`, then removes everything (four seconds at most) but TAPs that a guest has open, which are
/// set down.
///
/// The number beside the desired state is its generation; 0 means that nothing is known yet, and nothing is touched
/// until a higher one comes: what an earlier run left behind and is still wanted stays in use. `applied` hears of each
/// generation when the kernel was made to follow it, and again whenever failures, findings or dead workloads change.
///
/// What fails meanwhile is in [`Applied`]; what could not be removed at the end is given back.
pub async fn run<H: Host>(
    mut host: H,
    mut desired: watch::Receiver<(u64, Arc<HostConfig>)>,
    applied: watch::Sender<Applied>,
    stop: CancellationToken,
) -> Vec<Failure> {
    let mut failed_passes = 0u32;
    let (mut last, mut repairs) = (Last::default(), Repairs::default());
    let mut seen: Option<Seen> = None;
    let mut tick = Instant::now() + TICK;
    let mut cause = Some(Cause::Desired);
    loop {
        if let Some(cause) = cause.take() {
            let (generation, config) = desired.borrow_and_update().clone();
            let is_there = cause == Cause::Desired
                && seen
                    .as_ref()
                    .is_some_and(|seen| Arc::ptr_eq(&seen.config, &config));
            if is_there {
                // The same is wanted as stands already.
                applied.send_if_modified(|last| {
                    std::mem::replace(&mut last.generation, generation) != generation
                });
            } else if generation > 0 {
                let former = seen.take().filter(|_| cause == Cause::Desired);
                let mut outcome = tokio::select! {
                    outcome = pass(&mut host, &config, former) => outcome,
                    // A pass that hangs must not outlive the daemon: what it began, the last one ends.
                    () = late(&stop) => break,
                };
                failed_passes = if outcome.failures.is_empty() {
                    0
                } else {
                    failed_passes.saturating_add(1)
                };
                repairs.log(cause, generation, &outcome, &last);
                if outcome.is_seen {
                    last = Last::of(generation, &outcome);
                }
                seen = outcome.seen(&config);
                publish(&applied, generation, outcome);
            }
            tick = Instant::now() + TICK;
        }
        cause = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = desired.changed() => match changed {
                Ok(()) => Some(Cause::Desired),
                Err(_) => break,
            },
            () = host.changed() => {
                seen = None;
                settle(&stop, &mut desired, failed_passes).await;
                Some(Cause::Kernel)
            }
            () = tokio::time::sleep_until(tick) => Some(Cause::Tick),
        };
    }
    let last = desired.borrow().1.at_rest();
    finish(&mut host, &last).await
}

/// Waits for the swarm of events to pass, longer while the kernel refuses what is wanted; a new desired state ends the
/// wait.
async fn settle(
    stop: &CancellationToken,
    desired: &mut watch::Receiver<(u64, Arc<HostConfig>)>,
    failed_passes: u32,
) {
    let wait = Backoff::new(DEBOUNCE, SLOWEST).pause(failed_passes);
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = stop.cancelled() => {}
        _ = desired.changed() => {}
    }
}

/// Half a second after the stop.
async fn late(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// What a pass saw that had nothing to change and changed nothing, with what was wanted then. The kernel tells of what
/// changes, so until it does, who adds or removes a port map need not wait for a look at every link and workload.
struct Seen {
    config: Arc<HostConfig>,
    observed: Observed,
}

impl Seen {
    /// What was seen, where it says that `config` needs no change either.
    fn for_maps_of(self, config: &HostConfig) -> Option<Observed> {
        let Seen {
            config: before,
            observed,
        } = self;
        let same = config.is_same_but_for_maps(&before)
            // What was not wanted was not looked at.
            && sysctl_keys(config, &observed) == sysctl_keys(&before, &observed);
        same.then_some(observed)
    }
}

/// What one pass came to.
#[derive(Default)]
struct Outcome {
    /// What it saw, where there was nothing to change.
    observed: Option<Observed>,
    /// Whether the kernel's state could be read; otherwise nothing was done.
    is_seen: bool,
    changes: Vec<String>,
    failures: Vec<Failure>,
    findings: Vec<Finding>,
    taken: Vec<String>,
    former_servers: BTreeMap<PathBuf, Vec<Server>>,
    dead: Vec<(SubnetId, Name, NetnsRef)>,
    moved: Vec<Moved>,
}

impl Outcome {
    /// What the next pass may rely on.
    fn seen(&mut self, config: &Arc<HostConfig>) -> Option<Seen> {
        let observed = self.observed.take()?;
        let config = Arc::clone(config);
        self.failures
            .is_empty()
            .then_some(Seen { config, observed })
    }
}

/// Looks at the kernel and makes it follow. Without a look where only port maps are wanted otherwise than in the `former`
/// pass.
async fn pass<H: Host>(host: &mut H, config: &HostConfig, former: Option<Seen>) -> Outcome {
    if let Some(observed) = former.and_then(|seen| seen.for_maps_of(config))
        && plan(&wanted(config, &observed), &observed).is_empty()
    {
        return act(host, config, observed).await;
    }
    match host.observe(config).await {
        Ok(observed) => act(host, config, observed).await,
        Err(error) => {
            let failures = vec![failure("read the kernel's state", format!("{error:#}"))];
            Outcome {
                failures,
                ..Outcome::default()
            }
        }
    }
}

/// What is wanted, with the networks that the machine is in.
fn wanted<'a>(config: &'a HostConfig, observed: &Observed) -> Cow<'a, HostConfig> {
    if observed.connected == config.connected {
        return Cow::Borrowed(config);
    }
    Cow::Owned(HostConfig {
        connected: observed.connected.clone(),
        ..config.clone()
    })
}

async fn act<H: Host>(host: &mut H, config: &HostConfig, observed: Observed) -> Outcome {
    let config = &*wanted(config, &observed);
    let changes = plan(config, &observed);
    let is_settled = changes.is_empty() && observed.moved.is_empty();
    let names = changes.iter().map(Change::to_string).collect();
    let findings = findings(config, &observed);
    let conflict = |change: &Change| match change {
        Change::Conflict {
            ns: Namespace::Host,
            link,
        } => Some(link.clone()),
        _ => None,
    };
    let taken = changes.iter().filter_map(conflict).collect();
    let mut failures = unreadable(config, &observed);
    failures.extend(host.apply(config, &observed, changes).await);
    let dead = config
        .workloads
        .iter()
        .filter(|w| observed.dead.contains(&(w.subnet, w.name.clone())));
    let dead = dead
        .filter_map(|w| Some((w.subnet, w.name.clone(), w.netns.clone()?)))
        .collect();
    let former_servers = former_servers(config, &observed);
    Outcome {
        moved: observed.moved.clone(),
        observed: is_settled.then_some(observed),
        is_seen: true,
        changes: names,
        failures,
        findings,
        taken,
        former_servers,
        dead,
    }
}

fn unreadable(config: &HostConfig, observed: &Observed) -> Vec<Failure> {
    let why = "it cannot be read; its workloads stay as they are";
    let one = |netns: &NetnsRef| {
        let here = config
            .workloads
            .iter()
            .filter(|w| w.netns.as_ref() == Some(netns));
        failure(format!("configure {}", netns.path.display()), why).of(here.map(Part::from))
    };
    observed.unreadable.iter().map(one).collect()
}

/// What the last pass that saw the kernel was for, and what it could not do.
#[derive(Default)]
struct Last {
    generation: u64,
    failed: BTreeSet<String>,
}

impl Last {
    fn of(generation: u64, outcome: &Outcome) -> Last {
        let failed = outcome.failures.iter().map(|failure| failure.what.clone());
        Last {
            generation,
            failed: failed.collect(),
        }
    }
}

/// Lines about repairs: twenty at once, then one in ten seconds. A workload that changes its own link all the time has it
/// repaired each time, and does not fill the log by that.
const REPAIRS: Limit = Limit::new(20 * REPAIR, 1);
/// What one of them costs.
const REPAIR: u64 = 10;

/// What the log says of repairs.
struct Repairs {
    bucket: TokenBucket,
    /// Repairs since the last line.
    unsaid: usize,
}

impl Default for Repairs {
    fn default() -> Repairs {
        Repairs {
            bucket: TokenBucket::new(REPAIRS),
            unsaid: 0,
        }
    }
}

impl Repairs {
    /// A repair is news; following the desired state is not. A new desired state may come while the loop waits for events
    /// of the kernel to settle, so what counts is whether the state was followed before, not what woke the loop. What
    /// failed the last time is only tried again.
    fn log(&mut self, cause: Cause, generation: u64, outcome: &Outcome, last: &Last) {
        let again = |change: &&String| last.failed.contains(*change);
        let repaired: Vec<&String> = outcome
            .changes
            .iter()
            .filter(|change| last.generation == generation && !again(change))
            .collect();
        if !repaired.is_empty() {
            self.say(cause, generation, &repaired, Instant::now().into_std());
        } else if !outcome.changes.is_empty() {
            tracing::debug!(
                generation,
                changes = outcome.changes.len(),
                "kernel state follows"
            );
        }
    }

    fn say(
        &mut self,
        cause: Cause,
        generation: u64,
        repaired: &[&String],
        now: std::time::Instant,
    ) -> bool {
        if self.bucket.take_most(now, REPAIR, 1) == 0 {
            self.unsaid += 1;
            return false;
        }
        let unsaid = std::mem::take(&mut self.unsaid);
        tracing::info!(
            ?cause,
            generation,
            changes = few(repaired),
            unsaid,
            "kernel state repaired"
        );
        true
    }
}

/// The first changes, and how many more there are: the rest is logged one by one at level debug.
fn few(changes: &[&String]) -> String {
    let mut text = String::new();
    for (n, change) in changes.iter().enumerate() {
        if n == LISTED {
            text += &format!(" and {} more", changes.len() - n);
            break;
        }
        if n > 0 {
            text += ", ";
        }
        text.extend(change.chars().take(LONGEST));
    }
    text
}

fn publish(applied: &watch::Sender<Applied>, generation: u64, outcome: Outcome) {
    let Outcome {
        failures,
        findings,
        taken,
        former_servers,
        dead,
        moved,
        ..
    } = outcome;
    let next = Applied {
        generation,
        failures,
        findings,
        taken,
        former_servers,
        dead_workloads: dead,
        moved,
    };
    applied.send_if_modified(|last| {
        if *last == next {
            return false;
        }
        for failure in next.failures.iter().filter(|f| !last.failures.contains(f)) {
            tracing::warn!(what = failure.what, why = failure.why, "kernel refused");
        }
        for finding in next.findings.iter().filter(|f| !last.findings.contains(f)) {
            tracing::warn!("{finding}");
        }
        *last = next;
        true
    });
}

/// Applies the state of a daemon that has stopped; gives what is left.
async fn finish<H: Host>(host: &mut H, last: &HostConfig) -> Vec<Failure> {
    host.end_by((Instant::now() + STOP).into_std());
    match tokio::time::timeout(STOP, pass(host, last, None)).await {
        Ok(outcome) => outcome.failures,
        Err(_) => vec![failure(
            "remove everything",
            "the kernel did not let go in time",
        )],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A kernel that has what is wanted, and counts how often it is brought in line.
    struct Counting(Arc<AtomicUsize>);

    impl Host for Counting {
        async fn observe(&mut self, _: &HostConfig) -> anyhow::Result<Observed> {
            Ok(Observed::default())
        }

        async fn apply(&mut self, _: &HostConfig, _: &Observed, _: Vec<Change>) -> Vec<Failure> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Vec::new()
        }

        async fn changed(&mut self) {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn what_stands_already_is_applied_without_a_pass() {
        let (passes, config) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(HostConfig::default()),
        );
        let (desired, wanted) = watch::channel((1, Arc::clone(&config)));
        let (told, mut applied) = watch::channel(Applied::default());
        let stop = CancellationToken::new();
        let host = Counting(Arc::clone(&passes));
        let running = tokio::spawn(run(host, wanted, told, stop.clone()));
        applied.wait_for(|a| a.generation == 1).await.unwrap();
        assert_eq!(passes.load(Ordering::Relaxed), 1);

        desired.send_replace((2, Arc::clone(&config)));
        applied.wait_for(|a| a.generation == 2).await.unwrap();
        assert_eq!(passes.load(Ordering::Relaxed), 1, "the same is wanted");

        desired.send_replace((3, Arc::new(HostConfig::default())));
        applied.wait_for(|a| a.generation == 3).await.unwrap();
        assert_eq!(
            passes.load(Ordering::Relaxed),
            2,
            "who knows what another one wants"
        );
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn who_has_its_link_repaired_all_the_time_does_not_fill_the_log() {
        let (mut repairs, start) = (Repairs::default(), Instant::now().into_std());
        let change = "address of web".to_owned();
        let mut said = 0;
        // Ten repairs a second for a minute.
        for n in 0..600 {
            let now = start + Duration::from_millis(100 * n);
            said += u32::from(repairs.say(Cause::Kernel, 1, &[&change], now));
        }
        assert_eq!(said, 25, "twenty at once, and one in ten seconds");
        assert!(repairs.unsaid > 0, "those in between are counted");
        let later = start + Duration::from_secs(100);
        assert!(repairs.say(Cause::Kernel, 1, &[&change], later));
        assert_eq!(repairs.unsaid, 0);
    }
}
