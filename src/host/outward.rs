//! Which addresses of this machine lead out of it, so that peers are told of them: those of its network cards, and of a
//! bridge, a bond or a VLAN over one; never those of tunnels, nor of the bridges that engines make for containers.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Context;
use futures::TryStreamExt;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::netlink::{Netlink, local_address, plain};

/// What an address is good for where a peer looks for this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outward {
    /// Peers outside this machine may be reached by it.
    Yes,
    /// It may, where there is no better one of its family: a pair without a default route, a temporary address.
    Perhaps,
    /// It leads to this machine itself, or into a tunnel.
    No,
}

/// What is asked of a link.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Shape {
    index: u32,
    /// The kind that the kernel gives links without a device below them; none for a network card.
    kind: Option<InfoKind>,
    /// The bridge or bond that it is a port of.
    controller: Option<u32>,
    loopback: bool,
}

impl Shape {
    fn of(message: &LinkMessage) -> Shape {
        let mut shape = Shape {
            index: message.header.index,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            ..Shape::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Controller(index) => shape.controller = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    shape.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        shape
    }

    fn is_card(&self) -> bool {
        self.kind.is_none() && !self.loopback
    }
}

/// Whether links of that kind carry packets inside those of other links.
fn is_tunnel(kind: &InfoKind) -> bool {
    matches!(
        kind,
        InfoKind::Tun
            | InfoKind::Wireguard
            | InfoKind::SitTun
            | InfoKind::GreTun
            | InfoKind::GreTun6
            | InfoKind::GreTap
            | InfoKind::GreTap6
            | InfoKind::Vti
            | InfoKind::Vti6
            | InfoKind::Vxlan
            | InfoKind::Xfrm
    )
}

/// What each link is good for. `defaults`: the links that have a default route.
fn judge(links: &[Shape], defaults: &[u32]) -> HashMap<u32, Outward> {
    let of = |link: &Shape| {
        // A card, or what stands for one or more of them.
        let port = |port: &Shape| {
            let over_cards = matches!(port.kind, Some(InfoKind::Vlan | InfoKind::Bond));
            port.controller == Some(link.index) && (port.is_card() || over_cards)
        };
        match &link.kind {
            _ if link.loopback => Outward::No,
            None => Outward::Yes,
            Some(kind) if is_tunnel(kind) => Outward::No,
            Some(_) if defaults.contains(&link.index) => Outward::Yes,
            Some(InfoKind::Bridge) if links.iter().any(port) => Outward::Yes,
            Some(InfoKind::Bridge) => Outward::No,
            Some(InfoKind::Vlan | InfoKind::Bond) => Outward::Yes,
            Some(_) => Outward::Perhaps,
        }
    };
    links.iter().map(|link| (link.index, of(link))).collect()
}

async fn links(netlink: &Netlink) -> anyhow::Result<Vec<LinkMessage>> {
    let links = netlink.handle().link().get().execute();
    let links = links.try_collect().await;
    links.map_err(plain).context("list links")
}

/// The links and the addresses of this machine, listed together.
pub(super) struct Look {
    pub(super) links: Vec<LinkMessage>,
    pub(super) addresses: Vec<AddressMessage>,
    /// What each link is good for, by its index.
    pub(super) worth: HashMap<u32, Outward>,
}

impl Look {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(super) async fn take() -> anyhow::Result<Look> {
        let netlink = Netlink::open()?;
        let links = links(&netlink).await?;
        let shapes: Vec<Shape> = links.iter().map(Shape::of).collect();
        let worth = judge(&shapes, &netlink.default_links().await?);
        let addresses = netlink.handle().address().get().execute();
        let addresses = addresses.try_collect().await;
        Ok(Look {
            links,
            addresses: addresses.map_err(plain).context("list addresses")?,
            worth,
        })
    }
}

/// Indexes of the links that are tunnels, or may be: PPP is a line of a provider, or what a VPN makes.
pub(super) async fn tunnels(netlink: &Netlink) -> anyhow::Result<Vec<u32>> {
    let may_be = |kind: &InfoKind| {
        let is_other = matches!(kind, InfoKind::Other(name) if name == "ppp");
        let is_ip = matches!(kind, InfoKind::IpIp | InfoKind::Ip6Tnl | InfoKind::Gtp);
        is_tunnel(kind) || is_ip || is_other
    };
    let links = links(netlink).await?;
    let shapes = links.iter().map(Shape::of);
    let tunnels = shapes.filter(|shape| shape.kind.as_ref().is_some_and(may_be));
    Ok(tunnels.map(|shape| shape.index).collect())
}

/// Every address of this machine, and whether it leads out.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn outward() -> anyhow::Result<HashMap<IpAddr, Outward>> {
    let look = Look::take().await?;
    let of = |message: &AddressMessage| {
        let address = local_address(message)?;
        let link = look.worth.get(&message.header.index).copied()?;
        // Of IPv6 the flag of a secondary address means a temporary one.
        let flags = message.header.flags;
        let passing = address.is_ipv6() && flags.contains(AddressHeaderFlags::Secondary)
            || flags.contains(AddressHeaderFlags::Deprecated);
        let local = message.header.scope != AddressScope::Universe;
        Some((
            address,
            if passing || local {
                link.max(Outward::Perhaps)
            } else {
                link
            },
        ))
    };
    Ok(look.addresses.iter().filter_map(of).collect())
}

/// Chooses, of the addresses listened on, those that peers are told: the ones that lead out; in a family without any, those
/// that may lead out; if none is left, all.
pub fn keep_outward<T: Clone>(
    all: &[T],
    ip: impl Fn(&T) -> Option<IpAddr>,
    known: &HashMap<IpAddr, Outward>,
) -> Vec<T> {
    let judged = |item: &T| ip(item).and_then(|ip| Some((ip, *known.get(&ip.to_canonical())?)));
    let best = |v4: bool| {
        all.iter()
            .filter_map(judged)
            .filter(|(ip, _)| ip.is_ipv4() == v4)
            .map(|(_, outward)| outward)
            .min()
    };
    let best = [best(false), best(true)];
    let kept = |item: &&T| match judged(item) {
        // The kernel does not know it: it was configured, or is gone again.
        None => true,
        Some((ip, outward)) => {
            outward != Outward::No && best.get(usize::from(ip.is_ipv4())) == Some(&Some(outward))
        }
    };
    let kept: Vec<T> = all.iter().filter(kept).cloned().collect();
    if kept.is_empty() { all.to_vec() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: Option<InfoKind>, controller: Option<u32>) -> Shape {
        Shape {
            index,
            kind,
            controller,
            loopback: false,
        }
    }

    #[test]
    fn a_bridge_leads_out_where_a_card_is_its_port_and_one_of_an_engine_never_does() {
        let links = [
            link(2, None, Some(3)),
            link(3, Some(InfoKind::Bridge), None),
            link(4, Some(InfoKind::Bridge), None),
            link(5, Some(InfoKind::Veth), Some(4)),
            link(6, Some(InfoKind::Tun), None),
            link(7, Some(InfoKind::Wireguard), None),
            link(8, Some(InfoKind::Veth), None),
            link(9, Some(InfoKind::Veth), None),
            link(10, Some(InfoKind::Vlan), None),
        ];
        let judged = judge(&links, &[7, 9]);
        let of = |index: u32| judged.get(&index).copied().unwrap();
        assert_eq!(
            [2, 3, 4, 6, 7, 8, 9, 10].map(of),
            [
                Outward::Yes,
                Outward::Yes,
                Outward::No,
                Outward::No,
                Outward::No,
                Outward::Perhaps,
                Outward::Yes,
                Outward::Yes
            ]
        );
    }

    #[test]
    fn sixteen_bridges_of_engines_leave_room_for_the_card() {
        let mut known: HashMap<IpAddr, Outward> = (17..33)
            .map(|n| (IpAddr::from([172, n, 0, 1]), Outward::No))
            .collect();
        let card = IpAddr::from([192, 0, 2, 7]);
        let pair = IpAddr::from([10, 0, 0, 1]);
        known.insert(card, Outward::Yes);
        known.insert(pair, Outward::Perhaps);
        let mut all: Vec<IpAddr> = known.keys().copied().collect();
        assert_eq!(keep_outward(&all, |ip| Some(*ip), &known), [card]);
        known.remove(&card);
        all.retain(|ip| *ip != card);
        assert_eq!(keep_outward(&all, |ip| Some(*ip), &known), [pair]);
        known.remove(&pair);
        all.retain(|ip| *ip != pair);
        let kept = keep_outward(&all, |ip| Some(*ip), &known);
        assert_eq!(kept.len(), 16, "better than nothing");
    }

    #[test]
    fn a_family_without_a_way_out_is_judged_by_itself() {
        let (v4, v6) = (
            IpAddr::from([192, 0, 2, 7]),
            "fd00::7".parse::<IpAddr>().unwrap(),
        );
        let known = HashMap::from([(v4, Outward::Yes), (v6, Outward::Perhaps)]);
        assert_eq!(keep_outward(&[v4, v6], |ip| Some(*ip), &known), [v4, v6]);
    }

    #[tokio::test]
    async fn the_kernel_tells_of_every_address() {
        let known = outward().await.unwrap();
        assert_eq!(known.get(&IpAddr::from([127, 0, 0, 1])), Some(&Outward::No));
    }
}
