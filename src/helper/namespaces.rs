//! What is done with namespaces: look at a path, enter, make sockets, read and write sysctls.
//!
//! Whoever enters a namespace stays there, so each of these runs on a thread that ends after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::lent;
use super::wire::{Error, SocketKind};
use crate::model::host::NetnsRef;

/// `_IO(0xb7, 3)`, see ioctl_ns(2).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// `_IO(0xb7, 1)`: the user namespace that a namespace belongs to.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
/// `_IO(0xb7, 2)`: the user namespace that another one was made in.
const NS_GET_PARENT: libc::Ioctl = 0xb702;
/// `_IO(0xb7, 4)`: the user who made a user namespace.
const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
/// Most user namespaces that the kernel nests in each other.
const MAX_NESTED: usize = 33;
/// Most namespaces of processes that are told.
const MAX_NAMESPACES: usize = 1024;
/// Most sysctls that are read or written at once.
const MAX_SYSCTLS: usize = 1024;

/// Looks at a path, and enters the namespace once to see that it works.
///
/// # Errors
/// [`Error::Missing`] where no network namespace is there, [`Error::Foreign`] where it is not that of `owner`.
pub(super) fn name(path: PathBuf, owner: Option<u32>) -> Result<NetnsRef, Error> {
    let found = open_namespace(&path)
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "attach"));
    // Why not is in the log, for those who may read it.
    let Ok(Some(file)) = found else {
        return Err(Error::Missing(path));
    };
    if owner.is_some_and(|user| !is_owned_by(&file, user)) {
        return Err(Error::Foreign(path));
    }
    let meta = file.metadata().map_err(Error::system("look at", &path))?;
    let netns = NetnsRef {
        path,
        device: meta.dev(),
        inode: meta.ino(),
        cookie: None,
    };
    let cookie = enter(&netns)?;
    lent::keep(&netns, file, owner);
    Ok(NetnsRef { cookie, ..netns })
}

/// Opens the namespace file and checks that it is the one that is meant. One that was named by a thread of a process that
/// has ended is looked for among the namespaces of all processes.
///
/// # Errors
/// [`Error::Gone`] when it is not.
pub(super) fn open(netns: &NetnsRef) -> Result<File, Error> {
    match open_path(netns) {
        Err(Error::Gone(path)) if lent::is_lent(&path) => {
            let found = lent::again(netns).map_err(Error::system("look for", &path))?;
            found.ok_or(Error::Gone(path))
        }
        opened => opened,
    }
}

fn open_path(netns: &NetnsRef) -> Result<File, Error> {
    let gone = || Error::Gone(netns.path.clone());
    let file = match open_namespace(&netns.path) {
        Ok(Some(file)) => file,
        Ok(None) => return Err(gone()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)
            ) =>
        {
            return Err(gone());
        }
        Err(error) => return Err(Error::system("open", &netns.path)(error)),
    };
    let meta = file
        .metadata()
        .map_err(Error::system("look at", &netns.path))?;
    if (meta.dev(), meta.ino()) == (netns.device, netns.inode) {
        Ok(file)
    } else {
        Err(gone())
    }
}

/// Opens what is at `path` if it is a network namespace.
///
/// The path is somebody's word, and opening a device, a FIFO or a socket does something. So the place is taken hold of
/// first (`O_PATH`), which opens nothing, and only what lies in the namespaces' own file system is opened through it.
pub(super) fn open_namespace(path: &Path) -> io::Result<Option<File>> {
    let place = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    if fstatfs(&place)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    Ok(is_netns(&file)?.then_some(file))
}

/// Whether a file of the namespaces' file system is a network namespace (Linux 4.11).
///
/// # Errors
/// When the kernel does not know the question, for example because the file is none of these.
#[expect(unsafe_code, reason = "ioctl(NS_GET_NSTYPE) has no safe wrapper")]
pub(super) fn is_netns(file: &impl AsRawFd) -> io::Result<bool> {
    // SAFETY: the descriptor is open for the whole call, and the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(kind == libc::CLONE_NEWNET)
    }
}

/// Whether a namespace belongs to a user: that user made the user namespace that it is in, or one around that. Such a user
/// has all rights over it without our help. A namespace that root made belongs to root alone.
fn is_owned_by(namespace: &File, user: u32) -> bool {
    let mut around = user_namespace(namespace, NS_GET_USERNS);
    for _ in 0..MAX_NESTED {
        let Ok(inner) = around else {
            return false;
        };
        if owner(&inner).is_ok_and(|owner| owner == user) {
            return true;
        }
        // It is refused for the first of all, and for those that are not around this process.
        around = user_namespace(&inner, NS_GET_PARENT);
    }
    false
}

/// A user namespace, by one of the two questions that are answered with its file.
///
/// # Errors
/// When the kernel does not tell.
#[expect(
    unsafe_code,
    reason = "ioctl_ns(2) has no safe wrapper, and answers with a number to take over"
)]
fn user_namespace(of: &impl AsRawFd, question: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for the whole call, and the request takes no argument.
    let number = unsafe { libc::ioctl(of.as_raw_fd(), question) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for this process a moment ago, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The user who made a user namespace.
///
/// # Errors
/// When the kernel does not tell.
#[expect(unsafe_code, reason = "ioctl(NS_GET_OWNER_UID) has no safe wrapper")]
fn owner(namespace: &OwnedFd) -> io::Result<u32> {
    let mut user: libc::uid_t = 0;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes one uid_t to a valid pointer.
    let rc = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut user) };
    if rc == 0 {
        Ok(user)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A number no other network namespace has had since boot (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// Inode numbers of namespaces are used again as soon as one is gone; this is not.
///
/// # Errors
/// When the kernel does not know the option.
#[expect(
    unsafe_code,
    reason = "getsockopt(SO_NETNS_COOKIE) has no safe wrapper"
)]
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call; the kernel writes at most `length` bytes, the size of
    // `cookie`, to a pointer that is valid and aligned for them.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if rc == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Brings the calling thread into a namespace for good, and gives the namespace's cookie.
///
/// # Errors
/// [`Error::Gone`] when it is another one than is meant.
pub(super) fn enter(netns: &NetnsRef) -> Result<Option<u64>, Error> {
    let file = open(netns)?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Error::system("enter", &netns.path)(errno.into()))?;
    let cookie = netns_cookie().ok();
    if netns.cookie.is_some() && cookie != netns.cookie {
        return Err(Error::Gone(netns.path.clone()));
    }
    Ok(cookie)
}

/// Makes sockets inside. They keep the namespace alive.
///
/// # Errors
/// When the namespace is gone or the kernel makes none.
pub(super) fn sockets(
    netns: &NetnsRef,
    kind: SocketKind,
) -> Result<(Option<u64>, Vec<OwnedFd>), Error> {
    let cookie = enter(netns)?;
    let (family, sort, protocol, count) = match kind {
        SocketKind::Udp4 => (AddressFamily::Inet, SockType::Datagram, None, 1),
        SocketKind::Udp6 => (AddressFamily::Inet6, SockType::Datagram, None, 1),
        SocketKind::Tcp4 => (AddressFamily::Inet, SockType::Stream, None, 1),
        SocketKind::Tcp6 => (AddressFamily::Inet6, SockType::Stream, None, 1),
        SocketKind::Route => {
            let route = Some(SockProtocol::NetlinkRoute);
            (AddressFamily::Netlink, SockType::Raw, route, 2)
        }
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let make = |_| nix::sys::socket::socket(family, sort, flags, protocol);
    let made: nix::Result<Vec<OwnedFd>> = (0..count).map(make).collect();
    let made =
        made.map_err(|errno| Error::system("make a socket in", &netns.path)(errno.into()))?;
    Ok((cookie, made))
}

/// The namespaces that processes are in, each by its oldest process.
///
/// # Errors
/// When processes cannot be listed.
pub(super) fn of_processes() -> Result<Vec<NetnsRef>, Error> {
    let proc = Path::new("/proc");
    let mut pids: Vec<u32> = std::fs::read_dir(proc)
        .map_err(Error::system("list processes in", proc))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        if seen.insert((meta.dev(), meta.ino())) && found.len() < MAX_NAMESPACES {
            found.push(NetnsRef {
                path,
                device: meta.dev(),
                inode: meta.ino(),
                cookie: None,
            });
        }
    }
    Ok(found)
}

/// A route socket of the namespace in `own` that hears every namespace that has a number there; not bound yet. Hearing
/// them takes `CAP_NET_BROADCAST`, of whoever opens the socket.
///
/// # Errors
/// When `own` is no network namespace, or the kernel refuses.
pub(super) fn watch(own: &OwnedFd) -> Result<OwnedFd, Error> {
    let path = Path::new("the daemon's own namespace");
    if !is_netns(own).unwrap_or(false) {
        return Err(Error::Missing(path.to_owned()));
    }
    let make = || -> io::Result<OwnedFd> {
        setns(own, CloneFlags::CLONE_NEWNET)?;
        listening()
    };
    make().map_err(Error::system("listen in", path))
}

/// The socket of [`watch`], in the calling thread's namespace.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn listening() -> io::Result<OwnedFd> {
    let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.set_listen_all_namespaces(true)?;
    socket.set_non_blocking(true)?;
    // The socket owns its descriptor and gives it away only as a copy.
    socket.as_fd().try_clone_to_owned()
}

/// Values of the sysctls that exist, and those that were not written, each with the reason.
type Sysctls = (BTreeMap<String, String>, Vec<(String, String)>);

/// Reads and writes sysctls inside: the values of those that exist, and which were not written and why.
///
/// # Errors
/// When a key is none of a network namespace, there are too many, or the namespace is gone. Nothing was written then.
pub(super) fn sysctls(
    netns: &NetnsRef,
    read: BTreeSet<String>,
    write: &[(String, String)],
) -> Result<Sysctls, Error> {
    let written = write.iter().map(|(key, _)| key);
    if let Some(strange) = read.iter().chain(written).find(|key| !is_key(key)) {
        let strange: String = strange.chars().take(80).collect();
        return Err(Error::Refused(format!("{strange:?} is no sysctl of ours")));
    }
    if read.len() + write.len() > MAX_SYSCTLS {
        return Err(Error::Refused(format!("more than {MAX_SYSCTLS} sysctls")));
    }
    enter(netns)?;
    let path = |key: &str| Path::new("/proc/sys").join(key);
    let value = |key: String| {
        let value = std::fs::read_to_string(path(&key)).ok()?;
        Some((key, value.trim().to_owned()))
    };
    let values = read.into_iter().filter_map(value).collect();
    let set = |(key, value): &(String, String)| {
        let error = std::fs::write(path(key), value).err()?;
        Some((key.clone(), format!("write /proc/sys/{key}: {error}")))
    };
    Ok((values, write.iter().filter_map(set).collect()))
}

/// Whether a key is a setting of one link, the only ones that are ever set in a workload's namespace.
fn is_key(key: &str) -> bool {
    /// Names of the settings, of IPv4 or IPv6.
    const NAMES: [&str; 6] = [
        "forwarding",
        "force_forwarding",
        "rp_filter",
        "disable_ipv6",
        "addr_gen_mode",
        "accept_ra",
    ];
    let parts: Vec<&str> = key.split('/').collect();
    let [net, family, conf, link, name] = parts[..] else {
        return false;
    };
    (net, conf) == ("net", "conf")
        && matches!(family, "ipv4" | "ipv6")
        && !matches!(link, "" | "." | "..")
        && !link.contains('\0')
        && NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_of_a_link_are_keys() {
        for key in [
            "net/ipv4/conf/eth0/rp_filter",
            "net/ipv6/conf/a.b/disable_ipv6",
        ] {
            assert!(is_key(key), "{key}");
        }
        for key in [
            "net/ipv4/conf/../rp_filter",
            "net/ipv4/conf/eth0/../../../kernel/core_pattern",
            "net/ipv4/conf//rp_filter",
            "net/core/conf/eth0/rp_filter",
            "kernel/core_pattern",
            "net/ipv4/ip_forward",
            "/etc/passwd",
            "",
        ] {
            assert!(!is_key(key), "{key}");
        }
    }
}
