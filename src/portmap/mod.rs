//! Ports of the router in front of this machine that lead to it: asked for by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP-IGD,
//! renewed, and given back.
//!
//! [`Machine`] decides what is asked when, without a clock or a socket; [`carry_out`] asks it. What the router answers is not
//! trusted: times and sizes are bounded, only the gateway of the default route is spoken to, and what it opens is one more
//! address at which peers may look for this machine. Nothing waits for any of it.
//!
//! A [`Record`] of each port is to be saved before the port is asked for, so that what a killed daemon left is taken over, or
//! removed, later.
//!
//! IPv4 only: an IPv6 address needs no mapping, and a firewall that would open for PCP is not asked to.
//!
//! | file | |
//! |---|---|
//! | `machine` | pure: what to ask, when to renew, what is owed; virtual time in its tests |
//! | `records` | what is saved of each port, and its file |
//! | `status` | what is said of all of it |
//! | `ask` | PCP and NAT-PMP, by crab_nat |
//! | `upnp` | UPnP-IGD, by igd-next |

mod ask;
mod machine;
mod records;
mod status;
mod upnp;

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

pub use ask::{Asker, carry_out, close_all};
pub use machine::Machine;
pub use records::{Record, parse, text};
pub use status::{Mapping, Status, Trouble};

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

/// The gateway of the default route, and our address on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gateway {
    /// Its address.
    pub address: Ipv4Addr,
    /// Our address that it forwards to.
    pub local: Ipv4Addr,
}

/// What is to be mapped now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// Whether ports are to be mapped at all; where not, what was is removed.
    pub is_enabled: bool,
    /// The ports listened on, at most [`MAX_PORTS`] of which are mapped.
    pub ports: Vec<Port>,
    /// The router; none without an IPv4 default route that has one.
    pub gateway: Option<Gateway>,
}

/// Ports that are mapped at most.
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

/// What the router opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Where the port is reached, as the router says. The address may be none that leads to it.
    pub external: SocketAddrV4,
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
    /// Its address outside is a private one, so it is behind another router.
    Inside(Ipv4Addr),
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
            Why::Inside(ip) => write!(f, "its address outside, {ip}, is not public"),
            Why::Code(code) => write!(f, "it answers with error {code}"),
        }
    }
}

/// Whether an address is one that others reach over the Internet: neither private, nor shared by a carrier's customers
/// (100.64.0.0/10), nor of one link or machine.
pub fn is_public(address: Ipv4Addr) -> bool {
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
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["203.0.113.9", "100.128.0.1", "100.63.255.255", "192.0.2.1"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
