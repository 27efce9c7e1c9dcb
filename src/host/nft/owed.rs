//! What flows of before are owed after a change of the ruleset: the kernel asks the rules about the first packet of a flow
//! only.
//!
//! A change of the ruleset and what follows from it for flows are two steps, and a kill or a refusal may come between them.
//! So what was not done stays owed, and the policies that a process finds are judged at its first pass, whatever the kernel
//! has: a former process may have written the rules and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tracing::debug;

use super::atom::MapKey;
use super::elements::Elements;
use crate::host::conntrack::{self, Begun, HostFlows, MapFlows};
use crate::host::failure;
use crate::model::host::{Failure, HostConfig, HostPolicy, Part};

/// Flows that are still to be ended or forgotten.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// The policy by which the flows of each TUN were judged last.
    judged: BTreeMap<String, HostPolicy>,
    /// Maps that are gone, or lead elsewhere now: their flows end.
    gone: Vec<MapFlows>,
    /// Maps that are new, or lead elsewhere now: flows of before them are forgotten.
    begun: Vec<MapFlows>,
}

impl Owed {
    /// Does what the step from `before` to `after` asks for, and what is still owed of earlier steps. Returns what could not
    /// be done.
    pub(super) async fn settle(
        &mut self,
        before: &Elements,
        after: &Elements,
        desired: &HostConfig,
    ) -> Vec<Failure> {
        let stands = |map: &MapFlows| {
            let key = MapKey {
                proto: map.proto,
                listen: map.listen,
                port: map.port,
            };
            after.target(&key) == Some((map.target, map.target_port))
        };
        self.gone
            .extend(before.ended(after).into_iter().map(map_flows));
        // What came back meanwhile has flows of its own.
        self.gone.retain(|map| !stands(map));
        // What is not as it was, seen from the other end: what ends on the way back begins on the way there.
        self.begun
            .extend(after.ended(before).into_iter().map(map_flows));
        self.begun
            .extend(before.resumed(after).into_iter().map(map_flows));
        self.begun.retain(stands);
        let mut failures = Vec::new();
        failures.extend(self.end().await);
        failures.extend(self.forget(desired).await);
        failures.extend(self.judge(after, desired).await);
        failures
    }

    /// Deletes what conntrack still holds of maps that are gone.
    async fn end(&mut self) -> Option<Failure> {
        if self.gone.is_empty() {
            return None;
        }
        match conntrack::delete_maps(self.gone.clone()).await {
            Ok(ended) => {
                debug!(ended, "flows of removed maps ended");
                self.gone.clear();
                None
            }
            Err(error) => Some(failure("end the flows of removed maps", error).of([Part::Former])),
        }
    }

    /// Forgets what conntrack holds of flows to a map that was not there, led elsewhere or let in others: they are decided
    /// anew.
    async fn forget(&mut self, desired: &HostConfig) -> Option<Failure> {
        if self.begun.is_empty() {
            return None;
        }
        let overlay = desired
            .tuns
            .iter()
            .flat_map(|tun| tun.prefixes.iter().copied())
            .collect();
        match conntrack::delete_before(Begun {
            maps: self.begun.clone(),
            overlay,
        })
        .await
        {
            Ok(forgotten) => {
                debug!(forgotten, "flows of before a map forgotten");
                self.begun.clear();
                None
            }
            Err(error) => {
                let port = |map: &MapFlows| desired.parts_of_port(map.proto, map.listen, map.port);
                let maps: BTreeSet<Part> = self.begun.iter().flat_map(port).collect();
                Some(failure("forget the flows of before a map", error).of(maps))
            }
        }
    }

    /// Ends what conntrack still holds of what a subnet is not let into any more, and lets go on what it is let into again.
    async fn judge(&mut self, after: &Elements, desired: &HostConfig) -> Option<Failure> {
        self.judged
            .retain(|name, _| desired.tuns.iter().any(|tun| tun.name == *name));
        let changed = || {
            desired
                .tuns
                .iter()
                .filter(|tun| self.judged.get(&tun.name) != Some(&tun.host))
        };
        let flows: Vec<HostFlows> = changed()
            .map(|tun| HostFlows {
                prefixes: tun.prefixes.clone(),
                own: tun.addresses.clone(),
                before: self.judged.get(&tun.name).cloned(),
                host: tun.host.clone(),
            })
            .collect();
        if flows.is_empty() {
            return None;
        }
        let maps = after.targets().into_iter().map(map_flows).collect();
        match conntrack::judge_host(flows, maps).await {
            Ok(judged) => {
                debug!(judged, "flows to this machine judged anew");
                let policies: Vec<_> = changed()
                    .map(|tun| (tun.name.clone(), tun.host.clone()))
                    .collect();
                self.judged.extend(policies);
                None
            }
            Err(error) => {
                let what = "end the flows to this machine that are no longer let in";
                let subnets: BTreeSet<Part> =
                    changed().map(|tun| Part::Subnet(tun.subnet)).collect();
                Some(failure(what, error).of(subnets))
            }
        }
    }
}

fn map_flows((key, (target, target_port)): (MapKey, (IpAddr, u16))) -> MapFlows {
    MapFlows {
        proto: key.proto,
        listen: key.listen,
        port: key.port,
        target,
        target_port,
    }
}
