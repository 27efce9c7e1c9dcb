//! The relay in the receiving thread: frames of others go on as they came, in one piece; and which legs are ours elsewhere.
//!
//! What the kernel joined goes out as it came in, the index rewritten in place: no copy, no allocation, one system call for
//! up to 64 KiB. The state ([`Server`]) is shared with whoever allocates sessions; the thread takes its lock once for each
//! such piece, to look up two legs and rewrite the indexes. The counters stand beside the lock: whoever lists sessions
//! holds it only to copy a pointer for each.
//!
//! While much is relayed, small datagrams that leave for one address one after the other are copied together and sent in one
//! call: above all acknowledgements, of which there is one for each piece that comes the other way.

use std::collections::HashMap;
use std::net::SocketAddr;
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

/// Bytes of the largest run that is held back: to send it by itself costs more than to copy it.
const HELD_BYTES: usize = 4096;
/// Datagrams of one held run: what every kernel with UDP segmentation takes in one message.
const HELD_DATAGRAMS: usize = 64;
/// Bytes of one held run: the largest UDP payload.
const HELD_MOST: usize = 65_507;
/// Runs that may leave between the first datagram that is held and its own leaving.
const OVERTAKING: u32 = 8;

/// Forwards what comes; owned by the receiving thread.
#[derive(Debug)]
pub(super) struct Forwarder {
    relay: Relay,
    out: Out,
    held: Held,
}

/// Sends runs on.
#[derive(Debug)]
struct Out {
    relay: Relay,
    port: Port,
    sender: Sender,
}

impl Out {
    /// Sends a run; what does not leave is counted.
    fn send(&mut self, bytes: &[u8], run: Run) {
        let sent = self.sender.send(bytes, &[run]);
        if sent.frames_dropped > 0
            && let Some((_, index)) = relay::index(bytes)
        {
            lock(&self.relay.0.server).lost(index, sent.frames_dropped);
        }
    }
}

/// Small datagrams that leave together: equal ones, the last perhaps shorter, for one leg.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// Where they go; none while nothing is held.
    run: Option<Run>,
    /// Runs that were sent since.
    overtaken: u32,
}

impl Default for Held {
    fn default() -> Held {
        Held {
            bytes: Vec::with_capacity(HELD_MOST),
            run: None,
            overtaken: 0,
        }
    }
}

impl Held {
    /// Appends the datagrams of a run where they may follow those that are held; whether they do.
    fn append(&mut self, bytes: &[u8], run: &Run) -> bool {
        let Some(held) = &mut self.run else {
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
            (self.run, self.overtaken) = (Some(*run), 0);
            return true;
        };
        let end = held.end.saturating_add(bytes.len());
        let is_whole = held.end.checked_rem(held.segment) == Some(0);
        // One by itself may be the shorter last one.
        let is_equal =
            run.segment == held.segment || bytes.len() == run.segment && run.segment < held.segment;
        let is_leg = relay::index(bytes) == relay::index(&self.bytes);
        let follows = (held.to, held.local) == (run.to, run.local)
            && is_leg
            && is_whole
            && is_equal
            && end <= HELD_MOST
            && end.div_ceil(held.segment.max(1)) <= HELD_DATAGRAMS;
        if follows {
            self.bytes.extend_from_slice(bytes);
            held.end = end;
        }
        follows
    }

    /// Sends what is held.
    fn flush(&mut self, out: &mut Out) {
        if let Some(run) = self.run.take() {
            out.send(&self.bytes, run);
        }
    }

    /// Sends what is held where a run for `to` is to leave behind it, or enough others have left before.
    fn give_way(&mut self, to: SocketAddr, out: &mut Out) {
        self.overtaken = self.overtaken.saturating_add(1);
        let is_due = |run: &Run| run.to == to || self.overtaken >= OVERTAKING;
        if self.run.as_ref().is_some_and(is_due) {
            self.flush(out);
        }
    }
}

impl Forwarder {
    pub(super) fn new(relay: Relay, port: &Port) -> Forwarder {
        let out = Out {
            relay: relay.clone(),
            port: port.clone(),
            sender: port.sender(),
        };
        Forwarder {
            relay,
            out,
            held: Held::default(),
        }
    }

    /// The state of the relay, shared with this forwarder.
    pub(super) fn relay(&self) -> Relay {
        self.relay.clone()
    }

    /// Takes what is for a leg of this relay; false for what is not. None: nothing more has come for now.
    pub(super) fn take(&mut self, run: Option<Relayed<'_>>) -> bool {
        let Some(run) = run else {
            self.held.flush(&mut self.out);
            return false;
        };
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
                let _ = self.out.port.send_one(&answer, run.from, run.local);
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
            is_flood,
        } = run;
        let fate =
            lock(&self.relay.0.server).forward(Instant::now(), (from, local), bytes, segment);
        match fate {
            None => return false,
            Some(Fate::Dropped) => {}
            Some(Fate::Challenge(message)) => {
                let _ = self.out.port.send_one(&message, from, local);
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
                let bytes = bytes.get(..length).unwrap_or_default();
                if is_flood && length <= HELD_BYTES {
                    if !self.held.append(bytes, &run) {
                        self.held.flush(&mut self.out);
                        self.held.append(bytes, &run);
                    }
                } else {
                    self.held.give_way(to, &mut self.out);
                    self.out.send(bytes, run);
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::link::pair::port;

    /// Datagrams of a leg, equal ones and perhaps a shorter last one, and how they are sent.
    fn run(leg: u32, size: usize, count: usize, last: usize, to: SocketAddr) -> (Vec<u8>, Run) {
        let mut bytes = Vec::new();
        for number in 0..count {
            let mut one = relay::prefix(leg).to_vec();
            one.resize(if number + 1 == count { last } else { size }, number as u8);
            bytes.extend_from_slice(&one);
        }
        let run = Run {
            start: 0,
            end: bytes.len(),
            segment: size.min(bytes.len()),
            to,
            local: None,
            helper: None,
        };
        (bytes, run)
    }

    /// What comes is what was given in, datagram by datagram and in order, whatever was held.
    #[test]
    fn what_is_held_leaves_whole_and_in_order() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        let (to, port) = (client.local_addr().unwrap(), port());
        let (mut held, mut out) = (
            Held::default(),
            Out {
                relay: Relay::new(),
                port: port.clone(),
                sender: port.sender(),
            },
        );
        // Size, count, size of the last; whether they follow those before.
        let small = [
            (100, 1, 100, true),
            (100, 1, 100, true),
            (100, 3, 100, true),
            (100, 2, 60, true),
            (100, 1, 100, false),
            (200, 1, 200, false),
            (50, 1, 50, true),
            (50, 1, 50, false),
            (50, 62, 50, true),
            (50, 2, 50, false),
        ];
        let mut sent = Vec::new();
        for (size, count, last, follows) in small {
            let (bytes, run) = run(7, size, count, last, to);
            sent.extend(bytes.chunks(size).map(<[u8]>::to_vec));
            let appended = held.append(&bytes, &run);
            assert_eq!(appended, follows, "{size} {count} {last}");
            if !appended {
                held.flush(&mut out);
                assert!(held.append(&bytes, &run));
            }
        }
        let (other, run_of_other) = run(8, 50, 1, 50, to);
        assert!(!held.append(&other, &run_of_other), "another leg");
        // What is too large to be held leaves behind what is.
        let (bytes, run) = run(7, 1000, 6, 1000, to);
        sent.extend(bytes.chunks(1000).map(<[u8]>::to_vec));
        held.give_way(to, &mut out);
        out.send(&bytes, run);
        let mut buffer = [0; 2000];
        for one in &sent {
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], one.as_slice());
        }
    }

    #[test]
    fn what_is_held_for_one_leaves_although_others_send_without_end() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, port) = (client.local_addr().unwrap(), port());
        let (mut held, mut out) = (
            Held::default(),
            Out {
                relay: Relay::new(),
                port: port.clone(),
                sender: port.sender(),
            },
        );
        let (bytes, run) = run(7, 100, 1, 100, to);
        assert!(held.append(&bytes, &run));
        let other = "127.0.0.1:9".parse().unwrap();
        for _ in 1..OVERTAKING {
            held.give_way(other, &mut out);
            assert!(held.run.is_some());
        }
        held.give_way(other, &mut out);
        assert!(held.run.is_none());
        client
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        assert_eq!(client.recv(&mut [0; 200]).unwrap(), 100);
    }
}
