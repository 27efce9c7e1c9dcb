//! Whether this machine's clock can be believed: it is compared with every connected member's, at connect, every 30 s,
//! and at once when it was set.
//!
//! Nothing waits for the clocks to agree. While most members' differ from this one, nothing is signed that a time decides,
//! and both ends say so; once they agree, what has ended may be forgotten.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Context;
use crate::api::types::Problem;
use crate::model::id::PeerId;
use crate::node::{unix_now, unix_now_ms};
use crate::p2p::Protocol;
use crate::wire::control::{self, ControlAnswer, ControlRequest};

/// Between two comparisons with one member.
const EVERY: Duration = Duration::from_secs(30);
/// Difference above which one of two clocks is wrong, and by which a clock is taken to have been set.
const MOST: Duration = Duration::from_secs(60);
/// How long an answer tells something.
const FRESH: Duration = Duration::from_secs(90);
/// For one question.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far other members' clocks are ahead of this machine's, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    offsets: Mutex<BTreeMap<PeerId, (i64, Instant)>>,
}

impl Clocks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, (i64, Instant)>> {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, peer: PeerId, offset: i64) {
        self.lock().insert(peer, (offset, Instant::now()));
    }

    /// What is known of members that are connected.
    fn fresh(&self, connected: &[PeerId]) -> Vec<(PeerId, i64)> {
        let mut held = self.lock();
        held.retain(|peer, (_, at)| at.elapsed() < FRESH && connected.contains(peer));
        held.iter().map(|(peer, (offset, _))| (*peer, *offset)).collect()
    }
}

fn is_off(offset: i64) -> bool {
    offset.unsigned_abs() > u64::try_from(MOST.as_millis()).unwrap_or(u64::MAX)
}

/// Whether most clocks differ from this one, and whether most agree with it. Without any neither holds.
fn verdict(offsets: &[(PeerId, i64)]) -> (bool, bool) {
    let off = offsets.iter().filter(|(_, offset)| is_off(*offset)).count();
    let agree = offsets.len().saturating_sub(off);
    (off > agree, agree > off)
}

/// Compares, and notices when the clock is set.
pub(crate) async fn run(ctx: Context, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last = (unix_now_ms(), Instant::now());
    let mut compared = Instant::now();
    let mut unsure = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let now = (unix_now_ms(), Instant::now());
        let passed = u64::try_from(now.1.duration_since(last.1).as_millis()).unwrap_or(u64::MAX);
        let set = now.0.abs_diff(last.0.saturating_add(passed)) > 2000;
        last = now;
        if set {
            // What was known of the others was measured by a clock that is no more.
            ctx.clocks.lock().clear();
        }
        let members = ctx.table.members();
        if set || compared.elapsed() >= EVERY {
            compared = Instant::now();
            for peer in members.clone() {
                tokio::spawn(compare(ctx.clone(), peer));
            }
        }
        let known = ctx.clocks.fresh(&members);
        let (off, agree) = verdict(&known);
        // Until somebody has answered, a clock that was just set far away is not believed.
        unsure = (unsure || set) && !members.is_empty() && known.is_empty();
        let doubted = off || unsure;
        ctx.node
            .run(move |core| {
                core.attendance.clock_is_off = doubted;
                core.attendance.seen = members.into_iter().collect();
                core.forget_before = agree.then(unix_now);
            })
            .await?;
    }
}

/// Asks one member what time it is.
pub(crate) async fn compare(ctx: Context, peer: PeerId) {
    let (asked, began) = (unix_now_ms(), Instant::now());
    let question = control::encode(&ControlRequest::Clock { now_ms: asked });
    let Ok(answer) = ctx.peers.ask(peer, Protocol::Control, question, PATIENCE).await else { return };
    if let Ok(ControlAnswer::Clock { now_ms }) = control::decode(&answer) {
        // By the time that passed, since the clock may have been set meanwhile: then the next comparison tells.
        let passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(0);
        if unix_now_ms().abs_diff(asked.saturating_add(passed)) < 2000 {
            ctx.clocks.note(peer, difference(now_ms, asked.saturating_add(passed / 2)));
        }
    }
}

/// Answers a member that compares, and learns from its question as well.
pub(crate) fn answer(ctx: &Context, peer: PeerId, theirs_ms: u64) -> ControlAnswer {
    let now_ms = unix_now_ms();
    ctx.clocks.note(peer, difference(theirs_ms, now_ms));
    ControlAnswer::Clock { now_ms }
}

fn difference(theirs: u64, ours: u64) -> i64 {
    let size = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs >= ours { size } else { -size }
}

/// What `status` says of clocks that differ.
pub(crate) fn problems(ctx: &Context, name: impl Fn(PeerId) -> String) -> Vec<Problem> {
    let known = ctx.clocks.fresh(&ctx.table.members());
    let (mine, _) = verdict(&known);
    let told = known.into_iter().filter(|(_, offset)| is_off(*offset)).map(|(peer, offset)| Problem {
        code: "E-CLOCK".into(),
        severity: if mine { "error" } else { "warning" }.into(),
        message: format!(
            "the clock of {} is {} {} this machine's",
            name(peer),
            span(offset.unsigned_abs() / 1000),
            if offset > 0 { "ahead of" } else { "behind" }
        ),
        help: if mine {
            "set this machine's clock (timedatectl set-ntp true); until then no grants are renewed here".into()
        } else {
            format!("set the clock of {} (there: timedatectl set-ntp true)", name(peer))
        },
    });
    told.collect()
}

/// Seconds as people say them.
fn span(seconds: u64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s if s >= 2 * 3600 => format!("{} hours", s / 3600),
        s if s >= 120 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_members_decide_whose_clock_is_wrong() {
        let peer = |n: u8| PeerId([n; 32]);
        let day = 86_400_000;
        assert_eq!(verdict(&[]), (false, false));
        assert_eq!(verdict(&[(peer(1), 900)]), (false, true));
        assert_eq!(verdict(&[(peer(1), 60_000)]), (false, true), "a minute is ordinary");
        assert_eq!(verdict(&[(peer(1), -day)]), (true, false));
        assert_eq!(verdict(&[(peer(1), day), (peer(2), 0)]), (false, false), "one against one tells nothing");
        assert_eq!(verdict(&[(peer(1), day), (peer(2), 0), (peer(3), -5)]), (false, true));
    }

    #[test]
    fn differences_are_told_in_words() {
        assert_eq!(difference(5000, 9000), -4000);
        assert_eq!(difference(u64::MAX, 0), i64::MAX);
        assert_eq!(
            [span(61), span(200), span(7200), span(200 * 86_400)],
            ["61 seconds", "3 minutes", "2 hours", "200 days"]
        );
    }
}
