//! Damage is repaired, and what cannot be done is told and done later.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{
    MemoryHost, PROMISED, Running, TunControl, config, eventually, in_own_namespace, ip, linux,
    picture, run,
};
use crate::host::Host;
use crate::model::host::{HostConfig, plan};

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

/// What is logged, as text.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    /// Lines of the log that tell of a repair.
    fn repairs(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains("repaired"));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn only_what_others_undid_is_logged_as_a_repair_and_in_one_short_line() {
    let logged = Logged::default();
    let writer = logged.clone();
    let _guard = tracing::subscriber::set_default(
        tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .finish(),
    );
    let nothing = TunControl {
        open: Arc::new(|_| Ok(())),
        close: Arc::new(|_| {}),
        inject: Arc::new(|_, _| Ok(())),
    };
    let (host, kernel) = MemoryHost::new(nothing);
    kernel.hide(true);
    let mut running = Running::start(host, 1, config());
    running.applied(|a| a.failures.len() == 1).await;
    // What follows a pass that saw nothing is no repair.
    kernel.hide(false);
    running
        .applied(|a| a.generation == 1 && a.failures.is_empty())
        .await;
    assert_eq!(logged.repairs(), Vec::<String>::new());
    // The new state comes while the loop waits for events of the kernel to settle, as it does after each change of our own.
    kernel.disturb(|_| {});
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut more = config();
    more.tuns[0].prefixes = (0..200u8)
        .map(|n| format!("10.{n}.1.0/24").parse().unwrap())
        .collect();
    running.desired.send((2, Arc::new(more))).unwrap();
    running.applied(|a| a.generation == 2).await;
    assert_eq!(logged.repairs(), Vec::<String>::new());

    kernel.disturb(|observed| {
        for state in observed.namespaces.values_mut() {
            state.routes.clear();
        }
    });
    eventually("the repair is logged", PROMISED, async || {
        !logged.repairs().is_empty()
    })
    .await;
    let repairs = logged.repairs();
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    assert!(repairs[0].contains(" and 195 more"), "{repairs:?}");
    assert!(repairs[0].len() < 1_000, "{repairs:?}");
    running.stop().await;
}
