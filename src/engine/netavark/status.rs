//! The status block: what `setup` tells of a container's interface.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::api::types::{LinkInfo, WorkloadInfo};

/// The status of a workload, whose resolver Podman puts into the container's `resolv.conf`.
pub(super) fn status(workload: &WorkloadInfo, link: &LinkInfo) -> Value {
    let gateway = |v4: bool| workload.dns.iter().find(|a| a.is_ipv4() == v4);
    let subnets: Vec<Value> = workload
        .addresses
        .iter()
        .map(|address| {
            // As the kernel has it: the address alone is on the link, all else is behind the gateway.
            let ipnet = IpNet::from(*address).to_string();
            match gateway(address.is_ipv4()) {
                Some(gateway) => json!({"ipnet": ipnet, "gateway": gateway.to_string()}),
                None => json!({"ipnet": ipnet}),
            }
        })
        .collect();
    let servers: Vec<String> = workload.dns.iter().map(IpAddr::to_string).collect();
    let interface = json!({"mac_address": link.mac, "subnets": subnets});
    let mut interfaces = serde_json::Map::new();
    interfaces.insert(workload.interface.clone(), interface);
    json!({
        "interfaces": interfaces,
        "dns_server_ips": servers,
        "dns_search_domains": [workload.domain()],
    })
}
