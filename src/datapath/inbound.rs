//! Peer to TUN: pull from the port or a stream, parse, admit, rebuild what the receiving kernel relies on, write.
//!
//! One thread reads the port, one task each stream; both are read always. Nothing a peer says reaches the kernel unchecked:
//! the source must be leased to it, and what our kernel is left to do is said here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures::AsyncRead;

use super::{Port, Shared};
use crate::link::{FrameReceiver, Key};
use crate::model::id::SubnetId;
use crate::model::view::{SubnetView, View};
use crate::packet::coalesce::{Run, is_joinable};
use crate::packet::icmp::{self, Failure};
use crate::packet::offload::Rebuild;
use crate::packet::parse::{ICMP, ICMPV6};
use crate::packet::segment::segment;
use crate::packet::{DropReason, Offload, Packet, TunOffload, mss, parse};
use crate::tun::TunError;

/// The loop of the port, until it is closed or nobody takes packets any more.
pub(super) fn read_port(shared: Weak<Shared>, mut frames: FrameReceiver) {
    let mut buffer = Vec::new();
    while let Ok(mut read) = frames.next_batch() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let (view, ports) = (shared.views.load(), shared.ports.load());
        while let Some(frame) = read.next_frame() {
            let Some(mut packets) = read.packets_of(frame) else {
                continue;
            };
            let mut delivery = Delivery::new(&shared, &view, &ports, packets.key(), buffer);
            while let Some((offload, bytes)) = packets.next() {
                delivery.packet(&offload, bytes);
            }
            buffer = delivery.end();
        }
    }
}

/// The loop of one stream, until it ends or is cut. A peer that is no member is refused.
pub(super) async fn read_stream(
    shared: Arc<Shared>,
    key: Key,
    connection: u64,
    stream: impl AsyncRead + Send + Unpin + 'static,
) {
    if !shared.may_open(key) {
        tracing::debug!(subnet = %key.subnet, peer = %key.peer, "packet stream of a peer that is no member");
        return;
    }
    let Some(mut stream) = shared.links.receive_stream(key, connection, stream) else {
        return;
    };
    // Asked again: a removal between the first question and the entry would have found no stream to cut.
    if !shared.may_open(key) {
        return;
    }
    let mut buffer = Vec::new();
    while let Some(mut packets) = stream.next_batch().await {
        let (view, ports) = (shared.views.load(), shared.ports.load());
        let mut delivery = Delivery::new(&shared, &view, &ports, key, buffer);
        while let Some((offload, bytes)) = packets.next() {
            delivery.packet(&offload, bytes);
        }
        buffer = delivery.end();
    }
}

/// What one read brought of one peer, on its way to a TUN.
struct Delivery<'a> {
    shared: &'a Shared,
    key: Key,
    /// The packets' subnet and TUN; none where the subnet is not here, or has no TUN.
    to: Option<Destination<'a>>,
    run: Run,
    /// Source and destination of the last packet that was admitted: the next one of its flow costs no lookup.
    flow: Option<(IpAddr, IpAddr)>,
    /// The TUN's link was deleted.
    gone: bool,
}

/// The subnet that packets are for, and its TUN.
#[derive(Clone, Copy)]
struct Destination<'a> {
    subnet: &'a SubnetView,
    port: &'a Arc<Port>,
}

impl<'a> Delivery<'a> {
    /// Begins a delivery without packets. `buffer` is that of the delivery before, for datagrams
    /// that are joined.
    fn new(
        shared: &'a Shared,
        view: &'a View,
        ports: &'a HashMap<SubnetId, Arc<Port>>,
        key: Key,
        buffer: Vec<u8>,
    ) -> Delivery<'a> {
        let to = view.subnets.get(&key.subnet).zip(ports.get(&key.subnet));
        let to = to.map(|(subnet, port)| Destination { subnet, port });
        Delivery {
            shared,
            key,
            to,
            run: Run::new(buffer),
            flow: None,
            gone: false,
        }
    }

    /// One packet from the peer; what is refused is counted.
    fn packet(&mut self, offload: &Offload, bytes: &mut [u8]) {
        match self.to {
            None => self
                .shared
                .links
                .counts(self.key.subnet)
                .add(DropReason::NoRoute, 1),
            Some(to) => {
                if let Err(reason) = self.deliver(to, offload, bytes) {
                    to.port.counts.add(reason, 1);
                }
            }
        }
    }

    /// Writes what waits: none waits for the next read. Gives the buffer back.
    fn end(mut self) -> Vec<u8> {
        if let Some(to) = self.to {
            self.end_run(to);
            if self.gone {
                self.shared.tun_died(to.port);
            }
        }
        self.run.into_buffer()
    }

    /// Parses, admits, rebuilds and writes one packet.
    fn deliver(
        &mut self,
        to: Destination<'_>,
        offload: &Offload,
        bytes: &mut [u8],
    ) -> Result<(), DropReason> {
        let Destination { subnet, port } = to;
        let packet = parse(bytes)?;
        let flow = Some((packet.source, packet.destination));
        if self.flow != flow {
            if let Err(reason) = subnet.admit(self.key.peer, packet.source, packet.destination) {
                // Only who may send it at all is told: of a forged source the answer would go to another.
                if reason == DropReason::NoRoute {
                    self.tell(to, &packet, bytes, Failure::Unreachable);
                }
                return Err(reason);
            }
            self.flow = flow;
        }
        if packet.protocol == ICMP || packet.protocol == ICMPV6 {
            self.hear_refusal(subnet, &packet, bytes);
        } else if self.shared.refusals.any()
            && let Some(ports) = packet
                .is_tcp_or_udp()
                .then(|| bytes.get(packet.transport..))
                .flatten()
            && let Some(from) = ports.first_chunk()
        {
            let (address, proto) = (packet.source, packet.protocol);
            self.shared
                .refusals
                .answered(self.key, address, proto, u16::from_be_bytes(*from));
        }
        if mss::is_syn(&packet, bytes)
            && let Some(fits) = self.shared.links.link(self.key).inner_mtu()
        {
            mss::clamp(bytes, &packet, offload, fits.min(usize::from(subnet.mtu)));
        }
        let rebuild = Rebuild::plan(&packet, offload)?;
        // What may be cut, the kernel cuts.
        if packet.dont_fragment && offload.segment_length(&packet) > usize::from(subnet.mtu) {
            self.tell(to, &packet, bytes, Failure::TooBig(subnet.mtu));
            return Err(DropReason::TooBig);
        }
        if is_joinable(&packet, offload) && port.tun.takes(TunOffload::UDP_SUPER_PACKET) {
            if !self.run.add(&packet, bytes) {
                self.end_run(to);
                self.run.add(&packet, bytes);
            }
            return Ok(());
        }
        self.end_run(to);
        self.gone |= write(port, &rebuild, &packet, offload, bytes)?;
        Ok(())
    }

    /// An error that says that a member's machine is closed is remembered, and passed on like any other.
    fn hear_refusal(&self, subnet: &SubnetView, packet: &Packet, bytes: &[u8]) {
        if subnet.hosts.contains(&packet.source)
            && let Some(what) = icmp::prohibited(packet, bytes)
        {
            self.shared
                .refusals
                .refused(self.key, &what, Instant::now());
        }
    }

    /// Writes the datagrams that were gathered.
    fn end_run(&mut self, to: Destination<'_>) {
        let Some((packet, offload, bytes, count)) = self.run.finish() else {
            return;
        };
        let written = Rebuild::plan(&packet, &offload)
            .and_then(|rebuild| write(to.port, &rebuild, &packet, &offload, bytes));
        match written {
            Ok(gone) => self.gone |= gone,
            Err(reason) => to.port.counts.add(reason, count),
        }
    }

    /// Tells the sender at the peer why its packet goes no further, as often as the bucket allows.
    fn tell(&self, to: Destination<'_>, packet: &Packet, bytes: &[u8], failure: Failure) {
        if !icmp::may_answer(packet, bytes) || !to.port.answers.lock().take(Instant::now()) {
            return;
        }
        let own = to
            .subnet
            .addresses
            .iter()
            .find(|a| a.is_ipv4() == packet.source.is_ipv4());
        let reply = own.and_then(|from| icmp::reply(packet, bytes, *from, failure));
        let links = &self.shared.links;
        let mut chunk = links.pool().take();
        if let Some((reply, room)) = reply
            .as_ref()
            .and_then(|reply| chunk.space().get_mut(..reply.len()).map(|r| (reply, r)))
        {
            room.copy_from_slice(reply);
            chunk.commit(&Offload::NONE, reply.len());
            links.send(&links.link(self.key), chunk);
        }
    }
}

/// Writes one packet, whole or, where this kernel does not take it so, in segments; whether the TUN turned out to be gone.
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
            Err(TunError::Io(error))
                if undone.is_super_packet() && error.raw_os_error() == Some(EINVAL) => {}
            Err(TunError::Io(error)) => {
                tracing::trace!(subnet = %port.subnet, %error, "TUN write failed");
                return Err(DropReason::TunWrite);
            }
        }
    }
    let mut failed = 0u64;
    // Off the common path: one buffer per super-packet that this kernel does not take.
    segment(bytes, packet, offload, &mut Vec::new(), |segment| {
        if port.tun.send(TunOffload::default(), segment).is_err() {
            failed = failed.saturating_add(1);
        }
    })?;
    if failed > 0 {
        Err(DropReason::TunWrite)
    } else {
        Ok(false)
    }
}

/// The error that some kernels give for super-packets they should take.
const EINVAL: i32 = 22;
