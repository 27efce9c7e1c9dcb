//! Every key of the configuration: its name, its type, how it is checked, how it is shown. One row a key.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::value::{Kind, Value};
use super::web::{LISTEN, one_transport_each};
use super::{
    Config, DataCipher, DnsMode, External, PostQuantum, RelayFor, RelayOffer, discovery, external,
    log, multiaddr, users,
};
use crate::model::host::neighbour::Integrate;
use crate::model::id::{Name, PeerId};
use crate::model::ports::{PortRange, PortRangeError};
use crate::model::proxy::ProxyError;

/// A key of the configuration, with how it is read and shown.
pub struct Key {
    /// Dotted path in the file.
    pub path: &'static str,
    /// The type that its values have.
    pub kind: Kind,
    /// Checks a value of that type and puts it in force.
    pub set: fn(&mut Config, &Value) -> Result<(), String>,
    /// Gives the value that is in force.
    pub show: fn(&Config) -> Value,
}

impl Key {
    /// The last part of the path.
    pub fn leaf(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// Environment variables that set it, weakest first.
    pub(super) fn variables(&self) -> Vec<String> {
        let long = format!("BYWAY_{}", self.path.replace('.', "_").to_ascii_uppercase());
        let short = match self.path {
            "node.socket" | "node.state_dir" => {
                Some(format!("BYWAY_{}", self.leaf().to_ascii_uppercase()))
            }
            "log.level" => Some("BYWAY_LOG".to_owned()),
            _ => None,
        };
        short.into_iter().chain([long]).collect()
    }
}

/// The key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// A limit: bounds keep it from meaning "none" or "everything".
macro_rules! limit {
    ($field:ident, $least:literal, $most:literal) => {
        Key {
            path: concat!("limits.", stringify!($field)),
            kind: Kind::Number,
            set: |c, v| put(&mut c.limits.$field, v.number($least, $most)),
            show: |c| Value::Number(c.limits.$field.into()),
        }
    };
}

/// A switch.
macro_rules! switch {
    ($path:literal, $($field:ident).+) => {
        Key {
            path: $path,
            kind: Kind::Switch,
            set: |c, v| { c.$($field).+ = v.switch(); Ok(()) },
            show: |c| Value::Switch(c.$($field).+),
        }
    };
}

/// A period of `[discovery]`, with its bounds in seconds.
macro_rules! period {
    ($field:ident, $least:literal, $most:literal) => {
        Key {
            path: concat!("discovery.", stringify!($field)),
            kind: Kind::Text,
            set: |c, v| {
                put(
                    &mut c.discovery.$field,
                    discovery::period(v.text(), $least, $most),
                )
            },
            show: |c| Value::Text(discovery::shown(c.discovery.$field)),
        }
    };
}

/// A file that may be named.
macro_rules! file {
    ($path:literal, $field:ident) => {
        Key {
            path: $path,
            kind: Kind::Text,
            set: |c, v| {
                c.$field = if v.text().is_empty() {
                    None
                } else {
                    Some(absolute(v.text())?)
                };
                Ok(())
            },
            show: |c| {
                Value::Text(
                    c.$field
                        .as_ref()
                        .map(|p| p.display().to_string())
                        .unwrap_or_default(),
                )
            },
        }
    };
}

/// Words of `data.cipher`.
const DATA_CIPHERS: [&str; 5] = [
    "auto",
    "aes-256-gcm",
    "aes-256-gcm by aws-lc",
    "aes-256-gcm by ring",
    "chacha20-poly1305",
];

/// Every key, in the order it is shown.
pub const KEYS: &[Key] = &[
    Key {
        path: "version",
        kind: Kind::Number,
        set: |_, v| {
            v.number(1, 1)
                .map(|_| ())
                .map_err(|_| "this byway reads version 1".to_owned())
        },
        show: |_| Value::Number(1),
    },
    Key {
        path: "node.name",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.node_name,
                v.text().parse::<Name>().map_err(|e| e.to_string()),
            )
        },
        show: |c| Value::Text(c.node_name.to_string()),
    },
    Key {
        path: "node.state_dir",
        kind: Kind::Text,
        set: |c, v| put(&mut c.state_dir, absolute(v.text())),
        show: |c| Value::Text(c.state_dir.display().to_string()),
    },
    Key {
        path: "node.socket",
        kind: Kind::Text,
        set: |c, v| put(&mut c.socket, absolute(v.text())),
        show: |c| Value::Text(c.socket.display().to_string()),
    },
    Key {
        path: "node.helper_socket",
        kind: Kind::Text,
        set: |c, v| put(&mut c.helper_socket, absolute(v.text())),
        show: |c| Value::Text(c.helper_socket.display().to_string()),
    },
    Key {
        path: "log.level",
        kind: Kind::Text,
        set: |c, v| {
            log::levels(v.text())?;
            c.log_level = v.text().to_owned();
            Ok(())
        },
        show: |c| Value::Text(c.log_level.clone()),
    },
    file!("node.identity_file", identity_file),
    Key {
        path: "node.swarm_key_file",
        kind: Kind::Text,
        // Ignoring it would run outside the perimeter that was asked for.
        set: |_, v| {
            if v.text().is_empty() {
                Ok(())
            } else {
                Err("this version has no private swarms".to_owned())
            }
        },
        show: |_| Value::Text(String::new()),
    },
    switch!("node.relay_only", relay_only),
    Key {
        path: "transport.listen",
        kind: Kind::List,
        set: |c, v| put(&mut c.listen, listen_addresses(v.list())),
        show: |c| {
            Value::List(if c.listen.is_empty() {
                vec!["none".to_owned()]
            } else {
                c.listen.clone()
            })
        },
    },
    Key {
        path: "transport.bootstrap",
        kind: Kind::List,
        set: |c, v| {
            put(
                &mut c.bootstrap,
                multiaddrs(v.list(), multiaddr::Peer::Optional),
            )
        },
        show: |c| Value::List(c.bootstrap.clone()),
    },
    Key {
        path: "transport.advertise",
        kind: Kind::List,
        set: |c, v| {
            put(
                &mut c.advertise,
                multiaddrs(v.list(), multiaddr::Peer::Forbidden),
            )
        },
        show: |c| Value::List(c.advertise.clone()),
    },
    switch!("transport.lan_discovery", lan_discovery),
    switch!("transport.port_mapping", port_mapping),
    Key {
        path: "transport.external",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.external,
                word(v.text(), &External::WORDS).map(External::of),
            )
        },
        show: |c| Value::Text(c.external.as_str().to_owned()),
    },
    Key {
        path: "transport.stun",
        kind: Kind::List,
        set: |c, v| put(&mut c.stun, external::servers(v.list())),
        show: |c| Value::List(c.stun.clone()),
    },
    Key {
        path: "transport.external_urls",
        kind: Kind::List,
        set: |c, v| put(&mut c.external_urls, external::urls(v.list())),
        show: |c| Value::List(c.external_urls.clone()),
    },
    Key {
        path: "transport.relay.offer",
        kind: Kind::AutoSwitch,
        set: |c, v| {
            c.relay.offer = match v {
                Value::Switch(true) => RelayOffer::Always,
                Value::Text(text) if text != "auto" => {
                    return Err(format!("expected {}", Kind::AutoSwitch));
                }
                Value::Text(_) => RelayOffer::Auto,
                _ => RelayOffer::Never,
            };
            Ok(())
        },
        show: |c| shown_offer(c.relay.offer),
    },
    Key {
        path: "transport.relay.max_mbit",
        kind: Kind::Number,
        set: |c, v| put(&mut c.relay.max_mbit, v.number(1, 1_000_000)),
        show: |c| Value::Number(c.relay.max_mbit.into()),
    },
    Key {
        path: "transport.relay.for",
        kind: Kind::List,
        set: |c, v| put(&mut c.relay.for_whom, relay_for(v.list())),
        show: |c| match &c.relay.for_whom {
            RelayFor::Auto => Value::Text("auto".to_owned()),
            RelayFor::Anyone => Value::Text("anyone".to_owned()),
            RelayFor::Members => Value::Text("members".to_owned()),
            RelayFor::Peers(list) => Value::List(list.iter().map(ToString::to_string).collect()),
        },
    },
    Key {
        path: "transport.proxy",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.proxy,
                v.text().parse().map_err(|e: ProxyError| e.to_string()),
            )
        },
        // Without the name and the password.
        show: |c| Value::Text(c.proxy.to_string()),
    },
    file!("transport.tls_cert", tls_cert),
    file!("transport.tls_key", tls_key),
    Key {
        path: "transport.deny_cidrs",
        kind: Kind::List,
        set: |c, v| put(&mut c.deny_cidrs, prefixes(v.list())),
        show: |c| Value::List(c.deny_cidrs.iter().map(ToString::to_string).collect()),
    },
    Key {
        path: "transport.post_quantum",
        kind: Kind::Text,
        set: |c, v| {
            c.post_quantum = match word(v.text(), &["off", "prefer", "require"])? {
                "off" => PostQuantum::Off,
                "require" => PostQuantum::Require,
                _ => PostQuantum::Prefer,
            };
            Ok(())
        },
        show: |c| {
            let text = match c.post_quantum {
                PostQuantum::Off => "off",
                PostQuantum::Prefer => "prefer",
                PostQuantum::Require => "require",
            };
            Value::Text(text.to_owned())
        },
    },
    Key {
        path: "data.cipher",
        kind: Kind::Text,
        set: |c, v| {
            c.data_cipher = match word(v.text(), &DATA_CIPHERS)? {
                "aes-256-gcm" => DataCipher::Aes256Gcm,
                "aes-256-gcm by aws-lc" => DataCipher::Aes256GcmByAwsLc,
                "aes-256-gcm by ring" => DataCipher::Aes256GcmByRing,
                "chacha20-poly1305" => DataCipher::ChaCha20Poly1305,
                _ => DataCipher::Auto,
            };
            Ok(())
        },
        show: |c| {
            let text = match c.data_cipher {
                DataCipher::Auto => "auto",
                DataCipher::Aes256Gcm => "aes-256-gcm",
                DataCipher::Aes256GcmByAwsLc => "aes-256-gcm by aws-lc",
                DataCipher::Aes256GcmByRing => "aes-256-gcm by ring",
                DataCipher::ChaCha20Poly1305 => "chacha20-poly1305",
            };
            Value::Text(text.to_owned())
        },
    },
    Key {
        path: "dns.mode",
        kind: Kind::Text,
        set: |c, v| {
            c.dns_mode = if word(v.text(), &["split", "off"])? == "off" {
                DnsMode::Off
            } else {
                DnsMode::Split
            };
            Ok(())
        },
        show: |c| {
            Value::Text(
                if c.dns_mode == DnsMode::Off {
                    "off"
                } else {
                    "split"
                }
                .to_owned(),
            )
        },
    },
    Key {
        path: "dns.host",
        kind: Kind::Text,
        set: |c, v| {
            put(
                &mut c.dns_host,
                word(v.text(), &["auto", "off"]).map(|w| w == "auto"),
            )
        },
        show: |c| Value::Text(if c.dns_host { "auto" } else { "off" }.to_owned()),
    },
    switch!("firewall.repair", firewall_repair),
    Key {
        path: "firewall.integrate",
        kind: Kind::List,
        set: |c, v| put(&mut c.firewall_integrate, integrate(v.list())),
        show: |c| {
            let Integrate {
                docker,
                firewalld,
                ufw,
            } = c.firewall_integrate;
            let named = INTEGRATE
                .iter()
                .zip([docker, firewalld, ufw])
                .filter(|(_, on)| *on);
            Value::List(named.map(|(name, _)| (*name).to_owned()).collect())
        },
    },
    Key {
        path: "ports.range",
        kind: Kind::Text,
        set: |c, v| put(&mut c.ports_range, ports(v.text())),
        show: |c| Value::Text(c.ports_range.to_string()),
    },
    Key {
        path: "workloads.users",
        kind: Kind::List,
        set: |c, v| put(&mut c.workload_users, users::read(v.list())),
        show: |c| Value::List(c.workload_users.iter().map(ToString::to_string).collect()),
    },
    Key {
        path: "docker.plugin_dir",
        kind: Kind::Text,
        set: |c, v| put(&mut c.docker_plugin_dir, absolute(v.text())),
        show: |c| Value::Text(c.docker_plugin_dir.display().to_string()),
    },
    period!(announce, 60, 86_400),
    period!(compare, 5, 3600),
    period!(redial, 5, 3600),
    period!(keep_alive, 5, 300),
    period!(dead_after, 15, 900),
    limit!(connections, 2, 1_000_000),
    limit!(pending_connections, 1, 65_536),
    limit!(connections_per_peer, 1, 64),
    limit!(memory_mib, 64, 1_048_576),
    limit!(joins_per_minute, 1, 100_000),
    limit!(api_clients, 1, 4096),
    Key {
        path: "metrics.listen",
        kind: Kind::Text,
        set: |c, v| {
            c.metrics_listen = match v.text() {
                "" => None,
                text => Some(
                    text.parse()
                        .map_err(|_| "expected ADDRESS:PORT, or \"\" for none".to_owned())?,
                ),
            };
            Ok(())
        },
        show: |c| Value::Text(c.metrics_listen.map(|a| a.to_string()).unwrap_or_default()),
    },
    Key {
        path: "metrics.allow",
        kind: Kind::List,
        set: |c, v| put(&mut c.metrics_allow, prefixes(v.list())),
        show: |c| Value::List(c.metrics_allow.iter().map(ToString::to_string).collect()),
    },
];

/// Keys that a running daemon takes over when it reads its configuration again; a change of any other needs a restart.
pub const LIVE: &[&str] = &[
    "log.level",
    "transport.bootstrap",
    "transport.relay.offer",
    "transport.relay.max_mbit",
    "transport.relay.for",
    "transport.port_mapping",
    "transport.external",
    "transport.stun",
    "transport.external_urls",
    "transport.deny_cidrs",
    "ports.range",
    "workloads.users",
    "discovery.announce",
    "discovery.compare",
    "limits.connections",
    "limits.connections_per_peer",
    "limits.memory_mib",
    "limits.joins_per_minute",
    "limits.api_clients",
    "metrics.listen",
    "metrics.allow",
];

/// Puts a checked value in its place.
fn put<T>(slot: &mut T, value: Result<T, String>) -> Result<(), String> {
    value.map(|value| *slot = value)
}

/// `udp/4100`, `tcp/4100`, `tcp/443/wss`, `tcp/8080/ws`, multiaddrs or `none`, as multiaddrs of both families.
pub(super) fn listen_addresses(list: &[String]) -> Result<Vec<String>, String> {
    if list.iter().any(|s| s == "none") {
        return if list.len() == 1 {
            Ok(Vec::new())
        } else {
            Err("\"none\" stands alone".to_owned())
        };
    }
    if list.is_empty() {
        return Err("expected at least one address, or \"none\" for outbound only".to_owned());
    }
    let mut out: Vec<String> = Vec::new();
    for entry in list {
        let both = match entry.split_once('/') {
            Some((proto @ ("udp" | "tcp"), port)) => {
                let (port, web) = match port.split_once('/') {
                    Some((port, web @ ("ws" | "wss"))) if proto == "tcp" => (port, web),
                    Some(_) => return Err(format!("{entry:?}: expected {LISTEN}")),
                    None => (port, ""),
                };
                let port = port
                    .parse::<u16>()
                    .ok()
                    .filter(|p| *p != 0 && !port.starts_with('+'));
                let port =
                    port.ok_or_else(|| format!("{entry:?}: expected a port from 1 to 65535"))?;
                let above = match (proto, web) {
                    ("udp", _) => "/quic-v1",
                    (_, "ws") => "/ws",
                    (_, "wss") => "/wss",
                    _ => "",
                };
                vec![
                    format!("/ip4/0.0.0.0/{proto}/{port}{above}"),
                    format!("/ip6/::/{proto}/{port}{above}"),
                ]
            }
            _ if entry.starts_with('/') => {
                vec![multiaddr::check(entry, multiaddr::Peer::Forbidden)?]
            }
            // Nobody listens on a name.
            _ => match multiaddr::expand(entry, multiaddr::Peer::Forbidden) {
                Ok(both) if !both.iter().any(|a| a.starts_with("/dns")) => both,
                _ => return Err(format!("{entry:?}: expected {LISTEN}")),
            },
        };
        out.extend(both);
    }
    if let Some(path) = out.iter().find(|at| at.contains("/x-parity-ws")) {
        return Err(format!(
            "{path:?}: a WebSocket is taken at every path, so none is named"
        ));
    }
    // The same address twice would fail as "in use" by ourselves.
    let mut seen = std::collections::BTreeSet::new();
    out.retain(|a| seen.insert(a.clone()));
    one_transport_each(&out)?;
    Ok(out)
}

pub(super) fn multiaddrs(list: &[String], peer: multiaddr::Peer) -> Result<Vec<String>, String> {
    let expand = |entry: &String| {
        let all = multiaddr::expand(entry, peer)?;
        // Where others are to come in, or this node is to go: neither leads to an address that nobody has.
        all.iter().try_for_each(|one| multiaddr::reachable(one))?;
        Ok(all)
    };
    let each: Result<Vec<Vec<String>>, String> = list.iter().map(expand).collect();
    each.map(|all| all.concat())
}

/// Prefixes; an address alone is the prefix of it.
fn prefixes(list: &[String]) -> Result<Vec<IpNet>, String> {
    let prefix = |text: &String| {
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse()
            .or_else(|_| address())
            .map_err(|_| format!("{text:?} is no address and no prefix"))
    };
    list.iter().map(prefix).collect()
}

/// Firewalls that leave a place to rules of others.
const INTEGRATE: [&str; 3] = ["docker", "firewalld", "ufw"];

fn integrate(list: &[String]) -> Result<Integrate, String> {
    let mut chosen = Integrate::NONE;
    for entry in list {
        match word(entry, &INTEGRATE)? {
            "docker" => chosen.docker = true,
            "firewalld" => chosen.firewalld = true,
            _ => chosen.ufw = true,
        }
    }
    Ok(chosen)
}

fn ports(text: &str) -> Result<PortRange, String> {
    text.parse().map_err(|e: PortRangeError| e.to_string())
}

/// How an offer is written.
pub(super) fn shown_offer(offer: RelayOffer) -> Value {
    match offer {
        RelayOffer::Auto => Value::Text("auto".to_owned()),
        RelayOffer::Always => Value::Switch(true),
        RelayOffer::Never => Value::Switch(false),
    }
}

fn relay_for(list: &[String]) -> Result<RelayFor, String> {
    match list {
        [one] if !one.starts_with("12D3") => {
            Ok(match word(one, &["auto", "anyone", "swarm", "members"])? {
                "anyone" => RelayFor::Anyone,
                // Serving others instead would pass the perimeter that was asked for.
                "swarm" => return Err("this version has no private swarms".to_owned()),
                "members" => RelayFor::Members,
                _ => RelayFor::Auto,
            })
        }
        _ => Ok(RelayFor::Peers(
            list.iter()
                .map(|p| p.parse::<PeerId>().map_err(|e| format!("{p:?}: {e}")))
                .collect::<Result<_, _>>()?,
        )),
    }
}

/// A path that means the same file wherever the daemon is started.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        Ok(path)
    } else {
        Err("expected an absolute path".to_owned())
    }
}

/// One of a few words.
fn word<'a>(text: &'a str, words: &[&'static str]) -> Result<&'a str, String> {
    if words.contains(&text) {
        return Ok(text);
    }
    let near = nearest(text, words.iter().copied())
        .map(|w| format!("; did you mean {w:?}?"))
        .unwrap_or_default();
    Err(format!("expected one of {}{near}", words.join(", ")))
}

/// The closest of `words`, where one is close enough to be a typing error: at most two edits, or a third of the word.
pub(super) fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let short: String = text.chars().take(64).collect();
    words
        .map(|word| (strsim::levenshtein(&short.to_ascii_lowercase(), word), word))
        .filter(|(distance, word)| *distance <= 2.max(word.len() / 3) && *distance < word.len())
        .min()
        .map(|(_, word)| word)
}
