//! Packets to peers: what carries them, what waits in front of it, how it fares.
//!
//! Two carriers. Sealed datagrams over the UDP port ([`crate::udp`]), where a path answers ([`Route`]); else the stream of the newest
//! connection, which always works. Packets are taken in from every stream of a member and from the port, always. Owns the
//! port, the streams it is given, one bounded queue per subnet and peer, and the drop counters of every subnet. Never dials,
//! never opens a stream, never decides which packet may pass.

pub mod direct;
mod expected;
pub mod measure;
mod pace;
mod queue;
mod receive;
mod registry;
pub mod relay;
pub mod sealing;
mod send;
mod sojourn;
mod status;
mod stream;
mod writing;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use measure::Fill;
use queue::{Bound, Queue};
pub use queue::{Chunk, Pool};
pub use receive::{Frame, FrameBatch, FrameReceiver, PeerPackets, Unmatched};
pub use registry::{Links, ProbeError, Reach};
pub use send::{Datagrams, Framing};
use status::Tally;
pub use status::{Carried, LinkStatus, Via};
pub use stream::{StreamPackets, StreamReceiver};

use crate::crypto::frame::Sealer;
use crate::model::id::{PeerId, SubnetId};
use crate::packet::{DropCounts, DropReason};
use crate::peer::Remote;
use crate::wire::datagram::OVERHEAD;
use crate::wire::frame::Receipt;
use crate::wire::relay::Message;

/// The time between two reports that a peer is wanted.
const WANTED_EVERY: Duration = Duration::from_secs(1);
/// After this long without a packet, the next one waits for a stream like the first.
const FORGET_AFTER: Duration = Duration::from_secs(15);
/// Streams of one peer in one subnet that are read at once: one per live connection, with room for those just replaced.
const MAX_READERS: usize = 8;
/// News from the packet threads that wait for the control task; what is beyond is told again by the next frame or probe.
const HEARD: usize = 1024;

/// Names a link: one peer in one subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The subnet whose packets the link carries.
    pub subnet: SubnetId,
    /// The peer at the other end.
    pub peer: PeerId,
}

/// The datagram path to a peer, while there is one: what to seal with, where to, how much fits.
#[derive(Debug)]
pub struct Route {
    /// The key of this direction and its counter.
    pub sealer: Arc<Sealer>,
    /// Where the peer answers, itself or behind our leg at a relay.
    pub to: Remote,
    /// Our address that it answers; none where the kernel chooses.
    pub local: Option<IpAddr>,
    /// Bytes of the largest frame the path carries; in front of one to a relay stand eight more.
    pub payload: usize,
    /// Whether that is what the path carries at most, rather than what was tried so far: until then larger packets go on the
    /// stream, and their senders are told of nothing.
    pub settled: bool,
}

impl Route {
    /// Bytes of the largest inner packet that fits one frame.
    pub fn inner(&self) -> usize {
        self.payload.saturating_sub(OVERHEAD)
    }
}

/// The addresses that a frame came from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FourTuple {
    /// The peer's address and port, as the kernel saw them, or our leg that the frame came by.
    pub from: Remote,
    /// Our address that the frame came to; none where the socket is bound to one.
    pub local: Option<IpAddr>,
}

/// What the packet threads tell the control task. Loss is harmless: frames and probes go on.
#[derive(Debug)]
pub(crate) enum RxEvent {
    /// A control message came in an opened frame.
    Control {
        key: Key,
        /// The receiver index of ours that the frame came under.
        index: u32,
        /// The addresses that the frame came from and to.
        four_tuple: FourTuple,
        /// Frames of packets that were opened under that index so far.
        arrived: u64,
        body: Vec<u8>,
    },
    /// The first frame under a receiver index was opened.
    First {
        key: Key,
        index: u32,
        /// The addresses that the frame came from and to.
        four_tuple: FourTuple,
    },
    /// The newest frame came from another address than the one before, or to another one.
    Moved {
        key: Key,
        /// The addresses that the frame came from and to.
        four_tuple: FourTuple,
    },
    /// A relay said something about a leg of ours; its MAC is good.
    Leg {
        /// The relay's address and the leg, and our address that it came to.
        four_tuple: FourTuple,
        message: Message,
    },
    /// A knock came whose token was expected.
    Knock {
        /// Where it came from, and the helper socket that it came by.
        four_tuple: FourTuple,
        token: u64,
    },
    /// The kernel refused frames as too big for the way out.
    TooBig {
        /// The peer and the subnet that they would have gone to.
        key: Key,
    },
}

/// One peer in one subnet: the datagram path, the queue, the stream that drains it, the streams that are read.
#[derive(Debug)]
pub struct Link {
    key: Key,
    route: ArcSwapOption<Route>,
    state: Mutex<State>,
    /// Woken when a chunk was queued.
    queued: Notify,
    /// Woken by receipts that came or are to be sent: a writer that is full waits for these alone.
    told: Notify,
    counts: Arc<DropCounts>,
    streams: Tally,
    datagrams: Tally,
    queue_drops: AtomicU64,
    /// What is counted of the peer's measurement.
    fill: Fill,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    writer: Option<Writer>,
    /// How far the peer has read the stream that is written, and when it said so.
    seen: Option<(u64, Instant)>,
    readers: Vec<Reader>,
    /// What the peer is to be told of the stream that is read here.
    receipt: Option<Receipt>,
    changed: Option<SystemTime>,
    /// Since when packets want a stream that is not there.
    wanting: Option<Instant>,
    reported: Option<Instant>,
    /// The peer is no member any more: nothing is queued, nothing is carried.
    closed: bool,
}

#[derive(Debug)]
struct Writer {
    connection: u64,
    via: Via,
    /// By which number receipts call the stream.
    number: u64,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Reader {
    connection: u64,
    stop: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Bound {
    /// Why a packet beyond this bound is lost.
    fn reason(self) -> DropReason {
        match self {
            Bound::Carried => DropReason::QueueFull,
            Bound::Waiting => DropReason::Unreachable,
        }
    }
}

impl State {
    fn bound(&self) -> Bound {
        if self.writer.is_some() {
            Bound::Carried
        } else {
            Bound::Waiting
        }
    }

    /// Notes that packets want a stream; whether that is to be reported now.
    fn want(&mut self, now: Instant) -> bool {
        if self.writer.is_some() || self.closed {
            return false;
        }
        // A long silence ends the old wish: the next packet may wait again.
        let silent = self
            .reported
            .is_none_or(|last| now.saturating_duration_since(last) > FORGET_AFTER);
        if silent || self.wanting.is_none() {
            self.wanting = Some(now);
        }
        let due = self
            .reported
            .is_none_or(|last| now.saturating_duration_since(last) >= WANTED_EVERY);
        if due {
            self.reported = Some(now);
        }
        due
    }
}

impl Link {
    /// The datagram path to the peer, where there is one.
    pub fn route(&self) -> Option<Arc<Route>> {
        self.route.load_full()
    }

    /// Gives the same path to a packet thread, which holds it for one packet: no count of
    /// references changes.
    pub fn load_route(&self) -> Guard<Option<Arc<Route>>> {
        self.route.load()
    }

    /// Bytes of the largest inner packet the datagram path carries, once that is known.
    pub fn inner_mtu(&self) -> Option<usize> {
        self.route
            .load()
            .as_ref()
            .filter(|route| route.settled)
            .map(|route| route.inner())
    }

    /// Sends packets on a datagram path from now on, or on the stream again.
    fn set_route(&self, route: Option<Arc<Route>>) {
        self.route.store(route);
    }

    fn new(key: Key, counts: Arc<DropCounts>, pool: Pool) -> Link {
        Link {
            key,
            route: ArcSwapOption::empty(),
            state: Mutex::new(State {
                queue: Queue::new(pool),
                writer: None,
                seen: None,
                readers: Vec::new(),
                receipt: None,
                changed: None,
                wanting: None,
                reported: None,
                closed: false,
            }),
            queued: Notify::new(),
            told: Notify::new(),
            counts,
            streams: Tally::default(),
            datagrams: Tally::default(),
            queue_drops: AtomicU64::new(0),
            fill: Fill::default(),
        }
    }

    /// Counts packets lost in front of the stream.
    fn count(&self, reason: DropReason, packets: u64) {
        if packets > 0 {
            self.counts.add(reason, packets);
            self.queue_drops.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// The peer says how far it has read a stream of ours; what it says of a former one is ignored.
    fn hear(&self, receipt: Receipt) {
        let mut state = lock(&self.state);
        let is_meant = |writer: &Writer| writer.number == receipt.stream;
        if state.writer.as_ref().is_some_and(is_meant) {
            state.seen = Some((receipt.bytes, Instant::now()));
            drop(state);
            self.told.notify_one();
        }
    }

    /// Has the peer be told how far its stream was read here; of several streams it is told of the newest.
    fn tell(&self, receipt: Receipt) {
        let mut state = lock(&self.state);
        let is_older = |waiting: &Receipt| receipt.stream < waiting.stream;
        if !state.closed && !state.receipt.as_ref().is_some_and(is_older) {
            state.receipt = Some(receipt);
            drop(state);
            self.told.notify_one();
        }
    }

    /// Enters a stream to be read; a former one of the same connection, and the oldest beyond the limit, end. None where the
    /// link is cut.
    fn enter_reader(&self, connection: u64) -> Option<CancellationToken> {
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        let stop = CancellationToken::new();
        state.readers.push(Reader {
            connection,
            stop: stop.clone(),
        });
        let newest = state.readers.len().saturating_sub(1);
        let former = state
            .readers
            .iter()
            .take(newest)
            .position(|reader| reader.connection == connection);
        let beyond = (state.readers.len() > MAX_READERS).then_some(0);
        if let Some(index) = former.or(beyond) {
            state.readers.remove(index).stop.cancel();
        }
        Some(stop)
    }

    /// A stream ended by itself.
    fn leave_reader(&self, stop: &CancellationToken) {
        // Cancelling marks the entry as ours: tokens cannot be compared.
        stop.cancel();
        lock(&self.state)
            .readers
            .retain(|reader| !reader.stop.is_cancelled());
    }
}

#[cfg(test)]
pub(crate) mod pair;
#[cfg(test)]
mod tests;
