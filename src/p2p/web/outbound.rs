//! Dials through a proxy, beside those that are made directly.

use std::io;
use std::sync::Arc;

use libp2p::core::transport::{Boxed, DialOpts, TransportError};
use libp2p::{Multiaddr, Transport as _};

use super::Target;
use super::target::for_lookup;
use crate::model::proxy::Way;
use crate::p2p::layer::{Layer, Layered, Making};

/// A transport whose dials over TCP go through a proxy, where [`Way`] says so. The proxy looks the names up; all others are
/// looked up here.
pub(in crate::p2p) struct Outbound<T> {
    direct: Boxed<T>,
    proxied: Boxed<T>,
    way: Arc<Way>,
}

impl<T> Outbound<T> {
    pub(in crate::p2p) fn of(
        direct: Boxed<T>,
        proxied: Boxed<T>,
        way: Arc<Way>,
    ) -> Layered<Outbound<T>> {
        Layered(Outbound {
            direct,
            proxied,
            way,
        })
    }
}

impl<T> Layer for Outbound<T> {
    type Output = T;

    fn inner(&mut self) -> &mut Boxed<T> {
        &mut self.direct
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Making<T>, TransportError<io::Error>> {
        let goes = Target::of(&address)
            .is_some_and(|target| self.way.to(&target.host.text(), target.port).is_some());
        if goes {
            self.proxied.dial(address, options)
        } else {
            self.direct.dial(for_lookup(&address), options)
        }
    }
}
