//! Two uplinks: which addresses have to name their link, by what the kernel itself says.

use super::*;
use crate::host::Uplinks;
use crate::udp::Source;

/// The addresses that have to name their link, and how.
async fn exits() -> BTreeMap<String, (String, Source)> {
    let ways = Uplinks::follow().unwrap().now().await.unwrap();
    let names = ip("-o link");
    let name = |index: u32| {
        let line = names.lines().find(|l| l.starts_with(&format!("{index}: ")));
        let name = line.and_then(|line| line.split([' ', ':', '@']).nth(2));
        name.unwrap_or_default().to_owned()
    };
    let exits = ways.exits.iter();
    exits
        .map(|exit| (exit.local.to_string(), (name(exit.link), exit.source)))
        .collect()
}

fn two() {
    for (n, metric) in [(1, 100), (2, 200)] {
        ip(&format!("link add up{n} type veth peer far{n}"));
        ip(&format!("link set far{n} up"));
        ip(&format!("addr add 192.168.{n}.7/24 dev up{n}"));
        ip(&format!("addr add 2001:db8:{n}::7/64 dev up{n} nodad"));
        ip(&format!("link set up{n} up"));
        ip(&format!(
            "route add default via 192.168.{n}.1 metric {metric}"
        ));
        ip(&format!(
            "route add default via fe80::{n} dev up{n} metric {metric}"
        ));
    }
}

fn named(of: &[(&str, &str, Source)]) -> BTreeMap<String, (String, Source)> {
    let all = of.iter();
    all.map(|(ip, link, source)| ((*ip).to_owned(), ((*link).to_owned(), *source)))
        .collect()
}

const SECOND4: (&str, &str, Source) = ("192.168.2.7", "up2", Source::Named);
const SECOND6: (&str, &str, Source) = ("2001:db8:2::7", "up2", Source::OfLink);

#[test]
#[ignore = "needs root"]
fn the_address_of_the_second_uplink_names_its_link() {
    in_own_namespace(async || {
        two();
        assert_eq!(exits().await, named(&[SECOND4, SECOND6]));
        // An address of both, and one of none of them.
        ip("addr add 192.0.2.1/32 dev up1");
        ip("addr add 192.0.2.1/32 dev up2");
        ip("addr add 192.0.2.2/32 dev lo");
        assert_eq!(exits().await, named(&[SECOND4, SECOND6]));
        ip("link set up2 down");
        assert_eq!(exits().await, BTreeMap::new());
    });
}

#[test]
#[ignore = "needs root"]
fn what_the_administrator_routes_is_left_alone() {
    in_own_namespace(async || {
        two();
        // By the source.
        ip("route add default via 192.168.2.1 table 77");
        ip("rule add from 192.168.2.7 lookup 77");
        assert_eq!(exits().await, named(&[SECOND6]));
        ip("rule del from 192.168.2.7 lookup 77");
        assert_eq!(exits().await, named(&[SECOND4, SECOND6]));
        // Everything, into a tunnel, as VPNs do: by a rule, by a better default route, by two halves.
        ip("tuntap add vpn mode tun");
        ip("addr add 10.99.0.2/32 dev vpn");
        ip("link set vpn up");
        ip("route add default dev vpn table 88");
        ip("rule add not fwmark 51820 lookup 88");
        assert_eq!(exits().await, named(&[SECOND6]));
        ip("rule del not fwmark 51820 lookup 88");
        ip("route add default dev vpn metric 50");
        assert_eq!(exits().await, named(&[SECOND6]));
        ip("route del default dev vpn metric 50");
        ip("route add 0.0.0.0/1 dev vpn");
        ip("route add 128.0.0.0/1 dev vpn");
        assert_eq!(exits().await, named(&[SECOND6]));
    });
}
