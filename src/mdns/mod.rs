//! Multicast DNS on the links of this machine: sockets and bytes (RFC 6762), for what [`lan`](crate::lan) decides.
//!
//! Each link has two sockets for each family, of which one hears other machines and one the programs of this one. They are bound to
//! the group's address and to the link: they hear what is sent to the group there and nothing else, so that another responder of the
//! machine (avahi, systemd-resolved) keeps every unicast, and shares the port with it. Nothing is ever answered by unicast: nobody can aim answers at somebody else.
//!
//! What comes in is read only if it names our service, came with the hop limit of who is on the link (255), and neither its source
//! nor the socket has had too much ([`Gate`]).

mod message;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::socket::{Family, Got, Hears, Socket};
use crate::lan::{Gate, Message, Source};

/// Messages that may wait to be looked at; what is beyond is dropped and counted.
const QUEUE: usize = 256;

/// A message that came in.
#[derive(Debug)]
pub struct Incoming {
    /// The index of the link that it came by.
    pub link: u32,
    /// Who sent it.
    pub source: Source,
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

/// The sockets of a link and a family.
struct Open {
    /// The one that is sent from, which hears other machines.
    socket: Arc<Socket>,
    /// The tasks that read it, and the one that hears this machine.
    readers: [JoinHandle<()>; 2],
}

impl Open {
    fn is_read(&self) -> bool {
        !self.readers.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
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
            wanted(*link, *family) && !is_renamed(link) && open.is_read()
        });
        self.names = links.iter().map(|on| (on.link, on.name.clone())).collect();
        let mut failed = Vec::new();
        for on in links {
            for family in [Family::V4, Family::V6] {
                if !wanted(on.link, family) || self.open.contains_key(&(on.link, family)) {
                    continue;
                }
                match self.open(on, family) {
                    // A kernel without a family has no LAN peers of it, either.
                    Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
                    Err(error) => failed.push((on.name.clone(), family.as_str(), error)),
                    Ok(()) => {}
                }
            }
        }
        failed
    }

    fn open(&mut self, on: &On, family: Family) -> io::Result<()> {
        let open = |hears| Socket::open(on.link, &on.name, family, hears).map(Arc::new);
        let (socket, here) = (open(Hears::Others)?, open(Hears::Here)?);
        let read = |socket: &Arc<Socket>, is_here| {
            let reader = Reader {
                socket: Arc::clone(socket),
                link: on.link,
                is_here,
                arrived: self.arrived.clone(),
                dropped: Arc::clone(&self.dropped),
            };
            tokio::spawn(reader.run())
        };
        let readers = [read(&socket, false), read(&here, true)];
        self.open
            .insert((on.link, family), Open { socket, readers });
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

/// What reads one socket.
struct Reader {
    socket: Arc<Socket>,
    link: u32,
    is_here: bool,
    arrived: mpsc::Sender<Incoming>,
    dropped: Arc<Dropped>,
}

impl Reader {
    /// Reads until the socket fails.
    async fn run(self) {
        let mut buffer = vec![0; message::MAX_READ];
        let mut gate = Gate::default();
        loop {
            let got = match self.socket.receive(&mut buffer).await {
                Ok(got) => got,
                Err(error) => {
                    tracing::debug!(link = self.link, %error, "multicast DNS ends on a link");
                    return;
                }
            };
            let bytes = buffer.get(..got.length).unwrap_or_default();
            if let Some(message) = self.message(&got, bytes, &mut gate) {
                let source = Source {
                    address: got.source,
                    is_here: self.is_here,
                };
                let incoming = Incoming {
                    link: self.link,
                    source,
                    message,
                };
                if self.arrived.try_send(incoming).is_err() {
                    count(&self.dropped.full);
                }
            }
        }
    }

    /// What a datagram says, if it is for us and nothing speaks against it; what does is counted.
    fn message(&self, got: &Got, bytes: &[u8], gate: &mut Gate) -> Option<Message> {
        if !message::is_ours(bytes) {
            return None;
        }
        if got.hops != Some(socket::HOPS) {
            count(&self.dropped.hops);
            return None;
        }
        if !gate.admits(got.source, Instant::now()) {
            count(&self.dropped.too_many);
            return None;
        }
        message::decode(bytes).unwrap_or_else(|message::Malformed| {
            count(&self.dropped.malformed);
            None
        })
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
        let is_read = |mdns: &Mdns| mdns.open.values().any(Open::is_read);
        assert!(is_read(&mdns));
        // One of the two is enough.
        mdns.open.values().for_each(|open| open.readers[1].abort());
        while is_read(&mdns) {
            tokio::task::yield_now().await;
        }
        assert!(mdns.set_links(&on).is_empty());
        assert!(is_read(&mdns));
        assert!(mdns.set_links(&[]).is_empty() && !is_read(&mdns));
    }

    /// Two machines with a cable between them.
    struct Cable([String; 2]);

    fn ip(args: &str) {
        let ran = std::process::Command::new("ip")
            .args(args.split(' '))
            .status();
        assert!(ran.unwrap().success(), "ip {args}");
    }

    impl Cable {
        fn new() -> Cable {
            let id = std::process::id();
            let cable = Cable(["a", "b"].map(|end| format!("mdns-{id}-{end}")));
            let [a, b] = &cable.0;
            ip(&format!("netns add {a}"));
            ip(&format!("netns add {b}"));
            ip(&format!(
                "-n {a} link add eth0 type veth peer name eth0 netns {b}"
            ));
            for (n, space) in [(1, a), (2, b)] {
                ip(&format!("-n {space} addr add 10.77.0.{n}/24 dev eth0"));
                ip(&format!("-n {space} link set eth0 addrgenmode none up"));
                ip(&format!("-n {space} addr add fe80::{n}/64 dev eth0 nodad"));
            }
            cable
        }

        /// The sockets of a program of one end.
        fn program(&self, end: usize) -> Mdns {
            let path = format!("/run/netns/{}", self.0[end]);
            let runtime = tokio::runtime::Handle::current();
            let opened = std::thread::spawn(move || {
                let namespace = std::fs::File::open(path).unwrap();
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let _inside = runtime.enter();
                let mut mdns = Mdns::new();
                let failed = mdns.set_links(&[On {
                    link: nix::net::if_::if_nametoindex("eth0").unwrap(),
                    name: "eth0".into(),
                    v4: true,
                    v6: true,
                }]);
                assert!(failed.is_empty(), "{failed:?}");
                mdns
            });
            opened.join().unwrap()
        }
    }

    impl Drop for Cable {
        fn drop(&mut self) {
            for name in &self.0 {
                ip(&format!("netns del {name}"));
            }
        }
    }

    /// Who sent what came in, until nothing more does.
    async fn heard(mdns: &mut Mdns) -> Vec<(String, bool)> {
        let mut heard = Vec::new();
        let pause = std::time::Duration::from_millis(500);
        while let Ok(incoming) = tokio::time::timeout(pause, mdns.receive()).await {
            let Source { address, is_here } = incoming.source;
            heard.push((address.to_string(), is_here));
        }
        heard.sort();
        heard
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn whoever_is_of_this_machine_is_told_from_who_says_so_in_both_families() {
        let cable = Cable::new();
        let (mut one, mut two) = (cable.program(0), cable.program(0));
        let mut other = cable.program(1);
        // A socket sends once the runtime knows that it can, and a cable once the kernel has seen both ends.
        for mdns in [&mut one, &mut two, &mut other] {
            assert!(heard(mdns).await.is_empty());
        }
        let ask = Message::Ask {
            wanted: vec![crate::lan::Label([1; 16])],
            known: Vec::new(),
        };
        let link = one.open.keys().next().unwrap().0;
        one.send(link, &ask);
        let told = |is_here| ["10.77.0.1", "fe80::1"].map(|from| (from.to_owned(), is_here));
        for mdns in [&mut one, &mut two] {
            assert_eq!(heard(mdns).await, told(true));
        }
        assert_eq!(heard(&mut other).await, told(false));
        // The other machine takes our addresses. Of IPv6 the kernel lets its packets in.
        let [_, b] = &cable.0;
        ip(&format!("-n {b} addr add fe80::1/64 dev eth0 nodad"));
        ip(&format!("-n {b} addr del fe80::2/64 dev eth0"));
        let link = other.open.keys().next().unwrap().0;
        other.send(link, &ask);
        let here = |heard: &[(String, bool)]| heard.iter().filter(|(_, is_here)| *is_here).count();
        let claimed = heard(&mut two).await;
        assert!(
            claimed.contains(&("fe80::1".to_owned(), false)),
            "{claimed:?}"
        );
        assert_eq!(here(&claimed), 0);
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
