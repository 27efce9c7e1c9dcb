//! Workloads: found on this machine, then attached.

use super::{generation, settle};
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::daemon::{Context, attach};
use crate::model::publish::Added;

pub(super) async fn attach(ctx: &Context, request: Request) -> Result<Response, Error> {
    let Request::Attach { workload, subnet, name, ip, mac, engine } = request else {
        return Err(Error::new(ErrorKind::Usage, "E-VERB", "not attach"));
    };
    ctx.machine.ready()?;
    let text = subnet.clone();
    ctx.node.run(move |core| core.state.find(&text).map(drop)).await??;
    let new = attach::find(ctx, workload, name, mac, engine).await?;
    let wanted = attach::Wanted { name: new.name.to_string(), ip, netns: Some(new.netns.clone()) };
    attach::bury(ctx, &subnet, wanted).await?;
    let attached = ctx.node.run(move |core| core.attach(&subnet, new, ip).map(|a| (a, generation(core)))).await??;
    let (mut attached, generation) = attached;
    if let Err(error) = settle(ctx, generation).await {
        if attached.already {
            return Err(error);
        }
        let name = attached.workload.to_string();
        let subnet = attached.subnet.to_string();
        let undone = ctx.node.run(move |core| core.detach(&name, Some(&subnet))).await;
        tracing::warn!(%error, undone = undone.is_ok(), "attach failed");
        return Err(error);
    }
    let (name, subnet) = (attached.workload.clone(), attached.subnet.to_string());
    ctx.node.run(move |core| core.confirm(&subnet, &name, Added::Workload)).await??;
    attached.resolver &= ctx.machine.is_kernel();
    Ok(Response::Attached(attached))
}
