//! What a STUN server says, and what a router was asked for as the state directory may give it back: an address that was read is
//! somebody's, and leases are read as they were written.
#![no_main]

use byway::portmap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(seen) = byway::udp::fuzz::stun(data) {
        assert!(seen.port() != 0 && !seen.ip().is_unspecified() && !seen.ip().is_multicast());
        assert_eq!(seen.ip(), seen.ip().to_canonical());
    }
    if let Ok(read) = portmap::parse(data)
        && let Some(text) = portmap::text(&read).expect("records that cannot be written")
    {
        assert_eq!(portmap::parse(&text).ok(), Some(read));
    }
});
