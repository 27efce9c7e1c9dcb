//! Workloads: found on this machine, then attached.

use std::path::PathBuf;

use super::kernel::{Parts, settled, taken, undone};
use super::{Commands, attach};
use crate::api::types::{Error, ErrorKind, Request, Response, WorkloadInfo, WorkloadKind};
use crate::model::error::Code;
use crate::model::id::Name;
use crate::model::workload::Target;
use crate::node::{Claim, Effect};
use crate::tap;

/// Has a TAP belong to who asks for it, where nobody else is named. Only root makes one that is another user's.
///
/// # Errors
/// `E-PERMISSION`.
pub(super) fn owned(request: &mut Request, asker: u32) -> Result<(), Error> {
    let Request::Attach { workload, .. } = request else {
        return Ok(());
    };
    let WorkloadKind::Tap(device) = workload else {
        return Ok(());
    };
    match device.owner {
        Some(owner) if asker != 0 && owner != asker => {
            let message =
                format!("user {asker} may not make a TAP of user {owner}: that takes root");
            Err(Error::new(
                ErrorKind::NotPermitted,
                Code::Permission,
                message,
            ))
        }
        owner => {
            device.owner = Some(owner.unwrap_or(asker));
            Ok(())
        }
    }
}

/// Detaches what an engine attached, once the kernel has followed.
pub(super) async fn detach_container(
    ctx: &Commands,
    engine: Name,
    container: String,
    interface: String,
) -> Result<Response, Error> {
    let of = attach::whose(ctx, Target::of_engine(engine, container, &interface)?);
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
    let is_tap = attached.mac.is_some();
    attached.socket = is_tap.then(|| tap::socket(&ctx.config.socket, &attached.interface));
    Ok(Response::Attached(attached))
}

/// Where a workload's TAP is served as a stream, if it has one now.
pub(super) fn socket(ctx: &Commands, workload: &WorkloadInfo) -> Option<PathBuf> {
    let link = workload.link.as_ref().filter(|_| workload.kind == "tap")?;
    Some(tap::socket(&ctx.config.socket, &link.host_interface))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::TapDevice;

    #[test]
    fn a_tap_is_its_askers_and_only_root_names_another() {
        let owner = |named: Option<u32>, asker| -> Result<Option<u32>, Error> {
            let mut request = Request::Attach {
                workload: WorkloadKind::Tap(TapDevice {
                    name: "vm".to_owned(),
                    owner: named,
                }),
                subnet: "lab".to_owned(),
                name: None,
                ip: None,
                mac: None,
                engine: None,
            };
            owned(&mut request, asker)?;
            match request {
                Request::Attach {
                    workload: WorkloadKind::Tap(device),
                    ..
                } => Ok(device.owner),
                other => unreachable!("{other:?}"),
            }
        };
        let all = [(None, 1000), (Some(1000), 1000), (Some(1000), 0), (None, 0)];
        let owners = all.map(|(named, asker)| owner(named, asker).unwrap());
        assert_eq!(owners, [Some(1000), Some(1000), Some(1000), Some(0)]);
        let refused = owner(Some(0), 1000).unwrap_err();
        assert!(refused.code == Code::Permission, "{refused}");
    }
}
