//! Port maps of this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::own::Own;
use super::{Addition, done};
use crate::api::types::{Error, ErrorKind, Response};
use crate::model::error::{Code, Hint};
use crate::model::host::Proto;
use crate::model::id::Name;
use crate::model::local::Map;
use crate::model::members::{Subnet, printable};
use crate::model::ports::PortRange;
use crate::model::publish::{MAX_PORTS, endpoint};
use crate::node::Core;

/// A port map as it was asked for.
#[derive(Debug, Clone)]
pub struct NewMap {
    /// The map; where every address is meant, one of each family that it can have, under one name.
    pub maps: Vec<Map>,
    /// Whether nobody named it: one port on two addresses makes the same default twice.
    pub name_is_default: bool,
    /// Whether every address is meant: a family in which the target has no address is left out.
    pub everywhere: bool,
    /// The workload here that it leads to and goes with.
    pub workload: Option<Name>,
    /// The user who asks, where that one may change nothing but its own.
    pub own: Option<Own>,
}

fn usage(code: Code, message: String) -> Error {
    Error::new(ErrorKind::Usage, code, message)
}

/// Refuses a target or an allowed prefix of another family than the listening address.
fn check_family(listen: IpAddr, target: Option<IpAddr>, allow: &[IpNet]) -> Result<(), Error> {
    if let Some(target) = target.filter(|t| t.is_ipv4() != listen.is_ipv4()) {
        return Err(usage(
            Code::Family,
            format!("{listen} and {target} are of different families"),
        ));
    }
    let other = |p: &&IpNet| p.addr().is_ipv4() != listen.is_ipv4();
    if let Some(other) = allow.iter().find(other) {
        return Err(usage(
            Code::Family,
            format!("--allow {other} is not of the family of {listen}"),
        ));
    }
    Ok(())
}

/// Refuses ranges of which one is longer, and such as have more ports than a map may.
pub(super) fn check_count(ports: PortRange, target: PortRange) -> Result<(), Error> {
    if ports.count() != target.count() {
        let (here, there) = (ports.count(), target.count());
        let message = format!(
            "{ports} and {target} are not equally long: {here} ports here, {there} of the target"
        );
        return Err(usage(Code::PortRange, message));
    }
    if ports.count() > MAX_PORTS {
        let count = ports.count();
        let message = format!("{ports} has {count} ports, and a map may have {MAX_PORTS}");
        return Err(usage(Code::PortRange, message));
    }
    Ok(())
}

/// Checks a map's form and gives it a name.
///
/// # Errors
/// `E-PORT-RANGE` where there are more ports than a map may have, or not as many of the target; `E-FAMILY`: of the listening
/// address with the target's or with an allowed prefix.
pub fn prepare_map(
    proto: Proto,
    listen: Option<IpAddr>,
    ports: PortRange,
    target: String,
    target_ports: PortRange,
    name: Option<Name>,
    allow: Vec<IpNet>,
) -> Result<NewMap, Error> {
    check_count(ports, target_ports)?;
    let address = target.parse::<IpAddr>().ok();
    if let Some(listen) = listen {
        check_family(listen, address, &allow)?;
    }
    let default = Map::default_name(proto, listen, ports)?;
    let (name_is_default, everywhere) = (name.is_none(), listen.is_none());
    let name = name.unwrap_or(default);
    let every: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let at = |listen: IpAddr| {
        let allowed = allow
            .iter()
            .copied()
            .filter(|p| p.addr().is_ipv4() == listen.is_ipv4())
            .collect::<Vec<_>>();
        // Without a prefix of its family left it would be open to everyone.
        let fits = address.is_none_or(|a| a.is_ipv4() == listen.is_ipv4())
            && allowed.is_empty() == allow.is_empty();
        let (name, target) = (name.clone(), target.clone());
        fits.then_some(Map {
            name,
            proto,
            listen,
            ports,
            target,
            target_port: target_ports.first(),
            allow: allowed,
        })
    };
    let maps: Vec<Map> = match listen {
        Some(listen) => at(listen).into_iter().collect(),
        None => every.into_iter().filter_map(at).collect(),
    };
    if maps.is_empty() {
        return Err(usage(
            Code::Family,
            format!("{target} and the prefixes of --allow are of different families"),
        ));
    }
    Ok(NewMap {
        maps,
        name_is_default,
        everywhere,
        workload: None,
        own: None,
    })
}

/// The map of more ports that those of a key are a part of.
fn around(subnet: &Subnet, key: Option<(Proto, Option<IpAddr>, PortRange)>) -> Option<&Map> {
    let (proto, listen, ports) = key?;
    let here = |m: &&Map| listen.map_or(m.listen.is_unspecified(), |listen| listen == m.listen);
    let has = |m: &&Map| m.proto == proto && m.ports.shared_with(ports).is_some();
    subnet.local.maps.iter().find(|m| here(m) && has(m))
}

impl Core {
    /// `map add`; what is to be confirmed once the kernel has followed.
    ///
    /// # Errors
    /// See [`Subnet::map_add`](crate::model::members::Subnet::map_add).
    pub fn map_add(&mut self, text: &str, mut new: NewMap) -> Result<Addition, Error> {
        let mut subnet = self.state.edit(text)?;
        if let Some(own) = new.own {
            new.workload = Some(self.check_own_map(own, &subnet, &new)?);
        }
        let own = new
            .workload
            .as_ref()
            .map(|workload| self.own_target(&subnet, workload))
            .transpose()?;
        let others: Vec<Map> = self
            .state
            .subnets
            .values()
            .flat_map(|s| s.local.maps.iter().cloned())
            .collect();
        if let Some(name) = own
            .as_deref()
            .and_then(|own| subnet.imported_map(&new.maps, own))
        {
            let made = subnet.local.maps.iter().filter(|m| m.name == name).cloned();
            return Ok(Addition::of_maps(
                subnet.records.id,
                name.clone(),
                made.collect(),
            ));
        }
        let first = new.maps.first().map(|map| map.name.clone());
        let nothing = || Error::new(ErrorKind::Usage, Code::Family, "there is nothing to map");
        let mut name = first.ok_or_else(nothing)?;
        if new.name_is_default {
            name = name.free(|name| subnet.local.maps.iter().any(|m| m.name == *name));
        }
        let (mut made, mut without) = (Vec::new(), None);
        for map in new.maps {
            let map = Map {
                name: name.clone(),
                target: own.clone().unwrap_or(map.target),
                ..map
            };
            match subnet.map_add(&self.state.me.clone(), map.clone(), &others, self.now()) {
                Ok(()) => made.push(map),
                Err(error) if new.everywhere && error.code == Code::NoTarget => {
                    without = Some(error)
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(error) = without.filter(|_| made.is_empty()) {
            return Err(error.into());
        }
        if let Some(workload) = &new.workload {
            subnet.map_goes_with(workload, &name);
        }
        let id = subnet.records.id;
        self.save(subnet)?;
        Ok(Addition::of_maps(id, name, made))
    }

    /// A workload here as a map's target: below this member's name it is this workload's for ever, whoever else claims its
    /// name.
    fn own_target(&self, subnet: &Subnet, workload: &Name) -> Result<String, Error> {
        if !subnet.local.workloads.iter().any(|w| w.name == *workload) {
            let message = format!("no workload {workload} here in subnet {}", subnet.name());
            return Err(Error::new(ErrorKind::NotFound, Code::NoWorkload, message)
                .hint(Hint::ListWorkloads));
        }
        let resolved = subnet.resolve(self.now());
        let member = &subnet.myself(&self.state.me, &resolved)?.name;
        Ok(format!("{workload}.{member}"))
    }

    /// `map rm`, by name or by protocol and listening address; without an address what listens on every one.
    ///
    /// # Errors
    /// `E-NO-MAP`.
    pub fn map_rm(
        &mut self,
        text: &str,
        name: Option<&str>,
        key: Option<(Proto, Option<IpAddr>, PortRange)>,
        own: Option<Own>,
    ) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let theirs = own.map(|own| self.maps_of_user(own.user));
        let called = subnet.name().clone();
        let may = |m: &Map| {
            let of = |all: &Vec<(Name, Name)>| {
                all.iter()
                    .any(|(subnet, map)| *subnet == called && *map == m.name)
            };
            theirs.as_ref().is_none_or(of)
        };
        let matches = |m: &Map| match (name, key) {
            _ if !may(m) => false,
            (Some(name), _) => m.name.as_str().eq_ignore_ascii_case(name),
            (None, Some((proto, listen, ports))) => {
                let here = listen.map_or(m.listen.is_unspecified(), |listen| listen == m.listen);
                here && (m.proto, m.ports) == (proto, ports)
            }
            (None, None) => false,
        };
        let Some(gone) = subnet
            .local
            .maps
            .iter()
            .find(|m| matches(m))
            .map(|m| m.name.clone())
        else {
            let at = |a: Option<IpAddr>, ports: PortRange| {
                a.map_or_else(|| ports.to_string(), |a| endpoint(a, ports))
            };
            let what = name
                .map(printable)
                .or_else(|| key.map(|(p, a, ports)| format!("{p} {}", at(a, ports))))
                .unwrap_or_default();
            let error = Error::new(
                ErrorKind::NotFound,
                Code::NoMap,
                format!("subnet {} has no map {what} here", subnet.name()),
            );
            return Err(match around(&subnet, key) {
                Some(whole) => Error {
                    message: format!(
                        "{}: it is a part of map {}, {}",
                        error.message,
                        whole.name,
                        whole.listens_at()
                    ),
                    ..error
                }
                .hint(Hint::RemoveMap {
                    subnet: subnet.name().clone(),
                    map: whole.name.clone(),
                }),
                None => error.hint(Hint::ListMaps),
            });
        };
        subnet.map_remove(matches);
        self.save(subnet)?;
        Ok(done(format!("removed map {gone}"), true))
    }
}
