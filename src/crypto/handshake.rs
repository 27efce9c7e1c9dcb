//! The handshake and the key schedule.
//!
//! `Noise_IKpsk2_25519_ChaChaPoly_SHA256` (revision 34), keys X25519 as the members' grants certify them. `|` joins bytes,
//! numbers are big-endian, `HKDF(salt, secret, info)` is RFC 5869 with SHA-256 and 32 bytes of output:
//!
//! ```text
//! transcript  first:  SHA-256("byway offer" | u32 length of offer | offer | accept)   the two messages as they were sent
//!             rekey:  the Noise handshake hash of the session that is rekeyed
//! psk         first:  HKDF(subnet (16) | initiator (32) | responder (32), ML-KEM-768 secret, "byway psk" | transcript);
//!                     the secret is empty where one end does no ML-KEM, which the transcript says
//!             rekey:  the former session's next psk
//! prologue    "byway session" | version u8 | cipher u8 | subnet | initiator | responder | transcript (32) | attempt u32
//!             attempt is 0 in the first handshake, from 1 in rekeys of one session
//! payloads    message 1 and message 2: the sender's receiver index, u32
//! hash, k1, k2        handshake hash and raw split of Noise after message 2
//! data key    HKDF(hash, k1, "byway data" | cipher u8 | 1)    initiator to responder
//!             HKDF(hash, k2, "byway data" | cipher u8 | 2)    responder to initiator
//! next psk    HKDF(hash, psk, "byway next psk")
//! ```
//!
//! Initiator and responder are those of this handshake. Noise's own keys never touch a frame. A public value of small
//! order is refused (RFC 7748, section 6.1). `snow` is given its ephemeral key by the caller; ML-KEM draws from aws-lc's
//! generator, for its interface takes no other. Our copies of secrets are wiped; of what snow holds, the private keys are.

mod kem;
mod resolver;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use sha2::{Digest as _, Sha256};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

pub use kem::{KEM_CIPHERTEXT, KEM_KEY};
pub(crate) use kem::{Kem, encapsulate};
use resolver::Resolver;

use super::frame::{Cipher, KEY};
use crate::model::id::{PeerId, SubnetId};

/// Version of messages, key schedule and frames.
pub const VERSION: u8 = 1;
/// Bytes of Noise message 1: ephemeral, sealed static, sealed index.
pub const MESSAGE_1: usize = 32 + 48 + 20;
/// Bytes of Noise message 2: ephemeral, sealed index.
pub const MESSAGE_2: usize = 32 + 20;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_SHA256";

/// A secret of 32 bytes, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; KEY]>;

/// The handshake was refused; why is told to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handshake was refused")]
pub struct Refused;

fn hkdf(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> Result<Secret, Refused> {
    let mut out = Secret::default();
    let prk = Salt::new(HKDF_SHA256, salt).extract(secret);
    prk.expand(info, HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .map_err(|_| Refused)?;
    Ok(out)
}

/// The hash of the two messages that go before the first handshake.
pub(crate) fn transcript(offer: &[u8], accept: &[u8]) -> [u8; 32] {
    let length = u32::try_from(offer.len()).unwrap_or(u32::MAX).to_be_bytes();
    let hash = Sha256::new()
        .chain_update(b"byway offer")
        .chain_update(length);
    hash.chain_update(offer)
        .chain_update(accept)
        .finalize()
        .into()
}

/// What both ends must agree on before a handshake; any difference makes it fail.
pub(crate) struct Terms {
    pub(crate) subnet: SubnetId,
    pub(crate) initiator: PeerId,
    pub(crate) responder: PeerId,
    pub(crate) cipher: Cipher,
    /// Whether an ML-KEM secret is in the psk, of this handshake or of the one that began the chain of rekeys.
    pub(crate) hybrid: bool,
    pub(crate) transcript: [u8; 32],
    /// The number of the attempt: 0 in the first handshake, from 1 in rekeys of one session.
    pub(crate) attempt: u32,
}

impl Terms {
    fn prologue(&self) -> Vec<u8> {
        [
            b"byway session".as_slice(),
            &[VERSION, self.cipher.number()],
            &self.subnet.0,
            &self.initiator.0,
            &self.responder.0,
            &self.transcript,
            &self.attempt.to_be_bytes(),
        ]
        .concat()
    }

    /// The psk of the first handshake; `kem` is there where both ends did ML-KEM.
    pub(crate) fn psk(&self, kem: Option<&Secret>) -> Result<Secret, Refused> {
        let salt = [
            self.subnet.0.as_slice(),
            &self.initiator.0,
            &self.responder.0,
        ]
        .concat();
        let secret = kem.map(|kem| kem.as_slice()).unwrap_or_default();
        hkdf(&salt, secret, &[b"byway psk", &self.transcript])
    }
}

/// The keys of a session, as one end sees them.
pub(crate) struct Keys {
    /// The handshake hash, which names the session. It is no secret.
    pub(crate) hash: [u8; 32],
    pub(crate) send: Secret,
    pub(crate) receive: Secret,
    pub(crate) next_psk: Secret,
    /// Whether an ML-KEM secret went into the keys; see [`Terms::hybrid`].
    pub(crate) hybrid: bool,
    /// The index the peer wants in what we send.
    pub(crate) peer_index: u32,
}

impl Keys {
    fn derive(noise: &mut Noise, initiator: bool, peer_index: u32) -> Result<Keys, Refused> {
        let hash: [u8; 32] = noise
            .state
            .get_handshake_hash()
            .try_into()
            .map_err(|_| Refused)?;
        let (k1, k2) = noise.state.dangerously_get_raw_split();
        let (k1, k2) = (Zeroizing::new(k1), Zeroizing::new(k2));
        let cipher = noise.cipher.number();
        let forth = hkdf(&hash, k1.as_slice(), &[b"byway data", &[cipher, 1]])?;
        let back = hkdf(&hash, k2.as_slice(), &[b"byway data", &[cipher, 2]])?;
        let next_psk = hkdf(&hash, noise.psk.as_slice(), &[b"byway next psk"])?;
        let (send, receive) = if initiator {
            (forth, back)
        } else {
            (back, forth)
        };
        Ok(Keys {
            hash,
            send,
            receive,
            next_psk,
            hybrid: noise.hybrid,
            peer_index,
        })
    }
}

/// Our end's part in a handshake.
pub(crate) struct Own<'a> {
    /// Our X25519 private key; our grants certify its public half.
    pub(crate) secret: &'a Secret,
    /// The peer's X25519 public key.
    pub(crate) peer_key: &'a [u8; 32],
    /// The receiver index for what the peer will send us.
    pub(crate) index: u32,
    /// Private ephemeral key: 32 bytes of entropy, used for this handshake only.
    pub(crate) ephemeral: Secret,
}

/// A handshake under way, and what the key schedule needs of it.
struct Noise {
    state: HandshakeState,
    psk: Secret,
    cipher: Cipher,
    hybrid: bool,
}

impl Noise {
    fn new(own: Own<'_>, terms: &Terms, psk: Secret, initiator: bool) -> Result<Noise, Refused> {
        let prologue = terms.prologue();
        let build = || {
            let resolver = Box::new(Resolver(own.ephemeral));
            let builder = Builder::with_resolver(PATTERN.parse()?, resolver)
                .prologue(&prologue)?
                .psk(2, &psk)?
                .local_private_key(own.secret.as_slice())?;
            if initiator {
                builder.remote_public_key(own.peer_key)?.build_initiator()
            } else {
                builder.build_responder()
            }
        };
        let state = build().map_err(|_: snow::Error| Refused)?;
        Ok(Noise {
            state,
            psk,
            cipher: terms.cipher,
            hybrid: terms.hybrid,
        })
    }

    fn write(&mut self, index: u32, length: usize) -> Result<Vec<u8>, Refused> {
        let mut message = vec![0; length];
        let written = self
            .state
            .write_message(&index.to_be_bytes(), &mut message)
            .map_err(|_| Refused)?;
        (written == length).then_some(message).ok_or(Refused)
    }

    fn read(&mut self, message: &[u8], length: usize) -> Result<u32, Refused> {
        let mut payload = [0; 4];
        if message.len() != length {
            return Err(Refused);
        }
        self.state
            .read_message(message, &mut payload)
            .map_err(|_| Refused)?;
        Ok(u32::from_be_bytes(payload))
    }
}

/// The initiator between its message and the answer.
pub(crate) struct Begun(Box<Noise>);

impl Begun {
    /// Begins: what to keep, and message 1.
    pub(crate) fn new(
        own: Own<'_>,
        terms: &Terms,
        psk: Secret,
    ) -> Result<(Begun, Vec<u8>), Refused> {
        let index = own.index;
        let mut noise = Noise::new(own, terms, psk, true)?;
        let message = noise.write(index, MESSAGE_1)?;
        Ok((Begun(Box::new(noise)), message))
    }

    /// Reads message 2. After a refusal the true answer is still understood.
    pub(crate) fn finish(&mut self, message: &[u8]) -> Result<Keys, Refused> {
        let peer_index = self.0.read(message, MESSAGE_2)?;
        Keys::derive(&mut self.0, true, peer_index)
    }
}

/// The responder's whole part: reads message 1, writes message 2.
pub(crate) fn respond(
    own: Own<'_>,
    terms: &Terms,
    psk: Secret,
    message: &[u8],
) -> Result<(Keys, Vec<u8>), Refused> {
    let (index, peer_key) = (own.index, *own.peer_key);
    let mut noise = Noise::new(own, terms, psk, false)?;
    let peer_index = noise.read(message, MESSAGE_1)?;
    // IK proves who began; that it is who the grant names is for us to say.
    if noise.state.get_remote_static() != Some(peer_key.as_slice()) {
        return Err(Refused);
    }
    let answer = noise.write(index, MESSAGE_2)?;
    Ok((Keys::derive(&mut noise, false, peer_index)?, answer))
}

#[cfg(test)]
mod tests;
