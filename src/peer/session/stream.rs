//! A session's first key, made over the libp2p stream; also when a rekey inside the session does not come about.

use std::time::{Duration, Instant};

use super::PostQuantum;
use super::messages::{Reply, Request, encode};
use super::{Action, Entropy, OFFER_PATIENCE, RETRY_FIRST, RETRY_LAST, Session, SessionError};
use crate::crypto::frame::Cipher;
use crate::crypto::handshake::{self, Begun, KEM_KEY, Kem, MESSAGE_1, Refused, Secret, Terms};

/// A question out over the stream.
pub(super) enum Asking {
    Want,
    Offer {
        kem: Option<Kem>,
        offer: Vec<u8>,
    },
    Begin {
        begun: Begun,
        index: u32,
        cipher: Cipher,
    },
}

/// An offer of the peer's that was accepted, kept for its handshake.
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
            let made = (self.config.post_quantum != PostQuantum::Off)
                .then(Kem::new)
                .transpose();
            let Ok(made) = made else {
                return self.later(now, now, RETRY_FIRST);
            };
            let (kem, key) = made.unzip();
            let (aes, required) = (
                self.config.aes.is_some(),
                self.config.post_quantum == PostQuantum::Require,
            );
            let kem_key = key.unwrap_or_default();
            let offer = encode(&Request::Offer {
                version: handshake::VERSION,
                aes,
                kem: kem_key,
                required,
            });
            (
                Asking::Offer {
                    kem,
                    offer: offer.clone(),
                },
                offer,
            )
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

    /// The secret in an accept; none where one end does no ML-KEM.
    pub(super) fn shared(
        &self,
        kem: Option<Kem>,
        ciphertext: &[u8],
    ) -> Result<Option<Secret>, Refused> {
        match kem {
            Some(kem) if !ciphertext.is_empty() => kem.open(ciphertext).map(Some),
            _ if !ciphertext.is_empty() || self.config.post_quantum == PostQuantum::Require => {
                Err(Refused)
            }
            _ => Ok(None),
        }
    }

    /// Accepts the peer's offer and remembers it for the handshake that follows. The answer is
    /// Unmet where one end requires ML-KEM and the other does not do it.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        offer: &[u8],
        aes: bool,
        (key, required): (&[u8], bool),
    ) -> Result<Vec<u8>, SessionError> {
        if !key.is_empty() && key.len() != KEM_KEY {
            return Err(SessionError::Malformed);
        }
        let hybrid = !key.is_empty() && self.config.post_quantum != PostQuantum::Off;
        if !hybrid && (required || self.config.post_quantum == PostQuantum::Require) {
            self.unmet = true;
            return Ok(encode(&Reply::Unmet));
        }
        if !self.handshakes.take(now) {
            return Err(SessionError::TooOften);
        }
        let (kem, secret) = hybrid
            .then(|| handshake::encapsulate(key))
            .transpose()?
            .unzip();
        let accept = encode(&Reply::Accept {
            aes: self.config.aes.is_some(),
            kem: kem.unwrap_or_default(),
        });
        let terms = self.terms(
            false,
            (self.cipher_with(aes), hybrid),
            handshake::transcript(offer, &accept),
            0,
        );
        let psk = terms.psk(secret.as_ref())?;
        self.offered = Some(Offered {
            terms,
            psk,
            until: now + OFFER_PATIENCE,
        });
        Ok(accept)
    }

    /// The offer was accepted: begins the first handshake.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        transcript: [u8; 32],
        aes: bool,
        secret: Option<Secret>,
        entropy: Entropy<'_>,
    ) -> Result<(), Refused> {
        let cipher = self.cipher_with(aes);
        let terms = self.terms(true, (cipher, secret.is_some()), transcript, 0);
        let psk = terms.psk(secret.as_ref())?;
        let index = self.indices.take();
        let (begun, noise) = Begun::new(self.own(index, entropy), &terms, psk)?;
        self.asking = Some((
            Asking::Begin {
                begun,
                index,
                cipher,
            },
            now,
        ));
        self.actions
            .push_back(Action::Ask(encode(&Request::Begin { noise })));
        Ok(())
    }

    /// Answers the first handshake, which follows the offer that was accepted.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        noise: &[u8],
        entropy: Entropy<'_>,
    ) -> Result<Vec<u8>, SessionError> {
        if noise.len() != MESSAGE_1 {
            return Err(SessionError::Malformed);
        }
        if self.offered.as_ref().is_none_or(|o| now >= o.until) {
            return Err(SessionError::NoOffer);
        }
        if !self.handshakes.take(now) {
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
