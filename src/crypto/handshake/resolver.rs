//! What `snow` takes from us: X25519 that wipes its keys, and the ephemeral key that the caller drew.

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::{PublicKey, StaticSecret};

use super::Secret;

/// snow's own ciphers and hashes; X25519 that wipes its keys; the ephemeral key it was given.
pub(super) struct Resolver(pub(super) Secret);

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

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
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
pub(super) struct X25519 {
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
