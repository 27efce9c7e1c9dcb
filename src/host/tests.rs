//! On the real kernel, in namespaces of their own: a test thread leaves the main one before it does anything.

mod crowd;
mod repair;
mod stop;
mod traces;
mod uplinks;
mod workloads;

use std::collections::BTreeMap;
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
use crate::model::host::firewalls::Integrate;
use crate::model::host::{
    HostConfig, HostPolicy, NetnsRef, ResolvConf, TunConfig, WorkloadConfig, plan,
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
        netns: Some(netns),
        by_engine: false,
        tap: None,
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
