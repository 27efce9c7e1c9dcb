//! What goes to the kernel beside a message: its ECN bits, where to cut it, where it comes from and by which link it leaves.

use std::net::IpAddr;

use libc::c_int;

use super::exits::{Exit, Source};
use super::socket::Outgoing;

/// Bytes of the header of each part (`struct cmsghdr`), which are a multiple of [`ALIGN`].
const HEADER: usize = size_of::<usize>() + 2 * size_of::<c_int>();
/// Each part begins at a multiple of this.
const ALIGN: usize = align_of::<usize>();
/// Bytes of the largest data of a part: `struct in6_pktinfo`.
const LARGEST: usize = 20;
/// Bytes of all parts: no message has more than three.
const SPACE: usize = 3 * (HEADER + LARGEST.next_multiple_of(ALIGN));

/// The control data of one message (`msg_control` of sendmsg(2)), without any allocation.
#[derive(Debug)]
pub(super) struct Control {
    bytes: [u8; SPACE],
    length: usize,
}

impl Control {
    /// What is to be said of that message, which leaves by `exit` where there is one.
    pub(super) fn of(message: &Outgoing<'_>, exit: Option<Exit>) -> Control {
        let mut control = Control {
            bytes: [0; SPACE],
            length: 0,
        };
        if let Some(ecn) = message.ecn {
            let (level, kind) = match message.to.is_ipv4() {
                true => (libc::IPPROTO_IP, libc::IP_TOS),
                false => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            control.push(level, kind, c_int::from(ecn as u8).to_ne_bytes());
        }
        if let Some(segment) = message.segment {
            // Larger than any datagram: the kernel refuses it.
            let segment = u16::try_from(segment).unwrap_or(u16::MAX);
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment.to_ne_bytes());
        }
        if let Some(local) = message.local {
            control.push_source(local, exit);
        }
        control
    }

    /// The bytes for the kernel.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn push_source(&mut self, local: IpAddr, exit: Option<Exit>) {
        let link = exit.map_or(0, |exit| exit.link).to_ne_bytes();
        let is_named = exit.is_none_or(|exit| exit.source == Source::Named);
        match local {
            IpAddr::V4(ip) => {
                let ip = if is_named { ip.octets() } else { [0; 4] };
                // struct in_pktinfo: the link, where it comes from, and the destination, which is for receivers.
                let mut info = [0; 12];
                let fields = link.into_iter().chain(ip);
                info.iter_mut()
                    .zip(fields)
                    .for_each(|(to, from)| *to = from);
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(ip) => {
                let ip = if is_named { ip.octets() } else { [0; 16] };
                // struct in6_pktinfo: where it comes from, and the link.
                let mut info = [0; LARGEST];
                let fields = ip.into_iter().chain(link);
                info.iter_mut()
                    .zip(fields)
                    .for_each(|(to, from)| *to = from);
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// Adds one part.
    fn push<const LENGTH: usize>(&mut self, level: c_int, kind: c_int, data: [u8; LENGTH]) {
        const { assert!(LENGTH <= LARGEST) };
        let length = HEADER.saturating_add(LENGTH).to_ne_bytes();
        let (level, kind) = (level.to_ne_bytes(), kind.to_ne_bytes());
        let fields = length.into_iter().chain(level).chain(kind).chain(data);
        let room = self.bytes.iter_mut().skip(self.length);
        room.zip(fields).for_each(|(to, from)| *to = from);
        self.length = self
            .length
            .saturating_add(HEADER)
            .saturating_add(LENGTH.next_multiple_of(ALIGN));
    }
}
