//! What is said of the search on the local networks: how it goes, and what is not well.

use std::net::IpAddr;

use super::Report;
use crate::api::types::{LanInfo, Problem};
use crate::model::error::Code;
use crate::p2p::Address;
use crate::service::lan::LanStatus;

/// Questions without any answer after which a network counts as one that lets no multicast through.
const UNANSWERED: u64 = 4;

/// How the search goes; none where there is none.
pub(super) fn info(ctx: &Report) -> Option<LanInfo> {
    let status = ctx.mesh.lan.status();
    let drops = status.drops().map(|(_, count)| count);
    let LanStatus {
        links,
        peers,
        counts,
        failed,
        ..
    } = status;
    if links.is_empty() && failed.is_none() {
        return None;
    }
    Some(LanInfo {
        links,
        peers,
        asked: counts.asked,
        told: counts.said,
        heard: counts.heard,
        dropped: drops.into_iter().fold(0, u64::saturating_add),
    })
}

/// The problem of links whose LAN peers are not looked for although they should be.
pub(super) fn problem(ctx: &Report) -> Option<Problem> {
    ctx.mesh.lan.status().failed.map(|why| not_open(&why))
}

fn not_open(why: &str) -> Problem {
    Problem {
        code: Code::Lan.into(),
        severity: "warning".into(),
        message: format!("peers on the local network are not looked for: UDP port 5353: {why}"),
        help: "stop the program that has the port for itself, which ss -ulpn shows, or set transport.lan_discovery = false; \
               peers whose addresses are known are reached all the same"
            .into(),
    }
}

/// What is not well with it, for `netcheck`.
pub(super) async fn findings(ctx: &Report) -> Vec<Problem> {
    let status = ctx.mesh.lan.status();
    if let Some(why) = &status.failed {
        return vec![not_open(why)];
    }
    let known = ctx.peers.status().await.unwrap_or_default();
    let remote = known.iter().flat_map(|peer| &peer.connections);
    let remote = remote.filter_map(|c| c.remote.parse::<Address>().ok()?.ip());
    filtered(&status, remote).into_iter().collect()
}

/// The finding of a network that lets no multicast through: a LAN peer is reached there, and nobody answers.
fn filtered(status: &LanStatus, mut remote: impl Iterator<Item = IpAddr>) -> Option<Problem> {
    let counts = status.counts;
    if counts.asked < UNANSWERED || counts.heard > 0 {
        return None;
    }
    let near = |ip: &IpAddr| {
        let mut networks = status.networks.iter();
        networks.any(|net| net.contains(ip) && net.addr() != *ip)
    };
    let near_peer = remote.find(near)?;
    Some(Problem {
        code: Code::Lan.into(),
        severity: "info".into(),
        message: format!(
            "multicast does not pass on {}: {near_peer} on the same network is reached, and nobody answers mDNS there",
            status.links.join(", ")
        ),
        help: "let UDP 5353 to 224.0.0.251 and ff02::fb through, or turn client isolation off at the access point; until then \
               peers on this network are found by invites, by --peer and by what other members know"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_without_multicast_is_named_where_a_lan_peer_is_reached() {
        let mut status = LanStatus {
            links: vec!["wlan0".into()],
            networks: vec!["192.0.2.7/24".parse().unwrap()],
            ..LanStatus::default()
        };
        let told = |status: &LanStatus, remote: &str| {
            filtered(status, [remote.parse().unwrap()].into_iter())
        };
        assert_eq!(told(&status, "192.0.2.9"), None, "nothing was asked");
        status.counts.asked = UNANSWERED;
        let found = told(&status, "192.0.2.9").unwrap();
        assert!(found.message.contains("wlan0") && found.message.contains("192.0.2.9"));
        assert_eq!(told(&status, "203.0.113.9"), None, "no LAN peer");
        assert_eq!(told(&status, "192.0.2.7"), None, "this machine itself");
        status.counts.heard = 1;
        assert_eq!(told(&status, "192.0.2.9"), None);
    }
}
