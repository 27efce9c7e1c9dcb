//! Dials through a proxy, beside those that are made directly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};

use super::target::for_lookup;
use super::{Target, Way};

/// A transport whose dials over TCP go through a proxy, where [`Way`] says so. The proxy looks the names up; all others are
/// looked up here.
pub(in crate::p2p) struct Outbound<T> {
    direct: Boxed<T>,
    proxied: Boxed<T>,
    way: Arc<Way>,
}

impl<T> Outbound<T> {
    pub(in crate::p2p) fn new(direct: Boxed<T>, proxied: Boxed<T>, way: Arc<Way>) -> Outbound<T> {
        Outbound {
            direct,
            proxied,
            way,
        }
    }
}

impl<T: Send + 'static> Transport for Outbound<T> {
    type Output = T;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<T> as Transport>::ListenerUpgrade;
    type Dial = <Boxed<T> as Transport>::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.direct.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.direct.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let goes = Target::of(&address)
            .is_some_and(|target| self.way.to(&target.host.text(), target.port).is_some());
        if goes {
            self.proxied.dial(address, options)
        } else {
            self.direct.dial(for_lookup(&address), options)
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.direct).poll(cx)
    }
}
