//! Subnets: founded, and ended once the others heard of it.

use std::time::Duration;

use super::kernel::{Parts, links, settle, stands, without};
use super::{Commands, done};
use crate::api::types::{Cidr, Error, ErrorKind, Request, Response};
use crate::model::error::Code;
use crate::model::host::HostPolicy;
use crate::model::id::SubnetId;
use crate::model::members::printable;
use crate::model::state::Founding;
use crate::node::{Effect, Leaving};
use crate::report::outside;
use crate::service::join::around;

pub(super) async fn create(ctx: &Commands, request: Request) -> Result<Response, Error> {
    let Request::Create {
        name,
        cidr4,
        cidr6,
        block4,
        admission,
        domain,
        grant_life_s,
        host,
    } = request
    else {
        return Err(Error::new(ErrorKind::Usage, Code::Verb, "not create"));
    };
    ctx.platform.ready()?;
    let around = around(&ctx.mesh).await?;
    let founding = Founding {
        name,
        cidr4: choice(cidr4),
        cidr6: choice(cidr6),
        block4,
        admission,
        domain,
        grant_life: grant_life_s,
        member: ctx.config.node_name.clone(),
        around,
        salt: [0; 16],
        host,
    };
    let Effect {
        answer: mut created,
        generation,
    } = ctx.node.create(founding).await?;
    if let Err(error) = settle(ctx, generation, &Parts::of_subnets([created.id])).await {
        // What the kernel refuses was never founded, unless it was there before.
        return Err(if created.invite.is_some() {
            let undone = ctx.node.forget(created.id).await.map(drop);
            without(created.id, error, undone)
        } else {
            error
        });
    }
    if created.invite.is_some() {
        created.notes = outside::notes(&ctx.report).await;
    }
    Ok(Response::Created(created))
}

/// `subnet host`: what of this machine itself a subnet reaches. What is no longer let in has ended when this returns.
pub(super) async fn host(
    ctx: &Commands,
    subnet: String,
    host: Option<HostPolicy>,
) -> Result<Response, Error> {
    let Some(host) = host else {
        return Ok(Response::Host(ctx.node.host_policy(subnet).await?));
    };
    ctx.platform.ready()?;
    let links = links(ctx, Some(&subnet)).await;
    let Effect {
        answer: info,
        generation,
    } = ctx.node.set_host_policy(subnet, host).await?;
    stands(ctx, generation, &links).await?;
    Ok(Response::Host(info))
}

fn choice<T>(cidr: Cidr<T>) -> Option<Option<T>> {
    match cidr {
        Cidr::None => None,
        Cidr::Auto => Some(None),
        Cidr::Given(prefix) => Some(Some(prefix)),
    }
}

/// `leave`: a membership, or a join that waits.
pub(super) async fn leave(ctx: &Commands, subnet: String) -> Result<Response, Error> {
    match ctx.node.leave(subnet.clone()).await? {
        Leaving::Said(id) => end(ctx, id, &subnet, "left").await,
        Leaving::Withdrawn => {
            // Those that were asked are told at once.
            ctx.mesh.joins.hurry();
            let message = format!("the request to join {} is withdrawn", printable(&subnet));
            Ok(done(message, true))
        }
        Leaving::Gone => ended_before(ctx, &subnet).await,
    }
}

/// Carries out `destroy`.
pub(super) async fn destroy(ctx: &Commands, subnet: String) -> Result<Response, Error> {
    match ctx.node.destroy(subnet.clone()).await? {
        Some(id) => end(ctx, id, &subnet, "destroyed").await,
        None => ended_before(ctx, &subnet).await,
    }
}

/// Gives the others a moment to hear the last word, then forgets the subnet. The generation of the View without it.
async fn parted(ctx: &Commands, id: SubnetId) -> Result<u64, Error> {
    if !ctx.mesh.table.members().is_empty() {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(ctx.node.forget(id).await?.generation)
}

/// A membership that this machine cannot carry out: says goodbye, else the others would keep its name and its block.
pub(super) async fn give_back(ctx: &Commands, id: SubnetId) -> Result<(), Error> {
    ctx.node.leave(id.to_string()).await?;
    parted(ctx, id).await.map(drop)
}

/// After `leave` or `destroy`.
async fn end(ctx: &Commands, id: SubnetId, text: &str, word: &str) -> Result<Response, Error> {
    let generation = parted(ctx, id).await?;
    stands(ctx, generation, &Parts::closed()).await?;
    let networks = ctx.docker.networks_over(id).await;
    let rest = match &networks[..] {
        [] => String::new(),
        ids => format!(
            "; Docker has a network over it yet, without a way now: docker network rm {}",
            ids.join(" ")
        ),
    };
    Ok(done(format!("{word} {}{rest}", printable(text)), true))
}

/// `leave` or `destroy` of what is here no more: says how it went, whichever is asked for. Only a subnet that its owner ended
/// is destroyed.
async fn ended_before(ctx: &Commands, text: &str) -> Result<Response, Error> {
    let shown = printable(text);
    let told = if ctx.node.was_destroyed(text.to_owned()).await? {
        format!("{shown} was destroyed already")
    } else {
        format!("{shown} was left already; its other members, if it has any, keep it")
    };
    Ok(done(told, false))
}
