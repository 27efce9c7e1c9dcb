//! The names of one subnet, as the DNS server answers them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::id::Name;

/// One answer, without its owner name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordData {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME: a full name without the last dot, lower case.
    Cname(String),
    /// TXT: told in strings of at most 255 bytes (RFC 1035, section 3.3).
    Txt(String),
    /// SRV (RFC 2782): priority, weight, port, target (a full name, or a label of this zone).
    Srv {
        /// Lower is tried first.
        priority: u16,
        /// Share among equals.
        weight: u16,
        /// Port of the service.
        port: u16,
        /// Host that serves it.
        target: String,
    },
}

/// Characters of the longest name with its dots: 255 octets on the wire (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 253;
/// Seconds of the longest time to live (RFC 2181, section 8).
pub const MAX_TTL: u32 = i32::MAX as u32;
/// Bytes of the largest record set: what a message over TCP holds beside its header, the longest question, and EDNS.
pub const MAX_SET: usize = 65_535 - 12 - (255 + 4) - 11;
/// Bytes of a record beside its data: a pointer to the name, type, class, time to live and length.
const RECORD_HEAD: usize = 12;

impl RecordData {
    /// Bytes it takes in an answer, no name in it compressed.
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
    /// Seconds a client may keep it.
    pub ttl: u32,
    /// What is answered.
    pub data: RecordData,
}

/// Everything one subnet's server knows: names below `origin` and the reverse of every address.
///
/// Keys are lower case and relative to the origin (`web`, `_http._tcp`); they may hold dots. The origin itself is the
/// empty key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// `<subnet>.internal`, lower case, no last dot.
    pub origin: String,
    /// Serial of the SOA: grows with every change (RFC 1982).
    pub serial: u32,
    /// Relative name to its answers.
    pub names: BTreeMap<String, Vec<Entry>>,
    /// Address to the full name PTR gives (no last dot).
    pub pointers: BTreeMap<IpAddr, String>,
    /// Prefixes whose reverse zones this server is the authority for.
    pub prefixes: Vec<ipnet::IpNet>,
}

impl Zone {
    /// A zone without names.
    pub fn empty(origin: &Name) -> Zone {
        Zone {
            origin: format!("{origin}.internal"),
            serial: 1,
            names: BTreeMap::new(),
            pointers: BTreeMap::new(),
            prefixes: Vec::new(),
        }
    }
}
