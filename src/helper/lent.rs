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
/// Most namespaces that are kept open. For one more, another is let go: its container has to have started.
const MAX_KEPT: usize = 512;
/// Most of them that one user named.
const MAX_OF_USER: usize = 64;

/// Where each was found last.
static KNOWN: Mutex<BTreeMap<Key, PathBuf>> = Mutex::new(BTreeMap::new());
/// Those that are kept open.
static KEPT: Mutex<BTreeMap<Key, Kept>> = Mutex::new(BTreeMap::new());

/// A namespace that is kept open.
struct Kept {
    until: Instant,
    /// Who named it; none for root.
    user: Option<u32>,
    file: File,
}

/// Whether a path is the namespace of a thread: `/proc/PID/task/TID/ns/net`.
pub(super) fn is_lent(path: &Path) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = path.to_str().unwrap_or_default();
    match text.split('/').collect::<Vec<_>>()[..] {
        ["", "proc", pid, "task", thread, "ns", "net"] => digits(pid) && digits(thread),
        _ => false,
    }
}

/// Keeps a namespace open that a thread of a user's process named, until a process is in it.
pub(super) fn keep(netns: &NetnsRef, file: File, user: Option<u32>) {
    if !is_lent(&netns.path) {
        return;
    }
    let mut kept = KEPT.lock();
    let begins = kept.is_empty();
    let key = (netns.device, netns.inode);
    if !kept.contains_key(&key) {
        make_room(&mut kept, user);
    }
    let until = Instant::now() + LONGEST;
    kept.insert(key, Kept { until, user, file });
    if begins {
        let thread = std::thread::Builder::new().name("lent".to_owned());
        if let Err(error) = thread.spawn(let_go) {
            kept.clear();
            tracing::warn!(%error, "start a thread that lets go of namespaces");
        }
    }
}

/// Makes room for one more of a user's. A user with [`MAX_OF_USER`] gives way to itself, and where all places are taken the
/// user with the most gives way: nobody can use them up for others. What was kept for longest is let go first.
fn make_room(kept: &mut BTreeMap<Key, Kept>, user: Option<u32>) {
    let mut counts: BTreeMap<Option<u32>, usize> = BTreeMap::new();
    for one in kept.values() {
        *counts.entry(one.user).or_default() += 1;
    }
    let gives_way = if counts.get(&user).is_some_and(|n| *n >= MAX_OF_USER) {
        user
    } else if kept.len() < MAX_KEPT {
        return;
    } else {
        let most = counts.into_iter().max_by_key(|(_, n)| *n);
        most.map_or(user, |(most, _)| most)
    };
    let theirs = kept.iter().filter(|(_, one)| one.user == gives_way);
    let oldest = theirs.min_by_key(|(_, one)| one.until).map(|(key, _)| *key);
    if let Some(key) = oldest {
        kept.remove(&key);
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
        kept.retain(|key, one| now < one.until && !inhabited.contains(key));
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
    if let Some(kept) = KEPT.lock().get(&key) {
        return kept.file.try_clone().map(Some);
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
        keep(&netns("/proc/7/ns/net"), File::open(path).unwrap(), None);
        assert!(
            again(&netns("/proc/7/ns/net")).unwrap().is_none(),
            "no thread's"
        );
        let lent = netns("/proc/7/task/8/ns/net");
        keep(&lent, File::open(path).unwrap(), Some(7));
        assert!(again(&lent).unwrap().is_some());
        // This process is in it.
        let begun = Instant::now();
        while KEPT.lock().contains_key(&(lent.device, lent.inode)) {
            assert!(begun.elapsed() < LOOK * 4, "it is kept");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(again(&lent).unwrap().is_none(), "its cookie is not known");
    }

    /// Keeps something open for each of the numbers, as if it were a namespace of the user's.
    fn named(kept: &mut BTreeMap<Key, Kept>, user: u32, inodes: std::ops::Range<u64>) {
        for inode in inodes {
            make_room(kept, Some(user));
            let one = Kept {
                until: Instant::now() + LONGEST,
                user: Some(user),
                file: File::open("/dev/null").unwrap(),
            };
            kept.insert((user.into(), inode), one);
        }
    }

    #[test]
    fn a_user_uses_up_its_own_share_and_nobody_elses() {
        let mut kept = BTreeMap::new();
        let of = |kept: &BTreeMap<Key, Kept>, user: u32| -> Vec<u64> {
            let keys = kept.keys().filter(|key| key.0 == u64::from(user));
            keys.map(|key| key.1).collect()
        };
        named(&mut kept, 1, 0..3);
        named(&mut kept, 2, 0..1000);
        assert_eq!(of(&kept, 1), [0, 1, 2]);
        // The latest are kept, as their containers start next.
        assert_eq!(of(&kept, 2), Vec::from_iter(1000 - 64..1000));
        for user in 3..10 {
            named(&mut kept, user, 0..64);
        }
        assert_eq!(kept.len(), MAX_KEPT);
        // All places are taken, and another user still has one: of those who have the most.
        named(&mut kept, 10, 0..50);
        assert_eq!(kept.len(), MAX_KEPT);
        assert_eq!(of(&kept, 10).len(), 50);
        assert_eq!(of(&kept, 1), [0, 1, 2]);
        let least = (2..10).map(|user| of(&kept, user).len()).min();
        assert!(least >= Some(57), "{least:?}: each gives way by its share");
    }
}
