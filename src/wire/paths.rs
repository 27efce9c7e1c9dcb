//! What two members tell each other so that datagrams find a way: where each may be, and what stands before it.
//!
//! One [`Paths`] goes over the control stream whole, whenever something in it changed, and is answered with the other side's.
//! It belongs to the two peers, not to a subnet. Nothing in it is believed before an authenticated probe was answered: an
//! address is a place to try, and the facts choose a strategy and a reason to show.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The most addresses that one message tells; what is beyond is not read.
pub const MAX_CANDIDATES: usize = 16;

/// How a node came to know an address of its own, or of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// An interface of the node has it.
    Host,
    /// The node's configuration says so.
    Advertised,
    /// A router opened it for the node (PCP, NAT-PMP, UPnP).
    Mapped,
    /// Others see the node's datagrams come from there.
    Observed,
    /// A NAT that counts its ports up is expected to use it next.
    Predicted,
    /// A leg at a relay leads there: shown of what was tried, never told as an address.
    Relay,
}

impl Kind {
    /// The most addresses of this kind that are told and tried of one node; of [`Host`](Kind::Host) in each family.
    pub fn quota(self) -> usize {
        match self {
            Kind::Host => 4,
            Kind::Observed => 3,
            Kind::Advertised | Kind::Mapped | Kind::Relay => 2,
            Kind::Predicted => 1,
        }
    }
}

/// An address that a node may be reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// Where datagrams are to be sent.
    pub address: SocketAddr,
    /// How the node came to know it.
    pub kind: Kind,
}

/// How the NAT before a node chooses the address that a datagram leaves from (RFC 4787, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Mapping {
    /// Fewer than two others have said where they see the node.
    #[default]
    Unknown,
    /// Others see an address of the node itself: there is no NAT.
    Open,
    /// The same one for every destination.
    Independent,
    /// Another one for another destination.
    Dependent {
        /// By how much the port differs from one to the next, where that is always the same.
        step: Option<i16>,
    },
}

/// What the NAT or firewall before a node lets in (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Filtering {
    /// It was not tested, or the test told nothing.
    #[default]
    Unknown,
    /// Datagrams come in from everywhere.
    Independent,
    /// They come in only from addresses and ports that the node has sent to.
    AddressAndPortDependent,
    /// They come in from every port of an address that the node has sent to.
    AddressDependent,
}

impl Filtering {
    /// Whether it lets a datagram in that comes from a port nobody can name, of an address that the node sends to: such is
    /// what a peer behind a symmetric NAT sends. What is not known is not counted on.
    pub fn lets_in_any_port(self) -> bool {
        matches!(self, Filtering::Independent | Filtering::AddressDependent)
    }
}

/// Whether UDP passes between a node and others at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Udp {
    /// Nothing was tried yet that would tell.
    #[default]
    Unknown,
    /// Datagrams were answered.
    Works,
    /// Streams connect and no datagram was ever answered.
    Blocked,
    /// The node opens no UDP port: its owner wants it so.
    Off,
}

/// What stands between a node and the others, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NatFacts {
    /// How the NAT maps.
    pub mapping: Mapping,
    /// What comes in unasked.
    pub filtering: Filtering,
    /// Whether datagrams pass.
    pub udp: Udp,
    /// Whether the node has an IPv4 address that leads out of its machine.
    pub ip4: bool,
    /// Whether it has an IPv6 address that leads out.
    pub ip6: bool,
}

/// Where a node may be reached, and what stands before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Paths {
    /// Addresses, best first; the first [`MAX_CANDIDATES`] are read.
    pub candidates: Vec<Candidate>,
    /// What stands before the node.
    pub facts: NatFacts,
    /// Where the sender probes now and the receiver is to do the same: in how many milliseconds, so that both begin at the
    /// same moment.
    pub probe: Option<u16>,
}

/// The first candidates of each kind that may be used, as many as [`Kind::quota`] says, none twice.
pub fn within_quotas(
    all: impl Iterator<Item = Candidate>,
    usable: impl Fn(SocketAddr) -> Option<SocketAddr>,
) -> Vec<Candidate> {
    let mut taken: Vec<Candidate> = Vec::new();
    for Candidate { address, kind } in all {
        let Some(address) = usable(address) else {
            continue;
        };
        let counts = |other: &&Candidate| {
            other.kind == kind
                && (kind != Kind::Host || other.address.is_ipv4() == address.is_ipv4())
        };
        if taken.iter().filter(counts).count() < kind.quota()
            && taken.len() < MAX_CANDIDATES
            && taken.iter().all(|other| other.address != address)
        {
            taken.push(Candidate { address, kind });
        }
    }
    taken
}
