//! Adoption: the engine has moved a link, and the workload gets its namespace.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::command::Commands;
use crate::config::DnsMode;
use crate::host::{asking, moved};
use crate::model::host::{Moved, NetnsRef};
use crate::node::{Staged, Underlying};

/// How often it is tried to find where a link has gone.
const TRIES: u32 = 100;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Adopts what the kernel says has moved, until `stop`.
pub(crate) async fn follow(ctx: Commands, stop: CancellationToken) -> anyhow::Result<()> {
    let mut applied = ctx.applied.clone();
    // Those that were adopted by the daemon before this one.
    for staged in ctx.node.staged_endpoints().await? {
        turn(&ctx, &staged).await;
    }
    let under_way: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = applied.changed() => changed?,
        }
        let all = applied.borrow_and_update().moved.clone();
        if all.is_empty() {
            continue;
        }
        for staged in ctx.node.staged_endpoints().await? {
            let name = (staged.subnet, &staged.workload.name);
            let is = |m: &&Moved| (m.subnet, &m.workload) == name;
            let Some(moved) = all.iter().find(is).filter(|_| staged.workload.is_staged()) else {
                continue;
            };
            let id = staged.id().to_owned();
            if !under_way.lock().insert(id.clone()) {
                continue;
            }
            let Ok(under) = ctx.node.underlying(Some(staged.subnet.to_string())).await else {
                under_way.lock().remove(&id);
                continue;
            };
            let routes = destinations(&under, &staged.workload.addresses);
            let (ctx, moved, under_way) = (ctx.clone(), moved.clone(), Arc::clone(&under_way));
            let until = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = until.cancelled() => {}
                    () = adopt(&ctx, &id, &moved, &routes) => {}
                }
                under_way.lock().remove(&id);
            });
        }
    }
    // Nobody answers any more.
    let left = ctx.node.staged_endpoints().await.unwrap_or_default();
    let all = left.iter().map(leave);
    futures::future::join_all(all).await;
    Ok(())
}

/// Brings what a container asks for names to our resolver, whatever its own resolver's file says.
async fn turn(ctx: &Commands, staged: &Staged) {
    let Some(netns) = &staged.workload.netns else {
        return;
    };
    if ctx.config.dns_mode == DnsMode::Off {
        return;
    }
    let turned = async {
        let under = ctx.node.underlying(Some(staged.subnet.to_string())).await?;
        let (link, own) = (&staged.workload.inner_link, &staged.workload.addresses);
        asking::turn(netns, link, own, &under.gateways).await
    };
    if let Err(error) = turned.await {
        let error = format!("{error:#}");
        tracing::warn!(workload = %staged.workload.name, error, "a container does not ask us for names");
    }
}

/// Takes back what [`turn`] did.
pub(super) async fn leave(staged: &Staged) {
    let Some(netns) = &staged.workload.netns else {
        return;
    };
    if let Err(error) = asking::leave(netns, &staged.workload.inner_link).await {
        tracing::debug!(
            error = format!("{error:#}"),
            "leave a container's questions alone"
        );
    }
}

/// What the engine was told to route to the subnet, in a container with these addresses.
fn destinations(under: &Underlying, own: &[IpAddr]) -> Vec<IpNet> {
    let has = |prefix: &&IpNet| own.iter().any(|a| a.is_ipv4() == prefix.addr().is_ipv4());
    under.prefixes.iter().filter(has).copied().collect()
}

/// Finds where a link has gone and adopts its workload, unless the engine takes it out again. What we set there would be in
/// the way of the engine, so it has its time to configure the link first.
async fn adopt(ctx: &Commands, id: &str, moved: &Moved, routes: &[IpNet]) {
    let mut place = None;
    for _ in 0..TRIES {
        let sandbox = {
            let known = ctx.docker.known.lock();
            if known.left.contains(id) {
                return;
            }
            known.sandboxes.get(id).cloned()
        };
        match moved::find(moved, sandbox.as_deref().map(Path::new)).await {
            Ok(Some((netns, link))) => {
                match moved::configured(moved, &netns, routes).await {
                    Ok(Some(link)) => return take(ctx, id, netns, link).await,
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, "look at a moved link"),
                }
                place = Some((netns, link));
            }
            Ok(None) => place = None,
            Err(error) => tracing::debug!(error = format!("{error:#}"), "look for a moved link"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    match place {
        // The engine has not made its routes, or somebody took them away: then they are ours to make.
        Some((netns, link)) => take(ctx, id, netns, link).await,
        None => tracing::warn!(endpoint = id, "the namespace of a container was not found"),
    }
}

/// Adopts a workload, unless the engine has taken its link out again.
async fn take(ctx: &Commands, id: &str, netns: NetnsRef, link: String) {
    if ctx.docker.known.lock().left.contains(id) {
        return;
    }
    if let Err(error) = ctx.node.adopt(id.to_owned(), netns, link).await {
        tracing::warn!(endpoint = id, %error, "a container's link is not looked after");
    } else if let Ok(staged) = ctx.node.staged_endpoint(id.to_owned()).await {
        turn(ctx, &staged).await;
    }
}
