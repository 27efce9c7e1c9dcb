//! The injected socket behind the screen: what QUIC must not even look at is taken out of each receive.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::screen::{Kind, Rate, classify, retain};

/// A socket of somebody else's, screened.
pub(super) struct Screened {
    inner: Arc<dyn AsyncUdpSocket>,
    rate: Mutex<Rate>,
}

impl Screened {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Screened { inner, rate: Mutex::new(Rate::new()) }
    }
}

impl fmt::Debug for Screened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for Screened {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = std::task::ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter_mut().zip(meta).take(count) {
            let source = meta.addr.ip();
            let wanted = |datagram: &[u8]| match classify(datagram) {
                Some(Kind::Other) => true,
                Some(Kind::Initial) => {
                    self.rate.lock().unwrap_or_else(PoisonError::into_inner).allows(source, Instant::now())
                }
                None => false,
            };
            // QUIC passes over an empty buffer.
            meta.len = buffer.get_mut(..meta.len).map_or(0, |received| retain(received, meta.stride, wanted));
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
