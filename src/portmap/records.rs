//! What is saved of each port that a router was asked for.

use serde::{Deserialize, Serialize};

use super::routers::MAX_SAVED;
use super::{Gateway, Port, Protocol};

/// Records of one router that are kept at most.
pub(super) const MAX_RECORDS: usize = 16;
/// Records of routers that are away: those that are never met again must not fill the file.
pub(super) const MAX_AWAY: usize = 16;

/// A port that a router may have opened for this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The router, and our address there.
    pub gateway: Gateway,
    /// How it was asked.
    pub protocol: Protocol,
    /// Our port.
    pub port: Port,
    /// The router's port: the one that was asked for until it says which it took.
    pub external: u16,
    /// What PCP knows the mapping by: without it nobody removes it.
    pub nonce: [u32; 3],
    /// Until when the router keeps it, in seconds since 1970; `u64::MAX` for ever.
    pub until: u64,
}

impl Record {
    /// Whether both are about one mapping of one router.
    pub(super) fn is_same(&self, other: &Record) -> bool {
        (self.gateway, self.protocol, self.port) == (other.gateway, other.protocol, other.port)
    }
}

/// The file of these records; none where there is nothing to keep.
///
/// # Errors
/// None that is known: the records are plain numbers.
pub fn text(records: &[Record]) -> serde_json::Result<Option<Vec<u8>>> {
    if records.is_empty() {
        return Ok(None);
    }
    serde_json::to_vec_pretty(records).map(Some)
}

/// The records in such a file: as many as there may be.
///
/// # Errors
/// It is no such file.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Vec<Record>> {
    let mut records: Vec<Record> = serde_json::from_slice(bytes)?;
    records.truncate(MAX_SAVED);
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::super::Transport;
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written_and_nonsense_is_refused() {
        let record = Record {
            gateway: Gateway {
                address: "192.168.1.1".parse().unwrap(),
                local: "192.168.1.7".parse().unwrap(),
            },
            protocol: Protocol::NatPmp,
            port: Port {
                transport: Transport::Udp,
                number: 4100,
            },
            external: 4101,
            nonce: [1, 2, u32::MAX],
            until: u64::MAX,
        };
        let bytes = text(&[record]).unwrap().unwrap();
        assert_eq!(parse(&bytes).unwrap(), [record]);
        let shown = String::from_utf8(bytes).unwrap();
        assert!(shown.contains("\"nat-pmp\"") && shown.contains("\"udp\""));
        let many = text(&[record; 400]).unwrap().unwrap();
        assert_eq!(parse(&many).unwrap().len(), MAX_SAVED);
        assert_eq!(text(&[]).unwrap(), None);
        for bad in [&b""[..], b"{}", b"[1]", b"[{\"gateway\":\"x\"}]", b"\xff"] {
            assert!(parse(bad).is_err());
        }
    }
}
