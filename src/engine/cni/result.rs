//! The result of `ADD`, in the words of each version of the protocol.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::config::{Resolver, Version};
use super::environment::Attachment;
use crate::api::types::{LinkInfo, WorkloadInfo};

/// The result for a workload, behind what the plugins before this one have made.
pub(super) fn result(
    version: Version,
    attachment: &Attachment,
    workload: &WorkloadInfo,
    link: &LinkInfo,
    resolver: &Resolver,
    former: Option<&Map<String, Value>>,
) -> Value {
    let mut result = former.cloned().unwrap_or_default();
    result.insert("cniVersion".into(), version.as_str().into());
    let made = interfaces(version, attachment, workload, link);
    let before = append(&mut result, "interfaces", made);
    // The host's end stands first, the container's behind it.
    let inside = before.saturating_add(1);
    let gateway = |v4: bool| workload.dns.iter().find(|a| a.is_ipv4() == v4);
    let ips = workload.addresses.iter().map(|address| {
        let mut ip = json!({"interface": inside, "address": IpNet::from(*address).to_string()});
        if let Some(gateway) = gateway(address.is_ipv4()) {
            set(&mut ip, "gateway", gateway.to_string());
        }
        if version < Version::V1_0_0 {
            set(
                &mut ip,
                "version",
                if address.is_ipv4() { "4" } else { "6" },
            );
        }
        ip
    });
    append(&mut result, "ips", ips.collect());
    let has = |v4: bool| workload.addresses.iter().any(|a| a.is_ipv4() == v4);
    let is_v4 = |prefix: &IpNet| matches!(prefix, IpNet::V4(_));
    let reached = link.routes.iter().filter(|prefix| has(is_v4(prefix)));
    let routes = reached.map(|prefix| {
        let mut route = json!({"dst": prefix.to_string()});
        if let Some(gateway) = gateway(is_v4(prefix)) {
            set(&mut route, "gw", gateway.to_string());
        }
        route
    });
    append(&mut result, "routes", routes.collect());
    let dns = names(workload, resolver, result.get("dns"));
    result.insert("dns".into(), dns);
    Value::Object(result)
}

/// Both ends of the veth pair.
fn interfaces(
    version: Version,
    attachment: &Attachment,
    workload: &WorkloadInfo,
    link: &LinkInfo,
) -> Vec<Value> {
    let mut host = json!({"name": link.host_interface, "mac": link.host_mac});
    let mut inside = json!({
        "name": workload.interface,
        "mac": link.mac,
        "sandbox": attachment.netns,
    });
    if version >= Version::V1_1_0 {
        set(&mut host, "mtu", workload.mtu);
        set(&mut inside, "mtu", workload.mtu);
    }
    vec![host, inside]
}

/// How names are resolved: the daemon answers those of the subnet and asks the machine's servers for the others, so it stands
/// before the servers of other plugins. What was asked for takes its place.
fn names(workload: &WorkloadInfo, wanted: &Resolver, former: Option<&Value>) -> Value {
    let former: Resolver = former
        .and_then(|dns| serde_json::from_value(dns.clone()).ok())
        .unwrap_or_default();
    let domain = workload.domain();
    let or = |wanted: &[String], ours: Vec<String>, more: Vec<String>| match wanted {
        [] => {
            let mut all = ours;
            all.extend(more);
            all
        }
        wanted => wanted.to_vec(),
    };
    let servers = workload.dns.iter().map(IpAddr::to_string).collect();
    let mut dns = json!({
        "nameservers": or(&wanted.nameservers, servers, former.nameservers),
        "domain": if wanted.domain.is_empty() { domain } else { &wanted.domain },
        "search": or(&wanted.search, vec![domain.to_owned()], former.search),
    });
    let options = or(&wanted.options, vec![], former.options);
    if !options.is_empty() {
        set(&mut dns, "options", options);
    }
    dns
}

fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(object) = object {
        object.insert(key.to_owned(), value.into());
    }
}

/// Appends to a list of the result; how many were there before.
fn append(result: &mut Map<String, Value>, key: &str, more: Vec<Value>) -> usize {
    let list = result
        .entry(key.to_owned())
        .or_insert_with(|| Value::Array(vec![]));
    if !list.is_array() {
        *list = Value::Array(vec![]);
    }
    let Value::Array(list) = list else { return 0 };
    let before = list.len();
    list.extend(more);
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> WorkloadInfo {
        let info = json!({
            "workload": "web", "subnet": "lab", "kind": "cni", "target": "c1", "container": "c1",
            "addresses": ["10.77.1.5", "fd7a::5"], "interface": "eth0", "mtu": 1400,
            "fqdn": "web.lab.internal", "dns": ["10.77.1.1", "fd7a::1"], "state": "ok",
            "link": {"host_interface": "bwv01", "host_mac": "02:62:77:00:00:01", "mac": "02:62:77:00:00:02",
                "routes": ["10.77.0.0/16", "fd7a::/48"], "netns": "/run/netns/x"},
        });
        serde_json::from_value(info).unwrap()
    }

    fn made(version: Version, former: Option<Value>) -> Value {
        let attachment = Attachment {
            container: "c1".into(),
            ifname: "eth0".into(),
            netns: "/var/run/netns/x".into(),
            args: Default::default(),
        };
        let workload = workload();
        let link = workload.link.clone().unwrap();
        let former = former.map(|value| value.as_object().unwrap().clone());
        let resolver = Resolver::default();
        result(
            version,
            &attachment,
            &workload,
            &link,
            &resolver,
            former.as_ref(),
        )
    }

    #[test]
    fn the_result_of_the_newest_version_looks_like_this() {
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "bwv01", "mac": "02:62:77:00:00:01", "mtu": 1400},
                {"name": "eth0", "mac": "02:62:77:00:00:02", "mtu": 1400, "sandbox": "/var/run/netns/x"},
            ],
            "ips": [
                {"interface": 1, "address": "10.77.1.5/32", "gateway": "10.77.1.1"},
                {"interface": 1, "address": "fd7a::5/128", "gateway": "fd7a::1"},
            ],
            "routes": [
                {"dst": "10.77.0.0/16", "gw": "10.77.1.1"},
                {"dst": "fd7a::/48", "gw": "fd7a::1"},
            ],
            "dns": {"nameservers": ["10.77.1.1", "fd7a::1"], "domain": "lab.internal", "search": ["lab.internal"]},
        });
        assert_eq!(made(Version::V1_1_0, None), expected);
    }

    #[test]
    fn older_versions_have_the_family_and_no_mtu() {
        let old = made(Version::V0_3_1, None);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["interfaces"][0].get("mtu"), None);
        assert_eq!(made(Version::V1_0_0, None)["ips"][0].get("version"), None);
    }

    #[test]
    fn what_plugins_before_have_made_stays_in_front() {
        let bridge = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "10.1.0.5/16", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["10.1.0.1"], "search": ["corp.example"]},
        });
        let merged = made(Version::V1_1_0, Some(bridge));
        assert_eq!(merged["interfaces"].as_array().unwrap().len(), 5);
        let at: Vec<_> = merged["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| &ip["interface"])
            .collect();
        assert_eq!(at, [2, 4, 4]);
        assert_eq!(merged["routes"].as_array().unwrap().len(), 3);
        assert_eq!(
            merged["dns"]["nameservers"],
            json!(["10.77.1.1", "fd7a::1", "10.1.0.1"])
        );
        assert_eq!(
            merged["dns"]["search"],
            json!(["lab.internal", "corp.example"])
        );
    }
}
