//! One UDP port for everything: our sealed datagrams and libp2p's QUIC, told apart by their first byte.
//!
//! Owns one socket per address (one per family, usually), their buffers and what the kernel has of segmentation (GSO on the
//! way out, GRO on the way in), with a fallback for each. Has no thread: any number of threads send, each by its [`Sender`];
//! one reads by the [`Receiver`], gets ours, and gives QUIC's to the [`QuicSocket`]s, which screen them. Receiving is
//! quinn-udp's; sending is ours, because quinn-udp can name the address that a datagram comes from and not the link.
//!
//! One call sends one message, and asks for one or many. Against `sendmmsg` and `recvmmsg` of our own, measured on
//! two busy cores: one message costs 3 % more to send (0.1 us) and 6 % more to receive (0.09 us), 24 of different sizes 9 %
//! more to send; but of two hosts' traffic 5 calls in 24,000 had more than one to send. Both daemons need the same
//! processor time per GB of TCP (ratio of medians 1.00 in ten interleaved pairs), and 0.96 to 1.09 of it per UDP datagram,
//! which is the spread of the measurement.
//!
//! | first byte | what |
//! |---|---|
//! | 0x00-0x03 | STUN begins so (RFC 7983): an answer that was asked for, and nothing else |
//! | 0x04-0x3f | ours; while this node relays, 0x05 and 0x06 go to its relay first |
//! | 0x40-0xff | QUIC, whose fixed bit is never greased here (RFC 9000 17.2, 17.3) |
//!
//! | file | |
//! |---|---|
//! | `socket` | one socket: how it is made, one message out |
//! | `control` | what goes to the kernel beside a message |
//! | `exits` | by which link the datagrams from an address of ours leave |
//! | `send` | runs of frames out, many of one size in one call |
//! | `demux` | all sockets read by one thread; which datagram is whose |
//! | `quic` | the QUIC half of a socket |
//! | `helpers` | further sockets, opened and closed while the port works |
//! | `stun` | where a STUN server sees the port |

mod control;
mod demux;
mod exits;
mod helpers;
pub mod quic;
mod send;
mod socket;
mod stun;

use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub use demux::{Closed, Datagram, Datagrams, Receiver, Relayed};
pub use exits::{Exit, Source};
pub use helpers::MAX_HELPERS;
pub use quic::{Expected, QuicSocket};
pub use send::{Run, Sender, Sent};
pub use stun::Transaction;

use exits::Exits;
use helpers::Helpers;
use send::is_not_ours;
use socket::{Outgoing, Socket, errno};
use stun::Stun;

/// Sockets of one port at most.
pub const MAX_SOCKETS: usize = 8;

/// How the sockets are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes the kernel keeps of what came and was not yet read; beyond the system's limit only with `CAP_NET_ADMIN`.
    pub receive_buffer: usize,
    /// Bytes the kernel keeps of what was sent and has not yet left.
    pub send_buffer: usize,
    /// The mark of what is sent (`SO_MARK`, needs `CAP_NET_ADMIN`).
    pub mark: Option<u32>,
    /// Who may begin a QUIC connection with the port.
    pub callers: Callers,
}

/// Who may begin a QUIC connection with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Anybody, as often as the screen allows.
    Anybody,
    /// Only addresses whose first packets are [expected](QuicSocket::expect): the port is for dials of its owner. What others
    /// send to begin a connection is dropped unanswered, and counted as [`Counts::other`].
    Expected,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            receive_buffer: receive_buffer(Duration::ZERO),
            send_buffer: 4 << 20,
            mark: None,
            callers: Callers::Anybody,
        }
    }
}

/// Bytes to keep of what came, for a round trip to the peers that send: 1 MiB, five times the usual and about a millisecond
/// of traffic when the receiving thread is late, and as much again for each 10 ms, up to 8 MiB.
///
/// A longer way pays more for what is lost, and less for what waits. Measured with four CUBIC streams on two busy cores: without
/// delay a ping beside them takes 5 to 7 ms with 8 MiB, 3 with 2, 1.5 to 2 with 1, at the same throughput; with 20 ms of
/// delay they have 0.7 of the throughput without overlay with 1 MiB, 0.8 with 2, 0.9 with 4, and the ping takes 0.9, 1.4
/// and 2.4 ms longer.
pub fn receive_buffer(rtt: Duration) -> usize {
    let steps = usize::try_from(rtt.as_millis() / 10).unwrap_or(usize::MAX);
    steps.saturating_add(1).min(8) << 20
}

/// How a port fares, since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams that came in, of whatever kind.
    pub received: u64,
    /// Datagrams that are neither ours nor QUIC, nor look like answers of STUN.
    pub foreign: u64,
    /// QUIC datagrams of strangers that begin no connection, or one too many in a second, or one where nobody may.
    pub other: u64,
    /// QUIC datagrams dropped because too many waited.
    pub quic_dropped: u64,
    /// Frames dropped because the socket's buffer stayed full.
    pub send_full: u64,
    /// Frames the kernel refused for another reason: too large, no route, no socket of that family.
    pub send_failed: u64,
    /// Messages that the kernel refused to send by the link of their address, and took without it.
    pub exit_refused: u64,
    /// Datagrams that pretended to answer a question of STUN.
    pub stun_refused: u64,
}

/// One UDP port. Clones are the same port; its sockets are closed with the last clone, sender, receiver and QUIC half.
#[derive(Debug, Clone)]
pub struct Port(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sockets: Vec<Arc<Socket>>,
    quic: Vec<Arc<QuicSocket>>,
    helpers: Helpers,
    callers: Callers,
    exits: Arc<Exits>,
    stun: Stun,
    tally: Arc<Tally>,
    closed: AtomicBool,
    has_receiver: AtomicBool,
    wake: PipeWriter,
    woken: PipeReader,
}

#[derive(Debug, Default)]
struct Tally {
    received: AtomicU64,
    foreign: AtomicU64,
    other: AtomicU64,
    quic_dropped: AtomicU64,
    send_full: AtomicU64,
    send_failed: AtomicU64,
}

impl Port {
    /// Binds one socket to each of `addresses`. Where a port is 0 the kernel chooses one for the first such address, and
    /// all others take the same.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where another socket has one of the addresses, [`io::ErrorKind::InvalidInput`] for no
    /// address or more than [`MAX_SOCKETS`], [`io::ErrorKind::PermissionDenied`] for a mark without `CAP_NET_ADMIN`.
    pub fn bind(addresses: &[SocketAddr], options: &Options) -> io::Result<Port> {
        if addresses.is_empty() || addresses.len() > MAX_SOCKETS {
            let message = format!(
                "bind {} UDP addresses: 1 to {MAX_SOCKETS} are possible",
                addresses.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (tally, exits) = (Arc::new(Tally::default()), Arc::new(Exits::default()));
        let mut sockets: Vec<Arc<Socket>> = Vec::with_capacity(addresses.len());
        let mut chosen = 0;
        for address in addresses {
            let mut address = *address;
            let is_free = address.port() == 0;
            if is_free {
                address.set_port(chosen);
            }
            let socket = Socket::bind(address, options, exits.clone())
                .map_err(|e| io::Error::new(e.kind(), format!("bind UDP {address}: {e}")))?;
            if is_free {
                chosen = socket.local.port();
            }
            sockets.push(Arc::new(socket));
        }
        let quic = sockets
            .iter()
            .map(|s| Arc::new(QuicSocket::new(s.clone(), tally.clone(), options.callers)))
            .collect();
        let (woken, wake) = io::pipe()?;
        let helpers = Helpers::new(options, &sockets, exits.clone())?;
        Ok(Port(Arc::new(Shared {
            sockets,
            quic,
            helpers,
            callers: options.callers,
            exits,
            stun: Stun::default(),
            tally,
            closed: AtomicBool::new(false),
            has_receiver: AtomicBool::new(false),
            wake,
            woken,
        })))
    }

    /// Makes a sender, for one thread.
    pub fn sender(&self) -> Sender {
        Sender::new(self.0.clone())
    }

    /// Sends one datagram now or not at all; from our address `local`, if it is that, else from one the kernel chooses.
    ///
    /// # Errors
    /// As `sendto`: [`io::ErrorKind::WouldBlock`] while the socket's buffer is full, `EMSGSIZE` for more than the interface
    /// carries, [`io::ErrorKind::AddrNotAvailable`] where no socket has the family of `to`.
    pub fn send_one(&self, bytes: &[u8], to: SocketAddr, local: Option<IpAddr>) -> io::Result<()> {
        self.send_one_by(None, bytes, to, local)
    }

    /// The same by the helper socket of that number.
    ///
    /// # Errors
    /// As [`send_one`](Self::send_one); [`io::ErrorKind::AddrNotAvailable`] where that helper is closed.
    pub fn send_one_by(
        &self,
        helper: Option<u16>,
        bytes: &[u8],
        to: SocketAddr,
        local: Option<IpAddr>,
    ) -> io::Result<()> {
        let count = |error: io::Error| {
            let counter = match error.kind() {
                io::ErrorKind::WouldBlock => &self.0.tally.send_full,
                _ => &self.0.tally.send_failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            error
        };
        let helpers = helper.map(|_| self.0.helpers.load());
        let socket = self
            .0
            .socket_of(helper.zip(helpers.as_deref()), to)
            .ok_or_else(|| count(io::ErrorKind::AddrNotAvailable.into()))?;
        let message = Outgoing {
            bytes,
            to,
            segment: None,
            ecn: None,
            local,
        };
        match socket.send(message) {
            Err(e) if local.is_some() && is_not_ours(errno(&e)) => socket.send(Outgoing {
                local: None,
                ..message
            }),
            other => other,
        }
        .map_err(count)
    }

    /// Opens a helper socket for IPv4; its number, which names it in a [`Run`] and a [`Datagram`].
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] where there are [`MAX_HELPERS`]; else as `bind`, where descriptors run out among others.
    pub fn open_helper(&self) -> io::Result<u16> {
        self.0.helpers.open()
    }

    /// Closes all helper sockets but those that `stays` names; what is sent by one of the others is refused from now on.
    pub fn retain_helpers(&self, stays: impl Fn(u16) -> bool) {
        self.0.helpers.retain(stays);
    }

    /// Gives out the one receiver at the first call, and none from then on.
    pub fn receiver(&self) -> Option<Receiver> {
        let is_first = !self.0.has_receiver.swap(true, Ordering::AcqRel);
        is_first.then(|| Receiver::new(self.0.clone()))
    }

    /// The QUIC half of each socket, in the order of the addresses. They get datagrams only while the [`Receiver`] is read,
    /// and must be used inside a tokio runtime.
    pub fn quic(&self) -> Vec<Arc<QuicSocket>> {
        self.0.quic.clone()
    }

    /// Keeps so many bytes of what came and was not yet read, on each socket; beyond the system's limit only with
    /// `CAP_NET_ADMIN`. What waits already stays.
    ///
    /// # Errors
    /// As `setsockopt`.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        self.0
            .sockets
            .iter()
            .chain(self.0.helpers.load().values())
            .try_for_each(|socket| socket.set_receive_buffer(bytes))
    }

    /// Tells by which link the datagrams from some of our addresses leave, in place of what was told before: those from all
    /// others, and those that name no address, leave by the link that the kernel chooses. Whether anything is different.
    pub fn set_exits(&self, exits: &[Exit]) -> bool {
        self.0.exits.set(exits)
    }

    /// Ends the receiver's wait; the QUIC halves get nothing more.
    pub fn close(&self) {
        if !self.0.closed.swap(true, Ordering::AcqRel) {
            // Never read, so that every later poll sees it.
            let _ = (&self.0.wake).write(&[1]);
        }
        self.0.quic.iter().for_each(|quic| quic.close());
    }

    /// Who may begin a QUIC connection with it.
    pub fn callers(&self) -> Callers {
        self.0.callers
    }

    /// The address of each socket.
    pub fn local(&self) -> Vec<SocketAddr> {
        self.0.sockets.iter().map(|socket| socket.local).collect()
    }

    /// How the port fares.
    pub fn counts(&self) -> Counts {
        let tally = &self.0.tally;
        Counts {
            received: tally.received.load(Ordering::Relaxed),
            foreign: tally.foreign.load(Ordering::Relaxed),
            other: tally.other.load(Ordering::Relaxed),
            quic_dropped: tally.quic_dropped.load(Ordering::Relaxed),
            send_full: tally.send_full.load(Ordering::Relaxed),
            send_failed: tally.send_failed.load(Ordering::Relaxed),
            exit_refused: self.0.exits.refused(),
            stun_refused: self.0.stun.refused(),
        }
    }
}

impl Shared {
    /// The socket that sends to `to`: that helper, where one is named, else one of the port's own.
    fn socket_of<'a>(
        &'a self,
        helper: Option<(u16, &'a Arc<helpers::Table>)>,
        to: SocketAddr,
    ) -> Option<&'a Socket> {
        match helper {
            Some((number, table)) => {
                let socket = table.get(&number).map(|socket| &**socket);
                socket.filter(|socket| socket.local.is_ipv4() == to.is_ipv4())
            }
            None => self.socket_to(to),
        }
    }

    /// The socket that sends to `to`: the first of its family. An IPv4 address written as IPv6 has none.
    fn socket_to(&self, to: SocketAddr) -> Option<&Socket> {
        let is_mapped = matches!(to, SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some());
        let mut sockets = self.sockets.iter();
        sockets
            .find(|socket| socket.local.is_ipv4() == to.is_ipv4() && !is_mapped)
            .map(|socket| &**socket)
    }
}

/// The way from bytes to what they say without sockets, for tests/fuzz.
#[cfg(any(fuzzing, test))]
pub mod fuzz {
    use std::net::SocketAddr;

    /// Reads an answer to a question with the number that it names itself.
    pub fn stun(bytes: &[u8]) -> Option<SocketAddr> {
        let number = bytes.get(8..20)?.try_into().ok()?;
        super::stun::parse(bytes, &number)
    }
}

#[cfg(test)]
pub(crate) mod pump;
#[cfg(test)]
mod tests;
