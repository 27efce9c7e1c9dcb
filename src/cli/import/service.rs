//! One service of a compose file.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::file::{Around, File, is_own, pairs, text};
use super::keys;
use super::network::Place;
use super::ports;
use super::yaml::{Entry, Node, Value, at};
use crate::api::types::ImportMap;
use crate::cli::value::{self, Checked, shown};
use crate::model::id::Name;
use crate::model::label;

/// A service in one subnet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Service {
    pub name: String,
    pub line: usize,
    /// What its container is called.
    pub container: String,
    pub addresses: Vec<IpAddr>,
    pub mac: Option<String>,
    pub aliases: BTreeSet<String>,
    pub maps: Vec<ImportMap>,
    /// Whether it is in a network that Docker makes over the subnet.
    pub by_network: bool,
    /// Whether that network has no IPv6.
    pub ipv4_only: bool,
}

/// A network of byway's that a service is in, and what the service asks for there.
#[derive(Debug, Default)]
struct Membership {
    ipv6: bool,
    addresses: Vec<IpAddr>,
    mac: Option<String>,
    aliases: Vec<(String, usize)>,
}

/// Reads one service into `file`.
pub(super) fn service(entry: &Entry, around: &Around<'_>, file: &mut File) -> Checked<()> {
    let keys = entry.value.entries(&entry.key)?;
    let find = |key: &str| keys.iter().find(|e| e.key == key);
    let mut left_out = |why: &str| {
        file.left_out.push((entry.key.clone(), why.to_owned()));
        Ok(())
    };
    if let Some(profiles) = find("profiles")
        && !profiles.value.items("profiles")?.is_empty()
    {
        return left_out("compose starts a service with profiles only when it is asked to");
    }
    let inside = places(entry, find("networks"), find("network_mode"), around)?;
    let own = inside
        .iter()
        .filter(|(_, place, _)| place.is_some())
        .count();
    if around.has_own && own == 0 {
        return left_out("it is in no network of byway's");
    }
    are_honoured(keys, around)?;
    let published = inside.iter().any(|(_, _, internal)| !internal);
    let base = base(entry, keys, around, published, &mut file.notes)?;
    if !around.has_own {
        let mut base = base;
        // Addresses in networks of another driver are not the subnet's; further names are names anywhere.
        for (membership, ..) in inside {
            let aliases = membership.aliases;
            join(
                &mut base,
                Membership {
                    aliases,
                    ..Membership::default()
                },
                &mut file.notes,
            )?;
        }
        file.services.push((Place::Unnamed, base));
        return Ok(());
    }
    let mut maps = Some(base.maps.clone());
    for (membership, place, _) in inside {
        let Some(place) = place else { continue };
        let mut service = Service {
            // A port leads to the service in the first of its subnets.
            maps: maps.take().unwrap_or_default(),
            by_network: true,
            ipv4_only: !membership.ipv6,
            ..base.clone()
        };
        join(&mut service, membership, &mut file.notes)?;
        file.services.push((place, service));
    }
    Ok(())
}

/// Refuses keys that are not honoured, and values of others that are not.
fn are_honoured(keys: &[Entry], around: &Around<'_>) -> Checked<()> {
    for key in keys {
        // A container without a network of its engine's is what `attach` is for.
        if key.key == "network_mode"
            && text(&key.value, "network_mode", around.variables)? == "none"
        {
            continue;
        }
        is_own(key, &keys::SERVICE, keys::SERVICE_PASSED, "a service")?;
    }
    let find = |key: &str| keys.iter().find(|e| e.key == key);
    one(find("scale"), find("deploy"), around)
}

/// What a service is in whatever subnet it is in.
fn base(
    entry: &Entry,
    keys: &[Entry],
    around: &Around<'_>,
    published: bool,
    notes: &mut Vec<String>,
) -> Checked<Service> {
    let find = |key: &str| keys.iter().find(|e| e.key == key);
    let said = |key: &str| {
        find(key)
            .map(|e| text(&e.value, key, around.variables))
            .transpose()
    };
    let container = said("container_name")?;
    let mut service = Service {
        line: entry.line,
        name: container.clone().unwrap_or_else(|| entry.key.clone()),
        container: container.unwrap_or_else(|| format!("{}-{}-1", around.project, entry.key)),
        mac: find("mac_address")
            .map(|e| mac(&e.value, around))
            .transpose()?,
        ..Service::default()
    };
    if let Some(ports) = find("ports") {
        for node in ports.value.items("ports")? {
            service
                .maps
                .push(ports::port(node, around.variables, published)?);
        }
    }
    let labels = find("labels").map(|e| pairs(&e.value, "labels", around.variables));
    for (key, value, line) in labels.transpose()?.unwrap_or_default() {
        match key.as_str() {
            label::NAME => {
                service.name = value::name(&value)
                    .map_err(|e| at(line, e.message))?
                    .to_string()
            }
            label::MAP => service.maps.extend(label_maps(&value, line)?),
            // The engine's side hears it once the container runs.
            "byway.health" => {}
            key if key.starts_with("byway.") => {
                let message = format!(
                    "{} is no label of byway's: byway.name, byway.map, byway.health",
                    shown(key)
                );
                return Err(at(line, message));
            }
            _ => {}
        }
    }
    service.name = Name::from_container(&service.name).to_string();
    alias(&mut service, &entry.key, notes);
    if let Some(host) = said("hostname")? {
        alias(&mut service, &host, notes);
    }
    Ok(service)
}

/// Adds what it asks for in one network.
fn join(service: &mut Service, membership: Membership, notes: &mut Vec<String>) -> Checked<()> {
    service.addresses = membership.addresses;
    service.mac = membership.mac.or(service.mac.take());
    for (name, _) in &membership.aliases {
        alias(service, name, notes);
    }
    Ok(())
}

/// Adds a further name, where it is another one and can be a name of the subnet.
fn alias(service: &mut Service, name: &str, notes: &mut Vec<String>) {
    let name = name.to_ascii_lowercase();
    if name == service.name {
        return;
    }
    if name.parse::<Name>().is_ok() {
        service.aliases.insert(name);
    } else {
        notes.push(format!(
            "line {}: the further name {} of {} cannot be a name of a subnet, and is left out",
            service.line,
            shown(&name),
            service.name
        ));
    }
}

/// The networks that a service is in, each with the subnet it is over, and whether it is internal.
fn places(
    entry: &Entry,
    networks: Option<&Entry>,
    mode: Option<&Entry>,
    around: &Around<'_>,
) -> Checked<Vec<(Membership, Option<Place>, bool)>> {
    let mut all: Vec<(Membership, Option<Place>, bool)> = Vec::new();
    let names: Vec<(&str, usize, Option<&Node>)> = match networks {
        Some(networks) => match &networks.value.value {
            Value::List(items) => {
                let name =
                    |node| Node::scalar(node, "a network").map(|(name, _)| (name, node.line, None));
                items.iter().map(name).collect::<Checked<_>>()?
            }
            _ => {
                let entries = networks.value.entries("networks")?.iter();
                entries
                    .map(|e| (e.key.as_str(), e.line, Some(&e.value)))
                    .collect()
            }
        },
        None if mode.is_some() => vec![],
        None => vec![("default", entry.line, None)],
    };
    for (name, line, node) in names {
        let network = around.networks.get(name);
        let network =
            network.ok_or_else(|| at(line, format!("the file has no network {}", shown(name))))?;
        let twice = |(_, place, _): &(Membership, Option<Place>, bool)| *place == network.place;
        if network.place.is_some() && all.iter().any(twice) {
            return Err(at(
                line,
                format!("{} is in one subnet by two networks", entry.key),
            ));
        }
        let is_read = network.place.is_some() || !around.has_own;
        let mut membership = match node.filter(|_| is_read) {
            Some(node) => membership(node, around)?,
            None => Membership::default(),
        };
        membership.ipv6 = network.ipv6;
        all.push((membership, network.place.clone(), network.internal));
    }
    Ok(all)
}

fn membership(node: &Node, around: &Around<'_>) -> Checked<Membership> {
    let mut found = Membership::default();
    for entry in node.entries("a network")? {
        is_own(
            entry,
            &keys::PLACE,
            &keys::PLACE_PASSED,
            "a service's network",
        )?;
        match entry.key.as_str() {
            "aliases" => {
                for item in entry.value.items("aliases")? {
                    found
                        .aliases
                        .push((text(item, "an alias", around.variables)?, item.line));
                }
            }
            key @ ("ipv4_address" | "ipv6_address") => {
                let said = text(&entry.value, key, around.variables)?;
                let address: Option<IpAddr> = said.parse().ok();
                let fits = address.filter(|a| a.is_ipv4() == (key == "ipv4_address"));
                let wrong = || at(entry.value.line, format!("{} is no {key}", shown(&said)));
                found.addresses.push(fits.ok_or_else(wrong)?);
            }
            "mac_address" => found.mac = Some(mac(&entry.value, around)?),
            _ => {}
        }
    }
    Ok(found)
}

fn mac(node: &Node, around: &Around<'_>) -> Checked<String> {
    let said = text(node, "mac_address", around.variables)?;
    value::mac(&said).map_err(|e| at(node.line, e.message))
}

fn label_maps(value: &str, line: usize) -> Checked<Vec<ImportMap>> {
    let each = value
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty());
    each.map(|text| {
        let (proto, listen, ports, target_ports) = label::map_of(text).ok_or_else(|| {
            at(
                line,
                format!("{} is no port map: {}=udp/5300:53", shown(text), label::MAP),
            )
        })?;
        Ok(ImportMap {
            proto,
            listen,
            ports,
            target_ports,
            by_engine: false,
        })
    })
    .collect()
}

/// Refuses several containers of one service: they would share its name, address and ports.
fn one(scale: Option<&Entry>, deploy: Option<&Entry>, around: &Around<'_>) -> Checked<()> {
    let replicas = deploy.map(|e| e.value.entries("deploy")).transpose()?;
    let replicas = replicas.and_then(|all| all.iter().find(|e| e.key == "replicas"));
    for entry in scale.into_iter().chain(replicas) {
        let count = text(&entry.value, &entry.key, around.variables)?;
        if !matches!(count.as_str(), "0" | "1") {
            let message = format!(
                "{}: {} makes several containers; each workload is a service of its own",
                entry.key,
                shown(&count)
            );
            return Err(at(entry.line, message));
        }
    }
    Ok(())
}
