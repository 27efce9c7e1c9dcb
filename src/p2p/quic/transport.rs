//! Listening, dialling and hole punching over the sockets of the UDP port.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, Fuse, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p::core::Endpoint as Role;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, PeerId};
use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;
use tokio::sync::mpsc;

use super::super::Timing;
use super::super::address::{Carrier, carrier_of, quic_at, udp_of};
use super::super::admission::{Admission, Verdict};
use super::super::own::with_link;
use super::super::zoned::missing_link;
use super::connection::Muxer;
use super::settings::{Settings, name_connections, settings};
use super::upgrade::establish;
use super::{Error, canonical, choose};
use crate::udp::QuicSocket;

/// First packets that are looked at before others get their turn.
const BURST: usize = 64;
/// What a dialled server would be called. It is not sent.
const NAME: &str = "peer";
/// Connections through one punched hole that are tried: the first whose handshake succeeds is the dial's.
const ARRIVALS: usize = 4;
/// Bytes of a datagram that punches a hole.
const PUNCH: usize = 64;
/// Its first byte: none of ours (0x04-0x3f), and not QUIC, whose version 1 sets 0x40.
const PUNCH_FIRST: u8 = 0x03;
/// Pause between two of them in milliseconds: this, and up to 190 more.
const PUNCH_PAUSE: u64 = 10;

/// A handshake under way.
pub(crate) type Upgrade = BoxFuture<'static, Result<(PeerId, Muxer), Error>>;
type Event = TransportEvent<Upgrade, Error>;

/// QUIC over sockets of somebody else's. There is one port per address, so [`DialOpts::port_use`] changes nothing: every
/// dial leaves from the port that is listened on.
pub(crate) struct Transport {
    ports: Vec<Port>,
    client: quinn::ClientConfig,
    admission: Admission,
    patience: Duration,
    events: VecDeque<Event>,
    /// Dials that wait for the other side to come through.
    punching: HashMap<SocketAddr, mpsc::Sender<Upgrade>>,
    /// Which port is looked at first, so that one under load does not hide the others.
    turn: usize,
    waker: Option<Waker>,
}

/// One socket and what goes on there.
struct Port {
    socket: Arc<QuicSocket>,
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    incoming: Fuse<BoxStream<'static, quinn::Incoming>>,
    listener: Option<Listener>,
}

struct Listener {
    id: ListenerId,
    /// Follows the host's addresses where the socket is bound to all of them.
    interfaces: Option<IfWatcher>,
}

impl Transport {
    /// To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the identity makes no certificate, or a socket does not know its address.
    pub(crate) fn new(
        key: &libp2p::identity::Keypair,
        sockets: &[Arc<QuicSocket>],
        admission: Admission,
        patience: Duration,
        timing: &Timing,
    ) -> Result<Self, super::super::Error> {
        let Settings {
            endpoint,
            server,
            client,
        } = settings(key, timing)?;
        let mut ports = Vec::new();
        for socket in sockets {
            let (socket, local) = (Arc::clone(socket), socket.local());
            let (mut endpoint, server) = (endpoint.clone(), Some(server.clone()));
            name_connections(&mut endpoint, socket.cids());
            let runtime = Arc::new(quinn::TokioRuntime);
            let endpoint = quinn::Endpoint::new_with_abstract_socket(
                endpoint,
                server,
                socket.clone(),
                runtime,
            )
            .map_err(super::super::Error::Quic)?;
            let incoming = futures::stream::unfold(endpoint.clone(), |endpoint| async {
                let incoming = endpoint.accept().await?;
                Some((incoming, endpoint))
            });
            ports.push(Port {
                socket,
                endpoint,
                local,
                incoming: incoming.boxed().fuse(),
                listener: None,
            });
        }
        Ok(Transport {
            ports,
            client,
            admission,
            patience,
            events: VecDeque::new(),
            punching: HashMap::new(),
            turn: 0,
            waker: None,
        })
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The port that `remote` is dialled from: of its family, on its side of the loopback, best one that the kernel would
    /// choose the address of, else one that listens.
    fn port_for(&self, remote: SocketAddr) -> Option<&Port> {
        let reaches = |port: &&Port| {
            let local = port.local.ip();
            port.local.is_ipv4() == remote.is_ipv4()
                && (local.is_unspecified() || local.is_loopback() == remote.ip().is_loopback())
        };
        let fitting = || self.ports.iter().filter(reaches);
        if fitting().count() > 1
            && let Some(source) = source_towards(remote)
            && let Some(port) = fitting().find(|port| port.local.ip() == source)
        {
            return Some(port);
        }
        fitting()
            .find(|port| port.listener.is_some())
            .or_else(|| fitting().next())
    }

    fn dial_out(&self, port: &Port, remote: SocketAddr) -> Result<Upgrade, Error> {
        let connecting = port
            .endpoint
            .connect_with(self.client.clone(), remote, NAME)?;
        let expected = port.socket.expect(remote);
        let established = establish(connecting, None, self.patience);
        Ok(async move {
            let result = established.await;
            drop(expected);
            result
        }
        .boxed())
    }

    /// Lets the peer dial us through our NAT: datagrams to it, until its connection arrives.
    fn let_in(&mut self, socket: Arc<QuicSocket>, remote: SocketAddr) -> Result<Upgrade, Error> {
        self.punching.retain(|_, waiting| !waiting.is_closed());
        if self.punching.contains_key(&remote) {
            return Err(Error::Punching(remote));
        }
        let (arrived, mut arrivals) = mpsc::channel(ARRIVALS);
        self.punching.insert(remote, arrived);
        let patience = self.patience;
        Ok(async move {
            let _expected = socket.expect(remote);
            let upgrade = async {
                let mut punching = std::pin::pin!(punch(&socket, remote));
                let mut running = FuturesUnordered::new();
                loop {
                    tokio::select! {
                        Some(upgrade) = arrivals.recv() => running.push(upgrade),
                        Some(done) = running.next(), if !running.is_empty() => match done {
                            Ok(done) => return Ok(done),
                            // A packet of an attempt that the peer has given up came through the hole first.
                            Err(error) => tracing::debug!(%remote, %error, "connection through a punched hole"),
                        },
                        never = &mut punching => match never {},
                    }
                }
            };
            tokio::time::timeout(patience, upgrade).await.unwrap_or(Err(Error::Slow))
        }
        .boxed())
    }

    fn poll_port(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<Event> {
        let Some(port) = self.ports.get_mut(at) else {
            return Poll::Pending;
        };
        if let Some(listener) = &mut port.listener
            && let Poll::Ready(event) = listener.poll_interfaces(port.local, cx)
        {
            return Poll::Ready(event);
        }
        for _ in 0..BURST {
            let Some(port) = self.ports.get_mut(at) else {
                return Poll::Pending;
            };
            match std::task::ready!(port.incoming.poll_next_unpin(cx)) {
                Some(incoming) => {
                    if let Some(event) = self.handle_incoming(at, incoming) {
                        return Poll::Ready(event);
                    }
                }
                None => {
                    // The socket has failed; the endpoint is dead.
                    let Some(listener) = port.listener.take() else {
                        return Poll::Pending;
                    };
                    return Poll::Ready(TransportEvent::ListenerClosed {
                        listener_id: listener.id,
                        reason: Err(Error::Closed),
                    });
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Begins the handshake of a first packet, asks for a Retry, or ignores it.
    fn handle_incoming(&mut self, at: usize, incoming: quinn::Incoming) -> Option<Event> {
        let port = self.ports.get(at)?;
        let remote = canonical(incoming.remote_address());
        let local = SocketAddr::new(
            incoming.local_ip().unwrap_or_else(|| port.local.ip()),
            port.local.port(),
        );
        // A peer that a hole is punched for is expected: no limit, no Retry, and its connection belongs to the dial.
        let expected = self
            .punching
            .get(&remote)
            .is_some_and(|waiting| !waiting.is_closed());
        let place = match &port.listener {
            _ if expected => None,
            None => {
                incoming.ignore();
                return None;
            }
            Some(_) => match self.admission.judge(
                remote.ip(),
                incoming.remote_address_validated(),
                Instant::now(),
            ) {
                Verdict::Begin(place) => Some(place),
                Verdict::Prove => {
                    if let Err(error) = incoming.retry() {
                        error.into_incoming().ignore();
                    }
                    return None;
                }
                Verdict::Ignore => {
                    incoming.ignore();
                    return None;
                }
            },
        };
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%remote, %error, "first QUIC packet refused");
                return None;
            }
        };
        let upgrade = establish(connecting, place, self.patience).boxed();
        if expected {
            if let Some(waiting) = self.punching.get(&remote) {
                // Nobody waits any more, or too many came: the connection closes with the future.
                drop(waiting.try_send(upgrade));
            }
            return None;
        }
        let listener_id = port.listener.as_ref().map(|listener| listener.id)?;
        Some(TransportEvent::Incoming {
            listener_id,
            upgrade,
            local_addr: multiaddr(local),
            send_back_addr: multiaddr(remote),
        })
    }
}

impl Listener {
    fn poll_interfaces(&mut self, local: SocketAddr, cx: &mut Context<'_>) -> Poll<Event> {
        let Some(watcher) = &mut self.interfaces else {
            return Poll::Pending;
        };
        let listener_id = self.id;
        loop {
            let event = std::task::ready!(watcher.poll_if_event(cx));
            let here = |ip: IpAddr| {
                (ip.is_ipv4() == local.is_ipv4())
                    .then(|| multiaddr(SocketAddr::new(ip, local.port())))
            };
            match event {
                Ok(IfEvent::Up(net)) => {
                    if let Some(listen_addr) = here(net.addr()) {
                        return Poll::Ready(TransportEvent::NewAddress {
                            listener_id,
                            listen_addr,
                        });
                    }
                }
                Ok(IfEvent::Down(net)) => {
                    if let Some(listen_addr) = here(net.addr()) {
                        return Poll::Ready(TransportEvent::AddressExpired {
                            listener_id,
                            listen_addr,
                        });
                    }
                }
                Err(error) => {
                    self.interfaces = None;
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id,
                        error: Error::Io(error),
                    });
                }
            }
        }
    }
}

impl libp2p::Transport for Transport {
    type Output = (PeerId, Muxer);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Error>> {
        let Some(wanted) = udp_of(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let free: Vec<_> = self
            .ports
            .iter()
            .map(|port| port.listener.is_none().then_some(port.local))
            .collect();
        let port = choose(&free, wanted).and_then(|at| self.ports.get_mut(at));
        let port = port.ok_or(TransportError::Other(Error::NoSocket(wanted)))?;
        let interfaces = if port.local.ip().is_unspecified() {
            Some(IfWatcher::new().map_err(|error| TransportError::Other(Error::Io(error)))?)
        } else {
            self.events.push_back(TransportEvent::NewAddress {
                listener_id: id,
                listen_addr: multiaddr(port.local),
            });
            None
        };
        port.listener = Some(Listener { id, interfaces });
        self.wake();
        Ok(())
    }

    /// Ends the listening only: connections stay, and dials go on leaving from there.
    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let listens = |port: &&mut Port| {
            port.listener
                .as_ref()
                .is_some_and(|listener| listener.id == id)
        };
        let Some(port) = self.ports.iter_mut().find(listens) else {
            return false;
        };
        port.listener = None;
        self.events.push_back(TransportEvent::ListenerClosed {
            listener_id: id,
            reason: Ok(()),
        });
        self.wake();
        true
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Upgrade, TransportError<Error>> {
        let remote = udp_of(&address)
            .map(canonical)
            .map(with_link)
            .filter(|a| a.port() != 0 && !a.ip().is_unspecified());
        let Some(remote) = remote else {
            let is_quic = carrier_of(&address) == Some(Carrier::Quic);
            return Err(match missing_link(&address).filter(|_| is_quic) {
                Some(link) => TransportError::Other(Error::NoLink(link)),
                None => TransportError::MultiaddrNotSupported(address),
            });
        };
        let port = self
            .port_for(remote)
            .ok_or(TransportError::Other(Error::NoSocket(remote)))?;
        let upgrade = match options.role {
            Role::Dialer => self.dial_out(port, remote),
            Role::Listener => {
                let socket = port.socket.clone();
                self.let_in(socket, remote)
            }
        };
        upgrade.map_err(TransportError::Other)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let this = &mut *self;
        if let Some(event) = this.events.pop_front() {
            return Poll::Ready(event);
        }
        let count = this.ports.len();
        for at in (this.turn..count).chain(0..this.turn.min(count)) {
            if let Poll::Ready(event) = this.poll_port(at, cx) {
                this.turn = at + 1;
                return Poll::Ready(event);
            }
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Datagrams of noise, so that our NAT lets the answer in. They mean nothing to whoever receives them.
async fn punch(socket: &QuicSocket, destination: SocketAddr) -> Infallible {
    loop {
        let mut noise = [0; PUNCH];
        // Without entropy it is a packet of zeros, which does as well.
        let _ = getrandom::fill(&mut noise);
        let pause = u64::from(noise[PUNCH - 1]) % 191;
        noise[0] = PUNCH_FIRST;
        let transmit = Transmit {
            destination,
            ecn: None,
            contents: &noise,
            segment_size: None,
            src_ip: None,
        };
        if let Err(error) = socket.try_send(&transmit) {
            tracing::debug!(%destination, %error, "punch a hole");
        }
        tokio::time::sleep(Duration::from_millis(PUNCH_PAUSE + pause)).await;
    }
}

/// The address that the kernel would send from; `None` where it knows no way.
fn source_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let probe = std::net::UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing.
    probe.connect(remote).ok()?;
    probe.local_addr().ok().map(|local| local.ip())
}

pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    quic_at(address)
}
