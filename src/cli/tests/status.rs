//! `status`.

use std::collections::BTreeMap;

use super::*;

fn peer(
    n: &str,
    address: &str,
    path: Path,
    rtt: f64,
    loss: f64,
    bytes: (u64, u64),
    workloads: &[&str],
) -> PeerStatus {
    PeerStatus {
        peer_id: PeerId([1; 32]),
        name: name(n),
        addresses: vec![ip("fd7a::1"), ip(address)],
        path,
        rtt_ms: Some(rtt),
        loss: Some(loss),
        mtu: 1400,
        tx_bytes: bytes.0,
        rx_bytes: bytes.1,
        carriers: Carriers::default(),
        session: None,
        tried: vec![],
        changes: vec![],
        workloads: workloads.iter().map(|w| name(w)).collect(),
    }
}

pub(super) fn status() -> Status {
    Status {
        peer_id: PeerId([1; 32]),
        name: name("a"),
        version: "0.1.0".into(),
        ready: true,
        uptime_s: 1,
        sealing: "aes-256-gcm by aws-lc".to_owned(),
        relay_only: false,
        nat: None,
        host_names: None,
        subnets: vec![SubnetStatus {
            id: id(),
            name: name("lab"),
            state: SubnetState::Ready,
            member: name("a"),
            addresses: vec![ip("10.77.1.1"), ip("fd7a:31c0:9d2e:1::1")],
            interface: "bw-lab".into(),
            mtu: 1400,
            members: 4,
            peers: vec![
                peer(
                    "b",
                    "10.77.2.1",
                    path("direct", "datagram", "udp", "203.0.113.9:4100", ""),
                    11.0,
                    0.0,
                    (1_200_000_000, 340_000_000),
                    &["web", "db"],
                ),
                peer(
                    "c",
                    "10.77.3.1",
                    path("relay", "stream", "quic", "b", "symmetric-nat-both"),
                    48.0,
                    0.001,
                    (20_000_000, 8_000_000),
                    &[],
                ),
                peer(
                    "d",
                    "10.77.4.1",
                    path("offline", "", "", "", ""),
                    0.0,
                    0.0,
                    (0, 0),
                    &["cam"],
                ),
            ],
            workloads: vec![],
            drops: BTreeMap::from([("filtered".into(), 0), ("no-route".into(), 3)]),
            waiting: None,
        }],
        problems: vec![Problem {
            code: "E-RELAYED".into(),
            severity: "warning".into(),
            message: "c is relayed\x1b[2J".into(),
            help: "byway doctor c".into(),
        }],
    }
}

#[test]
fn status_looks_as_documented() {
    assert_eq!(
        render(&Response::Status(Box::new(status())), STYLE),
        "\
subnet lab  7q3km2wd9xra  ready   4 members   you: a  10.77.1.1  fd7a:31c0:9d2e:1::1
PEER  ADDRESS     PATH                            RTT     LOSS  TX/RX           WORKLOADS
b     10.77.2.1   direct udp 203.0.113.9:4100     11 ms   0%    1.2 G / 340 M   web, db
c     10.77.3.1   relay b (both NATs symmetric)   48 ms   0.1%  20 M / 8 M      -
d     10.77.4.1   offline since 21:13 UTC                                       cam
dropped: no-route 3
! c is relayed\\u{1b}[2J   (byway doctor c)
"
    );
    let empty = Status {
        subnets: vec![],
        problems: vec![],
        ..status()
    };
    let shown = render(&Response::Status(Box::new(empty)), STYLE);
    let want = "node a  no subnet yet\n  try:  byway create NAME       (founds one)\n  try:  byway join ID|INVITE    (asks to \
                be let into one)\n";
    assert_eq!(shown, want);
    let relay = Status {
        relay_only: true,
        subnets: vec![],
        problems: vec![],
        ..status()
    };
    let shown = render(&Response::Status(Box::new(relay)), STYLE);
    let want = "node a  only relays for others\n  try:  byway relay ls           (for whom, and how much)\n  try:  byway id                 (the addresses that they name)\n";
    assert_eq!(shown, want);
    let ended = Problem {
        code: "E-SUBNET-ENDED".into(),
        ..status().problems.remove(0)
    };
    let ended = Status {
        subnets: vec![],
        problems: vec![ended],
        ..status()
    };
    let shown = render(&Response::Status(Box::new(ended)), STYLE);
    assert!(shown.starts_with("node a  no subnet any more\n"), "{shown}");
}

#[test]
fn a_join_that_waits_is_shown_as_pending_with_whom_it_asked_and_what_to_compare() {
    let asked = |address: Option<&str>| Asked {
        peer_id: PeerId([1; 32]),
        address: address.map(str::to_owned),
    };
    let shown = |invite, asked: Vec<Asked>, reached| {
        let waiting = Waiting {
            fingerprint: "ab12 cd34".into(),
            since: NOW - 60,
            invite,
            asked,
            reached,
            terms: None,
        };
        let mut subnet = status().subnets.remove(0);
        subnet = SubnetStatus {
            state: SubnetState::Pending,
            addresses: vec![],
            members: 0,
            peers: vec![],
            ..subnet
        };
        subnet = SubnetStatus {
            drops: BTreeMap::new(),
            waiting: Some(waiting),
            ..subnet
        };
        render(
            &Response::Status(Box::new(Status {
                subnets: vec![subnet],
                problems: vec![],
                ..status()
            })),
            STYLE,
        )
    };
    let waiting = |asked, reached| shown(false, asked, reached);
    let head = "\
subnet lab  7q3km2wd9xra  pending   you: a
  since       22:12 UTC, for the owner or an admin to approve
  your fingerprint  ab12 cd34   (who approves compares it)
";
    let peer = crate::model::find::peer_prefixes([PeerId([1; 32])]).remove(0);
    assert_eq!(waiting(vec![], false), head);
    assert_eq!(
        waiting(vec![asked(Some("10.99.0.2:4100"))], true),
        format!("{head}  asked       {peer} at 10.99.0.2:4100\n")
    );
    assert_eq!(
        waiting(vec![asked(None)], false),
        format!("{head}  asked       {peer}   (who may decide is not reached yet)\n")
    );
    // By invite nobody has to approve, and nobody compares anything.
    let head = "\
subnet lab  7q3km2wd9xra  pending   you: a
  since       22:12 UTC, for who issued the invite
";
    assert_eq!(
        shown(true, vec![asked(None)], false),
        format!("{head}  asked       {peer}   (who issued the invite is not reached yet)\n")
    );
}

#[test]
fn colours_only_wrap_words() {
    let coloured = render(
        &Response::Status(Box::new(status())),
        Style {
            colour: true,
            ..STYLE
        },
    );
    assert!(coloured.contains("7q3km2wd9xra  \x1b[32mready\x1b[0m   4 members"));
    assert!(coloured.contains("\x1b[33m!\x1b[0m c is relayed\\u{1b}[2J"));
}

#[test]
fn json_answers_carry_their_schema() {
    let shown = json(&Response::Status(Box::new(status()))).unwrap();
    assert!(
        shown.starts_with("{\"schema\":\"byway.status/1\","),
        "{shown}"
    );
    let back: Response = serde_json::from_str(&shown).unwrap();
    assert_eq!(back, Response::Status(Box::new(status())));
}

#[test]
fn a_nat_before_this_machine_is_told_with_what_it_lets_in() {
    let told = |mapping: &str, filtering: &str, unknown: Option<&str>| {
        let mut status = status();
        status.problems.clear();
        status.nat = Some(NatInfo {
            ipv4: true,
            ipv6: false,
            udp: "works".into(),
            mapping: mapping.into(),
            step: None,
            filtering: filtering.into(),
            filtering_unknown: unknown.map(str::to_owned),
            open: None,
        });
        let shown = render(&Response::Status(Box::new(status)), STYLE);
        let line = shown.lines().find(|line| line.starts_with("nat: "));
        line.map(str::to_owned)
    };
    let same = "nat: the same port for everybody; lets in ";
    for (filtering, unknown, want) in [
        ("endpoint-independent", None, "everybody"),
        (
            "address-dependent",
            None,
            "every port of an address that was sent to",
        ),
        (
            "address-and-port-dependent",
            None,
            "only the port that was sent to",
        ),
        (
            "unknown",
            Some("it was not tested yet"),
            "not known: it was not tested yet",
        ),
    ] {
        let line = told("independent", filtering, unknown);
        assert_eq!(line, Some(format!("{same}{want}")));
    }
    assert!(told("dependent", "unknown", None).is_some_and(|line| line.contains("symmetric")));
    for none in ["none", "unknown"] {
        assert_eq!(told(none, "endpoint-independent", None), None, "{none}");
    }
}
