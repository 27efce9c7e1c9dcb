//! One question for all the subnets that two members share: which of them need a comparison of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::tell::QUESTION_TIMEOUT;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Digest;
use crate::model::spread::Spread;
use crate::node::Node;
use crate::service::{Handler, Mesh, Method};
use crate::wire::control::ControlAnswer;
use crate::wire::service::{ServiceCode, kind};
use crate::wire::summary;

/// Those of the subnets of which the member holds what this node holds. None of them where it does not answer, or is of a
/// version that knows no such question: then each is compared by itself.
pub(super) async fn equal(
    mesh: &Mesh,
    peer: PeerId,
    held: &[(SubnetId, Digest)],
) -> BTreeSet<SubnetId> {
    let mut equal = BTreeSet::new();
    // Of one subnet it would only be a second question.
    if held.len() < 2 {
        return equal;
    }
    for some in held.chunks(summary::MAX_SUBNETS) {
        let question = summary::question(some);
        let answer = mesh
            .service
            .ask(peer, kind::RECORDS, None, question, QUESTION_TIMEOUT)
            .await;
        let answer = answer
            .ok()
            .and_then(|body| summary::parse_answer(&body, some.len()));
        let Some(same) = answer else {
            return equal;
        };
        let named = some.iter().zip(same).filter(|(_, same)| *same);
        equal.extend(named.map(|((subnet, _), _)| *subnet));
    }
    equal
}

/// Answers members that ask so. Of a subnet that the asker is no member of it learns that the two differ, as of one that
/// is not here.
pub(in crate::service) fn method(node: &Node, spread: &Arc<Mutex<Spread>>) -> Method<Handler> {
    let (node, spread) = (node.clone(), Arc::clone(spread));
    let handler: Handler = Box::new(move |call| {
        let (node, spread) = (node.clone(), Arc::clone(&spread));
        async move {
            let held = summary::parse_question(&call.body).ok_or(ServiceCode::Invalid)?;
            let mut same = Vec::with_capacity(held.len());
            for (subnet, hash) in held {
                let answer = node.answer_compare(call.peer, subnet, hash).await;
                let answer = answer.map_err(|_| ServiceCode::Failed)?;
                if answer == ControlAnswer::Same {
                    let now = Instant::now().into_std();
                    spread.lock().agreed(call.peer, subnet, hash, now);
                }
                same.push(answer == ControlAnswer::Same);
            }
            Ok(summary::answer(&same))
        }
        .boxed()
    });
    Method {
        name: "records",
        cost: 1,
        most: summary::MAX_BODY,
        handler,
    }
}
