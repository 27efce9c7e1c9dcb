//! The helper: a process that carries out the requests of one daemon.
//!
//! It has no network, keeps nothing, and decides nothing but whether a request is one of those it carries out. A thread
//! takes one connection, carries out its one request, and ends: it may have entered a namespace.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{User, chown};

use super::wire::{self, Error, Reply, Request};
use super::{Counted, Files, carry_out, engine};

/// The user whose daemon is served, unless another is named.
pub const DEFAULT_USER: &str = "byway";
/// Seconds that a request may take to arrive, and a reply to be taken.
const EXCHANGE: i64 = 5;

/// Requests that were refused since the start: of a user who has no say, or none of ours.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// How many requests were refused.
#[cfg(test)]
pub(super) fn refused_so_far() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// Counts a refusal. It is logged at 1, 2, 4, 8…, so that nobody fills the log.
fn refused(why: &str) {
    let count = REFUSED.fetch_add(1, Ordering::Relaxed) + 1;
    if count.is_power_of_two() {
        tracing::warn!(count, why, "request refused");
    }
}

/// Serves the daemon of `user` until the process ends: on the socket that systemd hands over, else on one made at `path`
/// that only that user can open.
///
/// # Errors
/// There is no such user, the socket cannot be made, or another helper listens there.
///
/// `engines` are sockets of container engines beside the usual ones.
pub fn run(path: &Path, user: &str, engines: Vec<PathBuf>) -> anyhow::Result<()> {
    let listener = open(path, user)?;
    let user = user_id(user)?;
    tracing::info!(user, "ready");
    accept_all(&listener, user, engines)
}

/// The socket that systemd hands over, else a new one at `path`.
pub(super) fn open(path: &Path, user: &str) -> anyhow::Result<OwnedFd> {
    match handed_over()? {
        Some(listener) => Ok(listener),
        None => make(path, user_id(user)?).with_context(|| format!("listen at {}", path.display())),
    }
}

/// Takes connections, for ever.
pub(super) fn accept_all(listener: &OwnedFd, user: u32, engines: Vec<PathBuf>) -> ! {
    let engines: Arc<[PathBuf]> = engines.into();
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(number) => take(accepted(number), user, Arc::clone(&engines)),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            // Out of descriptors or memory: those who are served now give theirs back.
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// The number of a user, by name or as digits.
fn user_id(user: &str) -> anyhow::Result<u32> {
    if let Ok(number) = user.parse() {
        return Ok(number);
    }
    let found = User::from_name(user).with_context(|| format!("look for user {user}"))?;
    let found = found.with_context(|| format!("there is no user {user} (systemd-sysusers)"))?;
    Ok(found.uid.as_raw())
}

/// The listening socket that systemd opened, where it did.
///
/// # Errors
/// When it hands over anything but one socket.
#[expect(
    unsafe_code,
    reason = "systemd hands sockets over as numbers, which only an unsafe call takes over"
)]
fn handed_over() -> anyhow::Result<Option<OwnedFd>> {
    let mut numbers = sd_notify::listen_fds().context("take the socket of systemd")?;
    match (numbers.next(), numbers.next()) {
        (None, _) => Ok(None),
        // SAFETY: systemd opened this descriptor for this process (LISTEN_PID says so), and nothing else uses it.
        (Some(number), None) => Ok(Some(unsafe { OwnedFd::from_raw_fd(number) })),
        (Some(_), Some(_)) => bail!("systemd hands over more than one socket"),
    }
}

#[expect(
    unsafe_code,
    reason = "accept4 gives a number, which only an unsafe call takes over"
)]
fn accepted(number: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for this process a moment ago, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Makes the socket, for one user to open. One that nobody listens at is replaced.
fn make(path: &Path, user: u32) -> anyhow::Result<OwnedFd> {
    if let Some(directory) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(directory)?;
    }
    let address = UnixAddr::new(path)?;
    let new = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
    };
    if connect(new()?.as_raw_fd(), &address).is_ok() {
        bail!("another helper listens there");
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = new()?;
    // From its first moment on nobody else can open it. No other thread runs yet.
    let former = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &address);
    umask(former);
    bound?;
    chown(path, Some(user.into()), None)?;
    listen(&listener, Backlog::new(128)?)?;
    Ok(listener)
}

/// Serves a connection on a thread of its own, if its user has a say.
fn take(connection: OwnedFd, user: u32, engines: Arc<[PathBuf]>) {
    let peer = getsockopt(&connection, sockopt::PeerCredentials).map(|peer| peer.uid());
    if !matches!(peer, Ok(uid) if uid == 0 || uid == user) {
        refused("of a user who has no say");
        return;
    }
    let Ok(counted) = Counted::new() else {
        refused("too many at once");
        return;
    };
    let thread = std::thread::Builder::new().name("request".to_owned());
    let spawned = thread.spawn(move || {
        let _counted = counted;
        if let Err(error) = serve(connection, &engines) {
            tracing::debug!(%error, "connection ended early");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "start a thread for a request");
    }
}

/// Reads the request of a connection, carries it out, and replies.
fn serve(connection: OwnedFd, engines: &[PathBuf]) -> io::Result<()> {
    let limit = TimeVal::seconds(EXCHANGE);
    setsockopt(&connection, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&connection, sockopt::SendTimeout, &limit)?;
    let mut opened = None;
    let (reply, descriptors) = match wire::receive::<Request>(&connection) {
        Ok((Request::Engine { socket }, _)) => match engine::gate(&socket, engines) {
            Ok((gate, far)) => {
                let user = gate.user();
                opened = Some(gate);
                (Reply::Engine { user }, vec![far.into()])
            }
            Err(error) => (Reply::Failed(error), Vec::new()),
        },
        Ok((request, given)) => carry_out(request, &given, Files::OfWorkloads, Some(engines)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let why = format!("not a request of version {}", wire::VERSION);
            (Reply::Failed(Error::Refused(why)), Vec::new())
        }
        Err(error) => return Err(error),
    };
    if let Reply::Failed(Error::Refused(why) | Error::NotAllowed(why)) = &reply {
        refused(why);
    }
    wire::send(&connection, &reply, &descriptors)?;
    drop((connection, descriptors));
    match opened.map(engine::Gate::pass) {
        Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            refused("a request to an engine that is no look");
            Ok(())
        }
        Some(passed) => passed,
        None => Ok(()),
    }
}
