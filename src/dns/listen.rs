//! The sockets of one address, UDP and TCP, and what bounds them.
//!
//! The loops are our own: hickory's `Server` starts one task per datagram and takes TCP connections without end. Here
//! its request handler is polled once inside the receive loop: a name of ours is answered by then, so that a flood of
//! questions makes no task and leaves no memory. Only what waits for the host's resolvers becomes a task, of which there are at
//! most [`IN_FLIGHT`].
//! A TCP connection is one task, with at most [`PIPELINED`] questions of [`MAX_REQUEST`] bytes; there are at most [`CONNECTIONS`], and
//! [`PER_SOURCE`] of one source: the oldest of who has most makes room, so that idle clients never shut others out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_server::net::xfer::Protocol;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::counters::{Counters, count};
use super::handler::{Handler, answer};
use super::question::Asker;
use super::trial::Trial;
use super::upstream::{IN_FLIGHT, Upstream};
use crate::backoff::Accepting;
use crate::limit::{Buckets, Limit};
use crate::model::source::Source;

/// Questions that one source may ask at once, and a second for long.
pub const SOURCE_LIMIT: Limit = Limit::new(2000, 1000);

/// Sources remembered at the same time; a further one takes the place of the one that has asked for least lately.
pub const SOURCES: usize = 4096;

/// TCP connections at the same time, of all addresses together.
pub const CONNECTIONS: usize = 64;

/// TCP connections of one source.
pub const PER_SOURCE: usize = 16;

/// Questions of one TCP connection that wait for their answers at the same time; the next is read when one has it.
pub const PIPELINED: usize = 16;

/// A TCP client has this long for its next whole question, and for taking its answer.
pub const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the largest request read.
pub const MAX_REQUEST: usize = 4096;

/// What all sockets share.
pub(super) struct Shared {
    pub(super) upstream: Upstream,
    pub(super) counters: Arc<Counters>,
    /// What this machine tries its own resolver with, while it does.
    pub(super) trial: ArcSwapOption<Trial>,
    buckets: Mutex<Buckets<Source>>,
    connections: Mutex<Connections>,
}

/// TCP connections under way, oldest first.
#[derive(Default)]
struct Connections {
    next: u64,
    open: Vec<(u64, Source, AbortHandle)>,
}

/// Takes its connection out of the table when it ends.
struct Place {
    shared: Arc<Shared>,
    id: u64,
}

impl Shared {
    pub(super) fn new() -> Shared {
        let counters = Arc::new(Counters::default());
        Shared {
            upstream: Upstream::new(Arc::clone(&counters)),
            counters,
            trial: ArcSwapOption::empty(),
            buckets: Mutex::new(Buckets::new(SOURCE_LIMIT, SOURCES)),
            connections: Mutex::default(),
        }
    }

    /// Whether the source of `asker` is below its rate.
    fn take(&self, asker: IpAddr) -> bool {
        let mut buckets = self.buckets.lock();
        let taken = buckets.take(Source::of(asker), 1, Instant::now());
        drop(buckets);
        if !taken {
            count(&self.counters.limited);
        }
        taken
    }
}

impl Connections {
    /// Makes room for one more of `source`; gives back how many were closed for it.
    fn make_room(&mut self, source: Source) -> u64 {
        let of = |open: &[(u64, Source, AbortHandle)], who: Source| {
            open.iter().filter(|(_, s, _)| *s == who).count()
        };
        let mut closed = 0;
        loop {
            let victim = if of(&self.open, source) >= PER_SOURCE {
                source
            } else if self.open.len() >= CONNECTIONS {
                let most = self
                    .open
                    .iter()
                    .map(|(_, s, _)| *s)
                    .max_by_key(|s| of(&self.open, *s));
                most.unwrap_or(source)
            } else {
                return closed;
            };
            let Some(at) = self.open.iter().position(|(_, s, _)| *s == victim) else {
                return closed;
            };
            self.open.remove(at).2.abort();
            closed += 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.shared.connections.lock();
        table.open.retain(|(id, _, _)| *id != self.id);
    }
}

/// Both sockets of one address.
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds UDP and TCP on `address`, which need not be on a link yet.
    ///
    /// # Errors
    /// What the kernel says, most often that another server has the port.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Sockets> {
        let udp = std::net::UdpSocket::from(bound(address, SockType::Datagram)?);
        let tcp = std::net::TcpListener::from(bound(address, SockType::Stream)?);
        Ok(Sockets {
            udp: UdpSocket::from_std(udp)?,
            tcp: TcpListener::from_std(tcp)?,
        })
    }

    /// The address really bound, for tests with port 0.
    #[cfg(test)]
    pub(super) fn port(&self) -> io::Result<u16> {
        self.udp.local_addr().map(|a| a.port())
    }

    /// Answers until `stop`.
    ///
    /// # Cancel safety
    /// Dropping the future closes the sockets and every connection.
    pub(super) async fn run(self, handler: Arc<Handler>, stop: CancellationToken) {
        let udp = serve_udp(Arc::new(self.udp), Arc::clone(&handler));
        let tcp = serve_tcp(self.tcp, handler);
        tokio::select! {
            () = stop.cancelled() => {}
            () = udp => {}
            () = tcp => {}
        }
    }
}

/// A socket of `kind` on exactly `address`.
fn bound(address: SocketAddr, kind: SockType) -> io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(family, kind, flags, None)?;
    // The address comes with the link; binding first closes the gap in which nobody answers. Of IPv6 sockets too.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    // Only for TCP, where it shortens a restart; on UDP it would let another program take the port.
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        nix::sys::socket::listen(&socket, Backlog::new(64)?)?;
    }
    Ok(socket)
}

async fn serve_udp(socket: Arc<UdpSocket>, handler: Arc<Handler>) {
    let shared = handler.shared();
    let mut buffer = vec![0u8; MAX_REQUEST];
    let mut forwards = JoinSet::new();
    loop {
        while forwards.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receive a DNS question");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        // Port 0 cannot be answered. Who may not ask gets no bucket either: forged sources must not fill the table.
        if from.port() == 0 || handler.served().asker(from.ip()) == Asker::Foreign {
            count(&shared.counters.foreign);
            continue;
        }
        if !shared.take(from.ip()) {
            continue;
        }
        let mut reply = Box::pin(answer(
            Arc::clone(&handler),
            bytes.to_vec(),
            from,
            Protocol::Udp,
        ));
        match futures::poll!(reply.as_mut()) {
            Poll::Ready(Some(reply)) => send(&socket, &reply, from).await,
            Poll::Ready(None) => {}
            // What waits holds a place in flight; dropped, it gives it back. More than places are only those that are
            // about to send.
            Poll::Pending if forwards.len() >= IN_FLIGHT => count(&shared.counters.overloaded),
            Poll::Pending => {
                let socket = Arc::clone(&socket);
                forwards.spawn(async move {
                    if let Some(reply) = reply.await {
                        send(&socket, &reply, from).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%to, %error, "send a DNS answer");
    }
}

async fn serve_tcp(listener: TcpListener, handler: Arc<Handler>) {
    let shared = handler.shared();
    let (mut tasks, mut accepting) = (JoinSet::new(), Accepting::default());
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: they come back as connections end.
                let (pause, is_said) = accepting.failed(Instant::now());
                if is_said {
                    tracing::warn!(%error, "accept a DNS connection");
                }
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        accepting.accepted();
        if handler.served().asker(from.ip()) == Asker::Foreign {
            count(&shared.counters.foreign);
            continue;
        }
        let mut table = shared.connections.lock();
        let source = Source::of(from.ip());
        let closed = table.make_room(source);
        shared
            .counters
            .closed
            .fetch_add(closed, std::sync::atomic::Ordering::Relaxed);
        let id = table.next;
        table.next = id.wrapping_add(1);
        let place = Place {
            shared: Arc::clone(shared),
            id,
        };
        // The table stays locked until the entry is in: a task that ends at once waits for that.
        let task = tasks.spawn(connection(stream, from, Arc::clone(&handler), place));
        table.open.push((id, source, task));
    }
}

/// One TCP client (RFC 7766): each answer goes out as soon as it is there, whatever was asked before it, until the client is
/// silent for [`TCP_IDLE_TIMEOUT`], has no more to ask, or asks too much. What it asked before that is answered.
async fn connection(stream: TcpStream, source: SocketAddr, handler: Arc<Handler>, place: Place) {
    let shared = &place.shared;
    let (reader, mut writer) = stream.into_split();
    let mut waiting = FuturesUnordered::new();
    let mut next = Box::pin(question(reader));
    let mut ended = false;
    loop {
        tokio::select! {
            biased;
            Some(reply) = waiting.next(), if !waiting.is_empty() => {
                let reply: Option<Vec<u8>> = reply;
                let Some(reply) = reply else { return };
                if !matches!(timeout(TCP_IDLE_TIMEOUT, write_message(&mut writer, &reply)).await, Ok(Ok(()))) {
                    return;
                }
            }
            (reader, asked) = &mut next, if !ended && waiting.len() < PIPELINED => {
                next = Box::pin(question(reader));
                match asked {
                    Some(_) if !shared.take(source.ip()) => return,
                    Some(bytes) => waiting.push(answer(Arc::clone(&handler), bytes, source, Protocol::Tcp)),
                    None => ended = true,
                }
            }
            else => return,
        }
    }
}

/// The next message and where the one after it comes from; none where the client is silent for too long, is gone, or says
/// what is no question. A slow sender of single bytes has no more time than a silent one.
async fn question(mut reader: OwnedReadHalf) -> (OwnedReadHalf, Option<Vec<u8>>) {
    let message = timeout(TCP_IDLE_TIMEOUT, read_message(&mut reader)).await;
    (reader, message.ok().and_then(Result::ok))
}

/// Reads one message with its two bytes of length in front.
async fn read_message(reader: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAX_REQUEST {
        return Err(io::Error::other("DNS request larger than any question"));
    }
    let mut message = vec![0; length];
    reader.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message with its length in front.
async fn write_message(writer: &mut OwnedWriteHalf, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    writer
        .write_all(&[length.to_be_bytes().as_slice(), message].concat())
        .await
}
