//! All work inside another network namespace.
//!
//! Nothing here enters one. Sockets that were made inside, and settings that are read and written inside, come from
//! [`helper`]; links, addresses and routes are configured through such a socket from without.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, SockType, SockaddrStorage};

use super::failure;
use super::inner::Expected;
use super::netlink::Netlink;
use crate::helper::{self, SocketKind};
use crate::model::host::{Change, Failure, NamespaceState, NetnsRef, ResolvConf, Rule, SysctlKey};

/// Longest that looking into a namespace, or changing it, may take.
const JOB_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no work could be done in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path leads to nothing, or to another namespace than the one that was attached.
    #[error("the network namespace {0} is gone")]
    Gone(PathBuf),
    /// No network namespace is at the path that was named. Whether anything else is there is not told: whoever asks may
    /// not be allowed to look there.
    #[error("there is no network namespace {0}")]
    Missing(PathBuf),
    /// The namespace at the path belongs to another user than the one who named it.
    #[error("the network namespace {0} belongs to another user")]
    Foreign(PathBuf),
    /// The text is neither one component of a path nor an absolute path.
    #[error("{0:?} is neither the name of a network namespace nor an absolute path")]
    Name(String),
    /// The path leads to the daemon's own namespace.
    #[error("{0} is the daemon's own network namespace: it is a member already")]
    Own(PathBuf),
    /// It exists and could not be entered or worked in.
    #[error("{0}")]
    Helper(helper::Error),
    /// The kernel could not be asked about what is inside, or not told to change it.
    #[error("{what} {path}: {why}")]
    Kernel {
        /// What was being done, in words.
        what: &'static str,
        /// Path of the namespace.
        path: PathBuf,
        /// The reason, in words.
        why: String,
    },
}

impl From<helper::Error> for NetnsError {
    fn from(error: helper::Error) -> NetnsError {
        match error {
            helper::Error::Gone(path) => NetnsError::Gone(path),
            helper::Error::Missing(path) => NetnsError::Missing(path),
            helper::Error::Foreign(path) => NetnsError::Foreign(path),
            other => NetnsError::Helper(other),
        }
    }
}

/// A name below `/run/netns` or an absolute path, as a namespace and the place of its resolver.
///
/// A named namespace without a resolver of its own gets `/etc/netns/NAME/resolv.conf`, which `ip netns exec` mounts;
/// one that has it keeps it.
///
/// # Errors
/// When there is no such namespace, it is of another kind, or it is the daemon's own.
pub async fn resolve(spec: &str) -> Result<(NetnsRef, ResolvConf), NetnsError> {
    resolve_for(spec, None).await
}

/// As [`resolve`], for a user who may name paths of its own namespaces only. Named namespaces are the machine's: they are
/// for all who may attach something here.
///
/// # Errors
/// As [`resolve`], and [`NetnsError::Foreign`] for a path of another user's.
pub async fn resolve_for(
    spec: &str,
    user: Option<u32>,
) -> Result<(NetnsRef, ResolvConf), NetnsError> {
    let given = Path::new(spec);
    let path = if given.is_absolute() {
        given.to_owned()
    } else {
        if spec.is_empty() || spec.contains(['/', '\0']) || spec == "." || spec == ".." {
            return Err(NetnsError::Name(spec.chars().take(80).collect()));
        }
        Path::new("/run/netns").join(spec)
    };
    // A link that leads nowhere is somebody's as well.
    let free = resolver_file(spec).filter(|file| file.symlink_metadata().is_err());
    let resolv_conf = free.map_or(ResolvConf::None, ResolvConf::Create);
    let owner = user.filter(|_| given.is_absolute());
    Ok((checked(path, owner).await?, resolv_conf))
}

/// Where `ip netns exec` looks for the resolver of a named namespace; one that is named by its path has none.
pub fn resolver_file(spec: &str) -> Option<PathBuf> {
    (!Path::new(spec).is_absolute()).then(|| Path::new("/etc/netns").join(spec).join("resolv.conf"))
}

/// The network namespace of a process; where a user is named, only if it is that user's own.
///
/// # Errors
/// When there is no such process, it is in the daemon's own namespace, or another user's.
pub async fn of_pid(pid: u32, user: Option<u32>) -> Result<NetnsRef, NetnsError> {
    checked(PathBuf::from(format!("/proc/{pid}/ns/net")), user).await
}

/// The first of `byway0`, `byway1`… that neither the namespace nor `taken` has.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub async fn free_link_name(netns: &NetnsRef, taken: &[String]) -> Result<String, NetnsError> {
    let (netlink, _) = netlink(netns).await?;
    in_time("name a link in", netns, netlink.free_name(taken)).await
}

/// What the link with that index is called inside; none where there is no such link.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub(super) async fn link_name(netns: &NetnsRef, index: u32) -> Result<Option<String>, NetnsError> {
    let (netlink, _) = netlink(netns).await?;
    let link = in_time("look for a link in", netns, netlink.link(Some(index), "")).await?;
    Ok(link.map(|info| info.name))
}

/// What the link with that index is called inside, once there are routes to all of these by it; else none.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub(super) async fn routed_link(
    netns: &NetnsRef,
    index: u32,
    routes: &[IpNet],
) -> Result<Option<String>, NetnsError> {
    let (netlink, _) = netlink(netns).await?;
    let look = async {
        if !netlink.has_routes(index, routes).await? {
            return Ok(None);
        }
        let link = netlink.link(Some(index), "").await?;
        anyhow::Ok(link.map(|info| info.name))
    };
    in_time("look at a link in", netns, look).await
}

/// Whether the path still leads to the namespace that was attached.
///
/// # Errors
/// When that cannot be told.
pub async fn exists(netns: &NetnsRef) -> Result<bool, NetnsError> {
    match open(netns).await {
        Ok(_) => Ok(true),
        Err(NetnsError::Gone(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A socket inside, neither bound nor connected, that does not block. It keeps the namespace alive.
///
/// # Errors
/// When the namespace is gone or the kernel makes none.
pub async fn socket(
    netns: &NetnsRef,
    family: AddressFamily,
    kind: SockType,
) -> Result<OwnedFd, NetnsError> {
    let kind = match (family, kind) {
        (AddressFamily::Inet6, SockType::Stream) => SocketKind::Tcp6,
        (AddressFamily::Inet6, _) => SocketKind::Udp6,
        (_, SockType::Stream) => SocketKind::Tcp4,
        _ => SocketKind::Udp4,
    };
    Ok(helper::socket(netns.clone(), kind).await?)
}

/// Whether it is still the namespace that was attached. Unlike [`exists`] it goes in: a later one at the same path may
/// have the same inode number. What cannot be entered at the moment lives.
pub async fn lives(netns: &NetnsRef) -> bool {
    let entered = helper::socket(netns.clone(), SocketKind::Udp4).await;
    !matches!(entered, Err(helper::Error::Gone(_)))
}

/// Opens the namespace file and checks that it is the one that was attached.
///
/// # Errors
/// [`NetnsError::Gone`] when it is not.
pub(super) async fn open(netns: &NetnsRef) -> Result<OwnedFd, NetnsError> {
    Ok(helper::open(netns.clone()).await?)
}

/// Looks at a path, and enters it once to see that it works.
async fn checked(path: PathBuf, owner: Option<u32>) -> Result<NetnsRef, NetnsError> {
    let netns = helper::name(path, owner).await?;
    if let Ok(own) = std::fs::metadata("/proc/thread-self/ns/net")
        && (own.dev(), own.ino()) == (netns.device, netns.inode)
    {
        return Err(NetnsError::Own(netns.path));
    }
    Ok(netns)
}

/// Requests to the kernel inside, with the cookie of the namespace. It stays alive as long as they can be made.
async fn netlink(netns: &NetnsRef) -> Result<(Netlink, Option<u64>), NetnsError> {
    let (cookie, sockets) = helper::sockets(netns.clone(), SocketKind::Route).await?;
    let netlink =
        Netlink::over(sockets).map_err(|error| kernel("open netlink in", netns, error))?;
    Ok((netlink, cookie))
}

fn kernel(what: &'static str, netns: &NetnsRef, why: anyhow::Error) -> NetnsError {
    NetnsError::Kernel {
        what,
        path: netns.path.clone(),
        why: format!("{why:#}"),
    }
}

/// Ends work that takes longer than [`JOB_TIMEOUT`].
async fn in_time<T>(
    what: &'static str,
    netns: &NetnsRef,
    work: impl Future<Output = anyhow::Result<T>>,
) -> Result<T, NetnsError> {
    let late = || Err(anyhow::anyhow!("no answer within {JOB_TIMEOUT:?}"));
    let done = tokio::time::timeout(JOB_TIMEOUT, work).await;
    done.unwrap_or_else(|_| late())
        .map_err(|error| kernel(what, netns, error))
}

/// The namespace by the cookie that is known meanwhile.
fn known(netns: &NetnsRef, cookie: Option<u64>) -> NetnsRef {
    NetnsRef {
        cookie: cookie.or(netns.cookie),
        ..netns.clone()
    }
}

/// Sends a datagram from an address inside. What the kernel refuses to send is not told.
///
/// # Errors
/// When the namespace is gone or the kernel makes no socket.
pub(super) async fn send(
    netns: &NetnsRef,
    from: IpAddr,
    to: SocketAddr,
    payload: &[u8],
) -> Result<(), NetnsError> {
    let kind = if from.is_ipv4() {
        SocketKind::Udp4
    } else {
        SocketKind::Udp6
    };
    let socket = helper::socket(netns.clone(), kind).await?;
    let from = SockaddrStorage::from(SocketAddr::new(from, 0));
    if nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &from).is_ok() {
        let _ = UdpSocket::from(socket).send_to(payload, to);
    }
    Ok(())
}

/// What to look at in a workload's namespace.
pub(super) struct Look {
    /// The instance whose aliases mark links as ours.
    pub instance: String,
    /// The links of ours that should be there.
    pub links: Vec<Expected>,
    /// The rules that we entered there.
    pub rules: BTreeSet<Rule>,
    /// The sysctls whose values are read.
    pub sysctls: BTreeSet<SysctlKey>,
}

/// Our share of a workload's namespace.
pub(super) async fn observe(
    netns: &NetnsRef,
    cookie: Option<u64>,
    look: Look,
) -> Result<(NamespaceState, Option<u64>), NetnsError> {
    let netns = known(netns, cookie);
    let (netlink, cookie) = netlink(&netns).await?;
    let state = netlink.inner_state(&look.instance, &look.links, &look.rules);
    let mut state = in_time("read", &netns, state).await?;
    let (values, _) = helper::sysctls(netns, look.sysctls, Vec::new()).await?;
    state.sysctls = values;
    Ok((state, cookie))
}

/// Makes changes inside a workload's namespace, in order, going on after a failure. Gives those that were not made, each with
/// why not.
///
/// # Errors
/// None was made.
pub(super) async fn apply(
    netns: &NetnsRef,
    cookie: Option<u64>,
    changes: Vec<Change>,
) -> Result<Vec<(Change, String)>, Failure> {
    let what = changes.first().map(ToString::to_string).unwrap_or_default();
    let netns = known(netns, cookie);
    let (netlink, _) = netlink(&netns)
        .await
        .map_err(|error| failure(what, error))?;
    let until = tokio::time::Instant::now() + JOB_TIMEOUT;
    let mut left = Vec::new();
    for change in changes {
        let done = tokio::time::timeout_at(until, one(&netlink, &netns, &change)).await;
        let late = || Err(anyhow::anyhow!("no answer within {JOB_TIMEOUT:?}"));
        if let Err(error) = done.unwrap_or_else(|_| late()) {
            left.push((change, format!("{error:#}")));
        }
    }
    Ok(left)
}

/// Makes one change inside.
async fn one(netlink: &Netlink, netns: &NetnsRef, change: &Change) -> anyhow::Result<()> {
    let Change::SetSysctl { key, value, .. } = change else {
        return netlink.apply(change).await;
    };
    let write = vec![(key.clone(), value.clone())];
    let (_, failed) = helper::sysctls(netns.clone(), BTreeSet::new(), write).await?;
    match failed.into_iter().next() {
        Some((_, why)) => Err(anyhow::Error::msg(why)),
        None => Ok(()),
    }
}
