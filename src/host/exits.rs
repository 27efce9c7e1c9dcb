//! Finds the addresses of this machine whose datagrams the kernel sends by the wrong uplink, so that the link has to be named.
//!
//! Of two default routes in the main table the kernel takes the one of the lesser metric, whatever address a datagram comes
//! from. The kernel itself is asked what it does with one, with and without the link named, because rules of an
//! administrator may say something else. Where they do, or where the traffic goes into a tunnel, nothing is changed: it is
//! meant to go there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::inner::MAIN;
use super::netlink::{Netlink, RouteInfo, Way};
use super::outward;
use crate::udp::{Exit, Source};

/// Addresses of which the kernel is asked, at most: more than peers are told of.
const MOST: usize = 16;
/// Hosts that hardly any machine has a route of its own for: a root name server. Nothing is sent to it.
const FAR4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);

/// What the kernel does with a datagram to a far host; none where it has no route.
#[derive(Debug, Clone, Copy, Default)]
struct Ways {
    /// Where only our address is named.
    plain: Option<Way>,
    /// Where the link is named as well.
    by_link: Option<Way>,
    /// Where the link is named alone.
    of_link: Option<Way>,
}

/// How datagrams from `local`, an address of `link`, have to leave; none where the kernel's own choice stands. `uplinks`: the
/// links that default routes of the main table lead over, and that are no tunnels. `is_shared`: whether one such route has
/// several links, among which the kernel chooses by the destination.
fn exit(
    local: IpAddr,
    link: u32,
    (uplinks, is_shared): (&BTreeSet<u32>, bool),
    ways: Ways,
) -> Option<Exit> {
    let of_main = |way: Option<Way>| way.filter(|way| way.table == MAIN);
    let plain = of_main(ways.plain).filter(|way| uplinks.contains(&way.link))?;
    if plain.link == link && !is_shared {
        return None;
    }
    let is_by_link = |way: &Way| way.link == link;
    let source = if of_main(ways.by_link).is_some_and(|way| is_by_link(&way)) {
        Source::Named
    } else {
        let way = of_main(ways.of_link).filter(is_by_link)?;
        if way.source != Some(local) {
            return None;
        }
        Source::OfLink
    };
    Some(Exit {
        local,
        link,
        source,
    })
}

/// The addresses, of those with the link that each is on, whose datagrams have to name the link. `defaults`: all default
/// routes.
pub(super) async fn exits(
    netlink: &Netlink,
    defaults: &[RouteInfo],
    addresses: &[(u32, IpAddr, u8)],
) -> anyhow::Result<Vec<Exit>> {
    let mut exits = Vec::new();
    for is_v4 in [true, false] {
        let far = if is_v4 { FAR4.into() } else { FAR6.into() };
        let of_family = |route: &&RouteInfo| {
            route.route.table == MAIN && route.route.destination.addr().is_ipv4() == is_v4
        };
        let routes: Vec<&RouteInfo> = defaults.iter().filter(of_family).collect();
        let mut uplinks: BTreeSet<u32> = routes.iter().flat_map(|r| &r.links).copied().collect();
        if uplinks.len() < 2 {
            continue;
        }
        for tunnel in outward::tunnels(netlink).await? {
            uplinks.remove(&tunnel);
        }
        let on_uplinks = addresses
            .iter()
            .filter(|(link, ip, _)| ip.is_ipv4() == is_v4 && uplinks.contains(link));
        for (link, local, _) in on_uplinks.take(MOST) {
            // An address of several links names none of them.
            let is_other = |(other, ip, _): &(u32, IpAddr, u8)| ip == local && other != link;
            if addresses.iter().any(is_other) {
                continue;
            }
            let mut ways = Ways {
                plain: netlink.way(far, Some(*local), None).await?,
                by_link: netlink.way(far, Some(*local), Some(*link)).await?,
                of_link: None,
            };
            if !is_v4 {
                ways.of_link = netlink.way(far, None, Some(*link)).await?;
            }
            let is_shared = routes
                .iter()
                .any(|route| route.links.len() > 1 && route.links.contains(link));
            exits.extend(exit(*local, *link, (&uplinks, is_shared), ways));
        }
    }
    Ok(exits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WG: u32 = 51_820;

    fn way(link: u32, table: u32) -> Option<Way> {
        let source = None;
        Some(Way {
            link,
            table,
            source,
        })
    }

    /// The exit of an address on link 3, where links 2 and 3 are uplinks.
    fn of(plain: Option<Way>, by_link: Option<Way>, of_link: Option<Way>) -> Option<Source> {
        let (local, uplinks) = ("2001:db8::3".parse().unwrap(), BTreeSet::from([2, 3]));
        let ways = Ways {
            plain,
            by_link,
            of_link,
        };
        exit(local, 3, (&uplinks, false), ways).map(|exit| exit.source)
    }

    #[test]
    fn the_link_is_named_where_the_main_table_leads_over_another_uplink() {
        assert_eq!(of(way(2, MAIN), way(3, MAIN), None), Some(Source::Named));
        // The kernel does so by itself; or it has no route at all.
        assert_eq!(of(way(3, MAIN), way(3, MAIN), None), None);
        assert_eq!(of(None, way(3, MAIN), None), None);
        // Without a route over the link IPv4 would look for the far host on the link itself: no table names it.
        assert_eq!(of(way(2, MAIN), way(3, 0), None), None);
    }

    #[test]
    fn what_a_rule_or_a_tunnel_takes_is_left_to_it() {
        assert_eq!(of(way(9, WG), way(3, MAIN), None), None);
        assert_eq!(of(way(9, MAIN), way(3, MAIN), None), None, "a tunnel");
        assert_eq!(of(way(3, 77), way(3, 77), None), None, "a rule by source");
    }

    #[test]
    fn ipv6_keeps_to_the_link_alone_where_the_kernel_chooses_that_address_on_it() {
        let local = "2001:db8::3".parse().ok();
        let with = |source| way(3, MAIN).map(|way| Way { source, ..way });
        let ask = |source| of(way(2, MAIN), way(2, MAIN), with(source));
        assert_eq!(ask(local), Some(Source::OfLink));
        assert_eq!(ask("2001:db8::4".parse().ok()), None, "a temporary one");
        assert_eq!(ask(None), None);
    }

    #[test]
    fn of_a_route_over_both_links_each_address_names_its_own() {
        let (local, uplinks) = ("192.0.2.3".parse().unwrap(), BTreeSet::from([2, 3]));
        let ways = Ways {
            plain: way(3, MAIN),
            by_link: way(3, MAIN),
            of_link: None,
        };
        assert!(exit(local, 3, (&uplinks, true), ways).is_some());
    }
}
