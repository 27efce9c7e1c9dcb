//! Tells when the default routes of this machine change: by them it leaves for others, and whoever looks for it has to know
//! the addresses of those links. Addresses alone do not tell it: routes come after them, and may change without them. Rules
//! may lead to other routes, so they are followed as well.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;

use super::netlink::{Netlink, Wake};
use crate::udp::Exit;

/// By which links this machine leaves for others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// Indexes of the links that default routes lead over, in order, each once.
    pub links: Vec<u32>,
    /// The addresses of this machine on them, those first that the kernel prefers.
    pub preferred: Vec<IpAddr>,
    /// The addresses whose datagrams the kernel would send by another link than their own.
    pub exits: Vec<Exit>,
}

/// Follows the default routes; ends when it is dropped.
#[derive(Debug)]
pub struct Uplinks(Wake);

impl Uplinks {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel gives no socket for it.
    pub fn follow() -> anyhow::Result<Uplinks> {
        let groups = [
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let wake = Wake::follow(&groups, "routes and rules", concerns_default)?;
        Ok(Uplinks(wake))
    }

    /// Waits until a default route or a rule came or went since the last time.
    ///
    /// # Cancel safety
    /// Nothing is lost where it is dropped.
    pub async fn changed(&self) {
        self.0.changed().await;
    }

    /// By which links this machine leaves for others now.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn now(&self) -> anyhow::Result<Ways> {
        Netlink::open()?.uplinks().await
    }
}

fn concerns_default(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.destination_prefix_length == 0
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteMessage;

    #[test]
    fn routes_to_single_networks_wake_nobody() {
        let route = |prefix| {
            let mut route = RouteMessage::default();
            route.header.destination_prefix_length = prefix;
            RouteNetlinkMessage::NewRoute(route)
        };
        assert!(concerns_default(&route(0)) && !concerns_default(&route(24)));
    }
}
