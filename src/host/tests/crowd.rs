//! Who fills the kernel's table of connections is found while the daemon runs, told, and let in again.

use std::net::UdpSocket;

use nix::sched::setns;

use super::*;
use crate::host::crowd::Conntrack;
use crate::model::host::{Beginner, Finding};

/// A look at the table every five seconds, one at what was found, and a busy machine.
const FOUND: Duration = Duration::from_secs(20);

/// Sends a datagram to each of so many ports.
fn begin(from: &Named, to: &'static str, flows: u16) {
    let netns = std::fs::File::open(format!("/run/netns/{}", from.0)).unwrap();
    let thread = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..flows)
            .filter(|port| socket.send_to(b"x", (to, 10_000 + port)).is_ok())
            .count()
    });
    assert!(thread.join().unwrap() > usize::from(flows) / 2);
}

#[test]
#[ignore = "needs root"]
fn who_holds_too_many_connections_is_told_and_begins_none() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let (one, two) = (Named::new("many"), Named::new("few"));
        let netns = [
            netns::resolve(&one.0).await.unwrap().0,
            netns::resolve(&two.0).await.unwrap().0,
        ];
        let [netns_one, netns_two] = netns;
        let mut desired = config();
        desired.workloads = vec![
            workload("many", 11, netns_one, ResolvConf::None),
            workload("few", 12, netns_two, ResolvConf::None),
        ];
        let mut host = linux(&state);
        host.conntrack = Conntrack::with_room_for(1000);
        let mut running = Running::start(host, 1, desired);
        assert_eq!(
            running.applied(|a| a.generation == 1).await.failures,
            Vec::new()
        );
        run(
            "sysctl",
            &["-qw", "net.netfilter.nf_conntrack_udp_timeout=600"],
        );
        assert!(one.pings("10.77.0.1") && two.pings("10.77.0.1"));
        begin(&one, "10.77.0.12", 800);
        let found = tokio::time::timeout(FOUND, running.applied(|a| !a.findings.is_empty()))
            .await
            .unwrap();
        let [
            Finding::Crowded {
                who: Beginner::Workload { name, link, .. },
                excess,
            },
        ] = &found.findings[..]
        else {
            panic!("{:?}", found.findings);
        };
        assert!(
            name.as_str() == "many" && excess.held > 500 && excess.share <= 500,
            "{name} {excess}"
        );
        let over = || {
            run("nft", &["list", "set", "inet", "byway_01234567", "over"]).contains(link.as_str())
        };
        assert!(over() && !one.pings("10.77.0.1") && two.pings("10.77.0.1"));
        run("conntrack", &["-D", "-s", "10.77.0.11"]);
        tokio::time::timeout(FOUND, running.applied(|a| a.findings.is_empty()))
            .await
            .unwrap();
        assert!(!over() && one.pings("10.77.0.1"));
        running.stop().await;
    });
}
