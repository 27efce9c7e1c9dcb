//! TCP to a LAN peer by its link-local IPv6 address: `/ip6zone/LINK/ip6/fe80::…/tcp/PORT`.
//!
//! libp2p's transport reads no zone, so that the kernel would not know the link. Only dials are made here: listeners on all
//! addresses hear such connections anyway.

use std::io;
use std::net::SocketAddr;

use libp2p::core::transport::dummy::DummyTransport;
use libp2p::core::transport::{Boxed, DialOpts, TransportError};
use libp2p::tcp::tokio::TcpStream;
use libp2p::{Multiaddr, Transport};

use super::address::{Carrier, carrier_of, ip_of, port_of, scoped, zone_of};
use super::layer::{Layer, Layered, Making};
use super::own::index_of;

/// Dials TCP at addresses that name their link, and no others. Inside it is nothing.
pub(super) struct ZonedTcp(Boxed<TcpStream>);

impl ZonedTcp {
    pub(super) fn alone() -> Layered<ZonedTcp> {
        Layered(ZonedTcp(DummyTransport::new().boxed()))
    }
}

impl Layer for ZonedTcp {
    type Output = TcpStream;

    fn inner(&mut self) -> &mut Boxed<TcpStream> {
        &mut self.0
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Making<TcpStream>, TransportError<io::Error>> {
        if carrier_of(&address) == Some(Carrier::Tcp)
            && let Some(link) = missing_link(&address)
        {
            let why = format!("there is no link {link:?}");
            let error = io::Error::new(io::ErrorKind::NotFound, why);
            return Err(TransportError::Other(error));
        }
        let Some(remote) = zoned_tcp_of(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        Ok(Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(remote).await?;
            stream.set_nodelay(true)?;
            Ok(TcpStream(stream))
        }))
    }
}

/// The socket address of a `/ip6zone/LINK/ip6/A/tcp/P`, perhaps with `/p2p/PEER` behind it; none of one that names no link.
fn zoned_tcp_of(address: &Multiaddr) -> Option<SocketAddr> {
    zone_of(address)?;
    let is_tcp = carrier_of(address) == Some(Carrier::Tcp);
    scoped(address, ip_of(address)?, port_of(address)?).filter(|_| is_tcp)
}

/// The link that an address names, where this machine has no such link.
pub(super) fn missing_link(address: &Multiaddr) -> Option<String> {
    zone_of(address).filter(|link| index_of(link).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;

    #[test]
    fn a_link_that_is_not_there_is_named_and_what_names_none_is_left_to_others() {
        let dial = |text: &str| {
            let options = DialOpts {
                role: Endpoint::Dialer,
                port_use: PortUse::Reuse,
            };
            match ZonedTcp::alone().dial(text.parse().unwrap(), options) {
                Ok(_) => "dialled".to_owned(),
                Err(TransportError::MultiaddrNotSupported(_)) => "left".to_owned(),
                Err(TransportError::Other(error)) => error.to_string(),
            }
        };
        let missing = "there is no link \"nosuch\"";
        assert_eq!(dial("/ip6zone/nosuch/ip6/fe80::1/tcp/4100"), missing);
        // The loopback link is there in every namespace.
        assert_eq!(dial("/ip6zone/lo/ip6/fe80::1/tcp/4100"), "dialled");
        for other in [
            "/ip6/fe80::1/tcp/4100",
            "/ip6zone/nosuch/ip6/fe80::1/udp/4100/quic-v1",
        ] {
            assert_eq!(dial(other), "left", "{other}");
        }
    }
}
