//! For tests: datagram sessions between two registries on loopback, without the handshake.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Key, Links, Route};
use crate::crypto::frame::{Cipher, Library, Opener, Sealer};
use crate::udp::{Options, Port};

/// A port on loopback.
pub(crate) fn port() -> Port {
    Port::bind(&["127.0.0.1:0".parse().unwrap()], &Options::default()).unwrap()
}

impl Links {
    /// Seals packets to `to` from now on for the far side's `index`.
    pub(crate) fn test_send(
        &self,
        to: Key,
        at: SocketAddr,
        index: u32,
        key: &[u8; 32],
        payload: usize,
    ) {
        let sealer = Arc::new(Sealer::new(Cipher::Aes256Gcm, Library::AwsLc, key, index));
        self.link(to).set_route(Some(Arc::new(Route {
            sealer,
            to: at.into(),
            local: None,
            payload,
            settled: true,
        })));
    }

    /// Opens frames of `from` under `index` from now on.
    pub(crate) fn test_receive(&self, from: Key, index: u32, key: &[u8; 32]) {
        self.0.updates.install(
            index,
            Opener::new(Cipher::Aes256Gcm, Library::AwsLc, key),
            self.link(from),
        );
    }
}
