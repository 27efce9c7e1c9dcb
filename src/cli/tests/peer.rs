//! `id`, `peer`, `ping`.

use super::*;

fn peer_info() -> PeerInfo {
    PeerInfo {
        peer_id: PeerId([1; 32]),
        names: vec!["b.lab".into()],
        fingerprint: "ab12".into(),
        connected: true,
        held: Some("ring".into()),
        path: path("direct", "stream", "quic", "10.0.0.2:4100", ""),
        addresses: vec!["/ip4/10.0.0.2/udp/4100/quic-v1".into()],
        rtt_ms: Some(0.4),
        tx_bytes: 1000,
        rx_bytes: 0,
        carriers: Carriers::default(),
        sessions: vec![],
        here: None,
        there: Some(NatInfo {
            ipv4: true,
            ipv6: false,
            udp: "works".into(),
            mapping: "independent".into(),
            step: None,
            filtering: "address-dependent".into(),
            filtering_unknown: None,
            open: None,
        }),
        tried: vec![],
        changes: vec![],
    }
}

#[test]
fn peers_look_like_this() {
    let (id1, prefix) = (PeerId([1; 32]), &PeerId([1; 32]).to_string()[..16]);
    assert_eq!(
        render(
            &Response::Peers {
                peers: vec![peer_info()]
            },
            STYLE
        ),
        format!(
            "\
NAMES  PATH                        RTT       TX/RX       PEER
b.lab  direct quic 10.0.0.2:4100   0.40 ms   1 k / 0 B   {prefix}
"
        )
    );
    assert_eq!(
        render(&Response::Peer(Box::new(peer_info())), STYLE),
        format!(
            "\
peer {id1}  connected
  names       b.lab
  fingerprint ab12
  path        direct quic 10.0.0.2:4100
  since       21:13 UTC
  held        it is a neighbour: records spread over these
  rtt         0.40 ms
  tx/rx       1 k / 0 B
  there       IPv4, UDP, NAT with the same port for everybody, lets in every port of an address that was sent to
  address     /ip4/10.0.0.2/udp/4100/quic-v1
"
        )
    );
}

#[test]
fn a_relayed_peer_is_told_with_the_reason_what_was_tried_and_what_changed() {
    let relay = PeerId([2; 32]);
    let mut peer = peer_info();
    peer.path = Path {
        via_name: Some("r".into()),
        remedy: Some("open port 4100".into()),
        ..path(
            "relay",
            "datagram",
            "udp",
            &relay.to_string(),
            "symmetric-nat-both",
        )
    };
    let tried = |address: &str, kind: &str, answered, tries| Tried {
        address: address.into(),
        kind: kind.into(),
        answered,
        tries,
        last: (tries > 0).then_some(NOW - 3),
    };
    peer.tried = vec![
        tried("203.0.113.9:4100", "observed", false, 8),
        tried("10.0.0.2:4100", "host", true, 1),
        tried("[2001:db8::1]:4100", "host", false, 0),
    ];
    peer.changes = vec![PathChange {
        at: NOW - 60,
        from: None,
        to: Some("relay r".into()),
        cause: "a probe was answered".into(),
    }];
    let shown = render(&Response::Peer(Box::new(peer.clone())), STYLE);
    for line in [
        "  path        relay r (both NATs symmetric)\n",
        "  since       21:13 UTC\n",
        "  held        it is a neighbour: records spread over these\n",
        "  remedy      open port 4100\n",
        "  tried       203.0.113.9:4100 observed  no answer to 8 probes, the last 3 s ago\n",
        "  tried       10.0.0.2:4100 host  answered before, last asked 3 s ago\n",
        "  tried       [2001:db8::1]:4100 host  not yet\n",
        "  change      22:12 UTC  no path -> relay r: a probe was answered\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
    let shown = json(&Response::Peer(Box::new(peer))).unwrap();
    let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let told = relay.to_string();
    for (at, want) in [
        ("/path/kind", "relay"),
        ("/path/via", told.as_str()),
        ("/path/reason", "symmetric-nat-both"),
        ("/tried/0/kind", "observed"),
        ("/changes/0/to", "relay r"),
    ] {
        assert_eq!(
            value.pointer(at).and_then(|v| v.as_str()),
            Some(want),
            "{at}"
        );
    }
}

#[test]
fn a_datagram_session_is_told() {
    let mut peer = peer_info();
    peer.path = Path {
        mtu: Some(1500),
        ..path("direct", "datagram", "udp", "10.0.0.2:4100", "")
    };
    let cipher = Some("aes-256-gcm".to_owned());
    peer.sessions = vec![SessionInfo {
        cipher,
        post_quantum: Some(true),
        keys: 2,
        path_changes: 1,
    }];
    let shown = render(&Response::Peer(Box::new(peer)), STYLE);
    for line in [
        "  path        direct udp 10.0.0.2:4100\n",
        "  path mtu    1500\n",
        "  session     aes-256-gcm  key 2  path changes 1\n",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
}

#[test]
fn a_probe_looks_like_this() {
    let probe = ProbeInfo {
        target: "b".into(),
        peer_id: PeerId([1; 32]),
        rtt_ms: 11.2,
        control_rtt_ms: Some(48.0),
        jitter_ms: 0.4,
        loss: 0.05,
        mbit: Some(412.0),
        mtu: Some(1500),
        path: path("direct", "datagram", "udp", "203.0.113.9:4100", ""),
        note: None,
    };
    shows(
        Response::Probe(probe.clone()),
        "\
probe b over direct udp 203.0.113.9:4100
  rtt         11 ms
  control rtt 48 ms
  jitter      0.40 ms
  loss        5.0%
  bandwidth   412 Mbit/s
  path mtu    1500
",
    );
    let unmeasured = ProbeInfo {
        control_rtt_ms: None,
        mbit: None,
        mtu: None,
        note: Some("the bandwidth was not measured: refused with code 1006".into()),
        ..probe
    };
    let shown = render(&Response::Probe(unmeasured), STYLE);
    assert!(shown.contains("  control rtt no answer\n"), "{shown}");
    assert!(
        shown.ends_with(
            "  loss        5.0%\n! the bandwidth was not measured: refused with code 1006\n"
        ),
        "{shown}"
    );
}

#[test]
fn the_addresses_of_a_peer_look_like_this() {
    let known = |address: &str, source: &str, reached, used| KnownAddress {
        address: address.into(),
        source: source.into(),
        reached,
        used,
        relay: None,
    };
    let id1 = PeerId([1; 32]);
    let mut peer = ResolvedPeer {
        peer_id: id1,
        names: vec!["b.lab".into()],
        addresses: vec![
            known("/ip4/192.0.2.1/tcp/4100", "typed", true, true),
            known("/ip4/10.0.0.1/tcp/4100", "announcement", false, false),
            known("/ip4/10.0.0.1/tcp/4101", "reached", true, false),
        ],
    };
    shows(
        Response::Resolved(peer.clone()),
        &format!(
            "\
peer {id1}  b.lab
ADDRESS                   SOURCE         STATE
/ip4/192.0.2.1/tcp/4100   typed          in use
/ip4/10.0.0.1/tcp/4100    announcement   -
/ip4/10.0.0.1/tcp/4101    reached        answered
"
        ),
    );
    peer.addresses.clear();
    shows(
        Response::Resolved(peer),
        &format!("peer {id1}  b.lab\n  no address known\n"),
    );
}

#[test]
fn the_node_itself_looks_like_this() {
    let id1 = PeerId([1; 32]);
    shows(
        Response::Id(IdInfo {
            peer_id: id1,
            name: name("a"),
            fingerprint: "ab12 cd34".into(),
            addresses: vec!["/ip4/10.0.0.1/tcp/4100".into()],
        }),
        &format!("node a  {id1}\n  fingerprint ab12 cd34\n  address     /ip4/10.0.0.1/tcp/4100\n"),
    );
}

#[test]
fn a_node_without_an_address_that_leads_out_says_so() {
    let of = |addresses: &[&str]| {
        let id = IdInfo {
            peer_id: PeerId([1; 32]),
            name: name("a"),
            fingerprint: "ab12 cd34".into(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
        };
        let told = render(&Response::Id(id), STYLE);
        told.lines()
            .skip(2)
            .map(ToOwned::to_owned)
            .collect::<Vec<String>>()
    };
    assert_eq!(of(&[]), ["  address     none that others can dial"]);
    let on_link = "/ip6zone/eth0/ip6/fe80::1/tcp/4100";
    assert_eq!(
        of(&[on_link]),
        [
            &format!("  address     {on_link}"),
            "              these lead to this machine on its own links alone; elsewhere the name of the link there stands for eth0"
        ]
    );
}

#[test]
fn ping_looks_like_this() {
    let id1 = PeerId([1; 32]);
    shows(
        Response::Ping(PingInfo {
            target: "b".into(),
            peer_id: id1,
            address: None,
            sent: 4,
            received: 3,
            control_rtt_ms: vec![Some(10.0)],
            rtt_ms: vec![Some(10.0), None, Some(12.0), Some(14.0)],
            path: path("direct", "stream", "quic", "", ""),
            over: None,
            absent: false,
            refused: vec![Problem {
                code: "E-HOST-CLOSED".into(),
                severity: "info".into(),
                message: "the machine of b is closed to subnet lab: it refused tcp/22, 3 s ago".into(),
                help: "on b: byway subnet host lab tcp/22".into(),
            }],
        }),
        "\
--- b ---
4 sent, 3 received, 25% lost
rtt min/avg/max  10 ms / 12 ms / 14 ms
control min/avg/max  10 ms / 10 ms / 10 ms
! the machine of b is closed to subnet lab: it refused tcp/22, 3 s ago   (on b: byway subnet host lab tcp/22)
",
    );
}
