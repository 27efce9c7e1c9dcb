//! The keys between two peers in one subnet: a machine without I/O that makes, replaces, confirms and forgets them.
//!
//! # Messages
//!
//! Postcard (variant number, then the fields in order; numbers of more than one byte as varints, byte strings with their
//! length ahead), at most [`MAX_MESSAGE`] bytes. Over the libp2p stream, which has authenticated both peers:
//!
//! ```text
//! 0 Want                              ->  0 Wanted                      the greater peer ID asks the smaller to begin
//! 1 Offer { version u8, aes bool, kem key }  ->  1 Accept { aes bool, kem ciphertext }
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
//! # Which key is used when
//!
//! Who began uses a new key as soon as it has the answer; the other one when the first frame under it was opened, for only
//! then it knows that its answer arrived, or at once if it has no other. The former key is still opened until 10 s after
//! that. Rekeys begin after [`REKEY_AFTER`] or [`REKEY_FRAMES`]; if both begin, the smaller peer ID's goes on. A rekey that
//! is not done [`PATIENCE`] later is done over the stream instead. A key is refused when it is [`REFUSE_AFTER`] old.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::frame::{Cipher, KEY, Library, Opener, Sealer};
use super::handshake::{self, Begun, KEM_KEY, Kem, Keys, MESSAGE_1, Own, Refused, Secret, Terms};
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
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the largest message.
pub const MAX_MESSAGE: usize = 2048;

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
/// Former keys still opened, at most.
const RETIRED: usize = 4;
/// Handshakes a peer may make us compute in one go, and how long one more takes to be allowed.
const BURST: u32 = 16;
const REFILL: Duration = Duration::from_millis(500);

/// Fills a buffer with random bytes.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Names a session in messages.
type Id = [u8; 8];

/// Who talks to whom about what.
#[derive(Clone)]
pub struct Config {
    /// We.
    pub me: PeerId,
    /// The other end.
    pub peer: PeerId,
    /// The subnet.
    pub subnet: SubnetId,
    /// Our X25519 private key.
    pub secret: Zeroizing<[u8; KEY]>,
    /// The peer's X25519 public key, as its grant certifies it.
    pub peer_key: [u8; KEY],
    /// Who computes AES here; none where this machine prefers ChaCha20.
    pub aes: Option<Library>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("peer", &self.peer).field("subnet", &self.subnet).finish_non_exhaustive()
    }
}

/// What the machine wants done, in this order.
#[derive(Debug)]
pub enum Action {
    /// Accept frames under this receiver index.
    Install {
        /// Ours; its low four bits are 0, the number of the queue.
        index: u32,
        /// Opens them.
        opener: Opener,
    },
    /// Accept them no more.
    Remove {
        /// One that was installed.
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
    /// Not a message.
    #[error("malformed session message")]
    Malformed,
    /// A version of sessions that we do not speak.
    #[error("session version {0} is not spoken here")]
    Version(u8),
    /// The smaller peer ID begins, the greater one asks it to.
    #[error("this end does not answer that")]
    Role,
    /// A handshake without an offer, or a forgotten one.
    #[error("there was no offer")]
    NoOffer,
    /// Keys, peers, subnet, cipher or an earlier message differ.
    #[error("the handshake was refused")]
    Refused,
    /// More handshakes than a peer needs.
    #[error("too many handshakes")]
    TooOften,
}

impl From<Refused> for SessionError {
    fn from(_: Refused) -> Self {
        SessionError::Refused
    }
}

#[derive(Serialize, Deserialize)]
enum Request {
    Want,
    Offer { version: u8, aes: bool, kem: Vec<u8> },
    Begin { noise: Vec<u8> },
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Wanted,
    Accept { aes: bool, kem: Vec<u8> },
    Finish { noise: Vec<u8> },
}

#[derive(Serialize, Deserialize)]
enum Control {
    Rekey { base: Id, attempt: u32, noise: Vec<u8> },
    Answer { base: Id, attempt: u32, noise: Vec<u8> },
    Confirm { id: Id },
    Confirmed { id: Id },
}

fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Only a type postcard cannot express fails here; none of ours holds one.
    postcard::to_allocvec(message).unwrap_or_default()
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes.get(..bytes.len().min(MAX_MESSAGE))?) {
        Ok((message, [])) if bytes.len() <= MAX_MESSAGE => Some(message),
        _ => None,
    }
}

/// The receiver indices in use on this machine, shared by its sessions so that no two take the same.
#[derive(Debug, Clone, Default)]
pub struct Indices(Arc<Mutex<BTreeSet<u32>>>);

impl Indices {
    /// An index that is free now, until what is returned is dropped.
    fn take(&self, entropy: Entropy<'_>) -> Index {
        let mut bytes = [0; 4];
        entropy(&mut bytes);
        let mut number = u32::from_be_bytes(bytes) & !0xf;
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // 2^28 of them, and a few per peer: the next one is free nearly always.
        while number == 0 || !taken.insert(number) {
            number = number.wrapping_add(0x10);
        }
        Index { number, all: self.clone() }
    }

    /// How many are taken.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// An index taken; free again when dropped.
#[derive(Debug)]
struct Index {
    number: u32,
    all: Indices,
}

impl Drop for Index {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// One set of keys.
struct Epoch {
    id: Id,
    hash: [u8; 32],
    index: Index,
    sealer: Arc<Sealer>,
    next_psk: Secret,
    made: Instant,
    /// Whether we began its handshake.
    initiator: bool,
    /// Whether the other end was seen using it.
    confirmed: bool,
    /// When a rekey was found to be due.
    due: Option<Instant>,
    /// The highest attempt to rekey it: ours, and the peer's that we answered.
    attempts: u32,
    answered: u32,
}

impl Epoch {
    fn refused_at(&self) -> Instant {
        self.made + REFUSE_AFTER
    }

    fn rekey_at(&self) -> Instant {
        self.made + REKEY_AFTER + if self.initiator { Duration::ZERO } else { STAGGER }
    }

    /// When to look at the counter: the earliest moment it could reach its limit, at least a second from now.
    fn look_at(&self, now: Instant) -> Instant {
        let left = REKEY_FRAMES.saturating_sub(self.sealer.used());
        now + Duration::from_secs((left / FRAME_RATE).max(1))
    }
}

/// A key made by the peer's handshake that the peer was not yet seen using.
struct Next {
    epoch: Epoch,
    /// The rekey message it came from and the answer to give again; `None` for one made over the stream.
    again: Option<(Vec<u8>, Vec<u8>)>,
}

/// A former key that is still opened.
struct Retired {
    index: Index,
    sealer: Arc<Sealer>,
    until: Instant,
}

/// A question out over the stream.
enum Asking {
    Want,
    Offer { kem: Kem, offer: Vec<u8> },
    Begin { begun: Begun, index: Index, cipher: Cipher },
}

/// The peer's offer, accepted.
struct Offered {
    terms: Terms,
    psk: Secret,
    until: Instant,
}

/// When to send something again.
struct Timer {
    at: Instant,
    delay: Duration,
    until: Instant,
}

impl Timer {
    fn start(now: Instant) -> Timer {
        Timer { at: now + RESEND_FIRST, delay: RESEND_FIRST, until: now + PATIENCE }
    }

    fn next(&mut self, now: Instant) {
        self.delay = (self.delay * 2).min(RESEND_LAST);
        self.at = now + self.delay;
    }
}

/// Our rekey of the current session.
struct Rekeying {
    begun: Begun,
    index: Index,
    attempt: u32,
    message: Vec<u8>,
    timer: Timer,
}

/// The keys between us and one peer in one subnet.
pub struct Session {
    config: Config,
    indices: Indices,
    /// What we seal with.
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
    /// Handshakes the peer may still make us compute, and since when.
    budget: (u32, Option<Instant>),
    actions: VecDeque<Action>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("config", &self.config).field("live", &self.is_live()).finish_non_exhaustive()
    }
}

impl Session {
    /// A machine without keys, with indices of its own: where one process has several, see [`Session::sharing`].
    pub fn new(config: Config) -> Session {
        Session::sharing(config, Indices::default())
    }

    /// A machine without keys whose receiver indices are taken among those of others.
    pub fn sharing(config: Config, indices: Indices) -> Session {
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
            budget: (BURST, None),
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
    pub fn on_request(&mut self, now: Instant, message: &[u8], entropy: Entropy<'_>) -> Result<Vec<u8>, SessionError> {
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
            Request::Offer { version: handshake::VERSION, aes, kem } => self.accept(now, message, aes, &kem),
            Request::Offer { version, .. } => Err(SessionError::Version(version)),
            Request::Begin { noise } => self.finish(now, &noise, entropy),
        }
    }

    /// The answer to the last [`Action::Ask`], `None` when there was none. One that makes no sense counts as none.
    pub fn on_answer(&mut self, now: Instant, answer: Option<&[u8]>, entropy: Entropy<'_>) {
        let Some((asking, asked)) = self.asking.take() else { return };
        let done = match (asking, answer.and_then(decode::<Reply>), answer) {
            // It will begin; should it not, it is asked again.
            (Asking::Want, Some(Reply::Wanted), _) => {
                self.later(now, asked, WANT_PATIENCE);
                Ok(())
            }
            (Asking::Offer { kem, offer }, Some(Reply::Accept { aes, kem: ciphertext }), Some(accept)) => kem
                .open(&ciphertext)
                .and_then(|secret| self.begin(now, handshake::transcript(&offer, accept), aes, &secret, entropy)),
            (Asking::Begin { mut begun, index, cipher }, Some(Reply::Finish { noise }), _) => {
                begun.finish(&noise).map(|keys| self.began(now, keys, index, cipher))
            }
            _ => Err(Refused),
        };
        if done.is_err() {
            self.later(now, asked, RETRY_FIRST);
        }
    }

    /// A control message of ours that came in an opened frame. One that makes no sense changes nothing.
    pub fn on_control(&mut self, now: Instant, message: &[u8], entropy: Entropy<'_>) {
        match decode(message) {
            Some(Control::Rekey { base, attempt, noise }) => self.on_rekey(now, base, attempt, &noise, entropy),
            Some(Control::Answer { base, attempt, noise }) => {
                let current = self.current.as_ref().filter(|c| c.id == base).map(|c| c.sealer.cipher());
                let Some(cipher) = current else { return };
                let Some(mut rekeying) = self.rekeying.take_if(|r| r.attempt == attempt) else { return };
                match rekeying.begun.finish(&noise) {
                    Ok(keys) => self.began(now, keys, rekeying.index, cipher),
                    Err(Refused) => self.rekeying = Some(rekeying),
                }
            }
            Some(Control::Confirm { id }) => {
                if self.next.as_ref().is_some_and(|n| n.epoch.id == id) {
                    self.promote(now);
                } else if self.current.as_ref().is_some_and(|c| c.id == id && !c.initiator) {
                    self.confirmed(now);
                    self.actions.push_back(Action::Send(encode(&Control::Confirmed { id })));
                }
            }
            Some(Control::Confirmed { id }) if self.current.as_ref().is_some_and(|c| c.id == id) => self.confirmed(now),
            Some(Control::Confirmed { .. }) | None => {}
        }
    }

    /// The first frame under that index was opened: the peer has the key.
    pub fn on_first(&mut self, now: Instant, index: u32) {
        if self.next.as_ref().is_some_and(|n| n.epoch.index.number == index) {
            self.promote(now);
        } else if self.current.as_ref().is_some_and(|c| c.index.number == index) {
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
            current.filter(|_| idle).and_then(|c| c.due).map(|due| due + PATIENCE),
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
        while let Some(gone) = self.retired.iter().position(|r| now >= r.until).and_then(|at| self.retired.remove(at)) {
            self.remove(gone);
        }
        self.resend(now);
        needed |= self.rekey(now, entropy);
        if let Some((_, asked)) = self.asking.take_if(|(_, asked)| now >= *asked + ASK_PATIENCE) {
            self.later(now, asked, RETRY_FIRST);
        }
        if needed {
            self.ask(now);
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is a key to seal with.
    pub fn is_live(&self) -> bool {
        self.current.is_some()
    }

    /// The cipher in use.
    pub fn cipher(&self) -> Option<Cipher> {
        self.current.as_ref().map(|c| c.sealer.cipher())
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

    /// Asks over the stream for a session, unless a question is out.
    fn ask(&mut self, now: Instant) {
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
    fn later(&mut self, now: Instant, asked: Instant, least: Duration) {
        if self.made.is_none_or(|made| made < asked) {
            self.again = Some(now + self.retry.max(least));
            self.retry = (self.retry * 2).min(RETRY_LAST);
        }
    }

    /// Pays for one handshake that the peer asks of us.
    fn pay(&mut self, now: Instant) -> bool {
        let (left, since) = self.budget;
        let since = since.unwrap_or(now);
        let more = now.saturating_duration_since(since).as_millis() / REFILL.as_millis();
        let more = u32::try_from(more).unwrap_or(BURST).min(BURST);
        let left = left.saturating_add(more).min(BURST);
        let since = if left == BURST { now } else { since + REFILL * more };
        self.budget = (left.saturating_sub(1), Some(since));
        left > 0
    }

    /// The terms of a handshake that we begin, or answer.
    fn terms(&self, initiator: bool, cipher: Cipher, transcript: [u8; 32], attempt: u32) -> Terms {
        let Config { me, peer, subnet, .. } = self.config;
        let (initiator, responder) = if initiator { (me, peer) } else { (peer, me) };
        Terms { subnet, initiator, responder, cipher, transcript, attempt }
    }

    fn cipher_with(&self, peer_has_aes: bool) -> Cipher {
        if self.config.aes.is_some() && peer_has_aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 }
    }

    fn own(&self, index: &Index, entropy: Entropy<'_>) -> Own<'_> {
        let mut ephemeral = Secret::default();
        entropy(ephemeral.as_mut_slice());
        Own { secret: &self.config.secret, peer_key: &self.config.peer_key, index: index.number, ephemeral }
    }

    /// Answers an offer.
    fn accept(&mut self, now: Instant, offer: &[u8], aes: bool, key: &[u8]) -> Result<Vec<u8>, SessionError> {
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
    fn begin(
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
        let index = self.indices.take(entropy);
        let (begun, noise) = Begun::new(self.own(&index, entropy), &terms, psk)?;
        self.asking = Some((Asking::Begin { begun, index, cipher }, now));
        self.actions.push_back(Action::Ask(encode(&Request::Begin { noise })));
        Ok(())
    }

    /// Answers the first handshake.
    fn finish(&mut self, now: Instant, noise: &[u8], entropy: Entropy<'_>) -> Result<Vec<u8>, SessionError> {
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
        let index = self.indices.take(entropy);
        let own = self.own(&index, entropy);
        let (keys, noise) = handshake::respond(own, &offered.terms, offered.psk.clone(), noise)?;
        let cipher = offered.terms.cipher;
        self.offered = None;
        self.joined(now, keys, index, cipher, None);
        Ok(encode(&Reply::Finish { noise }))
    }

    /// The peer rekeys the current session.
    fn on_rekey(&mut self, now: Instant, base: Id, attempt: u32, noise: &[u8], entropy: Entropy<'_>) {
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
        let due = self.current.as_ref().is_some_and(|c| c.id == base && attempt > c.answered);
        if ours || !due || noise.len() != MESSAGE_1 || !self.pay(now) {
            return;
        }
        let Some(current) = &self.current else { return };
        let cipher = current.sealer.cipher();
        let terms = self.terms(false, cipher, current.hash, attempt);
        let index = self.indices.take(entropy);
        let own = self.own(&index, entropy);
        let Ok((keys, reply)) = handshake::respond(own, &terms, current.next_psk.clone(), noise) else { return };
        if let Some(current) = &mut self.current {
            current.answered = attempt;
        }
        let answer = encode(&Control::Answer { base, attempt, noise: reply });
        self.joined(now, keys, index, cipher, Some((noise.to_vec(), answer.clone())));
        self.actions.push_back(Action::Send(answer));
    }

    /// Looks whether a rekey is due and begins it; whether a session is needed over the stream.
    fn rekey(&mut self, now: Instant, entropy: Entropy<'_>) -> bool {
        let Some(current) = &mut self.current else { return false };
        if let Some(due) = current.due {
            return now >= due + PATIENCE && self.asking.is_none() && self.again.is_none();
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

    fn begin_rekey(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(current) = &mut self.current else { return };
        current.attempts = current.attempts.saturating_add(1);
        let (attempt, base, hash) = (current.attempts, current.id, current.hash);
        let (cipher, psk) = (current.sealer.cipher(), current.next_psk.clone());
        let terms = self.terms(true, cipher, hash, attempt);
        let index = self.indices.take(entropy);
        // Should it fail, the stream is asked when patience ends.
        let Ok((begun, noise)) = Begun::new(self.own(&index, entropy), &terms, psk) else { return };
        let message = encode(&Control::Rekey { base, attempt, noise });
        self.actions.push_back(Action::Send(message.clone()));
        self.rekeying = Some(Rekeying { begun, index, attempt, message, timer: Timer::start(now) });
    }

    /// Sends again what was not answered.
    fn resend(&mut self, now: Instant) {
        self.rekeying.take_if(|r| now >= r.timer.until);
        self.confirming.take_if(|t| now >= t.until);
        if let Some(rekeying) = self.rekeying.as_mut().filter(|r| now >= r.timer.at) {
            rekeying.timer.next(now);
            self.actions.push_back(Action::Send(rekeying.message.clone()));
        }
        if let (Some(timer), Some(current)) = (self.confirming.as_mut().filter(|t| now >= t.at), &self.current) {
            timer.next(now);
            self.actions.push_back(Action::Send(encode(&Control::Confirm { id: current.id })));
        }
    }

    /// Our handshake is done: the keys are used at once.
    fn began(&mut self, now: Instant, keys: Keys, index: Index, cipher: Cipher) {
        let epoch = self.install(now, keys, index, cipher, true);
        let former = [self.next.take().map(|n| n.epoch), self.current.take()];
        former.into_iter().flatten().for_each(|old| self.retire(old));
        let id = epoch.id;
        self.use_now(now, epoch);
        self.confirming = Some(Timer::start(now));
        self.actions.push_back(Action::Send(encode(&Control::Confirm { id })));
    }

    /// The peer's handshake is answered: the keys are used when the peer was seen using them, or if there are no others.
    fn joined(&mut self, now: Instant, keys: Keys, index: Index, cipher: Cipher, again: Option<(Vec<u8>, Vec<u8>)>) {
        let epoch = self.install(now, keys, index, cipher, false);
        self.rekeying = None;
        if let Some(old) = self.next.take() {
            self.retire(old.epoch);
        }
        if self.current.is_some() {
            self.next = Some(Next { epoch, again });
        } else {
            self.use_now(now, epoch);
        }
    }

    fn install(&mut self, now: Instant, keys: Keys, index: Index, cipher: Cipher, initiator: bool) -> Epoch {
        let library = self.config.aes.unwrap_or_default();
        let opener = Opener::new(cipher, library, &keys.receive);
        self.actions.push_back(Action::Install { index: index.number, opener });
        (self.made, self.again, self.retry) = (Some(now), None, RETRY_FIRST);
        let sealer = Arc::new(Sealer::new(cipher, library, &keys.send, keys.peer_index));
        Epoch {
            id: id_of(&keys.hash),
            hash: keys.hash,
            index,
            sealer,
            next_psk: keys.next_psk,
            made: now,
            initiator,
            confirmed: false,
            due: None,
            attempts: 0,
            answered: 0,
        }
    }

    fn use_now(&mut self, now: Instant, epoch: Epoch) {
        self.actions.push_back(Action::Use(Arc::clone(&epoch.sealer)));
        self.look = Some(epoch.look_at(now));
        (self.rekeying, self.confirming) = (None, None);
        self.current = Some(epoch);
    }

    /// The peer uses the key it began: so do we.
    fn promote(&mut self, now: Instant) {
        let Some(Next { epoch, .. }) = self.next.take() else { return };
        if let Some(old) = self.current.take() {
            self.retire(old);
        }
        let id = epoch.id;
        self.use_now(now, epoch);
        self.confirmed(now);
        self.actions.push_back(Action::Send(encode(&Control::Confirmed { id })));
    }

    /// The peer was seen using the current key: the former ones end soon.
    fn confirmed(&mut self, now: Instant) {
        let Some(current) = self.current.as_mut().filter(|c| !c.confirmed) else { return };
        current.confirmed = true;
        self.confirming = None;
        self.retired.iter_mut().for_each(|r| r.until = r.until.min(now + OVERLAP));
    }

    /// Opens frames of that key for a while yet.
    fn retire(&mut self, epoch: Epoch) {
        let until = epoch.refused_at();
        self.retired.push_back(Retired { index: epoch.index, sealer: epoch.sealer, until });
        if self.retired.len() > RETIRED
            && let Some(oldest) = self.retired.pop_front()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, retired: Retired) {
        retired.sealer.close();
        self.actions.push_back(Action::Remove { index: retired.index.number });
    }
}

/// The name of a session in messages.
fn id_of(hash: &[u8; 32]) -> Id {
    hash.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;

/// Where virtual clocks begin.
#[cfg(test)]
fn some_moment() -> Instant {
    Instant::now()
}
