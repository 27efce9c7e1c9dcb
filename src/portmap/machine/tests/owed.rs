//! What is remembered of ports: what is owed back to routers, and what a killed daemon left.

use super::*;
use crate::portmap::records::MAX_RECORDS;
use std::net::IpAddr;

#[test]
fn at_another_router_nothing_of_the_one_before_counts_and_its_record_waits_for_its_return() {
    let mut w = World::new(vec![], by(Protocol::NatPmp, 7200));
    w.set(home());
    w.count();
    let other = Gateway {
        address: "10.0.0.1".parse().unwrap(),
        local: "10.0.0.9".parse().unwrap(),
    };
    w.answers = Box::new(|_, _| Err(Failure::Silent));
    w.set(Situation {
        gateway: Some(other),
        ..home()
    });
    assert_eq!(w.status().mappings, []);
    assert_eq!(w.machine.records().len(), 2);
    assert!(w.asked.iter().all(|(_, order)| of(order).gateway == other));
    w.count();
    w.set(Situation {
        is_enabled: false,
        ..home()
    });
    assert_eq!(w.machine.records(), [], "removed once it is back");
    assert_eq!(w.count(), 2);
}

#[test]
fn what_a_killed_daemon_left_is_taken_over_or_removed() {
    let mut w = World::new(vec![], |_, _| opens(5000, 7200));
    w.set(home());
    let left = w.machine.records();
    assert_eq!(left.len(), 2);
    // The same ports: by the same name, and the same port of the router.
    let mut w = World::new(left.clone(), by(Protocol::Pcp, 7200));
    w.set(home());
    assert_eq!(of(&w.asked[0].1).nonce, left[0].nonce);
    assert_eq!(w.status().mappings[0].external.port(), 5000);
    assert_eq!(w.machine.records().len(), 2);
    // Another port: the one before is removed, by its own name.
    let mut w = World::new(left.clone(), by(Protocol::Pcp, 7200));
    let port = Port {
        number: 4200,
        ..UDP
    };
    w.set(Situation {
        ports: vec![port],
        ..home()
    });
    let removed: Vec<Record> = w
        .asked
        .iter()
        .filter_map(|(_, order)| match order {
            Order::Remove(record) => Some(*record),
            Order::Map { .. } => None,
        })
        .collect();
    assert_eq!(removed, left);
    // Switched off: nothing is asked for, all is removed.
    let mut w = World::new(left.clone(), by(Protocol::Pcp, 7200));
    w.set(Situation {
        is_enabled: false,
        ..home()
    });
    assert_eq!((w.count(), w.machine.records()), (2, vec![]));
    // What has ended by itself is forgotten.
    let mut w = World::new(left, by(Protocol::Pcp, 7200));
    w.unix += 7300;
    w.set(Situation {
        is_enabled: false,
        ..home()
    });
    assert_eq!((w.count(), w.machine.records()), (0, vec![]));
}

#[test]
fn a_removal_that_fails_is_tried_three_times_and_then_owed_to_the_next_start() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 7200));
    w.set(home());
    w.count();
    w.machine.set(
        w.now,
        Situation {
            is_enabled: false,
            ..home()
        },
    );
    let mut removals = 0;
    for _ in 0..600 {
        while let Some(order) = w.machine.poll(w.now, w.unix, &mut || Some(1)) {
            removals += 1;
            w.machine.done(w.now, w.unix, &order, Err(Failure::Silent));
        }
        w.now += Duration::from_secs(1);
    }
    assert_eq!(removals, 6);
    assert_eq!(w.machine.records().len(), 2);
    assert_eq!(w.machine.at_this_router().len(), 2);
    assert_eq!(w.machine.deadline(), None);
}

#[test]
fn a_port_whose_answer_was_lost_is_owed_until_it_is_removed() {
    // The router opened it and nobody heard, and then it refuses.
    let mut w = World::new(vec![], |record: &Record, _| match record.protocol {
        Protocol::NatPmp => Err(Failure::Lost),
        _ => Err(Failure::Silent),
    });
    w.set(home());
    assert_eq!(w.trouble(), Some(Trouble::Silent));
    let refused = || Err(Failure::Refused(Why::NotAuthorized));
    w.answers = Box::new(move |_, _| refused());
    w.machine.changed(w.now);
    w.settle();
    let [left] = w.machine.records().try_into().unwrap();
    assert_eq!((left.protocol, left.port), (Protocol::NatPmp, UDP));
    assert_eq!(w.machine.at_this_router(), [left], "removed at the stop");
    w.set(Situation {
        is_enabled: false,
        ..home()
    });
    assert_eq!(w.machine.records(), [], "and when it is wanted no more");
    // A router that has opened one port by PCP may have opened the other one.
    let mut w = World::new(vec![], |record: &Record, _| match record.port {
        UDP => by(Protocol::Pcp, 7200)(record, 7200),
        _ => Err(Failure::Silent),
    });
    w.set(home());
    let ports: Vec<Port> = w.machine.records().iter().map(|r| r.port).collect();
    assert_eq!(ports, [UDP, TCP]);
}

#[test]
fn what_cannot_be_saved_is_not_asked_for() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 7200));
    w.machine.set(w.now, home());
    let order = w.machine.poll(w.now, w.unix, &mut || Some(1)).unwrap();
    w.machine.unsaved(w.now, &order);
    assert_eq!(w.trouble(), Some(Trouble::Unsaved));
    assert_eq!(w.machine.records(), []);
    assert_eq!(w.machine.poll(w.now, w.unix, &mut || Some(1)), None);
    w.pass(2 * MINUTE);
    assert_eq!((w.status().mappings.len(), w.trouble()), (2, None));
}

#[test]
fn records_are_bounded_and_the_first_to_end_gives_way() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 7200));
    for n in 0..40_u8 {
        w.unix += 1;
        let gateway = Gateway {
            address: [10, 0, n, 1].into(),
            local: [10, 0, n, 2].into(),
        };
        w.set(Situation {
            gateway: Some(gateway),
            ports: vec![UDP],
            is_enabled: true,
        });
    }
    let records = w.machine.records();
    assert_eq!(records.len(), MAX_RECORDS);
    let number = |r: &Record| match r.gateway.address {
        IpAddr::V4(ip) => ip.octets()[2],
        IpAddr::V6(ip) => panic!("{ip}"),
    };
    assert!(records.iter().any(|r| number(r) == 39));
    assert!(records.iter().all(|r| number(r) > 20));
}
