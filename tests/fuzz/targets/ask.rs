//! A stranger's question: only what its joiner signed is read, and as it was signed.
#![no_main]

use byway::model::id::PeerId;
use byway::model::join::{Ask, SignedAsk};
use byway::wire::control;
use ed25519_dalek::SigningKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(signed) = control::decode::<SignedAsk>(data) {
        let _ = signed.verify();
    }
    if let Ok(mut ask) = control::decode::<Ask>(data) {
        let key = SigningKey::from_bytes(&[7; 32]);
        ask.joiner = PeerId(key.verifying_key().to_bytes());
        let signed = SignedAsk::new(&ask, &key);
        if let Ok(read) = signed.verify() {
            assert_eq!(read, ask);
        }
        if let Some(proof) = &ask.proof {
            assert!(
                !proof.holds(ask.subnet, ask.joiner, proof.issuer, proof.nonce),
                "a forged proof"
            );
        }
    }
});
