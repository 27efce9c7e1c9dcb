//! Packets to frames: what one packet thread owns of the datagram carrier.
//!
//! A super-packet is cut into frames that fit the peer's path, each sealed straight from the packet into the send buffer:
//! payload first, headers and trailer behind. Small packets that are there already share a frame; none waits for company.
//! No allocation, no lock, no clock per packet.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Key, Link, Route, RxEvent};
use crate::crypto::frame::Nonce;
use crate::packet::offload::Kind;
use crate::packet::segment::segment;
use crate::packet::segment_plan::SegmentPlan;
use crate::packet::{DropCounts, DropReason, Offload, Packet};
use crate::udp::{Port, Run, Sender};
use crate::wire::datagram::{self, OVERHEAD, TRAILER, Trailer};
use crate::wire::relay::{self, PREFIX};

/// Packets below this many bytes share frames: a bundle of two is smaller than two frames at any size, but above this one
/// copy costs more than a frame saves.
const SMALL: usize = 600;
/// Frames are handed to the kernel when they fill this many bytes.
const BATCH_BYTES: usize = 56_000;
/// A packet of this size is handed on at once: its receiver can work while the next one is sealed.
const LARGE: usize = 16_000;
/// Bytes of the send buffer: [`BATCH_BYTES`], and the largest packet cut into 256 frames with 255 bytes of headers each, to a
/// relay.
const BUFFER: usize = 224 * 1024;
/// Frames of one run: what every kernel with UDP segmentation takes in one message.
const RUN_FRAMES: usize = 64;
/// Bytes of one run: the largest UDP payload.
const RUN_BYTES: usize = 65_507;
/// Runs that one buffer may need; more only begin a new buffer.
const RUNS: usize = 256;

/// How a packet goes into the frames of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The packet goes into one frame, which small packets share.
    One,
    /// The packet is a super-packet that is cut: each frame describes its segment.
    Segments(SegmentPlan),
    /// The packet is a super-packet that no frame describes (hundreds of tiny segments, very long
    /// headers): each segment goes as a packet.
    Packets,
}

impl Route {
    /// How a packet goes into frames of this path; none where it is larger than they carry.
    pub fn framing(&self, packet: &Packet, offload: &Offload) -> Option<Framing> {
        let room = self.inner();
        match offload.kind {
            Kind::None | Kind::Partial => (packet.length <= room).then_some(Framing::One),
            _ => match SegmentPlan::new(packet, offload, room) {
                Some(plan) => Some(Framing::Segments(plan)),
                None => (offload.segment_length(packet) <= room).then_some(Framing::Packets),
            },
        }
    }
}

/// The datagram carrier's sending half, for one thread and one subnet.
#[derive(Debug)]
pub struct Datagrams {
    sender: Sender,
    heard: mpsc::Sender<RxEvent>,
    counts: Arc<DropCounts>,
    buffer: Vec<u8>,
    end: usize,
    runs: Vec<Run>,
    /// The peer and subnet of each run.
    keys: Vec<Key>,
    bundle: Bundle,
    /// The number of the last super-packet, which tells neighbours apart.
    id: u16,
}

/// Small packets of one peer that will share a frame.
#[derive(Debug, Default)]
struct Bundle {
    to: Option<(Arc<Link>, Arc<Route>)>,
    entries: Vec<u8>,
    packets: u64,
    /// Whether the first packet's checksum is still to be computed.
    partial: bool,
}

impl Datagrams {
    /// A sending half; packets that are lost in it are counted in `counts`.
    pub(super) fn new(port: &Port, heard: mpsc::Sender<RxEvent>, counts: Arc<DropCounts>) -> Self {
        Datagrams {
            sender: port.sender(),
            heard,
            counts,
            buffer: vec![0; BUFFER],
            end: 0,
            runs: Vec::with_capacity(RUNS),
            keys: Vec::with_capacity(RUNS),
            bundle: Bundle {
                entries: Vec::with_capacity(RUN_BYTES),
                ..Bundle::default()
            },
            id: 0,
        }
    }

    /// Seals one packet for the peer's path `route`, which carries it by `framing` ([`Route::framing`]). `packet` and
    /// `offload` describe `bytes`. False where the route's key is used up: then nothing of it was sealed.
    pub fn push(
        &mut self,
        link: &Arc<Link>,
        route: &Arc<Route>,
        framing: Framing,
        packet: (&Packet, &Offload),
        bytes: &[u8],
    ) -> bool {
        let (packet, offload) = packet;
        let partial = offload.kind == Kind::Partial;
        let sealed = match framing {
            Framing::One if bytes.len() < SMALL => {
                self.gather(link, route, bytes, partial);
                true
            }
            Framing::One => {
                self.close_bundle_of(link);
                self.seal_one(route, link.key, bytes, Trailer::Packet { partial })
            }
            Framing::Segments(plan) => {
                self.close_bundle_of(link);
                self.segments(route, link.key, &plan, bytes)
            }
            Framing::Packets => {
                self.close_bundle_of(link);
                self.packets(route, link.key, packet, offload, bytes);
                true
            }
        };
        if sealed {
            link.datagrams
                .sent(1, u64::try_from(bytes.len()).unwrap_or(0));
        }
        if self.end >= BATCH_BYTES || bytes.len() >= LARGE {
            self.hand_on();
        }
        sealed
    }

    /// Seals a filler of a measurement (`measure`). False where the route's key is used up.
    pub(super) fn fill(&mut self, route: &Route, key: Key, body: &[u8]) -> bool {
        self.seal_one(route, key, body, Trailer::Filler)
    }

    /// Hands everything to the kernel: nothing waits for the next packet.
    pub fn flush(&mut self) {
        self.close_bundle();
        self.hand_on();
    }

    /// Seals the segments of a super-packet; false where the key is used up.
    fn segments(&mut self, route: &Route, key: Key, plan: &SegmentPlan, bytes: &[u8]) -> bool {
        let headers = plan.headers;
        let mut tail = [0u8; u8::MAX as usize + TRAILER];
        let (Some(to), Some(from)) = (tail.get_mut(..headers), bytes.get(..headers)) else {
            return false;
        };
        to.copy_from_slice(from);
        let behind = headers.saturating_add(TRAILER);
        let most = plan
            .count
            .saturating_mul((PREFIX + OVERHEAD).saturating_add(headers))
            .saturating_add(bytes.len());
        self.make_room(most);
        let Some(mut nonces) = u32::try_from(plan.count)
            .ok()
            .and_then(|count| route.sealer.take(count))
        else {
            return false;
        };
        self.id = self.id.wrapping_add(1);
        for index in 0..plan.count {
            let trailer = Trailer::Segment {
                segment: plan.describe(index),
                id: self.id,
            }
            .encode();
            if let Some(room) = tail.get_mut(headers..behind) {
                room.copy_from_slice(&trailer);
            }
            let body = bytes.get(plan.range(index)).unwrap_or_default();
            let Some(nonce) = nonces.next() else { break };
            self.seal(
                route,
                nonce,
                key,
                body,
                tail.get(..behind).unwrap_or_default(),
            );
        }
        true
    }

    /// Seals the segments of a super-packet, each as a packet.
    fn packets(
        &mut self,
        route: &Route,
        key: Key,
        packet: &Packet,
        offload: &Offload,
        bytes: &[u8],
    ) {
        // Off the common path: a buffer for its segments.
        let mut all = true;
        let segmented = segment(bytes, packet, offload, &mut Vec::new(), |one| {
            all &= self.seal_one(route, key, one, Trailer::Packet { partial: false });
        });
        match segmented {
            Ok(()) if all => {}
            Ok(()) => self.counts.add(DropReason::QueueFull, 1),
            Err(reason) => self.counts.add(reason, 1),
        }
    }

    /// Puts a small packet into the peer's bundle.
    fn gather(&mut self, link: &Arc<Link>, route: &Arc<Route>, bytes: &[u8], partial: bool) {
        let entry = bytes.len().saturating_add(datagram::ENTRY);
        let joins = match &self.bundle.to {
            Some((to, under)) => {
                Arc::ptr_eq(to, link)
                    && Arc::ptr_eq(under, route)
                    && self.bundle.entries.len().saturating_add(entry) <= route.inner()
            }
            None => false,
        };
        if !joins {
            self.close_bundle();
            self.bundle.to = Some((Arc::clone(link), Arc::clone(route)));
            self.bundle.partial = partial;
        }
        datagram::append(&mut self.bundle.entries, bytes, partial);
        self.bundle.packets = self.bundle.packets.saturating_add(1);
    }

    /// Seals the peer's bundle, so that what follows stays behind it.
    fn close_bundle_of(&mut self, link: &Arc<Link>) {
        if self
            .bundle
            .to
            .as_ref()
            .is_some_and(|(to, _)| Arc::ptr_eq(to, link))
        {
            self.close_bundle();
        }
    }

    fn close_bundle(&mut self) {
        let Some((link, route)) = self.bundle.to.take() else {
            return;
        };
        let mut entries = std::mem::take(&mut self.bundle.entries);
        let packets = std::mem::take(&mut self.bundle.packets);
        let sealed = if packets == 1 {
            let single = entries.get(datagram::ENTRY..).unwrap_or_default();
            self.seal_one(
                &route,
                link.key,
                single,
                Trailer::Packet {
                    partial: self.bundle.partial,
                },
            )
        } else {
            self.seal_one(&route, link.key, &entries, Trailer::Bundle)
        };
        if !sealed {
            // The key was used up between two packets; the next ones go on the stream or with the next key.
            self.counts.add(DropReason::QueueFull, packets);
        }
        entries.clear();
        self.bundle.entries = entries;
    }

    /// Seals one frame; false where the key is used up.
    fn seal_one(&mut self, route: &Route, key: Key, body: &[u8], trailer: Trailer) -> bool {
        self.make_room(body.len().saturating_add(PREFIX + OVERHEAD));
        match route.sealer.take(1).and_then(|mut nonces| nonces.next()) {
            Some(nonce) => self.seal(route, nonce, key, body, &trailer.encode()),
            None => false,
        }
    }

    /// Seals one frame behind those in the buffer.
    fn seal(&mut self, route: &Route, nonce: Nonce, key: Key, body: &[u8], tail: &[u8]) -> bool {
        let start = self.end;
        let prefix = route.to.leg.map(relay::prefix);
        let prefix = prefix.as_ref().map_or(&[][..], |prefix| prefix);
        let out = self.buffer.get_mut(start..).unwrap_or_default();
        let Some((head, out)) = out.split_at_mut_checked(prefix.len()) else {
            return false;
        };
        let Some(length) = route.sealer.seal(nonce, body, tail, out) else {
            return false;
        };
        head.copy_from_slice(prefix);
        let length = length.saturating_add(prefix.len());
        self.end = self.end.saturating_add(length);
        match self.runs.last_mut() {
            Some(run)
                if run.to == route.to.address
                    && run.local == route.local
                    && run.helper == route.to.helper
                    && extends(run, length) =>
            {
                run.end = self.end
            }
            _ => {
                self.runs.push(Run {
                    start,
                    end: self.end,
                    segment: length,
                    to: route.to.address,
                    local: route.local,
                    helper: route.to.helper,
                });
                self.keys.push(key);
            }
        }
        true
    }

    /// Hands on what is in the buffer where `bytes` more do not fit.
    fn make_room(&mut self, bytes: usize) {
        if self.end.saturating_add(bytes) > self.buffer.len() || self.runs.len() >= RUNS {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let sent = self
            .sender
            .send(self.buffer.get(..self.end).unwrap_or_default(), &self.runs);
        if sent.frames_dropped > 0 {
            self.counts.add(DropReason::QueueFull, sent.frames_dropped);
        }
        // Another one of the same call is met again by its next packet.
        if let Some(key) = sent.too_big.and_then(|run| self.keys.get(run)) {
            let _ = self.heard.try_send(RxEvent::TooBig { key: *key });
        }
        self.runs.clear();
        self.keys.clear();
        self.end = 0;
    }
}

/// Whether a frame of `length` bytes may follow in the run: all are equal, only the last may be shorter.
fn extends(run: &Run, length: usize) -> bool {
    let held = run.end.saturating_sub(run.start);
    length <= run.segment
        && held.checked_rem(run.segment) == Some(0)
        && held.saturating_add(length) <= RUN_BYTES
        && held
            .checked_div(run.segment)
            .is_some_and(|frames| frames < RUN_FRAMES)
}
