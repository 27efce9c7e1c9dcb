//! The way out: runs of frames, many in one call.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Shared;
use super::socket::Socket;
use super::sys::{self, Outgoing, SendBatch};

/// Segments the kernel cuts one message into (`UDP_MAX_SEGMENTS`; newer kernels take more).
pub(super) const MAX_SEGMENTS: usize = 64;
/// Bytes of one message: the largest UDP payload over IPv4.
const MAX_BYTES: usize = 65_507;
/// Messages of one call.
const MAX_MESSAGES: usize = 64;
/// How long one call waits for room in the socket's buffer, in all.
const PATIENCE: Duration = Duration::from_millis(10);

/// Equal frames that lie one behind the other in a buffer and go to one address.
///
/// At most 64 frames and 65,507 bytes go to the kernel in one piece; longer runs are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where the first frame begins.
    pub start: usize,
    /// Where the last frame ends.
    pub end: usize,
    /// Bytes of each frame; the last may be shorter.
    pub segment: usize,
    /// Where they go.
    pub to: SocketAddr,
    /// Our address they come from; none: the kernel chooses, as it does where we have that address no more.
    pub local: Option<IpAddr>,
}

/// What became of the runs of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames that were not handed to the kernel.
    pub frames_dropped: u64,
    /// The first run whose frames are larger than its interface carries.
    pub too_big: Option<usize>,
}

/// Sends frames; one per sending thread.
pub struct Sender {
    port: Arc<Shared>,
    batch: Box<SendBatch<MAX_MESSAGES>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("port", &self.port).finish_non_exhaustive()
    }
}

/// What is next: so many bytes of that run are done.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    run: usize,
    done: usize,
}

/// The messages of consecutive runs of one family.
#[derive(Clone)]
struct Messages<'a> {
    buffer: &'a [u8],
    runs: &'a [Run],
    at: Cursor,
    is_ipv4: bool,
    gso: bool,
    /// The kernel chooses our address, whatever the runs say.
    free: bool,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Outgoing<'a>;

    fn next(&mut self) -> Option<Outgoing<'a>> {
        let run = self.runs.get(self.at.run).filter(|run| run.to.is_ipv4() == self.is_ipv4)?;
        let rest = self.buffer.get(run.start.checked_add(self.at.done)?..run.end)?;
        if rest.is_empty() || run.segment == 0 {
            return None;
        }
        let frames = if self.gso { (MAX_BYTES / run.segment).clamp(1, MAX_SEGMENTS) } else { 1 };
        let length = run.segment.saturating_mul(frames).min(rest.len());
        self.at = match length == rest.len() {
            true => Cursor { run: self.at.run.saturating_add(1), done: 0 },
            false => Cursor { run: self.at.run, done: self.at.done.saturating_add(length) },
        };
        let segment = if length > run.segment { u16::try_from(run.segment).ok() } else { None };
        let local = run.local.filter(|_| !self.free);
        Some(Outgoing { bytes: rest.get(..length)?, to: run.to, segment, ecn: None, local })
    }
}

/// Frames of `segment` bytes in so many bytes.
fn frames(bytes: usize, segment: usize) -> u64 {
    u64::try_from(bytes.div_ceil(segment.max(1))).unwrap_or(u64::MAX)
}

impl Run {
    /// Frames of which nothing is done.
    fn left(&self, done: usize) -> u64 {
        frames(self.end.saturating_sub(self.start).saturating_sub(done), self.segment)
    }
}

impl Sender {
    pub(super) fn new(port: Arc<Shared>) -> Sender {
        Sender { port, batch: Box::new(SendBatch::new()) }
    }

    /// Sends the frames of `runs` in order, with one system call where all go by one socket.
    ///
    /// Waits at most 10 ms in all for room in the socket's buffer; what finds none is dropped. A run that cannot be sent
    /// never keeps the others back. Nothing is allocated.
    pub fn send(&mut self, buffer: &[u8], runs: &[Run]) -> Sent {
        let mut sent = Sent::default();
        let (mut deadline, mut free) = (None, false);
        let mut at = Cursor { run: 0, done: 0 };
        let tally = &self.port.tally;
        while let Some(run) = runs.get(at.run) {
            let next_run = Cursor { run: at.run.saturating_add(1), done: 0 };
            let Some(socket) = self.port.socket_to(run.to) else {
                sent.frames_dropped += run.left(at.done);
                tally.send_failed.fetch_add(run.left(at.done), Ordering::Relaxed);
                at = next_run;
                continue;
            };
            let gso = socket.gso.load(Ordering::Relaxed);
            let mut messages = Messages { buffer, runs, at, is_ipv4: run.to.is_ipv4(), gso, free };
            let error = match self.batch.send(socket.as_fd(), messages.clone()) {
                Ok(0) => Errno::EINVAL,
                Ok(count) => {
                    messages.by_ref().take(count).for_each(drop);
                    at = messages.at;
                    continue;
                }
                Err(error) => errno(&error),
            };
            let (after, lost, counter) = match error {
                Errno::EINTR => continue,
                Errno::EAGAIN if wait_writable(socket, &mut deadline) => continue,
                Errno::EAGAIN => (next_run, run.left(at.done), &tally.send_full),
                Errno::EMSGSIZE => {
                    sent.too_big.get_or_insert(at.run);
                    (next_run, run.left(at.done), &tally.send_failed)
                }
                error if is_not_ours(error) && run.local.is_some() && !free => {
                    free = true;
                    continue;
                }
                Errno::EINVAL | Errno::EIO => match messages.next() {
                    // What the kernel has against many at once, one frame alone tells.
                    Some(Outgoing { bytes, to, segment: Some(segment), local, .. }) => {
                        let first = bytes.get(..usize::from(segment)).unwrap_or(bytes);
                        let alone = Outgoing { bytes: first, to, segment: None, ecn: None, local };
                        match sys::send_one(socket.as_fd(), alone) {
                            Ok(()) => {
                                socket.refuse_gso(error);
                                at.done = at.done.saturating_add(first.len());
                                continue;
                            }
                            Err(alone) if matches!(errno(&alone), Errno::EINTR) => continue,
                            Err(alone) if matches!(errno(&alone), Errno::EAGAIN) => {
                                if wait_writable(socket, &mut deadline) {
                                    continue;
                                }
                                (next_run, run.left(at.done), &tally.send_full)
                            }
                            Err(alone) => {
                                if matches!(errno(&alone), Errno::EMSGSIZE) {
                                    sent.too_big.get_or_insert(at.run);
                                }
                                (next_run, run.left(at.done), &tally.send_failed)
                            }
                        }
                    }
                    _ => (next_run, run.left(at.done), &tally.send_failed),
                },
                // No route, a firewall's refusal, an ICMP error heard meanwhile: the peer's affair, and it passes.
                _ => match messages.next() {
                    Some(message) => (messages.at, frames(message.bytes.len(), run.segment), &tally.send_failed),
                    None => (next_run, run.left(at.done), &tally.send_failed),
                },
            };
            sent.frames_dropped += lost;
            counter.fetch_add(lost, Ordering::Relaxed);
            at = after;
        }
        sent
    }
}

/// Whether the kernel says so where a message was to come from an address that is none of ours (any more).
pub(super) fn is_not_ours(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH)
}

pub(super) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Waits for room in the socket's buffer until `deadline`, which the first call sets; whether there is some.
fn wait_writable(socket: &Socket, deadline: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let left = deadline.get_or_insert(now + PATIENCE).saturating_duration_since(now);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    if left.is_zero() {
        return false;
    }
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, timeout) {
        Ok(ready) => ready > 0,
        Err(errno) => errno == Errno::EINTR,
    }
}
