//! The tasks of a daemon: started together, stopped in order, and what is said of how they ended.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::apply_view::Desired;
use super::build::{Doors, HostLoop, Loops};
use super::network::NetworkLoops;
use super::{apply_view, cleanup, door, follow_configuration, freed};
use crate::api::server;
use crate::api::types::{Error, ErrorKind};
use crate::command::{self, Commands, docker, follow, health};
use crate::config::{Config, PostQuantum};
use crate::datapath::TunDied;
use crate::dns;
use crate::file_watch;
use crate::host::{Failure, reconcile};
use crate::model::error::Code;
use crate::node::Push;
use crate::report::{happenings, metrics, notify};
use crate::service::{
    attend, clock, dispatch, external, lan, portmap, presence, records, sessions, settings, traffic,
};
use crate::tap;

/// How long commands that still run are waited for at a stop. One may ask a container engine that does not answer.
const LAST_COMMANDS: Duration = Duration::from_secs(1);
/// How long the TAPs that this process has open are waited for at a stop. Nothing of theirs waits for anybody.
const LAST_TAPS: Duration = Duration::from_millis(300);

/// The tasks of a daemon, by name. Each runs until it is told to stop: one that ends by itself ends the daemon.
#[derive(Default)]
struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

/// A task that has ended.
pub(super) type Ended = Result<(&'static str, anyhow::Result<()>), JoinError>;

impl Tasks {
    fn start(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// The same for one that cannot fail.
    fn keep(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.start(name, async move {
            task.await;
            Ok(())
        });
    }
}

/// A daemon whose tasks run. They stop one after the other, so each group has its own token; that of the API is the
/// commands' own.
pub(super) struct Running {
    tasks: Tasks,
    /// Ends what follows peers, Views and this machine.
    net_stop: CancellationToken,
    /// Has the host remove everything.
    host_stop: CancellationToken,
    /// Ends what has TAPs open, which then lets go of `taps_open`: a TAP that somebody else has open then has a guest.
    taps_stop: CancellationToken,
    taps_open: oneshot::Receiver<()>,
    /// What the reconciler could not remove, once it has ended.
    left: oneshot::Receiver<Vec<Failure>>,
    /// Commands that change something.
    changes: TaskTracker,
}

impl Running {
    /// Starts every task.
    pub fn start(commands: &Commands, loops: Loops) -> Running {
        let (tell_left, left) = oneshot::channel();
        let (tell_open, taps_open) = oneshot::channel();
        let mut running = Running {
            tasks: Tasks::default(),
            net_stop: CancellationToken::new(),
            host_stop: CancellationToken::new(),
            taps_stop: CancellationToken::new(),
            taps_open,
            left,
            changes: TaskTracker::new(),
        };
        let Loops {
            host,
            network,
            desired,
            pushes,
            doors,
            split_dns,
        } = loops;
        running.reconcile(host, tell_left);
        let died = running.follow_peers(commands, network, pushes);
        let file = running.follow_resolver(commands);
        running.follow_views(commands, desired, died, file.clone());
        running.serve_taps(commands, tell_open);
        if let Some(split_dns) = split_dns {
            let (view, ticks) = (commands.node.view(), commands.node.published());
            let told = split_dns.run(view, ticks, file, running.net_stop.clone());
            running.tasks.keep("split-dns", told);
        }
        running.open(commands, doors);
        let report = commands.report.clone();
        let stop = running.net_stop.clone();
        running.tasks.start("notify", notify::run(report, stop));
        running
    }

    /// Brings the kernel to what a View says.
    fn reconcile(&mut self, host: HostLoop, tell_left: oneshot::Sender<Vec<Failure>>) {
        let stop = self.host_stop.clone();
        let reconciled = reconcile::run(host.host, host.desired, host.applied, stop);
        // Who waits is gone only where the daemon has been stopped by force.
        self.tasks.keep("host", async move {
            drop(tell_left.send(reconciled.await));
        });
    }

    /// What peers say, and what is said to them. Returns the devices that are gone.
    fn follow_peers(
        &mut self,
        commands: &Commands,
        network: NetworkLoops,
        pushes: mpsc::UnboundedReceiver<Push>,
    ) -> mpsc::Receiver<TunDied> {
        let NetworkLoops {
            driver,
            events,
            direct,
            wanted,
            died,
        } = network;
        let mesh = || Arc::clone(&commands.mesh);
        let until = || self.net_stop.clone();
        let tasks = &mut self.tasks;
        tasks.keep("peers", driver.run(until()));
        if let Some((direct, asks)) = direct {
            tasks.keep("direct", direct.run(until()));
            tasks.start("sessions", sessions::run(mesh(), asks, until()));
        }
        tasks.start("events", dispatch::run(mesh(), events, until()));
        tasks.start("sync", records::tell::run(mesh(), pushes, until()));
        tasks.start("clock", clock::run(mesh(), until()));
        tasks.start("attendance", attend::run(mesh(), until()));
        tasks.start("presence", presence::run(mesh(), until()));
        tasks.start("traffic", traffic::run(mesh(), until()));
        tasks.start("lan", lan::run(mesh(), until()));
        tasks.start("settings", settings::follow(mesh(), until()));
        tasks.start("portmap", portmap::run(mesh(), until()));
        tasks.start("external", external::run(mesh(), until()));
        let wants = dispatch::follow_wanted(mesh(), wanted, until());
        tasks.start("links", wants);
        died
    }

    /// Tells when the machine's resolver file may be another one.
    fn follow_resolver(&mut self, commands: &Commands) -> watch::Receiver<u64> {
        let (told, changes) = watch::channel(0);
        if let Some(path) = commands.dns.follows() {
            let stop = self.net_stop.clone();
            let follow = file_watch::run(path.to_owned(), told, stop);
            self.tasks.keep("resolver-file", follow);
        }
        changes
    }

    /// What follows from a View, but for the kernel. `file` tells of the machine's resolver file.
    fn follow_views(
        &mut self,
        commands: &Commands,
        desired: Desired,
        died: mpsc::Receiver<TunDied>,
        file: watch::Receiver<u64>,
    ) {
        let Commands { node, applied, .. } = commands;
        let until = || self.net_stop.clone();
        let listeners = apply_view::Listeners {
            node: node.clone(),
            peers: commands.peers.clone(),
            links: commands.links.clone(),
            mesh: Arc::clone(&commands.mesh),
            applied: applied.clone(),
            by_streams: commands.config.post_quantum != PostQuantum::Require,
        };
        let tasks = &mut self.tasks;
        tasks.start("view", apply_view::run(listeners, desired, until()));
        let devices = apply_view::follow_devices(node.clone(), died, until());
        tasks.start("devices", devices);
        tasks.start("docker", docker::follow(commands.clone(), until()));
        let names = docker::follow_names(commands.clone(), until());
        tasks.start("containers", names);
        let report = commands.report.clone();
        tasks.start("happenings", happenings::run(report, until()));
        let former = dns::Formers {
            file,
            applied: applied.clone(),
            door: door::door(),
        };
        let (dns, view, ticks) = (commands.dns.clone(), node.view(), node.published());
        let names = dns.run(view, ticks, former, until());
        tasks.keep("dns", names);
        tasks.keep("memory", freed::run(node.published(), until()));
    }

    /// What virtual machines are told at their TAPs. `open` is dropped once none is open here any more.
    fn serve_taps(&mut self, commands: &Commands, open: oneshot::Sender<()>) {
        let Commands { node, config, .. } = commands;
        let (socket, until) = (config.socket.clone(), self.taps_stop.clone());
        let served = tap::run(node.view(), node.published(), socket, until);
        self.tasks.keep("taps", async move {
            served.await;
            drop(open);
        });
    }

    /// Where people and programs of this machine ask.
    fn open(&mut self, commands: &Commands, doors: Doors) {
        let bounds = server::Bounds {
            clients: commands.settings.api_clients(),
            changes: self.changes.clone(),
            users: commands.settings.users.clone(),
            ..server::Bounds::default()
        };
        let handler = command::handler(commands.clone());
        let served = server::run_bounded(doors.control, handler, commands.stop.clone(), bounds);
        self.tasks.start("api", async move {
            served.await.context("serve the control socket")
        });
        let followed = follow_configuration(commands.clone(), commands.stop.clone());
        self.tasks.start("configuration", followed);
        let followed = follow::run(commands.node.clone(), self.net_stop.clone());
        self.tasks.start("workloads", followed);
        let asked = health::run(commands.node.clone(), self.net_stop.clone());
        self.tasks.start("health", asked);
        let (report, stop) = (commands.report.clone(), self.net_stop.clone());
        let metrics = metrics::run(report, doors.metrics, doors.moves, stop);
        self.tasks.start("metrics", metrics);
    }

    /// The next task that ends.
    ///
    /// # Cancel safety
    /// Dropped before one has ended, nothing is lost.
    pub async fn next_ended(&mut self) -> Option<Ended> {
        self.tasks.0.join_next().await
    }

    /// Stops everything in order, and says what the host could not remove; nothing where it did not end `within` that time.
    pub async fn stop(mut self, commands: &Commands, within: Duration) -> Option<Vec<Failure>> {
        let drain = async {
            commands.stop.cancel();
            records::tell::goodbye().await;
            self.taps_stop.cancel();
            let _ = tokio::time::timeout(LAST_TAPS, &mut self.taps_open).await;
            self.host_stop.cancel();
            self.net_stop.cancel();
            while self.tasks.0.join_next().await.is_some() {}
            // A command whose client has gone hears now that the kernel follows no more, and takes back what it added.
            self.changes.close();
            let _ = tokio::time::timeout(LAST_COMMANDS, self.changes.wait()).await;
            commands.mesh.stop().await;
            // The last datagrams told the peers; now nobody reads any more.
            commands.links.close_port();
            commands.node.close().await;
        };
        let _ = tokio::time::timeout(within, drain).await;
        self.left.try_recv().ok()
    }
}

/// How it went: `early` ended before it was told to, `left` is what the reconciler could not remove.
pub(super) fn outcome(
    early: Option<Ended>,
    left: Option<Vec<Failure>>,
    config: &Config,
) -> Result<(), Error> {
    let why = match early {
        None => return nothing_left(left, config),
        Some(Ok((name, result))) => {
            let why = result
                .err()
                .unwrap_or_else(|| anyhow!("it ended by itself"));
            format!("task {name} ended early: {why:#}")
        }
        Some(Err(panic)) => format!("a task died: {panic}"),
    };
    Err(Error::new(ErrorKind::Failed, Code::Task, why))
}

/// Whether a stop removed everything. `left` is unknown where the host did not end in time.
fn nothing_left(left: Option<Vec<Failure>>, config: &Config) -> Result<(), Error> {
    let text = match left {
        Some(left) if left.is_empty() => return Ok(()),
        Some(left) => left
            .iter()
            .map(|f| format!("{}: {}", f.what, f.why))
            .collect::<Vec<_>>()
            .join("; "),
        None => "the kernel did not let go in time".to_owned(),
    };
    Err(Error::new(
        ErrorKind::Failed,
        Code::NotRemoved,
        format!("stopped, but not everything was removed: {text}"),
    )
    .hint(cleanup::again(config, "")))
}
