//! Follows namespaces by their names and paths: one that was deleted and made anew is the same workload again.
//!
//! Nobody tells of namespaces that come and go, and a watch on a directory says nothing of what is mounted there later. So
//! the file of each is looked at often, which is one system call and enters nothing. Only where it is another file than
//! before is the namespace looked at itself.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Key, Workloads, key};
use crate::host::netns::{self, NetnsError};
use crate::model::followed::{Present, Why};
use crate::model::workload::Target;
use crate::node::{Node, Pursued, Seen};

/// Between two looks at the files.
const OFTEN: Duration = Duration::from_millis(250);

/// Until a namespace is looked at again whose file says that it is not what is known, and has not changed since.
const SELDOM: Duration = Duration::from_secs(2);

/// What a path leads to: device and inode of the file there.
type Sight = Result<(u64, u64), io::ErrorKind>;

/// The path by which a workload is followed; none for a container.
fn path_of(workload: &Pursued) -> Option<PathBuf> {
    match &workload.target {
        Target::Netns(spec) => Some(Path::new("/run/netns").join(spec)),
        _ => None,
    }
}

/// Whether a namespace that is known by that text may come back by it. The number of a process is another's later.
pub(in crate::command) fn may_come_back(spec: &str) -> bool {
    !Path::new(spec).starts_with("/proc")
}

fn sight(path: &Path) -> Sight {
    fs::metadata(path)
        .map(|file| (file.dev(), file.ino()))
        .map_err(|error| error.kind())
}

/// Whether what is seen is what is known of a workload already.
fn is_known(workload: &Pursued, seen: &Sight) -> bool {
    match (&workload.netns, seen) {
        (Some(netns), Ok(file)) => (netns.device, netns.inode) == *file,
        (None, Err(io::ErrorKind::NotFound)) => true,
        _ => false,
    }
}

/// Follows until it is stopped, nothing is followed any more, or the node is gone.
pub(super) async fn run(
    node: Node,
    mut workloads: watch::Receiver<Workloads>,
    stop: CancellationToken,
) {
    let mut looked: BTreeMap<Key, (Sight, Instant)> = BTreeMap::new();
    let mut tick = tokio::time::interval(OFTEN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let all = Arc::clone(&workloads.borrow_and_update());
        looked.retain(|known, _| all.iter().any(|w| key(w) == *known));
        let mut sightings = Vec::new();
        for workload in all.iter() {
            let Some(path) = path_of(workload) else {
                continue;
            };
            let seen = sight(&path);
            if is_known(workload, &seen) {
                looked.remove(&key(workload));
                continue;
            }
            let is_new = looked
                .get(&key(workload))
                .is_none_or(|(before, when)| *before != seen || when.elapsed() >= SELDOM);
            if is_new {
                looked.insert(key(workload), (seen, Instant::now()));
                sightings.extend(look(workload).await.map(|seen| (workload.clone(), seen)));
            }
        }
        if !sightings.is_empty() && node.sighted(sightings).await.is_err() {
            return;
        }
    }
}

/// Looks at the namespace itself. None where nothing can be told of it now.
async fn look(workload: &Pursued) -> Option<Seen> {
    let Target::Netns(spec) = &workload.target else {
        return None;
    };
    match netns::resolve(spec).await {
        Ok((netns, resolv_conf)) => Some(Seen::Here(Present {
            target: workload.target.clone(),
            netns,
            resolv_conf,
            labels: vec![],
            paused: false,
        })),
        Err(NetnsError::Missing(_) | NetnsError::Gone(_)) => Some(Seen::Away(Why::Removed, None)),
        Err(NetnsError::Own(_)) => Some(Seen::Away(Why::NoNamespace, None)),
        Err(error) => {
            tracing::debug!(%error, workload = %workload.name, "a namespace cannot be looked at");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::NetnsRef;
    use crate::model::id::{Name, SubnetId};

    #[test]
    fn only_what_is_not_known_is_looked_at() {
        let here = Pursued {
            subnet: SubnetId([1; 16]),
            name: Name::from_host("web"),
            since: 1,
            target: Target::Netns("web".into()),
            engine: None,
            labels: vec![],
            netns: Some(NetnsRef {
                path: "/run/netns/web".into(),
                device: 4,
                inode: 7,
                cookie: None,
            }),
        };
        let away = Pursued {
            netns: None,
            ..here.clone()
        };
        let gone = || Err(io::ErrorKind::NotFound);
        for (workload, seen, known) in [
            (&here, Ok((4, 7)), true),
            (&here, Ok((4, 8)), false),
            (&here, gone(), false),
            (&away, gone(), true),
            (&away, Ok((4, 7)), false),
            // It may be where only the helper sees it.
            (&away, Err(io::ErrorKind::PermissionDenied), false),
        ] {
            assert_eq!(is_known(workload, &seen), known, "{seen:?}");
        }
        assert_eq!(path_of(&here), Some("/run/netns/web".into()));
    }

    #[test]
    fn a_namespace_of_a_process_does_not_come_back() {
        assert!(!may_come_back("/proc/7/ns/net"));
        assert!(
            may_come_back("web") && may_come_back("/run/netns/web") && may_come_back("/process")
        );
    }
}
