//! Families of the connections that come in.

use std::fmt;

use super::Families;
use crate::p2p::{ClientCounts, HandshakeCounts};

pub(super) fn clients(out: &mut Families<'_>, counts: ClientCounts) -> fmt::Result {
    let all = [
        ("named", counts.named),
        ("unnamed", counts.unnamed),
        ("garbled", counts.garbled),
        ("silent", counts.silent),
    ];
    out.counter(
        "byway_proxied_connections",
        "WebSockets that came through trusted reverse proxies, by what these said of the client",
        all.map(|(client, n)| (vec![("client", client.to_owned())], n)),
    )
}

pub(super) fn handshakes(out: &mut Families<'_>, counts: &HandshakeCounts) -> fmt::Result {
    let all = [
        ("stream", "refused", counts.streams_refused),
        ("stream", "ended", counts.streams_ended),
        ("quic", "refused", counts.quic_refused),
        ("quic", "ended", counts.quic_ended),
    ];
    let labels = |over: &str, how: &str| vec![("over", over.to_owned()), ("how", how.to_owned())];
    out.counter(
        "byway_handshakes_lost",
        "Connections that came in and found no place among the unfinished handshakes, or lost theirs to another",
        all.map(|(over, how, n)| (labels(over, how), n)),
    )
}
