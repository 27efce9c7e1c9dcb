//! The way out: runs of frames, as many of one size as the kernel cuts in one call.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Shared;
use super::socket::{Outgoing, Socket, errno};

/// Segments the kernel cuts one message into (`UDP_MAX_SEGMENTS`; newer kernels take more).
pub(super) const MAX_SEGMENTS: usize = 64;
/// Bytes of one message: the largest UDP payload over IPv4.
const MAX_BYTES: usize = 65_507;
/// How long one call waits for room in the socket's buffer, in all.
const SEND_TIMEOUT: Duration = Duration::from_millis(10);

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
    /// The address that all its frames go to.
    pub to: SocketAddr,
    /// Our address they come from; none: the kernel chooses, as it does where we have that address no more.
    pub local: Option<IpAddr>,
    /// The helper socket that they leave by; none: one of the port's own.
    pub helper: Option<u16>,
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
#[derive(Debug)]
pub struct Sender {
    port: Arc<Shared>,
}

/// Frames of `segment` bytes in so many bytes.
fn frames(bytes: usize, segment: usize) -> u64 {
    u64::try_from(bytes.div_ceil(segment.max(1))).unwrap_or(u64::MAX)
}

impl Run {
    /// Frames of which nothing is done.
    fn left(&self, done: usize) -> u64 {
        frames(
            self.end.saturating_sub(self.start).saturating_sub(done),
            self.segment,
        )
    }

    /// The next message, `done` bytes being done: as many frames as the kernel cuts at once, or one where it cuts none.
    fn message<'a>(&self, buffer: &'a [u8], done: usize, gso: bool) -> Option<Outgoing<'a>> {
        let rest = buffer.get(self.start.checked_add(done)?..self.end)?;
        if self.segment == 0 {
            return None;
        }
        let frames = if gso {
            (MAX_BYTES / self.segment).clamp(1, MAX_SEGMENTS)
        } else {
            1
        };
        let bytes = rest.get(..self.segment.saturating_mul(frames).min(rest.len()))?;
        let segment = (bytes.len() > self.segment).then_some(self.segment);
        Some(Outgoing {
            bytes,
            to: self.to,
            segment,
            ecn: None,
            local: self.local,
        })
    }
}

/// Why frames did not leave.
enum Lost {
    /// The socket's buffer stayed full: the rest of the run is dropped.
    Full,
    /// They are larger than the interface carries, as is the rest of the run.
    TooBig,
    /// The kernel refused this message; the next one may pass.
    Refused,
}

impl Sender {
    pub(super) fn new(port: Arc<Shared>) -> Sender {
        Sender { port }
    }

    /// Sends the frames of `runs` in order.
    ///
    /// Waits at most 10 ms in all for room in the socket's buffer; what finds none is dropped. A run that cannot be sent
    /// never keeps the others back. Nothing is allocated.
    pub fn send(&mut self, buffer: &[u8], runs: &[Run]) -> Sent {
        let mut sent = Sent::default();
        let mut deadline = None;
        let tally = &self.port.tally;
        for (at, run) in runs.iter().enumerate() {
            let length = run.end.saturating_sub(run.start);
            let mut done = 0;
            let helpers = run.helper.map(|_| self.port.helpers.load());
            let helper = run.helper.zip(helpers.as_deref());
            while done < length {
                let socket = self.port.socket_of(helper, run.to);
                let gso = socket.is_some_and(|socket| socket.gso.load(Ordering::Relaxed));
                let Some((socket, message)) = socket.zip(run.message(buffer, done, gso)) else {
                    sent.frames_dropped += run.left(done);
                    tally
                        .send_failed
                        .fetch_add(run.left(done), Ordering::Relaxed);
                    break;
                };
                let (length, lost, counter) = match socket.deliver(message, &mut deadline) {
                    Ok(length) => {
                        done = done.saturating_add(length);
                        continue;
                    }
                    Err(Lost::Full) => (
                        length.saturating_sub(done),
                        run.left(done),
                        &tally.send_full,
                    ),
                    Err(Lost::TooBig) => {
                        sent.too_big.get_or_insert(at);
                        (
                            length.saturating_sub(done),
                            run.left(done),
                            &tally.send_failed,
                        )
                    }
                    Err(Lost::Refused) => (
                        message.bytes.len(),
                        frames(message.bytes.len(), run.segment),
                        &tally.send_failed,
                    ),
                };
                sent.frames_dropped += lost;
                counter.fetch_add(lost, Ordering::Relaxed);
                done = done.saturating_add(length);
            }
        }
        sent
    }
}

impl Socket {
    /// Sends a message; how many bytes of it are out: fewer than all where the kernel refused to cut it.
    fn deliver(
        &self,
        mut message: Outgoing<'_>,
        deadline: &mut Option<Instant>,
    ) -> Result<usize, Lost> {
        // What the kernel had against many frames at once, one alone tells.
        let mut refused = None;
        loop {
            let error = match self.send(message) {
                Ok(()) => {
                    if let Some(error) = refused {
                        self.refuse_gso(error);
                    }
                    return Ok(message.bytes.len());
                }
                Err(error) => errno(&error),
            };
            match (error, message.segment) {
                (Errno::EAGAIN, _) if wait_writable(self, deadline) => {}
                (Errno::EAGAIN, _) => return Err(Lost::Full),
                (Errno::EMSGSIZE, _) => return Err(Lost::TooBig),
                (error, _) if message.local.is_some() && is_not_ours(error) => message.local = None,
                (Errno::EINVAL | Errno::EIO, Some(segment)) => {
                    refused = Some(error);
                    let first = message.bytes.get(..segment).unwrap_or(message.bytes);
                    message = Outgoing {
                        bytes: first,
                        segment: None,
                        ..message
                    };
                }
                // No route, a firewall's refusal, an ICMP error heard meanwhile: the peer's affair, and it passes.
                _ => return Err(Lost::Refused),
            }
        }
    }
}

/// Whether the kernel says so where a message was to come from an address that is none of ours (any more).
pub(super) fn is_not_ours(error: Errno) -> bool {
    matches!(
        error,
        Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH
    )
}

/// Waits for room in the socket's buffer until `deadline`, which the first call sets; whether there is some.
fn wait_writable(socket: &Socket, deadline: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let left = deadline
        .get_or_insert(now + SEND_TIMEOUT)
        .saturating_duration_since(now);
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
