//! The table in the kernel is the one that was asked for, whoever wrote it and however it came to be.

use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::Mutex;

use super::{Lab, PATIENCE, SILENCE, echoes, elements, map, wanted, web};
use crate::host::nft::{MapKey, Nft, Repair, cleanup};
use crate::model::host::{Barred, Crowd, Proto};

#[test]
#[ignore = "needs root"]
fn deltas_leave_in_the_kernel_what_a_fresh_table_has() {
    let lab = Lab::new();
    let mut full = wanted();
    full.maps = web();
    full.maps[2].allow = vec![
        "192.0.2.0/25".parse().unwrap(),
        "203.0.113.7/32".parse().unwrap(),
    ];
    let mut less = full.clone();
    less.tuns.remove(1);
    less.workloads.truncate(1);
    less.maps.truncate(4);
    less.maps[2].allow = vec!["192.0.2.0/24".parse().unwrap()];
    less.maps[0].target_port = 81;
    // A table written anew has a handle of its own.
    let handle = || {
        lab.host
            .sh("nft -a list table inet byway_0123abcd | head -1")
    };
    lab.sync(&wanted());
    let first = handle();
    for config in [&full, &less, &wanted(), &full, &less] {
        assert!(lab.sync(config).is_empty());
        let listing = {
            let nft = lab.nft.clone();
            lab.host
                .run(async move { nft.lock().await.list().await })
                .unwrap()
                .unwrap()
        };
        assert!(
            listing.elements.same(&elements(config).0),
            "{:?}",
            listing.elements.delta(&elements(config).0)
        );
        assert_eq!(handle(), first, "deltas only");
    }
}

#[test]
#[ignore = "needs root"]
fn port_maps_change_without_the_nft_program() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let one = |listen: &str, port, target: &str, to| map(7, Proto::Udp, listen, port, target, to);
    let mut config = wanted();
    config.maps = (1000..1500)
        .map(|port| one("0.0.0.0", port, "10.7.1.2", port + 1))
        .chain([
            one("::", 53, "fd00:7::2", 5353),
            one("192.0.2.1", 53, "10.7.1.2", 5353),
            one("2001:db8::1", 53, "fd00:7::2", 5353),
        ])
        .collect();
    let mut moved = config.clone();
    for map in &mut moved.maps {
        map.proto = Proto::Tcp;
        map.target_port += 1;
    }
    let mut fewer = moved.clone();
    fewer.maps.drain(10..);
    for config in [&config, &moved, &fewer, &wanted()] {
        assert!(lab.sync(config).is_empty());
        let nft = lab.nft.clone();
        let (by_netlink, listing) = lab.host.run(async move {
            let nft = nft.lock().await;
            (nft.writer.is_some(), nft.list().await.unwrap().unwrap())
        });
        assert!(by_netlink);
        assert!(listing.elements.same(&elements(config).0));
        // The kernel gave each its counters.
        assert_eq!(lab.counts().maps.len(), config.maps.len());
    }
}

#[test]
#[ignore = "needs root"]
fn a_table_left_by_a_crash_is_taken_over_and_cleaned_up() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    lab.sync(&config);
    let flow = Arc::new(Mutex::new(
        lab.neighbour.connect("192.0.2.1:8080", PATIENCE).unwrap().0,
    ));
    let other = Arc::new(Mutex::new(
        lab.neighbour.connect("192.0.2.1:9090", PATIENCE).unwrap().0,
    ));
    // A new daemon, with one map less.
    let next = Arc::new(Mutex::new(Nft::new("0123abcd", Repair::Yes)));
    let removed = config.maps.remove(0);
    assert_eq!(removed.port, 9090);
    let (nft, wish) = (next.clone(), config.clone());
    lab.host
        .run(async move {
            nft.lock()
                .await
                .sync(&wish, &Barred::default(), &Crowd::new())
                .await
        })
        .unwrap();
    assert!(
        echoes(&lab.neighbour, &flow, PATIENCE),
        "flows of maps that stay go on"
    );
    assert!(
        !echoes(&lab.neighbour, &other, SILENCE),
        "flows of maps that went are over"
    );
    let counts = lab
        .host
        .run(async move { next.lock().await.counters().await })
        .unwrap();
    assert_eq!(counts.maps[&MapKey::of(&config.maps[1])].connections, 1);
    lab.host
        .sh("nft add table inet byway_ffffffff; nft add table inet stranger");
    assert_eq!(
        lab.host.run(cleanup(Some("ffffffff"))).unwrap(),
        ["byway_ffffffff"]
    );
    assert_eq!(lab.host.run(cleanup(None)).unwrap(), ["byway_0123abcd"]);
    assert_eq!(lab.host.run(cleanup(None)).unwrap(), Vec::<String>::new());
    assert_eq!(lab.ruleset().trim(), "table inet stranger {\n}");
    assert!(!echoes(&lab.neighbour, &flow, SILENCE));
}

#[test]
#[ignore = "needs root"]
fn however_many_elements_come_and_go_connections_are_tracked() {
    let lab = Lab::new();
    let mut config = wanted();
    lab.sync(&config);
    for round in 0..40u8 {
        config.tuns[0].others = (1..=40)
            .map(|n| format!("10.7.{n}.{round}/32").parse().unwrap())
            .collect();
        lab.sync(&config);
    }
    lab.sync(&wanted());
    let flow = lab.host.run(async {
        UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .send_to(b"x", "127.0.0.1:9")
            .await
    });
    assert!(flow.is_ok());
    let tracked = lab.host.sh("conntrack -L 2>/dev/null");
    assert!(tracked.contains("dst=127.0.0.1"), "{tracked}");
}
