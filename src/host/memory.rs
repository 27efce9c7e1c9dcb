//! A kernel in memory: it does what it is told, and can be disturbed. For tests of whole daemons without root.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{Host, TunControl, not_made};
use crate::model::host::{Change, Failure, HostConfig, Observed};
use crate::model::id::{Name, SubnetId};

#[derive(Default)]
struct State {
    observed: Observed,
    /// Changes whose text holds one of these are refused.
    refused: BTreeSet<String>,
    /// Its state cannot be read.
    hidden: bool,
}

/// The kernel of a [`MemoryHost`], for the test that watches and disturbs it.
#[derive(Clone, Default)]
pub struct MemoryKernel {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl MemoryKernel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The state that the kernel has now.
    pub fn observed(&self) -> Observed {
        self.state().observed.clone()
    }

    /// Changes what is there behind the daemon's back, and lets it know as the kernel would.
    pub fn disturb(&self, disturb: impl FnOnce(&mut Observed)) {
        disturb(&mut self.state().observed);
        self.wake.notify_one();
    }

    /// Whether its state can be read from now on.
    pub fn hide(&self, hidden: bool) {
        self.state().hidden = hidden;
        self.wake.notify_one();
    }

    /// Ends the namespace of a workload.
    pub fn kill_workload(&self, subnet: SubnetId, name: Name) {
        self.disturb(|observed| {
            observed.dead.insert((subnet, name));
        });
    }

    /// Refuses changes whose text holds this one from now on; `None` ends all refusals.
    pub fn refuse(&self, text: Option<&str>) {
        let mut state = self.state();
        match text {
            Some(text) => {
                state.refused.insert(text.to_owned());
            }
            None => state.refused.clear(),
        }
        self.wake.notify_one();
    }
}

/// A host whose kernel is a [`MemoryKernel`].
pub struct MemoryHost {
    kernel: MemoryKernel,
    tuns: TunControl,
}

impl MemoryHost {
    /// A host with an empty kernel that speaks IPv6.
    pub fn new(tuns: TunControl) -> (MemoryHost, MemoryKernel) {
        let kernel = MemoryKernel::default();
        kernel.state().observed = Observed {
            ipv6: true,
            force_forwarding: true,
            ..Observed::default()
        };
        (
            MemoryHost {
                kernel: kernel.clone(),
                tuns,
            },
            kernel,
        )
    }
}

#[cfg(test)]
impl MemoryHost {
    /// Its kernel, for a test of a whole daemon.
    pub(crate) fn kernel(&self) -> MemoryKernel {
        self.kernel.clone()
    }
}

impl Host for MemoryHost {
    async fn observe(&mut self, desired: &HostConfig) -> anyhow::Result<Observed> {
        let mut state = self.kernel.state();
        anyhow::ensure!(!state.hidden, "hidden by the test");
        let wanted: BTreeSet<_> = desired
            .workloads
            .iter()
            .map(|w| (w.subnet, w.name.clone()))
            .collect();
        state.observed.dead.retain(|dead| wanted.contains(dead));
        Ok(state.observed.clone())
    }

    async fn apply(
        &mut self,
        desired: &HostConfig,
        _observed: &Observed,
        changes: Vec<Change>,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        for change in changes {
            let text = change.to_string();
            if self
                .kernel
                .state()
                .refused
                .iter()
                .any(|refused| text.contains(refused))
            {
                failures.push(not_made(desired, &change, "refused by the test"));
                continue;
            }
            match &change {
                Change::OpenTun(tun) => {
                    if let Err(error) = (self.tuns.open)(tun) {
                        failures.push(not_made(desired, &change, format!("{error:#}")));
                        continue;
                    }
                }
                Change::CloseTun { link, .. } => (self.tuns.close)(link),
                Change::Conflict { link, .. } => {
                    failures.push(not_made(
                        desired,
                        &change,
                        format!("a link named {link} exists that is not ours"),
                    ));
                }
                _ => {}
            }
            self.kernel.state().observed.absorb(desired, &change);
        }
        failures
    }

    async fn changed(&mut self) {
        self.kernel.wake.notified().await;
    }
}
