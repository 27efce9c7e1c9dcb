//! The routers that default routes lead over.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage, AddressScope};

use super::messages::{RouteInfo, local_address};
use super::{MAIN, Netlink, plain};

/// A router, and the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// Its address; one of IPv6 is mostly of its link alone.
    pub address: IpAddr,
    /// Our address that it forwards to: of IPv4 the one on the way to it, of IPv6 a global one on its link.
    pub local: IpAddr,
    /// The index of the link.
    pub link: u32,
}

/// A global IPv6 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Own {
    link: u32,
    ip: Ipv6Addr,
    /// It is temporary, or is to be used no more.
    is_passing: bool,
}

impl Own {
    fn of(message: &AddressMessage) -> Option<Own> {
        let Some(IpAddr::V6(ip)) = local_address(message) else {
            return None;
        };
        let flags = message.header.flags;
        let is_usable = message.header.scope == AddressScope::Universe
            && !flags.contains(AddressHeaderFlags::Tentative)
            && !flags.contains(AddressHeaderFlags::Dadfailed);
        let passing = AddressHeaderFlags::Secondary | AddressHeaderFlags::Deprecated;
        is_usable.then_some(Own {
            link: message.header.index,
            ip,
            is_passing: flags.intersects(passing),
        })
    }
}

/// The address of a link that peers are told: a public one rather than one of a site, and of these one that stays.
fn stays(own: &[Own], link: u32) -> Option<Ipv6Addr> {
    let on_link = own.iter().filter(|own| own.link == link);
    let best = on_link.min_by_key(|own| (own.ip.is_unique_local(), own.is_passing));
    best.map(|own| own.ip)
}

/// The gateways of default routes with the links that lead to them, those first that the kernel prefers, each once. A route
/// into a tunnel has none.
fn gateways(mut routes: Vec<RouteInfo>) -> Vec<(IpAddr, u32)> {
    routes.retain(|r| r.route.destination.prefix_len() == 0 && !r.ours);
    routes.sort_by_key(|r| (r.route.table != MAIN, r.metric));
    let mut all = Vec::new();
    for route in routes {
        // Of a route over several links each has a gateway of its own, or none is known.
        let several = route.hops.iter().zip(&route.links);
        let is_paired = route.hops.len() == route.links.len();
        let several = several.filter(|_| is_paired).map(|(ip, link)| (*ip, *link));
        let single = route.route.gateway.zip(route.link);
        for hop in single.into_iter().chain(several) {
            let is_v4 = route.route.destination.addr().is_ipv4();
            if hop.0.is_ipv4() == is_v4 && !all.contains(&hop) {
                all.push(hop);
            }
        }
    }
    all
}

impl Netlink {
    /// The routers that default routes lead over, those first that the kernel prefers, at most so many in each family.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(in crate::host) async fn routers(&self, most: usize) -> anyhow::Result<Vec<Router>> {
        let messages = self.handle.address().get().execute();
        let messages: Vec<AddressMessage> = messages
            .try_collect()
            .await
            .map_err(plain)
            .context("list addresses")?;
        let own: Vec<Own> = messages.iter().filter_map(Own::of).collect();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, link) in gateways(self.routes(None).await?) {
            let (all, local) = match address {
                IpAddr::V4(_) => {
                    let way = self.way(address, None, None).await?;
                    // By another link it is not that router.
                    let way = way.filter(|way| way.link == link);
                    (&mut v4, way.and_then(|way| way.source))
                }
                IpAddr::V6(_) => (&mut v6, stays(&own, link).map(IpAddr::V6)),
            };
            if let Some(local) = local.filter(|_| all.len() < most) {
                all.push(Router {
                    address,
                    local,
                    link,
                });
            }
        }
        v4.append(&mut v6);
        Ok(v4)
    }
}

/// The routers that default routes lead over, those of IPv4 first, at most so many in each family and in the order in which
/// the kernel prefers them.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn routers(most: usize) -> anyhow::Result<Vec<Router>> {
    Netlink::open()?.routers(most).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::Route;
    use netlink_packet_route::route::RouteType;

    /// A default route; `hops`: gateways with their links.
    fn route(family: &str, hops: &[(&str, u32)], metric: u32) -> RouteInfo {
        let hops: Vec<(IpAddr, u32)> = hops
            .iter()
            .map(|(ip, link)| (ip.parse().unwrap(), *link))
            .collect();
        let is_single = hops.len() == 1;
        let gateway = hops.first().filter(|_| is_single).map(|hop| hop.0);
        let several = hops.iter().filter(|_| !is_single);
        RouteInfo {
            route: Route {
                table: MAIN,
                destination: family.parse().unwrap(),
                link: String::new(),
                gateway,
                source: None,
            },
            link: hops.first().map(|hop| hop.1),
            links: hops.iter().map(|hop| hop.1).collect(),
            metric,
            hops: several.map(|hop| hop.0).collect(),
            ours: false,
            kind: RouteType::Unicast,
        }
    }

    fn chosen(routes: Vec<RouteInfo>) -> Vec<String> {
        let all = gateways(routes).into_iter();
        all.map(|(ip, link)| format!("{ip}%{link}")).collect()
    }

    #[test]
    fn gateways_come_in_the_order_of_the_kernel_and_each_once() {
        const V4: &str = "0.0.0.0/0";
        let second = route(V4, &[("192.168.2.1", 3)], 200);
        let first = || route(V4, &[("192.168.1.1", 2)], 100);
        let v6 = route("::/0", &[("fe80::1", 2)], 1024);
        let tunnel = route(V4, &[], 0);
        let ours = RouteInfo {
            ours: true,
            ..route(V4, &[("10.77.0.1", 9)], 0)
        };
        let mut elsewhere = route(V4, &[("192.168.4.1", 5)], 0);
        elsewhere.route.table = 1000;
        let network = route("192.168.9.0/24", &[("192.168.1.9", 2)], 0);
        let mut again = first();
        again.metric = 900;
        let all = vec![second, elsewhere, v6, tunnel, ours, network, first(), again];
        assert_eq!(
            chosen(all),
            [
                "192.168.1.1%2",
                "192.168.2.1%3",
                "fe80::1%2",
                "192.168.4.1%5"
            ]
        );
    }

    #[test]
    fn a_route_over_several_links_has_a_gateway_on_each() {
        let hops = [("192.168.1.1", 2), ("192.168.2.1", 3)];
        let both = route("0.0.0.0/0", &hops, 0);
        assert_eq!(chosen(vec![both]), ["192.168.1.1%2", "192.168.2.1%3"]);
        // One without a gateway: which link the other one is on is not told.
        let mut odd = route("0.0.0.0/0", &hops, 0);
        odd.hops.pop();
        assert_eq!(chosen(vec![odd]), [""; 0]);
    }

    #[test]
    fn of_a_link_s_addresses_the_public_one_that_stays_is_reached() {
        let own = |link, ip: &str, is_passing| Own {
            link,
            ip: ip.parse().unwrap(),
            is_passing,
        };
        let all = [
            own(2, "2001:db8::aaaa", true),
            own(2, "fd00::7", false),
            own(2, "2001:db8::7", false),
            own(3, "2001:db8:3::aaaa", true),
            own(4, "fd00::9", false),
            own(4, "2001:db8:4::aaaa", true),
            own(5, "fd00::5", false),
        ];
        let stays = |link| stays(&all, link).map(|ip| ip.to_string());
        assert_eq!(stays(2).as_deref(), Some("2001:db8::7"));
        assert_eq!(
            stays(3).as_deref(),
            Some("2001:db8:3::aaaa"),
            "the only one"
        );
        assert_eq!(stays(4).as_deref(), Some("2001:db8:4::aaaa"));
        assert_eq!(stays(5).as_deref(), Some("fd00::5"));
        assert_eq!(stays(6), None);
    }
}
