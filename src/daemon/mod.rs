//! The composition root: builds every part, hands over what crosses between them, runs the tasks, stops them in order.
//!
//! ```text
//! start  config, keys, records read and checked (nothing touched) | sockets | tasks, first reconcile, ready
//! stop   api refuses -> swarm closes -> links drain -> host applies the empty config -> TUNs drop
//!        -> tasks of the protocols end -> port closes -> node lets go of the state directory            (5 s in all)
//! ```

mod apply_view;
mod cleanup;
mod door;
mod load;
mod platform;
mod port;
mod tasks;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use cleanup::cleanup;
pub use platform::Platform;

use self::load::{Loaded, load};
use self::tasks::{Tasks, outcome};

use crate::api::server;
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::command::reload::Settings;
use crate::command::{self, Commands};
use crate::config::{Config, DnsMode, PostQuantum};
use crate::datapath::Datapath;
use crate::dns::{self, Dns};
use crate::host::nft::Repair;
use crate::host::{Applied, reconcile};
use crate::link::Links;
use crate::link::direct::Direct;
use crate::model::build::Here;
use crate::model::error::Code;
use crate::model::host::HostConfig;
use crate::model::id::PeerId;
use crate::node::{Node, Parts};
use crate::p2p;
use crate::report::{PlatformKind, Report, happenings, metrics, notify};
use crate::service::{self, Mesh, clock, dispatch, join, records, sessions};
use crate::udp::Port;

/// Time from the first signal to the end of the process.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long commands that still run are waited for at a stop. One may ask a container engine that does not answer.
const LAST_COMMANDS: Duration = Duration::from_secs(1);

/// Open files that are asked for, as in the unit.
const DESCRIPTORS: u64 = 65_536;

/// Runs the daemon until a signal: `byway daemon`.
///
/// # Errors
/// [`Error`] with what failed and what to do, before anything was touched; or the name of a task that ended early.
pub fn run(config: Config) -> Result<(), Error> {
    // Keys are in this memory: no core file, and no other process of the same user that reads it.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "this process can be read by others of its user");
    }
    more_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("byway")
        .build()
        .map_err(|e| {
            Error::new(
                ErrorKind::Failed,
                Code::Runtime,
                format!("start the runtime: {e}"),
            )
        })?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(on_signal(stop.clone()));
        serve(config, Platform::Kernel, stop).await
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// Takes as many descriptors as there may be, up to [`DESCRIPTORS`]: the soft limit of a shell is 1,024.
fn more_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(DESCRIPTORS);
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "raise the limit of open files");
    }
}

/// Cancels on the first SIGTERM or SIGINT; a second one ends the process at once.
async fn on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    stop.cancel();
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, () = tokio::time::sleep(STOP_WITHIN) => {} }
    std::process::exit(1);
}

/// SIGHUP reads the configuration again, like `byway reload`. A reading that has begun is ended before this returns.
async fn on_hangup(commands: Commands, stop: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut hangup) = signal(SignalKind::hangup()) {
        while tokio::select! { () = stop.cancelled() => false, heard = hangup.recv() => heard.is_some() }
        {
            match command::call(&commands, Request::Reload).await {
                Ok(Response::Done(done)) => tracing::info!("{}", done.message),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "read the configuration again"),
            }
        }
    }
    // A daemon that hears no signal is no worse for it.
    stop.cancelled().await;
    Ok(())
}

/// Everything between reading the state and the last goodbye, on the platform it is told: the kernel, or memory in tests.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    config: Config,
    platform: Platform,
    stop: CancellationToken,
) -> Result<(), Error> {
    let failed =
        |code: Code| move |e: anyhow::Error| Error::new(ErrorKind::Failed, code, format!("{e:#}"));
    let Loaded {
        identity,
        seed,
        data_secret,
        state,
        damage,
        store,
    } = load(&config)?;
    let instance = instance_of(identity.peer);
    let mut unwritten = vec![store.unwritten()];
    let listener = server::bind(&config.socket)?;

    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let mut listen = addresses(&config.listen)?;
    let underlay_ports = listen.iter().filter_map(p2p::Address::port).collect();
    let here = Here {
        instance: instance.clone(),
        underlay_ports,
    };
    let parts = Parts {
        state,
        damage,
        store,
        here,
        node_name: config.node_name.clone(),
    };
    let (node, pushes) = Node::start(parts)
        .context("start the node's thread")
        .map_err(failed(Code::Start))?;

    let port = match platform.transport() {
        p2p::TransportKind::Network => port::bind(&mut listen)?,
        p2p::TransportKind::Memory => None,
    };
    let (peers, events, driver) =
        network(&config, platform.transport(), seed, listen, port.as_ref())?;
    let (links, wanted) = Links::new(tokio::runtime::Handle::current(), port);
    let (datapath, died) = Datapath::new(node.view(), links.clone());
    datapath
        .receive()
        .context("start the thread that reads the UDP port")
        .map_err(failed(Code::Start))?;
    let sessions = sessions::config(
        peers.peer(),
        data_secret,
        config.data_cipher,
        config.post_quantum,
    );
    let (direct_task, direct_handle, asks) = match Direct::new(&links, sessions) {
        Some((task, handle, asks)) => (Some(task), Some(handle), Some(asks)),
        None => (None, None, None),
    };
    let (desired, desired_rx) = watch::channel((0, Arc::new(HostConfig::default())));
    let (applied, applied_rx) = watch::channel(Applied::default());
    let dns = Dns::new(dns::DnsConfig {
        mode: if config.dns_mode == DnsMode::Off || !platform.is_kernel() {
            dns::Mode::Off
        } else {
            dns::Mode::Split
        },
        ..dns::DnsConfig::default()
    });
    let repair = if config.firewall_repair {
        Repair::Yes
    } else {
        Repair::No
    };
    let integrate = config.firewall_integrate;
    let host = platform
        .host(
            &instance,
            &config.state_dir,
            datapath.clone(),
            repair,
            integrate,
        )
        .map_err(failed(Code::Netlink))?;
    unwritten.extend(host.unwritten());
    let config = Arc::new(config);
    let (settings, moves) = Settings::new(Arc::clone(&config));
    let mesh = Mesh::new(service::Parts {
        node: node.clone(),
        peers: peers.clone(),
        links: links.clone(),
        datapath: datapath.clone(),
        direct: direct_handle,
        config: settings.follow(),
        surroundings: platform.surroundings(&instance),
    })?;
    // Also where the start fails, or a part does not stop in time.
    let _ended = mesh.ends_with();
    let report = Report {
        config: config.clone(),
        settings: settings.follow(),
        platform: platform.kind(),
        node: node.clone(),
        peers: peers.clone(),
        links: links.clone(),
        datapath,
        dns: dns.clone(),
        applied: applied_rx.clone(),
        rules: host.rules(),
        unwritten,
        probes: Arc::default(),
        mesh: Arc::clone(&mesh),
        started: Instant::now(),
    };
    // The parts stop one after the other, so each group has its own token.
    let (api_stop, net_stop, host_stop) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let commands = Commands {
        config: config.clone(),
        settings: settings.clone(),
        platform: report.platform,
        node: node.clone(),
        peers: peers.clone(),
        links: links.clone(),
        dns: dns.clone(),
        applied: applied_rx.clone(),
        mesh: Arc::clone(&mesh),
        report: report.clone(),
        stop: api_stop.clone(),
    };
    let listeners = apply_view::Listeners {
        node: node.clone(),
        peers: peers.clone(),
        links: links.clone(),
        mesh: Arc::clone(&mesh),
        applied: applied_rx.clone(),
        by_streams: config.post_quantum != PostQuantum::Require,
    };

    clock::begin(&node).await.map_err(failed(Code::Stopping))?;
    let (tell_left, mut left) = oneshot::channel();
    let mut tasks = Tasks::default();
    let reconciled = reconcile::run(host, desired_rx, applied, host_stop.clone());
    // Who waits is gone only where the daemon has been stopped by force.
    tasks.keep(
        "host",
        async move { drop(tell_left.send(reconciled.await)) },
    );
    let until = || net_stop.clone();
    tasks.keep("peers", driver.run(until()));
    if let (Some(direct), Some(asks)) = (direct_task, asks) {
        tasks.keep("direct", direct.run(until()));
        tasks.start("sessions", sessions::run(Arc::clone(&mesh), asks, until()));
    }
    tasks.start("events", dispatch::run(Arc::clone(&mesh), events, until()));
    tasks.start("view", apply_view::run(listeners, desired, until()));
    tasks.start("happenings", happenings::run(report.clone(), until()));
    tasks.start(
        "sync",
        records::tell::run(Arc::clone(&mesh), pushes, until()),
    );
    tasks.start("clock", clock::run(Arc::clone(&mesh), until()));
    tasks.start(
        "links",
        dispatch::follow_wanted(Arc::clone(&mesh), wanted, until()),
    );
    tasks.start(
        "devices",
        apply_view::follow_devices(node.clone(), died, until()),
    );
    let former = dns::Formers {
        applied: applied_rx,
        door: door::door(),
    };
    let (view, ticks, stop_dns) = (node.view(), node.published(), until());
    tasks.keep("dns", async move {
        dns.run(view, ticks, former, stop_dns).await
    });
    let changes = TaskTracker::new();
    let bounds = server::Bounds {
        clients: settings.api_clients(),
        changes: changes.clone(),
        ..server::Bounds::default()
    };
    let served = server::run_bounded(
        listener,
        command::handler(commands.clone()),
        api_stop.clone(),
        bounds,
    );
    tasks.start("api", async move {
        served.await.context("serve the control socket")
    });
    tasks.start("hangup", on_hangup(commands.clone(), api_stop.clone()));
    tasks.start(
        "metrics",
        metrics::run(report.clone(), metrics_listener, moves, until()),
    );
    tasks.start("notify", notify::run(report, until()));
    join::resume(&mesh).await;
    command::reload::declared(&commands, &config.subnets).await;
    tracing::info!(peer = %peers.peer(), name = %config.node_name, "ready");

    let early = tokio::select! {
        () = stop.cancelled() => None,
        ended = tasks.0.join_next() => ended,
    };
    tracing::info!("stopping");
    notify::stopping();
    let drain = async {
        api_stop.cancel();
        records::tell::goodbye().await;
        host_stop.cancel();
        net_stop.cancel();
        while tasks.0.join_next().await.is_some() {}
        // A command whose client has gone hears now that the kernel follows no more, and takes back what it added.
        changes.close();
        let _ = tokio::time::timeout(LAST_COMMANDS, changes.wait()).await;
        mesh.stop().await;
        // The last datagrams told the peers; now nobody reads any more.
        links.close_port();
        node.close().await;
    };
    let _ = tokio::time::timeout(
        STOP_WITHIN.saturating_sub(Duration::from_millis(500)),
        drain,
    )
    .await;
    outcome(early, left.try_recv().ok(), &config)
}

/// Starts libp2p. Its QUIC shares the UDP `port`.
///
/// # Errors
/// `E-LISTEN-IN-USE`, `E-LISTEN`.
fn network(
    config: &Config,
    transport: p2p::TransportKind,
    seed: [u8; 32],
    listen: Vec<p2p::Address>,
    port: Option<&Port>,
) -> Result<(p2p::Handle, mpsc::Receiver<p2p::Event>, p2p::Driver), Error> {
    for address in config
        .advertise
        .iter()
        .filter(|address| p2p::Heard::parse(address).is_none())
    {
        tracing::warn!(
            address,
            "transport.advertise: other peers look no names up on hearsay, so nobody will dial this"
        );
    }
    let mut net = p2p::Config::new(seed);
    if let Some(port) = port {
        net.quic = port.quic();
    }
    net.listen = listen;
    net.lan_discovery = config.lan_discovery;
    net.transport = transport;
    net.limits.pending_in = config.limits.pending_connections;
    net.limits.connections = config.limits.connections;
    net.limits.per_peer = config.limits.connections_per_peer;
    net.limits.memory = config.limits.memory_bytes();
    p2p::start(net).map_err(|e| match e {
        p2p::Error::InUse(_) => Error::new(ErrorKind::Conflict, Code::ListenInUse, e.to_string())
            .hint("ss -lnp      (shows who has the port; --listen udp/PORT --listen tcp/PORT takes another one)"),
        other => Error::new(ErrorKind::Failed, Code::Listen, other.to_string()),
    })
}

/// Eight hex digits of the key: marks this daemon's objects in the kernel.
fn instance_of(peer: PeerId) -> String {
    data_encoding::HEXLOWER.encode(peer.0.get(..4).unwrap_or_default())
}

fn addresses(texts: &[String]) -> Result<Vec<p2p::Address>, Error> {
    texts
        .iter()
        .map(|t| {
            t.parse().map_err(|e| {
                Error::new(ErrorKind::Usage, Code::Address, format!("address {t}: {e}"))
            })
        })
        .collect()
}

/// Whether this machine lets a daemon work: `byway daemon --check`.
///
/// # Errors
/// The first thing that is missing, with its remedy.
pub fn preflight(_config: &Config) -> Result<(), Error> {
    PlatformKind::Kernel.ready()
}
