//! Transports around transports. What a layer does not say is done as the transport inside it does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};

/// A connection that is being made, or taken.
pub(super) type Making<T> = BoxFuture<'static, io::Result<T>>;
/// What a transport tells of its listeners.
pub(super) type Event<T> = TransportEvent<Making<T>, io::Error>;

/// What is different about a transport.
pub(super) trait Layer: Unpin {
    /// What its connections are.
    type Output;

    /// The transport inside, which listens.
    fn inner(&mut self) -> &mut Boxed<Self::Output>;

    /// Dials an address.
    ///
    /// # Errors
    /// It is not dialled: it is another transport's, or the reason.
    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Making<Self::Output>, TransportError<io::Error>> {
        self.inner().dial(address, options)
    }

    /// What there is to tell that the transport inside does not.
    fn own_event(&mut self) -> Option<Event<Self::Output>> {
        None
    }

    /// How the handshake of a connection that came in from there is done; the connection is closed where it is none.
    fn take_in(
        &mut self,
        _from: &Multiaddr,
        handshake: Making<Self::Output>,
    ) -> Option<Making<Self::Output>> {
        Some(handshake)
    }

    /// What is told of an event of the transport inside; nothing, and a connection that comes in is closed, where it is none.
    fn pass(&mut self, event: Event<Self::Output>) -> Option<Event<Self::Output>> {
        match event {
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr,
                send_back_addr,
            } => Some(TransportEvent::Incoming {
                listener_id,
                upgrade: self.take_in(&send_back_addr, upgrade)?,
                local_addr,
                send_back_addr,
            }),
            other => Some(other),
        }
    }
}

/// A layer with what is inside it, as one transport.
pub(super) struct Layered<L>(pub(super) L);

impl<L: Layer> Transport for Layered<L> {
    type Output = L::Output;
    type Error = io::Error;
    type ListenerUpgrade = Making<L::Output>;
    type Dial = Making<L::Output>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.0.inner().listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.inner().remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        self.0.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let layer = &mut self.0;
        if let Some(event) = layer.own_event() {
            return Poll::Ready(event);
        }
        loop {
            let event = std::task::ready!(Pin::new(layer.inner()).poll(cx));
            if let Some(event) = layer.pass(event) {
                return Poll::Ready(event);
            }
        }
    }
}
