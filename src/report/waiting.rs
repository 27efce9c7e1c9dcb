//! Joins that wait, as `status` shows them: who has the question, and what whoever decides compares.

use std::collections::BTreeMap;

use super::Report;
use super::paths::endpoint_text;
use crate::api::types::{Asked, Error, SubnetState, SubnetStatus, Waiting};
use crate::model::build::MTU;
use crate::model::id::SubnetId;
use crate::model::join::fingerprint;
use crate::model::local::PendingJoin;
use crate::model::policy::Terms;
use crate::service::join::Progress;

/// Adds every join that waits, or the one of `only`. A subnet that is here already, and is asked for again, gets it beside
/// what it is.
pub(super) async fn add(
    ctx: &Report,
    only: Option<SubnetId>,
    subnets: &mut Vec<SubnetStatus>,
) -> Result<(), Error> {
    for join in ctx
        .node
        .joins()
        .await?
        .into_iter()
        .filter(|join| only.is_none_or(|id| id == join.subnet))
    {
        // A refused one waits for nothing any more; what there is to say of it is a problem.
        let waiting = if join.refused.is_some() {
            None
        } else {
            Some(waiting(ctx, &join).await)
        };
        match subnets.iter_mut().find(|s| s.id == join.subnet) {
            Some(here) => here.waiting = waiting,
            None => subnets.push(pending(&join, waiting)),
        }
    }
    Ok(())
}

async fn waiting(ctx: &Report, join: &PendingJoin) -> Waiting {
    let running = ctx.mesh.joins.running(join.subnet);
    let asked = running
        .as_ref()
        .map(|r| r.asked.borrow().clone())
        .unwrap_or_default();
    let reached = running
        .as_ref()
        .is_some_and(|r| *r.progress.borrow() == Progress::Waiting { reached: true });
    let terms = running
        .as_ref()
        .and_then(|r| r.genesis.get())
        .map(|genesis| Terms::of(genesis, join.subnet));
    // Who holds it counts as one that waits to be told.
    drop(running);
    let known = ctx.peers.status().await.unwrap_or_default();
    let address = |peer| {
        let connection = known.iter().find(|p| p.peer == peer)?.connections.last()?;
        Some(endpoint_text(&connection.remote))
    };
    Waiting {
        fingerprint: fingerprint(ctx.peers.peer()),
        since: join.since,
        invite: join.invite.is_some(),
        asked: asked
            .into_iter()
            .map(|peer_id| Asked {
                peer_id,
                address: address(peer_id),
            })
            .collect(),
        reached,
        terms,
    }
}

fn pending(join: &PendingJoin, waiting: Option<Waiting>) -> SubnetStatus {
    SubnetStatus {
        id: join.subnet,
        name: join.shown(),
        state: if waiting.is_some() {
            SubnetState::Pending
        } else {
            SubnetState::Refused
        },
        member: join.name.clone(),
        addresses: vec![],
        interface: String::new(),
        mtu: MTU,
        members: 0,
        peers: vec![],
        workloads: vec![],
        drops: BTreeMap::new(),
        waiting,
    }
}
