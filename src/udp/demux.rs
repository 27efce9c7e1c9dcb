//! The way in: all sockets of a port read by one thread, which gets our datagrams; QUIC's go to their half of the socket.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use quinn::udp::{BATCH_SIZE, RecvMeta, UdpSockRef};

use super::helpers::Ready;
use super::socket::Socket;
use super::{MAX_SOCKETS, Shared};
use crate::limit::Pace;
use crate::wire::relay;

/// Messages that one call may bring.
const MAX_RECEIVED: usize = BATCH_SIZE;
/// Bytes one message may bring: the largest that GRO makes.
const MAX_MESSAGE: usize = 65_536;

/// A flood of what is relayed begins with so many pieces in [`PACE_WINDOW`]: far more than questions and answers make.
const FLOOD: u32 = 8;
/// How long relayed pieces are counted before a flood is told from none.
const PACE_WINDOW: Duration = Duration::from_millis(1);
/// How long the pieces of a flood may gather in the sockets before they are read.
const REST: Duration = Duration::from_micros(50);

/// What a datagram is, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A sealed frame, which the receiving thread takes.
    Ours,
    Quic,
    /// An answer of a STUN server that was asked; else a datagram that nobody here takes.
    Other,
}

/// Tells by its first byte what a datagram is.
pub(super) const fn class(first: u8) -> Class {
    match first {
        0x00..=0x03 => Class::Other,
        0x04..=0x3f => Class::Ours,
        0x40..=0xff => Class::Quic,
    }
}

/// The port was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the port is closed")]
pub struct Closed;

/// A datagram of ours.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// The address it came from, which nobody has checked yet.
    pub from: SocketAddr,
    /// Our address that it was sent to; none where the socket is bound to one.
    pub local: Option<IpAddr>,
    /// The helper socket that it came by; none for the port's own sockets.
    pub helper: Option<u16>,
    /// The bytes of the datagram; at least one.
    pub bytes: &'a [u8],
}

/// What the kernel gave in one piece: datagrams from one address, at `0..segment`, `segment..2 * segment` and so on; the
/// last may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// Which socket it came by, as in the addresses given to [`Port::bind`](super::Port::bind); behind these: a helper.
    pub(super) socket: usize,
    /// The number of that helper.
    pub(super) helper: Option<u16>,
    pub(super) from: SocketAddr,
    /// All datagrams; empty for an empty datagram.
    pub(super) bytes: &'a [u8],
    /// Bytes of each datagram but the last; at least 1.
    pub(super) segment: usize,
    /// The two ECN bits, the same for all.
    pub(super) ecn: u8,
    /// Our address they were sent to; none where the socket is bound to one.
    pub(super) local: Option<IpAddr>,
}

/// Reads the sockets of a port; owned by the receiving thread.
pub struct Receiver {
    port: Arc<Shared>,
    batch: Batch,
    /// The runs of this batch that were taken, in their order.
    taken: Vec<Taken>,
    /// How each of the port's own sockets is read, and behind them how the helpers are.
    sockets: Vec<Reading>,
    ready: Ready,
    /// The socket the last batch came by.
    current: usize,
    helper: Option<(u16, Arc<Socket>)>,
    came: usize,
    /// Counts the pieces that were relayed.
    pace: Pace,
    /// Whether they were many when the sockets were last read to their end.
    is_flood: bool,
}

/// Datagrams for a relay or from one that came in one piece: equal in what [`relay::index`] reads of them, `segment` bytes
/// each, the last perhaps shorter.
#[derive(Debug)]
pub struct Relayed<'a> {
    /// The address they came from, which nobody has checked yet.
    pub from: SocketAddr,
    /// Our address that they were sent to; none where the socket is bound to one.
    pub local: Option<IpAddr>,
    /// The datagrams, one behind the other.
    pub bytes: &'a mut [u8],
    /// Bytes of each datagram but the last; at least 1.
    pub segment: usize,
    /// Whether more is on the heels of these: they may be held back until none come.
    pub is_flood: bool,
}

/// Datagrams that nobody else gets.
#[derive(Debug, Clone, Copy)]
struct Taken {
    message: usize,
    start: usize,
    end: usize,
}

/// How a socket is read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Whether it is not yet read to its end.
    ready: bool,
    /// Messages asked for at once: 1 while most of them are datagrams that the kernel joined (then one message is up to
    /// 64 KiB, and one hot buffer is faster than many), up to 32 while most are single ones.
    at_once: usize,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("port", &self.port)
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    pub(super) fn new(port: Arc<Shared>) -> Receiver {
        let sockets = vec![
            Reading {
                ready: true,
                at_once: 1
            };
            port.sockets.len().saturating_add(1)
        ];
        Receiver {
            port,
            batch: Batch::new(),
            taken: Vec::new(),
            sockets,
            ready: Ready::default(),
            current: 0,
            helper: None,
            came: 0,
            pace: Pace::new(Instant::now(), FLOOD, PACE_WINDOW),
            is_flood: false,
        }
    }

    /// Blocks until datagrams come, and gives what one read brought.
    ///
    /// # Errors
    /// [`Closed`] once [`Port::close`](super::Port::close) was called and all sockets are read to their end.
    pub fn next_batch(&mut self) -> Result<Datagrams<'_>, Closed> {
        self.next_batch_past(|| false, |_| false)
    }

    /// The same; but where `is_relay` says so, `take` is first shown whatever is for a relay or from one, and what it takes
    /// is not given again. It is given none where nothing more has come for now: what it held back is to leave then.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn next_batch_past(
        &mut self,
        is_relay: impl FnOnce() -> bool,
        mut take: impl FnMut(Option<Relayed<'_>>) -> bool,
    ) -> Result<Datagrams<'_>, Closed> {
        while self.recv() == 0 {
            take(None);
            self.rest();
            self.wait()?;
        }
        self.taken.clear();
        if is_relay() {
            for message in 0..self.came {
                self.take_relayed(message, &mut take);
            }
            self.pace
                .count(u32::try_from(self.taken.len()).unwrap_or(u32::MAX));
        }
        Ok(Datagrams {
            receiver: self,
            next: 0,
            current: None,
            at: 0,
            passed: 0,
        })
    }

    /// Lets pieces gather while a flood is relayed: a thread that is awake anyhow reads several of them, where each by itself
    /// would have to wake it.
    fn rest(&mut self) {
        self.is_flood = !self.taken.is_empty() && self.pace.is_flood(Instant::now());
        if self.is_flood {
            std::thread::sleep(REST);
        }
    }

    /// Shows what is a relay's in one message to `take`.
    fn take_relayed(&mut self, message: usize, take: &mut impl FnMut(Option<Relayed<'_>>) -> bool) {
        let is_flood = self.is_flood;
        let Some(socket) = self.port.sockets.get(self.current) else {
            return;
        };
        let Some((meta, bytes)) = self.batch.message_mut(message) else {
            return;
        };
        let (from, segment) = (meta.addr, meta.stride.max(1));
        let local = meta.dst_ip.filter(|_| socket.local.ip().is_unspecified());
        let mut start = 0;
        while start < bytes.len() {
            let rest = bytes.get(start..).unwrap_or_default();
            let of = relay::index(rest);
            let mut run = segment.min(rest.len());
            if of.is_some() {
                while run < rest.len() && relay::index(rest.get(run..).unwrap_or_default()) == of {
                    run = run.saturating_add(segment).min(rest.len());
                }
            }
            let end = start.saturating_add(run);
            if of.is_some()
                && let Some(bytes) = bytes.get_mut(start..end)
                && take(Some(Relayed {
                    from,
                    local,
                    bytes,
                    segment,
                    is_flood,
                }))
            {
                self.taken.push(Taken {
                    message,
                    start,
                    end,
                });
            }
            start = end;
        }
    }

    /// Waits until there is something to [`recv`](Receiver::recv).
    ///
    /// # Errors
    /// [`Closed`] once [`Port::close`](super::Port::close) was called, whatever else waits.
    pub(super) fn wait(&mut self) -> Result<(), Closed> {
        loop {
            if self.port.closed.load(Ordering::Acquire) {
                return Err(Closed);
            }
            self.helper = None;
            let (woken, own) = (self.port.woken.as_fd(), self.port.sockets.len());
            let mut fds: [PollFd<'_>; MAX_SOCKETS + 2] = std::array::from_fn(|index| {
                let fd = match self.port.sockets.get(index) {
                    Some(socket) => socket.as_fd(),
                    None if index == own => self.port.helpers.as_fd(),
                    None => woken,
                };
                PollFd::new(fd, PollFlags::POLLIN)
            });
            // The places behind the sockets and the helpers all hold the pipe: one of them is asked.
            let asked = fds.get_mut(..own.saturating_add(2)).unwrap_or_default();
            let events = match poll(asked, PollTimeout::NONE) {
                Ok(_) => PollFlags::empty(),
                Err(Errno::EINTR) => continue,
                // Not seen of so few descriptors: reading tells more.
                Err(_) => PollFlags::POLLIN,
            };
            for (reading, fd) in self.sockets.iter_mut().zip(&fds) {
                reading.ready = !fd.revents().unwrap_or(events).union(events).is_empty();
            }
            if self.sockets.iter().any(|reading| reading.ready) {
                return Ok(());
            }
        }
    }

    /// Reads one batch from the next socket that has something; how many messages came, 0 when all sockets are read to
    /// their end (then [`wait`](Receiver::wait)). The messages of the batch before are gone.
    pub(super) fn recv(&mut self) -> usize {
        self.came = 0;
        for _ in 0..self.sockets.len() {
            self.current = if self.current + 1 < self.sockets.len() {
                self.current + 1
            } else {
                0
            };
            let Some(reading) = self.sockets.get_mut(self.current) else {
                break;
            };
            let is_helper = self.current >= self.port.sockets.len();
            while reading.ready {
                let socket = match self.port.sockets.get(self.current) {
                    Some(socket) => socket,
                    None => match next_helper(&self.port, &mut self.ready) {
                        Some(found) => &self.helper.insert(found).1,
                        None => {
                            reading.ready = false;
                            continue;
                        }
                    },
                };
                match self.batch.receive(socket, reading.at_once) {
                    Ok(came) => {
                        let (datagrams, joined) = self.batch.count(came);
                        // Fewer than asked for: the call met the end itself.
                        reading.ready =
                            came == reading.at_once || reading.at_once == 1 || is_helper;
                        reading.at_once = match joined >= came.div_ceil(2) {
                            true => (reading.at_once / 2).max(1),
                            false => (reading.at_once * 2).min(MAX_RECEIVED),
                        };
                        self.port
                            .tally
                            .received
                            .fetch_add(datagrams, Ordering::Relaxed);
                        self.came = came;
                        return came;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // An ICMP error about something sent earlier is reported once, then reading goes on.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
                    // Nothing left; or an error that poll reports again if it stays.
                    Err(e) => {
                        reading.ready = is_helper && e.kind() == io::ErrorKind::WouldBlock;
                    }
                }
            }
        }
        0
    }

    /// The `index`th message of the last batch.
    pub(super) fn message(&self, index: usize) -> Option<Message<'_>> {
        let (meta, bytes) = self.batch.message(index).filter(|_| index < self.came)?;
        let (helper, socket) = match (self.port.sockets.get(self.current), &self.helper) {
            (Some(socket), _) => (None, socket),
            (None, Some((number, socket))) => (Some(*number), socket),
            (None, None) => return None,
        };
        Some(Message {
            socket: self.current,
            helper,
            from: meta.addr,
            bytes,
            segment: meta.stride.max(1),
            ecn: meta.ecn.map_or(0, |ecn| ecn as u8),
            local: meta.dst_ip.filter(|_| socket.local.ip().is_unspecified()),
        })
    }

    /// Gives datagrams of one message to the QUIC half of its socket. What it refuses, or finds its queue full, is counted.
    fn give_quic(&self, message: &Message<'_>, bytes: &[u8]) {
        match self.port.quic.get(message.socket) {
            Some(quic) => quic.give(
                message.from,
                message.local,
                message.ecn,
                message.segment,
                bytes,
            ),
            // A helper has no half for QUIC.
            None => {
                let count = bytes.len().div_ceil(message.segment.max(1));
                let count = u64::try_from(count).unwrap_or(0);
                self.port.tally.foreign.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// A helper that has something to be read, as far as is known.
fn next_helper(port: &Shared, ready: &mut Ready) -> Option<(u16, Arc<Socket>)> {
    let mut is_fresh = false;
    loop {
        while let Some(number) = ready.take() {
            // One that was closed meanwhile is found no more.
            if let Some(socket) = port.helpers.load().get(&number) {
                return Some((number, Arc::clone(socket)));
            }
        }
        if is_fresh {
            return None;
        }
        port.helpers.look(ready);
        is_fresh = true;
    }
}

/// The datagrams of ours that one read brought. QUIC's between them go to their half of the socket, others are counted.
#[derive(Debug)]
pub struct Datagrams<'a> {
    receiver: &'a Receiver,
    /// The message after the current one.
    next: usize,
    current: Option<Message<'a>>,
    /// Where in the current message the next datagram begins.
    at: usize,
    /// How many of the runs that were taken lie behind us.
    passed: usize,
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = Datagram<'a>;

    fn next(&mut self) -> Option<Datagram<'a>> {
        loop {
            let Some(message) = self
                .current
                .as_ref()
                .filter(|message| self.at < message.bytes.len())
            else {
                if self.next >= self.receiver.came {
                    return None;
                }
                self.current = self.receiver.message(self.next);
                (self.next, self.at) = (self.next.saturating_add(1), 0);
                continue;
            };
            if let Some(taken) = self.receiver.taken.get(self.passed)
                && (taken.message.saturating_add(1), taken.start) == (self.next, self.at)
            {
                self.passed = self.passed.saturating_add(1);
                self.at = taken.end;
                continue;
            }
            let (start, length) = (self.at, message.bytes.len());
            let end = |start: usize| start.saturating_add(message.segment.max(1)).min(length);
            self.at = end(start);
            match class(message.bytes.get(start).copied().unwrap_or(0)) {
                Class::Ours => {
                    let bytes = message.bytes.get(start..self.at)?;
                    return Some(Datagram {
                        from: message.from,
                        local: message.local,
                        helper: message.helper,
                        bytes,
                    });
                }
                Class::Other => {
                    let port = &self.receiver.port;
                    let bytes = message.bytes.get(start..self.at).unwrap_or_default();
                    if message.helper.is_some() || !port.stun.take(message.from, bytes) {
                        port.tally.foreign.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Class::Quic => {
                    // And those behind it, in one piece.
                    while message
                        .bytes
                        .get(self.at)
                        .is_some_and(|first| class(*first) == Class::Quic)
                    {
                        self.at = end(self.at);
                    }
                    self.receiver.give_quic(
                        message,
                        message.bytes.get(start..self.at).unwrap_or_default(),
                    );
                }
            }
        }
    }
}

/// What one call brought.
struct Batch {
    metas: [RecvMeta; MAX_RECEIVED],
    /// The memory is taken from the system when a message is first written to it: 2 MiB, of which little is touched.
    memory: Vec<u8>,
}

impl Batch {
    fn new() -> Batch {
        Batch {
            metas: [RecvMeta::default(); MAX_RECEIVED],
            memory: vec![0; MAX_MESSAGE * MAX_RECEIVED],
        }
    }

    /// Receives at most `limit` messages in one call; how many came. Never blocks.
    fn receive(&mut self, socket: &Socket, limit: usize) -> io::Result<usize> {
        let mut places = self.memory.chunks_exact_mut(MAX_MESSAGE).take(limit);
        let mut buffers: [_; MAX_RECEIVED] =
            std::array::from_fn(|_| IoSliceMut::new(places.next().unwrap_or_default()));
        let buffers = buffers.get_mut(..limit).unwrap_or_default();
        socket
            .state
            .recv(UdpSockRef::from(&socket.udp), buffers, &mut self.metas)
    }

    fn message(&self, index: usize) -> Option<(&RecvMeta, &[u8])> {
        let meta = self.metas.get(index)?;
        let start = index.checked_mul(MAX_MESSAGE)?;
        Some((meta, self.memory.get(start..start.checked_add(meta.len)?)?))
    }

    fn message_mut(&mut self, index: usize) -> Option<(RecvMeta, &mut [u8])> {
        let meta = *self.metas.get(index)?;
        let start = index.checked_mul(MAX_MESSAGE)?;
        Some((
            meta,
            self.memory.get_mut(start..start.checked_add(meta.len)?)?,
        ))
    }

    /// Datagrams in the first `came` messages, and in how many of these the kernel joined some.
    fn count(&self, came: usize) -> (u64, usize) {
        self.metas
            .iter()
            .take(came)
            .fold((0, 0), |(datagrams, joined), meta| {
                let here = meta.len.div_ceil(meta.stride.max(1)).max(1);
                (
                    datagrams + u64::try_from(here).unwrap_or(0),
                    joined + usize::from(meta.stride < meta.len),
                )
            })
    }
}
