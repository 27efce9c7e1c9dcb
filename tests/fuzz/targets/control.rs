//! Messages between peers: whatever decodes encodes to something that decodes to the same.
#![no_main]

use byway::wire::control::{
    ControlAnswer, ControlRequest, JoinAnswer, JoinRequest, decode, encode,
};
use libfuzzer_sys::fuzz_target;

macro_rules! same {
    ($data:expr, $($kind:ty),*) => {
        $(if let Ok(message) = decode::<$kind>($data) {
            assert_eq!(decode::<$kind>(&encode(&message)).as_ref(), Ok(&message));
        })*
    };
}

fuzz_target!(|data: &[u8]| {
    same!(data, JoinRequest, JoinAnswer, ControlRequest, ControlAnswer);
});
