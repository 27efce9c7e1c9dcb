//! Changes of the kernel, many at once where each one alone would cost a wait.
//!
//! Every link that is deleted waits for all processors, every record that is written waits for the disk, and every look
//! into a namespace takes a thread. A machine has hundreds of workloads and a stop has five seconds, so changes of one
//! kind that follow each other share these waits.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::LinuxHost;
use crate::device;
use crate::host::{netns, not_made, resolver, sysctl};
use crate::model::host::{Change, Failure, HostConfig, Namespace, NetnsRef};

/// How long a closed TUN may take to vanish before it is deleted.
const TUN_CLOSING: Duration = Duration::from_millis(300);

/// Changes that are made together when they follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In namespaces of workloads: those in one stay in order, the namespaces are entered side by side.
    Inside,
    /// Links that go.
    Links,
    /// Resolver files that are written.
    Written,
    /// Resolver files that are put back.
    Restored,
}

impl Kind {
    /// None: the change is made alone.
    fn of(change: &Change) -> Option<Kind> {
        match change {
            Change::DeleteLink { .. } => Some(Kind::Links),
            Change::WriteResolver { .. } => Some(Kind::Written),
            Change::RestoreResolver { .. } => Some(Kind::Restored),
            other => matches!(other.namespace(), Namespace::Netns(_)).then_some(Kind::Inside),
        }
    }
}

impl LinuxHost {
    /// Makes the changes in order, those of one kind that follow each other together. Goes on after a failure.
    pub(super) async fn change_all(
        &mut self,
        desired: &HostConfig,
        changes: impl Iterator<Item = Change>,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut changes = changes
            .inspect(|change| tracing::debug!(%change, "apply"))
            .peekable();
        while let Some(change) = changes.next() {
            let Some(kind) = Kind::of(&change) else {
                if let Err(error) = self.change(desired, &change).await {
                    failures.push(not_made(desired, &change, format!("{error:#}")));
                }
                continue;
            };
            let mut batch = vec![change];
            while let Some(next) = changes.next_if(|next| Kind::of(next) == Some(kind)) {
                batch.push(next);
            }
            failures.extend(self.change_together(desired, kind, batch).await);
        }
        failures
    }

    async fn change_together(
        &mut self,
        desired: &HostConfig,
        kind: Kind,
        changes: Vec<Change>,
    ) -> Vec<Failure> {
        match kind {
            Kind::Inside => {
                let mut inside: BTreeMap<NetnsRef, Vec<Change>> = BTreeMap::new();
                for change in changes {
                    if let Namespace::Netns(netns) = change.namespace() {
                        inside.entry(netns.clone()).or_default().push(change);
                    }
                }
                self.change_inside(desired, inside).await
            }
            Kind::Links => {
                let left = self.netlink.delete_links(&changes).await;
                left.into_iter()
                    .map(|(change, why)| not_made(desired, change, why))
                    .collect()
            }
            Kind::Written => {
                let texts = changes.iter().filter_map(|change| match change {
                    Change::WriteResolver { path, text } => Some((path.as_path(), text.as_str())),
                    _ => None,
                });
                let results = resolver::write(&mut self.journal, texts.collect()).await;
                failed(desired, &changes, results)
            }
            Kind::Restored => {
                let paths = changes.iter().filter_map(|change| match change {
                    Change::RestoreResolver { path } => Some(path.as_path()),
                    _ => None,
                });
                let results = resolver::restore(&mut self.journal, paths.collect()).await;
                failed(desired, &changes, results)
            }
        }
    }

    async fn change(&mut self, desired: &HostConfig, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::OpenTun(tun) => {
                self.opened.remove(&tun.name);
                (self.tuns.open)(tun)?;
                let links = self.netlink.links().await?;
                let made = links.values().find(|l| l.name == tun.name);
                let index = made
                    .map(|l| l.index)
                    .with_context(|| format!("no link {} was made", tun.name))?;
                self.opened.insert(tun.name.clone(), index);
                Ok(())
            }
            Change::CloseTun { link, name } => self.close_tun(link, name).await,
            Change::CreateVeth(workload) => {
                // Only a descriptor that was checked itself leads to the right namespace.
                let file = match &workload.netns {
                    Some(netns) => Some(netns::open(netns).await?),
                    None => None,
                };
                if let Some(netns) = &workload.netns {
                    self.inside.entry(netns.clone()).or_default().seen = None;
                }
                let netns = file.as_ref().map(AsFd::as_fd);
                self.netlink
                    .create_veth(&desired.instance, workload, netns)
                    .await
            }
            Change::CreateTap(workload) => device::create(&desired.instance, workload),
            Change::SetOwner { link, owner } => device::set_owner(link, *owner),
            Change::SetSysctl {
                key,
                value,
                keep: true,
                ..
            } => sysctl::write_journaled(&mut self.journal, key, value),
            Change::SetSysctl { key, value, .. } => sysctl::write(key, value),
            Change::RestoreSysctl { key } => sysctl::restore(&mut self.journal, key),
            Change::ForgetSysctl { key } => sysctl::forget(&mut self.journal, key),
            other => self.netlink.apply(other).await,
        }
    }

    /// The packet loop ends and drops the device; a device that outlives it is deleted.
    async fn close_tun(&mut self, link: &str, name: &str) -> anyhow::Result<()> {
        (self.tuns.close)(link);
        self.opened.remove(link);
        let until = Instant::now() + TUN_CLOSING;
        while Instant::now() < until {
            if !self.netlink.links().await?.values().any(|l| l.name == name) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let delete = Change::DeleteLink {
            link: link.to_owned(),
            name: name.to_owned(),
        };
        self.netlink.apply(&delete).await
    }
}

/// Names the changes that failed, of as many results as there are changes.
fn failed(
    desired: &HostConfig,
    changes: &[Change],
    results: Vec<anyhow::Result<()>>,
) -> Vec<Failure> {
    let both = changes.iter().zip(results);
    both.filter_map(|(change, result)| {
        Some(not_made(desired, change, format!("{:#}", result.err()?)))
    })
    .collect()
}
