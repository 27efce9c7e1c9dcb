//! The state directory against crashes, damage, other processes and full disks.

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::model::error::Code;

fn batch(n: u8) -> Batch {
    Batch {
        put_records: (0..n).map(|i| (vec![i, 1], vec![i; 300])).collect(),
        put_local: vec![("settings".to_owned(), vec![n; 40])],
        ..Batch::default()
    }
}

#[test]
fn what_was_committed_is_there_after_a_new_start() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/b");
    let store = Store::open(&state).unwrap();
    assert_eq!(store.load().unwrap(), Saved::default());
    store.commit(&batch(5)).unwrap();
    let change = Batch {
        delete_records: vec![vec![0, 1], vec![9, 9]],
        put_records: vec![(vec![1, 1], b"new".to_vec())],
        delete_local: vec!["settings".to_owned(), "nothing".to_owned()],
        put_local: vec![("other".to_owned(), vec![])],
    };
    store.commit(&change).unwrap();
    let before = store.load().unwrap();
    drop(store);
    let after = Store::open(&state).unwrap().load().unwrap();
    assert_eq!(before, after);
    assert_eq!(after.records.len(), 4);
    assert_eq!(after.records.first(), Some(&(vec![1, 1], b"new".to_vec())));
    assert_eq!(after.local.keys().collect::<Vec<_>>(), ["other"]);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (
            mode(&state),
            mode(&state.join(STATE_FILE)),
            mode(&state.join(GOOD_FILE))
        ),
        (0o700, 0o600, 0o600)
    );
}

#[test]
fn to_hold_a_directory_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(hold(&dir.path().join("none")).unwrap().is_none());
    let held = hold(dir.path()).unwrap();
    assert!(held.is_some() && Store::open(dir.path()).unwrap_err().is_conflict());
    assert_eq!(
        (
            fs::read_dir(dir.path()).unwrap().count(),
            exists_in(dir.path())
        ),
        (0, false)
    );
}

#[test]
fn a_state_that_nothing_was_written_to_holds_nothing_and_a_damaged_one_may_hold_anything() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!holds_something(dir.path()));
    let store = Store::open(dir.path()).unwrap();
    assert!(exists_in(dir.path()) && !holds_something(dir.path()));
    store.commit(&batch(1)).unwrap();
    drop(store);
    assert!(holds_something(dir.path()));
    drop(Store::open(dir.path()).unwrap());
    fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
    assert!(holds_something(dir.path()), "its copy is there");
    fs::write(dir.path().join(GOOD_FILE), "x").unwrap();
    assert!(holds_something(dir.path()));
}

#[test]
fn an_open_directory_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(dir.path()).unwrap();
    assert_eq!(
        fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn a_second_open_is_refused_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        error.is_conflict() && error.code() == Code::StateInUse,
        "{error}"
    );
    store.commit(&batch(3)).unwrap();
    drop(store);
    assert_eq!(
        Store::open(dir.path())
            .unwrap()
            .load()
            .unwrap()
            .records
            .len(),
        3
    );
}

#[test]
fn a_lost_file_beside_its_copy_is_not_an_empty_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit(&batch(3)).unwrap();
    drop(store);
    drop(Store::open(dir.path()).unwrap());
    fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert_eq!(error.code(), Code::StateDamaged);
    // The remedy is one that works, as it stands.
    assert!(
        Command::new("sh")
            .args(["-c", &error.hint()])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        Store::open(dir.path())
            .unwrap()
            .load()
            .unwrap()
            .records
            .len(),
        3
    );
}

#[test]
fn another_version_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let path = dir.path().join(STATE_FILE);
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(META)
        .unwrap()
        .insert("schema", 99)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let before = fs::read(&path).unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(StoreError::Schema { found: 99, .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    for name in [STATE_FILE, GOOD_FILE] {
        fs::write(temporary(dir.path(), name), b"half").unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    store.commit(&batch(1)).unwrap();
    assert!(
        !temporary(dir.path(), STATE_FILE).exists() && !temporary(dir.path(), GOOD_FILE).exists()
    );
}

#[test]
fn the_copy_follows_once_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit(&batch(3)).unwrap();
    assert_eq!(check(&dir.path().join(GOOD_FILE)).unwrap().records.len(), 0);
    store.inner.lock().copied = Instant::now().checked_sub(COPY_EVERY).unwrap();
    store.commit(&batch(4)).unwrap();
    assert_eq!(check(&dir.path().join(GOOD_FILE)).unwrap().records.len(), 4);
}

#[test]
fn a_full_disk_changes_nothing_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit(&batch(3)).unwrap();
    store.health.fail_writes.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(
            store.commit(&batch(200)),
            Err(StoreError::Full { .. })
        ));
    }
    store.health.fail_writes.store(false, Ordering::SeqCst);
    assert_eq!(store.load().unwrap().records.len(), 3);
    store.commit(&batch(4)).unwrap();
    drop(store);
    assert_eq!(
        Store::open(dir.path())
            .unwrap()
            .load()
            .unwrap()
            .records
            .len(),
        4
    );
}

#[test]
fn a_failed_sync_is_final() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit(&batch(3)).unwrap();
    store.health.fail_syncs.store(true, Ordering::SeqCst);
    assert!(matches!(
        store.commit(&batch(9)),
        Err(StoreError::Fatal { .. })
    ));
    store.health.fail_syncs.store(false, Ordering::SeqCst);
    assert!(
        matches!(store.commit(&batch(4)), Err(StoreError::Fatal { .. })),
        "not tried into success"
    );
    assert!(matches!(store.load(), Err(StoreError::Fatal { .. })));
}

/// Set for the second run of this test, inside a small file system of its own.
const SMALL: &str = "BYWAY_TEST_SMALL_DISK";

#[test]
#[ignore = "needs root"]
fn a_small_file_system_fills_up_and_is_used_again_after_room_was_made() {
    let Some(dir) = std::env::var_os(SMALL).map(PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        let mount = format!(
            "mount -t tmpfs -o size=8m byway {} && exec \"$@\"",
            dir.path().display()
        );
        let me = std::env::current_exe().unwrap();
        let name =
            "store::tests::a_small_file_system_fills_up_and_is_used_again_after_room_was_made";
        let run = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &mount,
                "sh",
            ])
            .arg(me)
            .args(["--exact", name, "--nocapture", "--include-ignored"])
            .env(SMALL, dir.path())
            .output();
        match run {
            Ok(out) if out.status.success() => {}
            Ok(out) => panic!(
                "{}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            ),
            Err(error) => panic!("run unshare: {error}"),
        }
        return;
    };
    let store = Store::open(&dir.join("state")).unwrap();
    store.commit(&batch(3)).unwrap();
    let ballast = dir.join("ballast");
    let mut filled = File::create(&ballast).unwrap();
    let full = io::copy(&mut io::repeat(1), &mut filled).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let large = Batch {
        put_records: vec![(vec![7], vec![7; 2 << 20])],
        ..Batch::default()
    };
    let error = store.commit(&large).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    // It is told until it can be written, also where nobody tries again.
    let told = store.unwritten();
    let files = || {
        told.borrow()
            .iter()
            .map(|(path, refused)| (path.clone(), refused.kind))
            .collect::<Vec<_>>()
    };
    let state = (
        dir.join("state").join(STATE_FILE),
        io::ErrorKind::StorageFull,
    );
    store.retry();
    assert_eq!(files(), [state]);
    fs::remove_file(&ballast).unwrap();
    drop(filled);
    store.retry();
    assert_eq!(files(), []);
    assert!(
        !store.load().unwrap().local.contains_key(TRIAL),
        "a trial leaves nothing"
    );
    assert_eq!(store.load().unwrap().records.len(), 3);
    store.commit(&large).unwrap();
    drop(store);
    assert_eq!(
        Store::open(&dir.join("state"))
            .unwrap()
            .load()
            .unwrap()
            .records
            .len(),
        4
    );
}

/// Bytes of a state file and of its image as a power cut would leave it, with what is in them.
fn images() -> &'static ([Vec<u8>; 2], Saved) {
    static IMAGES: OnceLock<([Vec<u8>; 2], Saved)> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for n in [3, 30, 20] {
            store.commit(&batch(n)).unwrap();
        }
        let saved = store.load().unwrap();
        let crashed = fs::read(dir.path().join(STATE_FILE)).unwrap();
        drop(store);
        let clean = fs::read(dir.path().join(STATE_FILE)).unwrap();
        ([clean, crashed], saved)
    })
}

/// Opens a directory with this state file: what was saved, or damage with a remedy that names the copy.
fn opened(bytes: &[u8]) -> Result<Saved, StoreError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(STATE_FILE), bytes).unwrap();
    fs::write(dir.path().join(GOOD_FILE), b"the copy").unwrap();
    let result = Store::open(dir.path()).and_then(|store| store.load());
    if let Err(error) = &result {
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(
            error.hint().starts_with("mv ") && error.hint().contains(GOOD_FILE),
            "{}",
            error.hint()
        );
        assert_eq!(
            fs::read(dir.path().join(STATE_FILE)).unwrap(),
            bytes,
            "a damaged file is left as it is"
        );
        assert_eq!(fs::read(dir.path().join(GOOD_FILE)).unwrap(), b"the copy");
    }
    result
}

#[test]
fn a_power_cut_loses_nothing_that_was_committed() {
    let (images, saved) = images();
    for image in images {
        assert_eq!(&opened(image).unwrap(), saved);
    }
}

#[test]
fn cut_files_are_damaged() {
    let (images, _) = images();
    for image in images {
        for length in [0, 1, 64, 320, 4095, 4096, 8192, image.len() / 2] {
            assert!(opened(&image[..length]).is_err(), "{length}");
        }
    }
    assert!(opened(b"not a database at all").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// A changed byte is in unused space, or the file is refused: nothing false or older is ever read.
    #[test]
    fn changed_bytes_are_found_or_do_not_matter(
        which in 0usize..2, changes in proptest::collection::vec((any::<u32>(), any::<bool>(), 1u8..), 1..6)
    ) {
        let (images, saved) = images();
        let mut bytes = images[which].clone();
        for (at, early, flip) in changes {
            // Half of them where most of the content is.
            let span = if early { bytes.len().min(128 * 1024) } else { bytes.len() };
            bytes[at as usize % span] ^= flip;
        }
        if let Ok(read) = opened(&bytes) {
            prop_assert_eq!(&read, saved);
        }
    }
}

#[test]
fn what_was_written_can_be_read_again() {
    assert!(fits(0, 1 << 20) && fits(WRITE_LIMIT - 1, 1 << 20));
    assert!(
        !fits(WRITE_LIMIT, super::SMALL + 1),
        "large changes end at half of what is read"
    );
    assert!(
        fits(WRITE_LIMIT, super::SMALL) && fits(SIZE_LIMIT, 0),
        "a removal is small, and a deletion always goes"
    );
    assert!(!fits(SIZE_LIMIT - 1, 1));
}
