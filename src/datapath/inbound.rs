//! Peer to TUN: decode, parse, admit, rebuild what the receiving kernel relies on, write.
//!
//! Runs in the task that reads the peer's stream. Nothing a peer says reaches the kernel unchecked: the source must be leased
//! to it, and the virtio header is made here.

use super::{Port, Shared};
use crate::link::{Frames, Inbound, Key};
use crate::model::view::SubnetView;
use crate::packet::offload::Rebuild;
use crate::packet::segment::segment;
use crate::packet::{DropReason, Offload, VirtioHeader, parse};
use crate::tun::TunError;

impl Inbound for Shared {
    fn may_open(&self, key: Key) -> bool {
        self.views.load().subnets.get(&key.subnet).is_some_and(|subnet| subnet.members.contains(&key.peer))
    }

    fn batch(&self, key: Key, frames: &mut Frames<'_>) {
        let view = self.views.load();
        let ports = self.ports.load();
        let subnet = view.subnets.get(&key.subnet);
        let port = ports.get(&key.subnet);
        let mut gone = false;
        while let Some((offload, bytes)) = frames.next() {
            let Some((subnet, port)) = subnet.zip(port) else {
                self.links.counts(key.subnet).add(DropReason::NoRoute, 1);
                continue;
            };
            match packet(subnet, port, key, &offload, bytes) {
                Ok(()) => {}
                Err(Refusal::Drop(reason)) => port.counts.add(reason, 1),
                Err(Refusal::Gone) => {
                    port.counts.add(DropReason::TunWrite, 1);
                    gone = true;
                }
            }
        }
        if let Some(port) = port.filter(|_| gone) {
            self.tun_died(port);
        }
    }
}

/// Why a packet was not written.
enum Refusal {
    Drop(DropReason),
    /// The TUN's link was deleted.
    Gone,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Refusal::Drop(reason)
    }
}

/// One packet from a peer.
fn packet(subnet: &SubnetView, port: &Port, key: Key, offload: &Offload, bytes: &mut [u8]) -> Result<(), Refusal> {
    let packet = parse(bytes)?;
    subnet.admit(key.peer, packet.source, packet.destination)?;
    let rebuild = Rebuild::plan(&packet, offload)?;
    let header = rebuild.apply(bytes);
    if header == VirtioHeader::default() || port.tun.takes(header) {
        match port.tun.send(header, bytes) {
            Ok(()) => return Ok(()),
            Err(TunError::Gone | TunError::Closed) => return Err(Refusal::Gone),
            // Some kernels refuse super-packets they should take (EINVAL): cut it and try once more.
            Err(TunError::Io(error)) if header.is_super_packet() && error.raw_os_error() == Some(EINVAL) => {}
            Err(TunError::Io(error)) => {
                tracing::trace!(subnet = %key.subnet, %error, "TUN write failed");
                return Err(Refusal::Drop(DropReason::TunWrite));
            }
        }
    }
    let mut failed = 0u64;
    // Off the common path: one buffer per super-packet that this kernel does not take.
    segment(bytes, &packet, offload, &mut Vec::new(), |piece| {
        if port.tun.send(VirtioHeader::default(), piece).is_err() {
            failed = failed.saturating_add(1);
        }
    })?;
    if failed > 0 {
        return Err(Refusal::Drop(DropReason::TunWrite));
    }
    Ok(())
}

/// "Invalid argument".
const EINVAL: i32 = 22;
