//! UPnP-IGD: a search on the local network, a description over HTTP, questions in SOAP.
//!
//! Only the gateway of a default route counts: it is searched for by its own address first, since many routers of one
//! network may answer the group, and a machine of that network may pretend to be one. Whoever it is, and whatever it says,
//! takes a bounded number of bytes, and time in proportion to them.
//!
//! | file | |
//! |---|---|
//! | `search` | the search, by datagrams |
//! | `place` | a page of a device, and the questions to it over HTTP |
//! | `service` | a service of its description, and actions in SOAP |
//! | `xml` | pure: the reader of both |

mod place;
mod search;
mod service;
mod xml;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(super) use search::{Believed, Search};
pub(super) use service::{Fault, Service};

use super::{Failure, Gateway, Granted, Port, Record, Transport, Why, is_public};

/// Where devices are searched for.
const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);
/// What is searched for; a device of a later version answers to the first one as well.
const WANTED: [&str; 3] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// The services that open ports.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// How long the router may take to say whose a port is.
const LOOK: Duration = Duration::from_secs(2);
/// The error of an action that failed for no reason that is told.
const ACTION_FAILED: u16 = 501;
/// That its owner does not permit the action.
const NOT_AUTHORIZED: u16 = 606;
/// That there is no such mapping.
const NONE_SUCH: u16 = 714;
/// That another machine has the port.
const CONFLICT: u16 = 718;
/// That ports are opened for ever only.
const PERMANENT_ONLY: u16 = 725;
/// What the router shows its owner of who asked.
const DESCRIPTION: &str = "byway";

/// The router, once it was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Upnp {
    found: Option<Device>,
}

/// A router that opens ports.
#[derive(Debug, Clone)]
struct Device {
    gateway: Gateway,
    service: Service,
}

impl Upnp {
    /// The gateway, where it speaks UPnP.
    async fn device(&mut self, gateway: Gateway) -> Result<&Device, Failure> {
        if self.found.as_ref().is_none_or(|it| it.gateway != gateway) {
            self.found = search(gateway).await;
        }
        self.found.as_ref().ok_or(Failure::Silent)
    }

    /// Opens a port, or keeps it open.
    pub(super) async fn map(&mut self, record: &Record, lease: u32) -> Result<Granted, Failure> {
        let outcome = self.try_map(record, lease).await;
        if matches!(outcome, Err(Failure::Silent | Failure::Lost)) {
            // It may have begun anew, with its services elsewhere.
            self.found = None;
        }
        outcome
    }

    async fn try_map(&mut self, record: &Record, lease: u32) -> Result<Granted, Failure> {
        let local = SocketAddr::new(record.gateway.local, record.port.number);
        let device = self.device(record.gateway).await?;
        // Some routers overwrite what another machine has.
        let owner = device.owner(record.port, record.external).await;
        if owner.is_some_and(|owner| owner != local) {
            return Err(Failure::InUse);
        }
        if let Err(failure) = device.add(record, lease).await {
            return Err(device.explained(failure).await);
        }
        // It has none while its line is down. The port is open, and is looked at again when it is renewed.
        let ip = device.external_ip().await;
        Ok(Granted {
            external: SocketAddr::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED).into(), record.external),
            lease,
            epoch: None,
        })
    }

    /// Closes a port, unless it is another machine's by now.
    pub(super) async fn remove(&mut self, record: &Record) -> Result<(), Failure> {
        let local = SocketAddr::new(record.gateway.local, record.port.number);
        let device = self.device(record.gateway).await?;
        let owner = device.owner(record.port, record.external).await;
        if owner.is_some_and(|owner| owner != local) {
            return Ok(());
        }
        device.delete(record.port, record.external).await
    }
}

impl Device {
    async fn act(
        &self,
        action: &str,
        arguments: &[(&str, String)],
    ) -> Result<service::Results, Fault> {
        self.service
            .act(self.gateway.local, action, arguments)
            .await
    }

    async fn add(&self, record: &Record, lease: u32) -> Result<(), Failure> {
        let [host, external, protocol] = named(record.port, record.external);
        let arguments = [
            host,
            external,
            protocol,
            ("NewInternalPort", record.port.number.to_string()),
            ("NewInternalClient", record.gateway.local.to_string()),
            ("NewEnabled", "1".to_owned()),
            ("NewPortMappingDescription", DESCRIPTION.to_owned()),
            ("NewLeaseDuration", lease.to_string()),
        ];
        let added = self.act("AddPortMapping", &arguments).await;
        added.map(|_| ()).map_err(failure)
    }

    async fn delete(&self, port: Port, external: u16) -> Result<(), Failure> {
        let arguments = named(port, external);
        match self.act("DeletePortMapping", &arguments).await {
            Ok(_) | Err(Fault::Code(NONE_SUCH)) => Ok(()),
            Err(fault) => Err(failure(fault)),
        }
    }

    /// Its address outside; none where it has none, or does not say.
    async fn external_ip(&self) -> Option<Ipv4Addr> {
        let results = self.act("GetExternalIPAddress", &[]).await.ok()?;
        results.get("NewExternalIPAddress")
    }

    /// The machine that an external port leads to; none where nobody has it, or the router does not say.
    async fn owner(&self, port: Port, external: u16) -> Option<SocketAddr> {
        let arguments = named(port, external);
        let look = self.act("GetSpecificPortMappingEntry", &arguments);
        let entry = tokio::time::timeout(LOOK, look).await.ok()?.ok()?;
        let ip: Ipv4Addr = entry.get("NewInternalClient")?;
        Some(SocketAddr::new(ip.into(), entry.get("NewInternalPort")?))
    }

    /// The reason of a refusal without any: routers that are behind another one open nothing, and do not say why.
    async fn explained(&self, failure: Failure) -> Failure {
        if failure != Failure::Refused(Why::Code(ACTION_FAILED)) {
            return failure;
        }
        match self.external_ip().await {
            Some(ip) if is_public(ip.into()) => failure,
            Some(ip) if !ip.is_unspecified() => Failure::Refused(Why::Inside(ip.into())),
            _ => Failure::Refused(Why::NoAddress),
        }
    }
}

/// How an external port is named, from wherever it is reached.
fn named(port: Port, external: u16) -> [(&'static str, String); 3] {
    let protocol = match port.transport {
        Transport::Udp => "UDP",
        Transport::Tcp => "TCP",
    };
    [
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", external.to_string()),
        ("NewProtocol", protocol.to_owned()),
    ]
}

/// Looks for the gateway, at its own address and then by the group.
async fn search(gateway: Gateway) -> Option<Device> {
    let own = SocketAddr::new(gateway.address, GROUP.port());
    for to in [own, GROUP] {
        let search = Search::begin(gateway.local, 0, &[to], &WANTED).await;
        let search = search.inspect_err(|error| tracing::debug!(%error, "UPnP"));
        let believed = Believed::Router(gateway.address);
        if let Some(service) = search.ok()?.service(&SERVICES, believed).await {
            return Some(Device { gateway, service });
        }
    }
    None
}

fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Lost => Failure::Lost,
        Fault::Code(NOT_AUTHORIZED) => Failure::Refused(Why::NotAuthorized),
        Fault::Code(CONFLICT) => Failure::InUse,
        Fault::Code(PERMANENT_ONLY) => Failure::PermanentOnly,
        Fault::Code(code) => Failure::Refused(Why::Code(code)),
    }
}

/// The ways from bytes to what is believed of them, without sockets, for cargo-fuzz.
#[cfg(any(fuzzing, test))]
pub mod fuzz {
    use super::place::Place;
    use super::{SERVICES, search, service, xml};

    /// What such a text has at most; none where it is not read.
    #[derive(Debug, Default)]
    pub struct Size {
        /// Elements.
        pub elements: usize,
        /// Those inside each other.
        pub depth: usize,
        /// Bytes of all that is inside of elements.
        pub text: usize,
    }

    /// Reads XML as of a router.
    pub fn size(bytes: &[u8]) -> Option<Size> {
        let mut size = Size::default();
        let read = xml::read(bytes, |path, inside| {
            size.elements += 1;
            size.depth = size.depth.max(path.len());
            size.text += inside.len();
        });
        read.is_ok().then_some(size)
    }

    /// Reads the answer to a search: the URL where the device describes itself that is asked.
    pub fn location(bytes: &[u8]) -> Option<String> {
        let url = search::location(bytes)?;
        Place::read(&url, 0).map(|_| url)
    }

    /// Reads a description: whether it has a service that opens ports.
    pub fn has_service(bytes: &[u8]) -> bool {
        let page = Place::read("http://192.0.2.1:5000/root.xml", 0);
        let of = |page: Place| service::described(bytes, &page, &SERVICES).ok().flatten();
        page.and_then(of).is_some()
    }

    /// Reads an answer to a question for an owner: the port, or the number of the error.
    pub fn answer(bytes: &[u8]) -> Option<Result<u16, u16>> {
        match service::answered(bytes, "GetSpecificPortMappingEntry").ok()? {
            Ok(results) => results.get("NewInternalPort").map(Ok),
            Err(service::Fault::Code(code)) => Some(Err(code)),
            Err(service::Fault::Lost) => None,
        }
    }
}

#[cfg(test)]
mod tests;
