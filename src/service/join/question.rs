//! The question of a join, put to those that know the subnet, and which of their answers counts.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{QUESTION_TIMEOUT, left};
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::model::local::PendingJoin;
use crate::model::record::Genesis;
use crate::model::subnet::Records;
use crate::node::PIECE;
use crate::p2p::Protocol;
use crate::service::Mesh;
use crate::wire::control::{self, JoinAnswer, JoinRequest};

/// Asks each candidate; the first that lets us in decides, else the most telling answer. Of an invite only its issuer
/// knows what it is worth: another's refusal is not heard. What the owner denies is not outweighed by who cannot tell.
pub(super) async fn one_round(
    mesh: &Arc<Mesh>,
    join: &PendingJoin,
    owner: Option<PeerId>,
    candidates: Vec<PeerId>,
) -> Option<JoinAnswer> {
    let mut best: Option<JoinAnswer> = None;
    if let Some(invite) = &join.invite {
        // One attempt at a time: each takes a nonce of the issuer's.
        for peer in candidates {
            match ask(mesh, join, peer).await {
                Some(refused @ JoinAnswer::Refused { .. }) if peer == invite.issuer => {
                    return Some(refused);
                }
                Some(JoinAnswer::Refused { code, message }) => {
                    tracing::info!(%peer, code, message, "a refusal that is not the issuer's");
                }
                answer => best = better(best, answer),
            }
            if matches!(best, Some(JoinAnswer::Admitted { .. })) {
                break;
            }
        }
        return best;
    }
    let mut asks = JoinSet::new();
    for peer in candidates {
        let (mesh, join) = (Arc::clone(mesh), join.clone());
        asks.spawn(async move { (peer, ask(&mesh, &join, peer).await) });
    }
    let mut denied = None;
    while let Some(answer) = asks.join_next().await {
        let Ok((peer, answer)) = answer else { continue };
        if Some(peer) == owner
            && matches!(&answer, Some(JoinAnswer::Refused { code, .. }) if *code == Code::Denied)
        {
            denied = answer;
            continue;
        }
        best = better(best, answer);
        if matches!(best, Some(JoinAnswer::Admitted { .. })) {
            break;
        }
    }
    match best {
        Some(
            JoinAnswer::Admitted { .. }
            | JoinAnswer::Ended { .. }
            | JoinAnswer::Pending { reached: true },
        ) => best,
        _ => denied.or(best),
    }
}

fn better(a: Option<JoinAnswer>, b: Option<JoinAnswer>) -> Option<JoinAnswer> {
    let rank = |answer: &Option<JoinAnswer>| match answer {
        Some(JoinAnswer::Admitted { .. }) => 5,
        // Proven by the owner's signature.
        Some(JoinAnswer::Ended { .. }) => 4,
        Some(JoinAnswer::Pending { reached: true }) => 3,
        Some(JoinAnswer::Pending { .. }) => 2,
        Some(JoinAnswer::Refused { .. }) => 1,
        _ => 0,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

async fn ask(mesh: &Arc<Mesh>, join: &PendingJoin, peer: PeerId) -> Option<JoinAnswer> {
    let subnet = join.subnet;
    let mut nonce = None;
    if let Some(invite) = &join.invite {
        let request = JoinRequest::Nonce {
            subnet,
            issuer: invite.issuer,
            joiner: mesh.peers.peer(),
        };
        match exchange(mesh, peer, &request).await? {
            JoinAnswer::Nonce(bytes) => nonce = Some(bytes),
            other => return Some(other),
        }
    }
    let signed = mesh.node.signed_ask(join.clone(), nonce).await.ok()?;
    let answer = exchange(mesh, peer, &JoinRequest::Ask(signed)).await?;
    if left::is_given_back(mesh, join, peer, &answer).await {
        return Some(JoinAnswer::Pending { reached: true });
    }
    // Only records decide who is in: an end without its proof is nobody's word.
    if let JoinAnswer::Ended { genesis, heads } = &answer {
        let heads = mesh
            .node
            .checker()
            .proof(heads.iter().take(PIECE).cloned().collect())
            .await;
        let proven = Genesis::parse(genesis).is_ok_and(|g| {
            let mut records = Records::new(g);
            heads.into_iter().for_each(|head| {
                let _ = records.absorb(head);
            });
            records.id == subnet && records.destroyed()
        });
        return proven.then_some(answer);
    }
    Some(answer)
}

pub(super) async fn exchange(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    request: &JoinRequest,
) -> Option<JoinAnswer> {
    let body = mesh
        .peers
        .ask(
            peer,
            Protocol::Join,
            control::encode(request),
            QUESTION_TIMEOUT,
        )
        .await;
    match body {
        Ok(bytes) => control::decode(&bytes).ok(),
        Err(error) => {
            tracing::debug!(%peer, %error, "ask to join");
            None
        }
    }
}
