//! A member whose grant counts no more, though nobody removed it: who granted it lost its say. It asks to be let in again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Core, unix_now};
use crate::model::id::SubnetId;
use crate::model::local::PendingJoin;
use crate::model::members::Subnet;

/// Time between two attempts: people decide about them, and may have said no.
const RETRY_INTERVAL: Duration = Duration::from_secs(3600);

/// When this node last asked to be let in again, by subnet.
#[derive(Debug, Default)]
pub(super) struct Again(BTreeMap<SubnetId, Instant>);

impl Core {
    /// Joins to begin, of subnets that this node fell out of without being removed. They are saved already.
    pub fn ask_again(&mut self) -> Vec<PendingJoin> {
        let me = self.state.me.peer;
        let lost = |s: &&Subnet| {
            let roll = s.records.roll();
            let left = s.records.announcement(me).is_some_and(|d| d.left.is_some());
            !roll.destroyed
                && !left
                && !roll.members.contains_key(&me)
                && !roll.out.contains_key(&me)
        };
        // Looked at only where the View has no place for this node: mostly nowhere.
        let view = self.view();
        let outside = |s: &&Subnet| s.local.up && !view.subnets.contains_key(&s.records.id);
        let recently = |s: &&Subnet| {
            self.again
                .0
                .get(&s.records.id)
                .is_some_and(|at| at.elapsed() < RETRY_INTERVAL)
        };
        let asking = |s: &&Subnet| self.state.joins.contains_key(&s.records.id);
        let chosen: Vec<PendingJoin> = (self.state.subnets.values())
            .filter(outside)
            .filter(|s| !recently(s) && !asking(s))
            .filter(lost)
            .map(|s| self.join_again(s))
            .collect();
        for join in &chosen {
            self.again.0.insert(join.subnet, Instant::now());
            if let Err(error) = self.begin_join(join.clone(), false) {
                tracing::warn!(%error, "save that this node asks to be let in again");
            }
        }
        chosen
    }

    fn join_again(&self, subnet: &Subnet) -> PendingJoin {
        PendingJoin {
            subnet: subnet.records.id,
            invite: None,
            hints: subnet.local.hints.clone(),
            name: self.node_name.clone(),
            name_is_default: true,
            alias: Some(subnet.local.alias.clone()),
            ip: None,
            host: subnet.local.host.clone(),
            allow: Default::default(),
            since: unix_now(),
            founded_as: None,
            refused: None,
            declared: subnet.local.declared,
        }
    }
}
