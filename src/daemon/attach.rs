//! Finding a workload on this machine: a namespace by name or path, or a container.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Context;
use crate::api::types::{Error, ErrorKind, WorkloadKind};
use crate::dns;
use crate::engine::docker;
use crate::host::{netns, resolver};
use crate::model::host::{NetnsRef, ResolvConf};
use crate::model::id::{Name, SubnetId};
use crate::model::local::{Target, Workload};
use crate::model::members::printable;
use crate::node::NewWorkload;

fn not_found(message: String) -> Error {
    Error::new(ErrorKind::NotFound, "E-NO-NETNS", message).hint("ip netns list")
}

/// Looks a workload up; its name is the one asked for or what the machine calls it.
pub(crate) async fn find(
    ctx: &Context,
    kind: WorkloadKind,
    name: Option<Name>,
    mac: Option<String>,
    engine: Option<String>,
) -> Result<NewWorkload, Error> {
    let mac = mac.map(|text| parse_mac(&text)).transpose()?;
    let (target, netns, resolv_conf, default) = match kind {
        WorkloadKind::Netns(spec) => {
            let (netns, resolv_conf) = netns::resolve(&spec)
                .await
                .map_err(|e| not_found(format!("network namespace {}: {e}", printable(&spec))))?;
            let resolv_conf = shared_file(ctx, &spec, &netns, resolv_conf).await?;
            let default = Path::new(&spec).file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
            (Target::Netns(spec), netns, resolv_conf, default)
        }
        WorkloadKind::Docker(container) => {
            let host = engine.or_else(|| std::env::var("DOCKER_HOST").ok());
            let found = docker::inspect(host.as_deref(), &container).await.map_err(docker_error)?;
            let netns = netns::of_pid(found.pid)
                .await
                .map_err(|e| not_found(format!("namespace of container {}: {e}", found.name)))?;
            // A process that ended in between may have left its number to another: then the engine says so now.
            let still = docker::inspect(host.as_deref(), &found.id).await.map_err(docker_error)?;
            if (still.pid, &still.id) != (found.pid, &found.id) {
                let message = format!("container {} was started anew while it was attached", found.name);
                return Err(Error::new(ErrorKind::Failed, "E-DOCKER", message)
                    .hint(format!("byway attach docker {}      (once more)", found.name)));
            }
            let shared = found.network_mode.strip_prefix("container:").unwrap_or(&found.id);
            let own = |path: &PathBuf| resolver::is_engines_own(path, &[&found.id, shared], found.pid);
            let resolv_conf = found.resolv_conf.filter(own).map_or(ResolvConf::None, ResolvConf::Replace);
            (Target::Docker { name: found.name.clone(), id: found.id }, netns, resolv_conf, found.name)
        }
    };
    let inner_link = free_link(ctx, &netns).await?;
    let name_is_default = name.is_none();
    let name = name.unwrap_or_else(|| Name::from_host(&default));
    Ok(NewWorkload { name, name_is_default, target, netns, inner_link, resolv_conf, mac })
}

/// A resolver file that stands there is another's, unless we made it for the same namespace in another subnet.
async fn shared_file(ctx: &Context, spec: &str, netns: &NetnsRef, found: ResolvConf) -> Result<ResolvConf, Error> {
    let Some(file) = netns::resolver_file(spec).filter(|_| found == ResolvConf::None) else { return Ok(found) };
    let (same, ours) = (netns.clone(), ResolvConf::Create(file));
    let wanted = ours.clone();
    let made = move |core: &mut crate::node::Core| {
        let mut all = core.state.subnets.values().flat_map(|s| s.local.workloads.iter());
        all.any(|w| w.netns.is_same(&same) && w.resolv_conf == wanted)
    };
    Ok(if ctx.node.run(made).await? { ours } else { found })
}

fn docker_error(error: docker::DockerError) -> Error {
    let (kind, code) = match &error {
        docker::DockerError::NotFound(_) => (ErrorKind::NotFound, "E-NO-CONTAINER"),
        _ => (ErrorKind::Failed, "E-DOCKER"),
    };
    Error::new(kind, code, error.to_string()).hint(error.hint())
}

/// What somebody is about to take.
pub(crate) struct Wanted {
    /// A name in the subnet.
    pub name: String,
    /// An address.
    pub ip: Option<IpAddr>,
    /// A namespace.
    pub netns: Option<NetnsRef>,
}

/// Sees to it that no workload that is gone stands in the way of what is wanted: whoever holds it is looked at now, not when
/// the next look at all of them is due.
pub(crate) async fn bury(ctx: &Context, subnet: &str, wanted: Wanted) -> Result<(), Error> {
    let text = subnet.to_owned();
    let holders: Vec<(SubnetId, Name, NetnsRef)> = ctx
        .node
        .run(move |core| {
            let asked = core.state.find(&text).ok().map(|s| s.records.id);
            let in_the_way = |id: SubnetId, w: &Workload| {
                let netns = wanted.netns.as_ref().is_some_and(|n| w.netns.path == n.path || w.netns.is_same(n));
                let address = wanted.ip.is_some_and(|ip| w.addresses.contains(&ip));
                netns || (Some(id) == asked && (address || w.name.as_str() == wanted.name))
            };
            let all = core.state.subnets.values().flat_map(|s| s.local.workloads.iter().map(|w| (s.records.id, w)));
            all.filter(|(id, w)| in_the_way(*id, w)).map(|(id, w)| (id, w.name.clone(), w.netns.clone())).collect()
        })
        .await?;
    for (id, name, netns) in holders {
        if !netns::lives(&netns).await {
            ctx.node.run(move |core| core.workload_died(id, &name, &netns)).await?;
        }
    }
    Ok(())
}

/// `byway0`, or the next one that nobody uses in that namespace.
async fn free_link(ctx: &Context, netns: &NetnsRef) -> Result<String, Error> {
    let same = netns.clone();
    let used: Vec<String> = ctx
        .node
        .run(move |core| {
            let all = core.state.subnets.values().flat_map(|s| s.local.workloads.iter());
            all.filter(|w| w.netns.is_same(&same)).map(|w| w.inner_link.clone()).collect()
        })
        .await?;
    netns::free_link_name(netns, &used).await.map_err(|e| not_found(format!("look into {}: {e}", netns.path.display())))
}

fn parse_mac(text: &str) -> Result<[u8; 6], Error> {
    let bytes: Vec<u8> = text.split(':').filter_map(|p| u8::from_str_radix(p, 16).ok()).collect();
    let usage = || Error::new(ErrorKind::Usage, "E-MAC", format!("{} is no unicast hardware address", printable(text)));
    let mac: [u8; 6] = bytes.try_into().map_err(|_| usage())?;
    let [first, ..] = mac;
    if first & 1 == 0 && text.split(':').count() == 6 { Ok(mac) } else { Err(usage()) }
}

/// Sockets made at the same time in namespaces for questions of workloads: they leave room for other work there.
const DOORS: usize = 16;

/// Makes sockets in the namespaces of workloads, for the servers they asked before us.
pub(crate) fn door() -> dns::Door {
    let places = Arc::new(tokio::sync::Semaphore::new(DOORS));
    Arc::new(move |netns, family, kind| {
        let places = Arc::clone(&places);
        Box::pin(async move {
            let _place = places.acquire().await.map_err(std::io::Error::other)?;
            netns::socket(&netns, family, kind).await.map_err(std::io::Error::other)
        })
    })
}
