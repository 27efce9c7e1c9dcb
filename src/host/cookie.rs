//! What tells network namespaces apart: the two system calls of `host` that no crate offers.
#![expect(
    unsafe_code,
    reason = "getsockopt(SO_NETNS_COOKIE) and ioctl(NS_GET_NSTYPE) have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IO(0xb7, 3)`, see ioctl_ns(2).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Whether a file of the namespaces' file system is a network namespace (Linux 4.11).
///
/// # Errors
/// When the kernel does not know the question, for example because the file is none of these.
pub fn is_netns(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open for the whole call, and the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(kind == libc::CLONE_NEWNET)
    }
}

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
    if rc == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
