//! Where packets enter and leave the kernel: one device per subnet.
//!
//! Owns the descriptor and nothing else: addresses, routes, queue lengths are `host`'s. Never looks into a packet.

pub mod linux;
pub mod memory;

use std::io;

use crate::packet::TunOffload;

/// Why a device gave nothing, or took nothing.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The device was closed by [`Tun::close`].
    #[error("the TUN was closed")]
    Closed,
    /// The link was deleted under us; a new device has to be opened.
    #[error("the TUN's link is gone")]
    Gone,
    /// One read or write failed; the device may still work.
    #[error("read or write the TUN: {0}")]
    Io(#[from] io::Error),
}

/// A layer 3 device: whole IP packets, each with what is left to do on it.
///
/// `recv` and `wait` are called by one thread; `send` by any number of them.
pub trait Tun: Send + Sync + 'static {
    /// Blocks until there is something to [`recv`](Self::recv).
    ///
    /// # Errors
    /// [`TunError::Closed`] at once when [`close`](Self::close) is called, [`TunError::Gone`] when the link is deleted.
    fn wait(&self) -> Result<(), TunError>;

    /// Reads one packet into `buffer` without waiting: what its kernel left undone, and its length. `None` where there is
    /// none. The packet is `buffer[..length]`.
    ///
    /// A super-packet of up to [`MAX_PACKET`](crate::packet::parse::MAX_PACKET) bytes is one packet. The caller's buffer
    /// should hold that much; a longer packet is cut (and no longer parses).
    ///
    /// # Errors
    /// As [`wait`](Self::wait), and [`TunError::Io`].
    fn recv(&self, buffer: &mut [u8]) -> Result<Option<(TunOffload, usize)>, TunError>;

    /// Writes one packet, on which the kernel is left to do what `offload` says: complete a checksum, cut a super-packet.
    /// Every device takes complete packets, whose `offload` is the default.
    ///
    /// # Errors
    /// [`TunError::Gone`], or [`TunError::Io`]: this packet was refused.
    fn send(&self, offload: TunOffload, packet: &[u8]) -> Result<(), TunError>;

    /// Whether the device does this work on what is [sent](Self::send); else the sender does it in software.
    fn takes(&self, offload: TunOffload) -> bool;

    /// Ends [`wait`](Self::wait) and every later call of it.
    fn close(&self);
}
