//! Port maps for clients on this machine's loopback, and for neighbours that ask one of its link-local IPv6 addresses.
//!
//! The kernel will not route a packet from 127.0.0.1 or ::1 to another machine; rewriting it needs `route_localnet`,
//! which lets neighbours reach loopback services. Nor does it forward anything from a link-local IPv6 address (RFC 4291
//! section 2.5.6). So a map that listens there, or on every address, has small proxies here. Owns its sockets and tasks;
//! what it listens on goes when the map or the address goes, with every flow.
//!
//! Bounds per map: 256 TCP connections, 1024 UDP clients; for all maps a quarter of the descriptors this process may have
//! (`host::flows`). A further one takes the place of the one that has been silent longest, and one that is silent
//! too long ends by itself.

mod goal;
mod shut;
mod udp;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use nix::sys::socket::{self, sockopt};
use nix::sys::stat::fstat;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};

use super::door::Door;
use super::failure;
use super::flows::{Flows, Ticket};
use super::nft::{MapCount, MapKey};
use crate::backoff::Accepting;
use crate::model::host::{Failure, MapConfig, Part, Proto};
use goal::Goal;
use shut::Shut;

/// TCP connections of one map at a time.
const CONNECTIONS: usize = 256;
/// A TCP connection on which nothing passes for so long ends: two hours, as TCP's own keep-alive waits.
const QUIET: Duration = Duration::from_secs(2 * 60 * 60);
/// Longest the target may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many targets are asked at the same time when their maps begin.
const STARTED_AT_ONCE: usize = 256;
/// How many bytes are copied at a time.
const CHUNK: usize = 16 * 1024;

#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    rx: AtomicU64,
    tx: AtomicU64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// A map, on one of the addresses it listens on.
type Namespace = (MapKey, SocketAddr);

#[derive(Debug)]
struct Proxy {
    goal: watch::Sender<Goal>,
    tally: Arc<Tally>,
    /// The inode of its socket, which tells it from sockets of others.
    inode: u64,
    task: JoinHandle<()>,
    /// The call that wanted it last.
    round: u64,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The proxies of all port maps, for clients that the kernel's rules cannot serve.
#[derive(Debug)]
pub struct Proxies {
    running: HashMap<Namespace, Proxy>,
    /// How many times it was said what is wanted.
    round: u64,
    flows: Flows,
    shut: Shut,
}

impl Default for Proxies {
    fn default() -> Self {
        Proxies {
            running: HashMap::new(),
            round: 0,
            flows: Flows::new(),
            shut: Shut::default(),
        }
    }
}

/// Where the proxies of `map` listen: nowhere if it is for other addresses only. Nothing is allocated, since each of many
/// thousand maps is asked at every change of one.
fn places<'a>(
    map: &MapConfig,
    link_local: &'a BTreeSet<(Ipv6Addr, u32)>,
) -> impl Iterator<Item = SocketAddr> + use<'a> {
    let (listen, port) = (map.listen, map.port);
    let own: Option<IpAddr> = match listen {
        loopback if loopback.is_loopback() => Some(loopback),
        IpAddr::V4(any) if any.is_unspecified() => Some(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(any) if any.is_unspecified() => Some(Ipv6Addr::LOCALHOST.into()),
        _ => None,
    };
    let listens_on = move |address: &Ipv6Addr| match listen {
        IpAddr::V6(any) if any.is_unspecified() => true,
        IpAddr::V6(one) => one.is_unicast_link_local() && one == *address,
        IpAddr::V4(_) => false,
    };
    let on_links = link_local
        .iter()
        .filter(move |(address, _)| listens_on(address))
        .map(move |(address, link)| SocketAddrV6::new(*address, port, 0, *link).into());
    let own = own.map(|address| SocketAddr::new(address, port));
    own.into_iter().chain(on_links)
}

/// Whether this machine lacks the address: IPv6 is off on loopback, or there is no socket of IPv6 at all.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

impl Proxies {
    /// A set without proxies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Brings the proxies to what `maps` ask for, in the network namespace of the calling thread. `link_local` are the
    /// machine's addresses that are local to one link, with its index.
    ///
    /// Proxies of maps that are gone end with their flows; a changed target or allow list ends the flows and keeps the
    /// socket. Returns what could not be done; the next call tries it again.
    ///
    /// # Cancel safety
    /// The next call completes it.
    pub async fn sync(
        &mut self,
        maps: &[MapConfig],
        link_local: &BTreeSet<(Ipv6Addr, u32)>,
    ) -> Vec<Failure> {
        self.round = self.round.wrapping_add(1);
        let mut new: BTreeMap<Namespace, Goal> = BTreeMap::new();
        for map in maps {
            let Some(target) = map.target.filter(|_| map.port != 0) else {
                continue;
            };
            let target = SocketAddr::new(target, map.target_port);
            for listen in places(map, link_local) {
                let place = (MapKey::of(map), listen);
                match self.running.get_mut(&place) {
                    // The first of two maps has the place.
                    Some(proxy) if proxy.round == self.round => {}
                    Some(proxy) if !proxy.task.is_finished() => {
                        proxy.round = self.round;
                        proxy.lead(target, map);
                    }
                    _ => drop(new.entry(place).or_insert_with(|| Goal::of(target, map))),
                }
            }
        }
        let gone: Vec<Namespace> = self
            .running
            .iter()
            .filter(|(_, proxy)| proxy.round != self.round)
            .map(|(place, _)| *place)
            .collect();
        for place in gone {
            if let Some(mut proxy) = self.running.remove(&place) {
                proxy.task.abort();
                // Its socket is closed once the task has ended: another map may want the port now.
                let _ = (&mut proxy.task).await;
                debug!(map = %place.0, listen = %place.1, "proxy stopped");
            }
        }
        let (mut starting, flows) = (Vec::new(), self.flows.clone());
        for ((key, listen), goal) in new {
            let shared = (flows.clone(), self.shut.clone());
            let start = Proxy::start(key, listen, goal, shared, self.round);
            starting.push(async move { ((key, listen), start.await) });
        }
        let mut failures = Vec::new();
        // Together: each may have to wait for an answer of its target.
        let mut starting = futures::stream::iter(starting).buffer_unordered(STARTED_AT_ONCE);
        while let Some(((key, listen), started)) = starting.next().await {
            match started {
                Ok(proxy) => {
                    self.running.insert((key, listen), proxy);
                    debug!(map = %key, %listen, "proxy started");
                }
                // It comes with the address, which is news of the kernel.
                Err(error) if is_absent(&error) => {
                    debug!(map = %key, %listen, %error, "no such address here")
                }
                Err(error) => {
                    let what = format!("listen on {} {listen} for the map {key}", key.proto);
                    let here = maps.iter().filter(|map| MapKey::of(map) == key);
                    failures.push(failure(what, error).of(here.map(Part::from)));
                }
            }
        }
        failures
    }

    /// The inodes of the sockets that listen.
    pub fn inodes(&self) -> HashSet<u64> {
        self.running.values().map(|proxy| proxy.inode).collect()
    }

    /// What passed, per map: to be added to what the kernel counted.
    pub fn counters(&self) -> BTreeMap<MapKey, MapCount> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let count = |t: &Tally| MapCount {
            connections: read(&t.connections),
            rx_bytes: read(&t.rx),
            tx_bytes: read(&t.tx),
        };
        let mut counts: BTreeMap<MapKey, MapCount> = BTreeMap::new();
        for ((key, _), proxy) in &self.running {
            let (sum, more) = (counts.entry(*key).or_default(), count(&proxy.tally));
            sum.connections = sum.connections.saturating_add(more.connections);
            sum.rx_bytes = sum.rx_bytes.saturating_add(more.rx_bytes);
            sum.tx_bytes = sum.tx_bytes.saturating_add(more.tx_bytes);
        }
        counts
    }
}

impl Proxy {
    async fn start(
        key: MapKey,
        listen: SocketAddr,
        goal: Goal,
        (flows, shut): (Flows, Shut),
        round: u64,
    ) -> io::Result<Self> {
        let (goal, goals) = watch::channel(goal);
        let tally = Arc::new(Tally::default());
        let (inode, task) = match key.proto {
            Proto::Tcp => {
                let door = Door::bind(listen)?;
                let inode = inode(&door)?;
                // Before this returns, so that whoever added the map finds what is behind it.
                let goal = goals.borrow().clone();
                let open = if goal.is_shut().await {
                    None
                } else {
                    Some(door.open()?)
                };
                let run = tcp(door, open, key, goals, tally.clone(), (flows, shut));
                (inode, tokio::spawn(run))
            }
            Proto::Udp => {
                let listener = Arc::new(udp::bind(listen)?);
                let inode = inode(&listener)?;
                let run = udp::serve(listener, key, goals, tally.clone(), flows);
                (inode, tokio::spawn(run))
            }
        };
        Ok(Proxy {
            goal,
            tally,
            inode,
            task,
            round,
        })
    }

    /// Has it lead where `map` leads. Flows end where that is elsewhere, or for others.
    fn lead(&self, target: SocketAddr, map: &MapConfig) {
        if self.goal.borrow().is_of(target, map) {
            return;
        }
        self.goal.send_replace(Goal::of(target, map));
    }
}

/// The number by which the kernel's tables name a socket.
fn inode(socket: &impl AsFd) -> io::Result<u64> {
    Ok(fstat(socket)?.st_ino)
}

/// Listens while the target takes connections. One that refuses is a refused connection here: the kernel, which answers a
/// client before this program hears of it, answers for a socket that does not listen.
async fn tcp(
    door: Door,
    mut open: Option<TcpListener>,
    key: MapKey,
    mut goals: watch::Receiver<Goal>,
    tally: Arc<Tally>,
    (places, shut): (Flows, Shut),
) {
    // Dropped with this task, and every connection with it.
    let (mut flows, mut accepting) = (JoinSet::new(), Accepting::default());
    loop {
        let Some(listener) = open.take() else {
            tokio::select! {
                () = shut.wait() => {}
                changed = goals.changed() => if changed.is_err() { return },
            }
            let goal = goals.borrow_and_update().clone();
            if !goal.is_shut().await {
                open = door
                    .open()
                    .inspect_err(|error| debug!(%error, map = %key, "listen again"))
                    .ok();
            }
            continue;
        };
        while flows.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = flows.join_next(), if !flows.is_empty() => {
                // The clients that are waiting are refused with it.
                if matches!(ended, Ok(End::Refused)) { door.shut(listener) } else { open = Some(listener) }
                continue;
            }
            Ok(_) = goals.wait_for(|goal| goal.draining) => {
                door.shut(listener);
                continue;
            }
        };
        open = Some(listener);
        let (client, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let (pause, is_said) = accepting.failed(Instant::now());
                if is_said {
                    warn!(%error, map = %key, "accept for a map");
                }
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        accepting.accepted();
        let goal = goals.borrow().clone();
        if !goal.lets_in(from.ip()) {
            continue;
        }
        let ticket = places.enter(key, 2, CONNECTIONS);
        let number = ticket.number();
        let task = flows.spawn(serve(client, goal, goals.clone(), tally.clone(), ticket));
        places.runs(number, task);
    }
}

/// How a connection ended.
enum End {
    Done,
    /// The map's target refused it.
    Refused,
}

/// Serves one client until the connection ends, is silent for [`QUIET`], or the map leads elsewhere.
async fn serve(
    client: TcpStream,
    goal: Goal,
    mut goals: watch::Receiver<Goal>,
    tally: Arc<Tally>,
    ticket: Ticket,
) -> End {
    tokio::select! {
        () = ticket.silent(QUIET) => debug!(target = %goal.target, "silent connection ended"),
        end = connection(client, &goal, &tally, &ticket) => return end,
        _ = goals.wait_for(|now| goal.is_over(now)) => {}
    }
    End::Done
}

async fn connection(client: TcpStream, goal: &Goal, tally: &Tally, ticket: &Ticket) -> End {
    let server = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(goal.target)).await
    {
        Ok(Ok(server)) => server,
        refused => {
            // Reset, not closed as after a conversation.
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _ = socket::setsockopt(&client, sockopt::Linger, &linger);
            return if matches!(refused, Ok(Err(_))) {
                End::Refused
            } else {
                End::Done
            };
        }
    };
    add(&tally.connections, 1);
    if let Err(error) = between(client, server, tally, ticket).await {
        debug!(%error, target = %goal.target, "connection ended");
    }
    End::Done
}

async fn between(
    client: TcpStream,
    server: TcpStream,
    tally: &Tally,
    ticket: &Ticket,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::try_join!(
        copy(&mut from_client, &mut to_server, &tally.rx, ticket),
        copy(&mut from_server, &mut to_client, &tally.tx, ticket)
    )?;
    Ok(())
}

/// Copies until the end of `from`, passes the end on, and counts as it goes.
async fn copy<R, W>(
    from: &mut R,
    to: &mut W,
    counter: &AtomicU64,
    ticket: &Ticket,
) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = from.read(&mut buffer).await?;
        ticket.touch();
        let Some(chunk) = buffer.get(..n).filter(|chunk| !chunk.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(chunk).await?;
        ticket.touch();
        add(counter, n);
    }
}

#[cfg(test)]
mod tests;
