//! Ports of the routers that lead to this machine: who asks for them, and where they are told.
//!
//! One task follows what this node listens on, the default routes and the configuration, and carries out what
//! [`crate::portmap`] says. A port that is open is told like an address that `transport.advertise` names, and told no more
//! once it is lost. At the end everything is given back.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Mesh;
use crate::host::{self, Router, Uplinks};
use crate::model::address::is_within;
use crate::node::unix_now;
use crate::p2p::{Address, Carrier};
use crate::portmap::{
    Asker, Gateway, MAX_ROUTERS, Order, Port, Record, Routers, Situation, Status, Transport,
    carry_out, close_all, is_public, parse, text,
};
use crate::store;

/// The file of the state directory that says what routers may have open for this machine.
const FILE: &str = "portmap.json";
/// How long routers are asked at a stop to close what they opened. What they do not answer by then stays in the file.
const LAST: Duration = Duration::from_secs(2);
/// And how long it is asked by `cleanup`, where a person waits.
const CLEANUP: Duration = Duration::from_secs(10);
/// How long after a change of default routes they are looked at.
const REROUTED: Duration = Duration::from_millis(200);

/// What the rest of the daemon knows of the routers' ports.
#[derive(Debug)]
pub(crate) struct PortMap {
    /// The addresses listened on, in this order, but for those through relays; a change of them is a change of this machine's
    /// network.
    listening: watch::Sender<Vec<Address>>,
    status: watch::Sender<Vec<Status>>,
    /// How often somebody wanted the routers asked at once.
    again: watch::Sender<u64>,
}

impl Default for PortMap {
    fn default() -> PortMap {
        PortMap {
            listening: watch::Sender::new(Vec::new()),
            status: watch::Sender::default(),
            again: watch::Sender::default(),
        }
    }
}

impl PortMap {
    /// Takes the addresses that this node listens on. Those through relays are left out: they come and go with the relays, and
    /// say nothing of the network of this machine.
    pub(crate) fn listening(&self, addresses: &[Address]) {
        let own = addresses.iter().filter(|address| address.relay().is_none());
        self.listening.send_if_modified(|before| {
            let is_news = !own.clone().eq(before.iter());
            if is_news {
                *before = own.cloned().collect();
            }
            is_news
        });
    }

    /// Has the routers asked at once, also one that refused and would be asked an hour from now: a person may have changed its
    /// settings.
    pub(crate) fn ask_again(&self) {
        self.again
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// How often they were to be asked at once, for who follows it.
    pub(crate) fn follow_again(&self) -> watch::Receiver<u64> {
        self.again.subscribe()
    }

    /// The addresses listened on, for who follows them.
    pub(super) fn follow_listening(&self) -> watch::Receiver<Vec<Address>> {
        self.listening.subscribe()
    }

    /// How the ports stand, for who follows it.
    pub(crate) fn follow(&self) -> watch::Receiver<Vec<Status>> {
        self.status.subscribe()
    }

    /// How the ports of each router stand now: those of IPv4 first, in the order in which the kernel prefers them.
    pub(crate) fn status(&self) -> Vec<Status> {
        self.status.borrow().clone()
    }
}

impl Mesh {
    /// Where peers reach this node by ports of routers, those of UDP first, and of the router that the kernel prefers.
    pub(crate) fn mapped(&self) -> Vec<Address> {
        let config = self.config();
        let status = self.portmap.status.borrow();
        let reached = |transport| {
            let of_all = status.iter().flat_map(move |s| s.reached(transport));
            of_all.map(move |at| (transport, at))
        };
        let all = reached(Transport::Udp).chain(reached(Transport::Tcp));
        let told = all.filter(|(_, at)| !is_within(at.ip(), &config.deny_cidrs));
        told.filter_map(|(transport, at)| address(transport, at))
            .collect()
    }
}

fn address(transport: Transport, at: SocketAddr) -> Option<Address> {
    let (family, ip, port) = match at.ip() {
        IpAddr::V4(_) => ("ip4", at.ip(), at.port()),
        IpAddr::V6(_) => ("ip6", at.ip(), at.port()),
    };
    let text = match transport {
        Transport::Udp => format!("/{family}/{ip}/udp/{port}/quic-v1"),
        Transport::Tcp => format!("/{family}/{ip}/tcp/{port}"),
    };
    text.parse().ok()
}

/// The ports of these addresses that others may reach over IPv4: not those of loopback.
pub(super) fn ports(addresses: &[Address]) -> Vec<Port> {
    ports_where(addresses, |ip| ip.is_ipv4() && !ip.is_loopback())
}

/// The ports listened on at the address that a router forwards to. At another one a port of this number may be somebody
/// else's, and the router would lead the Internet there.
fn ports_at(addresses: &[Address], local: IpAddr) -> Vec<Port> {
    ports_where(addresses, |ip| ip == local && !ip.is_loopback())
}

fn ports_where(addresses: &[Address], is_meant: impl Fn(IpAddr) -> bool) -> Vec<Port> {
    let own = addresses.iter().filter(|address| address.relay().is_none());
    let of = |address: &Address| {
        let ip = address.ip()?.to_canonical();
        let transport = match address.carrier()? {
            Carrier::Quic => Transport::Udp,
            Carrier::Tcp => Transport::Tcp,
            _ => return None,
        };
        let number = address.port().filter(|number| *number != 0)?;
        is_meant(ip).then_some(Port { transport, number })
    };
    let mut all: Vec<Port> = own.filter_map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What is to be mapped at each of these routers. Of IPv4 there is always one, perhaps without a router; of IPv6 only an
/// address that the Internet knows has something to gain.
fn situations(is_enabled: bool, listening: &[Address], routers: &[Router]) -> Vec<Situation> {
    let of = |router: &Router| Situation {
        is_enabled,
        ports: ports_at(listening, router.local),
        gateway: Some(gateway(router)),
    };
    let has_v4 = routers.iter().any(|router| router.local.is_ipv4());
    let without = (!has_v4).then(|| Situation {
        is_enabled,
        ports: ports(listening),
        gateway: None,
    });
    let useful = routers
        .iter()
        .filter(|router| router.local.is_ipv4() || is_public(router.local));
    without.into_iter().chain(useful.map(of)).collect()
}

fn gateway(router: &Router) -> Gateway {
    Gateway {
        address: router.address,
        local: router.local,
    }
}

/// Keeps ports of routers open until `stop`, and has them closed then.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let dir = mesh.config().state_dir.clone();
    let mut task = Task {
        routers: Routers::new(saved(&dir)),
        saved: Vec::new(),
        askers: Vec::new(),
        dir: &dir,
    };
    task.saved = task.routers.records();
    let mut config = mesh.follow_config();
    let mut listening = mesh.portmap.listening.subscribe();
    let mut again = mesh.portmap.follow_again();
    let mut uplinks = None;
    loop {
        let is_enabled = config.borrow_and_update().port_mapping;
        let addresses = listening.borrow_and_update().clone();
        task.follow(is_enabled, &addresses, &mut uplinks).await;
        let publish = |status: Vec<Status>| {
            mesh.portmap.status.send_if_modified(|before| {
                let is_news = *before != status;
                *before = status;
                is_news
            });
        };
        let asked = task.ask(publish);
        if stop.run_until_cancelled(asked).await.is_none() {
            break;
        }
        let next = task.routers.deadline();
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = config.changed() => {}
            Ok(()) = listening.changed() => task.routers.changed(Instant::now()),
            Ok(()) = again.changed() => task.routers.changed(Instant::now()),
            () = rerouted(uplinks.as_ref()) => {
                // One that is replaced goes and comes.
                let _stopped = stop.run_until_cancelled(tokio::time::sleep(REROUTED)).await;
                task.routers.changed(Instant::now());
            }
            () = at(next) => {}
        }
    }
    task.close().await;
    task.save().await
}

/// Waits until then; for ever where there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits until default routes have changed; for ever where they are not followed.
async fn rerouted(uplinks: Option<&Uplinks>) {
    match uplinks {
        Some(uplinks) => uplinks.changed().await,
        None => std::future::pending().await,
    }
}

/// What was saved by this daemon or one before it. A file that makes no sense is told, and counts as none: what it named ends
/// by itself.
fn saved(dir: &Path) -> Vec<Record> {
    let read = store::kept(dir, FILE).context("read");
    let parsed = read.and_then(|bytes| match bytes {
        Some(bytes) => parse(&bytes).context("understand"),
        None => Ok(Vec::new()),
    });
    parsed.unwrap_or_else(|error| {
        let path = dir.join(FILE).display().to_string();
        tracing::warn!(path, error = %format!("{error:#}"), "ports of routers are not known any more");
        Vec::new()
    })
}

/// Writes what is to be known at the next start.
async fn save(dir: &Path, records: &[Record]) -> anyhow::Result<()> {
    let bytes = text(records)?;
    let dir = dir.to_owned();
    let written = tokio::task::spawn_blocking(move || store::keep(&dir, FILE, bytes.as_deref()));
    written.await?.context("write ports of routers")
}

/// The machines, with what they need to work.
struct Task<'a> {
    routers: Routers,
    /// What stands in the file.
    saved: Vec<Record>,
    /// What is known of the way to each router.
    askers: Vec<(Gateway, Asker)>,
    dir: &'a Path,
}

impl Task<'_> {
    /// Takes what is to be mapped, with the routers that are there. The kernel is asked only where there is something to map
    /// or to give back.
    async fn follow(
        &mut self,
        is_enabled: bool,
        listening: &[Address],
        uplinks: &mut Option<Uplinks>,
    ) {
        let is_wanted = is_enabled && !ports_where(listening, |ip| !ip.is_loopback()).is_empty();
        let mut found = Vec::new();
        if is_wanted || !self.saved.is_empty() {
            if uplinks.is_none() {
                let follow = Uplinks::follow();
                *uplinks = follow
                    .inspect_err(|error| tracing::debug!(%error, "follow default routes"))
                    .ok();
            }
            found = routers().await;
        }
        self.take_ways(&found);
        self.routers
            .set(Instant::now(), situations(is_enabled, listening, &found));
    }

    /// Remembers the way to each of these routers; of one that was known before, where it takes questions.
    fn take_ways(&mut self, found: &[Router]) {
        let before = std::mem::take(&mut self.askers);
        let of = |router: &Router| {
            let gateway = gateway(router);
            let known = before.iter().find(|(known, _)| *known == gateway);
            let asker = known.map(|(_, asker)| asker.clone()).unwrap_or_default();
            (gateway, asker.moved(router.link))
        };
        self.askers = found.iter().map(of).collect();
    }

    /// Asks whatever is to be asked now, the routers beside one another.
    async fn ask(&mut self, publish: impl Fn(Vec<Status>)) {
        publish(self.routers.status());
        let mut random = || getrandom::u32().ok();
        loop {
            let orders = self.routers.poll(Instant::now(), unix_now(), &mut random);
            if orders.is_empty() {
                break;
            }
            let orders = self.recorded(orders).await;
            self.carry_out(&orders).await;
            publish(self.routers.status());
        }
        if let Err(error) = self.save().await {
            tracing::debug!(error = %format!("{error:#}"), "save");
        }
        publish(self.routers.status());
    }

    /// Carries out orders, each to another router.
    async fn carry_out(&mut self, orders: &[Order]) {
        let askers = self.askers.iter_mut();
        let asked = askers.filter_map(|(gateway, asker)| {
            let mut orders = orders.iter();
            let order = orders.find(|order| order.record().gateway == *gateway)?;
            Some(async move { (order, carry_out(asker, order).await) })
        });
        for (order, outcome) in join_all(asked).await {
            self.routers
                .done(Instant::now(), unix_now(), order, outcome);
        }
    }

    /// Those of the orders that may be carried out: of a port that is to be asked for the record stands in the file now. What
    /// is closed needs none, and one that is left in the file does no harm.
    async fn recorded(&mut self, mut orders: Vec<Order>) -> Vec<Order> {
        let is_removal = |order: &Order| matches!(order, Order::Remove(_));
        if orders.iter().all(is_removal) {
            return orders;
        }
        if let Err(error) = self.save().await {
            tracing::warn!(error = %format!("{error:#}"), "no port of the router is asked for");
            for order in orders.extract_if(.., |order| !is_removal(order)) {
                self.routers.unsaved(Instant::now(), &order);
            }
        }
        orders
    }

    async fn save(&mut self) -> anyhow::Result<()> {
        let records = self.routers.records();
        if records != self.saved {
            save(self.dir, &records).await?;
            self.saved = records;
        }
        Ok(())
    }

    /// Has the routers close what they opened. What they do not say is closed stays in the file.
    async fn close(&mut self) {
        let open = self.routers.at_these_routers();
        let closed = close_everywhere(&self.askers, &open, LAST).await;
        for record in &closed {
            self.routers.forget_record(record);
        }
        let left = open.len() - closed.len();
        if left > 0 {
            tracing::info!(
                left,
                "the router does not answer: ports that it opened for this machine stay open for a while"
            );
        }
    }
}

/// Has each router close those of the records that are its own, all within `limit`; those that are closed come back.
async fn close_everywhere(
    askers: &[(Gateway, Asker)],
    records: &[Record],
    limit: Duration,
) -> Vec<Record> {
    let close = askers.iter().map(|(gateway, asker)| {
        let all = records.iter().copied();
        let own: Vec<Record> = all.filter(|record| record.gateway == *gateway).collect();
        async move { close_all(asker, &own, limit).await }
    });
    join_all(close).await.into_iter().flatten().collect()
}

async fn routers() -> Vec<Router> {
    let found = host::routers(MAX_ROUTERS).await;
    found
        .inspect_err(|error| tracing::debug!(%error, "ask for default routes"))
        .unwrap_or_default()
}

/// Has routers close what a daemon with that state directory left open: a line for each port.
pub(crate) async fn cleanup(dir: &Path) -> Vec<String> {
    let before = saved(dir);
    if before.is_empty() {
        return Vec::new();
    }
    let way = |router: &Router| (gateway(router), Asker::by(router.link));
    let askers: Vec<(Gateway, Asker)> = routers().await.iter().map(way).collect();
    let is_there = |record: &Record| askers.iter().any(|(gateway, _)| *gateway == record.gateway);
    let all = before.iter().copied();
    let (over, kept): (Vec<Record>, Vec<Record>) = all.partition(|r| r.until <= unix_now());
    let closed = close_everywhere(&askers, &kept, CLEANUP).await;
    let (mut left, mut lines) = (Vec::new(), Vec::new());
    for record in &before {
        let port = format!(
            "{} port {} of the router {}",
            record.port.transport.as_str(),
            record.external,
            record.gateway.address
        );
        if over.contains(record) || closed.contains(record) {
            lines.push(format!("removed {port}"));
            continue;
        }
        let why = if is_there(record) {
            "it does not answer"
        } else {
            "this machine is not behind it now"
        };
        lines.push(format!("left {port}: {why}"));
        left.push(*record);
    }
    if let Err(error) = save(dir, &left).await {
        tracing::warn!(error = %format!("{error:#}"), "ports of routers");
    }
    lines
}

#[cfg(test)]
mod tests;
