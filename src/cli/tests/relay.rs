//! What `relay ls`, `offer` and `off` print.

use super::*;

#[test]
fn what_is_forwarded_looks_like_this() {
    let drops = |of: &[(&str, u64)]| of.iter().map(|(why, n)| ((*why).to_owned(), *n)).collect();
    let mut info = RelayInfo {
        offers: "relays for anyone, at most 100 Mbit/s in all".into(),
        max_mbit: Some(100),
        sessions: vec![],
        bytes: 0,
        drops: drops(&[]),
        refused: drops(&[]),
        known: vec![],
    };
    assert_eq!(
        render(&Response::Relay(info.clone()), STYLE),
        "relays for anyone, at most 100 Mbit/s in all\n  forwarded   0 B\n"
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
  forwarded   5 M
  dropped     40 rate
  refused     2 crowded, 1 full
{:<wide$}   AT                    MBIT/S     RX/TX           DROPPED
{a} {b}   203.0.113.10:4100 -   1.3 of 2   1.2 M / 980 B   12 rate, 1 unbound
",
            "PEERS"
        )
    );
}
