//! The state file as a disk may give it back: what was saved, or an error that says it is damaged; never something else.
//!
//! The input is a list of changes (four bytes where, one what) to a good file; its first byte may cut the file.
#![no_main]

use std::sync::LazyLock;

use byway::store::{Batch, STATE_FILE, Saved, Store};
use libfuzzer_sys::fuzz_target;

static GOOD: LazyLock<(Vec<u8>, Saved)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a new store");
    for n in 0..20u8 {
        let records = (0..8).map(|m| (vec![n, m], vec![n; 200])).collect();
        let batch = Batch {
            put_records: records,
            put_local: vec![("name".to_owned(), vec![n])],
            ..Batch::default()
        };
        store.commit(&batch).expect("commit");
    }
    let saved = store.load().expect("load");
    drop(store);
    (
        std::fs::read(dir.path().join(STATE_FILE)).expect("read"),
        saved,
    )
});

fuzz_target!(|data: &[u8]| {
    let Some((cut, changes)) = data.split_first() else {
        return;
    };
    let (good, saved) = &*GOOD;
    let mut bytes = good.clone();
    for change in changes.chunks_exact(5).take(32) {
        let at = u32::from_be_bytes([change[0], change[1], change[2], change[3]]) as usize;
        // Most of the content is at the beginning.
        let span = if change[0] & 1 == 0 {
            bytes.len().min(128 * 1024)
        } else {
            bytes.len()
        };
        bytes[at % span] ^= change[4];
    }
    if *cut >= 128 {
        bytes.truncate(bytes.len() / 128 * usize::from(*cut - 128));
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(STATE_FILE), &bytes).expect("write");
    if let Ok(read) = Store::open(dir.path()).and_then(|store| store.load()) {
        assert_eq!(&read, saved, "damage went unseen");
    }
});
