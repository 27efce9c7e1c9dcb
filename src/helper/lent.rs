//! A namespace that was named by a thread of a process, found again when that process has ended.
//!
//! The plugin of a user's engine ends as soon as a container is attached, and the container's namespace has no other name
//! that is seen from here. Whoever is in it leads to it: it is the one whose device, inode and cookie are known. Until the
//! container's first process is in it nobody is. So its file is kept open until then, [`LONGEST`] at most: while it is open,
//! nobody could tell that the namespace has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;

use super::namespaces::{netns_cookie, open_namespace};
use crate::model::host::NetnsRef;

/// Device and inode of a namespace.
type Key = (u64, u64);

/// Most namespaces whose present path is remembered.
const MAX_KNOWN: usize = 1024;
/// How long a namespace is kept open at most: a container's files may have to be copied before it starts.
const LONGEST: Duration = Duration::from_secs(60);
/// Time between two looks at who is in the namespaces that are kept open.
const LOOK: Duration = Duration::from_secs(3);
/// Most namespaces that are kept open. One more is not, and its container has to start at once.
const MAX_KEPT: usize = 512;

/// Where each was found last.
static KNOWN: Mutex<BTreeMap<Key, PathBuf>> = Mutex::new(BTreeMap::new());
/// Those that are kept open, each until when.
static KEPT: Mutex<BTreeMap<Key, (Instant, File)>> = Mutex::new(BTreeMap::new());

/// Whether a path is the namespace of a thread: `/proc/PID/task/TID/ns/net`.
pub(super) fn is_lent(path: &Path) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = path.to_str().unwrap_or_default();
    match text.split('/').collect::<Vec<_>>()[..] {
        ["", "proc", pid, "task", thread, "ns", "net"] => digits(pid) && digits(thread),
        _ => false,
    }
}

/// Keeps a namespace open that a thread named, until a process is in it.
pub(super) fn keep(netns: &NetnsRef, file: File) {
    if !is_lent(&netns.path) {
        return;
    }
    let mut kept = KEPT.lock();
    if kept.len() >= MAX_KEPT {
        return;
    }
    let begins = kept.is_empty();
    let key = (netns.device, netns.inode);
    kept.insert(key, (Instant::now() + LONGEST, file));
    if begins {
        let thread = std::thread::Builder::new().name("lent".to_owned());
        if let Err(error) = thread.spawn(let_go) {
            kept.clear();
            tracing::warn!(%error, "start a thread that lets go of namespaces");
        }
    }
}

/// Lets go of what a process is in by now, and of what was kept for long enough. Ends when nothing is left.
fn let_go() {
    loop {
        std::thread::sleep(LOOK);
        let inhabited: BTreeSet<Key> = processes()
            .map(|all| all.map(|(key, _)| key).collect())
            .unwrap_or_default();
        let mut kept = KEPT.lock();
        let now = Instant::now();
        kept.retain(|key, (until, _)| now < *until && !inhabited.contains(key));
        if kept.is_empty() {
            return;
        }
    }
}

/// The namespaces of all processes, each with its path.
fn processes() -> io::Result<impl Iterator<Item = (Key, PathBuf)>> {
    let is_process =
        |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    Ok(std::fs::read_dir("/proc")?
        .flatten()
        .filter(move |entry| is_process(&entry.file_name()))
        .filter_map(|entry| {
            let path = entry.path().join("ns/net");
            let meta = std::fs::metadata(&path).ok()?;
            Some(((meta.dev(), meta.ino()), path))
        }))
}

/// The namespace as it was kept open, or by a process that is in it; none where neither is there. Without a cookie it
/// cannot be told from a later one.
///
/// # Errors
/// Processes cannot be listed.
pub(super) fn again(netns: &NetnsRef) -> io::Result<Option<File>> {
    let key = (netns.device, netns.inode);
    // While it is open nothing else has its inode.
    if let Some((_, file)) = KEPT.lock().get(&key) {
        return file.try_clone().map(Some);
    }
    let known = KNOWN.lock().get(&key).cloned();
    if let Some(file) = known.and_then(|path| is_it(&path, netns)) {
        return Ok(Some(file));
    }
    for (_, path) in processes()?.filter(|(found, _)| *found == key) {
        if let Some(file) = is_it(&path, netns) {
            let mut known = KNOWN.lock();
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(key, path);
            return Ok(Some(file));
        }
    }
    KNOWN.lock().remove(&key);
    Ok(None)
}

/// The namespace at a path, if it is that very one.
fn is_it(path: &Path, netns: &NetnsRef) -> Option<File> {
    let file = open_namespace(path).ok()??;
    let meta = file.metadata().ok()?;
    if (meta.dev(), meta.ino()) != (netns.device, netns.inode) {
        return None;
    }
    let wanted = netns.cookie?;
    // A thread of its own: the one that asks stays in its namespace.
    let cookie = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).ok()?;
            netns_cookie().ok()
        });
        inside.join().ok().flatten()
    });
    (cookie == Some(wanted)).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_a_thread_is_told_from_other_paths() {
        assert!(is_lent(Path::new("/proc/7/task/8/ns/net")));
        for path in [
            "/proc/7/ns/net",
            "/run/netns/3",
            "/proc/7/task/8/ns/mnt",
            "/proc/7/task//ns/net",
            "/proc/self/task/8/ns/net",
            "/proc/7/task/8/ns/net/",
        ] {
            assert!(!is_lent(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn what_is_kept_open_is_let_go_once_a_process_is_in_it() {
        let path = Path::new("/proc/self/ns/net");
        let meta = std::fs::metadata(path).unwrap();
        let netns = |path: &str| NetnsRef {
            path: path.into(),
            device: meta.dev(),
            inode: meta.ino(),
            cookie: None,
        };
        keep(&netns("/proc/7/ns/net"), File::open(path).unwrap());
        assert!(
            again(&netns("/proc/7/ns/net")).unwrap().is_none(),
            "no thread's"
        );
        let lent = netns("/proc/7/task/8/ns/net");
        keep(&lent, File::open(path).unwrap());
        assert!(again(&lent).unwrap().is_some());
        // This process is in it.
        let begun = Instant::now();
        while KEPT.lock().contains_key(&(lent.device, lent.inode)) {
            assert!(begun.elapsed() < LOOK * 4, "it is kept");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(again(&lent).unwrap().is_none(), "its cookie is not known");
    }
}
