//! Namespaces that a process lends by a descriptor, until somebody else leads to them.
//!
//! The plugin of a user's engine ends at once. The container's first process comes later, and until then nothing that is
//! seen from here leads to its namespace. So the descriptor is kept until a process is in the namespace, [`LONGEST`] at
//! most: while it is kept, nobody could tell that the namespace has ended.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::helper;
use crate::model::host::NetnsRef;

/// How long a descriptor is kept at most: a container's files may have to be copied before it starts.
const LONGEST: Duration = Duration::from_secs(60);
/// Time between two looks at who is in the namespaces.
const LOOK: Duration = Duration::from_secs(2);
/// Most descriptors that are kept. One more is not kept, and its container has to start at once.
const MOST: usize = 512;

/// A descriptor that is kept.
struct Kept {
    netns: (u64, u64),
    until: Instant,
    descriptor: OwnedFd,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// The namespace by a path that leads to it also when the process has ended that lent it. Any other stays as it is.
pub(super) async fn held(netns: NetnsRef) -> NetnsRef {
    if !helper::is_lent(&netns.path) {
        return netns;
    }
    let Ok(descriptor) = helper::open(netns.clone()).await else {
        return netns;
    };
    let key = (netns.device, netns.inode);
    let mut kept = KEPT.lock();
    let until = Instant::now() + LONGEST;
    let number = if let Some(known) = kept.iter_mut().find(|kept| kept.netns == key) {
        known.until = until;
        known.descriptor.as_raw_fd()
    } else if kept.len() >= MOST {
        return netns;
    } else {
        let number = descriptor.as_raw_fd();
        if kept.is_empty() {
            tokio::spawn(let_go());
        }
        kept.push(Kept {
            netns: key,
            until,
            descriptor,
        });
        number
    };
    NetnsRef {
        path: format!("/proc/{}/fd/{number}", std::process::id()).into(),
        ..netns
    }
}

/// Lets go of what a process is in by now, and of what was kept for long enough. Ends when nothing is left.
async fn let_go() {
    loop {
        tokio::time::sleep(LOOK).await;
        let inhabited: BTreeSet<(u64, u64)> = helper::of_processes()
            .await
            .unwrap_or_default()
            .iter()
            .map(|netns| (netns.device, netns.inode))
            .collect();
        let mut kept = KEPT.lock();
        let now = Instant::now();
        kept.retain(|kept| now < kept.until && !inhabited.contains(&kept.netns));
        if kept.is_empty() {
            return;
        }
    }
}
