//! `import`: a file's workloads, wholly or not at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Commands;
use super::attach::parse_mac;
use super::kernel::{Parts, settle};
use super::maps::{is_unused, permitted};
use crate::api::types::{Error, ImportWorkload, Response};
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
        let mac = asked.mac.as_deref().map(parse_mac).transpose()?;
        for map in &asked.maps {
            permitted(ctx, map.proto, map.ports)?;
            // Docker has those itself, as soon as its container runs.
            if map.by_engine {
                continue;
            }
            let every: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let listens = map.listen.map_or(every.to_vec(), |listen| vec![listen]);
            is_unused(ctx, &asked.subnet, (map.proto, map.ports), listens).await?;
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

/// Brings back what was before the last import of a file.
pub(super) async fn back(ctx: &Commands, source: String) -> Result<Response, Error> {
    ctx.platform.ready()?;
    for (subnet, map) in ctx.node.import_returns(source.clone()).await? {
        is_unused(ctx, &subnet, (map.proto, map.ports), vec![map.listen]).await?;
    }
    let back = ctx.node.import_back(source).await?;
    super::kernel::stands(ctx, back.generation, &Parts::closed()).await?;
    Ok(Response::Imported(back.answer.imported))
}
