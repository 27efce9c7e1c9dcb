//! Sealed frames: the clear header, the ciphers, and nonces that cannot be used twice.
//!
//! ```text
//! 0        4                8                 16
//! | 4 0 0 0 | receiver u32 BE | counter u64 BE | ciphertext of body | ciphertext of tail | tag (16) |
//! ```
//!
//! The 16 bytes of the header are the additional data (AAD) of the AEAD. Its nonce is four zero bytes, then the counter as
//! in the header (RFC 5116, section 3.2, with a fixed part of zero: each direction of each session has a key of its own).

use sha2::{Digest as _, Sha256};

use super::aead::Key;
pub use super::aead::{Cipher, KEY, Library, TAG};
use super::counter::Counter;
pub use super::counter::LIMIT;

/// Bytes of the clear header.
pub const HEADER: usize = 16;
/// First byte of a sealed frame. 0x04 to 0x3f are ours, 0x40 and above is QUIC's, below is left to STUN (RFC 7983).
pub const SEALED: u8 = 0x04;

/// The clear header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The receiver's name for the session and key; it chose it at random.
    pub receiver: u32,
    /// How many frames the sender sealed with the key before.
    pub counter: u64,
}

impl Header {
    /// Writes the header's 16 bytes, numbers big-endian.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let (head, counter) = bytes.split_at_mut(8);
        let (kind, receiver) = head.split_at_mut(4);
        kind.copy_from_slice(&[SEALED, 0, 0, 0]);
        receiver.copy_from_slice(&self.receiver.to_be_bytes());
        counter.copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    /// Reads the header at the front of a datagram; `None` when it is short, of another type, or a reserved byte is set.
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let (kind, rest) = bytes.split_first_chunk::<4>()?;
        let (receiver, rest) = rest.split_first_chunk()?;
        let (counter, _) = rest.split_first_chunk()?;
        (*kind == [SEALED, 0, 0, 0]).then(|| Header {
            receiver: u32::from_be_bytes(*receiver),
            counter: u64::from_be_bytes(*counter),
        })
    }
}

/// Four zero bytes, then the counter.
fn nonce(counter: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (_, low) = bytes.split_at_mut(4);
    low.copy_from_slice(&counter.to_be_bytes());
    bytes
}

/// Counters reserved by [`Sealer::take`], each given out once.
#[derive(Debug)]
pub struct Nonces {
    next: u64,
    end: u64,
    owner: u64,
}

impl Nonces {
    /// Gives out the next counter; none when all are given out.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator's adaptors would allow nothing that is needed here"
    )]
    pub fn next(&mut self) -> Option<Nonce> {
        let counter = self.next;
        (counter < self.end).then(|| {
            self.next = counter.saturating_add(1);
            Nonce {
                counter,
                owner: self.owner,
            }
        })
    }

    /// The counters that are not given out yet.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }
}

/// A counter that nobody else has. Sealing consumes it, so it seals one frame at most.
#[derive(Debug)]
pub struct Nonce {
    counter: u64,
    owner: u64,
}

impl Nonce {
    /// The counter that will stand in the header.
    pub fn counter(&self) -> u64 {
        self.counter
    }
}

/// Seals frames with one key for one receiver. Shared by all threads that send with it.
pub struct Sealer {
    key: Option<Key>,
    cipher: Cipher,
    receiver: u32,
    /// Tells this key's nonces from those of others.
    owner: u64,
    counter: Counter,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer")
            .field("cipher", &self.cipher)
            .field("receiver", &self.receiver)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// A sealer that begins at counter 0: a key is given to one sealer, once, and is never stored.
    pub fn new(cipher: Cipher, library: Library, key: &[u8; KEY], receiver: u32) -> Sealer {
        let digest = Sha256::new()
            .chain_update(b"byway nonce owner")
            .chain_update([cipher.number()])
            .chain_update(key);
        let digest = digest.finalize();
        let owner = digest
            .first_chunk()
            .map_or(0, |head| u64::from_be_bytes(*head));
        Sealer {
            key: Key::new(cipher, library, key),
            cipher,
            receiver,
            owner,
            counter: Counter::new(0),
        }
    }

    /// Reserves `count` consecutive counters with one atomic operation; `None` when [`LIMIT`] would be passed or after
    /// [`Sealer::close`]. Ones that are not used are lost, which harms nothing.
    pub fn take(&self, count: u32) -> Option<Nonces> {
        let first = self.counter.take(count)?;
        Some(Nonces {
            next: first,
            end: first.checked_add(u64::from(count))?,
            owner: self.owner,
        })
    }

    /// Counters taken so far: frames sealed, or a few more.
    pub fn used(&self) -> u64 {
        self.counter.used()
    }

    /// Gives out no counter any more, to whoever still holds this sealer.
    pub fn close(&self) {
        self.counter.close();
    }

    /// The index that stands in the headers.
    pub fn receiver(&self) -> u32 {
        self.receiver
    }

    /// The cipher that the frames are sealed with.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Writes the frame of `body` followed by `tail` into the front of `out` and returns its length: [`HEADER`], both
    /// lengths, [`TAG`]. `None`, and nothing sealed, when `out` is too small or the nonce is another key's.
    pub fn seal(&self, nonce: Nonce, body: &[u8], tail: &[u8], out: &mut [u8]) -> Option<usize> {
        let key = self.key.as_ref().filter(|_| nonce.owner == self.owner)?;
        let length = HEADER
            .checked_add(body.len())?
            .checked_add(tail.len())?
            .checked_add(TAG)?;
        let (head, rest) = out.get_mut(..length)?.split_first_chunk_mut::<HEADER>()?;
        *head = Header {
            receiver: self.receiver,
            counter: nonce.counter,
        }
        .encode();
        key.seal(self::nonce(nonce.counter), &*head, body, tail, rest)?;
        Some(length)
    }
}

/// Opens the frames of one key. Holds no state but the key.
pub struct Opener {
    key: Option<Key>,
    cipher: Cipher,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}

impl Opener {
    /// Makes an opener for what a [`Sealer`] of the same cipher and key seals.
    pub fn new(cipher: Cipher, library: Library, key: &[u8; KEY]) -> Opener {
        Opener {
            key: Key::new(cipher, library, key),
            cipher,
        }
    }

    /// Opens `sealed` (ciphertext, then tag) into the front of `out` and returns the plaintext's length, that is
    /// [`TAG`] less. `None` when it is forged or changed (the front of `out` may have been overwritten) or `out` is too
    /// small.
    pub fn open(&self, header: &[u8; HEADER], sealed: &[u8], out: &mut [u8]) -> Option<usize> {
        let key = self.key.as_ref()?;
        let counter = Header::decode(header)?.counter;
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG>()?;
        let plain = out.get_mut(..ciphertext.len())?;
        key.open(nonce(counter), header, ciphertext, tag, plain)?;
        Some(ciphertext.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use aws_lc_rs::aead::{
        AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce as AeadNonce, UnboundKey,
    };

    use super::*;

    const LIBRARY: Library = Library::AwsLc;
    const CIPHERS: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

    fn sealed(sealer: &Sealer, body: &[u8], tail: &[u8]) -> Vec<u8> {
        let nonce = sealer.take(1).unwrap().next().unwrap();
        let mut out = vec![0xee; HEADER + body.len() + tail.len() + TAG];
        assert_eq!(sealer.seal(nonce, body, tail, &mut out), Some(out.len()));
        out
    }

    fn open(opener: &Opener, frame: &[u8]) -> Option<Vec<u8>> {
        let (header, rest) = frame.split_first_chunk::<HEADER>()?;
        let mut out = vec![0; rest.len()];
        opener
            .open(header, rest, &mut out)
            .map(|length| out[..length].to_vec())
    }

    proptest! {
        #[test]
        fn headers_read_back(receiver: u32, counter: u64, more: Vec<u8>) {
            let header = Header { receiver, counter };
            prop_assert_eq!(Header::decode(&[header.encode().as_slice(), &more].concat()), Some(header));
        }

        #[test]
        fn any_bytes_are_no_header_or_encode_back(bytes: Vec<u8>) {
            if let Some(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode().to_vec(), bytes[..HEADER].to_vec());
            }
        }

        #[test]
        fn what_is_sealed_opens(key: [u8; 32], receiver: u32, body in prop::collection::vec(any::<u8>(), 0..2000),
                                tail in prop::collection::vec(any::<u8>(), 0..300)) {
            for cipher in CIPHERS {
                let sealer = Sealer::new(cipher, LIBRARY, &key, receiver);
                let frame = sealed(&sealer, &body, &tail);
                let opened = open(&Opener::new(cipher, LIBRARY, &key), &frame);
                prop_assert_eq!(opened, Some([body.clone(), tail.clone()].concat()));
            }
        }
    }

    #[test]
    fn a_header_has_this_layout() {
        let header = Header {
            receiver: 0x0102_0304,
            counter: 0x1112_1314_1516_1718,
        };
        assert_eq!(
            header.encode(),
            [
                4, 0, 0, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18
            ]
        );
        for at in 0..4 {
            let mut bytes = header.encode();
            bytes[at] ^= 1;
            assert_eq!(Header::decode(&bytes), None, "byte {at}");
        }
        assert_eq!(Header::decode(&header.encode()[..15]), None);
    }

    /// A second reading of the format: plain AEAD over the whole plaintext, in place, with header and nonce by hand.
    #[test]
    fn a_frame_is_the_plain_aead_of_body_and_tail() {
        for (cipher, algorithm) in CIPHERS.into_iter().zip([&AES_256_GCM, &CHACHA20_POLY1305]) {
            let sealer = Sealer::new(cipher, LIBRARY, &[7; 32], 0xaabb_ccdd);
            sealer.take(258).unwrap();
            let frame = sealed(&sealer, b"payload", b"and headers");
            let header = [4, 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd, 0, 0, 0, 0, 0, 0, 1, 2];
            let mut nonce = [0; 12];
            nonce[10..].copy_from_slice(&[1, 2]);
            let mut text = b"payloadand headers".to_vec();
            let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).unwrap());
            key.seal_in_place_append_tag(
                AeadNonce::assume_unique_for_key(nonce),
                Aad::from(header),
                &mut text,
            )
            .unwrap();
            assert_eq!(frame, [header.as_slice(), &text].concat());
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for cipher in CIPHERS {
            let frame = sealed(
                &Sealer::new(cipher, LIBRARY, &[1; 32], 9),
                b"some body",
                b"tail",
            );
            let opener = Opener::new(cipher, LIBRARY, &[1; 32]);
            assert!(open(&opener, &frame).is_some());
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&opener, &bad), None, "bit {bit}");
            }
            for cut in 0..frame.len() {
                assert_eq!(open(&opener, &frame[..cut]), None, "cut to {cut}");
            }
            assert!(
                open(&opener, &frame).is_some(),
                "and the true one still opens"
            );
        }
    }

    #[test]
    fn another_key_or_cipher_does_not_open() {
        let frame = sealed(
            &Sealer::new(Cipher::Aes256Gcm, LIBRARY, &[1; 32], 9),
            b"body",
            b"",
        );
        assert_eq!(
            open(&Opener::new(Cipher::Aes256Gcm, LIBRARY, &[2; 32]), &frame),
            None
        );
        assert_eq!(
            open(
                &Opener::new(Cipher::ChaCha20Poly1305, LIBRARY, &[1; 32]),
                &frame
            ),
            None
        );
    }

    #[test]
    fn small_buffers_are_refused() {
        let sealer = Sealer::new(Cipher::Aes256Gcm, LIBRARY, &[1; 32], 9);
        let nonce = sealer.take(1).unwrap().next().unwrap();
        assert_eq!(
            sealer.seal(nonce, b"body", b"tail", &mut [0; HEADER + 8 + TAG - 1]),
            None
        );
        let frame = sealed(&sealer, b"body", b"tail");
        let (header, rest) = frame.split_first_chunk::<HEADER>().unwrap();
        let opener = Opener::new(Cipher::Aes256Gcm, LIBRARY, &[1; 32]);
        assert_eq!(opener.open(header, rest, &mut [0; 7]), None);
        assert_eq!(opener.open(header, rest, &mut [0; 8]), Some(8));
    }

    #[test]
    fn a_nonce_of_another_key_seals_nothing() {
        let one = Sealer::new(Cipher::Aes256Gcm, LIBRARY, &[1; 32], 9);
        let other = Sealer::new(Cipher::Aes256Gcm, LIBRARY, &[2; 32], 9);
        let nonce = one.take(1).unwrap().next().unwrap();
        assert_eq!(other.seal(nonce, b"body", b"", &mut [0; 100]), None);
    }

    #[test]
    fn nonce_is_never_reused() {
        let sealer = Arc::new(Sealer::new(Cipher::ChaCha20Poly1305, LIBRARY, &[3; 32], 1));
        let threads: Vec<_> = (0..4u32)
            .map(|n| {
                let sealer = Arc::clone(&sealer);
                std::thread::spawn(move || {
                    let mut seen = Vec::new();
                    for round in 0..500 {
                        let mut nonces = sealer.take(1 + (round + n) % 7).unwrap();
                        while let Some(nonce) = nonces.next() {
                            let mut out = [0; 64];
                            sealer.seal(nonce, b"x", b"", &mut out).unwrap();
                            seen.push(Header::decode(&out).unwrap().counter);
                        }
                    }
                    seen
                })
            })
            .collect();
        let all: Vec<u64> = threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        assert_eq!(all.iter().copied().collect::<HashSet<_>>().len(), all.len());
        assert_eq!(sealer.used(), all.len() as u64);
    }

    #[test]
    fn the_counter_ends_at_its_limit() {
        let mut sealer = Sealer::new(Cipher::Aes256Gcm, LIBRARY, &[1; 32], 9);
        sealer.counter = Counter::new(LIMIT - 3);
        assert_eq!(sealer.take(2).map(|n| n.left()), Some(2));
        assert!(sealer.take(2).is_none());
        assert!(sealer.take(1).is_none(), "a refused call ends it early");
        assert!((0..1000).all(|_| sealer.take(u32::MAX).is_none()));
        assert_eq!(sealer.used(), LIMIT);
    }

    #[test]
    fn a_closed_sealer_gives_no_nonce() {
        let sealer = Sealer::new(Cipher::Aes256Gcm, LIBRARY, &[1; 32], 9);
        let mut before = sealer.take(1).unwrap();
        sealer.close();
        assert!(sealer.take(1).is_none());
        assert!(
            sealer
                .seal(before.next().unwrap(), b"", b"", &mut [0; 32])
                .is_some(),
            "what was taken may go out"
        );
    }

    #[test]
    fn debug_shows_no_key() {
        let key = [0xab; 32];
        let text = format!(
            "{:?} {:?}",
            Sealer::new(Cipher::Aes256Gcm, LIBRARY, &key, 9),
            Opener::new(Cipher::Aes256Gcm, LIBRARY, &key)
        );
        assert!(
            !text.contains("171") && !text.to_lowercase().contains("abab"),
            "{text}"
        );
    }
}
