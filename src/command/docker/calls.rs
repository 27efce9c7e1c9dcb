//! The calls of the engine, each answered from what the node decides.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::adopt;
use super::kept::{Kept, Network};
use crate::api::types::Error;
use crate::command::Commands;
use crate::command::kernel::{Parts, settled, taken, undone};
use crate::engine::plugin::{
    self, Addresses, Call, Endpoint, Handler, Join, Joined, Pool, PoolAsked, Reply, Route,
};
use crate::model::id::SubnetId;
use crate::node::{Effect, NewEndpoint, Underlying};

/// How long an address is kept for an endpoint that the engine asked for it for: it makes that at once.
const PROMISE: Duration = Duration::from_secs(300);

/// What carries calls out, on the runtime of the daemon and not on that of the socket. What is begun is finished even
/// where the engine waits no more.
pub(super) fn handler(ctx: Commands) -> Handler {
    let runtime = tokio::runtime::Handle::current();
    Arc::new(move |call| {
        let ctx = ctx.clone();
        let task = runtime.spawn(async move { carry_out(&ctx, call).await });
        Box::pin(async move {
            task.await
                .unwrap_or_else(|_| Err("the byway daemon is stopping".to_owned()))
        })
    })
}

/// An error as one line for whoever typed the engine's command.
fn told(error: Error) -> String {
    let hint = error.hint.split("      ").next().unwrap_or_default();
    match hint {
        "" => format!("{}: {}", error.code, error.message),
        hint => format!("{}: {} (try: {hint})", error.code, error.message),
    }
}

async fn carry_out(ctx: &Commands, call: Call) -> Result<Reply, String> {
    match call {
        Call::RequestPool(asked) => request_pool(ctx, asked).await,
        Call::ReleasePool(_) => Ok(Reply::Done),
        Call::RequestAddress(asked) => request_address(ctx, asked).await,
        Call::ReleaseAddress { address, .. } => {
            ctx.docker.promised.lock().await.remove(&address);
            Ok(Reply::Done)
        }
        Call::CreateNetwork(network) => create_network(ctx, network).await,
        Call::DeleteNetwork(id) => delete_network(ctx, &id).await,
        Call::CreateEndpoint(endpoint) => create_endpoint(ctx, endpoint).await,
        Call::DeleteEndpoint(id) => delete_endpoint(ctx, id).await,
        Call::Join(join) => joined(ctx, join).await,
        Call::Leave(id) => leave(ctx, id).await,
    }
}

/// The ID of a subnet's pool of one family.
fn pool_id(subnet: SubnetId, ipv6: bool) -> String {
    format!("byway/{subnet}/{}", if ipv6 { 6 } else { 4 })
}

/// What [`pool_id`] made an ID of.
fn pool_of(id: &str) -> Option<(SubnetId, bool)> {
    let (subnet, family) = id.strip_prefix("byway/")?.split_once('/')?;
    let ipv6 = match family {
        "4" => false,
        "6" => true,
        _ => return None,
    };
    Some((subnet.parse().ok()?, ipv6))
}

/// The prefix of one family of a subnet.
fn prefix_of(under: &Underlying, ipv6: bool) -> Option<IpNet> {
    if ipv6 {
        under.cidr6.map(IpNet::V6)
    } else {
        under.cidr4.map(IpNet::V4)
    }
}

async fn request_pool(ctx: &Commands, asked: PoolAsked) -> Result<Reply, String> {
    let under = ctx.node.underlying(asked.subnet).await.map_err(told)?;
    let family = if asked.ipv6 { "IPv6" } else { "IPv4" };
    let prefix = prefix_of(&under, asked.ipv6)
        .ok_or_else(|| format!("subnet {} has no pool of {family}", under.name))?;
    if let Some(wanted) = asked.prefix.filter(|wanted| *wanted != prefix) {
        return Err(format!(
            "subnet {} has {prefix} and not {wanted}: leave --subnet out",
            under.name
        ));
    }
    is_free(&*ctx.docker.kept.lock().await, &under)?;
    Ok(Reply::Pool(Pool {
        id: pool_id(under.subnet, asked.ipv6),
        prefix,
    }))
}

/// Whether no network is over a subnet yet.
fn is_free(kept: &Kept, under: &Underlying) -> Result<(), String> {
    let over = |network: &Network| network.subnet() == Some(under.subnet);
    match kept.networks.iter().find(|(_, network)| over(network)) {
        Some((id, _)) => {
            let short: String = id.chars().take(12).collect();
            Err(format!(
                "subnet {} has a network on this host already, {short}: there is one for each subnet",
                under.name
            ))
        }
        None => Ok(()),
    }
}

async fn request_address(ctx: &Commands, asked: Addresses) -> Result<Reply, String> {
    let (subnet, ipv6) = pool_of(&asked.pool)
        .ok_or_else(|| format!("there is no pool {} of byway's", asked.pool))?;
    if asked.gateway {
        let under = ctx.node.underlying(Some(subnet.to_string()));
        let under = under.await.map_err(told)?;
        let own = of_family(&under.gateways, ipv6)
            .ok_or_else(|| format!("this machine has no such address in subnet {}", under.name))?;
        return match asked.wanted.filter(|wanted| *wanted != own) {
            Some(_) => Err(format!(
                "the gateway of subnet {} on this host is {own}: leave --gateway out",
                under.name
            )),
            None => Ok(Reply::Address(own)),
        };
    }
    // Until the endpoint is made nothing but this says that the address is taken.
    let mut promised = ctx.docker.promised.lock().await;
    let now = Instant::now();
    promised.retain(|_, until| *until > now);
    let avoid: BTreeSet<IpAddr> = promised.keys().copied().collect();
    let mut wanted = asked.wanted;
    if let (None, Some(name)) = (wanted, asked.name) {
        let planned = ctx.node.planned_address(subnet, name, ipv6);
        wanted = planned.await.map_err(told)?.filter(|a| !avoid.contains(a));
    }
    let address = ctx
        .node
        .free_address(subnet, ipv6, wanted, avoid)
        .await
        .map_err(told)?;
    promised.insert(address, now + PROMISE);
    Ok(Reply::Address(address))
}

fn of_family(addresses: &[IpAddr], ipv6: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|a| a.is_ipv6() == ipv6)
}

async fn create_network(ctx: &Commands, network: plugin::Network) -> Result<Reply, String> {
    let mut kept = ctx.docker.kept.lock().await;
    let under = ctx.node.underlying(network.subnet).await.map_err(told)?;
    let ours = |pool: &IpNet| {
        [false, true]
            .iter()
            .any(|v6| prefix_of(&under, *v6) == Some(*pool))
    };
    if network.pools.is_empty() || !network.pools.iter().all(ours) {
        return Err(format!(
            "the addresses have to come from subnet {0}: --ipam-driver byway --ipam-opt subnet={0}",
            under.name
        ));
    }
    // The same once more is no other network.
    let again = kept.networks.get(&network.id).and_then(Network::subnet) == Some(under.subnet);
    if !again {
        is_free(&kept, &under)?;
    }
    let mut next = kept.clone();
    let made = Network {
        subnet: under.subnet.to_string(),
        ipv6: network.pools.iter().any(|pool| pool.addr().is_ipv6()),
    };
    let id = network.id.clone();
    next.networks.insert(network.id, made);
    next.write(&ctx.docker.state_dir).await.map_err(told)?;
    *kept = next;
    ctx.docker.known.lock().made.insert(id, Instant::now());
    Ok(Reply::Done)
}

async fn delete_network(ctx: &Commands, id: &str) -> Result<Reply, String> {
    ctx.docker.forget_network(id).await.map_err(told)?;
    Ok(Reply::Done)
}

/// The subnet of a network of the engine's.
async fn subnet_of(ctx: &Commands, network: &str) -> Result<SubnetId, String> {
    let kept = ctx.docker.kept.lock().await;
    let subnet = kept.networks.get(network).and_then(Network::subnet);
    subnet.ok_or_else(|| {
        let short: String = network.chars().take(12).collect();
        format!("this daemon knows no network {short}: docker network rm it, and create it again")
    })
}

async fn create_endpoint(ctx: &Commands, endpoint: Endpoint) -> Result<Reply, String> {
    let subnet = subnet_of(ctx, &endpoint.network).await?;
    if endpoint.addresses.is_empty() {
        return Err("this endpoint has no address: --ipam-driver byway".to_owned());
    }
    let asked_mac = endpoint.mac.is_some();
    let new = NewEndpoint {
        id: endpoint.id,
        addresses: endpoint.addresses.clone(),
        mac: endpoint.mac,
    };
    let staged = ctx.node.stage(subnet, new).await.map_err(told)?;
    let Effect {
        answer: (staged, added),
        generation,
    } = staged;
    ctx.docker.known.lock().left.remove(staged.id());
    taken(ctx, generation, &added).await.map_err(told)?;
    if let Err(error) = ctx.node.confirm(added.clone()).await {
        return Err(told(undone(ctx, added, error).await));
    }
    let mut promised = ctx.docker.promised.lock().await;
    promised.retain(|address, _| !endpoint.addresses.contains(address));
    Ok(Reply::Endpoint((!asked_mac).then_some(staged.mac)))
}

async fn delete_endpoint(ctx: &Commands, id: String) -> Result<Reply, String> {
    {
        let mut known = ctx.docker.known.lock();
        known.sandboxes.remove(&id);
        known.left.remove(&id);
        known.mapped.retain(|(endpoint, _)| *endpoint != id);
    }
    settled(ctx, Parts::closed(), ctx.node.remove_endpoint(id))
        .await
        .map_err(told)?;
    Ok(Reply::Done)
}

async fn joined(ctx: &Commands, join: Join) -> Result<Reply, String> {
    let mut staged = ctx
        .node
        .staged_endpoint(join.endpoint.clone())
        .await
        .map_err(told)?;
    let under = ctx.node.underlying(Some(staged.subnet.to_string()));
    let under = under.await.map_err(told)?;
    if staged.workload.netns.is_some() {
        return Err(format!(
            "endpoint {} is in a container already",
            join.endpoint
        ));
    }
    // One that has left a container and joins another.
    if !staged.workload.is_staged() {
        let restaged = ctx.node.restage(join.endpoint.clone());
        staged = settled(ctx, Parts::of_subnets([staged.subnet]), restaged)
            .await
            .map_err(told)?;
    }
    let mut routes = Vec::new();
    for ipv6 in [false, true] {
        let has = of_family(&staged.workload.addresses, ipv6).is_some();
        let Some(gateway) = of_family(&under.gateways, ipv6).filter(|_| has) else {
            continue;
        };
        routes.push(Route {
            to: gateway.into(),
            via: None,
        });
        let there = under.prefixes.iter().filter(|p| p.addr().is_ipv6() == ipv6);
        routes.extend(there.map(|prefix| Route {
            to: prefix.trunc(),
            via: Some(gateway),
        }));
    }
    {
        let mut known = ctx.docker.known.lock();
        known.left.remove(&join.endpoint);
        known.sandboxes.insert(join.endpoint, join.sandbox);
    }
    Ok(Reply::Joined(Joined {
        link: staged.workload.inner_link,
        routes,
    }))
}

async fn leave(ctx: &Commands, id: String) -> Result<Reply, String> {
    {
        let mut known = ctx.docker.known.lock();
        known.sandboxes.remove(&id);
        known.left.insert(id.clone());
    }
    let staged = ctx.node.staged_endpoint(id.clone()).await;
    ctx.node.unstage(id).await.map_err(told)?;
    if let Ok(staged) = staged {
        adopt::leave(&staged).await;
    }
    Ok(Reply::Done)
}
