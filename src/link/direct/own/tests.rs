//! What this node concludes from what others see of it.

use super::*;
use crate::testing::some_moment;
use crate::wire::paths::{NatFacts, Udp};

impl Own {
    fn observed(&mut self, now: Instant, address: SocketAddr, by: PeerId) -> bool {
        self.observed_from(now, address, (by, None), None)
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn by(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn host(text: &str) -> Candidate {
    Candidate {
        address: at(text),
        kind: Kind::Host,
    }
}

fn mapping(seen: &[(u8, &str)]) -> Mapping {
    let mut own = Own::default();
    own.set_named(vec![host("192.168.1.7:4100")]);
    for (n, address) in seen {
        own.observed(some_moment(), at(address), by(*n));
    }
    own.facts(None).mapping
}

#[test]
fn two_observers_tell_how_a_nat_maps() {
    assert_eq!(mapping(&[]), Mapping::Unknown);
    assert_eq!(mapping(&[(1, "192.168.1.7:4100")]), Mapping::Open);
    assert_eq!(mapping(&[(1, "198.51.100.1:5000")]), Mapping::Unknown);
    let same = [(1, "198.51.100.1:5000"), (2, "198.51.100.1:5000")];
    assert_eq!(mapping(&same), Mapping::Independent);
    let other = [(1, "198.51.100.1:5000"), (2, "198.51.100.1:5700")];
    assert_eq!(mapping(&other), Mapping::Dependent { step: None });
    let again = [(1, "198.51.100.1:5000"), (1, "198.51.100.1:5007")];
    assert_eq!(
        mapping(&again),
        Mapping::Unknown,
        "one that changed its mind"
    );
}

#[test]
fn a_nat_that_counts_up_is_told_from_one_that_does_not() {
    let counted = [
        (1, "198.51.100.1:5000"),
        (2, "198.51.100.1:5002"),
        (3, "198.51.100.1:5004"),
    ];
    assert_eq!(mapping(&counted), Mapping::Dependent { step: Some(2) });
    let shared = [
        (1, "198.51.100.1:5000"),
        (2, "198.51.100.1:4996"),
        (3, "198.51.100.1:4990"),
    ];
    assert_eq!(mapping(&shared), Mapping::Dependent { step: Some(-2) });
    assert_eq!(mapping(&shared[..2]), Mapping::Dependent { step: Some(-1) });
    let random = [
        (1, "198.51.100.1:5000"),
        (2, "198.51.100.1:5002"),
        (3, "198.51.100.1:4990"),
    ];
    assert_eq!(mapping(&random), Mapping::Dependent { step: None });
}

#[test]
fn what_a_lan_peer_inside_the_outer_nat_sees_is_another_address_and_no_contradiction() {
    let seen = [(1, "10.0.0.4:4100"), (2, "198.51.100.1:5000")];
    assert_eq!(mapping(&seen), Mapping::Unknown);
}

#[test]
fn an_observer_that_was_heard_long_ago_contradicts_nobody() {
    let mut own = Own::default();
    own.observed(some_moment(), at("198.51.100.1:5000"), by(1));
    own.observed(some_moment() + STALE, at("198.51.100.1:6000"), by(2));
    assert_eq!(own.facts(None).mapping, Mapping::Unknown);
    let told: Vec<SocketAddr> = own.candidates(&[]).iter().map(|c| c.address).collect();
    assert_eq!(told, [at("198.51.100.1:6000")]);
}

#[test]
fn engine_bridges_cannot_fill_the_list() {
    let mut own = Own::default();
    let named = (1..=16).map(|n| host(&format!("172.{n}.0.1:4100")));
    let advertised = Candidate {
        address: at("203.0.113.9:4100"),
        kind: Kind::Advertised,
    };
    own.set_named(named.chain([advertised]).collect());
    for n in 1..=9 {
        own.observed(some_moment(), at(&format!("198.51.100.{n}:5000")), by(n));
    }
    let told = own.candidates(&[]);
    let count = |kind| told.iter().filter(|c| c.kind == kind).count();
    assert_eq!(
        [Kind::Host, Kind::Observed, Kind::Advertised].map(count),
        [4, 3, 1]
    );
}

#[test]
fn denied_and_overlay_addresses_are_not_told() {
    let mut own = Own::default();
    own.set_named(vec![
        host("10.7.0.1:4100"),
        host("172.17.0.1:4100"),
        host("192.0.2.1:4100"),
    ]);
    own.deny(vec!["172.16.0.0/12".parse().unwrap()]);
    let told = own.candidates(&["10.7.0.0/16".parse().unwrap()]);
    assert_eq!(told, [host("192.0.2.1:4100")]);
}

#[test]
fn what_was_seen_by_way_of_a_network_that_was_left_is_forgotten() {
    let mut own = Own::default();
    let (home, mobile) = (host("192.168.1.7:4100"), host("10.9.0.7:4100"));
    let now = some_moment();
    let local = |named: &Candidate| Some(named.address.ip());
    own.set_named(vec![home, mobile]);
    own.observed_from(now, at("198.51.100.1:4100"), (by(1), None), local(&home));
    own.observed_from(now, at("198.51.100.1:4100"), (by(2), None), None);
    own.observed_from(now, at("203.0.113.9:4100"), (by(1), None), local(&mobile));
    own.observed(now, at("[2001:db8::7]:4100"), by(2));
    assert_eq!(own.seen().count(), 4);
    // Another interface comes up: nothing is void.
    own.set_named(vec![home, mobile, host("172.16.0.7:4100")]);
    assert_eq!(own.seen().count(), 4);
    own.set_named(vec![mobile]);
    let left: Vec<SocketAddr> = own.seen().map(|seen| seen.0).collect();
    assert_eq!(left, [at("203.0.113.9:4100"), at("[2001:db8::7]:4100")]);
}

#[test]
fn what_was_seen_is_forgotten_with_the_default_route_it_was_seen_by() {
    let mut own = Own::default();
    assert!(own.set_uplinks(vec![2]));
    own.observed(some_moment(), at("198.51.100.1:4100"), by(1));
    assert!(!own.set_uplinks(vec![2]));
    assert!(own.set_uplinks(vec![2, 3]), "a further one is news");
    assert_eq!(own.seen().count(), 1);
    assert!(own.set_uplinks(vec![3]));
    assert_eq!(own.seen().count(), 0);
}

#[test]
fn an_observer_that_alternates_makes_news_rarer_and_rarer() {
    let mut own = Own::default();
    let mut news = 0;
    for half in 0..1200u32 {
        let now = some_moment() + Duration::from_millis(500) * half;
        let port = if half % 2 == 0 { 5000 } else { 6000 };
        let address = SocketAddr::from(([198, 51, 100, 1], port));
        news += u32::from(own.observed(now, address, by(1)));
    }
    assert!(news <= 40, "{news} changes told in ten minutes");
}

#[test]
fn more_observers_than_are_remembered_are_no_news_again_and_again() {
    let mut own = Own::default();
    let mut news = 0;
    for round in 0..20 {
        for n in 1..=50u8 {
            let address = SocketAddr::from(([198, 51, 100, 1], 5000 + 97 * u16::from(n)));
            let now = some_moment() + Duration::from_secs(2) * round;
            news += u32::from(own.observed(now, address, by(n)));
        }
    }
    assert!(news <= u32::try_from(OBSERVERS).unwrap(), "{news}");
    // One that is stale gives its place to another.
    let later = some_moment() + STALE * 2;
    assert!(own.observed(later, at("203.0.113.1:5000"), by(60)));
}

#[test]
fn a_step_that_nobody_counts_by_leads_to_no_port() {
    let of = |port: u16, step| Paths {
        candidates: vec![Candidate {
            address: SocketAddr::from(([198, 51, 100, 1], port)),
            kind: Kind::Predicted,
        }],
        facts: NatFacts {
            mapping: Mapping::Dependent { step: Some(step) },
            ..NatFacts::default()
        },
        probe: None,
    };
    assert!(expected(&of(1043, -90)).is_empty());
    assert!(expected(&of(1030, -2)).iter().all(|a| a.port() >= 1024));
    assert_eq!(expected(&of(5000, i16::MIN)).len(), 0);
}

#[test]
fn the_next_ports_of_a_nat_that_counts_are_told_and_tried() {
    let mut own = Own::default();
    own.set_named(vec![host("192.168.1.7:4100")]);
    for (n, port) in [(1, 5000), (2, 4998), (3, 4996)] {
        own.observed(
            some_moment(),
            SocketAddr::from(([198, 51, 100, 1], port)),
            by(n),
        );
    }
    let told = Paths {
        candidates: own.candidates(&[]),
        facts: own.facts(None),
        probe: None,
    };
    let predicted = told.candidates.iter().find(|c| c.kind == Kind::Predicted);
    assert_eq!(predicted.unwrap().address, at("198.51.100.1:4994"));
    let expected = expected(&told);
    assert_eq!(expected.first(), Some(&at("198.51.100.1:4992")));
    assert_eq!(expected.len(), 11);
    assert!(super::expected(&Paths::default()).is_empty());
    // At the end of the numbers there are none left.
    own.observed(some_moment(), at("198.51.100.1:2"), by(1));
    own.observed(some_moment(), at("198.51.100.1:1"), by(2));
    own.observed(some_moment(), at("198.51.100.1:0"), by(3));
    assert!(
        own.candidates(&[])
            .iter()
            .all(|c| c.kind != Kind::Predicted)
    );
}

#[test]
fn what_is_known_of_one_uplink_says_nothing_of_the_other() {
    let mut own = Own::default();
    let (home, mobile) = (host("10.9.0.7:4100"), host("192.168.1.7:4100"));
    own.set_named(vec![home, mobile]);
    let (home, mobile) = (Some(home.address.ip()), Some(mobile.address.ip()));
    let mut now = some_moment();
    // By the one the NAT keeps its port, by the other it is symmetric; each is seen again and again, in turn.
    let mut news = 0;
    for _ in 0..60 {
        for by_whom in [1, 2] {
            let random = SocketAddr::from(([203, 0, 113, 9], 5000 + 900 * u16::from(by_whom)));
            for (local, address) in [(home, at("198.51.100.1:4100")), (mobile, random)] {
                news += u32::from(own.observed_from(now, address, (by(by_whom), None), local));
                now += Duration::from_secs(1);
            }
        }
        let told = (own.facts(home).mapping, own.facts(mobile).mapping);
        assert_eq!(
            told,
            (Mapping::Independent, Mapping::Dependent { step: None })
        );
        assert_eq!(own.facts(None), own.facts(home), "the kernel prefers it");
    }
    assert!(news <= 4, "{news} changes told");
    assert_eq!(own.predicted(), None, "the usual way has no such port");
    // Nor does a relay, which sees what the kernel chooses, speak of the other one.
    own.observed_from(now, at("198.51.100.1:4100"), (by(3), None), None);
    assert_eq!(own.facts(mobile).mapping, Mapping::Dependent { step: None });
    // What is let in is kept in the same way.
    assert!(own.set_filtering(home, Filtering::Independent, Unsure::default()));
    assert!(own.set_filtering(mobile, Filtering::AddressDependent, Unsure::default()));
    assert!(!own.set_filtering(home, Filtering::Independent, Unsure::default()));
    assert_eq!(own.facts(None).filtering, Filtering::Independent);
    assert_eq!(own.facts(mobile).filtering, Filtering::AddressDependent);
    // An uplink of which nobody has said anything is not known, whatever the others are.
    let other = Some("172.16.0.7".parse().unwrap());
    assert_eq!(own.facts(other).mapping, Mapping::Unknown);
    assert_eq!(own.facts(other).filtering, Filtering::Unknown);
}

#[test]
fn an_address_that_is_not_told_may_be_the_only_way_out() {
    let mut own = Own::default();
    own.set_named(vec![host("192.168.1.7:4100")]);
    let tunnel = Some("10.64.0.2".parse().unwrap());
    for n in [1, 2] {
        own.observed_from(
            some_moment(),
            at("198.51.100.1:5000"),
            (by(n), None),
            tunnel,
        );
    }
    assert_eq!(own.facts(None).mapping, Mapping::Independent);
}

#[test]
fn addresses_are_told_and_tried_in_the_order_that_the_kernel_prefers() {
    let mut own = Own::default();
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let all = [
        "10.0.0.7:4100",
        "172.17.0.1:4100",
        "192.168.1.7:4100",
        "[2001:db8::7]:4100",
        "[2001:db8::3]:4100",
    ];
    assert!(own.set_named(all.map(host).to_vec()));
    let preferred = ["192.168.1.7", "2001:db8::7", "10.0.0.7"].map(ip).to_vec();
    assert!(own.set_preferred(preferred.clone()), "another order");
    assert!(!own.set_preferred(preferred));
    let order = [
        "192.168.1.7",
        "2001:db8::7",
        "10.0.0.7",
        "172.17.0.1",
        "2001:db8::3",
    ]
    .map(ip);
    assert_eq!(own.locals(), order);
    let told: Vec<IpAddr> = own.candidates(&[]).iter().map(|c| c.address.ip()).collect();
    assert_eq!(told, order);
    // The same addresses in whatever order are no news, and keep theirs.
    let mut named = all.map(host).to_vec();
    named.reverse();
    assert!(!own.set_named(named));
    assert_eq!(own.locals(), order);
    // Bridges of engines take no place of an uplink's among the few that are told.
    let bridges = (1..=9).map(|n| host(&format!("10.{n}.0.1:4100")));
    own.set_named(bridges.chain(all.map(host)).collect());
    let told = own.candidates(&[]);
    let v4: Vec<IpAddr> = told
        .iter()
        .map(|c| c.address.ip())
        .filter(IpAddr::is_ipv4)
        .collect();
    assert_eq!(v4[..2], [ip("192.168.1.7"), ip("10.0.0.7")]);
    // Where the kernel prefers the other uplink, that one is the usual way out.
    own.set_preferred(vec![ip("10.0.0.7"), ip("192.168.1.7")]);
    assert_eq!(own.locals().first(), Some(&ip("10.0.0.7")));
}

#[test]
fn what_one_relay_sees_counts_once_whoever_has_named_it() {
    let (relay, now) = (Some(at("203.0.113.1:4100")), some_moment());
    let mut own = Own::default();
    own.set_named(vec![host("192.168.1.7:4100")]);
    own.observed_from(now, at("198.51.100.1:4100"), (by(1), relay), None);
    own.observed_from(now, at("198.51.100.1:4100"), (by(2), relay), None);
    assert_eq!(own.facts(None).mapping, Mapping::Unknown, "one voice");
    let other = Some(at("203.0.113.5:4100"));
    own.observed_from(now, at("198.51.100.1:4101"), (by(3), other), None);
    let mapping = own.facts(None).mapping;
    assert!(matches!(mapping, Mapping::Dependent { .. }), "{mapping:?}");
}

#[test]
fn udp_is_blocked_only_where_it_passes_by_no_uplink() {
    let now = some_moment();
    let mut own = Own::default();
    own.set_named(vec![host("192.168.1.7:4100"), host("10.0.0.7:4100")]);
    let [first, second] = ["192.168.1.7", "10.0.0.7"].map(|text| text.parse().unwrap());
    // The first blocks it, and nothing has been tried by the second.
    assert!(own.set_silent(now, 1));
    let udp = |own: &Own| [None, Some(first), Some(second)].map(|local| own.facts(local).udp);
    assert_eq!(udp(&own), [Udp::Blocked; 3]);
    let seen = at("198.51.100.2:4100");
    assert!(own.observed_from(now, seen, (by(1), None), Some(second)));
    assert_eq!(udp(&own), [Udp::Works, Udp::Unknown, Udp::Works]);
    // That uplink is gone: what passed by it says nothing of the other.
    own.set_named(vec![host("192.168.1.7:4100")]);
    assert_eq!(own.facts(None).udp, Udp::Unknown);
}

#[test]
fn udp_that_is_blocked_later_is_found_out_and_passes_again_once_anybody_sees_us() {
    let mut now = some_moment();
    let mut own = Own::default();
    own.observed(now, at("198.51.100.1:4100"), by(1));
    assert!(!own.set_silent(now, 2), "it passed just now");
    now += 2 * SEEN_NOW;
    assert!(!own.set_silent(now, 1), "that may be the peer's affair");
    assert!(own.set_silent(now, 2));
    assert_eq!(own.facts(None).udp, Udp::Blocked);
    assert!(own.observed(now, at("198.51.100.1:4100"), by(1)));
    assert_eq!(own.facts(None).udp, Udp::Works);
    let mut fresh = Own::default();
    assert!(fresh.set_silent(now, 1), "nothing ever came back");
}

#[test]
fn what_was_seen_before_udp_was_blocked_is_not_told_any_more() {
    let now = some_moment();
    let mut own = Own::default();
    own.set_named(vec![host("192.168.1.7:4100")]);
    for n in [1, 2] {
        own.observed(now, at("198.51.100.1:4100"), by(n));
    }
    own.set_filtering(None, Filtering::Independent, Unsure::NotTested);
    let told = |own: &Own| (own.facts(None).mapping, own.facts(None).filtering);
    let before = (Mapping::Independent, Filtering::Independent);
    assert_eq!(told(&own), before);
    assert!(own.set_silent(now + 2 * SEEN_NOW, 2));
    assert_eq!(told(&own), (Mapping::Unknown, Filtering::Unknown));
    own.observed(now + 3 * SEEN_NOW, at("198.51.100.1:4100"), by(1));
    assert_eq!(told(&own), before);
}

#[test]
fn a_port_of_a_router_is_open_where_others_outside_see_that_address() {
    let with = |kind, open: &str, seen: &[&str]| {
        let mut own = Own::default();
        let address = at(open);
        own.set_named(vec![host("192.168.1.7:4100"), Candidate { address, kind }]);
        for (n, address) in (1..).zip(seen) {
            own.observed(some_moment(), at(address), by(n));
        }
        own.open()
    };
    for kind in [Kind::Mapped, Kind::Advertised] {
        let open = "203.0.113.9:4100";
        assert_eq!(with(kind, open, &[]), Some(at(open)), "nobody says else");
        let same = ["203.0.113.9:50000", "192.168.1.7:4100"];
        assert_eq!(with(kind, open, &same), Some(at(open)));
        // A LAN peer inside says nothing of the outside; somebody outside does.
        assert_eq!(with(kind, open, &["10.0.0.5:4100"]), Some(at(open)));
        assert_eq!(with(kind, open, &["198.51.100.1:4100"]), None);
        let v6 = "[2001:db8::9]:4100";
        assert_eq!(with(kind, v6, &["198.51.100.1:4100"]), Some(at(v6)));
        for inside in ["10.0.0.5:4100", "100.64.0.5:4100", "127.0.0.1:4100"] {
            assert_eq!(with(kind, inside, &[]), None, "{inside}");
        }
    }
    assert_eq!(with(Kind::Host, "203.0.113.9:4100", &[]), None);
}
