//! `user-socket`: a socket in the user's own directory that leads to the daemon's.
//!
//! Podman without root covers `/run` where its plugins run, and leaves `$XDG_RUNTIME_DIR`. This process is outside, as the
//! same user: whoever connects here asks the daemon as that user, and the daemon decides what that user may. It reads nothing
//! of what passes.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::{Context, Outcome, blocking, log};
use crate::api::client::unreachable;
use crate::api::types::{Error, ErrorKind, ErrorReply, USER_SOCKET};
use crate::model::error::Code;

/// Connections at a time. The daemon has as many for one user.
const MOST: usize = 16;
/// Longest that one exchange may take: the daemon's own limits are shorter.
const LONGEST: Duration = Duration::from_secs(300);

/// What lets a user in who is in none of the groups.
const LIST: &str =
    "name this user in [workloads] users of /etc/byway/byway.toml, then as root: byway reload";

#[derive(Debug, Args)]
pub(super) struct UserSocketArgs {
    /// Where to listen, unless systemd hands a socket over [default: $XDG_RUNTIME_DIR/byway.sock]
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
}

fn failed(what: &str, at: &Path, error: &io::Error) -> Error {
    let message = format!("{what} {}: {error}", at.display());
    Error::new(ErrorKind::Failed, Code::Socket, message)
}

/// Passes connections on until the process ends.
pub(super) fn run(args: UserSocketArgs, context: &Context) -> Result<Outcome, Error> {
    log::wanted()?;
    log::to_stderr("info", context);
    let listener = match handed_over() {
        Some(listener) => listener,
        None => make(&place(args.listen)?)?,
    };
    let to = context.client.socket().to_owned();
    blocking(async {
        let accept = || {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let listener = accept().map_err(|error| failed("listen for", &to, &error))?;
        serve(listener, &to).await
    })?;
    Ok(Outcome::default())
}

/// Where the socket is made.
fn place(named: Option<PathBuf>) -> Result<PathBuf, Error> {
    let own = || Some(Path::new(&std::env::var_os("XDG_RUNTIME_DIR")?).join(USER_SOCKET));
    named.or_else(own).ok_or_else(|| {
        let message = "XDG_RUNTIME_DIR is not set: there is no directory of the user's own";
        Error::new(ErrorKind::Usage, Code::Socket, message).hint("byway user-socket --listen PATH")
    })
}

/// The listening socket that systemd opened, where it did.
#[expect(
    unsafe_code,
    reason = "systemd hands sockets over as numbers, which only an unsafe call takes over"
)]
fn handed_over() -> Option<StdListener> {
    let number = sd_notify::listen_fds().ok()?.next()?;
    // SAFETY: systemd opened this descriptor for this process (LISTEN_PID says so), and nothing else uses it.
    Some(unsafe { OwnedFd::from_raw_fd(number) }.into())
}

/// Makes the socket, for its user alone. A socket of the same user's at which nobody listens is replaced, anything else is
/// left where it is: a symbolic link too, which is not followed.
fn make(path: &Path) -> Result<StdListener, Error> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", path, &error)),
        Ok(found) => {
            let own = found.file_type().is_socket() && found.uid() == geteuid().as_raw();
            if !own || StdStream::connect(path).is_ok() {
                let what = if own {
                    "another byway user-socket listens there"
                } else {
                    "it is no socket of this user's"
                };
                let message = format!("{} is there already: {what}", path.display());
                return Err(Error::new(ErrorKind::Conflict, Code::SocketInUse, message));
            }
            std::fs::remove_file(path).map_err(|error| failed("replace", path, &error))?;
        }
    }
    // From its first moment on nobody else can open it. No other thread runs yet.
    let former = umask(Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(path);
    umask(former);
    bound.map_err(|error| failed("listen at", path, &error))
}

/// Takes connections of this user's.
async fn serve(listener: UnixListener, to: &Path) -> Result<(), Error> {
    let places = Arc::new(Semaphore::new(MOST));
    let to: Arc<Path> = to.into();
    loop {
        // Who waits for a place waits in the kernel's queue.
        let place = Arc::clone(&places).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // In a container of the user's there are other users, which the socket's rights keep out. This is the kernel's word.
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if uid.ok() != Some(geteuid().as_raw()) {
            tracing::warn!("a connection of another user is refused");
            continue;
        }
        let to = Arc::clone(&to);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LONGEST, pass(stream, &to)).await;
            drop(place);
        });
    }
}

/// Passes one connection on, or says why the daemon is not reached.
async fn pass(mut near: UnixStream, to: &Path) -> io::Result<()> {
    match UnixStream::connect(to).await {
        Ok(mut far) => tokio::io::copy_bidirectional(&mut near, &mut far)
            .await
            .map(drop),
        Err(error) => {
            let told = unreachable(to, &error);
            tell(
                near,
                match told.kind {
                    ErrorKind::NotPermitted => told.hint(LIST),
                    _ => told,
                },
            )
            .await
        }
    }
}

/// Answers one request with an error.
async fn tell(mut stream: UnixStream, error: Error) -> io::Result<()> {
    let status = error.kind.http_status();
    let body = serde_json::to_string(&ErrorReply { error }).unwrap_or_default();
    let text = format!(
        "HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // What was sent is read first and last: closing over unread bytes would reset the connection under the answer.
    let mut unread = [0; 4096];
    let _first = stream.read(&mut unread).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_dead_socket_of_the_users_is_left_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("byway.sock");
        let aim = dir.path().join("aim");
        std::os::unix::fs::symlink(&aim, &path).unwrap();
        let refused = make(&path).unwrap_err();
        assert!(refused.message.contains("no socket"), "{refused}");
        assert!(!aim.exists() && path.is_symlink());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "text").unwrap();
        assert!(make(&path).is_err() && path.is_file());
        std::fs::remove_file(&path).unwrap();
        let first = make(&path).unwrap();
        let mode = path.metadata().unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(make(&path).unwrap_err().message.contains("listens"));
        drop(first);
        make(&path).expect("a dead one is replaced");
    }
}
