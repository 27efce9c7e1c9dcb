//! The resolver files of workloads as they should be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::desired::alive;
use super::{Former, HostConfig, Observed, ResolvConf, Server};

/// A resolver file as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Whether it may only be made, never written over somebody else's.
    pub create: bool,
    /// The whole text of the file.
    pub text: String,
}

/// The resolver files of the workloads that are alive, one text for all workloads that share a file.
///
/// Only our own servers are named: a resolver that asks all of its servers at once would otherwise believe a foreign one
/// that does not know our names. Those that were named before are asked by ours ([`Former::servers`]); the domains that
/// were searched are searched behind the subnets', and options stay.
pub fn resolvers(desired: &HostConfig, observed: &Observed) -> BTreeMap<PathBuf, Resolver> {
    let mut files: BTreeMap<PathBuf, (bool, Vec<String>, Vec<IpAddr>)> = BTreeMap::new();
    for workload in alive(desired, observed) {
        let (path, create) = match &workload.resolv_conf {
            ResolvConf::None => continue,
            ResolvConf::Create(path) => (path, true),
            ResolvConf::Replace(path) => (path, false),
        };
        let (_, search, servers) =
            files
                .entry(path.clone())
                .or_insert((create, Vec::new(), Vec::new()));
        if !search.contains(&workload.search) {
            search.push(workload.search.clone());
        }
        // Where no socket of IPv6 is to be had, nobody answers there.
        let answered = |server: &&IpAddr| server.is_ipv4() || !observed.no_ipv6_sockets;
        servers.extend(workload.gateways.iter().filter(answered));
    }
    let text =
        |(path, (create, mut search, servers)): (PathBuf, (bool, Vec<String>, Vec<IpAddr>))| {
            let former = observed
                .formers
                .get(&path)
                .map(|text| Former::parse(text))
                .unwrap_or_default();
            for domain in former.search.into_iter().filter(|domain| domain != ".") {
                if !search.contains(&domain) {
                    search.push(domain);
                }
            }
            let text = resolver_text(&search, servers, &former.options);
            (path, Resolver { create, text })
        };
    files.into_iter().map(text).collect()
}

/// Whom the files that are rewritten asked before, and who is still asked behind us.
pub fn former_servers(desired: &HostConfig, observed: &Observed) -> BTreeMap<PathBuf, Vec<Server>> {
    let replaced = alive(desired, observed).filter_map(|workload| match &workload.resolv_conf {
        ResolvConf::Replace(path) => Some(path),
        ResolvConf::None | ResolvConf::Create(_) => None,
    });
    replaced
        .filter_map(|path| {
            Some((
                path.clone(),
                Former::parse(observed.formers.get(path)?).servers,
            ))
        })
        .filter(|(_, servers)| !servers.is_empty())
        .collect()
}

/// The text of a resolver file: the domains that are searched, the servers that are asked, and options of resolv.conf(5).
pub fn resolver_text(search: &[String], mut servers: Vec<IpAddr>, options: &[String]) -> String {
    servers.sort_by_key(IpAddr::is_ipv6);
    servers.dedup();
    // MAXNS of resolv.conf(5).
    let servers: String = servers
        .iter()
        .take(3)
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let options = if options.is_empty() {
        String::new()
    } else {
        format!("options {}\n", options.join(" "))
    };
    format!(
        "# Written by byway.\nsearch {}\n{servers}{options}",
        search.join(" ")
    )
}
