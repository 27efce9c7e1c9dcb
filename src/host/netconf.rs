//! Notices when somebody turns forwarding on or off.
//!
//! A netlink socket in the groups of the kernel's network settings. What a message says is not read: every pass looks at
//! the settings themselves, and what our own writes cause ends with a pass that changes nothing.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// `RTNLGRP_IPV4_NETCONF` (linux/rtnetlink.h).
const IPV4_NETCONF: u32 = 24;
/// `RTNLGRP_IPV6_NETCONF`, the same of IPv6.
const IPV6_NETCONF: u32 = 25;

/// Fires `wake` after each change, in the network namespace of the calling thread; needs a runtime.
///
/// # Errors
/// The socket cannot be opened or not join a group.
pub fn watch(wake: Arc<Notify>) -> io::Result<JoinHandle<()>> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(IPV4_NETCONF)?;
    socket.socket_mut().add_membership(IPV6_NETCONF)?;
    Ok(tokio::spawn(async move {
        loop {
            match poll_fn(|cx| socket.poll_recv_from_full(cx)).await {
                Ok(_) => wake.notify_one(),
                // The kernel had more to say than the socket holds: anything may have happened.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => wake.notify_one(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "no longer told of changes of forwarding: the slow tick remains");
                    return;
                }
            }
        }
    }))
}
