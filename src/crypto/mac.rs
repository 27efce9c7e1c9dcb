//! Short authenticators: HMAC-SHA256 (RFC 2104), cut to 16 bytes.

use aws_lc_rs::{constant_time, hmac};

/// Bytes of an authenticator.
pub const MAC: usize = 16;
/// Bytes of a key.
pub const MAC_KEY: usize = 16;

/// A key that authenticates messages.
#[derive(Clone)]
pub struct Mac(hmac::Key);

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mac")
    }
}

impl Mac {
    /// The key of these bytes.
    pub fn new(key: &[u8; MAC_KEY]) -> Mac {
        Mac(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The first 16 bytes of the message's HMAC.
    pub fn sign(&self, message: &[u8]) -> [u8; MAC] {
        let whole = hmac::sign(&self.0, message);
        let mut cut = [0; MAC];
        cut.iter_mut()
            .zip(whole.as_ref())
            .for_each(|(to, from)| *to = *from);
        cut
    }

    /// Whether `mac` is that of the message. The time it takes does not tell where they differ.
    pub fn verify(&self, message: &[u8], mac: &[u8; MAC]) -> bool {
        constant_time::verify_slices_are_equal(&self.sign(message), mac).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_hmac_sha256_cut_to_sixteen_bytes() {
        // RFC 4231, test case 5 is the truncated one, with a key of 20 bytes; ours have 16, so the value was computed with
        // Python: hmac.new(bytes([0x0c]*16), b"Test With Truncation", "sha256").
        let mac = Mac::new(&[0x0c; 16]).sign(b"Test With Truncation");
        assert_eq!(
            data_encoding::HEXLOWER.encode(&mac),
            "2282475faa2def6936685d9c06566f2d"
        );
    }

    #[test]
    fn one_bit_of_message_or_mac_is_noticed() {
        let key = Mac::new(&[7; 16]);
        let mac = key.sign(b"message");
        assert!(key.verify(b"message", &mac));
        assert!(!key.verify(b"messagf", &mac));
        let mut other = mac;
        other[15] ^= 1;
        assert!(!key.verify(b"message", &other));
        assert!(!Mac::new(&[8; 16]).verify(b"message", &mac));
    }
}
