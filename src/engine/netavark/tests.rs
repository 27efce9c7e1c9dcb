//! What netavark and Podman may say, and what is made of it before the daemon is asked.

use std::ffi::OsStr;

use serde_json::{Map, Value, json};

use super::network::{Container, Network, completed, read};
use super::status::status;
use super::{Failure, is_called, perform};
use crate::api::types::{SubnetInfo, WorkloadInfo};

fn network(more: Value) -> Map<String, Value> {
    // As netavark 1.17 writes it; 2.x leaves out what is null.
    let mut network = json!({
        "dns_enabled": true, "driver": "byway", "id": "53ce4390f2adb1681eb1a90ec8b48c49c015e0a8d336c197637e7f65e365fa9e",
        "internal": false, "ipv6_enabled": false, "name": "lab", "network_interface": null,
        "options": {"subnet": "lab"}, "ipam_options": null, "subnets": null, "routes": null, "network_dns_servers": null,
    });
    for (key, value) in more.as_object().unwrap() {
        network[key] = value.clone();
    }
    network.as_object().unwrap().clone()
}

fn parsed(more: Value) -> Network {
    read(&serde_json::to_vec(&network(more)).unwrap(), "the network").unwrap()
}

fn subnet(cidr6: Option<&str>) -> SubnetInfo {
    let peer = "12D3KooWRtubMQkmrjdgVrmhQfGHWuuCGPGowi2DbM8i7wUqanna";
    let info = json!({
        "id": "7q3km2wd9xra4ce8yn5t0vbz6g", "name": "lab", "state": "ready", "role": "owner", "cidr4": "10.77.0.0/16", "cidr6": cidr6,
        "block4": 24, "domain": "lab.internal", "admission": "open", "owner": peer, "interface": "bw-lab", "mtu": 1400,
        "head": 1, "addresses": [], "members": [], "leases": [], "routes": [], "names": [], "maps": [],
    });
    serde_json::from_value(info).unwrap()
}

fn container(more: Value) -> Container {
    let mut wanted = json!({"interface_name": "eth0", "aliases": null, "static_ips": null, "static_mac": null, "options": null});
    let mut all = json!({
        "container_id": "2d0fe608dc86d7ba65dcec724a335b618328f08daa62afd2ee7fa9d41f74e5a9",
        "container_name": "Web", "port_mappings": null, "network": network(json!({})),
    });
    for (key, value) in more.as_object().unwrap() {
        match key.as_str() {
            "port_mappings" => all[key] = value.clone(),
            _ => wanted[key] = value.clone(),
        }
    }
    all["network_options"] = wanted;
    read(&serde_json::to_vec(&all).unwrap(), "the container").unwrap()
}

/// Checks that it failed by a message that holds `part`.
fn refused<T: std::fmt::Debug>(result: Result<T, Failure>, part: &str) {
    let failure = result.unwrap_err();
    assert!(failure.0.contains(part), "{part}: {failure:?}");
}

#[test]
fn only_the_file_in_the_directory_of_plugins_is_the_plugin() {
    let called = |program: &str| is_called(OsStr::new(program));
    assert!(called("/usr/lib/netavark/byway") && called("netavark/byway"));
    for program in [
        "byway",
        "/usr/bin/byway",
        "/usr/lib/netavark/other",
        "/usr/lib/netavark/byway/byway",
        "",
        "/",
    ] {
        assert!(!called(program), "{program:?}");
    }
}

#[test]
fn versions_are_told_and_other_verbs_refused() {
    let told = perform(&["info"]).unwrap().unwrap();
    assert_eq!(told["api_version"], "1.0.0");
    assert_eq!(perform(&[]).unwrap().unwrap(), told);
    refused(perform(&["setup"]), "namespace is missing");
    refused(perform(&["create", "lab"]), "\"create\"");
    refused(perform(&["status"]), "\"status\"");
}

#[test]
fn a_network_is_completed_and_keeps_what_podman_gave_it() {
    let given = network(json!({"labels": {"a": "b"}, "created": "2026-01-01T00:00:00Z"}));
    let own = subnet(Some("fd7a::/48"));
    let made = completed(given.clone(), &own);
    for (key, value) in &given {
        let changed =
            ["subnets", "ipv6_enabled", "dns_enabled", "ipam_options"].contains(&key.as_str());
        assert_eq!(made[key] != *value, changed, "{key}");
    }
    assert_eq!(
        made["subnets"],
        json!([{"subnet": "10.77.0.0/16"}, {"subnet": "fd7a::/48"}])
    );
    // With any other driver Podman would pick the addresses.
    assert_eq!(made["ipam_options"], json!({"driver": "none"}));
    // What it was completed to is no other wish when it comes again.
    let again: Network = serde_json::from_value(made).unwrap();
    assert_eq!(again.check(&own), Ok(()));
}

#[test]
fn what_the_subnet_decides_is_refused_by_the_name_of_its_option() {
    let own = subnet(None);
    assert_eq!(parsed(json!({})).check(&own), Ok(()));
    assert_eq!(
        parsed(json!({"subnets": [{"subnet": "10.77.0.0/16"}]})).check(&own),
        Ok(())
    );
    for (more, part) in [
        (
            json!({"ipam_options": {"driver": "host-local"}}),
            "--ipam-driver",
        ),
        (json!({"ipam_options": {"driver": "dhcp"}}), "--ipam-driver"),
        (json!({"ipam_options": {"range": "x"}}), "\"range\""),
        (json!({"network_interface": "podman7"}), "--interface-name"),
        (
            json!({"routes": [{"destination": "10.0.0.0/8", "gateway": "10.77.0.1"}]}),
            "--route",
        ),
        (json!({"network_dns_servers": ["192.0.2.1"]}), "--dns"),
        (
            json!({"subnets": [{"subnet": "10.78.0.0/16"}]}),
            "10.78.0.0/16",
        ),
        (
            json!({"subnets": [{"subnet": "10.77.0.0/16", "gateway": "10.77.0.1"}]}),
            "--gateway",
        ),
        (
            json!({"subnets": [{"subnet": "10.77.0.0/16", "lease_range": {}}]}),
            "--ip-range",
        ),
        (json!({"ipv6_enabled": true}), "--ipv6"),
    ] {
        refused(parsed(more).check(&own), part);
    }
}

#[test]
fn options_are_the_subnet_and_the_socket_alone() {
    assert_eq!(parsed(json!({})).subnet().unwrap(), "lab");
    let socket = parsed(json!({"options": {"subnet": "lab", "socket": "/run/two.sock"}}));
    assert_eq!(
        (socket.subnet().unwrap(), socket.socket().unwrap().to_str()),
        ("lab", Some("/run/two.sock"))
    );
    for options in [json!(null), json!({}), json!({"subnet": ""})] {
        refused(
            parsed(json!({"options": options})).subnet(),
            "-o subnet=NAME",
        );
    }
    refused(
        parsed(json!({"options": {"subnet": "lab", "mtu": "1400"}})).subnet(),
        "\"mtu\"",
    );
    refused(
        parsed(json!({"options": {"socket": "two.sock"}})).socket(),
        "no absolute path",
    );
    for input in [&b""[..], b"{", b"[]", b"\xff", b"{\"name\": 7}", b"{}"] {
        refused(read::<Network>(input, "the network"), "the network");
    }
}

#[test]
fn ports_are_mapped_as_ranges_and_for_each_protocol() {
    let ports = |mapping: Value| container(json!({"port_mappings": [mapping]})).ports();
    let all = ports(
        json!({"container_port": 80, "host_ip": "192.0.2.7", "host_port": 8080, "protocol": "tcp,UDP", "range": 3}),
    );
    let all: Vec<String> = all
        .unwrap()
        .iter()
        .map(|p| format!("{} {:?} {} {}", p.proto, p.listen, p.ports, p.target_ports))
        .collect();
    assert_eq!(
        all,
        [
            "tcp Some(192.0.2.7) 8080-8082 80-82",
            "udp Some(192.0.2.7) 8080-8082 80-82"
        ]
    );
    let plain = ports(
        json!({"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "", "range": 0}),
    );
    let plain = plain.unwrap();
    assert_eq!(
        (plain.len(), plain[0].listen, plain[0].ports.count()),
        (1, None, 1)
    );
    for (mapping, part) in [
        (
            json!({"container_port": 80, "host_port": 8080, "protocol": "sctp"}),
            "\"sctp\"",
        ),
        (
            json!({"container_port": 80, "host_port": 8080, "protocol": "tcp,"}),
            "\"\"",
        ),
        (json!({"container_port": 80, "host_port": 0}), "1 to 65535"),
        (
            json!({"container_port": 65535, "host_port": 8080, "range": 2}),
            "1 to 65535",
        ),
        (
            json!({"container_port": 80, "host_port": 8080, "host_ip": "here"}),
            "\"here\"",
        ),
    ] {
        refused(ports(mapping), part);
    }
    refused(
        container(json!({"options": {"mtu": "1200"}})).ports(),
        "\"mtu\"",
    );
}

#[test]
fn names_that_podman_gives_every_container_are_not_told_to_all_members() {
    let of = container(json!({"aliases": ["2d0fe608dc86", "web", "db", "DB", "main"]}));
    assert_eq!(of.aliases(), ["db", "main"]);
    assert!(container(json!({})).aliases().is_empty());
}

#[test]
fn the_status_looks_like_this() {
    let info = json!({
        "workload": "web", "subnet": "lab", "kind": "netavark", "target": "c1", "container": "c1",
        "addresses": ["10.77.1.5", "fd7a::5"], "interface": "eth0", "mtu": 1400,
        "fqdn": "web.lab.internal", "dns": ["10.77.1.1", "fd7a::1"], "state": "ok",
        "link": {"host_interface": "bwv01", "host_mac": "02:62:77:00:00:01", "mac": "02:62:77:00:00:02",
            "routes": ["10.77.0.0/16", "fd7a::/48"], "netns": "/run/netns/x"},
    });
    let workload: WorkloadInfo = serde_json::from_value(info).unwrap();
    let expected = json!({
        "interfaces": {"eth0": {"mac_address": "02:62:77:00:00:02", "subnets": [
            {"ipnet": "10.77.1.5/32", "gateway": "10.77.1.1"},
            {"ipnet": "fd7a::5/128", "gateway": "fd7a::1"},
        ]}},
        "dns_server_ips": ["10.77.1.1", "fd7a::1"],
        "dns_search_domains": ["lab.internal"],
    });
    assert_eq!(status(&workload, workload.link.as_ref().unwrap()), expected);
}

/// Sections and keys of a unit.
fn unit(name: &str) -> Vec<(String, String, String)> {
    let path = format!("{}/examples/quadlet/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut section = String::new();
    let mut all = Vec::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            Some(name) => section = name.to_owned(),
            None => {
                let (key, value) = line.split_once('=').unwrap();
                all.push((section.clone(), key.to_owned(), value.to_owned()));
            }
        }
    }
    all
}

fn values<'a>(unit: &'a [(String, String, String)], section: &str, key: &str) -> Vec<&'a str> {
    let is = |line: &&(String, String, String)| line.0 == section && line.1 == key;
    unit.iter()
        .filter(is)
        .map(|(_, _, value)| value.as_str())
        .collect()
}

#[test]
fn the_example_for_systemd_names_this_driver_and_options_that_it_has() {
    let network = unit("lab.network");
    // Keys of podman-systemd.unit(5), and of systemd.unit(5).
    for (section, key, _) in &network {
        let known: &[&str] = match section.as_str() {
            "Unit" => &["Description", "Wants", "After"],
            "Network" => &["NetworkName", "Driver", "Options"],
            _ => &[],
        };
        assert!(known.contains(&key.as_str()), "[{section}] {key}");
    }
    assert_eq!(values(&network, "Network", "Driver"), [super::NAME]);
    let options: std::collections::BTreeMap<&str, &str> = values(&network, "Network", "Options")
        .into_iter()
        .map(|option| option.split_once('=').unwrap())
        .collect();
    assert_eq!(parsed(json!({"options": options})).subnet().unwrap(), "lab");
    let container = unit("web.container");
    assert_eq!(values(&container, "Container", "Network"), ["lab.network"]);
    for name in ["lab.network", "web.container"] {
        let unit = unit(name);
        let started = [
            values(&unit, "Unit", "Wants"),
            values(&unit, "Unit", "After"),
        ];
        assert_eq!(started, [["byway.service"], ["byway.service"]], "{name}");
    }
}
