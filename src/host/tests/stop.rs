//! A stop has its time, however much there is to remove.

use std::path::PathBuf;

use super::{Named, Running, config, in_own_namespace, ip, linux, netns, picture, workload};
use crate::host::{Guests, cleanup};
use crate::model::host::{HostConfig, WorkloadConfig};

/// Workloads of one machine. With a wait for each of them, for the processors or the disk, a stop took twice its time.
const MANY: u8 = 200;

/// Namespaces, and what makes each of them a workload with a resolver file of its own.
async fn many(label: &str, count: u8) -> (Vec<Named>, HostConfig) {
    let names: Vec<Named> = (0..count)
        .map(|n| Named::new(&format!("{label}{n}")))
        .collect();
    let mut desired = config();
    for (number, name) in (10..).zip(&names) {
        let (netns, resolv_conf) = netns::resolve(&name.0).await.unwrap();
        let link = format!("bwv000000{number:02x}");
        desired.workloads.push(WorkloadConfig {
            host_link: link,
            ..workload(&format!("w{number}"), number, netns, resolv_conf)
        });
    }
    (names, desired)
}

/// What is left of it inside and in the files.
fn traces(names: &[Named]) -> Vec<String> {
    let left = |named: &&Named| {
        let resolver = PathBuf::from(format!("/etc/netns/{}/resolv.conf", named.0));
        let rules = ip(&format!("-n {} rule show", named.0)).lines().count();
        let links = ip(&format!("-n {} -br link", named.0)).lines().count();
        resolver.exists() || rules > 3 || links > 1
    };
    names.iter().filter(left).map(|n| n.0.clone()).collect()
}

#[test]
#[ignore = "needs root"]
fn a_stop_removes_two_hundred_workloads_within_its_time() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        // Somebody else's link stays, also one in a group.
        ip("link add foreign group 6453623 type bridge");
        let foreign = picture();
        let (names, desired) = many("stop", MANY).await;
        let mut running = Running::start(linux(&state), 1, desired);
        let applied = running.applied(|a| a.generation == 1).await;
        assert_eq!(applied.failures, Vec::new());
        assert_eq!(traces(&names).len(), usize::from(MANY));
        running.stop().await;
        assert_eq!(traces(&names), Vec::<String>::new());
        assert_eq!(picture(), foreign);
        ip("link del foreign");
        assert_eq!(picture(), before);
        let owed = std::fs::read_dir(state.path()).unwrap().next();
        assert!(owed.is_none(), "nothing is owed");
    });
}

#[test]
#[ignore = "needs root"]
fn cleanup_removes_what_many_workloads_left() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let (names, desired) = many("left", 20).await;
        let mut running = Running::start(linux(&state), 1, desired);
        running.applied(|a| a.generation == 1).await;
        // As a kill leaves it.
        running.task.abort();
        let _ = running.task.await;
        let cleaned = cleanup(Some(super::INSTANCE), state.path(), Guests::Remove)
            .await
            .unwrap();
        assert_eq!(cleaned.left, Vec::new());
        let gone = cleaned
            .done
            .iter()
            .filter(|done| done.contains("removed link bwv"));
        assert_eq!(gone.count(), 20, "{:?}", cleaned.done);
        assert_eq!(traces(&names), Vec::<String>::new());
        assert_eq!(picture(), before);
    });
}
