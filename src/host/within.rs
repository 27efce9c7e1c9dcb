//! Notices what changes inside the namespaces of workloads.
//!
//! A socket there would keep a namespace alive that nobody else needs. So one socket here hears the kernel's news of every
//! namespace that has a number here (`NETLINK_LISTEN_ALL_NSID`): those a pair of ours leads to have one. What a message
//! says is not read, only where it comes from; a look tells the rest.
//!
//! Who rules a namespace can change something in it without end. So news are taken in once in [`PAUSE`], and where there
//! was more than the socket holds everything may have changed, but not more often than once in [`FLOODED`].

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::helper;

/// Groups of linux/rtnetlink.h: links, addresses, routes, rules, network settings.
const GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 24, 25];
/// Time between two rounds of reading.
const PAUSE: Duration = Duration::from_millis(500);
/// Time between two times that everything may have changed.
const FLOODED: Duration = Duration::from_secs(5);
/// Messages from other namespaces that are read in one round.
const MOST: usize = 256;
/// How many bytes of a message are read.
const HEAD: usize = 64;

/// Where something changed since the last look, by the numbers of the namespaces here.
#[derive(Debug, Default)]
pub(super) struct News {
    everywhere: bool,
    namespaces: BTreeSet<i32>,
}

impl News {
    /// Whether something changed in that namespace; one without a number may be any.
    pub(super) fn concerns(&self, number: Option<i32>) -> bool {
        self.everywhere || number.is_some_and(|number| self.namespaces.contains(&number))
    }
}

/// News that nobody has taken yet.
pub(super) type Heard = Arc<Mutex<News>>;

/// Takes what was heard since the last time.
pub(super) fn take(heard: &Heard) -> News {
    std::mem::take(&mut *heard.lock())
}

#[expect(
    unsafe_code,
    reason = "AsyncFd::register wants to know that the descriptor stays open"
)]
fn readable(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor, which is the same and open until the AsyncFd that holds it is dropped.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

#[expect(
    unsafe_code,
    reason = "the crate takes a socket over only as a number, by an unsafe call"
)]
fn taken(socket: OwnedFd) -> Socket {
    // SAFETY: the number is that of an open socket which this call owns, and gives away.
    unsafe { Socket::from_raw_fd(socket.into_raw_fd()) }
}

fn tell(heard: &Heard, everywhere: bool, found: BTreeSet<i32>) {
    let mut news = heard.lock();
    news.everywhere |= everywhere;
    news.namespaces.extend(found);
}

/// What one message was.
enum Message {
    From(i32),
    OurOwn,
    Lost,
    None,
}

/// Listens from the namespace of the calling thread, and fires `wake` when there is news; needs a runtime.
///
/// # Errors
/// The socket cannot be opened, or not hear other namespaces.
pub(super) fn watch(wake: Arc<Notify>, heard: Heard) -> io::Result<JoinHandle<()>> {
    let mut socket = taken(helper::watch().map_err(io::Error::other)?);
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    let socket = readable(socket)?;
    Ok(tokio::spawn(async move {
        let mut flooded: Option<Instant> = None;
        loop {
            let Ok(mut ready) = socket.readable().await else {
                return;
            };
            let (mut found, mut lost) = (BTreeSet::new(), false);
            let mut left = MOST;
            while left > 0 {
                match receive(socket.get_ref().as_raw_fd()) {
                    Ok(Message::From(number)) => {
                        found.insert(number);
                        left = left.saturating_sub(1);
                    }
                    Ok(Message::OurOwn) => {}
                    Ok(Message::Lost) => lost = true,
                    Ok(Message::None) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no longer told of changes inside workloads: the slow tick remains");
                        return;
                    }
                }
            }
            let everywhere = lost && flooded.is_none_or(|when| when.elapsed() >= FLOODED);
            if everywhere {
                flooded = Some(Instant::now());
            }
            if everywhere || !found.is_empty() {
                tell(&heard, everywhere, found);
                wake.notify_one();
                tokio::time::sleep(PAUSE).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }))
}

fn receive(socket: RawFd) -> io::Result<Message> {
    let mut head = [0u8; HEAD];
    let mut parts = [IoSliceMut::new(&mut head)];
    let mut control = nix::cmsg_space!(i32);
    let received = match recvmsg::<()>(
        socket,
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(received) => received,
        Err(Errno::EAGAIN) => return Ok(Message::None),
        Err(Errno::ENOBUFS) => return Ok(Message::Lost),
        Err(Errno::EINTR) => return Ok(Message::OurOwn),
        Err(errno) => return Err(errno.into()),
    };
    for message in received.cmsgs()? {
        if let ControlMessageOwned::Unknown(message) = message
            && message.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID
            && let Some(number) = message.data_bytes.first_chunk()
        {
            return Ok(Message::From(i32::from_ne_bytes(*number)));
        }
    }
    Ok(Message::OurOwn)
}
