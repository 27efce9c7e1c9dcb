//! Ends sockets of this machine: `SOCK_DESTROY` of the kernel's socket diagnosis (sock_diag(7), `ss --kill`).
//!
//! A flow that is deleted from conntrack passes nothing more, but a socket hears of it only when it next says something.
//! This tells it at once, and its peer too: the kernel sends a reset. Kernels without `CONFIG_INET_DIAG_DESTROY` refuse;
//! then the chains of our table answer the next segment of either side. Owns nothing.
//!
//! Speaks netlink in the network namespace of the calling thread.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::model::host::Proto;

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `NLM_F_REQUEST`, with and without `NLM_F_ACK` (linux/netlink.h).
const REQUEST: u16 = 1;
const REQUEST_ACK: u16 = 5;
/// `NLMSG_ERROR`, which answers a request that asked for it (linux/netlink.h).
const ERROR: u16 = 2;
/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of a `struct inet_diag_sockid`, at offset 8 of a request and 4 of an answer (linux/inet_diag.h).
const ID: usize = 48;
/// Where the ports of both ends and the cookie are in it.
const REMOTE_PORT: std::ops::Range<usize> = 2..4;
const COOKIE: std::ops::Range<usize> = 40..48;
/// `TCP_LISTEN`, the state of a listening socket (net/tcp_states.h).
const LISTEN: u8 = 10;

/// A connected socket, by its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FiveTuple {
    /// The transport protocol of the socket.
    pub proto: Proto,
    /// The address and port of this machine.
    pub local: SocketAddr,
    /// The address and port of the other end.
    pub remote: SocketAddr,
}

type Id = [u8; ID];

fn put(id: &mut Id, at: usize, bytes: &[u8]) {
    id.iter_mut()
        .skip(at)
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
}

impl FiveTuple {
    /// `struct inet_diag_sockid`: both ports, both addresses of 16 bytes, interface, cookie; no cookie is all ones.
    fn id(&self) -> Id {
        let mut id = [0; ID];
        put(&mut id, 0, &self.local.port().to_be_bytes());
        put(
            &mut id,
            REMOTE_PORT.start,
            &self.remote.port().to_be_bytes(),
        );
        for (at, address) in [(4, self.local.ip()), (20, self.remote.ip())] {
            match address {
                IpAddr::V4(v4) => put(&mut id, at, &v4.octets()),
                IpAddr::V6(v6) => put(&mut id, at, &v6.octets()),
            }
        }
        put(&mut id, COOKIE.start, &[0xff; 8]);
        id
    }

    /// A message with a `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, `id`.
    fn message(&self, kind: u16, flags: u16, id: &Id) -> Vec<u8> {
        let family = if self.local.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let protocol = match self.proto {
            Proto::Tcp => libc::IPPROTO_TCP,
            Proto::Udp => libc::IPPROTO_UDP,
        };
        let one = |number: i32| u8::try_from(number).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER + 8 + ID);
        bytes.extend(
            u32::try_from(HEADER + 8 + ID)
                .unwrap_or_default()
                .to_ne_bytes(),
        );
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number and port: the socket has one question under way at a time.
        bytes.extend([0; 8]);
        bytes.extend([one(family), one(protocol), 0, 0]);
        bytes.extend(u32::MAX.to_ne_bytes());
        bytes.extend(id);
        bytes
    }
}

/// The answer to a question, or the error number it was refused with; 0 is success.
fn answer(datagram: &[u8]) -> Result<&[u8], i32> {
    let kind = datagram
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes);
    let body = datagram.get(HEADER..).ok_or(libc::EBADMSG)?;
    match kind {
        Some(ERROR) => {
            let number = body
                .get(..4)
                .and_then(|b| b.try_into().ok())
                .map_or(libc::EBADMSG, i32::from_ne_bytes);
            Err(number.saturating_neg())
        }
        _ => Ok(body),
    }
}

/// The cookie of a connected socket in the body of an answer: none of one that listens or is connected to nobody, which
/// the kernel also finds by these ends, and which serves others.
fn connected(body: &[u8]) -> Option<[u8; 8]> {
    let state = *body.get(1)?;
    let id = body.get(4..4 + ID)?;
    let apart = state != LISTEN && id.get(REMOTE_PORT)? != [0, 0];
    apart.then(|| id.get(COOKIE)?.try_into().ok()).flatten()
}

/// A netlink socket by which sockets are found and closed.
pub(super) struct Destroyer {
    socket: Socket,
}

impl Destroyer {
    /// # Errors
    /// The netlink socket cannot be opened.
    pub(super) fn open() -> io::Result<Destroyer> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Destroyer { socket })
    }

    /// Ends the connected socket with these ends; whether there was one.
    ///
    /// # Errors
    /// The kernel cannot, or refused.
    pub(super) fn destroy(&self, ends: &FiveTuple) -> io::Result<bool> {
        let mut id = ends.id();
        let found = self.ask(&ends.message(BY_FAMILY, REQUEST, &id))?;
        // By the cookie, no other socket that takes its place meanwhile is meant.
        let Some(cookie) = found.as_deref().and_then(connected) else {
            return Ok(false);
        };
        put(&mut id, COOKIE.start, &cookie);
        Ok(self
            .ask(&ends.message(DESTROY, REQUEST_ACK, &id))?
            .is_some())
    }

    /// The body of the answer; none where there is no such socket.
    fn ask(&self, question: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.socket.send(question, 0)?;
        let (datagram, _) = self.socket.recv_from_full()?;
        match answer(&datagram) {
            Ok(body) => Ok(Some(body.to_vec())),
            Err(0) => Ok(Some(Vec::new())),
            Err(libc::ENOENT) => Ok(None),
            Err(number) => Err(io::Error::from_raw_os_error(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(proto: Proto, local: SocketAddr, remote: SocketAddr) -> FiveTuple {
        FiveTuple {
            proto,
            local,
            remote,
        }
    }

    #[test]
    fn a_question_is_what_the_kernel_reads() {
        let v4 = ends(
            Proto::Tcp,
            "10.7.1.1:22".parse().unwrap(),
            "10.7.2.1:40000".parse().unwrap(),
        );
        let bytes = v4.message(DESTROY, REQUEST_ACK, &v4.id());
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[16..20], [2, 6, 0, 0]);
        assert_eq!(bytes[24..28], [0, 22, 0x9c, 0x40]);
        assert_eq!(bytes[28..36], [10, 7, 1, 1, 0, 0, 0, 0]);
        assert_eq!(bytes[44..48], [10, 7, 2, 1]);
        assert_eq!(
            bytes[60..],
            [0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]
        );
        let v6 = ends(
            Proto::Udp,
            "[fd00:7::1]:53".parse().unwrap(),
            "[fd00:7::9]:9".parse().unwrap(),
        );
        assert_eq!(v6.message(BY_FAMILY, REQUEST, &v6.id())[16..18], [10, 17]);
    }

    #[test]
    fn what_serves_others_is_no_connected_socket() {
        let body = |state: u8, port: [u8; 2]| {
            let mut body = vec![2, state, 0, 0, 0, 22];
            body.extend(port);
            body.extend([0; 36]);
            body.extend([7; 8]);
            body
        };
        assert_eq!(connected(&body(1, [0x9c, 0x40])), Some([7; 8]));
        assert_eq!(connected(&body(LISTEN, [0x9c, 0x40])), None);
        assert_eq!(connected(&body(7, [0, 0])), None);
        assert_eq!(connected(&body(1, [1, 1])[..50]), None);
    }

    proptest! {
        #[test]
        fn answers_never_panic(bytes in proptest::collection::vec(0u8..40, 0..120)) {
            if let Ok(body) = answer(&bytes) {
                let _ = connected(body);
            }
        }
    }
}
