//! What the kernel lists, read from its messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::Nla as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, LinkAttribute, LinkFlags, LinkInfo as Info, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia,
};

use crate::model::host::{Link, PROTOCOL, Route};

/// A link, as the kernel lists it.
#[derive(Debug, Clone, Default)]
pub struct LinkInfo {
    /// Index of the link in its namespace.
    pub index: u32,
    /// Name of the link.
    pub name: String,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Index of the other end of a pair, in its own namespace.
    pub other_end: u32,
    /// The number that the other end's namespace has in this one.
    pub other_netns: Option<i32>,
    /// The attributes that the desired state is held against.
    pub link: Link,
}

/// A route as the kernel lists it, of whatever table.
pub(in crate::host) struct RouteInfo {
    pub(in crate::host) route: Route,
    pub(in crate::host) link: Option<u32>,
    /// All links of a route over several, and the only one of any other.
    pub(in crate::host) links: Vec<u32>,
    /// The kernel takes the least of two that lead to the same place.
    pub(in crate::host) metric: u32,
    /// Gateways of a route over several links, and of another family.
    pub(in crate::host) hops: Vec<IpAddr>,
    pub(in crate::host) ours: bool,
    pub(super) kind: RouteType,
}

pub(in crate::host) fn link_info(message: &LinkMessage) -> LinkInfo {
    let flags = message.header.flags;
    // The kernel leaves the other end's index out only where both are the same.
    let index = message.header.index;
    let mut info = LinkInfo {
        index,
        other_end: index,
        ..LinkInfo::default()
    };
    info.loopback = flags.contains(LinkFlags::Loopback);
    info.link.up = flags.contains(LinkFlags::Up);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => info.link.alias.clone_from(alias),
            LinkAttribute::Link(other) => info.other_end = *other,
            LinkAttribute::LinkNetNsId(number) => info.other_netns = Some(*number),
            LinkAttribute::LinkInfo(infos) => info.link.owner = tap_owner(infos),
            LinkAttribute::Carrier(carrier) => info.link.carrier = *carrier != 0,
            LinkAttribute::Mtu(mtu) => info.link.mtu = *mtu,
            LinkAttribute::TxQueueLen(length) => info.link.txqueuelen = *length,
            LinkAttribute::GsoMaxSize(size) => info.link.gso_max_size = *size,
            LinkAttribute::Address(mac) => info.link.mac = mac.as_slice().try_into().ok(),
            _ => {}
        }
    }
    info.link.name.clone_from(&info.name);
    info
}

/// `IFLA_TUN_OWNER`: the user who may open a TUN or TAP beside root, a number of 32 bits.
const IFLA_TUN_OWNER: u16 = 1;

fn tap_owner(infos: &[Info]) -> Option<u32> {
    let data = infos.iter().find_map(|info| match info {
        Info::Data(InfoData::Tun(all)) => Some(all),
        _ => None,
    })?;
    let owner = data.iter().find(|nla| nla.kind() == IFLA_TUN_OWNER)?;
    let mut bytes = [0; 4];
    if owner.value_len() != bytes.len() {
        return None;
    }
    owner.emit_value(&mut bytes);
    Some(u32::from_ne_bytes(bytes))
}

/// On a point-to-point link `IFA_ADDRESS` is the far end and `IFA_LOCAL` ours; IPv6 has no `IFA_LOCAL` elsewhere.
pub(in crate::host) fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

pub(in crate::host) fn route_info(message: &RouteMessage) -> Option<RouteInfo> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut table, mut destination, mut gateway, mut source) =
        (u32::from(message.header.table), unspecified, None, None);
    let (mut links, mut metric, mut hops) = (Vec::new(), 0, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Via(RouteVia::Inet6(address)) => hops.push(IpAddr::V6(*address)),
            RouteAttribute::MultiPath(several) => {
                links.extend(several.iter().map(|hop| hop.interface_index));
                hops.extend(several.iter().flat_map(|hop| &hop.attributes).filter_map(
                    |attribute| match attribute {
                        RouteAttribute::Gateway(address) => ip(address),
                        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
                        _ => None,
                    },
                ));
            }
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length)
        .ok()?
        .trunc();
    let ours = message.header.protocol == RouteProtocol::Other(PROTOCOL)
        && message.header.kind == RouteType::Unicast;
    let route = Route {
        table,
        destination,
        link: String::new(),
        gateway,
        source,
    };
    Some(RouteInfo {
        route,
        link: links.first().copied(),
        links,
        metric,
        hops,
        ours,
        kind: message.header.kind,
    })
}

pub(in crate::host) fn neighbour_of(message: &NeighbourMessage) -> Option<(u32, IpAddr, [u8; 6])> {
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })?;
    Some((message.header.ifindex, address, mac))
}
