//! Names that mean something only to who knows the ID of a subnet, and what is sealed beside them.
//!
//! A name is a salt and its tag: whoever knows the ID computes the tag of the salt and compares, everybody else sees 16 random
//! bytes. The salt stands in clear, so that no clock has to be right: machines that were offline for long find each other all
//! the same. With `prk = HKDF-Extract("byway blind 1", subnet)` and `HKDF` for HKDF-Expand (RFC 5869, SHA-256):
//!
//! ```text
//! name    salt (8) | first 8 bytes of HMAC-SHA256(first 16 bytes of HKDF(prk, "tag"), role (1) | salt)
//! sealed  random (16) | ChaCha20-Poly1305(HKDF(prk, "seal" | random), nonce 0, additional data, text)
//! ```
//!
//! Whoever knows the ID can make such names and open what is sealed: this hides, and proves nothing. Each text has a key of its
//! own, so the nonce may stay the same.

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use zeroize::Zeroizing;

use super::aead::{Cipher, KEY, Key, Library, TAG};
use super::mac::{MAC_KEY, Mac};
use crate::model::id::SubnetId;

/// Bytes of a blinded name.
pub const NAME: usize = 16;
/// Bytes of a salt; the tag is as long.
pub const SALT: usize = 8;
/// Bytes of the random part of what is sealed.
pub const RANDOM: usize = 16;
/// Bytes by which what is sealed is longer than its text.
pub const OVERHEAD: usize = RANDOM + TAG;

/// The keys that follow from the ID of one subnet.
pub struct Blind {
    tags: Mac,
    prk: Prk,
}

impl std::fmt::Debug for Blind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Blind")
    }
}

impl Blind {
    /// The keys of a subnet. `None` only where the library refuses the lengths used here, which it does not.
    pub fn of(subnet: SubnetId) -> Option<Blind> {
        let prk = Salt::new(HKDF_SHA256, b"byway blind 1").extract(&subnet.0);
        let key = expand(&prk, &[b"tag"])?;
        let tags = Mac::new(key.first_chunk::<MAC_KEY>()?);
        Some(Blind { tags, prk })
    }

    /// The name with this salt, in a role: names of one role say nothing about those of another.
    pub fn name(&self, role: u8, salt: [u8; SALT]) -> [u8; NAME] {
        let [s0, s1, s2, s3, s4, s5, s6, s7] = salt;
        let tag = self.tags.sign(&[role, s0, s1, s2, s3, s4, s5, s6, s7]);
        let mut name = [0; NAME];
        let bytes = salt.iter().chain(&tag);
        name.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        name
    }

    /// Whether a name is one of this subnet in that role.
    pub fn is_named(&self, role: u8, name: &[u8; NAME]) -> bool {
        let salt = name.first_chunk::<SALT>();
        salt.is_some_and(|salt| self.name(role, *salt) == *name)
    }

    /// Seals a text. `random` must never have been used for another text. `None` only for a text that is longer than memory.
    pub fn seal(&self, random: [u8; RANDOM], aad: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = vec![0; text.len().checked_add(OVERHEAD)?];
        let (head, rest) = sealed.split_at_mut_checked(RANDOM)?;
        head.copy_from_slice(&random);
        self.key(&random)?.seal([0; 12], aad, text, &[], rest)?;
        Some(sealed)
    }

    /// Opens what was sealed; `None` where it is cut, changed, or of another subnet.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (random, rest) = sealed.split_first_chunk::<RANDOM>()?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG>()?;
        let mut text = vec![0; ciphertext.len()];
        let key = self.key(random)?;
        key.open([0; 12], aad, ciphertext, tag, &mut text)?;
        Some(text)
    }

    fn key(&self, random: &[u8; RANDOM]) -> Option<Key> {
        let key = expand(&self.prk, &[b"seal", random])?;
        Key::new(Cipher::ChaCha20Poly1305, Library::AwsLc, &key)
    }
}

fn expand(prk: &Prk, info: &[&[u8]]) -> Option<Zeroizing<[u8; KEY]>> {
    let mut key = Zeroizing::new([0; KEY]);
    let okm = prk.expand(info, HKDF_SHA256).ok()?;
    okm.fill(key.as_mut_slice()).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blind(n: u8) -> Blind {
        Blind::of(SubnetId([n; 16])).unwrap()
    }

    #[test]
    fn a_name_is_known_to_who_knows_the_id_and_the_role() {
        let name = blind(1).name(1, [9; SALT]);
        assert_eq!(name[..SALT], [9; SALT]);
        assert!(blind(1).is_named(1, &name));
        assert!(!blind(1).is_named(2, &name), "another role");
        assert!(!blind(2).is_named(1, &name), "another subnet");
        let mut other = name;
        other[NAME - 1] ^= 1;
        assert!(!blind(1).is_named(1, &other));
    }

    #[test]
    fn what_is_sealed_is_opened_with_the_id_alone_and_only_unchanged() {
        let sealed = blind(1).seal([7; RANDOM], b"name", b"text").unwrap();
        assert_eq!(sealed.len(), 4 + OVERHEAD);
        assert_eq!(blind(1).open(b"name", &sealed).unwrap(), b"text");
        assert!(blind(2).open(b"name", &sealed).is_none());
        assert!(blind(1).open(b"mane", &sealed).is_none());
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(blind(1).open(b"name", &bad).is_none(), "bit {bit}");
        }
        for short in 0..sealed.len() {
            assert!(blind(1).open(b"name", &sealed[..short]).is_none());
        }
    }
}
