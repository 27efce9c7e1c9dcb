//! What is said of the ports of the router.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{Gateway, Port, Protocol, Transport, Why, is_public};

/// A port that the router opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The router, and our address there.
    pub gateway: Gateway,
    /// Our port.
    pub port: Port,
    /// How the router was asked.
    pub protocol: Protocol,
    /// Where the port is reached, as the router says.
    pub external: SocketAddr,
    /// Until when it is open unless it is renewed; none: for ever.
    pub until: Option<Instant>,
}

/// Why there is no port, or why one is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No default route of IPv4 leads over a router.
    NoGateway,
    /// This machine's own address leads to it: there is nothing to map.
    Public(IpAddr),
    /// The router answers to none of the protocols.
    Silent,
    /// It refuses to open a port, or to keep it open.
    Refused(Protocol, Why),
    /// The router is behind another one: the address that it has outside is private.
    DoubleNat(IpAddr),
    /// What was asked for could not be written down, so it was not asked for.
    Unsaved,
    /// The kernel gives no random numbers, so that nothing can be asked for that nobody could guess.
    NoRandomness,
}

impl Trouble {
    /// The word for it: `no-gateway`, `not-needed`, `not-offered`, `refused`, `double-nat`, `unsaved` or `no-randomness`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Trouble::NoGateway => "no-gateway",
            Trouble::Public(_) | Trouble::Refused(_, Why::FirewallOff) => "not-needed",
            Trouble::Silent => "not-offered",
            Trouble::Refused(..) => "refused",
            Trouble::DoubleNat(_) => "double-nat",
            Trouble::Unsaved => "unsaved",
            Trouble::NoRandomness => "no-randomness",
        }
    }
}

/// The ports of one router as they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether ports are to be mapped.
    pub is_enabled: bool,
    /// Whether the router was asked, and has answered or has had its time.
    pub is_known: bool,
    /// The router, where there is one.
    pub gateway: Option<Gateway>,
    /// What it opened.
    pub mappings: Vec<Mapping>,
    /// Why that is not all.
    pub trouble: Option<Trouble>,
    /// The ports that it is asked for.
    pub wanted: Vec<Port>,
    /// When it is asked again, where there is trouble that asking may end.
    pub again: Option<Instant>,
}

impl Status {
    /// Where peers reach the ports of that transport by the router's address. A pinhole leads to our own, which is known anyhow.
    pub fn reached(&self, transport: Transport) -> impl Iterator<Item = SocketAddr> {
        let all = self.mappings.iter();
        all.filter(move |mapping| mapping.port.transport == transport)
            .filter(|mapping| mapping.external.ip() != mapping.gateway.local)
            .map(|mapping| mapping.external)
            .filter(|external| is_public(external.ip()))
    }
}
