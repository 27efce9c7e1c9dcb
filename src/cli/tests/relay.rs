//! What `relay ls`, `offer` and `off` print.

use std::collections::BTreeMap;

use super::*;

#[test]
fn what_is_forwarded_looks_like_this() {
    let drops = |of: &[(&str, u64)]| of.iter().map(|(why, n)| ((*why).to_owned(), *n)).collect();
    let mut info = RelayInfo {
        offers: "relays for anyone, at most 100 Mbit/s in all".into(),
        offer: "auto".into(),
        offer_origin: "default".into(),
        max_mbit: Some(100),
        sessions: vec![],
        bytes: 0,
        drops: drops(&[]),
        refused: drops(&[]),
        known: vec![],
        places: vec![],
        uses: vec![],
    };
    assert_eq!(
        render(&Response::Relay(info.clone()), STYLE),
        "relays for anyone, at most 100 Mbit/s in all\n  offer       auto   (default)\n  forwarded   0 B\n"
    );
    let (a, b) = (PeerId([1; 32]), PeerId([2; 32]));
    info.sessions = vec![RelaySession {
        peers: vec![a, b],
        addresses: vec![Some("203.0.113.10:4100".into()), None],
        mbit: 1.26,
        max_mbit: Some(2),
        rx_bytes: 1_200_000,
        tx_bytes: 980,
        drops: drops(&[("rate", 12), ("unbound", 1)]),
        age_s: 9,
    }];
    info.bytes = 5_000_000;
    info.drops = drops(&[("rate", 40)]);
    info.refused = drops(&[("crowded", 2), ("full", 1)]);
    let (a, b) = (a.short(), b.short());
    let wide = a.len() + 1 + b.len();
    assert_eq!(
        render(&Response::Relay(info), STYLE),
        format!(
            "\
relays for anyone, at most 100 Mbit/s in all
  offer       auto   (default)
  forwarded   5 M
  dropped     40 over the rate
  refused     2 crowded, 1 full
{:<wide$}   AT                    MBIT/S     RX/TX           DROPPED
{a} {b}   203.0.113.10:4100 -   1.3 of 2   1.2 M / 980 B   12 over the rate, 1 while the other end was not there
",
            "PEERS"
        )
    );
}

#[test]
fn the_relays_of_this_node_look_like_this() {
    let [placed, full, helping] = [2, 3, 4].map(|n| PeerId([n; 32]));
    let point = |peer_id, name: &str, reserved, refused: Option<&str>| MeetingPoint {
        peer_id,
        name: (!name.is_empty()).then(|| name.to_owned()),
        address: "192.0.2.1:4100".into(),
        configured: true,
        connected: true,
        reserved,
        reserved_since: reserved.then_some(NOW),
        refused: refused.map(str::to_owned),
        refused_since: refused.map(|_| NOW),
        denied: false,
        rtt_us: Some(11_200),
    };
    let info = RelayInfo {
        offers: "relays for nobody".into(),
        offer: false.into(),
        offer_origin: "command line (relay off)".into(),
        max_mbit: None,
        sessions: vec![],
        bytes: 0,
        drops: BTreeMap::new(),
        refused: BTreeMap::new(),
        known: vec![KnownRelay {
            peer_id: helping,
            source: "connection".into(),
            max_mbit: Some(10),
            offered: false,
            named_by: vec![],
            rtt_ms: Some(3.1),
        }],
        places: vec![
            point(placed, "r", true, None),
            point(full, "", false, Some("full")),
        ],
        uses: vec![RelayUse {
            relay: helping,
            peers: vec![PeerId([7; 32]), PeerId([8; 32])],
            names: vec!["b.lab".into(), "c.lab".into()],
        }],
    };
    let mut by_member = info.clone();
    by_member.places[0].configured = false;
    let text = render(&Response::Relay(by_member), STYLE);
    let row = text.lines().find(|line| line.starts_with("r  "));
    assert!(row.is_some_and(|row| row.contains("connection")), "{text}");
    let (full, helping) = (full.short(), helping.short());
    let wide = full.len();
    assert_eq!(
        render(&Response::Relay(info), STYLE),
        format!(
            "\
relays for nobody
  offer       false   (command line (relay off))
  forwarded   0 B
{:<wide$}   PLACE                                                       MBIT/S  RTT      OFFERED                       KNOWN BY        USED FOR
{:<wide$}   keeps a place                                               -       11 ms    -                             configuration   -
{full}   reached, keeps no place: it has no room (since 22:13 UTC)   -       11 ms    -                             configuration   -
{helping}   -                                                           10      3.1 ms   where there is no other way   connection      b.lab, c.lab
",
            "RELAY FOR US", "r"
        )
    );
}
