//! TUN to peer: read, parse, describe what the kernel left undone, route, seal for the peer's path or queue for its stream.
//!
//! A plain thread per TUN. It blocks on its TUN and on nothing else: a peer that takes nothing only loses its own packets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{Port, Shared};
use crate::limit::{Limit, Pace, TokenBucket};
use crate::link::{Chunk, Datagrams, Key, Link, Links, Reach};
use crate::model::id::PeerId;
use crate::model::view::{Hop, SubnetView};
use crate::packet::icmp::{self, Failure};
use crate::packet::offload::Outgoing;
use crate::packet::parse::{ICMPV6, UDP};
use crate::packet::{DropReason, Offload, Packet, TunOffload, checksum, mss, parse};
use crate::tun::TunError;

/// Packets read before a new View is looked for.
const BATCH: usize = 64;
/// A flood of small packets begins with this many in [`PACE_WINDOW`]: more than any exchange of questions and answers makes.
const FLOOD: u32 = 16;
/// How long packets are counted before a flood is told from none.
const PACE_WINDOW: Duration = Duration::from_millis(1);
/// How long packets of a flood may gather in the TUN before they are read: saves the wake-ups of two tasks and a write to
/// the stream for each of them. The TUN holds what comes in that time. Measured with 1200-byte datagrams at 1 Gbit/s: 4.4
/// CPU seconds for each GB and 1 % lost, without it 6.1 and 20 %; twice as long saves little more.
const NAP: Duration = Duration::from_micros(100);
/// Runs to different peers that one batch keeps open.
const ASIDE: usize = 8;
/// ICMP errors sent at once, and per second afterwards.
pub(super) const ICMP_ANSWERS: Limit = Limit::new(50, 50);
/// Failed reads in a row after which a TUN counts as dead.
const MAX_FAILURES: u32 = 100;

/// The loop of one TUN and what it keeps between packets.
pub(super) struct Outbound {
    /// Weak, so that dropping the last [`Datapath`](super::Datapath) closes the TUN and ends this thread.
    shared: Weak<Shared>,
    links: Links,
    port: Arc<Port>,
    /// Seals packets to peers with a datagram path; none without a port.
    datagrams: Option<Datagrams>,
    /// The last packet's peer, so that the next one to it costs no lookup.
    last: Option<(PeerId, Arc<Link>)>,
    /// The run being filled for a stream: every frame in it goes to `to`.
    chunk: Chunk,
    to: Option<(PeerId, Arc<Link>)>,
    /// Runs begun in this batch to other peers: interleaved flows cost a copy, not a queue's lock for each packet.
    aside: Vec<(PeerId, Arc<Link>, Chunk)>,
    /// Links of this generation's members, so that a change of peer costs no shared lock.
    known: HashMap<PeerId, Arc<Link>>,
    generation: u64,
    /// The last flow and where it went.
    flow: Option<(IpAddr, IpAddr, Result<Hop, DropReason>)>,
    bucket: TokenBucket,
    /// Counts small packets: between batches of a flood the loop rests, as a network card would.
    pace: Pace,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, port: Arc<Port>) -> Self {
        let links = shared.links.clone();
        Outbound {
            shared: Arc::downgrade(&shared),
            chunk: links.pool().take(),
            datagrams: links.datagrams(port.subnet),
            last: None,
            links,
            port,
            to: None,
            aside: Vec::with_capacity(ASIDE),
            known: HashMap::new(),
            generation: 0,
            flow: None,
            bucket: TokenBucket::new(ICMP_ANSWERS),
            pace: Pace::new(Instant::now(), FLOOD, PACE_WINDOW),
        }
    }

    /// Carries packets until the TUN is closed or gone.
    pub(super) fn run(mut self) {
        let mut failures = 0u32;
        let port = Arc::clone(&self.port);
        loop {
            match port.tun.wait().and_then(|()| self.batch()) {
                Ok(()) => {
                    failures = 0;
                    if self.pace.is_flood(Instant::now()) {
                        std::thread::sleep(NAP);
                    }
                }
                Err(TunError::Closed) => return,
                Err(TunError::Io(error)) if failures < MAX_FAILURES => {
                    failures = failures.saturating_add(1);
                    tracing::debug!(subnet = %port.subnet, %error, "TUN read failed");
                }
                Err(_) => {
                    if let Some(shared) = self.shared.upgrade() {
                        shared.tun_died(&port);
                    }
                    return;
                }
            }
        }
    }

    /// Reads until the TUN is drained, or it is time to look for a new View. Every packet read is handed on at the end:
    /// none that was read waits for company.
    fn batch(&mut self) -> Result<(), TunError> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(TunError::Closed);
        };
        let view = shared.views.load();
        self.renew(view.generation);
        let subnet = view.subnets.get(&self.port.subnet);
        let mut result = Ok(());
        for _ in 0..BATCH {
            match self.port.tun.recv(self.chunk.space()) {
                Ok(Some((undone, length))) => {
                    self.pace.count(u32::from(!undone.is_super_packet()));
                    self.packet(subnet.map(AsRef::as_ref), undone, length);
                }
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.hand_on();
        result
    }

    /// Forgets what an older View said.
    fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.flow = None;
            self.last = None;
            self.known.clear();
        }
    }

    /// One packet of `length` bytes, in the chunk's space.
    fn packet(&mut self, subnet: Option<&SubnetView>, undone: TunOffload, length: usize) {
        let Some(subnet) = subnet else {
            return self.refuse(DropReason::NoRoute);
        };
        let Some(bytes) = self.chunk.space().get(..length) else {
            return self.refuse(DropReason::Malformed);
        };
        let packet = match parse(bytes) {
            Ok(packet) => packet,
            Err(reason) => return self.refuse(reason),
        };
        let Outgoing { offload, complete } = match Outgoing::new(undone, &packet, bytes) {
            Ok(outgoing) => outgoing,
            Err(reason) => return self.refuse(reason),
        };
        if is_noise(&packet) {
            // What this program and its kernel say on every link by themselves is nobody's loss.
            if !is_own_chatter(subnet, &packet, bytes) {
                self.refuse(DropReason::Filtered);
            }
            return;
        }
        let peer = match self.route(subnet, &packet) {
            Ok(Hop::Peer(peer)) => peer,
            // The kernel has a route of its own to whatever is attached here: nothing lives at this address.
            Ok(Hop::Local) => {
                return self.answer(subnet, &packet, DropReason::NoRoute, Failure::Unreachable);
            }
            Err(DropReason::NoRoute) => {
                return self.answer(subnet, &packet, DropReason::NoRoute, Failure::NoRoute);
            }
            // Not answered: the source is not ours, so the answer would go to a stranger.
            Err(reason) => return self.refuse(reason),
        };
        if offload.segment_length(&packet) > usize::from(subnet.mtu) {
            return self.answer(
                subnet,
                &packet,
                DropReason::TooBig,
                Failure::TooBig(subnet.mtu),
            );
        }
        if let Some((start, offset)) = complete {
            let done = self
                .chunk
                .space()
                .get_mut(..length)
                .is_some_and(|b| checksum::complete(b, start, offset));
            if !done {
                return self.refuse(DropReason::Malformed);
            }
        }
        self.carry(subnet, peer, &packet, &offload);
    }

    /// Gives a packet that may pass to its carrier: sealed datagrams where a path to the peer carries it, else the stream.
    fn carry(&mut self, subnet: &SubnetView, peer: PeerId, packet: &Packet, offload: &Offload) {
        self.meet(peer);
        if let (Some(datagrams), Some((_, link))) = (&mut self.datagrams, &self.last)
            && let Some(route) = &*link.load_route()
        {
            let bytes = self
                .chunk
                .space()
                .get_mut(..packet.length)
                .unwrap_or_default();
            if route.settled && route.inner() < usize::from(subnet.mtu) {
                mss::clamp(bytes, packet, offload, route.inner());
            }
            match route.framing(packet, offload) {
                Some(framing) if datagrams.push(link, route, framing, (packet, offload), bytes) => {
                    return;
                }
                None if route.settled && is_told(packet, route.inner()) => {
                    let fits = u16::try_from(route.inner()).unwrap_or(u16::MAX);
                    return self.answer(subnet, packet, DropReason::TooBig, Failure::TooBig(fits));
                }
                // The key is used up, nobody knows yet whether the path carries more, or the packet may be cut behind the
                // stream, which carries it whole.
                _ => {}
            }
        }
        if self.to.as_ref().is_none_or(|(current, _)| *current != peer)
            && !self.turn_to(peer, packet.length)
        {
            return self.answer(
                subnet,
                packet,
                DropReason::Unreachable,
                Failure::Unreachable,
            );
        }
        self.chunk.commit(offload, packet.length);
        if self.chunk.is_full() {
            self.hand_on_current();
        }
    }

    /// Makes `last` the link to `peer`, where datagrams may carry packets at all.
    fn meet(&mut self, peer: PeerId) {
        if self.datagrams.is_some() && self.last.as_ref().is_none_or(|(last, _)| *last != peer) {
            let key = Key {
                subnet: self.port.subnet,
                peer,
            };
            self.last = Some((
                peer,
                Arc::clone(
                    self.known
                        .entry(peer)
                        .or_insert_with(|| self.links.link(key)),
                ),
            ));
        }
    }

    /// Where the packet goes; asks the table only when the flow changes.
    fn route(&mut self, subnet: &SubnetView, packet: &Packet) -> Result<Hop, DropReason> {
        if let Some((source, destination, hop)) = self.flow
            && (source, destination) == (packet.source, packet.destination)
        {
            return hop;
        }
        let hop = subnet.route(packet.source, packet.destination);
        self.flow = Some((packet.source, packet.destination, hop));
        hop
    }

    /// Goes on with the run to another peer: the current one is set aside, the packet at hand moves. False where the peer
    /// cannot be reached; the packet then stays where it is.
    fn turn_to(&mut self, peer: PeerId, length: usize) -> bool {
        let begun = self
            .aside
            .iter()
            .position(|(other, _, _)| *other == peer)
            .map(|at| self.aside.swap_remove(at));
        let (link, mut chunk) = match begun {
            Some((_, link, chunk)) => (link, chunk),
            None => {
                let key = Key {
                    subnet: self.port.subnet,
                    peer,
                };
                let link = Arc::clone(
                    self.known
                        .entry(peer)
                        .or_insert_with(|| self.links.link(key)),
                );
                if self.links.reach(&link) == Reach::Unreachable {
                    return false;
                }
                if self.to.is_none() {
                    // What was read lies in an empty chunk already.
                    self.to = Some((peer, link));
                    return true;
                }
                (link, self.links.pool().take())
            }
        };
        if let (Some(to), Some(from)) = (
            chunk.space().get_mut(..length),
            self.chunk.space().get(..length),
        ) {
            to.copy_from_slice(from);
        }
        let current = std::mem::replace(&mut self.chunk, chunk);
        match self.to.replace((peer, link)) {
            Some((former, link)) if !current.is_empty() => {
                if self.aside.len() >= ASIDE {
                    let (_, link, oldest) = self.aside.remove(0);
                    self.links.send(&link, oldest);
                }
                self.aside.push((former, link, current));
            }
            _ => self.links.pool().put(current),
        }
        true
    }

    /// Hands the runs to their peers' queues.
    fn hand_on(&mut self) {
        for (_, link, chunk) in self.aside.drain(..) {
            self.links.send(&link, chunk);
        }
        self.hand_on_current();
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.flush();
        }
    }

    /// Hands the run being filled to its peer's queue.
    fn hand_on_current(&mut self) {
        if let Some((_, link)) = self.to.take()
            && !self.chunk.is_empty()
        {
            let full = std::mem::replace(&mut self.chunk, self.links.pool().take());
            self.links.send(&link, full);
        }
    }

    /// Drops the packet at hand.
    fn refuse(&self, reason: DropReason) {
        self.port.counts.add(reason, 1);
    }

    /// Drops the packet at hand and tells its sender, as often as the bucket allows.
    fn answer(
        &mut self,
        subnet: &SubnetView,
        packet: &Packet,
        reason: DropReason,
        failure: Failure,
    ) {
        self.refuse(reason);
        if !self.bucket.take(Instant::now()) {
            return;
        }
        // Linux drops what comes in from one of its own IPv4 addresses ("martian source"): there the unreachable address
        // itself answers. IPv6 has no such check, and wants the node's own address (RFC 4443 section 2.2).
        let own = match packet.destination {
            IpAddr::V4(_) => Some(&packet.destination),
            IpAddr::V6(_) => subnet.addresses.iter().find(|a| a.is_ipv6()),
        };
        let bytes = self.chunk.space().get(..packet.length).unwrap_or_default();
        if let Some(reply) = own.and_then(|from| icmp::reply(packet, bytes, *from, failure))
            && self.port.tun.send(TunOffload::default(), &reply).is_err()
        {
            self.port.counts.add(DropReason::TunWrite, 1);
        }
        tracing::trace!(subnet = %self.port.subnet, source = %packet.source, destination = %packet.destination, %reason, "refused");
    }
}

/// Whether the sender of a packet that is larger than the path is told so: it must not be cut, and the path carries what
/// every IPv6 path has to (RFC 8200 section 5). The stream carries the others whole.
fn is_told(packet: &Packet, mtu: usize) -> bool {
    packet.dont_fragment && (packet.source.is_ipv4() || mtu >= 1280)
}

/// What a kernel says on every link by itself (router solicitations, mDNS, link-local chatter): not for peers.
fn is_noise(packet: &Packet) -> bool {
    let link_local = |address: IpAddr| match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let broadcast = matches!(packet.destination, IpAddr::V4(a) if a.is_broadcast());
    packet.destination.is_multicast()
        || broadcast
        || link_local(packet.destination)
        || link_local(packet.source)
        || packet.source.is_unspecified()
}

/// What comes of this program's own search for peers on local networks: multicast DNS from an address of this node, and the
/// kernel's word that it listens to it (IGMP, MLD).
fn is_own_chatter(subnet: &SubnetView, packet: &Packet, bytes: &[u8]) -> bool {
    const IGMP: u8 = 2;
    const MDNS: u16 = 5353;
    let port = || {
        bytes
            .get(packet.transport + 2..packet.transport + 4)
            .and_then(|port| port.try_into().ok())
    };
    match packet.protocol {
        IGMP | ICMPV6 => packet.destination.is_multicast(),
        UDP => {
            subnet.addresses.contains(&packet.source)
                && port().map(u16::from_be_bytes) == Some(MDNS)
        }
        _ => false,
    }
}
