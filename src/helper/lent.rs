//! A namespace that was named by a descriptor of a process, found again when that process has ended.
//!
//! The plugin of a user's engine ends as soon as a container is attached, and the container's namespace has no other name
//! that is seen from here. Whoever is in it leads to it: it is the one whose device, inode and cookie are known.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;

use super::namespaces::{netns_cookie, open_namespace};
use crate::model::host::NetnsRef;

/// Most namespaces whose present path is remembered.
const MAX_KNOWN: usize = 1024;

/// Where each was found last, by device and inode.
static KNOWN: Mutex<BTreeMap<(u64, u64), PathBuf>> = Mutex::new(BTreeMap::new());

/// Whether a path is a descriptor of a process: `/proc/PID/fd/N`.
pub fn is_lent(path: &Path) -> bool {
    let mut parts = path.iter().rev();
    let number = parts
        .next()
        .is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    number && parts.next().is_some_and(|fd| fd == "fd") && path.starts_with("/proc")
}

/// The namespace by a process that is in it; none where no process is. Without a cookie it cannot be told from a later one.
///
/// # Errors
/// Processes cannot be listed.
pub(super) fn again(netns: &NetnsRef) -> io::Result<Option<File>> {
    let key = (netns.device, netns.inode);
    let known = KNOWN.lock().get(&key).cloned();
    if let Some(file) = known.and_then(|path| is_it(&path, netns)) {
        return Ok(Some(file));
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        let here = std::fs::metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == key);
        if !here {
            continue;
        }
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
    fn a_descriptor_of_a_process_is_told_from_other_paths() {
        for path in ["/proc/7/fd/3", "/proc/self/fd/12"] {
            assert!(is_lent(Path::new(path)), "{path}");
        }
        for path in [
            "/proc/7/ns/net",
            "/run/netns/3",
            "/run/fd/3",
            "/proc/7/fd/a",
            "fd/3",
        ] {
            assert!(!is_lent(Path::new(path)), "{path}");
        }
    }
}
