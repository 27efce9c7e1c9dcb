//! A listing of the ruleset, which others may have changed: read, compared and turned into changes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| byway::host::nft::fuzz(data));
