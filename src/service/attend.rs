//! Whether a member is still there whose grant ends unless somebody saw it: an ephemeral one, and one on trial. Who may renew it
//! asks it, which dials it where it is not connected, before the grant is left to end.

use std::collections::BTreeMap;
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

/// Asks until `stop`.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let mut asked: BTreeMap<PeerId, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let now = Instant::now();
        asked.retain(|_, at| now < *at + ASK_EVERY);
        let view = mesh.node.view().load_full();
        let me = mesh.peers.peer();
        let built = view.built.values();
        let awaited = built.flat_map(|built| awaited(built.resolved(), me, unix_now()));
        // Who is connected is seen anyway.
        let away = awaited.filter(|peer| !mesh.table.is_member(*peer));
        let due: Vec<PeerId> = away.filter(|peer| !asked.contains_key(peer)).collect();
        for peer in due.into_iter().take(AT_ONCE) {
            asked.insert(peer, now);
            mesh.spawn(clock::compare(Arc::clone(&mesh), peer));
        }
    }
}
