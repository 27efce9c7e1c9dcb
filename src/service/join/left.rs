//! A join of a subnet that this node left: whoever has not heard the goodbye would answer with the grant that was given back,
//! and the goodbye would end it later.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{HEARD_WITHIN, exchange};
use crate::model::id::{PeerId, SubnetId};
use crate::model::local::PendingJoin;
use crate::service::Mesh;
use crate::wire::control::{JoinAnswer, JoinRequest};

/// Tells each of those that are about to be asked, once. Who does not answer in time is asked all the same.
pub(super) async fn tell(
    mesh: &Arc<Mesh>,
    subnet: SubnetId,
    asked: &[PeerId],
    told: &mut BTreeSet<PeerId>,
) {
    let Ok(Some(goodbye)) = mesh.node.last_goodbye(subnet).await else {
        return;
    };
    let mut telling = JoinSet::new();
    for peer in asked.iter().copied().filter(|peer| !told.contains(peer)) {
        let (mesh, request) = (Arc::clone(mesh), JoinRequest::Decline(goodbye.clone()));
        telling.spawn(async move { (peer, exchange(&mesh, peer, &request).await) });
    }
    let heard = async {
        while let Some(answer) = telling.join_next().await {
            if let Ok((peer, Some(JoinAnswer::Known))) = answer {
                told.insert(peer);
            }
        }
    };
    // The others are told again before they are asked the next time.
    let _ = tokio::time::timeout(HEARD_WITHIN, heard).await;
}

/// Whether an answer lets this node in by a grant that it has given back. Who says so is told, and is asked again in the next
/// round: it may have passed on the answer of another, whom it tells.
pub(super) async fn is_given_back(
    mesh: &Arc<Mesh>,
    join: &PendingJoin,
    peer: PeerId,
    answer: &JoinAnswer,
) -> bool {
    let JoinAnswer::Admitted { genesis, records } = answer else {
        return false;
    };
    if !matches!(mesh.node.last_goodbye(join.subnet).await, Ok(Some(_))) {
        return false;
    }
    let records = mesh.node.checker().proof(records.clone()).await;
    let unheard = mesh
        .node
        .unheard_goodbye(join.clone(), genesis.clone(), records);
    let Ok(Some(goodbye)) = unheard.await else {
        return false;
    };
    exchange(mesh, peer, &JoinRequest::Decline(goodbye)).await;
    true
}
