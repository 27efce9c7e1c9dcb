//! All work inside another network namespace.
//!
//! A thread that is thrown away afterwards enters the namespace and runs one job on a runtime of its own; no other
//! thread of the process ever changes its namespace. What goes in and comes out is plain data, so that the thread can
//! become a helper process.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::cookie::netns_cookie;
use super::netlink::Netlink;
use super::{failure, sysctl};
use crate::model::host::{Change, Failure, NetnsRef, ResolvConf, Rule, Scene, SysctlKey, alias_name};

/// Longest a job inside a namespace may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Why no work could be done in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is at the path, or another namespace than the one that was attached.
    #[error("the network namespace {0} is gone")]
    Gone(PathBuf),
    /// Nothing is at the path that was named.
    #[error("there is no network namespace {0}")]
    Missing(PathBuf),
    /// Not one component of a path.
    #[error("{0:?} is neither the name of a network namespace nor an absolute path")]
    Name(String),
    /// Something else lies at the path.
    #[error("{0} is not a network namespace")]
    Kind(PathBuf),
    /// The daemon's own namespace.
    #[error("{0} is the daemon's own network namespace: it is a member already")]
    Own(PathBuf),
    /// It exists and could not be entered or worked in.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The namespace.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A name below `/run/netns` or an absolute path, as a namespace and the place of its resolver.
///
/// A named namespace without a resolver of its own gets `/etc/netns/NAME/resolv.conf`, which `ip netns exec` mounts;
/// one that has it keeps it.
///
/// # Errors
/// When there is no such namespace, it is of another kind, or it is the daemon's own.
pub async fn resolve(spec: &str) -> Result<(NetnsRef, ResolvConf), NetnsError> {
    let given = Path::new(spec);
    let (path, resolv_conf) = if given.is_absolute() {
        (given.to_owned(), ResolvConf::None)
    } else {
        if spec.is_empty() || spec.contains(['/', '\0']) || spec == "." || spec == ".." {
            return Err(NetnsError::Name(spec.chars().take(80).collect()));
        }
        let file = Path::new("/etc/netns").join(spec).join("resolv.conf");
        let resolv_conf = if file.exists() { ResolvConf::None } else { ResolvConf::Create(file) };
        (Path::new("/run/netns").join(spec), resolv_conf)
    };
    Ok((checked(path).await?, resolv_conf))
}

/// The network namespace of a process.
///
/// # Errors
/// When there is no such process or it is in the daemon's own namespace.
pub async fn of_pid(pid: u32) -> Result<NetnsRef, NetnsError> {
    checked(PathBuf::from(format!("/proc/{pid}/ns/net"))).await
}

/// Names of all links in a namespace: where a new one has to find a free name.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub async fn link_names(netns: &NetnsRef) -> Result<BTreeSet<String>, NetnsError> {
    let path = netns.path.clone();
    let (names, _) = inside(netns, None, || async {
        let links = Netlink::open().map_err(io::Error::other)?.links().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(links.into_values().map(|l| l.name).collect())
    })
    .await?;
    names.map_err(|source| NetnsError::Io { what: "list links of", path, source })
}

/// The first of `byway0`, `byway1`… that neither the namespace nor `taken` has.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub async fn free_link_name(netns: &NetnsRef, taken: &[String]) -> Result<String, NetnsError> {
    let names = link_names(netns).await?;
    let free = (0u32..).map(|n| format!("byway{n}")).find(|name| !names.contains(name) && !taken.contains(name));
    Ok(free.unwrap_or_else(|| "byway0".to_owned()))
}

/// Whether the path still leads to the namespace that was attached.
///
/// # Errors
/// When that cannot be told.
pub fn exists(netns: &NetnsRef) -> Result<bool, NetnsError> {
    match open(netns) {
        Ok(_) => Ok(true),
        Err(NetnsError::Gone(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens the namespace file and checks that it is the one that was attached.
///
/// # Errors
/// [`NetnsError::Gone`] when it is not.
pub(super) fn open(netns: &NetnsRef) -> Result<File, NetnsError> {
    let path = || netns.path.clone();
    let io = |what| move |source| NetnsError::Io { what, path: netns.path.clone(), source };
    let file = match File::open(&netns.path) {
        Ok(file) => file,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)) => {
            return Err(NetnsError::Gone(path()));
        }
        Err(error) => return Err(io("open")(error)),
    };
    let meta = file.metadata().map_err(io("look at"))?;
    if (meta.dev(), meta.ino()) == (netns.device, netns.inode) { Ok(file) } else { Err(NetnsError::Gone(path())) }
}

/// Looks at a path, and enters it once to see that it is a network namespace.
async fn checked(path: PathBuf) -> Result<NetnsRef, NetnsError> {
    let meta = std::fs::metadata(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => NetnsError::Missing(path.clone()),
        _ => NetnsError::Io { what: "look at", path: path.clone(), source },
    })?;
    if let Ok(own) = std::fs::metadata("/proc/thread-self/ns/net")
        && (own.dev(), own.ino()) == (meta.dev(), meta.ino())
    {
        return Err(NetnsError::Own(path));
    }
    let netns = NetnsRef { path: path.clone(), device: meta.dev(), inode: meta.ino() };
    match inside(&netns, None, || async {}).await {
        Ok(_) => Ok(netns),
        Err(NetnsError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            Err(NetnsError::Kind(path))
        }
        Err(error) => Err(error),
    }
}

/// Runs a job inside the namespace, on a thread and a runtime of its own. Returns what it returned and the cookie of the
/// namespace, which is checked against `cookie` first where that is known.
///
/// # Errors
/// When the namespace is gone or another one, cannot be entered, or the job takes too long (its thread then ends when
/// it can).
pub(super) async fn inside<J, F, T>(
    netns: &NetnsRef,
    cookie: Option<u64>,
    job: J,
) -> Result<(T, Option<u64>), NetnsError>
where
    J: FnOnce() -> F + Send + 'static,
    F: Future<Output = T>,
    T: Send + 'static,
{
    let (tx, rx) = tokio::sync::oneshot::channel();
    let target = netns.clone();
    let io = |what| move |source| NetnsError::Io { what, path: netns.path.clone(), source };
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let _ = tx.send(enter(&target, cookie, job));
        })
        .map_err(io("start a thread for"))?;
    match tokio::time::timeout(LIMIT, rx).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(io("work in")(io::Error::other("its thread ended early"))),
        Err(_) => Err(io("work in")(io::ErrorKind::TimedOut.into())),
    }
}

/// Body of the thread.
fn enter<J, F, T>(netns: &NetnsRef, expected: Option<u64>, job: J) -> Result<(T, Option<u64>), NetnsError>
where
    J: FnOnce() -> F,
    F: Future<Output = T>,
{
    let io = |what| move |source| NetnsError::Io { what, path: netns.path.clone(), source };
    let file = open(netns)?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| io("enter")(errno.into()))?;
    let cookie = netns_cookie().ok();
    if expected.is_some() && cookie != expected {
        return Err(NetnsError::Gone(netns.path.clone()));
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("start a runtime for"))?;
    Ok((runtime.block_on(job()), cookie))
}

/// What to look at in a workload's namespace.
pub(super) struct Look {
    /// Instance whose aliases count.
    pub instance: String,
    /// Links that are ours without an alias yet: name and hardware address.
    pub macs: Vec<(String, [u8; 6])>,
    /// Rules we entered.
    pub rules: BTreeSet<Rule>,
    /// Sysctls to read.
    pub sysctls: BTreeSet<SysctlKey>,
}

/// Our share of a workload's namespace.
pub(super) async fn observe(
    netns: &NetnsRef,
    cookie: Option<u64>,
    look: Look,
) -> Result<(Scene, Option<u64>), NetnsError> {
    let (scene, cookie) = inside(netns, cookie, move || async move {
        let netlink = Netlink::open().map_err(io::Error::other)?;
        let ours = |link: &super::netlink::LinkInfo| match alias_name(&look.instance, &link.link.alias) {
            Some(name) => Some(name.to_owned()),
            None => {
                let by_mac = |(name, mac): &&(String, [u8; 6])| *name == link.name && link.link.mac == Some(*mac);
                look.macs.iter().find(by_mac).map(|(name, _)| name.clone())
            }
        };
        let mut scene = netlink.scene(&ours, None).await.map_err(io::Error::other)?.scene;
        scene.rules.retain(|rule| look.rules.contains(rule));
        scene.sysctls = sysctl::read_all(&look.sysctls);
        Ok(scene)
    })
    .await?;
    let path = netns.path.clone();
    Ok((scene.map_err(|source| NetnsError::Io { what: "read", path, source })?, cookie))
}

/// Makes changes inside a workload's namespace, in order, going on after a failure.
pub(super) async fn apply(netns: &NetnsRef, cookie: Option<u64>, changes: Vec<Change>) -> Vec<Failure> {
    let what = changes.first().map(ToString::to_string).unwrap_or_default();
    let outcome = inside(netns, cookie, move || async move {
        let netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(error) => return vec![failure("open netlink", error)],
        };
        let mut failures = Vec::new();
        for change in &changes {
            let done = match change {
                Change::SetSysctl { key, value, .. } => sysctl::write(key, value),
                other => netlink.apply(other).await,
            };
            if let Err(error) = done {
                failures.push(failure(change, format!("{error:#}")));
            }
        }
        failures
    })
    .await;
    match outcome {
        Ok((failures, _)) => failures,
        Err(error) => vec![failure(what, error)],
    }
}
