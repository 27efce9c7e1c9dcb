//! A TCP port that is ours whether it listens or not.
//!
//! A bound socket that does not listen keeps the port from others, and the kernel refuses who connects to it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt,
};
use tokio::net::{TcpListener, TcpStream};

/// How long a target may take to say whether it takes connections.
pub const PROBE: Duration = Duration::from_millis(300);
/// How many clients may wait to be accepted.
const WAITING: i32 = 1024;

/// A socket that is bound to the port, and listens only once it is opened.
#[derive(Debug)]
pub(super) struct Door(OwnedFd);

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Door {
    /// Takes the port; nobody is let in yet.
    pub(super) fn bind(listen: SocketAddr) -> io::Result<Door> {
        let family = if listen.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(family, SockType::Stream, flags, None)?;
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if listen.is_ipv6() {
            socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(listen))?;
        Ok(Door(socket))
    }

    /// Lets clients in from now on.
    pub(super) fn open(&self) -> io::Result<TcpListener> {
        socket::listen(&self.0, Backlog::new(WAITING)?)?;
        TcpListener::from_std(self.0.try_clone()?.into())
    }

    /// Refuses clients from now on, those included that wait; the port stays ours.
    pub(super) fn shut(&self, listener: TcpListener) {
        drop(listener);
        let _ = socket::shutdown(self.0.as_raw_fd(), socket::Shutdown::Both);
    }
}

/// Whether a target refuses connections, or nobody is there: only what is said counts, silence does not, nor that this
/// process has no socket to ask with.
pub async fn refuses(target: SocketAddr, limit: Duration) -> bool {
    let asked = tokio::time::timeout(limit, TcpStream::connect(target)).await;
    matches!(asked, Ok(Err(error)) if error.raw_os_error() != Some(libc::EAFNOSUPPORT))
}
