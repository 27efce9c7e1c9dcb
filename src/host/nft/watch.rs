//! Notices when someone else changes our table, or rules of their own.
//!
//! A netlink socket in the group of nftables events. Each transaction of anybody ends with a "new generation" message
//! that names the process behind it; what our own nft runs did is passed over. When the rules of other people's tables
//! change, who looks after what we have there is told. When in doubt (messages lost, a process unknown because of another PID namespace) the alarm sounds: the check
//! that follows only lists, so it never causes the next alarm.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, Socket, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Nft;
use super::run::OwnRuns;

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`: the upper byte of the message type.
const NFNL_SUBSYS_NFTABLES: u8 = 10;
/// `NFT_MSG_NEWGEN`: the lower byte, at the end of each transaction.
const NFT_MSG_NEWGEN: u8 = 15;
/// `NFT_MSG_GETGEN`: asks for the number of the latest transaction.
const NFT_MSG_GETGEN: u8 = 16;
/// `NFTA_GEN_ID`, the number of the transaction.
const NFTA_GEN_ID: u16 = 1;
/// `NFT_MSG_NEWTABLE`, `DELTABLE`, `NEWCHAIN`, `DELCHAIN`, `NEWRULE`, `DELRULE`: other messages change what sets hold.
const RULES: [u8; 6] = [0, 2, 3, 5, 6, 8];
/// `NFTA_GEN_PROC_PID`, the process that made the transaction (linux/netfilter/nf_tables.h).
const NFTA_GEN_PROC_PID: u16 = 2;
/// Attribute 1 of every other message of nftables: the name of the table.
const NFTA_TABLE: u16 = 1;
/// The upper two bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Bytes of messages that may wait: a map of a thousand ports is some five thousand elements, and the kernel tells of each.
/// Memory is taken only while they wait.
const WAITING: usize = 8 << 20;
/// How many datagrams are read at once after an overflow; a socket holds some hundreds.
const DISCARDED: usize = 10_000;

/// One message, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Something of our table changed.
    Ours,
    /// Rules of another table changed.
    Theirs,
    /// A transaction ended; the process that made it, where the kernel says.
    Generation { pid: Option<u32> },
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at.checked_add(2)?)?
        .try_into()
        .ok()
        .map(u16::from_ne_bytes)
}

/// Splits `bytes` after a length of `length` rounded up to four.
fn split(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

/// The value of the first attribute of type `wanted`.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = split(attributes, length);
    }
}

/// The events of one datagram that concern `table`.
fn events(mut datagram: &[u8], table: &str) -> Vec<Event> {
    let mut events = Vec::new();
    // struct nlmsghdr: u32 length, u16 type, u16 flags, u32 sequence, u32 port; then struct nfgenmsg, 4 bytes.
    while let (Some(length), Some(kind)) = (datagram.get(..4), u16_at(datagram, 4)) {
        let length = length.try_into().map_or(0, u32::from_ne_bytes) as usize;
        let Some(attributes) = datagram.get(20..length) else {
            break;
        };
        let [message, subsystem] = kind.to_le_bytes();
        if subsystem == NFNL_SUBSYS_NFTABLES {
            if message == NFT_MSG_NEWGEN {
                let pid = attribute(attributes, NFTA_GEN_PROC_PID);
                let pid = pid.and_then(|v| v.try_into().ok()).map(u32::from_be_bytes);
                events.push(Event::Generation { pid });
            } else if attribute(attributes, NFTA_TABLE).and_then(|v| v.strip_suffix(b"\0"))
                == Some(table.as_bytes())
            {
                events.push(Event::Ours);
            } else if RULES.contains(&message) {
                events.push(Event::Theirs);
            }
        }
        datagram = split(datagram, length);
    }
    events
}

/// The number of the latest transaction of anybody in the network namespace of the calling thread: it grows by one with
/// each. None where the kernel does not tell.
pub(super) fn generation() -> Option<u32> {
    let socket = Socket::new(NETLINK_NETFILTER).ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    // The answer is there when the question was sent; it is not waited for.
    socket.set_non_blocking(true).ok()?;
    let mut question = 20u32.to_ne_bytes().to_vec();
    question.extend([NFT_MSG_GETGEN, NFNL_SUBSYS_NFTABLES]);
    // NLM_F_REQUEST; sequence and port 0; then struct nfgenmsg: any family, version 0.
    question.extend(1u16.to_ne_bytes());
    question.extend([0; 12]);
    socket.send(&question, 0).ok()?;
    let (answer, _) = socket.recv_from_full().ok()?;
    let number = attribute(answer.get(20..)?, NFTA_GEN_ID)?;
    number.try_into().ok().map(u32::from_be_bytes)
}

/// Tells `Nft` and whoever waits on `changed` that our table may not be what we made it.
#[derive(Debug)]
pub struct Watcher {
    socket: TokioSocketDebug,
    table: String,
    own: Arc<OwnRuns>,
    altered: Arc<AtomicBool>,
    watched: Arc<AtomicBool>,
    changed: Arc<Notify>,
    theirs: Arc<Notify>,
}

struct TokioSocketDebug(TokioSocket);

impl std::fmt::Debug for TokioSocketDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("netlink socket")
    }
}

impl Watcher {
    /// Subscribes, in the network namespace of the calling thread, to changes of `nft`'s table.
    ///
    /// # Errors
    /// The socket cannot be opened or not join the group (needs CAP_NET_ADMIN on some kernels).
    pub fn new(nft: &Nft) -> io::Result<Self> {
        Watcher::holding(nft, WAITING)
    }

    /// The same with a socket that holds so many bytes.
    ///
    /// # Errors
    /// As [`Watcher::new`].
    pub(super) fn holding(nft: &Nft, bytes: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        // Where that is not allowed, a large change of our own may overflow it, and costs a look at the table.
        if let Err(error) = setsockopt(&socket.socket_ref(), sockopt::RcvBufForce, &bytes) {
            debug!(%error, "the socket of nftables' events holds little");
        }
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Watcher {
            socket: TokioSocketDebug(socket),
            table: nft.table.clone(),
            own: nft.own.clone(),
            altered: nft.altered.clone(),
            watched: nft.watched.clone(),
            changed: Arc::new(Notify::new()),
            theirs: Arc::new(Notify::new()),
        })
    }

    /// Fires after each change by others: `Nft::sync` is due.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Fires after each change by others of the rules of other tables.
    pub fn theirs(&self) -> Arc<Notify> {
        self.theirs.clone()
    }

    fn alarm(&self) {
        self.theirs.notify_one();
        self.altered.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        self.watched.store(true, Ordering::Release);
        // What happened before the subscription went unseen.
        self.alarm();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch() => {}
        }
        // Unwatched, every sync looks for itself.
        self.watched.store(false, Ordering::Release);
    }

    /// Reads what still waits in the socket and forgets it.
    ///
    /// After an overflow the end of a transaction may be what was lost: its beginning, still in the socket, would be
    /// taken for a part of the next transaction, and be blamed on its author. The alarm that follows covers it all.
    fn discard(&self) {
        let more = |read: io::Result<_>| match read {
            Ok(_) => true,
            Err(e) => {
                e.raw_os_error() == Some(libc::ENOBUFS) || e.kind() == io::ErrorKind::Interrupted
            }
        };
        // Bounded: somebody may write faster than this reads; then the next overflow comes back here.
        for _ in 0..DISCARDED {
            if !more(self.socket.0.socket_ref().recv_from_full()) {
                return;
            }
        }
    }

    async fn watch(&self) {
        let (mut touched, mut theirs) = (false, false);
        loop {
            match poll_fn(|cx| self.socket.0.poll_recv_from_full(cx)).await {
                Ok((datagram, _)) => {
                    for event in events(&datagram, &self.table) {
                        match event {
                            Event::Ours => touched = true,
                            Event::Theirs => theirs = true,
                            Event::Generation { pid } => {
                                let own = pid.is_some_and(|pid| self.own.contains(pid));
                                if std::mem::take(&mut theirs) && !own {
                                    self.theirs.notify_one();
                                }
                                if std::mem::take(&mut touched) && !own {
                                    debug!(
                                        table = self.table,
                                        ?pid,
                                        "table changed by another process"
                                    );
                                    self.alarm();
                                }
                            }
                        }
                    }
                }
                // The kernel had more to say than the socket holds: anything may have happened.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.discard();
                    (touched, theirs) = (false, false);
                    self.alarm();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!(%error, "no longer told of nftables changes: checking at every turn instead");
                    self.alarm();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![1u8, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut out = u32::try_from(body.len() + 16)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        out.extend([kind, NFNL_SUBSYS_NFTABLES]);
        out.extend([0; 10]);
        out.extend(body);
        out
    }

    #[test]
    fn only_our_table_and_the_author_are_read() {
        let mut datagram = message(0, &[(1, b"byway_x\0")]);
        datagram.extend(message(2, &[(1, b"other\0")]));
        datagram.extend(message(
            NFT_MSG_NEWGEN,
            &[(1, &[0, 0, 0, 9]), (2, &[0, 0, 1, 2]), (3, b"nft\0")],
        ));
        let end = Event::Generation { pid: Some(258) };
        assert_eq!(
            events(&datagram, "byway_x"),
            [Event::Ours, Event::Theirs, end]
        );
        // An element of somebody's set is no rule.
        let mut element = message(12, &[(1, b"other\0")]);
        element.extend(message(NFT_MSG_NEWGEN, &[]));
        assert_eq!(
            events(&element, "byway_x"),
            [Event::Generation { pid: None }]
        );
    }

    proptest! {
        #[test]
        fn datagrams_never_panic(bytes in proptest::collection::vec(0u8..24, 0..120)) {
            let _ = events(&bytes, "byway_x");
        }
    }
}
