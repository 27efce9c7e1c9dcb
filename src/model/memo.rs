//! What was found out about a subnet, kept so that less has to be made anew. It is no part of what a subnet is: without it
//! the same follows.

use std::sync::Arc;

use super::id::SubnetId;
use super::members::Subnet;
use super::resolve::Resolved;
use super::state::State;
use super::subnet::Records;

/// What was found out about a subnet, kept so that less has to be made anew.
#[derive(Debug, Clone, Default)]
pub struct Memo {
    pub(super) resolved: Option<Arc<Resolved>>,
    /// Records in which every name that this node registered was still claimed.
    pub(super) tidy: Option<Arc<Records>>,
}

/// The memo is no part of what is compared.
impl PartialEq for Memo {
    fn eq(&self, _: &Memo) -> bool {
        true
    }
}

impl Eq for Memo {}

impl Subnet {
    /// What follows from the records at `now` (seconds since 1970), and from the answers this node has given.
    pub fn resolve(&self, now: u64) -> Arc<Resolved> {
        match &self.memo.resolved {
            Some(last) if last.is_of(&self.records, &self.local.seen, now) => Arc::clone(last),
            Some(last) => Arc::new(self.records.resolve_after(now, &self.local.seen, last)),
            None => Arc::new(self.records.resolve_with(now, &self.local.seen)),
        }
    }

    /// Resolves the records as [`Self::resolve`] does, and keeps the result for the next time.
    pub fn remember(&mut self, now: u64) -> Arc<Resolved> {
        let resolved = self.resolve(now);
        self.memo.resolved = Some(Arc::clone(&resolved));
        resolved
    }

    /// Keeps what another copy of this subnet has found.
    pub(super) fn keep(&mut self, resolved: Arc<Resolved>, now: u64) {
        let known = |last: &Arc<Resolved>| last.is_of(&self.records, &self.local.seen, now);
        if !self.memo.resolved.as_ref().is_some_and(known) {
            self.memo.resolved = Some(resolved);
        }
    }
}

impl State {
    /// Works out what follows from every subnet at `now` and keeps it.
    pub fn remember(&mut self, now: u64) {
        for subnet in self.subnets.values_mut() {
            let _ = subnet.remember(now);
        }
    }

    /// Keeps what followed from a copy of this state, where nothing newer is known at `now`.
    pub fn keep(&mut self, resolved: impl Iterator<Item = (SubnetId, Arc<Resolved>)>, now: u64) {
        for (id, resolved) in resolved {
            if let Some(subnet) = self.subnets.get_mut(&id) {
                subnet.keep(resolved, now);
            }
        }
    }

    /// Keeps what was found out about copies that turned out the same.
    pub fn keep_memos(&mut self, memos: Vec<(SubnetId, Memo)>) {
        for (id, memo) in memos {
            if let Some(subnet) = self.subnets.get_mut(&id) {
                subnet.memo = memo;
            }
        }
    }
}
