//! Invites as pasted: what parses is written again as the same invite.
#![no_main]

use byway::model::join::Invite;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(invite) = Invite::parse(text) {
        assert!(
            Invite::parse(&invite.to_text()).is_ok_and(|again| again.to_text() == invite.to_text())
        );
    }
    let _ = text.parse::<byway::model::id::SubnetId>();
    let _ = text.parse::<byway::model::id::Name>();
});
