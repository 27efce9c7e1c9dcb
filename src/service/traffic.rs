//! What travels beside connections: sealed datagrams, ours and those that are forwarded. Whoever they travel with is not let
//! go, though its connections lie idle; a member that is let go loses its datagram session with its connection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Mesh;
use crate::model::id::PeerId;
use crate::p2p::Command;

/// Time between two looks at the counters: what is in use is to be told every 20 s.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long ago a packet may have travelled for its datagram session to outlive the peer's last connection.
const RECENT: Duration = Duration::from_secs(60);

/// When packets last travelled to or from each peer. At most one entry for each peer with a link, or that was connected just now.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<BTreeMap<PeerId, Flow>>);

/// What is known of one peer's packets.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    packets: u64,
    /// When their number last changed, or the peer was connected; none where no packet was ever counted.
    moved: Option<Instant>,
}

impl Traffic {
    /// Takes the packets counted of each peer since the start; the peers with which some travelled since the last call.
    fn count(&self, counted: BTreeMap<PeerId, u64>, now: Instant) -> Vec<PeerId> {
        let mut flows = self.0.lock();
        let is_recent = |flow: &Flow| flow.moved.is_some_and(|at| now < at + RECENT);
        flows.retain(|peer, flow| counted.contains_key(peer) || is_recent(flow));
        let mut moved = Vec::new();
        for (peer, packets) in counted {
            let flow = flows.entry(peer).or_default();
            if flow.packets != packets {
                (flow.packets, flow.moved) = (packets, Some(now));
                moved.push(peer);
            }
        }
        moved
    }

    /// A member is connected, for what is about to travel.
    pub(super) fn begins(&self, peer: PeerId, now: Instant) {
        let mut flows = self.0.lock();
        let flow = flows.entry(peer).or_default();
        flow.moved = Some(now);
    }

    /// Whether packets travelled to or from a peer within the last minute, to [`LOOK_EVERY`], or it was connected in that time.
    pub(super) fn is_recent(&self, peer: PeerId, now: Instant) -> bool {
        let moved = self.0.lock().get(&peer).and_then(|flow| flow.moved);
        moved.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }
}

/// What was forwarded as of the last look: the bytes of each relayed session here, in both directions.
#[derive(Debug, Default)]
struct Forwarded(BTreeMap<[PeerId; 2], [u64; 2]>);

impl Forwarded {
    /// Takes what was forwarded by now; the peers of the sessions that are new, or over which something travelled since.
    fn count(&mut self, sessions: BTreeMap<[PeerId; 2], [u64; 2]>) -> Vec<PeerId> {
        let busy = sessions
            .iter()
            .filter(|(peers, bytes)| self.0.get(*peers) != Some(bytes));
        let busy = busy.flat_map(|(peers, _)| *peers).collect();
        self.0 = sessions;
        busy
    }
}

/// Looks at the counters until `stop`.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let mut forwarded = Forwarded::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let moved = mesh.traffic.count(mesh.links.packets(), Instant::now());
        let mut in_use: BTreeSet<PeerId> = mesh.relays.leads(&moved).into_iter().collect();
        in_use.extend(moved);
        let sessions = mesh.links.relay().sessions().into_iter();
        in_use.extend(forwarded.count(sessions.map(|s| (s.peers, s.bytes)).collect()));
        for peer in in_use {
            mesh.peers.send(Command::InUse { peer }).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    #[test]
    fn both_ends_of_a_relayed_session_are_in_use_while_something_is_forwarded() {
        let mut forwarded = Forwarded::default();
        let [a, b, c] = [1, 2, 3].map(|n| PeerId([n; 32]));
        let mut count = |one: [u64; 2], other: [u64; 2]| {
            let sessions = [([a, b], one), ([b, c], other)];
            forwarded.count(sessions.into())
        };
        // A session that was just made is about to be used.
        assert_eq!(count([0, 0], [0, 0]), [a, b, b, c]);
        assert_eq!(count([0, 0], [0, 7]), [b, c], "one direction is enough");
        assert!(count([0, 0], [0, 7]).is_empty(), "idle");
        assert_eq!(count([9, 0], [0, 7]), [a, b]);
        assert!(forwarded.count(BTreeMap::new()).is_empty());
        assert!(forwarded.0.is_empty(), "one that is over is forgotten");
    }

    #[test]
    fn a_peer_is_in_use_while_its_packets_grow_in_number() {
        let (traffic, start) = (Traffic::default(), some_moment());
        let (a, b) = (PeerId([1; 32]), PeerId([2; 32]));
        assert_eq!(traffic.count([(a, 7), (b, 0)].into(), start), [a]);
        assert!(traffic.is_recent(a, start) && !traffic.is_recent(b, start));
        let later = start + RECENT;
        assert!(traffic.count([(a, 7), (b, 0)].into(), later).is_empty());
        assert!(!traffic.is_recent(a, later));
        assert_eq!(traffic.count([(b, 1)].into(), later), [b]);
        assert_eq!(
            traffic.0.lock().len(),
            1,
            "a link that is gone is forgotten"
        );
        traffic.begins(a, later);
        assert!(traffic.is_recent(a, later) && !traffic.is_recent(a, later + RECENT));
    }
}
