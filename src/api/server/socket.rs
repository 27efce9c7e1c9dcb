//! The socket file: made with its rights, taken over only from the dead, removed only while it is ours.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use crate::api::groups::{READERS, number};
use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;

/// How long another daemon that makes its socket in the same directory is waited for.
const TURN: Duration = Duration::from_millis(300);

/// A bound socket; dropping it removes the file while that is still the one made here.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file, so that only our own file is removed.
    file: (u64, u64),
}

impl Listener {
    /// Path of the socket file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing is where its file was. Something else there is not ours.
    pub(super) fn is_gone(&self) -> bool {
        identity(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    pub(super) fn to_tokio(&self) -> io::Result<tokio::net::UnixListener> {
        let twin = self.inner.try_clone()?;
        twin.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(twin)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Someone may have put another socket there; that one is not ours to remove.
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Listens on `path`: file 0660, a missing directory made 0750, both of group `byway` where that exists.
///
/// A socket file nobody answers on is taken over.
///
/// # Errors
/// `E-SOCKET-IN-USE` where somebody answers, or where the file is no socket; `E-PERMISSION` where this user may not make it
/// there, `E-SOCKET` where it cannot be made otherwise.
pub fn bind(path: &Path) -> Result<Listener, Error> {
    let fail = |what: &str, e: io::Error| {
        let message = format!("{what} {}: {e}", path.display());
        if e.kind() == io::ErrorKind::PermissionDenied {
            Error::new(ErrorKind::NotPermitted, Code::Permission, message)
                .hint("byway daemon --socket PATH --state-dir DIR      (where this user may write)")
        } else {
            Error::new(ErrorKind::Failed, Code::Socket, message)
        }
    };
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if !directory.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)
            .and_then(|()| give_to_group(directory))
            .map_err(|e| fail("make the directory of the control socket", e))?;
    }
    // Two daemons that start at once must not both find the old socket dead and remove each other's new one.
    let _guard =
        lock(directory).map_err(|e| fail("lock the directory of the control socket", e))?;
    remove_stale(path)?;
    // Bound beside its place and linked there with its rights already set: nobody connects before.
    let aside = directory.join(format!(".{}", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let made = || -> io::Result<Listener> {
        let inner = UnixListener::bind(&aside)?;
        std::fs::set_permissions(&aside, PermissionsExt::from_mode(0o660))?;
        give_to_group(&aside)?;
        std::fs::hard_link(&aside, path)?;
        Ok(Listener {
            inner,
            path: path.to_owned(),
            file: identity(path)?,
        })
    };
    let result = made().map_err(|e| fail("make the control socket", e));
    let _ = std::fs::remove_file(&aside);
    result
}

/// Locks the directory while a socket is made there, which takes milliseconds. Whoever holds it longer has it for good: a store,
/// ours perhaps, whose state directory it is. None then.
fn lock(directory: &Path) -> io::Result<Option<Flock<File>>> {
    let until = Instant::now() + TURN;
    let mut file = File::open(directory)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= until => return Ok(None),
            Err((same, Errno::EWOULDBLOCK | Errno::EINTR)) => file = same,
            Err((_, error)) => return Err(error.into()),
        }
        std::thread::sleep(TURN / 30);
    }
}

/// Gives a file to group `byway`. It stays with our own group where there is no such group, and where this is a user without
/// privilege (a relay's) who is not in it: then only that user and root may ask.
fn give_to_group(path: &Path) -> io::Result<()> {
    let Some(gid) = number(READERS) else {
        return Ok(());
    };
    match std::os::unix::fs::lchown(path, None, Some(gid)) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !Uid::effective().is_root() => {
            Ok(())
        }
        given => given,
    }
}

fn remove_stale(path: &Path) -> Result<(), Error> {
    let in_use = |why: &str| {
        let message = format!("cannot listen on {}: {why}", path.display());
        Err(Error::new(ErrorKind::Conflict, Code::SocketInUse, message)
            .hint("byway daemon --socket PATH --state-dir DIR"))
    };
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return in_use("a file that is no socket is in the way");
    }
    match UnixStream::connect(path) {
        Ok(_) => in_use("another daemon answers there"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|e| {
                Error::new(
                    ErrorKind::Failed,
                    Code::Socket,
                    format!("remove the dead socket {}: {e}", path.display()),
                )
            }),
        Err(e) => in_use(&format!(
            "it cannot be told whether another daemon answers there: {e}"
        )),
    }
}
