//! One UDP socket: how it is made, and one message out.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv6V6Only, Mark, RcvBuf, RcvBufForce, SndBuf, SndBufForce};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
};
use quinn::udp::{EcnCodepoint, UdpSockRef, UdpSocketState};
use socket2::{MsgHdr, SockAddr, SockRef};

use super::Options;
use super::control::Control;
use super::exits::{Exit, Exits, is_refusal};

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
    /// The kernel cuts messages into datagrams.
    pub(super) gso: AtomicBool,
    /// By which links the datagrams from some of our addresses leave.
    exits: Arc<Exits>,
}

impl Socket {
    /// Binds a socket: one family only, never blocking, never fragmenting, what came by ICMP about the path's MTU ignored (the
    /// prober finds it), and told of each message's ECN bits and destination.
    pub(super) fn bind(
        address: SocketAddr,
        options: &Options,
        exits: Arc<Exits>,
    ) -> io::Result<Socket> {
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
            exits,
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

    /// Sends one message, by the link of the address that it comes from where the kernel would choose another one.
    ///
    /// # Errors
    /// As `sendmsg`, without EINTR; never blocks.
    pub(super) fn send(&self, message: Outgoing<'_>) -> io::Result<()> {
        let Some(exit) = message.local.and_then(|local| self.exits.of(local)) else {
            return self.send_by(message, None);
        };
        let refusal = match self.send_by(message, Some(exit)) {
            Err(error) if is_refusal(errno(&error)) => errno(&error),
            sent => return sent,
        };
        self.send_by(message, None)
            .inspect(|()| self.exits.refuse(exit, refusal))
    }

    fn send_by(&self, message: Outgoing<'_>, exit: Option<Exit>) -> io::Result<()> {
        let control = Control::of(&message, exit);
        let (to, bytes) = (SockAddr::from(message.to), [IoSlice::new(message.bytes)]);
        let header = MsgHdr::new()
            .with_addr(&to)
            .with_buffers(&bytes)
            .with_control(control.bytes());
        loop {
            match SockRef::from(&self.udp).sendmsg(&header, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
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
