//! The composition root: builds every part, hands over what crosses between them, runs the tasks, stops them in order.
//!
//! ```text
//! start  config, keys, records read and checked (nothing touched) | sockets | tasks, first reconcile, ready
//! stop   api refuses -> swarm closes -> links drain -> host applies the empty config -> TUNs drop     (5 s in all)
//! ```

mod attach;
mod handler;
mod join;
mod machine;
mod metrics;
mod peers;
mod status;
mod sync;
mod tell;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use machine::Machine;

use crate::api::server;
use crate::api::types::{Error, ErrorKind};
use crate::config::{Config, DnsMode};
use crate::datapath::Datapath;
use crate::dns::{self, Dns};
use crate::host::nft::Repair;
use crate::host::{Applied, Rules, reconcile};
use crate::link::Links;
use crate::model::build::Here;
use crate::model::host::HostConfig;
use crate::model::id::PeerId;
use crate::model::members::Identity;
use crate::model::state::State;
use crate::node::{Node, Parts};
use crate::p2p;
use crate::store::{self, Store};

/// Time from the first signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What every task of the daemon may use. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub config: Arc<Config>,
    pub machine: Machine,
    pub node: Node,
    pub peers: p2p::Handle,
    pub links: Links,
    pub datapath: Datapath,
    pub dns: Dns,
    pub applied: watch::Receiver<Applied>,
    pub table: Arc<peers::Table>,
    pub joins: Arc<join::Joins>,
    pub instance: Arc<str>,
    pub rules: Option<Rules>,
    pub started: Instant,
}

/// Runs the daemon until a signal: `byway daemon`.
///
/// # Errors
/// [`Error`] with what failed and what to do, before anything was touched; or the name of a task that ended early.
pub fn run(config: Config) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("byway")
        .build()
        .map_err(|e| Error::new(ErrorKind::Failed, "E-RUNTIME", format!("start the runtime: {e}")))?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(on_signal(stop.clone()));
        let machine = if config.relay_only { Machine::Bare } else { Machine::Kernel };
        serve(config, machine, stop).await
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// Cancels on the first SIGTERM or SIGINT; a second one ends the process at once.
async fn on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    stop.cancel();
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, () = tokio::time::sleep(STOP_WITHIN) => {} }
    std::process::exit(1);
}

/// SIGHUP reads the configuration again, like `byway reload`.
async fn on_hangup(ctx: Context) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        match handler::call(&ctx, crate::api::types::Request::Reload).await {
            Ok(_) => tracing::info!("configuration read again"),
            Err(error) => tracing::warn!(%error, "read the configuration again"),
        }
    }
}

/// Everything between reading the state and the last goodbye, on the machine it is told: the kernel, or memory in tests.
///
/// # Errors
/// As [`run`].
pub async fn serve(config: Config, machine: Machine, stop: CancellationToken) -> Result<(), Error> {
    let failed = |code: &'static str| move |e: anyhow::Error| Error::new(ErrorKind::Failed, code, format!("{e:#}"));
    if let Some(path) = &config.swarm_key_file {
        // Ignoring it would run outside the perimeter that was asked for.
        let message = format!("swarm key {}: this version has no private swarms", path.display());
        return Err(Error::new(ErrorKind::Usage, "E-SWARM", message).hint("byway daemon   (without --swarm-key-file)"));
    }
    let (identity, seed, state, damage, store) = load(&config)?;
    let instance = instance_of(identity.peer);
    let listener = server::bind(&config.socket)?;

    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let mut listen = addresses(&config.listen)?;
    let underlay_ports = listen.iter().filter_map(p2p::Address::port).collect();
    let here = Here { instance: instance.clone(), underlay_ports };
    let parts = Parts { state, damage, store, here, node_name: config.node_name.clone() };
    let (node, pushes) = Node::start(parts).context("start the node's thread").map_err(failed("E-START"))?;

    let on_listen = |e: p2p::Error| match e {
        p2p::Error::InUse(_) => Error::new(ErrorKind::Conflict, "E-LISTEN-IN-USE", e.to_string())
            .hint("byway daemon --listen udp/PORT --listen tcp/PORT   (with a free port), or stop the other program"),
        other => Error::new(ErrorKind::Failed, "E-LISTEN", other.to_string()),
    };
    let mut net = p2p::Config::new(seed);
    if machine.transport() == p2p::TransportKind::Network {
        net.quic = quic_sockets(&mut listen).map_err(on_listen)?;
    }
    net.listen = listen;
    net.lan_discovery = config.lan_discovery;
    net.transport = machine.transport();
    net.limits.pending_in = config.limits.pending_connections;
    net.limits.connections = config.limits.connections;
    net.limits.per_peer = config.limits.connections_per_peer;
    net.limits.memory = usize::try_from(config.limits.memory_mib).unwrap_or(usize::MAX).saturating_mul(1 << 20);
    let (peers, events, driver) = p2p::start(net).map_err(on_listen)?;

    let (links, wanted) = Links::new(tokio::runtime::Handle::current(), None);
    let (datapath, died) = Datapath::new(node.view(), links.clone());
    let (desired, desired_rx) = watch::channel((0, Arc::new(HostConfig::default())));
    let (applied, applied_rx) = watch::channel(Applied::default());
    let dns = Dns::new(dns::DnsConfig {
        mode: if config.dns_mode == DnsMode::Off || !machine.is_kernel() { dns::Mode::Off } else { dns::Mode::Split },
        ..dns::DnsConfig::default()
    });
    let repair = if config.firewall_repair { Repair::Yes } else { Repair::No };
    let host = machine.host(&instance, &config.state_dir, datapath.clone(), repair).map_err(failed("E-NETLINK"))?;
    let ctx = Context {
        config: Arc::new(config),
        machine,
        node: node.clone(),
        peers,
        links,
        datapath,
        dns,
        applied: applied_rx,
        table: Arc::default(),
        joins: Arc::default(),
        instance: instance.as_str().into(),
        rules: host.rules(),
        started: Instant::now(),
    };

    // The parts stop one after the other, so each group has its own token.
    let (api_stop, net_stop, host_stop) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut tasks: JoinSet<(&'static str, anyhow::Result<()>)> = JoinSet::new();
    macro_rules! task {
        ($name:literal, $future:expr) => {{
            let future = $future;
            tasks.spawn(async move { ($name, future.await) });
        }};
    }
    {
        let (rx, stop) = (desired_rx, host_stop.clone());
        task!("host", async move {
            reconcile::run(host, rx, applied, stop).await;
            Ok(())
        });
    }
    {
        let stop = net_stop.clone();
        task!("peers", async move {
            driver.run(stop).await;
            Ok(())
        });
    }
    task!("events", peers::run(ctx.clone(), events, net_stop.clone()));
    task!("view", tell::run(ctx.clone(), desired, net_stop.clone()));
    task!("sync", sync::run(ctx.clone(), pushes, net_stop.clone()));
    task!("links", peers::follow_wanted(ctx.clone(), wanted, net_stop.clone()));
    task!("devices", tell::follow_devices(ctx.clone(), died, net_stop.clone()));
    {
        let (dns, view, ticks, stop) = (ctx.dns.clone(), node.view(), node.published(), net_stop.clone());
        task!("dns", async move {
            dns.run(view, ticks, stop).await;
            Ok(())
        });
    }
    {
        let (handler, stop) = (handler::handler(ctx.clone()), api_stop.clone());
        let clients = usize::try_from(ctx.config.limits.api_clients).unwrap_or(server::MAX_CLIENTS);
        let bounds = server::Bounds { clients, ..server::Bounds::default() };
        let served = async move { server::run_bounded(listener, handler, stop, bounds).await };
        task!("api", async move { served.await.context("serve the control socket") });
    }
    tokio::spawn(on_hangup(ctx.clone()));
    if let Some(listener) = metrics_listener {
        task!("metrics", metrics::run(ctx.clone(), listener, net_stop.clone()));
    }
    join::resume(&ctx).await;
    tell::declared(&ctx).await;
    tracing::info!(peer = %ctx.peers.peer(), name = %ctx.config.node_name, "ready");

    let early = tokio::select! {
        () = stop.cancelled() => None,
        ended = tasks.join_next() => ended,
    };
    tracing::info!("stopping");
    let drain = async {
        api_stop.cancel();
        sync::goodbye(&ctx).await;
        host_stop.cancel();
        net_stop.cancel();
        while tasks.join_next().await.is_some() {}
        // Tasks that ask a peer may still be about; none of them changes anything after this.
        ctx.node.close().await;
    };
    let _ = tokio::time::timeout(STOP_WITHIN.saturating_sub(Duration::from_millis(500)), drain).await;
    match early {
        None => Ok(()),
        Some(Ok((name, result))) => {
            let why = result.err().unwrap_or_else(|| anyhow!("it ended by itself"));
            Err(Error::new(ErrorKind::Failed, "E-TASK", format!("task {name} ended early: {why:#}")))
        }
        Some(Err(panic)) => Err(Error::new(ErrorKind::Failed, "E-TASK", format!("a task died: {panic}"))),
    }
}

/// Eight hex digits of the key: marks this daemon's objects in the kernel.
fn instance_of(peer: PeerId) -> String {
    peer.0.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

type Loaded = (Identity, [u8; 32], State, Vec<crate::model::state::Damage>, Store);

/// Reads keys and records. Nothing outside the state directory is touched.
fn load(config: &Config) -> Result<Loaded, Error> {
    let on_store = |e: store::StoreError| {
        let kind = if e.is_conflict() { ErrorKind::Conflict } else { ErrorKind::Failed };
        Error::new(kind, e.code(), e.to_string()).hint(e.hint())
    };
    let dir: &Path = &config.state_dir;
    // Keys before state: killed in between, the next start finds keys without a state and goes on.
    let exists = dir.join(store::STATE_FILE).exists();
    let seed = store::identity(dir, config.identity_file.as_deref(), exists).map_err(on_store)?;
    let data_seed = store::secret(dir, "data.key", exists).map_err(on_store)?;
    let store = Store::open(dir).map_err(on_store)?;
    let saved = store.load().map_err(on_store)?;
    let data_key = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*data_seed)).to_bytes();
    let identity = Identity::new(&seed, data_key);
    let seed = *seed;
    let (state, damage) = State::load(identity.clone(), saved.records);
    for item in &damage {
        tracing::warn!(what = %item.what, why = %item.why, "left out of the saved state; it is fetched from the other members");
    }
    Ok((identity, seed, state, damage, store))
}

fn addresses(texts: &[String]) -> Result<Vec<p2p::Address>, Error> {
    texts
        .iter()
        .map(|t| t.parse().map_err(|e| Error::new(ErrorKind::Usage, "E-ADDRESS", format!("address {t}: {e}"))))
        .collect()
}

/// The UDP sockets that QUIC listens on and dials from: one for each QUIC address of `listen`, which loses those that need
/// an IPv6 this host has not.
///
/// # Errors
/// [`p2p::Error::InUse`] when another program has a port.
fn quic_sockets(listen: &mut Vec<p2p::Address>) -> Result<Vec<Arc<dyn quinn::AsyncUdpSocket>>, p2p::Error> {
    use quinn::Runtime as _;
    let mut sockets = Vec::new();
    let mut usable = Vec::new();
    for address in listen.drain(..) {
        let Some(local) = address.udp() else {
            usable.push(address);
            continue;
        };
        match bind_udp(local).and_then(|socket| quinn::TokioRuntime.wrap_udp_socket(socket)) {
            Ok(socket) => {
                sockets.push(socket);
                usable.push(address);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(p2p::Error::InUse(address)),
            Err(error) if p2p::lacks_ipv6(&address, &error) => {
                tracing::warn!(%address, %error, "this host has no IPv6: not listening there");
            }
            Err(source) => return Err(p2p::Error::Listen { address, source }),
        }
    }
    *listen = usable;
    Ok(sockets)
}

/// Binds without sharing the port; an IPv6 socket leaves IPv4 to another one.
fn bind_udp(local: SocketAddr) -> io::Result<std::net::UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
    let family = if local.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let udp = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if local.is_ipv6() {
        setsockopt(&udp, sockopt::Ipv6V6Only, &true)?;
    }
    bind(udp.as_raw_fd(), &SockaddrStorage::from(local))?;
    Ok(udp.into())
}

/// `byway cleanup`: removes what a daemon with this state directory left in the kernel after a crash.
///
/// # Errors
/// `E-RUNNING` while that daemon lives.
pub fn cleanup(config: &Config) -> Result<Vec<String>, Error> {
    let failed = |e: anyhow::Error| Error::new(ErrorKind::Failed, "E-CLEANUP", format!("{e:#}"));
    match Store::open(&config.state_dir) {
        Err(e) if e.is_conflict() => {
            return Err(Error::new(
                ErrorKind::Conflict,
                "E-RUNNING",
                format!("a daemon is running on {}", config.state_dir.display()),
            )
            .hint("byway down   (takes every subnet off the wire), or stop the daemon first"));
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .map_err(failed)?;
    // Without a key nobody knows which traces were this directory's: then all of byway's go.
    let peer = store::identity(&config.state_dir, config.identity_file.as_deref(), true)
        .ok()
        .map(|s| Identity::new(&s, [0; 32]).peer);
    let instance = peer.map(instance_of);
    runtime.block_on(crate::host::cleanup(instance.as_deref(), &config.state_dir)).map_err(failed)
}

/// Whether this machine lets a daemon work: `byway daemon --check`.
///
/// # Errors
/// The first thing that is missing, with its remedy.
pub fn preflight(_config: &Config) -> Result<(), Error> {
    Machine::Kernel.ready()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn quic_gets_a_socket_for_each_of_its_addresses_and_a_taken_port_is_its_own_error() {
        for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip6/::1/udp/0/quic-v1"] {
            let mut all = addresses(&[listen.to_owned(), "/ip4/127.0.0.1/tcp/0".to_owned()]).unwrap();
            let sockets = quic_sockets(&mut all).unwrap();
            assert_eq!((sockets.len(), all.len()), (1, 2));
            let port = sockets[0].local_addr().unwrap().port();
            let mut same = addresses(&[listen.replace("udp/0", &format!("udp/{port}"))]).unwrap();
            assert!(matches!(quic_sockets(&mut same).map(drop), Err(p2p::Error::InUse(_))), "{listen}");
        }
    }
}
