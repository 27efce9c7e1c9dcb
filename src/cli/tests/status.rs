//! `status`.

use std::collections::BTreeMap;

use super::*;

fn peer(n: &str, address: &str, path: Path, rtt: f64, loss: f64, bytes: (u64, u64), workloads: &[&str]) -> PeerStatus {
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
                peer("d", "10.77.4.1", path("offline", "", "", "", ""), 0.0, 0.0, (0, 0), &["cam"]),
            ],
            workloads: vec![],
            drops: BTreeMap::from([("filtered".into(), 0), ("no-route".into(), 3)]),
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
    let empty = Status { subnets: vec![], problems: vec![], ..status() };
    let shown = render(&Response::Status(Box::new(empty)), STYLE);
    assert_eq!(shown, "node a  no subnet yet\n  try:  byway create NAME\n");
}

#[test]
fn colours_only_wrap_words() {
    let coloured = render(&Response::Status(Box::new(status())), Style { colour: true, ..STYLE });
    assert!(coloured.contains("7q3km2wd9xra  \x1b[32mready\x1b[0m   4 members"));
    assert!(coloured.contains("\x1b[33m!\x1b[0m c is relayed\\u{1b}[2J"));
}

#[test]
fn json_answers_carry_their_schema() {
    let shown = json(&Response::Status(Box::new(status()))).unwrap();
    assert!(shown.starts_with("{\"schema\":\"byway.status/1\","), "{shown}");
    let back: Response = serde_json::from_str(&shown).unwrap();
    assert_eq!(back, Response::Status(Box::new(status())));
}
