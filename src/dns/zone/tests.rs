//! What a zone says of names that exist, of names that do not, and of aliases.

use std::net::Ipv4Addr;

use super::super::reverse::pointer_name;
use super::*;
use proptest::prelude::*;

fn entry(data: RecordData) -> Entry {
    Entry { ttl: 60, data }
}

/// `lab.internal` with a bit of everything.
pub(in crate::dns) fn lab() -> Arc<Zone> {
    let mut zone = Zone::empty(&"lab".parse().unwrap());
    zone.serial = 7;
    zone.prefixes = vec![
        "10.42.0.0/16".parse().unwrap(),
        "fd00:42::/48".parse().unwrap(),
    ];
    let db: IpAddr = "10.42.7.20".parse().unwrap();
    let web4: IpAddr = "10.42.7.21".parse().unwrap();
    let web6: IpAddr = "fd00:42::21".parse().unwrap();
    let mut add = |name: &str, data: RecordData| zone.add(name, entry(data));
    add("db", RecordData::Address(db));
    add("web", RecordData::Address(web4));
    add("web", RecordData::Address(web6));
    add("www", RecordData::Cname("web.lab.internal".to_owned()));
    add("short", RecordData::Cname("web".to_owned()));
    add("out", RecordData::Cname("example.org".to_owned()));
    add("dead", RecordData::Cname("gone.lab.internal".to_owned()));
    add("loop1", RecordData::Cname("loop2.lab.internal".to_owned()));
    add("loop2", RecordData::Cname("loop1.lab.internal".to_owned()));
    add("note", RecordData::Txt("hello".to_owned()));
    add(
        "_http._tcp",
        RecordData::Srv {
            priority: 1,
            weight: 2,
            port: 80,
            target: "web".to_owned(),
        },
    );
    add("a.deep.tree", RecordData::Address(db));
    for i in 0..200u8 {
        add(
            "big",
            RecordData::Address(IpAddr::V4(Ipv4Addr::new(10, 42, 9, i))),
        );
    }
    zone.point(db, "db.lab.internal".into());
    zone.point(web6, "web.lab.internal".into());
    Arc::new(zone)
}

fn index() -> ZoneIndex {
    ZoneIndex::new(lab()).unwrap()
}

fn ask(name: &str, kind: RecordType) -> Answer {
    let name = absolute(name).unwrap();
    assert!(index().owns(&name), "{name}");
    index().lookup(&name, kind)
}

fn values(answer: &Answer) -> Vec<String> {
    answer
        .answers
        .iter()
        .map(|r| format!("{} {} {}", r.name, r.record_type(), r.data))
        .collect()
}

#[test]
fn names_are_found_in_any_case() {
    for name in ["db.lab.internal", "DB.Lab.INTERNAL"] {
        let answer = ask(name, RecordType::A);
        assert_eq!(answer.code, ResponseCode::NoError);
        assert_eq!(
            answer.answers.first().map(|r| r.data.clone()),
            Some(RData::A(A::new(10, 42, 7, 20)))
        );
    }
}

#[test]
fn other_type_of_a_name_is_empty_noerror_with_soa() {
    let answer = ask("db.lab.internal", RecordType::AAAA);
    assert_eq!(
        (answer.code, answer.answers.len()),
        (ResponseCode::NoError, 0)
    );
    let soa = answer.authorities.first().unwrap();
    assert!(matches!(&soa.data, RData::SOA(s) if s.serial == 7 && s.minimum <= 10));
    assert!(soa.ttl <= 10);
}

#[test]
fn unknown_name_is_nxdomain_with_soa() {
    let answer = ask("nothing.lab.internal", RecordType::A);
    assert_eq!(
        (answer.code, answer.authorities.len()),
        (ResponseCode::NXDomain, 1)
    );
    assert_eq!(
        ask("*.lab.internal", RecordType::A).code,
        ResponseCode::NXDomain
    );
    assert_eq!(
        ask("x.db.lab.internal", RecordType::A).code,
        ResponseCode::NXDomain
    );
}

#[test]
fn a_name_with_names_below_it_exists() {
    for name in [
        "deep.tree.lab.internal",
        "tree.lab.internal",
        "_tcp.lab.internal",
    ] {
        let answer = ask(name, RecordType::A);
        assert_eq!(
            (answer.code, answer.answers.len()),
            (ResponseCode::NoError, 0),
            "{name}"
        );
    }
}

#[test]
fn a_star_stands_for_names_below_that_do_not_exist() {
    let mut zone = Zone::clone(&lab());
    let address = |last| RecordData::Address(IpAddr::V4(Ipv4Addr::new(10, 42, 8, last)));
    zone.add("*.apps", entry(address(1)));
    zone.add("own.apps", entry(address(2)));
    zone.add("a.tree.apps", entry(address(3)));
    zone.add("*.away", entry(RecordData::Cname("db".to_owned())));
    let index = ZoneIndex::new(Arc::new(zone)).unwrap();
    let ask = |name: &str, kind| {
        let name = absolute(&format!("{name}.lab.internal")).unwrap();
        let answer = index.lookup(&name, kind);
        let found: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
        assert!(answer.answers.first().is_none_or(|r| r.name == name));
        (answer.code, found.join(" "))
    };
    let found = |text: &str| (ResponseCode::NoError, text.to_owned());
    let none = (ResponseCode::NXDomain, String::new());
    for name in ["shop.apps", "Any.Depth.apps", "*.apps"] {
        assert_eq!(ask(name, RecordType::A), found("10.42.8.1"), "{name}");
        assert_eq!(ask(name, RecordType::AAAA), found(""), "{name}");
    }
    // What exists, if only as the parent of a name, is not stood for, and neither is what is below it.
    assert_eq!(ask("own.apps", RecordType::A), found("10.42.8.2"));
    assert_eq!(ask("apps", RecordType::A), found(""));
    assert_eq!(ask("tree.apps", RecordType::A), found(""));
    for name in ["b.tree.apps", "x.own.apps", "xapps", "shop.apps.x"] {
        assert_eq!(ask(name, RecordType::A), none, "{name}");
    }
    assert_eq!(
        ask("far.away", RecordType::A),
        found("db.lab.internal. 10.42.7.20")
    );
}

#[test]
fn apex_has_a_soa() {
    let answer = ask("lab.internal", RecordType::SOA);
    assert_eq!(
        (answer.code, answer.answers.len()),
        (ResponseCode::NoError, 1)
    );
    assert_eq!(
        ask("lab.internal", RecordType::A).code,
        ResponseCode::NoError
    );
}

#[test]
fn aliases_are_followed_inside_the_zone() {
    let answer = ask("www.lab.internal", RecordType::A);
    assert_eq!(
        values(&answer),
        [
            "www.lab.internal. CNAME web.lab.internal.",
            "web.lab.internal. A 10.42.7.21"
        ]
    );
    assert_eq!(ask("short.lab.internal", RecordType::AAAA).answers.len(), 2);
    assert_eq!(ask("www.lab.internal", RecordType::CNAME).answers.len(), 1);
}

#[test]
fn alias_to_nothing_is_nxdomain_with_the_alias() {
    let answer = ask("dead.lab.internal", RecordType::A);
    assert_eq!(
        (answer.code, answer.answers.len()),
        (ResponseCode::NXDomain, 1)
    );
}

#[test]
fn alias_loop_ends_in_servfail() {
    assert_eq!(
        ask("loop1.lab.internal", RecordType::A).code,
        ResponseCode::ServFail
    );
}

#[test]
fn alias_out_of_the_zone_is_named() {
    let answer = ask("out.lab.internal", RecordType::A);
    assert_eq!(answer.outside, absolute("example.org"));
    assert_eq!(answer.answers.len(), 1);
}

#[test]
fn srv_brings_the_addresses_of_its_target() {
    let answer = ask("_HTTP._tcp.lab.internal", RecordType::SRV);
    assert_eq!(
        values(&answer),
        ["_HTTP._tcp.lab.internal. SRV 1 2 80 web.lab.internal."]
    );
    assert_eq!(answer.additionals.len(), 2);
}

#[test]
fn any_answers_one_record_set() {
    let answer = ask("web.lab.internal", RecordType::ANY);
    assert_eq!(values(&answer), ["web.lab.internal. A 10.42.7.21"]);
}

#[test]
fn addresses_have_pointers() {
    for (address, name) in [
        ("10.42.7.20", "db.lab.internal."),
        ("fd00:42::21", "web.lab.internal."),
    ] {
        let question = pointer_name(address.parse().unwrap());
        let answer = index().lookup(&question, RecordType::PTR);
        assert_eq!(
            answer.answers.first().map(|r| r.data.to_string()),
            Some(name.to_owned())
        );
        let other = index().lookup(&question, RecordType::A);
        assert_eq!(
            (other.code, other.answers.len()),
            (ResponseCode::NoError, 0)
        );
    }
}

#[test]
fn reverse_zone_says_nxdomain_and_knows_its_parents() {
    let answer = ask("99.9.42.10.in-addr.arpa", RecordType::PTR);
    assert_eq!(answer.code, ResponseCode::NXDomain);
    assert_eq!(
        answer.authorities.first().map(|r| r.name.to_string()),
        Some("42.10.in-addr.arpa.".to_owned())
    );
    assert_eq!(
        ask("7.42.10.in-addr.arpa", RecordType::PTR).code,
        ResponseCode::NoError
    );
    assert_eq!(
        ask("8.42.10.in-addr.arpa", RecordType::PTR).code,
        ResponseCode::NXDomain
    );
    assert_eq!(ask("42.10.in-addr.arpa", RecordType::SOA).answers.len(), 1);
    assert_eq!(
        ask("x.20.7.42.10.in-addr.arpa", RecordType::PTR).code,
        ResponseCode::NXDomain
    );
    assert_eq!(
        ask("300.7.42.10.in-addr.arpa", RecordType::PTR).code,
        ResponseCode::NXDomain
    );
}

#[test]
fn reverse_zones_end_at_the_prefix() {
    for name in [
        "10.in-addr.arpa",
        "43.10.in-addr.arpa",
        "1.1.43.10.in-addr.arpa",
        "ip6.arpa",
        "arpa",
        ".",
    ] {
        assert!(!index().owns(&absolute(name).unwrap()), "{name}");
    }
}

#[test]
fn prefix_between_labels_has_several_zones() {
    let mut zone = Zone::empty(&"lab".parse().unwrap());
    zone.prefixes = vec!["10.42.16.0/20".parse().unwrap()];
    let index = ZoneIndex::new(Arc::new(zone)).unwrap();
    let inside = absolute("1.17.42.10.in-addr.arpa").unwrap();
    assert!(index.owns(&inside));
    let soa = index.lookup(&inside, RecordType::PTR).authorities;
    assert_eq!(
        soa.first().map(|r| r.name.to_string()),
        Some("17.42.10.in-addr.arpa.".to_owned())
    );
    assert!(!index.owns(&absolute("1.32.42.10.in-addr.arpa").unwrap()));
}

proptest! {
    #[test]
    fn lookup_never_panics(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8), kind: u16) {
        let index = index();
        for tail in ["lab.internal", "42.10.in-addr.arpa", "2.4.0.0.0.0.d.f.ip6.arpa"] {
            let mut all = labels.clone();
            all.extend(tail.split('.').map(|l| l.as_bytes().to_vec()));
            if let Ok(mut name) = DnsName::from_labels(all.iter().map(Vec::as_slice)) {
                name.set_fqdn(true);
                if index.owns(&name) {
                    let answer = index.lookup(&name, RecordType::from(kind));
                    prop_assert!(!answer.answers.is_empty() || !answer.authorities.is_empty());
                }
            }
        }
    }
}
