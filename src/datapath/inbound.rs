//! Peer to TUN: decode, parse, admit, rebuild what the receiving kernel relies on, write.
//!
//! Runs in the task that reads the peer's stream, or in the thread that reads the port. Nothing a peer says reaches the
//! kernel unchecked: the source must be leased to it, and what our kernel is left to do is said here.

use std::net::IpAddr;
use std::time::Instant;

use super::join::{Run, is_joinable};
use super::{Port, Shared};
use crate::link::{Inbound, Key, Packets};
use crate::model::view::SubnetView;
use crate::packet::icmp::{self, Failure};
use crate::packet::offload::Rebuild;
use crate::packet::parse::{ICMP, ICMPV6};
use crate::packet::segment::segment;
use crate::packet::{DropReason, Offload, Packet, TunOffload, mss, parse};
use crate::tun::TunError;

impl Inbound for Shared {
    fn may_open(&self, key: Key) -> bool {
        self.views.load().subnets.get(&key.subnet).is_some_and(|subnet| subnet.members.contains(&key.peer))
    }

    fn batch(&self, key: Key, packets: &mut dyn Packets) {
        let view = self.views.load();
        let ports = self.ports.load();
        let Some((subnet, port)) = view.subnets.get(&key.subnet).zip(ports.get(&key.subnet)) else {
            while packets.next().is_some() {
                self.links.counts(key.subnet).add(DropReason::NoRoute, 1);
            }
            return;
        };
        let mut batch =
            Batch { shared: self, subnet, port, key, run: Run::new(packets.take_scratch()), flow: None, gone: false };
        while let Some((offload, bytes)) = packets.next() {
            if let Err(reason) = batch.packet(&offload, bytes) {
                port.counts.add(reason, 1);
            }
        }
        // None waits for the next read.
        batch.end_run();
        let (run, gone) = (batch.run, batch.gone);
        packets.keep_scratch(run.into_buffer());
        if gone {
            self.tun_died(port);
        }
    }
}

/// What one read of a stream brought.
struct Batch<'a> {
    shared: &'a Shared,
    subnet: &'a SubnetView,
    port: &'a Port,
    key: Key,
    run: Run,
    /// Source and destination of the last packet that was admitted: the next one of its flow costs no lookup.
    flow: Option<(IpAddr, IpAddr)>,
    /// The TUN's link was deleted.
    gone: bool,
}

impl Batch<'_> {
    /// One packet from the peer.
    fn packet(&mut self, offload: &Offload, bytes: &mut [u8]) -> Result<(), DropReason> {
        let packet = parse(bytes)?;
        let flow = Some((packet.source, packet.destination));
        if self.flow != flow {
            if let Err(reason) = self.subnet.admit(self.key.peer, packet.source, packet.destination) {
                // Only who may send it at all is told: of a forged source the answer would go to another.
                if reason == DropReason::NoRoute {
                    self.tell(&packet, bytes, Failure::Unreachable);
                }
                return Err(reason);
            }
            self.flow = flow;
        }
        if packet.protocol == ICMP || packet.protocol == ICMPV6 {
            self.hear_refusal(&packet, bytes);
        } else if self.shared.refusals.any()
            && let Some(port) = packet.is_tcp_or_udp().then(|| bytes.get(packet.transport..)).flatten()
            && let Some(port) = port.first_chunk()
        {
            let (address, proto) = (packet.source, packet.protocol);
            self.shared.refusals.answered(self.key, address, proto, u16::from_be_bytes(*port));
        }
        if mss::is_syn(&packet, bytes)
            && let Some(fits) = self.shared.links.link(self.key).inner_mtu()
        {
            mss::clamp(bytes, &packet, offload, fits.min(usize::from(self.subnet.mtu)));
        }
        let rebuild = Rebuild::plan(&packet, offload)?;
        // What may be cut, the kernel cuts.
        if packet.dont_fragment && offload.segment_length(&packet) > usize::from(self.subnet.mtu) {
            self.tell(&packet, bytes, Failure::TooBig(self.subnet.mtu));
            return Err(DropReason::TooBig);
        }
        if is_joinable(&packet, offload) && self.port.tun.takes(TunOffload::UDP_SUPER_PACKET) {
            if !self.run.add(&packet, bytes) {
                self.end_run();
                self.run.add(&packet, bytes);
            }
            return Ok(());
        }
        self.end_run();
        self.gone |= write(self.port, &rebuild, &packet, offload, bytes)?;
        Ok(())
    }

    /// An error that says that a member's machine is closed is remembered, and passed on like any other.
    fn hear_refusal(&self, packet: &Packet, bytes: &[u8]) {
        if self.subnet.hosts.contains(&packet.source)
            && let Some(what) = icmp::prohibited(packet, bytes)
        {
            self.shared.refusals.refused(self.key, &what, Instant::now());
        }
    }

    /// Writes the datagrams that were gathered.
    fn end_run(&mut self) {
        let Some((packet, offload, bytes, count)) = self.run.finish() else { return };
        let written =
            Rebuild::plan(&packet, &offload).and_then(|rebuild| write(self.port, &rebuild, &packet, &offload, bytes));
        match written {
            Ok(gone) => self.gone |= gone,
            Err(reason) => self.port.counts.add(reason, count),
        }
    }

    /// Tells the sender at the peer why its packet goes no further, as often as the bucket allows.
    fn tell(&self, packet: &Packet, bytes: &[u8], failure: Failure) {
        if !icmp::may_answer(packet, bytes)
            || !self.port.answers.lock().is_ok_and(|mut bucket| bucket.take(Instant::now()))
        {
            return;
        }
        let own = self.subnet.addresses.iter().find(|a| a.is_ipv4() == packet.source.is_ipv4());
        let reply = own.and_then(|from| icmp::reply(packet, bytes, *from, failure));
        let links = &self.shared.links;
        let mut chunk = links.pool().take();
        if let Some((reply, room)) =
            reply.as_ref().and_then(|reply| chunk.space().get_mut(..reply.len()).map(|r| (reply, r)))
        {
            room.copy_from_slice(reply);
            chunk.commit(&Offload::NONE, reply.len());
            links.send(&links.link(self.key), chunk);
        }
    }
}

/// Writes one packet, whole or, where this kernel does not take it so, in pieces; whether the TUN turned out to be gone.
fn write(
    port: &Port,
    rebuild: &Rebuild,
    packet: &Packet,
    offload: &Offload,
    bytes: &mut [u8],
) -> Result<bool, DropReason> {
    let undone = rebuild.apply(bytes);
    if undone == TunOffload::default() || port.tun.takes(undone) {
        match port.tun.send(undone, bytes) {
            Ok(()) => return Ok(false),
            Err(TunError::Gone | TunError::Closed) => {
                port.counts.add(DropReason::TunWrite, 1);
                return Ok(true);
            }
            // Some kernels refuse super-packets they should take (EINVAL): cut it and try once more.
            Err(TunError::Io(error)) if undone.is_super_packet() && error.raw_os_error() == Some(EINVAL) => {}
            Err(TunError::Io(error)) => {
                tracing::trace!(subnet = %port.subnet, %error, "TUN write failed");
                return Err(DropReason::TunWrite);
            }
        }
    }
    let mut failed = 0u64;
    // Off the common path: one buffer per super-packet that this kernel does not take.
    segment(bytes, packet, offload, &mut Vec::new(), |piece| {
        if port.tun.send(TunOffload::default(), piece).is_err() {
            failed = failed.saturating_add(1);
        }
    })?;
    if failed > 0 { Err(DropReason::TunWrite) } else { Ok(false) }
}

/// "Invalid argument".
const EINVAL: i32 = 22;
