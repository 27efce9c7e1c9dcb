//! Frames to packets: what the one thread that reads the port pulls.
//!
//! Each frame is opened straight to the end of the super-packet that grows in one buffer: the trailer and the headers of
//! the frame before are overwritten, so that consecutive segments join without a copy. The [`FrameReceiver`] owns the keys,
//! the replay windows and the buffers; keys come to it through a [`SessionUpdates`], what is not a packet goes to the
//! control task.

mod updates;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

pub(super) use updates::SessionUpdates;

use super::expected::Expected;
use super::relay::{Forwarder, Legs, Table};
use super::{FourTuple, Key, Link, RxEvent};
use crate::crypto::frame::{HEADER, Header, Opener};
use crate::crypto::replay::Window;
use crate::limit::{Limit, SharedBuckets};
use crate::packet::offload::Kind;
use crate::packet::reassemble::{Segment, reassemble};
use crate::packet::{DropReason, Offload};
use crate::peer::Remote;
use crate::udp::{Closed, Datagrams, Receiver};
use crate::wire::datagram::{Bundle, TRAILER, Trailer, token_of};
use crate::wire::relay::{self, Message, PREFIX};

/// Room in front of a growing super-packet for its headers: the most a trailer can state.
const BASE: usize = 256;
/// Bytes of the largest super-packet: what an IP header can state.
const LARGEST: usize = 65_535;
/// Bytes of the buffer: the largest super-packet and one frame behind it.
const BUFFER_BYTES: usize = BASE + LARGEST + 65_536;

/// Counts the frames that led to no session since the start.
#[derive(Debug, Default)]
pub struct Unmatched {
    /// Frames whose receiver index is that of no session, and knocks that nobody expects.
    pub unknown: AtomicU64,
    /// Frames that are too short, or have reserved bytes that are not zero.
    pub malformed: AtomicU64,
    /// Messages of our own relays about our legs, more than a leg asks for: they were not even checked.
    pub flood: AtomicU64,
}

/// Messages about one of our legs whose MAC is checked: at once, and a second after that. A leg asks twice a second at most,
/// and confirms ten times.
const OF_A_LEG: Limit = Limit::new(32, 16);
/// Buckets that our legs share.
const LEG_BUCKETS: usize = 256;

/// One key of ours under which frames come in.
#[derive(Debug)]
struct Session {
    index: u32,
    opener: Opener,
    window: Window,
    link: Arc<Link>,
    /// Where the newest frame came from and to.
    return_path: Option<FourTuple>,
    /// Where the last frame came from and to, however old its counter is.
    came: Option<FourTuple>,
    /// Frames of packets that were opened.
    traffic: u64,
}

/// Reads the port and opens what comes; owned by the receiving thread. Made by [`Links::frames`](super::Links::frames).
#[derive(Debug)]
pub struct FrameReceiver {
    receiver: Receiver,
    updates: SessionUpdates,
    heard: mpsc::Sender<RxEvent>,
    unmatched: Arc<Unmatched>,
    sessions: HashMap<u32, Box<Session>>,
    room: ReassemblyBuffer,
    forwarder: Forwarder,
    legs: Legs,
    told: SharedBuckets,
    expected: Arc<Expected>,
}

impl FrameReceiver {
    pub(super) fn new(
        receiver: Receiver,
        updates: SessionUpdates,
        heard: mpsc::Sender<RxEvent>,
        unmatched: Arc<Unmatched>,
        (forwarder, legs): (Forwarder, Legs),
        expected: Arc<Expected>,
    ) -> FrameReceiver {
        FrameReceiver {
            receiver,
            updates,
            heard,
            unmatched,
            sessions: HashMap::new(),
            room: ReassemblyBuffer::default(),
            forwarder,
            legs,
            told: SharedBuckets::new(OF_A_LEG, LEG_BUCKETS),
            expected,
        }
    }

    /// Blocks until datagrams come, and gives what one read of the port brought.
    ///
    /// # Errors
    /// [`Closed`] once the port was closed.
    pub fn next_batch(&mut self) -> Result<FrameBatch<'_>, Closed> {
        let FrameReceiver {
            receiver,
            updates,
            heard,
            unmatched,
            sessions,
            room,
            forwarder,
            legs,
            told,
            expected,
        } = self;
        let relay = forwarder.relay();
        let datagrams =
            receiver.next_batch_past(|| relay.is_serving(), |run| forwarder.take(run))?;
        updates.carry_out(sessions);
        Ok(FrameBatch {
            incoming: Incoming {
                datagrams,
                unmatched,
                heard,
                legs: legs.load(),
                told,
                expected,
                last: None,
            },
            ahead: None,
            sessions,
            room,
            heard,
        })
    }
}

/// What one read of the port brought: pull frame after frame, and the packets behind each.
pub struct FrameBatch<'a> {
    incoming: Incoming<'a>,
    /// The frame that ended the former session's turn.
    ahead: Option<Frame<'a>>,
    sessions: &'a mut HashMap<u32, Box<Session>>,
    room: &'a mut ReassemblyBuffer,
    heard: &'a mpsc::Sender<RxEvent>,
}

impl<'a> FrameBatch<'a> {
    /// Takes the next frame of ours; none when the read is used up.
    pub fn next_frame(&mut self) -> Option<Frame<'a>> {
        self.ahead.take().or_else(|| self.incoming.next_frame())
    }

    /// The packets of `frame` and of those behind it under the same key. None, and counted, where no session has that key.
    pub fn packets_of(&mut self, frame: Frame<'a>) -> Option<PeerPackets<'_, 'a>> {
        let Some(session) = self.sessions.get_mut(&frame.header.receiver) else {
            self.incoming
                .unmatched
                .unknown
                .fetch_add(1, Ordering::Relaxed);
            return None;
        };
        // Nothing that the former peer left may join what comes of this one.
        self.room.clear();
        self.ahead = Some(frame);
        Some(PeerPackets {
            incoming: &mut self.incoming,
            ahead: &mut self.ahead,
            session,
            room: self.room,
            heard: self.heard,
        })
    }
}

/// A frame of ours, not yet opened.
#[derive(Debug)]
pub struct Frame<'a> {
    header: Header,
    four_tuple: FourTuple,
    bytes: &'a [u8],
}

/// The frames of one read, one after the other.
struct Incoming<'a> {
    datagrams: Datagrams<'a>,
    unmatched: &'a Unmatched,
    heard: &'a mpsc::Sender<RxEvent>,
    legs: Table,
    /// What relays may say about our legs.
    told: &'a mut SharedBuckets,
    /// The knocks that are taken.
    expected: &'a Expected,
    /// The leg of the last frame that came by one.
    last: Option<Remote>,
}

impl<'a> Incoming<'a> {
    /// The next frame, its header read. What has none is counted.
    fn next_frame(&mut self) -> Option<Frame<'a>> {
        loop {
            let datagram = self.datagrams.next()?;
            let mut four_tuple = FourTuple {
                from: Remote {
                    helper: datagram.helper,
                    ..datagram.from.into()
                },
                local: datagram.local,
            };
            let mut bytes = datagram.bytes;
            if let Some((first, leg)) = relay::index(bytes) {
                four_tuple.from.leg = Some(leg);
                if first == relay::BIND {
                    self.tell_bind(four_tuple, bytes);
                    continue;
                }
                if !self.is_ours(four_tuple.from) {
                    self.unmatched.unknown.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                bytes = bytes.get(PREFIX..).unwrap_or_default();
            }
            match Header::decode(bytes) {
                Some(header) => {
                    return Some(Frame {
                        header,
                        four_tuple,
                        bytes,
                    });
                }
                None => self.tell_other(four_tuple, bytes),
            }
        }
    }

    /// Hands a knock that is expected to the control task. Anything else is counted.
    fn tell_other(&self, four_tuple: FourTuple, bytes: &[u8]) {
        let counter = match token_of(bytes).filter(|_| four_tuple.from.leg.is_none()) {
            Some(token) if self.expected.take(token) => {
                // Full: it is as if the knock were lost, and is asked for again.
                let _ = self.heard.try_send(RxEvent::Knock { four_tuple, token });
                return;
            }
            Some(_) => &self.unmatched.unknown,
            None => &self.unmatched.malformed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether we have that leg at that relay.
    fn is_ours(&mut self, leg: Remote) -> bool {
        let known = self.last == Some(leg) || self.legs.contains_key(&leg);
        if known {
            self.last = Some(leg);
        }
        known
    }

    /// Hands what a relay says about one of our legs to the control task. A relay that says more than it is asked is not
    /// listened to: its leg pays before the MAC is checked.
    fn tell_bind(&mut self, four_tuple: FourTuple, bytes: &[u8]) {
        let key = self.legs.get(&four_tuple.from);
        if key.is_some() && !self.told.take(four_tuple.from, Instant::now()) {
            self.unmatched.flood.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match key.and_then(|key| Message::decode(bytes, key)) {
            // Full: the leg asks again.
            Some(message) => {
                let _ = self.heard.try_send(RxEvent::Leg {
                    four_tuple,
                    message,
                });
            }
            None => {
                self.unmatched.unknown.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Opened frames of one session, joined to packets. What is not pulled is lost.
pub struct PeerPackets<'b, 'a> {
    incoming: &'b mut Incoming<'a>,
    ahead: &'b mut Option<Frame<'a>>,
    session: &'b mut Session,
    room: &'b mut ReassemblyBuffer,
    heard: &'b mpsc::Sender<RxEvent>,
}

/// The buffer in which frames are opened and joined to packets.
#[derive(Debug)]
struct ReassemblyBuffer {
    bytes: Vec<u8>,
    run: Option<Joined>,
    /// A frame that does not continue the run: looked at when the run has been given away.
    held: Option<(Trailer, Range<usize>)>,
    /// A bundle and where its body lies; empty where there is none.
    bundle: (Bundle, Range<usize>),
}

impl Default for ReassemblyBuffer {
    fn default() -> Self {
        ReassemblyBuffer {
            bytes: vec![0; BUFFER_BYTES],
            run: None,
            held: None,
            bundle: (Bundle::default(), 0..0),
        }
    }
}

/// Consecutive segments of one super-packet; payload from [`BASE`] on, headers in front of it.
#[derive(Debug, Clone, Copy)]
struct Joined {
    first: Segment,
    id: u16,
    count: usize,
    end: usize,
}

impl PeerPackets<'_, '_> {
    /// The peer and subnet whose packets they are.
    pub fn key(&self) -> Key {
        self.session.link.key
    }

    /// The next packet, and what its sender claims about it; none at the end of the read, or where another session's turn
    /// comes.
    #[expect(
        clippy::should_implement_trait,
        reason = "each packet lies in the one buffer that the next one overwrites"
    )]
    pub fn next(&mut self) -> Option<(Offload, &mut [u8])> {
        let (offload, range) = self.advance()?;
        let bytes = self.room.bytes.get_mut(range)?;
        self.session
            .link
            .datagrams
            .received(u64::try_from(bytes.len()).unwrap_or(0));
        Some((offload, bytes))
    }

    /// The next whole packet in the room.
    fn advance(&mut self) -> Option<(Offload, Range<usize>)> {
        loop {
            match self.room.next_bundled() {
                Some(Ok((partial, range))) => return Some((plain(partial), range)),
                Some(Err(reason)) => self.session.link.counts.add(reason, 1),
                None => {}
            }
            let (trailer, body) = match self.room.held.take() {
                Some(held) => held,
                None => match self.open() {
                    Some(opened) => opened,
                    // Nothing more of this session in what was read: the run does not wait for it.
                    None => return self.end_run(),
                },
            };
            match trailer {
                Trailer::Control => self.tell(body),
                Trailer::Filler => {
                    let body = self.room.bytes.get(body).unwrap_or_default();
                    self.session.link.fill.count(body);
                }
                Trailer::Segment { segment, id } if self.room.continues(&segment, id, &body) => {
                    if self.room.extend(&segment, &body)
                        && let Some(packet) = self.end_run()
                    {
                        return Some(packet);
                    }
                }
                other if self.room.run.is_some() => {
                    self.room.held = Some((other, body));
                    if let Some(packet) = self.end_run() {
                        return Some(packet);
                    }
                }
                Trailer::Segment { segment, id } => {
                    if !self.room.begin(segment, id, body) {
                        self.session.link.counts.add(DropReason::Malformed, 1);
                    }
                }
                Trailer::Packet { partial } => return Some((plain(partial), body)),
                Trailer::Bundle => self.room.bundle = (Bundle::default(), body),
            }
        }
    }

    /// Opens the next good frame of this session behind the run; its trailer and where its body lies.
    fn open(&mut self) -> Option<(Trailer, Range<usize>)> {
        loop {
            let frame = self.ahead.take().or_else(|| self.incoming.next_frame())?;
            if frame.header.receiver != self.session.index {
                *self.ahead = Some(frame);
                return None;
            }
            if let Some(opened) = self.open_one(&frame) {
                return Some(opened);
            }
        }
    }

    fn open_one(&mut self, frame: &Frame<'_>) -> Option<(Trailer, Range<usize>)> {
        let counts = &self.session.link.counts;
        let Frame {
            header,
            four_tuple,
            bytes,
        } = *frame;
        let (clear, sealed) = bytes.split_first_chunk::<HEADER>()?;
        if !self.session.window.check(header.counter) {
            counts.add(DropReason::Replayed, 1);
            return None;
        }
        let start = self.room.run.map_or(BASE, |run| run.end);
        let out = self.room.bytes.get_mut(start..).unwrap_or_default();
        let Some(length) = self.session.opener.open(clear, sealed, out) else {
            counts.add(DropReason::BadFrame, 1);
            return None;
        };
        let newest = self
            .session
            .window
            .newest()
            .is_none_or(|newest| header.counter > newest);
        if !self.session.window.commit(header.counter) {
            counts.add(DropReason::Replayed, 1);
            return None;
        }
        self.session.came = Some(four_tuple);
        if newest && self.session.return_path != Some(four_tuple) {
            let (key, index) = (self.session.link.key, self.session.index);
            let heard = match self.session.return_path.replace(four_tuple) {
                None => RxEvent::First {
                    key,
                    index,
                    four_tuple,
                },
                Some(_) => RxEvent::Moved { key, four_tuple },
            };
            // Full: the control task is behind; its own probes find the path.
            let _ = self.heard.try_send(heard);
        }
        let end = start.saturating_add(length.checked_sub(TRAILER)?);
        let trailer = self
            .room
            .bytes
            .get(end..)
            .and_then(|rest| rest.first_chunk::<TRAILER>())
            .copied();
        match trailer.and_then(Trailer::decode) {
            Some(trailer) => {
                if trailer != Trailer::Control {
                    self.session.traffic = self.session.traffic.saturating_add(1);
                }
                Some((trailer, start..end))
            }
            None => {
                self.session.link.counts.add(DropReason::Malformed, 1);
                None
            }
        }
    }

    /// Gives the run away as a packet; none where there is none, or it is no packet.
    fn end_run(&mut self) -> Option<(Offload, Range<usize>)> {
        let run = self.room.run.take()?;
        let range = BASE.saturating_sub(run.first.headers)..run.end;
        match reassemble(
            self.room.bytes.get_mut(range.clone())?,
            &run.first,
            run.count,
        ) {
            Ok(offload) => Some((offload, range)),
            Err(reason) => {
                self.session.link.counts.add(reason, 1);
                None
            }
        }
    }

    /// Hands a control message to the control task.
    fn tell(&self, body: Range<usize>) {
        let (key, index) = (self.session.link.key, self.session.index);
        // What is answered goes back the way it came, not the way of newer frames: a path is proven by its own probes.
        if let (Some(four_tuple), Some(bytes)) = (self.session.came, self.room.bytes.get(body)) {
            let _ = self.heard.try_send(RxEvent::Control {
                key,
                index,
                four_tuple,
                arrived: self.session.traffic,
                body: bytes.to_vec(),
            });
        }
    }
}

impl ReassemblyBuffer {
    /// Forgets what was not taken.
    fn clear(&mut self) {
        (self.run, self.held, self.bundle) = (None, None, (Bundle::default(), 0..0));
    }

    /// The next packet of the bundle: whether its checksum is still to be computed, and where it lies.
    fn next_bundled(&mut self) -> Option<Result<(bool, Range<usize>), DropReason>> {
        let (bundle, body) = &mut self.bundle;
        let start = body.start;
        let next = bundle.next(self.bytes.get(body.clone()).unwrap_or_default())?;
        Some(next.map(|(partial, at)| {
            (
                partial,
                start.saturating_add(at.start)..start.saturating_add(at.end),
            )
        }))
    }

    /// Whether this segment is the run's next one.
    fn continues(&self, segment: &Segment, id: u16, body: &Range<usize>) -> bool {
        self.run.is_some_and(|run| {
            let payload = body.len().saturating_sub(segment.headers);
            run.id == id
                && run.first.is_followed_by(run.count, segment)
                && segment.holds(payload)
                && body.start == run.end
                && run
                    .end
                    .saturating_add(payload)
                    .saturating_add(segment.headers)
                    <= BASE.saturating_add(LARGEST)
        })
    }

    /// Adds the segment that [continues](Self::continues) the run; whether the super-packet is whole now.
    fn extend(&mut self, segment: &Segment, body: &Range<usize>) -> bool {
        let payload = body.len().saturating_sub(segment.headers);
        self.run.as_mut().is_some_and(|run| {
            run.count = run.count.saturating_add(1);
            run.end = run.end.saturating_add(payload);
            segment.index == segment.last
        })
    }

    /// Begins a run: the headers go in front of the payload. False where the body is too short for them.
    fn begin(&mut self, first: Segment, id: u16, body: Range<usize>) -> bool {
        let Some(payload) = body
            .len()
            .checked_sub(first.headers)
            .filter(|payload| first.holds(*payload))
        else {
            return false;
        };
        let headers = body.start.saturating_add(payload)..body.end;
        if body.start != BASE {
            // It was opened behind another run; its payload moves left, never onto its own headers.
            self.bytes.copy_within(body.start..headers.start, BASE);
        }
        self.bytes
            .copy_within(headers, BASE.saturating_sub(first.headers));
        let end = BASE.saturating_add(payload);
        self.run = Some(Joined {
            first,
            id,
            count: 1,
            end,
        });
        true
    }
}

/// The offload of a packet by itself, whose checksum is still to be computed where `partial`.
fn plain(partial: bool) -> Offload {
    let kind = if partial { Kind::Partial } else { Kind::None };
    Offload {
        kind,
        gso_size: 0,
        header_len: 0,
    }
}
