//! A configuration file: taken, or every mistake named.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        byway::config::fuzz(text);
    }
});
