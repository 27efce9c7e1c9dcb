//! Two peers on a virtual clock, joined by a stream and by a network that loses, delays, reorders and doubles datagrams.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use x25519_dalek::{PublicKey, StaticSecret};

use crate::crypto::frame::{HEADER, Header, SEALED};
use crate::crypto::replay::Window;
use crate::peer::*;
use crate::testing::{Dice, Network, some_moment};
use crate::wire::datagram::{OVERHEAD, TRAILER, Trailer};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Bytes of the IP and UDP headers of IPv4.
const HEADERS: usize = 28;

pub(super) fn subnet(n: u8) -> SubnetId {
    SubnetId([n; 16])
}

pub(super) fn id(end: usize) -> PeerId {
    PeerId([end as u8 + 1; 32])
}

fn secret(end: usize) -> [u8; 32] {
    [end as u8 + 1; 32]
}

pub(super) fn public(end: usize) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(secret(end))).to_bytes()
}

/// What the receiving thread has of one key.
struct Installed {
    subnet: SubnetId,
    opener: Opener,
    window: Window,
    way: Option<Pair>,
    /// Frames of packets that came.
    traffic: u64,
}

/// One machine: the peer object, and what its threads would hold.
pub(super) struct End {
    pub peer: Peer,
    installed: HashMap<u32, Installed>,
    pub routes: BTreeMap<SubnetId, Route>,
    /// Where its datagrams come from, as others see it, and what reaches it.
    pub at: SocketAddr,
    /// The same of IPv6, where it has both families.
    pub six: Option<SocketAddr>,
    /// Counts restarts: a question of an earlier life gets no answer.
    life: usize,
    is_up: bool,
    /// Numbers of the data that arrived, by subnet.
    pub arrived: BTreeMap<SubnetId, u64>,
    pub answered: Vec<(u64, Duration)>,
    /// Where the other end sees its datagrams come from.
    pub seen: Vec<SocketAddr>,
    /// Where its packets went straight to the other end, one after another; none while they did not.
    pub direct: Vec<Option<SocketAddr>>,
    /// How often packets went to the stream because they were dropped as datagrams.
    pub data_lost: u64,
    /// What the other end said of a search for a port.
    pub words: Vec<Spray>,
    /// Control frames and bytes of IP packets sent.
    pub sent: (u64, usize),
    /// How often the timer ran.
    pub timers: u64,
}

#[derive(Clone)]
pub(super) enum Happening {
    Ask {
        from: usize,
        life: usize,
        subnet: SubnetId,
        number: u64,
        message: Vec<u8>,
    },
    Answer {
        to: usize,
        life: usize,
        subnet: SubnetId,
        number: u64,
        answer: Option<(Vec<u8>, SocketAddr)>,
    },
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Data {
        from: usize,
    },
}

pub(super) struct World {
    pub net: Network<Happening>,
    pub ends: [End; 2],
    subnets: [BTreeSet<SubnetId>; 2],
    pub mtu: usize,
    /// No datagram passes.
    pub blocked: bool,
    /// No frame of packets of that end passes.
    pub muted: Option<usize>,
    /// No frame of packets to these passes.
    pub barren: Vec<SocketAddr>,
    /// No datagram to these passes.
    pub cut: Vec<SocketAddr>,
    pub stream: bool,
    /// Milliseconds between two frames of data of each end in each subnet; none: no traffic.
    pub pace: Option<u64>,
    /// Packets sent so far.
    pub data: u64,
    delivered: HashSet<u64>,
    nonces: HashSet<(usize, u64)>,
    /// Frames of data that were sent on a route and that no key opened, by subnet.
    pub lost: BTreeMap<SubnetId, u64>,
    buffers: Buffers,
}

fn new_peer(end: usize, dice: &mut Dice) -> Peer {
    let secret = Zeroizing::new(secret(end));
    let config = Config {
        me: id(end),
        secret,
        aes: Some(Library::AwsLc),
        post_quantum: Default::default(),
    };
    let mut entropy = |out: &mut [u8]| dice.fill(out);
    let indices = Indices::new(&mut entropy);
    Peer::new(id(1 - end), config, indices, Arc::default(), &mut entropy)
}

impl World {
    /// Two ends that share so many subnets, connected by a stream at once.
    pub(super) fn new(seed: u64, shared: u8) -> World {
        let mut net = Network::new(seed, some_moment());
        let mut end = |end: usize| End {
            peer: new_peer(end, &mut net.dice),
            installed: HashMap::new(),
            routes: BTreeMap::new(),
            at: SocketAddr::from(([192, 0, 2, end as u8 + 1], 4100)),
            six: None,
            life: 0,
            is_up: true,
            arrived: BTreeMap::new(),
            answered: Vec::new(),
            seen: Vec::new(),
            direct: Vec::new(),
            data_lost: 0,
            words: Vec::new(),
            sent: (0, 0),
            timers: 0,
        };
        let ends = [end(0), end(1)];
        let subnets: BTreeSet<SubnetId> = (1..=shared).map(subnet).collect();
        let mut world = World {
            ends,
            subnets: [subnets.clone(), subnets],
            net,
            mtu: 1500,
            blocked: false,
            muted: None,
            barren: Vec::new(),
            cut: Vec::new(),
            stream: true,
            pace: None,
            data: 0,
            delivered: HashSet::new(),
            nonces: HashSet::new(),
            lost: BTreeMap::new(),
            buffers: Buffers::default(),
        };
        world.connect();
        world
    }

    /// Connected, with a path in every subnet, both ways.
    pub(super) fn live(seed: u64, shared: u8) -> World {
        let mut world = World::new(seed, shared);
        assert!(
            world.until(5 * SECOND, World::all_up).is_some(),
            "no path at all"
        );
        world
    }

    /// Does something with one end's object, then all it asks for.
    pub(super) fn call<T>(
        &mut self,
        end: usize,
        run: impl FnOnce(&mut Peer, Instant, Entropy<'_>) -> T,
    ) -> T {
        let (now, dice) = (self.net.now, &mut self.net.dice);
        let result = run(&mut self.ends[end].peer, now, &mut |out: &mut [u8]| {
            dice.fill(out)
        });
        self.obey(end);
        result
    }

    fn obey(&mut self, end: usize) {
        while let Some(event) = self.ends[end].peer.poll_event() {
            match event {
                Event::Install {
                    subnet,
                    index,
                    opener,
                } => {
                    let installed = Installed {
                        subnet,
                        opener,
                        window: Window::new(),
                        way: None,
                        traffic: 0,
                    };
                    assert!(
                        self.ends[end].installed.insert(index, installed).is_none(),
                        "an index in use"
                    );
                }
                Event::Remove { index } => {
                    assert!(self.ends[end].installed.remove(&index).is_some())
                }
                Event::Route {
                    subnet,
                    route: Some(route),
                } => {
                    assert!(
                        self.subnets[end].contains(&subnet),
                        "a route where there is no member"
                    );
                    self.ends[end].routes.insert(subnet, route);
                }
                Event::Route {
                    subnet,
                    route: None,
                } => {
                    self.ends[end].routes.remove(&subnet);
                }
                Event::Ask {
                    subnet,
                    number,
                    message,
                } => {
                    let life = self.ends[end].life;
                    self.net.later(Happening::Ask {
                        from: end,
                        life,
                        subnet,
                        number,
                        message,
                    });
                }
                Event::Seen { address, .. } => self.ends[end].seen.push(address),
                Event::Direct { address } => self.ends[end].direct.push(Some(address)),
                Event::DirectLost => self.ends[end].direct.push(None),
                Event::Spray { word } => self.ends[end].words.push(word),
                Event::DataLost => self.ends[end].data_lost += 1,
                Event::Fresh => {}
                Event::Knock { word } => panic!("nobody knocks here: {word:?}"),
                Event::Answered { token, rtt } => self.ends[end].answered.push((token, rtt)),
            }
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        while let Some(Transmit { pair, .. }) = self.ends[end].peer.poll_transmit(&mut buffers) {
            let bytes = buffers.frame().to_vec();
            let (count, size) = &mut self.ends[end].sent;
            *count += 1;
            *size += bytes.len() + HEADERS;
            self.put(end, pair.remote.address, bytes);
        }
        self.buffers = buffers;
    }

    /// Hands a datagram to the network.
    fn put(&mut self, end: usize, to: SocketAddr, bytes: Vec<u8>) {
        let header = Header::decode(&bytes).expect("a sealed frame");
        let nonce = (header.receiver as usize + (end << 40), header.counter);
        assert!(self.nonces.insert(nonce), "a nonce was used twice");
        if !self.ends[end].is_up
            || self.blocked
            || self.cut.contains(&to)
            || bytes.len() + HEADERS > self.mtu
            || self.net.loses()
        {
            return;
        }
        let from = &self.ends[end];
        let from = from.six.filter(|_| to.is_ipv6()).unwrap_or(from.at);
        self.net.send(Happening::Datagram { from, to, bytes });
    }

    fn receive(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let is_there = |end: &End| end.is_up && (end.at == to || end.six == Some(to));
        let Some(end) = self.ends.iter().position(is_there) else {
            return;
        };
        let pair = Pair {
            local: None,
            remote: from.into(),
        };
        let (clear, sealed) = bytes.split_first_chunk::<HEADER>().unwrap();
        assert_eq!(clear[0], SEALED);
        let Header { receiver, counter } = Header::decode(clear).unwrap();
        let Some(Installed {
            subnet,
            opener,
            window,
            way,
            traffic,
        }) = self.ends[end].installed.get_mut(&receiver)
        else {
            return;
        };
        let subnet = *subnet;
        if !window.check(counter) {
            return;
        }
        let mut plain = vec![0; sealed.len()];
        let length = opener
            .open(clear, sealed, &mut plain)
            .expect("what the peer sealed opens");
        let newest = window.newest().is_none_or(|newest| counter > newest);
        assert!(window.commit(counter));
        plain.truncate(length);
        let trailer = plain.split_off(length - TRAILER);
        let mut news = None;
        if newest && *way != Some(pair) {
            news = Some(way.replace(pair).is_none().then_some(receiver));
        }
        let arrived = *traffic;
        // The news may be lost: a bounded queue that never waits.
        if let Some(index) = news.filter(|_| !self.net.loses()) {
            self.call(end, |peer, now, entropy| {
                peer.handle_packet_seen(now, subnet, index, pair, entropy)
            });
        }
        if trailer[..] != Trailer::Control.encode()
            && let Some(installed) = self.ends[end].installed.get_mut(&receiver)
        {
            installed.traffic += 1;
        }
        if trailer[..] == Trailer::Control.encode() {
            self.call(end, |peer, now, entropy| {
                peer.handle_control(now, (subnet, receiver, arrived), pair, &plain, entropy)
            });
            return;
        }
        assert_eq!(plain[8..], subnet.0, "a packet of another subnet");
        let number = u64::from_be_bytes(plain[..8].try_into().unwrap());
        assert!(
            self.delivered.insert(number),
            "a packet was delivered twice"
        );
        *self.ends[end].arrived.entry(subnet).or_default() += 1;
    }

    /// A packet in each subnet that has a route.
    fn data(&mut self, end: usize) {
        let routes: Vec<(SubnetId, Route)> = self.ends[end]
            .routes
            .iter()
            .map(|(s, r)| (*s, r.clone()))
            .collect();
        for (subnet, route) in routes {
            self.data += 1;
            let body = [&self.data.to_be_bytes()[..], &subnet.0].concat();
            let nonce = route
                .sealer
                .take(1)
                .expect("a key in use gives nonces")
                .next()
                .unwrap();
            let mut bytes = vec![0; body.len() + OVERHEAD];
            route
                .sealer
                .seal(
                    nonce,
                    &body,
                    &Trailer::Packet { partial: false }.encode(),
                    &mut bytes,
                )
                .unwrap();
            let header = Header::decode(&bytes).unwrap();
            if !self.ends[1 - end].installed.contains_key(&header.receiver) {
                *self.lost.entry(subnet).or_default() += 1;
            }
            if self.muted == Some(end) || self.barren.contains(&route.pair.remote.address) {
                continue;
            }
            self.put(end, route.pair.remote.address, bytes);
        }
        if let Some(pace) = self.pace {
            self.net
                .after(Duration::from_millis(pace), Happening::Data { from: end });
        }
    }

    /// Traffic of both ends in every subnet from now on.
    pub(super) fn traffic(&mut self, pace: u64) {
        if self.pace.replace(pace).is_none() {
            (0..2).for_each(|from| self.net.after(MS, Happening::Data { from }));
        }
    }

    /// No more traffic, and all of it arrived or was lost.
    pub(super) fn rest(&mut self) {
        self.pace = None;
        self.run(2 * SECOND);
    }

    /// Packets that arrived so far.
    pub(super) fn arrived(&self) -> u64 {
        self.delivered.len() as u64
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Ask {
                from,
                life,
                subnet,
                number,
                message,
            } => {
                let to = 1 - from;
                let mut answer = None;
                if self.stream && self.ends[to].is_up && self.ends[from].life == life {
                    let at = self.ends[from].at;
                    answer = self.call(to, |peer, now, entropy| {
                        let said = peer.handle_request(now, subnet, &message, entropy).ok();
                        peer.offer(now, &[at], Origin::Host);
                        said
                    });
                }
                let answer = answer.map(|message| (message, self.ends[to].at));
                self.net.later(Happening::Answer {
                    to: from,
                    life,
                    subnet,
                    number,
                    answer,
                });
            }
            Happening::Answer {
                to,
                life,
                subnet,
                number,
                answer,
            } => {
                if life == self.ends[to].life && self.ends[to].is_up {
                    let answer = answer.filter(|_| self.stream);
                    self.call(to, |peer, now, entropy| {
                        let message = answer.as_ref().map(|(message, _)| message.as_slice());
                        let is_last = peer.handle_answer(now, subnet, number, message, entropy);
                        if let Some((_, at)) = answer.filter(|_| is_last) {
                            peer.offer(now, &[at], Origin::Host);
                        }
                    });
                }
            }
            Happening::Datagram { from, to, bytes } => self.receive(from, to, &bytes),
            Happening::Data { from } => self.data(from),
        }
    }

    /// Lets that much time go by.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.net.now + time;
        let mut still = (self.net.now, 0);
        loop {
            let timer = |e: usize| {
                self.ends[e]
                    .peer
                    .poll_timeout()
                    .filter(|_| self.ends[e].is_up)
                    .map(|at| (at, e))
            };
            let timer = (0..2).filter_map(timer).min();
            let event = self.net.next();
            let at = [timer.map(|t| t.0), event]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= end);
            let Some(at) = at else { break };
            self.net.now = self.net.now.max(at);
            if let Some(happening) = self.net.due() {
                self.happen(happening);
            } else if let Some((_, e)) = timer {
                self.ends[e].timers += 1;
                self.call(e, |peer, now, entropy| peer.handle_timeout(now, entropy));
            }
            still = if still.0 == self.net.now {
                (still.0, still.1 + 1)
            } else {
                (self.net.now, 0)
            };
            assert!(still.1 < 5000, "time stands still");
        }
        self.net.now = end;
    }

    /// Lets time pass until `done`, at most `time`; how long it took.
    pub(super) fn until(
        &mut self,
        time: Duration,
        done: impl Fn(&World) -> bool,
    ) -> Option<Duration> {
        let begin = self.net.now;
        while !done(self) {
            if self.net.now - begin >= time {
                return None;
            }
            self.run(5 * MS);
        }
        Some(self.net.now - begin)
    }

    /// A connection between the two: each learns where the other is.
    pub(super) fn connect(&mut self) {
        for end in 0..2 {
            let (subnets, at) = (self.subnets[end].clone(), self.ends[1 - end].at);
            self.call(end, |peer, now, entropy| {
                subnets
                    .iter()
                    .for_each(|subnet| peer.join(now, *subnet, public(1 - end)));
                peer.connected(now, entropy);
                peer.offer(now, &[at], Origin::Connection);
            });
        }
    }

    /// The connection between the two is gone, as each hears of it.
    pub(super) fn disconnect(&mut self) {
        for end in 0..2 {
            self.call(end, |peer, now, entropy| peer.closed(now, entropy));
        }
    }

    /// One end dies without a word.
    pub(super) fn kill(&mut self, end: usize) {
        self.ends[end].is_up = false;
    }

    /// And is there again, with nothing of what it had.
    pub(super) fn revive(&mut self, end: usize) {
        let peer = new_peer(end, &mut self.net.dice);
        let End {
            peer: old,
            installed,
            routes,
            life,
            is_up,
            ..
        } = &mut self.ends[end];
        *old = peer;
        installed.clear();
        routes.clear();
        *life += 1;
        *is_up = true;
    }

    /// One end has another address: what is under way to the old one is lost.
    pub(super) fn rebind(&mut self, end: usize, n: u8) {
        self.ends[end].at = SocketAddr::from(([198, 51, 100 + end as u8, n], 4100));
    }

    /// The other end is a member of that subnet no more, as this one sees it.
    pub(super) fn leave(&mut self, end: usize, subnet: SubnetId) {
        self.subnets[end].remove(&subnet);
        self.call(end, |peer, now, _| peer.leave(now, subnet));
        assert!(
            self.ends[end]
                .installed
                .values()
                .all(|installed| installed.subnet != subnet),
            "its keys open nothing"
        );
        assert!(!self.ends[end].routes.contains_key(&subnet));
    }

    /// It is one again.
    pub(super) fn enter(&mut self, end: usize, subnet: SubnetId) {
        self.subnets[end].insert(subnet);
        self.call(end, |peer, now, entropy| {
            peer.join(now, subnet, public(1 - end));
            peer.connected(now, entropy);
        });
    }

    pub(super) fn is_up(&self, end: usize, n: u8) -> bool {
        self.ends[end].routes.contains_key(&subnet(n))
    }

    /// Both ends use the path in every subnet that both know the other as a member of.
    pub(super) fn all_up(&self) -> bool {
        let mut common = self.subnets[0].intersection(&self.subnets[1]);
        common.all(|subnet| self.ends.iter().all(|end| end.routes.contains_key(subnet)))
    }

    /// Each end seals with keys that the other opens, and sends to where the other is.
    pub(super) fn agree(&self) -> bool {
        self.all_up()
            && (0..2).all(|end| {
                let far = &self.ends[1 - end];
                self.subnets[0]
                    .intersection(&self.subnets[1])
                    .all(|subnet| {
                        let Some(route) = self.ends[end].routes.get(subnet) else {
                            return false;
                        };
                        let key = far.installed.get(&route.sealer.receiver());
                        route.pair.remote.address == far.at
                            && key.is_some_and(|installed| installed.subnet == *subnet)
                    })
            })
    }

    /// Control frames and bytes of IP packets that both sent so far.
    pub(super) fn cost(&self) -> (u64, usize) {
        let [a, b] = [&self.ends[0].sent, &self.ends[1].sent];
        (a.0 + b.0, a.1 + b.1)
    }
}
