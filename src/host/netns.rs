//! All work inside another network namespace.
//!
//! A thread that is thrown away afterwards enters the namespace and runs one job on a runtime of its own; no other
//! thread of the process ever changes its namespace. What goes in and comes out is plain data, so that the thread can
//! become a helper process.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::inner::Expected;
use super::netlink::Netlink;
use super::{failure, sysctl};
use crate::model::host::{Change, Failure, NamespaceState, NetnsRef, ResolvConf, Rule, SysctlKey};

/// Longest a job inside a namespace may take.
const JOB_TIMEOUT: Duration = Duration::from_secs(5);
/// `_IO(0xb7, 3)`, see ioctl_ns(2).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

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
    /// The text is neither one component of a path nor an absolute path.
    #[error("{0:?} is neither the name of a network namespace nor an absolute path")]
    Name(String),
    /// The path leads to the daemon's own namespace.
    #[error("{0} is the daemon's own network namespace: it is a member already")]
    Own(PathBuf),
    /// It exists and could not be entered or worked in.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done, in words.
        what: &'static str,
        /// Path of the namespace.
        path: PathBuf,
        /// The error that the kernel gave.
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
    Ok((checked(path).await?, resolv_conf))
}

/// Where `ip netns exec` looks for the resolver of a named namespace; one that is named by its path has none.
pub fn resolver_file(spec: &str) -> Option<PathBuf> {
    (!Path::new(spec).is_absolute()).then(|| Path::new("/etc/netns").join(spec).join("resolv.conf"))
}

/// The network namespace of a process.
///
/// # Errors
/// When there is no such process or it is in the daemon's own namespace.
pub async fn of_pid(pid: u32) -> Result<NetnsRef, NetnsError> {
    checked(PathBuf::from(format!("/proc/{pid}/ns/net"))).await
}

/// The first of `byway0`, `byway1`… that neither the namespace nor `taken` has.
///
/// # Errors
/// When the namespace is gone or cannot be read.
pub async fn free_link_name(netns: &NetnsRef, taken: &[String]) -> Result<String, NetnsError> {
    let (path, taken) = (netns.path.clone(), taken.to_vec());
    let (name, _) = inside(netns, None, move || async move {
        let netlink = Netlink::open().map_err(io::Error::other)?;
        netlink
            .free_name(&taken)
            .await
            .map_err(|error| io::Error::other(format!("{error:#}")))
    })
    .await?;
    name.map_err(|source| NetnsError::Io {
        what: "name a link in",
        path,
        source,
    })
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

/// A socket inside, neither bound nor connected, that does not block. It keeps the namespace alive.
///
/// # Errors
/// When the namespace is gone or the kernel makes none.
pub async fn socket(
    netns: &NetnsRef,
    family: AddressFamily,
    kind: SockType,
) -> Result<OwnedFd, NetnsError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = inside(netns, None, move || async move {
        nix::sys::socket::socket(family, kind, flags, None)
    })
    .await?
    .0;
    made.map_err(|errno| NetnsError::Io {
        what: "make a socket in",
        path: netns.path.clone(),
        source: errno.into(),
    })
}

/// Whether it is still the namespace that was attached. Unlike [`exists`] it goes in: a later one at the same path may
/// have the same inode number. What cannot be entered at the moment lives.
pub async fn lives(netns: &NetnsRef) -> bool {
    !matches!(
        inside(netns, None, || async {}).await,
        Err(NetnsError::Gone(_))
    )
}

/// Opens the namespace file and checks that it is the one that was attached.
///
/// # Errors
/// [`NetnsError::Gone`] when it is not.
pub(super) fn open(netns: &NetnsRef) -> Result<File, NetnsError> {
    let gone = || NetnsError::Gone(netns.path.clone());
    let io = |what| {
        move |source| NetnsError::Io {
            what,
            path: netns.path.clone(),
            source,
        }
    };
    let file = match open_namespace(&netns.path) {
        Ok(Some(file)) => file,
        Ok(None) => return Err(gone()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)
            ) =>
        {
            return Err(gone());
        }
        Err(error) => return Err(io("open")(error)),
    };
    let meta = file.metadata().map_err(io("look at"))?;
    if (meta.dev(), meta.ino()) == (netns.device, netns.inode) {
        Ok(file)
    } else {
        Err(gone())
    }
}

/// Opens what is at `path` if it is a network namespace.
///
/// The path is somebody's word, and opening a device, a FIFO or a socket does something. So the place is taken hold of
/// first (`O_PATH`), which opens nothing, and only what lies in the namespaces' own file system is opened through it.
pub(super) fn open_namespace(path: &Path) -> io::Result<Option<File>> {
    let place = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    if fstatfs(&place)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    Ok(is_netns(&file)?.then_some(file))
}

/// Whether a file of the namespaces' file system is a network namespace (Linux 4.11).
///
/// # Errors
/// When the kernel does not know the question, for example because the file is none of these.
#[expect(unsafe_code, reason = "ioctl(NS_GET_NSTYPE) has no safe wrapper")]
fn is_netns(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open for the whole call, and the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(kind == libc::CLONE_NEWNET)
    }
}

/// A number no other network namespace has had since boot (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// Inode numbers of namespaces are used again as soon as one is gone; this is not.
///
/// # Errors
/// When the kernel does not know the option.
#[expect(
    unsafe_code,
    reason = "getsockopt(SO_NETNS_COOKIE) has no safe wrapper"
)]
fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call; the kernel writes at most `length` bytes, the size of
    // `cookie`, to a pointer that is valid and aligned for them.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if rc == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Looks at a path, and enters it once to see that it works.
async fn checked(path: PathBuf) -> Result<NetnsRef, NetnsError> {
    let found = open_namespace(&path)
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "attach"));
    // Why not is in the daemon's log, for those who may read it.
    let Ok(Some(file)) = found else {
        return Err(NetnsError::Missing(path));
    };
    let looking = |source| NetnsError::Io {
        what: "look at",
        path: path.clone(),
        source,
    };
    let meta = file.metadata().map_err(looking)?;
    if let Ok(own) = std::fs::metadata("/proc/thread-self/ns/net")
        && (own.dev(), own.ino()) == (meta.dev(), meta.ino())
    {
        return Err(NetnsError::Own(path));
    }
    let netns = NetnsRef {
        path: path.clone(),
        device: meta.dev(),
        inode: meta.ino(),
        cookie: None,
    };
    let ((), cookie) = inside(&netns, None, || async {}).await?;
    Ok(NetnsRef { cookie, ..netns })
}

/// Threads that are inside namespaces, those included that nobody waits for any more.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// How many there may be.
const MOST_THREADS: usize = 64;

/// Counts one of [`THREADS`].
struct Counted;

impl Counted {
    fn new() -> Option<Counted> {
        let one_more = |n: usize| (n < MOST_THREADS).then(|| n + 1);
        THREADS
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()
            .map(|_| Counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::AcqRel);
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
    let io = |what| {
        move |source| NetnsError::Io {
            what,
            path: netns.path.clone(),
            source,
        }
    };
    let counted = Counted::new()
        .ok_or_else(|| io("work in")(io::Error::other("too much is under way in namespaces")))?;
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let _counted = counted;
            let _ = tx.send(enter(&target, cookie, job));
        })
        .map_err(io("start a thread for"))?;
    match tokio::time::timeout(JOB_TIMEOUT, rx).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(io("work in")(io::Error::other("its thread ended early"))),
        Err(_) => Err(io("work in")(io::ErrorKind::TimedOut.into())),
    }
}

/// Body of the thread.
fn enter<J, F, T>(
    netns: &NetnsRef,
    expected: Option<u64>,
    job: J,
) -> Result<(T, Option<u64>), NetnsError>
where
    J: FnOnce() -> F,
    F: Future<Output = T>,
{
    let io = |what| {
        move |source| NetnsError::Io {
            what,
            path: netns.path.clone(),
            source,
        }
    };
    let file = open(netns)?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| io("enter")(errno.into()))?;
    let cookie = netns_cookie().ok();
    let expected = expected.or(netns.cookie);
    if expected.is_some() && cookie != expected {
        return Err(NetnsError::Gone(netns.path.clone()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io("start a runtime for"))?;
    Ok((runtime.block_on(job()), cookie))
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
    let (state, cookie) = inside(netns, cookie, move || async move {
        let read = async {
            let netlink = Netlink::open()?;
            netlink
                .inner_state(&look.instance, &look.links, &look.rules)
                .await
        };
        let mut state = read
            .await
            .map_err(|error| io::Error::other(format!("{error:#}")))?;
        state.sysctls = sysctl::read_all(&look.sysctls);
        Ok::<_, io::Error>(state)
    })
    .await?;
    let path = netns.path.clone();
    Ok((
        state.map_err(|source| NetnsError::Io {
            what: "read",
            path,
            source,
        })?,
        cookie,
    ))
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
    let outcome = inside(netns, cookie, move || async move {
        let netlink = Netlink::open().map_err(|error| failure("open netlink", error))?;
        let mut left = Vec::new();
        for change in changes {
            let done = match &change {
                Change::SetSysctl { key, value, .. } => sysctl::write(key, value),
                other => netlink.apply(other).await,
            };
            if let Err(error) = done {
                left.push((change, format!("{error:#}")));
            }
        }
        Ok(left)
    })
    .await;
    match outcome {
        Ok((done, _)) => done,
        Err(error) => Err(failure(what, error)),
    }
}
