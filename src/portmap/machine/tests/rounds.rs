//! Which protocols a router is asked by, for which ports, and when again after a round in vain.

use super::*;

#[test]
fn protocols_are_tried_in_their_order_and_the_one_that_answers_is_asked_first_from_then_on() {
    let mut w = World::new(vec![], by(Protocol::Upnp, 7200));
    w.set(home());
    let protocols: Vec<Protocol> = w
        .asked
        .iter()
        .map(|(_, order)| of(order).protocol)
        .collect();
    assert_eq!(protocols[..3], Protocol::ALL);
    assert_eq!(protocols[3..], [Protocol::Upnp], "the other port");
    let status = w.status();
    assert_eq!(status.mappings.len(), 2);
    assert_eq!(status.trouble, None);
    assert_eq!(
        status.reached(Transport::Udp).collect::<Vec<_>>(),
        ["203.0.113.9:4100".parse().unwrap()]
    );
}

#[test]
fn a_router_without_any_protocol_is_asked_later_and_later_and_again_at_once_after_a_change() {
    let mut w = World::new(vec![], |_, _| Err(Failure::Silent));
    w.set(home());
    assert_eq!(w.trouble(), Some(Trouble::Silent));
    assert_eq!(w.count(), 3, "one port tells of all");
    assert_eq!(w.machine.records(), [], "nothing is owed");
    w.pass(10 * HOUR);
    let asked = w.count();
    assert!((3 * 14..3 * 20).contains(&asked), "{asked}");
    w.machine.changed(w.now);
    w.settle();
    assert_eq!(w.count(), 3, "at once");
    for _ in 0..50 {
        w.machine.changed(w.now);
        w.settle();
    }
    assert_eq!(w.count(), 0, "not for each of a storm");
    w.pass(200 * SETTLED);
    assert!(w.count() >= 3);
}

#[test]
fn another_port_is_taken_where_the_one_that_was_asked_for_belongs_to_another_machine() {
    let mut w = World::new(vec![], |record: &Record, _| match record.protocol {
        Protocol::Upnp if record.external == 4100 => Err(Failure::InUse),
        Protocol::Upnp => opens(record.external, 7200),
        _ => Err(Failure::Silent),
    });
    w.set(home());
    let status = w.status();
    assert_eq!(status.mappings.len(), 2);
    for mapping in status.mappings {
        assert!(mapping.external.port() >= 1024 && mapping.external.port() != 4100);
    }
    // PCP and NAT-PMP say themselves which one it is.
    let mut w = World::new(vec![], |_, _| opens(5000, 7200));
    w.set(home());
    assert_eq!(w.status().mappings[0].external.port(), 5000);
    w.count();
    w.pass(HOUR);
    assert!(w.asked.iter().all(|(_, order)| of(order).external == 5000));
    // None is free.
    let mut w = World::new(vec![], |_, _| Err(Failure::InUse));
    w.set(home());
    let refused = |protocol| Some(Trouble::Refused(protocol, Why::PortsInUse));
    assert_eq!(w.trouble(), refused(Protocol::Pcp));
    assert!(w.count() <= 2 * 3 * 5);
    assert_eq!(w.machine.records(), []);
}

#[test]
fn a_port_for_ever_is_asked_for_only_where_nothing_shorter_is_to_be_had() {
    let mut w = World::new(vec![], |record: &Record, lease| {
        match (record.protocol, lease) {
            (Protocol::Upnp, 0) => opens(record.external, 0),
            (Protocol::Upnp, _) => Err(Failure::PermanentOnly),
            _ => Err(Failure::Silent),
        }
    });
    w.set(home());
    let status = w.status();
    assert_eq!(status.mappings.len(), 2);
    assert_eq!(status.mappings[0].until, None);
    assert_eq!(w.machine.records()[0].until, u64::MAX);
    w.pass(48 * HOUR);
    assert_eq!(w.status().mappings.len(), 2);
    w.set(Situation {
        is_enabled: false,
        ..home()
    });
    assert_eq!(w.machine.records(), [], "and it is removed");
}

#[test]
fn leases_that_make_no_sense_have_no_effect() {
    for lease in [0, 1, 19] {
        let mut w = World::new(vec![], move |_, _| opens(4100, lease));
        w.set(home());
        assert_eq!(
            w.trouble(),
            Some(Trouble::Refused(Protocol::Pcp, Why::ShortLease)),
            "{lease}"
        );
        w.pass(HOUR);
        assert!(w.count() < 100);
    }
    let mut w = World::new(vec![], |_, _| opens(4100, u32::MAX));
    w.set(home());
    let until = w.status().mappings[0].until.unwrap();
    assert_eq!(until - w.now, 24 * HOUR);
    let mut w = World::new(vec![], |_, _| opens(0, 7200));
    w.set(home());
    assert_eq!(w.trouble(), Some(Trouble::Silent), "port 0 is none");
}

#[test]
fn the_router_behind_another_one_is_a_reason_and_no_candidate() {
    for (outside, trouble) in [
        (
            "192.168.0.5",
            Trouble::DoubleNat("192.168.0.5".parse().unwrap()),
        ),
        (
            "100.64.3.4",
            Trouble::DoubleNat("100.64.3.4".parse().unwrap()),
        ),
        ("0.0.0.0", Trouble::Refused(Protocol::Pcp, Why::NoAddress)),
    ] {
        let ip = outside.parse().unwrap();
        let mut w = World::new(vec![], move |_, _| {
            opens(4100, 7200).map(|granted| Granted {
                external: SocketAddr::new(ip, 4100),
                ..granted
            })
        });
        w.set(home());
        assert_eq!(w.trouble(), Some(trouble));
        assert_eq!(w.status().reached(Transport::Udp).count(), 0);
        assert_eq!(w.status().mappings.len(), 2, "the port is kept open");
    }
}

#[test]
fn a_port_of_no_use_is_told_by_the_protocol_that_opened_it() {
    let mut w = World::new(vec![], move |record, _| {
        let (protocol, outside) = match record.port.transport {
            Transport::Udp => (Protocol::Pcp, "203.0.113.9"),
            Transport::Tcp => (Protocol::Upnp, "0.0.0.0"),
        };
        if record.protocol != protocol {
            return Err(Failure::Silent);
        }
        opens(4100, 7200).map(|granted| Granted {
            external: SocketAddr::new(outside.parse().unwrap(), 4100),
            ..granted
        })
    });
    w.set(home());
    let protocols = w.status().mappings.into_iter().map(|m| m.protocol);
    assert!(protocols.eq([Protocol::Pcp, Protocol::Upnp]));
    assert_eq!(
        w.trouble(),
        Some(Trouble::Refused(Protocol::Upnp, Why::NoAddress))
    );
}

#[test]
fn nothing_is_asked_without_a_router_or_where_there_is_nothing_to_gain() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 7200));
    w.set(Situation {
        gateway: None,
        ..home()
    });
    assert_eq!(w.trouble(), Some(Trouble::NoGateway));
    let public = Gateway {
        local: "203.0.113.7".parse().unwrap(),
        ..gateway("192.168.1.7")
    };
    w.set(Situation {
        gateway: Some(public),
        ..home()
    });
    assert_eq!(w.trouble(), Some(Trouble::Public(public.local)));
    w.set(Situation {
        ports: vec![],
        ..home()
    });
    assert_eq!((w.trouble(), w.status().is_enabled), (None, false));
    assert_eq!(w.count(), 0);
    assert_eq!(w.machine.deadline(), None);
}

#[test]
fn without_random_numbers_nothing_is_asked_for_but_later_and_later_and_what_is_owed_is_removed() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 7200));
    w.set(home());
    let left = w.machine.records();
    let mut w = World::new(left, by(Protocol::Pcp, 7200));
    w.is_random = false;
    let port = Port {
        number: 4200,
        ..UDP
    };
    w.set(Situation {
        ports: vec![port],
        ..home()
    });
    let is_removal = |(_, order): &(Duration, Order)| matches!(order, Order::Remove(_));
    assert!(w.asked.iter().all(is_removal), "{:?}", w.asked);
    assert_eq!((w.count(), w.machine.records()), (2, vec![]));
    assert_eq!(w.trouble(), Some(Trouble::NoRandomness));
    let mut tries = 0;
    while let Some(next) = w
        .machine
        .deadline()
        .filter(|next| *next <= w.begun + 10 * HOUR)
    {
        assert!(next > w.now, "it spins");
        (w.now, tries) = (next, tries + 1);
        w.settle();
    }
    assert!((8..=20).contains(&tries), "{tries}");
    assert_eq!(w.count(), 0);
    w.is_random = true;
    w.pass(HOUR);
    assert_eq!((w.status().mappings.len(), w.trouble()), (1, None));
}

#[test]
fn a_router_that_has_refused_for_hours_is_asked_at_once_when_somebody_wants_it() {
    let mut w = World::new(vec![], |_, _| Err(Failure::Refused(Why::NotAuthorized)));
    w.set(home());
    w.pass(Duration::from_secs(6 * 3600));
    let pause = w.status().again.unwrap() - w.now;
    assert!(pause > MINUTE, "it is asked seldom by now: {pause:?}");
    w.answers = Box::new(by(Protocol::Pcp, 7200));
    w.machine.changed(w.now);
    w.settle();
    assert_eq!(w.status().mappings.len(), 2);
    assert_eq!((w.trouble(), w.status().again), (None, None));
}

#[test]
fn the_next_question_is_told_while_asking_is_of_use() {
    let mut w = World::new(vec![], |_, _| Err(Failure::Silent));
    w.set(home());
    assert_eq!(w.trouble(), Some(Trouble::Silent));
    assert_eq!(w.status().again, Some(w.now + MINUTE));
    assert_eq!(w.status().wanted, [UDP, TCP]);
    let public = Gateway {
        local: "203.0.113.7".parse().unwrap(),
        ..home().gateway.unwrap()
    };
    w.set(Situation {
        gateway: Some(public),
        ..home()
    });
    assert!(matches!(w.trouble(), Some(Trouble::Public(_))));
    assert_eq!(w.status().again, None);
}
