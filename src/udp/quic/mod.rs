//! The QUIC half of a socket: what quinn takes for a UDP socket.
//!
//! Datagrams come from the receiving thread through a screen and by a bounded queue, and leave straight by the socket. What
//! quinn has no use for is dropped before it costs a task a wake-up. quinn's side takes the whole queue out at once and
//! copies it to quinn's buffers under a lock of its own: the receiving thread never waits for that.

mod cid;
mod screen;

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::send::MAX_SEGMENTS;
use super::socket::{Outgoing, Socket, errno};
use super::{Callers, Tally};
pub use cid::{Cids, NONCE};
use screen::Screen;
pub use screen::{CID, VERSION};

/// The most datagrams that wait.
const MAX_DATAGRAMS: usize = 1024;
/// The most bytes of them.
const MAX_BYTES: usize = 2 << 20;
/// Datagrams handed to quinn in one buffer: as many as it sends in one. quinn makes its buffers so many times as large as
/// the largest datagram it takes.
const MAX_HANDED: usize = 10;
/// Capacity that an empty queue keeps, in bytes.
const KEPT: usize = 256 << 10;

/// A socket of the port as quinn uses it. Made by [`Port::quic`](super::Port::quic).
#[derive(Debug)]
pub struct QuicSocket {
    socket: Arc<Socket>,
    tally: Arc<Tally>,
    inbox: Mutex<Inbox>,
    /// What quinn's side took out of the inbox in one piece and hands on bit by bit.
    taken: Mutex<Waiting>,
    /// Who may send what. The receiving thread holds it for one message, a sending task to note whom it sends to.
    screen: Mutex<Screen>,
    /// The connection IDs of this socket, by which a connection is known whatever address its peer has now.
    cids: Cids,
    callers: Callers,
    /// What left, datagram by datagram.
    #[cfg(test)]
    sent: Mutex<Vec<Vec<u8>>>,
    /// The last send found the socket's buffer full.
    full: AtomicBool,
}

#[derive(Debug, Default)]
struct Inbox {
    waiting: Waiting,
    /// Datagrams and bytes here and in `taken`.
    datagrams: usize,
    bytes: usize,
    waker: Option<Waker>,
    closed: bool,
}

/// Messages one behind the other.
#[derive(Default)]
struct Waiting {
    messages: VecDeque<Given>,
    bytes: VecDeque<u8>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} messages, {} bytes",
            self.messages.len(),
            self.bytes.len()
        )
    }
}

/// Datagrams of `segment` bytes, the last perhaps shorter, `length` bytes in all.
#[derive(Debug, Clone, Copy)]
struct Given {
    from: SocketAddr,
    local: Option<IpAddr>,
    ecn: u8,
    segment: usize,
    length: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl QuicSocket {
    pub(super) fn new(socket: Arc<Socket>, tally: Arc<Tally>, callers: Callers) -> QuicSocket {
        let cids = Cids::default();
        QuicSocket {
            socket,
            tally,
            inbox: Mutex::default(),
            taken: Mutex::default(),
            screen: Mutex::new(Screen::new(cids.clone(), callers)),
            cids,
            callers,
            #[cfg(test)]
            sent: Mutex::default(),
            full: AtomicBool::new(false),
        }
    }

    /// What makes the connection IDs of this socket.
    pub fn cids(&self) -> Cids {
        self.cids.clone()
    }

    /// The address it is bound to.
    pub fn local(&self) -> SocketAddr {
        self.socket.local
    }

    /// Who may begin a connection with it.
    pub fn callers(&self) -> Callers {
        self.callers
    }

    /// Lets the first packets of handshakes from `remote` pass, whatever all others send, while the answer lives.
    pub fn expect(self: &Arc<Self>, remote: SocketAddr) -> Expected {
        lock(&self.screen).expect(remote);
        Expected {
            socket: Arc::clone(self),
            remote,
        }
    }

    /// Remembers who was sent something.
    pub(super) fn note(&self, to: SocketAddr) {
        lock(&self.screen).sent(to, Instant::now());
    }

    /// Screens datagrams and queues for quinn those that pass; counts the others, and what finds too many waiting.
    pub(super) fn give(
        &self,
        from: SocketAddr,
        local: Option<IpAddr>,
        ecn: u8,
        segment: usize,
        bytes: &[u8],
    ) {
        if bytes.is_empty() {
            return;
        }
        let segment = segment.clamp(1, bytes.len());
        let queue = |bytes: &[u8]| {
            if !bytes.is_empty() {
                self.queue(
                    Given {
                        from,
                        local,
                        ecn,
                        segment: segment.min(bytes.len()),
                        length: bytes.len(),
                    },
                    bytes,
                );
            }
        };
        let mut screen = lock(&self.screen);
        let mut origin = screen.origin(from, Instant::now());
        // Where the datagrams begin that passed one behind the other: usually all of them.
        let (mut start, mut at, mut refused) = (0, 0, 0);
        for datagram in bytes.chunks(segment) {
            let end = at + datagram.len();
            if !origin.passes(datagram) {
                queue(bytes.get(start..at).unwrap_or_default());
                start = end;
                refused += 1;
            }
            at = end;
        }
        drop(screen);
        queue(bytes.get(start..).unwrap_or_default());
        if refused > 0 {
            self.tally.other.fetch_add(refused, Ordering::Relaxed);
        }
    }

    /// Queues datagrams for quinn, where not too many wait.
    fn queue(&self, given: Given, bytes: &[u8]) {
        let datagrams = bytes.len().div_ceil(given.segment.max(1));
        let mut inbox = lock(&self.inbox);
        let fits =
            inbox.datagrams + datagrams <= MAX_DATAGRAMS && inbox.bytes + bytes.len() <= MAX_BYTES;
        if !fits || inbox.closed {
            drop(inbox);
            self.count_dropped(datagrams);
            return;
        }
        inbox.datagrams += datagrams;
        inbox.bytes += bytes.len();
        inbox.waiting.messages.push_back(given);
        inbox.waiting.bytes.extend(bytes);
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// From now on nothing comes in. quinn would log an error as a fault of the network; to have nothing is no fault, and its
    /// endpoint ends with its last connection.
    pub(super) fn close(&self) {
        lock(&self.inbox).closed = true;
    }

    /// Does as if a send had found no room.
    #[cfg(test)]
    pub(super) fn pretend_full(&self) {
        self.full.store(true, Ordering::Release);
    }

    fn count_dropped(&self, datagrams: usize) {
        self.tally.quic_dropped.fetch_add(
            u64::try_from(datagrams).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// What left so far, datagram by datagram.
    #[cfg(test)]
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        lock(&self.sent).clone()
    }

    fn transmit(&self, message: Outgoing<'_>) -> Result<(), Errno> {
        self.socket.send(message).map_err(|error| errno(&error))?;
        #[cfg(test)]
        lock(&self.sent).extend(
            message
                .bytes
                .chunks(message.segment.unwrap_or(usize::MAX))
                .map(<[u8]>::to_vec),
        );
        Ok(())
    }

    /// The socket's buffer is full: every poller waits from now on.
    fn would_block(&self) -> io::Result<()> {
        self.full.store(true, Ordering::Release);
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Waiting {
    /// Moves the next whole datagrams that fit into `buffer`; drops a datagram larger than that. What was moved or
    /// dropped is taken off the front, and returned: the message of it, and whether it was dropped.
    fn pop(&mut self, buffer: &mut [u8]) -> Option<(Given, bool)> {
        let next = self.messages.front_mut()?;
        let whole = |bytes: usize| bytes / next.segment.max(1) * next.segment;
        let fitting = if next.length <= buffer.len() {
            next.length
        } else {
            whole(buffer.len()).max(next.segment)
        };
        let length = next
            .length
            .min(fitting)
            .min(next.segment.saturating_mul(MAX_HANDED));
        let out = Given { length, ..*next };
        next.length -= length;
        if next.length == 0 {
            self.messages.pop_front();
        }
        let place = buffer.get_mut(..length);
        let is_dropped = place.is_none();
        if let Some(place) = place {
            let (front, back) = self.bytes.as_slices();
            let (to_front, to_back) = place.split_at_mut(front.len().min(length));
            if let (Some(front), Some(back)) =
                (front.get(..to_front.len()), back.get(..to_back.len()))
            {
                to_front.copy_from_slice(front);
                to_back.copy_from_slice(back);
            }
        }
        self.bytes.drain(..length.min(self.bytes.len()));
        Some((out, is_dropped))
    }
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: self,
            writable: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (to, ecn, local) = (transmit.destination, transmit.ecn, transmit.src_ip);
        self.note(to);
        let segment = transmit
            .segment_size
            .filter(|size| (1..transmit.contents.len()).contains(size));
        let cut = segment.filter(|_| self.socket.gso.load(Ordering::Relaxed));
        let mut refused = None;
        if segment.is_none() || cut.is_some() {
            match self.transmit(Outgoing {
                bytes: transmit.contents,
                to,
                segment: cut,
                ecn,
                local,
            }) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => return self.would_block(),
                // Any other error is the network's: quinn finds the loss itself.
                Err(error @ (Errno::EIO | Errno::EINVAL)) if cut.is_some() => refused = Some(error),
                Err(_) => return Ok(()),
            }
        }
        // Without offload, or where it was just refused: one by one. One that goes alone shows that it was the offload.
        let mut any = false;
        for bytes in transmit
            .contents
            .chunks(segment.unwrap_or(transmit.contents.len()).max(1))
        {
            match self.transmit(Outgoing {
                bytes,
                to,
                segment: None,
                ecn,
                local,
            }) {
                Ok(()) => {
                    if let Some(error) = refused.filter(|_| !any) {
                        self.socket.refuse_gso(error);
                    }
                    any = true;
                }
                Err(Errno::EAGAIN) if !any => return self.would_block(),
                // Part of it is out: the rest counts as lost on the way.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut taken = lock(&self.taken);
        loop {
            if taken.messages.is_empty() {
                taken.bytes.clear();
                taken.bytes.shrink_to(KEPT);
                let mut inbox = lock(&self.inbox);
                if inbox.waiting.messages.is_empty() {
                    match &mut inbox.waker {
                        Some(waker) => waker.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
                std::mem::swap(&mut inbox.waiting, &mut taken);
            }
            let (mut count, mut datagrams, mut bytes, mut dropped) = (0, 0, 0, 0);
            let mut places = bufs.iter_mut().zip(meta.iter_mut());
            let mut place = places.next();
            while let Some((buffer, meta)) = &mut place {
                let Some((given, is_dropped)) = taken.pop(buffer) else {
                    break;
                };
                datagrams += given.length.div_ceil(given.segment.max(1));
                bytes += given.length;
                if is_dropped {
                    dropped += 1;
                    continue;
                }
                **meta = RecvMeta {
                    addr: given.from,
                    len: given.length,
                    stride: given.segment.min(given.length),
                    ecn: EcnCodepoint::from_bits(given.ecn),
                    dst_ip: given.local,
                };
                count += 1;
                place = places.next();
            }
            let mut inbox = lock(&self.inbox);
            inbox.datagrams = inbox.datagrams.saturating_sub(datagrams);
            inbox.bytes = inbox.bytes.saturating_sub(bytes);
            drop(inbox);
            if dropped > 0 {
                self.count_dropped(dropped);
            }
            if count > 0 || bufs.is_empty() || meta.is_empty() {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.socket.local)
    }

    fn max_transmit_segments(&self) -> usize {
        if self.socket.gso.load(Ordering::Relaxed) {
            MAX_SEGMENTS
        } else {
            1
        }
    }

    fn max_receive_segments(&self) -> usize {
        MAX_HANDED
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// An address whose first packets of handshakes pass while this lives.
#[derive(Debug)]
pub struct Expected {
    socket: Arc<QuicSocket>,
    remote: SocketAddr,
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.socket.screen).forget(self.remote);
    }
}

/// Waits for room in the socket's buffer, for one task.
///
/// The descriptor is with tokio's reactor only while a task waits: the kernel would else tell the reactor of every datagram
/// that the packet threads send and receive.
#[derive(Debug)]
struct Poller {
    socket: Arc<QuicSocket>,
    writable: Option<tokio::net::UdpSocket>,
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let writable = match &this.writable {
            Some(writable) => writable,
            None if !this.socket.full.load(Ordering::Acquire) => return Poll::Ready(Ok(())),
            // A descriptor of its own, for the reactor takes each but once. What is writable by now is told at once.
            None => this.writable.insert(tokio::net::UdpSocket::from_std(
                this.socket.socket.udp.try_clone()?,
            )?),
        };
        let result = ready!(writable.poll_send_ready(cx));
        this.writable = None;
        // Others that wait see it too; if the room is gone again, their next send says so.
        this.socket.full.store(false, Ordering::Release);
        Poll::Ready(result)
    }
}
