//! Ports of the routers in front of this machine that lead to it: asked for by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP-IGD,
//! renewed, and given back. Of IPv6 no port is mapped: what is asked for there is a pinhole, by which the router's firewall lets
//! in what is sent to a port of this machine's own address. It is asked for, renewed and removed like any other port.
//!
//! [`Machine`] decides what is asked when, without a clock or a socket; [`carry_out`] asks it. What the router answers is not
//! trusted: times and sizes are bounded, only the gateways of default routes are spoken to, and what one opens is at most one
//! more address at which peers may look for this machine. Nothing waits for any of it.
//!
//! A [`Record`] of each port is to be saved before the port is asked for, so that what a killed daemon left is taken over, or
//! removed, later.
//!
//! | file | |
//! |---|---|
//! | `routers` | pure: a machine for each router, and what routers that are away may have open |
//! | `machine` | pure: what to ask one router, when to renew, what is owed; virtual time in its tests |
//! | `records` | what is saved of each port, and its file |
//! | `status` | what is said of all of it |
//! | `ask` | PCP and NAT-PMP, by crab_nat |
//! | `upnp` | UPnP-IGD |
//! | `pcp6` | PCP for pinholes: our own, since crab_nat cannot choose the address that it asks from |
//! | `upnp6` | UPnP for pinholes, by the means of `upnp` |

mod ask;
mod machine;
mod pcp6;
mod records;
mod routers;
mod status;
mod upnp;
mod upnp6;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use ask::{Asker, carry_out, close_all};
pub use machine::Machine;
pub use records::{Record, parse, text};
pub use routers::{MAX_ROUTERS, Routers};
pub use status::{Mapping, Status, Trouble};
#[cfg(any(fuzzing, test))]
pub use upnp::fuzz;

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP: datagrams of ours, and QUIC.
    Udp,
    /// TCP: streams where UDP does not pass.
    Tcp,
}

impl Transport {
    /// The word for people: `udp` or `tcp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

/// A port of this machine that peers are to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// What it carries.
    pub transport: Transport,
    /// Its number, which is not 0.
    pub number: u16,
}

/// The way a router is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// The Port Control Protocol, RFC 6887.
    Pcp,
    /// Its forerunner, RFC 6886.
    NatPmp,
    /// The Internet Gateway Device of UPnP.
    Upnp,
}

impl Protocol {
    /// Every protocol, in the order in which they are tried.
    pub const ALL: [Protocol; 3] = [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp];

    /// Those by which that router may be asked: NAT-PMP knows no IPv6.
    fn of(gateway: Gateway) -> &'static [Protocol] {
        match gateway.local {
            IpAddr::V4(_) => &Protocol::ALL,
            IpAddr::V6(_) => &[Protocol::Pcp, Protocol::Upnp],
        }
    }

    /// The word for programs: `pcp`, `nat-pmp` or `upnp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Pcp => "pcp",
            Protocol::NatPmp => "nat-pmp",
            Protocol::Upnp => "upnp",
        }
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Pcp => "PCP",
            Protocol::NatPmp => "NAT-PMP",
            Protocol::Upnp => "UPnP",
        }
    }
}

/// The gateway of a default route, and our address on its link; both are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gateway {
    /// Its address: of IPv6 mostly one of the link alone.
    pub address: IpAddr,
    /// Our address that it forwards to.
    pub local: IpAddr,
}

/// What is to be mapped at one router now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// Whether ports are to be mapped at all; where not, what was is removed.
    pub is_enabled: bool,
    /// The ports listened on, at most [`MAX_PORTS`] of which are mapped.
    pub ports: Vec<Port>,
    /// The router; none without a default route that has one.
    pub gateway: Option<Gateway>,
}

/// Ports that are mapped at most at each router.
pub const MAX_PORTS: usize = 4;

/// A question to the router that takes a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It is to open a port, or keep it open.
    Map {
        /// What is saved of it before it is asked for.
        record: Record,
        /// Seconds that it is asked to last; 0 for ever.
        lease: u32,
    },
    /// It is to close one.
    Remove(Record),
}

impl Order {
    /// The mapping that it is about.
    pub fn record(&self) -> &Record {
        match self {
            Order::Map { record, .. } | Order::Remove(record) => record,
        }
    }
}

/// What the router opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Where the port is reached, as the router says: of a pinhole our own address. It may be none that leads to it.
    pub external: SocketAddr,
    /// Seconds that it lasts; 0 for ever.
    pub lease: u32,
    /// Seconds since the router began to keep mappings, where it says so.
    pub epoch: Option<u32>,
}

/// Why the router opened nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// It does not speak the protocol, or does not answer in a way that makes sense.
    Silent,
    /// It speaks the protocol, and its answer to this question did not come: the port may be open all the same.
    Lost,
    /// Another machine has that external port.
    InUse,
    /// It opens ports for ever only (UPnP 725).
    PermanentOnly,
    /// It speaks the protocol and refuses.
    Refused(Why),
}

/// Why a router refuses; of several the last one here tells most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// For another reason than these, by the protocol's code.
    Code(u16),
    /// Its owner does not permit it.
    NotAuthorized,
    /// It has no room, or this machine has had its share.
    NoRoom,
    /// Every external port that was tried belongs to another machine.
    PortsInUse,
    /// What it would open does not last long enough to be renewed.
    ShortLease,
    /// It has no address outside now, or none that leads to it.
    NoAddress,
    /// Its firewall is off, so that there is nothing to open.
    FirewallOff,
    /// Its address outside is a private one, so it is behind another router.
    Inside(IpAddr),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::NotAuthorized => f.write_str("its settings do not permit it"),
            Why::NoRoom => f.write_str("it has no room for a further port"),
            Why::PortsInUse => f.write_str("the ports that were tried belong to other machines"),
            Why::ShortLease => f.write_str("what it opens does not last for 20 seconds"),
            Why::NoAddress => {
                f.write_str("it has no public address outside, so it may be behind another NAT")
            }
            Why::FirewallOff => {
                f.write_str("its firewall of IPv6 is off, so it lets everything in")
            }
            Why::Inside(ip) => write!(f, "its address outside, {ip}, is not public"),
            Why::Code(code) => write!(f, "it answers with error {code}"),
        }
    }
}

/// Whether an address is one that others reach over the Internet: neither private, nor shared by a carrier's customers
/// (100.64.0.0/10), nor of one link or machine. Of IPv6 it is one of 2000::/3, the global unicast addresses.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public4(address),
        IpAddr::V6(address) => is_public6(address),
    }
}

fn is_public6(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xe000 == 0x2000
}

fn is_public4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_shared = a == 100 && b & 0xc0 == 64;
    let is_reserved = a == 0 || a >= 240 || (a, b, c) == (192, 0, 0);
    !(is_shared
        || is_reserved
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_home_or_a_carrier_is_not_public() {
        for inside in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.254",
            "127.0.0.1",
            "169.254.1.1",
            "192.0.0.4",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "fd00::1",
            "::1",
            "::ffff:203.0.113.9",
            "ff02::1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "203.0.113.9",
            "100.128.0.1",
            "100.63.255.255",
            "192.0.2.1",
            "2001:db8::1",
            "2a00::1",
        ] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
