//! The names of one subnet, as the DNS server answers them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::chunks::Chunks;
use super::id::Name;

/// One answer, without its owner name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordData {
    /// An address: A of IPv4, AAAA of IPv6.
    Address(IpAddr),
    /// CNAME: a full name without the last dot, lower case.
    Cname(String),
    /// TXT: told in strings of at most 255 bytes (RFC 1035, section 3.3).
    Txt(String),
    /// SRV (RFC 2782): priority, weight, port, target (a full name, or a label of this zone).
    Srv {
        /// The lower, the earlier it is tried.
        priority: u16,
        /// The share of clients it gets among entries of one priority.
        weight: u16,
        /// The port that the service listens on.
        port: u16,
        /// The host that serves it.
        target: String,
    },
}

/// Characters of the longest name with its dots: 255 octets on the wire (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 253;
/// Longest time to live, in seconds (RFC 2181, section 8).
pub const MAX_TTL: u32 = i32::MAX as u32;
/// Bytes of the largest record set: what a message over TCP holds beside its header, the longest question, and EDNS.
pub const MAX_SET: usize = 65_535 - 12 - (255 + 4) - 11;
/// Bytes of a record beside its data: a pointer to the name, type, class, time to live and length.
const RECORD_HEAD: usize = 12;

impl RecordData {
    /// How many bytes it takes in an answer, no name in it compressed.
    pub fn size(&self) -> usize {
        let name = |name: &str| name.len().saturating_add(2);
        let data = match self {
            RecordData::Address(IpAddr::V4(_)) => 4,
            RecordData::Address(IpAddr::V6(_)) => 16,
            RecordData::Cname(target) => name(target),
            RecordData::Txt(text) => text.len().saturating_add(text.len().div_ceil(255).max(1)),
            RecordData::Srv { target, .. } => name(target).saturating_add(6),
        };
        data.saturating_add(RECORD_HEAD)
    }

    /// The record type's name: `A`, `AAAA`, `CNAME`, `TXT`, `SRV`.
    pub fn kind(&self) -> &'static str {
        match self {
            RecordData::Address(IpAddr::V4(_)) => "A",
            RecordData::Address(IpAddr::V6(_)) => "AAAA",
            RecordData::Cname(_) => "CNAME",
            RecordData::Txt(_) => "TXT",
            RecordData::Srv { .. } => "SRV",
        }
    }
}

/// One answer with its time to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How long a client may keep the answer, in seconds.
    pub ttl: u32,
    /// The answer of the name.
    pub data: RecordData,
}

/// Everything one subnet's server knows: names below `origin` and the reverse of every address. A copy shares what both
/// have in common.
///
/// Names are lower case and relative to the origin (`web`, `_http._tcp`); they may hold dots. The origin itself is the
/// empty name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Domain of the zone: `<subnet>.internal`, lower case, no last dot.
    pub origin: String,
    /// Serial of the SOA: grows with every change (RFC 1982).
    pub serial: u32,
    /// Prefixes whose reverse zones this server is the authority for.
    pub prefixes: Vec<ipnet::IpNet>,
    names: Chunks<Arc<str>, Arc<[Entry]>>,
    /// Names that have names below them, with how many.
    parents: Chunks<Arc<str>, usize>,
    pointers: Chunks<IpAddr, Arc<str>>,
}

impl Zone {
    /// Makes a zone without names; `prefixes` are those it answers the reverse of.
    pub fn new(origin: String, prefixes: Vec<ipnet::IpNet>) -> Zone {
        let (names, parents, pointers) = Default::default();
        Zone {
            origin,
            serial: 1,
            prefixes,
            names,
            parents,
            pointers,
        }
    }

    /// The zone `NAME.internal`, without names and prefixes.
    pub fn empty(origin: &Name) -> Zone {
        Zone::new(format!("{origin}.internal"), Vec::new())
    }

    /// The answers of a name; none where it has none or does not exist.
    pub fn entries(&self, name: &str) -> &[Entry] {
        self.names.get(name).map(AsRef::as_ref).unwrap_or_default()
    }

    /// Whether there are names below this one.
    pub fn is_parent(&self, name: &str) -> bool {
        self.parents.contains_key(name)
    }

    /// All names that have answers, each with them.
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<[Entry]>)> {
        self.names.iter()
    }

    /// The full name PTR gives for an address (no last dot).
    pub fn pointer(&self, address: IpAddr) -> Option<&str> {
        self.pointers.get(&address).map(AsRef::as_ref)
    }

    /// Whether any address from `first` to `last` has a name.
    pub fn has_pointer(&self, first: IpAddr, last: IpAddr) -> bool {
        self.pointers
            .from(&first)
            .next()
            .is_some_and(|(address, _)| *address <= last)
    }

    /// Gives a name these answers instead of those it had.
    pub fn set(&mut self, name: &str, entries: Arc<[Entry]>) {
        if self.names.insert(name.into(), entries).is_none() {
            self.count(name, |below| below.saturating_add(1));
        }
    }

    /// Adds an answer to those a name has.
    pub fn add(&mut self, name: &str, entry: Entry) {
        let all = self.entries(name).iter().cloned().chain([entry]).collect();
        self.set(name, all);
    }

    /// Takes a name away with all its answers.
    pub fn remove(&mut self, name: &str) {
        if self.names.remove(name).is_some() {
            self.count(name, |below| below.saturating_sub(1));
        }
    }

    /// Changes how many names are below each that `name` is below.
    fn count(&mut self, name: &str, change: impl Fn(usize) -> usize) {
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            let below = change(self.parents.get(parent).copied().unwrap_or(0));
            if below == 0 {
                self.parents.remove(parent);
            } else {
                self.parents.insert(parent.into(), below);
            }
            rest = parent;
        }
    }

    /// Gives an address its full name.
    pub fn point(&mut self, address: IpAddr, name: Arc<str>) {
        let _ = self.pointers.insert(address, name);
    }

    /// Takes away the name of an address.
    pub fn unpoint(&mut self, address: IpAddr) {
        let _ = self.pointers.remove(&address);
    }
}
