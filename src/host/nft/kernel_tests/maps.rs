//! Port maps answer whom they are for, count, and end what they began when they go.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Lab, PATIENCE, SILENCE, addr, echoes, elements, map, wanted, web};
use crate::host::nft::MapKey;
use crate::host::proxy::Proxies;
use crate::model::host::{HostConfig, MapConfig, Proto};

#[test]
#[ignore = "needs root"]
fn maps_answer_from_everywhere_and_only_as_asked() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    assert!(lab.sync(&config).is_empty());
    let n = &lab.neighbour;
    // From outside, a local target sees the client.
    assert_eq!(n.tcp("192.0.2.1:8080"), addr("192.0.2.2"));
    assert_eq!(n.tcp("[2001:db8::1]:8080"), addr("2001:db8::2"));
    assert_eq!(n.udp("192.0.2.1:8080", PATIENCE), addr("192.0.2.2"));
    assert_eq!(n.udp("[2001:db8::1]:8080", PATIENCE), addr("2001:db8::2"));
    // A target on another peer sees this node.
    assert_eq!(n.tcp("192.0.2.1:9090"), addr("10.7.1.1"));
    assert_eq!(n.udp("[2001:db8::1]:9090", PATIENCE), addr("fd00:7::1"));
    // This machine's own clients.
    assert!(lab.host.tcp("192.0.2.1:8080").is_some());
    assert!(lab.host.tcp("[2001:db8::1]:8080").is_some());
    assert!(lab.host.udp("192.0.2.1:8080", PATIENCE).is_some());
    assert_eq!(lab.host.tcp("192.0.2.1:9090"), addr("10.7.1.1"));
    // Hairpin: from another workload, from one of another subnet, and from the target itself.
    assert_eq!(lab.b.tcp("192.0.2.1:8080"), addr("10.7.1.3"));
    assert_eq!(lab.b.tcp("10.7.1.1:8080"), addr("10.7.1.3"));
    assert_eq!(lab.c.tcp("192.0.2.1:8080"), addr("10.8.1.2"));
    assert_eq!(lab.a.tcp("192.0.2.1:8080"), addr("10.7.1.1"));
    assert_eq!(lab.a.tcp("[2001:db8::1]:8080"), addr("fd00:7::1"));
    assert_eq!(lab.a.udp("192.0.2.1:8080", PATIENCE), addr("10.7.1.1"));
    // A member.
    assert_eq!(lab.peer.tcp("10.7.1.1:8080"), addr("10.7.2.1"));
    // Not asked for: the wrong protocol, the wrong address, the wrong port, the workload itself.
    assert_eq!(n.connect("[2001:db8::1]:9090", SILENCE).map(|c| c.1), None);
    assert_eq!(n.udp("192.0.2.1:9090", SILENCE), None);
    assert_eq!(
        lab.peer.connect("10.7.1.1:9090", SILENCE).map(|c| c.1),
        None
    );
    for direct in ["10.7.1.2:80", "[fd00:7::2]:80"] {
        assert_eq!(n.connect(direct, SILENCE).map(|c| c.1), None, "{direct}");
        assert_eq!(n.udp(direct, SILENCE), None, "{direct}");
    }
    let counts = lab.counts();
    let key = MapKey {
        proto: Proto::Tcp,
        listen: "0.0.0.0".parse().unwrap(),
        port: 8080,
    };
    let web = counts.maps[&key];
    assert_eq!(web.connections, 7, "{counts:?}");
    assert!(web.rx_bytes > 7 * 100 && web.tx_bytes > 7 * 100, "{web:?}");
    let remote = counts.maps[&MapKey {
        listen: "192.0.2.1".parse().unwrap(),
        port: 9090,
        ..key
    }];
    assert_eq!(remote.connections, 2);
    assert!(counts.drops["weak_host"].packets > 0, "{counts:?}");
}

#[test]
#[ignore = "needs root"]
fn removing_a_map_leaves_the_ruleset_as_it_was_and_ends_its_flows() {
    let lab = Lab::new();
    lab.host.sh("nft 'add table ip admin; add chain ip admin c { type filter hook input priority 0; }; add rule ip admin c tcp dport 22 accept'");
    let mut config = wanted();
    assert!(lab.sync(&config).is_empty());
    let before = lab.ruleset();
    config.maps = web();
    config.maps[0].allow = vec!["192.0.2.0/25".parse().unwrap()];
    lab.sync(&config);
    let stream = |to: &str| {
        lab.neighbour
            .connect(to, PATIENCE)
            .map(|(s, _)| Arc::new(Mutex::new(s)))
            .unwrap()
    };
    let (kept, cut) = (stream("192.0.2.1:9090"), stream("192.0.2.1:8080"));
    let cut6 = stream("[2001:db8::1]:8080");
    assert!(echoes(&lab.neighbour, &cut, PATIENCE) && echoes(&lab.neighbour, &cut6, PATIENCE));
    config.maps.retain(|m| m.port != 8080);
    lab.sync(&config);
    assert!(!echoes(&lab.neighbour, &cut, SILENCE) && !echoes(&lab.neighbour, &cut6, SILENCE));
    assert!(
        echoes(&lab.neighbour, &kept, PATIENCE),
        "flows of other maps go on"
    );
    config.maps.clear();
    lab.sync(&config);
    assert!(!echoes(&lab.neighbour, &kept, SILENCE));
    assert_eq!(lab.ruleset(), before);
    // The table goes with the last subnet; the administrator's stays.
    lab.sync(&HostConfig::default());
    let left = lab.ruleset();
    assert!(
        left.contains("table ip admin") && !left.contains("byway"),
        "{left}"
    );
}

#[test]
#[ignore = "needs root"]
fn a_target_that_moves_takes_new_flows_and_ends_old_ones() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = vec![map(7, Proto::Tcp, "0.0.0.0", 8080, "10.7.1.2", 80)];
    lab.sync(&config);
    let old = Arc::new(Mutex::new(
        lab.neighbour.connect("192.0.2.1:8080", PATIENCE).unwrap().0,
    ));
    config.maps[0].target = addr("10.7.2.1");
    config.maps[0].local = false;
    lab.sync(&config);
    assert!(!echoes(&lab.neighbour, &old, SILENCE));
    assert_eq!(lab.neighbour.tcp("192.0.2.1:8080"), addr("10.7.1.1"));
    let key = MapKey::of(&config.maps[0]);
    assert_eq!(
        lab.counts().maps[&key].connections,
        2,
        "the count of a map outlives its target"
    );
}

#[test]
#[ignore = "needs root"]
fn only_allowed_clients_reach_a_guarded_map() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    for map in &mut config.maps {
        map.allow = vec![
            "203.0.113.0/24".parse().unwrap(),
            "2001:db8:1::/48".parse().unwrap(),
        ];
    }
    lab.sync(&config);
    let n = &lab.neighbour;
    for closed in ["192.0.2.1:8080", "[2001:db8::1]:8080", "192.0.2.1:9090"] {
        assert_eq!(n.connect(closed, SILENCE).map(|c| c.1), None, "{closed}");
        assert_eq!(n.udp(closed, SILENCE), None, "{closed}");
    }
    for map in &mut config.maps {
        map.allow.push("192.0.2.2/32".parse().unwrap());
        map.allow.push("2001:db8::/64".parse().unwrap());
    }
    lab.sync(&config);
    assert_eq!(n.tcp("192.0.2.1:8080"), addr("192.0.2.2"));
    assert_eq!(n.tcp("[2001:db8::1]:8080"), addr("2001:db8::2"));
    assert_eq!(n.tcp("192.0.2.1:9090"), addr("10.7.1.1"));
}

#[test]
#[ignore = "needs root"]
fn loopback_maps_answer_here_and_nowhere_else() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    config
        .maps
        .push(map(7, Proto::Tcp, "127.0.0.1", 9000, "10.7.1.2", 80));
    lab.sync(&config);
    let proxies = Arc::new(Mutex::new(Proxies::new()));
    let sync = |maps: &[MapConfig]| {
        let (proxies, maps) = (proxies.clone(), maps.to_vec());
        lab.host
            .run(async move { proxies.lock().await.sync(&maps, &BTreeSet::new()).await })
    };
    assert!(sync(&config.maps).is_empty());
    for (tcp, seen) in [
        ("127.0.0.1:8080", "10.7.1.1"),
        ("[::1]:8080", "fd00:7::1"),
        ("127.0.0.1:9000", "10.7.1.1"),
    ] {
        assert_eq!(lab.host.tcp(tcp), addr(seen), "{tcp}");
    }
    assert_eq!(lab.host.udp("127.0.0.1:8080", PATIENCE), addr("10.7.1.1"));
    assert_eq!(lab.host.udp("[::1]:8080", PATIENCE), addr("fd00:7::1"));
    // From the LAN: the port on loopback is closed, however it is asked for.
    assert_eq!(
        lab.neighbour
            .connect("192.0.2.1:9000", SILENCE)
            .map(|c| c.1),
        None
    );
    lab.neighbour.sh("ip route add 127.0.0.1/32 via 192.0.2.1 table 77; ip rule add to 127.0.0.1 lookup 77 priority 0; ip link set lo down; sysctl -qw net.ipv4.conf.all.route_localnet=1");
    assert_eq!(
        lab.neighbour
            .connect("127.0.0.1:9000", SILENCE)
            .map(|c| c.1),
        None
    );
    let cut = Arc::new(Mutex::new(
        lab.host.connect("127.0.0.1:8080", PATIENCE).unwrap().0,
    ));
    assert!(sync(&[]).is_empty());
    assert!(!echoes(&lab.host, &cut, SILENCE));
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_maps_change_one_at_a_time() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = (10_000u16..20_000)
        .map(|port| map(7, Proto::Tcp, "0.0.0.0", port, "10.7.1.2", 80))
        .collect();
    let start = std::time::Instant::now();
    lab.sync(&config);
    let whole = start.elapsed();
    // As in the daemon: watched, so a change needs no listing.
    let stop = CancellationToken::new();
    let (nft, token) = (lab.nft.clone(), stop.clone());
    let watching = lab.host.run(async move {
        let watcher = nft.lock().await.watch().unwrap();
        // In a tuple: the task is joined at the end, outside.
        (tokio::spawn(watcher.run(token)),)
    });
    lab.sync(&config);
    let last = config.maps.pop().unwrap();
    let start = std::time::Instant::now();
    lab.sync(&config);
    let change = start.elapsed();
    let start = std::time::Instant::now();
    let (before, after) = (
        elements(&config).0,
        elements(&HostConfig {
            maps: vec![],
            ..config.clone()
        })
        .0,
    );
    assert_eq!(before.ended(&after).len(), 9_999);
    let pure = start.elapsed();
    eprintln!(
        "10,000 maps: whole table {whole:?}, one change {change:?}, elements and their difference {pure:?}"
    );
    assert!(lab.neighbour.tcp("192.0.2.1:19998").is_some());
    assert_eq!(
        lab.neighbour
            .connect(&format!("192.0.2.1:{}", last.port), SILENCE)
            .map(|c| c.1),
        None
    );
    stop.cancel();
    lab.host.run(async move { watching.0.await.unwrap() });
}
