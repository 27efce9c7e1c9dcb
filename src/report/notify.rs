//! What systemd is told (`sd_notify`): ready, reloading, stopping, one line of status, and that the daemon lives.
//!
//! Without `NOTIFY_SOCKET` in the environment all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::Report;
use crate::text;

/// Time between two looks whether the line of status is still true.
const LOOK: Duration = Duration::from_secs(5);
/// How long the kernel may take at the start before systemd is told that the daemon is up all the same: what is missing is
/// in `status` then.
const FIRST_APPLY: Duration = Duration::from_secs(30);
/// Bytes of the longest line of status: systemd reads no message of more than 4096, and a person no line of more than this.
const MAX_STATUS: usize = 500;

/// Tells systemd. That it cannot be told is worth a line in the log and no more.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "tell the service manager");
    }
}

/// A text as one line of status. What another node answered may stand in it, and each line of a message to systemd is an
/// order of its own: only the first line is kept, as it may be shown, and at most [`MAX_STATUS`] bytes of it.
fn one_line(text: &str) -> String {
    let mut line = text::plain(text.lines().next().unwrap_or_default());
    let ends = line.char_indices().map(|(start, c)| start + c.len_utf8());
    let end = ends
        .take_while(|end| *end <= MAX_STATUS)
        .last()
        .unwrap_or_default();
    line.truncate(end);
    line
}

/// The configuration is being read again, until [`ready`].
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "read the clock of the service manager"),
    }
}

/// The daemon serves, as `status` says.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// Tells systemd that the daemon stops, so that its end is no failure.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Says that the daemon is ready once the kernel has what the saved state wants, so that what is started after it can bind
/// the addresses; then keeps the line of status true, and feeds the watchdog for as long as the main loops answer.
pub(crate) async fn run(ctx: Report, stop: CancellationToken) -> anyhow::Result<()> {
    let generation = ctx.node.view().load().generation;
    let mut applied = ctx.applied.clone();
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        _ = tokio::time::timeout(FIRST_APPLY, applied.wait_for(|applied| applied.generation >= generation)) => {}
    }
    let mut said = line(&ctx);
    ready(&said);
    let (watchdog, every) = pace(sd_notify::watchdog_enabled());
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        if watchdog && lives(&ctx, every).await {
            tell(&[NotifyState::Watchdog]);
        }
        let now = line(&ctx);
        if now != said {
            tell(&[NotifyState::Status(&one_line(&now))]);
            said = now;
        }
    }
}

/// Whether there is a watchdog to feed, and how long to wait between two looks. A limit of nothing is none, as for systemd
/// itself.
fn pace(limit: Option<Duration>) -> (bool, Duration) {
    // Half of what it waits: one that comes late is not the last.
    let half = limit.map(|limit| limit / 2).filter(|half| !half.is_zero());
    (half.is_some(), half.map_or(LOOK, |half| half.min(LOOK)))
}

/// Whether each of the main loops answers within `limit`: the node's thread, the swarm, and the sessions.
async fn lives(ctx: &Report, limit: Duration) -> bool {
    let node = async { ctx.node.endpoints().await.is_ok() };
    let peers = async { ctx.peers.status().await.is_ok() };
    let sessions = async {
        if let Some(direct) = &ctx.mesh.direct {
            drop(direct.status().await);
        }
        true
    };
    let all = async { tokio::join!(node, peers, sessions) };
    match tokio::time::timeout(limit, all).await {
        Ok(answers) => answers == (true, true, true),
        Err(_) => {
            tracing::warn!(
                limit_ms = limit.as_millis(),
                "a main loop does not answer: the watchdog is not fed"
            );
            false
        }
    }
}

/// One line for `systemctl status`.
fn line(ctx: &Report) -> String {
    let (subnets, peers) = (
        ctx.node.view().load().subnets.len(),
        ctx.mesh.table.members().len(),
    );
    let word = |n: usize, one: &str| {
        if n == 1 {
            format!("1 {one}")
        } else {
            format!("{n} {one}s")
        }
    };
    format!(
        "{}, {} connected",
        word(subnets, "subnet"),
        word(peers, "member")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_without_a_limit_is_none() {
        assert_eq!(pace(None), (false, LOOK));
        assert_eq!(pace(Some(Duration::ZERO)), (false, LOOK), "WATCHDOG_USEC=0");
        assert_eq!(
            pace(Some(Duration::from_secs(3))),
            (true, Duration::from_millis(1500))
        );
        assert_eq!(pace(Some(Duration::from_secs(60))), (true, LOOK));
        assert!(!pace(Some(Duration::from_micros(1))).1.is_zero());
    }

    #[test]
    fn a_status_is_one_short_line_whatever_another_node_answered() {
        assert_eq!(
            one_line("1 subnet, 0 members connected"),
            "1 subnet, 0 members connected"
        );
        assert_eq!(one_line("refused: x\nWATCHDOG=trigger"), "refused: x");
        assert_eq!(one_line("a\r\nMAINPID=1"), "a");
        assert_eq!(
            one_line("a\u{1b}[2Jb\rc\u{202e}d\0"),
            "a\\u{1b}[2Jb\\u{d}c\\u{202e}d\\u{0}"
        );
        assert_eq!(
            (one_line(""), one_line("\nREADY=1")),
            (String::new(), String::new())
        );
        assert_eq!(one_line(&"a".repeat(5000)), "a".repeat(MAX_STATUS));
        // Of a character that would end behind the bound nothing is kept.
        assert_eq!(
            one_line(&format!("{}\u{20ac}", "a".repeat(MAX_STATUS - 2))),
            "a".repeat(MAX_STATUS - 2)
        );
        assert_eq!(one_line(&"\u{20ac}".repeat(400)), "\u{20ac}".repeat(166));
    }
}
