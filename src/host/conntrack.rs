//! Ends flows: deletes entries of the kernel's connection tracking, and ends the sockets of this machine behind them.
//!
//! NAT decides on the first packet of a flow, so a flow outlives the map that began it until its entry is deleted. The
//! sockets go first: the reset that the kernel sends for each still finds its way by the entry.
//!
//! A flow without connections that is no longer let in keeps its entry, with the mark [`ENDED`]: our chains refuse its
//! packets both ways. Without the entry, the next answer of a server that pushes on would begin the flow anew, as one that
//! this machine itself began. The entry goes when both ends have been silent for as long as the kernel keeps it; its mark
//! goes when the flow is let in again.
//!
//! Speaks netlink on a socket of its own, in the network namespace of the calling thread (through a blocking thread,
//! which inherits it). Owns nothing.

use std::io;
use std::net::{IpAddr, SocketAddr as End};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use ipnet::IpNet;
use tracing::debug;

use super::sockets::{Destroyer, FiveTuple};
use crate::model::host::{Census, HostPolicy, Proto};

/// `CTA_ID`: tells an entry from a later one with the same tuple (linux/netfilter/nfnetlink_conntrack.h).
const CTA_ID: u16 = 12;
/// `CTA_ZONE`.
const CTA_ZONE: u16 = 18;
/// Mark of flows that are no longer let in, "bwen" in ASCII: whole, and not a bit of it, so that marks of others are
/// never taken for it.
pub const ENDED: u32 = 0x6277_656e;
/// How long a packet may be between the chain that let it in and its entry.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// Longest a whole deletion may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the length and type that begin every netlink message.
const HEADER: usize = 16;

/// The flows of one port map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapFlows {
    /// Protocol.
    pub proto: Proto,
    /// Address the clients asked for; unspecified: any.
    pub listen: IpAddr,
    /// Port the clients asked for.
    pub port: u16,
    /// Where they were sent.
    pub target: IpAddr,
    /// The port there.
    pub target_port: u16,
}

/// Maps that begin, lead elsewhere or let in others, and what they must find forgotten: a flow that was there before a map
/// is not asked about it, however long its client goes on sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The maps, as they are from now on.
    pub maps: Vec<MapFlows>,
    /// Prefixes of every subnet: a flow that was sent there and not to a map's target was sent there by a former map.
    pub overlay: Vec<IpNet>,
}

/// The flows between a subnet and this machine itself, where what is let in has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFlows {
    /// The subnet's prefixes.
    pub prefixes: Vec<IpNet>,
    /// This machine's addresses in it.
    pub own: Vec<IpAddr>,
    /// What was let in by the policy of before, where that is known.
    pub before: Option<HostPolicy>,
    /// What is let in from now on.
    pub host: HostPolicy,
}

/// Port names are answered on, whatever else is let in.
const DNS: u16 = 53;

/// One direction of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Direction {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    proto: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    icmp_type: Option<u8>,
}

/// One entry, as far as it is matched on, and what names it to the kernel.
#[derive(Debug, Clone)]
struct Entry {
    original: Direction,
    reply: Direction,
    rewritten: bool,
    mark: u32,
    family: NetfilterProtoFamily,
    handle: Vec<ConntrackAttribute>,
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
    fn of(message: NetfilterMessage) -> Option<Self> {
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

    fn is_of(&self, map: &MapFlows) -> bool {
        self.rewritten
            && self.asks_for(map)
            && self.reply.source == Some(map.target)
            && self.reply.source_port == Some(map.target_port)
    }

    /// Whether it was there before one of the maps that begin: sent to this machine itself, or by a map that was. What
    /// another program translates is its own, and what passes through this machine is no map's.
    fn precedes(&self, begun: &Begun, own: &[IpAddr]) -> bool {
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
    fn verdict(&self, flows: &[HostFlows], mapped: bool) -> Verdict {
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
    fn ends(&self) -> impl Iterator<Item = FiveTuple> {
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

    fn touches(&self, addresses: &[IpAddr]) -> bool {
        [&self.original, &self.reply]
            .into_iter()
            .flat_map(|d| [d.source, d.destination])
            .flatten()
            .any(|addr| addresses.contains(&addr))
    }
}

/// Numbers of protocols that carry pings and errors, and the types of what asks for an echo.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
/// `CTA_PROTO_ICMP_TYPE` and `CTA_PROTO_ICMPV6_TYPE`.
const ICMP_TYPES: [u16; 2] = [5, 8];

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
enum Verdict {
    Leave,
    /// Its entry goes, and its sockets here.
    End,
    /// Its sockets here go; the entry gets the mark [`ENDED`].
    Mark,
    /// The entry loses that mark. It stays, because it knows who began the flow.
    Resume,
}

fn encode(flags: u16, family: NetfilterProtoFamily, message: ConntrackMessage) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let body = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(body));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Messages of one datagram as (type, body); stops at what is no message.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let whole = rest.get(..length)?;
        let body = whole.get(HEADER..)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, whole, body))
    })
}

/// `NLMSG_ERROR` and `NLMSG_DONE` (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The error number in the body of an error message; 0 is success.
fn errno(body: &[u8]) -> i32 {
    body.get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes)
        .saturating_neg()
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Large tables come faster than they are read.
    socket.set_rx_buf_sz(4u32 << 20)?;
    Ok(socket)
}

/// Every entry of both families that `wanted` says yes to.
fn dump(socket: &Socket, mut wanted: impl FnMut(&Entry) -> bool) -> io::Result<Vec<Entry>> {
    socket.send(
        &encode(
            NLM_F_DUMP,
            NetfilterProtoFamily::Unspec,
            ConntrackMessage::Get(Vec::new()),
        ),
        0,
    )?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, whole, body) in messages(&datagram) {
            match kind {
                DONE => return Ok(found),
                ERROR => return Err(io::Error::from_raw_os_error(errno(body))),
                _ => {
                    let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(whole) else {
                        continue;
                    };
                    let NetlinkPayload::InnerMessage(message) = message.payload else {
                        continue;
                    };
                    found.extend(Entry::of(message).filter(&mut wanted));
                }
            }
        }
    }
}

/// Deletes `entry`; whether it was still there.
fn delete(socket: &Socket, entry: Entry) -> io::Result<bool> {
    change(socket, entry.family, ConntrackMessage::Delete(entry.handle))
}

/// Gives `entry` a mark; whether it was still there.
fn mark(socket: &Socket, mut entry: Entry, mark: u32) -> io::Result<bool> {
    entry.handle.push(ConntrackAttribute::CtaMark(mark));
    // Without `NLM_F_CREATE`, what is not there stays away.
    change(socket, entry.family, ConntrackMessage::New(entry.handle))
}

/// Changes an entry; whether it was still there.
fn change(
    socket: &Socket,
    family: NetfilterProtoFamily,
    message: ConntrackMessage,
) -> io::Result<bool> {
    socket.send(&encode(NLM_F_ACK, family, message), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    match messages(&datagram)
        .find(|(kind, ..)| *kind == ERROR)
        .map(|(_, _, body)| errno(body))
    {
        Some(0) | None => Ok(true),
        Some(libc::ENOENT) => Ok(false),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Ends the sockets of this machine at either end of `entry`.
fn end_sockets(destroyer: &io::Result<Destroyer>, entry: &Entry) {
    for ends in entry.ends() {
        let destroyed = match destroyer {
            Ok(destroyer) => destroyer.destroy(&ends),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        // Without it, a socket hears from our chains with the next thing it says.
        if let Err(error) = destroyed {
            debug!(?ends, %error, "socket not ended");
        }
    }
}

/// Does with every entry what `verdict` says, and returns how many there were to do something with.
async fn judge(verdict: impl Fn(&Entry) -> Verdict + Send + 'static) -> io::Result<usize> {
    let work = tokio::task::spawn_blocking(move || {
        let socket = open()?;
        let destroyer = Destroyer::open();
        let mut done = 0usize;
        for entry in dump(&socket, |entry| verdict(entry) != Verdict::Leave)? {
            let verdict = verdict(&entry);
            if matches!(verdict, Verdict::End | Verdict::Mark) {
                end_sockets(&destroyer, &entry);
            }
            done += usize::from(match verdict {
                Verdict::Leave => false,
                Verdict::End => delete(&socket, entry)?,
                Verdict::Mark => mark(&socket, entry, ENDED)?,
                Verdict::Resume => mark(&socket, entry, 0)?,
            });
        }
        Ok(done)
    });
    tokio::time::timeout(TIMEOUT, work)
        .await?
        .map_err(io::Error::other)?
}

async fn end_where(wanted: impl Fn(&Entry) -> bool + Send + 'static) -> io::Result<usize> {
    judge(move |entry| {
        if wanted(entry) {
            Verdict::End
        } else {
            Verdict::Leave
        }
    })
    .await
}

/// Ends every flow that one of `maps` began, and returns how many.
///
/// # Errors
/// Netlink refused; some may be gone.
///
/// # Cancel safety
/// A dropped call goes on in the background.
pub async fn delete_maps(maps: Vec<MapFlows>) -> io::Result<usize> {
    end_where(move |entry| maps.iter().any(|map| entry.is_of(map))).await
}

/// Forgets every flow that was there before one of the maps that begin, and returns how many: the next packet of each is
/// asked about the map.
///
/// # Errors
/// Netlink refused; some may be gone.
///
/// # Cancel safety
/// A dropped call goes on in the background.
pub async fn delete_before(begun: Begun) -> io::Result<usize> {
    let own: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|link| {
            let address = link.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect();
    end_where(move |entry| entry.precedes(&begun, &own)).await
}

/// Ends every flow of `flows` that is no longer let in, but for those that one of `maps` began, and lets those go on that are
/// let in again. Returns how many.
///
/// A packet that the chains let in just before they changed may not have its entry yet: the table is looked at once more,
/// a moment later. Where nothing is known of a policy before, as of a subnet that was just joined, and nothing was found,
/// there is no such packet.
///
/// # Errors
/// Netlink refused; some may be gone.
///
/// # Cancel safety
/// A dropped call goes on in the background as far as the present look.
pub async fn judge_host(flows: Vec<HostFlows>, maps: Vec<MapFlows>) -> io::Result<usize> {
    let first = flows.iter().all(|flows| flows.before.is_none());
    let verdict =
        move |entry: &Entry| entry.verdict(&flows, maps.iter().any(|map| entry.is_of(map)));
    let done = judge(verdict.clone()).await?;
    if first && done == 0 {
        return Ok(0);
    }
    tokio::time::sleep(UNDER_WAY).await;
    Ok(done.saturating_add(judge(verdict).await?))
}

/// Ends every flow from or to one of `addresses` (those of a removed member), and returns how many.
///
/// # Errors
/// Netlink refused; some may be gone.
///
/// # Cancel safety
/// A dropped call goes on in the background.
pub async fn delete_addresses(addresses: &[IpAddr]) -> io::Result<usize> {
    let addresses = addresses.to_vec();
    if addresses.is_empty() {
        return Ok(0);
    }
    end_where(move |entry| entry.touches(&addresses)).await
}

/// Counts every entry for who began it.
///
/// # Errors
/// Netlink refused.
///
/// # Cancel safety
/// A dropped call goes on in the background.
pub async fn census(mut census: Census) -> io::Result<Census> {
    let work = tokio::task::spawn_blocking(move || {
        let mut count = |entry: &Entry| {
            entry
                .original
                .source
                .into_iter()
                .for_each(|from| census.count(from));
            false
        };
        dump(&open()?, &mut count)?;
        Ok(census)
    });
    tokio::time::timeout(TIMEOUT, work)
        .await?
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
