//! The UDP port that QUIC and datagrams share, from the addresses that the configuration names; where it names none at all, a
//! port of the kernel's choice that is for dials and datagrams of this node's own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::p2p::{self, Address};
use crate::service::sessions::endpoint;
use crate::udp::{Callers, Options, Port};

/// How often a port is asked for that is free in both families.
const TRIES: usize = 16;

/// Binds the UDP addresses of `listen`, which loses those that need an IPv6 this host has not. None where there are none. An
/// empty `listen` means outbound only: the port is then one that nobody is told of as a place to connect to.
///
/// # Errors
/// `E-LISTEN-IN-USE`, `E-LISTEN`.
pub(crate) fn bind(listen: &mut Vec<Address>) -> Result<Option<Port>, Error> {
    if listen.is_empty() {
        return outbound().map(Some).map_err(unusable);
    }
    listen.retain(|address| {
        let Some(ip) = endpoint(address).map(|endpoint| endpoint.ip()) else {
            return true;
        };
        match UdpSocket::bind((ip, 0)) {
            Err(error) if p2p::lacks_ipv6(address, &error) => {
                tracing::warn!(%address, %error, "this host has no IPv6: not listening there");
                false
            }
            // What else is wrong, the port says.
            _ => true,
        }
    });
    let addresses: Vec<SocketAddr> = listen.iter().filter_map(endpoint).collect();
    if addresses.is_empty() {
        return Ok(None);
    }
    Port::bind(&addresses, &Options::default())
        .map(Some)
        .map_err(unusable)
}

/// A port that the kernel chooses, for IPv4 and, where this host has it, IPv6.
fn outbound() -> io::Result<Port> {
    let options = Options {
        callers: Callers::Expected,
        ..Options::default()
    };
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let both = match UdpSocket::bind(v6) {
        Ok(_) => vec![v4, v6],
        Err(error) => {
            tracing::debug!(%error, "this host has no IPv6");
            vec![v4]
        }
    };
    let mut tries = 1;
    loop {
        match Port::bind(&both, &options) {
            // The number that is free for IPv4 may be somebody's for IPv6.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => tries += 1,
            bound => return bound,
        }
    }
}

/// Why there is no port, as people are told.
fn unusable(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::AddrInUse => Error::new(ErrorKind::Conflict, Code::ListenInUse, e.to_string())
            .hint("ss -lnp      (shows who has the port; --listen udp/PORT --listen tcp/PORT takes another one)"),
        _ => Error::new(ErrorKind::Failed, Code::Listen, e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_its_own_error() {
        for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip6/::1/udp/0/quic-v1"] {
            let mut all: Vec<Address> = vec![
                listen.parse().unwrap(),
                "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
            ];
            let port = bind(&mut all).unwrap().unwrap();
            assert_eq!((port.quic().len(), all.len()), (1, 2));
            let taken = listen.replace("udp/0", &format!("udp/{}", port.local()[0].port()));
            assert_eq!(
                bind(&mut vec![taken.parse().unwrap()])
                    .err()
                    .map(|e| e.code),
                Some("E-LISTEN-IN-USE".into())
            );
        }
        assert!(
            bind(&mut vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()])
                .unwrap()
                .is_none()
        );
    }

    #[tokio::test]
    async fn who_listens_nowhere_has_a_port_for_its_own_dials() {
        let mut none = Vec::new();
        let port = bind(&mut none).unwrap().unwrap();
        assert!(none.is_empty(), "nothing is listened on");
        assert_eq!(port.callers(), Callers::Expected);
        let numbers: Vec<u16> = port.local().iter().map(SocketAddr::port).collect();
        assert!(
            numbers[0] != 0 && numbers.iter().all(|n| *n == numbers[0]),
            "{numbers:?}"
        );
        let mut named = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
        let port = bind(&mut named).unwrap().unwrap();
        assert_eq!(port.callers(), Callers::Anybody);
    }
}
