//! The replay window: it says of every counter what a set of all those accepted says.
#![no_main]

use std::collections::BTreeSet;

use byway::crypto::replay::{WINDOW, Window};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (mut window, mut seen) = (Window::new(), BTreeSet::new());
    for step in data.chunks_exact(3) {
        // A jump ahead or back, by up to 2^16 or by a power of two and a little.
        let (how, by) = (step[0], u64::from(u16::from_be_bytes([step[1], step[2]])));
        let by = if how & 2 == 0 {
            by
        } else {
            (1u64 << (step[1] & 63)).wrapping_add(step[2] as i8 as u64)
        };
        let newest = window.newest().unwrap_or(1 << 20);
        let counter = if how & 1 == 0 {
            newest.saturating_add(by)
        } else {
            newest.saturating_sub(by)
        };
        let last: Option<u64> = seen.last().copied();
        let new =
            !seen.contains(&counter) && last.is_none_or(|n| counter > n || n - counter < WINDOW);
        assert_eq!(window.check(counter), new, "{counter} after {last:?}");
        assert_eq!(window.commit(counter), new);
        assert!(!window.check(counter));
        if new {
            seen.insert(counter);
        }
        assert_eq!(window.newest(), seen.last().copied());
    }
});
