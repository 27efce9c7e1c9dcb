//! What several say of the address outside, made one.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Reports that are needed where members alone say it: one of them may lie, and two may be one person.
const MEMBERS: usize = 3;
/// Reports that are needed at least, whoever says it.
const LEAST: usize = 2;

/// One report. A page tells no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub ip: IpAddr,
    pub port: Option<u16>,
    /// Whether a member says it, and not somebody that the configuration names.
    pub is_member: bool,
}

/// The address that more than half of all reports agree on: two of them at least, three where only members say it. Its port is
/// the one that most of these say, and `own` where none says one.
pub(super) fn agreed(reports: &[Report], own: u16) -> Option<SocketAddr> {
    let mut votes: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for report in reports {
        let count = votes.entry(report.ip).or_default();
        *count = count.saturating_add(1);
    }
    let (ip, count) = votes.into_iter().max_by_key(|(_, count)| *count)?;
    // Two members outvote no server: what counts is who says this address.
    let only_members = reports
        .iter()
        .filter(|report| report.ip == ip)
        .all(|report| report.is_member);
    let least = if only_members { MEMBERS } else { LEAST };
    if count < least || count <= reports.len() / 2 {
        return None;
    }
    let mut ports: BTreeMap<u16, usize> = BTreeMap::new();
    let for_it = reports.iter().filter(|report| report.ip == ip);
    for port in for_it.filter_map(|report| report.port) {
        let count = ports.entry(port).or_default();
        *count = count.saturating_add(1);
    }
    // Of as many for two ports the own one is the likelier.
    let most = ports
        .into_iter()
        .max_by_key(|(port, count)| (*count, *port == own));
    Some(SocketAddr::new(ip, most.map_or(own, |(port, _)| port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ip: &str, port: Option<u16>, is_member: bool) -> Report {
        Report {
            ip: ip.parse().unwrap(),
            port,
            is_member,
        }
    }

    #[test]
    fn one_liar_among_three_has_no_say_and_two_that_differ_agree_on_nothing() {
        let (right, wrong) = ("203.0.113.9", "198.51.100.66");
        let said = |all: &[(&str, Option<u16>, bool)]| {
            let all: Vec<Report> = all
                .iter()
                .map(|(ip, port, m)| report(ip, *port, *m))
                .collect();
            agreed(&all, 4100).map(|at| at.to_string())
        };
        let stun = |ip, port| (ip, Some(port), false);
        let page = |ip| (ip, None, false);
        let member = |ip, port| (ip, Some(port), true);
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[stun(right, 9)]), None, "one alone");
        assert_eq!(said(&[stun(right, 9), stun(wrong, 9)]), None);
        assert_eq!(
            said(&[stun(right, 9), stun(wrong, 9), page(right)]).as_deref(),
            Some("203.0.113.9:9")
        );
        assert_eq!(
            said(&[page(right), page(right)]).as_deref(),
            Some("203.0.113.9:4100"),
            "no port is told"
        );
        assert_eq!(
            said(&[member(right, 9), member(right, 9)]),
            None,
            "two members"
        );
        assert_eq!(
            said(&[member(right, 9), member(right, 9), member(right, 7)]).as_deref(),
            Some("203.0.113.9:9")
        );
        assert_eq!(
            said(&[member(right, 9), stun(right, 4100)]).as_deref(),
            Some("203.0.113.9:4100"),
            "the own port of two"
        );
        assert_eq!(
            said(&[stun(right, 9), member(wrong, 9), member(wrong, 9)]),
            None,
            "two members against a server"
        );
        // Half is no majority.
        assert_eq!(
            said(&[stun(right, 9), page(right), stun(wrong, 9), page(wrong)]),
            None
        );
    }
}
