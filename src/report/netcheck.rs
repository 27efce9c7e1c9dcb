//! `netcheck`: what stands between this machine and all others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::Report;
use super::paths::{endpoint_text, paths, peers};
use super::reach::{kind, nat, unsure};
use super::router;
use super::status::no_link;
use crate::api::types::{
    Error, MeetingPoint, NatInfo, NetcheckInfo, OwnAddress, Problem, RelayUse,
};
use crate::link::direct::Here;
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::node::unix_now;
use crate::p2p::{self, PlaceStatus, Refusal};
use crate::service::settings;

/// Looks at this machine's ways out.
///
/// # Errors
/// The node is stopping.
pub(crate) async fn netcheck(ctx: &Report) -> Result<NetcheckInfo, Error> {
    let names = names(ctx).await?;
    let here = here(ctx).await;
    let meeting_points = meeting_points(ctx, &names).await;
    let nat = own_nat(ctx, here.as_ref()).await?;
    let mut info = NetcheckInfo {
        nat,
        addresses: here
            .as_ref()
            .map(|here| addresses(here, &names))
            .unwrap_or_default(),
        meeting_points,
        lan: super::lan::info(ctx),
        proxy: super::proxy::info(ctx),
        router: router::router(ctx),
        external: router::external(ctx),
        findings: Vec::new(),
    };
    let relays = &ctx.mesh.relays;
    // A relay that records name, or a member that offers, is met without configuration here.
    let is_offered = relays.known().iter().any(|known| known.offer.is_offered);
    let is_lent = is_offered || !relays.of_records().is_empty();
    info.findings = findings(&info, no_link(ctx), is_lent);
    info.findings.extend(super::lan::findings(ctx).await);
    info.findings.extend(super::proxy::problem(ctx));
    info.findings.extend(router::problems(ctx));
    info.findings.extend(super::handshakes::problem(ctx));
    Ok(info)
}

/// What the datagrams of this machine say of its ways out; none where it has no port for them.
async fn here(ctx: &Report) -> Option<Here> {
    match &ctx.mesh.direct {
        Some(direct) => direct.here().await,
        None => None,
    }
}

/// What stands before this machine.
///
/// # Errors
/// The node is stopping.
pub(super) async fn nat_here(ctx: &Report) -> Result<NatInfo, Error> {
    own_nat(ctx, here(ctx).await.as_ref()).await
}

async fn own_nat(ctx: &Report, here: Option<&Here>) -> Result<NatInfo, Error> {
    let mut nat = nat(here.map(|here| &here.facts));
    if here.is_none() {
        // Without a UDP port only streams tell where this node is.
        (nat.ipv4, nat.ipv6) = families(&ctx.node.endpoints().await?);
    }
    nat.open = here.and_then(|here| here.open).map(p2p::named);
    if nat.udp == "blocked" {
        nat.filtering_unknown = Some("no datagram comes in".to_owned());
    } else if nat.filtering == "unknown" {
        nat.filtering_unknown = here.map(|here| unsure(here.unsure).to_owned());
    }
    Ok(nat)
}

/// What members are called.
async fn names(ctx: &Report) -> Result<BTreeMap<PeerId, String>, Error> {
    let known = ctx.node.known_as().await?.into_iter();
    let named = known.filter_map(|(peer, (names, _))| Some((peer, names.into_iter().next()?)));
    Ok(named.collect())
}

/// The relays of this machine, and those of them, or of members, that its packets go through now.
///
/// # Errors
/// The node is stopping.
pub(crate) async fn relays(ctx: &Report) -> Result<(Vec<MeetingPoint>, Vec<RelayUse>), Error> {
    let names = names(ctx).await?;
    let points = meeting_points(ctx, &names).await;
    let mut through: BTreeMap<PeerId, BTreeSet<PeerId>> = BTreeMap::new();
    for (key, path) in paths(ctx).await {
        let via = path.via.filter(|_| path.kind == "relay");
        if let Some(relay) = via.and_then(|via| via.parse().ok()) {
            through.entry(relay).or_default().insert(key.peer);
        }
    }
    let name = |peer: &PeerId| names.get(peer).cloned().unwrap_or_else(|| peer.short());
    let used = |(relay, peers): (PeerId, BTreeSet<PeerId>)| RelayUse {
        relay,
        names: peers.iter().map(name).collect(),
        peers: peers.into_iter().collect(),
    };
    Ok((points, through.into_iter().map(used).collect()))
}

/// Whether any of these multiaddrs, which do not lead through relays, is one of IPv4, and of IPv6.
fn families(endpoints: &[String]) -> (bool, bool) {
    let has = |family: &str| {
        let mut own = endpoints.iter().filter(|at| !at.contains("/p2p-circuit"));
        own.any(|at| at.starts_with(family))
    };
    (has("/ip4/"), has("/ip6/"))
}

/// Where this machine may be reached, with who sees it there.
fn addresses(here: &Here, names: &BTreeMap<PeerId, String>) -> Vec<OwnAddress> {
    let own = |address: SocketAddr, word: &str| {
        let seen = here.observed.iter().filter(|(at, _)| *at == address);
        OwnAddress {
            address: p2p::named(address),
            kind: word.to_owned(),
            seen_by: each_once(
                seen.map(|(_, by)| names.get(by).cloned().unwrap_or_else(|| by.to_string())),
            ),
        }
    };
    // Of loopback nobody else makes anything.
    let candidates = here.candidates.iter();
    let outward = candidates.filter(|known| !known.address.ip().to_canonical().is_loopback());
    let mut all: Vec<OwnAddress> = outward
        .map(|known| own(known.address, kind(known.kind)))
        .collect();
    // What was seen and is not told, for being too many or denied.
    for (address, _) in &here.observed {
        let text = p2p::named(*address);
        if !all.iter().any(|known| known.address == text) {
            all.push(own(*address, "observed"));
        }
    }
    all
}

/// The names in their order. A peer that says the same on several connections is one that sees it.
fn each_once(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in names {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// Whether `deny` covers all of these addresses, of which there is one at least. What a name leads to is not known here.
fn are_denied(mut addresses: impl Iterator<Item = Option<IpAddr>>, deny: &[IpNet]) -> bool {
    let covered = |ip: Option<IpAddr>| {
        ip.is_some_and(|ip| {
            deny.iter()
                .any(|prefix| prefix.contains(&ip.to_canonical()))
        })
    };
    addresses.next().is_some_and(covered) && addresses.all(covered)
}

/// The relays that the configuration names, and those that keep a place for this machine.
async fn meeting_points(ctx: &Report, names: &BTreeMap<PeerId, String>) -> Vec<MeetingPoint> {
    let (configured, deny) = {
        let settings = ctx.settings.borrow();
        (settings::meeting(&settings), settings.deny_cidrs.clone())
    };
    let mut places: BTreeMap<PeerId, String> = BTreeMap::new();
    for typed in &configured {
        if let Some(peer) = typed.address().peer() {
            let address = endpoint_text(&typed.address().to_string());
            places.entry(peer).or_insert(address);
        }
    }
    let known = peers(ctx).await;
    let stands: BTreeMap<PeerId, PlaceStatus> = ctx
        .peers
        .places()
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|place| (place.relay, place))
        .collect();
    for relay in stands.values().filter(|place| place.kept.is_some()) {
        places.entry(relay.relay).or_default();
    }
    let now = unix_now();
    let since = |age: Duration| now.saturating_sub(age.as_secs());
    places.remove(&ctx.peers.peer());
    let point = |(peer, address): (PeerId, String)| {
        let newest = known
            .get(&peer)
            .and_then(|status| status.connections.iter().rev().find(|c| c.relay.is_none()));
        let named = configured.iter().map(|typed| typed.address());
        let heard = known.get(&peer).map(|status| &status.addresses[..]);
        let heard = heard.unwrap_or_default().iter();
        let straight = named
            .filter(|address| address.peer() == Some(peer))
            .chain(heard.filter(|address| address.relay().is_none()));
        let stands = stands.get(&peer);
        let kept = stands.and_then(|place| place.kept);
        let refused = stands.and_then(|place| place.refused);
        MeetingPoint {
            peer_id: peer,
            name: names.get(&peer).cloned(),
            address: newest.map_or(address, |c| endpoint_text(&c.remote)),
            configured: configured
                .iter()
                .any(|typed| typed.address().peer() == Some(peer)),
            connected: newest.is_some(),
            reserved: kept.is_some(),
            reserved_since: kept.map(since),
            refused: refused.map(|(why, _)| refusal(why).to_owned()),
            refused_since: refused.map(|(_, age)| since(age)),
            denied: newest.is_none() && are_denied(straight.map(|address| address.ip()), &deny),
            rtt_us: newest
                .and_then(|c| c.rtt)
                .and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
        }
    };
    places.into_iter().map(point).collect()
}

/// The word for why a relay keeps no place.
fn refusal(why: Refusal) -> &'static str {
    match why {
        Refusal::Unsupported => "not-served",
        other => other.as_str(),
    }
}

fn finding(code: Code, severity: &str, message: String, help: &str) -> Problem {
    Problem {
        code: code.into(),
        severity: severity.into(),
        message,
        help: help.to_owned(),
    }
}

/// The finding of a meeting point that is not connected. Nothing is wrong with its address where this machine forbids it.
fn not_met(point: &MeetingPoint) -> Problem {
    let name = called(point);
    let at = &point.address;
    let (message, help) = if point.denied {
        (
            format!(
                "the meeting point {name} is not dialled: transport.deny_cidrs of this machine covers {at}"
            ),
            "take that prefix out of transport.deny_cidrs, or name an address outside of it, then byway reload",
        )
    } else {
        (
            format!("the meeting point {name} is not reached at {at}"),
            "see that it runs there, that its port is let through, and that its address and ID in transport.bootstrap are right",
        )
    };
    finding(Code::MeetingPoint, "warning", message, help)
}

/// The finding of a relay that is reached and keeps no place for this machine; none where it keeps one, or was not asked. A
/// machine without a NAT, or with a port that is open for everybody, needs none.
fn refuses(point: &MeetingPoint, nat: &NatInfo) -> Option<Problem> {
    let why = point.refusal()?;
    let name = called(point);
    let at = &point.address;
    let message =
        format!("the relay {name} is reached at {at} and keeps no place for this machine: {why}");
    let help = match point.refused.as_deref() {
        Some("full") => {
            "name another relay beside it in transport.bootstrap, or have its owner make room"
        }
        Some("timeout" | "malformed") => {
            "see the log and the version of that relay, or name another one beside it in transport.bootstrap"
        }
        _ => {
            "have its owner serve this machine (there: byway relay ls, transport.relay.for with the ID from byway id here), or \
             name another relay in transport.bootstrap"
        }
    };
    let severity = if nat.mapping == "none" || nat.open.is_some() {
        "info"
    } else {
        "warning"
    };
    Some(finding(Code::MeetingPoint, severity, message, help))
}

fn called(point: &MeetingPoint) -> String {
    point.name.clone().unwrap_or_else(|| point.peer_id.short())
}

/// What is not well, each with its cause and its remedy. `is_lent`: relays are known that the configuration does not name.
fn findings(info: &NetcheckInfo, link: Option<Problem>, is_lent: bool) -> Vec<Problem> {
    // All else that is known belongs to links that are gone.
    if let Some(link) = link {
        return vec![link];
    }
    let mut all = Vec::new();
    let nat = &info.nat;
    let reserved = info.meeting_points.iter().any(|point| point.reserved);
    match nat.udp.as_str() {
        "off" => all.push(finding(
            Code::NoUdp,
            "info",
            "no UDP port is opened, as transport.listen says: peers are reached over TCP, and through relays over streams".into(),
            "add udp/4100 to transport.listen, and start the daemon again",
        )),
        "blocked" => all.push(finding(
            Code::UdpBlocked,
            "warning",
            "UDP is blocked: streams connect, and no datagram is answered".into(),
            "let byway's UDP port (4100 unless configured) out and its answers in; until then packets go over streams, which is slower",
        )),
        _ => {}
    }
    let has_none = nat.udp != "off" && !nat.ipv4 && !nat.ipv6;
    if has_none && nat.udp == "works" {
        all.push(finding(
            Code::NoAddress,
            "info",
            "this machine has addresses of its links alone: it reaches who is on these links, and nobody beyond".into(),
            "give an interface of it an address and a default route where others are to be reached: ip addr, ip route",
        ));
    } else if has_none {
        all.push(finding(
            Code::NoAddress,
            "warning",
            "no address of this machine leads out".into(),
            "give an interface of it an address and a default route: ip addr, ip route",
        ));
    }
    // Who comes by a port that is open for everybody minds no NAT.
    let is_open = nat.open.is_some();
    if nat.mapping == "dependent" && !is_open {
        let step = nat.step.map_or_else(String::new, |step| {
            format!(", {step:+} from the one before")
        });
        all.push(finding(
            Code::NatSymmetric,
            "warning",
            format!("the NAT in front of this machine is symmetric: it takes another UDP port for each destination{step}"),
            "forward byway's UDP port (4100 unless configured) in that router, or turn symmetric NAT off there",
        ));
    }
    let points = || info.meeting_points.iter();
    let said = |point: &&MeetingPoint| point.refused.is_some();
    all.extend(points().filter_map(|point| refuses(point, nat)));
    let away = points().filter(|point| !point.connected && !said(point));
    all.extend(away.map(not_met));
    // Of those that refuse one it is said already.
    let connected = points().any(|point| point.connected) && !points().any(|point| said(&point));
    let hidden = matches!(nat.mapping.as_str(), "independent" | "dependent") && !is_open;
    if hidden && connected && !reserved {
        all.push(finding(
            Code::MeetingPoint,
            "warning",
            "no meeting point keeps a place for this machine: nobody comes in through one".into(),
            "look again in a minute; then at the log of the relay",
        ));
    }
    if hidden && info.meeting_points.is_empty() && !is_lent {
        all.push(finding(
            Code::MeetingPoint,
            "info",
            "this machine is behind a NAT and knows no meeting point: who is behind another one meets it only through a member that both reach".into(),
            "name a relay with its ID in transport.bootstrap, then byway reload",
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(udp: &str, mapping: &str, points: &[(bool, bool)]) -> NetcheckInfo {
        let point = |(connected, reserved): &(bool, bool)| MeetingPoint {
            peer_id: PeerId([2; 32]),
            name: Some("r".into()),
            address: "192.0.2.1:4100".into(),
            configured: true,
            connected: *connected,
            reserved: *reserved,
            reserved_since: None,
            refused: None,
            refused_since: None,
            denied: false,
            rtt_us: None,
        };
        NetcheckInfo {
            nat: NatInfo {
                ipv4: true,
                ipv6: false,
                udp: udp.into(),
                mapping: mapping.into(),
                step: (mapping == "dependent").then_some(2),
                filtering: "unknown".into(),
                filtering_unknown: None,
                open: None,
            },
            addresses: vec![],
            meeting_points: points.iter().map(point).collect(),
            lan: None,
            proxy: None,
            router: None,
            external: None,
            findings: vec![],
        }
    }

    #[test]
    fn each_finding_has_its_cause_and_a_remedy_and_a_good_network_has_none() {
        let told = |udp, mapping, points: &[(bool, bool)]| -> Vec<(String, String)> {
            findings(&info(udp, mapping, points), None, false)
                .into_iter()
                .inspect(|f| assert!(!f.message.is_empty() && !f.help.is_empty(), "{f:?}"))
                .map(|f| (f.code, f.severity))
                .collect()
        };
        let is = |code: &str, severity: &str| (code.to_owned(), severity.to_owned());
        assert_eq!(told("works", "none", &[]), []);
        assert_eq!(told("works", "independent", &[(true, true)]), []);
        assert_eq!(
            told("blocked", "unknown", &[(true, true)]),
            [is("E-UDP-BLOCKED", "warning")]
        );
        assert_eq!(told("off", "unknown", &[]), [is("E-NO-UDP", "info")]);
        assert_eq!(
            told("works", "dependent", &[(true, true)]),
            [is("E-NAT-SYMMETRIC", "warning")]
        );
        assert_eq!(
            told("works", "independent", &[(false, false), (true, true)]),
            [is("E-MEETING-POINT", "warning")]
        );
        assert_eq!(
            told("works", "independent", &[(true, false)]),
            [is("E-MEETING-POINT", "warning")]
        );
        assert_eq!(
            told("works", "independent", &[]),
            [is("E-MEETING-POINT", "info")]
        );
        assert_eq!(findings(&info("works", "independent", &[]), None, true), []);
        let symmetric = findings(&info("works", "dependent", &[(true, true)]), None, false);
        assert!(
            symmetric[0].message.ends_with("+2 from the one before"),
            "{symmetric:?}"
        );
        let nowhere = NetcheckInfo {
            nat: NatInfo {
                ipv4: false,
                ..info("unknown", "unknown", &[]).nat
            },
            ..info("unknown", "unknown", &[])
        };
        let found = &findings(&nowhere, None, false)[0];
        assert_eq!(
            (found.code.as_str(), found.severity.as_str()),
            ("E-NO-ADDRESS", "warning")
        );
        // LAN peers answer at link-local addresses: it is not cut off.
        let mut near = nowhere;
        near.nat.udp = "works".into();
        let found = &findings(&near, None, false)[0];
        assert_eq!(
            (found.code.as_str(), found.severity.as_str()),
            ("E-NO-ADDRESS", "info")
        );
    }

    #[test]
    fn a_nat_with_a_port_that_is_open_for_everybody_is_no_finding() {
        for mapping in ["independent", "dependent"] {
            let mut info = info("works", mapping, &[]);
            assert_ne!(findings(&info, None, false), []);
            info.nat.open = Some("203.0.113.9:4100".into());
            assert_eq!(findings(&info, None, false), [], "{mapping}");
            info.meeting_points =
                super::tests::info("works", mapping, &[(true, false)]).meeting_points;
            assert_eq!(findings(&info, None, false), [], "it needs no place");
            info.meeting_points[0].refused = Some("full".into());
            assert_eq!(findings(&info, None, false)[0].severity, "info");
        }
    }

    #[test]
    fn links_that_are_all_down_are_the_one_finding() {
        let link = Problem {
            code: Code::NoLink.into(),
            severity: "warning".into(),
            message: "no link of this machine leads anywhere: eth0 is down".into(),
            help: "ip link set eth0 up".into(),
        };
        let stale = info("works", "dependent", &[(false, false)]);
        assert_eq!(findings(&stale, Some(link.clone()), false), [link]);
    }

    #[test]
    fn a_meeting_point_that_this_machine_forbids_is_not_blamed() {
        let mut info = info("works", "none", &[(false, false)]);
        let told = findings(&info, None, false);
        assert!(told[0].message.contains("not reached at"), "{told:?}");
        assert!(told[0].help.contains("its port is let through"), "{told:?}");
        info.meeting_points[0].denied = true;
        let told = findings(&info, None, false);
        assert_eq!(
            told[0].message,
            "the meeting point r is not dialled: transport.deny_cidrs of this machine covers 192.0.2.1:4100"
        );
        assert!(told[0].help.contains("deny_cidrs"), "{told:?}");

        let deny = ["192.0.2.0/24".parse().unwrap()];
        let denied = |addresses: &[Option<&str>]| {
            let parsed = addresses
                .iter()
                .map(|text| text.map(|text| text.parse().unwrap()));
            are_denied(parsed, &deny)
        };
        assert!(denied(&[Some("192.0.2.1"), Some("::ffff:192.0.2.9")]));
        assert!(!denied(&[Some("192.0.2.1"), Some("198.51.100.1")]));
        assert!(!denied(&[Some("192.0.2.1"), None]), "a name leads anywhere");
        assert!(!denied(&[]));
    }

    #[test]
    fn a_relay_that_is_reached_and_refuses_is_not_called_unreached() {
        // Between two questions there may be a connection, and may be none.
        for connected in [true, false] {
            let mut info = info("works", "independent", &[(connected, false)]);
            let mut told = |word: &str| {
                info.meeting_points[0].refused = Some(word.to_owned());
                let told = findings(&info, None, false);
                assert_eq!(told.len(), 1, "{told:?}");
                let told = told.into_iter().next().unwrap();
                assert_eq!(told.severity, "warning", "{told:?}");
                (told.message, told.help)
            };
            let (message, help) = told("not-served");
            assert_eq!(
                message,
                "the relay r is reached at 192.0.2.1:4100 and keeps no place for this machine: it does not serve this machine"
            );
            assert!(help.contains("transport.relay.for"), "{help}");
            let (message, help) = told("full");
            assert!(message.ends_with("it has no room"), "{message}");
            assert!(help.contains("make room"), "{help}");
            assert!(told("timeout").1.contains("log"));
            assert!(told("of-a-later-version").0.ends_with("of-a-later-version"));
        }
        let mut open = info("works", "none", &[(true, false)]);
        open.meeting_points[0].refused = Some("full".into());
        assert_eq!(
            findings(&open, None, false)[0].severity,
            "info",
            "it needs none"
        );
    }

    #[test]
    fn without_a_udp_port_streams_tell_the_families() {
        let all =
            |texts: &[&str]| families(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(all(&["/ip4/203.0.113.9/tcp/4100"]), (true, false));
        assert_eq!(all(&["/ip6/2001:db8::1/tcp/4100"]), (false, true));
        assert_eq!(
            all(&["/ip4/203.0.113.1/tcp/4100/p2p/R/p2p-circuit"]),
            (false, false)
        );
        assert_eq!(all(&[]), (false, false));
    }

    #[test]
    fn who_sees_an_address_is_named_once() {
        let seen = ["b.lab", "a.lab", "c.lab", "a.lab"].map(str::to_owned);
        assert_eq!(each_once(seen.into_iter()), ["b.lab", "a.lab", "c.lab"]);
    }
}
