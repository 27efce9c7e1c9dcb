//! Which connections lead to relays, and which of them our places are kept on.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::channel::mpsc;
use libp2p::core::Endpoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::swarm::behaviour::{ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId as LibPeer};

use super::handler::{Handler, In, Out, Wanted};
use super::transport::{News, Order};
use super::{Refusal, Refusals, Renewals};
use crate::p2p::address::is_circuit;

/// A relay keeps a place for us.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The listener that stands for the place.
    pub(crate) listener: ListenerId,
}

struct Place {
    relay: LibPeer,
    connection: ConnectionId,
}

/// This node as a client of relays. It never dials: a place, or a circuit, is had over a connection that stands.
pub(crate) struct Client {
    renewals: Renewals,
    orders: mpsc::UnboundedReceiver<Order>,
    news: mpsc::UnboundedSender<News>,
    /// Connections that are no circuits, the newest last.
    relays: HashMap<LibPeer, Vec<ConnectionId>>,
    places: HashMap<ListenerId, Place>,
    actions: VecDeque<ToSwarm<Kept, Either<In, std::convert::Infallible>>>,
    refusals: Refusals,
    /// Why places that are lost were refused, until somebody takes it.
    lost: HashMap<ListenerId, Refusal>,
}

impl Client {
    pub(super) fn new(
        renewals: Renewals,
        orders: mpsc::UnboundedReceiver<Order>,
        news: mpsc::UnboundedSender<News>,
    ) -> Client {
        Client {
            renewals,
            orders,
            news,
            relays: HashMap::new(),
            places: HashMap::new(),
            actions: VecDeque::new(),
            refusals: Refusals::new(),
            lost: HashMap::new(),
        }
    }

    /// What relays, and this node as their client, have refused so far.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Takes the reason why the relay refused a place, or gave it up; none where its connection ended. It is there as soon as
    /// the listener that stood for the place has closed.
    pub(crate) fn take_reason(&mut self, listener: ListenerId) -> Option<Refusal> {
        self.lost.remove(&listener)
    }

    fn count(&mut self, why: Refusal) {
        *self.refusals.entry(why).or_default() += 1;
    }

    /// Tells the transport, which is gone only when the swarm is.
    fn tell(&self, news: News) {
        let _ = self.news.unbounded_send(news);
    }

    fn lose(&mut self, listener: ListenerId, why: Option<Refusal>) {
        if self.places.remove(&listener).is_some() {
            self.lost.extend(why.map(|why| (listener, why)));
            self.tell(News::Lost(listener, why));
        }
    }

    fn notify(&mut self, peer: LibPeer, connection: ConnectionId, order: In) {
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Either::Left(order),
        });
    }

    fn newest(&self, relay: &LibPeer) -> Option<ConnectionId> {
        self.relays.get(relay)?.last().copied()
    }

    fn handle_order(&mut self, order: Order) {
        match order {
            Order::Reserve { listener, relay } => match self.newest(&relay) {
                Some(connection) => {
                    self.places.insert(listener, Place { relay, connection });
                    self.notify(relay, connection, In::Reserve(listener));
                }
                None => {
                    self.count(Refusal::Ended);
                    self.tell(News::Lost(listener, Some(Refusal::Ended)));
                }
            },
            Order::Leave(listener) => {
                self.lost.remove(&listener);
                if let Some(Place { relay, connection }) = self.places.remove(&listener) {
                    self.notify(relay, connection, In::Release(listener));
                }
            }
            Order::Connect { relay, peer, reply } => match self.newest(&relay) {
                Some(connection) => {
                    self.notify(relay, connection, In::Connect(Wanted { peer, reply }));
                }
                None => {
                    self.count(Refusal::Ended);
                    // Whoever asked may have gone away.
                    let _ = reply.send(Err(Refusal::Ended));
                }
            },
        }
    }

    fn handler(&self, address: &Multiaddr) -> Either<Handler, dummy::ConnectionHandler> {
        if is_circuit(address) {
            Either::Right(dummy::ConnectionHandler)
        } else {
            Either::Left(Handler::new(self.renewals))
        }
    }

    fn forget(&mut self, peer: LibPeer, connection: ConnectionId) {
        if let Some(connections) = self.relays.get_mut(&peer) {
            connections.retain(|id| *id != connection);
            if connections.is_empty() {
                self.relays.remove(&peer);
            }
        }
        let kept = self
            .places
            .iter()
            .filter(|(_, p)| p.connection == connection);
        let lost: Vec<_> = kept.map(|(listener, _)| *listener).collect();
        lost.into_iter()
            .for_each(|listener| self.lose(listener, None));
    }
}

impl NetworkBehaviour for Client {
    type ConnectionHandler = Either<Handler, dummy::ConnectionHandler>;
    type ToSwarm = Kept;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: LibPeer,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(local))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: LibPeer,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(address))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) if !endpoint.is_relayed() => {
                self.relays.entry(peer_id).or_default().push(connection_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => self.forget(peer_id, connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: LibPeer,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let out = match event {
            Either::Left(out) => out,
            Either::Right(never) => match never {},
        };
        let here = |place: &Place| place.connection == connection;
        match out {
            Out::Kept(listener) if self.places.get(&listener).is_some_and(here) => {
                let kept = ToSwarm::GenerateEvent(Kept { listener });
                self.actions.push_back(kept);
            }
            Out::Lost(listener, why) => {
                self.count(why);
                if self.places.get(&listener).is_some_and(here) {
                    self.lose(listener, Some(why));
                }
            }
            Out::Came {
                listener,
                peer,
                stream,
            } if self.places.get(&listener).is_some_and(here) => self.tell(News::Came {
                listener,
                peer,
                stream,
            }),
            Out::Refused(why) => self.count(why),
            // Of a place that was given back meanwhile: a circuit ends here.
            Out::Kept(_) | Out::Came { .. } => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            match self.orders.poll_next_unpin(cx) {
                Poll::Ready(Some(order)) => self.handle_order(order),
                // The transport is gone only when the swarm is.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}
