//! What is done with resolver files of workloads: `/etc/netns/NAME/resolv.conf` and those an engine made for its containers.
//!
//! A container's file is bind-mounted into it, so it is rewritten in place: a renamed file would stay outside.
//!
//! A file that somebody else reads too must not be written. So what is opened is judged by what it is, not by the path that
//! led there: an ordinary file with one name, and that name ends as the path does. Whatever was put into the path meanwhile
//! leads to a file that is called otherwise.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::wire::{Error, Removed};

/// The resolver file as a container's processes call it.
const INSIDE: &str = "/etc/resolv.conf";
/// Length of a container's ID, in hexadecimal digits.
const ID: usize = 64;

/// Which files may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Any: whoever asks could open them itself.
    Any,
    /// Resolver files of named namespaces and of containers.
    OfWorkloads,
}

impl Files {
    /// Whether a path may be asked for, by its text alone; what it leads to is judged when it is opened.
    pub(super) fn allow(self, path: &Path) -> Result<(), Error> {
        if self == Files::Any || is_of_workload(path) {
            return Ok(());
        }
        let path = path.display();
        Err(Error::Refused(format!(
            "{path} is no resolver file of a workload"
        )))
    }

    /// Whether a path may be made and removed, by its text alone.
    pub(super) fn allow_making(self, path: &Path) -> Result<(), Error> {
        if self == Files::Any || is_of_named(path) {
            return Ok(());
        }
        let path = path.display();
        Err(Error::Refused(format!(
            "{path} is no resolver file of a named namespace"
        )))
    }
}

/// Whether a path is that of a named namespace, the only ones that are ever made and removed: an engine does that for
/// its containers itself.
fn is_of_named(path: &Path) -> bool {
    is_of_workload(path) && path.starts_with("/etc/netns")
}

/// Whether a path is `/etc/netns/NAME/resolv.conf`, or ends as a container's does, in a directory with its whole ID.
fn is_of_workload(path: &Path) -> bool {
    let names: Option<Vec<&str>> = path
        .components()
        .skip(1)
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let Some(names) = names.filter(|_| path.is_absolute()) else {
        return false;
    };
    let is_id = |name: &str| name.len() == ID && name.bytes().all(|b| b.is_ascii_hexdigit());
    match names[..] {
        ["etc", "netns", _, "resolv.conf"] => true,
        [.., id, "userdata", "resolv.conf"] | [.., id, "resolv.conf"] => is_id(id),
        _ => false,
    }
}

/// Opens a file to read it, where it is there; and tells whether its directory is.
///
/// # Errors
/// When it exists and cannot be read, or is a symbolic link.
pub(super) fn read(path: &Path) -> Result<(Option<OwnedFd>, bool), Error> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match open {
        Ok(file) => Some(file.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::system("read", path)(error)),
    };
    Ok((file, path.parent().is_some_and(Path::exists)))
}

/// Writes a file in place; it and its directory are made first where that is asked for.
///
/// # Errors
/// When it cannot be made or written, or is somebody else's too.
pub(super) fn write(path: &Path, content: &[u8], make: bool) -> Result<(), Error> {
    if make {
        let directory = path
            .parent()
            .ok_or_else(|| Error::Refused(format!("{} has no directory", path.display())))?;
        std::fs::create_dir_all(directory).map_err(Error::system("make", directory))?;
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::system("make", path)(error));
            }
            _ => {}
        }
    }
    let place = open(path)?;
    // Whoever holds a lease on its own file (fcntl(2), F_SETLEASE) must not make us wait for 45 seconds.
    let write = || {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(held(&place))?
            .write_all(content)
    };
    write().map_err(Error::system("write", path))
}

/// Removes a file, or the directory it was in. What is gone already is no error: a request may come twice.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn remove(path: &Path, what: Removed) -> Result<(), Error> {
    let removed = match (what, path.parent()) {
        (Removed::File, _) => std::fs::remove_file(path),
        (Removed::Directory, Some(directory)) => std::fs::remove_dir(directory),
        (Removed::Directory, None) => Ok(()),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Whether `path` is the file that an engine made for the container with one of `ids`, and what the process `pid` of it
/// finds at `/etc/resolv.conf`. A file that was mounted there from elsewhere is its owner's.
pub(super) fn is_engines_own(path: &Path, ids: &[String], pid: u32) -> bool {
    let of_container = tail(path).iter().rev().skip(1).any(|dir| ids.contains(dir));
    let (Ok(file), Ok(inside)) = (open(path), inside(pid)) else {
        return false;
    };
    let same =
        |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    of_container
        && file
            .metadata()
            .ok()
            .zip(inside.metadata().ok())
            .is_some_and(|(a, b)| same(a, b))
}

/// `/etc/resolv.conf` as a process sees it, links followed as it would follow them.
fn inside(pid: u32) -> io::Result<File> {
    let root = File::open(format!("/proc/{pid}/root"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(&root, INSIDE, how)?))
}

/// The end of a path that tells whose file it is: `CONTAINER/resolv.conf`, or `CONTAINER/userdata/resolv.conf`.
fn tail(path: &Path) -> Vec<String> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    let length = if names
        .iter()
        .rev()
        .nth(1)
        .is_some_and(|dir| dir == "userdata")
    {
        3
    } else {
        2
    };
    names[names.len().saturating_sub(length)..].to_vec()
}

/// Takes hold of a file that is nobody else's, without opening it yet.
fn open(path: &Path) -> Result<File, Error> {
    let system = || Error::system("write", path);
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(system())?;
    let meta = file.metadata().map_err(system())?;
    let refuse = |why: &str| Error::Refused(format!("write {}: {why}", path.display()));
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(refuse("it is no file of its own"));
    }
    let real = std::fs::read_link(held(&file)).map_err(system())?;
    if tail(&real) != tail(path) {
        return Err(refuse(&format!("it is {} in truth", real.display())));
    }
    Ok(file)
}

/// The path of what is taken hold of.
fn held(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_an_engine_made_and_mounted_is_its_containers() {
        let (dir, me) = (tempfile::tempdir().unwrap(), std::process::id());
        let file = dir.path().join("c0ffee").join("resolv.conf");
        std::fs::create_dir(dir.path().join("c0ffee")).unwrap();
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let ids = ["c0ffee".to_owned()];
        assert!(
            !is_engines_own(&file, &ids, me),
            "this process finds another one at /etc/resolv.conf"
        );
        assert!(
            !is_engines_own(Path::new("/etc/resolv.conf"), &ids, me),
            "this one has no container's name"
        );
    }

    #[test]
    fn who_holds_a_lease_on_its_file_makes_nobody_wait() {
        use std::io::Read as _;
        const LEASE: &str = "import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print('held', flush=True)
time.sleep(20)";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web").join("resolv.conf");
        std::fs::create_dir(dir.path().join("web")).unwrap();
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let mut holder = std::process::Command::new("python3")
            .args(["-c", LEASE])
            .arg(&file)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        let mut out = holder.stdout.take().unwrap();
        out.read_exact(&mut said).unwrap();
        let begun = std::time::Instant::now();
        let written = write(&file, b"nameserver 192.0.2.2\n", false);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(
            matches!(&written, Err(Error::System { errno, .. }) if *errno == libc::EWOULDBLOCK),
            "{written:?}"
        );
        assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn only_files_of_workloads_are_allowed() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            "/etc/netns/web/resolv.conf".to_owned(),
            format!("/var/lib/docker/containers/{id}/resolv.conf"),
            format!("/run/containers/{id}/userdata/resolv.conf"),
        ] {
            assert!(Files::OfWorkloads.allow(Path::new(&path)).is_ok(), "{path}");
        }
        for path in [
            "/etc/resolv.conf".to_owned(),
            "/etc/netns/../x/resolv.conf".to_owned(),
            "/etc/netns/resolv.conf".to_owned(),
            "/etc/netns/web/hosts".to_owned(),
            format!("{id}/resolv.conf"),
            format!("/x/{id}/hosts"),
            "/x/0123/resolv.conf".to_owned(),
            String::new(),
        ] {
            let refused = Files::OfWorkloads.allow(Path::new(&path));
            assert!(matches!(refused, Err(Error::Refused(_))), "{path}");
        }
    }
}
