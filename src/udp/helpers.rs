//! Helper sockets: further sockets of a port, each on a port of the kernel's choice, opened and closed while it works.
//!
//! Behind a symmetric NAT each has a mapping of its own. They are read by the port's one reader, through one descriptor
//! whatever their number; frames are sent by them where a [`Run`](super::Run) names one. Nothing of QUIC passes them. A table
//! that is replaced whole says which there are, so that neither the reader nor a sender waits for whoever changes it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use parking_lot::Mutex;

use super::Options;
use super::exits::Exits;
use super::socket::Socket;

/// The most helper sockets of one port: those of a search, and those that carry paths.
pub const MAX_HELPERS: usize = 320;
/// Bytes that the kernel keeps of what came to a helper and was not yet read, before it carries a path.
const FIRST_BUFFER: usize = 64 << 10;
/// Helpers that one look finds to have something.
const AT_ONCE: usize = 16;

pub(super) type Table = HashMap<u16, Arc<Socket>>;

/// The helpers of one port.
#[derive(Debug)]
pub(super) struct Helpers {
    epoll: Epoll,
    table: ArcSwap<Table>,
    /// Held by whoever changes the table: the number given out last.
    last: Mutex<u16>,
    options: Options,
    exits: Arc<Exits>,
    local: Ipv4Addr,
}

impl Helpers {
    /// None yet. They are made as the port's own sockets are, and bound to the address that its IPv4 socket has.
    pub(super) fn new(
        options: &Options,
        sockets: &[Arc<Socket>],
        exits: Arc<Exits>,
    ) -> io::Result<Helpers> {
        let own = sockets.iter().find_map(|socket| match socket.local.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        Ok(Helpers {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            table: ArcSwap::default(),
            last: Mutex::new(0),
            options: Options {
                receive_buffer: FIRST_BUFFER,
                ..*options
            },
            exits,
            local: own.unwrap_or(Ipv4Addr::UNSPECIFIED),
        })
    }

    /// Opens one.
    pub(super) fn open(&self) -> io::Result<u16> {
        let mut last = self.last.lock();
        let before = self.table.load();
        if before.len() >= MAX_HELPERS {
            let message = format!("{MAX_HELPERS} helper sockets are open");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
        }
        let local = SocketAddr::from((self.local, 0));
        let socket = Socket::bind(local, &self.options, self.exits.clone())?;
        // A number is used again only after all others: what names a former socket does not lead to a new one.
        let mut number = last.wrapping_add(1);
        while before.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        *last = number;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(number));
        self.epoll.add(&socket.udp, event)?;
        let mut table = Table::clone(&before);
        table.insert(number, Arc::new(socket));
        self.table.store(Arc::new(table));
        Ok(number)
    }

    /// Closes all but those that `stays` names.
    pub(super) fn retain(&self, stays: impl Fn(u16) -> bool) {
        let _changing = self.last.lock();
        let mut table = Table::clone(&self.table.load());
        table.retain(|number, socket| {
            let stays = stays(*number);
            if !stays {
                // It may be held by the reader for a moment; nothing is read from it any more.
                let _ = self.epoll.delete(&socket.udp);
            }
            stays
        });
        self.table.store(Arc::new(table));
    }

    /// Those there are, for one call.
    pub(super) fn load(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Readable while one of them is.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Notes which have something to be read.
    pub(super) fn look(&self, ready: &mut Ready) {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        // Interrupted: nothing was found, and the next wait finds it.
        let found = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        (ready.count, ready.next) = (found.unwrap_or(0).min(AT_ONCE), 0);
        for (number, event) in ready.numbers.iter_mut().zip(&events) {
            *number = u16::try_from(event.data()).unwrap_or(0);
        }
    }
}

/// Helpers that have something to be read.
#[derive(Debug, Default)]
pub(super) struct Ready {
    numbers: [u16; AT_ONCE],
    count: usize,
    next: usize,
}

impl Ready {
    /// The next of them.
    pub(super) fn take(&mut self) -> Option<u16> {
        let number = self.numbers.get(..self.count)?.get(self.next).copied();
        self.next = self.next.saturating_add(1);
        number
    }
}
