//! What is refused counts for the workload that sent it, and for the one that it was sent to.

use super::*;
use crate::model::mac;

const A: &str = "bwv00070002";

/// The lab, once the kernel of `a` has asked whether somebody else has its link-local address: that is refused as well.
fn lab() -> Lab {
    let lab = Lab::new();
    let until = std::time::Instant::now() + PATIENCE;
    while !lab.a.sh("ip -6 addr show dev byway0 tentative").is_empty() {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(50));
    }
    lab
}

fn refused(lab: &Lab) -> Refused {
    let nft = lab.nft.clone();
    lab.host
        .run(async move {
            let nft = nft.lock().await;
            let listed = nft.lister().refused().await?;
            Ok::<_, Error>(nft.refused(&listed))
        })
        .unwrap()
}

/// What was refused so far of what workload `a` sent, and of what was sent to it and to `c`.
fn counts(lab: &Lab) -> (u64, u64, u64) {
    let all = refused(lab);
    let of = |n: u8| workload(n, 2).addresses;
    (all.sent_by(A), all.sent_to(&of(7)), all.sent_to(&of(8)))
}

/// Sends so many datagrams, and says nothing where the kernel does not take one: an error of one before may be told.
fn send(from: &Ns, source: &'static str, to: &'static str, packets: u16) {
    from.run(async move {
        let socket = UdpSocket::bind((source, 0)).await.unwrap();
        for _ in 0..packets {
            while socket.send_to(b"x", to).await.is_err() {}
        }
    });
}

#[test]
#[ignore = "needs root"]
fn what_is_refused_counts_for_sender_and_receiver() {
    let lab = lab();
    lab.sync(&wanted());
    let before = lab.ruleset();
    // What passes counts for nobody.
    assert_eq!(lab.a.tcp("10.7.1.3:80"), addr("10.7.1.2"));
    assert_eq!(lab.a.tcp("[fd00:7::3]:80"), addr("fd00:7::2"));
    assert!(lab.peer.ping("10.7.1.2") && lab.a.ping("10.7.1.1"));
    let (noise, ..) = counts(&lab);
    let sent = |a: u64, to_a: u64, to_c: u64| (noise + a, to_a, to_c);
    assert_eq!(counts(&lab), sent(0, 0, 0));
    // A source that is not its own.
    lab.a
        .sh("ip addr add 10.7.1.99/32 dev byway0; ip addr add fd00:7::99/128 dev byway0 nodad");
    send(&lab.a, "10.7.1.99", "10.7.2.1:9", 7);
    send(&lab.a, "fd00:7::99", "[fd00:7::2:1]:9", 5);
    assert_eq!(counts(&lab), sent(12, 0, 0));
    // Another subnet: both of them see it.
    send(&lab.a, "10.7.1.2", "10.8.1.2:9", 3);
    send(&lab.a, "fd00:7::2", "[fd00:8::2]:9", 4);
    assert_eq!(counts(&lab), sent(19, 0, 7));
    // The machine itself, and the network behind it.
    send(&lab.a, "10.7.1.2", "192.0.2.1:7777", 2);
    send(&lab.a, "10.7.1.2", "192.0.2.2:9", 3);
    assert_eq!(counts(&lab), sent(24, 0, 7));
    // A neighbour on the network outside, and a member of another subnet.
    send(&lab.neighbour, "192.0.2.2", "10.7.1.2:9", 6);
    send(&lab.neighbour, "2001:db8::2", "[fd00:7::2]:9", 1);
    assert_eq!(counts(&lab), sent(24, 7, 7));
    send(&lab.peer, "10.7.2.1", "10.8.1.2:9", 2);
    assert_eq!(counts(&lab), sent(24, 7, 9));
    // The neighbour again, as if it were a member.
    lab.neighbour.sh("ip addr add 10.7.2.9/32 dev eth0");
    send(&lab.neighbour, "10.7.2.9", "10.7.1.2:9", 2);
    assert_eq!(counts(&lab), sent(24, 9, 9));
    assert_eq!(lab.ruleset(), before, "elements and rules are as before");
}

#[test]
#[ignore = "needs root"]
fn floods_and_foreign_hardware_addresses_count_for_the_workload() {
    let lab = lab();
    let mut config = wanted();
    lab.sync(&config);
    lab.a.run(async {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        for port in 0..5000u16 {
            let _ = socket.send_to(b"x", ("10.7.2.1", 10_000 + port)).await;
        }
    });
    let flood = lab.counts().drops["flood"].packets;
    let (first, ..) = counts(&lab);
    assert!(flood > 100 && first >= flood, "{first} {flood}");
    // Now it is a TAP, and its virtual machine has another hardware address.
    config.workloads[0].tap = Some(0);
    config.workloads[0].mac = mac::unicast("02:00:00:07:02:99");
    assert!(lab.sync(&config).is_empty());
    send(&lab.a, "10.7.1.2", "10.7.2.1:9", 8);
    // What its kernel tells of its groups comes from that address, too.
    let more = counts(&lab).0 - first;
    assert!((8..16).contains(&more), "{more}");
}

#[test]
#[ignore = "needs root"]
fn what_was_refused_outlives_a_flush_and_ends_with_the_workload() {
    let lab = lab();
    lab.sync(&wanted());
    send(&lab.a, "10.7.1.2", "10.8.1.2:9", 3);
    let (sent, _, to_c) = counts(&lab);
    assert!(sent >= 3 && to_c == 3);
    // Between the flush and the repair nothing is forgotten, nor after.
    lab.host.sh("nft flush ruleset");
    assert_eq!(counts(&lab), (sent, 0, 3));
    lab.sync(&wanted());
    assert_eq!(counts(&lab), (sent, 0, 3));
    send(&lab.a, "10.7.1.2", "10.8.1.2:9", 2);
    assert_eq!(counts(&lab), (sent + 2, 0, 5));
    // A new daemon writes the table whole, and goes on from what it finds.
    let next = Lab {
        nft: Arc::new(Mutex::new(Nft::new("0123abcd", Repair::Yes))),
        ..lab
    };
    next.sync(&wanted());
    assert_eq!(counts(&next), (sent + 2, 0, 5));
    // Others come and go; who comes anew begins at nothing.
    let mut less = wanted();
    less.workloads.remove(1);
    next.sync(&less);
    assert_eq!(counts(&next), (sent + 2, 0, 5));
    less.workloads.clear();
    next.sync(&less);
    next.sync(&wanted());
    assert_eq!(counts(&next), (0, 0, 0));
}

#[test]
#[ignore = "needs root"]
fn one_of_a_thousand_workloads_comes_by_elements_alone() {
    let lab = lab();
    let mut config = wanted();
    for (third, fourth) in (10..14u8).flat_map(|third| (1..251u8).map(move |n| (third, n))) {
        let mut more = workload(7, 4);
        more.host_link = format!("bwv1{third:03}{fourth:04}");
        more.addresses = vec![
            IpAddr::from([10, 7, third, fourth]),
            format!("fd00:7::{third}:{fourth}").parse().unwrap(),
        ];
        config.workloads.push(more);
    }
    // As in the daemon: watched, so a change needs no listing.
    let stop = CancellationToken::new();
    let (nft, token) = (lab.nft.clone(), stop.clone());
    let watching = lab.host.run(async move {
        let watcher = nft.lock().await.watch().unwrap();
        (tokio::spawn(watcher.run(token)),)
    });
    lab.sync(&config);
    lab.sync(&config);
    let handle = || {
        lab.host
            .sh("nft -a list table inet byway_0123abcd | head -1")
    };
    let first = handle();
    let mut took = Vec::new();
    let last = config.workloads.pop().unwrap();
    for _ in 0..10 {
        lab.sync(&config);
        config.workloads.push(last.clone());
        let start = std::time::Instant::now();
        lab.sync(&config);
        took.push(start.elapsed());
        config.workloads.pop();
    }
    took.sort();
    let start = std::time::Instant::now();
    let read = refused(&lab);
    let reading = start.elapsed();
    eprintln!(
        "1,000 workloads: one more in {:?} (least {:?}), what was refused is read in {reading:?}",
        took[5], took[0]
    );
    assert_eq!(read.sent_by(&last.host_link), 0);
    assert_eq!(handle(), first, "elements only");
    stop.cancel();
    lab.host.run(async move { watching.0.await.unwrap() });
}
