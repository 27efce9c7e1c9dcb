//! A session's first key, made over the libp2p stream; also when a rekey inside the session does not come about.

use std::time::{Duration, Instant};

use super::messages::{Reply, Request, encode};
use super::{Action, BURST, Entropy, OFFER_PATIENCE, REFILL, RETRY_FIRST, RETRY_LAST, Session, SessionError};
use crate::crypto::frame::Cipher;
use crate::crypto::handshake::{self, Begun, KEM_KEY, Kem, MESSAGE_1, Refused, Secret, Terms};

/// A question out over the stream.
pub(super) enum Asking {
    Want,
    Offer { kem: Kem, offer: Vec<u8> },
    Begin { begun: Begun, index: u32, cipher: Cipher },
}

/// The peer's offer, accepted.
pub(super) struct Offered {
    pub(super) terms: Terms,
    pub(super) psk: Secret,
    pub(super) until: Instant,
}

impl Session {
    /// Asks over the stream for a session, unless a question is out.
    pub(super) fn ask(&mut self, now: Instant) {
        if self.asking.is_some() {
            return;
        }
        self.again = None;
        let (asking, message) = if self.begins() {
            let Ok((kem, key)) = Kem::new() else { return self.later(now, now, RETRY_FIRST) };
            let offer = Request::Offer { version: handshake::VERSION, aes: self.config.aes.is_some(), kem: key };
            let offer = encode(&offer);
            (Asking::Offer { kem, offer: offer.clone() }, offer)
        } else {
            (Asking::Want, encode(&Request::Want))
        };
        self.asking = Some((asking, now));
        self.actions.push_back(Action::Ask(message));
    }

    /// Asks again after a while, at least `least`; not if a session was made since the last question.
    pub(super) fn later(&mut self, now: Instant, asked: Instant, least: Duration) {
        if self.made.is_none_or(|made| made < asked) {
            self.again = Some(now + self.retry.max(least));
            self.retry = (self.retry * 2).min(RETRY_LAST);
        }
    }

    /// Pays for one handshake that the peer asks of us.
    pub(super) fn pay(&mut self, now: Instant) -> bool {
        let (left, since) = self.budget;
        let since = since.unwrap_or(now);
        let more = now.saturating_duration_since(since).as_millis() / REFILL.as_millis();
        let more = u32::try_from(more).unwrap_or(BURST).min(BURST);
        let left = left.saturating_add(more).min(BURST);
        let since = if left == BURST { now } else { since + REFILL * more };
        self.budget = (left.saturating_sub(1), Some(since));
        left > 0
    }

    /// Answers an offer.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        offer: &[u8],
        aes: bool,
        key: &[u8],
    ) -> Result<Vec<u8>, SessionError> {
        if key.len() != KEM_KEY {
            return Err(SessionError::Malformed);
        }
        if !self.pay(now) {
            return Err(SessionError::TooOften);
        }
        let (kem, secret) = handshake::encapsulate(key)?;
        let accept = encode(&Reply::Accept { aes: self.config.aes.is_some(), kem });
        let terms = self.terms(false, self.cipher_with(aes), handshake::transcript(offer, &accept), 0);
        let psk = terms.psk(&secret)?;
        self.offered = Some(Offered { terms, psk, until: now + OFFER_PATIENCE });
        Ok(accept)
    }

    /// The offer was accepted: begins the first handshake.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        transcript: [u8; 32],
        aes: bool,
        secret: &Secret,
        entropy: Entropy<'_>,
    ) -> Result<(), Refused> {
        let cipher = self.cipher_with(aes);
        let terms = self.terms(true, cipher, transcript, 0);
        let psk = terms.psk(secret)?;
        let index = self.indices.take();
        let (begun, noise) = Begun::new(self.own(index, entropy), &terms, psk)?;
        self.asking = Some((Asking::Begin { begun, index, cipher }, now));
        self.actions.push_back(Action::Ask(encode(&Request::Begin { noise })));
        Ok(())
    }

    /// Answers the first handshake.
    pub(super) fn finish(&mut self, now: Instant, noise: &[u8], entropy: Entropy<'_>) -> Result<Vec<u8>, SessionError> {
        if noise.len() != MESSAGE_1 {
            return Err(SessionError::Malformed);
        }
        if self.offered.as_ref().is_none_or(|o| now >= o.until) {
            return Err(SessionError::NoOffer);
        }
        if !self.pay(now) {
            return Err(SessionError::TooOften);
        }
        let offered = self.offered.as_ref().ok_or(SessionError::NoOffer)?;
        let index = self.indices.take();
        let own = self.own(index, entropy);
        let (keys, noise) = handshake::respond(own, &offered.terms, offered.psk.clone(), noise)?;
        let cipher = offered.terms.cipher;
        self.offered = None;
        self.joined(now, keys, index, cipher, None);
        Ok(encode(&Reply::Finish { noise }))
    }
}
