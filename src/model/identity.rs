//! Who this node is.

use ed25519_dalek::SigningKey;

use super::id::PeerId;

/// This node's keys, as the core needs them.
#[derive(Clone)]
pub struct Identity {
    /// The ed25519 key that signs this node's records.
    pub key: SigningKey,
    /// The public half of `key`, by which others know this node.
    pub peer: PeerId,
    /// Public X25519 key for data sessions, which this node's grants certify.
    pub data_key: [u8; 32],
    /// Public X25519 key for sealing, and for nothing else.
    pub seal_key: [u8; 32],
    /// A number of this start of the daemon: see [`lives`](super::lives).
    pub life: u64,
}

impl Identity {
    /// The identity of the seed on disk, in life 0.
    pub fn new(seed: &[u8; 32], data_key: [u8; 32], seal_key: [u8; 32]) -> Identity {
        let key = SigningKey::from_bytes(seed);
        let peer = PeerId(key.verifying_key().to_bytes());
        Identity {
            key,
            peer,
            data_key,
            seal_key,
            life: 0,
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.peer).finish()
    }
}
