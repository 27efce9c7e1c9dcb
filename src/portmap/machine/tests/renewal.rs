//! Ports that are open, and are kept open.

use super::*;

#[test]
fn a_port_is_asked_for_again_at_half_of_its_time_by_the_same_name() {
    for (lease, half) in [(600, 300), (7200, 900), (21, 10)] {
        let mut w = World::new(vec![], by(Protocol::Pcp, lease));
        w.set(home());
        let first = of(&w.asked[0].1);
        w.count();
        let half = Duration::from_secs(half);
        w.pass(half - Duration::from_secs(1));
        assert_eq!(w.count(), 0, "{lease}");
        w.pass(Duration::from_secs(2));
        assert_eq!(w.asked.len(), 2, "{lease}");
        assert_eq!(of(&w.asked[0].1).nonce, first.nonce);
        assert_ne!(first.nonce, [0; 3]);
        w.pass(HOUR);
        assert_eq!(w.status().mappings.len(), 2, "kept for an hour");
    }
}

#[test]
fn a_renewal_that_is_refused_is_told_and_the_port_counts_until_its_end() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 600));
    w.set(home());
    w.answers = Box::new(|_, _| Err(Failure::Refused(Why::NotAuthorized)));
    w.pass(Duration::from_secs(310));
    assert_eq!(
        w.trouble(),
        Some(Trouble::Refused(Protocol::Pcp, Why::NotAuthorized))
    );
    assert_eq!(w.status().mappings.len(), 2);
    w.pass(Duration::from_secs(300));
    assert_eq!(w.status().mappings.len(), 0);
    let asked = w.count();
    assert!(asked < 120, "{asked} questions in 610 seconds");
    w.answers = Box::new(by(Protocol::Pcp, 600));
    w.pass(2 * MINUTE);
    assert_eq!((w.status().mappings.len(), w.trouble()), (2, None));
}

#[test]
fn a_router_that_began_anew_loses_no_port_for_longer_than_one_renewal() {
    for (epochs, is_anew) in [
        ([1000, 1900], false),
        ([1000, 3], true),
        ([1000, 1001], true),
    ] {
        let mut calls = 0;
        let mut w = World::new(vec![], move |record: &Record, _| {
            calls += 1;
            let epoch = Some(epochs[usize::from(calls > 2)]);
            opens(record.external, 7200).map(|granted| Granted { epoch, ..granted })
        });
        w.set(home());
        // The two ports are asked for 100 seconds apart.
        w.machine.entries[1].due += Duration::from_secs(100);
        w.count();
        w.pass(Duration::from_secs(901));
        assert_eq!(w.count(), if is_anew { 2 } else { 1 }, "{epochs:?}");
    }
}

#[test]
fn a_router_that_begins_anew_with_each_answer_is_asked_with_pauses() {
    let mut calls = 0;
    let mut w = World::new(vec![], move |record: &Record, _| {
        calls += 1;
        let epoch = Some(if calls % 2 == 0 { 3 } else { 1000 });
        opens(record.external, 7200).map(|granted| Granted { epoch, ..granted })
    });
    w.set(home());
    w.pass(MINUTE);
    let asked = w.count();
    assert!((4..=14).contains(&asked), "{asked}");
}

#[test]
fn a_storm_of_changes_puts_no_renewal_off() {
    let mut w = World::new(vec![], by(Protocol::Pcp, 24));
    w.set(home());
    for _ in 0..50 {
        w.machine.changed(w.now);
    }
    w.pass(Duration::from_secs(40));
    assert_eq!(w.status().mappings.len(), 2);
    let late = |(at, _): &(Duration, Order)| *at > Duration::from_secs(14);
    assert!(!w.asked.iter().all(late) && w.asked.len() > 4);
}
