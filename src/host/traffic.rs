//! What passed the links of workloads, as the kernel counts it at the machine's end of each pair.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::netlink::{Netlink, plain};

/// How the names of the machine's ends of pairs begin.
const OURS: &str = "bwv";

/// What one direction carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes, with the link's headers.
    pub bytes: u64,
    /// Packets; a super-packet counts once.
    pub packets: u64,
    /// Packets that the link lost.
    pub drops: u64,
}

/// What a workload sent and got over its link, since that was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What the workload sent.
    pub sent: Passed,
    /// What reached the workload.
    pub received: Passed,
}

/// The name of a link and what passed it; none where the kernel does not tell.
fn of(message: &LinkMessage) -> Option<(String, Traffic)> {
    let (mut name, mut traffic) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found.clone()),
            // What the workload sends comes in at the machine's end.
            LinkAttribute::Stats64(s) => {
                traffic = Some(Traffic {
                    sent: Passed {
                        bytes: s.rx_bytes,
                        packets: s.rx_packets,
                        drops: s.rx_dropped.saturating_add(s.rx_errors),
                    },
                    received: Passed {
                        bytes: s.tx_bytes,
                        packets: s.tx_packets,
                        drops: s.tx_dropped.saturating_add(s.tx_errors),
                    },
                });
            }
            _ => {}
        }
    }
    name.zip(traffic)
}

/// What passed one link of a workload; none where there is no such link.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn of_link(name: &str) -> anyhow::Result<Option<Traffic>> {
    let netlink = Netlink::open()?;
    let asked = netlink.handle().link().get().match_name(name.to_owned());
    let mut answer = Box::pin(asked.execute());
    // An error says that the link is gone.
    let found = answer.try_next().await.ok().flatten();
    Ok(found.as_ref().and_then(of).map(|(_, traffic)| traffic))
}

/// What passed every link of a workload, by the link's name.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn of_all() -> anyhow::Result<BTreeMap<String, Traffic>> {
    let netlink = Netlink::open()?;
    let mut answers = Box::pin(netlink.handle().link().get().execute());
    let mut all = BTreeMap::new();
    while let Some(message) = answers.try_next().await.map_err(plain)? {
        all.extend(of(&message).filter(|(name, _)| name.starts_with(OURS)));
    }
    Ok(all)
}
