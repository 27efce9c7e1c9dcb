//! Keeping records the same at every member: push on change, compare and pull on connect and every 30 seconds.

use std::collections::{BTreeMap, BTreeSet};

use super::{Core, unix_now_ms};
use crate::api::types::Error;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Signed;
use crate::wire::control::{ControlAnswer, ControlRequest, RECORDS_BUDGET, fitting, set_hash, short};

/// New documents of one member taken at once, and a second after that: each is a synced write here and a message to
/// everybody. What is over waits for the next comparison, which brings only the newest.
const DOCS_AT_ONCE: u64 = 120;
/// See [`DOCS_AT_ONCE`].
const DOCS_PER_SECOND: u64 = 4;
/// Records of one message that may be forged before the rest is not looked at.
const MAX_JUNK: usize = 64;
/// Members whose rate is remembered.
const RATES: usize = 4096;

/// How many documents of each member may still be taken.
#[derive(Debug, Default)]
pub(super) struct Rates(BTreeMap<PeerId, (u64, u64)>);

impl Rates {
    /// Whether one more is within the rate; `now` in milliseconds.
    fn take(&mut self, peer: PeerId, now: u64) -> bool {
        // Counted in thousandths, so that a refill of less than one is not lost.
        const FULL: u64 = DOCS_AT_ONCE * 1000;
        let refilled = |(left, at): (u64, u64)| {
            left.saturating_add(now.saturating_sub(at).saturating_mul(DOCS_PER_SECOND)).min(FULL)
        };
        if self.0.len() >= RATES {
            self.0.retain(|_, held| refilled(*held) < FULL);
        }
        let left = refilled(self.0.get(&peer).copied().unwrap_or((FULL, now)));
        self.0.insert(peer, (left.saturating_sub(1000), now));
        left >= 1000
    }
}

impl Core {
    /// Hash over what is held of a subnet; computed once for each state.
    fn hash(&mut self, subnet: SubnetId) -> Option<[u8; 32]> {
        let records = &self.state.subnets.get(&subnet)?.records;
        Some(*self.hashes.entry(subnet).or_insert_with(|| set_hash(&records.held())))
    }

    /// The opening question to a member about one subnet.
    pub fn compare(&mut self, subnet: SubnetId) -> Option<ControlRequest> {
        Some(ControlRequest::Compare { subnet, hash: self.hash(subnet)? })
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
        fitting(subnet.records.entries().filter(|(d, _)| want.contains(&short(d))).map(|(_, r)| r), RECORDS_BUDGET)
    }

    /// Whether a peer may speak control about a subnet: whether it is in its roll, whatever its addresses and the time.
    pub fn is_member(&self, subnet: SubnetId, peer: PeerId) -> bool {
        self.view.load().in_roll(subnet, peer)
    }

    /// Takes records in that `from` sent. Gives whether anything changed, and whether some have to wait because their
    /// member says too much.
    ///
    /// # Errors
    /// When they could not be saved.
    pub fn take(&mut self, subnet: SubnetId, records: &[Signed], from: Option<PeerId>) -> Result<(bool, bool), Error> {
        let Some(held) = self.state.subnets.get(&subnet) else { return Ok((false, false)) };
        let now = unix_now_ms();
        let mut fresh = Vec::new();
        let (mut waiting, mut junk) = (false, 0usize);
        for record in records.iter().filter(|r| !held.records.knows(&r.digest())) {
            // Third kind of body: a document. The owner's and admins' words are never put off.
            if record.body.first() == Some(&2) && !self.rates.take(record.issuer, now) {
                waiting = true;
                continue;
            }
            match record.clone().check() {
                Ok(record) => fresh.push(record),
                Err(_) => junk = junk.saturating_add(1),
            }
            if junk >= MAX_JUNK {
                break;
            }
        }
        if waiting {
            tracing::debug!(%subnet, ?from, "a member publishes too often; its records wait");
        }
        let Some((draft, _)) = self.state.take(subnet, &fresh) else { return Ok((false, waiting)) };
        let forked = |core: &Core| core.state.subnets.get(&subnet).is_some_and(|s| s.records.forked());
        let before = forked(self);
        self.commit(draft, from)?;
        if forked(self) && !before {
            tracing::warn!(
                %subnet,
                "the owner signed two heads with one number: was it restored from a backup, or does it run twice? What \
                 either of them takes away is taken away"
            );
        }
        Ok((true, waiting))
    }

    /// Answers a member's question about records. [`ControlRequest::Forward`], [`ControlRequest::Clock`] and [`ControlRequest::Session`] are not for
    /// here.
    pub fn answer(&mut self, from: PeerId, request: ControlRequest) -> ControlAnswer {
        match request {
            ControlRequest::Compare { subnet, hash } => match self.hash(subnet) {
                Some(mine) if self.is_member(subnet, from) => {
                    if mine == hash {
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
                    let lacking = held.records.entries().filter(|(d, _)| !have.contains(&short(d))).map(|(_, r)| r);
                    let records = fitting(lacking, RECORDS_BUDGET);
                    ControlAnswer::Records { records, want: have.difference(&mine).copied().collect() }
                }
                _ => ControlAnswer::NotMember,
            },
            ControlRequest::Push { subnet, records } => {
                if !self.is_member(subnet, from) {
                    return ControlAnswer::NotMember;
                }
                match self.take(subnet, &records, Some(from)) {
                    Ok((_, false)) => ControlAnswer::Done,
                    Ok((_, true)) => ControlAnswer::Different,
                    Err(error) => {
                        tracing::warn!(%error, "records from a peer were not saved");
                        ControlAnswer::Different
                    }
                }
            }
            ControlRequest::Ping | ControlRequest::Clock { .. } => ControlAnswer::Done,
            ControlRequest::Forward(_) => ControlAnswer::NotMember,
            ControlRequest::Session { .. } => ControlAnswer::NoSession,
        }
    }
}
