//! Asks the kernel's socket diagnosis (sock_diag(7)) for the sockets bound to certain ports.
//!
//! The text tables below `/proc/net` have every socket, and the kernel walks all those before the place it has reached for
//! each page of `udp` that is read: with ten thousand sockets that takes half a second. Here the kernel compares the ports
//! itself, and answers with those that are meant.
//!
//! Speaks netlink in the network namespace of the calling thread, and blocks it. Owns and changes nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::Row;
use crate::model::host::Proto;
use crate::model::ports::PortRange;

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP` (linux/netlink.h).
const DUMP: u16 = 0x301;
/// `NLMSG_ERROR` and `NLMSG_DONE` (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of a `struct nlmsghdr`, of a `struct inet_diag_req_v2` and of a `struct inet_diag_msg` (linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// `INET_DIAG_REQ_BYTECODE`, the attribute with the filter, and the bytes it takes with its head.
const BYTECODE: u16 = 1;
const FILTER: usize = 20;
/// `INET_DIAG_BC_S_GE` and `INET_DIAG_BC_S_LE`: the local port is at least, or at most.
const AT_LEAST: u8 = 2;
const AT_MOST: u8 = 3;
/// The states (net/tcp_states.h) of a TCP socket that listens, and of a UDP socket that is connected to nobody.
const TCP_LISTEN: u32 = 10;
const TCP_CLOSE: u32 = 7;

/// The sockets of this network namespace that listen on any of `ports`, of both families.
///
/// # Errors
/// The kernel has no such diagnosis, or refuses it.
pub(super) fn listening(proto: Proto, ports: PortRange) -> io::Result<Vec<Row>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let mut rows = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket.send(&question(family, proto, ports), 0)?;
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            if read(&datagram, &mut rows)? {
                break;
            }
        }
    }
    Ok(rows)
}

/// A `struct inet_diag_req_v2` that asks for the sockets of one family, with a filter for the ports.
fn question(family: i32, proto: Proto, ports: PortRange) -> Vec<u8> {
    let one = |number: i32| u8::try_from(number).unwrap_or_default();
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or_default();
    let (protocol, state) = match proto {
        Proto::Tcp => (libc::IPPROTO_TCP, TCP_LISTEN),
        Proto::Udp => (libc::IPPROTO_UDP, TCP_CLOSE),
    };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST + FILTER);
    bytes.extend(u32::from(length(HEADER + REQUEST + FILTER)).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    // Sequence number and port: the socket has one question under way at a time.
    bytes.extend([0; 8]);
    bytes.extend([one(family), one(protocol), 0, 0]);
    bytes.extend((1u32 << state).to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes.extend(length(FILTER).to_ne_bytes());
    bytes.extend(BYTECODE.to_ne_bytes());
    // Each step says how far to go on where it holds, and where it does not: there, past the end, which rejects.
    for (step, otherwise, port) in [
        (AT_LEAST, 20u16, ports.first()),
        (AT_MOST, 12, ports.last()),
    ] {
        bytes.extend([step, 8]);
        bytes.extend(otherwise.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(port.to_ne_bytes());
    }
    bytes
}

/// The bytes of a field, where there are so many.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Reads the sockets of a datagram; whether it was the last one.
fn read(mut datagram: &[u8], rows: &mut Vec<Row>) -> io::Result<bool> {
    let odd = || io::Error::from(io::ErrorKind::InvalidData);
    while !datagram.is_empty() {
        let length = field(datagram, 0).map(u32::from_ne_bytes).ok_or_else(odd)?;
        let length = usize::try_from(length).map_err(|_| odd())?;
        let message = datagram.get(..length).ok_or_else(odd)?;
        let body = message.get(HEADER..).ok_or_else(odd)?;
        match field(message, 4).map(u16::from_ne_bytes) {
            Some(DONE) => return Ok(true),
            Some(ERROR) => {
                let number = field(body, 0).map(i32::from_ne_bytes).ok_or_else(odd)?;
                return Err(io::Error::from_raw_os_error(number.saturating_neg()));
            }
            _ => rows.push(row(body).ok_or_else(odd)?),
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

/// Reads a `struct inet_diag_msg`. Only states that were asked for come.
fn row(body: &[u8]) -> Option<Row> {
    let body = body.get(..ANSWER)?;
    let ip: IpAddr = match i32::from(*body.first()?) {
        libc::AF_INET => Ipv4Addr::from(field::<4>(body, 8)?).into(),
        libc::AF_INET6 => Ipv6Addr::from(field::<16>(body, 8)?).to_canonical(),
        _ => return None,
    };
    Some(Row {
        address: SocketAddr::new(ip, u16::from_be_bytes(field(body, 4)?)),
        listens: true,
        inode: u32::from_ne_bytes(field(body, 68)?).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn the_kernel_finds_the_same_sockets_as_its_text_tables_have() {
        let (tcp, udp) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("[::]:0").unwrap(),
        );
        // Neither a connection of the one nor a connected socket listens.
        let _connected = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let apart = UdpSocket::bind("127.0.0.1:0").unwrap();
        apart.connect(udp.local_addr().unwrap()).unwrap_or_default();
        for (proto, address) in [
            (Proto::Tcp, tcp.local_addr().unwrap()),
            (Proto::Udp, udp.local_addr().unwrap()),
        ] {
            let port = address.port();
            let ports = PortRange::new(port, port).unwrap();
            let found = listening(proto, ports).unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].address, address);
            let read = super::super::read_tables(proto, ports);
            assert_eq!(found, read);
            let below = PortRange::new(port - 1, port - 1).unwrap();
            assert!(!listening(proto, below).unwrap().contains(&found[0]));
            let around = PortRange::new(port - 1, port.saturating_add(1)).unwrap();
            assert!(listening(proto, around).unwrap().contains(&found[0]));
        }
    }

    #[test]
    fn many_sockets_come_in_many_datagrams() {
        let many: Vec<_> = (0..900)
            .map(|_| UdpSocket::bind("127.0.0.9:0").unwrap())
            .collect();
        let found = listening(Proto::Udp, PortRange::ALL).unwrap();
        for socket in many {
            let address = socket.local_addr().unwrap();
            assert!(found.iter().any(|row| row.address == address), "{address}");
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        let mut message = 20u32.to_ne_bytes().to_vec();
        message.extend(ERROR.to_ne_bytes());
        message.extend([0; 10]);
        message.extend((-libc::ENOENT).to_ne_bytes());
        let refused = read(&message, &mut Vec::new()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOENT));
    }

    proptest! {
        #[test]
        fn answers_never_panic(bytes in proptest::collection::vec(0u8..90, 0..200)) {
            let _ = read(&bytes, &mut Vec::new());
        }
    }
}
