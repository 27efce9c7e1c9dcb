//! systemd-resolved: which names are asked on which link, by its interface on the bus.
//!
//! What is set for a link goes with the link, so nothing is owed after a kill: a TUN of ours ends with its daemon. It stays
//! when resolved is started again, or not, by version; so it is set again for each process of it.

use std::net::IpAddr;
use std::path::PathBuf;

use zbus::{OwnedObjectPath, OwnedVariant};

use super::bus::{Bus, Object, Refusal};
use super::wanted::LinkNames;

/// Its name on the bus.
pub(super) const SERVICE: &str = "org.freedesktop.resolve1";

const MANAGER: Object<'static> = Object {
    service: SERVICE,
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};

const LINK: &str = "org.freedesktop.resolve1.Link";

/// What the kernel calls its process: 15 bytes of the name.
const COMM: &str = "systemd-resolve";

/// Port 53 of its stub, 127.0.0.53, as `/proc/net/udp` writes it on either kind of machine.
const STUB: [&str; 2] = ["3500007F:0035", "7F000035:0035"];

/// The numbers of address families on the bus, which are the kernel's.
fn family(address: &IpAddr) -> i32 {
    if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }
}

fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Has resolved ask our servers for our domains, and for nothing else, by the link with that number.
///
/// # Errors
/// What resolved said; the link may be half set then.
pub(super) async fn set(bus: &Bus, index: i32, names: &LinkNames) -> Result<(), Refusal> {
    let servers = names.servers.iter();
    // Port 0 is 53; the last is the name for TLS, which we do not speak.
    let servers: Vec<(i32, Vec<u8>, u16, &str)> =
        servers.map(|ip| (family(ip), bytes(ip), 0, "")).collect();
    let domains = names.domains.iter();
    // Routing only: they decide who is asked, and are not tried behind short names.
    let domains: Vec<(&str, bool)> = domains.map(|domain| (domain.as_str(), true)).collect();
    bus.call(MANAGER, "SetLinkDNSEx", &(index, servers)).await?;
    bus.call(MANAGER, "SetLinkDomains", &(index, domains))
        .await?;
    bus.call(MANAGER, "SetLinkDefaultRoute", &(index, false))
        .await?;
    // We sign nothing and speak no TLS, whatever is asked of other servers. Nobody answers by multicast in a subnet.
    for method in [
        "SetLinkDNSSEC",
        "SetLinkDNSOverTLS",
        "SetLinkLLMNR",
        "SetLinkMulticastDNS",
    ] {
        bus.call(MANAGER, method, &(index, "no")).await?;
    }
    // "No such name" of before would be believed for a while.
    bus.call(MANAGER, "FlushCaches", &()).await?;
    Ok(())
}

/// Whether resolved still has what was set: others may change it.
///
/// # Errors
/// What resolved said.
pub(super) async fn holds(bus: &Bus, index: i32, names: &LinkNames) -> Result<bool, Refusal> {
    let reply = bus.call(MANAGER, "GetLink", &index).await?;
    let path: OwnedObjectPath = reply.body().deserialize()?;
    let link = Object {
        path: path.as_str(),
        interface: "org.freedesktop.DBus.Properties",
        ..MANAGER
    };
    let get = async |property: &str| {
        let reply = bus.call(link, "Get", &(LINK, property)).await?;
        Ok::<_, Refusal>(reply.body().deserialize::<OwnedVariant>()?)
    };
    let servers = Vec::<(i32, Vec<u8>)>::try_from(get("DNS").await?)?;
    let domains = Vec::<(String, bool)>::try_from(get("Domains").await?)?;
    let wanted: Vec<_> = names
        .servers
        .iter()
        .map(|ip| (family(ip), bytes(ip)))
        .collect();
    let is_routed = |domain: &String| domains.iter().any(|(d, only)| d == domain && *only);
    Ok(servers == wanted
        && domains.len() == names.domains.len()
        && names.domains.iter().all(is_routed))
}

/// Forgets what was set for a link that stays.
///
/// # Errors
/// What resolved said.
pub(super) async fn revert(bus: &Bus, index: i32) -> Result<(), Refusal> {
    match bus.call(MANAGER, "RevertLink", &index).await {
        Ok(_) | Err(Refusal::NoLink(_)) => Ok(()),
        Err(refusal) => Err(refusal),
    }
}

/// Whether the resolved at `owner` serves this network namespace: numbers of links mean nothing elsewhere, and a bus is easily
/// shared with a container. Its process tells; where that cannot be seen, its stub among the sockets here.
pub(super) async fn is_here(bus: &Bus, owner: &str) -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    if let Ok(pid) = bus.process(owner).await {
        let process = PathBuf::from("/proc").join(pid.to_string());
        let comm = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        // Another process may have that number where processes are numbered anew.
        if comm.trim_end() == COMM
            && let (Some(its), Some(ours)) = (namespace(&pid.to_string()), namespace("self"))
        {
            return its == ours;
        }
    }
    let sockets = std::fs::read_to_string("/proc/net/udp").unwrap_or_default();
    STUB.iter().any(|stub| sockets.contains(stub))
}
