//! Port maps of this machine.

use std::net::IpAddr;

use ipnet::IpNet;

use super::done;
use crate::api::types::{Error, ErrorKind, Response};
use crate::model::host::Proto;
use crate::model::id::Name;
use crate::model::local::Map;
use crate::model::members::printable;
use crate::model::publish::endpoint;
use crate::node::Core;

/// A port map as it was asked for.
#[derive(Debug, Clone)]
pub struct NewMap {
    /// The map.
    pub map: Map,
    /// Whether nobody named it: one port on two addresses makes the same default twice.
    pub name_is_default: bool,
}

/// Checks a map's form and gives it a name.
///
/// # Errors
/// `E-PORT`, `E-FAMILY`: of the listening address with the target's or with an allowed prefix.
pub fn prepare_map(
    proto: Proto,
    listen: IpAddr,
    port: u16,
    target: String,
    target_port: u16,
    name: Option<Name>,
    allow: Vec<IpNet>,
) -> Result<NewMap, Error> {
    let usage = |code: &str, message: String| Error::new(ErrorKind::Usage, code, message);
    if port == 0 || target_port == 0 {
        return Err(usage("E-PORT", "a port is a number from 1 to 65535".into()));
    }
    if let Ok(address) = target.parse::<IpAddr>()
        && address.is_ipv4() != listen.is_ipv4()
    {
        return Err(usage("E-FAMILY", format!("{listen} and {address} are of different families")));
    }
    if let Some(other) = allow.iter().find(|p| p.addr().is_ipv4() != listen.is_ipv4()) {
        return Err(usage("E-FAMILY", format!("--allow {other} is not of the family of {listen}")));
    }
    let family = if listen.is_ipv4() { "" } else { "6" };
    let default = format!("{proto}{family}-{port}").parse::<Name>().map_err(|e| usage("E-NAME", e.to_string()))?;
    let name_is_default = name.is_none();
    let map = Map { name: name.unwrap_or(default), proto, listen, port, target, target_port, allow };
    Ok(NewMap { map, name_is_default })
}

impl Core {
    /// `map add`; the name it got.
    ///
    /// # Errors
    /// See [`Subnet::map_add`](crate::model::members::Subnet::map_add).
    pub fn map_add(&mut self, text: &str, new: NewMap) -> Result<Name, Error> {
        let mut subnet = self.state.edit(text)?;
        let mut map = new.map;
        if new.name_is_default {
            map.name = map.name.free(|name| subnet.local.maps.iter().any(|m| m.name == *name));
        }
        let name = map.name.clone();
        let others: Vec<Map> = self.state.subnets.values().flat_map(|s| s.local.maps.iter().cloned()).collect();
        subnet.map_add(&self.state.me.clone(), map, &others, self.now())?;
        self.save(subnet)?;
        Ok(name)
    }

    /// `map rm`, by name or by protocol and listening address.
    ///
    /// # Errors
    /// `E-NO-MAP`.
    pub fn map_rm(
        &mut self,
        text: &str,
        name: Option<&str>,
        key: Option<(Proto, IpAddr, u16)>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let matches = |m: &Map| match (name, key) {
            (Some(name), _) => m.name.as_str().eq_ignore_ascii_case(name),
            (None, Some(key)) => (m.proto, m.listen, m.port) == key,
            (None, None) => false,
        };
        let Some(place) = subnet.local.maps.iter().position(matches) else {
            let what = name
                .map(printable)
                .or_else(|| key.map(|(p, a, port)| format!("{p} {}", endpoint(a, port))))
                .unwrap_or_default();
            return Err(Error::new(
                ErrorKind::NotFound,
                "E-NO-MAP",
                format!("subnet {} has no map {what} here", subnet.name()),
            )
            .hint("byway map ls"));
        };
        let gone = subnet.local.maps.remove(place);
        self.save(subnet)?;
        Ok(done(format!("removed map {}", gone.name), true))
    }
}
