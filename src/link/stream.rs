//! The two tasks of a stream: one drains a link's queue into it, one decodes what comes out of it.

use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{Bound, Inbound, Key, Link, Links, Packets, lock};
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
    loop {
        let next = {
            let mut state = lock(&link.state);
            // Checked under the lock: a replaced writer must not take what belongs to its successor.
            if stop.is_cancelled() {
                return Ok(());
            }
            state.queue.pop()
        };
        let Some(chunk) = next else {
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
                    return Ok(());
                }
                waited = wait => waited?,
            }
            continue;
        };
        let written = tokio::select! {
            biased;
            written = stream.write_all(chunk.bytes()) => written.map(|()| true),
            () = replaced_long_ago(stop) => Ok(false),
        };
        if matches!(written, Ok(true)) {
            let frames = u64::try_from(HEADER_LEN).unwrap_or(0).saturating_mul(chunk.packets());
            let bytes = u64::try_from(chunk.bytes().len()).unwrap_or(0).saturating_sub(frames);
            link.streams.sent(chunk.packets(), bytes);
            links.0.pool.put(chunk);
            continue;
        }
        // Part of it may have arrived: IP allows a packet to come twice, its loss would cost more.
        let mut state = lock(&link.state);
        if state.closed {
            return written.map(|_| ());
        }
        let dropped = state.queue.put_back(chunk, Bound::Carried);
        drop(state);
        link.queued.notify_one();
        link.count(DropReason::QueueFull, dropped);
        // A stream cut in the middle of a frame is of no more use: it is dropped, not closed in order.
        return match written {
            Ok(_) => Err(std::io::ErrorKind::ConnectionAborted.into()),
            Err(error) => Err(error),
        };
    }
}

/// Ends some time after the stream was replaced: cutting it in the middle of a chunk would lose what it has taken before.
async fn replaced_long_ago(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FINISH_WITHIN).await;
}

/// Reads frames until the stream ends or is cut.
pub(super) async fn read(
    links: Links,
    key: Key,
    connection: u64,
    mut stream: impl AsyncRead + Send + Unpin + 'static,
    sink: Arc<dyn Inbound>,
) {
    let Key { subnet, peer } = key;
    if !sink.may_open(key) {
        tracing::debug!(%subnet, %peer, "packet stream of a peer that is no member");
        return;
    }
    let link = links.link(key);
    let Some(stop) = link.enter_reader(connection) else { return };
    // Asked again: a removal between the first question and the entry would have found no stream to cut.
    if !sink.may_open(key) {
        link.leave_reader(&stop);
        return;
    }
    let mut decoder = Decoder::default();
    let mut scratch = Vec::new();
    let error = loop {
        let read = tokio::select! {
            biased;
            () = stop.cancelled() => break None,
            read = stream.read(decoder.space()) => read,
        };
        match read {
            Ok(0) | Err(_) => break None,
            Ok(count) => decoder.filled(count),
        }
        let mut frames =
            Frames { decoder: &mut decoder, links: &links, link: &link, scratch: &mut scratch, failed: None };
        sink.batch(key, &mut frames);
        // What the sink left, so that the decoder has room again.
        while frames.next().is_some() {}
        if frames.failed.is_some() {
            break frames.failed;
        }
    };
    if let Some(error) = error {
        link.counts.add(DropReason::Malformed, 1);
        tracing::warn!(%subnet, %peer, %error, "packet stream cut");
    }
    link.leave_reader(&stop);
}

/// The packets one read brought. Pings are answered on the way.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    decoder: &'a mut Decoder,
    links: &'a Links,
    link: &'a Link,
    scratch: &'a mut Vec<u8>,
    failed: Option<FrameError>,
}

impl Packets for Frames<'_> {
    fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(self.scratch)
    }

    fn keep_scratch(&mut self, buffer: Vec<u8>) {
        *self.scratch = buffer;
    }

    fn next(&mut self) -> Option<(Offload, &mut [u8])> {
        let (offload, body) = loop {
            match self.decoder.decode() {
                Ok(Some(Frame::Packet { offload, body })) => break (offload, body),
                Ok(Some(Frame::Ping(token))) => {
                    self.links.send_frame(self.link, &frame::pong(token));
                }
                Ok(Some(Frame::Pong(token))) => self.links.answered(token),
                Ok(Some(Frame::Malformed)) => self.link.counts.add(DropReason::Malformed, 1),
                Ok(None) => return None,
                Err(error) => {
                    self.failed = Some(error);
                    return None;
                }
            }
        };
        let bytes = self.decoder.body(body);
        self.link.streams.received(u64::try_from(bytes.len()).unwrap_or(0));
        Some((offload, bytes))
    }
}
