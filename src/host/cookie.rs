//! The cookie of the calling thread's network namespace: the one system call of `host` that no crate offers.
#![expect(unsafe_code, reason = "getsockopt(SO_NETNS_COOKIE) has no safe wrapper")]

use std::io;
use std::os::fd::AsRawFd;

/// A number no other network namespace has had since boot (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// Inode numbers of namespaces are used again as soon as one is gone; this is not.
///
/// # Errors
/// When the kernel does not know the option.
pub fn netns_cookie() -> io::Result<u64> {
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
    if rc == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
