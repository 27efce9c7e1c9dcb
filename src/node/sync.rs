//! Keeping records the same at every member: push on change, compare and pull on connect and from time to time.

use std::collections::BTreeSet;

use super::Core;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Signed;
use crate::model::subnet::Records;
use crate::wire::control::{
    ControlAnswer, ControlRequest, RECORDS_BUDGET, fitting, set_hash, short,
};

impl Core {
    /// Hash over what is held of a subnet; computed once for each state.
    fn hash(&mut self, subnet: SubnetId) -> Option<[u8; 32]> {
        let records = &self.state.subnets.get(&subnet)?.records;
        Some(
            *self
                .hashes
                .entry(subnet)
                .or_insert_with(|| set_hash(records.index().keys())),
        )
    }

    /// The opening question to a member about one subnet.
    pub fn compare(&mut self, subnet: SubnetId) -> Option<ControlRequest> {
        Some(ControlRequest::Compare {
            subnet,
            hash: self.hash(subnet)?,
        })
    }

    /// The second question, after [`ControlAnswer::Different`].
    pub fn pull(&self, subnet: SubnetId) -> Option<ControlRequest> {
        let records = &self.state.subnets.get(&subnet)?.records;
        Some(ControlRequest::Pull {
            subnet,
            have: records.digests().iter().map(short).collect(),
        })
    }

    /// Whether a peer may speak control about a subnet: whether it is in its roll, whatever its addresses and the time.
    pub fn is_member(&self, subnet: SubnetId, peer: PeerId) -> bool {
        self.view.load().in_roll(subnet, peer)
    }

    /// Answers a member's [`ControlRequest::Compare`].
    pub fn answer_compare(
        &mut self,
        from: PeerId,
        subnet: SubnetId,
        hash: [u8; 32],
    ) -> ControlAnswer {
        match self.hash(subnet) {
            Some(mine) if self.is_member(subnet, from) => {
                if mine == hash {
                    ControlAnswer::Same
                } else {
                    ControlAnswer::Different
                }
            }
            _ => ControlAnswer::NotMember,
        }
    }

    /// The records of a subnet for a member, for [`difference`] and [`wanted`]; none for anybody else.
    pub fn records_for(&self, from: PeerId, subnet: SubnetId) -> Option<Records> {
        self.is_member(subnet, from)
            .then(|| self.state.subnets.get(&subnet).map(|s| s.records.clone()))
            .flatten()
    }
}

/// Records whose digest begins with one of `want`, as many as fit a message.
pub fn wanted(records: &Records, want: Vec<[u8; 8]>) -> Vec<Signed> {
    let want: BTreeSet<[u8; 8]> = want.into_iter().collect();
    fitting(
        records
            .entries()
            .filter(|(d, _)| want.contains(&short(d)))
            .map(|(_, r)| r),
        RECORDS_BUDGET,
    )
}

/// Answers a [`ControlRequest::Pull`]: the records that one who has `have` lacks, as many as fit, and what it has beyond
/// ours. It takes as long as both sets are large, and needs nothing of the node.
pub fn difference(records: &Records, have: Vec<[u8; 8]>) -> ControlAnswer {
    let have: BTreeSet<[u8; 8]> = have.into_iter().collect();
    let mine: BTreeSet<[u8; 8]> = records.digests().iter().map(short).collect();
    let lacking = records
        .entries()
        .filter(|(d, _)| !have.contains(&short(d)))
        .map(|(_, r)| r);
    ControlAnswer::Records {
        records: fitting(lacking, RECORDS_BUDGET),
        want: have.difference(&mine).copied().collect(),
    }
}
