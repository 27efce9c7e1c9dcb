//! One socket: a group of one family on one link, and either what other machines send there or what programs of this one do.
//!
//! The source of a datagram does not tell the two apart: of IPv6, Linux takes packets from a link that claim an address of this
//! machine. But it marks the copy of a multicast that it gives back itself, as it marks nothing that a link brought, and a
//! socket's filter can read that mark. So there are two sockets, of which each drops what is the other's.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as Udp};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::sockopt::{
    BindToDevice, Ipv4RecvTtl, Ipv6RecvHopLimit, Ipv6V6Only, ReuseAddr, ReusePort,
};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    recvmsg, setsockopt, socket,
};
use socket2::{InterfaceIndexOrAddress, SockFilter, SockRef};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The port of multicast DNS.
const PORT: u16 = 5353;
/// The groups of both families (RFC 6762, section 3).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// The hop limit that everybody sends with (RFC 6762, section 11): no router has let such a packet pass.
pub(super) const HOPS: u8 = 255;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// Whose datagrams a socket hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hears {
    /// What other machines send on the link, or who else has none of this machine's network namespaces.
    Others,
    /// What programs of this network namespace send there, byway itself among them.
    Here,
}

/// The mark of packets that the kernel gives back to who sent them (`linux/if_packet.h`).
const PACKET_LOOPBACK: u32 = 5;

/// A filter that lets through what a socket is to hear, in classic BPF: `return is_loopback ? here : others`.
fn filter(hears: Hears) -> [SockFilter; 4] {
    let code = |parts: [u32; 3]| {
        let code = parts.iter().fold(0, |code, part| code | part);
        u16::try_from(code).unwrap_or_default()
    };
    let load = code([libc::BPF_LD, libc::BPF_B, libc::BPF_ABS]);
    let is_equal = code([libc::BPF_JMP, libc::BPF_JEQ, libc::BPF_K]);
    let give = code([libc::BPF_RET, libc::BPF_K, 0]);
    // The kernel's offsets of what is no byte of a packet are negative.
    let mark = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    // So many bytes of a packet are kept: all, or none.
    let (all, none) = (u32::MAX, 0);
    let (here, others) = match hears {
        Hears::Here => (all, none),
        Hears::Others => (none, all),
    };
    [
        SockFilter::new(load, 0, 0, mark),
        SockFilter::new(is_equal, 0, 1, PACKET_LOOPBACK),
        SockFilter::new(give, 0, 0, here),
        SockFilter::new(give, 0, 0, others),
    ]
}

/// A datagram that came in.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) length: usize,
    pub(super) source: IpAddr,
    /// Its hop limit; none where the kernel does not say.
    pub(super) hops: Option<u8>,
}

#[derive(Debug)]
pub(super) struct Socket {
    udp: UdpSocket,
    group: SocketAddr,
}

impl Socket {
    /// Opens the socket of a family on a link, and joins the group there.
    ///
    /// # Errors
    /// The kernel's: the port belongs to a program that does not share it, or this one may not have it.
    pub(super) fn open(link: u32, name: &str, family: Family, hears: Hears) -> io::Result<Socket> {
        let (kind, group): (_, SocketAddr) = match family {
            Family::V4 => (AddressFamily::Inet, (GROUP_V4, PORT).into()),
            Family::V6 => (
                AddressFamily::Inet6,
                SocketAddrV6::new(GROUP_V6, PORT, 0, link).into(),
            ),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let udp = Udp::from(socket(kind, SockType::Datagram, flags, None)?);
        // Others of this machine have the port, too: some set the one, some the other, some both.
        setsockopt(&udp, ReuseAddr, &true)?;
        setsockopt(&udp, ReusePort, &true)?;
        let multicast = SockRef::from(&udp);
        // Before it is bound: nothing comes in unfiltered.
        multicast.attach_filter(&filter(hears))?;
        match family {
            Family::V4 => {
                // Without it the group is heard on every link, and the route table chooses where to send.
                setsockopt(&udp, BindToDevice, &name.into())?;
                setsockopt(&udp, Ipv4RecvTtl, &true)?;
                multicast.set_multicast_ttl_v4(HOPS.into())?;
                multicast.set_multicast_loop_v4(true)?;
                bind(udp.as_raw_fd(), &SockaddrStorage::from(group))?;
                let link = InterfaceIndexOrAddress::Index(link);
                multicast.join_multicast_v4_n(&GROUP_V4, &link)?;
            }
            Family::V6 => {
                setsockopt(&udp, Ipv6V6Only, &true)?;
                setsockopt(&udp, Ipv6RecvHopLimit, &true)?;
                multicast.set_multicast_hops_v6(HOPS.into())?;
                multicast.set_multicast_loop_v6(true)?;
                multicast.set_multicast_if_v6(link)?;
                bind(udp.as_raw_fd(), &SockaddrStorage::from(group))?;
                multicast.join_multicast_v6(&GROUP_V6, link)?;
            }
        }
        Ok(Socket {
            udp: UdpSocket::from_std(udp)?,
            group,
        })
    }

    /// Sends to the group.
    ///
    /// # Errors
    /// The kernel's; it never waits.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.udp.try_send_to(bytes, self.group).map(drop)
    }

    /// The next datagram; one that is longer than `buffer` is cut.
    ///
    /// # Cancel safety
    /// Dropped before one is there, nothing is lost.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Got> {
        loop {
            self.udp.readable().await?;
            let got = self
                .udp
                .try_io(Interest::READABLE, || receive(&self.udp, buffer));
            match got {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // What came by ICMP about a datagram of ours says nothing of the socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                got => return got,
            }
        }
    }
}

fn receive(udp: &UdpSocket, buffer: &mut [u8]) -> io::Result<Got> {
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        udp.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let hops = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
            u8::try_from(hops).ok()
        }
        _ => None,
    });
    let address = message.address.as_ref();
    let v4 = address.and_then(|a| a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())));
    let v6 = || address.and_then(|a| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
    let source = v4.or_else(v6).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Got {
        length: message.bytes,
        source,
        hops,
    })
}
