//! Docker's plugin protocol, version 1: paths and JSON to [`Call`]s, [`Reply`]s to JSON.
//!
//! PURE. Engines 20.10 to 29 speak the same words; later ones add fields, which are passed over. Errors of the network
//! driver are `{"Err": …}`, those of the IPAM driver `{"Error": …}`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::types::mac;
use crate::text;

/// Key of the engine's map of options that holds those of `-o`.
const GENERIC: &str = "com.docker.network.generic";
/// Key of an address request that says what it is for.
const ADDRESS_TYPE: &str = "RequestAddressType";
/// The address of the network's gateway is asked for.
const GATEWAY: &str = "com.docker.network.gateway";
/// Key by which engines from 29 on tell the name of the container that an address is for.
const ENDPOINT_NAME: &str = "com.docker.network.endpoint.name";
/// Key of a link's size, which is the subnet's to say.
const MTU: &str = "com.docker.network.driver.mtu";
/// Longest ID or option that is taken, in bytes.
const LONGEST: usize = 255;

/// One thing that the engine asks of its drivers, and that this daemon has to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A pool of addresses, for a network that is made afterwards.
    RequestPool(PoolAsked),
    /// The pool is used no more.
    ReleasePool(String),
    /// An address of a pool.
    RequestAddress(Addresses),
    /// An address is used no more.
    ReleaseAddress {
        /// The pool's ID.
        pool: String,
        /// The address.
        address: IpAddr,
    },
    /// A network is made.
    CreateNetwork(Network),
    /// The network with that ID is gone.
    DeleteNetwork(String),
    /// A container is to have an interface in a network.
    CreateEndpoint(Endpoint),
    /// The endpoint with that ID is gone.
    DeleteEndpoint(String),
    /// The container's namespace is about to get the interface.
    Join(Join),
    /// The interface leaves the container's namespace.
    Leave(String),
}

/// A pool as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolAsked {
    /// The subnet, by `--ipam-opt subnet=`.
    pub subnet: Option<String>,
    /// The prefix, by `--subnet`.
    pub prefix: Option<IpNet>,
    /// Whether the pool of IPv6 is asked for: only for networks that were made with `--ipv6`.
    pub ipv6: bool,
}

/// An address as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The pool's ID.
    pub pool: String,
    /// The address, by `--ip` or `--ip6`.
    pub wanted: Option<IpAddr>,
    /// Whether it is the network's gateway.
    pub gateway: bool,
    /// Name of the container, where the engine tells it.
    pub name: Option<String>,
}

/// A network that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The engine's ID of it.
    pub id: String,
    /// The subnet, by `-o subnet=`.
    pub subnet: Option<String>,
    /// The pools that the IPAM driver gave.
    pub pools: Vec<IpNet>,
}

/// An interface that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The engine's ID of the network.
    pub network: String,
    /// The engine's ID of it.
    pub id: String,
    /// Its addresses, those that the IPAM driver gave.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address, by `--mac-address`.
    pub mac: Option<[u8; 6]>,
}

/// A container's namespace takes an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The engine's ID of the network.
    pub network: String,
    /// The engine's ID of the endpoint.
    pub endpoint: String,
    /// Path of the namespace, which may not exist yet.
    pub sandbox: String,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// A pool.
    Pool(Pool),
    /// An address, which has its link for itself.
    Address(IpAddr),
    /// The hardware address of an endpoint that was asked for without one.
    Endpoint(Option<[u8; 6]>),
    /// The interface for the container, and its routes.
    Joined(Joined),
}

/// A pool of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The ID by which it is named from now on.
    pub id: String,
    /// Its prefix.
    pub prefix: IpNet,
}

/// What the engine does in the container's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Name of the link in the host's namespace that it moves.
    pub link: String,
    /// The routes that it makes there.
    pub routes: Vec<Route>,
}

/// A route in a container's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads to.
    pub to: IpNet,
    /// The next hop; none where that is on the link.
    pub via: Option<IpAddr>,
}

/// What a request of the engine comes to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    /// It is answered the same always.
    Known(Value),
    /// It is to be carried out.
    Call(Call),
    /// It says something that cannot be done, or cannot be read.
    Wrong(String),
    /// No method of these drivers.
    Unknown,
}

/// Which driver a path belongs to: they spell errors differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    Network,
    Ipam,
}

impl Driver {
    pub(super) fn of(path: &str) -> Driver {
        if path.starts_with("/IpamDriver.") {
            Driver::Ipam
        } else {
            Driver::Network
        }
    }

    /// An error, as this driver's answers have it.
    pub(super) fn error(self, message: &str) -> Value {
        match self {
            Driver::Network => json!({ "Err": message }),
            Driver::Ipam => json!({ "Error": message }),
        }
    }
}

/// Reads one request.
pub(super) fn read(path: &str, body: &[u8]) -> Asked {
    let none = || Asked::Known(json!({}));
    match path {
        "/Plugin.Activate" => Asked::Known(json!({"Implements": ["NetworkDriver", "IpamDriver"]})),
        "/NetworkDriver.GetCapabilities" => {
            Asked::Known(json!({"Scope": "local", "ConnectivityScope": "global"}))
        }
        "/NetworkDriver.EndpointOperInfo" => Asked::Known(json!({"Value": {}})),
        // Docker publishes ports by a bridge of its own.
        "/NetworkDriver.DiscoverNew"
        | "/NetworkDriver.DiscoverDelete"
        | "/NetworkDriver.ProgramExternalConnectivity"
        | "/NetworkDriver.RevokeExternalConnectivity" => none(),
        "/NetworkDriver.AllocateNetwork" | "/NetworkDriver.FreeNetwork" => {
            Asked::Wrong("networks of a swarm are not made: make one on each host".to_owned())
        }
        "/IpamDriver.GetCapabilities" => {
            Asked::Known(json!({"RequiresMACAddress": false, "RequiresRequestReplay": false}))
        }
        // Both are one space: the engine does not compare the pools of a global one with its own networks, and would ask
        // for the same one again and again where they overlap.
        "/IpamDriver.GetDefaultAddressSpaces" => Asked::Known(
            json!({"LocalDefaultAddressSpace": "byway", "GlobalDefaultAddressSpace": "byway"}),
        ),
        _ => match call(path, body) {
            Some(Ok(call)) => Asked::Call(call),
            Some(Err(why)) => Asked::Wrong(why),
            None => Asked::Unknown,
        },
    }
}

/// The calls that are carried out. None: there is no such method.
fn call(path: &str, body: &[u8]) -> Option<Result<Call, String>> {
    Some(match path {
        "/IpamDriver.RequestPool" => parse(body).and_then(pool),
        "/IpamDriver.ReleasePool" => {
            parse::<PoolOnly>(body).and_then(|p| Ok(Call::ReleasePool(id(p.pool_id, "pool")?)))
        }
        "/IpamDriver.RequestAddress" => parse(body).and_then(address),
        "/IpamDriver.ReleaseAddress" => parse(body).and_then(released),
        "/NetworkDriver.CreateNetwork" => parse(body).and_then(network),
        "/NetworkDriver.DeleteNetwork" => parse::<Ids>(body)
            .and_then(|ids| Ok(Call::DeleteNetwork(id(ids.network_id, "network")?))),
        "/NetworkDriver.CreateEndpoint" => parse(body).and_then(endpoint),
        "/NetworkDriver.DeleteEndpoint" => parse::<Ids>(body)
            .and_then(|ids| Ok(Call::DeleteEndpoint(id(ids.endpoint_id, "endpoint")?))),
        "/NetworkDriver.Join" => parse(body).and_then(join),
        "/NetworkDriver.Leave" => {
            parse::<Ids>(body).and_then(|ids| Ok(Call::Leave(id(ids.endpoint_id, "endpoint")?)))
        }
        _ => return None,
    })
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct PoolRequest {
    pool: String,
    sub_pool: String,
    options: Option<BTreeMap<String, String>>,
    v6: bool,
}

#[derive(Deserialize)]
struct PoolOnly {
    #[serde(rename = "PoolID")]
    pool_id: String,
}

#[derive(Deserialize)]
struct AddressRequest {
    #[serde(rename = "PoolID")]
    pool_id: String,
    #[serde(rename = "Address", default)]
    address: String,
    #[serde(rename = "Options", default)]
    options: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Ids {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointID", default)]
    endpoint_id: String,
}

#[derive(Deserialize)]
struct NetworkRequest {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "Options", default)]
    options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data", default)]
    v4: Option<Vec<PoolData>>,
    #[serde(rename = "IPv6Data", default)]
    v6: Option<Vec<PoolData>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PoolData {
    #[serde(default)]
    pool: String,
}

#[derive(Deserialize)]
struct EndpointRequest {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "Interface", default)]
    interface: Option<Interface>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Interface {
    #[serde(rename = "Address")]
    v4: String,
    #[serde(rename = "AddressIPv6")]
    v6: String,
    #[serde(rename = "MacAddress")]
    mac: String,
}

#[derive(Deserialize)]
struct JoinRequest {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "SandboxKey", default)]
    sandbox_key: String,
}

fn parse<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("this call cannot be read: {error}"))
}

/// The engine's ID of something: letters, digits and a few signs, so that it fits into names and logs.
fn id(text: String, what: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:".contains(&b);
    if (1..=LONGEST).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err(format!("that is no ID of a {what}"))
    }
}

/// The option that names the subnet. Others are refused: what does nothing here was meant to do something.
fn subnet_of(options: &BTreeMap<String, String>, flag: &str) -> Result<Option<String>, String> {
    for (key, value) in options {
        // Keys of the engine's own.
        if key == "subnet" || (key.starts_with("com.docker.") && key != MTU) {
            continue;
        }
        return Err(format!(
            "there is no option {}={} here: {flag} subnet=NAME",
            short(key),
            short(value)
        ));
    }
    match options.get("subnet").map(String::as_str) {
        Some("") => Err(format!("{flag} subnet=NAME needs the name of a subnet")),
        Some(name) if name.len() > LONGEST => Err("that is no name of a subnet".to_owned()),
        other => Ok(other.map(str::to_owned)),
    }
}

/// A text of the engine's for a sentence.
fn short(text: &str) -> String {
    text::short(text, 60)
}

fn pool(asked: PoolRequest) -> Result<Call, String> {
    let prefix = match asked.pool.as_str() {
        // "Unspecified" means whatever there is.
        "" | "0.0.0.0/0" | "::/0" => None,
        text => Some(
            text.parse::<IpNet>()
                .map_err(|_| format!("{} is no prefix", short(text)))?,
        ),
    };
    if !asked.sub_pool.is_empty() {
        return Err(
            "--ip-range is not taken: a host gives out the addresses that are leased to it"
                .to_owned(),
        );
    }
    Ok(Call::RequestPool(PoolAsked {
        subnet: subnet_of(&asked.options.unwrap_or_default(), "--ipam-opt")?,
        prefix,
        ipv6: asked.v6,
    }))
}

fn address(asked: AddressRequest) -> Result<Call, String> {
    let options = asked.options.unwrap_or_default();
    let wanted = match asked.address.as_str() {
        "" => None,
        text => Some(ip(text)?),
    };
    Ok(Call::RequestAddress(Addresses {
        pool: id(asked.pool_id, "pool")?,
        wanted,
        gateway: options.get(ADDRESS_TYPE).is_some_and(|t| t == GATEWAY),
        name: options.get(ENDPOINT_NAME).cloned(),
    }))
}

fn released(asked: AddressRequest) -> Result<Call, String> {
    Ok(Call::ReleaseAddress {
        pool: id(asked.pool_id, "pool")?,
        address: ip(&asked.address)?,
    })
}

fn network(asked: NetworkRequest) -> Result<Call, String> {
    let options = asked.options.unwrap_or_default();
    let mut own = BTreeMap::new();
    if let Some(Value::Object(generic)) = options.get(GENERIC) {
        for (key, value) in generic {
            let text = value.as_str().unwrap_or_default();
            own.insert(key.clone(), text.to_owned());
        }
    }
    let data = asked.v4.into_iter().chain(asked.v6).flatten();
    let pools = data
        .filter(|d| !d.pool.is_empty())
        .map(|d| {
            d.pool
                .parse::<IpNet>()
                .map_err(|_| format!("{} is no prefix", short(&d.pool)))
        })
        .collect::<Result<_, _>>()?;
    Ok(Call::CreateNetwork(Network {
        id: id(asked.network_id, "network")?,
        subnet: subnet_of(&own, "-o")?,
        pools,
    }))
}

fn endpoint(asked: EndpointRequest) -> Result<Call, String> {
    let interface = asked.interface.unwrap_or_default();
    let mut addresses = Vec::new();
    for text in [&interface.v4, &interface.v6] {
        if !text.is_empty() {
            addresses.push(ip(text)?);
        }
    }
    let mac = match interface.mac.as_str() {
        "" => None,
        text => Some(
            mac::unicast(text)
                .ok_or_else(|| format!("{} is no unicast hardware address", short(text)))?,
        ),
    };
    Ok(Call::CreateEndpoint(Endpoint {
        network: id(asked.network_id, "network")?,
        id: id(asked.endpoint_id, "endpoint")?,
        addresses,
        mac,
    }))
}

fn join(asked: JoinRequest) -> Result<Call, String> {
    Ok(Call::Join(Join {
        network: id(asked.network_id, "network")?,
        endpoint: id(asked.endpoint_id, "endpoint")?,
        sandbox: id(asked.sandbox_key, "sandbox")?,
    }))
}

/// An address, with or without the length of a prefix behind it.
fn ip(text: &str) -> Result<IpAddr, String> {
    text.split('/')
        .next()
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| format!("{} is no address", short(text)))
}

/// Writes an answer.
pub(super) fn write(reply: &Reply) -> Value {
    match reply {
        Reply::Done => json!({}),
        Reply::Pool(pool) => {
            json!({"PoolID": pool.id, "Pool": pool.prefix.to_string(), "Data": {}})
        }
        // For itself: with the length of the pool's prefix the kernel would look for everybody on the link.
        Reply::Address(address) => {
            json!({"Address": IpNet::from(*address).to_string(), "Data": {}})
        }
        Reply::Endpoint(None) => json!({"Interface": {}}),
        Reply::Endpoint(Some(mac)) => {
            let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"Interface": {"MacAddress": text.join(":")}})
        }
        Reply::Joined(joined) => json!({
            "InterfaceName": {"SrcName": joined.link, "DstPrefix": "eth"},
            "StaticRoutes": joined.routes.iter().map(route).collect::<Vec<_>>(),
        }),
    }
}

/// Routes by a next hop are type 0, those on the link itself type 1.
fn route(route: &Route) -> Value {
    match route.via {
        Some(via) => {
            json!({"Destination": route.to.to_string(), "RouteType": 0, "NextHop": via.to_string()})
        }
        None => json!({"Destination": route.to.to_string(), "RouteType": 1, "NextHop": ""}),
    }
}
