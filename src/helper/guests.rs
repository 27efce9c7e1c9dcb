//! Sockets at which the guest behind a TAP asks for a router. ICMPv6 takes a raw socket, so `CAP_NET_RAW`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

use super::namespaces::is_netns;
use super::wire::Error;
use crate::model::workload::is_tap_link;

/// The kind of ICMPv6 packet that asks for a router.
const SOLICITATION: usize = 133;
/// The option by which a socket says what it does not hear (RFC 3542, 3.2).
const ICMP6_FILTER: libc::c_int = 1;
/// Who asks all routers of a link sends there.
const ALL_ROUTERS: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Makes the socket in the namespace in `own`. Bound to a link by whoever may, it stays there: its user may not loosen it.
///
/// # Errors
/// When `own` is no network namespace, the link is no TAP of ours, or the kernel refuses.
pub(super) fn solicitations(own: &OwnedFd, link: &str) -> Result<OwnedFd, Error> {
    if !is_tap_link(link) {
        let strange: String = link.chars().take(80).collect();
        return Err(Error::Refused(format!("{strange:?} is no TAP of ours")));
    }
    if !is_netns(own).unwrap_or(false) {
        return Err(Error::Missing("the daemon's own namespace".into()));
    }
    let make = || -> io::Result<OwnedFd> {
        setns(own, CloneFlags::CLONE_NEWNET)?;
        let index = if_nametoindex(link)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let icmp = Some(SockProtocol::IcmpV6);
        let made = socket(AddressFamily::Inet6, SockType::Raw, flags, icmp)?;
        hear_only(&made, SOLICITATION)?;
        setsockopt(&made, sockopt::BindToDevice, &link.into())?;
        let made = socket2::Socket::from(made);
        made.set_multicast_hops_v6(255)?;
        made.join_multicast_v6(&ALL_ROUTERS, index)?;
        Ok(made.into())
    };
    make().map_err(Error::system("make a socket at", Path::new(link)))
}

/// Has a socket of ICMPv6 hear one kind of packets.
#[expect(unsafe_code, reason = "setsockopt(ICMP6_FILTER) has no safe wrapper")]
fn hear_only(socket: &OwnedFd, kind: usize) -> io::Result<()> {
    // A bit that is set is a kind that is not heard.
    let mut filter = [u32::MAX; 8];
    if let Some(word) = filter.get_mut(kind / 32) {
        *word &= !(1 << (kind % 32));
    }
    let length = libc::socklen_t::try_from(size_of_val(&filter)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call; the kernel reads `length` bytes, the size of `filter`.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tap_of_ours_is_listened_at() {
        let own: OwnedFd = std::fs::File::open("/proc/self/ns/net").unwrap().into();
        for link in ["eth0", "lo", "bwv-", "bwv0123456789", "bwv-a/b", ""] {
            let refused = solicitations(&own, link);
            assert!(matches!(refused, Err(Error::Refused(_))), "{link:?}");
        }
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(matches!(
            solicitations(&file, "bwv-vm"),
            Err(Error::Missing(_))
        ));
    }
}
