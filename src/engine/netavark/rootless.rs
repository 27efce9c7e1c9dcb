//! Podman without root: plugins run in the user's own user and mount namespaces.
//!
//! Podman covers `/run` there, and the namespaces of its containers are mounted where nobody else sees them. So the daemon is
//! asked at a socket in the user's own directory (`byway user-socket`), and hears of a namespace by a thread of this process
//! that is in it: the kernel tells it whose the namespace is.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};

use nix::sched::{CloneFlags, setns};
use nix::unistd::gettid;

use super::Failure;
use crate::api::types::{DEFAULT_SOCKET, USER_SOCKET, default_socket};

/// The map of a user namespace that all users of the machine are in, as the first one has it.
const EVERYBODY: [&str; 3] = ["0", "0", "4294967295"];

/// What starts the user's own socket, where the machine's daemon runs.
pub(super) const START: &str = "systemctl --user start byway-user.socket, or: byway user-socket &";

/// Whether this process is in a user namespace that somebody made.
pub(super) fn is_rootless() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_whitespace().collect();
    !words.is_empty() && words != EVERYBODY
}

/// The daemon's socket where no option names it: that of the variable, of the machine, or else of the user.
///
/// The user's socket is looked at only without root: what is root's is not asked of a process of somebody else's.
pub(super) fn socket() -> PathBuf {
    let socket = default_socket();
    if socket != Path::new(DEFAULT_SOCKET) || socket.exists() || !is_rootless() {
        return socket;
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join(USER_SOCKET));
    own.filter(|path| path.is_absolute()).unwrap_or(socket)
}

/// A namespace as the daemon is told of it.
pub(super) struct Told {
    /// The path by which the daemon finds it.
    pub path: String,
    /// The thread that is in it ends with this.
    _inside: Option<Sender<()>>,
}

/// How the daemon finds the namespace at a path that is seen from here.
///
/// A thread enters it: a descriptor of a user's process is opened by nobody but that user and by more rights than the
/// daemon's helper has.
///
/// # Errors
/// It cannot be opened or entered here.
pub(super) fn told(netns: &str) -> Result<Told, Failure> {
    if !is_rootless() {
        return Ok(Told {
            path: netns.to_owned(),
            _inside: None,
        });
    }
    let enter = || -> io::Result<(i32, Sender<()>)> {
        // What is no namespace may be a pipe that nobody writes to.
        let mut options = File::options();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(netns)?;
        let (say, hear) = channel();
        let (stay, ended) = channel();
        std::thread::Builder::new().spawn(move || {
            let inside = setns(&file, CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            let _ = say.send(inside);
            // It is an error once the other end is gone.
            let _ = ended.recv();
        })?;
        let entered = hear.recv().map_err(io::Error::other)?;
        Ok((entered?, stay))
    };
    let (thread, stay) = enter().map_err(|error| {
        let shown: String = netns.chars().take(200).collect();
        Failure::new(format!("enter the namespace {shown:?}: {error}"))
    })?;
    Ok(Told {
        path: format!("/proc/{}/task/{thread}/ns/net", std::process::id()),
        _inside: Some(stay),
    })
}
