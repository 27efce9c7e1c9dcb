//! Workloads reach what they should from their namespaces, and what is done there by others harms nobody else.

use std::path::PathBuf;
use std::time::Duration;

use super::{
    Named, PROMISED, Running, config, empty, eventually, in_own_namespace, ip, linux, netns,
    picture, reach, run, workload,
};
use crate::host::Host;
use crate::model::host::{Namespace, ResolvConf, plan};
use crate::model::id::SubnetId;

#[test]
#[ignore = "needs root"]
fn workloads_reach_gateway_and_each_other_and_die_with_their_namespace() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let (one, two) = (Named::new("one"), Named::new("two"));
        let (netns_one, resolv_one) = netns::resolve(&one.0).await.unwrap();
        let (netns_two, _) = netns::resolve(&format!("/run/netns/{}", two.0))
            .await
            .unwrap();
        assert_eq!(
            netns::free_link_name(&netns_one, &[]).await.unwrap(),
            "byway0"
        );
        let mut desired = config();
        desired.workloads = vec![
            workload("one", 11, netns_one, resolv_one),
            workload("two", 12, netns_two, ResolvConf::None),
        ];
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        for address in ["10.77.0.1", "fd77::1", "10.77.0.12", "fd77::12"] {
            assert!(one.pings(address), "one pings {address}");
        }
        let resolver = PathBuf::from(format!("/etc/netns/{}/resolv.conf", one.0));
        let text = std::fs::read_to_string(&resolver).unwrap();
        assert!(
            text.contains("search lab.internal\nnameserver 10.77.0.1\nnameserver fd77::1\n"),
            "{text}"
        );
        // What bears the overlay address is answered along the way it came, wherever the client is.
        let route = ip(&format!(
            "-n {} route get 203.0.113.5 from 10.77.0.11",
            one.0
        ));
        assert!(route.contains("via 10.77.0.1 dev byway0"), "{route}");

        // Both ends vanish and come back; a kill is survived.
        ip(&format!("-n {} link del byway0", one.0));
        drop(host);
        let host = linux(&state);
        let mut running = Running::start(host, 1, desired);
        assert_eq!(
            running.applied(|a| a.generation == 1).await.failures,
            Vec::new()
        );
        assert!(one.pings("10.77.0.12"));
        ip(&format!("-n {} link del byway0", one.0));
        eventually("the pair comes back", PROMISED, async || {
            one.pings("10.77.0.1")
        })
        .await;

        // A namespace of the same name is another namespace.
        two.delete();
        ip(&format!("netns add {}", two.0));
        let dead = tokio::time::timeout(
            Duration::from_secs(5),
            running.applied(|a| !a.dead_workloads.is_empty()),
        );
        assert_eq!(dead.await.unwrap().dead_workloads[0].1.as_str(), "two");
        assert!(!ip(&format!("-n {} link show", two.0)).contains("byway0"));
        assert!(!ip("link show").contains("bwv0000000c"));

        running.stop().await;
        assert_eq!(picture(), before);
        assert_eq!(
            ip(&format!("-n {} rule show", one.0)).lines().count(),
            3,
            "no rule stays inside"
        );
        assert!(!resolver.exists());
        assert!(
            std::fs::read_dir(state.path()).unwrap().next().is_none(),
            "nothing is owed"
        );
    });
}

#[test]
#[ignore = "needs root"]
fn what_a_workload_heaps_up_in_its_namespace_is_not_read() {
    in_own_namespace(|| async {
        let (evil, good) = (Named::new("evil"), Named::new("good"));
        let (netns_evil, _) = netns::resolve(&evil.0).await.unwrap();
        let (netns_good, _) = netns::resolve(&good.0).await.unwrap();
        let mut desired = config();
        desired.workloads = vec![
            workload("evil", 11, netns_evil.clone(), ResolvConf::None),
            workload("good", 12, netns_good, ResolvConf::None),
        ];
        let state = tempfile::tempdir().unwrap();
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        let heap = |line: &dyn Fn(u32) -> String, count: u32| {
            let file = state.path().join("batch");
            std::fs::write(
                &file,
                (0..count).map(|n| line(n) + "\n").collect::<String>(),
            )
            .unwrap();
            run("ip", &["-n", &evil.0, "-batch", file.to_str().unwrap()]);
            std::fs::remove_file(file).unwrap();
        };
        // Few links: the kernel holds every other test up for 17 ms with each one that goes with its namespace.
        heap(&|n| format!("link add x{n} type bridge"), 20);
        heap(
            &|n| {
                format!(
                    "route add unreachable 100.64.{}.{}/32 table 7",
                    n / 256,
                    n % 256
                )
            },
            20_000,
        );
        heap(
            &|n| format!("address add 100.65.{}.{}/32 dev x0", n / 256, n % 256),
            20_000,
        );
        heap(&|n| format!("rule add pref {} table 7", 20_000 + n), 2_000);
        // Our link is found by its index, whatever it is called, and repaired.
        ip(&format!("-n {} link set byway0 down", evil.0));
        ip(&format!("-n {} link set byway0 name other", evil.0));
        ip(&format!("-n {} link add byway1 type bridge", evil.0));
        let free = netns::free_link_name(&netns_evil, &[]).await.unwrap();
        assert_eq!(free, "byway0", "the lowest that nobody has");
        let mut host = linux(&state);
        let start = std::time::Instant::now();
        reach(&mut host, &desired).await;
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
        assert!(evil.pings("10.77.0.12"));
        let mut host = linux(&state);
        let observed = host.observe(&desired).await.unwrap();
        let seen = &observed.namespaces[&Namespace::Netns(netns_evil.clone())];
        assert!(
            seen.foreign.is_empty() && seen.links.len() == 1,
            "{:?} {:?}",
            seen.foreign,
            seen.links.keys()
        );
        assert!(seen.routes.len() < 20 && seen.rules.len() < 10);

        // What hangs on our own link is bounded too; then it is left alone, and nobody else suffers.
        heap(
            &|n| format!("address add 100.66.{}.{}/32 dev byway0", n / 256, n % 256),
            17_000,
        );
        ip(&format!("-n {} address del 10.77.0.12 dev byway0", good.0));
        let mut host = linux(&state);
        let observed = host.observe(&desired).await.unwrap();
        assert_eq!(observed.unreadable, [netns_evil].into());
        let changes = plan(&desired, &observed);
        assert_eq!(host.apply(&desired, &observed, changes).await, Vec::new());
        assert!(good.pings("10.77.0.1"));
        reach(&mut linux(&state), &empty()).await;
    });
}

#[test]
#[ignore = "needs root"]
fn one_namespace_in_two_subnets_and_two_workloads() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let named = Named::new("both");
        let (netns, _) = netns::resolve(&named.0).await.unwrap();
        let mut desired = config();
        let mut second = desired.tuns[0].clone();
        second.subnet = SubnetId([2; 16]);
        second.name = "bw-web".to_owned();
        second.addresses = vec!["10.88.0.1".parse().unwrap()];
        second.prefixes = vec!["10.88.0.0/16".parse().unwrap()];
        let first = workload("a", 11, netns.clone(), ResolvConf::None);
        let mut other = workload("b", 12, netns, ResolvConf::None);
        other.subnet = second.subnet;
        other.tun = second.name.clone();
        other.inner_link = "byway1".to_owned();
        other.addresses = vec!["10.88.0.12".parse().unwrap()];
        other.gateways = second.addresses.clone();
        other.prefixes = second.prefixes.clone();
        desired.tuns.push(second);
        desired.workloads = vec![first, other];
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        assert!(named.pings("10.77.0.1") && named.pings("10.88.0.1") && named.pings("fd77::1"));
        // A second one of the same subnet in the same namespace answers with its own address.
        let mut third = desired.workloads[0].clone();
        third.name = "c".parse().unwrap();
        third.host_link = "bwv0000000d".to_owned();
        third.inner_link = "byway2".to_owned();
        third.addresses = vec!["10.77.0.13".parse().unwrap()];
        desired.workloads.push(third);
        reach(&mut host, &desired).await;
        run(
            "ping",
            &["-n", "-c", "3", "-i", "0.2", "-W", "2", "10.77.0.13"],
        );
        run(
            "ping",
            &["-n", "-c", "3", "-i", "0.2", "-W", "2", "10.77.0.11"],
        );
        desired.workloads.pop();
        // The first goes, the second stays.
        desired.workloads.remove(0);
        reach(&mut host, &desired).await;
        assert!(
            named.pings("10.88.0.1")
                && !ip(&format!("-n {} link show", named.0)).contains("byway0")
        );
        reach(&mut host, &empty()).await;
        assert!(!ip(&format!("-n {} rule show", named.0)).contains("4110"));
    });
}

#[test]
#[ignore = "needs root"]
fn own_namespace_and_other_files_are_no_workload() {
    in_own_namespace(|| async {
        assert!(
            netns::of_pid(std::process::id(), None).await.is_ok(),
            "the process is elsewhere than this thread"
        );
        let thread = format!(
            "/proc/{}/task/{}/ns/net",
            std::process::id(),
            nix::unistd::gettid()
        );
        assert!(matches!(
            netns::resolve(&thread).await,
            Err(netns::NetnsError::Own(_))
        ));
        for other in [
            "/proc/self/ns/mnt",
            "/etc/passwd",
            "/etc/shadow",
            "/root/no-such-file",
            "/dev/tty",
            "/dev/null/x",
        ] {
            let told = netns::resolve(other).await.unwrap_err();
            assert_eq!(
                told.to_string(),
                format!("there is no network namespace {other}"),
                "all alike"
            );
        }
        // Nothing is opened: a FIFO would wait for its other end, a device would do something.
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let told = tokio::time::timeout(
            Duration::from_secs(1),
            netns::resolve(fifo.to_str().unwrap()),
        )
        .await;
        assert!(matches!(told, Ok(Err(netns::NetnsError::Missing(_)))));
        use std::os::unix::fs::OpenOptionsExt;
        let writer = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo);
        assert_eq!(
            writer.unwrap_err().raw_os_error(),
            Some(libc::ENXIO),
            "nobody reads it"
        );
        assert!(matches!(
            netns::resolve("no-such-namespace").await,
            Err(netns::NetnsError::Missing(_))
        ));
        assert!(matches!(
            netns::resolve("../x").await,
            Err(netns::NetnsError::Name(_))
        ));
    });
}
