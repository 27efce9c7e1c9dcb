//! What a router says by UPnP: the answer to a search, its description, and its answers in SOAP. Nothing panics, and what is
//! read is no more than was said.
#![no_main]

use byway::portmap::fuzz::{answer, has_service, location, size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(url) = location(data) {
        assert!(url.len() <= 3 * data.len());
        assert!(!url.contains(|c: char| c.is_whitespace() || c.is_control()));
    }
    let size = size(data);
    if let Some(size) = &size {
        assert!(size.elements >= 1 && 3 * size.elements <= data.len());
        assert!((1..=32).contains(&size.depth));
        // A byte that is no text becomes a character of three.
        assert!(size.text <= 3 * data.len());
    }
    let is_read = size.is_some();
    assert!(is_read || !has_service(data));
    assert!(is_read || answer(data).is_none());
});
