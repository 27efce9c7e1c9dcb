//! What is said of connections that found no place among the unfinished handshakes.

use std::time::{Duration, Instant};

use super::Report;
use crate::api::types::Problem;
use crate::model::error::Code;
use crate::p2p::HandshakeCounts;

/// How long a connection that found no place is told of.
const RECENT: Duration = Duration::from_secs(10 * 60);

/// What is wrong where connections found no place of late: none of those who were refused says so here.
pub(super) fn problem(ctx: &Report) -> Option<Problem> {
    finding(&ctx.peers.handshakes(), Instant::now())
}

fn finding(counts: &HandshakeCounts, now: Instant) -> Option<Problem> {
    let age = now.saturating_duration_since(counts.last?);
    let refused = counts.streams_refused.saturating_add(counts.quic_refused);
    let ended = counts.streams_ended.saturating_add(counts.quic_ended);
    (age < RECENT).then(|| Problem {
        code: Code::Crowded.into(),
        severity: "info".to_owned(),
        message: format!(
            "there was no room for all handshakes under way: since the start {refused} connections were refused and {ended} gave \
             way to others, the last one {} s ago",
            age.as_secs()
        ),
        help: "each address has eight: where peers come through a reverse proxy, name it in transport.trusted_proxies, so \
               that they count by addresses of their own; `byway metrics` counts them in byway_handshakes_lost_total"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_found_no_place_are_told_of_for_ten_minutes() {
        let start = Instant::now();
        let mut counts = HandshakeCounts {
            streams_refused: 7,
            quic_refused: 2,
            streams_ended: 3,
            quic_ended: 1,
            last: None,
        };
        assert_eq!(finding(&counts, start), None);
        counts.last = Some(start);
        let found = finding(&counts, start + Duration::from_secs(5)).unwrap();
        assert_eq!(
            (found.code.as_str(), found.severity.as_str()),
            ("E-CROWDED", "info")
        );
        let said = "since the start 9 connections were refused and 4 gave way to others, the last one 5 s ago";
        assert!(found.message.ends_with(said), "{}", found.message);
        assert!(found.help.contains("transport.trusted_proxies"));
        assert_eq!(finding(&counts, start + RECENT), None);
    }
}
