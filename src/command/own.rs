//! Requests of users who may change nothing but their own (`workloads.users`): what they may ask, and what they are told.

use super::{Commands, call};
use crate::api::server::{Access, Peer};
use crate::api::types::{
    ContainerInterface, Error, ErrorKind, Request, Response, SubnetInfo, WorkloadInfo, WorkloadKind,
};
use crate::host::sysctl;
use crate::model::error::{Code, Hint};
use crate::model::ports::PortRange;
use crate::node::Own;

/// Programs that may attach a container for such a user. Others have links that the machine's own engines move.
const ENGINES: [&str; 2] = ["netavark", "run"];
/// The first port that takes no right, where the kernel does not say.
const FIRST_FREE_PORT: u16 = 1024;

/// Who asks, where that is a listed user who may not change everything.
pub(super) fn of(peer: &Peer) -> Option<Own> {
    let quota = peer.quota.filter(|_| peer.access < Access::Change)?;
    Some(Own {
        user: peer.uid,
        quota,
    })
}

/// Does what is asked for. A user who may change nothing but its own is refused what it may not, and told nothing of others
/// unless its groups let it look.
///
/// # Errors
/// `E-PERMISSION`, or those of the request.
pub(super) async fn call_for(
    ctx: &Commands,
    own: Own,
    request: Request,
    access: Access,
) -> Result<Response, Error> {
    let looks = !request.changes();
    if looks && access >= Access::Read {
        return call(ctx, request).await;
    }
    match request {
        Request::SubnetLs
        | Request::SubnetShow { .. }
        | Request::WorkloadLs
        | Request::MapLs { .. } => narrowed(ctx, own, call(ctx, request).await?).await,
        Request::WorkloadShow { ref workload, .. } => {
            let missing = none(workload);
            let found = call(ctx, request).await;
            narrowed(ctx, own, found.map_err(|_| missing)?).await
        }
        Request::Attach {
            workload: WorkloadKind::Container(ref of),
            engine: None,
            ..
        } => {
            may_attach(of)?;
            call(ctx, request).await
        }
        Request::DetachContainer { .. } => call(ctx, request).await,
        Request::Detach {
            workload, subnet, ..
        } => detach(ctx, own, workload, subnet).await,
        Request::MapAdd { ports, .. } => {
            may_map(ports)?;
            call(ctx, request).await
        }
        Request::MapRm { .. } => call(ctx, request).await,
        _ => Err(refused("attach containers of its own, and nothing else")),
    }
}

/// The same for whoever asks.
pub(super) async fn call_as(
    ctx: &Commands,
    request: Request,
    access: Access,
) -> Result<Response, Error> {
    match ctx.own {
        Some(own) => call_for(ctx, own, request, access).await,
        None => call(ctx, request).await,
    }
}

fn refused(what: &str) -> Error {
    let message = format!("a user listed in [workloads] users may {what}");
    Error::new(ErrorKind::NotPermitted, Code::Permission, message)
        .hint("the same as root, or with group byway-admin")
}

/// # Errors
/// `E-PERMISSION` for an engine that only root runs, and for a namespace that is not named by a process.
fn may_attach(of: &ContainerInterface) -> Result<(), Error> {
    if !ENGINES.contains(&of.engine.as_str()) {
        return Err(refused("attach by byway run and by Podman's plugin"));
    }
    match of.netns.as_deref() {
        Some(netns) if is_of_process(netns) => Ok(()),
        _ => Err(refused(
            "name a namespace by a process of its own: /proc/PID/ns/net or /proc/PID/task/TID/ns/net",
        )),
    }
}

/// Whether a path leads through the kernel's own file system alone. Any other may lead through a file system of somebody's
/// who keeps whoever looks there waiting.
fn is_of_process(path: &str) -> bool {
    let digits =
        |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match path.split('/').collect::<Vec<_>>()[..] {
        ["", "proc", pid, "ns", "net"] => digits(pid),
        ["", "proc", pid, "task", thread, "ns", "net"] => digits(pid) && digits(thread),
        _ => false,
    }
}

/// # Errors
/// `E-PERMISSION` for a port that such a user could not listen on either.
fn may_map(ports: PortRange) -> Result<(), Error> {
    let first = sysctl::read("net/ipv4/ip_unprivileged_port_start");
    let first = first
        .and_then(|text| text.parse().ok())
        .unwrap_or(FIRST_FREE_PORT);
    if ports.first() >= first {
        return Ok(());
    }
    Err(refused(&format!("map ports from {first} on")))
}

/// Detaches a workload of the user's, by what it is and not by its name, which may be another's a moment later.
async fn detach(
    ctx: &Commands,
    own: Own,
    workload: String,
    subnet: Option<String>,
) -> Result<Response, Error> {
    let found = ctx.node.workload(workload.clone(), subnet).await;
    let found = found.ok().filter(|w| is_own(own, w));
    let (Some(found), missing) = (found, none(&workload)) else {
        return Err(none(&workload));
    };
    let request = Request::DetachContainer {
        engine: found.kind.parse().map_err(|_| missing.clone())?,
        container: found.container.ok_or(missing)?,
        interface: found.interface,
    };
    call(ctx, request).await
}

/// No word of the user's tells whether others have a workload of that name.
fn none(workload: &str) -> Error {
    let workload: String = workload.chars().take(80).collect();
    let message = format!("no workload {workload:?} of this user here");
    Error::new(ErrorKind::NotFound, Code::NoWorkload, message).hint(Hint::ListWorkloads)
}

fn is_own(own: Own, workload: &WorkloadInfo) -> bool {
    workload.user == Some(own.user)
}

/// An answer without what is of others.
async fn narrowed(ctx: &Commands, own: Own, answer: Response) -> Result<Response, Error> {
    Ok(match answer {
        Response::Subnets { subnets } => Response::Subnets {
            subnets: subnets.into_iter().map(terms).collect(),
        },
        Response::Subnet(info) => Response::Subnet(Box::new(terms(*info))),
        Response::Workloads { mut workloads } => {
            workloads.retain(|w| is_own(own, w));
            Response::Workloads { workloads }
        }
        Response::Workload(found) if is_own(own, &found) => Response::Workload(found),
        Response::Workload(found) => return Err(none(found.workload.as_str())),
        Response::Maps { mut maps } => {
            let theirs = ctx.node.maps_of_user(own.user).await?;
            maps.retain(|m| {
                theirs
                    .iter()
                    .any(|(of, map)| *of == m.subnet && *map == m.name)
            });
            Response::Maps { maps }
        }
        _ => return Err(refused("look at its own")),
    })
}

/// What whoever attaches something to a subnet has to know of it.
fn terms(info: SubnetInfo) -> SubnetInfo {
    SubnetInfo {
        members: vec![],
        leases: vec![],
        routes: vec![],
        names: vec![],
        maps: vec![],
        ..info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_user_names_a_namespace_by_a_process_and_nothing_else() {
        let of = |engine: &str, netns: Option<&str>| {
            may_attach(&ContainerInterface {
                engine: engine.parse().unwrap(),
                container: "c".to_owned(),
                interface: "eth0".to_owned(),
                netns: netns.map(str::to_owned),
                network: None,
                called: None,
                ips: vec![],
                aliases: vec![],
            })
        };
        for path in ["/proc/7/ns/net", "/proc/7/task/8/ns/net"] {
            assert_eq!(of("netavark", Some(path)), Ok(()), "{path}");
            assert_eq!(of("run", Some(path)), Ok(()), "{path}");
            for engine in ["docker", "cni"] {
                assert!(of(engine, Some(path)).is_err(), "{engine}");
            }
        }
        assert!(of("netavark", None).is_err());
        for path in [
            "",
            "lab",
            "/run/netns/lab",
            "/proc/self/ns/net",
            "/proc/7/ns/mnt",
            "/proc/7/root/x",
            "/proc/7/task/../ns/net",
            "/proc/7/task/8/ns/mnt",
            "proc/7/ns/net",
            "/proc/7/cwd/a/ns/net",
            "/proc/12345678901/ns/net",
            "/proc/7/fd/1",
        ] {
            let refused = of("netavark", Some(path)).unwrap_err();
            assert_eq!(refused.code, Code::Permission, "{path:?}");
        }
    }
}
