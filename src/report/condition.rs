//! Looks whether port maps and the machine's own links work, where nothing but a look tells: no record says that a target
//! refuses, that another program listens on a mapped port, or that a cable is out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use parking_lot::Mutex;

use super::Report;
use super::unwell::opened;
use crate::api::types::{MapInfo, Problem};
use crate::host::door::{PROBE, refuses};
use crate::host::listening::{Conflict, Foreign};
use crate::model::error::Code;
use crate::model::host::Proto;
use crate::model::ports::PortRange;
use crate::node::Called;

/// How long what a target said is believed: its program sees a connection for each time it is asked.
const BELIEVED: Duration = Duration::from_secs(5);
/// How many targets are asked at the same time.
const AT_ONCE: usize = 64;

/// What targets of maps said when they were asked last.
#[derive(Debug, Default)]
pub(crate) struct Probes(Mutex<HashMap<SocketAddr, (Instant, bool)>>);

impl Probes {
    /// Those of `targets` that refuse connections.
    async fn refusing(&self, targets: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
        let unknown: Vec<SocketAddr> = {
            let mut known = self.lock();
            known.retain(|target, (at, _)| targets.contains(target) && at.elapsed() < BELIEVED);
            targets
                .iter()
                .filter(|target| !known.contains_key(target))
                .copied()
                .collect()
        };
        let ask = |target| async move { (target, refuses(target, PROBE).await) };
        let said: Vec<_> = futures::stream::iter(unknown)
            .map(ask)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut known = self.lock();
        known.extend(
            said.into_iter()
                .map(|(target, refused)| (target, (Instant::now(), refused))),
        );
        targets
            .into_iter()
            .filter(|target| known.get(target).is_some_and(|(_, refused)| *refused))
            .collect()
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<SocketAddr, (Instant, bool)>> {
        self.0.lock()
    }
}

fn own_addresses() -> BTreeSet<IpAddr> {
    let ip = |address: &nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|link| ip(link.address.as_ref()?))
        .collect()
}

/// Where a map of one port leads. The ports of a range are not asked: programs that need many use few of them at a time.
fn target_of(map: &MapInfo) -> Option<SocketAddr> {
    let ports = map.target_ports().filter(|ports| ports.count() == 1)?;
    Some(SocketAddr::new(map.address?, ports.first()))
}

/// The targets that refuse connections. Those that are `closed`, on the machine of the member that is named, are not asked.
pub(crate) async fn refusing(
    ctx: &Report,
    maps: &[MapInfo],
    closed: &[Option<Called>],
) -> BTreeSet<SocketAddr> {
    if !ctx.platform.is_kernel() {
        return BTreeSet::new();
    }
    let open = maps
        .iter()
        .zip(closed)
        .filter(|(_, closed)| closed.is_none())
        .map(|(map, _)| map);
    let asked = open
        .filter(|map| map.state == "ok" && map.proto == Proto::Tcp)
        .filter_map(target_of)
        .collect();
    ctx.probes.refusing(asked).await
}

/// Says of each map what keeps it from working, whom it shadows, and what to do about it.
pub(crate) async fn look(
    ctx: &Report,
    maps: &mut [MapInfo],
    refusing: &BTreeSet<SocketAddr>,
    closed: &[Option<Called>],
) {
    if !ctx.platform.is_kernel() || maps.is_empty() {
        return;
    }
    let places: Vec<_> = maps.iter().map(|m| (m.proto, m.listens())).collect();
    let own = match &ctx.rules {
        Some(rules) => rules.own_sockets().await,
        None => HashSet::new(),
    };
    let seen = tokio::task::spawn_blocking(move || {
        let ports = places
            .iter()
            .filter_map(|(proto, at)| Some((*proto, at.as_ref()?.1)));
        let foreign = Foreign::read(ports, &own);
        let shadowed = |(proto, at): (Proto, Option<(IpAddr, PortRange)>)| {
            at.and_then(|(address, ports)| foreign.shadowed(proto, address, ports))
        };
        (
            own_addresses(),
            places.into_iter().map(shadowed).collect::<Vec<_>>(),
        )
    });
    let Ok((own, shadowed)) = seen.await else {
        return;
    };
    let looked = maps.iter_mut().zip(closed).zip(shadowed);
    // What Docker publishes is Docker's to answer for.
    for ((map, closed), shadowed) in looked.filter(|((map, _), _)| !map.by_engine) {
        judge(map, &own, refusing, closed.as_ref(), shadowed.as_ref());
    }
    halves(maps);
}

/// Says of one map what is not well with it, unless that was said already.
fn judge(
    map: &mut MapInfo,
    own: &BTreeSet<IpAddr>,
    refusing: &BTreeSet<SocketAddr>,
    closed: Option<&Called>,
    shadowed: Option<&Conflict>,
) {
    let (target, listen) = (target_of(map), map.listens().map(|(address, _)| address));
    // All of 127.0.0.0/8 is here; ::1 goes where IPv6 is turned off.
    let always = |ip: IpAddr| ip.is_unspecified() || (ip.is_loopback() && ip.is_ipv4());
    let absent = |at: &IpAddr| !always(*at) && !own.contains(at);
    let rm = format!("byway map rm {} {}", map.subnet, map.name);
    let (note, help) = if map.note.is_some() {
        return;
    } else if map.state == "no-target" {
        (
            format!("the subnet has no {} now", map.target),
            format!("attach it again, or: {rm}"),
        )
    } else if let Some(at) = listen.filter(absent) {
        map.state = "blocked".into();
        (
            format!("this machine has no address {at} now"),
            format!("give this machine the address, or: {rm}"),
        )
    } else if let Some(Called { member, subnet }) = closed.filter(|_| map.state == "ok") {
        map.state = "refused".into();
        let ports = map.target_ports().map(|p| p.to_string());
        let ports = format!("{}/{}", map.proto, ports.unwrap_or_default());
        let opened = opened(member, subnet, &ports);
        (
            format!("the machine of {member} lets nobody in at {}", map.target),
            opened,
        )
    } else if map.state == "ok"
        && map.proto == Proto::Tcp
        && target.is_some_and(|t| refusing.contains(&t))
    {
        map.state = "refused".into();
        (
            format!("{} refuses connections", map.target),
            format!("let something listen there, or: {rm}"),
        )
    } else if let Some(conflict) = shadowed {
        (
            shadow(conflict),
            format!("stop what listens there, or: {rm}"),
        )
    } else {
        return;
    };
    (map.note, map.help) = (Some(note), Some(help));
}

/// Many programs listen by one family only, and `map add PORT` maps both. Of a map that works by the other one nothing has
/// to be done, and to remove it would take both away.
fn halves(maps: &mut [MapInfo]) {
    let half = |map: &MapInfo| {
        map.state == "refused"
            && maps
                .iter()
                .any(|other| is_half_of_one_that_works(map, other))
    };
    let halves: Vec<bool> = maps.iter().map(half).collect();
    for (map, _) in maps.iter_mut().zip(halves).filter(|(_, half)| *half) {
        let six = map.listens().is_some_and(|(at, _)| at.is_ipv6());
        let (this, other) = if six {
            ("IPv6", "IPv4")
        } else {
            ("IPv4", "IPv6")
        };
        map.note = map.note.take().map(|note| format!("{note} over {this}"));
        map.help = Some(format!("over {other} it works; nothing has to be done"));
    }
}

fn shadow(conflict: &Conflict) -> String {
    let Conflict {
        address, process, ..
    } = conflict;
    let process = process.as_deref().unwrap_or("another program");
    format!("nobody reaches {process}, which listens on {address}: the map has the port")
}

/// What is not well with the maps that were looked at.
pub(crate) fn of_maps(maps: &[MapInfo]) -> Vec<Problem> {
    let problem = |map: &MapInfo| {
        let note = map.note.as_ref()?;
        let code = match map.state.as_str() {
            "no-target" => Code::NoTarget,
            // That is said of the workload.
            "unhealthy" => return None,
            "refused" => Code::TargetRefused,
            "blocked" => Code::ListenGone,
            _ => Code::PortShadowed,
        };
        let message = format!(
            "map {} of {} on {} {}: {note}",
            map.name, map.subnet, map.proto, map.listen
        );
        let half = map.state == "refused"
            && maps
                .iter()
                .any(|other| is_half_of_one_that_works(map, other));
        let severity = if half { "info" } else { "warning" };
        let help = map.help.clone().unwrap_or_default();
        Some(Problem {
            code: code.into(),
            severity: severity.into(),
            message,
            help,
        })
    };
    maps.iter().filter_map(problem).collect()
}

/// Whether two maps are one but for the family of the address they listen on, and the other one works.
fn is_half_of_one_that_works(map: &MapInfo, other: &MapInfo) -> bool {
    let listen = |map: &MapInfo| map.listens().filter(|(at, _)| at.is_unspecified());
    let (Some((one, ports)), Some((two, others))) = (listen(map), listen(other)) else {
        return false;
    };
    other.state == "ok"
        && ports == others
        && one.is_ipv4() != two.is_ipv4()
        && (map.subnet == other.subnet && map.proto == other.proto && map.target == other.target)
}

/// One link of the machine that is not byway's.
#[derive(Debug, Default)]
struct Own {
    up: bool,
    carrier: bool,
    addresses: bool,
}

/// Where no link of the machine's own leads anywhere, which of them is how. `ours` are byway's links.
pub(crate) fn no_way_out(ours: &BTreeSet<String>) -> Option<Problem> {
    let mut links: BTreeMap<String, Own> = BTreeMap::new();
    for found in getifaddrs().ok()? {
        if found.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            || ours.contains(&found.interface_name)
        {
            continue;
        }
        let link = links.entry(found.interface_name).or_default();
        link.up |= found.flags.contains(InterfaceFlags::IFF_UP);
        link.carrier |= found.flags.contains(InterfaceFlags::IFF_RUNNING);
        let is_ip = |a: &nix::sys::socket::SockaddrStorage| {
            a.as_sockaddr_in().is_some() || a.as_sockaddr_in6().is_some()
        };
        link.addresses |= found.address.as_ref().is_some_and(is_ip);
    }
    dead_end(&links)
}

fn dead_end(links: &BTreeMap<String, Own>) -> Option<Problem> {
    if links
        .values()
        .any(|link| link.up && link.carrier && link.addresses)
    {
        return None;
    }
    let state = |link: &Own| match link {
        Own { up: false, .. } => "is down",
        Own { carrier: false, .. } => "has no carrier",
        _ => "has no address",
    };
    let each: Vec<String> = links
        .iter()
        .map(|(name, link)| format!("{name} {}", state(link)))
        .collect();
    let which = if each.is_empty() {
        "it has none".to_owned()
    } else {
        each.join(", ")
    };
    let first = links
        .iter()
        .find(|(_, link)| !link.up)
        .map(|(name, _)| name);
    let help = first.map_or("plug it in, or give it an address".to_owned(), |name| {
        format!("ip link set {name} up")
    });
    Some(Problem {
        code: Code::NoLink.to_string(),
        severity: "warning".into(),
        message: format!("no link of this machine leads anywhere: {which}"),
        help,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_listens_by_one_family_is_worth_a_word_and_no_warning() {
        let map = |listen: &str, target: &str, state: &str| MapInfo {
            subnet: "lab".parse().unwrap(),
            name: "web".parse().unwrap(),
            proto: Proto::Tcp,
            listen: listen.to_owned(),
            target: target.to_owned(),
            address: None,
            state: state.to_owned(),
            by_engine: false,
            note: (state != "ok").then(|| "web:80 refuses connections".to_owned()),
            help: (state != "ok")
                .then(|| "let something listen there, or: byway map rm lab web".to_owned()),
            connections: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            allow: vec![],
        };
        let severities = |maps: &[MapInfo]| {
            of_maps(maps)
                .into_iter()
                .map(|p| p.severity)
                .collect::<Vec<_>>()
        };
        let half = map("[::]:8080", "web:80", "refused");
        assert_eq!(
            severities(&[map("0.0.0.0:8080", "web:80", "ok"), half.clone()]),
            ["info"]
        );
        assert_eq!(
            severities(&[map("0.0.0.0:8080", "web:80", "refused"), half.clone()]),
            ["warning", "warning"]
        );
        for other in [
            map("0.0.0.0:8081", "web:80", "ok"),
            map("0.0.0.0:8080", "db:80", "ok"),
        ] {
            assert_eq!(severities(&[other, half.clone()]), ["warning"]);
        }
        assert_eq!(
            severities(&[map("192.0.2.1:8080", "web:80", "ok"), half.clone()]),
            ["warning"]
        );
        // It says by which family, and proposes nothing that would take the half away that works.
        let told = |maps: &[MapInfo]| {
            let mut maps = maps.to_vec();
            halves(&mut maps);
            of_maps(&maps)
                .into_iter()
                .map(|p| (p.message, p.help))
                .collect::<Vec<_>>()
        };
        let (message, help) = told(&[map("0.0.0.0:8080", "web:80", "ok"), half.clone()]).remove(0);
        assert!(
            message.ends_with("web:80 refuses connections over IPv6"),
            "{message}"
        );
        assert_eq!(help, "over IPv4 it works; nothing has to be done");
        let (message, help) = told(&[
            map("[::]:8080", "web:80", "ok"),
            map("0.0.0.0:8080", "web:80", "refused"),
        ])
        .remove(0);
        assert!(
            message.ends_with("over IPv4") && help.starts_with("over IPv6 it works"),
            "{message} {help}"
        );
        assert!(
            told(&[half])
                .iter()
                .all(|(message, help)| !message.contains("over") && help.contains("byway map rm"))
        );
    }

    #[test]
    fn a_machine_without_a_way_out_is_told_what_is_wrong_with_its_links() {
        let links = |of: &[(&str, bool, bool, bool)]| {
            of.iter()
                .map(|(name, up, carrier, addresses)| {
                    (
                        (*name).to_owned(),
                        Own {
                            up: *up,
                            carrier: *carrier,
                            addresses: *addresses,
                        },
                    )
                })
                .collect::<BTreeMap<_, _>>()
        };
        let well = links(&[("eth0", true, true, true), ("eth1", false, false, false)]);
        assert_eq!(dead_end(&well), None);
        let pulled = dead_end(&links(&[
            ("eth0", true, false, true),
            ("eth1", true, true, false),
        ]))
        .unwrap();
        assert!(
            pulled
                .message
                .ends_with("eth0 has no carrier, eth1 has no address"),
            "{pulled:?}"
        );
        let down = dead_end(&links(&[("eth0", false, false, true)])).unwrap();
        assert_eq!(down.help, "ip link set eth0 up");
        assert!(
            dead_end(&links(&[]))
                .unwrap()
                .message
                .ends_with("it has none")
        );
    }
}
