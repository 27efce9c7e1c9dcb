//! One entry of connection tracking: what it belongs to, and what is to become of its flow.

use std::net::{IpAddr, SocketAddr as End};

use netlink_packet_core::Nla;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::{Begun, ENDED, HostFlows, MapFlows};
use crate::host::sockets::FiveTuple;
use crate::model::host::{HostPolicy, Proto};

/// `CTA_ID`: tells an entry from a later one with the same tuple (linux/netfilter/nfnetlink_conntrack.h).
const CTA_ID: u16 = 12;
/// `CTA_ZONE` names the zone an entry is in (linux/netfilter/nfnetlink_conntrack.h).
const CTA_ZONE: u16 = 18;
/// Port names are answered on, whatever else is let in.
const DNS: u16 = 53;
/// Numbers of protocols that carry pings and errors, and the types of what asks for an echo.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
/// `CTA_PROTO_ICMP_TYPE` and `CTA_PROTO_ICMPV6_TYPE` hold the type of a ping (same header).
const ICMP_TYPES: [u16; 2] = [5, 8];

/// One direction of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Direction {
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) proto: Option<u8>,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
    pub(super) icmp_type: Option<u8>,
}

/// One entry, as far as it is matched on, and what names it to the kernel.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) original: Direction,
    pub(super) reply: Direction,
    pub(super) rewritten: bool,
    pub(super) mark: u32,
    pub(super) family: NetfilterProtoFamily,
    pub(super) handle: Vec<ConntrackAttribute>,
}

fn direction(tuples: &[Tuple]) -> Direction {
    let mut found = Direction::default();
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(addr) => found.source = Some(*addr),
                IPTuple::DestinationAddress(addr) => found.destination = Some(*addr),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(proto) => found.proto = Some(u8::from(*proto)),
                ProtoTuple::SourcePort(port) => found.source_port = Some(*port),
                ProtoTuple::DestinationPort(port) => found.destination_port = Some(*port),
                ProtoTuple::Other(nla)
                    if ICMP_TYPES.contains(&nla.kind()) && nla.value_len() == 1 =>
                {
                    let mut kind = [0];
                    nla.emit_value(&mut kind);
                    found.icmp_type = kind.first().copied();
                }
                _ => {}
            }),
            _ => {}
        }
    }
    found
}

impl Entry {
    pub(super) fn of(message: NetfilterMessage) -> Option<Self> {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
        else {
            return None;
        };
        let mut entry = Entry {
            original: Direction::default(),
            reply: Direction::default(),
            rewritten: false,
            mark: 0,
            family: message.header.family,
            handle: Vec::new(),
        };
        for attribute in attributes {
            match &attribute {
                ConntrackAttribute::CtaTupleOrig(tuples) => {
                    entry.original = direction(tuples);
                    entry.handle.push(attribute);
                }
                ConntrackAttribute::CtaTupleReply(tuples) => entry.reply = direction(tuples),
                ConntrackAttribute::CtaStatus(status) => {
                    entry.rewritten = status.contains(Status::DstNat)
                }
                ConntrackAttribute::CtaMark(mark) => entry.mark = *mark,
                ConntrackAttribute::Other(nla) if matches!(nla.kind(), CTA_ID | CTA_ZONE) => {
                    entry.handle.push(attribute);
                }
                _ => {}
            }
        }
        Some(entry)
    }

    /// Whether it asked for what the map listens on.
    fn asks_for(&self, map: &MapFlows) -> bool {
        let proto = u8::from(match map.proto {
            Proto::Tcp => Protocol::Tcp,
            Proto::Udp => Protocol::Udp,
        });
        let of_family = |to: IpAddr| to.is_ipv4() == map.listen.is_ipv4();
        self.original.proto == Some(proto)
            && self.original.destination_port == Some(map.port)
            && match self.original.destination {
                Some(to) if map.listen.is_unspecified() => of_family(to),
                to => to == Some(map.listen),
            }
    }

    pub(super) fn is_of(&self, map: &MapFlows) -> bool {
        self.rewritten
            && self.asks_for(map)
            && self.reply.source == Some(map.target)
            && self.reply.source_port == Some(map.target_port)
    }

    /// Whether it was there before one of the maps that begin: sent to this machine itself, or by a map that was. What
    /// another program translates is its own, and what passes through this machine is no map's.
    pub(super) fn precedes(&self, begun: &Begun, own: &[IpAddr]) -> bool {
        let by_former = |at: IpAddr| begun.overlay.iter().any(|prefix| prefix.contains(&at));
        begun
            .maps
            .iter()
            .any(|map| self.asks_for(map) && !self.is_of(map))
            && match self.rewritten {
                true => self.reply.source.is_some_and(by_former),
                false => self
                    .original
                    .destination
                    .is_some_and(|to| own.contains(&to)),
            }
    }

    /// Whether somebody in the subnet began this flow, and asked something of the machine.
    fn asks(&self, flows: &HostFlows) -> bool {
        let Direction {
            source: Some(from),
            destination: Some(to),
            ..
        } = self.original
        else {
            return false;
        };
        flows.is_between(from, to)
    }

    /// Whether this flow, which [`Entry::asks`], is let in.
    fn is_permitted(&self, flows: &HostFlows) -> bool {
        let Direction {
            destination: Some(to),
            proto: Some(proto),
            destination_port,
            ..
        } = self.original
        else {
            return true;
        };
        let named = flows.own.contains(&to) && destination_port == Some(DNS);
        match (transport(proto), destination_port) {
            (Some(transport), Some(port)) => named || flows.host.permits(transport, port),
            // Pings are always answered.
            _ => self.is_ping(proto) || flows.host == HostPolicy::Open,
        }
    }

    fn is_ping(&self, proto: u8) -> bool {
        [(ICMP, ECHO), (ICMPV6, ECHO_V6)]
            .iter()
            .any(|(of, echo)| proto == *of && self.original.icmp_type == Some(*echo))
    }

    /// Whether this machine began the flow, from a port that was let in by its number and is no more: what a server there
    /// says by itself, to somebody whose entry had run out.
    fn is_pushed(&self, flows: &HostFlows) -> bool {
        let Direction {
            source: Some(from),
            destination: Some(to),
            proto: Some(proto),
            source_port: Some(port),
            ..
        } = self.original
        else {
            return false;
        };
        let named = flows.own.contains(&from) && port == DNS;
        let listed =
            |policy: &HostPolicy| *policy != HostPolicy::Open && policy.permits(Proto::Udp, port);
        transport(proto) == Some(Proto::Udp)
            && flows.is_between(to, from)
            && flows.before.as_ref().is_some_and(listed)
            && !(named || flows.host.permits(Proto::Udp, port))
    }

    /// What is to be done with this flow now that `flows` changed what they let in; `mapped`: a map let it in.
    pub(super) fn verdict(&self, flows: &[HostFlows], mapped: bool) -> Verdict {
        if self.mark != ENDED && flows.iter().any(|flows| self.is_pushed(flows)) {
            return Verdict::Mark;
        }
        let Some(flows) = flows.iter().find(|flows| self.asks(flows)) else {
            return Verdict::Leave;
        };
        let is_tcp = self.original.proto == Some(u8::from(Protocol::Tcp));
        match (mapped || self.is_permitted(flows), self.mark == ENDED) {
            (true, true) => Verdict::Resume,
            (true, false) | (false, true) => Verdict::Leave,
            // A segment that begins no connection is refused by our chains, whoever sends it.
            (false, false) if is_tcp => Verdict::End,
            (false, false) => Verdict::Mark,
        }
    }

    /// Both ends of the flow as a socket here would have them: who was asked, by the translated tuple, and who asked.
    pub(super) fn ends(&self) -> impl Iterator<Item = FiveTuple> {
        let Direction { proto, .. } = self.original;
        let end = |address: Option<IpAddr>, port: Option<u16>| Some(End::new(address?, port?));
        let socket = move |local, remote| {
            Some(FiveTuple {
                proto: transport(proto?)?,
                local: local?,
                remote: remote?,
            })
        };
        let (asked, asking) = (&self.reply, &self.original);
        let of = |d: &Direction| {
            socket(
                end(d.source, d.source_port),
                end(d.destination, d.destination_port),
            )
        };
        [of(asked), of(asking)].into_iter().flatten()
    }

    pub(super) fn touches(&self, addresses: &[IpAddr]) -> bool {
        [&self.original, &self.reply]
            .into_iter()
            .flat_map(|d| [d.source, d.destination])
            .flatten()
            .any(|addr| addresses.contains(&addr))
    }
}

/// A protocol with ports that are let in by number.
fn transport(proto: u8) -> Option<Proto> {
    [(Protocol::Tcp, Proto::Tcp), (Protocol::Udp, Proto::Udp)]
        .into_iter()
        .find_map(|(number, transport)| (u8::from(number) == proto).then_some(transport))
}

impl HostFlows {
    /// Whether `other` is somebody else in the subnet and `machine` an address of this machine.
    fn is_between(&self, other: IpAddr, machine: IpAddr) -> bool {
        let inside = |address: IpAddr| self.prefixes.iter().any(|p| p.contains(&address));
        inside(other)
            && !self.own.contains(&other)
            && (self.own.contains(&machine) || !inside(machine))
    }
}

/// What is to be done with one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Leave,
    /// Its entry is deleted, and its sockets here are closed.
    End,
    /// Its sockets here are closed; the entry gets the mark [`ENDED`].
    Mark,
    /// The entry loses that mark. It stays, because it knows who began the flow.
    Resume,
}
