//! Two peers that look for paths to each other, on a virtual clock and a network between them.

mod addresses;
mod aging;
mod helpers;
mod hostile;
mod liveness;
mod lossy;
mod quiet;
mod relayed;
mod size;
mod uplinks;

use super::*;
use crate::testing::{Dice, Network, some_moment};

use std::collections::BTreeMap;

use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Message {
    Probe(u64),
    /// Its token, and where the probe was seen to come from.
    Answer(u64, SocketAddr),
    Renewed(SocketAddr),
    Data,
}

/// A frame from there, to the only address of ours.
fn from(remote: impl Into<Remote>) -> Pair {
    Pair {
        local: None,
        remote: remote.into(),
    }
}

/// Bytes of the IP packet: headers, 40 of the frame, and the control message or its padding.
fn size_of(to: SocketAddr, body: usize, pad_to: usize) -> usize {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    headers + (40 + body).max(pad_to)
}
const PROBE: usize = 9;
const ANSWER: usize = 28;
const RENEWED: usize = 8;

#[derive(Clone)]
struct InFlight {
    to: usize,
    from: Remote,
    /// The receiver's address that it comes to, where it has several.
    local: Option<IpAddr>,
    message: Message,
}

/// One of several ways out of the first side.
struct Uplink {
    local: IpAddr,
    /// Where its packets come from, as others see them.
    public: SocketAddr,
    /// Of a hundred packets so many are lost, each way.
    loss: u64,
}

/// The NAT before the first side: each of its sockets has one mapping for everybody, which ends at an age.
struct Nat {
    age: Duration,
    /// So long a mapping stays without a packet.
    idle: Duration,
    /// By the helper: the port outside, when it was given, and when it was last used.
    mappings: BTreeMap<Option<u16>, (u16, Instant, Instant)>,
    /// The port given last, and the helper opened last.
    last: (u16, u16),
    /// Whether the other side lets in only what it has sent to: these.
    contacts: Option<Vec<SocketAddr>>,
}

impl Nat {
    const OUTSIDE: [u8; 4] = [203, 0, 113, 1];

    fn expire(&mut self, now: Instant) {
        let (age, idle) = (self.age, self.idle);
        self.mappings
            .retain(|_, (_, born, used)| now < *born + age && now < *used + idle);
    }

    /// Where what leaves by that socket comes from.
    fn out(&mut self, now: Instant, helper: Option<u16>) -> SocketAddr {
        self.expire(now);
        let mapping = self.mappings.entry(helper).or_insert_with(|| {
            self.last.0 += 1;
            (self.last.0, now, now)
        });
        mapping.2 = now;
        (Nat::OUTSIDE, mapping.0).into()
    }

    /// The socket that such a packet comes to.
    fn into(&mut self, now: Instant, to: SocketAddr) -> Option<Option<u16>> {
        self.expire(now);
        let mut known = self.mappings.iter_mut();
        let of = known.find(|(_, mapping)| mapping.0 == to.port())?;
        of.1.2 = now;
        Some(*of.0)
    }
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
    /// The ways out of the first side where it has several; the kernel takes the first of them.
    uplinks: Vec<Uplink>,
    /// From where those to IPv6 addresses come, where the sides have both families.
    source6: Option<[SocketAddr; 2]>,
    delay: Duration,
    /// Packets to these are lost, so many of a hundred, or take so much longer.
    bad: Option<([SocketAddr; 2], u64, Duration)>,
    blocked: bool,
    /// A relay that joins leg 1, of the first side, with leg 2.
    relay: Option<SocketAddr>,
    /// Nothing passes but by the relay.
    shut: bool,
    /// What each side was last told to use.
    route: [Option<(SocketAddr, usize)>; 2],
    settled: [bool; 2],
    /// Bytes sent, by side and address.
    sent: BTreeMap<(usize, SocketAddr), usize>,
    /// Frames of traffic a second that each side sends.
    busy: [bool; 2],
    last: [Remote; 2],
    log: Vec<(Duration, usize, Output)>,
    nat: Option<Nat>,
    /// So many padded probes by a further socket are lost, before packets leave by it.
    unlucky: u32,
    /// Frames of packets that each side sent, and that arrived from it.
    packets: [(u64, u64); 2],
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
            uplinks: Vec::new(),
            source6: None,
            delay: Duration::from_millis(5),
            bad: None,
            blocked: false,
            relay: None,
            shut: false,
            route: [None, None],
            settled: [false; 2],
            sent: BTreeMap::new(),
            busy: [false; 2],
            last: [a.into(), b.into()],
            log: vec![],
            nat: None,
            unlucky: 0,
            packets: [(0, 0); 2],
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
            let local;
            let (to, message, size) = match output {
                Output::Up {
                    pair,
                    payload,
                    settled,
                } => {
                    self.settled[side] = settled;
                    self.route[side] = Some((pair.remote.address, payload));
                    continue;
                }
                Output::Lost => {
                    self.route[side] = None;
                    continue;
                }
                Output::Fresh => {
                    let nat = self.nat.as_mut().expect("a NAT before this side");
                    nat.last.1 += 1;
                    self.sides[side].fresh(self.net.now, nat.last.1);
                    continue;
                }
                Output::Renewed { pair, address } => {
                    local = pair.local;
                    let to = pair.remote;
                    let size = size_of(to.address, RENEWED, 0);
                    (to, Message::Renewed(address), size)
                }
                Output::Probe {
                    pair,
                    token,
                    pad_to,
                } => {
                    local = pair.local;
                    let to = pair.remote;
                    let size = size_of(to.address, PROBE, pad_to);
                    (to, Message::Probe(token), size)
                }
                Output::Answer { pair, token } => {
                    local = pair.local;
                    let to = pair.remote;
                    let message = Message::Answer(token, to.address);
                    (to, message, size_of(to.address, ANSWER, 0))
                }
            };
            if self.nat.is_some() {
                *self.sent.entry((side, to.address)).or_default() += size;
                self.pass_nat(side, to, message, size);
                continue;
            }
            let leg = to.leg;
            let to = to.address;
            *self.sent.entry((side, to)).or_default() += size;
            let mut lost = self.net.loses();
            let mut delay = self.delay;
            if let Some((_, chance, more)) = self.bad.filter(|(at, ..)| at.contains(&to)) {
                lost |= self.net.dice.percent(chance);
                delay += more;
            }
            if leg.is_some() {
                assert_eq!((leg, Some(to)), (Some(side as u32 + 1), self.relay));
                let from = Remote {
                    leg: Some(2 - side as u32),
                    ..Remote::from(to)
                };
                if !self.blocked && !lost {
                    let to = 1 - side;
                    let packet = InFlight {
                        to,
                        from,
                        local: None,
                        message,
                    };
                    self.net.after(2 * self.delay, packet);
                }
                continue;
            }
            let out = self.uplinks.iter().position(|up| Some(up.local) == local);
            let out = out.or((!self.uplinks.is_empty()).then_some(0));
            let into = self.uplinks.iter().position(|up| up.public == to);
            let uplink = if side == 0 { out } else { into };
            let uplink = uplink.and_then(|at| self.uplinks.get(at));
            let dropped = uplink.is_some_and(|up| self.net.dice.below(100) < up.loss);
            let public = uplink.filter(|_| side == 0).map(|up| up.public);
            let local = uplink.filter(|_| side == 1).map(|up| up.local);
            if let Some((end, carries)) = self.reach.get(&to).copied()
                && !self.blocked
                && !self.shut
                && !lost
                && !dropped
                && size <= carries
            {
                let from = self.source6.filter(|_| to.is_ipv6()).unwrap_or(self.source)[side];
                self.net.after(
                    delay,
                    InFlight {
                        to: end,
                        from: public.unwrap_or(from).into(),
                        local,
                        message,
                    },
                );
            }
        }
    }

    /// Hands a packet to the NAT before the first side, or to what is behind it.
    fn pass_nat(&mut self, side: usize, to: Remote, message: Message, size: usize) {
        let (now, far) = (self.net.now, self.source[1]);
        let Some(nat) = &mut self.nat else { return };
        let used = self.sides[0]
            .path()
            .and_then(|path| path.pair.remote.helper);
        let is_new = side == 0 && to.helper == Some(nat.last.1) && used != to.helper;
        if is_new && size > BASE.into() && self.unlucky > 0 {
            self.unlucky -= 1;
            return;
        }
        let from = if side == 0 {
            let outside = nat.out(now, to.helper);
            let is_let_in = nat
                .contacts
                .as_ref()
                .is_none_or(|all| all.contains(&outside));
            (is_let_in && to.address == far).then_some(outside.into())
        } else {
            if let Some(contacts) = &mut nat.contacts {
                contacts.push(to.address);
            }
            let socket = nat.into(now, to.address);
            socket.map(|helper| Remote {
                helper,
                ..far.into()
            })
        };
        if let Some(from) = from.filter(|_| size <= 1500 && !self.blocked && !self.net.loses()) {
            let packet = InFlight {
                to: 1 - side,
                from,
                local: None,
                message,
            };
            self.net.after(self.delay, packet);
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
                let way = Pair {
                    local: packet.local,
                    remote: packet.from,
                };
                side.note(way);
                if self.last[1 - packet.to] != packet.from {
                    self.last[1 - packet.to] = packet.from;
                    side.on_moved(next, way, &[], &mut |b| random.fill(b));
                }
                match packet.message {
                    Message::Probe(token) => side.on_probe(next, way, token, &[]),
                    Message::Data => self.packets[1 - packet.to].1 += 1,
                    Message::Renewed(address) => {
                        let random = &mut |b: &mut [u8]| random.fill(b);
                        side.on_renewed(next, way, address, &[], random);
                    }
                    Message::Answer(token, seen) => {
                        side.seen(next, token, seen);
                        side.on_answer(next, way, token, &mut |b| random.fill(b));
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
