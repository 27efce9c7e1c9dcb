//! The ciphers that seal frames, each by a library that computes it.
//!
//! Two libraries compute AES-256-GCM, and which is faster depends on the processor: aws-lc needs AVX-512 for its widest
//! code, ring has code for VAES without it (AMD Zen 3, clients of Intel since the twelfth generation) that is twice as fast
//! there. The frames are the same. `link::sealing` measures; this room only does what it is told.

use std::fmt;

use aws_lc_rs::aead as aws;
use ring::aead as other;

/// Bytes of the tag behind the ciphertext.
pub const TAG: usize = 16;
/// Bytes of a key.
pub const KEY: usize = 32;

/// The cipher of a session's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM (NIST SP 800-38D): where both ends have AES instructions.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): everywhere else.
    ChaCha20Poly1305,
}

impl Cipher {
    /// The cipher's number in messages and key labels: 1 or 2.
    pub fn number(self) -> u8 {
        match self {
            Cipher::Aes256Gcm => 1,
            Cipher::ChaCha20Poly1305 => 2,
        }
    }

    /// The cipher of that number.
    pub fn from_number(number: u8) -> Option<Cipher> {
        match number {
            1 => Some(Cipher::Aes256Gcm),
            2 => Some(Cipher::ChaCha20Poly1305),
            _ => None,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cipher::Aes256Gcm => "aes-256-gcm",
            Cipher::ChaCha20Poly1305 => "chacha20-poly1305",
        })
    }
}

/// The library that computes AES-256-GCM. ChaCha20-Poly1305 is always aws-lc's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Library {
    /// AWS-LC. It wipes the memory of an expanded key when that is freed.
    #[default]
    AwsLc,
    /// ring. It does not wipe that memory.
    Ring,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Library::AwsLc => "aws-lc",
            Library::Ring => "ring",
        })
    }
}

/// An expanded key of one cipher, in the form of one library.
pub struct Key(Inner);

enum Inner {
    Aws(aws::LessSafeKey),
    // Boxed, because it is twenty times as large.
    Ring(Box<other::LessSafeKey>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Key {
    /// Expands a key. `None` only for one of the wrong length, which the type rules out.
    pub fn new(cipher: Cipher, library: Library, key: &[u8; KEY]) -> Option<Key> {
        let aws = |algorithm| {
            aws::UnboundKey::new(algorithm, key)
                .ok()
                .map(|key| Inner::Aws(aws::LessSafeKey::new(key)))
        };
        let inner = match (cipher, library) {
            (Cipher::ChaCha20Poly1305, _) => aws(&aws::CHACHA20_POLY1305),
            (Cipher::Aes256Gcm, Library::AwsLc) => aws(&aws::AES_256_GCM),
            (Cipher::Aes256Gcm, Library::Ring) => {
                let key = other::UnboundKey::new(&other::AES_256_GCM, key).ok()?;
                Some(Inner::Ring(Box::new(other::LessSafeKey::new(key))))
            }
        };
        inner.map(Key)
    }

    /// Seals `body` followed by `tail` into `out`, which is exactly [`TAG`] longer than both. The nonce must never have been
    /// used with this key. `None`, and nothing sealed, where the lengths do not fit.
    pub fn seal(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        body: &[u8],
        tail: &[u8],
        out: &mut [u8],
    ) -> Option<()> {
        let length = body.len().checked_add(tail.len())?;
        if out.len() != length.checked_add(TAG)? {
            return None;
        }
        let (sealed, end) = out.split_at_mut_checked(body.len())?;
        match &self.0 {
            Inner::Aws(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.seal_out_of_place_scatter(nonce, aws::Aad::from(aad), body, sealed, tail, end)
                    .ok()
            }
            Inner::Ring(key) => {
                sealed.copy_from_slice(body);
                end.get_mut(..tail.len())?.copy_from_slice(tail);
                let (text, tag) = out.split_at_mut_checked(length)?;
                let nonce = other::Nonce::assume_unique_for_key(nonce);
                let made = key
                    .seal_in_place_separate_tag(nonce, other::Aad::from(aad), text)
                    .ok()?;
                tag.copy_from_slice(made.as_ref());
                Some(())
            }
        }
    }

    /// Opens `ciphertext` into `out`, which is as long. `None` when it is forged or changed (`out` may have been overwritten)
    /// or the lengths do not fit.
    pub fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> Option<()> {
        if out.len() != ciphertext.len() {
            return None;
        }
        match &self.0 {
            Inner::Aws(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.open_separate_gather(nonce, aws::Aad::from(aad), ciphertext, tag, out)
                    .ok()
            }
            Inner::Ring(key) => {
                out.copy_from_slice(ciphertext);
                let nonce = other::Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(
                    nonce,
                    other::Aad::from(aad),
                    (*tag).into(),
                    out,
                    0..,
                )
                .ok()
                .map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every suite there is.
    const SUITES: [(Cipher, Library); 3] = [
        (Cipher::Aes256Gcm, Library::AwsLc),
        (Cipher::Aes256Gcm, Library::Ring),
        (Cipher::ChaCha20Poly1305, Library::AwsLc),
    ];

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|d| u8::try_from(d).unwrap())
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    fn seals(
        suite: (Cipher, Library),
        key: &str,
        nonce: &str,
        aad: &str,
        plain: &str,
        sealed: &str,
    ) {
        let key = Key::new(suite.0, suite.1, &hex(key).try_into().unwrap()).unwrap();
        let (nonce, aad, plain, sealed) = (
            hex(nonce).try_into().unwrap(),
            hex(aad),
            hex(plain),
            hex(sealed),
        );
        for cut in [0, plain.len() / 2, plain.len()] {
            let mut out = vec![0; plain.len() + TAG];
            key.seal(nonce, &aad, &plain[..cut], &plain[cut..], &mut out)
                .unwrap();
            assert_eq!(out, sealed, "{suite:?}");
        }
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG>().unwrap();
        let mut opened = vec![0; plain.len()];
        key.open(nonce, &aad, ciphertext, tag, &mut opened).unwrap();
        assert_eq!(opened, plain, "{suite:?}");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (ciphertext, tag) = bad.split_last_chunk::<TAG>().unwrap();
            assert!(
                key.open(nonce, &aad, ciphertext, tag, &mut opened)
                    .is_none(),
                "{suite:?}: bit {bit}"
            );
        }
    }

    #[test]
    fn every_library_knows_the_answers_of_the_standards() {
        for library in [Library::AwsLc, Library::Ring] {
            // Test case 16 of "The Galois/Counter Mode of Operation" (McGrew, Viega), the base of SP 800-38D.
            seals(
                (Cipher::Aes256Gcm, library),
                "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
                "cafebabefacedbaddecaf888",
                "feedfacedeadbeeffeedfacedeadbeefabaddad2",
                "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
                "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
            );
        }
        // RFC 8439, section 2.8.2.
        seals(
            (Cipher::ChaCha20Poly1305, Library::AwsLc),
            "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
            "070000004041424344454647",
            "50515253c0c1c2c3c4c5c6c7",
            "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a204966204920636f756c64206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73637265656e20776f756c642062652069742e",
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116\
             1ae10b594f09e26a7e902ecbd0600691",
        );
    }

    #[test]
    fn what_one_library_seals_the_other_opens() {
        let [one, two] = [Library::AwsLc, Library::Ring]
            .map(|l| Key::new(Cipher::Aes256Gcm, l, &[7; KEY]).unwrap());
        for length in [
            0usize, 1, 15, 16, 17, 63, 64, 127, 128, 255, 256, 1372, 9000,
        ] {
            let plain: Vec<u8> = (0..length)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            for (sealer, opener) in [(&one, &two), (&two, &one)] {
                let mut out = vec![0; length + TAG];
                sealer
                    .seal([3; 12], b"header of a frame", &plain, b"", &mut out)
                    .unwrap();
                let (ciphertext, tag) = out.split_last_chunk::<TAG>().unwrap();
                let mut opened = vec![0; length];
                opener
                    .open([3; 12], b"header of a frame", ciphertext, tag, &mut opened)
                    .unwrap();
                assert_eq!(opened, plain);
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for (cipher, library) in SUITES {
            let key = Key::new(cipher, library, &[7; KEY]).unwrap();
            for length in [0, TAG, TAG + 7, TAG + 9] {
                assert!(
                    key.seal([0; 12], b"", b"body", b"tail", &mut vec![0; length])
                        .is_none(),
                    "{cipher} {length}"
                );
            }
            assert!(
                key.seal([0; 12], b"", b"body", b"tail", &mut [0; TAG + 8])
                    .is_some()
            );
            assert!(
                key.open([0; 12], b"", b"body", &[0; TAG], &mut [0; 5])
                    .is_none()
            );
        }
    }
}
