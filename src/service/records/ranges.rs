//! Finding and fetching what a member holds beyond this node in a large subnet, at a cost that grows with the differences.
//!
//! Limits: a comparison has a bounded number of questions, each of a bounded size; hashes are computed beside the node's
//! thread and the tasks of the peers, few at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt;

use super::tell::{Failure, QUESTION_TIMEOUT};
use crate::model::id::{PeerId, SubnetId};
use crate::model::ranges::{Differing, Part, Short, answer};
use crate::model::record::Signed;
use crate::model::subnet::Records;
use crate::node::{Node, wanted};
use crate::p2p::AskError;
use crate::service::{Handler, Mesh, Method, Unanswered};
use crate::wire::ranges::{Answer, MAX_QUESTION, MAX_WANT, Question};
use crate::wire::service::{ServiceCode, kind};

/// Records of a subnet up to which their list is as short as what is said of ranges.
const SMALL: usize = 64;
/// Questions of one comparison. An eighth of that finds the differences of two sets of 10,000 that have nothing in common.
const QUESTIONS: usize = 64;

/// What a comparison has found.
pub(super) struct Found {
    /// Records that the member holds and this node lacked, as many as fit an answer.
    pub records: Vec<Signed>,
    /// Records that this node holds and the member lacks, by the first bytes of their digests.
    pub lacks: Vec<Short>,
}

/// Finds where both differ, and fetches what this node lacks. `None` where the subnet is small, or the member is of a
/// version that does not know such questions: then [`Pull`](crate::wire::control::ControlRequest::Pull) is asked.
///
/// # Errors
/// As for every question to a member.
pub(super) async fn find(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
) -> Result<Option<Found>, Failure> {
    let held = mesh.node.records_for(peer, subnet);
    let held = held.await.map_err(|_| Failure::Stopped)?;
    let Some(records) = held.filter(|records| records.index().len() > SMALL) else {
        return Ok(None);
    };
    let Ok(salt) = getrandom::u64() else {
        return Ok(None);
    };
    let (records, salt) = (Arc::new(records), salt.to_be_bytes());
    let mut asking = Asking {
        mesh,
        peer,
        subnet,
        salt,
    };
    let Some(differing) = asking.differing(&records).await? else {
        return Ok(None);
    };
    // What waits here for something else is not fetched anew each time.
    let parked: BTreeSet<Short> = records
        .parked_digests()
        .map(|d| crate::wire::control::short(&d))
        .collect();
    let lacking = differing.lacking.difference(&parked);
    let want: Vec<Short> = lacking.take(MAX_WANT).copied().collect();
    let mut found = Found {
        records: Vec::new(),
        lacks: differing.beyond.into_iter().collect(),
    };
    if !want.is_empty() {
        let Some(answer) = asking.ask(Vec::new(), want).await? else {
            return Ok(None);
        };
        found.records = answer.records;
    }
    Ok(Some(found))
}

/// One comparison with one member.
struct Asking<'a> {
    mesh: &'a Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    salt: Short,
}

impl Asking<'_> {
    /// Where both differ, as far as that is found by so many questions.
    async fn differing(&mut self, records: &Arc<Records>) -> Result<Option<Differing>, Failure> {
        let (held, salt) = (Arc::clone(records), self.salt);
        let begin = move || Differing::new(held.index(), salt);
        let begun = self.mesh.node.checker().work(begin).await;
        let mut differing = begun.ok_or(Failure::Stopped)?;
        for _ in 0..QUESTIONS {
            let parts = differing.question();
            if parts.is_empty() {
                break;
            }
            let Some(answer) = self.ask(parts, Vec::new()).await? else {
                return Ok(None);
            };
            let held = Arc::clone(records);
            let look = move || {
                differing.answered(held.index(), &answer.parts);
                differing
            };
            let looked = self.mesh.node.checker().work(look).await;
            differing = looked.ok_or(Failure::Stopped)?;
        }
        Ok(Some(differing))
    }

    /// One question. `None` where the member does not know such questions.
    async fn ask(&self, parts: Vec<Part>, want: Vec<Short>) -> Result<Option<Answer>, Failure> {
        let question = Question {
            salt: self.salt,
            parts,
            want,
        };
        let (subnet, body) = (Some(self.subnet), question.encode());
        let service = &self.mesh.service;
        let answer = service.ask(self.peer, kind::RANGES, subnet, body, QUESTION_TIMEOUT);
        match answer.await {
            Ok(body) => Answer::parse(&body).map(Some).ok_or(Failure::Malformed),
            Err(Unanswered::Refused(refusal)) if refusal.code == ServiceCode::Unknown => Ok(None),
            Err(Unanswered::Refused(refusal)) if refusal.code == ServiceCode::NotPermitted => {
                Err(Failure::NotMember)
            }
            Err(Unanswered::Refused(_)) => Err(Failure::Ask(AskError::Refused)),
            Err(Unanswered::Ask(error)) => Err(Failure::Ask(error)),
            Err(Unanswered::Malformed) => Err(Failure::Malformed),
        }
    }
}

/// Answers members that ask so.
pub(in crate::service) fn method(node: &Node) -> Method<Handler> {
    let node = node.clone();
    let handler: Handler = Box::new(move |call| {
        let node = node.clone();
        async move {
            let mut question = Question::parse(&call.body).ok_or(ServiceCode::Invalid)?;
            let subnet = call.subnet.ok_or(ServiceCode::Invalid)?;
            let held = node.records_for(call.peer, subnet).await;
            let held = held.map_err(|_| ServiceCode::Failed)?;
            let records = held.ok_or(ServiceCode::NotPermitted)?;
            question.want.truncate(MAX_WANT);
            let look = move || Answer {
                parts: answer(records.index(), question.salt, &question.parts),
                records: if question.want.is_empty() {
                    Vec::new()
                } else {
                    wanted(&records, question.want)
                },
            };
            let answer = node.checker().work(look).await;
            Ok(answer.ok_or(ServiceCode::Failed)?.encode())
        }
        .boxed()
    });
    Method {
        name: "ranges",
        cost: 1,
        most: MAX_QUESTION,
        handler,
    }
}
