//! What stands between a local network and the Internet: NATs in series, a stateful firewall for IPv6, blocked protocols.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::machine::{Drop, Nat, Verdict};
use super::packet::{Flow, Proto, Seen, is_udp, seen};

/// The two ends of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Inside,
    Outside,
}

/// How long an idle flow of IPv6 is let in.
const FLOW: Duration = Duration::from_secs(120);

/// A stateful firewall: let in is the answer to what went out, by both addresses and ports.
#[derive(Debug, Default)]
pub struct Firewall(HashMap<(Proto, SocketAddr, SocketAddr), Duration>);

impl Firewall {
    fn outbound(&mut self, now: Duration, packet: &[u8]) -> bool {
        if let Seen::Flow(flow) = seen(packet) {
            self.0.insert((flow.proto, flow.source, flow.target), now);
        }
        true
    }

    fn inbound(&mut self, now: Duration, packet: &[u8]) -> bool {
        let (
            Flow {
                proto,
                source,
                target,
            },
            error,
        ) = match seen(packet) {
            Seen::Flow(flow) => (flow, false),
            Seen::Error(flow) => (flow, true),
            Seen::Other => return false,
        };
        let key = if error {
            (proto, source, target)
        } else {
            (proto, target, source)
        };
        let limit = if proto == Proto::Tcp { FLOW * 60 } else { FLOW };
        match self.0.get_mut(&key).filter(|used| now < **used + limit) {
            Some(used) => *used = now,
            None => return false,
        }
        true
    }
}

/// One site.
#[derive(Debug, Default)]
pub struct Site {
    /// From the inside to the outside; without any there is no IPv4.
    pub nats: Vec<Nat>,
    /// Without one there is no IPv6.
    pub six: Option<Firewall>,
    /// Whether everything passes as it is: a router, whose line alone matters.
    pub open: bool,
    /// Whether UDP passes nowhere.
    pub udp_blocked: bool,
    /// Packets that went no further, by reason.
    pub dropped: BTreeMap<Drop, u64>,
    /// Packets that passed: out, in.
    pub passed: (u64, u64),
}

impl Site {
    /// Behind one NAT, or several in series, the first of them the nearest.
    pub fn behind(nats: Vec<Nat>) -> Site {
        Site {
            nats,
            ..Site::default()
        }
    }

    /// Carries a packet that came from `side`; where it comes out, and as what.
    pub fn carry(&mut self, now: Duration, from: Side, packet: Vec<u8>) -> Option<(Side, Vec<u8>)> {
        let done = self.decide(now, from, packet);
        match &done {
            Ok((Side::Outside, _)) => self.passed.0 += 1,
            Ok((Side::Inside, _)) => self.passed.1 += 1,
            Err(why) => *self.dropped.entry(*why).or_default() += 1,
        }
        done.ok()
    }

    fn decide(
        &mut self,
        now: Duration,
        from: Side,
        packet: Vec<u8>,
    ) -> Result<(Side, Vec<u8>), Drop> {
        if self.udp_blocked && is_udp(&packet) {
            return Err(Drop::Udp);
        }
        if self.open {
            let to = match from {
                Side::Inside => Side::Outside,
                Side::Outside => Side::Inside,
            };
            return Ok((to, packet));
        }
        match packet.first().map(|b| b >> 4) {
            Some(4) if !self.nats.is_empty() => self.through(now, from, packet),
            Some(6) => {
                let six = self.six.as_mut().ok_or(Drop::Foreign)?;
                let (to, passes) = match from {
                    Side::Inside => (Side::Outside, six.outbound(now, &packet)),
                    Side::Outside => (Side::Inside, six.inbound(now, &packet)),
                };
                passes.then_some((to, packet)).ok_or(Drop::Unsolicited)
            }
            _ => Err(Drop::Foreign),
        }
    }

    /// Through the NATs; a hairpin or a refusal turns a packet round at one of them.
    fn through(
        &mut self,
        now: Duration,
        from: Side,
        mut packet: Vec<u8>,
    ) -> Result<(Side, Vec<u8>), Drop> {
        let last = self.nats.len();
        let (mut at, mut outward) = match from {
            Side::Inside => (0, true),
            Side::Outside => (last, false),
        };
        // Each NAT turns a packet round once at most.
        for _ in 0..4 * last + 1 {
            let verdict = match (outward, at) {
                (true, at) if at == last => return Ok((Side::Outside, packet)),
                (false, 0) => return Ok((Side::Inside, packet)),
                (true, at) => self.nats[at].outbound(now, packet),
                (false, at) => self.nats[at - 1].inbound(now, packet),
            };
            match (verdict, outward) {
                (Verdict::Dropped(why), _) => return Err(why),
                (Verdict::Out(next), true) => (at, packet) = (at + 1, next),
                (Verdict::In(next), false) => (at, packet) = (at - 1, next),
                (Verdict::In(next), true) => (outward, packet) = (false, next),
                (Verdict::Out(next), false) => (outward, packet) = (true, next),
            }
        }
        Err(Drop::Foreign)
    }
}
