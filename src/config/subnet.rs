//! `[[subnet]]`: memberships declared in a file, the same as `join` and its flags.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::keys::{Value, absolute};
use super::multiaddr;
use crate::model::host::HostPolicy;
use crate::model::id::{Name, SubnetId};

/// One declared membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredSubnet {
    /// The subnet; known from the invite where only that is given.
    pub id: Option<SubnetId>,
    /// File that holds an invite: never the invite itself, which is a secret.
    pub invite_file: Option<PathBuf>,
    /// Where to find someone who knows the subnet.
    pub peers: Vec<String>,
    /// This member's name in the subnet.
    pub name: Option<Name>,
    /// What the subnet is called here.
    pub alias: Option<Name>,
    /// Address asked for.
    pub ip: Option<IpAddr>,
    /// What of this machine itself the subnet reaches; none: what was typed here stands, closed at first.
    pub host: Option<HostPolicy>,
    /// `FILE:LINE` it stands at.
    pub origin: String,
}

/// Keys of a `[[subnet]]` table; `peer` is a list, the others are strings.
pub(super) const KEYS: [&str; 7] = ["id", "invite_file", "peer", "name", "as", "ip", "host"];

impl DeclaredSubnet {
    /// Checks and takes one key.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let list = match value {
            Value::List(list) if key == "peer" => list.clone(),
            Value::Text(text) => vec![text.clone()],
            _ if key == "peer" => return Err("expected a list of strings".to_owned()),
            _ => return Err("expected a string".to_owned()),
        };
        let text = list.first().map_or("", String::as_str);
        match key {
            "id" => self.id = Some(text.parse().map_err(|e: crate::model::id::IdError| e.to_string())?),
            "invite_file" => self.invite_file = Some(absolute(text)?),
            "peer" => {
                self.peers =
                    list.iter().map(|p| multiaddr::check(p, multiaddr::Peer::Optional)).collect::<Result<_, _>>()?;
            }
            "name" => self.name = Some(text.parse().map_err(|e: crate::model::id::IdError| e.to_string())?),
            "as" => self.alias = Some(text.parse().map_err(|e: crate::model::id::IdError| e.to_string())?),
            "host" => self.host = Some(text.parse().map_err(|e: crate::model::host::PolicyError| e.to_string())?),
            _ => self.ip = Some(text.parse().map_err(|_| "expected an IP address".to_owned())?),
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
        line("invite_file", self.invite_file.as_ref().map(|p| p.display().to_string()))?;
        line("name", self.name.as_ref().map(ToString::to_string))?;
        line("as", self.alias.as_ref().map(ToString::to_string))?;
        line("ip", self.ip.map(|ip| ip.to_string()))?;
        line("host", self.host.as_ref().map(ToString::to_string))?;
        if self.peers.is_empty() { Ok(()) } else { write!(f, "\npeer = {}", Value::List(self.peers.clone())) }
    }
}
