//! The transports: TCP+Noise+Yamux, the same inside a WebSocket and through a proxy ([`web`]), and QUIC ([`quic`]), or
//! memory+Noise+Yamux, and circuits through relays with Noise and Yamux inside them ([`circuits`]), each behind the same two
//! guards.
//!
//! [`Guard`] keeps libp2p off the overlay: it dials no overlay address, whatever DNS says, announces none when a
//! wildcard listener finds the TUN's address, and refuses connections that arrive over it. Addresses that the configuration
//! denies are neither dialled nor announced, either, and no connection is taken from there. [`BoundedClose`] gives a
//! closing connection two seconds: a peer that is gone must not hold a socket for the kernel's fifteen minutes.

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{AsyncRead, AsyncWrite};
use ipnet::IpNet;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent};
use libp2p::core::transport::dummy::DummyTransport;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, MemoryTransport, TransportError, TransportEvent,
};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, Transport, dns, noise, tcp, yamux};

use super::address::{is_within, may_lead_to};
use super::admission::{Admission, Admitting, Losses, Seen};
use super::buffered_io::{LargeReads, LateNoise};
use super::circuits::{self, Bounded, Client, Handshakes};
use super::layer::{Event, Layer, Layered, Making};
use super::zoned::ZonedTcp;
use super::{Config, Error, TransportKind, quic, web};

/// The addresses that are kept away from, as the transports see them.
pub(super) type Overlay = Arc<ArcSwap<Avoided>>;

/// Prefixes whose addresses are neither dialled nor told, and from which no connection is taken: all of them together, as a
/// slice.
#[derive(Debug, Default)]
pub(super) struct Avoided {
    /// Of the overlay: no connection is taken at an address of ours there, either.
    overlay: Vec<IpNet>,
    /// Of the configuration (`transport.deny_cidrs`).
    denied: Vec<IpNet>,
    all: Vec<IpNet>,
}

impl Avoided {
    pub(super) fn new(overlay: Vec<IpNet>, denied: Vec<IpNet>) -> Avoided {
        let all = [overlay.as_slice(), &denied].concat();
        Avoided {
            overlay,
            denied,
            all,
        }
    }

    /// The same with these prefixes of the overlay.
    pub(super) fn with_overlay(&self, overlay: Vec<IpNet>) -> Avoided {
        Avoided::new(overlay, self.denied.clone())
    }

    /// The same with these prefixes of the configuration.
    pub(super) fn with_denied(&self, denied: Vec<IpNet>) -> Avoided {
        Avoided::new(self.overlay.clone(), denied)
    }
}

impl Deref for Avoided {
    type Target = [IpNet];

    fn deref(&self) -> &[IpNet] {
        &self.all
    }
}

/// What every transport ends in: an authenticated peer and its multiplexed connection.
type Output = (PeerId, StreamMuxerBox);

/// Time for a TCP connect, the Noise handshake and the multiplexer together: half-open attempts end here.
pub(super) const SETUP: Duration = Duration::from_secs(5);
/// Streams of one connection, both directions together. The default of 512 lets one peer pin 512 windows of 256 KiB.
pub(super) const STREAMS: usize = 64;
/// How long a connection may take to close.
const CLOSING: Duration = Duration::from_secs(2);

/// The transport, and what else is needed of it.
pub(super) struct Built {
    pub(super) transport: Boxed<Output>,
    /// The behaviour that opens circuits for it.
    pub(super) circuits: Client,
    pub(super) handshakes: Handshakes,
    /// What its servers show inside TLS.
    pub(super) shown: web::Shown,
    /// The reverse proxies that they believe about their clients.
    pub(super) proxies: web::Proxies,
    /// The handshakes that found no room.
    pub(super) losses: Losses,
}

/// Builds the transport.
///
/// # Errors
/// When Noise keys or a certificate cannot be made of the identity, or a socket for QUIC is unusable.
pub(super) fn build(
    config: &Config,
    key: &Keypair,
    overlay: &Overlay,
    seen: &Seen,
    proxied: &web::Proxied,
) -> Result<Built, Error> {
    let (circuits, client) = circuits::new(config.timing.renewals);
    let handshakes = Handshakes::default();
    let circuits = Bounded::around(secured(circuits, key, SETUP)?, handshakes.clone());
    let losses = Losses::default();
    let (mut shown, mut proxies) = (web::Shown::default(), web::Proxies::default());
    let transport = match config.transport {
        TransportKind::Memory => {
            let memory = secured(MemoryTransport::default(), key, SETUP)?;
            let all = either(circuits.boxed(), memory);
            Guard::around(all, overlay).boxed()
        }
        TransportKind::Network => {
            let settings = web::Settings::new(config)?;
            (shown, proxies) = (settings.shown(), settings.proxies());
            let proxied = web::Transport::new(settings.through(proxied));
            let proxied = secured(proxied, key, web::CONNECT + SETUP)?;
            let proxied = Guard::around(proxied, overlay).boxed();
            let direct = Guard::around(sockets(config, key, (seen, &losses), settings)?, overlay);
            // Above the resolver: a circuit runs over a connection that stands, so that the name of its relay is looked up
            // by nobody. Behind a proxy this machine may be unable to.
            let circuits = Guard::around(circuits.boxed(), overlay).boxed();
            let direct = either(circuits, named(direct));
            web::Outbound::of(direct, proxied, config.way.clone()).boxed()
        }
    };
    Ok(Built {
        transport,
        circuits: client,
        handshakes,
        shown,
        proxies,
        losses,
    })
}

/// The transports with sockets of their own: TCP, WebSockets, TCP at addresses of one link, and QUIC.
fn sockets(
    config: &Config,
    key: &Keypair,
    (seen, losses): (&Seen, &Losses),
    settings: web::Settings,
) -> Result<Boxed<Output>, Error> {
    let limits = &config.limits;
    let all = usize::try_from(limits.pending_in).unwrap_or(usize::MAX);
    let (each, seen, losses) = (limits.per_source, seen.clone(), losses.clone());
    let streams = Admission::of_streams(each, all, seen.clone(), losses.clone());
    let packets = Admission::new(each, all, seen, losses);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(|socket, _| LargeReads::new(socket));
    let web = secured(web::Transport::new(settings), key, SETUP)?;
    let tcp = Admitting::around(either(secured(tcp, key, SETUP)?, web), streams);
    let zoned = ZonedTcp::alone().map(|socket, _| LargeReads::new(socket));
    let quic = quic::Transport::new(key, &config.quic, packets, SETUP, &config.timing)?
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(BoundedClose::new(muxer))));
    let streams = either(secured(zoned, key, SETUP)?, tcp.boxed());
    Ok(either(streams, quic.boxed()))
}

/// Noise, which names the peer, and Yamux inside a transport of bytes, all ready within `patience`.
fn secured<T>(transport: T, key: &Keypair, patience: Duration) -> Result<Boxed<Output>, Error>
where
    T: Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
{
    let noise = noise::Config::new(key).map_err(|e| Error::Identity(e.to_string()))?;
    let secured = transport
        .upgrade(Version::V1)
        .authenticate(LateNoise(noise))
        .multiplex(muxer())
        .timeout(patience)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(BoundedClose::new(muxer))));
    Ok(secured.boxed())
}

/// The first of two transports that knows an address.
fn either(first: Boxed<Output>, second: Boxed<Output>) -> Boxed<Output> {
    first
        .or_transport(second)
        .map(|either, _| either.into_inner())
        .boxed()
}

/// Puts name resolution above the guard, so that a name cannot lead to an overlay address.
fn named(guard: Layered<Guard>) -> Boxed<Output> {
    // The resolver takes the transport with it when it fails: look first whether it will.
    let probe = dns::tokio::Transport::system(DummyTransport::<Output>::new());
    match probe.map(drop) {
        Ok(()) => match dns::tokio::Transport::system(guard) {
            Ok(named) => named.boxed(),
            Err(_) => DummyTransport::<Output>::new().boxed(),
        },
        Err(error) => {
            tracing::warn!(%error, "no usable resolver configuration: /dns addresses of peers cannot be dialled");
            guard.boxed()
        }
    }
}

fn muxer() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS);
    config
}

/// Keeps one transport off the overlay.
struct Guard {
    inner: Boxed<Output>,
    overlay: Overlay,
    /// The prefixes that `announced` and `kept_back` were last checked against.
    checked: Arc<Avoided>,
    /// Listen addresses the swarm knows of, to take them back when a prefix comes to cover them.
    announced: Vec<(ListenerId, Multiaddr)>,
    /// Those that it was not told of, to tell them when no prefix covers them any more.
    kept_back: Vec<(ListenerId, Multiaddr)>,
}

impl Guard {
    fn around(inner: Boxed<Output>, overlay: &Overlay) -> Layered<Self> {
        Layered(Guard {
            inner,
            overlay: overlay.clone(),
            checked: overlay.load_full(),
            announced: Vec::new(),
            kept_back: Vec::new(),
        })
    }

    /// What the swarm is to hear of a listen address that a prefix covers now, or covers no more.
    fn changed(&mut self) -> Option<Event<Output>> {
        let prefixes = self.overlay.load_full();
        if Arc::ptr_eq(&prefixes, &self.checked) {
            return None;
        }
        let covered = |(_, address): &(ListenerId, Multiaddr)| is_within(address, &prefixes);
        if let Some(at) = self.announced.iter().position(covered) {
            let (listener_id, listen_addr) = self.announced.swap_remove(at);
            self.kept_back.push((listener_id, listen_addr.clone()));
            return Some(TransportEvent::AddressExpired {
                listener_id,
                listen_addr,
            });
        }
        if let Some(at) = self.kept_back.iter().position(|kept| !covered(kept)) {
            let (listener_id, listen_addr) = self.kept_back.swap_remove(at);
            self.announced.push((listener_id, listen_addr.clone()));
            return Some(TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            });
        }
        self.checked = prefixes;
        None
    }
}

impl Layer for Guard {
    type Output = Output;

    fn inner(&mut self) -> &mut Boxed<Output> {
        &mut self.inner
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Making<Output>, TransportError<io::Error>> {
        let avoided = self.overlay.load();
        let why = if is_within(&addr, &avoided.overlay) {
            "is an overlay address: peers are reached over the underlay only"
        } else if is_within(&addr, &avoided) {
            "is within transport.deny_cidrs: nothing is dialled there"
        } else if !may_lead_to(&addr) {
            "is where a name leads that others said, and no peer can be"
        } else {
            return self.inner.dial(addr, opts);
        };
        Err(TransportError::Other(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("{addr} {why}"),
        )))
    }

    fn own_event(&mut self) -> Option<Event<Output>> {
        self.changed()
    }

    fn pass(&mut self, event: Event<Output>) -> Option<Event<Output>> {
        let overlay = self.overlay.load_full();
        match &event {
            TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            } => {
                if is_within(listen_addr, &overlay) {
                    tracing::debug!(address = %listen_addr, "not announced");
                    self.kept_back.push((*listener_id, listen_addr.clone()));
                    return None;
                }
                self.announced.push((*listener_id, listen_addr.clone()));
            }
            TransportEvent::AddressExpired {
                listener_id,
                listen_addr,
            } => {
                let same =
                    |(id, a): &(ListenerId, Multiaddr)| id == listener_id && a == listen_addr;
                self.kept_back.retain(|kept| !same(kept));
                let at = self.announced.iter().position(same)?;
                self.announced.swap_remove(at);
            }
            TransportEvent::Incoming {
                local_addr,
                send_back_addr,
                ..
            } => {
                // One that came in at an address of ours tells nothing of the network that the peer is in.
                if is_within(local_addr, &overlay.overlay) || is_within(send_back_addr, &overlay) {
                    tracing::debug!(remote = %send_back_addr, "connection over the overlay, or from where none may come, refused");
                    return None;
                }
            }
            TransportEvent::ListenerClosed { listener_id, .. } => {
                self.announced.retain(|(id, _)| id != listener_id);
                self.kept_back.retain(|(id, _)| id != listener_id);
            }
            TransportEvent::ListenerError { .. } => {}
        }
        Some(event)
    }
}

/// A muxer whose close ends in time.
struct BoundedClose<M> {
    inner: M,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<M> BoundedClose<M> {
    fn new(inner: M) -> Self {
        BoundedClose {
            inner,
            deadline: None,
        }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for BoundedClose<M> {
    type Substream = M::Substream;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<M::Substream, M::Error>> {
        Pin::new(&mut self.inner).poll_inbound(cx)
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<M::Substream, M::Error>> {
        Pin::new(&mut self.inner).poll_outbound(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSING)));
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, M::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
