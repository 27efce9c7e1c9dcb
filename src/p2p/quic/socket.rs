//! The injected socket behind the screen: what QUIC must not even look at is taken out of each receive.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::canonical;
use super::screen::{Kind, Rate, classify, retain};

/// A socket of somebody else's, screened.
pub(super) struct Screened {
    inner: Arc<dyn AsyncUdpSocket>,
    initials: Mutex<Initials>,
}

struct Initials {
    rate: Rate,
    /// Who is being dialled, and how often: a flood must not drown the answers.
    expected: HashMap<SocketAddr, usize>,
}

/// An address whose Initials pass while this lives.
pub(super) struct Expected {
    socket: Arc<Screened>,
    remote: SocketAddr,
}

impl Screened {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Screened { inner, initials: Mutex::new(Initials { rate: Rate::new(), expected: HashMap::new() }) }
    }

    /// Lets the Initials of `remote` pass whatever all others send.
    pub(super) fn expect(self: &Arc<Self>, remote: SocketAddr) -> Expected {
        *self.lock().expected.entry(remote).or_default() += 1;
        Expected { socket: self.clone(), remote }
    }

    fn lock(&self) -> MutexGuard<'_, Initials> {
        self.initials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut initials = self.socket.lock();
        if let Some(count) = initials.expected.get_mut(&self.remote) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                initials.expected.remove(&self.remote);
            }
        }
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
            let source = canonical(meta.addr);
            let wanted = |datagram: &[u8]| match classify(datagram) {
                Some(Kind::Other) => true,
                Some(Kind::Initial) => {
                    let mut initials = self.lock();
                    initials.expected.contains_key(&source) || initials.rate.allows(source.ip(), Instant::now())
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
