//! What workloads may send, whom it reaches, and how much of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::Mutex;

use super::{Lab, PATIENCE, SILENCE, addr, echoes, wanted};
use crate::host::conntrack;
use crate::host::nft::run::OwnRuns;
use crate::host::nft::{probes, ruleset};
use crate::model::host::Family;

#[test]
#[ignore = "needs root"]
fn workloads_keep_to_their_address_and_subnet() {
    let lab = Lab::new();
    assert!(lab.sync(&wanted()).is_empty());
    lab.host.serve(7777);
    // Same subnet, gateway, member: yes.
    assert_eq!(lab.a.tcp("10.7.1.3:80"), addr("10.7.1.2"));
    assert_eq!(lab.a.tcp("[fd00:7::3]:80"), addr("fd00:7::2"));
    assert!(lab.a.ping("10.7.1.1") && lab.a.ping("fd00:7::1") && lab.peer.ping("10.7.1.1"));
    // Another subnet, the LAN, ports and other addresses of the host: no.
    assert!(!lab.a.ping("10.8.1.2") && !lab.a.ping("10.8.1.1") && !lab.a.ping("fd00:8::2"));
    assert!(!lab.a.ping("192.0.2.2"));
    assert_eq!(lab.a.connect("192.0.2.1:7777", SILENCE).map(|c| c.1), None);
    assert_eq!(
        lab.a.connect("[2001:db8::1]:7777", SILENCE).map(|c| c.1),
        None
    );
    assert_eq!(lab.a.connect("10.8.1.1:7777", SILENCE).map(|c| c.1), None);
    assert_eq!(
        lab.peer.connect("192.0.2.1:7777", SILENCE).map(|c| c.1),
        None
    );
    // Somebody else's address, both families.
    lab.a
        .sh("ip addr add 10.7.1.3/32 dev byway0; ip addr add fd00:7::3/128 dev byway0 nodad");
    assert!(!lab.a.ping("-I 10.7.1.3 10.7.1.1") && !lab.a.ping("-I fd00:7::3 fd00:7::1"));
    assert!(lab.a.ping("-I 10.7.1.2 10.7.1.1"));
    // A neighbour that sends to, or as, the overlay.
    assert!(!lab.neighbour.ping("10.7.1.1") && !lab.neighbour.ping("fd00:7::1"));
    lab.neighbour.sh("ip addr add 10.7.2.9/32 dev eth0");
    assert!(!lab.neighbour.ping("-I 10.7.2.9 192.0.2.1"));
    assert!(
        lab.neighbour.ping("192.0.2.1"),
        "other traffic is not ours to judge"
    );
    let drops = lab.counts().drops;
    for reason in ["filtered", "source_not_leased", "weak_host"] {
        assert!(drops[reason].packets > 0, "{reason}: {drops:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_flooding_workload_leaves_conntrack_to_others() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let before = lab.ruleset();
    lab.a.run(async {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        for port in 0..5000u16 {
            let _ = socket.send_to(b"x", ("10.7.2.1", 10_000 + port)).await;
        }
    });
    let dropped = lab.counts().drops["flood"].packets;
    // What is refilled meanwhile passes.
    let most = 5000 - u64::from(ruleset::WORKLOAD_CONNECTIONS.0);
    assert!((most / 4..=most).contains(&dropped), "{dropped}");
    assert_eq!(lab.b.tcp("10.7.2.1:80"), addr("10.7.1.3"));
    assert_eq!(
        lab.ruleset(),
        before,
        "counting leaves no trace in the listing"
    );
}

#[test]
#[ignore = "needs root"]
fn probes_are_counted_before_and_behind_the_chains_of_others() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let table = lab.table();
    let probe = |port: u16| {
        let payload = probes::payload(&table, probes::Way::Local);
        lab.a.run(async move {
            let socket = UdpSocket::bind("10.7.1.2:0").await.unwrap();
            let _ = socket.send_to(&payload, ("10.7.1.3", port)).await;
        });
        let own = OwnRuns::default();
        let table = table.clone();
        lab.host
            .run(async move { probes::read(&table, &own).await })
            .unwrap()[&(probes::Way::Local, Family::V4)]
    };
    let before = lab.ruleset();
    let heard = lab
        .b
        .run(async { UdpSocket::bind("10.7.1.3:9").await.unwrap() });
    assert_eq!(probe(9), (1, 1), "it enters and comes out");
    // A drop by policy, a drop by rule, before us and behind us: whoever it is.
    for (at, chain) in [
        "0; policy drop; }",
        "-450; policy drop; }",
        "400; policy accept; } ; add rule ip o f udp dport 9 drop",
    ]
    .iter()
    .enumerate()
    {
        lab.host.sh(&format!(
            "nft 'add table ip o; add chain ip o f {{ type filter hook forward priority {chain}'"
        ));
        assert_eq!(probe(9), (2 + at as u64, 1), "{chain}");
        lab.host.sh("nft delete table ip o");
    }
    assert_eq!(probe(9), (5, 2), "and passes again");
    assert_eq!(
        lab.ruleset(),
        before,
        "counting leaves no trace in the listing"
    );
    let mut buffer = [0; 64];
    assert!(
        heard.try_recv_from(&mut buffer).is_err(),
        "a workload never gets one"
    );
}

#[test]
#[ignore = "needs root"]
fn flows_of_a_removed_member_end() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let flow = |to: &str| Arc::new(Mutex::new(lab.a.connect(to, PATIENCE).unwrap().0));
    let flow = flow("10.7.1.3:80");
    assert!(echoes(&lab.a, &flow, PATIENCE));
    let gone: Vec<IpAddr> = addr("10.7.1.3").into_iter().collect();
    let end = || {
        let gone = gone.clone();
        lab.host
            .run(async move { conntrack::delete_addresses(&gone).await })
            .unwrap()
    };
    assert_eq!(end(), 1);
    // A late acknowledgement of what was answered before begins the entry anew. That one ends as well, and then none comes.
    let until = Instant::now() + PATIENCE;
    while end() > 0 {
        assert!(Instant::now() < until, "the flow goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}
