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

mod entry;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use ipnet::IpNet;
use tracing::debug;

use super::sockets::Destroyer;
use crate::model::host::{Census, HostPolicy, Proto};
use entry::{Entry, Verdict};

/// Mark of flows that are no longer let in, "bwen" in ASCII: whole, and not a bit of it, so that marks of others are
/// never taken for it.
pub const ENDED: u32 = 0x6277_656e;
/// How long a packet may be between the chain that let it in and its entry.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// How long a whole deletion may take at most.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the length and type that begin every netlink message.
const HEADER: usize = 16;

/// The flows of one port map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MapFlows {
    /// The transport protocol of the flows.
    pub proto: Proto,
    /// Address that the clients asked for; an unspecified one stands for every address.
    pub listen: IpAddr,
    /// Port that the clients asked for.
    pub port: u16,
    /// Address that they were sent to.
    pub target: IpAddr,
    /// Port that they were sent to.
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
    /// Prefixes of the subnet, of both families.
    pub prefixes: Vec<IpNet>,
    /// Addresses of this machine in the subnet.
    pub own: Vec<IpAddr>,
    /// What was let in by the policy of before, where that is known.
    pub before: Option<HostPolicy>,
    /// What is let in from now on, by the new policy.
    pub host: HostPolicy,
}

/// Maps by the port that their clients asked for: there may be thousands, and tens of thousands of entries.
#[derive(Debug, Clone)]
struct ByPort(HashMap<u16, Vec<MapFlows>>);

impl ByPort {
    fn new(maps: Vec<MapFlows>) -> ByPort {
        let mut by_port: HashMap<u16, Vec<MapFlows>> = HashMap::new();
        for map in maps {
            by_port.entry(map.port).or_default().push(map);
        }
        ByPort(by_port)
    }

    /// Those that may have begun the flow.
    fn of(&self, entry: &Entry) -> &[MapFlows] {
        let port = entry.original.destination_port;
        let maps = port.and_then(|port| self.0.get(&port));
        maps.map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether one of them began the flow.
    fn began(&self, entry: &Entry) -> bool {
        self.of(entry).iter().any(|map| entry.is_of(map))
    }
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

/// The message types `NLMSG_ERROR` and `NLMSG_DONE` (linux/netlink.h).
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
    let maps = ByPort::new(maps);
    end_where(move |entry| maps.began(entry)).await
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
    let Begun { maps, overlay } = begun;
    let by_port = ByPort::new(maps).0.into_iter().map(|(port, maps)| {
        let overlay = overlay.clone();
        (port, Begun { maps, overlay })
    });
    let by_port: HashMap<u16, Begun> = by_port.collect();
    end_where(move |entry| {
        let port = entry.original.destination_port;
        port.and_then(|port| by_port.get(&port))
            .is_some_and(|begun| entry.precedes(begun, &own))
    })
    .await
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
    let maps = ByPort::new(maps);
    let verdict = move |entry: &Entry| entry.verdict(&flows, maps.began(entry));
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
