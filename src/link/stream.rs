//! What decodes the packets that come out of a stream, and has its writer told how far it was read.

use std::sync::Arc;
use std::time::Instant;

use futures::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

use super::pace::Receipts;
use super::{Key, Link, Links};
use crate::packet::{DropReason, Offload};
use crate::wire::frame::{self, Decoder, Frame, FrameError, Receipt};

/// Reads the packets of one stream. Made by [`Links::receive_stream`]; the stream is no longer this peer's when it is dropped.
#[derive(Debug)]
pub struct StreamReceiver<S> {
    links: Links,
    link: Arc<Link>,
    stop: CancellationToken,
    stream: S,
    decoder: Decoder,
    receipts: Receipts,
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
            receipts: Receipts::default(),
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
        let read = loop {
            let due = self.tell();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                read = self.stream.read(self.decoder.space()) => break read,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            }
        };
        match read {
            Ok(0) | Err(_) => return None,
            Ok(count) => {
                self.decoder.filled(count);
                self.receipts.read(count);
            }
        }
        let StreamReceiver {
            links,
            link,
            decoder,
            receipts,
            failed,
            ..
        } = self;
        Some(StreamPackets {
            decoder,
            receipts,
            links,
            link,
            failed,
        })
    }
}

impl<S> StreamReceiver<S> {
    /// Has the writer told how far its stream was read, where that is due; else when it will be.
    fn tell(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if let Some((stream, bytes)) = self.receipts.take(now) {
            self.link.tell(Receipt { stream, bytes });
        }
        self.receipts.due(now)
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
    receipts: &'a mut Receipts,
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
                Ok(Some(Frame::Number(stream))) => self.receipts.named(stream),
                Ok(Some(Frame::Receipt(receipt))) => self.link.hear(receipt),
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
