//! What people ask, carried out: every request of the control socket.
//!
//! What is decided is decided by the node, in one call; what needs the outside world is done here. A command that the
//! kernel has to follow waits for it, and what the kernel refuses is taken back. `reload` brings what the configuration
//! declares about by the same commands.

mod attach;
pub(crate) mod docker;
pub(crate) mod follow;
pub(crate) mod health;
mod import;
mod join;
mod kernel;
mod maps;
mod mend;
mod names;
mod own;
mod peers;
mod probe;
pub(crate) mod relay;
pub(crate) mod reload;
mod subnets;
mod wake;
mod workloads;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::server::{Handler, Peer};
use crate::api::types::{Done, Error, ErrorKind, Integration, InviteCreated, Request, Response};
use crate::config::{Config, RelayOffer};
use crate::dns::Dns;
use crate::host::Applied;
use crate::link::Links;
use crate::model::error::Code;
use crate::model::record::Term;
use crate::node::{Node, Own};
use crate::p2p;
use crate::report::peers::{peer_list, peer_show};
use crate::report::{
    PlatformKind, Report, doctor, maps as maps_now, metrics, netcheck, outside, resolve, status,
    workloads as workloads_now,
};
use crate::service::{Mesh, clock};
use kernel::{Parts, links, recorded, settled};

/// What commands are carried out with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Commands {
    /// The configuration that the daemon was started with.
    pub config: Arc<Config>,
    pub settings: reload::Settings,
    pub platform: PlatformKind,
    pub node: Node,
    pub peers: p2p::Handle,
    pub links: Links,
    pub dns: Dns,
    /// What the kernel has taken of the last generation.
    pub applied: watch::Receiver<Applied>,
    /// The protocols with peers, through which joins go.
    pub mesh: Arc<Mesh>,
    /// What answers the verbs that only look.
    pub report: Report,
    /// What the daemon is to the Docker engine, as its plugin.
    pub docker: Arc<docker::Docker>,
    /// The user whose request is carried out, where that user may not do everything: root's and the daemon's own have none.
    pub asker: Option<u32>,
    /// The same user, where it may change nothing but its own.
    pub own: Option<Own>,
    /// Cancelled when the daemon stops: who waits for another machine's decision waits no more.
    pub stop: CancellationToken,
}

/// The handler the control socket calls.
pub(crate) fn handler(ctx: Commands) -> Handler {
    Arc::new(move |mut request: Request, peer: Peer| {
        let ctx = Commands {
            asker: (!peer.is_root()).then_some(peer.uid),
            own: own::of(&peer),
            ..ctx.clone()
        };
        Box::pin(async move {
            workloads::owned(&mut request, peer.uid)?;
            let closes = closes(&request);
            let blamed = |error| {
                clock::blamed(
                    &ctx.mesh.clocks,
                    if closes { unsaved(error) } else { error },
                )
            };
            let answer = own::call_as(&ctx, request, peer.access).await;
            answer.map_err(blamed)
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
            | Request::DetachContainer { .. }
            | Request::MapRm { .. }
            | Request::ImportBack { .. }
    )
}

/// Nothing takes effect that is not saved: who has to close something at once on a full disk is told what does.
fn unsaved(error: Error) -> Error {
    if ![Code::DiskFull, Code::StateIo, Code::StateWrite]
        .iter()
        .any(|code| error.code == *code)
    {
        return error;
    }
    let stop = "systemctl stop byway      (takes everything off the wire at once, until it is started again)";
    let hint = if error.hint.is_empty() {
        stop.to_owned()
    } else {
        format!("{}; or: {stop}", error.hint)
    };
    Error {
        message: format!(
            "{}; nothing was changed, it is on the wire as before",
            error.message
        ),
        hint,
        ..error
    }
}

/// Does what a request asks for.
///
/// # Errors
/// `E-RELAY-ONLY` in place of `E-NO-SUBNET` where this daemon only relays: it refuses to found or join one.
pub(crate) async fn call(ctx: &Commands, request: Request) -> Result<Response, Error> {
    match carry_out(ctx, request).await {
        Err(error) if ctx.platform == PlatformKind::Relay && error.code == Code::NoSubnet => {
            Err(Error::relay_only())
        }
        answer => answer,
    }
}

async fn carry_out(ctx: &Commands, request: Request) -> Result<Response, Error> {
    match request {
        Request::Create { .. } => subnets::create(ctx, request).await,
        Request::Join { .. } => join::join_subnet(ctx, request).await,
        Request::SubnetHost { subnet, host } => subnets::host(ctx, subnet, host).await,
        Request::Leave { subnet } => subnets::leave(ctx, subnet).await,
        Request::Destroy { subnet } => subnets::destroy(ctx, subnet).await,
        Request::Up { subnet } => {
            ctx.platform.ready()?;
            let links = links(ctx, subnet.as_deref()).await;
            settled(ctx, links, ctx.node.set_up(subnet, true)).await
        }
        Request::Down { subnet } => {
            settled(ctx, Parts::closed(), ctx.node.set_up(subnet, false)).await
        }
        Request::Attach { .. } => workloads::attach(ctx, request).await,
        Request::Detach {
            workload,
            subnet,
            interface,
        } => {
            let detach = ctx.node.detach(workload, subnet, interface);
            settled(ctx, Parts::closed(), detach).await
        }
        Request::DetachContainer {
            engine,
            container,
            interface,
        } => workloads::detach_container(ctx, engine, container, interface).await,
        Request::WorkloadHealth { .. } => health::set(ctx, request).await,
        Request::Import { source, workloads } => import::import(ctx, source, workloads).await,
        Request::ImportBack { source } => import::back(ctx, source).await,
        Request::ImportLs => Ok(Response::Imports {
            imports: ctx.node.imports().await?,
        }),
        Request::DnsAdd {
            subnet,
            name,
            data,
            ttl,
        } => names::add(ctx, subnet, name, data, ttl).await,
        Request::DnsRelease {
            subnet,
            name,
            member,
        } => recorded(ctx, ctx.node.dns_release(subnet, name, member)).await,
        Request::DnsRm { subnet, name, kind } => {
            recorded(ctx, ctx.node.dns_rm(subnet, name, kind)).await
        }
        Request::DnsQuery { name, kind } => names::query(ctx, &name, &kind).await,
        Request::MapAdd { .. } => maps::map_add(ctx, request).await,
        Request::MapRm {
            subnet,
            name,
            proto,
            listen,
            ports,
        } => {
            let key = proto
                .zip(ports)
                .map(|(proto, ports)| (proto, listen, ports));
            settled(
                ctx,
                Parts::closed(),
                ctx.node.map_rm(subnet, name, key, ctx.own),
            )
            .await
        }
        Request::PeerConnect { peer } => peers::connect(ctx, &peer).await,
        Request::PeerDisconnect { peer } => peers::disconnect(ctx, &peer).await,
        Request::Ping {
            target,
            count,
            timeout_ms,
            path,
        } => {
            let timeout = Duration::from_millis(timeout_ms);
            peers::ping(ctx, &target, count, timeout, path).await
        }
        Request::Probe { target } => probe::probe(ctx, &target).await,
        Request::Doctor { peer, fix: true } => mend::mend(ctx, peer).await,
        Request::RelayOffer { max_mbit } => relay::say(ctx, RelayOffer::Always, max_mbit).await,
        Request::RelayOff => relay::say(ctx, RelayOffer::Never, None).await,
        Request::RelayAuto => relay::say(ctx, RelayOffer::Auto, None).await,
        Request::IntegrationInstall { engine, host } => match engine {
            Integration::Docker => docker::install(ctx, host).await,
        },
        Request::IntegrationRemove { engine } => match engine {
            Integration::Docker => docker::remove(ctx).await,
        },
        Request::Reload => Box::pin(reload::reload(ctx)).await,
        request => governed(ctx, request).await,
    }
}

/// The verbs that decide who is in a subnet, and what belongs to whom.
async fn governed(ctx: &Commands, request: Request) -> Result<Response, Error> {
    match request {
        Request::InviteCreate {
            subnet,
            uses,
            expires_ms,
            role,
            labels,
            ephemeral,
        } => {
            let term = if ephemeral {
                Term::Ephemeral
            } else {
                Term::Full
            };
            let made = ctx
                .node
                .invite_create(subnet, uses, expires_ms, (role, term), labels)
                .await?;
            Ok(with_notes(ctx, made).await)
        }
        Request::InviteRevoke { subnet, invite } => ctx.node.invite_revoke(subnet, invite).await,
        Request::MemberApprove { subnet, member } => {
            recorded(ctx, ctx.node.decide_request(subnet, member, true)).await
        }
        Request::MemberDeny { subnet, member } => {
            recorded(ctx, ctx.node.decide_request(subnet, member, false)).await
        }
        Request::MemberRemove { subnet, member } => {
            recorded(ctx, ctx.node.member_remove(subnet, member)).await
        }
        Request::MemberRole {
            subnet,
            member,
            role,
        } => recorded(ctx, ctx.node.member_role(subnet, member, role)).await,
        Request::MemberLabel {
            subnet,
            member,
            labels,
        } => recorded(ctx, ctx.node.member_label(subnet, member, labels)).await,
        Request::LeaseAdd {
            subnet,
            prefix,
            member,
        } => recorded(ctx, ctx.node.lease_add(subnet, prefix, member)).await,
        Request::LeaseImport { subnet, entries } => {
            recorded(ctx, ctx.node.lease_import(subnet, entries)).await
        }
        Request::LeaseRm {
            subnet,
            prefix,
            member,
        } => recorded(ctx, ctx.node.lease_rm(subnet, prefix, member)).await,
        look => looking(ctx, look).await,
    }
}

/// An invite, with what whoever passes it on should know.
async fn with_notes(ctx: &Commands, made: Response) -> Response {
    match made {
        Response::Invite(invite) => Response::Invite(InviteCreated {
            notes: outside::notes(&ctx.report).await,
            ..invite
        }),
        other => other,
    }
}

/// The verbs that only look.
async fn looking(ctx: &Commands, request: Request) -> Result<Response, Error> {
    match request {
        Request::SubnetLs => Ok(Response::Subnets {
            subnets: ctx.node.subnets().await?,
        }),
        Request::SubnetShow { subnet } => {
            let mut info = ctx.node.subnet_show(subnet).await?;
            maps_now::count(&ctx.report, &mut info.maps).await;
            Ok(Response::Subnet(Box::new(info)))
        }
        Request::InviteLs { subnet } => Ok(Response::Invites {
            invites: ctx.node.invites(subnet).await?,
        }),
        Request::MemberLs { subnet } => Ok(Response::Members {
            members: ctx.node.members(subnet).await?,
        }),
        Request::MemberRequests { subnet } => Ok(Response::Requests {
            requests: ctx.node.requests(subnet).await?,
        }),
        Request::LeaseLs { subnet } => Ok(Response::Leases {
            leases: ctx.node.leases(subnet).await?,
        }),
        Request::WorkloadLs => Ok(Response::Workloads {
            workloads: ctx.node.workloads().await?,
        }),
        Request::WorkloadShow { workload, subnet } => {
            let mut found = ctx.node.workload(workload, subnet).await?;
            workloads_now::count(&ctx.report, std::slice::from_mut(&mut found)).await;
            found.socket = workloads::socket(ctx, &found);
            Ok(Response::Workload(found))
        }
        Request::DnsLs { subnet } => Ok(Response::Dns {
            records: ctx.node.names(subnet).await?,
        }),
        Request::MapLs { subnet } => {
            let mut maps = ctx.node.maps(subnet).await?;
            maps_now::count(&ctx.report, &mut maps).await;
            Ok(Response::Maps { maps })
        }
        Request::Status { subnet } => Ok(Response::Status(Box::new(
            status::status(&ctx.report, subnet).await?,
        ))),
        Request::Id => peers::id(ctx).await,
        Request::PeerLs => Ok(Response::Peers {
            peers: peer_list(&ctx.report).await?,
        }),
        Request::PeerShow { peer } => Ok(Response::Peer(Box::new(
            peer_show(&ctx.report, &peer).await?,
        ))),
        Request::PeerResolve { peer } => Ok(Response::Resolved(
            resolve::resolve(&ctx.report, &peer).await?,
        )),
        Request::RelayLs => relay::ls(ctx).await,
        Request::Netcheck => Ok(Response::Netcheck(netcheck::netcheck(&ctx.report).await?)),
        Request::Doctor { peer, .. } => {
            Ok(Response::Doctor(doctor::doctor(&ctx.report, peer).await?))
        }
        Request::Config => Ok(Response::Config(reload::show(ctx).await?)),
        Request::Metrics => Ok(Response::Metrics {
            text: metrics::text(&ctx.report).await?,
        }),
        Request::Version => Ok(Response::Version {
            version: env!("CARGO_PKG_VERSION").into(),
            wire: 1,
        }),
        _ => Err(unknown()),
    }
}

fn unknown() -> Error {
    let message = "this daemon does not know that verb";
    Error::new(ErrorKind::Usage, Code::Verb, message)
}

fn done(message: impl Into<String>, changed: bool) -> Response {
    Response::Done(Done {
        message: message.into(),
        changed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_closes_something_and_cannot_be_saved_names_what_closes_it_all_the_same() {
        let subnet = || Some("lab".to_owned());
        assert!(
            closes(&Request::Down { subnet: subnet() })
                && closes(&Request::Leave {
                    subnet: "lab".into()
                })
        );
        assert!(!closes(&Request::Up { subnet: subnet() }));
        assert!(
            !closes(&Request::SubnetHost {
                subnet: "lab".into(),
                host: None
            }),
            "that only looks"
        );
        let full = Error::new(
            ErrorKind::Failed,
            "E-DISK-FULL",
            "save the change: no space left",
        )
        .hint("df -h /var/lib/byway");
        let told = unsaved(full);
        assert!(
            told.hint
                .starts_with("df -h /var/lib/byway; or: systemctl stop byway"),
            "{}",
            told.hint
        );
        assert!(
            told.message.ends_with("it is on the wire as before"),
            "{}",
            told.message
        );
        let other = Error::new(ErrorKind::NotFound, "E-NO-SUBNET", "no subnet lab");
        assert_eq!(unsaved(other.clone()), other);
    }
}
