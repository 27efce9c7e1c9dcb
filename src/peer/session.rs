//! The keys between two peers in one subnet: a machine without I/O that makes, replaces, confirms and forgets them.
//!
//! # Messages
//!
//! Postcard (variant number, then the fields in order; numbers of more than one byte as varints, byte strings with their
//! length ahead), at most [`MAX_MESSAGE`] bytes. Over the libp2p stream, which has authenticated both peers:
//!
//! ```text
//! 0 Want                              ->  0 Wanted                      the greater peer ID asks the smaller to begin
//! 1 Offer { version u8, aes bool, kem key, required bool }
//!                                     ->  1 Accept { aes bool, kem ciphertext }     or  3 Unmet
//! 2 Begin { Noise message 1 }         ->  2 Finish { Noise message 2 }  both times from the smaller peer ID
//! ```
//!
//! Inside the live session, as control frames sealed by it; `base` and `id` are the first eight bytes of the handshake hash
//! of the session that is rekeyed and of the new one:
//!
//! ```text
//! 0 Rekey { base, attempt u32, Noise message 1 }    sent again after 0.5, 1, 2, 4, 4... s; attempts count from 1
//! 1 Answer { base, attempt, Noise message 2 }       the same for a message that comes again
//! 2 Confirm { id }                                  by who began, until the first frame under the new key came back
//! 3 Confirmed { id }
//! ```
//!
//! The cipher is AES-256-GCM when both say that they have AES instructions, else ChaCha20-Poly1305; both flags are in the
//! transcript of the handshake, so nobody between can lower it. A rekey keeps the cipher.
//!
//! An end that does no ML-KEM ([`PostQuantum::Off`]) offers an empty key, and answers with an empty ciphertext; both are in
//! the transcript, so nobody between can take it out. Where one end requires it and the other does not do it the answer is
//! Unmet: there is no session, both know why, and it is asked again later. A rekey keeps what the first handshake had.
//!
//! # Which key is used when
//!
//! Who began uses a new key as soon as it has the answer; the other one when the first frame under it was opened, for only
//! then it knows that its answer arrived, or at once if it has no other. The former key is still opened until 10 s after
//! that. Rekeys begin after [`REKEY_AFTER`] or [`REKEY_FRAMES`]; if both begin, the smaller peer ID's goes on. A rekey that
//! is not done [`REKEY_TIMEOUT`] later is done over the stream instead. A key is refused when it is [`REFUSE_AFTER`] old.

mod epoch;
mod messages;
mod rekey;
mod stream;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

pub use epoch::Indices;
pub use messages::MAX_MESSAGE;

use super::Entropy;
use epoch::{Epoch, Next, Retired};
use messages::{Control, Reply, Request, decode, encode};
use rekey::{Rekeying, Timer};
use stream::{Asking, Offered};

use crate::crypto::frame::{Cipher, KEY, Library, Opener, Sealer};
use crate::crypto::handshake::{self, Own, Refused, Secret, Terms};
use crate::limit::{Limit, TokenBucket};
use crate::model::id::{PeerId, SubnetId};

/// Age at which who began a session rekeys it; the other end waits [`STAGGER`] longer.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Keeps both ends from rekeying in the same moment.
pub const STAGGER: Duration = Duration::from_secs(5);
/// Frames sealed with one key before a rekey: far below what AES-GCM bears with 64 KiB frames (NIST SP 800-38D, 8.3).
pub const REKEY_FRAMES: u64 = 1 << 26;
/// Age at which a key is dropped by both ends.
pub const REFUSE_AFTER: Duration = Duration::from_secs(180);
/// How long the former key is opened once the new one is in use.
pub const OVERLAP: Duration = Duration::from_secs(10);
/// How long a rekey may take inside the session before the stream is asked.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(20);

/// First wait before a rekey message is sent again; doubled each time.
const RESEND_FIRST: Duration = Duration::from_millis(500);
/// Longest wait before a rekey message is sent again.
const RESEND_LAST: Duration = Duration::from_secs(4);
/// First wait after a failed attempt over the stream; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait after a failed attempt over the stream.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// How long the other end may take to begin once it was asked to.
const WANT_PATIENCE: Duration = Duration::from_secs(10);
/// A question over the stream whose answer is still out then has failed.
const ASK_PATIENCE: Duration = Duration::from_secs(60);
/// An offer is forgotten when nobody begins for that long.
const OFFER_PATIENCE: Duration = Duration::from_secs(60);
/// A session younger than this is not replaced because the other end lacked one a moment ago.
const FRESH: Duration = Duration::from_secs(2);
/// Frames per second that nobody seals: how far the next look at the counter may be away.
const FRAME_RATE: u64 = 1 << 21;
/// The most former keys whose frames are still opened.
const RETIRED: usize = 4;
/// Handshakes a peer may make us compute.
const HANDSHAKES: Limit = Limit::new(16, 2);

/// What an end does about post-quantum key agreement: ML-KEM-768 beside X25519.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PostQuantum {
    /// ML-KEM is never done; X25519 agrees the keys by itself.
    Off,
    /// ML-KEM is done with every peer that does it.
    #[default]
    Prefer,
    /// ML-KEM is required; without it there is no session.
    Require,
}

/// The two ends of a session, and what ours is set to do.
#[derive(Clone)]
pub struct Config {
    /// Our own peer ID.
    pub me: PeerId,
    /// The peer at the other end.
    pub peer: PeerId,
    /// The subnet that the keys are for.
    pub subnet: SubnetId,
    /// Our X25519 private key.
    pub secret: Zeroizing<[u8; KEY]>,
    /// The peer's X25519 public key, as its grant certifies it.
    pub peer_key: [u8; KEY],
    /// The library that computes AES here; none where this machine prefers ChaCha20.
    pub aes: Option<Library>,
    /// Whether ML-KEM is done.
    pub post_quantum: PostQuantum,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("peer", &self.peer)
            .field("subnet", &self.subnet)
            .finish_non_exhaustive()
    }
}

/// What the machine wants done, in this order.
#[derive(Debug)]
pub enum Action {
    /// Accept frames under this receiver index.
    Install {
        /// Ours; its low four bits are 0, the number of the queue.
        index: u32,
        /// Opens the frames under that index.
        opener: Opener,
    },
    /// Accept frames under this receiver index no more.
    Remove {
        /// A receiver index that was installed.
        index: u32,
    },
    /// Seal everything with it from now on.
    Use(Arc<Sealer>),
    /// There is no usable key any more: back to the stream.
    Stop,
    /// Ask this over the libp2p stream and hand the answer to [`Session::on_answer`].
    Ask(Vec<u8>),
    /// Send this as a control frame sealed with the key in use; drop it where no path is live. Never waits: what is lost
    /// is sent again.
    Send(Vec<u8>),
}

/// Why a request over the stream was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The bytes are no message of a session.
    #[error("malformed session message")]
    Malformed,
    /// The offer is of a version of sessions that we do not speak.
    #[error("session version {0} is not spoken here")]
    Version(u8),
    /// The smaller peer ID begins, the greater one asks it to.
    #[error("this end does not answer that")]
    Role,
    /// The handshake follows no offer, or a forgotten one.
    #[error("there was no offer")]
    NoOffer,
    /// The two ends differ in keys, peers, subnet, cipher or an earlier message.
    #[error("the handshake was refused")]
    Refused,
    /// The peer asked for more handshakes than one needs.
    #[error("too many handshakes")]
    TooOften,
}

impl From<Refused> for SessionError {
    fn from(_: Refused) -> Self {
        SessionError::Refused
    }
}

/// The keys between us and one peer in one subnet.
pub struct Session {
    config: Config,
    indices: Indices,
    /// The keys we seal with.
    current: Option<Epoch>,
    next: Option<Next>,
    retired: VecDeque<Retired>,
    rekeying: Option<Rekeying>,
    /// Tells the peer of the current session until it was seen using it.
    confirming: Option<Timer>,
    /// The question over the stream, and when it was asked.
    asking: Option<(Asking, Instant)>,
    /// When to ask again; `None` unless a session is wanted.
    again: Option<Instant>,
    retry: Duration,
    offered: Option<Offered>,
    /// When the last session was made, by whichever end.
    made: Option<Instant>,
    /// When to look at the counter.
    look: Option<Instant>,
    /// Handshakes that the peer may still make us compute.
    handshakes: TokenBucket,
    /// Whether the last attempt failed because one end requires ML-KEM and the other does not do it.
    unmet: bool,
    actions: VecDeque<Action>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("config", &self.config)
            .field("live", &self.is_live())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A machine without keys, whose receiver indices are taken from those of this machine.
    pub fn new(config: Config, indices: Indices) -> Session {
        Session {
            config,
            indices,
            current: None,
            next: None,
            retired: VecDeque::new(),
            rekeying: None,
            confirming: None,
            asking: None,
            again: None,
            retry: RETRY_FIRST,
            offered: None,
            made: None,
            look: None,
            handshakes: TokenBucket::new(HANDSHAKES),
            unmet: false,
            actions: VecDeque::new(),
        }
    }

    /// The peer can be reached over a stream: makes a session if none lives.
    pub fn connected(&mut self, now: Instant, _entropy: Entropy<'_>) {
        if self.current.is_none() {
            self.retry = RETRY_FIRST;
            self.ask(now);
        }
    }

    /// No datagram is answered any more: makes a new session over the stream, for the peer may have lost its keys. What
    /// is there stays in use meanwhile.
    pub fn path_lost(&mut self, now: Instant, _entropy: Entropy<'_>) {
        self.renew(now);
    }

    /// A request over the stream; the answer.
    ///
    /// # Errors
    /// [`SessionError`]; then nothing changed.
    pub fn on_request(
        &mut self,
        now: Instant,
        message: &[u8],
        entropy: Entropy<'_>,
    ) -> Result<Vec<u8>, SessionError> {
        let request: Request = decode(message).ok_or(SessionError::Malformed)?;
        if matches!(request, Request::Want) != self.begins() {
            return Err(SessionError::Role);
        }
        match request {
            Request::Want => {
                // Whoever asks answers from now on, whatever became of our earlier questions; and where the last session
                // is a moment old, it may have been forgotten there since.
                self.retry = RETRY_FIRST;
                self.renew(now);
                Ok(encode(&Reply::Wanted))
            }
            Request::Offer {
                version: handshake::VERSION,
                aes,
                kem,
                required,
            } => self.accept(now, message, aes, (&kem, required)),
            Request::Offer { version, .. } => Err(SessionError::Version(version)),
            Request::Begin { noise } => self.finish(now, &noise, entropy),
        }
    }

    /// The answer to the last [`Action::Ask`], `None` when there was none. One that makes no sense counts as none.
    pub fn on_answer(&mut self, now: Instant, answer: Option<&[u8]>, entropy: Entropy<'_>) {
        let Some((asking, asked)) = self.asking.take() else {
            return;
        };
        let done = match (asking, answer.and_then(decode::<Reply>), answer) {
            // It will begin; should it not, it is asked again.
            (Asking::Want, Some(Reply::Wanted), _) => {
                self.later(now, asked, WANT_PATIENCE);
                Ok(())
            }
            (
                Asking::Offer { kem, offer },
                Some(Reply::Accept {
                    aes,
                    kem: ciphertext,
                }),
                Some(accept),
            ) => {
                let transcript = handshake::transcript(&offer, accept);
                self.shared(kem, &ciphertext)
                    .and_then(|secret| self.begin(now, transcript, aes, secret, entropy))
            }
            (Asking::Offer { .. }, Some(Reply::Unmet), _) => {
                self.unmet = true;
                Err(Refused)
            }
            (
                Asking::Begin {
                    mut begun,
                    index,
                    cipher,
                },
                Some(Reply::Finish { noise }),
                _,
            ) => begun
                .finish(&noise)
                .map(|keys| self.began(now, keys, index, cipher)),
            _ => Err(Refused),
        };
        if done.is_err() {
            self.later(now, asked, RETRY_FIRST);
        }
    }

    /// A control message of ours that came in an opened frame. One that makes no sense changes nothing.
    pub fn on_control(&mut self, now: Instant, message: &[u8], entropy: Entropy<'_>) {
        match decode(message) {
            Some(Control::Rekey {
                base,
                attempt,
                noise,
            }) => self.on_rekey(now, base, attempt, &noise, entropy),
            Some(Control::Answer {
                base,
                attempt,
                noise,
            }) => {
                let current = self
                    .current
                    .as_ref()
                    .filter(|c| c.id == base)
                    .map(|c| c.sealer.cipher());
                let Some(cipher) = current else { return };
                let Some(mut rekeying) = self.rekeying.take_if(|r| r.attempt == attempt) else {
                    return;
                };
                match rekeying.begun.finish(&noise) {
                    Ok(keys) => self.began(now, keys, rekeying.index, cipher),
                    Err(Refused) => self.rekeying = Some(rekeying),
                }
            }
            Some(Control::Confirm { id }) => {
                if self.next.as_ref().is_some_and(|n| n.epoch.id == id) {
                    self.promote(now);
                } else if self
                    .current
                    .as_ref()
                    .is_some_and(|c| c.id == id && !c.initiator)
                {
                    self.confirmed(now);
                    self.actions
                        .push_back(Action::Send(encode(&Control::Confirmed { id })));
                }
            }
            Some(Control::Confirmed { id })
                if self.current.as_ref().is_some_and(|c| c.id == id) =>
            {
                self.confirmed(now)
            }
            Some(Control::Confirmed { .. }) | None => {}
        }
    }

    /// The first frame under that index was opened: the peer has the key.
    pub fn on_first(&mut self, now: Instant, index: u32) {
        if self.next.as_ref().is_some_and(|n| n.epoch.index == index) {
            self.promote(now);
        } else if self.current.as_ref().is_some_and(|c| c.index == index) {
            self.confirmed(now);
        }
    }

    /// When [`Session::handle_timeout`] is to be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let current = self.current.as_ref();
        let young = current.filter(|c| c.due.is_none());
        let idle = self.asking.is_none() && self.again.is_none();
        [
            current.map(Epoch::refused_at),
            young.map(Epoch::rekey_at),
            self.look.filter(|_| young.is_some()),
            current
                .filter(|_| idle)
                .and_then(|c| c.due)
                .map(|due| due + REKEY_TIMEOUT),
            self.next.as_ref().map(|n| n.epoch.refused_at()),
            self.retired.iter().map(|r| r.until).min(),
            self.rekeying.as_ref().map(|r| r.timer.at),
            self.confirming.as_ref().map(|t| t.at),
            self.asking.as_ref().map(|(_, asked)| *asked + ASK_PATIENCE),
            self.again.filter(|_| self.asking.is_none()),
            self.offered.as_ref().map(|o| o.until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant, entropy: Entropy<'_>) {
        self.offered.take_if(|o| now >= o.until);
        if let Some(next) = self.next.take_if(|n| now >= n.epoch.refused_at()) {
            self.retire(next.epoch);
        }
        let mut needed = self.again.is_some_and(|at| now >= at);
        if let Some(old) = self.current.take_if(|c| now >= c.refused_at()) {
            (self.rekeying, self.confirming) = (None, None);
            self.retire(old);
            // A key that the peer was not seen using yet is better than none.
            match self.next.take() {
                Some(next) => self.use_now(now, next.epoch),
                None => {
                    self.actions.push_back(Action::Stop);
                    needed |= self.again.is_none();
                }
            }
        }
        while let Some(gone) = self
            .retired
            .iter()
            .position(|r| now >= r.until)
            .and_then(|at| self.retired.remove(at))
        {
            self.remove(gone);
        }
        self.resend(now);
        needed |= self.rekey(now, entropy);
        if let Some((_, asked)) = self
            .asking
            .take_if(|(_, asked)| now >= *asked + ASK_PATIENCE)
        {
            self.later(now, asked, RETRY_FIRST);
        }
        if needed {
            self.ask(now);
        }
    }

    /// Takes out what is to be done next; none where everything was taken.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is a key to seal with.
    pub fn is_live(&self) -> bool {
        self.current.is_some()
    }

    /// The cipher of the key in use; none without a key.
    pub fn cipher(&self) -> Option<Cipher> {
        self.current.as_ref().map(|c| c.sealer.cipher())
    }

    /// Whether an ML-KEM secret is in the key in use; none without a key.
    pub fn is_hybrid(&self) -> Option<bool> {
        self.current.as_ref().map(|c| c.hybrid)
    }

    /// Whether there is no session because one end requires ML-KEM and the other does not do it.
    pub fn is_unmet(&self) -> bool {
        self.unmet
    }

    /// Whether handshakes over the stream are ours to begin.
    fn begins(&self) -> bool {
        self.config.me < self.config.peer
    }

    fn fresh(&self, now: Instant) -> bool {
        self.made.is_some_and(|made| now < made + FRESH)
    }

    /// Asks for a new session, at once or when the last one is not fresh any more.
    fn renew(&mut self, now: Instant) {
        match self.made.filter(|_| self.fresh(now)) {
            Some(made) => self.again = self.again.or(Some(made + FRESH)),
            None => self.ask(now),
        }
    }

    /// The terms of a handshake that we begin, or answer.
    fn terms(
        &self,
        initiator: bool,
        (cipher, hybrid): (Cipher, bool),
        transcript: [u8; 32],
        attempt: u32,
    ) -> Terms {
        let Config {
            me, peer, subnet, ..
        } = self.config;
        let (initiator, responder) = if initiator { (me, peer) } else { (peer, me) };
        Terms {
            subnet,
            initiator,
            responder,
            cipher,
            hybrid,
            transcript,
            attempt,
        }
    }

    fn cipher_with(&self, peer_has_aes: bool) -> Cipher {
        if self.config.aes.is_some() && peer_has_aes {
            Cipher::Aes256Gcm
        } else {
            Cipher::ChaCha20Poly1305
        }
    }

    fn own(&self, index: u32, entropy: Entropy<'_>) -> Own<'_> {
        let mut ephemeral = Secret::default();
        entropy(ephemeral.as_mut_slice());
        Own {
            secret: &self.config.secret,
            peer_key: &self.config.peer_key,
            index,
            ephemeral,
        }
    }
}

#[cfg(test)]
mod tests;
