//! One UDP socket: how it is made.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};

use super::Options;
use super::sys::{self, set_option};

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) udp: UdpSocket,
    pub(super) local: SocketAddr,
    /// The kernel cuts messages into datagrams.
    pub(super) gso: AtomicBool,
}

impl Socket {
    pub(super) fn bind(address: SocketAddr, options: &Options) -> io::Result<Socket> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let udp = UdpSocket::from(socket(family, SockType::Datagram, flags, None)?);
        let fd = udp.as_fd();
        if address.is_ipv6() {
            // Before the bind: the other family has a socket of its own on the same port.
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        if let Some(mark) = options.mark {
            set_option(fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())?;
        }
        set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, options.receive_buffer)?;
        set_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.send_buffer)?;
        never_fragment(fd, address)?;
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
        };
        set_option(fd, level, name, 1)?;
        if address.ip().is_unspecified() {
            // A host of several addresses answers from the one that was asked: a NAT lets no other in.
            sys::tell_local(fd, address.is_ipv4())?;
        }
        let gro = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        // 0 is "not by default": each message says for itself.
        let gso = set_option(fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        let local = udp.local_addr()?;
        tracing::debug!(%local, gso, gro, "UDP socket bound");
        Ok(Socket { udp, local, gso: AtomicBool::new(gso) })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }

    /// The kernel refused to cut a message, and took its first datagram alone: no more of it on this socket.
    pub(super) fn refuse_gso(&self, error: Errno) {
        if self.gso.swap(false, Ordering::Relaxed) {
            tracing::info!(local = %self.local, %error, "UDP segmentation offload refused, sending datagrams singly");
        }
    }
}

/// Sets a buffer's size by force, else as far as the system's limit allows.
pub(super) fn set_buffer(fd: BorrowedFd<'_>, forced: libc::c_int, plain: libc::c_int, bytes: usize) -> io::Result<()> {
    // The kernel doubles the value for its own bookkeeping.
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX / 2);
    set_option(fd, libc::SOL_SOCKET, forced, bytes).or_else(|_| set_option(fd, libc::SOL_SOCKET, plain, bytes))
}

/// Sets "don't fragment" and has the kernel ignore what path MTU it has heard of: the prober finds it, and ICMP cannot
/// lower it.
fn never_fragment(fd: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        SocketAddr::V6(_) => {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
        }
    }
}
