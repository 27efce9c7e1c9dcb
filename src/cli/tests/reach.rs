//! What `netcheck` and `doctor` print, and how they end.

use super::*;
use crate::api::types::{LanInfo, ProxyInfo};

fn nat(mapping: &str, step: Option<i16>) -> NatInfo {
    NatInfo {
        ipv4: true,
        ipv6: false,
        udp: "works".into(),
        mapping: mapping.into(),
        step,
        filtering: "address-and-port-dependent".into(),
        filtering_unknown: None,
        open: None,
    }
}

#[test]
fn a_port_that_is_open_for_everybody_is_named_at_either_end() {
    let mut nat = nat("dependent", None);
    nat.open = Some("203.0.113.9:4100".into());
    let told = netcheck::end(&nat);
    let want = "symmetric NAT, lets in everybody at 203.0.113.9:4100; elsewhere only the port that was sent to";
    assert!(told.ends_with(want), "{told}");
    for filtering in ["unknown", "of-a-later-version"] {
        nat.filtering = filtering.into();
        let told = netcheck::behind(&nat).unwrap();
        assert!(
            told.ends_with("; lets in everybody at 203.0.113.9:4100"),
            "{told}"
        );
    }
    nat.filtering = "endpoint-independent".into();
    let told = netcheck::end(&nat);
    assert!(told.ends_with(", lets in everybody"), "{told}");
}

#[test]
fn a_place_at_a_member_is_told_from_one_at_a_relay_of_the_configuration() {
    let mut info = netcheck();
    let told = |info: &NetcheckInfo| netcheck::netcheck(info, STYLE);
    assert!(!told(&info).contains("invites do not name it"));
    info.meeting_points[0].configured = false;
    let text = told(&info);
    assert!(
        text.contains("keeps a place (a member: invites do not name it)  11 ms"),
        "{text}"
    );
}

fn finding() -> Problem {
    Problem {
        code: "E-NAT-SYMMETRIC".into(),
        severity: "warning".into(),
        message: "the NAT is symmetric".into(),
        help: "forward a port".into(),
    }
}

fn netcheck() -> NetcheckInfo {
    NetcheckInfo {
        nat: nat("dependent", Some(2)),
        addresses: vec![
            OwnAddress {
                address: "203.0.113.9:50000".into(),
                kind: "observed".into(),
                seen_by: vec!["b.lab".into()],
            },
            OwnAddress {
                address: "10.0.0.2:4100".into(),
                kind: "host".into(),
                seen_by: vec![],
            },
        ],
        meeting_points: vec![
            MeetingPoint {
                peer_id: PeerId([2; 32]),
                name: Some("r".into()),
                address: "192.0.2.1:4100".into(),
                configured: true,
                connected: true,
                reserved: true,
                reserved_since: Some(NOW),
                refused: None,
                refused_since: None,
                denied: false,
                rtt_us: Some(11_200),
            },
            MeetingPoint {
                peer_id: PeerId([3; 32]),
                name: None,
                address: "192.0.2.2:4100".into(),
                configured: true,
                connected: false,
                reserved: false,
                reserved_since: None,
                refused: None,
                refused_since: None,
                denied: false,
                rtt_us: None,
            },
            MeetingPoint {
                peer_id: PeerId([4; 32]),
                name: Some("s".into()),
                address: "10.9.0.1:4100".into(),
                configured: true,
                connected: false,
                reserved: false,
                reserved_since: None,
                refused: None,
                refused_since: None,
                denied: true,
                rtt_us: None,
            },
            MeetingPoint {
                peer_id: PeerId([5; 32]),
                name: Some("t".into()),
                address: "192.0.2.5:4100".into(),
                configured: true,
                connected: true,
                reserved: false,
                reserved_since: None,
                refused: Some("not-served".into()),
                refused_since: Some(NOW),
                denied: false,
                rtt_us: Some(4_000),
            },
        ],
        lan: Some(LanInfo {
            links: vec!["eth0".into()],
            peers: 3,
            asked: 4,
            told: 2,
            heard: 9,
            dropped: 1,
        }),
        proxy: Some(ProxyInfo {
            address: "p.example:3128".into(),
            connected_at: Some(NOW - 60),
            refused: Some("the proxy does not connect: 403 Forbidden".into()),
            refused_place: Some("a.example:4100".into()),
            refused_at: Some(NOW),
        }),
        router: Some(RouterInfo {
            gateway: Some("192.168.1.1".parse().unwrap()),
            ports: [("udp", Some(6_901)), ("tcp", None)]
                .map(|(proto, lease_s)| RouterPort {
                    proto: proto.into(),
                    port: 4100,
                    external: "203.0.113.9:4101".into(),
                    protocol: "upnp".into(),
                    lease_s,
                })
                .to_vec(),
            trouble: None,
            text: None,
            wanted: vec!["udp/4100".into(), "tcp/4100".into()],
            again_s: None,
            others: vec![
                RouterInfo {
                    gateway: Some("fe80::1".parse().unwrap()),
                    ports: vec![RouterPort {
                        proto: "udp".into(),
                        port: 4100,
                        external: "[2001:db8::7]:4100".into(),
                        protocol: "pcp".into(),
                        lease_s: Some(6_901),
                    }],
                    trouble: None,
                    text: None,
                    wanted: vec![],
                    again_s: None,
                    others: vec![],
                },
                RouterInfo {
                    gateway: Some("192.168.2.1".parse().unwrap()),
                    ports: vec![],
                    trouble: Some("refused".into()),
                    text: Some("the router refuses to open a port by UPnP: why".into()),
                    wanted: vec!["udp/4100".into(), "tcp/4100".into()],
                    again_s: Some(2520),
                    others: vec![],
                },
            ],
        }),
        external: Some(ExternalInfo {
            by: "stun".into(),
            address: Some("203.0.113.9:50000".into()),
            sources: vec![
                ExternalSource {
                    name: "stun.example:3478".into(),
                    said: None,
                    error: Some("it does not answer".into()),
                },
                ExternalSource {
                    name: "192.0.2.1:3478".into(),
                    said: Some("203.0.113.9:50000".into()),
                    error: None,
                },
            ],
        }),
        findings: vec![finding()],
    }
}

#[test]
fn a_look_at_this_machines_ways_out_looks_like_this() {
    let nameless = PeerId([3; 32]).short();
    shows(
        Response::Netcheck(netcheck()),
        &format!(
            "  ipv4        yes
  ipv6        no
  udp         works
  nat         symmetric: another port for each peer, +2 each time
  lets in     only the port that was sent to
  address     203.0.113.9:50000 observed  seen by b.lab
  address     10.0.0.2:4100 host
  meeting     r 192.0.2.1:4100  keeps a place  11 ms
  meeting     {nameless} 192.0.2.2:4100  not reached
  meeting     s 10.9.0.1:4100  not dialled (transport.deny_cidrs)
  meeting     t 192.0.2.5:4100  reached, keeps no place: it does not serve this machine (since 22:13 UTC)  4.0 ms
  lan         3 heard of on eth0 (asked 4, told 2, 1 dropped)
  proxy       p.example:3128  connected last 1 min ago; refused last for a.example:4100 0 s ago: the proxy does not connect: 403 Forbidden
  router      192.168.1.1  203.0.113.9:4101 leads to udp 4100 by upnp, for 116 min
  router      192.168.1.1  203.0.113.9:4101 leads to tcp 4100 by upnp, for ever
  router      fe80::1  [2001:db8::7]:4100 leads to udp 4100 by pcp, for 116 min
  router      192.168.2.1  refuses to open a port by UPnP: why
              192.168.2.1 is asked again for udp/4100, tcp/4100 in 42 min, or at once by byway doctor --fix
  outside     203.0.113.9:50000 by stun
              stun.example:3478: it does not answer
              192.0.2.1:3478: 203.0.113.9:50000
! the NAT is symmetric   (forward a port)
"
        ),
    );
    let well = NetcheckInfo {
        nat: nat("none", None),
        addresses: vec![],
        meeting_points: vec![],
        lan: None,
        proxy: None,
        router: None,
        external: None,
        findings: vec![],
    };
    let without = NetcheckInfo {
        router: Some(RouterInfo {
            gateway: None,
            ports: vec![],
            trouble: Some("no-gateway".into()),
            text: Some("no IPv4 default route leads over a router".into()),
            wanted: vec![],
            again_s: None,
            others: vec![],
        }),
        ..well.clone()
    };
    let shown = render(&Response::Netcheck(without), STYLE);
    let line = "  router      none  no IPv4 default route leads over a router\n";
    assert!(shown.contains(line), "{shown}");
    let shown = render(&Response::Netcheck(well), STYLE);
    assert!(
        shown.ends_with(
            "  nat         none\n  lets in     only the port that was sent to\nnothing is wrong\n"
        ),
        "{shown}"
    );
}

#[test]
fn a_diagnosis_names_cause_remedy_and_both_ends() {
    let diagnosis = Diagnosis {
        peer_id: PeerId([1; 32]),
        name: "c.lab".into(),
        path: Path {
            via_name: Some("r".into()),
            remedy: Some("forward a port on one side".into()),
            ..path("relay", "datagram", "udp", "", "symmetric-nat-both")
        },
        cause: Some("both NATs are symmetric".into()),
        here: Some(nat("dependent", None)),
        there: Some(nat("independent", None)),
        tried: vec![Tried {
            address: "203.0.113.9:4100".into(),
            kind: "observed".into(),
            answered: false,
            tries: 8,
            last: None,
        }],
        changes: vec![],
    };
    shows(
        Response::Doctor(DoctorInfo {
            done: vec![],
            peers: vec![diagnosis],
            router: netcheck().router.map(|first| RouterInfo {
                others: vec![RouterInfo {
                    gateway: Some("192.168.2.1".parse().unwrap()),
                    trouble: Some("not-needed".into()),
                    text: Some("not needed: 192.0.2.1 of this machine is a public address".into()),
                    ports: vec![],
                    wanted: vec![],
                    again_s: None,
                    others: vec![],
                }],
                ..first
            }),
            findings: vec![finding()],
        }),
        "\
peer c.lab  relay r (both NATs symmetric)
  since       21:13 UTC
  cause       both NATs are symmetric
  remedy      forward a port on one side
  here        IPv4, UDP, symmetric NAT, lets in only the port that was sent to
  there       IPv4, UDP, NAT with the same port for everybody, lets in only the port that was sent to
  tried       203.0.113.9:4100 observed  no answer to 8 probes
  router      192.168.1.1  203.0.113.9:4101 leads to udp 4100 by upnp, for 116 min
  router      192.168.1.1  203.0.113.9:4101 leads to tcp 4100 by upnp, for ever
! the NAT is symmetric   (forward a port)
",
    );
}

#[test]
fn what_is_wrong_is_exit_9_and_a_mere_word_is_not() {
    let judged = |findings: &[Problem]| {
        super::netcheck::judged(Outcome::default(), findings)
            .error
            .map(|error| (error.kind.exit_code(), error.message, error.hint))
    };
    assert_eq!(judged(&[]), None);
    let word = Problem {
        severity: "info".into(),
        ..finding()
    };
    assert_eq!(judged(std::slice::from_ref(&word)), None);
    // The remedy stands in the answer, and is not told again.
    assert_eq!(
        judged(&[word, finding()]),
        Some((9, "the NAT is symmetric".to_owned(), String::new()))
    );
}

#[test]
fn a_remedy_is_told_once_however_many_peers_have_the_same_trouble() {
    let remedy = |name: &str| format!("let it through the firewall at {name} or here");
    let peer = |name: &str| Diagnosis {
        peer_id: PeerId([1; 32]),
        name: name.to_owned(),
        path: Path {
            via_name: Some("r".into()),
            remedy: Some(remedy(name)),
            ..path("relay", "datagram", "udp", "", "peer-silent")
        },
        cause: Some(format!("{name} answers no datagram")),
        here: None,
        there: None,
        tried: vec![],
        changes: vec![],
    };
    let found = |name: &str| Problem {
        code: "E-RELAYED".into(),
        severity: "warning".into(),
        message: format!("{name} is relayed because {name} answers no datagram"),
        help: remedy(name),
    };
    let info = DoctorInfo {
        done: vec![],
        peers: ["b.lab", "c.lab"].map(peer).to_vec(),
        router: None,
        findings: ["b.lab", "c.lab"].map(found).to_vec(),
    };
    let told = render(&Response::Doctor(info), STYLE);
    assert_eq!(told.matches("let it through").count(), 1, "{told}");
    let last = "! b.lab is relayed because b.lab answers no datagram; the same holds for c.lab   \
                (let it through the firewall at each of them or here)\n";
    assert!(told.ends_with(last), "{told}");
}

#[test]
fn what_was_mended_is_told_before_what_is_left() {
    let told = render(
        &Response::Doctor(DoctorInfo {
            done: vec!["dialled b again: it is connected".into()],
            peers: vec![],
            router: None,
            findings: vec![],
        }),
        STYLE,
    );
    assert_eq!(
        told,
        "done: dialled b again: it is connected\nnothing is wrong\n"
    );
    let Verb::Doctor(args) = parsed("byway doctor b --fix") else {
        panic!()
    };
    let fix = args.request();
    assert!(fix.changes(), "it is no verb that only looks");
    let Verb::Doctor(args) = parsed("byway doctor b") else {
        panic!()
    };
    assert!(!args.request().changes());
}
