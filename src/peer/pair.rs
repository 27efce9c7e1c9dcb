//! The two ends of a way that datagrams take.

use std::net::{IpAddr, SocketAddr};

/// Where a datagram goes to or came from at the far end: the peer itself, or our leg at a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    /// The peer's address and port; with a leg the relay's.
    pub address: SocketAddr,
    /// The index of our leg at that relay, which leads to the peer; none where the address is the peer's own.
    pub leg: Option<u32>,
    /// The helper socket of our port that it is reached by, where our NAT is symmetric and another one lets in only what comes
    /// from that socket's mapping; none for the port's own sockets.
    pub helper: Option<u16>,
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Remote {
        Remote {
            address,
            leg: None,
            helper: None,
        }
    }
}

/// The two ends of a datagram path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// Our address; none where the kernel chooses, or the socket is bound to one.
    pub local: Option<IpAddr>,
    /// The far end.
    pub remote: Remote,
}

impl From<Remote> for Pair {
    fn from(remote: Remote) -> Pair {
        Pair {
            local: None,
            remote,
        }
    }
}

impl From<SocketAddr> for Pair {
    fn from(address: SocketAddr) -> Pair {
        Remote::from(address).into()
    }
}
