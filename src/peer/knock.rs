//! PURE: what the NAT before this node lets in, found out with the help of two other members.
//!
//! Among members nobody is a stranger to our port: each has been sent probes. So a new socket is opened, which has sent to one
//! member only, and the others knock at it:
//!
//! ```text
//! this node                     witness                    stranger
//!   | Expect ------------------> |                            |      sealed, by the path in use
//!   | a knock from a new socket> |                            |      12 bytes, unsealed
//!   | <------- Seen, its address |                            |
//!   | Ask, from another port --> |                            |
//!   | Ask -------------------------------------------------> |
//!   | <----- a knock, Sent       |                            |
//!   | <--------------------------------------- a knock, Sent  |
//! ```
//!
//! What arrives tells what is let in, by where it comes from: from another address than the witness's, everything is; from
//! another port of the witness's address, every port of an address that was sent to; nothing, only what was sent to (RFC 4787,
//! section 5). A knock that is lost on the way looks like one that is not let in. So what lets in less than everything is
//! tested a second time after a minute, with other members where there are some, and the more open result counts.
//!
//! # Limits
//!
//! A knock goes to the address that the asker names. It is believed only where it is the one at which the member who knocks
//! sees the asker itself, on a path that answers or at a relay that it chose: so nobody can aim knocks at somebody else. One
//! datagram of 12 bytes is sent for a question, one question of an asker is heard in a minute, and ten in all. Every refusal
//! is said with its reason, and counted.
//!
//! A member that lies makes the result wrong and nothing else: at worst a search is made in vain, or not made at all and the
//! relay stays. The test is done again after six hours, and when this machine is elsewhere.
//!
//! Time, random bytes and where members are seen are arguments. After each call the driver takes out every [`Output`], hands
//! [`Knocks::expected`] to whoever reads the port, then looks at [`Knocks::poll_timeout`].
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod asking;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::Entropy;
use crate::limit::Limit;
use crate::limit::TokenBucket;
use crate::model::id::PeerId;
use crate::wire::datagram::{Knock, Refusal};
use crate::wire::paths::Filtering;
use asking::{Round, Run};

/// The tokens that are expected at once, of all members and of our own test.
pub const MAX_EXPECTED: usize = 32;
/// How long the knock of a member is expected.
const EXPECTED_FOR: Duration = Duration::from_secs(5);
/// Least time between two knocks for one asker.
const EACH: Duration = Duration::from_secs(60);
/// Knocks for all askers at once. One comes back each second, so the bucket pays [`PRICE`] for each.
const ALL: Limit = Limit::new(60, 1);
/// What one knock costs of [`ALL`]: ten a minute.
const PRICE: u64 = 6;

/// A member that may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub id: PeerId,
    /// Where datagrams go straight to it; none where a relay carries them, or IPv6.
    pub at: Option<SocketAddrV4>,
    /// Our address that they leave from, where it was chosen among several.
    pub local: Option<IpAddr>,
}

/// Why it is not known what is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Unsure {
    /// It was not tested yet.
    #[default]
    NotTested,
    /// No member is reached directly over IPv4.
    NoWitness,
    /// No member heard the new socket, or said so.
    NoAnswer,
    /// The members that were asked to knock did not.
    NoKnock,
    /// What is let in is more than the ports that were sent to; it takes a member at another address to tell how much.
    NoStranger,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Say this to the member.
    Say {
        /// The member.
        to: PeerId,
        /// What is said.
        word: Knock,
    },
    /// Open a new socket, and give its number to [`Knocks::opened`].
    Open,
    /// Send a knock from that socket.
    Show {
        /// The number of the socket.
        helper: u16,
        /// Where the knock goes.
        to: SocketAddrV4,
        /// Our address that it is to leave from, where it is chosen among several.
        local: Option<IpAddr>,
        /// The token that it carries.
        token: u64,
    },
    /// Close that socket.
    Close {
        /// The number of the socket.
        helper: u16,
    },
    /// Knock for a member, and say to [`Knocks::knocked`] whether that was possible.
    Knock {
        /// The member that asked.
        asker: PeerId,
        /// Where the knock goes.
        to: SocketAddrV4,
        /// The token that it carries.
        token: u64,
        /// Whether it leaves from a new socket rather than the port's own.
        other_port: bool,
    },
    /// So much is let in where datagrams leave from that address of ours.
    Found {
        /// The address; none where the kernel chooses.
        local: Option<IpAddr>,
        /// What is let in.
        filtering: Filtering,
        /// Why that is not known, where it is not.
        unsure: Unsure,
    },
}

/// How knocks fare, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Knocks sent for other members.
    pub sent: u64,
    /// Questions for a knock that were refused, by the reason, in the order of [`Refusal::ALL`].
    pub refused: [u64; 4],
    /// Tests of our own NAT that were begun.
    pub tests: u64,
    /// Words and knocks that belong to nothing that is under way.
    pub stray: u64,
}

/// What is kept of a member that asked something.
#[derive(Debug, Default)]
struct Asker {
    /// The token of a knock that it announced, and until when it is expected.
    expected: Option<(u64, Instant)>,
    /// When we last knocked for it, and the token of that.
    knocked: Option<(Instant, u64)>,
}

/// Tests of what is let in here, and help for those of others.
#[derive(Debug)]
pub struct Knocks {
    askers: BTreeMap<PeerId, Asker>,
    all: TokenBucket,
    /// What is known, by the address of ours that datagrams leave from.
    rounds: BTreeMap<Option<IpAddr>, Round>,
    run: Option<Run>,
    /// When it is to be seen whether there are members to test with.
    look: Option<Instant>,
    stats: Stats,
    outputs: VecDeque<Output>,
}

impl Default for Knocks {
    fn default() -> Knocks {
        Knocks {
            askers: BTreeMap::new(),
            all: TokenBucket::new(ALL),
            rounds: BTreeMap::new(),
            run: None,
            look: None,
            stats: Stats::default(),
            outputs: VecDeque::new(),
        }
    }
}

impl Knocks {
    /// A member says that. `sees`: at which addresses this node itself, or a relay that it chose,
    /// sees that member.
    pub fn heard(
        &mut self,
        now: Instant,
        from: PeerId,
        word: Knock,
        sees: &[Ipv4Addr],
        entropy: Entropy<'_>,
    ) {
        match word {
            Knock::Expect { token } => self.expect(now, from, token),
            Knock::Ask {
                token,
                to,
                other_port,
            } => self.on_ask(now, from, (token, other_port), to, sees),
            Knock::Seen { token, from: at } => self.on_seen(now, from, token, at, entropy),
            Knock::Sent { token } => self.on_sent(now, from, token),
            Knock::Refused { token, .. } => self.on_refused(now, from, token, entropy),
        }
    }

    /// A knock with that token came from there, by that helper socket or by the port's own.
    pub fn came(&mut self, now: Instant, token: u64, from: SocketAddr, helper: Option<u16>) {
        let is_it = |asker: &Asker| {
            asker
                .expected
                .is_some_and(|(of, until)| of == token && now < until)
        };
        let asker = self.askers.iter_mut().find(|(_, asker)| is_it(asker));
        if let Some((id, asker)) = asker.filter(|_| helper.is_none()) {
            asker.expected = None;
            self.outputs.push_back(Output::Say {
                to: *id,
                word: Knock::Seen { token, from },
            });
        } else if !self.on_knock(now, token, from, helper) {
            self.stray();
        }
    }

    /// The tokens whose knocks are taken, at most [`MAX_EXPECTED`].
    pub fn expected(&self, now: Instant) -> impl Iterator<Item = u64> {
        let own = self.run.iter().flat_map(Run::expected);
        let of = self.askers.values().filter_map(|asker| asker.expected);
        own.chain(
            of.filter(move |(_, until)| now < *until)
                .map(|(token, _)| token),
        )
        .take(MAX_EXPECTED)
    }

    /// The knock for that member was sent, or could not be.
    pub fn knocked(&mut self, asker: PeerId, token: u64, sent: bool) {
        if sent {
            self.stats.sent = self.stats.sent.saturating_add(1);
            self.outputs.push_back(Output::Say {
                to: asker,
                word: Knock::Sent { token },
            });
        } else {
            self.refuse(asker, token, Refusal::Failed);
        }
    }

    /// That one is no member any more.
    pub fn forget(&mut self, id: PeerId) {
        self.askers.remove(&id);
    }

    /// How knocks fare.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn stray(&mut self) {
        self.stats.stray = self.stats.stray.saturating_add(1);
    }

    /// A member announces a knock. A later one takes the place of the one before.
    fn expect(&mut self, now: Instant, from: PeerId, token: u64) {
        let is_over = |asker: &Asker| asker.expected.is_none_or(|(_, until)| until <= now);
        let others = self
            .askers
            .iter()
            .filter(|(id, asker)| **id != from && !is_over(asker));
        // Some of the places are for our own test.
        if others.count() < MAX_EXPECTED / 2 {
            let asker = self.askers.entry(from).or_default();
            asker.expected = Some((token, now + EXPECTED_FOR));
        } else {
            self.stray();
        }
    }

    /// A member asks us to knock.
    fn on_ask(
        &mut self,
        now: Instant,
        asker: PeerId,
        (token, other_port): (u64, bool),
        to: SocketAddr,
        sees: &[Ipv4Addr],
    ) {
        let before = self.askers.get(&asker).and_then(|asker| asker.knocked);
        if let Some((_, of)) = before
            && of == token
        {
            // The answer was lost; the knock is not sent a second time.
            let word = Knock::Sent { token };
            return self.outputs.push_back(Output::Say { to: asker, word });
        }
        let to = match to {
            SocketAddr::V4(to) if sees.contains(to.ip()) && to.port() != 0 => to,
            _ if sees.is_empty() => return self.refuse(asker, token, Refusal::NotSeen),
            _ => return self.refuse(asker, token, Refusal::Elsewhere),
        };
        if before.is_some_and(|(at, _)| now < at + EACH) || self.all.take_most(now, PRICE, 1) == 0 {
            return self.refuse(asker, token, Refusal::TooOften);
        }
        self.askers.entry(asker).or_default().knocked = Some((now, token));
        self.outputs.push_back(Output::Knock {
            asker,
            to,
            token,
            other_port,
        });
    }

    fn refuse(&mut self, asker: PeerId, token: u64, why: Refusal) {
        let place = Refusal::ALL.iter().position(|of| *of == why);
        if let Some(count) = place.and_then(|at| self.stats.refused.get_mut(at)) {
            *count = count.saturating_add(1);
        }
        self.outputs.push_back(Output::Say {
            to: asker,
            word: Knock::Refused { token, why },
        });
    }
}

#[cfg(test)]
mod tests;
