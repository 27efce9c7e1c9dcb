//! The transport through relays: libp2p's relay client, with corrected addresses.
//!
//! An incoming connection is given the address of the relay it came through, as its listener has it; libp2p names only the
//! peer that the relay says is there. The addresses that a relay claims for itself are not announced, because it could name
//! anybody's. The handshakes through one relay at a time are bounded, so that a relay which opens circuits without end costs
//! little.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Transport};
use tokio::sync::Semaphore;

/// Handshakes under way through one relay.
const HANDSHAKES: usize = 32;

struct Place {
    /// The address that the place at the relay was asked for with: `…/p2p/RELAY/p2p-circuit`.
    address: Multiaddr,
    handshakes: Arc<Semaphore>,
}

/// libp2p's relay client as a transport, corrected as the module says.
pub(super) struct Circuits<T> {
    inner: Boxed<T>,
    places: HashMap<ListenerId, Place>,
}

impl<T> Circuits<T> {
    pub(super) fn new(inner: Boxed<T>) -> Self {
        Circuits {
            inner,
            places: HashMap::new(),
        }
    }
}

impl<T: Send + 'static> Transport for Circuits<T> {
    type Output = T;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<T>>;
    type Dial = <Boxed<T> as Transport>::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address.clone())?;
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        self.places.insert(
            id,
            Place {
                address,
                handshakes,
            },
        );
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        self.inner.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        loop {
            let event = std::task::ready!(Pin::new(&mut self.inner).poll(cx));
            match event {
                TransportEvent::NewAddress { .. } | TransportEvent::AddressExpired { .. } => {}
                TransportEvent::Incoming {
                    listener_id,
                    upgrade,
                    send_back_addr,
                    ..
                } => {
                    // Dropped, the circuit ends.
                    let Some(place) = self.places.get(&listener_id) else {
                        continue;
                    };
                    let Ok(permit) = place.handshakes.clone().try_acquire_owned() else {
                        tracing::debug!(relay = %place.address, "too many handshakes through a relay");
                        continue;
                    };
                    let peer = send_back_addr.iter().find_map(|part| match part {
                        Protocol::P2p(peer) => Some(peer),
                        _ => None,
                    });
                    let local_addr = place.address.clone();
                    let send_back_addr = peer
                        .into_iter()
                        .map(Protocol::P2p)
                        .fold(local_addr.clone(), |address, part| address.with(part));
                    let upgrade = async move {
                        let done = upgrade.await;
                        drop(permit);
                        done
                    };
                    return Poll::Ready(TransportEvent::Incoming {
                        listener_id,
                        upgrade: upgrade.boxed(),
                        local_addr,
                        send_back_addr,
                    });
                }
                TransportEvent::ListenerClosed { listener_id, .. } => {
                    self.places.remove(&listener_id);
                    return Poll::Ready(event.map_upgrade(FutureExt::boxed));
                }
                TransportEvent::ListenerError { .. } => {
                    return Poll::Ready(event.map_upgrade(FutureExt::boxed));
                }
            }
        }
    }
}
