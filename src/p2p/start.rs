//! Identity, transports, listeners: everything that can fail before the task runs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use libp2p::core::transport::TransportError;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol as Part;
use libp2p::{Multiaddr, Swarm, swarm};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use tokio::sync::mpsc;

use super::address::Address;
use super::admission::Seen;
use super::behaviour::{self, Behaviour};
use super::circuits::Shares;
use super::command::Neighbourhood;
use super::driver::Shared;
use super::{Config, Driver, Event, Handle, quic, transport, web};

/// The most commands, and the most events, that may wait.
const QUEUE: usize = 256;
/// Inbound streams of one connection whose protocol is still being negotiated.
const NEGOTIATING: usize = 32;

/// Why the peers' task could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity cannot be used.
    #[error("identity: {0}")]
    Identity(String),
    /// A socket for QUIC cannot be used.
    #[error("QUIC: {0}")]
    Quic(io::Error),
    /// The certificate of the configuration cannot be used, or none can be made.
    #[error("TLS: {0}")]
    Tls(String),
    /// Another program, or another daemon, listens there.
    #[error("listen on {0}: the port is in use")]
    InUse(Address),
    /// Listening failed for another reason.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address that was to be listened on.
        address: Address,
        /// Why nothing listens there.
        source: io::Error,
    },
}

/// Opens the transports and listeners. To be called inside a tokio runtime; nothing happens until [`Driver::run`] runs.
///
/// # Errors
/// [`Error::InUse`] when a port is taken; see [`Error`] for the rest. An IPv6 address that fails because the host has no
/// IPv6 is only warned of.
pub fn start(config: Config) -> Result<(Handle, mpsc::Receiver<Event>, Driver), Error> {
    let key =
        Keypair::ed25519_from_bytes(config.secret).map_err(|e| Error::Identity(e.to_string()))?;
    let lib_peer = key.public().to_peer_id();
    let peer = super::peer_from_lib(&lib_peer)
        .ok_or_else(|| Error::Identity("no ed25519 key".to_owned()))?;
    let overlay = Arc::new(ArcSwap::from_pointee(transport::Avoided::new(
        Vec::new(),
        config.denied.clone(),
    )));
    let settings = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(config.timing.idle)
        .with_max_negotiating_inbound_streams(NEGOTIATING)
        .with_dial_concurrency_factor(NonZeroU8::new(8).unwrap_or(NonZeroU8::MIN));
    let seen = Seen::default();
    let served = Arc::new(ArcSwap::from_pointee(config.serve.clone()));
    let shares = Shares::new(config.limits.circuits);
    let proxied = web::Proxied::new(config.way.clone());
    let transport::Built {
        transport,
        circuits,
        handshakes,
        shown,
        proxies,
        losses,
    } = transport::build(&config, &key, &overlay, &seen, &proxied)?;
    let mut swarm = Swarm::new(
        transport,
        behaviour::build(&config, &key, &seen, &served, &shares, circuits),
        lib_peer,
        settings,
    );
    for address in &config.listen {
        listen(&mut swarm, address, &config)?;
    }
    let (commands, orders) = mpsc::channel(QUEUE);
    let (events, news) = mpsc::channel(QUEUE);
    let neighbourhood = Neighbourhood::default();
    let shared = Shared {
        overlay,
        seen,
        served,
        handshakes,
        shares,
        neighbourhood: neighbourhood.clone(),
    };
    let driver = Driver::new(swarm, peer, config, shared, orders, events);
    let handle = Handle {
        commands,
        peer,
        neighbourhood,
        shown,
        proxies,
        proxied,
        losses,
    };
    Ok((handle, news, driver))
}

fn listen(swarm: &mut Swarm<Behaviour>, address: &Address, config: &Config) -> Result<(), Error> {
    let usable = match address.udp() {
        // Its owner has bound it: to bind it once more for a moment could only fail.
        Some(wanted) => quic::socket_for(&config.quic, wanted)
            .map(drop)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no UDP socket")),
        None => probe(&address.0),
    };
    let failed = match usable {
        Ok(()) => match swarm.listen_on(address.0.clone()) {
            Ok(_) => return Ok(()),
            Err(TransportError::Other(error)) => error,
            Err(TransportError::MultiaddrNotSupported(_)) => {
                io::Error::new(io::ErrorKind::Unsupported, "no transport for this address")
            }
        },
        Err(error) => error,
    };
    match failed.kind() {
        io::ErrorKind::AddrInUse => Err(Error::InUse(address.clone())),
        _ if lacks_ipv6(address, &failed) => {
            tracing::warn!(%address, error = %failed, "this host has no IPv6: not listening there");
            Ok(())
        }
        _ => Err(Error::Listen {
            address: address.clone(),
            source: failed,
        }),
    }
}

/// Whether binding failed because IPv6 is off, rather than because a particular address is not this host's.
pub fn lacks_ipv6(address: &Address, error: &io::Error) -> bool {
    let Some(Part::Ip6(ip)) = address.0.iter().next() else {
        return false;
    };
    let everywhere = ip.is_unspecified() || ip.is_loopback();
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
        || (everywhere && error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// Binds for a moment, without sharing.
///
/// libp2p's TCP listeners share their port (SO_REUSEPORT, so that dials leave from it): two daemons of one user would
/// both get it, and the kernel would deal their connections out at random.
fn probe(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Part::Ip4(ip)) => IpAddr::V4(ip),
        Some(Part::Ip6(ip)) => IpAddr::V6(ip),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Part::Tcp(port)) => probe_port(SocketAddr::new(ip, port)),
        _ => Ok(()),
    }
}

fn probe_port(address: SocketAddr) -> io::Result<()> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let probe = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Connections that a daemon before us left behind do not keep the port.
    setsockopt(&probe, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        // As the listeners do: both families have a socket of their own.
        setsockopt(&probe, sockopt::Ipv6V6Only, &true)?;
    }
    bind(probe.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(())
}
