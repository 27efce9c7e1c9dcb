//! Packet sockets (`AF_PACKET`) and batches of messages: what neither the standard library nor `nix` offers.

#![expect(unsafe_code, reason = "packet(7), recvmmsg(2), sendmmsg(2)")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Result};

/// Messages moved by one call.
pub const BATCH: usize = 64;

/// Buffers for one batch of received messages.
pub struct Batch {
    size: usize,
    bytes: Vec<u8>,
    lengths: [usize; BATCH],
    /// Messages the last call brought.
    count: usize,
}

impl Batch {
    /// Room for [`BATCH`] messages of `size` bytes each; longer ones are cut.
    pub fn new(size: usize) -> Batch {
        Batch {
            size,
            bytes: vec![0; size * BATCH],
            lengths: [0; BATCH],
            count: 0,
        }
    }

    /// What the last call brought.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let parts = self.bytes.chunks(self.size).zip(self.lengths);
        parts
            .take(self.count)
            .map(|(part, length)| part.get(..length).unwrap_or(part))
    }
}

/// A socket that sends and receives whole frames of one interface.
pub struct Packets(OwnedFd);

impl Packets {
    /// On the interface of that name in the namespace this process is in.
    ///
    /// # Errors
    /// There is none, or the right is missing.
    pub fn open(interface: &str) -> Result<Packets> {
        let name = CString::new(interface).context("the name of an interface")?;
        // SAFETY: `name` is a string that ends with zero and lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("interface {interface}"));
        }
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers; the descriptor is checked and owned at once.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::c_int::from(all),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a packet socket");
        }
        // SAFETY: `fd` is open and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: every field of this plain structure may be zero.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = i32::try_from(index).context("the index of an interface")?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a `sockaddr_ll` of that length and lives through the call.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("bind to {interface}"));
        }
        let packets = Packets(fd);
        packets.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20)?;
        packets.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 32 << 20)?;
        Ok(packets)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<()> {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is an int of that length and lives through the call.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                length,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error()).context("set a socket option")
        }
    }

    /// No queueing discipline and no copy to who captures there: for floods.
    ///
    /// # Errors
    /// The kernel knows no such option.
    pub fn bypass(&self) -> Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
    }
}

impl AsRawFd for Packets {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until there is something to read; false when `limit` is over.
///
/// # Errors
/// The kernel refuses.
pub fn wait(socket: &impl AsRawFd, limit: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let seconds = libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX);
    let time = libc::timespec {
        tv_sec: seconds,
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    // SAFETY: one pollfd and one timespec that live through the call; no signal mask.
    let ready = unsafe { libc::ppoll(&raw mut poll, 1, &raw const time, std::ptr::null()) };
    match ready {
        0 => Ok(false),
        n if n > 0 => Ok(true),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(false),
            e => Err(e),
        },
    }
}

/// Reads what is there, without waiting; the number of messages.
///
/// # Errors
/// Anything but "nothing there".
pub fn receive(socket: &impl AsRawFd, batch: &mut Batch) -> io::Result<usize> {
    // SAFETY: every field of these plain structures may be zero.
    let (mut parts, mut heads): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    for ((part, head), bytes) in parts
        .iter_mut()
        .zip(&mut heads)
        .zip(batch.bytes.chunks_mut(batch.size))
    {
        *part = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        head.msg_hdr.msg_iov = part;
        head.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: each header points to one part, each part to its own piece of `batch.bytes`; all outlive the call.
    let count = unsafe {
        let none = std::ptr::null_mut();
        libc::recvmmsg(
            socket.as_raw_fd(),
            heads.as_mut_ptr(),
            BATCH as u32,
            libc::MSG_DONTWAIT,
            none,
        )
    };
    let Ok(count) = usize::try_from(count) else {
        batch.count = 0;
        let error = io::Error::last_os_error();
        let quiet = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ) || matches!(
            error.raw_os_error(),
            Some(libc::ENETDOWN | libc::ECONNREFUSED)
        );
        return if quiet { Ok(0) } else { Err(error) };
    };
    batch.count = count;
    for (length, head) in batch.lengths.iter_mut().zip(&heads).take(count) {
        *length = head.msg_len as usize;
    }
    Ok(count)
}

/// Sends up to [`BATCH`] messages; how many the kernel took. It may take fewer when its queue is full.
///
/// # Errors
/// It took none, for another reason than a full queue or a link that is down.
pub fn send<'a>(
    socket: &impl AsRawFd,
    messages: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    // SAFETY: every field of these plain structures may be zero.
    let (mut parts, mut heads): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    let mut count = 0_u32;
    for ((part, head), bytes) in parts.iter_mut().zip(&mut heads).zip(messages) {
        *part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        head.msg_hdr.msg_iov = part;
        head.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: `count` headers point to one part each, each part to a message that outlives the call and is only read.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), heads.as_mut_ptr(), count, 0) };
    let Ok(sent) = usize::try_from(sent) else {
        let error = io::Error::last_os_error();
        let full = matches!(
            error.raw_os_error(),
            Some(
                libc::ENOBUFS
                    | libc::EAGAIN
                    | libc::ENETDOWN
                    | libc::ECONNREFUSED
                    | libc::EINTR
                    | libc::EPERM
            )
        );
        return if full { Ok(0) } else { Err(error) };
    };
    Ok(sent)
}
