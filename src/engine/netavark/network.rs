//! A network as netavark and Podman keep it, and what they ask for one container of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Failure, rootless};
use crate::api::types::{PortRange, SubnetInfo};
use crate::engine::program::daemon::Publish;

/// Port mappings that one container may ask for.
const MAX_MAPPINGS: usize = 1024;
/// The IPAM driver with which Podman picks no addresses.
const NO_IPAM: &str = "none";

/// What is read of a network. Fields that later versions add are passed over.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Network {
    pub name: String,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    ipam_options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    ipv6_enabled: bool,
    #[serde(default)]
    network_interface: Option<String>,
    #[serde(default)]
    subnets: Option<Vec<Pool>>,
    #[serde(default)]
    routes: Option<Vec<Value>>,
    #[serde(default)]
    network_dns_servers: Option<Vec<Value>>,
}

/// A pool of a network.
#[derive(Debug, Clone, Deserialize)]
struct Pool {
    subnet: IpNet,
    #[serde(default)]
    gateway: Option<Value>,
    #[serde(default)]
    lease_range: Option<Value>,
}

/// One container that is to be in a network, or is not any more.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Container {
    #[serde(rename = "container_id")]
    pub id: String,
    #[serde(rename = "container_name", default)]
    pub name: String,
    #[serde(default)]
    port_mappings: Option<Vec<Mapping>>,
    pub network: Network,
    #[serde(rename = "network_options")]
    pub wanted: Wanted,
}

/// What the container is to have in this network.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Wanted {
    #[serde(rename = "interface_name")]
    pub interface: String,
    #[serde(default)]
    aliases: Option<Vec<String>>,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    pub static_mac: Option<String>,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

/// Ports of this machine that lead to as many of the container.
#[derive(Debug, Clone, Deserialize)]
struct Mapping {
    container_port: u16,
    #[serde(default)]
    host_ip: String,
    #[serde(default)]
    host_port: u16,
    /// One or more with commas between them; TCP where it is empty.
    #[serde(default)]
    protocol: String,
    /// How many ports; 0 means one.
    #[serde(default)]
    range: u16,
}

/// Reads what came on standard input.
pub(super) fn read<T: serde::de::DeserializeOwned>(input: &[u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(input).map_err(|error| Failure::new(format!("{what}: {error}")))
}

/// A text of somebody else's, cut to what fits on a line.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("{short:?}")
}

/// The first option that is set but means nothing here.
fn other<'a>(
    options: Option<&'a BTreeMap<String, String>>,
    known: &[&str],
) -> Option<(&'a String, &'a String)> {
    let mut all = options.into_iter().flatten();
    all.find(|(key, _)| !known.contains(&key.as_str()))
}

/// An option of `podman network create` asks for what is the subnet's to say.
fn nothing(option: &str, subnet: &SubnetInfo, why: &str) -> Failure {
    let name = &subnet.name;
    Failure::new(format!("{option} means nothing for subnet {name}: {why}"))
}

impl Network {
    fn option(&self, key: &str) -> Option<&str> {
        self.options.as_ref()?.get(key).map(String::as_str)
    }

    /// The daemon's socket.
    ///
    /// # Errors
    /// The option `socket` is no absolute path.
    pub(super) fn socket(&self) -> Result<PathBuf, Failure> {
        match self.option("socket") {
            None => Ok(rootless::socket()),
            Some(path) if path.starts_with('/') => Ok(path.into()),
            Some(path) => {
                let message = format!("option socket: {} is no absolute path", shown(path));
                Err(Failure::new(message))
            }
        }
    }

    /// The subnet that containers of this network are workloads of.
    ///
    /// # Errors
    /// None is named, or an option that does nothing here.
    pub(super) fn subnet(&self) -> Result<&str, Failure> {
        if let Some((key, value)) = other(self.options.as_ref(), &["subnet", "socket"]) {
            let (key, value) = (shown(key), shown(value));
            let message =
                format!("there is no option {key} (here {value}): -o subnet=NAME, -o socket=PATH");
            return Err(Failure::new(message));
        }
        match self.option("subnet") {
            Some(subnet) if !subnet.is_empty() => Ok(subnet),
            _ => Err(Failure::new(format!(
                "network {} names no subnet: -o subnet=NAME, as byway subnet ls shows it",
                self.name
            ))),
        }
    }

    /// Refuses what the subnet decides, where something else is asked for.
    pub(super) fn check(&self, subnet: &SubnetInfo) -> Result<(), Failure> {
        let no = |option: &str, why: &str| Err(nothing(option, subnet, why));
        let ipam = self.ipam_options.as_ref();
        let own = ipam.and_then(|all| all.get("driver"));
        if own.is_some_and(|driver| !["", NO_IPAM].contains(&driver.as_str())) {
            return no("--ipam-driver", "it gives the addresses itself");
        }
        if let Some((key, _)) = other(ipam, &["driver"]) {
            return no(
                &format!("the IPAM option {}", shown(key)),
                "it gives the addresses itself",
            );
        }
        if self
            .network_interface
            .as_ref()
            .is_some_and(|name| !name.is_empty())
        {
            return no(
                "--interface-name",
                "links of this machine get their names from byway",
            );
        }
        if self.routes.as_ref().is_some_and(|all| !all.is_empty()) {
            return no("--route", "its containers have the routes of the subnet");
        }
        if self
            .network_dns_servers
            .as_ref()
            .is_some_and(|all| !all.is_empty())
        {
            return no(
                "--dns",
                "names are resolved by byway, which asks this machine's servers for others",
            );
        }
        if self.ipv6_enabled && subnet.cidr6.is_none() {
            return no("--ipv6", "it has no pool of IPv6");
        }
        self.check_pools(subnet)
    }

    /// Refuses pools that are not the subnet's own, whole.
    fn check_pools(&self, subnet: &SubnetInfo) -> Result<(), Failure> {
        for pool in self.subnets.iter().flatten() {
            if !pools(subnet).any(|own| own == pool.subnet) {
                let pool = pool.subnet;
                let own: Vec<String> = pools(subnet).map(|own| own.to_string()).collect();
                let message = format!(
                    "subnet {} has {} and not {pool}",
                    subnet.name,
                    own.join(", ")
                );
                return Err(Failure::new(format!("{message}: leave --subnet out")));
            }
            if pool.gateway.is_some() {
                return Err(nothing(
                    "--gateway",
                    subnet,
                    "each machine has an address of its own",
                ));
            }
            if pool.lease_range.is_some() {
                return Err(nothing(
                    "--ip-range",
                    subnet,
                    "this machine's leases say which addresses it gives",
                ));
            }
        }
        Ok(())
    }
}

/// The pools of a subnet.
fn pools(subnet: &SubnetInfo) -> impl Iterator<Item = IpNet> {
    let v4 = subnet.cidr4.map(IpNet::V4);
    v4.into_iter().chain(subnet.cidr6.map(IpNet::V6))
}

/// The network as Podman is to keep it: what came, with the pools of the subnet. Name, ID and driver have to stay.
pub(super) fn completed(mut given: Map<String, Value>, subnet: &SubnetInfo) -> Value {
    let pools: Vec<Value> = pools(subnet)
        .map(|pool| json!({"subnet": pool.to_string()}))
        .collect();
    given.insert("subnets".into(), pools.into());
    given.insert("ipv6_enabled".into(), subnet.cidr6.is_some().into());
    given.insert("dns_enabled".into(), false.into());
    given.insert("ipam_options".into(), json!({"driver": NO_IPAM}));
    Value::Object(given)
}

/// Digits of an ID by which Podman also calls a container.
const SHORT_ID: usize = 12;

impl Container {
    /// The further names that are worth telling to others. Podman gives every container the beginning of its ID as one,
    /// and often its own name.
    pub(super) fn aliases(&self) -> Vec<String> {
        let all = self.wanted.aliases.iter().flatten();
        let own = |alias: &&String| {
            let short = alias.len() >= SHORT_ID && self.id.starts_with(alias.as_str());
            short || alias.eq_ignore_ascii_case(&self.name)
        };
        let mut kept: Vec<String> = Vec::new();
        for alias in all.filter(|alias| !own(alias)) {
            if !kept.iter().any(|known| known.eq_ignore_ascii_case(alias)) {
                kept.push(alias.clone());
            }
        }
        kept
    }

    pub(super) fn ips(&self) -> Vec<IpAddr> {
        self.wanted.static_ips.clone().unwrap_or_default()
    }

    /// The ports to map, all of them looked at before anything is attached.
    ///
    /// # Errors
    /// A protocol or a port that cannot be mapped, or an option for this container, of which there is none.
    pub(super) fn ports(&self) -> Result<Vec<Publish>, Failure> {
        if let Some((key, value)) = other(self.wanted.options.as_ref(), &[]) {
            let (key, value) = (shown(key), shown(value));
            let message = format!("containers have no option {key} (here {value}) in this network");
            return Err(Failure::new(message));
        }
        let all = self.port_mappings.as_deref().unwrap_or_default();
        if all.len() > MAX_MAPPINGS {
            let message = format!("{} port mappings: {MAX_MAPPINGS} at most", all.len());
            return Err(Failure::new(message));
        }
        let mut ports = Vec::new();
        for mapping in all {
            ports.extend(mapping.publish()?);
        }
        Ok(ports)
    }
}

impl Mapping {
    /// One map for each protocol.
    fn publish(&self) -> Result<Vec<Publish>, Failure> {
        let listen = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Failure::new(format!("port mappings: {} is no address", shown(text)))
            })?),
        };
        let range = |first: u16| {
            let more = self.range.saturating_sub(1);
            first
                .checked_add(more)
                .and_then(|last| PortRange::new(first, last))
        };
        let (host, container) = (self.host_port, self.container_port);
        let (Some(ports), Some(target_ports)) = (range(host), range(container)) else {
            let many = self.range.max(1);
            let message =
                format!("port mappings: {many} from {host} to {container}: a port is 1 to 65535");
            return Err(Failure::new(message));
        };
        let protocols = if self.protocol.is_empty() {
            "tcp"
        } else {
            &self.protocol
        };
        protocols
            .split(',')
            .map(|proto| match proto.to_ascii_lowercase() {
                proto if ["tcp", "udp"].contains(&proto.as_str()) => Ok(Publish {
                    proto,
                    listen,
                    ports,
                    target_ports,
                }),
                _ => Err(Failure::new(format!(
                    "port mappings: the protocol is {}: tcp and udp are mapped",
                    shown(proto)
                ))),
            })
            .collect()
    }
}
