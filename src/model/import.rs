//! What a file says of workloads that come later: their names, addresses and port maps, and how it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::host::Proto;
use super::id::Name;
use super::local::Map;
use super::ports::PortRange;

/// What a subnet has by one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// What it has by the file now.
    pub now: Contents,
    /// What it had by the file before the last import; none once that was taken back.
    pub before: Option<Contents>,
}

/// What one reading of a file made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Workloads to come, by their names.
    pub planned: BTreeMap<Name, Planned>,
    /// The port maps that were made.
    pub maps: Vec<Map>,
    /// Names of those among the maps whose ports Docker publishes by itself while the workload is a container of its own.
    pub by_engine: BTreeSet<Name>,
    /// Prefixes that this node leased to itself for addresses outside its leases.
    pub leases: Vec<IpNet>,
}

/// A workload to come. Its name is this node's among the members and has no address until the workload is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Addresses that are kept for it, one of each family at most.
    pub addresses: Vec<IpAddr>,
    /// Names of its container, written as the name of a workload.
    pub containers: BTreeSet<Name>,
    /// The hardware address that it is to have; none where that follows from its name.
    pub mac: Option<[u8; 6]>,
    /// Further names that it gets when it comes.
    pub aliases: BTreeSet<String>,
}

/// A workload as a file asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: Name,
    /// What it is to have; of a family without an address here one is chosen.
    pub planned: Planned,
    /// Its port maps.
    pub maps: Vec<WantedMap>,
    /// Whether it is to have no address of IPv6 but those that are named.
    pub ipv4_only: bool,
    /// The line of the file that describes it, which refusals name.
    pub line: Option<u32>,
}

/// A message about a line of the file, where that is known.
pub fn of_line(line: Option<u32>, message: &str) -> String {
    match line {
        Some(line) => format!("line {line}: {message}"),
        None => message.to_owned(),
    }
}

/// A port map as a file asks for it. It listens on every address of both families where none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedMap {
    /// The transport protocol.
    pub proto: Proto,
    /// The address that the machine listens on.
    pub listen: Option<IpAddr>,
    /// The ports of the machine.
    pub ports: PortRange,
    /// The first of as many ports of the workload.
    pub target_port: u16,
    /// Whether Docker publishes the ports by itself while the workload is a container of its own.
    pub by_engine: bool,
}

impl Contents {
    /// Whether nothing was made.
    pub fn is_empty(&self) -> bool {
        *self == Contents::default()
    }
}
