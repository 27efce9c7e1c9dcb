//! On the real kernel, in namespaces of their own: a test thread leaves the main one before it does anything.

mod crowd;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::memory::MemoryHost;
use super::nft::Repair;
use super::{
    Applied, Cleaned, Failure, Host, LinuxHost, TunControl, cleanup, netns, reconcile,
    used_prefixes,
};
use crate::model::host::neighbour::Integrate;
use crate::model::host::{
    HostConfig, HostPolicy, MapConfig, Namespace, NetnsRef, Proto, ResolvConf, TunConfig,
    WorkloadConfig, plan,
};
use crate::model::id::SubnetId;
use crate::testing::eventually;

const INSTANCE: &str = "01234567";
/// A condition that a watched kernel reaches within the two seconds that are promised.
const PROMISED: Duration = Duration::from_secs(2);

/// Runs a test in a namespace of its own, on a thread of its own. Needs root, so these tests are ignored unless asked for.
fn in_own_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    // What is not there yet has no route.
    let no_route = arguments.contains(&"get") && !output.status.success();
    if no_route {
        return String::new();
    }
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

/// Everything of the namespace that a daemon could have changed.
fn picture() -> String {
    let sysctls = run(
        "sh",
        &[
            "-c",
            "cat /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/forwarding",
        ],
    );
    [
        ip("-o link show")
            .lines()
            .map(|l| l.split(": ").nth(1).unwrap_or_default().to_owned() + "\n")
            .collect(),
        ip("-4 route show table all"),
        ip("-4 rule show"),
        ip("-6 rule show"),
        run("nft", &["list", "ruleset"]),
        sysctls,
    ]
    .concat()
}

/// TUN devices that nobody reads.
fn tuns() -> TunControl {
    let open: Arc<Mutex<BTreeMap<String, tun_rs::SyncDevice>>> = Arc::default();
    let closing = Arc::clone(&open);
    TunControl {
        open: Arc::new(move |tun: &TunConfig| {
            open.lock().remove(&tun.name);
            let device = tun_rs::DeviceBuilder::new()
                .name(&tun.name)
                .mtu(tun.mtu)
                .enable(false)
                .build_sync()?;
            open.lock().insert(tun.name.clone(), device);
            Ok(())
        }),
        close: Arc::new(move |name| {
            closing.lock().remove(name);
        }),
        inject: Arc::new(|_, _| Ok(())),
    }
}

fn config() -> HostConfig {
    HostConfig {
        instance: INSTANCE.to_owned(),
        tuns: vec![TunConfig {
            subnet: SubnetId([1; 16]),
            name: "bw-lab".to_owned(),
            mtu: 1400,
            addresses: vec!["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()],
            prefixes: vec![
                "10.77.0.0/16".parse().unwrap(),
                "fd77::/48".parse().unwrap(),
            ],
            held: vec![],
            host: HostPolicy::Closed,
            others: vec![],
        }],
        ..HostConfig::default()
    }
}

fn workload(name: &str, number: u8, netns: NetnsRef, resolv_conf: ResolvConf) -> WorkloadConfig {
    let tun = config().tuns.remove(0);
    WorkloadConfig {
        subnet: tun.subnet,
        name: name.parse().unwrap(),
        tun: tun.name,
        host_link: format!("bwv000000{number:02x}"),
        inner_link: "byway0".to_owned(),
        netns,
        mtu: tun.mtu,
        addresses: vec![
            format!("10.77.0.{number}").parse().unwrap(),
            format!("fd77::{number}").parse().unwrap(),
        ],
        gateways: tun.addresses,
        prefixes: tun.prefixes,
        resolv_conf,
        search: "lab.internal".to_owned(),
        mac: None,
    }
}

/// A named namespace that goes with the test.
struct Named(String);

impl Named {
    fn new(name: &str) -> Named {
        let name = format!("host-{name}-{}", std::process::id());
        // The directory is a mount of the whole machine; a namespace made in it is seen by its name only.
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Named(name)
    }

    fn delete(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }

    fn pings(&self, address: &str) -> bool {
        let arguments = [
            "netns", "exec", &self.0, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", address,
        ];
        Command::new("ip")
            .args(arguments)
            .output()
            .unwrap()
            .status
            .success()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.delete();
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.0));
    }
}

fn linux(state: &TempDir) -> LinuxHost {
    LinuxHost::new(
        INSTANCE.to_owned(),
        state.path().to_owned(),
        tuns(),
        Repair::Yes,
        Integrate::NONE,
    )
    .unwrap()
}

/// A host and the task that keeps it as desired.
struct Running {
    desired: watch::Sender<(u64, Arc<HostConfig>)>,
    results: watch::Receiver<Applied>,
    stop: CancellationToken,
    task: JoinHandle<Vec<Failure>>,
}

impl Running {
    fn start(host: impl Host, generation: u64, config: HostConfig) -> Running {
        let (desired, wanted) = watch::channel((generation, Arc::new(config)));
        let (applied, results) = watch::channel(Applied::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(reconcile::run(host, wanted, applied, stop.clone()));
        Running {
            desired,
            results,
            stop,
            task,
        }
    }

    /// What was applied once it is as `holds` says.
    async fn applied(&mut self, holds: impl FnMut(&Applied) -> bool) -> Applied {
        self.results.wait_for(holds).await.unwrap().clone()
    }

    async fn stop(self) {
        assert_eq!(self.leave().await, vec![], "everything could be removed");
    }

    /// Stops; what was left.
    async fn leave(self) -> Vec<Failure> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

async fn reach(host: &mut LinuxHost, desired: &HostConfig) {
    let observed = host.observe(desired).await.unwrap();
    let changes = plan(desired, &observed);
    assert_eq!(host.apply(desired, &observed, changes).await, Vec::new());
    let observed = host.observe(desired).await.unwrap();
    assert_eq!(
        plan(desired, &observed),
        Vec::new(),
        "the plan of the reached state is empty"
    );
}

fn empty() -> HostConfig {
    HostConfig {
        instance: INSTANCE.to_owned(),
        ..HostConfig::default()
    }
}

#[test]
#[ignore = "needs root"]
fn tun_comes_and_goes_without_a_trace() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let mut host = linux(&state);
        reach(&mut host, &config()).await;
        let link = ip("-d link show bw-lab");
        assert!(
            link.contains("alias byway:01234567:tun:bw-lab") && link.contains("mtu 1400"),
            "{link}"
        );
        assert!(
            link.contains("qlen 128") && link.contains("gso_max_size 60000"),
            "{link}"
        );
        assert!(ip("route get 10.77.3.4").contains("dev bw-lab table 4110 src 10.77.0.1"));
        assert!(ip("-6 route get fd77::9:1").contains("dev bw-lab table 4110"));
        assert!(
            !ip("-6 address show bw-lab").contains("fe80"),
            "no link-local address"
        );
        // Its own prefixes are not in its own way, but another daemon's are.
        assert!(
            !used_prefixes(INSTANCE)
                .await
                .unwrap()
                .iter()
                .any(|(_, link)| link == "bw-lab")
        );
        let seen_by_another = used_prefixes("89abcdef").await.unwrap();
        assert!(seen_by_another.contains(&("10.77.0.0/16".parse().unwrap(), "bw-lab".to_owned())));
        reach(&mut host, &empty()).await;
        assert_eq!(picture(), before);
    });
}

#[test]
#[ignore = "needs root"]
fn foreign_kernel_objects_survive() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        ip("link add foreign type bridge");
        ip("link set foreign up");
        ip("address add 192.0.2.1/24 dev foreign");
        ip("route add 198.51.100.0/24 dev foreign table 4110");
        ip("rule add from 192.0.2.9 lookup 4110 priority 4110");
        let before = picture();
        let mut host = linux(&state);
        reach(&mut host, &config()).await;
        reach(&mut host, &empty()).await;
        assert_eq!(picture(), before);
        // A link that has our name and is not ours is refused, not taken.
        ip("link add bw-lab type bridge");
        let observed = host.observe(&config()).await.unwrap();
        let changes = plan(&config(), &observed);
        let failures = host.apply(&config(), &observed, changes).await;
        assert!(
            failures.iter().any(|f| f.why.contains("not ours")),
            "{failures:?}"
        );
        assert!(ip("-d link show bw-lab").contains("bridge"));
    });
}

#[test]
#[ignore = "needs root"]
fn damage_is_repaired_in_two_seconds() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let host = linux(&state);
        let mut running = Running::start(host, 1, config());
        let reached = running.applied(|a| a.generation == 1).await;
        assert_eq!(reached.failures, Vec::new());
        let whole = || {
            let link = ip("-d link show");
            link.contains("bw-lab")
                && link.contains("mtu 1400")
                && link.contains("bw-lab: <POINTOPOINT,MULTICAST,NOARP,UP")
                && ip("address show").contains("10.77.0.1/32")
                && ip("-6 address show").contains("fd77::1/128")
                && ip("route get 10.77.3.4").contains("dev bw-lab table 4110")
                && ip("-6 route get fd77::9:1").contains("dev bw-lab")
        };
        assert!(whole());
        for damage in [
            "link del bw-lab",
            "link set bw-lab down",
            "link set bw-lab mtu 1300",
            "link set bw-lab name other",
            "address flush dev bw-lab",
            "route flush table 4110",
            "-6 route flush table 4110",
            "rule flush",
        ] {
            ip(damage);
            if damage == "rule flush" {
                // Takes two of the kernel's own as well.
                ip("rule add lookup main priority 32766");
                ip("rule add lookup default priority 32767");
            }
            eventually(damage, PROMISED, async || whole()).await;
        }
        run("nft", &["flush", "ruleset"]);
        eventually("flush ruleset", PROMISED, async || {
            run("nft", &["list", "ruleset"]).contains("byway_01234567")
        })
        .await;
        running.stop().await;
        assert_eq!(picture(), before);
    });
}

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
        let seen = &observed.places[&Namespace::Netns(netns_evil.clone())];
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
fn forwarding_of_an_uplink_is_put_back_unless_someone_changed_it() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        ip("link add up0 type bridge");
        ip("address add 192.0.2.1/24 dev up0");
        let key = "net/ipv4/conf/up0/forwarding";
        let value = || super::sysctl::read(key).unwrap();
        assert_eq!(value(), "0");
        let mut desired = config();
        desired.maps = vec![MapConfig {
            subnet: SubnetId([1; 16]),
            name: "web".parse().unwrap(),
            proto: Proto::Tcp,
            listen: "0.0.0.0".parse().unwrap(),
            port: 8080,
            target: Some("10.77.0.11".parse().unwrap()),
            target_port: 80,
            local: true,
            source: None,
            allow: Vec::new(),
        }];
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        assert_eq!(value(), "1");
        // A kill forgets nothing.
        drop(host);
        let mut host = linux(&state);
        reach(&mut host, &empty()).await;
        assert_eq!(value(), "0");
        super::sysctl::write(key, "1").unwrap();
        reach(&mut host, &desired).await;
        reach(&mut host, &empty()).await;
        assert_eq!(value(), "1", "it was not ours");
    });
}

#[test]
#[ignore = "needs root"]
fn cleanup_removes_what_a_kill_left() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let named = Named::new("killed");
        let (netns, resolv_conf) = netns::resolve(&named.0).await.unwrap();
        let mut desired = config();
        desired.workloads = vec![workload("w", 11, netns, resolv_conf)];
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        drop(host);
        let cleaned = cleanup(Some(INSTANCE), state.path()).await.unwrap();
        let done = cleaned.done;
        assert!(
            cleaned.left.is_empty() && done.contains(&"removed link bwv0000000b".to_owned()),
            "{done:?}"
        );
        let past = |what: &String| {
            ["removed ", "put "]
                .iter()
                .any(|word| what.starts_with(word))
        };
        assert!(
            done.iter().all(past) && !done.iter().any(|what| what.contains("remove ")),
            "{done:?}"
        );
        assert_eq!(picture(), before);
        assert!(!ip(&format!("-n {} rule show", named.0)).contains("4110"));
        assert_eq!(
            cleanup(Some(INSTANCE), state.path()).await.unwrap(),
            Cleaned::default()
        );
    });
}

#[test]
#[ignore = "needs root"]
fn own_namespace_and_other_files_are_no_workload() {
    in_own_namespace(|| async {
        assert!(
            netns::of_pid(std::process::id()).await.is_ok(),
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

#[test]
#[ignore = "needs root"]
fn overflow_of_events_ends_in_the_right_state() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let host = linux(&state);
        let mut running = Running::start(host, 1, config());
        running.applied(|a| a.generation == 1).await;
        let script: String = (0..20_000)
            .map(|n| {
                format!(
                    "address {} 192.0.2.1/32 dev lo\n",
                    if n % 2 == 0 { "add" } else { "del" }
                )
            })
            .collect();
        let file = state.path().join("batch");
        std::fs::write(&file, script + "link del bw-lab\n").unwrap();
        // On this very thread: nobody reads events meanwhile.
        run("ip", &["-batch", file.to_str().unwrap()]);
        eventually("the TUN is back", PROMISED, async || {
            ip("link show").contains("bw-lab")
        })
        .await;
        running.stop().await;
    });
}

#[tokio::test]
async fn every_failure_is_told_and_repaired_later() {
    let nothing = TunControl {
        open: Arc::new(|_| Ok(())),
        close: Arc::new(|_| {}),
        inject: Arc::new(|_, _| Ok(())),
    };
    let (host, kernel) = MemoryHost::new(nothing);
    kernel.refuse(Some("add address 10.77.0.1"));
    kernel.refuse(Some("add route fd77::/48"));
    let mut running = Running::start(host, 7, config());
    let first = running.applied(|a| a.generation == 7).await;
    assert_eq!(first.failures.len(), 2, "{:?}", first.failures);
    kernel.refuse(None);
    assert_eq!(
        running.applied(|a| a.failures.is_empty()).await.generation,
        7
    );
    running.stop().await;
    assert_eq!(kernel.observed().host_links().count(), 0);
}

#[tokio::test]
async fn what_a_stop_cannot_remove_is_named() {
    let nothing = TunControl {
        open: Arc::new(|_| Ok(())),
        close: Arc::new(|_| {}),
        inject: Arc::new(|_, _| Ok(())),
    };
    let (host, kernel) = MemoryHost::new(nothing);
    let mut running = Running::start(host, 7, config());
    running.applied(|a| a.generation == 7).await;
    kernel.refuse(Some("bw-lab"));
    let left = running.leave().await;
    assert!(
        left.iter()
            .any(|f| f.what.contains("bw-lab") && f.why == "refused by the test"),
        "{left:?}"
    );
}

#[tokio::test]
async fn nothing_is_touched_before_the_first_desired_state() {
    let nothing = TunControl {
        open: Arc::new(|_| Ok(())),
        close: Arc::new(|_| {}),
        inject: Arc::new(|_, _| Ok(())),
    };
    let (mut host, kernel) = MemoryHost::new(nothing);
    let observed = host.observe(&config()).await.unwrap();
    let changes = plan(&config(), &observed);
    assert_eq!(host.apply(&config(), &observed, changes).await, Vec::new());
    let mut running = Running::start(host, 0, HostConfig::default());
    // Several times as long as the wait after an event.
    kernel.disturb(|_| {});
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(kernel.observed().host_links().count(), 1);
    running.desired.send((1, Arc::new(config()))).unwrap();
    running.applied(|a| a.generation == 1).await;
    running.stop().await;
}
