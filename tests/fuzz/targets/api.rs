//! Requests and answers of the control socket: what is read is written as something that reads the same.
#![no_main]

use byway::api::types::{ErrorReply, Request, Response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let _ = request.changes();
        let written = serde_json::to_vec(&request).expect("a request that cannot be written");
        let again: Request =
            serde_json::from_slice(&written).expect("a request that cannot be read again");
        assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        let _ = serde_json::to_vec(&response);
    }
    let _ = serde_json::from_slice::<ErrorReply>(data);
});
