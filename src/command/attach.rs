//! Finding a workload on this machine: a namespace by name or path, a container, or a TAP that is to be made.

use std::path::Path;

use super::Commands;
use super::follow::{Miss, lives, may_come_back};
use super::kernel::{Parts, stands};
use crate::api::types::{ContainerInterface, Error, ErrorKind, TapDevice, WorkloadKind};
use crate::engine::docker::{self, Brand};
use crate::helper;
use crate::host::netns::{self, NetnsError};
use crate::model::error::Code;
use crate::model::followed::Followed;
use crate::model::host::{NetnsRef, ResolvConf};
use crate::model::id::Name;
use crate::model::mac;
use crate::model::members::printable;
use crate::model::workload::Target;
use crate::node::{Beside, Claim, NewWorkload};

/// Characters of a container's ID that name its workload where nobody names it, as engines shorten it.
const NAMED_BY: usize = 12;

fn not_found(message: String) -> Error {
    Error::new(ErrorKind::NotFound, Code::NoNetns, message).hint("ip netns list")
}

/// A namespace that cannot be had: not there, or out of reach of this daemon.
fn unreached(error: &NetnsError, message: String) -> Error {
    match error {
        NetnsError::Helper(helper::Error::Unreachable { .. }) => {
            Error::new(ErrorKind::Failed, Code::Helper, message)
                .hint("systemctl status byway-helper.socket byway-helper.service")
        }
        NetnsError::Foreign(_) => Error::new(ErrorKind::NotPermitted, Code::Permission, message)
            .hint("the same as root, or by the name that it has below /run/netns"),
        _ => not_found(message),
    }
}

/// Looks a workload up; its name is the one asked for or what the machine calls it.
pub(crate) async fn find(
    ctx: &Commands,
    kind: WorkloadKind,
    name: Option<Name>,
    mac: Option<String>,
    engine: Option<String>,
) -> Result<NewWorkload, Error> {
    let mac = mac.map(|text| parse_mac(&text)).transpose()?;
    let found = match kind {
        WorkloadKind::Netns(spec) => in_netns(ctx, spec).await?,
        WorkloadKind::Docker(container) => at_engine(Brand::Docker, engine, &container).await?,
        WorkloadKind::Podman(container) => at_engine(Brand::Podman, engine, &container).await?,
        WorkloadKind::Container(of) => by_engine(ctx, of).await?,
        WorkloadKind::Tap(device) => at_tap(device)?,
    };
    let inner_link = match (found.interface, &found.netns) {
        (Some(link), _) => link,
        (None, Some(netns)) => free_link(ctx, netns, &found.target).await?,
        (None, None) => return Err(not_found("there is no namespace to attach".to_owned())),
    };
    let name_is_default = name.is_none();
    let name = name.unwrap_or_else(|| Name::from_container(&found.called));
    Ok(NewWorkload {
        name,
        name_is_default,
        target: found.target,
        netns: found.netns,
        inner_link,
        resolv_conf: found.resolv_conf,
        mac,
        beside: found.beside,
        followed: found.followed,
    })
}

struct Found {
    target: Target,
    netns: Option<NetnsRef>,
    resolv_conf: ResolvConf,
    /// The name that the machine has for it.
    called: String,
    /// The interface that was asked for.
    interface: Option<String>,
    beside: Beside,
    /// How it is found again after it went away.
    followed: Option<Followed>,
}

/// A network namespace by its name or path.
async fn in_netns(ctx: &Commands, spec: String) -> Result<Found, Error> {
    let (mut netns, mut resolv_conf) = resolve(ctx, &spec).await?;
    if let Some(file) = netns::resolver_file(&spec)
        && file.symlink_metadata().is_ok()
    {
        without_former(ctx, &netns).await?;
        (netns, resolv_conf) = resolve(ctx, &spec).await?;
    }
    let resolv_conf = shared_file(ctx, &spec, &netns, resolv_conf).await?;
    let called = Path::new(&spec)
        .file_name()
        .map(|f| f.to_string_lossy().into_owned())
        .unwrap_or_default();
    // What is at a path later may be another user's than who attaches it now.
    let may_return = may_come_back(&spec) && (ctx.asker.is_none() || !spec.starts_with('/'));
    let followed = may_return.then(Followed::default);
    Ok(Found {
        target: Target::Netns(spec),
        netns: Some(netns),
        resolv_conf,
        called,
        interface: None,
        beside: Beside::default(),
        followed,
    })
}

/// The namespace that a text means, with its resolver file.
async fn resolve(ctx: &Commands, spec: &str) -> Result<(NetnsRef, ResolvConf), Error> {
    netns::resolve_for(spec, ctx.asker)
        .await
        .map_err(|e| unreached(&e, format!("network namespace {}: {e}", printable(spec))))
}

/// A container that runs, by its name or ID, as Docker's API tells of it, which Podman speaks too.
async fn at_engine(brand: Brand, engine: Option<String>, container: &str) -> Result<Found, Error> {
    let docker_error = |error| engine_error(brand, &error);
    let engine = docker::socket_of(brand, engine.as_deref()).map_err(docker_error)?;
    let found = docker::inspect::look(&engine, container)
        .await
        .map_err(docker_error)?;
    let (netns, resolv_conf) = lives(&engine, &found).await.map_err(|miss| match miss {
        Miss::Engine(error) => docker_error(error),
        Miss::Namespace(e) => unreached(&e, format!("namespace of container {}: {e}", found.name)),
        Miss::Anew => {
            let message = format!(
                "container {} was started anew while it was attached",
                found.name
            );
            let program = brand.program();
            let hint = format!("byway attach {program} {}      (once more)", found.name);
            Error::new(ErrorKind::Failed, code_of(brand), message).hint(hint)
        }
    })?;
    let followed = Followed {
        engine: Some(engine),
        labels: found.compose(),
        paused: found.state == docker::State::Paused,
        away: None,
    };
    Ok(Found {
        target: match (brand, found.name.clone(), found.id) {
            (Brand::Docker, name, id) => Target::Docker { name, id },
            (Brand::Podman, name, id) => Target::Podman { name, id },
        },
        netns: Some(netns),
        resolv_conf,
        called: found.name,
        interface: None,
        beside: Beside::default(),
        followed: Some(followed),
    })
}

/// An interface of a container that its engine asks for itself, perhaps before there is a namespace.
async fn by_engine(ctx: &Commands, of: ContainerInterface) -> Result<Found, Error> {
    let shortened = || of.container.chars().take(NAMED_BY).collect();
    let called = of.called.clone().unwrap_or_else(shortened);
    check_beside(&of)?;
    let target = whose(
        ctx,
        Target::of_engine(of.engine, of.container, &of.interface)?,
    );
    let netns = match &of.netns {
        Some(spec) => Some(resolve(ctx, spec).await?.0),
        None => None,
    };
    Ok(Found {
        target,
        netns,
        // The engine writes the resolver itself: the answer says who is to be asked.
        resolv_conf: ResolvConf::None,
        called,
        interface: Some(of.interface),
        beside: Beside {
            ips: of.ips,
            network: of.network,
            aliases: of.aliases,
            own: ctx.own,
        },
        followed: None,
    })
}

/// The container as one of whoever asks: users who are not root name their own, and nobody else's.
pub(super) fn whose(ctx: &Commands, target: Target) -> Target {
    match ctx.asker {
        Some(user) => target.of(user),
        None => target,
    }
}

/// A TAP device: the kernel makes it once the workload has its addresses. What is behind it hears of its resolver by DHCP.
fn at_tap(device: TapDevice) -> Result<Found, Error> {
    let called = device.name.clone();
    let Some(owner) = device.owner else {
        let message = "nobody is named who may open the TAP".to_owned();
        return Err(Error::new(ErrorKind::Usage, Code::Verb, message));
    };
    let target = Target::of_tap(device.name, owner)?;
    Ok(Found {
        interface: target.tap_link(),
        target,
        netns: None,
        resolv_conf: ResolvConf::None,
        called,
        beside: Beside::default(),
        followed: None,
    })
}

/// Bytes of the longest name that an engine may have for a network.
const MAX_NETWORK: usize = 255;
/// Further names that one workload may have.
const MAX_ALIASES: usize = 64;

/// Refuses what an engine may not ask for a container.
fn check_beside(of: &ContainerInterface) -> Result<(), Error> {
    let wrong = |code, message: String| Err(Error::new(ErrorKind::Usage, code, message));
    for is_v4 in [true, false] {
        if of.ips.iter().filter(|ip| ip.is_ipv4() == is_v4).count() > 1 {
            let all: Vec<String> = of.ips.iter().map(ToString::to_string).collect();
            let message = format!("{}: a workload has one address of a family", all.join(", "));
            return wrong(Code::Address, message);
        }
    }
    if of.aliases.len() > MAX_ALIASES {
        let message = format!(
            "{} further names: a workload has {MAX_ALIASES} at most",
            of.aliases.len()
        );
        return wrong(Code::Name, message);
    }
    match &of.network {
        Some(network) if !(1..=MAX_NETWORK).contains(&network.len()) => {
            let message = format!(
                "the name of a network has 1 to {MAX_NETWORK} bytes, this has {}",
                network.len()
            );
            wrong(Code::Name, message)
        }
        _ => Ok(()),
    }
}

/// The resolver file of a workload whose namespace is gone stands until the kernel has followed: it is not that of the
/// namespace that bears its name now.
async fn without_former(ctx: &Commands, netns: &NetnsRef) -> Result<(), Error> {
    let here = Claim {
        name: String::new(),
        ip: None,
        netns: Some(netns.clone()),
        interface: None,
    };
    bury(ctx, "", here).await?;
    let now = ctx.node.view().load().generation;
    stands(ctx, now, &Parts::default()).await
}

/// A resolver file that stands there is another's, unless we made it for the same namespace in another subnet.
async fn shared_file(
    ctx: &Commands,
    spec: &str,
    netns: &NetnsRef,
    found: ResolvConf,
) -> Result<ResolvConf, Error> {
    let Some(file) = netns::resolver_file(spec).filter(|_| found == ResolvConf::None) else {
        return Ok(found);
    };
    let ours = ResolvConf::Create(file);
    let made = ctx
        .node
        .workloads_in(netns.clone(), None)
        .await?
        .iter()
        .any(|w| w.resolv_conf == ours);
    Ok(if made { ours } else { found })
}

/// The code of what is wrong with an engine.
fn code_of(brand: Brand) -> Code {
    match brand {
        Brand::Docker => Code::Docker,
        Brand::Podman => Code::Podman,
    }
}

fn engine_error(brand: Brand, error: &docker::DockerError) -> Error {
    let (kind, code) = match error {
        docker::DockerError::NotFound(_) => (ErrorKind::NotFound, Code::NoContainer),
        _ => (ErrorKind::Failed, code_of(brand)),
    };
    Error::new(kind, code, error.to_string()).hint(error.hint(brand))
}

/// Sees to it that no workload that is gone stands in the way of what is wanted: whoever holds it is looked at now, not when
/// the next look at all of them is due.
pub(crate) async fn bury(ctx: &Commands, subnet: &str, wanted: Claim) -> Result<(), Error> {
    for (id, name, netns) in ctx.node.in_the_way(subnet.to_owned(), wanted).await? {
        if !netns::lives(&netns).await {
            ctx.node.workload_died(id, name, netns).await?;
        }
    }
    Ok(())
}

/// What the kernel has followed for is a namespace that lives: one that ended meanwhile was passed over.
pub(crate) async fn still_there(netns: Option<&NetnsRef>) -> Result<(), Error> {
    match netns {
        Some(netns) if !netns::lives(netns).await => Err(not_found(format!(
            "the network namespace {} ended while it was attached",
            netns.path.display()
        ))),
        _ => Ok(()),
    }
}

/// `byway0`, or the next one that nobody uses in that namespace.
async fn free_link(ctx: &Commands, netns: &NetnsRef, target: &Target) -> Result<String, Error> {
    let container = target.container().map(str::to_owned);
    let here = ctx.node.workloads_in(netns.clone(), container).await?;
    let used: Vec<String> = here.into_iter().map(|w| w.inner_link).collect();
    netns::free_link_name(netns, &used)
        .await
        .map_err(|e| unreached(&e, format!("look into {}: {e}", netns.path.display())))
}

pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], Error> {
    mac::unicast(text).ok_or_else(|| {
        let message = format!("{} is no unicast hardware address", printable(text));
        Error::new(ErrorKind::Usage, Code::Mac, message)
    })
}
