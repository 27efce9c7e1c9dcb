//! A message to the name server, through hickory's request type and our handler: an answer repeats the ID, is marked as
//! one, and is within its transport's size.
#![no_main]

use std::sync::LazyLock;

use byway::dns::fuzz::Fixture;
use libfuzzer_sys::fuzz_target;

static FIXTURE: LazyLock<Fixture> = LazyLock::new(Fixture::new);

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else {
        return;
    };
    let tcp = how & 1 != 0;
    if let Some(answer) = FIXTURE.answer(data, how & 2 != 0, tcp) {
        assert_eq!(answer.first_chunk::<2>(), data.first_chunk::<2>());
        assert!(answer.len() >= 12 && answer[2] & 0x80 != 0);
        assert!(tcp || answer.len() <= usize::from(byway::dns::MAX_UDP));
    }
});
