//! A join that a person took back: those that were asked hear of it, so that nobody lets in who wants it no more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{LATER, Tried, candidates, decline, exchange};
use crate::model::id::PeerId;
use crate::model::local::PendingJoin;
use crate::model::members::REQUEST_LIFE;
use crate::service::Mesh;
use crate::wire::control::{JoinAnswer, JoinRequest};

/// Tells each of those that have the question. Who is away is told once it is back, as long as it keeps a question that
/// nobody repeats; a join of the same subnet that begins meanwhile says the contrary.
pub(super) async fn tell(mesh: Arc<Mesh>, join: PendingJoin, mut asked: Vec<PeerId>) {
    let begun = Instant::now();
    let mut tried = Tried::default();
    for round in 0.. {
        if round > 0 {
            if asked.is_empty() || begun.elapsed() >= Duration::from_secs(REQUEST_LIFE) {
                return;
            }
            tokio::time::sleep(LATER).await;
        }
        // Whoever is away is dialled again where the join found it.
        let away = asked
            .iter()
            .any(|peer| !mesh.table.connected().contains(peer));
        if away {
            candidates(&mesh, &join, &mut tried, round).await;
        }
        let mut unheard = Vec::new();
        for peer in asked {
            if mesh.joins.running(join.subnet).is_some() {
                return;
            }
            if !told(&mesh, &join, peer).await {
                unheard.push(peer);
            }
        }
        asked = unheard;
    }
}

/// Tells one of them; whether that is done. Who has let this peer in meanwhile gets its grant back.
async fn told(mesh: &Arc<Mesh>, join: &PendingJoin, peer: PeerId) -> bool {
    let request = JoinRequest::Withdraw {
        subnet: join.subnet,
        joiner: mesh.peers.peer(),
    };
    match exchange(mesh, peer, &request).await {
        Some(JoinAnswer::Admitted { genesis, records }) => {
            let records = mesh.node.checker().proof(records).await;
            let goodbye = mesh.node.decline(join.clone(), genesis, records).await;
            let Ok(Some(goodbye)) = goodbye else {
                return true;
            };
            decline(mesh, join, Some(goodbye)).await;
            // Asked again it says whether it was heard.
            false
        }
        // Nobody who may decide was reached, or it passes.
        None | Some(JoinAnswer::Pending { .. } | JoinAnswer::Refused { .. }) => false,
        Some(_) => true,
    }
}
