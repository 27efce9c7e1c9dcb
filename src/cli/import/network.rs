//! The networks of a compose file: which are byway's, and over which subnet.

use std::collections::BTreeMap;

use super::file::{is_own, switch, text};
use super::keys;
use super::variables::Variables;
use super::yaml::{Entry, Node, Value, at};
use crate::cli::value::{self, Checked, shown};

/// The driver by which Docker's networks are made over subnets.
const DRIVER: &str = "byway";

/// A network of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// Over which subnet it is, where it is byway's.
    pub place: Option<Place>,
    /// Whether the engine gives its containers no way out, and so publishes no port of theirs by it.
    pub internal: bool,
    /// Whether its containers have addresses of IPv6 as well.
    pub ipv6: bool,
}

/// A subnet as the file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// By its name or ID.
    Named(String),
    /// Not at all: the one that the command line names, or this machine's only one.
    Unnamed,
}

/// Reads all networks. `is_subnet` tells whether this machine has a subnet of that name: a network that was made before is
/// over the subnet that it is named after.
pub(super) fn networks(
    node: Option<&Entry>,
    variables: &Variables,
    is_subnet: &dyn Fn(&str) -> bool,
) -> Checked<BTreeMap<String, Network>> {
    let mut all = BTreeMap::new();
    for entry in node.map_or(Ok(&[][..]), |e| e.value.entries("networks"))? {
        let network = network(entry, variables, is_subnet)?;
        all.insert(entry.key.clone(), network);
    }
    // The one that services are in that name none.
    all.entry("default".into()).or_default();
    Ok(all)
}

fn network(
    entry: &Entry,
    variables: &Variables,
    is_subnet: &dyn Fn(&str) -> bool,
) -> Checked<Network> {
    let keys = entry.value.entries(&entry.key)?;
    let value = |key: &str| keys.iter().find(|e| e.key == key).map(|e| &e.value);
    let said = |key: &str| value(key).map(|v| text(v, key, variables)).transpose();
    let internal = value("internal")
        .map(|v| switch(v, "internal", variables))
        .transpose()?;
    let ipv6 = value("enable_ipv6")
        .map(|v| switch(v, "enable_ipv6", variables))
        .transpose()?;
    let mut network = Network {
        place: None,
        internal: internal.unwrap_or(false),
        ipv6: ipv6.unwrap_or(false),
    };
    let driver = said("driver")?;
    if let Some(external) = value("external") {
        let named = match &external.value {
            Value::Map(_) => {
                let inner = external
                    .entries("external")?
                    .iter()
                    .find(|e| e.key == "name");
                inner
                    .map(|e| text(&e.value, "name", variables))
                    .transpose()?
            }
            _ if !switch(external, "external", variables)? => None,
            _ => Some(said("name")?.unwrap_or_else(|| entry.key.clone())),
        };
        if let Some(name) = named {
            network.place = is_subnet(&name).then_some(Place::Named(name));
            // How it was made the file does not say.
            network.ipv6 = true;
            return Ok(network);
        }
    }
    match driver.as_deref() {
        Some(DRIVER) => {
            network.place = Some(own(keys, variables)?);
            Ok(network)
        }
        Some("overlay") => {
            let line = value("driver").map_or(entry.line, |v| v.line);
            let message = format!(
                "driver: overlay needs a swarm; write driver: {DRIVER}, driver_opts: subnet:"
            );
            Err(at(line, message))
        }
        _ => Ok(network),
    }
}

/// A network of byway's: its keys, and the subnet that it names.
fn own(keys: &[Entry], variables: &Variables) -> Checked<Place> {
    let mut found: Option<String> = None;
    let mut names = |node: &Node| -> Checked<()> {
        let subnet = text(node, "subnet", variables)?;
        let subnet = value::subnet(&subnet).map_err(|e| at(node.line, e.message))?;
        match &found {
            Some(other) if *other != subnet => {
                let message = format!("a network over two subnets, {other} and {subnet}");
                Err(at(node.line, message))
            }
            _ => {
                found = Some(subnet);
                Ok(())
            }
        }
    };
    for entry in keys {
        is_own(
            entry,
            &keys::NETWORK,
            &keys::NETWORK_PASSED,
            "a network of byway's",
        )?;
        match entry.key.as_str() {
            "driver_opts" => {
                for option in entry.value.entries("driver_opts")? {
                    match option.key.as_str() {
                        "subnet" => names(&option.value)?,
                        key => {
                            let message =
                                format!("{} is no option of driver {DRIVER}: subnet", shown(key));
                            return Err(at(option.line, message));
                        }
                    }
                }
            }
            "ipam" => addresses(&entry.value, variables, &mut names)?,
            _ => {}
        }
    }
    Ok(found.map_or(Place::Unnamed, Place::Named))
}

/// `ipam` of a network of byway's: its driver, the subnet, and the subnet's prefix, which Docker wants for fixed addresses.
fn addresses(
    node: &Node,
    variables: &Variables,
    names: &mut impl FnMut(&Node) -> Checked<()>,
) -> Checked<()> {
    for entry in node.entries("ipam")? {
        match entry.key.as_str() {
            "driver" => {
                let driver = text(&entry.value, "driver", variables)?;
                if driver != DRIVER {
                    let message = format!(
                        "addresses of a subnet come from driver {DRIVER}, not {}",
                        shown(&driver)
                    );
                    return Err(at(entry.value.line, message));
                }
            }
            "options" => {
                for option in entry.value.entries("options")? {
                    match option.key.as_str() {
                        "subnet" => names(&option.value)?,
                        key => {
                            let message = format!(
                                "{} is no option of ipam driver {DRIVER}: subnet",
                                shown(key)
                            );
                            return Err(at(option.line, message));
                        }
                    }
                }
            }
            "config" => {
                for pool in entry.value.items("config")? {
                    for key in pool.entries("config")? {
                        is_own(key, &["subnet"], &[], "ipam: config:")?;
                    }
                }
            }
            _ => is_own(entry, &["driver", "options", "config"], &[], "ipam:")?,
        }
    }
    Ok(())
}
