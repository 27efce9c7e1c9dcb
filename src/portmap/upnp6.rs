//! UPnP for pinholes: the service WANIPv6FirewallControl:1. Routers let a machine open its own address alone, so that every
//! question comes from that address: the search, the description and the actions.
//!
//! Who answers is a device on our link, perhaps not the gateway: its address of the link does not tell. A pinhole leads to our
//! own address whoever claims to have opened it, so that nothing is believed that could do harm; the bounds are those of `upnp`.
//!
//! A pinhole is known by a number of the router's. It is not kept: after the router began anew that number may be another
//! machine's. Asking for the same pinhole again renews it and tells its number, before each removal too.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::upnp::{Believed, Fault, Search, Service};
use super::{Failure, Gateway, Granted, Record, Transport, Why};

/// Where devices are searched for: on our link.
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
const PORT: u16 = 1900;
const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1";
/// Seconds that a pinhole is asked to last which is to be removed next.
const MOMENT: u32 = 60;
/// That there is no such pinhole.
const NONE_SUCH: u16 = 704;

/// Where the firewall is controlled, once it was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Firewall {
    found: Option<(Gateway, Service)>,
}

impl Firewall {
    /// Opens a pinhole, or keeps it open.
    pub(super) async fn map(
        &mut self,
        link: u32,
        record: &Record,
        lease: u32,
    ) -> Result<Granted, Failure> {
        let added = self.add(link, record, lease).await;
        if matches!(added, Err(Failure::Silent | Failure::Lost)) {
            // It may have begun anew, with its services elsewhere.
            self.found = None;
        }
        added.map(|_| Granted {
            external: SocketAddr::new(record.gateway.local, record.port.number),
            lease,
            epoch: None,
        })
    }

    /// Closes a pinhole.
    pub(super) async fn remove(&mut self, link: u32, record: &Record) -> Result<(), Failure> {
        let number = self.add(link, record, MOMENT).await?;
        let service = self.service(link, record).await?;
        let arguments = [("UniqueID", number.to_string())];
        let deleted = service.act(record.gateway.local, "DeletePinhole", &arguments);
        match deleted.await {
            // Nobody has it any more.
            Ok(_) | Err(Fault::Code(NONE_SUCH)) => Ok(()),
            Err(fault) => Err(failure(fault)),
        }
    }

    /// Asks for the pinhole; the router's number of it.
    async fn add(&mut self, link: u32, record: &Record, lease: u32) -> Result<u16, Failure> {
        let service = self.service(link, record).await?;
        let local = record.gateway.local;
        let protocol = match record.port.transport {
            Transport::Udp => 17,
            Transport::Tcp => 6,
        };
        let arguments = [
            ("RemoteHost", String::new()),
            ("RemotePort", "0".to_owned()),
            ("InternalClient", local.to_string()),
            ("InternalPort", record.port.number.to_string()),
            ("Protocol", protocol.to_string()),
            ("LeaseTime", lease.to_string()),
        ];
        let added = service.act(local, "AddPinhole", &arguments).await;
        let results = added.map_err(failure)?;
        results.get("UniqueID").ok_or(Failure::Lost)
    }

    async fn service(&mut self, link: u32, record: &Record) -> Result<Service, Failure> {
        match &self.found {
            Some((gateway, service)) if *gateway == record.gateway => Ok(service.clone()),
            _ => {
                let service = search(link, record.gateway).await.ok_or(Failure::Silent)?;
                self.found = Some((record.gateway, service.clone()));
                Ok(service)
            }
        }
    }
}

/// Looks on our link for a device that controls a firewall.
async fn search(link: u32, gateway: Gateway) -> Option<Service> {
    let (IpAddr::V6(local), IpAddr::V6(router)) = (gateway.local, gateway.address) else {
        return None;
    };
    let at = |ip| SocketAddr::V6(SocketAddrV6::new(ip, PORT, 0, link));
    let search = Search::begin(local.into(), link, &[at(GROUP), at(router)], &[SERVICE]).await;
    let search = search.inspect_err(|error| tracing::debug!(%error, "UPnP"));
    search
        .ok()?
        .service(&[SERVICE], Believed::Link(local))
        .await
}

fn failure(fault: Fault) -> Failure {
    let Fault::Code(code) = fault else {
        return Failure::Lost;
    };
    Failure::Refused(match code {
        606 | 703 => Why::NotAuthorized,
        701 => Why::NoRoom,
        702 => Why::FirewallOff,
        code => Why::Code(code),
    })
}

#[cfg(test)]
mod tests;
