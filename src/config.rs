//! Configuration: TOML files, environment and flags made into one checked [`Config`].
//!
//! Owns every key's name, type, bounds and default ([`keys`]), and where each value in force came from. Unknown keys and
//! values are errors that name file, line and the nearest valid word: a typing error never silently means "the default".
//! Never opens sockets and never asks the daemon.
//!
//! Precedence, strongest first: flags, `BYWAY_*`, `conf.d/*.toml` in order, `byway.toml`, defaults. A stronger layer
//! replaces a value whole, lists too; `[[subnet]]` tables of all files add up.

pub mod discovery;
mod external;
mod idle;
pub mod keys;
pub mod log;
pub mod multiaddr;
mod read;
mod sources;
pub mod subnet;
pub mod users;
mod value;
mod web;
pub mod word;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::error::Code;
use crate::model::host::firewalls::Integrate;
use crate::model::id::{Name, PeerId};
use crate::model::neighbours::Bounds;
use crate::model::ports::PortRange;
use crate::model::presence::PERIOD;
use crate::model::proxy;
use discovery::Discovery;
use users::WorkloadUser;

pub use crate::peer::session::PostQuantum;
pub use external::External;
pub(crate) use read::contents;
pub use sources::Sources;
pub use subnet::DeclaredSubnet;
pub use value::{Kind, Value};

/// How long the connections to a member are kept that is no neighbour and that nobody uses.
const LET_GO: Duration = Duration::from_secs(600);
/// The file that is read when none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/byway/byway.toml";
/// Where the daemon keeps its state.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/byway";
/// Where the Docker engine finds its plugins.
pub const DEFAULT_PLUGIN_DIR: &str = "/run/docker/plugins";
/// Where the daemon listens for the command line.
pub const DEFAULT_SOCKET: &str = "/run/byway/byway.sock";
/// The socket of the privileged helper unless told otherwise.
pub const DEFAULT_HELPER_SOCKET: &str = crate::helper::DEFAULT_SOCKET;
/// UDP (QUIC) and TCP port of the underlay.
pub const DEFAULT_PORT: u16 = 4100;

/// Peers that this node forwards for (`transport.relay.for`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RelayFor {
    /// Members of its subnets; anyone where it only relays.
    #[default]
    Auto,
    /// Whoever asks for it.
    Anyone,
    /// Members of its subnets.
    Members,
    /// The peers of this list.
    Peers(Vec<PeerId>),
}

/// Whether this node forwards for others (`transport.relay.offer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayOffer {
    /// Forwards at most [`AUTO_MBIT`] in all; with [`Config::relay_only`] as [`RelayOffer::Always`].
    #[default]
    Auto,
    /// Forwards up to [`RelayConfig::max_mbit`] in all.
    Always,
    /// Forwards for nobody.
    Never,
}

/// Relaying for others (`transport.relay`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// Whether it forwards for others.
    pub offer: RelayOffer,
    /// The most that it forwards for all peers together, in Mbit/s; those who send have equal shares.
    pub max_mbit: u32,
    /// Which peers it forwards for.
    pub for_whom: RelayFor,
}

/// Mbit/s that a member forwards at most, for all peers together, while its owner has not offered to relay.
pub const AUTO_MBIT: u32 = 10;

/// The cipher of sealed datagrams (`data.cipher`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataCipher {
    /// AES-256-GCM where both ends have instructions for it, else ChaCha20-Poly1305.
    #[default]
    Auto,
    /// AES-256-GCM as if this machine had the instructions; computed by the library that is faster
    /// here.
    Aes256Gcm,
    /// AES-256-GCM likewise, always computed by aws-lc.
    Aes256GcmByAwsLc,
    /// AES-256-GCM likewise, always computed by ring.
    Aes256GcmByRing,
    /// ChaCha20-Poly1305 as if this machine had no such instructions.
    ChaCha20Poly1305,
}

/// Whether the daemon answers names (`dns.mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsMode {
    /// Answers its own zones and hands the rest to the host's resolvers.
    #[default]
    Split,
    /// The daemon serves no names.
    Off,
}

/// Bounds on what others can make this daemon hold or do (`[limits]`); the reasons stand at each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Established connections of all peers together: the default pool has 256 members, two connections each.
    pub connections: u32,
    /// Connections still in their handshake, of TCP and again of QUIC: each costs a key exchange.
    pub pending_connections: u32,
    /// Established connections of one peer: old and new overlap while a path moves.
    pub connections_per_peer: u32,
    /// MiB the process may use before only members get connections, one each.
    pub memory_mib: u32,
    /// Join requests one source (an IPv4 address, an IPv6 /64) may make in a minute; a joiner that waits for approval asks every second.
    pub joins_per_minute: u32,
    /// Clients of the control socket at a time; a quarter of them of one user.
    pub api_clients: u32,
}

impl Limits {
    /// [`Limits::memory_mib`] in bytes.
    pub fn memory_bytes(&self) -> usize {
        usize::try_from(self.memory_mib)
            .unwrap_or(usize::MAX)
            .saturating_mul(1 << 20)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1024,
            pending_connections: 256,
            connections_per_peer: 8,
            memory_mib: 1024,
            joins_per_minute: 240,
            api_clients: 64,
        }
    }
}

/// Everything the daemon is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What this node calls itself; default: the host name to its first dot.
    pub node_name: Name,
    /// Directory of the identity and the records; made (0700) where missing.
    pub state_dir: PathBuf,
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Where the privileged helper listens, which is asked by a daemon that may not enter namespaces.
    pub helper_socket: PathBuf,
    /// How much is logged; see [`log::levels`].
    pub log_level: String,
    /// ed25519 key to use in place of the one in the state directory.
    pub identity_file: Option<PathBuf>,
    /// Multiaddrs to listen on, both families spelled out; empty: outbound only.
    pub listen: Vec<String>,
    /// Whether the daemon is a relay and nothing else: no TUN, no change to the kernel, no subnets.
    pub relay_only: bool,
    /// With `/p2p/ID` meeting points, which may be relays; without, or through a relay, where somebody of a subnet may be found.
    pub bootstrap: Vec<String>,
    /// Multiaddrs told to others beside the ones found.
    pub advertise: Vec<String>,
    /// Whether peers on the local networks are looked for by mDNS.
    pub lan_discovery: bool,
    /// Whether the router is asked to lead the ports listened on here, by PCP, NAT-PMP or UPnP.
    pub port_mapping: bool,
    /// Who says where this machine is seen from outside.
    pub external: External,
    /// STUN servers that are asked for it, each as `HOST:PORT`.
    pub stun: Vec<String>,
    /// Pages that are asked for it, by plain HTTP.
    pub external_urls: Vec<String>,
    /// What is forwarded for others.
    pub relay: RelayConfig,
    /// The proxy that connections over TCP are made through.
    pub proxy: proxy::Choice,
    /// The places that are reached past the proxy, beside those that `no_proxy` of the environment names.
    pub no_proxy: Vec<proxy::Past>,
    /// Reverse proxies that are believed when they say whose WebSocket they pass on.
    pub trusted_proxies: Vec<IpNet>,
    /// The certificate shown where a WebSocket is inside TLS, in PEM; none: one is made at each start.
    pub tls_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Prefixes whose addresses are neither dialled nor told to others, nor taken connections from.
    pub deny_cidrs: Vec<IpNet>,
    /// Post-quantum key agreement of datagram sessions; required, packets go by no other carrier.
    pub post_quantum: PostQuantum,
    /// The cipher that sealed datagrams are to have.
    pub data_cipher: DataCipher,
    /// Whether the daemon answers names.
    pub dns_mode: DnsMode,
    /// Whether the host's own resolver is told of our zones, where one is found that asks several servers by name.
    pub dns_host: bool,
    /// Whether our table is put back when someone flushes it.
    pub firewall_repair: bool,
    /// The firewalls of others in whose places for foreign rules we put ours.
    pub firewall_integrate: Integrate,
    /// The ports of this machine that port maps may be added on.
    pub ports_range: PortRange,
    /// Users who may attach containers of their own without a right to change anything else.
    pub workload_users: Vec<WorkloadUser>,
    /// Directory that the Docker engine finds its plugins in.
    pub docker_plugin_dir: PathBuf,
    /// How often this node looks for others and asks whether they are there.
    pub discovery: Discovery,
    /// Bounds on what others can make this daemon hold or do.
    pub limits: Limits,
    /// TCP address metrics are served on beside the control socket.
    pub metrics_listen: Option<SocketAddr>,
    /// The prefixes from which metrics may be read there, beside this machine itself.
    pub metrics_allow: Vec<IpNet>,
    /// What stands in `conf.d` and is not read, with the reason.
    pub skipped: Vec<(PathBuf, &'static str)>,
    /// Declared memberships, in the order of the files.
    pub subnets: Vec<DeclaredSubnet>,
    /// Key path to where its value came from; keys left at their default are absent.
    pub origins: BTreeMap<&'static str, String>,
    /// How many members stay connected though nothing travels. There is no key for it: tests change it.
    pub neighbours: Bounds,
    /// How long the connections to any other are kept that nobody uses. There is no key for it: tests change it.
    pub let_go: Duration,
    /// The time between two tellings of who was seen. There is no key for it: tests change it.
    pub presence: Duration,
    /// What all this was read from, to read it again.
    pub sources: Sources,
}

impl Config {
    /// The defaults, for a machine called `host`.
    pub fn defaults(host: &str) -> Config {
        Config {
            node_name: Name::from_host(host),
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            helper_socket: DEFAULT_HELPER_SOCKET.into(),
            log_level: "info".to_owned(),
            identity_file: None,
            listen: keys::listen_addresses(&[
                format!("udp/{DEFAULT_PORT}"),
                format!("tcp/{DEFAULT_PORT}"),
            ])
            .unwrap_or_default(),
            relay_only: false,
            bootstrap: Vec::new(),
            advertise: Vec::new(),
            lan_discovery: true,
            port_mapping: true,
            proxy: proxy::Choice::None,
            no_proxy: Vec::new(),
            trusted_proxies: Vec::new(),
            tls_cert: None,
            tls_key: None,
            external: External::Members,
            stun: Vec::new(),
            external_urls: Vec::new(),
            relay: RelayConfig {
                offer: RelayOffer::Auto,
                max_mbit: 100,
                for_whom: RelayFor::Auto,
            },
            deny_cidrs: Vec::new(),
            post_quantum: PostQuantum::Prefer,
            data_cipher: DataCipher::Auto,
            dns_mode: DnsMode::Split,
            dns_host: true,
            firewall_repair: true,
            firewall_integrate: Integrate::DEFAULT,
            ports_range: PortRange::ALL,
            workload_users: Vec::new(),
            docker_plugin_dir: DEFAULT_PLUGIN_DIR.into(),
            discovery: Discovery::default(),
            limits: Limits::default(),
            metrics_listen: None,
            metrics_allow: Vec::new(),
            skipped: Vec::new(),
            subnets: Vec::new(),
            origins: BTreeMap::new(),
            neighbours: Bounds::default(),
            let_go: LET_GO,
            presence: PERIOD,
            sources: Sources::default(),
        }
    }

    /// Reads every layer.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first: a file that cannot be read, is not TOML, or has a key or value that
    /// means nothing.
    pub fn load(sources: &Sources) -> Result<Config, Vec<ConfigError>> {
        let mut config = Config {
            sources: sources.clone(),
            ..Config::defaults(&sources.host)
        };
        let mut errors = Vec::new();
        for file in sources::files(sources, &mut config.skipped, &mut errors) {
            read::file(&mut config, &file, &mut errors);
        }
        sources::environment(&mut config, &sources.env, &mut errors);
        for (path, value) in &sources.flags {
            let Some(key) = keys::find(path) else {
                continue;
            };
            let flag = format!("--{}", key.leaf().replace('_', "-"));
            config.set(key, value, flag, &mut errors);
        }
        errors.extend(config.without_port());
        errors.extend(config.half_a_certificate());
        errors.extend(config.hindered_relay());
        errors.extend(config.impatient());
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(errors)
        }
    }

    /// The most that is forwarded for all peers together, in Mbit/s; none where this node relays for nobody.
    pub fn relay_mbit(&self) -> Option<u32> {
        match self.relay.offer {
            RelayOffer::Auto if !self.relay_only => Some(self.relay.max_mbit.min(AUTO_MBIT)),
            RelayOffer::Auto | RelayOffer::Always => Some(self.relay.max_mbit),
            RelayOffer::Never => None,
        }
    }

    /// Every key with its value in force and where that came from (`None`: the default).
    pub fn values(&self) -> impl Iterator<Item = (&'static str, Value, Option<&str>)> {
        keys::all().map(|key| {
            (
                key.path,
                (key.show)(self),
                self.origins.get(key.path).map(String::as_str),
            )
        })
    }

    /// What a running daemon makes of a configuration that was read again: the one in force from then on, the keys that
    /// were taken over, and those whose change needs a restart.
    pub fn taking_over(&self, fresh: &Config) -> (Config, Vec<&'static str>, Vec<&'static str>) {
        let mut next = self.clone();
        let (mut taken, mut restart) = (Vec::new(), Vec::new());
        for key in keys::all().filter(|key| self.differs(fresh, key)) {
            if !keys::LIVE.contains(&key.path) {
                restart.push(key.path);
            } else if (key.set)(&mut next, &(key.show)(fresh)).is_ok() {
                taken.push(key.path);
            }
        }
        next.origins = fresh.origins.clone();
        for path in &restart {
            next.origins.remove(path);
            next.origins.extend(
                self.origins
                    .get_key_value(path)
                    .map(|(path, origin)| (*path, origin.clone())),
            );
        }
        next.subnets.clone_from(&fresh.subnets);
        (next, taken, restart)
    }

    /// Whether there is a UDP port: one that is listened on, or one for dials alone where nothing is.
    fn has_port(&self) -> bool {
        self.listen.is_empty() || self.listen.iter().any(|at| at.contains("/udp/"))
    }

    /// Where packets may go by datagrams only, there has to be a port for them.
    fn without_port(&self) -> Option<ConfigError> {
        const KEY: &str = "transport.post_quantum";
        let lacks =
            self.post_quantum == PostQuantum::Require && !self.relay_only && !self.has_port();
        let place = self.origins.get(KEY).filter(|_| lacks)?;
        let why = "packets would go by datagrams only, and transport.listen has no UDP address";
        Some(ConfigError::value(place.clone(), KEY, "\"require\"", why))
    }

    /// What keeps a daemon that only relays from relaying, or asks of it what only a member can do.
    fn hindered_relay(&self) -> Vec<ConfigError> {
        if !self.relay_only {
            return Vec::new();
        }
        let hinders: [(&str, bool, &str); 3] = [
            (
                "transport.relay.offer",
                self.relay.offer == RelayOffer::Never,
                "node.relay_only is true, so this daemon would do nothing",
            ),
            (
                "transport.relay.for",
                self.relay.for_whom == RelayFor::Members,
                "node.relay_only is true: a daemon that is in no subnet has no members; name the peers, or \"anyone\"",
            ),
            (
                "transport.listen",
                self.listen.is_empty(),
                "node.relay_only is true: nobody could reach this relay",
            ),
        ];
        let values = hinders.iter().filter(|(_, is_so, _)| *is_so);
        let values = values.filter_map(|(path, _, why)| {
            let (key, place) = (keys::find(path)?, self.origins.get(path)?);
            let shown = (key.show)(self).to_string();
            Some(ConfigError::value(place.clone(), path, &shown, why))
        });
        let subnets = self.subnets.iter().map(|subnet| ConfigError {
            code: Code::ConfigValue,
            place: subnet.origin.clone(),
            key: "subnet".to_owned(),
            message:
                "[[subnet]]: node.relay_only is true, and a daemon that only relays joins no subnet"
                    .to_owned(),
        });
        values.chain(subnets).collect()
    }

    fn set(
        &mut self,
        key: &'static keys::Key,
        value: &Value,
        place: String,
        errors: &mut Vec<ConfigError>,
    ) {
        match (key.set)(self, value) {
            Ok(()) => {
                self.origins.insert(key.path, place);
            }
            Err(why) => errors.push(ConfigError::value(
                place,
                key.path,
                &value.to_string(),
                &why,
            )),
        }
    }
}

/// Reads a file's text, for tests/fuzz.
#[cfg(any(fuzzing, test))]
pub fn fuzz(text: &str) {
    let mut config = Config::defaults("host");
    let mut errors = Vec::new();
    read::text(&mut config, "byway.toml", text, &mut errors);
    errors
        .iter()
        .for_each(|e| assert!(!e.to_string().is_empty()));
    config
        .values()
        .for_each(|(path, value, _)| assert!(!path.is_empty() || value.to_string().is_empty()));
}

/// Something that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// `E-CONFIG-READ`, `E-CONFIG-SYNTAX`, `E-CONFIG-KEY` or `E-CONFIG-VALUE`; `E-CONFIG-IDLE` of what is only in vain.
    pub code: Code,
    /// Where the value was given: `FILE:LINE`, `FILE`, a flag or a variable.
    pub place: String,
    /// The key's path (`transport.listen`); empty where the whole file is meant.
    pub key: String,
    /// What is wrong, in words.
    pub message: String,
}

impl ConfigError {
    fn value(place: String, key: &str, shown: &str, why: &str) -> ConfigError {
        let shown: String = shown.chars().take(100).collect();
        ConfigError {
            code: Code::ConfigValue,
            place,
            key: key.to_owned(),
            message: if web::SECRET.contains(&key) {
                format!("{key}: {why}")
            } else {
                format!("{key} = {shown}: {why}")
            },
        }
    }
}

impl ConfigError {
    /// File and line it stands at, where it stands in a file.
    pub fn line(&self) -> Option<(&str, usize)> {
        let (file, line) = self.place.rsplit_once(':')?;
        Some((file, line.parse().ok()?))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
