//! The stream that packets travel on, as seen outside this module: bytes in or out, nothing of libp2p.
//!
//! A [`DataStream`] has a guard: when its connection is cut, its subnet taken away or a newer stream takes its place,
//! it fails at once, whatever the transport below is still doing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite};

/// What a connection and its streams tell each other.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Set by a reader whenever bytes arrive, cleared by whoever asks: a connection that is heard is alive.
    heard: AtomicBool,
    /// Set whenever bytes arrive or leave, cleared by whoever asks: a connection that carries packets is in use.
    moved: AtomicBool,
    /// Set once, when the connection must carry nothing more.
    cut: AtomicBool,
}

impl Activity {
    /// Whether bytes have arrived since the last call.
    pub(super) fn take_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// Whether bytes have arrived or left since the last call.
    pub(super) fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    /// Makes every stream of the connection fail from now on.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }
}

/// What ends a stream from outside; held by it and by the connection's handler.
#[derive(Debug, Default)]
pub(super) struct StreamGuard {
    revoked: AtomicBool,
    dropped: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    holder: AtomicWaker,
}

impl StreamGuard {
    /// Makes the stream fail and wakes whoever waits on it.
    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// Ready once the stream has been dropped.
    pub(super) fn poll_dropped(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.holder.register(cx.waker());
        if self.dropped.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// One substream of one connection, for the packets of one subnet in one direction.
///
/// Implements the `futures` I/O traits. A stream from [`Event::StreamOut`](super::Event::StreamOut) is written, one from
/// [`Event::StreamIn`](super::Event::StreamIn) is read; the version byte and the subnet ID are already behind it.
/// Dropping an outbound stream while its connection and subnet last asks for a new one, after a back-off.
///
/// # Errors
/// Fails with `ConnectionAborted` when it was taken away: connection cut, subnet lost, or replaced by a newer stream.
#[derive(Debug)]
pub struct DataStream {
    inner: libp2p::Stream,
    activity: Arc<Activity>,
    guard: Arc<StreamGuard>,
}

impl DataStream {
    /// Takes a negotiated substream, and gives the guard that ends it.
    pub(super) fn new(inner: libp2p::Stream, activity: Arc<Activity>) -> (Self, Arc<StreamGuard>) {
        let guard = Arc::new(StreamGuard::default());
        (
            DataStream {
                inner,
                activity,
                guard: guard.clone(),
            },
            guard,
        )
    }

    fn is_taken(&self) -> bool {
        self.guard.revoked.load(Ordering::Acquire) || self.activity.cut.load(Ordering::Acquire)
    }

    fn guarded<T>(
        &mut self,
        cx: &mut Context<'_>,
        waker: fn(&StreamGuard) -> &AtomicWaker,
        step: impl FnOnce(Pin<&mut libp2p::Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.is_taken() {
            return Poll::Ready(Err(taken()));
        }
        let ready = step(Pin::new(&mut self.inner), cx);
        if ready.is_pending() {
            // Register first, look again after: a revocation between the two is then never missed.
            waker(&self.guard).register(cx.waker());
            if self.is_taken() {
                return Poll::Ready(Err(taken()));
            }
        }
        ready
    }
}

fn taken() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the stream was taken away",
    )
}

impl AsyncRead for DataStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let ready = self.guarded(cx, |guard| &guard.reader, |s, cx| s.poll_read(cx, buf));
        if let Poll::Ready(Ok(1..)) = ready {
            self.activity.heard.store(true, Ordering::Relaxed);
            self.activity.moved.store(true, Ordering::Relaxed);
        }
        ready
    }
}

impl AsyncWrite for DataStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.activity.moved.store(true, Ordering::Relaxed);
        self.guarded(cx, |guard| &guard.writer, |s, cx| s.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.moved.store(true, Ordering::Relaxed);
        self.guarded(
            cx,
            |guard| &guard.writer,
            |s, cx| s.poll_write_vectored(cx, bufs),
        )
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guarded(cx, |guard| &guard.writer, |s, cx| s.poll_flush(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guarded(cx, |guard| &guard.writer, |s, cx| s.poll_close(cx))
    }
}

impl Drop for DataStream {
    fn drop(&mut self) {
        self.guard.dropped.store(true, Ordering::Release);
        self.guard.holder.wake();
    }
}
