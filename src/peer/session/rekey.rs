//! A new key inside the live session, without the stream.

use std::time::{Duration, Instant};

use super::messages::{Control, Id, encode};
use super::{Action, Entropy, REKEY_FRAMES, REKEY_TIMEOUT, RESEND_FIRST, RESEND_LAST, Session};
use crate::crypto::handshake::{self, Begun, MESSAGE_1};

/// When to send something again.
pub(super) struct Timer {
    pub(super) at: Instant,
    pub(super) delay: Duration,
    pub(super) until: Instant,
}

impl Timer {
    pub(super) fn start(now: Instant) -> Timer {
        Timer {
            at: now + RESEND_FIRST,
            delay: RESEND_FIRST,
            until: now + REKEY_TIMEOUT,
        }
    }

    pub(super) fn next(&mut self, now: Instant) {
        self.delay = (self.delay * 2).min(RESEND_LAST);
        self.at = now + self.delay;
    }
}

/// Our rekey of the current session.
pub(super) struct Rekeying {
    pub(super) begun: Begun,
    pub(super) index: u32,
    pub(super) attempt: u32,
    pub(super) message: Vec<u8>,
    pub(super) timer: Timer,
}

impl Session {
    /// The peer rekeys the current session.
    pub(super) fn on_rekey(
        &mut self,
        now: Instant,
        base: Id,
        attempt: u32,
        noise: &[u8],
        entropy: Entropy<'_>,
    ) {
        // Our answer arrived if the peer goes on from it, though no frame under the new key was seen yet.
        if self.next.as_ref().is_some_and(|n| n.epoch.id == base) {
            self.promote(now);
        }
        match self.next.as_ref().map(|n| &n.again) {
            Some(Some((first, answer))) if first == noise => {
                return self.actions.push_back(Action::Send(answer.clone()));
            }
            // A session made over the stream meanwhile is the newer one for both.
            Some(None) => return,
            Some(Some(_)) | None => {}
        }
        // Both at once: the smaller peer ID's goes on.
        let ours = self.rekeying.is_some() && self.begins();
        let due = self
            .current
            .as_ref()
            .is_some_and(|c| c.id == base && attempt > c.answered);
        if ours || !due || noise.len() != MESSAGE_1 || !self.handshakes.take(now) {
            return;
        }
        let Some(current) = &self.current else { return };
        let cipher = current.sealer.cipher();
        let terms = self.terms(false, (cipher, current.hybrid), current.hash, attempt);
        let index = self.indices.take();
        let own = self.own(index, entropy);
        let Ok((keys, reply)) = handshake::respond(own, &terms, current.next_psk.clone(), noise)
        else {
            return;
        };
        if let Some(current) = &mut self.current {
            current.answered = attempt;
        }
        let answer = encode(&Control::Answer {
            base,
            attempt,
            noise: reply,
        });
        self.joined(
            now,
            keys,
            index,
            cipher,
            Some((noise.to_vec(), answer.clone())),
        );
        self.actions.push_back(Action::Send(answer));
    }

    /// Looks whether a rekey is due and begins it; whether a session is needed over the stream.
    pub(super) fn rekey(&mut self, now: Instant, entropy: Entropy<'_>) -> bool {
        let Some(current) = &mut self.current else {
            return false;
        };
        if let Some(due) = current.due {
            return now >= due + REKEY_TIMEOUT && self.asking.is_none() && self.again.is_none();
        }
        if now < current.rekey_at() && current.sealer.used() < REKEY_FRAMES {
            if self.look.is_none_or(|at| now >= at) {
                self.look = Some(current.look_at(now));
            }
            return false;
        }
        current.due = Some(now);
        if self.next.is_none() && self.rekeying.is_none() {
            self.begin_rekey(now, entropy);
        }
        false
    }

    pub(super) fn begin_rekey(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(current) = &mut self.current else {
            return;
        };
        current.attempts = current.attempts.saturating_add(1);
        let (attempt, base, hash) = (current.attempts, current.id, current.hash);
        let (cipher, psk) = (current.sealer.cipher(), current.next_psk.clone());
        let kept = (cipher, current.hybrid);
        let terms = self.terms(true, kept, hash, attempt);
        let index = self.indices.take();
        // Should it fail, the stream is asked when patience ends.
        let Ok((begun, noise)) = Begun::new(self.own(index, entropy), &terms, psk) else {
            return;
        };
        let message = encode(&Control::Rekey {
            base,
            attempt,
            noise,
        });
        self.actions.push_back(Action::Send(message.clone()));
        self.rekeying = Some(Rekeying {
            begun,
            index,
            attempt,
            message,
            timer: Timer::start(now),
        });
    }

    /// Sends again what was not answered.
    pub(super) fn resend(&mut self, now: Instant) {
        self.rekeying.take_if(|r| now >= r.timer.until);
        self.confirming.take_if(|t| now >= t.until);
        if let Some(rekeying) = self.rekeying.as_mut().filter(|r| now >= r.timer.at) {
            rekeying.timer.next(now);
            self.actions
                .push_back(Action::Send(rekeying.message.clone()));
        }
        if let (Some(timer), Some(current)) = (
            self.confirming.as_mut().filter(|t| now >= t.at),
            &self.current,
        ) {
            timer.next(now);
            self.actions
                .push_back(Action::Send(encode(&Control::Confirm { id: current.id })));
        }
    }
}
