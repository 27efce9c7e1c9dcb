//! libp2p over QUIC, on UDP sockets that somebody else owns.
//!
//! Speaks what the libp2p QUIC specification asks for (QUIC v1, TLS 1.3 with ALPN `libp2p`, both certificates carrying the
//! signed host key), so a stock libp2p peer dials us and is dialled. Never opens a socket: [`Config::quic`] brings them,
//! one per local address, and the owner may put other datagrams on the same port.
//!
//! # First bytes
//! Nothing that arrives has a first byte below 0x40: the QUIC bit is not greased, and peers are told so. Hole punching
//! sends datagrams that begin with 0x03, which nobody takes for ours (0x04-0x3f) or for QUIC v1. What *we* send to a peer that
//! offers to take a greased QUIC bit may have any first byte: such a peer is no byway.
//!
//! # What is answered
//! A well-formed Initial of version 1, and nothing else: no version negotiation, no stateless reset, nothing for short
//! Initials and junk. Initials are limited per source and in all before they come here ([`crate::udp`]); handshakes are limited per
//! source and in all before any is begun ([`admission`](super::admission)); with many unproven ones a Retry has to be answered first.
//!
//! | file | |
//! |---|---|
//! | `settings` | TLS, windows, timers, congestion control |
//! | `upgrade` | from a handshake to an authenticated peer |
//! | `connection` | streams |
//! | `transport` | listening, dialling, hole punching |
//!
//! [`Config::quic`]: super::Config::quic

mod connection;
mod settings;
mod transport;
mod upgrade;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub(super) use self::transport::Transport;
use crate::udp::QuicSocket;

/// Why a listener, a dial or a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no link {0:?}")]
    NoLink(String),
    #[error("no UDP socket for {0}")]
    NoSocket(SocketAddr),
    #[error("dial: {0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the handshake took too long")]
    Slow,
    #[error("its place went to another handshake")]
    Crowded,
    #[error("the peer's certificate names no libp2p identity")]
    Identity,
    #[error("a hole is being punched to {0} already")]
    Punching(SocketAddr),
    #[error("the transport has been closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Which of the sockets a listener on `wanted` uses: the one bound there; else, for port 0 or the wildcard address, the
/// first one of the family that agrees with the rest.
pub(super) fn socket_for(sockets: &[Arc<QuicSocket>], wanted: SocketAddr) -> Option<usize> {
    let bound: Vec<_> = sockets.iter().map(|socket| Some(socket.local())).collect();
    choose(&bound, wanted)
}

fn choose(bound: &[Option<SocketAddr>], wanted: SocketAddr) -> Option<usize> {
    let agrees = |local: &SocketAddr| {
        local.is_ipv4() == wanted.is_ipv4()
            && (wanted.ip().is_unspecified() || local.ip() == wanted.ip())
            && (wanted.port() == 0 || local.port() == wanted.port())
    };
    let exact = |local: &SocketAddr| local.ip() == wanted.ip() && local.port() == wanted.port();
    bound
        .iter()
        .position(|local| local.as_ref().is_some_and(exact))
        .or_else(|| {
            bound
                .iter()
                .position(|local| local.as_ref().is_some_and(agrees))
        })
}

/// IPv4 as IPv4, whatever the socket called it.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V4(ip), address.port()),
        IpAddr::V6(_) => address,
    }
}
