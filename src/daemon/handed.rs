//! Sockets that systemd made and hands over at the start, by the name that their unit gives them.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// `FileDescriptorName=` of the socket of Docker's plugin.
const DOCKER: &str = "docker";

/// The socket of Docker's plugin, where it is handed over. It is there once: what is taken is not handed over again.
#[expect(
    unsafe_code,
    reason = "a descriptor that is handed over is a bare number"
)]
pub(super) fn docker() -> Option<UnixListener> {
    let mut handed = sd_notify::listen_fds_with_names().ok()?;
    let (number, _) = handed.find(|(_, name)| name == DOCKER)?;
    // SAFETY: systemd opened the descriptor for this process (`LISTEN_PID`) and nobody else takes it: this is called once,
    // before anything else of the daemon.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    Some(UnixListener::from(owned))
}
