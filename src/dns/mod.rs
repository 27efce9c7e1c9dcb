//! Names: one authoritative server on each of this node's overlay addresses, and the way out for local askers.
//!
//! Owns the sockets on port 53 of every subnet that is up and the way to resolvers outside. It reads the View, and what the
//! host says of containers' resolver files, and nothing else: it never changes a zone, never binds an address that is not
//! this node's own in a subnet, and never lets a question for a zone of who asks leave the machine. A subnet's zone is its own askers': its workloads here, its
//! members, and this machine, which is in every subnet that is up. Who is in several is told the names of all of them,
//! whichever of their resolvers it asks. What is none of ours goes to the host's resolvers, or from within a container first
//! to whom that asked before us (`before`).
//!
//! The server is hickory-server's request and response half: `handler` is its
//! [`RequestHandler`](hickory_server::server::RequestHandler), requests are decoded and replies encoded by its
//! [`Request`](hickory_server::server::Request) and
//! [`MessageResponse`](hickory_server::zone_handler::MessageResponse). Its `Server`, the half with the sockets, is not
//! used: in 0.26 it starts a task for each datagram and takes TCP connections without end, and has no setting for either,
//! nor for a rate. `listen` feeds the handler instead, within these bounds:
//!
//! | bound | value | why |
//! |---|---|---|
//! | UDP answer | [`MAX_UDP`] bytes, else TC | unfragmented, and no amplifier |
//! | questions to the host's resolvers | [`IN_FLIGHT`] at once, 2.8 s each | the only tasks a question makes |
//! | one source | [`SOURCE_LIMIT`]: 1000/s, 2000 at once | a member cannot starve others |
//! | sources remembered | [`SOURCES`] | a further one takes the place of one that asks little |
//! | TCP connections | [`CONNECTIONS`], [`PER_SOURCE`] a source | the oldest makes room |
//! | questions of a TCP connection | [`PIPELINED`] at once | answered in any order (RFC 7766) |
//! | TCP silence | [`TCP_IDLE_TIMEOUT`] for a whole question | also against one byte a second |
//! | request | [`MAX_REQUEST`] bytes | one buffer each |

mod before;
mod catalog;
mod counters;
mod handler;
mod listen;
mod question;
mod reverse;
mod trial;
mod upstream;
mod way;
mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name as DnsName, RData, RecordType};
use hickory_server::net::xfer::Protocol;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use counters::Counters;
pub use listen::{CONNECTIONS, MAX_REQUEST, PER_SOURCE, PIPELINED, TCP_IDLE_TIMEOUT};
pub use listen::{SOURCE_LIMIT, SOURCES};
pub use question::MAX_UDP;
pub use upstream::IN_FLIGHT;
pub use way::Door;
pub use zone::NEGATIVE_TTL;

use catalog::{Catalog, is_within, own_addresses};
use handler::Handler;
use listen::{Shared, Sockets};
use question::Served;
use upstream::Source;
use zone::absolute;

use crate::model::host::{Applied, ResolvConf};
use crate::model::id::SubnetId;
use crate::model::view::View;

/// How often a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often `resolv.conf` is looked at, whether or not anybody says that it has changed.
const REREAD: Duration = Duration::from_secs(5);

/// Whether names are answered here, as `[dns] mode` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Our zones are answered here, everything else by the host's resolvers.
    #[default]
    Split,
    /// Nothing is answered; no port is bound.
    Off,
}

/// What the server needs to know beyond the View.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Whether names are answered at all.
    pub mode: Mode,
    /// Port bound on each address; 53 but in tests.
    pub port: u16,
    /// File the host's resolvers are read from.
    pub resolv_conf: PathBuf,
    /// Resolvers instead of those in the file.
    pub upstreams: Option<Vec<SocketAddr>>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            mode: Mode::Split,
            port: 53,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            upstreams: None,
        }
    }
}

/// Where systemd-resolved keeps the resolvers it asks, while `resolv.conf` names only itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The addresses this machine's programs ask names of: what `/etc/resolv.conf` says, and behind a resolver on this machine
/// itself those it asks, as far as systemd-resolved tells. Loopback is left out.
pub async fn resolvers() -> BTreeSet<IpAddr> {
    let mut found = upstream::read(&DnsConfig::default().resolv_conf).await;
    if found.iter().any(|server| server.ip().is_loopback()) {
        found.extend(upstream::read(Path::new(RESOLVED)).await);
    }
    found
        .into_iter()
        .map(|server| server.ip().to_canonical())
        .filter(|ip| !ip.is_loopback())
        .collect()
}

/// An address that is not answered at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The subnet that the address belongs to.
    pub subnet: SubnetId,
    /// Address and port that could not be bound.
    pub address: SocketAddr,
    /// What the kernel said.
    pub error: String,
    /// Whether another program holds the port.
    pub in_use: bool,
    /// Whether this machine has no sockets of that family.
    pub no_family: bool,
}

/// Every address that is not answered at the moment.
pub type Problems = Vec<Problem>;

/// One record found by [`Dns::query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Owner name without the last dot.
    pub name: String,
    /// The record type as text: `A`, `AAAA`, `CNAME` and so on.
    pub kind: String,
    /// Seconds for which the record may be kept.
    pub ttl: u32,
    /// The data as text.
    pub value: String,
}

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The name exists; it may have no record of that type.
    Exists,
    /// There is no such name.
    NoSuchName,
    /// The question is of a kind that is not answered.
    Refused,
    /// The resolvers of the host did not answer, or there are none.
    Failed,
}

/// What [`Dns::query`] found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryAnswer {
    /// Whether the name exists, or why nobody can tell.
    pub outcome: Outcome,
    /// Whether the answer is from a zone of ours.
    pub authoritative: bool,
    /// The answers, aliases first.
    pub records: Vec<Found>,
}

/// A question that cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The text is no DNS name.
    #[error("{0:?} is not a DNS name")]
    Name(String),
    /// The text is no record type.
    #[error("{0:?} is not a DNS record type (A, AAAA, PTR, CNAME, TXT, SRV)")]
    Kind(String),
    /// No subnet is up, so nothing answers.
    #[error("no subnet is up: no names are served")]
    NoSubnet,
}

/// Tells whom this machine and containers ask beside us, and opens the door into the namespaces of these.
pub struct Formers {
    /// Says, by another number, that `resolv.conf` of this machine may be another one.
    pub file: watch::Receiver<u64>,
    /// Says which servers their resolver files named.
    pub applied: watch::Receiver<Applied>,
    /// Makes the sockets they are asked with.
    pub door: Door,
}

impl Formers {
    /// Resolves when there may be others, or with `tick`.
    async fn changed_or<T>(&mut self, tick: impl Future<Output = T>) {
        tokio::select! {
            Ok(()) = self.applied.changed() => {}
            Ok(()) = self.file.changed() => {}
            _ = tick => {}
        }
    }
}

/// The server; cheap to clone, all clones are one.
#[derive(Clone)]
pub struct Dns {
    config: Arc<DnsConfig>,
    shared: Arc<Shared>,
    problems: watch::Sender<Problems>,
}

/// One address that is answered.
struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

type Key = (SubnetId, SocketAddr);

impl Dns {
    /// A server that answers nothing until it [runs](Self::run).
    pub fn new(config: DnsConfig) -> Dns {
        Dns {
            config: Arc::new(config),
            shared: Arc::new(Shared::new()),
            problems: watch::Sender::default(),
        }
    }

    /// The addresses that cannot be bound, as they come and go.
    pub fn problems(&self) -> watch::Receiver<Problems> {
        self.problems.subscribe()
    }

    /// The host's resolver file, where each resolver that it names is this node itself: then nobody resolves names outside of
    /// the subnets. Looked at when it changes, and every five seconds.
    pub fn names_only_us(&self) -> Option<&Path> {
        let is_alone = self.shared.upstream.is_alone();
        is_alone.then_some(self.config.resolv_conf.as_path())
    }

    /// The file that the host's resolvers are read from; none where nobody asks them.
    pub fn follows(&self) -> Option<&Path> {
        let is_read = self.config.mode == Mode::Split && self.config.upstreams.is_none();
        is_read.then_some(self.config.resolv_conf.as_path())
    }

    /// From now on this machine itself is answered these addresses for `name`, a name below a zone of ours that it tries its
    /// own resolver with; none: no name is tried. What is no DNS name is answered to nobody.
    pub fn try_name(&self, trial: Option<(&str, Vec<IpAddr>)>) {
        let trial = trial.and_then(|(name, addresses)| {
            let name = absolute(name)?;
            Some(Arc::new(trial::Trial { name, addresses }))
        });
        self.shared.trial.store(trial);
    }

    /// What was answered and turned away since the start.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Answers on every own address of every subnet in the view, following each new one, until `stop`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the sockets to their tasks; use `stop`.
    pub async fn run(
        self,
        view: Arc<ArcSwap<View>>,
        mut ticks: watch::Receiver<u64>,
        mut former: Formers,
        stop: CancellationToken,
    ) {
        if self.config.mode == Mode::Off {
            stop.cancelled().await;
            return;
        }
        let mut server = Server {
            dns: self,
            catalog: Catalog::default(),
            zones: BTreeMap::new(),
            serving: BTreeMap::new(),
        };
        let mut source = Source::default();
        let mut retry = tokio::time::interval(RETRY);
        let mut reread = tokio::time::interval(REREAD);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        server
            .dns
            .read_upstreams(&mut source, &view.load(), &mut former)
            .await;
        server.follow(&view.load()).await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = ticks.changed() => {
                    let now = view.load_full();
                    // The own addresses may have changed, and those are never asked.
                    server.dns.read_upstreams(&mut source, &now, &mut former).await;
                    server.follow(&now).await;
                    if changed.is_err() {
                        // Whoever publishes views is gone; the last one stays until the stop.
                        stop.cancelled().await;
                        break;
                    }
                }
                _ = retry.tick() => server.bind(&view.load()).await,
                _ = former.changed_or(reread.tick()) => {
                    let ready = server.dns.shared.upstream.is_ready();
                    server.dns.read_upstreams(&mut source, &view.load(), &mut former).await;
                    if ready != server.dns.shared.upstream.is_ready() {
                        server.follow(&view.load()).await;
                    }
                }
            }
        }
        server.close().await;
    }

    async fn read_upstreams(&self, source: &mut Source, view: &View, former: &mut Formers) {
        let own = own_addresses(view);
        let upstream = &self.shared.upstream;
        upstream
            .refresh(
                source,
                &self.config.resolv_conf,
                self.config.upstreams.as_deref(),
                &own,
            )
            .await;
        let applied = former.applied.borrow_and_update();
        let askers = view.host.workloads.iter().filter_map(|workload| {
            let ResolvConf::Replace(path) = &workload.resolv_conf else {
                return None;
            };
            let servers = applied.former_servers.get(path)?;
            Some((
                workload.netns.as_ref()?,
                workload.addresses.as_slice(),
                servers.as_slice(),
            ))
        });
        upstream.follow(source, askers, &own, &former.door);
    }

    /// Asks what a program on this machine would be told: the same bytes go the same way as from a socket.
    ///
    /// A name of one label is looked for in every subnet, and so is one of several that no name outside can be: its last
    /// label begins with `_`, or is a member's name. A subnet that has the type asked for counts before one that has the
    /// name alone. Names outside are only resolved while the server runs, which is what knows the host's resolvers.
    ///
    /// # Errors
    /// [`QueryError`] where it is no question at all.
    pub async fn query(
        &self,
        view: &View,
        name: &str,
        kind: &str,
    ) -> Result<QueryAnswer, QueryError> {
        let kind = RecordType::from_str(&kind.to_ascii_uppercase())
            .map_err(|_| QueryError::Kind(cut(kind)))?;
        let asked = asked_name(name).ok_or_else(|| QueryError::Name(cut(name)))?;
        let zones = Catalog::default().update(view, self.shared.upstream.is_ready());
        let mut zones: Vec<(SubnetId, Served)> = zones.into_iter().collect();
        if zones.is_empty() {
            return Err(QueryError::NoSubnet);
        }
        let single = asked.num_labels() == 1;
        let owner = zones.iter().position(|(_, s)| s.index.owns(&asked));
        if !name.ends_with('.') && (single || owner.is_none()) {
            // Ahead of the host's resolvers, which would hear a name of ours.
            let mut first = None;
            for (id, served) in &zones {
                let Ok(full) = asked.clone().append_domain(served.index.origin()) else {
                    continue;
                };
                let subnet = view.subnets.get(id).filter(|_| served.index.holds(&full));
                let is_meant = single || subnet.is_some_and(|s| is_within(s, &asked));
                if !is_meant {
                    continue;
                }
                let answer = self.ask(served.clone(), full, kind).await;
                match answer.outcome {
                    Outcome::Exists if !answer.records.is_empty() => return Ok(answer),
                    Outcome::NoSuchName => {}
                    _ => first = first.or(Some(answer)),
                }
            }
            let none = || QueryAnswer {
                outcome: Outcome::NoSuchName,
                authoritative: true,
                records: Vec::new(),
            };
            if let Some(answer) = first.or_else(|| single.then(none)) {
                return Ok(answer);
            }
        }
        let (_, served) = zones.swap_remove(owner.unwrap_or(0));
        Ok(self.ask(served, asked, kind).await)
    }

    async fn ask(&self, served: Served, name: DnsName, kind: RecordType) -> QueryAnswer {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name, kind));
        let bytes = message.to_vec().unwrap_or_default();
        let handler = Handler::new(
            Arc::new(ArcSwap::from_pointee(served)),
            Arc::clone(&self.shared),
        );
        let source = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let reply = handler::answer(Arc::new(handler), bytes, source, Protocol::Tcp).await;
        read_answer(&reply.unwrap_or_default())
    }
}

/// The state of [`Dns::run`].
struct Server {
    dns: Dns,
    catalog: Catalog,
    /// What each subnet serves; the sockets read it through the pointer.
    zones: BTreeMap<SubnetId, Arc<ArcSwap<Served>>>,
    serving: BTreeMap<Key, Serving>,
}

impl Server {
    /// Takes over a view: new answers first, then sockets.
    async fn follow(&mut self, view: &View) {
        let served = self
            .catalog
            .update(view, self.dns.shared.upstream.is_ready());
        self.zones.retain(|id, _| served.contains_key(id));
        for (id, served) in served {
            match self.zones.get(&id) {
                Some(slot) => slot.store(Arc::new(served)),
                None => {
                    self.zones
                        .insert(id, Arc::new(ArcSwap::from_pointee(served)));
                }
            }
        }
        self.bind(view).await;
    }

    /// Opens what is missing, closes what is not wanted any more, and says what could not be opened.
    async fn bind(&mut self, view: &View) {
        let wanted = self.wanted(view);
        let ended: Vec<Key> = self
            .serving
            .keys()
            .filter(|k| !wanted.contains(k))
            .copied()
            .collect();
        let broken: Vec<Key> = self
            .serving
            .iter()
            .filter(|(_, s)| s.task.is_finished())
            .map(|(k, _)| *k)
            .collect();
        for key in ended.into_iter().chain(broken) {
            if let Some(serving) = self.serving.remove(&key) {
                serving.end().await;
                tracing::debug!(subnet = %key.0, address = %key.1, "names no longer answered");
            }
        }
        let mut problems = Problems::new();
        for key in wanted {
            if self.serving.contains_key(&key) {
                continue;
            }
            if let Err(error) = self.open(key) {
                problems.push(Problem {
                    subnet: key.0,
                    address: key.1,
                    in_use: error.kind() == io::ErrorKind::AddrInUse,
                    no_family: error.raw_os_error() == Some(libc::EAFNOSUPPORT),
                    error: error.to_string(),
                });
            }
        }
        self.dns.problems.send_if_modified(|now| {
            let changed = *now != problems;
            if changed {
                for p in problems.iter().filter(|p| !now.contains(p)) {
                    tracing::warn!(subnet = %p.subnet, address = %p.address, error = %p.error, "names cannot be answered");
                }
                *now = problems;
            }
            changed
        });
    }

    /// Every own address of every subnet, without what is not to be bound: never all addresses at once.
    fn wanted(&self, view: &View) -> Vec<Key> {
        let port = self.dns.config.port;
        view.subnets
            .values()
            .filter(|s| self.zones.contains_key(&s.id))
            .flat_map(|s| {
                s.addresses
                    .iter()
                    .map(|a| (s.id, SocketAddr::new(*a, port)))
            })
            .filter(|(_, a)| !a.ip().is_unspecified() && !a.ip().is_multicast())
            .collect()
    }

    fn open(&mut self, key: Key) -> io::Result<()> {
        let Some(served) = self.zones.get(&key.0) else {
            return Ok(());
        };
        let sockets = Sockets::bind(key.1)?;
        let stop = CancellationToken::new();
        let handler = Handler::new(Arc::clone(served), Arc::clone(&self.dns.shared));
        let task = tokio::spawn(sockets.run(Arc::new(handler), stop.clone()));
        self.serving.insert(key, Serving { stop, task });
        tracing::debug!(subnet = %key.0, address = %key.1, "names answered");
        Ok(())
    }

    async fn close(self) {
        for serving in self.serving.values() {
            serving.stop.cancel();
        }
        for serving in self.serving.into_values() {
            serving.end().await;
        }
    }
}

impl Serving {
    async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "DNS server task");
        }
    }
}

/// A name as typed; an address stands for the name its PTR is at.
fn asked_name(text: &str) -> Option<DnsName> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(DnsName::from(address)),
        Err(_) => absolute(text).filter(|_| !text.is_empty() && text.len() <= 255),
    }
}

/// What is echoed in an error: a hostile name must not fill a terminal.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn read_answer(reply: &[u8]) -> QueryAnswer {
    let Ok(message) = Message::from_vec(reply) else {
        return QueryAnswer {
            outcome: Outcome::Failed,
            authoritative: false,
            records: Vec::new(),
        };
    };
    let outcome = match message.metadata.response_code {
        ResponseCode::NoError => Outcome::Exists,
        ResponseCode::NXDomain => Outcome::NoSuchName,
        ResponseCode::Refused | ResponseCode::NotImp => Outcome::Refused,
        _ => Outcome::Failed,
    };
    let records = message.answers.iter().map(|r| Found {
        name: undotted(&r.name),
        kind: r.record_type().to_string(),
        ttl: r.ttl,
        value: value(&r.data),
    });
    QueryAnswer {
        outcome,
        authoritative: message.metadata.authoritative,
        records: records.collect(),
    }
}

fn undotted(name: &DnsName) -> String {
    name.to_ascii().trim_end_matches('.').to_owned()
}

fn value(data: &RData) -> String {
    match data {
        RData::CNAME(name) => undotted(&name.0),
        RData::PTR(name) => undotted(&name.0),
        RData::SRV(srv) => format!(
            "{} {} {} {}",
            srv.priority,
            srv.weight,
            srv.port,
            undotted(&srv.target)
        ),
        other => other.to_string(),
    }
}

/// A server without sockets, for tests/fuzz.
#[cfg(any(fuzzing, test))]
pub mod fuzz;

#[cfg(test)]
mod tests;
