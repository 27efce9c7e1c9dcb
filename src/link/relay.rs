//! The relay in the receiving thread: frames of others go on as they came, in one piece; and which legs are ours elsewhere.
//!
//! What the kernel joined goes out as it came in, the index rewritten in place: no copy, no allocation, one system call for
//! up to 64 KiB. The state ([`Server`]) is shared with whoever allocates sessions; the thread takes its lock once for each
//! such piece, to look up two legs and rewrite the indexes. The counters stand beside the lock: whoever lists sessions
//! holds it only to copy a pointer for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::lock;
use crate::crypto::mac::Mac;
use crate::model::id::PeerId;
use crate::peer::Remote;
use crate::relay::{Asker, Counters, Fate, Limits, Onward, Server, SessionStats, Terms, Totals};
use crate::udp::{Port, Relayed, Run, Sender};
use crate::wire::relay::{self, Refusal, Ticket};

/// What this node forwards for others. Clones are the same relay.
#[derive(Debug, Clone)]
pub struct Relay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    server: Mutex<Server>,
    counters: Arc<Counters>,
    /// Whether there is a session: else the receiving thread asks nothing.
    serving: AtomicBool,
}

/// Fills `bytes` from the random source of the system.
fn entropy(bytes: &mut [u8]) {
    super::direct::entropy(bytes);
}

impl Relay {
    /// A relay without sessions.
    pub(super) fn new() -> Relay {
        let server = Server::new(Instant::now(), Limits::default(), &mut entropy);
        Relay(Arc::new(Shared {
            counters: server.counters(),
            server: Mutex::new(server),
            serving: AtomicBool::new(false),
        }))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Server) -> T) -> T {
        let mut server = lock(&self.0.server);
        let changed = change(&mut server);
        self.0.serving.store(!server.is_empty(), Ordering::Release);
        changed
    }

    /// Makes a session between two peers: the ticket of the asker, then that of the other one.
    ///
    /// # Errors
    /// As [`Server::allocate`].
    pub fn allocate(
        &self,
        asker: Asker,
        peer: PeerId,
        terms: Terms,
    ) -> Result<(Ticket, Ticket), Refusal> {
        self.change(|server| server.allocate(Instant::now(), asker, peer, terms, &mut entropy))
    }

    /// Ends the session of that leg, where it is the asker's; whether it was.
    pub fn release(&self, asker: PeerId, index: u32) -> bool {
        self.change(|server| server.release(asker, index))
    }

    /// What is forwarded at most from now on, and what each asker may use of it; sessions of those who may have none end, and
    /// so does what is idle.
    pub fn retain(&self, mbit: Option<u32>, terms: impl Fn(PeerId) -> Option<Terms>) {
        self.change(|server| {
            server.set_limits(Limits {
                mbit,
                ..Limits::default()
            });
            server.retain(terms);
            server.sweep(Instant::now());
        });
    }

    /// How much of the sessions that it serves are there, in quarters: 0 to 4.
    pub fn load(&self) -> u8 {
        let all = u64::try_from(Limits::default().sessions).unwrap_or(u64::MAX);
        let quarters = self.totals().open.saturating_mul(4);
        u8::try_from(quarters.checked_div(all).unwrap_or(0)).unwrap_or(4)
    }

    /// Counts a question that was refused before it came to a session.
    pub fn refuse(&self, why: Refusal) {
        self.0.counters.refuse(why);
    }

    /// Counts a question that was one of too many, and was not read.
    pub fn refuse_unread(&self) {
        self.0.counters.refuse_unread();
    }

    /// The sessions, the oldest first.
    pub fn sessions(&self) -> Vec<SessionStats> {
        let tallies = lock(&self.0.server).tallies();
        let now = Instant::now();
        let mut all: Vec<SessionStats> = tallies.iter().map(|tally| tally.read(now)).collect();
        all.sort_by(|a, b| b.age.cmp(&a.age).then(a.peers.cmp(&b.peers)));
        all
    }

    /// What was forwarded, dropped and refused since the start.
    pub fn totals(&self) -> Totals {
        self.0.counters.read()
    }

    /// Whether there is a session.
    pub(super) fn is_serving(&self) -> bool {
        self.0.serving.load(Ordering::Acquire)
    }
}

/// Forwards what comes; owned by the receiving thread.
#[derive(Debug)]
pub(super) struct Forwarder {
    relay: Relay,
    port: Port,
    sender: Sender,
}

impl Forwarder {
    pub(super) fn new(relay: Relay, port: &Port) -> Forwarder {
        Forwarder {
            relay,
            port: port.clone(),
            sender: port.sender(),
        }
    }

    /// The state of the relay, shared with this forwarder.
    pub(super) fn relay(&self) -> Relay {
        self.relay.clone()
    }

    /// Takes what is for a leg of this relay; false for what is not.
    pub(super) fn take(&mut self, run: Relayed<'_>) -> bool {
        match relay::index(run.bytes) {
            Some((relay::BIND, index)) => self.bind(index, &run),
            Some(_) => self.forward(run),
            None => false,
        }
    }

    /// Answers the messages of a client that binds its leg.
    fn bind(&mut self, index: u32, run: &Relayed<'_>) -> bool {
        let now = Instant::now();
        for one in run.bytes.chunks(run.segment.max(1)) {
            let mut server = lock(&self.relay.0.server);
            if !server.has(index) {
                return false;
            }
            let answer = server.on_bind(now, (run.from, run.local), one);
            drop(server);
            if let Some(answer) = answer {
                // Lost: the client asks again.
                let _ = self.port.send_one(&answer, run.from, run.local);
            }
        }
        true
    }

    fn forward(&mut self, run: Relayed<'_>) -> bool {
        let Relayed {
            from,
            local,
            bytes,
            segment,
        } = run;
        let fate =
            lock(&self.relay.0.server).forward(Instant::now(), (from, local), bytes, segment);
        match fate {
            None => return false,
            Some(Fate::Dropped) => {}
            Some(Fate::Challenge(message)) => {
                let _ = self.port.send_one(&message, from, local);
            }
            Some(Fate::Onward(Onward { to, local, length })) => {
                let run = Run {
                    start: 0,
                    end: length,
                    segment: segment.min(length),
                    to,
                    local,
                    helper: None,
                };
                let sent = self.sender.send(bytes, &[run]);
                if sent.frames_dropped > 0
                    && let Some((_, index)) = relay::index(bytes)
                {
                    lock(&self.relay.0.server).lost(index, sent.frames_dropped);
                }
            }
        }
        true
    }
}

/// The keys of our legs at relays, by the relay's address and the leg's index: what comes by any other is dropped.
pub(super) type Table = Guard<Arc<HashMap<Remote, Mac>>>;

/// Our legs at relays. Clones are the same table.
#[derive(Debug, Clone, Default)]
pub(super) struct Legs(Arc<ArcSwap<HashMap<Remote, Mac>>>);

impl Legs {
    /// The table as it is now, for one batch.
    pub(super) fn load(&self) -> Table {
        self.0.load()
    }

    /// Replaces the table.
    pub(super) fn set(&self, table: HashMap<Remote, Mac>) {
        self.0.store(Arc::new(table));
    }
}
