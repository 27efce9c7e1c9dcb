//! Every key of the configuration: its name, its type, how it is checked, how it is shown. One row a key, in the file of its table.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::Config;
use super::value::{Kind, Value};

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
    all().find(|key| key.path == path)
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
            kind: Kind::Period,
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

// They are written with the macros above.
mod limits;
mod machine;
mod node;
mod transport;

pub(super) use transport::{listen_addresses, multiaddrs, shown_offer};

/// The tables of keys, in the order they are shown.
const TABLES: [&[Key]; 4] = [node::KEYS, transport::KEYS, machine::KEYS, limits::KEYS];

/// Every key, in the order it is shown.
pub fn all() -> impl Iterator<Item = &'static Key> {
    TABLES.into_iter().flatten()
}

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
    "transport.tls_cert",
    "transport.tls_key",
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
