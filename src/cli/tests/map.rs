//! `map`.

use super::*;
use crate::model::host::Proto;

pub(super) fn map() -> MapInfo {
    MapInfo {
        subnet: name("lab"),
        name: name("web"),
        proto: Proto::Tcp,
        listen: "0.0.0.0:8080".into(),
        target: "web.lab:80".into(),
        address: None,
        state: "ok".into(),
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
            port: 53,
            target: "web".into(),
            target_port: 80,
            name: Some(name("m")),
            allow: vec![
                "10.0.0.0/8".parse().unwrap(),
                "192.0.2.1/32".parse().unwrap()
            ],
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
            port: Some(9000),
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
        let Request::MapAdd { listen, port, .. } = map.request().unwrap() else {
            panic!()
        };
        assert_eq!((listen, port), (None, 8080), "{line}");
    }
    let Verb::Map(rm) = parsed("byway map rm lab tcp :8080") else {
        panic!()
    };
    let Request::MapRm {
        listen, port, name, ..
    } = rm.request().unwrap()
    else {
        panic!()
    };
    assert_eq!((listen, port, name), (None, Some(8080), None));
    for (text, code) in [
        ("", "E-PORT"),
        (":", "E-PORT"),
        ("0", "E-PORT"),
        ("80-90", "E-PORT-RANGE"),
        ("::80", "E-ADDRESS"),
        ("10.0.0.1", "E-PORT"),
    ] {
        assert_eq!(value::listen(text).unwrap_err().code, code, "{text:?}");
    }
}
