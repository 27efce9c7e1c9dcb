//! What a virtual machine behind a TAP is told of its address: DHCPv4, DHCPv6 and router advertisements, so that a guest
//! needs no agent.
//!
//! Each TAP has one guest with one address of each family, which are the workload's: nothing is chosen here and nothing kept.
//! What the guest sends is a stranger's. It is read with bounds, and what is wrong with it is counted and dropped.
//!
//! | file | what it holds |
//! |---|---|
//! | `offer.rs` | what one guest is told, in no protocol's terms |
//! | `dhcp4.rs` | the answer to a packet of DHCPv4 |
//! | `dhcp6.rs` | the answer to a packet of DHCPv6 |
//! | `router.rs` | the router advertisement, and what asks for it |
//! | `serve.rs` | the sockets of one TAP |
//! | `stream.rs` | the TAP itself as a stream of frames, for a QEMU without rights |
//!
//! The first four are pure: bytes in, bytes out. The formats are written by hand and not by a crate: a dozen options are
//! used, and a guest must not be able to make a parser panic that ends the daemon with it.

mod dhcp4;
mod dhcp6;
mod offer;
mod router;
mod serve;
mod stream;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::view::View;
use offer::Offer;

/// Why a packet of a guest is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    /// It is cut short, or says lengths that do not fit.
    Malformed,
    /// It speaks for another machine than the one guest of this link.
    Foreign,
    /// It is of a kind that no guest sends to a server.
    Kind,
    /// It comes faster than any guest has reason to ask.
    Flood,
}

impl Refusal {
    fn word(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::Foreign => "of another machine",
            Refusal::Kind => "of no use",
            Refusal::Flood => "too fast",
        }
    }
}

/// The socket at which QEMU may have the TAP of that name as a stream, beside the control socket.
pub(crate) fn socket(control: &Path, link: &str) -> PathBuf {
    let name = link.strip_prefix("bwv-").unwrap_or(link);
    control.with_file_name(format!("tap-{name}.sock"))
}

/// Removes the sockets that a killed daemon left beside its control socket, and names them. One that answers is in use.
pub(crate) fn remove_dead(control: &Path) -> Vec<PathBuf> {
    let entries = control.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let entries = entries.into_iter().flatten().flatten();
    let is_ours = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("tap-") && name.ends_with(".sock")
    };
    let is_dead = |path: &PathBuf| {
        std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    let ours = entries.filter(|entry| is_ours(&entry.file_name()));
    let dead = ours.map(|entry| entry.path()).filter(is_dead);
    dead.filter(|path| std::fs::remove_file(path).is_ok())
        .collect()
}

/// A task that serves one TAP, with what its guest is told.
struct Served {
    offer: Offer,
    stop: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Follows the View until `stop`: each TAP that is to be there is served. `control` is the daemon's control socket. At the
/// end no TAP is open any more.
///
/// # Cancel safety
/// Dropping the future ends the tasks of all TAPs.
pub(crate) async fn run(
    view: Arc<ArcSwap<View>>,
    mut ticks: watch::Receiver<u64>,
    control: PathBuf,
    stop: CancellationToken,
) {
    let mut served: BTreeMap<String, Served> = BTreeMap::new();
    let tasks = TaskTracker::new();
    loop {
        follow(&mut served, Offer::all(&view.load().host), &control, &tasks);
        tokio::select! {
            () = stop.cancelled() => break,
            changed = ticks.changed() => if changed.is_err() {
                break;
            },
        }
    }
    served.clear();
    tasks.close();
    tasks.wait().await;
}

/// Ends the tasks whose TAP is gone or whose guest is told something else, and starts those that are missing.
fn follow(
    served: &mut BTreeMap<String, Served>,
    wanted: BTreeMap<String, Offer>,
    control: &Path,
    tasks: &TaskTracker,
) {
    served.retain(|link, task| wanted.get(link) == Some(&task.offer));
    for (link, offer) in wanted {
        served.entry(link).or_insert_with_key(|link| {
            let stop = CancellationToken::new();
            let (at, until) = (socket(control, link), stop.clone());
            let (link, told) = (link.clone(), offer.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = until.cancelled() => {}
                    () = serve::run(&link, &told) => {}
                    () = stream::run(&at, &link, told.owner) => {}
                }
            });
            Served { offer, stop }
        });
    }
}
