//! Ports of the router that lead to this machine: who asks for them, and where they are told.
//!
//! One task follows what this node listens on, the default route and the configuration, and carries out what
//! [`crate::portmap`] says. A port that is open is told like an address that `transport.advertise` names, and told no more
//! once it is lost. At the end everything is given back.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Mesh;
use crate::host::{self, Uplinks};
use crate::model::address::is_within;
use crate::node::unix_now;
use crate::p2p::{Address, Carrier};
use crate::portmap::{
    Asker, Gateway, Machine, Order, Port, Record, Situation, Status, Transport, carry_out,
    close_all, parse, text,
};
use crate::store;

/// The file of the state directory that says what routers may have open for this machine.
const FILE: &str = "portmap.json";
/// How long the router is asked at a stop to close what it opened. What it does not answer by then stays in the file.
const LAST: Duration = Duration::from_secs(2);
/// And how long it is asked by `cleanup`, where a person waits.
const CLEANUP: Duration = Duration::from_secs(10);
/// How long after a change of default routes they are looked at.
const REROUTED: Duration = Duration::from_millis(200);

/// What the rest of the daemon knows of the router's ports.
#[derive(Debug)]
pub(crate) struct PortMap {
    /// The addresses listened on, in this order, but for those through relays; a change of them is a change of this machine's
    /// network.
    listening: watch::Sender<Vec<Address>>,
    status: watch::Sender<Status>,
}

impl Default for PortMap {
    fn default() -> PortMap {
        PortMap {
            listening: watch::Sender::new(Vec::new()),
            status: watch::Sender::default(),
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

    /// The addresses listened on, for who follows them.
    pub(super) fn follow_listening(&self) -> watch::Receiver<Vec<Address>> {
        self.listening.subscribe()
    }

    /// How the ports stand, for who follows it.
    pub(crate) fn follow(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// How the ports stand now.
    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

impl Mesh {
    /// Where peers reach this node by ports of the router, those of UDP first.
    pub(crate) fn mapped(&self) -> Vec<Address> {
        let config = self.config();
        let status = self.portmap.status.borrow();
        let all = [Transport::Udp, Transport::Tcp]
            .into_iter()
            .flat_map(|transport| {
                let told = status.reached(transport);
                told.filter(|at| !is_within((*at.ip()).into(), &config.deny_cidrs))
                    .filter_map(move |at| {
                        let (ip, port) = (at.ip(), at.port());
                        let text = match transport {
                            Transport::Udp => format!("/ip4/{ip}/udp/{port}/quic-v1"),
                            Transport::Tcp => format!("/ip4/{ip}/tcp/{port}"),
                        };
                        text.parse().ok()
                    })
            });
        all.collect()
    }
}

/// The ports of these addresses that others may reach: those of IPv4, but for loopback.
pub(super) fn ports(addresses: &[Address]) -> Vec<Port> {
    let own = addresses.iter().filter(|address| address.relay().is_none());
    let of = |address: &Address| {
        let ip = address.ip()?.to_canonical();
        let transport = match address.carrier()? {
            Carrier::Quic => Transport::Udp,
            Carrier::Tcp => Transport::Tcp,
            _ => return None,
        };
        let number = address.port().filter(|number| *number != 0)?;
        (ip.is_ipv4() && !ip.is_loopback()).then_some(Port { transport, number })
    };
    let mut all: Vec<Port> = own.filter_map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The ports listened on at the address that the router forwards to. At another one a port of this number may be somebody
/// else's, and the router would lead the Internet there.
fn ports_at(addresses: &[Address], local: Ipv4Addr) -> Vec<Port> {
    let is_there = |ip: IpAddr| ip.to_canonical() == IpAddr::V4(local);
    let there = addresses.iter().filter(|a| a.ip().is_some_and(is_there));
    ports(&there.cloned().collect::<Vec<_>>())
}

/// Keeps ports of the router open until `stop`, and has them closed then.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let dir = mesh.config().state_dir.clone();
    let mut task = Task {
        machine: Machine::new(saved(&dir)),
        saved: Vec::new(),
        asker: Asker::default(),
        dir: &dir,
    };
    task.saved = task.machine.records();
    let mut config = mesh.follow_config();
    let mut listening = mesh.portmap.listening.subscribe();
    let mut uplinks = None;
    loop {
        let is_enabled = config.borrow_and_update().port_mapping;
        let addresses = listening.borrow_and_update().clone();
        task.follow(is_enabled, &addresses, &mut uplinks).await;
        let publish = |status: Status| {
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
        let next = task.machine.deadline();
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = config.changed() => {}
            Ok(()) = listening.changed() => task.machine.changed(Instant::now()),
            () = rerouted(uplinks.as_ref()) => {
                // One that is replaced goes and comes.
                let _stopped = stop.run_until_cancelled(tokio::time::sleep(REROUTED)).await;
                task.machine.changed(Instant::now());
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

/// The machine, with what it needs to work.
struct Task<'a> {
    machine: Machine,
    /// What stands in the file.
    saved: Vec<Record>,
    asker: Asker,
    dir: &'a Path,
}

impl Task<'_> {
    /// Takes what is to be mapped, with the router that is there. The kernel is asked only where there is something to map
    /// or to give back.
    async fn follow(
        &mut self,
        is_enabled: bool,
        listening: &[Address],
        uplinks: &mut Option<Uplinks>,
    ) {
        let mut situation = Situation {
            is_enabled,
            ports: ports(listening),
            gateway: None,
        };
        let is_wanted = situation.is_enabled && !situation.ports.is_empty();
        if is_wanted || !self.saved.is_empty() {
            if uplinks.is_none() {
                let follow = Uplinks::follow();
                *uplinks = follow
                    .inspect_err(|error| tracing::debug!(%error, "follow default routes"))
                    .ok();
            }
            situation.gateway = gateway().await;
        }
        if let Some(gateway) = situation.gateway {
            situation.ports = ports_at(listening, gateway.local);
        }
        self.machine.set(Instant::now(), situation);
    }

    /// Asks whatever is to be asked now.
    async fn ask(&mut self, publish: impl Fn(Status)) {
        publish(self.machine.status());
        let mut random = || getrandom::u32().ok();
        while let Some(order) = self.machine.poll(Instant::now(), unix_now(), &mut random) {
            // What is closed needs no record, and one that is left in the file does no harm.
            let is_recorded = matches!(order, Order::Remove(_)) || self.recorded(&order).await;
            if !is_recorded {
                publish(self.machine.status());
                continue;
            }
            let outcome = carry_out(&mut self.asker, &order).await;
            self.machine
                .done(Instant::now(), unix_now(), &order, outcome);
            publish(self.machine.status());
        }
        if let Err(error) = self.save().await {
            tracing::debug!(error = %format!("{error:#}"), "save");
        }
        publish(self.machine.status());
    }

    /// Whether the record of a port that is to be asked for stands in the file now.
    async fn recorded(&mut self, order: &Order) -> bool {
        let Err(error) = self.save().await else {
            return true;
        };
        tracing::warn!(error = %format!("{error:#}"), "no port of the router is asked for");
        self.machine.unsaved(Instant::now(), order);
        false
    }

    async fn save(&mut self) -> anyhow::Result<()> {
        let records = self.machine.records();
        if records != self.saved {
            save(self.dir, &records).await?;
            self.saved = records;
        }
        Ok(())
    }

    /// Has the router close what it opened. What it does not say is closed stays in the file.
    async fn close(&mut self) {
        let open = self.machine.at_this_router();
        let closed = close_all(&self.asker, &open, LAST).await;
        for record in &closed {
            self.machine.forget_record(record);
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

async fn gateway() -> Option<Gateway> {
    match host::router().await {
        Ok(router) => router.map(|(address, local)| Gateway { address, local }),
        Err(error) => {
            tracing::debug!(%error, "ask for the default route");
            None
        }
    }
}

/// Has the router close what a daemon with that state directory left open: a line for each port.
pub(crate) async fn cleanup(dir: &Path) -> Vec<String> {
    let before = saved(dir);
    if before.is_empty() {
        return Vec::new();
    }
    let gateway = gateway().await;
    let is_there = |record: &Record| gateway == Some(record.gateway);
    let (over, kept): (Vec<_>, Vec<_>) = before.iter().partition(|r| r.until <= unix_now());
    let there: Vec<Record> = kept.into_iter().filter(|r| is_there(r)).collect();
    let closed = close_all(&Asker::default(), &there, CLEANUP).await;
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
mod tests {
    use super::*;

    #[test]
    fn only_ports_that_others_may_reach_over_ipv4_are_asked_for() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let all = [
            "/ip4/192.168.1.7/udp/4100/quic-v1",
            "/ip4/10.0.0.7/udp/4100/quic-v1",
            "/ip4/10.0.0.7/tcp/443",
            "/ip4/192.168.1.7/tcp/4101",
            "/ip4/127.0.0.1/udp/4102/quic-v1",
            "/ip6/2001:db8::7/tcp/4103",
        ]
        .map(address);
        let port = |transport, number| Port { transport, number };
        let (udp, tcp) = (port(Transport::Udp, 4100), port(Transport::Tcp, 4101));
        assert_eq!(ports(&all), [udp, port(Transport::Tcp, 443), tcp]);
        assert_eq!(ports(&[]), []);
        // At 192.168.1.7 port 443 may be a web server's.
        let at = |local: &str| ports_at(&all, local.parse().unwrap());
        assert_eq!(at("192.168.1.7"), [udp, tcp]);
        assert_eq!(at("192.168.1.8"), []);
        assert_eq!(at("127.0.0.1"), []);
    }

    #[tokio::test]
    async fn where_nothing_can_be_written_ports_are_closed_and_none_is_opened() {
        let gateway = Gateway {
            address: "127.7.9.1".parse().unwrap(),
            local: "127.0.0.1".parse().unwrap(),
        };
        let port = |number| Port {
            transport: Transport::Udp,
            number,
        };
        let record = |number| Record {
            gateway,
            protocol: crate::portmap::Protocol::Pcp,
            port: port(number),
            external: number,
            nonce: [1, 2, 3],
            until: u64::MAX,
        };
        let dir = Path::new("/nonexistent/byway");
        let mut task = Task {
            machine: Machine::new(vec![record(4100), record(4101)]),
            saved: Vec::new(),
            asker: Asker::default(),
            dir,
        };
        let situation = Situation {
            is_enabled: true,
            ports: vec![port(4200)],
            gateway: Some(gateway),
        };
        task.machine.set(Instant::now(), situation);
        let asked = tokio::time::timeout(Duration::from_secs(20), task.ask(|_| {}));
        asked.await.expect("it ends");
        let trouble = task.machine.status().trouble;
        assert_eq!(trouble, Some(crate::portmap::Trouble::Unsaved));
        // Nobody answers there, so that both are owed still.
        assert_eq!(task.machine.records(), [record(4100), record(4101)]);
    }

    #[test]
    fn a_place_at_a_relay_is_no_change_of_this_machine_s_network() {
        let map = PortMap::default();
        let mut changes = map.follow_listening();
        let own: Address = "/ip4/192.168.1.7/tcp/4100".parse().unwrap();
        let relay = crate::model::id::PeerId([2; 32]);
        let through = format!("/ip4/192.0.2.9/tcp/4100/p2p/{relay}/p2p-circuit");
        map.listening(std::slice::from_ref(&own));
        assert_eq!(*changes.borrow_and_update(), std::slice::from_ref(&own));
        map.listening(&[own.clone(), through.parse().unwrap()]);
        map.listening(&[own]);
        assert!(!changes.has_changed().unwrap());
        map.listening(&[]);
        assert!(changes.has_changed().unwrap());
    }

    #[tokio::test]
    async fn what_was_saved_is_read_again_and_a_damaged_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(saved(dir.path()), []);
        let record = Record {
            gateway: Gateway {
                address: "192.168.1.1".parse().unwrap(),
                local: "192.168.1.7".parse().unwrap(),
            },
            protocol: crate::portmap::Protocol::Pcp,
            port: Port {
                transport: Transport::Udp,
                number: 4100,
            },
            external: 4100,
            nonce: [1, 2, 3],
            until: u64::MAX,
        };
        save(dir.path(), &[record]).await.unwrap();
        assert_eq!(saved(dir.path()), [record]);
        // Elsewhere, it is left and said to be.
        let [line] = cleanup(dir.path()).await.try_into().unwrap();
        assert_eq!(
            line,
            "left udp port 4100 of the router 192.168.1.1: this machine is not behind it now"
        );
        assert_eq!(saved(dir.path()), [record]);
        let over = Record { until: 7, ..record };
        save(dir.path(), &[over]).await.unwrap();
        assert_eq!(cleanup(dir.path()).await.len(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(dir.path().join(FILE), "[{]").unwrap();
        assert_eq!(saved(dir.path()), []);
        save(&dir.path().join("none"), &[record]).await.unwrap_err();
    }
}
