//! Whether a member is still there whose grant ends unless somebody saw it: an ephemeral one, and one on trial. Who may renew it
//! asks it, which dials it where it is not connected, before the grant is left to end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Mesh, clock};
use crate::model::id::PeerId;
use crate::model::upkeep::awaited;
use crate::node::unix_now;

/// Time between two looks at grants that are due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time between two questions to a member that does not answer: a grant lasts for at least as many of them as there are minutes
/// in half of its life.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// The most members that are asked at one look; the others have their turn at the next.
const AT_ONCE: usize = 16;

/// Whose turn it is to be asked.
#[derive(Debug, Default)]
struct Turns {
    /// When each member that is awaited and away was last asked.
    asked: BTreeMap<PeerId, Instant>,
}

impl Turns {
    /// Those of the members that are awaited and away whom to ask now. Who was never asked is first, then who was not for
    /// longest: else those who are gone for good would be asked again and again, and whoever comes behind them never.
    fn due(&mut self, away: &BTreeSet<PeerId>, now: Instant) -> Vec<PeerId> {
        self.asked.retain(|peer, _| away.contains(peer));
        let last = |peer: &PeerId| self.asked.get(peer).copied();
        let is_due = |at: Instant| now >= at + ASK_EVERY;
        let due = away.iter().filter(|peer| last(peer).is_none_or(is_due));
        let mut due: Vec<PeerId> = due.copied().collect();
        due.sort_by_key(last);
        due.truncate(AT_ONCE);
        self.asked.extend(due.iter().map(|peer| (*peer, now)));
        due
    }
}

/// Asks until `stop`.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let mut turns = Turns::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let view = mesh.node.view().load_full();
        let me = mesh.peers.peer();
        let built = view.built.values();
        let awaited = built.flat_map(|built| awaited(built.resolved(), me, unix_now()));
        // Who is connected is seen anyway.
        let away = awaited
            .filter(|peer| !mesh.table.is_member(*peer))
            .collect();
        for peer in turns.due(&away, Instant::now()) {
            mesh.spawn(clock::compare(Arc::clone(&mesh), peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    #[test]
    fn however_many_are_gone_everybody_has_a_turn() {
        let (mut turns, start) = (Turns::default(), some_moment());
        let mut away: BTreeSet<PeerId> = (0..=255).map(|n| PeerId([n; 32])).collect();
        let mut asked: BTreeMap<PeerId, Vec<Instant>> = BTreeMap::new();
        for look in 0..64 {
            let now = start + LOOK_EVERY * look;
            let due = turns.due(&away, now);
            assert!(due.len() <= AT_ONCE);
            for peer in due {
                asked.entry(peer).or_default().push(now);
            }
        }
        // Nobody answers: each is asked as often as any other.
        assert_eq!(asked.len(), 256);
        assert!(asked.values().all(|times| times.len() == 4));
        // A few are not asked more often for being few, and who comes back is asked anew when it goes again.
        away.retain(|peer| peer.0[0] < 3);
        let now = start + LOOK_EVERY * 64;
        assert_eq!(turns.due(&away, now).len(), 3);
        assert!(turns.due(&away, now + LOOK_EVERY).is_empty());
        assert_eq!(turns.due(&away, now + ASK_EVERY).len(), 3);
        assert!(turns.due(&BTreeSet::new(), now + ASK_EVERY).is_empty());
        assert_eq!(turns.due(&away, now + ASK_EVERY).len(), 3);
    }
}
