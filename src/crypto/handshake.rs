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

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use sha2::{Digest as _, Sha256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher as NoiseCipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::frame::{Cipher, KEY};
use crate::model::id::{PeerId, SubnetId};

/// Version of messages, key schedule and frames.
pub const VERSION: u8 = 1;
/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203).
pub const KEM_KEY: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext.
pub const KEM_CIPHERTEXT: usize = 1088;
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

/// `HKDF(salt, secret, info)`.
fn hkdf(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> Result<Secret, Refused> {
    let mut out = Secret::default();
    let prk = Salt::new(HKDF_SHA256, salt).extract(secret);
    prk.expand(info, HKDF_SHA256)
        .and_then(|okm| okm.fill(out.as_mut_slice()))
        .map_err(|_| Refused)?;
    Ok(out)
}

/// Hash of the two messages ahead of the first handshake.
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

/// The initiator's half of ML-KEM-768.
pub(crate) struct Kem(DecapsulationKey);

impl Kem {
    /// A new key and the encapsulation key to send.
    pub(crate) fn new() -> Result<(Kem, Vec<u8>), Refused> {
        let key = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| Refused)?;
        let public = key
            .encapsulation_key()
            .and_then(|k| k.key_bytes())
            .map_err(|_| Refused)?;
        Ok((Kem(key), public.as_ref().to_vec()))
    }

    /// The secret in a ciphertext. One that was changed gives another secret, not an error (FIPS 203, section 6.3).
    pub(crate) fn open(&self, ciphertext: &[u8]) -> Result<Secret, Refused> {
        if ciphertext.len() != KEM_CIPHERTEXT {
            return Err(Refused);
        }
        let secret = self
            .0
            .decapsulate(Ciphertext::from(ciphertext))
            .map_err(|_| Refused)?;
        secret_of(secret.as_ref())
    }
}

/// The responder's half: a ciphertext for `key`, and the secret in it.
pub(crate) fn encapsulate(key: &[u8]) -> Result<(Vec<u8>, Secret), Refused> {
    let key = EncapsulationKey::new(&ML_KEM_768, key).map_err(|_| Refused)?;
    let (ciphertext, secret) = key.encapsulate().map_err(|_| Refused)?;
    Ok((ciphertext.as_ref().to_vec(), secret_of(secret.as_ref())?))
}

fn secret_of(bytes: &[u8]) -> Result<Secret, Refused> {
    let mut secret = Secret::default();
    let whole = bytes.len() == KEY;
    secret
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    whole.then_some(secret).ok_or(Refused)
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
    /// 0 in the first handshake.
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
    /// Names the session; no secret.
    pub(crate) hash: [u8; 32],
    pub(crate) send: Secret,
    pub(crate) receive: Secret,
    pub(crate) next_psk: Secret,
    /// See [`Terms::hybrid`].
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
    /// X25519 private key.
    pub(crate) secret: &'a Secret,
    /// The peer's X25519 public key.
    pub(crate) peer_key: &'a [u8; 32],
    /// The receiver index for what the peer will send us.
    pub(crate) index: u32,
    /// Private ephemeral key: 32 bytes of entropy, used for this handshake only.
    pub(crate) ephemeral: Secret,
}

/// A running handshake.
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

/// snow's own ciphers and hashes; X25519 that wipes its keys; the ephemeral key it was given.
struct Resolver(Secret);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Given(Some(self.0.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn NoiseCipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives its 32 bytes once.
struct Given(Option<Secret>);

impl Random for Given {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let given = self
            .0
            .take()
            .filter(|g| g.len() == dest.len())
            .ok_or(snow::Error::Rng)?;
        dest.iter_mut()
            .zip(given.iter())
            .for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    private: Secret,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private
            .iter_mut()
            .zip(private)
            .for_each(|(to, from)| *to = *from);
        self.public = PublicKey::from(&StaticSecret::from(*self.private)).to_bytes();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = Secret::default();
        rng.try_fill_bytes(private.as_mut_slice())?;
        self.set(private.as_slice());
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.private.as_slice()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        // snow hands over its whole buffer for keys of any curve; ours is at its front.
        let public = *public.first_chunk::<32>().ok_or(snow::Error::Dh)?;
        let shared = StaticSecret::from(*self.private).diffie_hellman(&PublicKey::from(public));
        let out = out
            .first_chunk_mut::<32>()
            .filter(|_| shared.was_contributory())
            .ok_or(snow::Error::Dh)?;
        *out = shared.to_bytes();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    use super::*;

    fn sha256(parts: &[&[u8]]) -> [u8; 32] {
        Sha256::digest(parts.concat()).into()
    }

    /// RFC 2104, by hand.
    fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut block = [0; 64];
        block[..key.len().min(64)].copy_from_slice(&key[..key.len().min(64)]);
        if key.len() > 64 {
            block = [0; 64];
            block[..32].copy_from_slice(&sha256(&[key]));
        }
        let inner = sha256(&[&block.map(|b| b ^ 0x36), &parts.concat()]);
        sha256(&[&block.map(|b| b ^ 0x5c), &inner])
    }

    /// RFC 5869 for one block of output, by hand.
    fn hkdf_by_hand(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; 32] {
        hmac(&hmac(salt, &[secret]), &[info, &[1]])
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn secret(byte: u8) -> Secret {
        Zeroizing::new([byte; 32])
    }

    fn public(byte: u8) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from([byte; 32])).to_bytes()
    }

    fn terms() -> Terms {
        Terms {
            subnet: SubnetId([0x11; 16]),
            initiator: PeerId([0x22; 32]),
            responder: PeerId([0x33; 32]),
            cipher: Cipher::Aes256Gcm,
            hybrid: true,
            transcript: transcript(b"the offer", b"the accept"),
            attempt: 0,
        }
    }

    /// Statics 1 and 2, ephemerals 3 and 4, indices 0x10 and 0x20.
    fn initiate(terms: &Terms, psk: Secret) -> (Begun, Vec<u8>) {
        let own = Own {
            secret: &secret(1),
            peer_key: &public(2),
            index: 0x10,
            ephemeral: secret(3),
        };
        Begun::new(own, terms, psk).unwrap()
    }

    fn answer(terms: &Terms, psk: Secret, message: &[u8]) -> Result<(Keys, Vec<u8>), Refused> {
        let own = Own {
            secret: &secret(2),
            peer_key: &public(1),
            index: 0x20,
            ephemeral: secret(4),
        };
        respond(own, terms, psk, message)
    }

    /// Noise IKpsk2 (revision 34) written a second time, for statics 1 and 2 and ephemerals 3 and 4.
    struct ByHand {
        h: [u8; 32],
        ck: [u8; 32],
        k: [u8; 32],
    }

    impl ByHand {
        fn mix_hash(&mut self, data: &[u8]) {
            self.h = sha256(&[&self.h, data]);
        }

        fn expand(&self, data: &[u8]) -> [[u8; 32]; 3] {
            let temp = hmac(&self.ck, &[data]);
            let one = hmac(&temp, &[&[1]]);
            let two = hmac(&temp, &[&one, &[2]]);
            [one, two, hmac(&temp, &[&two, &[3]])]
        }

        fn mix_key(&mut self, data: &[u8]) {
            [self.ck, self.k, _] = self.expand(data);
        }

        fn dh(&mut self, private: u8, public_of: u8) {
            let shared = StaticSecret::from([private; 32])
                .diffie_hellman(&PublicKey::from(public(public_of)));
            self.mix_key(shared.as_bytes());
        }

        fn psk(&mut self, psk: &[u8]) {
            let [ck, hash, k] = self.expand(psk);
            (self.ck, self.k) = (ck, k);
            self.mix_hash(&hash);
        }

        /// Every key seals once, so the nonce is always zero.
        fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
            let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &self.k).unwrap());
            let mut text = plain.to_vec();
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            key.seal_in_place_append_tag(nonce, Aad::from(self.h), &mut text)
                .unwrap();
            self.mix_hash(&text);
            text
        }

        fn ephemeral(&mut self, private: u8) -> Vec<u8> {
            self.mix_hash(&public(private));
            self.mix_key(&public(private));
            public(private).to_vec()
        }

        /// Message 1, message 2, hash, k1, k2.
        fn run(prologue: &[u8], psk: &[u8]) -> ([Vec<u8>; 2], [[u8; 32]; 3]) {
            let name = sha256(&[PATTERN.as_bytes()]);
            let mut state = ByHand {
                h: name,
                ck: name,
                k: [0; 32],
            };
            state.mix_hash(prologue);
            state.mix_hash(&public(2));
            let mut first = state.ephemeral(3);
            state.dh(3, 2); // es
            first.extend(state.seal(&public(1)));
            state.dh(1, 2); // ss
            first.extend(state.seal(&0x10u32.to_be_bytes()));
            let mut second = state.ephemeral(4);
            state.dh(4, 3); // ee
            state.dh(4, 1); // se
            state.psk(psk);
            second.extend(state.seal(&0x20u32.to_be_bytes()));
            let [k1, k2, _] = state.expand(b"");
            ([first, second], [state.h, k1, k2])
        }
    }

    #[test]
    fn the_key_schedule_is_what_its_description_says() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let terms = Terms { cipher, ..terms() };
            let seen = sha256(&[b"byway offer", &[0, 0, 0, 9], b"the offer", b"the accept"]);
            assert_eq!(terms.transcript, seen);
            let salt = [[0x11; 16].as_slice(), &[0x22; 32], &[0x33; 32]].concat();
            let psk = hkdf_by_hand(&salt, &[9; 32], &[b"byway psk".as_slice(), &seen].concat());
            assert_eq!(*terms.psk(Some(&secret(9))).unwrap(), psk);

            let number = cipher.number();
            let prologue = [
                b"byway session".as_slice(),
                &[1, number],
                &[0x11; 16],
                &[0x22; 32],
                &[0x33; 32],
                &seen,
                &[0; 4],
            ]
            .concat();
            let ([first, second], [hash, k1, k2]) = ByHand::run(&prologue, &psk);
            let (mut begun, message) = initiate(&terms, Zeroizing::new(psk));
            assert_eq!(message, first);
            let (theirs, reply) = answer(&terms, Zeroizing::new(psk), &message).unwrap();
            assert_eq!(reply, second);
            let ours = begun.finish(&reply).unwrap();

            let forth = hkdf_by_hand(
                &hash,
                &k1,
                &[b"byway data".as_slice(), &[number, 1]].concat(),
            );
            let back = hkdf_by_hand(
                &hash,
                &k2,
                &[b"byway data".as_slice(), &[number, 2]].concat(),
            );
            let next = hkdf_by_hand(&hash, &psk, b"byway next psk");
            assert_eq!(
                (
                    ours.hash,
                    *ours.send,
                    *ours.receive,
                    *ours.next_psk,
                    ours.peer_index
                ),
                (hash, forth, back, next, 0x20)
            );
            assert_eq!(
                (theirs.hash, *theirs.send, *theirs.receive),
                (hash, back, forth)
            );
            assert_eq!((*theirs.next_psk, theirs.peer_index), (next, 0x10));
        }
    }

    /// Computed by another program, in Python, from the description above: X25519, ChaCha20-Poly1305 and Noise of its own.
    #[test]
    fn the_key_schedule_has_these_answers() {
        let terms = terms();
        let psk = terms.psk(Some(&secret(9))).unwrap();
        assert_eq!(
            hex(psk.as_slice()),
            "04a31c0bf043818aa8b6d8f4708e382f2aaa755a1a504da9b4800dca29a6ec06"
        );
        let (mut begun, message) = initiate(&terms, psk.clone());
        assert_eq!(
            hex(&message),
            concat!(
                "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22",
                "6573deb220f700f6d4b76a72b83dfa72b4eed7f9eb8ff1313611b4d7ec8c9ebf",
                "99046c7fd0da42e4f1d9f989346546f532663799ed8cba6cbd68db38e232934e",
                "6086dd05"
            )
        );
        let (_, reply) = answer(&terms, psk, &message).unwrap();
        assert_eq!(
            hex(&reply),
            concat!(
                "ac01b2209e86354fb853237b5de0f4fab13c7fcbf433a61c019369617fecf10b",
                "cd952b0800c2cd6c078334e3313c945f95fcc014"
            )
        );
        let keys = begun.finish(&reply).unwrap();
        assert_eq!(
            hex(&keys.hash),
            "365937dbc14deb709f78ae9fcd72e37d6afc5bab8e1ad4f06a2cb855b36a9801"
        );
        assert_eq!(
            hex(keys.send.as_slice()),
            "d54335107daf90f26566099147dc36564fb1a6c0aebc77d361f0f740750e55ac"
        );
        assert_eq!(
            hex(keys.receive.as_slice()),
            "ee38197eaa3b9e4049112bc9a1e08954ad38f8ddd52d72ed3b46c9816f92e7fb"
        );
        assert_eq!(
            hex(keys.next_psk.as_slice()),
            "f9a50f3db380317177991f0311b307467380612d1c8ebf3b4b334c335ce7f7bf"
        );
    }

    /// RFC 5869, appendix A.1, cut to 32 bytes.
    #[test]
    fn hkdf_is_that_of_the_rfc() {
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let salt: Vec<u8> = (0x00..=0x0c).collect();
        let okm = hkdf(&salt, &[0x0b; 22], &[&info]).unwrap();
        assert_eq!(
            hex(okm.as_slice()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
        assert_eq!(*okm, hkdf_by_hand(&salt, &[0x0b; 22], &info));
    }

    #[test]
    fn both_halves_of_the_kem_agree() {
        let (kem, key) = Kem::new().unwrap();
        assert_eq!(key.len(), KEM_KEY);
        let (ciphertext, secret) = encapsulate(&key).unwrap();
        assert_eq!(ciphertext.len(), KEM_CIPHERTEXT);
        assert_eq!(*kem.open(&ciphertext).unwrap(), *secret);
        let mut bad = ciphertext.clone();
        bad[7] ^= 1;
        assert_ne!(*kem.open(&bad).unwrap(), *secret);
        assert!(kem.open(&ciphertext[1..]).is_err());
        assert!(encapsulate(&key[1..]).is_err());
        assert!(
            encapsulate(&[0xff; KEM_KEY]).is_err(),
            "coefficients beyond the modulus"
        );
    }

    #[test]
    fn any_difference_in_the_terms_is_refused() {
        let (_, message) = initiate(&terms(), secret(5));
        assert!(answer(&terms(), secret(5), &message).is_ok());
        let others = [
            Terms {
                subnet: SubnetId([0x12; 16]),
                ..terms()
            },
            Terms {
                initiator: PeerId([0x23; 32]),
                ..terms()
            },
            Terms {
                responder: PeerId([0x34; 32]),
                ..terms()
            },
            Terms {
                initiator: PeerId([0x33; 32]),
                responder: PeerId([0x22; 32]),
                ..terms()
            },
            Terms {
                cipher: Cipher::ChaCha20Poly1305,
                ..terms()
            },
            Terms {
                transcript: transcript(b"the offer", b"the accepT"),
                ..terms()
            },
            Terms {
                transcript: transcript(b"the offert", b"he accept"),
                ..terms()
            },
            Terms {
                attempt: 1,
                ..terms()
            },
        ];
        for other in others {
            assert!(answer(&other, secret(5), &message).is_err());
        }
    }

    #[test]
    fn another_psk_is_refused_by_the_initiator() {
        let (mut begun, message) = initiate(&terms(), secret(5));
        let (_, reply) = answer(&terms(), secret(6), &message).unwrap();
        assert!(begun.finish(&reply).is_err());
    }

    #[test]
    fn a_wrong_static_key_is_refused() {
        let stranger = Own {
            secret: &secret(7),
            peer_key: &public(2),
            index: 0x10,
            ephemeral: secret(3),
        };
        let (_, message) = Begun::new(stranger, &terms(), secret(5)).unwrap();
        assert!(
            answer(&terms(), secret(5), &message).is_err(),
            "not the initiator the grant names"
        );
        let misled = Own {
            secret: &secret(1),
            peer_key: &public(7),
            index: 0x10,
            ephemeral: secret(3),
        };
        let (_, message) = Begun::new(misled, &terms(), secret(5)).unwrap();
        assert!(
            answer(&terms(), secret(5), &message).is_err(),
            "meant for another responder"
        );
    }

    #[test]
    fn a_changed_message_is_refused_and_the_true_one_still_read() {
        let (mut begun, message) = initiate(&terms(), secret(5));
        for at in 0..message.len() {
            let mut bad = message.clone();
            bad[at] ^= 0x40;
            assert!(answer(&terms(), secret(5), &bad).is_err(), "byte {at}");
        }
        let (theirs, reply) = answer(&terms(), secret(5), &message).unwrap();
        for at in 0..reply.len() {
            let mut bad = reply.clone();
            bad[at] ^= 0x40;
            assert!(begun.finish(&bad).is_err(), "byte {at}");
        }
        assert!(begun.finish(&reply[1..]).is_err());
        assert_eq!(begun.finish(&reply).unwrap().hash, theirs.hash);
    }

    #[test]
    fn a_public_value_of_small_order_is_refused() {
        let mut message = initiate(&terms(), secret(5)).1;
        message[..32].fill(0);
        assert!(answer(&terms(), secret(5), &message).is_err());
        let mut x = X25519::default();
        x.set(&[1; 32]);
        assert!(x.dh(&[0; 56], &mut [0; 56]).is_err());
        assert!(x.dh(&public(2), &mut [0; 56]).is_ok());
    }
}
