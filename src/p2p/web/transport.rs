//! The transport: listeners of libp2p's TCP with WebSockets on top, and dials of our own.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, tcp};
use tokio::net::TcpStream;

use super::handshake::{self, Stream};
use super::target::listener;
use super::{Settings, Target};

/// The listeners and dials of TCP and WebSockets. It dials plain TCP only through a proxy.
pub(in crate::p2p) struct Transport {
    tcp: tcp::tokio::Transport,
    settings: Settings,
    /// How the addresses of each listener end, and whether TLS is spoken there.
    listeners: HashMap<ListenerId, (Multiaddr, bool)>,
}

impl Transport {
    pub(in crate::p2p) fn new(settings: Settings) -> Transport {
        Transport {
            tcp: tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)),
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
}

impl libp2p::Transport for Transport {
    type Output = Stream;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<Stream>>;
    type Dial = BoxFuture<'static, io::Result<Stream>>;

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
        let proxy = self.settings.way.to(&target.host.text(), target.port);
        let proxy = proxy.cloned();
        if target.port == 0 || (proxy.is_none() && target.web.is_none()) {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        Ok(handshake::dial(target, proxy, self.settings.tls.clone()).boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let this = &mut *self;
        let event = std::task::ready!(Pin::new(&mut this.tcp).poll(cx));
        Poll::Ready(match event {
            TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            } => TransportEvent::NewAddress {
                listener_id,
                listen_addr: this.whole(listener_id, &listen_addr),
            },
            TransportEvent::AddressExpired {
                listener_id,
                listen_addr,
            } => TransportEvent::AddressExpired {
                listener_id,
                listen_addr: this.whole(listener_id, &listen_addr),
            },
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr,
                send_back_addr,
            } => {
                let tls = this
                    .listeners
                    .get(&listener_id)
                    .is_some_and(|(_, tls)| *tls);
                let tls = tls.then(|| this.settings.tls.clone());
                let upgrade = async move {
                    let tcp = TcpStream::from(upgrade.await?);
                    handshake::take(tcp, tls).await
                };
                TransportEvent::Incoming {
                    listener_id,
                    upgrade: upgrade.boxed(),
                    local_addr: this.whole(listener_id, &local_addr),
                    send_back_addr: this.whole(listener_id, &send_back_addr),
                }
            }
            TransportEvent::ListenerClosed {
                listener_id,
                reason,
            } => {
                this.listeners.remove(&listener_id);
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
