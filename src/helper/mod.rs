//! What needs more than `CAP_NET_ADMIN`: entering the network namespaces of workloads, and their resolver files.
//!
//! A daemon that has these rights itself, because root started it, does it here. Any other asks the *helper*, a process
//! that has the rights and nothing else: no network, no state, no say. It knows the requests of `wire.rs`, judges each by
//! what it leads to, and forgets it. Both run the same code on a thread of its own for each request.
//!
//! A socket belongs for ever to the namespace it was made in, and the kernel asks for `CAP_NET_ADMIN` of its opener and of
//! whoever uses it. So the helper only opens sockets inside, and the daemon configures links through them.
//!
//! | file | what it holds |
//! |---|---|
//! | `wire.rs` | requests and replies, and how they cross a socket |
//! | `namespaces.rs` | what is done with namespaces |
//! | `lent.rs` | namespaces that were named by a thread of a process that ended |
//! | `names.rs` | turns questions for names to our resolver |
//! | `files.rs` | what is done with resolver files |
//! | `engine.rs` | the gate to a container engine |
//! | `commands.rs` | runs a command in a container, to ask whether it is well |
//! | `http.rs` | questions to a container engine |
//! | `links.rs` | whether a namespace has a link of ours |
//! | `guests.rs` | sockets at which guests behind a TAP ask for a router |
//! | `zones.rs` | our links in a zone of firewalld |
//! | `tables.rs` | Docker's chain in the tables of before nftables |
//! | `client.rs` | asks the helper |
//! | `serve.rs` | the helper itself |

mod client;
mod commands;
mod engine;
mod files;
mod guests;
mod http;
mod lent;
mod links;
mod names;
mod namespaces;
pub mod serve;
mod tables;
mod wire;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;

pub use commands::{Command, Former, Ran};
pub(crate) use engine::is_usual;
pub use files::Files;
pub use tables::{are_tables_used, let_through, table_rules};
pub use wire::{Error, SocketKind};

use crate::model::host::NetnsRef;
use wire::{Removed, Reply, Request};

/// Where the helper listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/byway-helper/socket";
/// Most requests that are under way at the same time.
const MAX_REQUESTS: usize = 64;
/// Bytes of a resolver file that are read at most; none in use comes near.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// The numbers of capabilities (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;

/// The socket of the helper, where this process asks one. The rights of a process are decided when it starts.
static HELPER: OnceLock<PathBuf> = OnceLock::new();

/// Has this process ask the helper at `socket` from now on, unless it may enter namespaces itself.
pub fn ask_at(socket: &Path) {
    if !has_capability(CAP_SYS_ADMIN) {
        let _ = HELPER.set(socket.to_owned());
    }
}

/// Whether this process has a capability in its effective set.
pub fn has_capability(capability: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    in_effective_set(&status, capability)
}

/// Whether the effective set of `/proc/PID/status` holds the capability.
fn in_effective_set(status: &str, capability: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << capability) != 0)
}

/// Requests that are under way, those included that nobody waits for any more.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Counts one of [`UNDER_WAY`].
struct Counted;

impl Counted {
    fn new() -> Result<Counted, Error> {
        let one_more = |n: usize| (n < MAX_REQUESTS).then(|| n + 1);
        UNDER_WAY
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map(|_| Counted)
            .map_err(|_| Error::Refused("too much is under way in namespaces".to_owned()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A reply with the descriptors that came beside it.
type Answer = (Reply, Vec<OwnedFd>);

/// Carries a request out, or has the helper do it.
///
/// # Errors
/// The reason it was not done.
///
/// # Cancel safety
/// A dropped call is carried out all the same, and nobody learns how it ended.
async fn ask(request: Request, given: Vec<OwnedFd>) -> Result<Answer, Error> {
    if HELPER.get().is_none() && !enters(&request) {
        return answer(carry_out(request, &given, Files::Any, None));
    }
    let counted = Counted::new()?;
    let (tx, rx) = tokio::sync::oneshot::channel();
    // The helper's own limit runs out first, so that what it says is heard.
    let limit = Duration::from_secs(request.takes().saturating_add(1).into());
    let nobody = |why: &str| Error::Refused(format!("work in a namespace: {why}"));
    std::thread::Builder::new()
        .name("helper".to_owned())
        .spawn(move || {
            let _counted = counted;
            let _ = tx.send(match HELPER.get() {
                Some(socket) => client::ask(socket, &request, &given),
                None => Ok(carry_out(request, &given, Files::Any, None)),
            });
        })
        .map_err(|error| nobody(&error.to_string()))?;
    match tokio::time::timeout(limit, rx).await {
        Ok(Ok(replied)) => answer(replied?),
        Ok(Err(_)) => Err(nobody("its thread ended early")),
        Err(_) => Err(nobody("it takes too long")),
    }
}

/// A failure is an error, whoever met it.
fn answer((reply, descriptors): Answer) -> Result<Answer, Error> {
    match reply {
        Reply::Failed(error) => Err(error),
        other => Ok((other, descriptors)),
    }
}

/// Whether a request has a thread of its own: one that is taken into a namespace, or may wait for somebody else, for a
/// program or for a file that a container holds on to.
fn enters(request: &Request) -> bool {
    match request {
        Request::Name { .. }
        | Request::Socket { .. }
        | Request::Sysctls { .. }
        | Request::OfProcesses
        | Request::Turn { .. }
        | Request::Watch
        | Request::Solicitations { .. }
        | Request::Zones
        | Request::Zone { .. }
        | Request::Write { .. }
        | Request::IsEngines { .. }
        | Request::MayRun { .. }
        | Request::Run { .. }
        | Request::AreTablesUsed { .. }
        | Request::TableRules { .. }
        | Request::LetThrough { .. } => true,
        Request::Open { netns } => lent::is_lent(&netns.path),
        Request::Read { .. } | Request::Remove { .. } | Request::Engine { .. } => false,
    }
}

/// Carries a request out on the calling thread, which is to end after it: it may be in another namespace then. `engines` are
/// sockets of container engines beside the usual ones; none where any may be asked.
fn carry_out(
    request: Request,
    given: &[OwnedFd],
    files: Files,
    engines: Option<&[PathBuf]>,
) -> Answer {
    attempt(request, given, files, engines)
        .unwrap_or_else(|error| (Reply::Failed(error), Vec::new()))
}

fn attempt(
    request: Request,
    given: &[OwnedFd],
    files: Files,
    engines: Option<&[PathBuf]>,
) -> Result<Answer, Error> {
    Ok(match request {
        Request::Name { path, owner } => {
            let netns = namespaces::name(path, owner)?;
            (Reply::Namespace(netns), Vec::new())
        }
        Request::Open { netns } => (Reply::Done, vec![namespaces::open(&netns)?.into()]),
        Request::Socket { netns, kind } => {
            let (cookie, sockets) = namespaces::sockets(&netns, kind)?;
            (Reply::Entered { cookie }, sockets)
        }
        Request::Sysctls { netns, read, write } => {
            let (values, failed) = namespaces::sysctls(&netns, read, &write)?;
            (Reply::Sysctls { values, failed }, Vec::new())
        }
        Request::Watch => (Reply::Done, vec![namespaces::watch(the_callers(given)?)?]),
        Request::Solicitations { link } => {
            let socket = guests::solicitations(the_callers(given)?, &link)?;
            (Reply::Done, vec![socket])
        }
        Request::OfProcesses => (Reply::Namespaces(namespaces::of_processes()?), Vec::new()),
        Request::Turn {
            netns,
            link,
            own,
            gateways,
        } => {
            namespaces::enter(&netns)?;
            names::turn(&link, &own, &gateways)?;
            (Reply::Done, Vec::new())
        }
        Request::Read { path } => {
            files.allow(&path)?;
            let (file, directory) = files::read(&path)?;
            (Reply::File { directory }, file.into_iter().collect())
        }
        Request::Write {
            path,
            content,
            make,
        } => {
            files.allow(&path)?;
            if make {
                files.allow_making(&path)?;
            }
            files::write(&path, &content, make)?;
            (Reply::Done, Vec::new())
        }
        Request::Remove { path, what } => {
            files.allow_making(&path)?;
            files::remove(&path, what)?;
            (Reply::Done, Vec::new())
        }
        Request::Zones => (Reply::Zones(zones::names()?), Vec::new()),
        Request::Zone { zone, links, put } => {
            zones::change(&zone, &links, put)?;
            (Reply::Done, Vec::new())
        }
        // Whoever may connect to an engine does that itself; the helper opens a gate instead.
        Request::Engine { .. } => return Err(unexpected()),
        Request::IsEngines { path, ids, pid } => {
            let own = files.allow(&path).is_ok() && files::is_engines_own(&path, &ids, pid);
            (Reply::Is(own), Vec::new())
        }
        Request::MayRun { command } => {
            commands::may_run(&command, engines)?;
            (Reply::Done, Vec::new())
        }
        Request::Run {
            command,
            limit,
            former,
        } => {
            let ran = commands::run(&command, limit, &former, engines)?;
            (Reply::Ran(ran), Vec::new())
        }
        Request::AreTablesUsed { .. } | Request::TableRules { .. } | Request::LetThrough { .. } => {
            let reply = tables::carry_out(request, the_callers(given)?)?;
            (reply, Vec::new())
        }
    })
}

/// The file of the caller's own namespace, which came with the request.
fn the_callers(given: &[OwnedFd]) -> Result<&OwnedFd, Error> {
    match given {
        [own] => Ok(own),
        _ => Err(Error::Refused("no namespace came with it".to_owned())),
    }
}

/// A reply that does not fit its request.
fn unexpected() -> Error {
    Error::Refused("the privileged helper answers something else".to_owned())
}

/// The one descriptor of a reply.
fn one(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, Error> {
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| unexpected())?;
    Ok(descriptor)
}

/// The network namespace at a path, which was entered once to see that it works. With an `owner` it must belong to that
/// user: who may change something here may not reach into what others run by that.
///
/// # Errors
/// [`Error::Missing`] where none is there, [`Error::Foreign`] where it is another user's.
pub async fn name(path: PathBuf, owner: Option<u32>) -> Result<NetnsRef, Error> {
    match ask(Request::Name { path, owner }, Vec::new()).await? {
        (Reply::Namespace(netns), _) => Ok(netns),
        _ => Err(unexpected()),
    }
}

/// The file of a namespace, which leads to it whatever happens at its path. It keeps the namespace alive.
///
/// # Errors
/// [`Error::Gone`] when the path leads elsewhere by now.
pub async fn open(netns: NetnsRef) -> Result<OwnedFd, Error> {
    one(ask(Request::Open { netns }, Vec::new()).await?.1)
}

/// Sockets inside a namespace, with the namespace's cookie. They keep it alive.
///
/// # Errors
/// [`Error::Gone`] when the path leads elsewhere by now, or the cookie is another one.
pub async fn sockets(
    netns: NetnsRef,
    kind: SocketKind,
) -> Result<(Option<u64>, Vec<OwnedFd>), Error> {
    match ask(Request::Socket { netns, kind }, Vec::new()).await? {
        (Reply::Entered { cookie }, sockets) => Ok((cookie, sockets)),
        _ => Err(unexpected()),
    }
}

/// One socket inside a namespace, of a kind that comes alone.
///
/// # Errors
/// As [`sockets`].
pub async fn socket(netns: NetnsRef, kind: SocketKind) -> Result<OwnedFd, Error> {
    one(sockets(netns, kind).await?.1)
}

/// Reads and then writes settings of links inside a namespace: the values of those that exist, and which were not written
/// and why.
///
/// # Errors
/// Nothing was written: the namespace is gone, or a key is none of a link's.
pub async fn sysctls(
    netns: NetnsRef,
    read: BTreeSet<String>,
    write: Vec<(String, String)>,
) -> Result<(BTreeMap<String, String>, Vec<(String, String)>), Error> {
    if read.is_empty() && write.is_empty() {
        return Ok(Default::default());
    }
    match ask(Request::Sysctls { netns, read, write }, Vec::new()).await? {
        (Reply::Sysctls { values, failed }, _) => Ok((values, failed)),
        _ => Err(unexpected()),
    }
}

/// The names of firewalld's zones.
///
/// # Errors
/// firewalld does not answer.
pub async fn zones() -> Result<Vec<String>, Error> {
    match ask(Request::Zones, Vec::new()).await? {
        (Reply::Zones(names), _) => Ok(names),
        _ => Err(unexpected()),
    }
}

/// Puts links of ours into the zone `byway` or `trusted` of firewalld, or takes them out, until firewalld ends.
///
/// # Errors
/// firewalld does not answer or refuses, or it is another zone or link.
pub async fn zone(zone: &str, links: Vec<String>, put: bool) -> Result<(), Error> {
    let zone = zone.to_owned();
    let request = Request::Zone { zone, links, put };
    ask(request, Vec::new()).await.map(|_| ())
}

/// The namespaces that processes of this machine are in, each by its oldest process, at most 1,024: what a container began
/// with lives as long as it does. Their cookies are not told.
///
/// # Errors
/// When processes cannot be listed.
pub async fn of_processes() -> Result<Vec<NetnsRef>, Error> {
    match ask(Request::OfProcesses, Vec::new()).await? {
        (Reply::Namespaces(all), _) => Ok(all),
        _ => Err(unexpected()),
    }
}

/// Turns questions for names out of a namespace, by one of its links, to `gateways`; `own` are the workload's addresses
/// there. Without gateways they are left to themselves again.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel does not take the rules.
pub async fn turn_names(
    netns: NetnsRef,
    link: &str,
    own: &[IpAddr],
    gateways: &[IpAddr],
) -> Result<(), Error> {
    let request = Request::Turn {
        netns,
        link: link.to_owned(),
        own: own.to_vec(),
        gateways: gateways.to_vec(),
    };
    ask(request, Vec::new()).await.map(|_| ())
}

/// A route socket, not bound yet, that hears the namespaces around the calling thread's.
///
/// # Errors
/// When the kernel refuses it.
pub fn watch() -> Result<OwnedFd, Error> {
    let path = Path::new("/proc/thread-self/ns/net");
    let Some(socket) = HELPER.get() else {
        return namespaces::listening().map_err(Error::system("listen in", path));
    };
    let own = File::open(path).map_err(Error::system("open", path))?;
    let replied = client::ask(socket, &Request::Watch, &[own.into()])?;
    one(answer(replied)?.1)
}

/// A socket that hears router solicitations at a TAP of ours and nothing else, sends with a hop limit of 255, and does not
/// block. It is bound to that link of the calling thread's namespace.
///
/// # Errors
/// When it is no TAP of ours, or the kernel refuses.
pub async fn solicitations(link: &str) -> Result<OwnedFd, Error> {
    let path = Path::new("/proc/thread-self/ns/net");
    let own = File::open(path).map_err(Error::system("open", path))?;
    let link = link.to_owned();
    let asked = ask(Request::Solicitations { link }, vec![own.into()]);
    one(asked.await?.1)
}

/// What a resolver file of a workload holds, where it is there, up to 64 KiB; and whether its directory is there.
///
/// # Errors
/// When it exists and cannot be read, or is a symbolic link.
pub async fn read(path: &Path) -> Result<(Option<Vec<u8>>, bool), Error> {
    let request = Request::Read {
        path: path.to_owned(),
    };
    let (Reply::File { directory }, files) = ask(request, Vec::new()).await? else {
        return Err(unexpected());
    };
    let Some(file) = files.into_iter().next() else {
        return Ok((None, directory));
    };
    let mut content = Vec::new();
    File::from(file)
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut content)
        .map_err(Error::system("read", path))?;
    Ok((Some(content), directory))
}

/// Writes a resolver file of a workload in place. With `make` it and its directory are made where they are missing.
///
/// # Errors
/// When it cannot be made or written, or is somebody else's too.
pub async fn write(path: &Path, content: &[u8], make: bool) -> Result<(), Error> {
    let request = Request::Write {
        path: path.to_owned(),
        content: content.to_vec(),
        make,
    };
    ask(request, Vec::new()).await.map(|_| ())
}

/// Removes a resolver file of a workload.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(path: &Path) -> Result<(), Error> {
    removed(path, Removed::File).await
}

/// Removes the directory that a resolver file was in.
///
/// # Errors
/// When it holds files of somebody else.
pub async fn remove_directory_of(path: &Path) -> Result<(), Error> {
    removed(path, Removed::Directory).await
}

async fn removed(path: &Path, what: Removed) -> Result<(), Error> {
    let path = path.to_owned();
    ask(Request::Remove { path, what }, Vec::new())
        .await
        .map(|_| ())
}

/// A connection to a container engine, at which one question is asked over HTTP, and the user who listens there.
///
/// # Errors
/// The kernel's, or that the helper does not answer or knows of no engine there.
pub async fn engine(socket: &Path) -> io::Result<(UnixStream, u32)> {
    if HELPER.get().is_none() {
        let stream = UnixStream::connect(socket).await?;
        let user = stream.peer_cred()?.uid();
        return Ok((stream, user));
    }
    let request = Request::Engine {
        socket: socket.to_owned(),
    };
    let (given, user) = match ask(request, Vec::new()).await {
        Ok((Reply::Engine { user }, descriptors)) => {
            (one(descriptors).map_err(io::Error::other)?, user)
        }
        Ok(_) => return Err(io::Error::other(unexpected())),
        Err(Error::System { errno, .. }) => return Err(io::Error::from_raw_os_error(errno)),
        Err(error) => return Err(io::Error::other(error)),
    };
    let stream = std::os::unix::net::UnixStream::from(given);
    stream.set_nonblocking(true)?;
    Ok((UnixStream::from_std(stream)?, user))
}

/// Whether a command may be run in its container: one that is attached here and not as good as root, or one whose label
/// asks for that command.
///
/// # Errors
/// [`Error::NotAllowed`] where it may not be; [`Error::Engine`] and others where nobody knows.
pub async fn may_run(command: Command) -> Result<(), Error> {
    ask(Request::MayRun { command }, Vec::new())
        .await
        .map(|_| ())
}

/// Runs a command in its container, as the container's own user. It is waited for `limit` milliseconds at most; `former` is
/// what is known of the one before.
///
/// # Errors
/// As [`may_run`].
///
/// # Cancel safety
/// A dropped call is carried out all the same.
pub async fn run(command: Command, limit: u32, former: Former) -> Result<Ran, Error> {
    let request = Request::Run {
        command,
        limit,
        former,
    };
    match ask(request, Vec::new()).await? {
        (Reply::Ran(ran), _) => Ok(ran),
        _ => Err(unexpected()),
    }
}

/// Whether `path` is the file that an engine made for the container with one of `ids`, and what the process `pid` of it
/// finds at `/etc/resolv.conf`. A file that was mounted there from elsewhere is its owner's.
///
/// # Errors
/// When nobody can tell.
pub async fn is_engines_own(path: &Path, ids: &[&str], pid: u32) -> Result<bool, Error> {
    let request = Request::IsEngines {
        path: path.to_owned(),
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        pid,
    };
    match ask(request, Vec::new()).await? {
        (Reply::Is(own), _) => Ok(own),
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests;
