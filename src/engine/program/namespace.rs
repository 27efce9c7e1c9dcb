//! What a container's namespace has, looked at from inside: the engine runs this program as root.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// A namespace that an engine names.
#[derive(Debug)]
pub(in crate::engine) enum Namespace {
    /// Its path is empty, leads nowhere, or to what was a mount of it.
    Gone,
    /// It is there, with these addresses on an interface; none where there is no such interface.
    Has(Option<BTreeSet<IpAddr>>),
}

/// Looks for an interface in a namespace.
///
/// # Errors
/// What is there cannot be opened or entered.
pub(in crate::engine) fn look(path: &Path, interface: &str) -> io::Result<Namespace> {
    if path.as_os_str().is_empty() {
        return Ok(Namespace::Gone);
    }
    // What is no namespace may be a pipe that nobody writes to.
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ESRCH | libc::ENOTDIR)
            ) =>
        {
            return Ok(Namespace::Gone);
        }
        Err(error) => return Err(error),
    };
    if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(Namespace::Gone);
    }
    let interface = interface.to_owned();
    // A thread of its own: the one that asks stays in its namespace.
    std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        let mut all = getifaddrs()?
            .filter(|at| at.interface_name == interface)
            .peekable();
        if all.peek().is_none() {
            return Ok(Namespace::Has(None));
        }
        let address = |at: nix::ifaddrs::InterfaceAddress| {
            let address = at.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        };
        Ok(Namespace::Has(Some(all.filter_map(address).collect())))
    })
    .join()
    .map_err(|_| io::Error::other("its thread ended early"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [Path::new(""), Path::new("/nowhere/at/all"), file.path()] {
            assert!(
                matches!(look(path, "eth0").unwrap(), Namespace::Gone),
                "{path:?}"
            );
        }
    }
}
