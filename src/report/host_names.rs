//! What `status` says of how this machine's own programs resolve the names of its subnets.

use crate::api::types::{HostNamesInfo, Problem};
use crate::host::split_dns::{HostNames, Outcome, Service};
use crate::model::error::Code;

/// Who asks this node, and whether it works; nothing while there is nothing to resolve, or it is not known yet.
pub(super) fn info(names: &HostNames) -> Option<HostNamesInfo> {
    let state = match names.outcome {
        Outcome::Unknown => return None,
        Outcome::Works => "works",
        Outcome::NotAsked(_) => "not-asked",
        Outcome::Refused { .. } => "refused",
        Outcome::NoService => "no-service",
    };
    Some(HostNamesInfo {
        service: names.service.map(|service| service.to_string()),
        state: state.to_owned(),
    })
}

/// Why programs of this machine do not resolve our names, with the one thing to do about it. A workload is not concerned: it
/// has a resolver file of its own.
pub(super) fn problem(names: &HostNames) -> Option<Problem> {
    let zones: Vec<&str> = names.zones.iter().map(|(zone, _)| zone.as_str()).collect();
    let zones = zones.join(" and ");
    let service = names.service.map_or_else(String::new, |s| s.to_string());
    let (severity, message, help) = match &names.outcome {
        Outcome::Unknown | Outcome::Works => return None,
        Outcome::NotAsked(why) => (
            // As this machine is made, where programs ask somebody else.
            match names.servers.first() {
                Some(first) if !first.is_loopback() => "info",
                _ => "warning",
            },
            format!(
                "programs of this machine do not resolve {zones}: {service} was told to ask byway, but {why}"
            ),
            not_asked(names),
        ),
        Outcome::Refused { why, denied } => (
            "warning",
            format!(
                "programs of this machine do not resolve {zones}: {service} refuses to be told: {why}"
            ),
            match names.service {
                Some(Service::Openresolv) if *denied => by_hand(names),
                _ if *denied => "allow it to the daemon's user: packaging/byway.rules goes to /etc/polkit-1/rules.d/, and \
                                 polkitd must run; or run the daemon as root"
                    .to_owned(),
                _ => format!("see what {service} logs; it is tried again every ten seconds"),
            },
        ),
        Outcome::NoService => (
            "info",
            format!(
                "programs of this machine do not resolve {zones}: no resolver runs here that can be told to ask byway for it"
            ),
            no_service(names),
        ),
    };
    Some(Problem {
        code: Code::HostNames.into(),
        severity: severity.into(),
        message,
        help,
    })
}

/// openresolv takes this from root alone, and has no rule by which others could be let in.
fn by_hand(names: &HostNames) -> String {
    let told: Vec<String> = names
        .zones
        .iter()
        .map(|(zone, server)| {
            let link = zone.split('.').next().unwrap_or_default();
            format!("printf 'search {zone}\\nnameserver {server}\\n' | resolvconf -p -a bw-{link}")
        })
        .collect();
    format!(
        "{}      (as root, for the daemon is not; resolvconf -d takes it back)",
        told.join(" && ")
    )
}

/// The service is told, and programs pass it by.
fn not_asked(names: &HostNames) -> String {
    if names.service == Some(Service::Openresolv) {
        return "let openresolv write for a resolver here that asks several servers: name_servers=127.0.0.1 and \
                dnsmasq_conf=FILE or unbound_conf=FILE in /etc/resolvconf.conf"
            .to_owned();
    }
    match names.servers.first() {
        Some(first) if !first.is_loopback() => {
            "ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf      (programs ask systemd-resolved then)"
                .to_owned()
        }
        _ => "resolvectl status      (says who is asked for what)".to_owned(),
    }
}

fn no_service(names: &HostNames) -> String {
    let lines: Vec<String> = names
        .zones
        .iter()
        .map(|(zone, server)| format!("server=/{zone}/{server}"))
        .collect();
    if names.is_network_managers {
        return format!(
            "printf '{}\\n' > /etc/NetworkManager/dnsmasq.d/byway.conf && nmcli general reload dns-full      (as root; \
             NetworkManager's dnsmasq asks byway then)",
            lines.join("\\n")
        );
    }
    let first = names.zones.first().map_or_else(String::new, |(_, server)| {
        format!("put the line `nameserver {server}` before the others in /etc/resolv.conf; or ")
    });
    format!(
        "{first}run systemd-resolved, or tell your own resolver (dnsmasq: {}); `dns.host = \"off\"` where none of it is wanted",
        lines.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(service: Option<Service>, outcome: Outcome, server: &str) -> HostNames {
        HostNames {
            service,
            outcome,
            zones: vec![("lab.internal".to_owned(), "10.77.1.1".parse().unwrap())],
            servers: vec![server.parse().unwrap()],
            is_network_managers: false,
        }
    }

    #[test]
    fn what_does_not_work_is_said_with_one_thing_to_do() {
        let said = |names: &HostNames| {
            let problem = problem(names).unwrap();
            (problem.severity, problem.help, info(names).unwrap().state)
        };
        let works = names(Some(Service::Resolved), Outcome::Works, "127.0.0.53");
        assert_eq!(problem(&works), None);
        assert_eq!(info(&works).unwrap().state, "works");
        let unknown = names(None, Outcome::Unknown, "127.0.0.53");
        assert_eq!((info(&unknown), problem(&unknown)), (None, None));
        let none = names(None, Outcome::NoService, "192.0.2.1");
        let (severity, help, state) = said(&none);
        assert_eq!((severity.as_str(), state.as_str()), ("info", "no-service"));
        assert!(help.contains("server=/lab.internal/10.77.1.1"), "{help}");
        let line = "put the line `nameserver 10.77.1.1` before the others in /etc/resolv.conf; or ";
        assert!(help.starts_with(line), "{help}");
        let mut none = names(None, Outcome::NoService, "127.0.0.1");
        none.is_network_managers = true;
        let line = r"printf 'server=/lab.internal/10.77.1.1\n' > /etc/NetworkManager/dnsmasq.d/";
        assert!(said(&none).1.starts_with(line), "{:?}", said(&none));
        let refused = |denied| Outcome::Refused {
            why: "no".to_owned(),
            denied,
        };
        let (_, help, _) = said(&names(Some(Service::Resolved), refused(true), "127.0.0.53"));
        assert!(help.contains("packaging/byway.rules"), "{help}");
        let (_, help, _) = said(&names(
            Some(Service::Resolved),
            refused(false),
            "127.0.0.53",
        ));
        assert!(!help.contains("rules"), "{help}");
        let (_, help, _) = said(&names(
            Some(Service::Openresolv),
            refused(true),
            "127.0.0.1",
        ));
        let line =
            r"printf 'search lab.internal\nnameserver 10.77.1.1\n' | resolvconf -p -a bw-lab ";
        assert!(help.starts_with(line), "{help}");
        let passed_by = Outcome::NotAsked("nobody asks".to_owned());
        let passed_by = names(Some(Service::Resolved), passed_by, "192.0.2.1");
        assert!(
            said(&passed_by).1.starts_with("ln -sf"),
            "{:?}",
            said(&passed_by)
        );
    }
}
