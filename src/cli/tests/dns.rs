//! `dns`.

use super::*;
use crate::model::zone::RecordData;

pub(super) fn dns() -> DnsInfo {
    DnsInfo {
        name: "web.lab.internal".into(),
        r#type: "A".into(),
        value: "10.77.1.5".into(),
        ttl: 60,
        source: "workload".into(),
    }
}

#[test]
fn names_look_like_this() {
    shows(
        Response::Dns {
            records: vec![dns()],
        },
        "\
NAME               TYPE  VALUE       TTL  FROM
web.lab.internal   A     10.77.1.5   60   workload
",
    );
}

#[test]
fn names_become_requests() {
    let Verb::Dns(add) = parsed("byway dns add lab web 10.0.0.1 fd00::1 --ttl 5m") else {
        panic!()
    };
    assert_eq!(
        add.request(),
        Request::DnsAdd {
            subnet: "lab".into(),
            name: "web".into(),
            data: vec![
                RecordData::Address(ip("10.0.0.1")),
                RecordData::Address(ip("fd00::1"))
            ],
            ttl: 300,
        }
    );
}
