//! Fewer, larger calls below and above Noise: what makes a multiplexed stream fast enough for packets.
//!
//! Yamux flushes after each of its 16 KiB frames, and every flush of Noise is a message of its own and a write to the
//! socket; Noise's reader takes 8 KiB of the socket at a time. [`LateFlush`], between Noise and Yamux, lets a flush wait
//! until nothing more is at hand; [`LargeReads`], between the socket and Noise, reads as much as there is. Neither keeps a
//! byte back while its task sleeps, neither changes what is on the wire.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt, TryFutureExt};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::{PeerId, noise};

use super::admission::reached;
use crate::model::source::Step;

/// Bytes after which a flush waits no longer: one Noise message holds no more.
const FLUSH_AT: usize = 60 * 1024;
/// Bytes a quiet connection reads at once.
const SMALL_READ: usize = 8 * 1024;
/// Bytes a busy connection reads at once.
const LARGE_READ: usize = 128 * 1024;

/// Puts flushes off until nothing is written between two polls of the task, or [`FLUSH_AT`] bytes are waiting.
#[derive(Debug)]
pub(super) struct LateFlush<S> {
    inner: S,
    /// Bytes written since the last flush.
    written: usize,
    /// Something was written since a flush was asked for.
    fresh: bool,
}

impl<S> LateFlush<S> {
    pub(super) fn new(inner: S) -> Self {
        LateFlush {
            inner,
            written: 0,
            fresh: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LateFlush<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LateFlush<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.written = self.written.saturating_add(count);
        self.fresh = true;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.fresh) && self.written < FLUSH_AT {
            // Asked again at the task's next turn, which is due at once. Whoever has more to write does it before.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.written = 0;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Reads the socket in large pieces; grows with its use.
#[derive(Debug)]
pub(super) struct LargeReads<S> {
    inner: S,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<S> LargeReads<S> {
    pub(super) fn new(inner: S) -> Self {
        LargeReads {
            inner,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LargeReads<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.start == this.end {
            if this.end == this.buffer.len() && this.buffer.len() < LARGE_READ {
                // The last read filled it: there is more where that came from.
                this.buffer.resize(
                    if this.buffer.is_empty() {
                        SMALL_READ
                    } else {
                        LARGE_READ
                    },
                    0,
                );
            }
            this.start = 0;
            this.end = 0;
            this.end =
                std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.buffer))?;
        }
        let held = this.buffer.get(this.start..this.end).unwrap_or_default();
        let count = held.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), held.get(..count)) {
            to.copy_from_slice(from);
        }
        this.start = this.start.saturating_add(count);
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LargeReads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Noise, with [`LateFlush`] on top.
#[derive(Clone)]
pub(super) struct LateNoise(pub(super) noise::Config);

impl UpgradeInfo for LateNoise {
    type Info = <noise::Config as UpgradeInfo>::Info;
    type InfoIter = <noise::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

/// A handshake under way.
type Handshake<S> = BoxFuture<'static, Result<(PeerId, LateFlush<noise::Output<S>>), noise::Error>>;

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<S> for LateNoise {
    type Output = (PeerId, LateFlush<noise::Output<S>>);
    type Error = noise::Error;
    type Future = Handshake<S>;

    fn upgrade_inbound(self, socket: S, info: Self::Info) -> Self::Future {
        // The peer has asked for Noise.
        reached(Step::Begun);
        self.0
            .upgrade_inbound(socket, info)
            .map_ok(|(peer, io)| (peer, LateFlush::new(io)))
            .boxed()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<S>
    for LateNoise
{
    type Output = (PeerId, LateFlush<noise::Output<S>>);
    type Error = noise::Error;
    type Future = Handshake<S>;

    fn upgrade_outbound(self, socket: S, info: Self::Info) -> Self::Future {
        self.0
            .upgrade_outbound(socket, info)
            .map_ok(|(peer, io)| (peer, LateFlush::new(io)))
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{AsyncReadExt, AsyncWriteExt};
    use std::task::Waker;

    /// Counts calls; takes everything, gives what it holds.
    #[derive(Default)]
    struct Wire {
        bytes: Vec<u8>,
        flushes: usize,
        reads: usize,
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.bytes.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Wire {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            self.reads += 1;
            let count = out.len().min(self.bytes.len());
            let rest = self.bytes.split_off(count);
            out[..count].copy_from_slice(&self.bytes);
            self.bytes = rest;
            Poll::Ready(Ok(count))
        }
    }

    #[test]
    fn a_flush_waits_for_company_and_no_longer() {
        let mut io = LateFlush::new(Wire::default());
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(Pin::new(&mut io).poll_write(cx, &[1; 16_384]).is_ready());
            assert!(
                Pin::new(&mut io).poll_flush(cx).is_pending(),
                "more may come"
            );
        }
        assert!(Pin::new(&mut io).poll_flush(cx).is_ready(), "nothing came");
        assert_eq!(io.inner.flushes, 1);
        assert!(Pin::new(&mut io).poll_write(cx, &[1; FLUSH_AT]).is_ready());
        assert!(
            Pin::new(&mut io).poll_flush(cx).is_ready(),
            "enough is there"
        );
        assert_eq!(
            (io.inner.flushes, io.inner.bytes.len()),
            (2, 3 * 16_384 + FLUSH_AT)
        );
    }

    #[tokio::test]
    async fn a_late_flush_wakes_its_task() {
        let mut io = LateFlush::new(Wire::default());
        io.write_all(b"hello").await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), io.flush())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (io.inner.flushes, io.inner.bytes.as_slice()),
            (1, b"hello".as_slice())
        );
    }

    #[tokio::test]
    async fn large_reads_give_every_byte_in_order() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut io = LargeReads::new(Wire {
            bytes: sent.clone(),
            ..Wire::default()
        });
        let mut got = Vec::new();
        let mut piece = [0; 7001];
        loop {
            let count = io.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
        }
        assert!(got == sent);
        assert!(io.inner.reads < 15, "{} reads", io.inner.reads);
        assert_eq!(io.buffer.len(), LARGE_READ);
    }
}
