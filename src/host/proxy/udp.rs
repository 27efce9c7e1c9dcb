//! The proxy of a UDP map: a socket to the target for each client, for as long as either says something.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

use super::{Goal, Tally, add};
use crate::host::flows::{Flows, Ticket};
use crate::host::listening::MDNS;
use crate::host::nft::MapKey;

/// A client that is silent this long, with no answer either, is forgotten.
const UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Clients of one map at a time.
const CLIENTS: usize = 1024;
/// Size of the largest datagram, in bytes.
const DATAGRAM: usize = 65_535;

/// One UDP client and the socket that speaks to the target for it.
struct Client {
    socket: Arc<UdpSocket>,
    ticket: Arc<Ticket>,
    task: AbortHandle,
}

/// Binds a proxy's socket; the port of multicast DNS is shared with who listens there for multicast.
pub(super) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let family = if listen.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(family, SockType::Datagram, flags, None)?;
    if listen.port() == MDNS {
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    if listen.is_ipv6() {
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(listen))?;
    UdpSocket::from_std(socket.into())
}

pub(super) async fn serve(
    listener: Arc<UdpSocket>,
    key: MapKey,
    mut goals: watch::Receiver<Goal>,
    tally: Arc<Tally>,
    places: Flows,
) {
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut served = goals.borrow().clone();
    let mut answers: JoinSet<()> = JoinSet::new();
    // Memory for it is taken with the first datagram: most of many thousand maps never have one here.
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        let (n, from) = tokio::select! {
            Some(_) = answers.join_next() => {
                // Silent, or ended for another flow.
                clients.retain(|_, client| !client.task.is_finished());
                continue;
            }
            changed = goals.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = goals.borrow_and_update().clone();
                if std::mem::replace(&mut served, now.clone()).is_over(&now) {
                    clients.drain().for_each(|(_, client)| client.task.abort());
                }
                continue;
            }
            received = receive(&listener, &mut buffer) => received,
        };
        let goal = goals.borrow().clone();
        let Some(datagram) = buffer.get(..n).filter(|_| goal.lets_in(from.ip())) else {
            continue;
        };
        // One that was ended for another flow a moment ago begins anew.
        if clients
            .get(&from)
            .is_none_or(|client| client.task.is_finished())
        {
            clients.remove(&from);
            if goal.draining {
                continue;
            }
            let ticket = Arc::new(places.enter(key, 1, CLIENTS));
            match begin(&listener, from, &goal, ticket, &tally, &mut answers).await {
                Ok(client) => {
                    places.runs(client.ticket.number(), client.task.clone());
                    clients.insert(from, client);
                }
                Err(error) => {
                    debug!(%error, target = %goal.target, "open a socket for a loopback client");
                    continue;
                }
            }
        }
        let Some(client) = clients.get(&from) else {
            continue;
        };
        client.ticket.touch();
        // A full queue or a target that refuses loses the datagram, as UDP may.
        if client.socket.try_send(datagram).is_ok() {
            add(&tally.rx, n);
        }
    }
}

/// The length of the next datagram, and who sent it.
async fn receive(listener: &UdpSocket, buffer: &mut Vec<u8>) -> (usize, SocketAddr) {
    loop {
        buffer.clear();
        match listener.recv_buf_from(buffer).await {
            Ok(received) => return received,
            // The answer to something sent before (port unreachable): says nothing of the next datagram.
            Err(error) => debug!(%error, "receive on loopback"),
        }
    }
}

/// Opens a socket to the target for a new client, and passes the answers on.
async fn begin(
    listener: &Arc<UdpSocket>,
    from: SocketAddr,
    goal: &Goal,
    ticket: Arc<Ticket>,
    tally: &Arc<Tally>,
    answers: &mut JoinSet<()>,
) -> io::Result<Client> {
    let socket = Arc::new(connected(goal.target).await?);
    add(&tally.connections, 1);
    let run = answer(
        socket.clone(),
        listener.clone(),
        from,
        ticket.clone(),
        tally.clone(),
    );
    Ok(Client {
        socket,
        ticket,
        task: answers.spawn(run),
    })
}

pub(super) async fn connected(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(target).await?;
    // A fresh socket is not yet known to be writable, and `try_send` would refuse the first datagram.
    socket.writable().await?;
    Ok(socket)
}

/// Passes the target's answers to `client` until both have been silent for [`UDP_IDLE_TIMEOUT`].
async fn answer(
    socket: Arc<UdpSocket>,
    listener: Arc<UdpSocket>,
    client: SocketAddr,
    ticket: Arc<Ticket>,
    tally: Arc<Tally>,
) {
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        let received = tokio::select! {
            received = socket.recv_buf(&mut buffer) => received,
            () = ticket.silent(UDP_IDLE_TIMEOUT) => return,
        };
        match received {
            Ok(n) => {
                ticket.touch();
                if let Some(datagram) = buffer.get(..n)
                    && listener.send_to(datagram, client).await.is_ok()
                {
                    add(&tally.tx, n);
                }
            }
            // Refused: nothing listens there now; it may later.
            Err(error) => debug!(%error, %client, "receive for a loopback client"),
        }
    }
}
