//! Places at relays as listeners, and circuits as dials.
//!
//! An incoming circuit is given the address of the relay that it came through, as its listener has it, and the peer that the
//! relay names: who is really there is shown by the handshake inside the circuit.

use std::collections::{HashMap, VecDeque};
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::Stream;
use libp2p::{Multiaddr, PeerId as LibPeer};
use tokio::sync::oneshot;

use super::Refusal;
use crate::p2p::address::Circuit;

/// What the client is to do.
#[derive(Debug)]
pub(super) enum Order {
    Reserve {
        listener: ListenerId,
        relay: LibPeer,
    },
    Leave(ListenerId),
    Connect {
        relay: LibPeer,
        peer: LibPeer,
        reply: oneshot::Sender<Result<Stream, Refusal>>,
    },
}

/// What the client has done.
#[derive(Debug)]
pub(super) enum News {
    /// A place is gone; without a reason, its connection is.
    Lost(ListenerId, Option<Refusal>),
    /// A circuit came in.
    Came {
        listener: ListenerId,
        peer: LibPeer,
        stream: Box<Stream>,
    },
}

/// See the module.
pub(crate) struct Transport {
    orders: mpsc::UnboundedSender<Order>,
    news: mpsc::UnboundedReceiver<News>,
    /// The addresses that the places were asked for with: `…/p2p/RELAY/p2p-circuit`.
    places: HashMap<ListenerId, Multiaddr>,
    /// Listeners that were removed and are to be reported.
    left: VecDeque<ListenerId>,
    waker: Option<Waker>,
}

impl Transport {
    pub(super) fn new(
        orders: mpsc::UnboundedSender<Order>,
        news: mpsc::UnboundedReceiver<News>,
    ) -> Transport {
        Transport {
            orders,
            news,
            places: HashMap::new(),
            left: VecDeque::new(),
            waker: None,
        }
    }

    /// Tells the client, which is gone only when the swarm is.
    fn order(&self, order: Order) -> io::Result<()> {
        let sent = self.orders.unbounded_send(order);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl libp2p::Transport for Transport {
    type Output = Stream;
    type Error = io::Error;
    type ListenerUpgrade = Ready<io::Result<Stream>>;
    type Dial = BoxFuture<'static, io::Result<Stream>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        let Some(Circuit {
            relay, peer: None, ..
        }) = Circuit::of(&address)
        else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let listener = id;
        self.order(Order::Reserve { listener, relay })
            .map_err(TransportError::Other)?;
        self.places.insert(id, address);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        if self.places.remove(&id).is_none() {
            return false;
        }
        self.left.push_back(id);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        // Where the client is gone, so is the place.
        let _ = self.order(Order::Leave(id));
        true
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some(Circuit {
            relay,
            peer: Some(peer),
            ..
        }) = Circuit::of(&address)
        else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        // To be let in by a dial of the other side there has to be a hole, and a circuit needs none.
        if options.role.is_listener() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        let (reply, answer) = oneshot::channel();
        self.order(Order::Connect { relay, peer, reply })
            .map_err(TransportError::Other)?;
        let dial = async move {
            let answer = answer.await.unwrap_or(Err(Refusal::Ended));
            answer.map_err(io::Error::other)
        };
        Ok(dial.boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        if let Some(listener_id) = self.left.pop_front() {
            let reason = Ok(());
            return Poll::Ready(TransportEvent::ListenerClosed {
                listener_id,
                reason,
            });
        }
        loop {
            match self.news.poll_next_unpin(cx) {
                Poll::Ready(Some(News::Lost(listener_id, why))) => {
                    if self.places.remove(&listener_id).is_some() {
                        let reason = why.map_or(Ok(()), |why| Err(io::Error::other(why)));
                        return Poll::Ready(TransportEvent::ListenerClosed {
                            listener_id,
                            reason,
                        });
                    }
                }
                Poll::Ready(Some(News::Came {
                    listener,
                    peer,
                    stream,
                })) => {
                    // Dropped, the circuit ends.
                    if let Some(local_addr) = self.places.get(&listener).cloned() {
                        return Poll::Ready(TransportEvent::Incoming {
                            listener_id: listener,
                            upgrade: ready(Ok(*stream)),
                            send_back_addr: local_addr.clone().with(Protocol::P2p(peer)),
                            local_addr,
                        });
                    }
                }
                Poll::Ready(None) | Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}
