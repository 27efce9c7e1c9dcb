//! The bounded ring in front of a peer's stream, and the buffers that pass through it.
//!
//! A [`Chunk`] is a run of frames to one peer, filled by the TUN's reader and written to the stream as it is. What is too
//! much goes from the front, the oldest frame first and no more of them than must.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::packet::Offload;
use crate::packet::parse::MAX_PACKET;
use crate::wire::frame::{self, HEADER_LEN, MAX_FRAME, packet_header};

/// A chunk this full is handed on, in bytes: larger writes gain nothing measurable.
const CHUNK_FULL: usize = 56 * 1024;
/// Bytes of a chunk: the largest frame still fits in one that is not yet full.
const CAPACITY: usize = CHUNK_FULL + MAX_FRAME;
/// Bytes that wait in front of a stream: 1.3 ms at 3 Gbit/s. Measured over TCP, Noise and Yamux with one and four TCP flows
/// under BBR and CUBIC, two busy cores, medians of three; Gbit/s and the average of a ping beside them in ms:
///
/// ```text
///            256 KiB      512 KiB      1 MiB        2 MiB
/// BBR 1      3.3  1.7     3.1  2.4     3.2  3.4     2.9  3.5
/// BBR 4      2.9  2.2     2.8  3.7     2.9  5.9
/// CUBIC 1    3.0  0.8     2.8  1.4     2.9  2.4     3.2  3.8
/// CUBIC 4    2.1  1.1     3.1  1.8     3.0  2.6
/// ```
const QUEUE_BYTES: usize = 512 * 1024;
/// Chunks that wait in front of a stream: bounds the memory of a ring of part-filled chunks.
const QUEUE_CHUNKS: usize = 16;
/// Bytes that wait while there is no stream: the first packets of a conversation, not the conversation.
const WAITING_BYTES: usize = 2 * CHUNK_FULL;
/// How old a packet may grow while there is no stream: its sender has long sent it again.
const WAITING_AGE: Duration = Duration::from_secs(5);
/// How long a run takes in further packets: those of one run have waited about as long as each other.
const RUN_AGE: Duration = Duration::from_millis(5);
/// Idle buffers kept for reuse (4 MB).
const POOL: usize = 32;
/// Buffers that wait in front of all streams together: 64 MiB. Beyond it every link keeps only its newest run, so that
/// many stalled peers together cost no more than that and one buffer each.
const ALL_CHUNKS: usize = 64 * 1024 * 1024 / CAPACITY;

/// A run of frames to one peer, in one buffer.
#[derive(Debug)]
pub struct Chunk {
    buffer: Vec<u8>,
    /// Where the first frame begins: those in front of it were dropped.
    start: usize,
    len: usize,
    packets: u64,
    queued: Option<Instant>,
}

impl Chunk {
    /// Where the next packet of up to [`MAX_PACKET`] bytes goes, room for its frame header in front of it.
    pub fn space(&mut self) -> &mut [u8] {
        let at = self.len.saturating_add(HEADER_LEN);
        self.buffer
            .get_mut(at..at.saturating_add(MAX_PACKET))
            .unwrap_or_default()
    }

    /// Makes the `length` bytes in [`space`](Self::space) the chunk's next frame.
    pub fn commit(&mut self, offload: &Offload, length: usize) {
        let at = self.len;
        if let Some(header) = self.buffer.get_mut(at..at.saturating_add(HEADER_LEN)) {
            header.copy_from_slice(&packet_header(offload, length));
            self.len = at.saturating_add(HEADER_LEN).saturating_add(length);
            self.packets = self.packets.saturating_add(1);
        }
    }

    /// Appends whole frames; false where they do not fit.
    pub fn append(&mut self, frames: &[u8], packets: u64) -> bool {
        let end = self.len.saturating_add(frames.len());
        match self.buffer.get_mut(self.len..end) {
            Some(room) => {
                room.copy_from_slice(frames);
                self.len = end;
                self.packets = self.packets.saturating_add(packets);
                true
            }
            None => false,
        }
    }

    /// The frames in it, as they are written to the stream.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.len).unwrap_or_default()
    }

    /// Bytes of the whole frames at its front that fit in `most`, at least one frame, and the packets in them.
    pub fn lead(&self, most: usize) -> (usize, u64) {
        let all = self.bytes();
        if all.len() <= most {
            return (all.len(), self.packets);
        }
        let (mut bytes, mut packets) = (0usize, 0u64);
        while let Some((length, is_packet)) = frame::first(all.get(bytes..).unwrap_or_default()) {
            let end = bytes.saturating_add(length);
            if bytes > 0 && end > most {
                break;
            }
            bytes = end;
            packets = packets.saturating_add(u64::from(is_packet));
        }
        match bytes {
            0 => (all.len(), self.packets),
            some => (some, packets),
        }
    }

    /// Forgets so many bytes at its front with so many packets, as [`lead`](Self::lead) gave them.
    pub fn advance(&mut self, bytes: usize, packets: u64) {
        self.start = self.start.saturating_add(bytes);
        self.packets = self.packets.saturating_sub(packets);
    }

    /// Whether its first frame is a packet.
    pub fn leads_with_packet(&self) -> bool {
        frame::first(self.bytes()).is_some_and(|(_, is_packet)| is_packet)
    }

    /// How long it has waited.
    pub fn waited(&self, now: Instant) -> Duration {
        self.queued.map_or(Duration::ZERO, |queued| {
            now.saturating_duration_since(queued)
        })
    }

    /// Forgets the first frame; gives its bytes and the number of packets in it (a ping is none). Nothing is left of a chunk
    /// whose frames cannot be told apart.
    pub fn drop_first(&mut self) -> (usize, u64) {
        let (bytes, packets) = match frame::first(self.bytes()) {
            Some((length, is_packet)) => (length, u64::from(is_packet)),
            None => (self.size(), self.packets),
        };
        self.start = self.start.saturating_add(bytes);
        self.packets = self.packets.saturating_sub(packets);
        (bytes, packets)
    }

    fn size(&self) -> usize {
        self.len.saturating_sub(self.start)
    }

    /// Packets in it (pings do not count).
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Whether it should be handed on.
    pub fn is_full(&self) -> bool {
        self.len >= CHUNK_FULL
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.size() == 0
    }
}

/// Idle buffers, at most 32 of them, and the number of those that wait in queues. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    idle: Mutex<Vec<Vec<u8>>>,
    waiting: AtomicUsize,
}

impl Pool {
    /// Gives an empty chunk, in an idle buffer where there is one.
    pub fn take(&self) -> Chunk {
        let idle = self.0.idle.lock().pop();
        // Zeroed pages of the kernel: a buffer that stays small costs what was written to it.
        let buffer = idle.unwrap_or_else(|| vec![0; CAPACITY]);
        Chunk {
            buffer,
            start: 0,
            len: 0,
            packets: 0,
            queued: None,
        }
    }

    /// Gives a chunk's buffer back.
    pub fn put(&self, chunk: Chunk) {
        let mut idle = self.0.idle.lock();
        if idle.len() < POOL {
            idle.push(chunk.buffer);
        }
    }

    /// Whether all queues together hold more than they may.
    fn is_exhausted(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > ALL_CHUNKS
    }
}

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A stream takes the chunks.
    Carried,
    /// There is no stream yet.
    Waiting,
}

/// The chunks that wait in front of one stream, the oldest first.
#[derive(Debug)]
pub struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    pool: Pool,
}

impl Queue {
    /// An empty ring whose buffers go back to `pool`.
    pub fn new(pool: Pool) -> Queue {
        Queue {
            chunks: VecDeque::new(),
            bytes: 0,
            pool,
        }
    }

    /// Appends a chunk and drops the oldest frames beyond the bound; gives the number of packets dropped.
    ///
    /// What fits is copied into the newest waiting chunk: a ring of single small packets stays small. One that waits for a while
    /// takes no more, unless there are as many chunks as there may be: how long a packet waits is known of its chunk.
    pub fn push(&mut self, chunk: Chunk, bound: Bound, now: Instant) -> u64 {
        self.bytes = self.bytes.saturating_add(chunk.size());
        let is_crowded = bound == Bound::Waiting || self.chunks.len() >= QUEUE_CHUNKS;
        let joined = match self.chunks.back_mut() {
            Some(last) if !last.is_full() && (is_crowded || last.waited(now) < RUN_AGE) => {
                last.append(chunk.bytes(), chunk.packets)
            }
            _ => false,
        };
        if joined {
            self.pool.put(chunk);
        } else {
            self.pool.0.waiting.fetch_add(1, Ordering::Relaxed);
            self.chunks.push_back(Chunk {
                queued: Some(now),
                ..chunk
            });
        }
        self.trim(bound)
    }

    /// Appends a small frame (a ping) that is no packet; gives the number of packets dropped for it.
    pub fn push_frame(&mut self, frame: &[u8], bound: Bound, now: Instant) -> u64 {
        let mut chunk = self.pool.take();
        chunk.append(frame, 0);
        self.push(chunk, bound, now)
    }

    /// Puts back what a stream did not take. It is the oldest now, so it is the first to go beyond the bound.
    pub fn put_back(&mut self, chunk: Chunk, bound: Bound) -> u64 {
        self.bytes = self.bytes.saturating_add(chunk.size());
        self.pool.0.waiting.fetch_add(1, Ordering::Relaxed);
        self.chunks.push_front(chunk);
        self.trim(bound)
    }

    /// Takes out the oldest chunk; none where nothing waits.
    pub fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes = self.bytes.saturating_sub(chunk.size());
        self.pool.0.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(chunk)
    }

    /// Has everything wait from now on: it was no stream's yet.
    pub fn renew(&mut self, now: Instant) {
        for chunk in &mut self.chunks {
            chunk.queued = Some(now);
        }
    }

    /// Drops what waited too long for a stream; gives the number of packets.
    pub fn expire(&mut self, now: Instant) -> u64 {
        let mut dropped = 0u64;
        while self
            .chunks
            .front()
            .and_then(|chunk| chunk.queued)
            .is_some_and(|queued| now.saturating_duration_since(queued) > WAITING_AGE)
        {
            dropped = dropped.saturating_add(self.drop_chunk());
        }
        dropped
    }

    /// Drops everything; gives the number of packets.
    pub fn clear(&mut self) -> u64 {
        let mut dropped = 0u64;
        while !self.chunks.is_empty() {
            dropped = dropped.saturating_add(self.drop_chunk());
        }
        dropped
    }

    /// Bytes that wait in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no chunk waits in it.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn trim(&mut self, bound: Bound) -> u64 {
        let limit = match bound {
            Bound::Carried => QUEUE_BYTES,
            Bound::Waiting => WAITING_BYTES,
        };
        let mut dropped = 0u64;
        while self.chunks.len() > QUEUE_CHUNKS
            || (self.chunks.len() > 1 && self.pool.is_exhausted())
        {
            dropped = dropped.saturating_add(self.drop_chunk());
        }
        while self.bytes > limit
            && let Some(oldest) = self.chunks.front_mut()
        {
            let (bytes, packets) = oldest.drop_first();
            self.bytes = self.bytes.saturating_sub(bytes);
            dropped = dropped.saturating_add(packets);
            if oldest.is_empty() {
                dropped = dropped.saturating_add(self.drop_chunk());
            }
        }
        dropped
    }

    /// Drops the oldest chunk; gives the number of packets.
    fn drop_chunk(&mut self) -> u64 {
        self.pop().map_or(0, |chunk| {
            let packets = chunk.packets;
            self.pool.put(chunk);
            packets
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(pool: &Pool, fill: u8, length: usize) -> Chunk {
        let mut chunk = pool.take();
        chunk.space()[..length].fill(fill);
        chunk.commit(&Offload::NONE, length);
        chunk
    }

    #[test]
    fn full_queue_drops_oldest() {
        let (pool, now) = (Pool::default(), Instant::now());
        let mut queue = Queue::new(pool.clone());
        let mut dropped = 0;
        for i in 0..100u8 {
            dropped += queue.push(packet(&pool, i, 50_000), Bound::Carried, now);
        }
        let mut left = Vec::new();
        while let Some(chunk) = queue.pop() {
            let mut rest = chunk.bytes();
            while let Some((length, _)) = frame::first(rest) {
                left.push(rest[HEADER_LEN]);
                rest = &rest[length..];
            }
        }
        assert_eq!(
            dropped as usize + left.len(),
            100,
            "every packet is either there or counted"
        );
        assert_eq!(
            left.len(),
            QUEUE_BYTES / 50_010,
            "no more is dropped than must be"
        );
        assert_eq!(
            left,
            (100 - left.len() as u8..100).collect::<Vec<_>>(),
            "the newest are kept, in order"
        );
        assert_eq!(
            (queue.bytes, pool.0.waiting.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[test]
    fn one_packet_makes_room_for_one() {
        let (pool, now) = (Pool::default(), Instant::now());
        let mut queue = Queue::new(pool.clone());
        let fits = QUEUE_BYTES / (HEADER_LEN + 1000);
        let dropped: u64 = (0..fits)
            .map(|_| queue.push(packet(&pool, 1, 1000), Bound::Carried, now))
            .sum();
        assert_eq!(dropped, 0);
        for _ in 0..10 {
            assert_eq!(queue.push(packet(&pool, 1, 1000), Bound::Carried, now), 1);
        }
        assert_eq!(queue.clear(), fits as u64);
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let (pool, now) = (Pool::default(), Instant::now());
        let mut queues: Vec<Queue> = (0..100).map(|_| Queue::new(pool.clone())).collect();
        for _ in 0..QUEUE_CHUNKS {
            for queue in &mut queues {
                queue.push(packet(&pool, 1, 60_000), Bound::Carried, now);
            }
        }
        let waiting = pool.0.waiting.load(Ordering::Relaxed);
        assert!(waiting <= ALL_CHUNKS + queues.len(), "{waiting}");
        assert!(queues.iter().all(|q| !q.is_empty()), "nobody is shut out");
        drop(queues);
        assert_eq!(pool.0.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_packets_share_chunks() {
        let (pool, now) = (Pool::default(), Instant::now());
        let mut queue = Queue::new(pool.clone());
        for _ in 0..500 {
            assert_eq!(queue.push(packet(&pool, 1, 84), Bound::Carried, now), 0);
        }
        assert_eq!(queue.chunks.len(), 1);
        assert_eq!(queue.pop().unwrap().packets(), 500);
    }

    #[test]
    fn waiting_packets_grow_old() {
        let (pool, now) = (Pool::default(), Instant::now());
        let mut queue = Queue::new(pool.clone());
        queue.push(packet(&pool, 1, 84), Bound::Waiting, now);
        assert_eq!(queue.expire(now + WAITING_AGE), 0);
        assert_eq!(
            queue.expire(now + WAITING_AGE + Duration::from_millis(1)),
            1
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn the_largest_packet_fits_a_chunk_that_is_not_full() {
        let pool = Pool::default();
        let mut chunk = packet(&pool, 1, CHUNK_FULL - HEADER_LEN - 1);
        assert!(!chunk.is_full());
        assert_eq!(chunk.space().len(), MAX_PACKET);
        chunk.commit(&Offload::NONE, MAX_PACKET);
        assert!(chunk.is_full());
    }
}
