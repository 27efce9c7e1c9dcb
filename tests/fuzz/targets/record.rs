//! Records as stored and sent: whatever verifies is canonical, and reads back as it was.
#![no_main]

use byway::model::id::SubnetId;
use byway::model::record::{Body, Genesis, Signed};
use byway::wire::control;
use ed25519_dalek::SigningKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(genesis) = Genesis::parse(data) {
        assert_eq!(genesis.encode(), data);
    }
    if let Ok(signed) = Signed::parse(data) {
        assert_eq!(signed.encode(), data, "two encodings of one record");
        let _ = signed.verify();
    }
    // No input can forge a signature: what a member signs about itself is tried signed.
    if let Ok(body) = control::decode::<Body>(data) {
        let signed = Signed::new(SubnetId([7; 16]), &body, &SigningKey::from_bytes(&[7; 32]));
        if let Ok(read) = signed.verify() {
            assert_eq!(read, body);
            assert_eq!(Signed::parse(&signed.encode()).as_ref(), Ok(&signed));
        }
    }
});
