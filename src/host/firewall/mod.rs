//! Firewalls of others on this machine: our rules in the places they leave to others, and who still stops our packets.
//!
//! Owns what of ours is outside our own table, and nothing else there: rules in `DOCKER-USER` and of ufw that bear our
//! mark, our links in a zone of firewalld. All of it is in a journal on disk before it is made ([`journal`]). It is made
//! again at once when somebody flushes it: the kernel tells of changes of nftables ([`Watcher`](super::nft::Watcher)), the
//! tables of before are looked at every few seconds.
//!
//! Whether anybody stops our packets is never read from their settings: probes of our own tell ([`probe`]). Only when one
//! is lost are the chains of others looked at ([`chains`]), to say which tool has to be told what.
//!
//! The zone of firewalld is `byway` where the administrator made one, else `trusted`: zones cannot be made at run time,
//! and `trusted` opens nothing, because our own table judges what comes in and goes out on our links.

mod chains;
mod clients;
mod culprit;
mod firewalld;
mod journal;
mod probe;
mod tables;
mod ufw;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify, watch};

use super::nft::run::OwnRuns;
use super::{InjectTun, Rules, failure};
use crate::model::host::firewalls::{self, Hook, Integrate, Obstacle, Stopped};
use crate::model::host::{Failure, HostConfig};
use crate::model::unwritten::Unwritten;
use chains::Chain;
use clients::Clients;
use journal::Journal;

/// Time between two looks while nothing is stopped.
const QUIET: Duration = Duration::from_secs(10);
/// The same while something is, or may be.
const ALERT: Duration = Duration::from_secs(2);
/// Time between an event and what is done about it: until then nobody comes through.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Least time between two times that our share is tended, for events come in swarms; and four times what the last took,
/// as far as [`LEAST`], so that who changes his rules all the time has little of the processor by us.
const REST: Duration = Duration::from_millis(200);
/// Rounds of probes of one look, as long as rules of ours turn out to have been missing.
const TRIES: usize = 3;
/// Time between two looks at places of which the kernel tells every change: what it told may have been lost.
const SELDOM: Duration = Duration::from_secs(60);
/// Least time between two looks at who stops us, which cost more and are less urgent.
const LEAST: Duration = Duration::from_secs(1);

/// What our own table needs of a stop.
const TABLE_GOES: Duration = Duration::from_millis(400);
/// What one call of another firewall's program may take on a busy machine.
const SLOW_PROGRAM: Duration = Duration::from_millis(900);

/// Our share of the firewalls of others.
#[derive(Debug)]
pub(super) struct Firewalls {
    instance: String,
    integrate: Integrate,
    journal: Journal,
    own: Arc<OwnRuns>,
    /// The links that have their place everywhere, as far as is known.
    followed: Option<BTreeSet<String>>,
    /// Something of ours was missing and was made since this was last taken: who came before may have been stopped.
    made: bool,
    /// Until when a slow program may still be started: at a stop the time is short.
    pub(super) start_until: Option<Instant>,
    /// Whether it was said that ufw takes nothing from this process.
    ufw_refuses: bool,
}

impl Firewalls {
    pub(super) fn new(
        instance: &str,
        integrate: Integrate,
        state_dir: &Path,
        own: Arc<OwnRuns>,
    ) -> Firewalls {
        let journal = Journal::open(state_dir);
        Firewalls {
            instance: instance.to_owned(),
            integrate,
            journal,
            own,
            followed: None,
            start_until: None,
            ufw_refuses: false,
            made: false,
        }
    }

    /// Tells whether what is owed could be written down.
    pub(super) fn telling(mut self, told: watch::Sender<Unwritten>) -> Firewalls {
        self.journal.telling(told);
        self
    }

    /// Refuses to start another program when the time is over: one that is killed half way may leave rules that it does not
    /// know any more, and what stays is in the journal.
    fn in_time(&self) -> Result<(), String> {
        match self.start_until {
            Some(until) if Instant::now() >= until => Err("there was no time left".to_owned()),
            _ => Ok(()),
        }
    }

    /// Gives every link of ours its place, if they are not those of the last time.
    async fn follow(&mut self, links: BTreeSet<String>) -> Vec<Failure> {
        // With nothing to note it is tried whether what could not be noted could be now: that is told.
        let _ = self.journal.change(|_| ());
        if self.followed.as_ref() == Some(&links) {
            return Vec::new();
        }
        self.repair(links).await
    }

    /// Gives every link its place, wherever it is missing, and takes away what is not wanted any more.
    async fn repair(&mut self, links: BTreeSet<String>) -> Vec<Failure> {
        self.followed = None;
        let none = BTreeSet::new();
        let wanted = |switch: bool| if switch { &links } else { &none };
        let Integrate {
            docker,
            firewalld,
            ufw,
        } = self.integrate;
        // Nothing wanted, nothing owed: nobody is asked anything.
        if (links.is_empty() || self.integrate == Integrate::NONE) && self.journal.is_empty() {
            self.followed = Some(links);
            return Vec::new();
        }
        let chains = match chains::list(&self.own).await {
            Ok(chains) => chains,
            Err(error) => return vec![failure("look at the firewalls of others", error)],
        };
        let mut failures = tables::follow(self, &chains, wanted(docker)).await;
        failures.extend(firewalld::follow(self, &chains, wanted(firewalld)).await);
        failures.extend(ufw::follow(self, &chains, wanted(ufw)).await);
        if failures.is_empty() {
            self.followed = Some(links);
        }
        failures
    }
}

/// Rules in the firewalls of others follow our links. At a stop their programs, which take half a second each, get what time
/// there is but for that of our own table, which goes after them.
pub(super) async fn follow(
    firewalls: Arc<Mutex<Firewalls>>,
    end: Option<Instant>,
    links: BTreeSet<String>,
) -> Vec<Failure> {
    let until = end.and_then(|end| end.checked_sub(TABLE_GOES));
    let follow = async {
        let mut firewalls = firewalls.lock().await;
        firewalls.start_until = until.and_then(|until| until.checked_sub(SLOW_PROGRAM));
        firewalls.follow(links).await
    };
    let Some(until) = until else {
        return follow.await;
    };
    let late = || {
        vec![failure(
            "take our links out of the firewalls of others",
            "there was no time left",
        )]
    };
    tokio::time::timeout_at(until.into(), follow)
        .await
        .unwrap_or_else(|_| late())
}

/// Removes what a daemon that is gone left in the firewalls of others; of every daemon where `instance` is none. What was
/// removed, in words, and what was not.
pub(super) async fn cleanup(
    instance: Option<&str>,
    state_dir: &Path,
) -> (Vec<String>, Vec<Failure>) {
    let own = Arc::new(OwnRuns::default());
    let chains = chains::list(&own).await.unwrap_or_default();
    let (mut done, mut failures) = tables::cleanup(instance, &chains, &own).await;
    let mut firewalls = Firewalls::new(
        instance.unwrap_or_default(),
        Integrate::NONE,
        state_dir,
        own,
    );
    let nothing = BTreeSet::new();
    let owed = firewalls.journal.words();
    failures.extend(firewalld::follow(&mut firewalls, &chains, &nothing).await);
    failures.extend(ufw::follow(&mut firewalls, &chains, &nothing).await);
    let left = firewalls.journal.words();
    done.extend(owed.into_iter().filter(|words| !left.contains(words)));
    if let Err(error) = firewalls.journal.change(|data| data.docker.clear()) {
        failures.push(failure(
            "forget the rules in other firewalls",
            format!("{error:#}"),
        ));
    }
    (done, failures)
}

/// Looks after our share and tells who stops our packets.
pub(super) struct Watch {
    pub firewalls: Arc<Mutex<Firewalls>>,
    pub rules: Rules,
    pub desired: watch::Receiver<Arc<HostConfig>>,
    pub obstacles: watch::Sender<Vec<Obstacle>>,
    pub theirs: Arc<Notify>,
    pub inject: InjectTun,
    pub own: Arc<OwnRuns>,
    pub table: String,
}

impl Watch {
    /// Runs until dropped.
    pub(super) async fn run(self) {
        let tended = Notify::new();
        tokio::select! {
            () = self.tend(&tended) => {}
            () = self.tell(&tended) => {}
        }
    }

    /// Keeps our share where others may flush it again and again: nobody's probe is waited for.
    async fn tend(&self, tended: &Notify) {
        let mut desired = self.desired.clone();
        let mut found = self.obstacles.subscribe();
        let mut last = Instant::now();
        loop {
            let quiet = self.obstacles.borrow().is_empty();
            let told = tokio::select! {
                () = self.theirs.notified() => true,
                changed = desired.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                // From now on it is looked more often, or less.
                Ok(()) = found.changed() => false,
                () = tokio::time::sleep(if quiet { QUIET } else { ALERT }) => false,
            };
            tokio::time::sleep(DEBOUNCE).await;
            let start = Instant::now();
            desired.mark_unchanged();
            // Of the tables of before nftables nobody tells anything.
            let untold = !quiet || last.elapsed() >= SELDOM || tables::is_legacy_used().await;
            if told || untold || self.firewalls.lock().await.followed.is_none() {
                self.repair(&desired).await;
                last = Instant::now();
            }
            tended.notify_one();
            tokio::time::sleep(start.elapsed().saturating_mul(4).clamp(REST, LEAST)).await;
        }
    }

    /// Tells who stops our packets, each time our share was tended.
    async fn tell(&self, tended: &Notify) {
        let mut wanted = self.desired.clone();
        let mut clients = Clients::default();
        loop {
            let waiting = clients.wait_for_answers();
            tokio::select! {
                () = tended.notified() => {}
                () = tokio::time::sleep(ALERT), if waiting => {}
            }
            wanted.mark_unchanged();
            let found = self.look(&wanted, &mut clients).await;
            self.obstacles.send_if_modified(|last| {
                if *last == found {
                    return false;
                }
                for finding in found.iter().filter(|f| !last.contains(f)) {
                    tracing::warn!(remedy = finding.remedy, "{}", finding.message);
                }
                if found.is_empty() {
                    tracing::info!("nobody stops what is forwarded or asked here any more");
                }
                *last = found;
                true
            });
            tokio::time::sleep(LEAST).await;
        }
    }

    async fn look(
        &self,
        wanted: &watch::Receiver<Arc<HostConfig>>,
        clients: &mut Clients,
    ) -> Vec<Obstacle> {
        let desired = &*Arc::clone(&wanted.borrow());
        if desired.tuns.is_empty() {
            return Vec::new();
        }
        let mut made = self.made().await;
        let mut stopped = Vec::new();
        for _ in 0..TRIES {
            stopped = probe::stopped(desired, &self.table, &self.inject, &self.own).await;
            if stopped.is_empty() {
                break;
            }
            // What was stopped while rules of ours were missing says nothing of those that stand now.
            self.repair(wanted).await;
            if !self.made().await {
                break;
            }
            made = true;
        }
        stopped.extend(self.maps(desired, clients, made).await);
        if stopped.is_empty() {
            return Vec::new();
        }
        let integrated = self.firewalls.lock().await.journal.docker().clone();
        let chains = chains::foreign(&stopped, &integrated, &self.own).await;
        firewalls::obstacles(&firewalls::patterns(desired), &chains, &stopped)
    }

    /// Whether something of ours was missing since this was last asked.
    async fn made(&self) -> bool {
        std::mem::take(&mut self.firewalls.lock().await.made)
    }

    /// Makes again what is missing of ours.
    async fn repair(&self, wanted: &watch::Receiver<Arc<HostConfig>>) {
        let mut firewalls = self.firewalls.lock().await;
        let links = firewalls::patterns(&wanted.borrow());
        // Between two passes of the loop the links may have gone: theirs is the last word.
        if links.is_empty() || wanted.has_changed().unwrap_or(true) {
            return;
        }
        for failure in firewalls.repair(links).await {
            tracing::warn!(
                what = failure.what,
                why = failure.why,
                "the firewall of another program refused"
            );
        }
    }

    /// Clients of port maps that were let in and did not leave the machine: they come on links where we cannot probe.
    /// With `made`, what was in their way may be gone.
    async fn maps(&self, desired: &HostConfig, clients: &mut Clients, made: bool) -> Vec<Stopped> {
        let begun = Instant::now();
        if desired.maps.is_empty() {
            clients.count(Default::default(), made, begun);
        } else if clients.is_due(begun) {
            let Ok(counts) = self.rules.kernel_counts().await else {
                return Vec::new();
            };
            let now = Instant::now();
            clients.was_read(now, now.saturating_duration_since(begun));
            clients.count(counts.maps, made, now);
        }
        let what = || BTreeSet::from(["what comes in by port maps".to_owned()]);
        clients
            .stopped()
            .map(|family| Stopped {
                hook: Hook::Forward,
                family,
                what: what(),
            })
            .collect()
    }
}

/// Whether there is a chain of that name.
fn has(chains: &[Chain], family: &str, table: &str, name: &str) -> bool {
    chains
        .iter()
        .any(|c| (c.family.as_str(), c.table.as_str(), c.name.as_str()) == (family, table, name))
}
