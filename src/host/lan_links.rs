//! The links of this machine that other machines may be on, for whoever looks for LAN peers there: network cards, and
//! bridges, bonds and VLANs over them. Never a tunnel, a bridge that an engine made for containers, or a port of a bridge.

use ipnet::IpNet;
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::MulticastGroup;

use super::netlink::{Wake, local_address};
use super::outward::{Look, Outward};

/// The most links that are looked at: a machine with more has VLANs without number.
const MAX_LINKS: usize = 16;

/// A link with the addresses of this machine on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanLink {
    /// The kernel's index of it.
    pub index: u32,
    /// Its name, as `ip link` shows it.
    pub name: String,
    /// Its addresses that may be used, each with its network.
    pub networks: Vec<IpNet>,
}

/// The links that are up, carry multicast and may have LAN peers, at most 16, in the order of their indexes. Links that lead
/// out for certain are the only ones where there are such.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn lan_links() -> anyhow::Result<Vec<LanLink>> {
    let look = Look::take().await?;
    let worth = |index: u32| look.worth.get(&index).copied().unwrap_or(Outward::No);
    let mut found: Vec<(Outward, LanLink)> = look
        .links
        .iter()
        .filter(|link| carries_multicast(link))
        .filter_map(|link| {
            let index = link.header.index;
            let networks = look.addresses.iter().filter(|a| a.header.index == index);
            let networks: Vec<IpNet> = networks.filter_map(network).collect();
            let name = name_of(link)?;
            let link = LanLink {
                index,
                name,
                networks,
            };
            Some((worth(index), link))
                .filter(|(worth, link)| *worth != Outward::No && !link.networks.is_empty())
        })
        .collect();
    let best = found.iter().map(|(worth, _)| *worth).min();
    found.retain(|(worth, _)| Some(*worth) == best);
    found.sort_by_key(|(_, link)| link.index);
    found.truncate(MAX_LINKS);
    Ok(found.into_iter().map(|(_, link)| link).collect())
}

/// Whether a link is up, reaches several LAN peers, and is neither a port of another one nor ours.
fn carries_multicast(link: &LinkMessage) -> bool {
    let flags = link.header.flags;
    let wanted = LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Multicast;
    let unwanted = LinkFlags::Loopback | LinkFlags::Pointopoint;
    let is_other = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Controller(_) => true,
        LinkAttribute::IfAlias(alias) => alias.starts_with("byway:"),
        _ => false,
    };
    flags.contains(wanted) && !flags.intersects(unwanted) && !link.attributes.iter().any(is_other)
}

fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
}

/// An address with its network; none of one that may not be used (yet).
fn network(message: &AddressMessage) -> Option<IpNet> {
    let unsure = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if message.header.flags.intersects(unsure) {
        return None;
    }
    IpNet::new(local_address(message)?, message.header.prefix_len).ok()
}

/// Tells when links or addresses of this machine change; ends when it is dropped.
#[derive(Debug)]
pub struct LinkChanges(Wake);

impl LinkChanges {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel gives no socket for it.
    pub fn follow() -> anyhow::Result<LinkChanges> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        Ok(LinkChanges(Wake::follow(&groups, "links", |_| true)?))
    }

    /// Waits until a link or an address came, went or changed since the last time.
    ///
    /// # Cancel safety
    /// Nothing is lost where it is dropped.
    pub async fn changed(&self) {
        self.0.changed().await;
    }
}
