//! Machines on one switch, on a virtual clock.

use std::time::{Duration, Instant};

use super::*;
use crate::testing::Dice;

const LAB: SubnetId = SubnetId([1; 16]);
const OTHER: SubnetId = SubnetId([2; 16]);

fn fill(dice: &mut Dice, bytes: &mut [u8]) {
    for byte in bytes {
        *byte = u8::try_from(dice.below(256)).unwrap();
    }
}

fn place(n: usize) -> Place {
    Place {
        address: format!("192.0.2.{n}:4100").parse().unwrap(),
        quic: true,
        tcp: true,
    }
}

fn is(n: usize) -> LinkIs {
    LinkIs {
        index: 7,
        networks: vec![format!("192.0.2.{n}/24").parse().unwrap()],
        places: vec![place(n)],
    }
}

fn member(subnet: SubnetId, others: usize) -> Wanted {
    Wanted {
        subnet,
        others,
        announces: true,
    }
}

fn by(address: IpAddr, is_here: bool) -> Source {
    Source { address, is_here }
}

fn peer(n: usize) -> PeerId {
    PeerId([u8::try_from(n).unwrap(); 32])
}

/// Machines on a switch: each message reaches all of them, its sender included.
struct Switch {
    now: Instant,
    hosts: Vec<Lan>,
    /// What stands before each of them.
    gates: Vec<Gate>,
    dice: Dice,
    /// Whom each host has heard of, again and again.
    found: Vec<Vec<PeerId>>,
    /// Messages so far: questions, and answers.
    sent: (usize, usize),
    /// Messages that a gate kept out.
    kept_out: usize,
    /// Who is cut off.
    cut: Vec<usize>,
}

impl Switch {
    fn new(hosts: usize, subnets: &dyn Fn(usize) -> Vec<Wanted>) -> Switch {
        let mut switch = Switch {
            now: Instant::now(),
            hosts: Vec::new(),
            gates: Vec::new(),
            dice: Dice::new(7),
            found: Vec::new(),
            sent: (0, 0),
            kept_out: 0,
            cut: Vec::new(),
        };
        for n in 1..=hosts {
            switch.add(n, &subnets(n));
        }
        switch
    }

    fn add(&mut self, n: usize, subnets: &[Wanted]) {
        let mut lan = Lan::new(peer(n), Pace::default());
        let mut entropy = |bytes: &mut [u8]| fill(&mut self.dice, bytes);
        lan.set_subnets(self.now, subnets, &mut entropy);
        lan.set_links(self.now, vec![is(n)], &mut entropy);
        self.hosts.push(lan);
        self.gates.push(Gate::default());
        self.found.push(Vec::new());
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.hosts.iter().filter_map(Lan::poll_timeout).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                break;
            };
            self.now = self.now.max(due);
            for from in 0..self.hosts.len() {
                while let Some(message) = self.poll(from) {
                    self.deliver(from, &message);
                }
            }
        }
        self.now = end;
    }

    fn poll(&mut self, host: usize) -> Option<Message> {
        let mut entropy = |bytes: &mut [u8]| fill(&mut self.dice, bytes);
        let (index, message) = self.hosts[host].poll(self.now, &mut entropy)?;
        assert_eq!(index, 7);
        match message {
            Message::Ask { .. } => self.sent.0 += 1,
            Message::Say(_) => self.sent.1 += 1,
        }
        Some(message)
    }

    fn deliver(&mut self, from: usize, message: &Message) {
        if self.cut.contains(&from) {
            return;
        }
        let source = place(from + 1).address.ip();
        for to in (0..self.hosts.len()).filter(|to| !self.cut.contains(to)) {
            if !self.gates[to].admits(source, self.now) {
                self.kept_out += 1;
                continue;
            }
            let mut entropy = |bytes: &mut [u8]| fill(&mut self.dice, bytes);
            let found =
                self.hosts[to].receive(self.now, 7, by(source, from == to), message, &mut entropy);
            for found in found {
                assert_eq!(found.places, [place(usize::from(found.peer.0[0]))]);
                self.found[to].push(found.peer);
            }
        }
    }

    fn has_found(&self, host: usize, other: usize) -> bool {
        self.found[host - 1].contains(&peer(other))
    }
}

#[test]
fn nine_members_find_each_other_within_a_second() {
    let mut switch = Switch::new(9, &|_| vec![member(LAB, 8)]);
    switch.run(Duration::from_secs(1));
    for one in 1..=9 {
        for other in (1..=9).filter(|other| *other != one) {
            assert!(switch.has_found(one, other), "{one} {other}");
        }
        assert!(!switch.has_found(one, one));
    }
    assert_eq!(switch.kept_out, 0);
}

#[test]
fn nine_idle_members_say_next_to_nothing() {
    let mut switch = Switch::new(9, &|_| vec![member(LAB, 8)]);
    switch.run(Duration::from_secs(600));
    let before = switch.sent;
    switch.run(Duration::from_secs(3600));
    let (asks, says) = (switch.sent.0 - before.0, switch.sent.1 - before.1);
    println!(
        "{before:?} in the first ten minutes, then {asks} questions and {says} answers an hour"
    );
    // One of them asks for all each ten minutes, and each answers when half of the time of its answer is over.
    assert!(asks <= 9 && says <= 27, "{asks} {says}");
    assert!(before.0 <= 30 && before.1 <= 40, "{before:?}");
}

#[test]
fn whoever_is_alone_asks_once_a_minute_and_one_that_comes_is_found_at_once() {
    let mut switch = Switch::new(1, &|_| vec![member(LAB, 3)]);
    switch.run(Duration::from_secs(600));
    let before = switch.sent;
    switch.run(Duration::from_secs(3600));
    let asks = switch.sent.0 - before.0;
    assert!((50..=70).contains(&asks), "{asks}");
    switch.add(2, &[member(LAB, 3)]);
    switch.run(Duration::from_secs(1));
    assert!(switch.has_found(1, 2) && switch.has_found(2, 1));
}

#[test]
fn a_shorter_pause_holds_for_the_question_that_waits() {
    let hours = |hours: u64| Pace {
        max: Duration::from_secs(hours * 3600),
        ..Pace::default()
    };
    let mut switch = Switch::new(2, &|_| vec![member(LAB, 1)]);
    for host in &mut switch.hosts {
        host.set_pace(switch.now, hours(24));
    }
    switch.run(Duration::from_secs(3600));
    let before = switch.sent.0;
    switch.run(Duration::from_secs(7200));
    assert_eq!(switch.sent.0, before, "the next question is far");
    for host in &mut switch.hosts {
        host.set_pace(switch.now, hours(1));
    }
    switch.run(Duration::from_secs(3601));
    assert!(switch.sent.0 > before);
}

#[test]
fn a_joiner_that_knows_the_id_alone_finds_a_member_and_tells_nobody_of_itself() {
    let mut switch = Switch::new(1, &|_| vec![member(LAB, 0)]);
    switch.run(Duration::from_secs(60));
    assert_eq!(switch.sent.0, 0, "nobody else is in the subnet");
    let joins = Wanted {
        subnet: LAB,
        others: 1,
        announces: false,
    };
    switch.add(2, &[joins]);
    switch.run(Duration::from_secs(1));
    assert!(switch.has_found(2, 1));
    assert!(!switch.has_found(1, 2));
    let said = switch.hosts[1].counts().said;
    assert_eq!(said, 0);
}

#[test]
fn members_of_other_subnets_are_neither_found_nor_asked_to_answer() {
    let mut switch = Switch::new(4, &|n| vec![member(if n < 3 { LAB } else { OTHER }, 1)]);
    switch.run(Duration::from_secs(120));
    assert!(switch.has_found(1, 2) && switch.has_found(4, 3));
    assert!(!switch.has_found(1, 3) && !switch.has_found(3, 1));
    let says = switch.sent.1;
    switch.add(5, &[member(LAB, 2)]);
    switch.run(Duration::from_secs(1));
    // The new one says it once, and each member of its subnet may: nobody else does.
    assert!(switch.sent.1 - says <= 4, "{}", switch.sent.1 - says);
}

#[test]
fn a_node_without_subnets_is_silent() {
    let mut switch = Switch::new(3, &|_| Vec::new());
    switch.run(Duration::from_secs(3600));
    assert_eq!(switch.sent, (0, 0));
    assert_eq!(switch.hosts[0].poll_timeout(), None);
}

#[test]
fn nothing_names_the_peer_or_the_subnet_and_names_change_by_the_day() {
    let mut lan = Lan::new(peer(1), Pace::default());
    let mut dice = Dice::new(1);
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let start = Instant::now();
    lan.set_subnets(start, &[member(LAB, 1), member(OTHER, 1)], &mut entropy);
    lan.set_links(start, vec![is(1)], &mut entropy);
    let mut names = std::collections::BTreeSet::new();
    for day in 0..3 {
        let now = start + Duration::from_secs(day * 25 * 3600);
        // A link that went and came back tells anew.
        lan.set_links(now, Vec::new(), &mut entropy);
        lan.set_links(now, vec![is(1)], &mut entropy);
        let mut of_day = std::collections::BTreeSet::new();
        for second in 1..3 {
            while let Some((_, message)) = lan.poll(now + Duration::from_secs(second), &mut entropy)
            {
                if let Message::Say(said) = message {
                    assert_eq!(said.len(), 2);
                    for said in said {
                        let all = [said.label.0.as_slice(), &said.sealed].concat();
                        for secret in [&peer(1).0[..8], &LAB.0[..8], &OTHER.0[..8]] {
                            assert!(all.windows(8).all(|w| w != secret));
                        }
                        of_day.insert(said.label);
                    }
                }
            }
        }
        assert_eq!(of_day.len(), 2, "one name for each subnet");
        names.extend(of_day);
    }
    assert_eq!(names.len(), 6);
}

#[test]
fn a_link_that_comes_or_an_address_asks_and_tells_at_once() {
    let mut switch = Switch::new(2, &|_| vec![member(LAB, 1)]);
    switch.run(Duration::from_secs(3000));
    let before = switch.sent;
    let mut dice = Dice::new(3);
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let mut moved = is(1);
    moved.places.push(Place {
        address: "[fe80::1]:4100".parse().unwrap(),
        quic: true,
        tcp: false,
    });
    let now = switch.now;
    switch.hosts[0].set_links(now, vec![moved.clone()], &mut entropy);
    let due = switch.hosts[0].poll_timeout().unwrap();
    assert!(due <= now + Duration::from_millis(120));
    // The same again is no news.
    let mut other = Lan::new(peer(9), Pace::default());
    other.set_links(now, vec![moved.clone()], &mut entropy);
    while other
        .poll(now + Duration::from_secs(1), &mut entropy)
        .is_some()
    {}
    other.set_links(now, vec![moved], &mut entropy);
    assert_eq!(other.poll_timeout(), None);
    assert_eq!(switch.sent, before);
}

/// Two members, one of which has been quiet for long; what the other one does is up to the test.
fn quiet() -> (Lan, Dice, Instant, crate::crypto::blind::Blind) {
    let mut lan = Lan::new(peer(1), Pace::default());
    let mut dice = Dice::new(5);
    let now = Instant::now();
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    lan.set_subnets(now, &[member(LAB, 1)], &mut entropy);
    lan.set_links(now, vec![is(1)], &mut entropy);
    for second in 1..20 {
        while lan
            .poll(now + Duration::from_secs(second), &mut entropy)
            .is_some()
        {}
    }
    let keys = crate::crypto::blind::Blind::of(LAB).unwrap();
    (lan, dice, now + Duration::from_secs(20), keys)
}

#[test]
fn a_flood_of_questions_is_answered_once_a_second() {
    let (mut lan, mut dice, start, keys) = quiet();
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let (mut said, mut gate, mut kept_out) = (0, Gate::default(), 0);
    for ms in 0..10_000u64 {
        let now = start + Duration::from_millis(ms);
        let ask = Message::Ask {
            wanted: vec![Label(keys.name(1, ms.to_be_bytes()))],
            known: Vec::new(),
        };
        // From as many sources as there are.
        let source = format!("192.0.2.{}", 2 + ms % 250).parse().unwrap();
        if gate.admits(source, now) {
            assert!(
                lan.receive(now, 7, by(source, false), &ask, &mut entropy)
                    .is_empty()
            );
        } else {
            kept_out += 1;
        }
        while let Some((_, message)) = lan.poll(now, &mut entropy) {
            said += usize::from(matches!(message, Message::Say(_)));
        }
    }
    assert!((8..=11).contains(&said), "{said}");
    assert!(kept_out > 3500, "{kept_out}");
}

#[test]
fn who_knows_the_id_can_make_up_little() {
    let (mut lan, mut dice, now, keys) = quiet();
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let mut made = 0u64;
    let mut say = |lan: &mut Lan, source: &str, peer: PeerId, address: &str, now| {
        made += 1;
        let label = Label(keys.name(2, made.to_be_bytes()));
        let place = Place {
            address: address.parse().unwrap(),
            quic: true,
            tcp: true,
        };
        let text = encode(&Offer {
            peer,
            places: vec![place; MAX_PLACES],
        });
        let mut random = [0; 16];
        random[..8].copy_from_slice(&made.to_be_bytes());
        let sealed = keys.seal(random, &label.0, &text).unwrap();
        let said = vec![Said { label, sealed }];
        lan.receive(
            now,
            7,
            by(source.parse().unwrap(), false),
            &Message::Say(said),
            &mut entropy,
        )
    };
    // Addresses that are not of the link, and a source that is not.
    for address in ["203.0.113.9:4100", "127.0.0.1:4100", "[2001:db8::9]:25"] {
        assert!(
            say(&mut lan, "192.0.2.2", peer(2), address, now).is_empty(),
            "{address}"
        );
    }
    assert_eq!(lan.counts().unusable, 3);
    assert!(say(&mut lan, "198.51.100.2", peer(2), "192.0.2.2:4100", now).is_empty());
    assert_eq!(lan.counts().off_link, 1);
    // One of IPv6 that is link-local is of this link.
    let found = say(&mut lan, "fe80::2", peer(2), "[fe80::2]:4100", now);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].places.len(), 1, "each place once");
    assert_eq!(
        found[0].places[0].address,
        "[fe80::2%7]:4100".parse().unwrap()
    );
    // As many peers as it likes, from one source.
    let mut told = 0;
    for n in 0..1000u64 {
        let now = now + Duration::from_millis(200 * n);
        let mut key = [9; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        told += say(&mut lan, "192.0.2.3", PeerId(key), "192.0.2.3:4100", now).len();
    }
    assert_eq!(told, 32);
    assert!(lan.counts().crowded > 900, "{:?}", lan.counts());
    assert_eq!(lan.peers(now + Duration::from_secs(200)), 33);
}

#[test]
fn another_daemon_of_this_machine_is_told_by_the_kernel_and_not_by_its_source() {
    let (mut lan, mut dice, now, keys) = quiet();
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let mut link = is(1);
    link.networks.push("fe80::1/64".parse().unwrap());
    lan.set_links(now, vec![link], &mut entropy);
    for (source, n) in ["192.0.2.1", "fe80::1", "192.0.2.2"].into_iter().zip(2..) {
        let label = Label(keys.name(2, [n; 8]));
        let offer = Offer {
            peer: peer(usize::from(n)),
            places: vec![place(1)],
        };
        let sealed = keys.seal([n; 16], &label.0, &encode(&offer)).unwrap();
        let said = Message::Say(vec![Said { label, sealed }]);
        let source = source.parse().unwrap();
        let mut told = |is_here| -> Vec<bool> {
            let found = lan.receive(now, 7, by(source, is_here), &said, &mut entropy);
            found.iter().map(|found| found.is_here).collect()
        };
        // A machine of the link that was first with the same words, whatever source it claims.
        assert_eq!(told(false), [false], "{source}");
        assert_eq!(told(true), [true], "{source}: who is here is news");
        assert!(told(true).is_empty(), "{source}: once");
        assert!(told(false).is_empty(), "{source}: and is not forgotten");
    }
}

#[test]
fn an_answer_that_cannot_be_read_is_counted_and_one_of_others_is_not() {
    let (mut lan, mut dice, now, keys) = quiet();
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let label = Label(keys.name(2, [3; 8]));
    let source = "192.0.2.2".parse().unwrap();
    for sealed in [
        vec![],
        vec![0; 100],
        keys.seal([1; 16], &label.0, b"no offer").unwrap(),
    ] {
        let said = Message::Say(vec![Said { label, sealed }]);
        assert!(
            lan.receive(now, 7, by(source, false), &said, &mut entropy)
                .is_empty()
        );
    }
    let said = Message::Say(vec![Said {
        label: Label([4; 16]),
        sealed: vec![0; 100],
    }]);
    assert!(
        lan.receive(now, 7, by(source, false), &said, &mut entropy)
            .is_empty()
    );
    assert_eq!((lan.counts().forged, lan.counts().heard), (3, 4));
}

#[test]
fn more_subnets_than_there_is_room_for_are_left_out_and_counted() {
    let mut lan = Lan::new(peer(1), Pace::default());
    let mut dice = Dice::new(5);
    let mut entropy = |bytes: &mut [u8]| fill(&mut dice, bytes);
    let all: Vec<Wanted> = (0..20).map(|n| member(SubnetId([n; 16]), 1)).collect();
    let now = Instant::now();
    lan.set_subnets(now, &all, &mut entropy);
    lan.set_links(now, vec![is(1)], &mut entropy);
    assert_eq!(lan.counts().left_out, 4);
    let (_, message) = lan
        .poll(now + Duration::from_secs(1), &mut entropy)
        .unwrap();
    assert!(matches!(message, Message::Say(said) if said.len() == MAX_SUBNETS));
}

#[test]
fn seeds_of_the_fuzzer_are_offers_and_messages_of_its_subnet() {
    let seed = |name: &str| {
        let path = format!("{}/tests/fuzz/seeds/lan/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    };
    let offer = decode(&seed("offer")).unwrap();
    assert_eq!((offer.peer, offer.places.len()), (peer(9), 2));
    let keys = crate::crypto::blind::Blind::of(SubnetId([7; 16])).unwrap();
    let message = |name: &str| crate::mdns::fuzz::read(&seed(name)).unwrap();
    let Message::Ask { wanted, known } = message("ask") else {
        panic!("no question")
    };
    assert!(keys.is_named(1, &wanted[0].0) && keys.is_named(2, &known[0].0));
    let Message::Say(said) = message("say") else {
        panic!("no answer")
    };
    let opened = keys.open(&said[0].label.0, &said[0].sealed).unwrap();
    assert_eq!(decode(&opened), Some(offer));
}
