//! One NAT: mapping, filtering, ports, lifetimes and quota, each chosen by itself. No I/O; time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use byway::testing::Dice;

use super::packet::{End, Flow, Proto, Seen, refusal, rewrite, rewrite_error, seen};

/// On what of the remote end a behaviour depends (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependence {
    Nothing,
    Address,
    AddressAndPort,
}

/// Which port outside a new mapping gets; one that is in use is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// That of inside.
    Preserve,
    /// So many more than the last.
    Sequential(u16),
    /// Any, by the seed.
    Random,
}

/// How a NAT behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub mapping: Dependence,
    pub filtering: Dependence,
    pub ports: Ports,
    /// Ports it gives: first and last.
    pub pool: (u16, u16),
    /// A mapping of UDP or echo ends after so long without a packet, either way. One of TCP stays for two hours.
    pub idle: Duration,
    /// It ends at this age, whatever flows.
    pub absolute: Option<Duration>,
    /// Most mappings of one host inside.
    pub quota: usize,
    /// Whether a host inside reaches another by its address outside.
    pub hairpin: bool,
    /// Whether what nobody asked for is refused aloud, by ICMP port unreachable.
    pub reject: bool,
    /// Whether such a packet occupies its port for that remote end for 30 s, as an entry of conntrack does on a Linux
    /// router without a filter: a flow from inside that begins meanwhile gets another port.
    pub occupies: bool,
}

impl Kind {
    fn of(mapping: Dependence, filtering: Dependence, ports: Ports) -> Kind {
        Kind {
            mapping,
            filtering,
            ports,
            pool: (1024, 65535),
            idle: Duration::from_secs(120),
            absolute: None,
            quota: usize::MAX,
            hairpin: false,
            reject: false,
            occupies: false,
        }
    }

    /// One mapping for every remote end, and everybody is let in by it.
    pub fn full_cone() -> Kind {
        Kind::of(Dependence::Nothing, Dependence::Nothing, Ports::Preserve)
    }

    /// One mapping for every remote end; let in is whoever was sent to, from any port of its.
    pub fn address_restricted() -> Kind {
        Kind::of(Dependence::Nothing, Dependence::Address, Ports::Preserve)
    }

    /// One mapping for every remote end; let in is what was sent to.
    pub fn port_restricted() -> Kind {
        Kind::of(
            Dependence::Nothing,
            Dependence::AddressAndPort,
            Ports::Preserve,
        )
    }

    /// A mapping for each remote end, on a random port; let in is that remote end.
    pub fn symmetric() -> Kind {
        Kind::of(
            Dependence::AddressAndPort,
            Dependence::AddressAndPort,
            Ports::Random,
        )
    }
}

/// Why a packet went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// Nobody inside asked for it.
    Unsolicited,
    /// The host has all mappings it may have, or no port is left.
    Quota,
    /// To our own address from inside, where hairpins are off.
    Hairpin,
    /// UDP, where that is blocked.
    Udp,
    /// A family, protocol or fragment that is not carried here.
    Foreign,
}

/// Where a packet goes on, changed as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Out(Vec<u8>),
    In(Vec<u8>),
    Dropped(Drop),
}

/// What a mapping is found by from inside: the remote end as far as the mapping depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    proto: Proto,
    inside: SocketAddrV4,
    remote: Option<SocketAddrV4>,
}

#[derive(Debug)]
struct Mapping {
    key: Key,
    born: Duration,
    used: Duration,
    /// Remote ends that were sent to, and when last.
    contacts: HashMap<SocketAddrV4, Duration>,
}

/// How long an unsolicited packet occupies a port, where it does.
const OCCUPIED: Duration = Duration::from_secs(30);
const TCP_IDLE: Duration = Duration::from_secs(7200);

/// One NAT with its tables.
#[derive(Debug)]
pub struct Nat {
    kind: Kind,
    address: Ipv4Addr,
    dice: Dice,
    last: u16,
    by_key: HashMap<Key, u16>,
    by_port: BTreeMap<(Proto, u16), Mapping>,
    occupied: HashMap<(u16, SocketAddrV4), Duration>,
}

impl Nat {
    /// A NAT with this address outside and empty tables.
    pub fn new(kind: Kind, address: Ipv4Addr, seed: u64) -> Nat {
        let last = kind.pool.0;
        Nat {
            kind,
            address,
            dice: Dice::new(seed),
            last,
            by_key: HashMap::new(),
            by_port: BTreeMap::new(),
            occupied: HashMap::new(),
        }
    }

    /// Its address outside.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its behaviour, to be changed while it runs; mappings stay.
    pub fn kind(&mut self) -> &mut Kind {
        &mut self.kind
    }

    /// Forgets every mapping, as when its power was cut, and has this address from now on.
    pub fn reboot(&mut self, address: Ipv4Addr) {
        self.by_key.clear();
        self.by_port.clear();
        self.occupied.clear();
        self.address = address;
    }

    /// Mappings that live now.
    pub fn mappings(&mut self, now: Duration) -> usize {
        self.expire(now);
        self.by_port.len()
    }

    /// A packet from inside.
    pub fn outbound(&mut self, now: Duration, mut packet: Vec<u8>) -> Verdict {
        match seen(&packet) {
            Seen::Flow(flow) => {
                let (Some(source), Some(target)) = ends(&flow) else {
                    return Verdict::Dropped(Drop::Foreign);
                };
                if *target.ip() == self.address && !self.kind.hairpin {
                    return Verdict::Dropped(Drop::Hairpin);
                }
                // Nobody outside was asked by an echo answer.
                if flow.proto == Proto::Echo && source.port() == 0 {
                    return Verdict::Dropped(Drop::Foreign);
                }
                let Some(port) = self.map(now, flow.proto, source, target) else {
                    return Verdict::Dropped(Drop::Quota);
                };
                rewrite(
                    &mut packet,
                    End::Source,
                    SocketAddrV4::new(self.address, port),
                );
                if *target.ip() == self.address {
                    return self.inbound(now, packet);
                }
                Verdict::Out(packet)
            }
            // Of a packet that was let in: its target is inside.
            Seen::Error(about) => {
                let (Some(remote), Some(inside)) = ends(&about) else {
                    return Verdict::Dropped(Drop::Foreign);
                };
                let Some(port) = self.find(about.proto, inside, remote) else {
                    return Verdict::Dropped(Drop::Foreign);
                };
                let (address, outside) = (self.address, SocketAddrV4::new(self.address, port));
                rewrite_error(&mut packet, End::Source, address, outside);
                Verdict::Out(packet)
            }
            Seen::Other => Verdict::Dropped(Drop::Foreign),
        }
    }

    /// A packet from outside.
    pub fn inbound(&mut self, now: Duration, mut packet: Vec<u8>) -> Verdict {
        self.expire(now);
        match seen(&packet) {
            Seen::Flow(flow) => {
                let (Some(source), Some(target)) = ends(&flow) else {
                    return Verdict::Dropped(Drop::Foreign);
                };
                // Nobody has an address any more that the NAT had before it began anew.
                if *target.ip() != self.address {
                    return Verdict::Dropped(Drop::Foreign);
                }
                let Some(inside) = self.admitted(now, flow.proto, source, target.port()) else {
                    return self.refuse(now, &flow, source, target.port(), &packet);
                };
                rewrite(&mut packet, End::Target, inside);
                Verdict::In(packet)
            }
            // Of a packet that left: its source is our port.
            Seen::Error(about) => {
                let (Some(outside), Some(_)) = ends(&about) else {
                    return Verdict::Dropped(Drop::Foreign);
                };
                let Some(mapping) = self.by_port.get(&(about.proto, outside.port())) else {
                    return Verdict::Dropped(Drop::Unsolicited);
                };
                let inside = mapping.key.inside;
                rewrite_error(&mut packet, End::Target, *inside.ip(), inside);
                Verdict::In(packet)
            }
            Seen::Other => Verdict::Dropped(Drop::Foreign),
        }
    }

    fn expire(&mut self, now: Duration) {
        let kind = &self.kind;
        let lives = |proto: Proto, mapping: &Mapping| {
            let idle = if proto == Proto::Tcp {
                TCP_IDLE
            } else {
                kind.idle
            };
            now < mapping.used + idle && kind.absolute.is_none_or(|age| now < mapping.born + age)
        };
        let by_key = &mut self.by_key;
        self.by_port.retain(|(proto, _), mapping| {
            let stays = lives(*proto, mapping);
            if !stays {
                by_key.remove(&mapping.key);
            }
            stays
        });
        self.occupied.retain(|_, since| now < *since + OCCUPIED);
    }

    /// The port of a living mapping for this pair.
    fn find(&self, proto: Proto, inside: SocketAddrV4, remote: SocketAddrV4) -> Option<u16> {
        let exact = Key {
            proto,
            inside,
            remote: Some(remote),
        };
        let usual = self.key(proto, inside, remote);
        self.by_key
            .get(&exact)
            .or_else(|| self.by_key.get(&usual))
            .copied()
    }

    fn key(&self, proto: Proto, inside: SocketAddrV4, remote: SocketAddrV4) -> Key {
        let remote = match self.kind.mapping {
            Dependence::Nothing => None,
            Dependence::Address => Some(SocketAddrV4::new(*remote.ip(), 0)),
            Dependence::AddressAndPort => Some(remote),
        };
        Key {
            proto,
            inside,
            remote,
        }
    }

    /// The port outside for a packet from inside, of a mapping that is made where there is none.
    fn map(
        &mut self,
        now: Duration,
        proto: Proto,
        inside: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Option<u16> {
        self.expire(now);
        let mut key = self.key(proto, inside, remote);
        let port = match self.find(proto, inside, remote) {
            Some(port) if !self.taken(proto, port, remote) => port,
            found => {
                if found.is_some() {
                    // The pair clashes with an entry of the router's own: this flow gets a mapping of its own.
                    key.remote = Some(remote);
                }
                let own = self
                    .by_port
                    .values()
                    .filter(|m| m.key.inside.ip() == inside.ip());
                if own.count() >= self.kind.quota {
                    return None;
                }
                let port = self.allocate(proto, inside.port(), remote)?;
                self.by_key.insert(key, port);
                let mapping = Mapping {
                    key,
                    born: now,
                    used: now,
                    contacts: HashMap::new(),
                };
                self.by_port.insert((proto, port), mapping);
                port
            }
        };
        let mapping = self.by_port.get_mut(&(proto, port))?;
        mapping.used = now;
        mapping.contacts.insert(remote, now);
        Some(port)
    }

    /// Whether an unsolicited packet holds this port against that remote end, and no flow of ours did before it.
    fn taken(&self, proto: Proto, port: u16, remote: SocketAddrV4) -> bool {
        let known = self.by_port.get(&(proto, port));
        proto == Proto::Udp
            && self.occupied.contains_key(&(port, remote))
            && !known.is_some_and(|m| m.contacts.contains_key(&remote))
    }

    fn allocate(&mut self, proto: Proto, inside: u16, remote: SocketAddrV4) -> Option<u16> {
        let (first, last) = self.kind.pool;
        let size = u64::from(last - first) + 1;
        let start = match self.kind.ports {
            Ports::Preserve => inside.clamp(first, last),
            Ports::Sequential(step) => self.after(self.last, step),
            Ports::Random => first + (self.dice.roll() % size) as u16,
        };
        let step = match self.kind.ports {
            Ports::Sequential(step) => step.max(1),
            Ports::Preserve | Ports::Random => 1,
        };
        let mut port = start;
        for _ in 0..size {
            if !self.by_port.contains_key(&(proto, port)) && !self.taken(proto, port, remote) {
                self.last = port;
                return Some(port);
            }
            port = self.after(port, step);
        }
        None
    }

    fn after(&self, port: u16, step: u16) -> u16 {
        let (first, last) = self.kind.pool;
        let size = u32::from(last - first) + 1;
        first + ((u32::from(port.saturating_sub(first)) + u32::from(step)) % size) as u16
    }

    /// Who inside gets a packet of `remote` to this port.
    fn admitted(
        &mut self,
        now: Duration,
        proto: Proto,
        remote: SocketAddrV4,
        port: u16,
    ) -> Option<SocketAddrV4> {
        // Nobody runs a NAT that lets connections of TCP in unasked.
        let filtering = match proto {
            Proto::Udp => self.kind.filtering,
            Proto::Tcp | Proto::Echo => Dependence::AddressAndPort,
        };
        let idle = if proto == Proto::Tcp {
            TCP_IDLE
        } else {
            self.kind.idle
        };
        let mapping = self.by_port.get_mut(&(proto, port))?;
        let mut known = mapping.contacts.iter();
        let asked = match filtering {
            Dependence::Nothing => true,
            Dependence::Address => {
                known.any(|(c, last)| c.ip() == remote.ip() && now < *last + idle)
            }
            Dependence::AddressAndPort => known.any(|(c, last)| *c == remote && now < *last + idle),
        };
        if !asked {
            return None;
        }
        mapping.used = now;
        if let Some(last) = mapping.contacts.get_mut(&remote) {
            *last = now;
        }
        Some(mapping.key.inside)
    }

    fn refuse(
        &mut self,
        now: Duration,
        flow: &Flow,
        source: SocketAddrV4,
        port: u16,
        packet: &[u8],
    ) -> Verdict {
        if flow.proto == Proto::Udp && self.kind.occupies {
            self.occupied.insert((port, source), now);
        }
        let answer = (flow.proto == Proto::Udp && self.kind.reject)
            .then(|| refusal(packet, self.address))
            .flatten();
        answer.map_or(Verdict::Dropped(Drop::Unsolicited), Verdict::Out)
    }
}

fn ends(flow: &Flow) -> (Option<SocketAddrV4>, Option<SocketAddrV4>) {
    let four = |address: SocketAddr| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    };
    (four(flow.source), four(flow.target))
}
