use super::*;
use crate::testing::{Dice, Network, some_moment};

use std::collections::BTreeMap;

use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Message {
    Probe(u64),
    Answer(u64),
}

/// A frame from there, to the only address of ours.
fn from(remote: SocketAddr) -> Pair {
    Pair {
        local: None,
        remote,
    }
}

/// Bytes of the IP packet: headers, 40 of the frame, and the control message or its padding.
fn size_of(to: SocketAddr, body: usize, pad_to: usize) -> usize {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    headers + (40 + body).max(pad_to)
}
const PROBE: usize = 9;
const ANSWER: usize = 28;

#[derive(Clone)]
struct InFlight {
    to: usize,
    from: SocketAddr,
    message: Message,
}

/// Two peers and what lies between them, on a clock of its own.
struct World {
    net: Network<InFlight>,
    start: Instant,
    sides: [Paths; 2],
    /// Where a packet for an address ends, and what it carries at most.
    reach: BTreeMap<SocketAddr, (usize, usize)>,
    /// From where each side's packets come.
    source: [SocketAddr; 2],
    /// From where those to IPv6 addresses come, where the sides have both families.
    source6: Option<[SocketAddr; 2]>,
    delay: Duration,
    blocked: bool,
    /// What each side was last told to use.
    route: [Option<(SocketAddr, usize)>; 2],
    settled: [bool; 2],
    /// Bytes sent, by side and address.
    sent: BTreeMap<(usize, SocketAddr), usize>,
    /// Frames of traffic a second that each side sends.
    busy: [bool; 2],
    last: [SocketAddr; 2],
    log: Vec<(Duration, usize, Output)>,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    fn new(seed: u64) -> World {
        let (a, b) = (address("192.0.2.1:4100"), address("192.0.2.2:4100"));
        World::between(seed, a, b)
    }

    fn between(seed: u64, a: SocketAddr, b: SocketAddr) -> World {
        let now = some_moment();
        World {
            net: Network::new(seed, now),
            start: now,
            sides: [Paths::new(), Paths::new()],
            reach: BTreeMap::from([(a, (0, 1500)), (b, (1, 1500))]),
            source: [a, b],
            source6: None,
            delay: Duration::from_millis(5),
            blocked: false,
            route: [None, None],
            settled: [false; 2],
            sent: BTreeMap::new(),
            busy: [false; 2],
            last: [a, b],
            log: vec![],
        }
    }

    /// Each side is told the other's address, and has a key.
    fn begin(&mut self) {
        let (a, b) = (self.source[0], self.source[1]);
        // As of peers that a stream connects at these hosts.
        self.sides[0].offer(self.net.now, &[b], Origin::Host, &[]);
        self.sides[1].offer(self.net.now, &[a], Origin::Host, &[]);
        self.sides
            .iter_mut()
            .for_each(|side| side.start(self.net.now));
    }

    fn mtu(&mut self, mtu: usize) {
        self.reach
            .values_mut()
            .for_each(|(_, carries)| *carries = mtu);
    }

    fn elapsed(&self) -> Duration {
        self.net.now - self.start
    }

    fn drain(&mut self, side: usize) {
        while let Some(output) = self.sides[side].poll() {
            self.log.push((self.elapsed(), side, output));
            let (to, message, size) = match output {
                Output::Up {
                    pair,
                    payload,
                    settled,
                } => {
                    self.settled[side] = settled;
                    self.route[side] = Some((pair.remote, payload));
                    continue;
                }
                Output::Lost => {
                    self.route[side] = None;
                    continue;
                }
                Output::Probe {
                    pair: Pair { remote: to, .. },
                    token,
                    pad_to,
                } => (to, Message::Probe(token), size_of(to, PROBE, pad_to)),
                Output::Answer {
                    pair: Pair { remote: to, .. },
                    token,
                } => (to, Message::Answer(token), size_of(to, ANSWER, 0)),
            };
            *self.sent.entry((side, to)).or_default() += size;
            let lost = self.net.loses();
            if let Some((end, carries)) = self.reach.get(&to).copied()
                && !self.blocked
                && !lost
                && size <= carries
            {
                let from = self.source6.filter(|_| to.is_ipv6()).unwrap_or(self.source)[side];
                self.net.after(
                    self.delay,
                    InFlight {
                        to: end,
                        from,
                        message,
                    },
                );
            }
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.net.now + time;
        loop {
            for side in 0..2 {
                self.drain(side);
            }
            let timeouts = self.sides.iter().filter_map(Paths::poll_timeout);
            // The control task looks every 50 ms.
            let tick = Duration::from_millis(50);
            let next = timeouts
                .map(|t| t.max(self.net.now))
                .chain(self.net.next())
                .min();
            let next = next.unwrap_or(end).min(self.net.now + tick);
            if next >= end {
                self.net.now = end;
                return;
            }
            self.net.now = next;
            while let Some(packet) = self.net.due() {
                let random = &mut self.net.dice;
                let side = &mut self.sides[packet.to];
                if self.last[1 - packet.to] != packet.from {
                    self.last[1 - packet.to] = packet.from;
                    side.on_moved(next, from(packet.from), &[], &mut |b| random.fill(b));
                }
                match packet.message {
                    Message::Probe(token) => side.on_probe(next, from(packet.from), token, &[]),
                    Message::Answer(token) => {
                        side.on_answer(next, token, &mut |b| random.fill(b));
                    }
                }
            }
            let frames = (next - self.start).as_millis() as u64;
            for side in 0..2 {
                if self.busy[side] {
                    self.sides[side].data(frames);
                }
                let random = &mut self.net.dice;
                if self.sides[side]
                    .poll_timeout()
                    .is_some_and(|due| due <= next)
                {
                    self.sides[side].handle_timeout(next, &mut |b| random.fill(b));
                }
            }
        }
    }

    /// Lets time pass until `done`, at most `time`.
    fn until(&mut self, time: Duration, done: impl Fn(&World) -> bool) -> Option<Duration> {
        let begin = self.net.now;
        while self.net.now - begin < time {
            if done(self) {
                return Some(self.net.now - begin);
            }
            self.run(Duration::from_millis(10));
        }
        done(self).then(|| self.net.now - begin)
    }

    fn both_up(&self) -> bool {
        self.route.iter().all(Option::is_some)
    }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_path_is_up_in_two_round_trips_and_carries_1500() {
    let mut world = World::new(1);
    world.begin();
    world.run(25 * MS);
    let payload = 1500 - 28;
    assert_eq!(
        world.route,
        [
            Some((world.source[1], payload)),
            Some((world.source[0], payload))
        ]
    );
    assert_eq!(world.sides[0].path().unwrap().rtt, Some(10 * MS));
    assert_eq!(world.sides[0].changes(), 1);
}

#[test]
fn loss_is_the_share_of_keep_alives_without_an_answer() {
    let mut world = World::new(3);
    world.begin();
    let loss = |world: &World| world.sides[0].path().and_then(|path| path.loss);
    world.run(SECOND);
    assert_eq!(loss(&world), None, "nothing was tried yet");
    world.run(60 * SECOND);
    assert_eq!(loss(&world), Some(0.0));
    // A tenth each way: 19 % of the round trips.
    world.net.loss = 10;
    world.run(300 * SECOND);
    let seen = loss(&world).unwrap();
    assert!((0.05..0.4).contains(&seen), "{seen}");
    world.net.loss = 0;
    world.run(300 * SECOND);
    assert_eq!(loss(&world), Some(0.0), "old losses are forgotten");
}

#[test]
fn nothing_is_sent_without_a_key() {
    let mut world = World::new(1);
    let to = world.source[1];
    world.sides[0].offer(world.net.now, &[to], Origin::Told, &[]);
    world.sides[0].on_probe(world.net.now, from(to), 7, &[]);
    world.run(10 * SECOND);
    assert!(world.log.is_empty());
    assert_eq!(world.sides[0].poll_timeout(), None);
}

#[test]
fn the_key_gone_the_path_is_gone() {
    let mut world = World::new(1);
    world.begin();
    world.run(SECOND);
    world.sides[0].stop();
    world.drain(0);
    assert_eq!(world.route[0], None);
    assert_eq!(world.sides[0].poll_timeout(), None);
    world.sides[0].start(world.net.now);
    world.run(SECOND);
    assert!(world.both_up());
}

#[test]
fn udp_that_opens_is_used_within_five_seconds() {
    for seed in 1..60 {
        let mut world = World::new(seed);
        world.blocked = true;
        world.begin();
        world.run(Duration::from_millis(500 * seed));
        assert_eq!(world.route, [None, None]);
        world.blocked = false;
        let took = world.until(10 * SECOND, World::both_up).unwrap();
        assert!(took < 4500 * MS, "{took:?}");
    }
}

#[test]
fn a_silent_path_is_lost_after_three_and_a_half_seconds() {
    for seed in 1..40 {
        for busy in [false, true] {
            let mut world = World::new(seed);
            world.busy = [busy; 2];
            world.begin();
            world.run(Duration::from_millis(4000 + 70 * seed));
            world.blocked = true;
            let took = world.until(10 * SECOND, |w| w.route[0].is_none()).unwrap();
            // Up to one interval has gone by since the last answer.
            assert!(took > 1300 * MS && took < 3700 * MS, "{took:?}");
            world.blocked = false;
            assert!(world.until(5 * SECOND, World::both_up).is_some());
        }
    }
}

#[test]
fn a_suspected_path_is_settled_in_less_than_a_second() {
    for seed in 1..40 {
        let mut world = World::new(seed);
        world.busy = [seed % 2 == 0; 2];
        world.begin();
        world.run(Duration::from_millis(4000 + 70 * seed));
        world.sides[0].suspect(world.net.now);
        world.run(2 * SECOND);
        assert_eq!(world.sides[0].changes(), 1, "it answers: the path stays");
        world.blocked = true;
        world.sides[0].suspect(world.net.now);
        let took = world.until(10 * SECOND, |w| w.route[0].is_none()).unwrap();
        assert!(took < 600 * MS, "{took:?}");
        world.blocked = false;
        assert!(world.until(5 * SECOND, World::both_up).is_some());
    }
}

#[test]
fn lost_packets_do_not_lose_the_path() {
    let mut world = World::new(77);
    world.net.loss = 5;
    world.busy = [true, false];
    world.begin();
    assert!(world.until(5 * SECOND, World::both_up).is_some());
    world.run(1800 * SECOND);
    assert_eq!((world.sides[0].changes(), world.sides[1].changes()), (1, 1));
    let falls = world
        .log
        .iter()
        .filter(|(_, _, o)| matches!(o, Output::Up { payload: 1252, .. }))
        .count();
    assert!(falls < 20, "{falls} falls in 1440 padded probes");
}

#[test]
fn a_process_that_slept_asks_before_it_gives_up() {
    let mut world = World::new(3);
    world.begin();
    world.run(5 * SECOND);
    // Both slept: no timer ran, nothing was lost.
    world.net.now += 60 * SECOND;
    world.run(5 * SECOND);
    assert_eq!((world.sides[0].changes(), world.sides[1].changes()), (1, 1));
}

#[test]
fn the_mtu_is_what_the_path_carries() {
    for (carries, found) in [
        (1280, 1280),
        (1319, 1280),
        (1320, 1320),
        (1400, 1400),
        (1419, 1400),
        (1452, 1452),
        (1491, 1480),
        (1492, 1492),
        (1500, 1500),
        (8999, 1500),
        (9000, 9000),
        (65_535, 9000),
    ] {
        let mut world = World::new(carries as u64);
        world.mtu(carries);
        world.begin();
        world.run(2 * SECOND);
        assert_eq!(
            world.sides[0].path().map(|p| p.mtu),
            Some(found),
            "a path of {carries}"
        );
        assert_eq!(world.route[0].map(|r| r.1), Some(usize::from(found) - 28));
        assert!(world.settled[0]);
    }
}

#[test]
fn large_frames_are_tried_twice_at_most() {
    let mut world = World::new(9);
    world.busy = [true; 2];
    world.begin();
    world.run(600 * SECOND);
    let jumbo = |o: &Output| matches!(o, Output::Probe { pad_to, .. } if *pad_to > 1500);
    let tries = world
        .log
        .iter()
        .filter(|(_, side, o)| *side == 0 && jumbo(o))
        .count();
    assert_eq!(tries, 2);
}

#[test]
fn an_interface_that_refuses_is_not_asked_again() {
    let (a, b) = (address("192.0.2.1:1"), address("192.0.2.2:1"));
    let mut paths = Paths::new();
    let now = some_moment();
    let mut random = Dice::new(5);
    let mut entropy = |bytes: &mut [u8]| random.fill(bytes);
    paths.offer(now, &[a, b], Origin::Told, &[]);
    paths.start(now);
    let mut large = 0;
    for step in 0..400 {
        let now = now + step * 10 * MS;
        paths.handle_timeout(now, &mut entropy);
        while let Some(output) = paths.poll() {
            if let Output::Probe { token, pad_to, .. } = output {
                if pad_to > 1500 {
                    large += 1;
                    paths.refused(token);
                } else {
                    paths.on_answer(now, token, &mut entropy);
                }
            }
        }
    }
    assert_eq!(large, 1);
    assert_eq!(
        paths.path().map(|p| (p.pair.remote, p.mtu)),
        Some((a, 1500))
    );
}

#[test]
fn a_black_hole_stalls_no_longer_than_three_seconds() {
    for seed in 1..60 {
        let mut world = World::new(seed);
        world.busy = [true, false];
        world.begin();
        world.run(Duration::from_millis(4000 + 97 * seed));
        assert_eq!(world.sides[0].path().unwrap().mtu, 1500);
        world.mtu(1400);
        let took = world
            .until(10 * SECOND, |w| w.route[0].is_some_and(|r| r.1 <= 1372))
            .unwrap();
        assert!(took < 2600 * MS, "{took:?}");
        world.run(SECOND);
        assert_eq!(world.sides[0].path().unwrap().mtu, 1400);
        assert_eq!(world.sides[0].changes(), 1, "the path itself stays");
        // Nothing flowed the other way: it is found out with the first traffic.
        world.busy = [false, true];
        let took = world
            .until(10 * SECOND, |w| w.route[1].is_some_and(|r| r.1 <= 1372))
            .unwrap();
        assert!(took < 3000 * MS, "{took:?}");
    }
}

#[test]
fn a_path_that_widens_is_found_within_a_minute_or_so() {
    let mut world = World::new(4);
    world.mtu(1400);
    world.begin();
    world.run(10 * SECOND);
    assert_eq!(world.sides[0].path().unwrap().mtu, 1400);
    world.mtu(1452);
    world.run(130 * SECOND);
    assert_eq!(world.sides[0].path().unwrap().mtu, 1452);
    world.mtu(1500);
    world.run(70 * SECOND);
    assert_eq!(world.sides[0].path().unwrap().mtu, 1500);
}

#[test]
fn an_interface_that_shrank_is_heeded_at_once() {
    let mut world = World::new(4);
    world.begin();
    world.run(10 * SECOND);
    world.mtu(1400);
    let (now, random) = (world.net.now, &mut world.net.dice);
    world.sides[0].too_big(now, &mut |b| random.fill(b));
    world.run(MS);
    assert_eq!(
        (world.route[0].map(|r| r.1), world.settled[0]),
        (Some(1252), false)
    );
    world.run(SECOND);
    assert!(world.settled[0]);
    assert_eq!(world.route[0].map(|r| r.1), Some(1372));
}

#[test]
fn a_path_below_1280_is_none() {
    let mut world = World::new(4);
    world.mtu(1279);
    world.begin();
    world.run(120 * SECOND);
    assert_eq!(world.route, [None, None]);
    world.mtu(1280);
    assert!(world.until(40 * SECOND, World::both_up).is_some());
    world.busy = [true; 2];
    world.run(5 * SECOND);
    world.mtu(900);
    assert!(
        world
            .until(5 * SECOND, |w| w.route == [None, None])
            .is_some()
    );
    world.run(60 * SECOND);
    assert_eq!(world.route, [None, None]);
}

/// Bytes of both directions in a second.
fn cost(world: &mut World, seconds: u32) -> usize {
    let before: usize = world.sent.values().sum();
    world.run(seconds * SECOND);
    (world.sent.values().sum::<usize>() - before) / seconds as usize
}

#[test]
fn an_idle_peer_costs_less_than_300_bytes_a_second() {
    let six = || {
        World::between(
            8,
            address("[2001:db8::1]:4100"),
            address("[2001:db8::2]:4100"),
        )
    };
    for mut world in [World::new(8), six()] {
        world.begin();
        world.run(10 * SECOND);
        let idle = cost(&mut world, 600);
        assert!(idle < 250, "{idle} bytes/s");
    }
    let mut narrow = six();
    narrow.mtu(1280);
    narrow.begin();
    narrow.run(10 * SECOND);
    let idle = cost(&mut narrow, 600);
    assert!(idle < 300, "{idle} bytes/s while the MTU is tried again");
}

#[test]
fn an_unreachable_peer_costs_less_than_300_bytes_a_second() {
    let mut world = World::new(8);
    world.blocked = true;
    let many: Vec<SocketAddr> = (1..=20)
        .map(|n| address(&format!("[2001:db8::{n}]:4100")))
        .collect();
    world.sides[0].offer(world.net.now, &many, Origin::Told, &[]);
    world.sides[0].start(world.net.now);
    world.run(30 * SECOND);
    let probing = cost(&mut world, 600);
    assert!(probing < 250, "{probing} bytes/s");
}

#[test]
fn a_peer_that_moved_is_followed_after_a_second() {
    for seed in 1..30 {
        let mut world = World::new(seed);
        world.busy = [true; 2];
        world.begin();
        world.run(Duration::from_millis(5000 + 31 * seed));
        let (old, new) = (world.source[1], address("198.51.100.7:9999"));
        world.reach.remove(&old);
        world.reach.insert(new, (1, 1500));
        world.source[1] = new;
        // The first frame from there is the peer's next probe.
        let took = world
            .until(5 * SECOND, |w| w.route[0].is_some_and(|r| r.0 == new))
            .unwrap();
        assert!(took < 2600 * MS, "{took:?}");
        world.run(SECOND);
        assert_eq!(world.route[0], Some((new, 1472)));
        assert!(world.route[1].is_some());
        assert_eq!(world.sides[1].changes(), 1, "the one that moved goes on");
    }
}

#[test]
fn another_address_that_has_answered_takes_a_silent_path_over_without_the_stream() {
    for (seed, busy) in (1..30).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = World::new(seed);
        world.busy = [busy; 2];
        let both = [world.source[1], address("198.51.100.7:4100")];
        world.reach.insert(both[1], (1, 1500));
        world.sides[0].offer(world.net.now, &both, Origin::Host, &[]);
        world.begin();
        world.run(Duration::from_millis(4000 + 97 * seed));
        let first = world.route[0].unwrap().0;
        let other = both.into_iter().find(|address| *address != first).unwrap();
        world.reach.remove(&first);
        world.log.clear();
        let took = world
            .until(10 * SECOND, |world| {
                world.route[0].is_some_and(|route| route.0 == other)
            })
            .unwrap();
        assert!(took < if busy { 2900 * MS } else { 3700 * MS }, "{took:?}");
        assert!(
            world
                .log
                .iter()
                .all(|(_, side, output)| *side == 1 || *output != Output::Lost)
        );
        world.run(SECOND);
        assert_eq!(world.route[0], Some((other, 1472)));
    }
}

#[test]
fn an_address_that_only_frames_came_from_is_no_spare() {
    let (now, path, copied) = (
        some_moment(),
        address("192.0.2.2:4100"),
        address("198.51.100.66:666"),
    );
    let mut list = Candidates::default();
    list.offer(now, &[path], Origin::Host, &[], Some(path));
    list.offer(now, &[copied], Origin::Frame, &[], Some(path));
    list.is_there(copied);
    assert_eq!(list.spare(path), None);
    let told = address("198.51.100.7:4100");
    list.offer(now, &[told], Origin::Told, &[], Some(path));
    assert_eq!(list.spare(path), None, "nor one that never answered");
    list.is_there(told);
    list.offer(now, &[told], Origin::Frame, &[], Some(path));
    assert_eq!(list.spare(path), Some(told));
}

#[test]
fn frames_sent_on_from_elsewhere_do_not_take_the_path() {
    let mut world = World::new(6);
    world.begin();
    world.run(5 * SECOND);
    let (home, thief) = (world.source[1], address("198.51.100.66:666"));
    // Whoever is there hands everything on in both directions.
    world.reach.insert(thief, (1, 1500));
    world.source[1] = thief;
    world.run(5 * SECOND);
    world.source[1] = home;
    world.run(30 * SECOND);
    assert!(
        world.log.iter().all(
            |(_, _, output)| !matches!(output, Output::Up { pair, .. } if pair.remote == thief)
        )
    );
    assert_eq!(world.route[0].map(|r| r.0), Some(home));
}

#[test]
fn two_families_that_both_answer_are_not_fought_over() {
    for seed in 1..10 {
        let mut world = World::new(seed);
        let six = [address("[2001:db8::1]:4100"), address("[2001:db8::2]:4100")];
        world.source6 = Some(six);
        world
            .reach
            .extend([(six[0], (0, 1500)), (six[1], (1, 1500))]);
        world.busy = [true, seed % 2 == 0];
        // One end finds the other by IPv4 first, the other by IPv6: each one's frames come from elsewhere than it sends to.
        world.sides[0].offer(world.net.now, &[six[1]], Origin::Told, &[]);
        world.sides[1].offer(world.net.now, &[world.source[0]], Origin::Told, &[]);
        world
            .sides
            .iter_mut()
            .for_each(|side| side.start(world.net.now));
        world.run(SECOND);
        world.log.clear();
        world.run(60 * SECOND);
        assert_eq!(
            [0, 1].map(|side| world.sides[side].changes()),
            [1, 1],
            "the paths stay where they are"
        );
        let probes = world
            .log
            .iter()
            .filter(|(_, _, output)| matches!(output, Output::Probe { .. }))
            .count();
        assert!(probes < 2 * 60 + 20, "{probes} probes in a minute");
    }
}

#[test]
fn an_address_that_does_not_answer_gets_no_more_than_three_times_what_came_from_it() {
    let mut world = World::new(6);
    world.begin();
    world.run(5 * SECOND);
    let (now, victim) = (world.net.now, address("203.0.113.5:53"));
    let random = &mut world.net.dice;
    let mut came = 0;
    for token in 0..20 {
        world.sides[0].on_moved(now, from(victim), &[], &mut |b| random.fill(b));
        world.sides[0].on_probe(now, from(victim), token, &[]);
        came += size_of(victim, PROBE, 0);
    }
    world.run(60 * SECOND);
    let went = world.sent.get(&(0, victim)).copied().unwrap_or_default();
    assert!(went <= 3 * came, "{went} bytes for {came}");
    assert_eq!(world.route[0].map(|r| r.0), Some(world.source[1]));
}

#[test]
fn a_guessed_token_is_no_answer() {
    let mut world = World::new(6);
    world.blocked = true;
    world.begin();
    world.run(SECOND);
    let (now, random) = (world.net.now, &mut world.net.dice);
    for token in 0..1000 {
        assert_eq!(
            world.sides[0].on_answer(now, token, &mut |b| random.fill(b)),
            None
        );
    }
    assert_eq!(world.sides[0].path(), None);
}

#[test]
fn of_many_addresses_the_one_that_answers_first_wins() {
    let mut world = World::new(6);
    let mut addresses: Vec<SocketAddr> = (1..=7)
        .map(|n| address(&format!("198.51.100.{n}:4100")))
        .collect();
    addresses.push(world.source[1]);
    world.sides[0].offer(world.net.now, &addresses, Origin::Told, &[]);
    world
        .sides
        .iter_mut()
        .for_each(|side| side.start(world.net.now));
    // The other side is told nothing: it learns from the probe.
    assert!(world.until(SECOND, World::both_up).is_some());
    assert_eq!(world.route[0].map(|r| r.0), Some(world.source[1]));
}

#[test]
fn addresses_nobody_may_send_to_are_left_out() {
    let overlay = [
        "10.7.0.0/16".parse().unwrap(),
        "fd00:7::/48".parse().unwrap(),
    ];
    for bad in [
        "10.7.1.1:4100",
        "[fd00:7::1]:4100",
        "[::ffff:10.7.1.1]:4100",
        "[64:ff9b::10.7.1.1]:4100",
        "[2002:a07:101::1]:4100",
        "0.0.0.0:4100",
        "0.1.2.3:4100",
        "[::]:4100",
        "224.0.0.251:4100",
        "255.255.255.255:4100",
        "[ff02::1]:4100",
        "[fe80::1]:4100",
        "192.0.2.1:0",
    ] {
        assert_eq!(usable(address(bad), Origin::Told, &overlay), None, "{bad}");
    }
    for good in ["10.8.1.1:4100", "[fd00:8::1]:4100", "127.0.0.1:4100"] {
        assert_eq!(
            usable(address(good), Origin::Told, &overlay),
            Some(address(good))
        );
    }
    assert_eq!(
        usable(address("[::ffff:10.8.1.1]:1"), Origin::Told, &overlay),
        Some(address("10.8.1.1:1"))
    );
    assert!(usable(address("[fe80::1%3]:4100"), Origin::Frame, &overlay).is_some());
}

#[test]
fn a_new_overlay_prefix_ends_a_path_inside_it() {
    let mut world = World::new(6);
    world.begin();
    world.run(SECOND);
    world.sides[0].avoid(world.net.now, &["192.0.2.0/24".parse().unwrap()]);
    world.drain(0);
    assert_eq!(world.route[0], None);
    assert_eq!(
        world.sides[0].poll_timeout(),
        None,
        "and no address is left"
    );
}

#[test]
fn loopback_is_tried_only_where_there_is_nothing_else() {
    let (own, far) = (address("127.0.0.1:4100"), address("192.0.2.9:4100"));
    let now = some_moment();
    let probed = |addresses: &[SocketAddr], origin| {
        let mut paths = Paths::new();
        paths.offer(now, addresses, origin, &[]);
        paths.start(now);
        paths.handle_timeout(now, &mut |bytes: &mut [u8]| bytes.fill(1));
        let to = |output| {
            if let Output::Probe { pair, .. } = output {
                Some(pair.remote)
            } else {
                None
            }
        };
        std::iter::from_fn(|| paths.poll())
            .filter_map(to)
            .collect::<Vec<_>>()
    };
    assert_eq!(probed(&[own, far], Origin::Told), [far]);
    assert_eq!(probed(&[own], Origin::Told), [own]);
    assert_eq!(probed(&[own, far], Origin::Connection), [own, far]);
}

#[test]
fn hearsay_that_nobody_answers_is_probed_once_a_minute_and_a_host_that_was_reached_every_four_seconds()
 {
    let (start, to) = (some_moment(), address("198.51.100.7:4100"));
    let probes = |origin, answered: bool| {
        let mut list = Candidates::default();
        list.offer(start, &[to], origin, &[], None);
        let mut sent = 0;
        for step in 0..6000 {
            let now = start + step * 100 * MS;
            while list
                .take_due(now, &mut |bytes: &mut [u8]| bytes.fill(1))
                .is_some()
            {
                sent += 1;
            }
            if answered && step == 0 {
                list.answered(now, to);
            }
        }
        sent
    };
    // Ten minutes: eight quick ones, then nine or so.
    let hearsay = probes(Origin::Told, false);
    assert!((8..=20).contains(&hearsay), "{hearsay}");
    assert!(probes(Origin::Host, false) > 100 && probes(Origin::Told, true) > 100);
}

#[test]
fn the_newest_addresses_are_kept_and_the_path_always() {
    let now = some_moment();
    let numbered = |n: u8| SocketAddr::from(([198, 51, 100, n], 4100));
    let live = numbered(1);
    let mut list = Candidates::default();
    list.offer(now, &[live], Origin::Told, &[], Some(live));
    for n in 2..=50 {
        list.offer(now, &[numbered(n)], Origin::Told, &[], Some(live));
    }
    let mut expected: Vec<SocketAddr> = (44..=50).rev().map(numbered).collect();
    expected.push(live);
    assert_eq!(list.addresses(), expected);
    // Frames made to come from everywhere take two places.
    for n in 100..=200 {
        list.offer(now, &[numbered(n)], Origin::Frame, &[], Some(live));
    }
    expected = vec![
        numbered(200),
        numbered(199),
        numbered(50),
        numbered(49),
        numbered(48),
        numbered(47),
        numbered(46),
    ];
    expected.push(live);
    assert_eq!(list.addresses(), expected);
}

#[derive(Debug, Clone)]
enum Step {
    Run(u16),
    Block(bool),
    Loss(u16),
    Mtu(u16),
    Busy(bool, bool),
    Move(u8, u8),
    Stop(u8),
    Start(u8),
    TooBig(u8),
    Suspect(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u16..8000).prop_map(Step::Run),
        1 => any::<bool>().prop_map(Step::Block),
        1 => (0u16..30).prop_map(Step::Loss),
        1 => (1100u16..9500).prop_map(Step::Mtu),
        1 => any::<(bool, bool)>().prop_map(|(a, b)| Step::Busy(a, b)),
        1 => (0u8..2, 1u8..20).prop_map(|(side, n)| Step::Move(side, n)),
        1 => (0u8..2).prop_map(Step::Stop),
        1 => (0u8..2).prop_map(Step::Start),
        1 => (0u8..2).prop_map(Step::TooBig),
        1 => (0u8..2).prop_map(Step::Suspect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the network did: once it is well again, both sides agree on a path that carries what they send.
    #[test]
    fn whatever_happened_a_good_network_is_used_again(seed: u64, steps in proptest::collection::vec(step(), 1..30)) {
        let mut world = World::new(seed);
        world.begin();
        for step in steps {
            match step {
                Step::Run(ms) => world.run(u32::from(ms) * MS),
                Step::Block(blocked) => world.blocked = blocked,
                Step::Loss(loss) => world.net.loss = loss.into(),
                Step::Mtu(mtu) => world.mtu(mtu.into()),
                Step::Busy(a, b) => world.busy = [a, b],
                Step::Move(side, n) => {
                    let side = usize::from(side);
                    // Never both to the same.
                    let (old, new) = (world.source[side], SocketAddr::from(([198, 51, 100 + side as u8, n], 4100)));
                    let carries = world.reach.remove(&old).map_or(1500, |r| r.1);
                    world.reach.insert(new, (side, carries));
                    world.source[side] = new;
                }
                Step::Stop(side) => world.sides[usize::from(side)].stop(),
                Step::Start(side) => world.sides[usize::from(side)].start(world.net.now),
                Step::Suspect(side) => world.sides[usize::from(side)].suspect(world.net.now),
                Step::TooBig(side) => {
                    let (now, random) = (world.net.now, &mut world.net.dice);
                    world.sides[usize::from(side)].too_big(now, &mut |b| random.fill(b));
                }
            }
            for side in &world.sides {
                prop_assert!(side.pending.len() <= MAX_PENDING && side.outputs.len() <= MAX_OUTPUTS + 8);
            }
        }
        world.blocked = false;
        world.net.loss = 0;
        world.busy = [true; 2];
        world.mtu(1450);
        world.begin();
        world.run(45 * SECOND);
        for side in 0..2 {
            let path = world.sides[side].path();
            prop_assert_eq!(path.map(|p| p.pair.remote), Some(world.source[1 - side]));
            prop_assert!(path.is_some_and(|p| p.mtu <= 1450 && p.mtu >= 1280));
            prop_assert_eq!(world.route[side].map(|r| r.1), path.map(|p| payload(p.pair.remote, p.mtu)));
        }
    }

    /// However it is called: it never panics, and never asks to be called in the past for ever.
    #[test]
    fn timers_make_progress(seed: u64, blocked: bool, loss in 0u64..50) {
        let mut world = World::new(seed);
        world.blocked = blocked;
        world.net.loss = loss;
        world.begin();
        for _ in 0..200 {
            world.run(100 * MS);
            for side in 0..2 {
                let due = world.sides[side].poll_timeout();
                let (now, random) = (world.net.now, &mut world.net.dice);
                world.sides[side].handle_timeout(now, &mut |b| random.fill(b));
                prop_assert!(world.sides[side].poll_timeout().is_none_or(|at| at > now), "due {:?}", due);
            }
        }
    }
}
