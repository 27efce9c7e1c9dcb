//! What `netcheck` tells of the search on the local networks.

use serde::{Deserialize, Serialize};

/// How the search for peers on the local networks goes (mDNS), as counts since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanInfo {
    /// The links that are searched, by name.
    pub links: Vec<String>,
    /// Peers that were heard of there and may be there still.
    pub peers: usize,
    /// Questions sent, each once for all families of a link.
    pub asked: u64,
    /// Messages with answers sent.
    pub told: u64,
    /// Messages of others that were looked at.
    pub heard: u64,
    /// Messages that were dropped: of none on the link, too many, unreadable, forged, or without an address of the link.
    pub dropped: u64,
}
