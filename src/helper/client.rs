//! Asks the helper: one connection for each request, so that one that is started anew is found at once.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Answer;
use super::wire::{self, Error, Reply, Request};

/// How long a helper that is gone is waited for: its unit starts it anew.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Whether the last request waited for a helper in vain. Then the next ones do not wait.
static AWAY: AtomicBool = AtomicBool::new(false);

/// Sends a request and reads its reply. Where the helper is gone, or ends before it replies, the request is made again
/// where it may be carried out twice.
///
/// # Errors
/// [`Error::Unreachable`] where nobody replies.
pub(super) fn ask(at: &Path, request: &Request, given: &[OwnedFd]) -> Result<Answer, Error> {
    let begun = Instant::now();
    loop {
        match exchange(at, request, given) {
            Ok(answer) => {
                AWAY.store(false, Ordering::Relaxed);
                return Ok(answer);
            }
            Err(error)
                if passes(&error)
                    && (request.may_repeat() || is_unheard(&error))
                    && begun.elapsed() < PATIENCE
                    && !AWAY.load(Ordering::Relaxed) =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(error) => {
                if passes(&error) {
                    AWAY.store(true, Ordering::Relaxed);
                }
                return Err(Error::Unreachable {
                    socket: at.to_owned(),
                    why: match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            format!("nothing within {} s", request.takes())
                        }
                        _ => error.to_string(),
                    },
                });
            }
        }
    }
}

/// Whether an error is one of a helper that ends or starts.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

/// Whether an error is one of a helper that has not heard the request.
fn is_unheard(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn exchange(at: &Path, request: &Request, given: &[OwnedFd]) -> io::Result<(Reply, Vec<OwnedFd>)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let limit = TimeVal::seconds(request.takes().into());
    setsockopt(&connection, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&connection, sockopt::SendTimeout, &limit)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(at)?)?;
    wire::send(&connection, request, given)?;
    wire::receive(&connection)
}
