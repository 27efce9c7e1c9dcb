//! Which keys of a compose file are honoured, which are the engine's alone, and what to write in the place of others.

/// Keys of the whole file that are honoured.
pub(super) const FILE: [&str; 3] = ["name", "services", "networks"];
/// Keys of the whole file that have nothing to do with networks.
pub(super) const FILE_PASSED: [&str; 5] = ["version", "volumes", "secrets", "configs", "models"];
/// Keys of a service that are honoured.
pub(super) const SERVICE: [&str; 9] = [
    "container_name",
    "hostname",
    "networks",
    "ports",
    "labels",
    "mac_address",
    "scale",
    "deploy",
    "profiles",
];
/// Keys of a service that have nothing to do with networks, or work in a subnet as they do elsewhere.
pub(super) const SERVICE_PASSED: &[&str] = &[
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "cap_add",
    "cap_drop",
    "cgroup",
    "cgroup_parent",
    "command",
    "configs",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpus",
    "cpuset",
    "credential_spec",
    "depends_on",
    "develop",
    "device_cgroup_rules",
    "devices",
    "entrypoint",
    "env_file",
    "environment",
    "expose",
    "extra_hosts",
    "gpus",
    "group_add",
    "healthcheck",
    "image",
    "init",
    "ipc",
    "isolation",
    "logging",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "models",
    "oom_kill_disable",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "post_start",
    "pre_stop",
    "privileged",
    "provider",
    "pull_policy",
    "read_only",
    "restart",
    "runtime",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "use_api_socket",
    "user",
    "userns_mode",
    "uts",
    "volume_driver",
    "volumes",
    "volumes_from",
    "working_dir",
];
/// Keys of a service in a network of byway's that are honoured.
pub(super) const PLACE: [&str; 4] = ["aliases", "ipv4_address", "ipv6_address", "mac_address"];
/// Such that change nothing for byway.
pub(super) const PLACE_PASSED: [&str; 3] = ["priority", "gw_priority", "interface_name"];
/// Keys of a network of byway's that are honoured.
pub(super) const NETWORK: [&str; 7] = [
    "driver",
    "driver_opts",
    "ipam",
    "internal",
    "external",
    "name",
    "enable_ipv6",
];
/// Such that are the engine's alone.
pub(super) const NETWORK_PASSED: [&str; 2] = ["labels", "attachable"];

/// What to write in the place of a key that is refused.
pub(super) fn instead(key: &str) -> Option<&'static str> {
    Some(match key {
        "include" | "extends" => {
            "docker compose config > whole.yml writes it out, and whole.yml can be imported"
        }
        "links" | "external_links" => {
            "a service is reached by its name; write a further one as networks: SUBNET: aliases:"
        }
        "network_mode" | "net" => {
            "networks: with a network of driver byway; only a service with a network of its own has an address"
        }
        "dns" | "dns_search" | "dns_opt" | "domainname" => {
            "leave it out: what is in a subnet asks byway for names, which asks this machine's own resolvers"
        }
        "label_file" => "labels:",
        "link_local_ips" => "leave it out: a subnet has no link-local addresses",
        "gateway" | "ip_range" | "aux_addresses" => {
            "leave it out: the subnet has its gateway, and this machine its part of the addresses"
        }
        _ => return None,
    })
}

/// The lists for the verb's help.
pub(super) fn help() -> String {
    let service: Vec<&str> = SERVICE.into_iter().filter(|key| *key != "deploy").collect();
    format!(
        "Keys that are honoured:\n  \
         file      {}\n  \
         service   {}, deploy.replicas,\n            \
         labels byway.name and byway.map\n  \
         service in a network   {}\n  \
         network of driver byway   {}\n\
         Keys that have nothing to do with networks are passed over; any other is refused by its name and line.",
        FILE.join(", "),
        service.join(", "),
        PLACE.join(", "),
        NETWORK.join(", "),
    )
}
