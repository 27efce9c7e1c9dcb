//! The key schedule against a second writing of Noise, and what is refused.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use snow::types::Dh as _;
use x25519_dalek::{PublicKey, StaticSecret};

use super::resolver::X25519;
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
        let shared =
            StaticSecret::from([private; 32]).diffie_hellman(&PublicKey::from(public(public_of)));
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
