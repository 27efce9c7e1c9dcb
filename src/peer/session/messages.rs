//! What the two ends of a session say to each other; the [session](super) has the layouts.

use serde::{Deserialize, Serialize};

use crate::codec;
pub(super) use crate::codec::encode;

/// Bytes of the largest message.
pub const MAX_MESSAGE: usize = 2048;

/// Names a session in messages.
pub(super) type Id = [u8; 8];

#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Want,
    Offer {
        version: u8,
        aes: bool,
        kem: Vec<u8>,
        required: bool,
    },
    Begin {
        noise: Vec<u8>,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) enum Reply {
    Wanted,
    Accept { aes: bool, kem: Vec<u8> },
    Finish { noise: Vec<u8> },
    Unmet,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Control {
    Rekey {
        base: Id,
        attempt: u32,
        noise: Vec<u8>,
    },
    Answer {
        base: Id,
        attempt: u32,
        noise: Vec<u8>,
    },
    Confirm {
        id: Id,
    },
    Confirmed {
        id: Id,
    },
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    if bytes.len() > MAX_MESSAGE {
        return None;
    }
    codec::decode(bytes).ok()
}

/// The name of a session in messages.
pub(super) fn id_of(hash: &[u8; 32]) -> Id {
    hash.first_chunk().copied().unwrap_or_default()
}
