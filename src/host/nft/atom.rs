//! Keys and values of our sets and maps, as nft writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nftables::expr::{Expression, NamedExpression, Prefix, Range};

use crate::model::host::{Family, MapConfig, Proto};
use crate::model::mac;

/// One field of a key or value, in the spelling nft prints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// An address of either family.
    Addr(IpAddr),
    /// A prefix shorter than an address.
    Net(IpNet),
    /// A transport protocol.
    Proto(Proto),
    /// A port, in host byte order.
    Port(u16),
    /// Ports from the first to the last, more than one.
    Ports(u16, u16),
    /// Name of a network interface.
    Link(String),
    /// An address family.
    Family(Family),
    /// A hardware address.
    Mac([u8; 6]),
}

impl Atom {
    /// A prefix; one of full length is an address, as nft prints it.
    pub fn net(net: IpNet) -> Self {
        if net.prefix_len() == net.max_prefix_len() {
            Atom::Addr(net.addr())
        } else {
            Atom::Net(net.trunc())
        }
    }

    /// A range; one of a single port is that port, as nft prints it.
    pub fn ports(first: u16, last: u16) -> Self {
        if first == last {
            Atom::Port(first)
        } else {
            Atom::Ports(first, last)
        }
    }

    fn json(&self) -> Expression<'static> {
        match self {
            Atom::Addr(addr) => Expression::String(addr.to_string().into()),
            Atom::Net(net) => Expression::Named(NamedExpression::Prefix(Prefix {
                addr: Box::new(Expression::String(net.addr().to_string().into())),
                len: u32::from(net.prefix_len()),
            })),
            Atom::Proto(proto) => Expression::String(proto.to_string().into()),
            Atom::Port(port) => Expression::Number(u32::from(*port)),
            Atom::Ports(first, last) => Expression::Range(Box::new(Range {
                range: [
                    Expression::Number(u32::from(*first)),
                    Expression::Number(u32::from(*last)),
                ],
            })),
            Atom::Link(name) => Expression::String(name.clone().into()),
            Atom::Family(family) => Expression::String(family_word(*family).into()),
            Atom::Mac(_) => Expression::String(self.to_string().into()),
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Addr(addr) => write!(f, "{addr}"),
            Atom::Net(net) => write!(f, "{net}"),
            Atom::Proto(proto) => write!(f, "{proto}"),
            Atom::Port(port) => write!(f, "{port}"),
            Atom::Ports(first, last) => write!(f, "{first}-{last}"),
            Atom::Link(name) => write!(f, "\"{name}\""),
            Atom::Family(family) => f.write_str(family_word(*family)),
            Atom::Mac(mac) => f.write_str(&mac::text(*mac)),
        }
    }
}

/// The set that bars whole address families.
pub const FAMILIES: &str = "barred_all";

/// The set that counts what was refused of what was asked of the machine itself, by link.
pub const CLOSED: &str = "closed";

/// The sets that count what our rules refused of each workload: what it sent, by its link, and what was sent to it, by its
/// address. Where a packet is refused before it is routed, nobody knows yet by which link it would have left.
pub const REFUSED_FROM: &str = "refused_from";
/// See [`REFUSED_FROM`].
pub const REFUSED_TO: [&str; 2] = ["refused_to4", "refused_to6"];

/// Sets whose keys are links, or begin with one.
pub const BY_LINK: [&str; 22] = [
    "host_open",
    "host_ports",
    CLOSED,
    REFUSED_FROM,
    "links",
    "tuns",
    "workloads",
    "taps",
    "macs",
    "solicits",
    "flood",
    "over",
    "leases4",
    "leases6",
    "local4",
    "local6",
    "member4",
    "member6",
    "source4",
    "source6",
    "barred4",
    "barred6",
];

/// A family as nft spells it in `meta nfproto`.
pub fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// What the names of sets of that address's family end with.
pub fn version(addr: &IpAddr) -> &'static str {
    if addr.is_ipv4() { "4" } else { "6" }
}

/// A key or value: one atom or a concatenation.
pub type Tuple = Vec<Atom>;

/// A key and, in a map, its value.
pub type Entry = (Tuple, Option<Tuple>);

/// `a . b . c`, as nft writes a concatenation.
pub fn text(tuple: &[Atom]) -> String {
    tuple
        .iter()
        .map(Atom::to_string)
        .collect::<Vec<_>>()
        .join(" . ")
}

/// The tuple for a transaction in JSON.
pub fn json(tuple: &[Atom]) -> Expression<'static> {
    match tuple {
        [one] => one.json(),
        many => Expression::Named(NamedExpression::Concat(
            many.iter().map(Atom::json).collect(),
        )),
    }
}

/// The listening side of a port map: what tells one map from another in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapKey {
    /// The transport protocol; a map carries one.
    pub proto: Proto,
    /// Address listened on; unspecified: every local one of that family.
    pub listen: IpAddr,
    /// The port that the machine listens on.
    pub port: u16,
}

impl MapKey {
    /// The key of a map as it is configured.
    pub fn of(map: &MapConfig) -> Self {
        MapKey {
            proto: map.proto,
            listen: map.listen,
            port: map.port,
        }
    }

    /// The key as set elements have it: with the address for one address, without for all.
    pub(super) fn tuple(&self) -> Tuple {
        let tail = [Atom::Proto(self.proto), Atom::Port(self.port)];
        if self.listen.is_unspecified() {
            tail.to_vec()
        } else {
            [&[Atom::Addr(self.listen)], tail.as_slice()].concat()
        }
    }

    /// Reads the key back from an element of set `set` (`…any4`, `…exact6`).
    pub fn parse(set: &str, tuple: &[Atom]) -> Option<Self> {
        match tuple {
            [Atom::Proto(proto), Atom::Port(port)] => {
                let listen: IpAddr = if set.ends_with('6') {
                    Ipv6Addr::UNSPECIFIED.into()
                } else {
                    Ipv4Addr::UNSPECIFIED.into()
                };
                Some(MapKey {
                    proto: *proto,
                    listen,
                    port: *port,
                })
            }
            [Atom::Addr(listen), Atom::Proto(proto), Atom::Port(port)] => Some(MapKey {
                proto: *proto,
                listen: *listen,
                port: *port,
            }),
            _ => None,
        }
    }
}

impl fmt::Display for MapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.proto,
            std::net::SocketAddr::new(self.listen, self.port)
        )
    }
}
