//! A TUN device in a namespace of one's choice.

#![expect(unsafe_code, reason = "TUNSETIFF is an ioctl of the TUN driver")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// An open device; it goes with its descriptor.
pub struct Tun(File);

impl Tun {
    /// Makes a device of this name in the namespace at `space`. The calling thread is in that namespace afterwards.
    ///
    /// # Errors
    /// There is no such namespace, the name is taken, or the right is missing.
    pub fn open(space: &Path, name: &str) -> Result<Tun> {
        let file = File::open(space).with_context(|| format!("open {}", space.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter {}", space.display()))?;
        ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long");
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        // SAFETY: every field of this plain structure may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request is an `ifreq` that lives through the call.
        let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        if done < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("make {name}"));
        }
        Ok(Tun(tun))
    }

    /// One packet, if there is one.
    pub fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        (&self.0).read(buffer).ok()
    }

    /// Gives a packet to the kernel. One that it does not take is lost, as on a wire.
    pub fn write(&self, packet: &[u8]) {
        let _ = (&self.0).write(packet);
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
