//! The system calls of the port: many datagrams, each with its own address and segment size, in one call, without
//! allocating.
//!
//! Pointers are set anew before every call and never followed after it, so a batch may move between calls.
#![expect(
    unsafe_code,
    reason = "sendmmsg and recvmmsg with a segment size per message have no safe wrapper that does not allocate"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Messages that one call may bring.
pub(super) const MAX_RECEIVED: usize = 32;
/// Bytes one message may bring: the largest that GRO makes.
const MAX_MESSAGE: usize = 65_536;

/// Room for two control messages of one `int` (24 bytes each where pointers have 8) and an `in6_pktinfo` (40), aligned as
/// `cmsghdr` must be.
type Control = [u64; 11];

/// A datagram, or up to 64 of `segment` bytes each (the last may be shorter), on its way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) to: SocketAddr,
    /// Set where the kernel is to cut.
    pub(super) segment: Option<u16>,
    /// The two ECN bits; none: not ECN-capable.
    pub(super) ecn: Option<u8>,
    /// Our address that it comes from; none: the kernel chooses.
    pub(super) local: Option<IpAddr>,
}

/// What is known of a message that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta {
    pub(super) length: usize,
    pub(super) from: SocketAddr,
    /// Bytes of each datagram in it but the last; at least 1.
    pub(super) segment: usize,
    /// The two ECN bits.
    pub(super) ecn: u8,
    /// Our address that it was sent to, where the socket is told ([`tell_local`]).
    pub(super) local: Option<IpAddr>,
}

/// A socket address as the kernel has it.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// All zero, which is no address of a family.
    const NONE: Name = Name {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };
    const LENGTH: libc::socklen_t = size_of::<Name>() as libc::socklen_t;

    /// The address and its length in bytes.
    fn encode(address: SocketAddr) -> (Name, libc::socklen_t) {
        match address {
            SocketAddr::V4(address) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (Name { v4 }, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(address) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                (Name { v6 }, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// What the kernel wrote over [`Name::NONE`]; none for another family.
    fn decode(&self) -> Option<SocketAddr> {
        // SAFETY: every byte of the union is initialized (it began as `NONE`, the larger member), both members begin with
        // the family, and every bit pattern is a value of either.
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        match libc::c_int::from(v4.sin_family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// A message without a buffer; `mem::zeroed`, for the fields that padding adds on some targets.
fn empty_message() -> libc::mmsghdr {
    // SAFETY: a C struct of integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

const NO_PART: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Sets an option whose value is an `int`.
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the whole call; the kernel reads `length` bytes, the size of `value`.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel say of each message which of our addresses it was sent to.
pub(super) fn tell_local(socket: BorrowedFd<'_>, is_ipv4: bool) -> io::Result<()> {
    let (level, name) = match is_ipv4 {
        true => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        false => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    set_option(socket, level, name, 1)
}

/// Has tokio's reactor watch for room in a socket's buffer. Call inside a tokio runtime.
pub(super) fn watch_writable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one descriptor, open until it is dropped.
    unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) }.map_err(io::Error::from)
}

/// Sends one message.
///
/// # Errors
/// As `sendmsg`; never blocks.
pub(super) fn send_one(socket: BorrowedFd<'_>, message: Outgoing<'_>) -> io::Result<()> {
    SendBatch::<1>::new().send(socket, std::iter::once(message)).map(drop)
}

/// Room for `N` messages on their way out.
pub(super) struct SendBatch<const N: usize> {
    heads: [libc::mmsghdr; N],
    parts: [libc::iovec; N],
    names: [Name; N],
    controls: [Control; N],
}

// SAFETY: the pointers inside are written before and followed during one call of `send` only, which has `&mut self`.
unsafe impl<const N: usize> Send for SendBatch<N> {}

impl<const N: usize> SendBatch<N> {
    pub(super) fn new() -> SendBatch<N> {
        SendBatch { heads: [empty_message(); N], parts: [NO_PART; N], names: [Name::NONE; N], controls: [[0; 11]; N] }
    }

    /// Sends the first `N` of `messages` in one call; how many the kernel took, from the first on.
    ///
    /// # Errors
    /// As `sendmsg`, where not even the first was taken. Never blocks.
    pub(super) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        messages: impl Iterator<Item = Outgoing<'a>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        let places = self.heads.iter_mut().zip(&mut self.parts).zip(&mut self.names).zip(&mut self.controls);
        for ((((head, part), name), control), message) in places.zip(messages) {
            // The kernel only reads what a message to be sent points to.
            *part = libc::iovec { iov_base: message.bytes.as_ptr().cast_mut().cast(), iov_len: message.bytes.len() };
            let (address, length) = Name::encode(message.to);
            *name = address;
            let head = &mut head.msg_hdr;
            head.msg_name = ptr::from_mut(name).cast();
            head.msg_namelen = length;
            head.msg_iov = part;
            head.msg_iovlen = 1;
            let used = write_control(control, &message);
            head.msg_control = if used == 0 { ptr::null_mut() } else { ptr::from_mut(control).cast() };
            head.msg_controllen = used as _;
            count += 1;
        }
        let fd = socket.as_raw_fd();
        let flags = libc::MSG_DONTWAIT;
        let sent = match (count, self.heads.first()) {
            (0, _) | (_, None) => return Ok(0),
            (1, Some(head)) => {
                // SAFETY: the descriptor is open for the whole call; the header's pointers were set above to an address,
                // a buffer and control bytes that live until this returns (`'a` outlives the call), with their lengths.
                let sent = unsafe { libc::sendmsg(fd, &raw const head.msg_hdr, flags) };
                if sent < 0 { -1 } else { 1 }
            }
            // SAFETY: as above, for the first `count` headers; `count` is at most N, the length of the array.
            _ => unsafe { libc::sendmmsg(fd, self.heads.as_mut_ptr(), count, flags as _) },
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Writes the control messages that `message` needs; how many bytes they take.
fn write_control(control: &mut Control, message: &Outgoing<'_>) -> usize {
    let mut used = 0;
    if let Some(segment) = message.segment {
        used = put(control, used, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
    }
    if let Some(ecn) = message.ecn {
        let (level, kind) = match message.to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        used = put(control, used, level, kind, libc::c_int::from(ecn));
    }
    match message.local {
        Some(IpAddr::V4(ip)) => {
            let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
            used = put(control, used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(ip)) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
            used = put(control, used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        None => {}
    }
    used
}

/// Writes a control message `at` that many bytes into `control`; where the next one goes. One that has no room is left out.
fn put<T: Copy>(control: &mut Control, at: usize, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: both only compute with a number.
    let (length, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size) as usize) };
    if at + space > size_of::<Control>() {
        return at;
    }
    let start = ptr::from_mut(control).cast::<u8>();
    // SAFETY: `at` and all `CMSG_SPACE`s are multiples of the alignment of `cmsghdr`, which `Control` has; header and value
    // end before `at + space`, inside `control`. The value is written unaligned.
    unsafe {
        let header = start.add(at).cast::<libc::cmsghdr>();
        (*header).cmsg_len = length as _;
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
    }
    at + space
}

/// Room for what one call brings, and the buffers it is brought to.
pub(super) struct ReceiveBatch {
    heads: [libc::mmsghdr; MAX_RECEIVED],
    parts: [libc::iovec; MAX_RECEIVED],
    names: [Name; MAX_RECEIVED],
    controls: [Control; MAX_RECEIVED],
    metas: [Option<Meta>; MAX_RECEIVED],
    /// The memory is taken from the system when a message is first written to it: 2 MiB, of which little is touched.
    memory: Vec<u8>,
}

// SAFETY: the pointers inside are written before and followed during one call of `receive` only, which has `&mut self`.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    pub(super) fn new() -> ReceiveBatch {
        ReceiveBatch {
            heads: [empty_message(); MAX_RECEIVED],
            parts: [NO_PART; MAX_RECEIVED],
            names: [Name::NONE; MAX_RECEIVED],
            controls: [[0; 11]; MAX_RECEIVED],
            metas: [None; MAX_RECEIVED],
            memory: vec![0; MAX_MESSAGE * MAX_RECEIVED],
        }
    }

    /// Receives at most `limit` messages (at least one, at most [`MAX_RECEIVED`]) in one call; how many came.
    ///
    /// # Errors
    /// As `recvmsg`; `WouldBlock` where nothing waits. Never blocks.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let limit = limit.clamp(1, MAX_RECEIVED);
        let places = self.heads.iter_mut().zip(&mut self.parts).zip(&mut self.names).zip(&mut self.controls);
        let memory = self.memory.chunks_exact_mut(MAX_MESSAGE);
        for ((((head, part), name), control), memory) in places.zip(memory).take(limit) {
            *part = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: MAX_MESSAGE };
            *name = Name::NONE;
            let head = &mut head.msg_hdr;
            head.msg_name = ptr::from_mut(name).cast();
            head.msg_namelen = Name::LENGTH;
            head.msg_iov = part;
            head.msg_iovlen = 1;
            head.msg_control = ptr::from_mut(control).cast();
            head.msg_controllen = size_of::<Control>() as _;
            head.msg_flags = 0;
        }
        let fd = socket.as_raw_fd();
        let flags = libc::MSG_DONTWAIT;
        let came = match (limit, self.heads.first_mut()) {
            (1, Some(head)) => {
                // SAFETY: the descriptor is open for the whole call; the header's pointers were set above to an address, a
                // buffer and control bytes with their lengths, all owned by `self`, which nobody else has now.
                let length = unsafe { libc::recvmsg(fd, &raw mut head.msg_hdr, flags) };
                head.msg_len = length.max(0) as _;
                if length < 0 { -1 } else { 1 }
            }
            // SAFETY: as above, for the first `limit` headers; `limit` is at most the length of the array.
            _ => unsafe { libc::recvmmsg(fd, self.heads.as_mut_ptr(), limit as _, flags as _, ptr::null_mut()) },
        };
        let came = usize::try_from(came).map_err(|_| io::Error::last_os_error())?;
        for ((head, name), meta) in self.heads.iter().zip(&self.names).zip(&mut self.metas).take(came) {
            let length = usize::try_from(head.msg_len).unwrap_or(0).min(MAX_MESSAGE);
            *meta = name.decode().map(|from| read_control(&head.msg_hdr, length, from));
        }
        Ok(came)
    }

    /// The `index`th message of the last call.
    pub(super) fn message(&self, index: usize) -> Option<(Meta, &[u8])> {
        let meta = (*self.metas.get(index)?)?;
        let start = index.checked_mul(MAX_MESSAGE)?;
        Some((meta, self.memory.get(start..start.checked_add(meta.length)?)?))
    }
}

/// Reads the control messages that came with `length` bytes.
fn read_control(head: &libc::msghdr, length: usize, from: SocketAddr) -> Meta {
    let mut meta = Meta { length, from, segment: length.max(1), ecn: 0, local: None };
    // SAFETY: the kernel filled `msg_control` with `msg_controllen` bytes of whole control messages, in memory of the batch
    // that holds `head`; the macros stay inside. Each value read is as long as the kernel writes for its kind: an `int`, one
    // byte for IP_TOS, a struct for the two kinds of PKTINFO (ip(7), ipv6(7), udp(7)), any bytes of which are a value.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(head);
        while let Some(header) = next.as_ref() {
            let data = libc::CMSG_DATA(next);
            match (header.cmsg_level, header.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = ptr::read_unaligned(data.cast::<libc::c_int>());
                    meta.segment = usize::try_from(segment).unwrap_or(length).clamp(1, length.max(1));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => meta.ecn = ptr::read(data) & 3,
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in_pktinfo>());
                    meta.local = Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(data.cast::<libc::in6_pktinfo>());
                    meta.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    meta.ecn = (ptr::read_unaligned(data.cast::<libc::c_int>()) & 3) as u8;
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(head, next);
        }
    }
    meta
}
