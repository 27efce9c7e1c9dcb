use super::super::Transport;
use super::super::records::MAX_RECORDS;
use super::*;

const UDP: Port = Port {
    transport: Transport::Udp,
    number: 4100,
};
const TCP: Port = Port {
    transport: Transport::Tcp,
    number: 4100,
};
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What a router answers to who asks for that, for so many seconds.
type Answer = dyn FnMut(&Record, u32) -> Result<Granted, Failure>;

/// A router of the tests: what it answers, and what it was asked.
struct World {
    machine: Machine,
    now: Instant,
    unix: u64,
    answers: Box<Answer>,
    /// Orders, each with the time since the beginning.
    asked: Vec<(Duration, Order)>,
    begun: Instant,
    seed: u32,
    /// Whether the kernel gives random numbers.
    is_random: bool,
}

fn gateway(local: &str) -> Gateway {
    Gateway {
        address: "192.168.1.1".parse().unwrap(),
        local: local.parse().unwrap(),
    }
}

fn home() -> Situation {
    Situation {
        is_enabled: true,
        ports: vec![UDP, TCP],
        gateway: Some(gateway("192.168.1.7")),
    }
}

fn opens(external: u16, lease: u32) -> Result<Granted, Failure> {
    Ok(Granted {
        external: SocketAddr::new("203.0.113.9".parse().unwrap(), external),
        lease,
        epoch: None,
    })
}

fn by(
    only: Protocol,
    lease: u32,
) -> impl FnMut(&Record, u32) -> Result<Granted, Failure> + 'static {
    move |record, _| match record.protocol == only {
        true => opens(record.external, lease),
        false => Err(Failure::Silent),
    }
}

impl World {
    fn new(
        records: Vec<Record>,
        answers: impl FnMut(&Record, u32) -> Result<Granted, Failure> + 'static,
    ) -> World {
        let begun = Instant::now();
        World {
            machine: Machine::new(records),
            now: begun,
            unix: 1_700_000_000,
            answers: Box::new(answers),
            asked: Vec::new(),
            begun,
            seed: 7,
            is_random: true,
        }
    }

    /// Asks whatever is to be asked now, each question in no time.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "it asks for ever: {:?}", self.asked);
            let (seed, is_random) = (&mut self.seed, self.is_random);
            let mut random = || {
                *seed = seed.wrapping_mul(747_796_405).wrapping_add(1);
                is_random.then_some(*seed)
            };
            let Some(order) = self.machine.poll(self.now, self.unix, &mut random) else {
                break;
            };
            if let Order::Map { record, .. } = &order {
                assert!(
                    self.machine.records().contains(record),
                    "saved before it is asked"
                );
            }
            self.asked.push((self.now - self.begun, order));
            let outcome = match &order {
                Order::Map { record, lease } => (self.answers)(record, *lease),
                Order::Remove(record) => opens(record.external, 0),
            };
            self.machine.done(self.now, self.unix, &order, outcome);
        }
    }

    fn set(&mut self, situation: Situation) {
        self.machine.set(self.now, situation);
        self.settle();
    }

    /// Lets time pass, from one deadline to the next.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.machine.deadline().filter(|next| *next <= end) {
            let next = next.max(self.now + Duration::from_millis(1));
            self.unix += (next - self.now).as_secs();
            self.now = next;
            self.settle();
        }
        self.now = end;
    }

    fn status(&self) -> Status {
        self.machine.status()
    }

    /// How often a port was asked for since the last look.
    fn count(&mut self) -> usize {
        self.asked.drain(..).count()
    }

    fn trouble(&self) -> Option<Trouble> {
        self.status().trouble
    }
}

use std::net::{IpAddr, SocketAddr};

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

fn of(order: &Order) -> Record {
    match order {
        Order::Map { record, .. } | Order::Remove(record) => *record,
    }
}

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
