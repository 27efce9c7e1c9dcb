//! Workloads: found on this machine, then attached.

use super::kernel::{Parts, settled, taken, undone};
use super::{Commands, attach};
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::model::error::Code;
use crate::model::id::Name;
use crate::model::workload::Target;
use crate::node::{Claim, Effect};

/// Detaches what an engine attached, once the kernel has followed.
pub(super) async fn detach_container(
    ctx: &Commands,
    engine: Name,
    container: String,
    interface: String,
) -> Result<Response, Error> {
    let of = Target::of_engine(engine, container, &interface)?;
    let detach = ctx.node.detach_container(of, interface);
    settled(ctx, Parts::closed(), detach).await
}

pub(super) async fn attach(ctx: &Commands, request: Request) -> Result<Response, Error> {
    let Request::Attach {
        workload,
        subnet,
        name,
        ip,
        mac,
        engine,
    } = request
    else {
        return Err(Error::new(ErrorKind::Usage, Code::Verb, "not attach"));
    };
    ctx.platform.ready()?;
    ctx.node.find(subnet.clone()).await?;
    let new = attach::find(ctx, workload, name, mac, engine).await?;
    let interface = Some((new.target.clone(), new.inner_link.clone()));
    let wanted = Claim {
        name: new.name.to_string(),
        ip,
        netns: new.netns.clone(),
        interface,
    };
    let netns = new.netns.clone();
    // Each of the addresses may be that of a workload that is gone.
    for ip in &new.beside.ips {
        let address = Claim {
            ip: Some(*ip),
            ..wanted.clone()
        };
        attach::bury(ctx, &subnet, address).await?;
    }
    attach::bury(ctx, &subnet, wanted).await?;
    let Effect {
        answer: (mut attached, added),
        generation,
    } = ctx.node.attach(subnet, new, ip).await?;
    taken(ctx, generation, &added).await?;
    if let Err(error) = attach::still_there(netns.as_ref()).await {
        return Err(undone(ctx, added, error).await);
    }
    if let Err(error) = ctx.node.confirm(added.clone()).await {
        return Err(undone(ctx, added, error).await);
    }
    attached.resolver &= ctx.platform.is_kernel();
    Ok(Response::Attached(attached))
}
