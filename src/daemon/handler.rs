//! Requests of the control socket: what needs the outside world is done here, what is decided is decided by the node.

mod join;
pub(super) mod maps;
mod names;
mod peers;
mod subnets;
mod workloads;

use std::sync::Arc;
use std::time::Duration;

use super::{Context, attach, metrics, reload, status};
use crate::api::server::{Handler, Peer};
use crate::api::types::{Done, Error, ErrorKind, IdInfo, Request, Response};
use crate::model::join::fingerprint;
use crate::model::members::printable;
use crate::model::record::Term;
use crate::node::{Core, Leaving};
use crate::p2p::Command;
use crate::service::clock;

/// How long a command waits for the kernel to follow.
const KERNEL_PATIENCE: Duration = Duration::from_secs(8);

/// The handler the control socket calls.
pub(crate) fn handler(ctx: Context) -> Handler {
    Arc::new(move |request: Request, _peer: Peer| {
        let ctx = ctx.clone();
        Box::pin(async move {
            let closes = closes(&request);
            let blamed = |error| clock::blamed(&ctx.mesh.clocks, if closes { unsaved(error) } else { error });
            call(&ctx, request).await.map_err(blamed)
        })
    })
}

/// Whether a request takes something of this machine off the wire.
fn closes(request: &Request) -> bool {
    matches!(
        request,
        Request::Leave { .. }
            | Request::Destroy { .. }
            | Request::Down { .. }
            | Request::SubnetHost { host: Some(_), .. }
            | Request::Detach { .. }
            | Request::MapRm { .. }
    )
}

/// Nothing takes effect that is not saved: who has to close something at once on a full disk is told what does.
fn unsaved(error: Error) -> Error {
    if !matches!(error.code.as_str(), "E-DISK-FULL" | "E-STATE-IO" | "E-STATE-WRITE") {
        return error;
    }
    let stop = "systemctl stop byway      (takes everything off the wire at once, until it is started again)";
    let hint = if error.hint.is_empty() { stop.to_owned() } else { format!("{}; or: {stop}", error.hint) };
    Error { message: format!("{}; nothing was changed, it is on the wire as before", error.message), hint, ..error }
}

/// Does what a request asks for.
pub(crate) async fn call(ctx: &Context, request: Request) -> Result<Response, Error> {
    match request {
        Request::Create { .. } => subnets::create(ctx, request).await,
        Request::Join { .. } => join::join_subnet(ctx, request).await,
        Request::SubnetHost { subnet, host } => subnets::host(ctx, subnet, host).await,
        Request::Leave { subnet } => {
            let text = subnet.clone();
            match ctx.node.run(move |core| core.leave(&text)).await?? {
                Leaving::Said(id) => subnets::end(ctx, id, &subnet, "left").await,
                Leaving::Withdrawn => {
                    // Those that were asked are told at once.
                    ctx.mesh.joins.hurry();
                    Ok(done(format!("the request to join {} is withdrawn", printable(&subnet)), true))
                }
                Leaving::Gone => subnets::ended_before(ctx, &subnet).await,
            }
        }
        Request::Destroy { subnet } => {
            let text = subnet.clone();
            let destroyed = ctx.node.run(move |core| core.destroy(&text)).await??;
            match destroyed {
                Some(id) => subnets::end(ctx, id, &subnet, "destroyed").await,
                None => subnets::ended_before(ctx, &subnet).await,
            }
        }
        Request::Up { subnet } => {
            ctx.machine.ready()?;
            changed(ctx, move |core| core.set_up(subnet.as_deref(), true)).await
        }
        Request::Down { subnet } => changed(ctx, move |core| core.set_up(subnet.as_deref(), false)).await,
        Request::InviteCreate { subnet, uses, expires_ms, role, labels, ephemeral } => {
            let term = if ephemeral { Term::Ephemeral } else { Term::Full };
            ctx.node.run(move |core| core.invite_create(&subnet, uses, expires_ms, (role, term), labels)).await?
        }
        Request::InviteRevoke { invite } => ctx.node.run(move |core| core.invite_revoke(&invite)).await?,
        Request::MemberApprove { subnet, member } => {
            changed(ctx, move |core| core.decide_request(&subnet, &member, true)).await
        }
        Request::MemberDeny { subnet, member } => {
            changed(ctx, move |core| core.decide_request(&subnet, &member, false)).await
        }
        Request::MemberRemove { subnet, member } => {
            changed(ctx, move |core| core.member_remove(&subnet, &member)).await
        }
        Request::MemberRole { subnet, member, role } => {
            changed(ctx, move |core| core.member_role(&subnet, &member, role)).await
        }
        Request::MemberLabel { subnet, member, labels } => {
            changed(ctx, move |core| core.member_label(&subnet, &member, &labels)).await
        }
        Request::LeaseAdd { subnet, prefix, member } => {
            changed(ctx, move |core| {
                let owner = core.lease_owner(&subnet, member.as_deref())?;
                core.lease_add(&subnet, &[(prefix, owner)])
            })
            .await
        }
        Request::LeaseImport { subnet, entries } => changed(ctx, move |core| core.lease_add(&subnet, &entries)).await,
        Request::LeaseRm { subnet, prefix, member } => {
            changed(ctx, move |core| core.lease_rm(&subnet, prefix, member.as_deref())).await
        }
        Request::Attach { .. } => workloads::attach(ctx, request).await,
        Request::Detach { workload, subnet } => {
            changed(ctx, move |core| core.detach(&workload, subnet.as_deref())).await
        }
        Request::DnsAdd { subnet, name, data, ttl } => {
            attach::bury(ctx, &subnet, attach::Wanted { name: name.clone(), ip: None, netns: None }).await?;
            changed(ctx, move |core| core.dns_add(&subnet, &name, &data, ttl)).await
        }
        Request::DnsRelease { subnet, name, member } => {
            changed(ctx, move |core| core.dns_release(&subnet, &name, member.as_deref())).await
        }
        Request::DnsRm { subnet, name, kind } => {
            changed(ctx, move |core| core.dns_rm(&subnet, &name, kind.as_deref())).await
        }
        Request::DnsQuery { name, kind } => names::query(ctx, &name, &kind).await,
        Request::MapAdd { .. } => maps::map_add(ctx, request).await,
        Request::MapRm { subnet, name, proto, listen, port } => {
            let key = proto.zip(port).map(|(proto, port)| (proto, listen, port));
            changed(ctx, move |core| core.map_rm(&subnet, name.as_deref(), key)).await
        }
        Request::PeerConnect { peer } => peers::connect(ctx, &peer).await,
        Request::PeerDisconnect { peer } => {
            let found = status::peer_show(ctx, &peer).await?;
            let gone = || Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping");
            ctx.peers.send(Command::Disconnect { peer: found.peer_id }).await.map_err(|_| gone())?;
            Ok(done(format!("disconnected {}", found.peer_id), found.connected))
        }
        Request::Ping { target, count, timeout_ms } => {
            peers::ping(ctx, &target, count, Duration::from_millis(timeout_ms)).await
        }
        Request::Reload => Box::pin(reload::reload(ctx)).await,
        look => looking(ctx, look).await,
    }
}

/// The verbs that only look.
async fn looking(ctx: &Context, request: Request) -> Result<Response, Error> {
    match request {
        Request::SubnetLs => {
            let subnets = ctx.node.read(|core| core.subnets()).await?;
            Ok(Response::Subnets { subnets })
        }
        Request::SubnetShow { subnet } => {
            let mut info = ctx.node.read(move |core| core.subnet_show(&subnet)).await??;
            maps::count(ctx, &mut info.maps).await;
            Ok(Response::Subnet(Box::new(info)))
        }
        Request::InviteLs { subnet } => {
            let invites = ctx.node.read(move |core| core.invites(subnet.as_deref())).await??;
            Ok(Response::Invites { invites })
        }
        Request::MemberLs { subnet } => {
            Ok(Response::Members { members: ctx.node.read(move |core| core.members(&subnet)).await?? })
        }
        Request::MemberRequests { subnet } => {
            Ok(Response::Requests { requests: ctx.node.read(move |core| core.requests(&subnet)).await?? })
        }
        Request::LeaseLs { subnet } => {
            Ok(Response::Leases { leases: ctx.node.read(move |core| core.leases(&subnet)).await?? })
        }
        Request::WorkloadLs => Ok(Response::Workloads { workloads: ctx.node.read(|core| core.workloads(None)).await? }),
        Request::WorkloadShow { workload, subnet } => {
            Ok(Response::Workload(ctx.node.read(move |core| core.workload(&workload, subnet.as_deref())).await??))
        }
        Request::DnsLs { subnet } => {
            Ok(Response::Dns { records: ctx.node.read(move |core| core.names(&subnet)).await?? })
        }
        Request::MapLs { subnet } => {
            let mut maps = ctx.node.read(move |core| core.maps(subnet.as_deref())).await??;
            maps::count(ctx, &mut maps).await;
            Ok(Response::Maps { maps })
        }
        Request::Status { subnet } => Ok(Response::Status(Box::new(status::status(ctx, subnet).await?))),
        Request::Id => {
            let endpoints = ctx.node.read(|core| core.endpoints.clone()).await?;
            let peer_id = ctx.peers.peer();
            let addresses = endpoints
                .iter()
                .map(|e| if e.contains("/p2p/") { e.clone() } else { format!("{e}/p2p/{peer_id}") })
                .collect();
            Ok(Response::Id(IdInfo {
                peer_id,
                name: ctx.config.node_name.clone(),
                fingerprint: fingerprint(peer_id),
                addresses,
            }))
        }
        Request::PeerLs => Ok(Response::Peers { peers: status::peer_list(ctx).await? }),
        Request::PeerShow { peer } => Ok(Response::Peer(Box::new(status::peer_show(ctx, &peer).await?))),
        Request::Config => Ok(Response::Config(reload::show(ctx).await?)),
        Request::Metrics => Ok(Response::Metrics { text: metrics::text(ctx).await? }),
        Request::Version => Ok(Response::Version { version: env!("CARGO_PKG_VERSION").into(), wire: 1 }),
        _ => Err(Error::new(ErrorKind::Usage, "E-VERB", "this daemon does not know that verb")),
    }
}

pub(super) fn done(message: impl Into<String>, changed: bool) -> Response {
    Response::Done(Done { message: message.into(), changed })
}

fn generation(core: &Core) -> u64 {
    core.generation()
}

/// Runs a changing verb and waits for the kernel to follow.
async fn changed(
    ctx: &Context,
    job: impl FnOnce(&mut Core) -> Result<Response, Error> + Send + 'static,
) -> Result<Response, Error> {
    let (response, generation) = ctx.node.run(move |core| job(core).map(|r| (r, generation(core)))).await??;
    settle(ctx, generation).await?;
    Ok(response)
}

/// Waits until the kernel matches a generation of the View.
async fn settle(ctx: &Context, generation: u64) -> Result<(), Error> {
    let mut applied = ctx.applied.clone();
    let reached = tokio::time::timeout(KERNEL_PATIENCE, applied.wait_for(|a| a.generation >= generation)).await;
    let failures = match reached {
        Ok(Ok(applied)) => applied.failures.clone(),
        Ok(Err(_)) => return Err(Error::new(ErrorKind::Failed, "E-STOPPING", "the daemon is stopping")),
        Err(_) => {
            return Err(Error::new(
                ErrorKind::Timeout,
                "E-KERNEL-SLOW",
                format!("the kernel did not follow within {} s", KERNEL_PATIENCE.as_secs()),
            )
            .hint("byway status"));
        }
    };
    match failures.first() {
        None => Ok(()),
        Some(_) => {
            let all: Vec<String> = failures.iter().map(|f| format!("{}: {}", f.what, f.why)).collect();
            Err(Error::new(ErrorKind::Failed, "E-KERNEL", format!("the kernel refused: {}", all.join("; ")))
                .hint("byway status"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_closes_something_and_cannot_be_saved_names_what_closes_it_all_the_same() {
        let subnet = || Some("lab".to_owned());
        assert!(closes(&Request::Down { subnet: subnet() }) && closes(&Request::Leave { subnet: "lab".into() }));
        assert!(!closes(&Request::Up { subnet: subnet() }));
        assert!(!closes(&Request::SubnetHost { subnet: "lab".into(), host: None }), "that only looks");
        let full =
            Error::new(ErrorKind::Failed, "E-DISK-FULL", "save the change: no space left").hint("df -h /var/lib/byway");
        let told = unsaved(full);
        assert!(told.hint.starts_with("df -h /var/lib/byway; or: systemctl stop byway"), "{}", told.hint);
        assert!(told.message.ends_with("it is on the wire as before"), "{}", told.message);
        let other = Error::new(ErrorKind::NotFound, "E-NO-SUBNET", "no subnet lab");
        assert_eq!(unsaved(other.clone()), other);
    }
}
