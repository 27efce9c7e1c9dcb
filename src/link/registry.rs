//! All links of the daemon: made, given streams, cut; and what the packet threads and the control task share.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::{AsyncRead, AsyncWrite};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::expected::Expected;
use super::queue::{Chunk, Pool};
use super::receive::{FrameReceiver, SessionUpdates, Unmatched};
use super::relay::{Forwarder, Legs, Relay};
use super::send::Datagrams;
use super::stream::StreamReceiver;
use super::writing;
use super::{HEARD, Key, Link, LinkStatus, RxEvent, State, Via, Writer, lock};
use crate::model::id::{PeerId, SubnetId};
use crate::model::view::View;
use crate::packet::{DropCounts, DropReason};
use crate::udp::{Callers, Port};
use crate::wire::frame;

/// Peers reported wanted and not yet heard; further ones are reported again with their next packet.
const WANTED_CHANNEL: usize = 256;
/// How long packets wait for the first stream before their senders are told that the peer is unreachable.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(3);
/// The most probes that are under way in all.
const MAX_PROBES: usize = 256;

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
pub struct Links(pub(super) Arc<Registry>);

#[derive(Debug)]
pub(super) struct Registry {
    runtime: Handle,
    links: Mutex<HashMap<Key, Arc<Link>>>,
    counts: Mutex<HashMap<SubnetId, Arc<DropCounts>>>,
    pub(super) probes: Mutex<HashMap<u64, oneshot::Sender<Instant>>>,
    next_probe: AtomicU64,
    next_stream: AtomicU64,
    pub(super) pool: Pool,
    wanted: mpsc::Sender<Key>,
    pub(super) port: Option<Port>,
    pub(super) updates: SessionUpdates,
    unmatched: Arc<Unmatched>,
    pub(super) heard: mpsc::Sender<RxEvent>,
    relay: Relay,
    pub(super) legs: Legs,
    pub(super) expected: Arc<Expected>,
    /// The other end, until the control task takes it.
    pub(super) hears: Mutex<Option<mpsc::Receiver<RxEvent>>>,
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
            next_stream: AtomicU64::new(1),
            pool: Pool::default(),
            wanted,
            port,
            updates: SessionUpdates::default(),
            unmatched: Arc::default(),
            heard,
            relay: Relay::new(),
            legs: Legs::default(),
            expected: Arc::default(),
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
        let forwarder = Forwarder::new(self.0.relay.clone(), port);
        Ok(Some(FrameReceiver::new(
            receiver,
            updates,
            heard,
            unmatched,
            (forwarder, self.0.legs.clone()),
            Arc::clone(&self.0.expected),
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

    /// The port, where it is for dials of this node alone: nobody is told to connect to it.
    pub fn outbound_port(&self) -> Option<&Port> {
        self.port()
            .filter(|port| port.callers() == Callers::Expected)
    }

    /// Whether others can begin to talk to the port, as the clients of a relay do.
    pub fn takes_clients(&self) -> bool {
        self.port().is_some() && self.outbound_port().is_none()
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

    /// What this node forwards for others.
    pub fn relay(&self) -> &Relay {
        &self.0.relay
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
        let number = self.0.next_stream.fetch_add(1, Ordering::Relaxed);
        if let Some(former) = state.writer.replace(Writer {
            connection,
            via,
            number,
            stop: stop.clone(),
        }) {
            former.stop.cancel();
        }
        let now = Instant::now();
        let expired = state.queue.expire(now);
        state.queue.renew(now);
        (state.seen, state.wanting) = (None, None);
        state.changed = Some(SystemTime::now());
        drop(state);
        link.count(DropReason::Unreachable, expired);
        self.0
            .runtime
            .spawn(writing::write(self.clone(), link, (number, stop), stream));
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

    /// The packets that both carriers moved to and from each peer since its links were made, in all subnets.
    pub fn packets(&self) -> BTreeMap<PeerId, u64> {
        let links: Vec<Arc<Link>> = lock(&self.0.links).values().cloned().collect();
        let mut packets = BTreeMap::new();
        for link in links {
            let carried = link.streams.read() + link.datagrams.read();
            let moved = carried.tx_packets.saturating_add(carried.rx_packets);
            let sum: &mut u64 = packets.entry(link.key.peer).or_default();
            *sum = sum.saturating_add(moved);
        }
        packets
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
    pub(super) fn send_frame(&self, link: &Link, frame: &[u8]) {
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

    /// Ends the probe with this token: its pong came.
    pub(super) fn answered(&self, token: u64) {
        if let Some(answer) = lock(&self.0.probes).remove(&token) {
            let _ = answer.send(Instant::now());
        }
    }

    /// A writer's stream failed: the link is without one, unless another took over already.
    pub(super) fn writer_failed(&self, link: &Link, stop: &CancellationToken) {
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
