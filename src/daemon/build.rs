//! Builds every part of a daemon: keys and records first, which touches nothing else; then sockets; then what stands on them.

use std::iter;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::apply_view::Desired;
use super::load::load;
use super::network::{Network, NetworkLoops, addresses};
use super::platform::AnyHost;
use super::{Platform, failed, instance_of};
use crate::api::server;
use crate::api::types::Error;
use crate::command::Commands;
use crate::command::docker::Docker;
use crate::command::relay::kept_word;
use crate::command::reload::Settings;
use crate::config::{Config, DnsMode};
use crate::dns::{self, Dns};
use crate::host::Applied;
use crate::host::nft::Repair;
use crate::host::split_dns::SplitDns;
use crate::model::build::Here;
use crate::model::error::Code;
use crate::model::host::HostConfig;
use crate::node::{Node, Parts, Push};
use crate::p2p::Address;
use crate::report::{Report, metrics};
use crate::service::{self, Mesh};

/// Everything of a daemon before its first task runs.
pub(super) struct Built {
    /// What everybody shares.
    pub commands: Commands,
    pub loops: Loops,
}

/// What the tasks of a daemon take: the parts that run by themselves, and the ends of the channels between them.
pub(super) struct Loops {
    pub host: HostLoop,
    pub network: NetworkLoops,
    /// Where the host hears what it is to match.
    pub desired: Desired,
    /// What is to be told to other members.
    pub pushes: mpsc::UnboundedReceiver<Push>,
    pub doors: Doors,
    /// What tells the host's own resolver of our zones, where it is to be told.
    pub split_dns: Option<SplitDns>,
}

/// What brings the kernel to what a View says.
pub(super) struct HostLoop {
    pub host: AnyHost,
    pub desired: watch::Receiver<(u64, Arc<HostConfig>)>,
    pub applied: watch::Sender<Applied>,
}

/// Where people and programs of this machine ask.
pub(super) struct Doors {
    pub control: server::Listener,
    pub metrics: Option<TcpListener>,
    /// Where metrics are to be served from now on.
    pub moves: mpsc::Receiver<metrics::Move>,
}

impl Doors {
    /// Opens the control socket, and the listener of metrics where there is to be one.
    async fn open(config: &Config, moves: mpsc::Receiver<metrics::Move>) -> Result<Doors, Error> {
        Ok(Doors {
            control: server::bind(&config.socket)?,
            metrics: match config.metrics_listen {
                Some(address) => Some(metrics::bind(address).await?),
                None => None,
            },
            moves,
        })
    }
}

/// Builds a daemon for a platform.
///
/// # Errors
/// The first part that cannot be had, by its own code. What was opened before is closed again.
pub(super) async fn build(
    config: Config,
    platform: &Platform,
    docker: Arc<Docker>,
) -> Result<Built, Error> {
    let loaded = load(&config)?;
    platform.takes(&loaded.state, &config.state_dir)?;
    let instance = instance_of(loaded.identity.peer);
    let unwritten = loaded.store.unwritten();
    let word = kept_word(&config.state_dir)?;
    let (settings, moves) = Settings::new(config, word);
    let config = settings.now();
    let doors = Doors::open(&config, moves).await?;
    let listen = addresses(&config.listen)?;
    let parts = Parts {
        state: loaded.state,
        damage: loaded.damage,
        store: loaded.store,
        here: Here {
            instance: instance.clone(),
            underlay_ports: listen.iter().filter_map(Address::port).collect(),
        },
        node_name: config.node_name.clone(),
    };
    let (node, pushes) = Node::start(parts)
        .context("start the node's thread")
        .map_err(failed(Code::Start))?;
    let network = Network::open(&config, platform.transport(), loaded.keys, listen, &node)?;
    let (host, desired) = host(&config, platform, &instance, &network)?;
    let mesh = Mesh::new(service::Parts {
        node: node.clone(),
        peers: network.peers.clone(),
        links: network.links.clone(),
        datapath: network.datapath.clone(),
        direct: network.direct,
        config: settings.follow(),
        surroundings: platform.surroundings(&instance),
    })?;
    let dns = names(&config, platform);
    let split_dns = split_dns(&config, platform, &instance, &dns);
    let report = Report {
        host_names: split_dns
            .as_ref()
            .map_or_else(|| watch::Sender::default().subscribe(), SplitDns::told),
        dns,
        config,
        settings: settings.follow(),
        platform: platform.kind(),
        node,
        peers: network.peers,
        links: network.links,
        datapath: network.datapath,
        applied: host.applied.subscribe(),
        rules: host.host.rules(),
        unwritten: iter::once(unwritten)
            .chain(host.host.unwritten())
            .chain(split_dns.as_ref().map(SplitDns::unwritten))
            .collect(),
        probes: Arc::default(),
        mesh,
        started: Instant::now(),
    };
    let loops = Loops {
        host,
        network: network.loops,
        desired,
        pushes,
        doors,
        split_dns,
    };
    let commands = commands(report, settings, docker);
    Ok(Built { commands, loops })
}

/// Opens what changes the kernel, and the end where it hears what it is to match.
fn host(
    config: &Config,
    platform: &Platform,
    instance: &str,
    network: &Network,
) -> Result<(HostLoop, Desired), Error> {
    let repair = if config.firewall_repair {
        Repair::Yes
    } else {
        Repair::No
    };
    let host = platform
        .host(
            instance,
            &config.state_dir,
            network.datapath.clone(),
            repair,
            config.firewall_integrate,
        )
        .map_err(failed(Code::Netlink))?;
    let (desire, desired) = watch::channel((0, Arc::new(HostConfig::default())));
    let (applied, _) = watch::channel(Applied::default());
    let run = HostLoop {
        host,
        desired,
        applied,
    };
    Ok((run, desire))
}

/// What answers names.
fn names(config: &Config, platform: &Platform) -> Dns {
    Dns::new(dns::DnsConfig {
        mode: if config.dns_mode == DnsMode::Off || !platform.is_kernel() {
            dns::Mode::Off
        } else {
            dns::Mode::Split
        },
        ..dns::DnsConfig::default()
    })
}

/// What tells the host's own resolver of our zones; none where there are no names, or it is not to be told.
fn split_dns(config: &Config, platform: &Platform, instance: &str, dns: &Dns) -> Option<SplitDns> {
    let is_wanted = config.dns_host && config.dns_mode != DnsMode::Off && platform.is_kernel();
    let dns = dns.clone();
    let try_name = Arc::new(move |trial: Option<(&str, _)>| dns.try_name(trial));
    is_wanted.then(|| SplitDns::new(instance, &config.state_dir, try_name))
}

/// What commands are carried out with.
fn commands(report: Report, settings: Settings, docker: Arc<Docker>) -> Commands {
    Commands {
        config: Arc::clone(&report.config),
        settings,
        platform: report.platform,
        node: report.node.clone(),
        peers: report.peers.clone(),
        links: report.links.clone(),
        dns: report.dns.clone(),
        applied: report.applied.clone(),
        mesh: Arc::clone(&report.mesh),
        report,
        docker,
        asker: None,
        own: None,
        stop: CancellationToken::new(),
    }
}
