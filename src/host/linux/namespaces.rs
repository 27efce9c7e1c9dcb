//! The namespaces of workloads: what is in ours there, looked at and changed from without.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::LinuxHost;
use crate::host::inner::Expected;
use crate::host::netns::{self, NetnsError};
use crate::host::{self, failure, within};
use crate::model::host::{
    Change, Failure, HostConfig, Namespace, NamespaceState, NetnsRef, Observed, Part,
    WorkloadConfig, inner_mac, inner_table, sysctl_keys,
};

/// How long what was seen inside a workload's namespace is believed where no news come from there.
const BELIEVED: Duration = Duration::from_secs(5);
/// Namespaces that are looked into at the same time.
const AT_ONCE: usize = 8;

/// What is known of one workload's namespace.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// Tells it from a later one with the same inode number.
    pub(super) cookie: Option<u64>,
    /// What was seen last, and when it was.
    pub(super) seen: Option<(Instant, NamespaceState)>,
}

/// What there is to do about one namespace.
enum Prepared {
    /// There is nothing to do: it was seen a moment ago.
    Known(NamespaceState),
    /// Look, if it is the one with this cookie.
    Look(Option<u64>, netns::Look),
}

impl LinuxHost {
    /// Namespaces of the desired workloads, and those where rules of ours still stand.
    pub(super) async fn observe_inside(&mut self, desired: &HostConfig, observed: &mut Observed) {
        let mut namespaces: BTreeSet<NetnsRef> =
            desired.namespaces().into_iter().cloned().collect();
        namespaces.extend(self.journal.rules().iter().map(|(netns, _)| netns.clone()));
        self.inside.retain(|netns, _| namespaces.contains(netns));
        self.gone.retain(|netns| namespaces.contains(netns));
        let keys = sysctl_keys(desired, observed);
        let news = within::take(&self.heard);
        let mut looks = Vec::new();
        for netns in namespaces {
            let sysctls = keys
                .get(&Namespace::Netns(netns.clone()))
                .cloned()
                .unwrap_or_default();
            self.believe_no_more(desired, &netns, &news);
            let prepared = self.prepare(desired, observed, &netns, sysctls).await;
            looks.push((netns, prepared));
        }
        // Side by side: one namespace that takes long holds no other up.
        let outcomes: Vec<_> = futures::stream::iter(looks)
            .map(|(netns, prepared)| async move {
                let seen = match prepared {
                    Ok(Prepared::Known(state)) => Ok((state, None)),
                    Ok(Prepared::Look(cookie, look)) => netns::observe(&netns, cookie, look)
                        .await
                        .map(|(state, cookie)| (state, Some(cookie))),
                    Err(error) => Err(error),
                };
                (netns, seen)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (netns, seen) in outcomes {
            match seen {
                Ok((state, fresh)) => {
                    if let Some(cookie) = fresh {
                        let known = self.inside.entry(netns.clone()).or_default();
                        known.cookie = known.cookie.or(cookie);
                        known.seen = Some((Instant::now(), state.clone()));
                    }
                    observed.namespaces.insert(Namespace::Netns(netns), state);
                }
                Err(NetnsError::Gone(path)) => {
                    if self.gone.insert(netns.clone()) {
                        tracing::info!(netns = %path.display(), "network namespace is gone");
                    }
                    let dead = desired
                        .workloads
                        .iter()
                        .filter(|w| w.netns.as_ref() == Some(&netns));
                    observed
                        .dead
                        .extend(dead.map(|w| (w.subnet, w.name.clone())));
                }
                Err(error) => {
                    tracing::warn!(netns = %netns.path.display(), %error, "network namespace cannot be read");
                    observed.unreadable.insert(netns);
                }
            }
        }
        self.record_rules(observed);
    }

    /// Records which of our rules still stand: those in a namespace that is gone are gone, and those that were seen to be
    /// gone elsewhere as well.
    fn record_rules(&mut self, observed: &Observed) {
        let stand = |netns: &NetnsRef, rule| {
            let unreadable = observed.unreadable.contains(netns);
            let state = observed.namespaces.get(&Namespace::Netns(netns.clone()));
            unreadable || state.is_some_and(|state| state.rules.contains(rule))
        };
        let rules = self
            .journal
            .rules()
            .iter()
            .filter(|(netns, rule)| stand(netns, rule))
            .cloned()
            .collect();
        if let Err(error) = self.journal.set_rules(rules) {
            tracing::warn!(
                error = format!("{error:#}"),
                "rules of workloads not recorded"
            );
        }
    }

    /// What was seen in a namespace counts no more when something changed there since then.
    fn believe_no_more(&mut self, desired: &HostConfig, netns: &NetnsRef, news: &within::News) {
        let mut here = desired
            .workloads
            .iter()
            .filter(|w| w.netns.as_ref() == Some(netns));
        if here.any(|w| news.concerns(self.numbers.get(&w.host_link).copied()))
            && let Some(known) = self.inside.get_mut(netns)
        {
            known.seen = None;
        }
    }

    /// What has to be looked at in a namespace, or what was seen there a moment ago.
    async fn prepare(
        &mut self,
        desired: &HostConfig,
        observed: &Observed,
        netns: &NetnsRef,
        sysctls: BTreeSet<String>,
    ) -> Result<Prepared, NetnsError> {
        if self.gone.contains(netns) || !netns::exists(netns).await? {
            return Err(NetnsError::Gone(netns.path.clone()));
        }
        let here: Vec<&WorkloadConfig> = desired
            .workloads
            .iter()
            .filter(|w| w.netns.as_ref() == Some(netns))
            .collect();
        let host = observed.namespaces.get(&Namespace::Host);
        let pairs = here
            .iter()
            .all(|w| host.is_some_and(|state| state.links.contains_key(&w.host_link)));
        let known = self.inside.entry(netns.clone()).or_default();
        if let Some((when, state)) = known
            .seen
            .as_ref()
            .filter(|(when, _)| pairs && when.elapsed() < BELIEVED)
        {
            tracing::trace!(netns = %netns.path.display(), age = ?when.elapsed(), "believed");
            return Ok(Prepared::Known(state.clone()));
        }
        let link = |w: &&WorkloadConfig| Expected {
            name: w.inner_link.clone(),
            index: self.ends.get(&w.host_link).copied(),
            mac: w
                .mac
                .unwrap_or_else(|| inner_mac(&self.instance, &w.host_link)),
            table: inner_table(&w.inner_link),
        };
        let look = netns::Look {
            instance: self.instance.clone(),
            links: here.iter().map(link).collect(),
            rules: self
                .journal
                .rules()
                .iter()
                .filter(|(ns, _)| ns == netns)
                .map(|(_, rule)| rule.clone())
                .collect(),
            sysctls,
        };
        Ok(Prepared::Look(known.cookie, look))
    }

    /// Changes inside namespaces, each entered once. The rules are recorded once for all of them.
    pub(super) async fn change_inside(
        &mut self,
        desired: &HostConfig,
        changes: BTreeMap<NetnsRef, Vec<Change>>,
    ) -> Vec<Failure> {
        let all = parts(desired, changes.values().flatten());
        let mut rules = self.journal.rules().clone();
        for (netns, change) in in_each(&changes) {
            if let Change::AddRule { rule, .. } = change {
                rules.insert((netns.clone(), rule.clone()));
            }
        }
        if let Err(error) = self.journal.set_rules(rules) {
            let what = "record the rules of workloads";
            return vec![failure(what, format!("{error:#}")).of(all)];
        }
        let mut left = self.journal.rules().clone();
        for (netns, change) in in_each(&changes) {
            if let Change::DelRule { rule, .. } = change {
                left.remove(&(netns.clone(), rule.clone()));
            }
        }
        let mut jobs = Vec::new();
        for (netns, changes) in changes {
            let known = self.inside.entry(netns.clone()).or_default();
            known.seen = None;
            jobs.push((netns, known.cookie, changes));
        }
        let outcomes: Vec<_> = futures::stream::iter(jobs)
            .map(|(netns, cookie, changes)| async move {
                let parts = parts(desired, &changes);
                let failed: Vec<Failure> = match netns::apply(&netns, cookie, changes).await {
                    Ok(left) => left
                        .iter()
                        .map(|(change, why)| host::not_made(desired, change, why))
                        .collect(),
                    Err(failure) => vec![failure.of(parts)],
                };
                (netns, failed)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut failures = Vec::new();
        for (netns, failed) in outcomes {
            // Where one failed, the next look tells which rules still stand.
            if !failed.is_empty() {
                let rules = self.journal.rules().iter();
                left.extend(rules.filter(|(of, _)| *of == netns).cloned());
            }
            failures.extend(failed);
        }
        if let Err(error) = self.journal.set_rules(left) {
            let what = "record the rules of workloads";
            failures.push(failure(what, format!("{error:#}")).of(all));
        }
        failures
    }
}

/// The parts of the desired state that the changes are made for.
fn parts<'a>(
    desired: &HostConfig,
    changes: impl IntoIterator<Item = &'a Change>,
) -> BTreeSet<Part> {
    changes
        .into_iter()
        .flat_map(|change| desired.parts_of(change))
        .collect()
}

/// Each change with its namespace.
fn in_each(
    changes: &BTreeMap<NetnsRef, Vec<Change>>,
) -> impl Iterator<Item = (&NetnsRef, &Change)> {
    changes
        .iter()
        .flat_map(|(netns, changes)| changes.iter().map(move |change| (netns, change)))
}
