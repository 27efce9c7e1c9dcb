//! Packets to peers: what carries them, what waits in front of it, how it fares.
//!
//! Two carriers. Sealed datagrams over the UDP port ([`crate::udp`]), where a path answers ([`Route`]); else the stream of the newest
//! connection, which always works. Packets are taken in from every stream of a member and from the port, always. Owns the
//! port, the streams it is given, one bounded queue per subnet and peer, and the drop counters of every subnet. Never dials,
//! never opens a stream, never decides which packet may pass.

pub mod direct;
mod queue;
mod receive;
pub mod sealing;
mod send;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwapOption, Guard};
use futures::{AsyncRead, AsyncWrite};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use queue::{Bound, Queue};
pub use queue::{Chunk, Pool};
use receive::SessionUpdates;
pub use receive::{Frame, FrameBatch, FrameReceiver, PeerPackets, Unmatched};
pub use send::{Datagrams, Framing};
pub use stream::{StreamPackets, StreamReceiver};

use crate::crypto::frame::Sealer;
use crate::model::id::{PeerId, SubnetId};
use crate::model::view::View;
use crate::packet::{DropCounts, DropReason};
use crate::udp::Port;
use crate::wire::datagram::OVERHEAD;
use crate::wire::frame;

/// Between two reports that a peer is wanted.
const WANTED_EVERY: Duration = Duration::from_secs(1);
/// Peers reported wanted and not yet heard; further ones are reported again with their next packet.
const WANTED_CHANNEL: usize = 256;
/// How long packets wait for the first stream before their senders are told that the peer is unreachable.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(3);
/// After this long without a packet, the next one waits for a stream like the first.
const FORGET_AFTER: Duration = Duration::from_secs(15);
/// Streams of one peer in one subnet that are read at once: one per live connection, with room for those just replaced.
const MAX_READERS: usize = 8;
/// Probes under way in all.
const MAX_PROBES: usize = 256;
/// News from the packet threads that wait for the control task; what is beyond is told again by the next frame or probe.
const HEARD: usize = 1024;

/// One peer in one subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The subnet.
    pub subnet: SubnetId,
    /// The peer.
    pub peer: PeerId,
}

/// The connection below a stream, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// `tcp`, `quic` or `memory`.
    pub transport: &'static str,
    /// The far address.
    pub remote: String,
}

/// What a carrier moved since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Inner bytes handed to it.
    pub tx_bytes: u64,
    /// Inner bytes that came from it, refused ones included.
    pub rx_bytes: u64,
    /// Packets handed to it; a super-packet is one.
    pub tx_packets: u64,
    /// Packets that came from it, refused ones included.
    pub rx_packets: u64,
}

impl std::ops::Add for Carried {
    type Output = Carried;

    fn add(self, other: Carried) -> Carried {
        Carried {
            tx_bytes: self.tx_bytes.saturating_add(other.tx_bytes),
            rx_bytes: self.rx_bytes.saturating_add(other.rx_bytes),
            tx_packets: self.tx_packets.saturating_add(other.tx_packets),
            rx_packets: self.rx_packets.saturating_add(other.rx_packets),
        }
    }
}

/// Counts what a carrier moves.
#[derive(Debug, Default)]
struct Tally {
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    rx_packets: AtomicU64,
}

impl Tally {
    fn sent(&self, packets: u64, bytes: u64) {
        self.tx_packets.fetch_add(packets, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn received(&self, bytes: u64) {
        self.rx_packets.fetch_add(1, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Carried {
        Carried {
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_packets: self.tx_packets.load(Ordering::Relaxed),
            rx_packets: self.rx_packets.load(Ordering::Relaxed),
        }
    }
}

/// How a link fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// The stream that carries packets out; none: offline.
    pub via: Option<Via>,
    /// Since when it is so.
    pub since: Option<SystemTime>,
    /// What streams carried.
    pub streams: Carried,
    /// What sealed datagrams carried.
    pub datagrams: Carried,
    /// Packets dropped in front of the stream: the queue was full, or there was none.
    pub queue_drops: u64,
}

impl LinkStatus {
    /// What both carriers moved.
    pub fn carried(&self) -> Carried {
        self.streams + self.datagrams
    }
}

/// The datagram path to a peer, while there is one: what to seal with, where to, how much fits.
#[derive(Debug)]
pub struct Route {
    /// The key of this direction and its counter.
    pub sealer: Arc<Sealer>,
    /// Where the peer answers.
    pub to: SocketAddr,
    /// Our address that it answers; none: the kernel chooses.
    pub local: Option<IpAddr>,
    /// Bytes of the largest UDP payload the path carries.
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

/// The two ends of the way a frame came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FourTuple {
    /// The peer's address.
    pub from: SocketAddr,
    /// Ours; none where the socket is bound to one.
    pub local: Option<IpAddr>,
}

/// What the packet threads tell the control task. Loss is harmless: frames and probes go on.
#[derive(Debug)]
pub(crate) enum RxEvent {
    /// A control message came in an opened frame.
    Control {
        /// From whom.
        key: Key,
        /// Under which of our receiver indices.
        index: u32,
        /// The two ends of the way it came.
        ends: FourTuple,
        /// The message.
        body: Vec<u8>,
    },
    /// The first frame under a receiver index was opened.
    First {
        /// From whom.
        key: Key,
        /// Which index.
        index: u32,
        /// The two ends of the way it came.
        ends: FourTuple,
    },
    /// The newest frame came from another address than the one before, or to another one.
    Moved {
        /// From whom.
        key: Key,
        /// The two ends of the way it came.
        ends: FourTuple,
    },
    /// The kernel refused frames as too big for the way out.
    TooBig {
        /// To whom they would have gone.
        key: Key,
    },
}

/// Why there is no round trip time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No stream carries packets to the peer.
    #[error("no stream to the peer")]
    Offline,
    /// The link went, or too many probes are under way.
    #[error("the probe was dropped")]
    Dropped,
}

/// What becomes of a packet to a peer, asked once per run of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A stream carries it, or it may wait for one.
    Queue,
    /// There has been no stream for some seconds: the sender is told.
    Unreachable,
}

/// All links of the daemon. Clones are the same registry.
#[derive(Debug, Clone)]
pub struct Links(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    runtime: Handle,
    links: Mutex<HashMap<Key, Arc<Link>>>,
    counts: Mutex<HashMap<SubnetId, Arc<DropCounts>>>,
    probes: Mutex<HashMap<u64, oneshot::Sender<Instant>>>,
    next_probe: AtomicU64,
    pool: Pool,
    wanted: mpsc::Sender<Key>,
    port: Option<Port>,
    updates: SessionUpdates,
    unmatched: Arc<Unmatched>,
    heard: mpsc::Sender<RxEvent>,
    /// The other end, until the control task takes it.
    hears: Mutex<Option<mpsc::Receiver<RxEvent>>>,
}

/// One peer in one subnet: the datagram path, the queue, the stream that drains it, the streams that are read.
#[derive(Debug)]
pub struct Link {
    key: Key,
    route: ArcSwapOption<Route>,
    state: Mutex<State>,
    /// Rung when a chunk was queued.
    queued: Notify,
    counts: Arc<DropCounts>,
    streams: Tally,
    datagrams: Tally,
    queue_drops: AtomicU64,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    writer: Option<Writer>,
    readers: Vec<Reader>,
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

impl Links {
    /// An empty registry whose streams run on `runtime`, and the peers that have packets and no stream: each at most once a
    /// second, the daemon should connect them and [`carry_out`](Self::carry_out) a stream. Without a port there are streams
    /// only.
    pub fn new(runtime: Handle, port: Option<Port>) -> (Links, mpsc::Receiver<Key>) {
        let (wanted, wants) = mpsc::channel(WANTED_CHANNEL);
        let (heard, hears) = mpsc::channel(HEARD);
        let registry = Registry {
            runtime,
            links: Mutex::default(),
            counts: Mutex::default(),
            probes: Mutex::default(),
            next_probe: AtomicU64::new(1),
            pool: Pool::default(),
            wanted,
            port,
            updates: SessionUpdates::default(),
            unmatched: Arc::default(),
            heard,
            hears: Mutex::new(Some(hears)),
        };
        (Links(Arc::new(registry)), wants)
    }

    /// What reads the port, for the receiving thread; none without a port.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] from the second time on.
    pub fn frames(&self) -> io::Result<Option<FrameReceiver>> {
        let Some(port) = &self.0.port else {
            return Ok(None);
        };
        let receiver = port.receiver().ok_or(io::ErrorKind::AlreadyExists)?;
        let (updates, heard, unmatched) = (
            self.0.updates.clone(),
            self.0.heard.clone(),
            Arc::clone(&self.0.unmatched),
        );
        Ok(Some(FrameReceiver::new(
            receiver, updates, heard, unmatched,
        )))
    }

    /// Where the tasks of streams run.
    pub fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Ends the wait of what reads the port.
    pub fn close_port(&self) {
        if let Some(port) = &self.0.port {
            port.close();
        }
    }

    /// The port, where there is one.
    pub fn port(&self) -> Option<&Port> {
        self.0.port.as_ref()
    }

    /// The sending half of the datagram carrier for one packet thread of a subnet; none without a port.
    pub fn datagrams(&self, subnet: SubnetId) -> Option<Datagrams> {
        let port = self.0.port.as_ref()?;
        Some(Datagrams::new(
            port,
            self.0.heard.clone(),
            self.counts(subnet),
        ))
    }

    /// Frames that belonged to no session.
    pub fn unmatched(&self) -> &Unmatched {
        &self.0.unmatched
    }

    /// The drop counters of a subnet, made on first use.
    pub fn counts(&self, subnet: SubnetId) -> Arc<DropCounts> {
        Arc::clone(lock(&self.0.counts).entry(subnet).or_default())
    }

    /// Buffers for packets on their way out.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// The link to a peer, made on first use. Packet loops keep it for as long as their View lasts.
    pub fn link(&self, key: Key) -> Arc<Link> {
        let counts = self.counts(key.subnet);
        Arc::clone(
            lock(&self.0.links)
                .entry(key)
                .or_insert_with(|| Arc::new(Link::new(key, counts, self.0.pool.clone()))),
        )
    }

    /// Queues a run of packets for a peer. Never waits: what does not fit pushes out the oldest, counted `queue-full`, or
    /// `unreachable` where no stream carries packets.
    pub fn send(&self, link: &Link, chunk: Chunk) {
        let now = Instant::now();
        let mut state = lock(&link.state);
        if state.closed {
            drop(state);
            link.count(DropReason::NotMember, chunk.packets());
            self.0.pool.put(chunk);
            return;
        }
        let bound = state.bound();
        let dropped = state.queue.push(chunk, bound, now);
        let report = state.want(now);
        drop(state);
        link.queued.notify_one();
        link.count(bound.reason(), dropped);
        if report {
            // Full: the daemon is behind; the next packet asks again.
            let _ = self.0.wanted.try_send(link.key);
        }
    }

    /// Whether packets to the peer may be queued now; asks for a stream where there is none.
    pub fn reach(&self, link: &Link) -> Reach {
        let now = Instant::now();
        let mut state = lock(&link.state);
        let report = state.want(now);
        let gone = state
            .wanting
            .is_some_and(|since| now.saturating_duration_since(since) >= UNREACHABLE_AFTER);
        drop(state);
        if report {
            let _ = self.0.wanted.try_send(link.key);
        }
        if gone {
            Reach::Unreachable
        } else {
            Reach::Queue
        }
    }

    /// Gives a peer a stream to carry packets out on. That of the newest connection (the largest number) carries them from
    /// now on; the former one is finished and closed, and what it did not take goes to the new one. A stream of an older
    /// connection than the one in use is closed unused.
    pub fn carry_out(
        &self,
        key: Key,
        connection: u64,
        via: Via,
        stream: impl AsyncWrite + Send + Unpin + 'static,
    ) {
        let link = self.link(key);
        let stop = CancellationToken::new();
        let mut state = lock(&link.state);
        if state.closed
            || state
                .writer
                .as_ref()
                .is_some_and(|writer| writer.connection > connection)
        {
            return;
        }
        tracing::debug!(subnet = %key.subnet, peer = %key.peer, connection, transport = via.transport, "stream carries packets");
        if let Some(former) = state.writer.replace(Writer {
            connection,
            via,
            stop: stop.clone(),
        }) {
            former.stop.cancel();
        }
        let expired = state.queue.expire(Instant::now());
        state.wanting = None;
        state.changed = Some(SystemTime::now());
        drop(state);
        link.count(DropReason::Unreachable, expired);
        self.0
            .runtime
            .spawn(stream::write(self.clone(), link, stop, stream));
    }

    /// What reads the packets of a stream that the peer of `key` opened on `connection` for its subnet; none where the link is
    /// cut. Of one connection the newest stream per subnet is read.
    pub fn receive_stream<S: AsyncRead + Unpin>(
        &self,
        key: Key,
        connection: u64,
        stream: S,
    ) -> Option<StreamReceiver<S>> {
        StreamReceiver::new(self, key, connection, stream)
    }

    /// A connection ended: its streams, in every subnet, are closed. What they did not take waits for the next one.
    pub fn drop_connection(&self, peer: PeerId, connection: u64) {
        let of_peer: Vec<Arc<Link>> = lock(&self.0.links)
            .values()
            .filter(|l| l.key.peer == peer)
            .cloned()
            .collect();
        for link in of_peer {
            let mut state = lock(&link.state);
            state.readers.retain(|reader| {
                let stays = reader.connection != connection;
                if !stays {
                    reader.stop.cancel();
                }
                stays
            });
            if state
                .writer
                .as_ref()
                .is_some_and(|writer| writer.connection == connection)
            {
                self.take_writer(&link, state);
            }
        }
    }

    /// Cuts every link to a peer that is no member in `view`: streams closed, queues dropped.
    pub fn retain(&self, view: &View) {
        let is_member = |key: &Key| {
            view.subnets
                .get(&key.subnet)
                .is_some_and(|s| s.members.contains(&key.peer))
        };
        let cut: Vec<Key> = lock(&self.0.links)
            .keys()
            .filter(|key| !is_member(key))
            .copied()
            .collect();
        for key in cut {
            self.cut(key);
        }
        // A TUN that is still attached goes on counting into the same numbers.
        lock(&self.0.counts)
            .retain(|subnet, c| view.subnets.contains_key(subnet) || Arc::strong_count(c) > 1);
    }

    /// Ends one link: streams closed, queue dropped.
    pub fn cut(&self, key: Key) {
        let Some(link) = lock(&self.0.links).remove(&key) else {
            return;
        };
        link.set_route(None);
        let mut state = lock(&link.state);
        state.closed = true;
        if let Some(writer) = state.writer.take() {
            writer.stop.cancel();
        }
        state
            .readers
            .drain(..)
            .for_each(|reader| reader.stop.cancel());
        let dropped = state.queue.clear();
        drop(state);
        link.count(DropReason::NotMember, dropped);
        tracing::debug!(subnet = %key.subnet, peer = %key.peer, "link cut");
    }

    /// How the link to a peer fares; the default where there is none.
    pub fn status(&self, key: Key) -> LinkStatus {
        let Some(link) = lock(&self.0.links).get(&key).cloned() else {
            return LinkStatus::default();
        };
        let state = lock(&link.state);
        LinkStatus {
            via: state.writer.as_ref().map(|writer| writer.via.clone()),
            since: state.changed,
            streams: link.streams.read(),
            datagrams: link.datagrams.read(),
            queue_drops: link.queue_drops.load(Ordering::Relaxed),
        }
    }

    /// The connection whose stream carries packets out to a peer.
    pub fn connection(&self, key: Key) -> Option<u64> {
        let link = lock(&self.0.links).get(&key).cloned()?;
        let state = lock(&link.state);
        state.writer.as_ref().map(|writer| writer.connection)
    }

    /// Measures the round trip of the data path: a ping frame behind the packets that wait, answered by the peer on the
    /// stream its packets come on.
    ///
    /// # Errors
    /// [`ProbeError`]. The caller sets the time limit: a probe lost on the way never answers.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the probe.
    pub async fn probe(&self, key: Key) -> Result<Duration, ProbeError> {
        let link = lock(&self.0.links)
            .get(&key)
            .cloned()
            .ok_or(ProbeError::Offline)?;
        let token = self.0.next_probe.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        {
            let mut probes = lock(&self.0.probes);
            if probes.len() >= MAX_PROBES {
                return Err(ProbeError::Dropped);
            }
            probes.insert(token, answer);
        }
        let _forget = Forget { links: self, token };
        let sent = Instant::now();
        if lock(&link.state).writer.is_none() {
            return Err(ProbeError::Offline);
        }
        self.send_frame(&link, &frame::ping(token));
        answered
            .await
            .map(|at| at.saturating_duration_since(sent))
            .map_err(|_| ProbeError::Dropped)
    }

    /// Queues a frame that is no packet; like a packet it may wait for a stream: the peer's may be there before ours.
    fn send_frame(&self, link: &Link, frame: &[u8]) {
        let mut state = lock(&link.state);
        if state.closed {
            return;
        }
        let bound = state.bound();
        let dropped = state.queue.push_frame(frame, bound, Instant::now());
        drop(state);
        link.queued.notify_one();
        link.count(bound.reason(), dropped);
    }

    /// A pong came.
    fn answered(&self, token: u64) {
        if let Some(answer) = lock(&self.0.probes).remove(&token) {
            let _ = answer.send(Instant::now());
        }
    }

    /// A writer's stream failed: the link is without one, unless another took over already.
    fn writer_failed(&self, link: &Link, stop: &CancellationToken) {
        let state = lock(&link.state);
        if !stop.is_cancelled() {
            self.take_writer(link, state);
        }
    }

    /// Leaves the link without a stream, and asks for one where packets wait.
    fn take_writer(&self, link: &Link, mut state: MutexGuard<'_, State>) {
        if let Some(writer) = state.writer.take() {
            writer.stop.cancel();
        }
        state.changed = Some(SystemTime::now());
        let report = !state.queue.is_empty() && state.want(Instant::now());
        drop(state);
        if report {
            let _ = self.0.wanted.try_send(link.key);
        }
    }
}

/// Takes a probe out of the table when its future ends or is dropped.
struct Forget<'a> {
    links: &'a Links,
    token: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.links.0.probes).remove(&self.token);
    }
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

    /// The same for a packet thread, which holds it for one packet: no count of references changes.
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
                readers: Vec::new(),
                changed: None,
                wanting: None,
                reported: None,
                closed: false,
            }),
            queued: Notify::new(),
            counts,
            streams: Tally::default(),
            datagrams: Tally::default(),
            queue_drops: AtomicU64::new(0),
        }
    }

    /// Counts packets lost in front of the stream.
    fn count(&self, reason: DropReason, packets: u64) {
        if packets > 0 {
            self.counts.add(reason, packets);
            self.queue_drops.fetch_add(packets, Ordering::Relaxed);
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
