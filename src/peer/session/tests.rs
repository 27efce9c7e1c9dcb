//! Two sessions on a virtual clock, joined by a stream and by datagrams that are lost, delayed, reordered and doubled.

mod handshake;
mod hostile;
mod keys;
mod recovery;

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use x25519_dalek::{PublicKey, StaticSecret};

use super::epoch::Epoch;
use super::messages::Id;
use super::*;
use crate::crypto::frame::{HEADER, Header, Library, TAG};
use crate::crypto::handshake::MESSAGE_1;
use crate::crypto::replay::Window;
use crate::testing::{Dice, Network, some_moment};

/// End 0 has the smaller peer ID.
fn config(end: usize) -> Config {
    let key = |end: usize| [end as u8 + 1; 32];
    Config {
        me: PeerId(key(end)),
        peer: PeerId(key(1 - end)),
        subnet: SubnetId([7; 16]),
        secret: Zeroizing::new(key(end)),
        peer_key: PublicKey::from(&StaticSecret::from(key(1 - end))).to_bytes(),
        // Two ends by two libraries.
        aes: Some([Library::AwsLc, Library::Ring][end]),
        post_quantum: PostQuantum::Prefer,
    }
}

fn indices() -> Indices {
    indices_of(0)
}

/// Those of a machine's life with that number: each has an order of its own.
fn indices_of(life: usize) -> Indices {
    Indices::new(&mut |out: &mut [u8]| out.fill(life as u8))
}

/// One machine: the session and what its control task and packet threads would hold.
struct End {
    session: Session,
    installed: HashMap<u32, (Opener, Window, bool)>,
    sealer: Option<Arc<Sealer>>,
    stops: usize,
    data: u64,
}

impl End {
    fn new(config: Config, life: usize) -> End {
        End {
            session: Session::new(config, indices_of(life)),
            installed: HashMap::new(),
            sealer: None,
            stops: 0,
            data: 0,
        }
    }

    fn peer_wants(&self, index: u32) -> bool {
        self.installed.contains_key(&index)
    }
}

#[derive(Clone)]
enum Event {
    Ask {
        from: usize,
        life: usize,
        message: Vec<u8>,
    },
    Answer {
        to: usize,
        life: usize,
        message: Option<Vec<u8>>,
    },
    Frame {
        to: usize,
        bytes: Vec<u8>,
    },
    Data {
        from: usize,
    },
}

struct World {
    start: Instant,
    net: Network<Event>,
    ends: [End; 2],
    /// Counts restarts of each end: a question of an earlier life gets no answer.
    lives: [usize; 2],
    /// Per cent of questions over the stream, and of their answers, that are lost.
    stream_loss: u64,
    stream: bool,
    /// Only these control messages are lost.
    lost_kinds: [bool; 4],
    nonces: HashSet<(usize, u64)>,
    /// Sealers used, kept so that their addresses stay apart.
    sealers: Vec<Arc<Sealer>>,
    /// Frames of data that no opener took.
    unopened: usize,
    refused: usize,
    rekeys: usize,
}

impl World {
    fn with(a: Config, b: Config, seed: u64) -> World {
        let start = some_moment();
        World {
            start,
            net: Network::new(seed, start),
            ends: [End::new(a, 0), End::new(b, 0)],
            lives: [0, 0],
            stream_loss: 0,
            stream: true,
            lost_kinds: [true; 4],
            nonces: HashSet::new(),
            sealers: Vec::new(),
            unopened: 0,
            refused: 0,
            rekeys: 0,
        }
    }

    fn new(seed: u64) -> World {
        World::with(config(0), config(1), seed)
    }

    fn call<T>(
        &mut self,
        end: usize,
        run: impl FnOnce(&mut Session, Instant, Entropy<'_>) -> T,
    ) -> T {
        let (now, dice) = (self.net.now, &mut self.net.dice);
        let result = run(&mut self.ends[end].session, now, &mut |out: &mut [u8]| {
            dice.fill(out)
        });
        self.obey(end);
        result
    }

    fn obey(&mut self, end: usize) {
        while let Some(action) = self.ends[end].session.poll_action() {
            match action {
                Action::Install { index, opener } => {
                    assert_eq!(index & 0xf, 0, "the queue's number");
                    let old = self.ends[end]
                        .installed
                        .insert(index, (opener, Window::new(), false));
                    assert!(old.is_none(), "an index in use");
                    // The new one may come before the oldest of a full set goes, never the other way round.
                    assert!(self.ends[end].installed.len() <= RETIRED + 3);
                }
                Action::Remove { index } => {
                    assert!(self.ends[end].installed.remove(&index).is_some())
                }
                Action::Use(sealer) => {
                    self.rekeys += usize::from(self.ends[end].sealer.is_some());
                    self.sealers.push(Arc::clone(&sealer));
                    self.ends[end].sealer = Some(sealer);
                }
                Action::Stop => {
                    self.ends[end].sealer = None;
                    self.ends[end].stops += 1;
                }
                Action::Ask(message) => {
                    assert!(message.len() <= MAX_MESSAGE);
                    let life = self.lives[end];
                    self.net.later(Event::Ask {
                        from: end,
                        life,
                        message,
                    });
                }
                Action::Send(message) => {
                    assert!(message.len() <= 256, "fits a frame of any path");
                    self.send(end, &message, 1);
                }
            }
            assert_eq!(
                self.ends[end].session.is_live(),
                self.ends[end].session.current.is_some()
            );
        }
        assert_eq!(
            self.ends[end].session.is_live(),
            self.ends[end].sealer.is_some()
        );
        assert!(
            self.ends[end].installed.len() <= RETIRED + 2,
            "the former keys, the one in use and the next"
        );
    }

    /// Seals and sends; kind 1 is control.
    fn send(&mut self, end: usize, body: &[u8], kind: u8) {
        let Some(sealer) = self.ends[end].sealer.clone() else {
            return;
        };
        let nonce = sealer
            .take(1)
            .expect("a sealer in use gives nonces")
            .next()
            .unwrap();
        let mut bytes = vec![0; HEADER + body.len() + 1 + TAG];
        assert!(
            self.nonces
                .insert((Arc::as_ptr(&sealer).addr(), nonce.counter())),
            "a nonce was used twice"
        );
        sealer.seal(nonce, body, &[kind], &mut bytes).unwrap();
        if kind == 1 && self.lost_kinds[usize::from(body[0])] && self.net.loses() {
            return;
        }
        self.net.send(Event::Frame { to: 1 - end, bytes });
    }

    fn receive(&mut self, to: usize, bytes: &[u8]) {
        let (header, sealed) = bytes.split_first_chunk::<HEADER>().unwrap();
        let Header { receiver, counter } = Header::decode(header).unwrap();
        let Some((opener, window, seen)) = self.ends[to].installed.get_mut(&receiver) else {
            self.unopened += 1;
            return;
        };
        if !window.check(counter) {
            return;
        }
        let mut plain = vec![0; sealed.len()];
        let length = opener
            .open(header, sealed, &mut plain)
            .expect("what the peer sealed opens");
        assert!(window.commit(counter));
        let first = !std::mem::replace(seen, true);
        plain.truncate(length);
        let kind = plain.pop().unwrap();
        // The news of the first frame may be lost: a bounded queue that never waits.
        if first && !self.net.loses() {
            self.call(to, |s, now, _| s.on_first(now, receiver));
        }
        if kind == 1 {
            self.call(to, |s, now, entropy| s.on_control(now, &plain, entropy));
        } else {
            self.ends[to].data += 1;
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Ask {
                from,
                life,
                message,
            } => {
                let lost = !self.stream || self.net.dice.percent(self.stream_loss);
                let message = if lost {
                    None
                } else {
                    let answer = self.call(1 - from, |s, now, entropy| {
                        s.on_request(now, &message, entropy)
                    });
                    self.refused += usize::from(answer.is_err());
                    answer
                        .ok()
                        .filter(|_| !self.net.dice.percent(self.stream_loss))
                };
                self.net.later(Event::Answer {
                    to: from,
                    life,
                    message,
                });
            }
            Event::Answer { to, life, message } => {
                if life == self.lives[to] {
                    self.call(to, |s, now, entropy| {
                        s.on_answer(now, message.as_deref(), entropy)
                    });
                }
            }
            Event::Frame { to, bytes } => self.receive(to, &bytes),
            Event::Data { from } => {
                self.send(from, b"data", 0);
                self.net.after(Duration::from_secs(7), Event::Data { from });
            }
        }
    }

    /// Lets that much time go by.
    fn run(&mut self, time: Duration) {
        let end = self.net.now + time;
        let mut steps = 0;
        loop {
            let timer = (0..2)
                .filter_map(|e| self.ends[e].session.poll_timeout().map(|at| (at, e)))
                .min();
            let event = self.net.next();
            let at = [timer.map(|t| t.0), event]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= end);
            let Some(at) = at else { break };
            assert!(at >= self.start);
            self.net.now = self.net.now.max(at);
            if let Some(event) = self.net.due() {
                self.happen(event);
            } else if let Some((_, e)) = timer {
                let before = self.ends[e].session.poll_timeout();
                self.call(e, |s, now, entropy| s.handle_timeout(now, entropy));
                assert_ne!(
                    self.ends[e].session.poll_timeout(),
                    before,
                    "a timer that is due for ever"
                );
            }
            steps += 1;
            assert!(steps < 10_000_000, "time stands still");
        }
        self.net.now = end;
    }

    fn seconds(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    fn connect(&mut self) {
        for end in 0..2 {
            self.call(end, |s, now, entropy| s.connected(now, entropy));
        }
    }

    fn traffic(&mut self) {
        for from in 0..2 {
            self.net.after(Duration::from_secs(1), Event::Data { from });
        }
    }

    /// Connected, a session made and in use by both.
    fn live(seed: u64) -> World {
        let mut world = World::new(seed);
        world.connect();
        world.seconds(1);
        world.assert_joined();
        world
    }

    /// Both seal with keys of the same handshake, and the other one opens them.
    fn assert_joined(&self) {
        let ids: Vec<_> = self
            .ends
            .iter()
            .map(|e| e.session.current.as_ref().map(|c| c.id))
            .collect();
        assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
        for end in 0..2 {
            let sealer = self.ends[end].sealer.as_ref().unwrap();
            assert!(self.ends[1 - end].peer_wants(sealer.receiver()));
        }
    }

    fn restart(&mut self, end: usize) {
        self.lives[end] += 1;
        self.ends[end] = End::new(config(end), self.lives[end]);
    }

    /// Uses up one end's key, as far as rekeying goes.
    fn exhaust(&mut self, end: usize) {
        self.ends[end]
            .sealer
            .as_ref()
            .unwrap()
            .take(u32::try_from(REKEY_FRAMES).unwrap())
            .unwrap();
    }

    fn id(&self, end: usize) -> Id {
        self.ends[end].session.current.as_ref().unwrap().id
    }
}

/// All that a message could change, short of entropy drawn and handshakes paid for.
fn state(session: &Session) -> String {
    let epoch = |e: &Epoch| {
        format!(
            "{:?} {:?} {} {:?} {} {}",
            e.id, e.index, e.confirmed, e.due, e.attempts, e.answered
        )
    };
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {} {:?} {} {} {:?}",
        session.current.as_ref().map(epoch),
        session.next.as_ref().map(|n| epoch(&n.epoch)),
        session
            .retired
            .iter()
            .map(|r| (r.index, r.until))
            .collect::<Vec<_>>(),
        session.rekeying.as_ref().map(|r| (r.attempt, r.timer.at)),
        session.confirming.as_ref().map(|t| t.at),
        session.again,
        session.asking.is_some(),
        session.made,
        session.offered.is_some(),
        session.actions.len(),
        session.poll_timeout(),
    )
}
