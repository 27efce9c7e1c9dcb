//! `map`.

use super::*;
use crate::model::host::Proto;
use crate::model::ports::PortRange;

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

pub(super) fn map() -> MapInfo {
    MapInfo {
        subnet: name("lab"),
        name: name("web"),
        proto: Proto::Tcp,
        listen: "0.0.0.0:8080".into(),
        target: "web.lab:80".into(),
        address: None,
        state: "ok".into(),
        by_engine: false,
        note: None,
        help: None,
        connections: 12,
        rx_bytes: 3_100_000_000,
        tx_bytes: 88_000_000,
        allow: vec![],
    }
}

#[test]
fn maps_look_like_this() {
    shows(
        Response::Maps { maps: vec![map()] },
        "\
SUBNET  NAME  PROTO  LISTEN         TARGET       STATE  CONNECTIONS  RX/TX
lab     web   tcp    0.0.0.0:8080   web.lab:80   ok     12           3.1 G / 88 M
",
    );
}

#[test]
fn what_is_not_well_with_a_map_stands_below() {
    let note = Some("nothing listens at web.lab:80".to_owned());
    let help = Some("let something listen there".to_owned());
    shows(
        Response::Maps {
            maps: vec![MapInfo {
                state: "refused".into(),
                note,
                help,
                ..map()
            }],
        },
        "\
SUBNET  NAME  PROTO  LISTEN         TARGET       STATE     CONNECTIONS  RX/TX
lab     web   tcp    0.0.0.0:8080   web.lab:80   refused   12           3.1 G / 88 M
! web: nothing listens at web.lab:80   (let something listen there)
",
    );
}

#[test]
fn what_is_not_well_with_both_families_of_a_map_is_said_once() {
    let of = |listen: &str| MapInfo {
        listen: listen.into(),
        note: Some("nothing listens at web.lab:80".to_owned()),
        ..map()
    };
    let maps = vec![of("0.0.0.0:8080"), of("[::]:8080")];
    let shown = render(&Response::Maps { maps }, STYLE);
    assert_eq!(
        shown.matches("! web: nothing listens").count(),
        1,
        "{shown}"
    );
}

#[test]
fn maps_become_requests() {
    let line = "byway map add lab tcp [::]:53 web:80 --allow 10.0.0.0/8 192.0.2.1 --name m";
    let Verb::Map(map) = parsed(line) else {
        panic!()
    };
    assert_eq!(
        map.request().unwrap(),
        Request::MapAdd {
            subnet: "lab".into(),
            proto: Proto::Tcp,
            listen: Some(ip("::")),
            ports: range("53"),
            target: "web".into(),
            target_ports: range("80"),
            name: Some(name("m")),
            allow: vec![
                "10.0.0.0/8".parse().unwrap(),
                "192.0.2.1/32".parse().unwrap()
            ],
            workload: None,
        }
    );
    let Verb::Map(rm) = parsed("byway map rm lab udp 127.0.0.1:9000") else {
        panic!()
    };
    assert_eq!(
        rm.request().unwrap(),
        Request::MapRm {
            subnet: "lab".into(),
            name: None,
            proto: Some(Proto::Udp),
            listen: Some(ip("127.0.0.1")),
            ports: Some(range("9000")),
        }
    );
}

#[test]
fn a_port_alone_is_every_address_and_nothing_else_is() {
    for line in [
        "byway map add lab tcp 8080 web:80",
        "byway map add lab tcp :8080 web:80",
    ] {
        let Verb::Map(map) = parsed(line) else {
            panic!()
        };
        let Request::MapAdd { listen, ports, .. } = map.request().unwrap() else {
            panic!()
        };
        assert_eq!((listen, ports), (None, range("8080")), "{line}");
    }
    let Verb::Map(rm) = parsed("byway map rm lab tcp :8080") else {
        panic!()
    };
    let Request::MapRm {
        listen,
        ports,
        name,
        ..
    } = rm.request().unwrap()
    else {
        panic!()
    };
    assert_eq!((listen, ports, name), (None, Some(range("8080")), None));
    for (text, code) in [
        ("", "E-PORT"),
        (":", "E-PORT"),
        ("0", "E-PORT"),
        ("90-80", "E-PORT-RANGE"),
        ("80-", "E-PORT"),
        ("1-65536", "E-PORT"),
        ("::80", "E-ADDRESS"),
        ("10.0.0.1", "E-PORT"),
    ] {
        assert_eq!(value::listen(text).unwrap_err().code, code, "{text:?}");
    }
}

#[test]
fn ranges_become_requests_of_one_map() {
    let Verb::Map(map) = parsed("byway map add lab udp [::1]:8000-8010 [fd00::1]:9000-9010") else {
        panic!()
    };
    let Request::MapAdd {
        listen,
        ports,
        target,
        target_ports,
        ..
    } = map.request().unwrap()
    else {
        panic!()
    };
    assert_eq!((listen, ports), (Some(ip("::1")), range("8000-8010")));
    assert_eq!(
        (target.as_str(), target_ports),
        ("fd00::1", range("9000-9010"))
    );
    let Verb::Map(rm) = parsed("byway map rm lab udp 8000-8010") else {
        panic!()
    };
    let Request::MapRm { listen, ports, .. } = rm.request().unwrap() else {
        panic!()
    };
    assert_eq!((listen, ports), (None, Some(range("8000-8010"))));
}
