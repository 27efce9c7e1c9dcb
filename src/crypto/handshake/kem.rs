//! ML-KEM-768: the secret that goes into the first psk beside the Diffie-Hellman.

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};

use super::{KEY, Refused, Secret};

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203).
pub const KEM_KEY: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext.
pub const KEM_CIPHERTEXT: usize = 1088;

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
