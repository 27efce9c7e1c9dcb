//! TAP devices: made once, they stay until they are deleted, whether a program has them open or not.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;

use crate::model::host::{WorkloadConfig, host_mac};

const DEVICE: &str = "/dev/net/tun";

/// Makes the TAP of a workload, for its owner to open. It has one queue and takes a virtio header from whoever opens it with
/// one, as QEMU does.
///
/// It has its hardware address, by which it is known for ours, before it stays: a kill in between leaves nothing.
///
/// # Errors
/// When there is no `/dev/net/tun`, the kernel refuses, or a link has the name.
pub(crate) fn create(instance: &str, workload: &WorkloadConfig) -> anyhow::Result<()> {
    let name = &workload.host_link;
    let owner = workload.tap.context("this is no TAP")?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .with_context(|| format!("open {DEVICE}"))?;
    // The features are those of whoever opens it next; it must not be anybody's by that name yet.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = short(flags)?;
    with_request(&device, libc::TUNSETIFF, &request).context("make the device")?;
    request.ifr_ifru.ifru_hwaddr = hardware(host_mac(instance, name));
    with_request(&device, libc::SIOCSIFHWADDR, &request).context("set its hardware address")?;
    with_number(&device, libc::TUNSETOWNER, owner).context("set its owner")?;
    with_number(&device, libc::TUNSETPERSIST, 1).context("keep it")
}

/// Opens a TAP that is there, with frames as they are on the wire: no header, nothing left to compute. It does not block.
///
/// # Errors
/// When there is none, or another program has it open ([`io::ErrorKind::ResourceBusy`]).
pub(crate) fn open(name: &str) -> anyhow::Result<OwnedFd> {
    // Else the kernel would make one.
    nix::net::if_::if_nametoindex(name)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .with_context(|| format!("open {DEVICE}"))?;
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = short(libc::IFF_TAP | libc::IFF_NO_PI)?;
    with_request(&device, libc::TUNSETIFF, &request).context("attach to the device")?;
    Ok(device.into())
}

/// Gives a TAP that is there to a user. The next who opens it has to be that user, or root.
///
/// # Errors
/// When there is none, or a program has it open: until that ends nobody else may say whose it is.
pub(crate) fn set_owner(name: &str, owner: u32) -> anyhow::Result<()> {
    let device =
        File::from(open(name).context("a program has it open; it is done once that ends")?);
    with_number(&device, libc::TUNSETOWNER, owner).context("set its owner")
}

/// The kernel has 16 bits for the flags of a device and takes them as a signed number.
fn short(flags: libc::c_int) -> anyhow::Result<libc::c_short> {
    Ok(u16::try_from(flags)?.cast_signed())
}

/// A request about the device with that name.
#[expect(unsafe_code, reason = "ifreq has no safe constructor")]
fn named(name: &str) -> anyhow::Result<libc::ifreq> {
    // SAFETY: every byte of the structure may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    anyhow::ensure!(
        name.len() < request.ifr_name.len(),
        "{name} is too long for a device"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn hardware(mac: [u8; 6]) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = from.cast_signed();
    }
    libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: data,
    }
}

#[expect(unsafe_code, reason = "these ioctls have no safe wrapper")]
fn with_request(device: &File, request: libc::Ioctl, what: &libc::ifreq) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes one `ifreq` at the pointer: what it
    // writes back is a copy here.
    let mut what = *what;
    answered(unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut what) })
}

#[expect(unsafe_code, reason = "these ioctls have no safe wrapper")]
fn with_number(device: &File, request: libc::Ioctl, number: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the kernel takes the number itself and no pointer.
    answered(unsafe { libc::ioctl(device.as_raw_fd(), request, libc::c_ulong::from(number)) })
}

fn answered(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
