//! `[[subnet]]`: memberships declared in a file, the same as `join` and its flags.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::keys::absolute;
use super::multiaddr;
use super::value::Value;
use crate::model::host::HostPolicy;
use crate::model::id::{Name, SubnetId};
use crate::model::policy::Allowed;
use crate::model::record::is_domain;

/// A membership that a file declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredSubnet {
    /// The subnet; known from the invite where only that is given.
    pub id: Option<SubnetId>,
    /// File that holds an invite: never the invite itself, which is a secret.
    pub invite_file: Option<PathBuf>,
    /// Where to find someone who knows the subnet.
    pub peers: Vec<String>,
    /// The name to ask for as a member; the node's name where none is given.
    pub name: Option<Name>,
    /// Name of the subnet on this machine; the founder's where none is given.
    pub alias: Option<Name>,
    /// The address to ask for; none where any will do.
    pub ip: Option<IpAddr>,
    /// What of this machine itself the subnet reaches; none: what was typed here stands, closed at first.
    pub host: Option<HostPolicy>,
    /// What is allowed beyond private prefixes and domains.
    pub allow: Allowed,
    /// The place it is declared at, as `FILE:LINE`.
    pub origin: String,
}

/// Keys of a `[[subnet]]` table; those of [`LISTS`] are lists of strings, the others strings.
pub(super) const KEYS: [&str; 9] = [
    "id",
    "invite_file",
    "peer",
    "name",
    "as",
    "ip",
    "host",
    "allow_prefix",
    "allow_domain",
];
/// The keys of [`KEYS`] that hold lists.
pub(super) const LISTS: [&str; 3] = ["peer", "allow_prefix", "allow_domain"];

impl DeclaredSubnet {
    /// Checks and takes one key.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let list = match value {
            Value::List(list) if LISTS.contains(&key) => list.clone(),
            Value::Text(text) => vec![text.clone()],
            _ if LISTS.contains(&key) => return Err("expected a list of strings".to_owned()),
            _ => return Err("expected a string".to_owned()),
        };
        let text = list.first().map_or("", String::as_str);
        match key {
            "id" => {
                self.id = Some(
                    text.parse()
                        .map_err(|e: crate::model::id::IdError| e.to_string())?,
                )
            }
            "invite_file" => self.invite_file = Some(absolute(text)?),
            "peer" => {
                self.peers = super::keys::multiaddrs(&list, multiaddr::Peer::Optional)?;
            }
            "allow_prefix" => {
                self.allow.prefixes = list.iter().map(|p| prefix(p)).collect::<Result<_, _>>()?
            }
            "allow_domain" => {
                self.allow.domains = list.iter().map(|d| domain(d)).collect::<Result<_, _>>()?
            }
            "name" => {
                self.name = Some(
                    text.parse()
                        .map_err(|e: crate::model::id::IdError| e.to_string())?,
                )
            }
            "as" => {
                self.alias = Some(
                    text.parse()
                        .map_err(|e: crate::model::id::IdError| e.to_string())?,
                )
            }
            "host" => {
                self.host = Some(
                    text.parse()
                        .map_err(|e: crate::model::host::PolicyError| e.to_string())?,
                )
            }
            _ => {
                self.ip = Some(
                    text.parse()
                        .map_err(|_| "expected an IP address".to_owned())?,
                )
            }
        }
        Ok(())
    }
}

impl fmt::Display for DeclaredSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[[subnet]]")?;
        let mut line = |key: &str, value: Option<String>| match value {
            Some(text) => write!(f, "\n{key} = {}", Value::Text(text)),
            None => Ok(()),
        };
        line("id", self.id.map(|id| id.to_string()))?;
        line(
            "invite_file",
            self.invite_file.as_ref().map(|p| p.display().to_string()),
        )?;
        line("name", self.name.as_ref().map(ToString::to_string))?;
        line("as", self.alias.as_ref().map(ToString::to_string))?;
        line("ip", self.ip.map(|ip| ip.to_string()))?;
        line("host", self.host.as_ref().map(ToString::to_string))?;
        let prefixes = self
            .allow
            .prefixes
            .iter()
            .map(ToString::to_string)
            .collect();
        let lists = [
            ("peer", self.peers.clone()),
            ("allow_prefix", prefixes),
            ("allow_domain", self.allow.domains.clone()),
        ];
        let mut given = lists.into_iter().filter(|(_, list)| !list.is_empty());
        given.try_for_each(|(key, list)| write!(f, "\n{key} = {}", Value::List(list)))
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>()
        .ok()
        .or_else(address)
        .filter(|net| net.trunc() == *net)
        .ok_or_else(|| {
            format!(
                "{:?} is no prefix such as 203.0.113.0/24",
                text.chars().take(80).collect::<String>()
            )
        })
}

fn domain(text: &str) -> Result<String, String> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let shown: String = text.chars().take(80).collect();
    if is_domain(&lower) {
        Ok(lower)
    } else {
        Err(format!("{shown:?} is no domain"))
    }
}
