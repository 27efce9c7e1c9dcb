//! Keeping records the same at every member: push on change, compare and pull on connect and every 30 seconds.

use std::collections::BTreeSet;

use super::Core;
use crate::api::types::Error;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Signed;
use crate::wire::control::{ControlAnswer, ControlRequest, RECORDS_BUDGET, fitting, set_hash, short};

impl Core {
    /// The opening question to a member about one subnet.
    pub fn compare(&self, subnet: SubnetId) -> Option<ControlRequest> {
        let records = &self.state.subnets.get(&subnet)?.records;
        Some(ControlRequest::Compare { subnet, hash: set_hash(&records.digests()) })
    }

    /// The second question, after [`ControlAnswer::Different`].
    pub fn pull(&self, subnet: SubnetId) -> Option<ControlRequest> {
        let records = &self.state.subnets.get(&subnet)?.records;
        Some(ControlRequest::Pull { subnet, have: records.digests().iter().map(short).collect() })
    }

    /// Records whose digest begins with one of `want`, as many as fit a message.
    pub fn wanted(&self, subnet: SubnetId, want: &[[u8; 8]]) -> Vec<Signed> {
        let want: BTreeSet<[u8; 8]> = want.iter().copied().collect();
        let Some(subnet) = self.state.subnets.get(&subnet) else { return vec![] };
        fitting(subnet.records.all().filter(|r| want.contains(&short(&r.digest()))), RECORDS_BUDGET)
    }

    /// Whether a peer is a member of a subnet here.
    pub fn is_member(&self, subnet: SubnetId, peer: PeerId) -> bool {
        self.view.load().subnets.get(&subnet).is_some_and(|s| s.members.contains(&peer))
    }

    /// Takes records in that `from` sent.
    ///
    /// # Errors
    /// When they could not be saved.
    pub fn take(&mut self, subnet: SubnetId, records: &[Signed], from: Option<PeerId>) -> Result<(), Error> {
        let now = self.now();
        let Some((draft, _)) = self.state.take(subnet, records, now) else { return Ok(()) };
        let fork = |core: &Core| core.state.subnets.get(&subnet).map(|s| s.records.fork()).unwrap_or_default();
        let before = fork(self);
        self.commit(draft, from)?;
        let after = fork(self);
        if after.len() > before.len() {
            let issuers: Vec<String> = after.iter().map(ToString::to_string).collect();
            tracing::warn!(%subnet, ?issuers, "two heads with one number: all their revocations hold");
        }
        Ok(())
    }

    /// Answers a member's question about records. [`ControlRequest::Forward`] is not for here.
    pub fn answer(&mut self, from: PeerId, request: ControlRequest) -> ControlAnswer {
        match request {
            ControlRequest::Compare { subnet, hash } => match self.state.subnets.get(&subnet) {
                Some(held) if self.is_member(subnet, from) => {
                    if set_hash(&held.records.digests()) == hash {
                        ControlAnswer::Same
                    } else {
                        ControlAnswer::Different
                    }
                }
                _ => ControlAnswer::NotMember,
            },
            ControlRequest::Pull { subnet, have } => match self.state.subnets.get(&subnet) {
                Some(held) if self.is_member(subnet, from) => {
                    let have: BTreeSet<[u8; 8]> = have.into_iter().collect();
                    let mine: BTreeSet<[u8; 8]> = held.records.digests().iter().map(short).collect();
                    let records =
                        fitting(held.records.all().filter(|r| !have.contains(&short(&r.digest()))), RECORDS_BUDGET);
                    ControlAnswer::Records { records, want: have.difference(&mine).copied().collect() }
                }
                _ => ControlAnswer::NotMember,
            },
            ControlRequest::Push { subnet, records } => {
                if !self.is_member(subnet, from) {
                    return ControlAnswer::NotMember;
                }
                match self.take(subnet, &records, Some(from)) {
                    Ok(()) => ControlAnswer::Done,
                    Err(error) => {
                        tracing::warn!(%error, "records from a peer were not saved");
                        ControlAnswer::Different
                    }
                }
            }
            ControlRequest::Ping => ControlAnswer::Done,
            ControlRequest::Forward(_) => ControlAnswer::NotMember,
        }
    }
}
