//! The kernel's TUN, opened with a virtio header ([`virtio`]) and every offload it has.
//!
//! tun-rs opens and configures the device; packets pass raw, one `readv` or `writev` each: tun-rs's own splitting and
//! coalescing copies and checksums every segment, which a super-packet that crosses whole never needs.

pub mod virtio;

use std::io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{Tun, TunError};
use crate::packet::TunOffload;
use crate::packet::offload::SegmentKind;

const DEVICE: &str = "/dev/net/tun";

/// A TUN of the kernel; its link goes when this is dropped.
#[derive(Debug)]
pub struct LinuxTun {
    device: Device,
    udp_gso: bool,
    closed: AtomicBool,
    wake: PipeWriter,
    woken: PipeReader,
}

/// tun-rs's device as something that can be polled.
struct Device(SyncDevice);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "fd {}", self.0.as_raw_fd())
    }
}

impl AsFd for Device {
    #[expect(unsafe_code, reason = "tun-rs gives the descriptor as a number only")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by `self.0`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Opens the TUN `name` (at most 15 bytes) in the calling thread's network namespace and brings it up with `mtu`.
///
/// TCP segmentation and checksum offload are required (every kernel has them); UDP segmentation is used where the kernel
/// has it (6.2 and later, see [`LinuxTun::udp_gso`]).
///
/// # Errors
/// [`io::ErrorKind::NotFound`] where `/dev/net/tun` is missing, [`io::ErrorKind::PermissionDenied`] without
/// `CAP_NET_ADMIN`, [`io::ErrorKind::ResourceBusy`] where another process holds the link.
pub fn open(name: &str, mtu: u16) -> io::Result<LinuxTun> {
    // tun-rs would make the node itself, a device file nobody asked for.
    if !Path::new(DEVICE).exists() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("open {DEVICE}: no such device"),
        ));
    }
    let context = |e: io::Error| io::Error::new(e.kind(), format!("open TUN {name}: {e}"));
    let device = DeviceBuilder::new()
        .name(name)
        .mtu(mtu)
        .offload(true)
        .enable(false)
        .build_sync()
        .map_err(context)?;
    device.set_nonblocking(true).map_err(context)?;
    let (woken, wake) = io::pipe().map_err(context)?;
    let udp_gso = device.udp_gso();
    tracing::debug!(interface = name, mtu, udp_gso, "TUN opened");
    Ok(LinuxTun {
        device: Device(device),
        udp_gso,
        closed: AtomicBool::new(false),
        wake,
        woken,
    })
}

impl LinuxTun {
    /// Whether the kernel hands over, and takes, UDP super-packets.
    pub fn udp_gso(&self) -> bool {
        self.udp_gso
    }
}

/// Tells a link that is gone from one failed call.
fn sort(error: io::Error) -> TunError {
    match error.raw_os_error().map(Errno::from_raw) {
        // The device detaches every open descriptor when its link is deleted: EBADFD from then on.
        Some(Errno::EBADFD | Errno::EBADF | Errno::ENODEV | Errno::ENXIO) => TunError::Gone,
        _ => TunError::Io(error),
    }
}

impl Tun for LinuxTun {
    fn wait(&self) -> Result<(), TunError> {
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(TunError::Closed);
            }
            let mut fds = [
                PollFd::new(self.device.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(TunError::Io(errno.into())),
            }
            let [device, _] = fds;
            let events = device.revents().unwrap_or(PollFlags::empty());
            if events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL | PollFlags::POLLHUP) {
                return Err(TunError::Gone);
            }
            if events.contains(PollFlags::POLLIN) {
                return Ok(());
            }
        }
    }

    fn recv(&self, buffer: &mut [u8]) -> Result<Option<(TunOffload, usize)>, TunError> {
        let mut header = [0u8; virtio::LENGTH];
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
        match self.device.0.recv_vectored(&mut parts) {
            Ok(length) => Ok(Some((
                virtio::decode(header),
                length.saturating_sub(virtio::LENGTH),
            ))),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(sort(e)),
        }
    }

    fn send(&self, offload: TunOffload, packet: &[u8]) -> Result<(), TunError> {
        let header = virtio::encode(offload);
        loop {
            match self
                .device
                .0
                .send_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
            {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(sort(e)),
            }
        }
    }

    fn takes(&self, offload: TunOffload) -> bool {
        self.udp_gso
            || offload
                .segments
                .is_none_or(|segments| segments.kind != SegmentKind::Udp)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // One byte is enough: it is never read, so every later poll sees it. A full pipe cannot happen.
        let _ = (&self.wake).write(&[1]);
    }
}
