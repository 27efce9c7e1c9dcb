//! The transport: listeners of libp2p's TCP with WebSockets on top, and dials of our own.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, tcp};
use tokio::net::TcpStream;

use super::clients::{Came, Waiting};
use super::handshake::{self, Stream};
use super::target::listener;
use super::{Settings, Target};
use crate::p2p::layer::{Event, Making};

/// A connection that TCP takes.
type TcpUpgrade = <tcp::tokio::Transport as libp2p::Transport>::ListenerUpgrade;

/// The listeners and dials of TCP and WebSockets. It dials plain TCP only through a proxy.
pub(in crate::p2p) struct Transport {
    tcp: tcp::tokio::Transport,
    settings: Settings,
    /// How the addresses of each listener end, and whether TLS is spoken there.
    listeners: HashMap<ListenerId, (Multiaddr, bool)>,
    /// Connections of trusted proxies that have not said yet whose they are.
    waiting: Waiting,
}

impl Transport {
    pub(in crate::p2p) fn new(settings: Settings) -> Transport {
        Transport {
            tcp: tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)),
            waiting: Waiting::new(settings.proxies.clone(), settings.silent),
            settings,
            listeners: HashMap::new(),
        }
    }

    /// The address of a listener, or of who came in there, as others write it.
    fn whole(&self, listener: ListenerId, below: &Multiaddr) -> Multiaddr {
        match self.listeners.get(&listener) {
            Some((ending, _)) => below.iter().chain(ending.iter()).collect(),
            None => below.clone(),
        }
    }

    /// A connection of a trusted proxy whose head has come; none where nobody listens there any more.
    fn heard(&self, came: Came) -> Option<Event<Stream>> {
        let listener_id = came.listener;
        self.listeners.contains_key(&listener_id).then(|| {
            let upgrade = came.asking.answer().boxed();
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr: self.whole(listener_id, &came.local),
                send_back_addr: self.whole(listener_id, &came.from),
            }
        })
    }

    /// An event of TCP with whole addresses; none of a connection whose head is waited for.
    fn whole_event(
        &mut self,
        event: TransportEvent<TcpUpgrade, io::Error>,
    ) -> Option<Event<Stream>> {
        Some(match event {
            TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            } => TransportEvent::NewAddress {
                listener_id,
                listen_addr: self.whole(listener_id, &listen_addr),
            },
            TransportEvent::AddressExpired {
                listener_id,
                listen_addr,
            } => TransportEvent::AddressExpired {
                listener_id,
                listen_addr: self.whole(listener_id, &listen_addr),
            },
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr,
                send_back_addr,
            } => {
                let tls = self.listeners.get(&listener_id);
                let tls = tls.is_some_and(|(_, tls)| *tls);
                let tls = tls.then(|| self.settings.tls.clone());
                let asking =
                    async move { handshake::hear(TcpStream::from(upgrade.await?), tls).await };
                if self.settings.proxies.sent(&send_back_addr) {
                    self.waiting
                        .add(listener_id, local_addr, send_back_addr, asking);
                    return None;
                }
                TransportEvent::Incoming {
                    listener_id,
                    upgrade: async move { asking.await?.answer().await }.boxed(),
                    local_addr: self.whole(listener_id, &local_addr),
                    send_back_addr: self.whole(listener_id, &send_back_addr),
                }
            }
            TransportEvent::ListenerClosed {
                listener_id,
                reason,
            } => {
                self.listeners.remove(&listener_id);
                TransportEvent::ListenerClosed {
                    listener_id,
                    reason,
                }
            }
            TransportEvent::ListenerError { listener_id, error } => {
                TransportEvent::ListenerError { listener_id, error }
            }
        })
    }
}

impl libp2p::Transport for Transport {
    type Output = Stream;
    type Error = io::Error;
    type ListenerUpgrade = Making<Stream>;
    type Dial = Making<Stream>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        let Some((below, ending, tls)) = listener(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        self.tcp.listen_on(id, below)?;
        self.listeners.insert(id, (ending, tls));
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.tcp.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(target) = Target::of(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let Settings { proxied, tls, .. } = &self.settings;
        let is_direct = proxied.to(&target.host.text(), target.port).is_none();
        if target.port == 0 || (is_direct && target.web.is_none()) {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        Ok(handshake::dial(target, proxied.clone(), tls.clone()).boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(came) = this.waiting.poll(cx) {
                match this.heard(came) {
                    Some(event) => return Poll::Ready(event),
                    None => continue,
                }
            }
            let event = std::task::ready!(Pin::new(&mut this.tcp).poll(cx));
            if let Some(event) = this.whole_event(event) {
                return Poll::Ready(event);
            }
        }
    }
}
