//! The questions to a router, each within a few seconds: PCP and NAT-PMP of IPv4 here, UPnP and what IPv6 knows beside.
//!
//! crab_nat takes answers only from the address that it asked, and compares what they repeat of the question. Who answers
//! nonsense is treated as who does not answer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp, pcp,
};
use futures::future::join_all;

use super::upnp::Upnp;
use super::upnp6::Firewall;
use super::{Failure, Granted, Order, Port, Protocol, Record, Transport, Why, pcp6};

/// Waits for an answer: 250, 500 and 1000 ms. A router of a home answers within a few.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: None,
};
/// The most that one question takes, whatever the router does.
const LIMIT: Duration = Duration::from_secs(10);

/// What stays between two questions to one router: the way to it, and where it takes those of UPnP.
#[derive(Debug, Clone, Default)]
pub struct Asker {
    link: u32,
    upnp: Upnp,
    firewall: Firewall,
}

impl Asker {
    /// Asks by the link of this index: addresses of IPv6 may mean something on that one alone.
    pub fn by(link: u32) -> Asker {
        Asker {
            link,
            ..Asker::default()
        }
    }

    /// The same router is met on another link.
    pub fn moved(self, link: u32) -> Asker {
        Asker { link, ..self }
    }
}

/// Carries out one order; of a removal the answer only says that the port is not open any more. Takes ten seconds at most.
///
/// # Errors
/// Why the router opened nothing, or did not say that it closed it.
///
/// # Cancel safety
/// Dropped before it is done, the router may have opened or closed the port all the same.
pub async fn carry_out(asker: &mut Asker, order: &Order) -> Result<Granted, Failure> {
    let asked = async {
        match order {
            Order::Map { record, lease } => map(asker, record, *lease).await,
            Order::Remove(record) => remove(asker, record).await,
        }
    };
    let asked = tokio::time::timeout(LIMIT, asked).await;
    // So long takes only a router that answers, and slowly.
    asked.unwrap_or(Err(Failure::Lost))
}

/// Has the router close all of these, beside one another and within `limit`; those that it says are closed come back. Whatever
/// it does, this takes no longer.
///
/// # Cancel safety
/// Dropped before it is done, the router may have closed some of them.
pub async fn close_all(asker: &Asker, records: &[Record], limit: Duration) -> Vec<Record> {
    let close = |record: &Record| {
        let (mut asker, record) = (asker.clone(), *record);
        async move {
            let removal = Order::Remove(record);
            let closed = tokio::time::timeout(limit, carry_out(&mut asker, &removal)).await;
            matches!(closed, Ok(Ok(_))).then_some(record)
        }
    };
    let closed = join_all(records.iter().map(close)).await;
    closed.into_iter().flatten().collect()
}

async fn map(asker: &mut Asker, record: &Record, lease: u32) -> Result<Granted, Failure> {
    match (record.protocol, record.gateway.address) {
        (Protocol::Pcp, IpAddr::V4(gateway)) => by_pcp(gateway, record, lease).await,
        (Protocol::NatPmp, IpAddr::V4(gateway)) => by_nat_pmp(gateway, record, lease).await,
        (Protocol::Upnp, IpAddr::V4(_)) => asker.upnp.map(record, lease).await,
        (Protocol::Pcp, IpAddr::V6(gateway)) => pcp6::map(gateway, asker.link, record, lease).await,
        (Protocol::Upnp, IpAddr::V6(_)) => asker.firewall.map(asker.link, record, lease).await,
        (Protocol::NatPmp, IpAddr::V6(_)) => Err(Failure::Silent),
    }
}

async fn remove(asker: &mut Asker, record: &Record) -> Result<Granted, Failure> {
    let (transport, number) = ours(record.port)?;
    let removed = match (record.protocol, record.gateway.address) {
        (Protocol::Pcp, IpAddr::V4(gateway)) => {
            let range = pcp::DropMappingRange::Single {
                internal_port: number,
                protocol: transport,
            };
            let (gateway, local) = (GatewayAddress::IpV4(gateway), record.gateway.local);
            pcp::try_drop_mapping(gateway, local, record.nonce, range, Some(PATIENCE))
                .await
                .map_err(|error| of_pcp(&error))
        }
        (Protocol::NatPmp, IpAddr::V4(gateway)) => {
            let gateway = GatewayAddress::IpV4(gateway);
            natpmp::try_drop_mapping(gateway, transport, Some(number), Some(PATIENCE))
                .await
                .map_err(|error| of_nat_pmp(&error))
        }
        (Protocol::Upnp, IpAddr::V4(_)) => asker.upnp.remove(record).await,
        (Protocol::Pcp, IpAddr::V6(gateway)) => pcp6::remove(gateway, asker.link, record).await,
        (Protocol::Upnp, IpAddr::V6(_)) => asker.firewall.remove(asker.link, record).await,
        // Nothing was asked for in this way.
        (Protocol::NatPmp, IpAddr::V6(_)) => Ok(()),
    };
    removed.map(|()| Granted {
        external: SocketAddr::new(record.gateway.address, record.external),
        lease: 0,
        epoch: None,
    })
}

fn ours(port: Port) -> Result<(InternetProtocol, NonZeroU16), Failure> {
    let transport = match port.transport {
        Transport::Udp => InternetProtocol::Udp,
        Transport::Tcp => InternetProtocol::Tcp,
    };
    let number = NonZeroU16::new(port.number).ok_or(Failure::Silent)?;
    Ok((transport, number))
}

fn options(record: &Record, lease: u32) -> PortMappingOptions {
    PortMappingOptions {
        external_port: NonZeroU16::new(record.external),
        lifetime_seconds: Some(lease),
        timeout_config: Some(PATIENCE),
    }
}

async fn by_pcp(gateway: Ipv4Addr, record: &Record, lease: u32) -> Result<Granted, Failure> {
    let (transport, number) = ours(record.port)?;
    let local = record.gateway.local;
    let base = pcp::BaseMapRequest::new(gateway.into(), local, transport, number);
    let mapping = pcp::port_mapping(base, Some(record.nonce), None, options(record, lease))
        .await
        .map_err(|error| of_pcp(&error))?;
    match mapping.mapping_type() {
        PortMappingType::Pcp {
            external_ip: IpAddr::V4(ip),
            ..
        } => Ok(granted(&mapping, ip)),
        _ => Err(Failure::Silent),
    }
}

async fn by_nat_pmp(gateway: Ipv4Addr, record: &Record, lease: u32) -> Result<Granted, Failure> {
    let (transport, number) = ours(record.port)?;
    let gateway = GatewayAddress::IpV4(gateway);
    let ip = natpmp::external_address(gateway, Some(PATIENCE))
        .await
        .map_err(|error| of_nat_pmp(&error))?;
    let mapping = natpmp::port_mapping(gateway, transport, number, options(record, lease)).await;
    // It has just answered the question for its address.
    let mapping = mapping.map_err(|error| match of_nat_pmp(&error) {
        Failure::Silent => Failure::Lost,
        failure => failure,
    })?;
    Ok(granted(&mapping, ip))
}

fn granted(mapping: &PortMapping, ip: Ipv4Addr) -> Granted {
    Granted {
        external: SocketAddr::new(ip.into(), mapping.external_port().get()),
        lease: mapping.lifetime(),
        epoch: Some(mapping.gateway_epoch()),
    }
}

/// What an error of PCP says of the router.
fn of_pcp(error: &pcp::Failure) -> Failure {
    tracing::debug!(%error, "PCP");
    let why = match error {
        pcp::Failure::NotAuthorized(_) => Why::NotAuthorized,
        pcp::Failure::NoResources(_) | pcp::Failure::UserExceededQuota(_) => Why::NoRoom,
        pcp::Failure::NetworkFailure(_) => Why::NoAddress,
        pcp::Failure::CannotProvideExternal(_) => Why::PortsInUse,
        // Another router is between, or the address is not ours any more.
        pcp::Failure::AddressMismatch => Why::Code(12),
        _ => return Failure::Silent,
    };
    Failure::Refused(why)
}

/// What an error of NAT-PMP says of the router.
fn of_nat_pmp(error: &natpmp::Failure) -> Failure {
    tracing::debug!(%error, "NAT-PMP");
    let why = match error {
        natpmp::Failure::NotAuthorized => Why::NotAuthorized,
        natpmp::Failure::OutOfResources => Why::NoRoom,
        natpmp::Failure::NetworkFailure => Why::NoAddress,
        _ => return Failure::Silent,
    };
    Failure::Refused(why)
}

#[cfg(test)]
mod tests;
