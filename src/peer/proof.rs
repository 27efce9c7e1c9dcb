//! Whether the peer has the key we seal with.
//!
//! A path answers for the peer, not for each of its sessions: after a restart it has only the keys it made since, and a
//! subnet that it left it answers no more. So probes take turns under the keys, and one that stays unanswered is sent
//! again under the same key, whatever carries the path's own probes meanwhile.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Probes that must have gone unanswered before a key counts as lost.
const LOST_PROBES: u32 = 3;
/// How long nothing under a key may have been answered before it counts as lost, beside
/// [`LOST_PROBES`].
const LOST: Duration = Duration::from_millis(3500);
/// The time between two probes under a key that counts as lost.
const LOST_PROBE_INTERVAL: Duration = Duration::from_secs(4);
/// The most tokens of unanswered probes that are remembered for a key.
const TOKENS: usize = 16;

/// How long an answer may take on the path in use before its probe counts as missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The time that an answer may take as a rule.
    pub usual: Duration,
    /// The time that it may take where there is reason to think that the peer is gone.
    pub suspect: Duration,
}

/// What is known of one key.
#[derive(Debug, Default)]
pub(super) struct Proof {
    is_proven: bool,
    /// There is reason to think that the peer lost the key, though nothing was missed yet.
    is_suspect: bool,
    /// The tokens of the probes sent since the last answer, the newest last.
    tokens: VecDeque<u64>,
    /// The first and the last small one of them, and how many there are.
    first: Option<Instant>,
    last: Option<Instant>,
    unanswered: u32,
    /// When to ask; none: with the path's own probes.
    next: Option<Instant>,
    asked_at: Option<Instant>,
}

impl Proof {
    pub(super) fn is_proven(&self) -> bool {
        self.is_proven
    }

    pub(super) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// When a probe last went out under the key.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.asked_at
    }

    /// There is no path any more, or no key.
    pub(super) fn forget(&mut self) {
        *self = Proof {
            asked_at: self.asked_at,
            ..Proof::default()
        };
    }

    /// The peer has sealed a frame with the key: it is the one to ask with.
    pub(super) fn prefer(&mut self) {
        self.unanswered = 0;
    }

    /// There is a path, or another key: it is asked for at once, unless it is known to be good.
    pub(super) fn ask(&mut self, now: Instant) {
        (self.first, self.last, self.unanswered) = (None, None, 0);
        self.next = (!self.is_proven).then_some(now);
    }

    /// The peer may have begun anew. An answer that is under way already proves nothing then.
    pub(super) fn suspect(&mut self, now: Instant) {
        if self.is_proven && !self.is_suspect {
            self.is_suspect = true;
            self.tokens.clear();
            (self.first, self.last, self.unanswered) = (None, None, 0);
            self.next = Some(now);
        }
    }

    /// A probe goes out under the key. A large one that stays unanswered says nothing; a small one follows it.
    pub(super) fn asked(
        &mut self,
        now: Instant,
        token: u64,
        is_small: bool,
        patience: Option<Patience>,
    ) {
        self.asked_at = Some(now);
        if self.tokens.len() >= TOKENS {
            self.tokens.pop_front();
        }
        self.tokens.push_back(token);
        if is_small {
            self.first.get_or_insert(now);
            self.last = Some(now);
            self.unanswered = self.unanswered.saturating_add(1);
            let lost = !self.is_proven && self.unanswered >= LOST_PROBES;
            self.next = patience.map(|patience| {
                now + if lost {
                    LOST_PROBE_INTERVAL
                } else {
                    self.repeat(patience)
                }
            });
        } else if self.next.is_none() {
            self.next = patience.map(|patience| now + self.repeat(patience));
        }
    }

    /// A probe was answered; whoever answered has opened the frame it went in.
    pub(super) fn answered(&mut self, token: u64) {
        if self.tokens.contains(&token) {
            *self = Proof {
                is_proven: true,
                asked_at: self.asked_at,
                ..Proof::default()
            };
        }
    }

    fn repeat(&self, patience: Patience) -> Duration {
        if self.is_suspect {
            patience.suspect
        } else {
            patience.usual
        }
    }

    /// When the key counts as lost, should nothing be answered any more.
    fn lost_at(&self, patience: Patience) -> Option<Instant> {
        let (first, last) = (self.first?, self.last?);
        let settled = last + self.repeat(patience);
        let lost = if self.is_suspect {
            settled
        } else {
            settled.max(first + LOST)
        };
        (self.is_proven && self.unanswered >= LOST_PROBES).then_some(lost)
    }

    /// When [`has_failed`](Self::has_failed) and [`asks`](Self::asks) are to be looked at.
    pub(super) fn due(&self, patience: Patience) -> Option<Instant> {
        [self.next, self.lost_at(patience)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the key counts as lost since now.
    pub(super) fn has_failed(&mut self, now: Instant, patience: Patience) -> bool {
        let failed = self.lost_at(patience).is_some_and(|at| at <= now);
        if failed {
            self.is_proven = false;
            self.is_suspect = false;
            self.next = Some(now + LOST_PROBE_INTERVAL);
        }
        failed
    }

    /// Whether it is to be asked now.
    pub(super) fn asks(&self, now: Instant) -> bool {
        self.next.is_some_and(|at| at <= now)
    }
}
