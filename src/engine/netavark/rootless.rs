//! Podman without root: plugins run in the user's own user and mount namespaces.
//!
//! Podman covers `/run` there, and the namespaces of its containers are mounted where nobody else sees them. So the daemon is
//! asked at a socket in the user's own directory (`byway user-socket`), and hears of a namespace by a descriptor of this
//! process, which it opens itself: the kernel tells it whose the namespace is.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
    /// Kept open until the daemon has answered.
    _open: Option<File>,
}

/// How the daemon finds the namespace at a path that is seen from here.
///
/// # Errors
/// It cannot be opened here.
pub(super) fn told(netns: &str) -> Result<Told, Failure> {
    if !is_rootless() {
        return Ok(Told {
            path: netns.to_owned(),
            _open: None,
        });
    }
    let open = || -> io::Result<File> {
        // What is no namespace may be a pipe that nobody writes to.
        let mut options = File::options();
        options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(netns)
    };
    let file = open().map_err(|error| {
        let shown: String = netns.chars().take(200).collect();
        Failure::new(format!("open the namespace {shown:?}: {error}"))
    })?;
    Ok(Told {
        path: format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()),
        _open: Some(file),
    })
}
