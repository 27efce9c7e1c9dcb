//! Whoever wants to measure the way to an idle member has it dialled first: packets that wait would do the same.

use std::time::{Duration, Instant};

use super::Commands;
use crate::link::Key;
use crate::service::ping;

/// Time between two looks whether something carries packets.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Has a member dialled that this node holds no connection to, and waits at most `limit` until something carries packets to it.
/// Whoever is held is dialled anyway: where it is not connected nothing is waited for.
pub(super) async fn wake(ctx: &Commands, key: Key, limit: Duration) {
    let carries = || {
        let by_stream = ctx.links.connection(key).is_some();
        by_stream || ctx.links.link(key).load_route().is_some()
    };
    if ctx.peers.holds(key.peer) || carries() {
        return;
    }
    let begun = Instant::now();
    // Whoever does not answer is not there: the measurement tells of it.
    let answered = ping::ping(&ctx.mesh.service, key.peer, limit).await;
    while answered.is_ok() && begun.elapsed() < limit && !carries() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
