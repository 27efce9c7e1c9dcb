//! One UDP socket: how it is made, and one message out.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv6V6Only, Mark, RcvBuf, RcvBufForce, SndBuf, SndBufForce};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
};
use quinn::udp::{EcnCodepoint, Transmit, UdpSockRef, UdpSocketState};

use super::Options;

/// A datagram, or up to 64 of `segment` bytes each (the last may be shorter), on its way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) to: SocketAddr,
    /// The bytes of each datagram where the kernel is to cut; none for one datagram.
    pub(super) segment: Option<usize>,
    /// The ECN bits to send with; none for what is not ECN-capable.
    pub(super) ecn: Option<EcnCodepoint>,
    /// Our address that it comes from; none: the kernel chooses.
    pub(super) local: Option<IpAddr>,
}

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) udp: UdpSocket,
    pub(super) state: UdpSocketState,
    pub(super) local: SocketAddr,
    /// The kernel cuts messages into datagrams. Ours, because quinn-udp gives offload up for whatever the kernel calls
    /// EINVAL, an address of ours that is gone among it.
    pub(super) gso: AtomicBool,
}

impl Socket {
    /// Binds a socket: one family only, never blocking, never fragmenting, what came by ICMP about the path's MTU ignored (the
    /// prober finds it), and told of each message's ECN bits and destination.
    pub(super) fn bind(address: SocketAddr, options: &Options) -> io::Result<Socket> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let udp = UdpSocket::from(socket(family, SockType::Datagram, flags, None)?);
        if address.is_ipv6() {
            // Before the bind: the other family has a socket of its own on the same port.
            setsockopt(&udp, Ipv6V6Only, &true)?;
        }
        if let Some(mark) = options.mark {
            setsockopt(&udp, Mark, &mark)?;
        }
        let state = UdpSocketState::new(UdpSockRef::from(&udp))?;
        if state.may_fragment() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel may fragment what this socket sends",
            ));
        }
        bind(udp.as_raw_fd(), &SockaddrStorage::from(address))?;
        let (local, gso) = (udp.local_addr()?, state.max_gso_segments() > 1);
        tracing::debug!(%local, gso, gro = state.gro_segments() > 1, "UDP socket bound");
        let socket = Socket {
            udp,
            state,
            local,
            gso: AtomicBool::new(gso),
        };
        socket.set_receive_buffer(options.receive_buffer)?;
        let bytes = kernel_size(options.send_buffer);
        setsockopt(&socket.udp, SndBufForce, &bytes)
            .or_else(|_| setsockopt(&socket.udp, SndBuf, &bytes))?;
        Ok(socket)
    }

    /// Sets the receive buffer's size by force, else as far as the system's limit allows.
    pub(super) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        let bytes = kernel_size(bytes);
        setsockopt(&self.udp, RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.udp, RcvBuf, &bytes))?;
        Ok(())
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }

    /// Sends one message.
    ///
    /// # Errors
    /// As `sendmsg`, without EINTR; never blocks.
    pub(super) fn send(&self, message: Outgoing<'_>) -> io::Result<()> {
        let Outgoing {
            bytes,
            to,
            segment,
            ecn,
            local,
        } = message;
        let transmit = Transmit {
            destination: to,
            ecn,
            contents: bytes,
            segment_size: segment,
            src_ip: local,
        };
        self.state.try_send(UdpSockRef::from(&self.udp), &transmit)
    }

    /// The kernel refused to cut a message, and took its first datagram alone: no more of it on this socket.
    pub(super) fn refuse_gso(&self, error: Errno) {
        if self.gso.swap(false, Ordering::Relaxed) {
            tracing::info!(local = %self.local, %error, "UDP segmentation offload refused, sending datagrams singly");
        }
    }
}

/// A buffer's size as the kernel takes it: it doubles the value for its own bookkeeping.
fn kernel_size(bytes: usize) -> usize {
    bytes.min(usize::try_from(i32::MAX / 2).unwrap_or(usize::MAX))
}

/// The kernel's number of an error.
pub(super) fn errno(error: &io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}
