//! What carries packets and requests between peers: libp2p, the UDP port that it shares with datagrams, links, packet loops.

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::load::Keys;
use super::{failed, port};
use crate::api::types::{Error, ErrorKind};
use crate::config::Config;
use crate::datapath::{Datapath, TunDied};
use crate::link::direct::{self, Direct};
use crate::link::{Key, Links};
use crate::model::error::Code;
use crate::model::proxy::{Choice, Way};
use crate::node::Node;
use crate::p2p;
use crate::service::{sessions, settings};
use crate::udp::Port;

/// The handles of the network, and what its tasks take.
pub(super) struct Network {
    pub peers: p2p::Handle,
    pub links: Links,
    pub datapath: Datapath,
    /// The control task of the datagram carrier; none without a UDP port.
    pub direct: Option<direct::Handle>,
    pub loops: NetworkLoops,
}

/// What of the network runs in tasks, and the ends of channels that they read.
pub(super) struct NetworkLoops {
    pub driver: p2p::Driver,
    pub events: mpsc::Receiver<p2p::Event>,
    /// The control task of the datagram carrier, and what it asks of peers.
    pub direct: Option<(Direct, mpsc::Receiver<direct::Ask>)>,
    /// Links that have packets and no stream.
    pub wanted: mpsc::Receiver<Key>,
    /// Devices that are gone.
    pub died: mpsc::Receiver<TunDied>,
}

impl Network {
    /// Opens the sockets of `listen`, and starts the thread that reads the UDP port.
    ///
    /// # Errors
    /// `E-LISTEN-IN-USE`, `E-LISTEN`; `E-START` where the thread cannot be started.
    pub fn open(
        config: &Config,
        transport: p2p::TransportKind,
        keys: Keys,
        mut listen: Vec<p2p::Address>,
        node: &Node,
    ) -> Result<Network, Error> {
        let port = match transport {
            p2p::TransportKind::Network => port::bind(&mut listen)?,
            p2p::TransportKind::Memory => None,
        };
        let (peers, events, driver) = libp2p(config, transport, keys.seed, listen, port.as_ref())?;
        let (links, wanted) = Links::new(tokio::runtime::Handle::current(), port);
        let (datapath, died) = Datapath::new(node.view(), links.clone());
        datapath
            .receive()
            .context("start the thread that reads the UDP port")
            .map_err(failed(Code::Start))?;
        let sessions = sessions::config(
            peers.peer(),
            keys.data,
            config.data_cipher,
            config.post_quantum,
        );
        let (direct, handle) = match Direct::new(&links, sessions) {
            Some((task, handle, asks)) => (Some((task, asks)), Some(handle)),
            None => (None, None),
        };
        Ok(Network {
            peers,
            links,
            datapath,
            direct: handle,
            loops: NetworkLoops {
                driver,
                events,
                direct,
                wanted,
                died,
            },
        })
    }
}

/// Starts libp2p. Its QUIC shares the UDP `port`.
///
/// # Errors
/// `E-LISTEN-IN-USE`, `E-LISTEN`.
fn libp2p(
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
            "transport.advertise: other peers look up only names of /tcp/443/wss on hearsay, so nobody will dial this"
        );
    }
    let mut net = p2p::Config::new(seed);
    net.datagrams = port.is_some();
    if let Some(port) = port {
        net.quic = port.quic();
    }
    net.listen = listen;
    net.timing.redial = config.discovery.redial;
    net.timing.rest = config.discovery.keep_alive;
    net.timing.dead = config.discovery.dead_after;
    net.transport = transport;
    net.meeting = settings::meeting(config);
    net.serve = settings::serve(config);
    net.denied.clone_from(&config.deny_cidrs);
    net.join = !config.relay_only;
    usable(config)?;
    net.way = way(config)?.into();
    if config.proxy == Choice::Env && net.way.proxy().is_none() {
        tracing::warn!(
            "transport.proxy is \"env\", and neither https_proxy nor all_proxy is set for this daemon: connections out go past any proxy"
        );
    }
    net.trusted_proxies.clone_from(&config.trusted_proxies);
    net.certificate = settings::certificate(config);
    net.neighbours = config.neighbours;
    net.timing.let_go = config.let_go;
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

/// Whether what the transport's keys name can be used: the certificate, and the proxy of the environment.
///
/// # Errors
/// `E-CONFIG-VALUE`: the key, where it was set, and why.
pub(super) fn usable(config: &Config) -> Result<(), Error> {
    way(config)?;
    settings::unusable_certificate(config).map_or(Ok(()), |wrong| {
        let error = Error::new(ErrorKind::Usage, wrong.code, wrong.to_string());
        Err(error.hint(settings::CERTIFICATE))
    })
}

/// Which connections are made through a proxy, as the configuration and this process's environment say.
///
/// # Errors
/// `E-CONFIG-VALUE`: the environment names a proxy that cannot be used.
fn way(config: &Config) -> Result<Way, Error> {
    let variable = |name: &str| std::env::var(name).ok();
    let way = Way::of(&config.proxy, &config.no_proxy, &variable).map_err(|(variable, why)| {
        let message = format!("transport.proxy is \"env\", and {variable} is wrong: {why}");
        Error::new(ErrorKind::Usage, Code::ConfigValue, message)
    })?;
    for entry in way.left_out() {
        tracing::warn!(
            entry,
            "no_proxy of the environment: this means no place here, so what it was to name goes through the proxy"
        );
    }
    Ok(way)
}

/// The addresses that the configuration says to listen on.
pub(super) fn addresses(texts: &[String]) -> Result<Vec<p2p::Address>, Error> {
    texts
        .iter()
        .map(|t| {
            t.parse().map_err(|e| {
                Error::new(ErrorKind::Usage, Code::Address, format!("address {t}: {e}"))
            })
        })
        .collect()
}
