//! Multicast DNS on the links of this machine: sockets and bytes (RFC 6762), for what [`lan`](crate::lan) decides.
//!
//! Each link has a socket for each family. It is bound to the group's address and to the link: it hears what is sent to the
//! group there and nothing else, so that another responder of the machine (avahi, systemd-resolved) keeps every unicast, and
//! shares the port with it. Nothing is ever answered by unicast: nobody can aim answers at somebody else.
//!
//! What comes in is read only if it names our service, came with the hop limit of who is on the link (255), and neither its source
//! nor the socket has had too much ([`Gate`]).

mod message;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::socket::{Family, Socket};
use crate::lan::{Gate, Message};

/// Messages that may wait to be looked at; what is beyond is dropped and counted.
const QUEUE: usize = 256;

/// A message that came in.
#[derive(Debug)]
pub struct Incoming {
    /// The index of the link that it came by.
    pub link: u32,
    /// Who sent it, as it says.
    pub source: IpAddr,
    /// What it says.
    pub message: Message,
}

/// A link that is to be spoken on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct On {
    /// The kernel's index of it.
    pub link: u32,
    /// The name of it.
    pub name: String,
    /// Whether it has an IPv4 address.
    pub v4: bool,
    /// Whether it has a link-local IPv6 address that may be used.
    pub v6: bool,
}

/// What was dropped before anybody looked at it.
#[derive(Debug, Default)]
pub struct Dropped {
    /// Messages whose hop limit says that they came from elsewhere.
    pub hops: AtomicU64,
    /// Messages that were not read: too many of one source, or at one socket.
    pub too_many: AtomicU64,
    /// Messages that name our service and are no DNS.
    pub malformed: AtomicU64,
    /// Messages for which there was no room.
    pub full: AtomicU64,
}

/// Adds one to a count of [`Dropped`].
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A socket and the task that reads it.
struct Open {
    socket: Arc<Socket>,
    reader: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The sockets on all links.
pub struct Mdns {
    open: BTreeMap<(u32, Family), Open>,
    /// What links were called when their sockets were bound.
    names: BTreeMap<u32, String>,
    arrived: mpsc::Sender<Incoming>,
    arrivals: mpsc::Receiver<Incoming>,
    dropped: Arc<Dropped>,
}

impl std::fmt::Debug for Mdns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mdns")
            .field("open", &self.open.keys())
            .finish_non_exhaustive()
    }
}

impl Default for Mdns {
    fn default() -> Self {
        Mdns::new()
    }
}

impl Mdns {
    /// No socket yet.
    pub fn new() -> Mdns {
        let (arrived, arrivals) = mpsc::channel(QUEUE);
        Mdns {
            open: BTreeMap::new(),
            names: BTreeMap::new(),
            arrived,
            arrivals,
            dropped: Arc::default(),
        }
    }

    /// Speaks on these links from now on, and on no other. To be called inside a tokio runtime.
    ///
    /// Gives what failed, each with the link's name and its family: those links are tried again at the next call.
    pub fn set_links(&mut self, links: &[On]) -> Vec<(String, &'static str, io::Error)> {
        let wanted = |link: u32, family: Family| {
            let on = links.iter().find(|on| on.link == link);
            on.is_some_and(|on| match family {
                Family::V4 => on.v4,
                Family::V6 => on.v6,
            })
        };
        let is_renamed = |link: &u32| {
            let on = links.iter().find(|on| on.link == *link);
            on.is_none_or(|on| self.names.get(link) != Some(&on.name))
        };
        // A socket that failed is opened anew.
        self.open.retain(|(link, family), open| {
            wanted(*link, *family) && !is_renamed(link) && !open.reader.is_finished()
        });
        self.names = links.iter().map(|on| (on.link, on.name.clone())).collect();
        let mut failed = Vec::new();
        for on in links {
            for family in [Family::V4, Family::V6] {
                if !wanted(on.link, family) || self.open.contains_key(&(on.link, family)) {
                    continue;
                }
                match self.open(on, family) {
                    // A kernel without a family has no neighbours of it, either.
                    Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
                    Err(error) => failed.push((on.name.clone(), family.as_str(), error)),
                    Ok(()) => {}
                }
            }
        }
        failed
    }

    fn open(&mut self, on: &On, family: Family) -> io::Result<()> {
        let socket = Arc::new(Socket::open(on.link, &on.name, family)?);
        let read = read(
            Arc::clone(&socket),
            on.link,
            self.arrived.clone(),
            Arc::clone(&self.dropped),
        );
        let reader = tokio::spawn(read);
        self.open.insert((on.link, family), Open { socket, reader });
        Ok(())
    }

    /// The next message of others, and of this node itself: the kernel gives multicasts back.
    ///
    /// # Cancel safety
    /// Dropped before one is there, nothing is lost.
    pub async fn receive(&mut self) -> Incoming {
        match self.arrivals.recv().await {
            Some(incoming) => incoming,
            // This holds a sender itself, so there is always one.
            None => std::future::pending().await,
        }
    }

    /// Sends a message to everybody on a link, by both families. A datagram that the kernel does not take now is lost, as one
    /// may be on the way: whoever misses it asks.
    pub fn send(&self, link: u32, message: &Message) {
        let packets = message::encode(message);
        for (_, open) in self.open.range((link, Family::V4)..=(link, Family::V6)) {
            for packet in &packets {
                if let Err(error) = open.socket.send(packet) {
                    tracing::debug!(link, %error, "multicast DNS not sent");
                }
            }
        }
    }

    /// What was dropped so far.
    pub fn dropped(&self) -> Arc<Dropped> {
        Arc::clone(&self.dropped)
    }

    /// The links that are spoken on, by the names that they have here, each once.
    pub fn links(&self) -> Vec<String> {
        let open = self.open.keys().map(|(link, _)| link);
        let mut names: Vec<String> = open
            .filter_map(|link| self.names.get(link).cloned())
            .collect();
        names.dedup();
        names
    }
}

/// Reads one socket until it fails.
async fn read(
    socket: Arc<Socket>,
    link: u32,
    arrived: mpsc::Sender<Incoming>,
    dropped: Arc<Dropped>,
) {
    let mut buffer = vec![0; message::MAX_READ];
    let mut gate = Gate::default();
    loop {
        let got = match socket.receive(&mut buffer).await {
            Ok(got) => got,
            Err(error) => {
                tracing::debug!(link, %error, "multicast DNS ends on a link");
                return;
            }
        };
        let Some(bytes) = buffer.get(..got.length).filter(|b| message::is_ours(b)) else {
            continue;
        };
        if got.hops != Some(socket::HOPS) {
            count(&dropped.hops);
            continue;
        }
        if !gate.admits(got.source, Instant::now()) {
            count(&dropped.too_many);
            continue;
        }
        let message = match message::decode(bytes) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(message::Malformed) => {
                count(&dropped.malformed);
                continue;
            }
        };
        let incoming = Incoming {
            link,
            source: got.source,
            message,
        };
        if arrived.try_send(incoming).is_err() {
            count(&dropped.full);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_failed_is_opened_anew() {
        // The loopback link is there in every namespace, with the index 1.
        let on = [On {
            link: 1,
            name: "lo".into(),
            v4: true,
            v6: false,
        }];
        let mut mdns = Mdns::new();
        let failed = mdns.set_links(&on);
        assert!(failed.is_empty(), "{failed:?}");
        let is_read = |mdns: &Mdns| mdns.open.values().any(|open| !open.reader.is_finished());
        assert!(is_read(&mdns));
        mdns.open.values().for_each(|open| open.reader.abort());
        while is_read(&mdns) {
            tokio::task::yield_now().await;
        }
        assert!(mdns.set_links(&on).is_empty());
        assert!(is_read(&mdns));
        assert!(mdns.set_links(&[]).is_empty() && !is_read(&mdns));
    }
}

/// The way from bytes to a message without sockets, for cargo-fuzz.
#[cfg(any(fuzzing, test))]
pub mod fuzz {
    use super::message;
    use crate::lan::Message;

    /// Reads a datagram as the sockets do; none where it is not looked at.
    pub fn read(bytes: &[u8]) -> Option<Message> {
        Some(bytes)
            .filter(|b| message::is_ours(b))
            .and_then(|bytes| message::decode(bytes).ok()?)
    }
}
