//! A stream's two ends here: a task that drains a link's queue into it, and what decodes the packets that come out of it.

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{Bound, Chunk, Key, Link, Links, lock};
use crate::packet::{DropReason, Offload};
use crate::wire::frame::{self, Decoder, Frame, FrameError, HEADER_LEN};

/// How long a replaced stream may take for the chunk it began.
const FINISH_WITHIN: Duration = Duration::from_millis(250);
/// How long a replaced stream may take to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Writes the link's packets to `stream` until it fails or `stop` says that it was replaced.
pub(super) async fn write(
    links: Links,
    link: Arc<Link>,
    stop: CancellationToken,
    mut stream: impl AsyncWrite + Send + Unpin + 'static,
) {
    match drain(&links, &link, &stop, &mut stream).await {
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

/// Writes chunk after chunk; flushes when nothing waits. Ends well when stopped.
async fn drain(
    links: &Links,
    link: &Link,
    stop: &CancellationToken,
    stream: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    while let Some(chunk) = next_chunk(link, stop, stream).await? {
        let written = tokio::select! {
            biased;
            written = stream.write_all(chunk.bytes()) => written.map(|()| true),
            () = replaced_long_ago(stop) => Ok(false),
        };
        if matches!(written, Ok(true)) {
            let frames = u64::try_from(HEADER_LEN)
                .unwrap_or(0)
                .saturating_mul(chunk.packets());
            let bytes = u64::try_from(chunk.bytes().len())
                .unwrap_or(0)
                .saturating_sub(frames);
            // Pings and fillers among themselves are no packets.
            if chunk.packets() > 0 {
                link.streams.sent(chunk.packets(), bytes);
            }
            links.0.pool.put(chunk);
            continue;
        }
        let is_queued = put_back(link, chunk);
        return match written {
            // A stream cut in the middle of a frame is of no more use: it is dropped, not closed in order.
            Ok(_) if is_queued => Err(std::io::ErrorKind::ConnectionAborted.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
    }
    Ok(())
}

/// The next chunk of the link; while there is none, `stream` is flushed. None when stopped.
async fn next_chunk(
    link: &Link,
    stop: &CancellationToken,
    stream: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<Option<Chunk>> {
    loop {
        let next = {
            let mut state = lock(&link.state);
            // Checked under the lock: a replaced writer must not take what belongs to its successor.
            if stop.is_cancelled() {
                return Ok(None);
            }
            state.queue.pop()
        };
        if next.is_some() {
            return Ok(next);
        }
        let wait = async {
            stream.flush().await?;
            link.queued.notified().await;
            std::io::Result::Ok(())
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                // The call that woke this task may have been meant for its successor.
                link.queued.notify_one();
                return Ok(None);
            }
            waited = wait => waited?,
        }
    }
}

/// Leaves a chunk that was written in part to the next stream; false where the link is cut. Part of it may have arrived: IP
/// allows a packet to come twice, its loss would cost more.
fn put_back(link: &Link, chunk: Chunk) -> bool {
    let mut state = lock(&link.state);
    if state.closed {
        return false;
    }
    let dropped = state.queue.put_back(chunk, Bound::Carried);
    drop(state);
    link.queued.notify_one();
    link.count(DropReason::QueueFull, dropped);
    true
}

/// Ends some time after the stream was replaced: cutting it in the middle of a chunk would lose what it has taken before.
async fn replaced_long_ago(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FINISH_WITHIN).await;
}

/// Reads the packets of one stream. Made by [`Links::receive_stream`]; the stream is no longer this peer's when it is dropped.
#[derive(Debug)]
pub struct StreamReceiver<S> {
    links: Links,
    link: Arc<Link>,
    stop: CancellationToken,
    stream: S,
    decoder: Decoder,
    failed: Option<FrameError>,
}

impl<S: AsyncRead + Unpin> StreamReceiver<S> {
    /// Enters a stream that the peer of `key` opened on `connection`; none where the link is cut.
    pub(super) fn new(
        links: &Links,
        key: Key,
        connection: u64,
        stream: S,
    ) -> Option<StreamReceiver<S>> {
        let link = links.link(key);
        let stop = link.enter_reader(connection)?;
        Some(StreamReceiver {
            links: links.clone(),
            link,
            stop,
            stream,
            decoder: Decoder::default(),
            failed: None,
        })
    }

    /// Waits for what one read of the stream brings; none when it ended, was cut, or held what is no frame.
    ///
    /// # Cancel safety
    /// Nothing that was read is lost.
    pub async fn next_batch(&mut self) -> Option<StreamPackets<'_>> {
        if let Some(error) = &self.failed {
            let Key { subnet, peer } = self.link.key;
            self.link.counts.add(DropReason::Malformed, 1);
            tracing::warn!(%subnet, %peer, %error, "packet stream cut");
            return None;
        }
        let read = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            read = self.stream.read(self.decoder.space()) => read,
        };
        match read {
            Ok(0) | Err(_) => return None,
            Ok(count) => self.decoder.filled(count),
        }
        let StreamReceiver {
            links,
            link,
            decoder,
            failed,
            ..
        } = self;
        Some(StreamPackets {
            decoder,
            links,
            link,
            failed,
        })
    }
}

impl<S> Drop for StreamReceiver<S> {
    fn drop(&mut self) {
        self.link.leave_reader(&self.stop);
    }
}

/// The packets one read brought: to be pulled to the end, so that the decoder has room again. Pings are answered on the way.
#[derive(Debug)]
pub struct StreamPackets<'a> {
    decoder: &'a mut Decoder,
    links: &'a Links,
    link: &'a Link,
    failed: &'a mut Option<FrameError>,
}

impl StreamPackets<'_> {
    /// The next packet, and what its sender claims about it.
    #[expect(
        clippy::should_implement_trait,
        reason = "each packet lies in the one buffer that the next read overwrites"
    )]
    pub fn next(&mut self) -> Option<(Offload, &mut [u8])> {
        let (offload, body) = loop {
            match self.decoder.decode() {
                Ok(Some(Frame::Packet { offload, body })) => break (offload, body),
                Ok(Some(Frame::Ping(token))) => {
                    self.links.send_frame(self.link, &frame::pong(token));
                }
                Ok(Some(Frame::Pong(token))) => self.links.answered(token),
                Ok(Some(Frame::Filler(body))) => {
                    let body = self.decoder.body(body);
                    self.link.fill.count(body);
                }
                Ok(Some(Frame::Malformed)) => self.link.counts.add(DropReason::Malformed, 1),
                Ok(None) => return None,
                Err(error) => {
                    *self.failed = Some(error);
                    return None;
                }
            }
        };
        let bytes = self.decoder.body(body);
        self.link
            .streams
            .received(u64::try_from(bytes.len()).unwrap_or(0));
        Some((offload, bytes))
    }
}
