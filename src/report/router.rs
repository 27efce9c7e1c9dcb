//! What `netcheck`, `status` and `doctor` say of ports of routers, and of where this machine is seen from outside.

use std::time::{Duration, Instant};

use super::Report;
use crate::api::types::{ExternalInfo, ExternalSource, Problem, RouterInfo, RouterPort};
use crate::config::External;
use crate::model::error::Code;
use crate::portmap::{Mapping, Port, Status, Trouble, Why};

/// The routers in front of this machine, the one that the kernel prefers with the others in it; none where no port is to be
/// mapped.
pub(super) fn router(ctx: &Report) -> Option<RouterInfo> {
    all_shown(&ctx.mesh.portmap.status(), Instant::now())
}

fn all_shown(all: &[Status], now: Instant) -> Option<RouterInfo> {
    let mut shown = all.iter().filter_map(|status| shown(status, now));
    let first = shown.next()?;
    let others = shown.collect();
    Some(RouterInfo { others, ..first })
}

fn shown(status: &Status, now: Instant) -> Option<RouterInfo> {
    let port = |mapping: &Mapping| {
        let left = mapping
            .until
            .map(|until| until.saturating_duration_since(now));
        RouterPort {
            proto: mapping.port.transport.as_str().to_owned(),
            port: mapping.port.number,
            external: mapping.external.to_string(),
            protocol: mapping.protocol.as_str().to_owned(),
            lease_s: left.map(|left| left.as_secs()),
        }
    };
    status.is_enabled.then(|| RouterInfo {
        gateway: status.gateway.map(|gateway| gateway.address),
        ports: status.mappings.iter().map(port).collect(),
        trouble: status
            .trouble
            .as_ref()
            .map(|trouble| trouble.as_str().to_owned()),
        text: status.trouble.as_ref().map(|trouble| text(status, trouble)),
        wanted: status.wanted.iter().map(port_text).collect(),
        again_s: again(status, now).map(|left| left.as_secs()),
        others: Vec::new(),
    })
}

/// A port as `transport.listen` names it.
fn port_text(port: &Port) -> String {
    format!("{}/{}", port.transport.as_str(), port.number)
}

/// The time until a router is asked again that a person waits for; none where it is being asked, or has nothing to open.
fn again(status: &Status, now: Instant) -> Option<Duration> {
    let is_amiss = |trouble: &Trouble| trouble.as_str() != "not-needed";
    status
        .trouble
        .as_ref()
        .filter(|trouble| is_amiss(trouble))?;
    let left = status.again?.saturating_duration_since(now);
    (!left.is_zero()).then_some(left)
}

/// What a router says of these ports now, in a sentence that begins with its address.
pub(crate) fn told(status: &Status) -> String {
    let name = status.gateway.map_or_else(
        || "no router".to_owned(),
        |gateway| gateway.address.to_string(),
    );
    let open = |mapping: &Mapping| {
        let Mapping { port, external, .. } = mapping;
        let (port, way) = (port_text(port), mapping.protocol.name());
        format!("{external} leads to {port} by {way}")
    };
    let open: Vec<String> = status.mappings.iter().map(open).collect();
    match &status.trouble {
        Some(trouble) => format!("{name}: {}", text(status, trouble)),
        None => format!("{name}: {}", open.join(", ")),
    }
}

/// What those say whom the configuration has asked; none where members alone say it.
pub(super) fn external(ctx: &Report) -> Option<ExternalInfo> {
    let by = ctx.settings.borrow().external;
    let outside = ctx.mesh.outside.borrow();
    let sources = outside.sources.iter().map(|source| ExternalSource {
        name: source.name.clone(),
        said: source.said.clone().ok(),
        error: source.said.clone().err(),
    });
    (by != External::Members).then(|| ExternalInfo {
        by: by.as_str().to_owned(),
        address: outside.address.map(|address| address.to_string()),
        sources: sources.collect(),
    })
}

fn text(status: &Status, trouble: &Trouble) -> String {
    let is_v6 = status
        .gateway
        .is_some_and(|gateway| gateway.local.is_ipv6());
    match trouble {
        Trouble::NoGateway => "no IPv4 default route leads over a router".to_owned(),
        Trouble::Public(ip) => format!("not needed: {ip} of this machine is a public address"),
        Trouble::Silent if is_v6 => {
            "the router opens nothing in its firewall of IPv6: it answers to neither PCP nor UPnP"
                .to_owned()
        }
        Trouble::Silent => {
            "the router opens no ports by itself: it answers to neither PCP, NAT-PMP nor UPnP"
                .to_owned()
        }
        Trouble::Refused(_, Why::FirewallOff) => {
            format!("not needed: the router says that {}", Why::FirewallOff)
        }
        Trouble::Refused(protocol, why) => {
            format!(
                "the router refuses to open a port by {}: {why}",
                protocol.name()
            )
        }
        Trouble::DoubleNat(ip) => format!(
            "the router is behind another NAT: the address that it has outside, {ip}, is not public, so a port of it leads nowhere \
             from the Internet"
        ),
        Trouble::Unsaved => {
            "what was to be asked of the router could not be written to the state directory"
                .to_owned()
        }
        Trouble::NoRandomness => {
            "no port of the router is asked for: the kernel gives no random numbers".to_owned()
        }
    }
}

/// What a person can do about a router that opens no port that is of use. It is no fault of this machine, and peers are often
/// reached without: so it is never a warning. That there is no router, or one that offers nothing, is no problem at all.
/// Each router that does not is named where there are several.
pub(super) fn problems(ctx: &Report) -> Vec<Problem> {
    findings(&ctx.mesh.portmap.status())
}

fn findings(all: &[Status]) -> Vec<Problem> {
    let is_one = all.iter().filter(|status| status.is_enabled).count() < 2;
    let named = |status: &Status| {
        let mut found = finding(status)?;
        if let Some(gateway) = status.gateway.filter(|_| !is_one) {
            found.message = format!("{}: {}", gateway.address, found.message);
        }
        Some(found)
    };
    all.iter().filter_map(named).collect()
}

fn finding(status: &Status) -> Option<Problem> {
    let trouble = status.trouble.as_ref()?;
    let help = match trouble {
        Trouble::NoGateway
        | Trouble::Public(_)
        | Trouble::Silent
        | Trouble::Refused(_, Why::FirewallOff) => return None,
        Trouble::Refused(_, Why::NoAddress) => {
            "where another router is in front of it, have that one forward a port, or the provider give it a public address; else \
             see that it is connected; a relay works meanwhile"
        }
        Trouble::Refused(..) => {
            "let the router open ports for this machine in its settings of UPnP or PCP, or forward byway's port there by hand and \
             name it in transport.advertise; or transport.port_mapping = false"
        }
        Trouble::DoubleNat(_) => {
            "have the outer router, or the provider, forward a port, or ask for an address of your own; a relay works meanwhile"
        }
        Trouble::Unsaved => "see what byway status says of the state directory",
        Trouble::NoRandomness => {
            "permit the daemon the system call getrandom: a sandbox around it may forbid it"
        }
    };
    Some(Problem {
        code: Code::PortMapping.into(),
        severity: "info".into(),
        message: text(status, trouble),
        help: help.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portmap::{Gateway, Protocol, Transport};

    #[test]
    fn a_port_is_shown_with_its_end_and_is_no_problem() {
        let now = Instant::now();
        let mut status = Status::default();
        assert_eq!(shown(&status, now), None, "switched off");
        status.is_enabled = true;
        let gateway = Gateway {
            address: "192.168.1.1".parse().unwrap(),
            local: "192.168.1.7".parse().unwrap(),
        };
        status.gateway = Some(gateway);
        status.mappings = vec![Mapping {
            gateway,
            port: Port {
                transport: Transport::Udp,
                number: 4100,
            },
            protocol: Protocol::NatPmp,
            external: "203.0.113.9:4101".parse().unwrap(),
            until: Some(now + Duration::from_secs(7000)),
        }];
        let info = shown(&status, now).unwrap();
        let port = &info.ports[0];
        assert_eq!(
            (port.external.as_str(), port.protocol.as_str(), port.lease_s),
            ("203.0.113.9:4101", "nat-pmp", Some(7000))
        );
        assert_eq!((info.trouble, finding(&status)), (None, None));
    }

    #[test]
    fn a_trouble_is_told_by_its_word_and_one_that_a_person_can_mend_with_its_remedy() {
        let now = Instant::now();
        let mut status = Status {
            is_enabled: true,
            ..Status::default()
        };
        for (trouble, word, is_problem) in [
            (Trouble::NoGateway, "no-gateway", false),
            (
                Trouble::Public("192.0.2.1".parse().unwrap()),
                "not-needed",
                false,
            ),
            (Trouble::Silent, "not-offered", false),
            (
                Trouble::Refused(Protocol::Upnp, Why::Code(606)),
                "refused",
                true,
            ),
            (
                Trouble::DoubleNat("10.0.0.5".parse().unwrap()),
                "double-nat",
                true,
            ),
            (
                Trouble::Refused(Protocol::Upnp, Why::FirewallOff),
                "not-needed",
                false,
            ),
            (Trouble::Unsaved, "unsaved", true),
            (Trouble::NoRandomness, "no-randomness", true),
        ] {
            status.trouble = Some(trouble);
            let info = shown(&status, now).unwrap();
            assert_eq!(info.trouble.as_deref(), Some(word));
            let found = finding(&status);
            assert_eq!(found.is_some(), is_problem, "{word}");
            if let Some(found) = found {
                assert_eq!(
                    (found.code.as_str(), found.severity.as_str()),
                    ("E-PORT-MAPPING", "info")
                );
                assert!(!found.help.is_empty());
            }
        }
    }

    #[test]
    fn a_router_that_refuses_is_told_with_the_ports_that_it_is_asked_for_and_when_again() {
        let now = Instant::now();
        let status = |trouble| Status {
            is_enabled: true,
            wanted: vec![Port {
                transport: Transport::Udp,
                number: 4100,
            }],
            trouble: Some(trouble),
            again: Some(now + Duration::from_secs(2520)),
            ..Status::default()
        };
        let refused = status(Trouble::Refused(Protocol::Upnp, Why::NotAuthorized));
        let info = shown(&refused, now).unwrap();
        assert_eq!(
            (info.wanted, info.again_s),
            (vec!["udp/4100".to_owned()], Some(2520))
        );
        let later = now + Duration::from_secs(2520);
        assert_eq!(
            shown(&refused, later).unwrap().again_s,
            None,
            "it is being asked"
        );
        let off = status(Trouble::Refused(Protocol::Upnp, Why::FirewallOff));
        assert_eq!(
            shown(&off, now).unwrap().again_s,
            None,
            "nothing is to be opened"
        );
    }

    #[test]
    fn what_came_of_asking_names_the_router_the_port_and_the_protocol() {
        let gateway = Gateway {
            address: "192.168.1.1".parse().unwrap(),
            local: "192.168.1.7".parse().unwrap(),
        };
        let mut status = Status {
            gateway: Some(gateway),
            trouble: Some(Trouble::Refused(Protocol::Upnp, Why::NotAuthorized)),
            ..Status::default()
        };
        assert_eq!(
            told(&status),
            "192.168.1.1: the router refuses to open a port by UPnP: its settings do not permit it"
        );
        status.trouble = None;
        status.mappings = vec![Mapping {
            gateway,
            port: Port {
                transport: Transport::Udp,
                number: 4100,
            },
            protocol: Protocol::NatPmp,
            external: "203.0.113.9:4101".parse().unwrap(),
            until: None,
        }];
        assert_eq!(
            told(&status),
            "192.168.1.1: 203.0.113.9:4101 leads to udp/4100 by NAT-PMP"
        );
    }

    #[test]
    fn a_router_without_a_public_address_is_not_sent_to_settings_that_permit_it_already() {
        let mut status = Status {
            is_enabled: true,
            ..Status::default()
        };
        for protocol in Protocol::ALL {
            status.trouble = Some(Trouble::Refused(protocol, Why::NoAddress));
            let found = finding(&status).unwrap();
            assert!(found.message.contains("behind another NAT"), "{found:?}");
            assert!(!found.help.contains("settings"), "{found:?}");
            assert!(found.help.contains("another router"), "{found:?}");
        }
    }

    #[test]
    fn every_router_is_shown_and_each_that_refuses_is_named_where_there_are_several() {
        let status = |address: &str, local: &str, trouble| Status {
            is_enabled: true,
            gateway: Some(Gateway {
                address: address.parse().unwrap(),
                local: local.parse().unwrap(),
            }),
            trouble,
            ..Status::default()
        };
        let refused = Some(Trouble::Refused(Protocol::Pcp, Why::NoRoom));
        let first = status("192.168.1.1", "192.168.1.7", refused);
        let [alone] = findings(std::slice::from_ref(&first)).try_into().unwrap();
        assert!(alone.message.starts_with("the router refuses"), "{alone:?}");
        let all = [
            first,
            status("192.168.2.1", "192.168.2.7", None),
            status("fe80::1", "2001:db8::7", refused),
            status("fe80::2", "2001:db8::8", Some(Trouble::Silent)),
        ];
        let info = all_shown(&all, Instant::now()).unwrap();
        let gateways = info.others.iter().map(|other| other.gateway.unwrap());
        let gateways: Vec<String> = gateways.map(|at| at.to_string()).collect();
        assert_eq!(info.gateway.unwrap().to_string(), "192.168.1.1");
        assert_eq!(gateways, ["192.168.2.1", "fe80::1", "fe80::2"]);
        let why = info.others[2].text.as_deref().unwrap();
        assert!(why.contains("firewall of IPv6"), "{why}");
        let found: Vec<String> = findings(&all).into_iter().map(|f| f.message).collect();
        let [v4, v6] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert!(v4.starts_with("192.168.1.1: the router refuses"), "{v4}");
        assert!(v6.starts_with("fe80::1: the router refuses"), "{v6}");
    }
}
