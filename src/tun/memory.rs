//! A TUN without a kernel, for tests: the other end injects what the "kernel" sends and reads what it receives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Tun, TunError};
use crate::packet::TunOffload;

/// Packets each direction holds; further ones are dropped, as a real device does.
const CAPACITY: usize = 4096;

/// Whether the device takes super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segmentation {
    /// The device takes super-packets.
    Offload,
    /// The device takes single, complete packets only.
    None,
}

#[derive(Debug, Default)]
struct Queues {
    to_device: VecDeque<(TunOffload, Vec<u8>)>,
    from_device: VecDeque<(TunOffload, Vec<u8>)>,
    closed: bool,
    gone: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock()
    }
}

/// The end of the device that the daemon reads and writes.
#[derive(Debug)]
pub struct MemoryTun {
    shared: Arc<Shared>,
    segmentation: Segmentation,
}

/// The end of the device that tests use: what would be the kernel. Clones are the same end.
#[derive(Debug, Clone)]
pub struct MemoryKernel(Arc<Shared>);

/// Makes a device and its kernel.
pub fn pair(segmentation: Segmentation) -> (MemoryTun, MemoryKernel) {
    let shared = Arc::new(Shared::default());
    (
        MemoryTun {
            shared: Arc::clone(&shared),
            segmentation,
        },
        MemoryKernel(shared),
    )
}

impl MemoryKernel {
    /// Sends one complete packet into the device.
    pub fn inject(&self, packet: &[u8]) {
        self.inject_with(TunOffload::default(), packet);
    }

    /// Sends one packet with undone work into the device.
    pub fn inject_with(&self, offload: TunOffload, packet: &[u8]) {
        let mut queues = self.0.lock();
        if queues.to_device.len() < CAPACITY {
            queues.to_device.push_back((offload, packet.to_vec()));
        }
        drop(queues);
        self.0.changed.notify_all();
    }

    /// The next packet that came out of the device; waits at most `limit`. Blocks the thread.
    pub fn read(&self, limit: Duration) -> Option<(TunOffload, Vec<u8>)> {
        let until = Instant::now().checked_add(limit)?;
        let mut queues = self.0.lock();
        loop {
            if let Some(packet) = queues.from_device.pop_front() {
                return Some(packet);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let _ = self.0.changed.wait_for(&mut queues, left);
        }
    }

    /// Deletes the link under the daemon.
    pub fn delete_link(&self) {
        self.0.lock().gone = true;
        self.0.changed.notify_all();
    }
}

impl Tun for MemoryTun {
    fn wait(&self) -> Result<(), TunError> {
        let mut queues = self.shared.lock();
        loop {
            if queues.closed {
                return Err(TunError::Closed);
            }
            if queues.gone {
                return Err(TunError::Gone);
            }
            if !queues.to_device.is_empty() {
                return Ok(());
            }
            self.shared.changed.wait(&mut queues);
        }
    }

    fn recv(&self, buffer: &mut [u8]) -> Result<Option<(TunOffload, usize)>, TunError> {
        let mut queues = self.shared.lock();
        if queues.gone {
            return Err(TunError::Gone);
        }
        Ok(queues.to_device.pop_front().map(|(offload, packet)| {
            let length = packet.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..length), packet.get(..length)) {
                to.copy_from_slice(from);
            }
            (offload, length)
        }))
    }

    fn send(&self, offload: TunOffload, packet: &[u8]) -> Result<(), TunError> {
        let mut queues = self.shared.lock();
        if queues.gone {
            return Err(TunError::Gone);
        }
        if queues.from_device.len() < CAPACITY {
            queues.from_device.push_back((offload, packet.to_vec()));
        }
        drop(queues);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn takes(&self, _: TunOffload) -> bool {
        self.segmentation == Segmentation::Offload
    }

    fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}
