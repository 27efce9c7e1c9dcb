use super::entry::Direction;
use super::*;
use proptest::prelude::*;

fn flow() -> Entry {
    let addr = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
    let side = |source, destination, source_port, destination_port| Direction {
        source: addr(source),
        destination: addr(destination),
        proto: Some(6),
        source_port: Some(source_port),
        destination_port: Some(destination_port),
        icmp_type: None,
    };
    Entry {
        original: side(1, 2, 40000, 8080),
        reply: side(3, 1, 80, 40000),
        rewritten: true,
        mark: 0,
        family: NetfilterProtoFamily::IPv4,
        handle: vec![],
    }
}

fn map() -> MapFlows {
    MapFlows {
        proto: Proto::Tcp,
        listen: "0.0.0.0".parse().unwrap(),
        port: 8080,
        target: "192.0.2.3".parse().unwrap(),
        target_port: 80,
    }
}

#[test]
fn only_flows_of_the_map_match() {
    assert!(flow().is_of(&map()));
    assert!(flow().is_of(&MapFlows {
        listen: "192.0.2.2".parse().unwrap(),
        ..map()
    }));
    assert!(!flow().is_of(&MapFlows {
        listen: "192.0.2.9".parse().unwrap(),
        ..map()
    }));
    assert!(!flow().is_of(&MapFlows {
        proto: Proto::Udp,
        ..map()
    }));
    assert!(!flow().is_of(&MapFlows {
        port: 8081,
        ..map()
    }));
    assert!(!flow().is_of(&MapFlows {
        target_port: 81,
        ..map()
    }));
    assert!(
        !Entry {
            rewritten: false,
            ..flow()
        }
        .is_of(&map())
    );
    assert!(flow().touches(&["192.0.2.3".parse().unwrap()]));
    assert!(!flow().touches(&["192.0.2.4".parse().unwrap()]));
}

#[test]
fn a_map_that_begins_is_asked_about_flows_of_before() {
    let own = ["192.0.2.2".parse().unwrap()];
    let begun = |target: &str| Begun {
        maps: vec![MapFlows {
            target: target.parse().unwrap(),
            ..map()
        }],
        overlay: vec!["192.0.2.3/32".parse().unwrap()],
    };
    let plain = Entry {
        rewritten: false,
        ..flow()
    };
    assert!(
        plain.precedes(&begun("192.0.2.3"), &own),
        "nobody rewrote it"
    );
    assert!(
        !plain.precedes(&begun("192.0.2.3"), &[]),
        "it passes through this machine"
    );
    assert!(
        !flow().precedes(&begun("192.0.2.3"), &own),
        "it is this very map's"
    );
    assert!(flow().precedes(&begun("192.0.2.4"), &own), "a former map's");
    let foreign = Begun {
        overlay: vec![],
        ..begun("192.0.2.4")
    };
    assert!(
        !flow().precedes(&foreign, &own),
        "another program translated it"
    );
    let elsewhere = Begun {
        maps: vec![MapFlows {
            port: 8081,
            ..map()
        }],
        ..begun("192.0.2.4")
    };
    assert!(!plain.precedes(&elsewhere, &own));
}

/// A flow from one port to another, as the first packet had it.
fn asked(proto: u8, from: &str, to: &str) -> Entry {
    let (from, to): (std::net::SocketAddr, std::net::SocketAddr) =
        (from.parse().unwrap(), to.parse().unwrap());
    let ports = proto == 6 || proto == 17;
    let original = Direction {
        source: Some(from.ip()),
        destination: Some(to.ip()),
        proto: Some(proto),
        source_port: ports.then(|| from.port()),
        destination_port: ports.then(|| to.port()),
        // Where a ping has its number, the tests write it as the port.
        icmp_type: (!ports).then(|| u8::try_from(to.port()).unwrap()),
    };
    Entry {
        original,
        reply: Direction::default(),
        rewritten: false,
        ..flow()
    }
}

fn lets_in(host: &str) -> HostFlows {
    HostFlows {
        prefixes: vec![
            "10.7.0.0/16".parse().unwrap(),
            "fd00:7::/48".parse().unwrap(),
        ],
        own: vec!["10.7.1.1".parse().unwrap(), "fd00:7::1".parse().unwrap()],
        before: None,
        host: host.parse().unwrap(),
    }
}

#[test]
fn only_flows_to_the_machine_that_are_not_let_in_end() {
    let verdict = |proto, from, to| asked(proto, from, to).verdict(&[lets_in("tcp/80")], false);
    for (proto, from, to) in [
        (6, "10.7.2.1:40000", "10.7.1.1:80"),
        (17, "10.7.2.1:40000", "10.7.1.1:53"),
        (1, "10.7.2.1:0", "10.7.1.1:8"),
        (58, "[fd00:7::9]:0", "[fd00:7::1]:128"),
        // A workload, the machine's own, somebody outside.
        (6, "10.7.2.1:40000", "10.7.1.5:22"),
        (6, "10.7.1.1:40000", "10.7.2.1:22"),
        (17, "10.7.1.1:5000", "10.7.2.1:40000"),
        (6, "192.0.2.9:40000", "192.0.2.1:22"),
    ] {
        assert_eq!(
            verdict(proto, from, to),
            Verdict::Leave,
            "{proto} {from} {to}"
        );
    }
    for (from, to) in [
        ("10.7.2.1:40000", "10.7.1.1:22"),
        ("[fd00:7::9]:40000", "[fd00:7::1]:22"),
        // Every address of the machine; names are asked at our own only.
        ("10.7.1.5:40000", "192.0.2.1:22"),
        ("10.7.1.5:40000", "192.0.2.1:53"),
    ] {
        assert_eq!(verdict(6, from, to), Verdict::End, "{from} {to}");
        assert_eq!(verdict(17, from, to), Verdict::Mark, "{from} {to}");
    }
    assert_eq!(verdict(132, "10.7.2.1:0", "10.7.1.1:0"), Verdict::Mark);
    assert_eq!(
        verdict(1, "10.7.2.1:0", "10.7.1.1:13"),
        Verdict::Mark,
        "a question for the time is no ping"
    );
    assert_eq!(
        asked(132, "10.7.2.1:0", "10.7.1.1:0").verdict(&[lets_in("open")], false),
        Verdict::Leave
    );
    assert_eq!(
        asked(6, "10.7.2.1:40000", "10.7.1.1:22").verdict(&[lets_in("closed")], true),
        Verdict::Leave,
        "a map"
    );
}

#[test]
fn a_flow_that_was_ended_goes_on_only_once_it_is_let_in() {
    let ended = Entry {
        mark: ENDED,
        ..asked(17, "10.7.2.1:40000", "10.7.1.1:5000")
    };
    assert_eq!(
        ended.verdict(&[lets_in("closed")], false),
        Verdict::Leave,
        "it is marked"
    );
    assert_eq!(
        ended.verdict(&[lets_in("udp/5000")], false),
        Verdict::Resume
    );
    let of_another = Entry {
        mark: ENDED | 1 << 31,
        ..ended
    };
    assert_eq!(
        of_another.verdict(&[lets_in("closed")], false),
        Verdict::Mark,
        "somebody else's mark"
    );
}

proptest! {
    #[test]
    fn datagrams_never_panic(bytes in proptest::collection::vec(0u8..40, 0..120)) {
        for (_, whole, body) in messages(&bytes) {
            let _ = errno(body);
            if let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(whole)
                && let NetlinkPayload::InnerMessage(message) = message.payload {
                    let _ = Entry::of(message);
            }
        }
    }
}

#[test]
fn what_a_server_began_by_itself_ends_where_its_port_was_named() {
    let pushed = asked(17, "10.7.1.1:5000", "10.7.2.1:40000");
    let narrowed = |before: Option<&str>, host: &str| {
        let before = before.map(|text| text.parse().unwrap());
        pushed.verdict(
            &[HostFlows {
                before,
                ..lets_in(host)
            }],
            false,
        )
    };
    assert_eq!(narrowed(Some("tcp/22,udp/5000"), "tcp/22"), Verdict::Mark);
    assert_eq!(
        narrowed(Some("udp/5000"), "udp/4000-6000"),
        Verdict::Leave,
        "let in still"
    );
    // Nobody said that there is a server: the machine may speak to whom it likes.
    for before in [None, Some("open"), Some("closed"), Some("tcp/5000")] {
        assert_eq!(narrowed(before, "closed"), Verdict::Leave, "{before:?}");
    }
    let flows = [HostFlows {
        before: Some("udp/53".parse().unwrap()),
        ..lets_in("closed")
    }];
    assert_eq!(
        asked(17, "10.7.1.1:53", "10.7.2.1:40000").verdict(&flows, false),
        Verdict::Leave,
        "names"
    );
}
