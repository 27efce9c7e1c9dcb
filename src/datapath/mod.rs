//! The two packet loops: TUN to peer and peer to TUN, and what they share.
//!
//! Owns the TUNs it is given, one thread for each, and the one that reads the port; reads the View, never writes it. Which packet may pass is decided by
//! the View ([`SubnetView::route`](crate::model::view::SubnetView::route) and `admit`), here it is only carried out.

mod inbound;
mod outbound;
mod refusals;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use arc_swap::ArcSwap;
use futures::{AsyncRead, AsyncWrite};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::limit::TokenBucket;
use crate::link::{Key, Links, Via};
use crate::model::id::SubnetId;
use crate::model::view::View;
use crate::packet::{DropCounts, DropReason};
use crate::tun::Tun;
use outbound::{ICMP_ANSWERS, Outbound};
pub use refusals::Refusal;
use refusals::Refusals;

/// TUNs whose death was not yet heard: one per subnet is more than there can be at once.
const DIED_CHANNEL: usize = 64;

/// A subnet's TUN ended by itself: its link was deleted. It is detached already; open and attach a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunDied(pub SubnetId);

/// The packet path of every subnet. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Datapath(Arc<Shared>);

/// What both loops read.
#[derive(Debug)]
struct Shared {
    views: Arc<ArcSwap<View>>,
    links: Links,
    /// Replaced whole when a TUN comes or goes; read once per batch.
    ports: ArcSwap<HashMap<SubnetId, Arc<Port>>>,
    /// Held while `ports` is replaced, so that two changes at once do not lose one.
    attaching: Mutex<()>,
    died: mpsc::Sender<TunDied>,
    refusals: Refusals,
}

/// The TUN of a subnet, and what the loops keep beside it.
struct Port {
    subnet: SubnetId,
    tun: Arc<dyn Tun>,
    counts: Arc<DropCounts>,
    /// How often peers are told of their errors.
    answers: Mutex<TokenBucket>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("subnet", &self.subnet)
            .finish_non_exhaustive()
    }
}

impl Datapath {
    /// A packet path without TUNs, and where the death of one is told.
    pub fn new(views: Arc<ArcSwap<View>>, links: Links) -> (Datapath, mpsc::Receiver<TunDied>) {
        let (died, heard) = mpsc::channel(DIED_CHANNEL);
        let shared = Shared {
            views,
            links,
            ports: ArcSwap::default(),
            attaching: Mutex::default(),
            died,
            refusals: Refusals::default(),
        };
        (Datapath(Arc::new(shared)), heard)
    }

    /// Starts carrying a subnet's packets over `tun`, on a thread of its own. A former TUN of the subnet is detached.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn attach_tun(&self, subnet: SubnetId, tun: Arc<dyn Tun>) -> io::Result<()> {
        let port = Arc::new(Port {
            subnet,
            tun,
            counts: self.0.links.counts(subnet),
            answers: Mutex::new(TokenBucket::new(ICMP_ANSWERS)),
        });
        self.replace_port(subnet, Some(Arc::clone(&port)));
        let outbound = Outbound::new(Arc::clone(&self.0), Arc::clone(&port));
        // Linux shows 15 characters of a thread's name.
        let started = thread::Builder::new()
            .name(format!("tun-{subnet}").chars().take(15).collect())
            .spawn(|| outbound.run());
        if let Err(error) = started {
            self.0.forget(&port);
            return Err(error);
        }
        Ok(())
    }

    /// Stops carrying a subnet's packets; its TUN's link goes when the last packet in hand is done with.
    pub fn detach_tun(&self, subnet: SubnetId) {
        self.replace_port(subnet, None);
    }

    /// Whether a subnet has a living TUN.
    pub fn has_tun(&self, subnet: SubnetId) -> bool {
        self.0.ports.load().contains_key(&subnet)
    }

    /// What was dropped in a subnet so far, every reason named.
    pub fn drops(&self, subnet: SubnetId) -> Vec<(DropReason, u64)> {
        self.0.links.counts(subnet).snapshot()
    }

    /// What a peer's machine refused lately in a subnet, the last first.
    pub fn refusals(&self, key: Key) -> Vec<Refusal> {
        self.0.refusals.of(key, Instant::now())
    }

    /// The links to peers that carry the packets.
    pub fn links(&self) -> &Links {
        &self.0.links
    }

    /// Starts reading packets from the port ([`Links::frames`]), where there is one, on a thread of its own.
    ///
    /// # Errors
    /// No thread could be started, or the port is being read already.
    pub fn receive(&self) -> io::Result<()> {
        let Some(frames) = self.0.links.frames()? else {
            return Ok(());
        };
        let shared = Arc::downgrade(&self.0);
        thread::Builder::new()
            .name("port".to_owned())
            .spawn(|| inbound::read_port(shared, frames))
            .map(drop)
    }

    /// Reads packets from a stream that a peer opened ([`Links::receive_stream`]); a peer that is no member is refused.
    pub fn carry_in(
        &self,
        key: Key,
        connection: u64,
        stream: impl AsyncRead + Send + Unpin + 'static,
    ) {
        let shared = Arc::clone(&self.0);
        self.0
            .links
            .runtime()
            .spawn(inbound::read_stream(shared, key, connection, stream));
    }

    /// Sends a peer's packets on a stream opened to it ([`Links::carry_out`]); a peer that is no member is refused.
    pub fn carry_out(
        &self,
        key: Key,
        connection: u64,
        via: Via,
        stream: impl AsyncWrite + Send + Unpin + 'static,
    ) {
        if !self.0.may_open(key) {
            return;
        }
        self.0.links.carry_out(key, connection, via, stream);
        // Asked again: a removal between the two would have found no link to cut.
        if !self.0.may_open(key) {
            self.0.links.cut(key);
        }
    }

    fn replace_port(&self, subnet: SubnetId, port: Option<Arc<Port>>) {
        let former = self.0.change_ports(|ports| match port {
            Some(port) => ports.insert(subnet, port),
            None => ports.remove(&subnet),
        });
        if let Some(former) = former {
            former.tun.close();
        }
    }
}

impl Shared {
    /// Whether the peer is a member of that subnet here.
    fn may_open(&self, key: Key) -> bool {
        self.views
            .load()
            .subnets
            .get(&key.subnet)
            .is_some_and(|subnet| subnet.members.contains(&key.peer))
    }

    /// Publishes a changed copy of the TUN table.
    fn change_ports<T>(&self, change: impl FnOnce(&mut HashMap<SubnetId, Arc<Port>>) -> T) -> T {
        let _one = self.attaching.lock();
        let mut ports = HashMap::clone(&self.ports.load());
        let result = change(&mut ports);
        self.ports.store(Arc::new(ports));
        result
    }

    /// Takes a TUN out of the table, unless another took its place; whether it was there.
    fn forget(&self, port: &Arc<Port>) -> bool {
        self.change_ports(|ports| {
            let ours = ports
                .get(&port.subnet)
                .is_some_and(|current| Arc::ptr_eq(current, port));
            if ours {
                ports.remove(&port.subnet);
            }
            ours
        })
    }

    /// A TUN's link is gone: tells the daemon, once.
    fn tun_died(&self, port: &Arc<Port>) {
        if self.forget(port) {
            port.tun.close();
            tracing::warn!(subnet = %port.subnet, "TUN deleted under us");
            let _ = self.died.try_send(TunDied(port.subnet));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for port in self.ports.load().values() {
            port.tun.close();
        }
        self.links.close_port();
    }
}

#[cfg(test)]
mod datagram_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;
