//! The task that drains a link's queue into its stream: no more of it than the line carries ([`Pace`]), and nothing that has waited
//! too long ([`Sojourn`]). Receipts for what the peer sends go first; they are small, and let it send on.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use super::sojourn::{Sojourn, Verdict};
use super::{Bound, Chunk, Link, Links, State, lock};
use crate::packet::DropReason;
use crate::wire::frame::{self, HEADER_LEN, RECEIPT_LEN};

/// How long a replaced stream may take for the frames it began.
const FINISH_WITHIN: Duration = Duration::from_millis(250);
/// How long a replaced stream may take to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Writes the link's packets to `stream`, which receipts call by that number, until it fails or the token says that it was
/// replaced.
pub(super) async fn write(
    links: Links,
    link: Arc<Link>,
    (number, stop): (u64, CancellationToken),
    mut stream: impl AsyncWrite + Send + Unpin + 'static,
) {
    match drain(&links, &link, (number, &stop), &mut stream).await {
        Ok(()) => {
            // What it took is still on its way: an orderly end lets it arrive.
            let _ = tokio::time::timeout(CLOSE_WITHIN, stream.close()).await;
        }
        Err(error) => {
            tracing::debug!(subnet = %link.key.subnet, peer = %link.key.peer, %error, "packet stream ended");
            links.writer_failed(&link, &stop);
        }
    }
}

/// Writes what is next, time and again; flushes while nothing is. Ends well when stopped.
async fn drain(
    links: &Links,
    link: &Link,
    (number, stop): (u64, &CancellationToken),
    stream: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut writer = Writer {
        links,
        link,
        stop,
        pace: Pace::new(Instant::now()),
        sojourn: Sojourn::default(),
        chunk: None,
        is_full: false,
    };
    let mut number = Some(frame::number(number));
    loop {
        let next = writer.next(stream).await?;
        // The number is the first frame, and comes with the first packet: a stream that nobody uses stays empty.
        if let Some(number) = number.take_if(|_| next != Next::Stop) {
            writer.pace.write(Instant::now(), number.len());
            if !whole(stream.write_all(&number), stop).await? {
                return writer.give_up(Ok(()));
            }
        }
        match next {
            Next::Stop => return Ok(()),
            Next::Receipt(receipt) => {
                writer.pace.write(Instant::now(), receipt.len());
                if !whole(stream.write_all(&receipt), stop).await? {
                    return writer.give_up(Ok(()));
                }
            }
            Next::Packets(bytes, packets) => {
                writer.pace.write(Instant::now(), bytes);
                match whole(stream.write_all(writer.lead(bytes)), stop).await {
                    Ok(true) => writer.written(bytes, packets),
                    other => return writer.give_up(other.map(drop)),
                }
            }
        }
    }
}

/// Whether a write was done, rather than that the stream was replaced some time ago: cutting it in the middle of a frame would
/// lose what it has taken before.
async fn whole(
    write: impl Future<Output = io::Result<()>>,
    stop: &CancellationToken,
) -> io::Result<bool> {
    let replaced_long_ago = async {
        stop.cancelled().await;
        tokio::time::sleep(FINISH_WITHIN).await;
    };
    tokio::select! {
        biased;
        written = write => written.map(|()| true),
        () = replaced_long_ago => Ok(false),
    }
}

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: the stream was replaced.
    Stop,
    /// A receipt.
    Receipt([u8; RECEIPT_LEN]),
    /// So many bytes of the chunk's front, with so many packets.
    Packets(usize, u64),
}

/// What one stream is written with.
struct Writer<'a> {
    links: &'a Links,
    link: &'a Link,
    stop: &'a CancellationToken,
    pace: Pace,
    sojourn: Sojourn,
    /// What is being written, a few frames at a time.
    chunk: Option<Chunk>,
    /// The line carries no more now: further packets change nothing.
    is_full: bool,
}

impl Writer<'_> {
    /// Waits for what is next; meanwhile `stream` is flushed.
    async fn next(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<Next> {
        loop {
            let now = Instant::now();
            if let Some(next) = self.step(now) {
                return Ok(next);
            }
            let due = self.pace.due();
            let (link, is_full) = (self.link, self.is_full);
            let wait = async {
                stream.flush().await?;
                tokio::select! {
                    () = link.told.notified() => {}
                    () = link.queued.notified(), if !is_full => {}
                }
                io::Result::Ok(())
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                waited = wait => waited?,
                () = tokio::time::sleep_until(due.unwrap_or(now).into()), if due.is_some() => {}
            }
        }
    }

    /// What is next, where that is known.
    fn step(&mut self, now: Instant) -> Option<Next> {
        let mut state = lock(&self.link.state);
        // Checked under the lock: a replaced writer must not take what belongs to its successor.
        if self.stop.is_cancelled() {
            drop(state);
            self.put_back();
            // The calls that woke this task may have been meant for its successor.
            self.link.queued.notify_one();
            self.link.told.notify_one();
            return Some(Next::Stop);
        }
        if let Some((seen, at)) = state.seen.take() {
            self.pace.receipt(at, seen);
        }
        if let Some(receipt) = state.receipt.take() {
            return Some(Next::Receipt(frame::receipt(receipt)));
        }
        let room = usize::try_from(self.pace.room(now)).unwrap_or(usize::MAX);
        self.is_full = room == 0;
        if self.is_full {
            return None;
        }
        let (next, dropped) = self.packets(&mut state, room, now);
        drop(state);
        self.link.count(DropReason::QueueFull, dropped);
        next
    }

    /// The frames at the front that are to be written, as far as there is room; and how many packets were dropped before.
    fn packets(&mut self, state: &mut State, room: usize, now: Instant) -> (Option<Next>, u64) {
        let mut dropped = 0u64;
        loop {
            let chunk = match self.chunk.take() {
                Some(chunk) => self.chunk.insert(chunk),
                None => match state.queue.pop() {
                    Some(chunk) => self.chunk.insert(chunk),
                    None => return (None, dropped),
                },
            };
            let waiting = chunk.bytes().len().saturating_add(state.queue.bytes());
            let is_kept = !chunk.leads_with_packet()
                || self.sojourn.judge(now, chunk.waited(now), waiting) == Verdict::Send;
            if is_kept {
                let (bytes, packets) = chunk.lead(room);
                return (Some(Next::Packets(bytes, packets)), dropped);
            }
            let (_, packets) = chunk.drop_first();
            dropped = dropped.saturating_add(packets);
            self.spent();
        }
    }

    /// So many bytes at the front of the chunk.
    fn lead(&self, bytes: usize) -> &[u8] {
        let chunk = self.chunk.as_ref();
        let front = chunk.and_then(|chunk| chunk.bytes().get(..bytes));
        front.unwrap_or_default()
    }

    /// So many bytes with so many packets of the chunk were written.
    fn written(&mut self, bytes: usize, packets: u64) {
        if let Some(chunk) = &mut self.chunk {
            chunk.advance(bytes, packets);
        }
        // Pings and fillers among themselves are no packets.
        if packets > 0 {
            let headers = u64::try_from(HEADER_LEN)
                .unwrap_or(0)
                .saturating_mul(packets);
            let bytes = u64::try_from(bytes).unwrap_or(0).saturating_sub(headers);
            self.link.streams.sent(packets, bytes);
        }
        self.spent();
    }

    /// Gives the chunk's buffer back where nothing is left in it.
    fn spent(&mut self) {
        if let Some(chunk) = self.chunk.take_if(|chunk| chunk.is_empty()) {
            self.links.0.pool.put(chunk);
        }
    }

    /// Ends with a stream that took a part of a frame at most: such a one is of no more use, so that it is dropped and not closed
    /// in order, unless the link is cut.
    fn give_up(&mut self, written: io::Result<()>) -> io::Result<()> {
        let is_queued = self.put_back();
        match written {
            Ok(()) if is_queued => Err(io::ErrorKind::ConnectionAborted.into()),
            other => other,
        }
    }

    /// Leaves what was not written to the next stream; false where the link is cut. Part of it may have arrived: IP allows a
    /// packet to come twice, its loss would cost more.
    fn put_back(&mut self) -> bool {
        let mut state = lock(&self.link.state);
        if state.closed {
            return false;
        }
        let Some(chunk) = self.chunk.take() else {
            return true;
        };
        let dropped = state.queue.put_back(chunk, Bound::Carried);
        drop(state);
        self.link.queued.notify_one();
        self.link.count(DropReason::QueueFull, dropped);
        true
    }
}
