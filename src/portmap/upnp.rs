//! UPnP-IGD: a search on the local network, a description over HTTP, questions in SOAP, by igd-next.
//!
//! igd-next takes a description only from the host that answered the search, follows no redirect, and reads 1 MiB at most.
//! Here only the gateway of a default route counts: it is searched for by its own address first, since many routers of one
//! network may answer the group, and a machine of that network may pretend to be one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use igd_next::aio::Gateway as Device;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{
    AddPortError, GetGenericPortMappingEntryError, PortMappingProtocol, RemovePortError,
    RequestError, SearchOptions,
};

use super::{Failure, Gateway, Granted, Port, Record, Transport, Why, is_public};

/// How long the gateway may take to answer a search, and to describe itself.
const SEARCH: Duration = Duration::from_secs(2);
/// Where devices are searched for.
const GROUP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250)), 1900);
/// The table of ports is looked through so far for those of other machines.
const LOOKED_THROUGH: u32 = 64;
/// And for so long.
const LOOK: Duration = Duration::from_secs(2);
/// The error of an action that failed for no reason that is told.
const ACTION_FAILED: u16 = 501;
/// What the router shows its owner of who asked.
const DESCRIPTION: &str = "byway";

/// The router, once it was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Upnp {
    found: Option<(Gateway, Device<Tokio>)>,
}

impl Upnp {
    /// The gateway, where it speaks UPnP.
    async fn device(&mut self, gateway: Gateway) -> Result<&Device<Tokio>, Failure> {
        if self.found.as_ref().is_none_or(|(at, _)| *at != gateway) {
            self.found = None;
            let device = search(gateway).await.ok_or(Failure::Silent)?;
            self.found = Some((gateway, device));
        }
        let found = self.found.as_ref();
        found.map(|(_, device)| device).ok_or(Failure::Silent)
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
        let (port, external) = (record.port, record.external);
        let local = SocketAddr::new(record.gateway.local, port.number);
        let device = self.device(record.gateway).await?;
        // Some routers overwrite what another machine has.
        if let Some(owner) = owner(device, port.transport, external).await
            && owner != local
        {
            return Err(Failure::InUse);
        }
        let transport = transport(port);
        let asked = device.add_port(transport, external, local, lease, DESCRIPTION);
        if let Err(error) = asked.await {
            return Err(explained(device, of_add(&error)).await);
        }
        let ip = match device.get_external_ip().await {
            Ok(IpAddr::V4(ip)) => ip,
            // It has none while its line is down. The port is open, and is looked at again when it is renewed.
            Ok(IpAddr::V6(_)) | Err(_) => Ipv4Addr::UNSPECIFIED,
        };
        Ok(Granted {
            external: SocketAddr::new(ip.into(), external),
            lease,
            epoch: None,
        })
    }

    /// Closes a port, unless it is another machine's by now.
    pub(super) async fn remove(&mut self, record: &Record) -> Result<(), Failure> {
        let local = SocketAddr::new(record.gateway.local, record.port.number);
        let device = self.device(record.gateway).await?;
        let owner = owner(device, record.port.transport, record.external).await;
        if owner.is_some_and(|owner| owner != local) {
            return Ok(());
        }
        let removed = device.remove_port(transport(record.port), record.external);
        match removed.await {
            Ok(()) | Err(RemovePortError::NoSuchPortMapping) => Ok(()),
            Err(RemovePortError::ActionNotAuthorized) => Err(Failure::Refused(Why::NotAuthorized)),
            Err(RemovePortError::RequestError(error)) => Err(of_request(&error)),
        }
    }
}

fn transport(port: Port) -> PortMappingProtocol {
    match port.transport {
        Transport::Udp => PortMappingProtocol::UDP,
        Transport::Tcp => PortMappingProtocol::TCP,
    }
}

/// Looks for the gateway, at its own address and then by the group.
async fn search(gateway: Gateway) -> Option<Device<Tokio>> {
    let own = SocketAddr::new(gateway.address, GROUP.port());
    for to in [own, GROUP] {
        let mut options = SearchOptions::default();
        options.bind_addr = SocketAddr::new(gateway.local, 0);
        options.broadcast_address = to;
        options.timeout = Some(SEARCH);
        options.single_search_timeout = Some(SEARCH);
        // Whoever says where the gateway describes itself: it is asked there, and nowhere else.
        options.allowed_gateway_ips = vec![gateway.address];
        match search_gateway(options).await {
            Ok(device) if device.addr.ip() == gateway.address => return Some(device),
            Ok(device) => tracing::debug!(at = %device.addr, "UPnP: not the default gateway"),
            Err(error) => tracing::debug!(%error, %to, "UPnP"),
        }
    }
    None
}

/// The machine that an external port leads to; none where nobody has it, or the router does not say.
async fn owner(device: &Device<Tokio>, transport: Transport, external: u16) -> Option<SocketAddr> {
    let wanted = match transport {
        Transport::Udp => PortMappingProtocol::UDP,
        Transport::Tcp => PortMappingProtocol::TCP,
    };
    let look = async {
        for index in 0..LOOKED_THROUGH {
            match device.get_generic_port_mapping_entry(index).await {
                Ok(entry) if entry.external_port == external && entry.protocol == wanted => {
                    let ip = entry.internal_client.parse().ok()?;
                    return Some(SocketAddr::new(ip, entry.internal_port));
                }
                Ok(_) => {}
                Err(
                    GetGenericPortMappingEntryError::SpecifiedArrayIndexInvalid
                    | GetGenericPortMappingEntryError::ActionNotAuthorized
                    | GetGenericPortMappingEntryError::RequestError(_),
                ) => return None,
            }
        }
        None
    };
    tokio::time::timeout(LOOK, look).await.ok().flatten()
}

/// The reason of a refusal without any: routers that are behind another one open nothing, and do not say why.
async fn explained(device: &Device<Tokio>, failure: Failure) -> Failure {
    if failure != Failure::Refused(Why::Code(ACTION_FAILED)) {
        return failure;
    }
    match device.get_external_ip().await {
        Ok(ip) if is_public(ip) => failure,
        Ok(ip) if !ip.is_unspecified() => Failure::Refused(Why::Inside(ip)),
        _ => Failure::Refused(Why::NoAddress),
    }
}

fn of_add(error: &AddPortError) -> Failure {
    tracing::debug!(%error, "UPnP");
    match error {
        AddPortError::ActionNotAuthorized => Failure::Refused(Why::NotAuthorized),
        AddPortError::PortInUse => Failure::InUse,
        AddPortError::SamePortValuesRequired => Failure::Refused(Why::Code(724)),
        AddPortError::OnlyPermanentLeasesSupported => Failure::PermanentOnly,
        AddPortError::RequestError(error) => of_request(error),
        _ => Failure::Silent,
    }
}

fn of_request(error: &RequestError) -> Failure {
    match error {
        RequestError::ErrorCode(code, _) => Failure::Refused(Why::Code(*code)),
        // It has described itself before, so that it may have done what it was asked.
        _ => Failure::Lost,
    }
}
