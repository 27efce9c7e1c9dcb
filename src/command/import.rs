//! `import`: a file's workloads, wholly or not at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Commands;
use super::attach::parse_mac;
use super::kernel::{Parts, settle};
use super::maps::{is_unused_but, permitted};
use crate::api::types::{Error, ErrorKind, ImportMap, ImportWorkload, Response};
use crate::model::error::Code;
use crate::node::{Effect, NewImport};

/// Imports what a file says. What the kernel refuses of it is taken back whole.
pub(super) async fn import(
    ctx: &Commands,
    source: String,
    workloads: Vec<ImportWorkload>,
) -> Result<Response, Error> {
    ctx.platform.ready()?;
    let mut all = Vec::new();
    for asked in workloads {
        let mac = asked.mac.as_deref().map(parse_mac).transpose();
        let mac = mac.map_err(|error| asked.blamed(error))?;
        for map in &asked.maps {
            let free = are_ports_free(ctx, &asked.subnet, map).await;
            free.map_err(|error| asked.blamed(error))?;
        }
        all.push(NewImport::new(asked, mac));
    }
    let Effect {
        answer: made,
        generation,
    } = ctx.node.import(source.clone(), all).await?;
    if made.imported.changed
        && let Err(error) = settle(ctx, generation, &Parts::of_maps(made.maps)).await
    {
        return Err(match ctx.node.import_undo(source, made.former).await {
            Ok(()) => error,
            Err(why) => Error {
                message: format!(
                    "{}; it could not be taken back: {}",
                    error.message, why.message
                ),
                ..error
            },
        });
    }
    Ok(Response::Imported(made.imported))
}

/// Programs that listen for containers of their engines: those may run already, by the same file.
const OF_ENGINES: [&str; 7] = [
    "docker-proxy",
    "rootlesskit",
    "rootlessport",
    "slirp4netns",
    "conmon",
    "pasta",
    "pasta.avx2",
];

/// Refuses a map whose ports another program has, or this one.
async fn are_ports_free(ctx: &Commands, subnet: &str, map: &ImportMap) -> Result<(), Error> {
    permitted(ctx, map.proto, map.ports)?;
    let own = &ctx.node.view().load().host.underlay_ports;
    if let Some(port) = map.ports.iter().find(|port| own.contains(port)) {
        let message = format!(
            "map {} port {port}: byway itself listens there for its peers",
            map.proto
        );
        return Err(Error::new(ErrorKind::Conflict, Code::PortInUse, message)
            .hint("another port in the file, or another transport.listen in the configuration"));
    }
    let every: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let listens = map.listen.map_or(every.to_vec(), |listen| vec![listen]);
    // Docker has its own ports as soon as the container runs.
    let is_engines = |process: Option<&str>| {
        let name = process.and_then(|process| process.split(" (").next());
        map.by_engine && name.is_none_or(|name| OF_ENGINES.contains(&name))
    };
    is_unused_but(ctx, subnet, (map.proto, map.ports), listens, is_engines).await
}

/// Brings back what was before the last import of a file.
pub(super) async fn back(ctx: &Commands, source: String) -> Result<Response, Error> {
    ctx.platform.ready()?;
    for (subnet, map) in ctx.node.import_returns(source.clone()).await? {
        are_ports_free(ctx, &subnet, &map).await?;
    }
    let back = ctx.node.import_back(source).await?;
    super::kernel::stands(ctx, back.generation, &Parts::closed()).await?;
    Ok(Response::Imported(back.answer.imported))
}
