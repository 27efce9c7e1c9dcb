//! Asks the kernel by which link it sends, rather than reading its tables and rules.

use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType,
};

use super::messages::route_info;
use super::{Netlink, errno, plain};

/// By which link the kernel sends to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct Way {
    pub(in crate::host) link: u32,
    /// The table of the route; 0 where there is none, and IPv4 takes the host to be on the link that was named.
    pub(in crate::host) table: u32,
    /// The address that the kernel chooses, where none was named.
    pub(in crate::host) source: Option<IpAddr>,
}

impl Netlink {
    /// By which link the kernel sends to `to`, where the address it comes from and the link are named as said; none where it
    /// sends nothing.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(in crate::host) async fn way(
        &self,
        to: IpAddr,
        from: Option<IpAddr>,
        link: Option<u32>,
    ) -> anyhow::Result<Option<Way>> {
        let address = |ip| match ip {
            IpAddr::V4(ip) => (RouteAddress::Inet(ip), 32),
            IpAddr::V6(ip) => (RouteAddress::Inet6(ip), 128),
        };
        let mut question = RouteMessage::default();
        question.header.address_family = match to {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        question.header.flags = RouteFlags::LookupTable;
        let (destination, length) = address(to);
        question.header.destination_prefix_length = length;
        let attributes = &mut question.attributes;
        attributes.push(RouteAttribute::Destination(destination));
        if let Some(from) = from {
            let (source, length) = address(from);
            question.header.source_prefix_length = length;
            attributes.push(RouteAttribute::Source(source));
        }
        attributes.extend(link.map(RouteAttribute::Oif));
        let asked = self.handle.route().get(question).execute();
        let answers: Vec<RouteMessage> = match asked.try_collect().await {
            Ok(answers) => answers,
            // No route, a route that refuses, a link that is down or gone, an address that is gone.
            Err(error) if errno(&error).is_some() => return Ok(None),
            Err(error) => return Err(plain(error).context("ask for a route")),
        };
        let found = answers.first().and_then(route_info);
        let found = found.filter(|found| found.kind == RouteType::Unicast);
        Ok(found.and_then(|found| {
            Some(Way {
                link: found.link?,
                table: found.route.table,
                source: found.route.source,
            })
        }))
    }
}
