//! The UDP port that QUIC and datagrams share, from the addresses that the configuration names.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::p2p::{self, Address};
use crate::service::sessions::endpoint;
use crate::udp::{Options, Port};

/// Binds the UDP addresses of `listen`, which loses those that need an IPv6 this host has not. None where there are none.
///
/// # Errors
/// `E-LISTEN-IN-USE`, `E-LISTEN`.
pub(crate) fn bind(listen: &mut Vec<Address>) -> Result<Option<Port>, Error> {
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
    Port::bind(&addresses, &Options::default()).map(Some).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => Error::new(ErrorKind::Conflict, Code::ListenInUse, e.to_string())
            .hint("ss -lnp      (shows who has the port; --listen udp/PORT --listen tcp/PORT takes another one)"),
        _ => Error::new(ErrorKind::Failed, Code::Listen, e.to_string()),
    })
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
}
