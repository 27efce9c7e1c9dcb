//! The configuration of a network, as a runtime gives it on standard input.
//!
//! Ours are `subnet` (needed), `socket` and `interface`. Keys that nobody knows are ignored, as the specification has it; what
//! a key that we know asks for is done or refused.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::environment::is_plain;
use super::failure::{CONFIG, DECODE, Failure, UNSUPPORTED, VERSION};
use crate::api::types::default_socket;
use crate::engine::program::daemon::bare_address;
use crate::engine::program::is_link;

/// Versions of the protocol that are spoken, the oldest first.
pub(super) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version that a configuration without one is of.
const UNVERSIONED: &str = "0.1.0";
/// Port mappings that one container may ask for.
const MAX_MAPPINGS: usize = 1024;

/// Which of [`VERSIONS`] a configuration is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Result<Version, Failure> {
        match text {
            "0.3.1" => Ok(Version::V0_3_1),
            "0.4.0" => Ok(Version::V0_4_0),
            "1.0.0" => Ok(Version::V1_0_0),
            "1.1.0" => Ok(Version::V1_1_0),
            other => {
                let shown: String = other.chars().take(40).collect();
                let message = format!("cniVersion {shown:?} is not spoken here");
                let details = format!("spoken are {}", VERSIONS.join(", "));
                Err(Failure::new(VERSION, message).details(details))
            }
        }
    }

    /// Refuses a command that a version does not have yet.
    pub(super) fn has(self, command: &str, since: Version) -> Result<(), Failure> {
        if self >= since {
            return Ok(());
        }
        let (own, since) = (self.as_str(), since.as_str());
        let message = format!("cniVersion {own} has no {command}, which came with {since}");
        Err(Failure::new(VERSION, message))
    }
}

/// What the runtime gave. What only some commands use is read when they do, so that `DEL` does not fail by it.
#[derive(Debug, Clone, Deserialize)]
struct Given {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    #[serde(default)]
    name: String,
    subnet: Option<String>,
    socket: Option<PathBuf>,
    interface: Option<String>,
    ipam: Option<Value>,
    dns: Option<Value>,
    args: Option<Value>,
    #[serde(rename = "runtimeConfig")]
    runtime: Option<Value>,
    #[serde(rename = "prevResult")]
    former: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
    /// What the key before was called until the specification was released.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<Valid>>,
}

/// An attachment that the runtime still knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Valid {
    #[serde(rename = "containerID")]
    pub container: String,
    pub ifname: String,
}

/// The configuration of one call.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub version: Version,
    /// Name of the network.
    pub name: String,
    pub socket: PathBuf,
    /// Name of the interface that is made, where it is not the one that the runtime names.
    pub interface: Option<String>,
    /// The result of the plugins before this one, or for `CHECK` and `DEL` of all of them.
    pub former: Option<Map<String, Value>>,
    /// For `GC`: what is still attached.
    pub valid: Option<Vec<Valid>>,
    given: Given,
}

/// What is asked for one container, from the capabilities that the configuration declares and from older ways to say it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wanted {
    #[serde(default)]
    pub port_mappings: Vec<Mapping>,
    #[serde(default)]
    ips: Vec<String>,
    pub mac: Option<String>,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    dns: Servers,
    /// Capabilities that nothing here does.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// A port of the machine that leads to one of the container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mapping {
    pub host_port: u16,
    pub container_port: u16,
    #[serde(default)]
    pub protocol: String,
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

/// The capability `dns`.
#[derive(Debug, Clone, Default, Deserialize)]
struct Servers {
    #[serde(default)]
    servers: Vec<String>,
    #[serde(default)]
    searches: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

/// How the container is to resolve names: what is empty here is ours to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Resolver {
    #[serde(default)]
    pub nameservers: Vec<String>,
    #[serde(default)]
    pub domain: String,
    #[serde(default)]
    pub search: Vec<String>,
    #[serde(default)]
    pub options: Vec<String>,
}

/// Reads the version alone, of any JSON object: what `VERSION` is given, and what an error is said in.
pub(super) fn version_of(bytes: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    Some(value.get("cniVersion")?.as_str()?.to_owned())
}

/// Reads one value of the configuration; `what` is its key.
fn read<T: serde::de::DeserializeOwned + Default>(
    value: Option<&Value>,
    what: &str,
) -> Result<T, Failure> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(T::default());
    };
    serde_json::from_value(value.clone())
        .map_err(|error| Failure::new(CONFIG, format!("{what}: {error}")))
}

impl Config {
    /// Reads what every command needs.
    ///
    /// # Errors
    /// What is no JSON, what has a value of another kind, a version that is not spoken, a name that no network may have.
    pub(super) fn parse(bytes: &[u8]) -> Result<Config, Failure> {
        let given: Given = serde_json::from_slice(bytes).map_err(|error| {
            let code = if error.is_data() { CONFIG } else { DECODE };
            Failure::new(code, format!("the network configuration: {error}"))
        })?;
        let version = Version::parse(given.version.as_deref().unwrap_or(UNVERSIONED))?;
        if given.name.len() > 255 || !is_plain(&given.name) {
            let shown: String = given.name.chars().take(80).collect();
            let message = format!("name: {shown:?} is no name of a network");
            return Err(Failure::new(CONFIG, message));
        }
        if let Some(interface) = given.interface.as_deref().filter(|name| !is_link(name)) {
            let shown: String = interface.chars().take(80).collect();
            let message = format!("interface: {shown:?} is no name of an interface");
            return Err(Failure::new(CONFIG, message));
        }
        if let Some(socket) = given.socket.as_deref().filter(|path| !path.is_absolute()) {
            let message = format!("socket: {} is no absolute path", socket.display());
            return Err(Failure::new(CONFIG, message));
        }
        Ok(Config {
            version,
            name: given.name.clone(),
            socket: given.socket.clone().unwrap_or_else(default_socket),
            interface: given.interface.clone(),
            former: match &given.former {
                None | Some(Value::Null) => None,
                Some(Value::Object(former)) => Some(former.clone()),
                Some(_) => return Err(Failure::new(CONFIG, "prevResult is no object")),
            },
            valid: given.valid.clone().or_else(|| given.attachments.clone()),
            given,
        })
    }

    /// The subnet that containers of this network are members' workloads of.
    ///
    /// # Errors
    /// None is named; `ipam` asks another plugin for addresses, or something of us that we do not do.
    pub(super) fn subnet(&self) -> Result<&str, Failure> {
        if let Some(ipam) = self.given.ipam.as_ref().filter(|ipam| !ipam.is_null()) {
            check_ipam(ipam)?;
        }
        match self.given.subnet.as_deref() {
            Some(subnet) if !subnet.is_empty() => Ok(subnet),
            _ => {
                let message = format!("network {}: the key subnet is missing", self.name);
                let details = "\"subnet\": \"NAME\", as byway subnet ls shows it";
                Err(Failure::new(CONFIG, message).details(details))
            }
        }
    }

    /// Name of the interface that is made in the container.
    pub(super) fn interface<'a>(&'a self, ifname: &'a str) -> &'a str {
        self.interface.as_deref().unwrap_or(ifname)
    }

    /// What is asked for a container.
    ///
    /// # Errors
    /// A capability is declared that nothing here does, or its value cannot be right.
    pub(super) fn wanted(&self) -> Result<Wanted, Failure> {
        let wanted: Wanted = read(self.given.runtime.as_ref(), "runtimeConfig")?;
        if let Some((key, value)) = wanted.other.iter().find(|(_, value)| !value.is_null()) {
            let shown: String = value.to_string().chars().take(200).collect();
            let message = format!("runtimeConfig.{key} is {shown}: this plugin does nothing of it");
            let failure = Failure::new(UNSUPPORTED, message);
            return Err(if key == "bandwidth" {
                failure.details("declare the capability at a plugin bandwidth behind this one")
            } else {
                failure.details("take the capability out of the configuration")
            });
        }
        if wanted.port_mappings.len() > MAX_MAPPINGS {
            let message = format!(
                "runtimeConfig.portMappings has {} entries: {MAX_MAPPINGS} at most",
                wanted.port_mappings.len()
            );
            return Err(Failure::new(CONFIG, message));
        }
        Ok(wanted)
    }

    /// The addresses that are asked for: by the capability, else by `args`, else by the variable `CNI_ARGS`.
    ///
    /// # Errors
    /// One of them is no address.
    pub(super) fn ips(
        &self,
        wanted: &Wanted,
        arg: Option<&String>,
    ) -> Result<Vec<IpAddr>, Failure> {
        let args = || {
            let ips = self.given.args.as_ref()?.get("cni")?.get("ips");
            ips.filter(|ips| !ips.is_null())
        };
        let texts: Vec<String> = match (&wanted.ips[..], args(), arg) {
            ([], None, None) => vec![],
            ([], None, Some(arg)) => vec![arg.clone()],
            ([], Some(ips), _) => read(Some(ips), "args.cni.ips")?,
            (ips, ..) => ips.to_vec(),
        };
        let address = |text: &String| {
            // The prefix length that some runtimes add is the subnet's matter.
            bare_address(text).ok_or_else(|| {
                let shown: String = text.chars().take(80).collect();
                Failure::new(CONFIG, format!("ips: {shown:?} is no address"))
            })
        };
        texts.iter().map(address).collect()
    }

    /// How the container is to resolve names, where the runtime or the configuration says so.
    ///
    /// # Errors
    /// What is said is of another kind.
    pub(super) fn resolver(&self, wanted: &Wanted) -> Result<Resolver, Failure> {
        let said: Resolver = read(self.given.dns.as_ref(), "dns")?;
        let or = |first: &[String], second: Vec<String>| match first {
            [] => second,
            first => first.to_vec(),
        };
        Ok(Resolver {
            nameservers: or(&wanted.dns.servers, said.nameservers),
            domain: said.domain,
            search: or(&wanted.dns.searches, said.search),
            options: or(&wanted.dns.options, said.options),
        })
    }
}

/// Addresses are the subnet's matter: leases are told to all members, and no other plugin can do that.
fn check_ipam(ipam: &Value) -> Result<(), Failure> {
    let Value::Object(ipam) = ipam else {
        return Err(Failure::new(CONFIG, "ipam is no object"));
    };
    for (key, value) in ipam {
        let shown: String = value.to_string().chars().take(200).collect();
        match (key.as_str(), value.as_str()) {
            ("type", Some("byway-cni" | "")) => {}
            ("type", _) => {
                let message = format!("ipam.type is {shown}: addresses are given by the subnet");
                return Err(Failure::new(CONFIG, message).details("leave ipam out"));
            }
            _ => {
                let message = format!("ipam.{key} is {shown}: addresses are given by the subnet");
                return Err(Failure::new(UNSUPPORTED, message).details("leave ipam out"));
            }
        }
    }
    Ok(())
}
