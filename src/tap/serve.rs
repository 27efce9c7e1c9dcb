//! The sockets of one TAP: bound to that link, so that nobody else hears or asks.
//!
//! DHCP is spoken over plain UDP sockets: the guest is a permanent neighbour, so what is sent to an address that it has not
//! taken yet reaches it all the same. A router is asked and answered over ICMPv6, by a socket of the helper's.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind,
    sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::offer::Offer;
use super::{Refusal, dhcp4, dhcp6, router};
use crate::helper;
use crate::limit::{Limit, TokenBucket};

/// The ports of servers and clients of both versions.
const SERVER4: u16 = 67;
const CLIENT4: u16 = 68;
const SERVER6: u16 = 547;
const CLIENT6: u16 = 546;
/// All servers and relays of DHCPv6 on a link.
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Requests that a guest may send at once, and a second for long. A guest that boots sends about ten.
const LIMIT: Limit = Limit::new(40, 10);
/// Longest packet that is read, in bytes. None that a client sends is near.
const MAX_PACKET: usize = 2048;
/// How often it is looked whether the link is still the same one.
const LOOK: Duration = Duration::from_secs(1);
/// How often the router is announced unasked: well within the time for which it is believed.
const ANNOUNCE: Duration = Duration::from_secs(300);
/// How long it takes until something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Counts what is dropped of one guest's, and logs the first of it, the second, the fourth…
struct Dropped {
    link: String,
    count: u64,
    bucket: TokenBucket,
}

impl Dropped {
    fn note(&mut self, what: &'static str, refusal: Refusal) {
        self.count = self.count.saturating_add(1);
        if self.count.is_power_of_two() {
            let (link, count) = (&self.link, self.count);
            tracing::info!(
                link,
                count,
                what,
                why = refusal.word(),
                "dropped of a guest"
            );
        }
    }

    /// Whether one more packet is looked at.
    fn admits(&mut self, what: &'static str) -> bool {
        let taken = self.bucket.take(Instant::now());
        if !taken {
            self.note(what, Refusal::Flood);
        }
        taken
    }
}

/// Serves the guest at a TAP for ever, from when the link is there, and anew on each that takes its place.
///
/// # Cancel safety
/// Dropping the future closes the sockets.
pub(super) async fn run(link: &str, offer: &Offer) {
    let mut dropped = Dropped {
        link: link.to_owned(),
        count: 0,
        bucket: TokenBucket::new(LIMIT),
    };
    loop {
        let wait = match index(link) {
            None => LOOK,
            Some(index) => match Sockets::open(link, index, offer).await {
                Ok(sockets) => {
                    let error = sockets.serve(offer, &mut dropped).await;
                    tracing::debug!(link, %error, "the guest is served anew");
                    LOOK / 10
                }
                Err(error) => {
                    tracing::warn!(link, %error, "the guest hears no address");
                    AGAIN
                }
            },
        };
        tokio::time::sleep(wait).await;
    }
}

/// The kernel's number of a link.
fn index(link: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(link).ok()
}

/// What one TAP is served by.
struct Sockets<'a> {
    link: &'a str,
    index: u32,
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    /// Of ICMPv6, which the runtime reads and writes as it does any socket of datagrams.
    router: Option<UdpSocket>,
}

impl<'a> Sockets<'a> {
    /// Opens what the guest's families need. Without a socket of the helper's there is DHCP all the same.
    async fn open(link: &'a str, index: u32, offer: &Offer) -> io::Result<Sockets<'a>> {
        let v4 = udp(link, (Ipv4Addr::UNSPECIFIED, SERVER4).into())?;
        v4.set_broadcast(true)?;
        let (mut v6, mut router) = (None, None);
        if offer.v6.is_some() {
            let socket = udp(link, (Ipv6Addr::UNSPECIFIED, SERVER6).into())?;
            socket.join_multicast_v6(&ALL_SERVERS, index)?;
            v6 = Some(socket);
            match helper::solicitations(link).await {
                Ok(socket) => router = Some(UdpSocket::from_std(socket.into())?),
                Err(error) => {
                    tracing::warn!(link, %error, "the guest hears of no router of IPv6");
                }
            }
        }
        Ok(Sockets {
            link,
            index,
            v4,
            v6,
            router,
        })
    }

    /// Answers until something fails or the link is another one; that is the error.
    async fn serve(&self, offer: &Offer, dropped: &mut Dropped) -> io::Error {
        let mut looks = tokio::time::interval(LOOK);
        let mut announcements = tokio::time::interval(ANNOUNCE);
        let mut bytes = [0u8; MAX_PACKET];
        let (mut first, mut second) = ([0u8; MAX_PACKET], [0u8; MAX_PACKET]);
        loop {
            let done = tokio::select! {
                _ = looks.tick() => match index(self.link) {
                    Some(index) if index == self.index => Ok(()),
                    _ => Err(io::Error::from(io::ErrorKind::NotFound)),
                },
                _ = announcements.tick() => {
                    // Nobody may hear it: without a guest the link has no address to announce it from.
                    let _ = self.announce(offer).await;
                    Ok(())
                }
                got = self.v4.recv_from(&mut bytes) => match got {
                    Ok((length, _)) => self.asked4(offer, bytes.get(..length), dropped).await,
                    Err(error) => Err(error),
                },
                got = receive(self.v6.as_ref(), &mut first) => match got {
                    Ok((length, from)) => {
                        self.asked6(offer, first.get(..length), from, dropped).await
                    }
                    Err(error) => Err(error),
                },
                got = receive(self.router.as_ref(), &mut second) => match got {
                    Ok((length, _)) => {
                        self.solicited(offer, second.get(..length), dropped).await
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn asked4(
        &self,
        offer: &Offer,
        packet: Option<&[u8]>,
        dropped: &mut Dropped,
    ) -> io::Result<()> {
        const WHAT: &str = "DHCPv4";
        if !dropped.admits(WHAT) {
            return Ok(());
        }
        let (Some(packet), Some(family)) = (packet, &offer.v4) else {
            return Ok(());
        };
        match dhcp4::answer(offer, packet) {
            Ok(Some(reply)) => {
                let send = || send4(&self.v4, family.gateway, &reply);
                // A guest that closed its link meanwhile asks again.
                let sent = self.v4.async_io(Interest::WRITABLE, send).await;
                log(self.link, WHAT, sent);
            }
            Ok(None) => {}
            Err(refusal) => dropped.note(WHAT, refusal),
        }
        Ok(())
    }

    async fn asked6(
        &self,
        offer: &Offer,
        packet: Option<&[u8]>,
        from: SocketAddr,
        dropped: &mut Dropped,
    ) -> io::Result<()> {
        const WHAT: &str = "DHCPv6";
        if !dropped.admits(WHAT) {
            return Ok(());
        }
        let (Some(packet), Some(socket), SocketAddr::V6(from)) = (packet, &self.v6, from) else {
            return Ok(());
        };
        if from.port() != CLIENT6 || !from.ip().is_unicast_link_local() {
            dropped.note(WHAT, Refusal::Foreign);
            return Ok(());
        }
        match dhcp6::answer(offer, packet) {
            Ok(Some(bytes)) => {
                let to = SocketAddrV6::new(*from.ip(), CLIENT6, 0, self.index);
                log(self.link, WHAT, socket.send_to(&bytes, to).await.map(drop));
            }
            Ok(None) => {}
            Err(refusal) => dropped.note(WHAT, refusal),
        }
        Ok(())
    }

    async fn solicited(
        &self,
        offer: &Offer,
        packet: Option<&[u8]>,
        dropped: &mut Dropped,
    ) -> io::Result<()> {
        const WHAT: &str = "router solicitation";
        if !dropped.admits(WHAT) {
            return Ok(());
        }
        match router::asks(packet.unwrap_or_default()) {
            Ok(()) => log(self.link, WHAT, self.announce(offer).await),
            Err(refusal) => dropped.note(WHAT, refusal),
        }
        Ok(())
    }

    /// Announces the router to the guest.
    async fn announce(&self, offer: &Offer) -> io::Result<()> {
        let (Some(socket), Some(bytes)) = (&self.router, router::advertisement(offer)) else {
            return Ok(());
        };
        let to = SocketAddrV6::new(ALL_NODES, 0, 0, self.index);
        socket.send_to(&bytes, to).await.map(drop)
    }
}

fn log(link: &str, what: &'static str, sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(link, what, %error, "answer not sent");
    }
}

/// A socket at a port of this machine, on one link only. Other servers may have that port on other links.
fn udp(link: &str, at: SocketAddr) -> io::Result<UdpSocket> {
    let family = if at.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(family, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &link.into())?;
    if at.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Sends an answer of DHCPv4 from this machine's address in the subnet, which is on another link.
fn send4(socket: &UdpSocket, from: Ipv4Addr, reply: &dhcp4::Reply) -> io::Result<()> {
    let source = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from_ne_bytes(from.octets()),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(reply.to, CLIENT4));
    let bytes = [io::IoSlice::new(&reply.bytes)];
    let source = [ControlMessage::Ipv4PacketInfo(&source)];
    let flags = MsgFlags::empty();
    sendmsg(socket.as_raw_fd(), &bytes, &source, flags, Some(&to))?;
    Ok(())
}

/// The next packet; where there is no socket none ever comes.
async fn receive(socket: Option<&UdpSocket>, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(bytes).await,
        None => std::future::pending().await,
    }
}
