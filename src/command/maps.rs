//! Port maps, made when their port is free.

use std::net::IpAddr;

use super::Commands;
use super::kernel::{taken, undone};
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::host::listening::{self, Conflict};
use crate::model::error::Code;
use crate::model::host::Proto;
use crate::model::ports::PortRange;
use crate::node::{Effect, prepare_map};
use crate::report::maps::judge;

/// Refuses ports that the owner of this machine keeps from port maps.
pub(super) fn permitted(ctx: &Commands, proto: Proto, ports: PortRange) -> Result<(), Error> {
    let range = ctx.settings.now().ports_range;
    if range.contains(ports.first()) && range.contains(ports.last()) {
        return Ok(());
    }
    let message = format!("{proto} {ports} is not in {range}, where this machine has port maps");
    Err(
        Error::new(ErrorKind::NotPermitted, Code::PortRange, message).hint(format!(
            "a port of {range}, or another [ports] range in the configuration and: byway reload"
        )),
    )
}

/// Refuses ports at which another program listens. Where a map of ours has one, its own proxy listens there; the node names
/// that conflict.
pub(super) async fn is_unused(
    ctx: &Commands,
    subnet: &str,
    (proto, ports): (Proto, PortRange),
    addresses: Vec<IpAddr>,
) -> Result<(), Error> {
    is_unused_but(ctx, subnet, (proto, ports), addresses, |_| false).await
}

/// The same where a program may listen, by what is seen of it: `nginx (pid 812)`, or nothing.
pub(super) async fn is_unused_but(
    ctx: &Commands,
    subnet: &str,
    (proto, ports): (Proto, PortRange),
    addresses: Vec<IpAddr>,
    may: impl Fn(Option<&str>) -> bool,
) -> Result<(), Error> {
    let unmapped = ctx
        .node
        .unmapped(subnet.to_owned(), (proto, ports), addresses);
    for listen in unmapped
        .await?
        .into_iter()
        .filter(|_| ctx.platform.is_kernel())
    {
        let free =
            tokio::task::spawn_blocking(move || listening::check(proto, listen, ports)).await;
        if let Ok(Err(conflict)) = free
            && !may(conflict.process.as_deref())
        {
            let port = conflict.address.port();
            let message = in_use(&conflict, ctx.own.is_some());
            return Err(Error::new(ErrorKind::Conflict, Code::PortInUse, message)
                .hint(format!("ss -lnp sport = :{port}")));
        }
    }
    Ok(())
}

/// Says that a port has a program already. Which one it is tells of others, so a user who may look at its own only is not
/// told.
fn in_use(conflict: &Conflict, own_only: bool) -> String {
    let (proto, port) = (conflict.proto, conflict.address.port());
    if own_only {
        return format!("map {proto} port {port}: a program of this machine listens there");
    }
    format!("map {proto} port {port}: {conflict}")
}

pub(super) async fn map_add(ctx: &Commands, request: Request) -> Result<Response, Error> {
    let Request::MapAdd {
        subnet,
        proto,
        listen,
        ports,
        target,
        target_ports,
        name,
        allow,
        workload,
    } = request
    else {
        return Err(Error::new(ErrorKind::Usage, Code::Verb, "not map add"));
    };
    ctx.platform.ready()?;
    permitted(ctx, proto, ports)?;
    let mut new_map = prepare_map(proto, listen, ports, target, target_ports, name, allow)?;
    new_map.workload = workload;
    new_map.own = ctx.own;
    let everywhere = new_map.everywhere;
    let addresses: Vec<IpAddr> = new_map.maps.iter().map(|map| map.listen).collect();
    if ctx.own.is_some() {
        // First of all: who may not lead the port anywhere is told nothing of who listens there.
        let (subnet, new_map) = (subnet.clone(), new_map.clone());
        ctx.node.may_map(subnet, new_map).await?;
    }
    is_unused(ctx, &subnet, (proto, ports), addresses).await?;
    let Effect {
        answer: added,
        generation,
    } = ctx.node.map_add(subnet, new_map).await?;
    taken(ctx, generation, &added).await?;
    let mut made = match ctx.node.confirm_map(added.clone()).await {
        Ok(made) => made,
        Err(error) => return Err(undone(ctx, added, error).await),
    };
    // Whether anybody answers behind it is asked now: the first word of a map's state is to be true.
    judge(&ctx.report, &mut made).await;
    if everywhere {
        return Ok(Response::Maps { maps: made });
    }
    made.pop()
        .map(Response::Map)
        .ok_or_else(|| Error::new(ErrorKind::Failed, Code::Map, "the map is gone again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_look_at_its_own_only_is_told_no_program() {
        let conflict = Conflict {
            proto: Proto::Tcp,
            address: "10.0.0.1:80".parse().unwrap(),
            process: Some("nginx (pid 812)".to_owned()),
        };
        let all = in_use(&conflict, false);
        assert!(all.contains("nginx (pid 812)"), "{all}");
        let own = in_use(&conflict, true);
        assert_eq!(
            own,
            "map tcp port 80: a program of this machine listens there"
        );
    }
}
