//! What survives a crash: the records, this node's own settings, and its keys.
//!
//! Owns the state directory. One file, `state.redb`, is changed by one synced transaction a command; beside it lies
//! `state.redb.good`, a whole copy of a state that was read without a fault. The keys are files of their own
//! ([`identity`], [`secret`]), and so is what single commands write ([`keep`]). Everything blocks: call it off the async
//! threads. It knows nothing of what the bytes mean.
//!
//! A file is checked from end to end before it is used, on an image in memory, so that finding damage changes nothing on
//! disk. Damage is never repaired in silence and never read as an empty state: membership and leases would be lost
//! without a word. Two-phase commits make that possible: what was acknowledged is either there or found damaged.
//!
//! What cannot be written is told ([`Store::unwritten`]) until it can be, which is tried now and then ([`Store::retry`]).

mod backend;
mod error;
mod guard;
mod kept;
mod keys;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

use crate::model::unwritten::{Refused, Unwritten};

pub use error::{StoreError, quoted};
pub use kept::{keep, kept};
pub use keys::{IDENTITY_FILE, identity, secret};

use backend::{FileStorage, Health, Image};

/// Name of the state file.
pub const STATE_FILE: &str = "state.redb";

/// Name of the copy of the last state that was read without a fault.
pub const GOOD_FILE: &str = "state.redb.good";

/// Version of the tables; another one is refused.
const SCHEMA: u64 = 1;

/// The copy is renewed at most this often.
const COPY_EVERY: Duration = Duration::from_secs(60);

/// Bytes of the largest state file that is read: thousands of times what a node needs.
const SIZE_LIMIT: u64 = 1 << 30;

/// Bytes of a state file above which only small changes are added to it, of [`SMALL`] bytes at most, and a little below
/// [`SIZE_LIMIT`] none: what was written can be read again.
const WRITE_LIMIT: u64 = SIZE_LIMIT / 2;
/// Bytes of the largest change that is still made to a file above [`WRITE_LIMIT`].
const SMALL: usize = 64 * 1024;

/// Bytes of the file that the database keeps in memory, of a gibibyte that it would take: all is read once, at the start.
const CACHE: usize = 128 * 1024;

/// The own value that is put and deleted to see whether there is room again.
const TRIAL: &str = "trial";
/// The most bytes that [`TRIAL`] is put with.
const MOST_TRIED: usize = 1 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const LOCAL: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("local");

/// Everything that was saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Signed records, by key in byte order.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// What only this node knows, by name.
    pub local: BTreeMap<String, Vec<u8>>,
}

/// Changes that become durable together or not at all. Deletions come first: what is deleted and put is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Records entered or replaced.
    pub put_records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys of records removed; absent ones are no error.
    pub delete_records: Vec<Vec<u8>>,
    /// Own values entered or replaced.
    pub put_local: Vec<(String, Vec<u8>)>,
    /// Names of own values removed; absent ones are no error.
    pub delete_local: Vec<String>,
}

/// The state directory, open and locked: no other process has it at the same time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    health: Arc<Health>,
    inner: Mutex<Inner>,
    unwritten: watch::Sender<Unwritten>,
    /// Locked for as long as the store is open.
    _lock: File,
}

#[derive(Debug)]
struct Inner {
    /// The database; none after the disk was full, until it is opened again for the next use.
    database: Option<Database>,
    copied: Instant,
    /// Bytes of the last change that could not be written; none: it could.
    refused: Option<usize>,
    /// The copy could not be renewed.
    copy_due: bool,
}

impl Store {
    /// Opens the state in `dir`, making both where there is none yet. The directory becomes 0700.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another process has it open, [`StoreError::Damaged`] where the file cannot be trusted,
    /// [`StoreError::Schema`] where another version of byway wrote it; [`StoreError::Full`] and [`StoreError::Io`].
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        make_dir(dir)?;
        let lock = lock(dir)?;
        for leftover in [temporary(dir, STATE_FILE), temporary(dir, GOOD_FILE)] {
            match fs::remove_file(&leftover) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &leftover, e));
                }
                _ => {}
            }
        }
        let health = Arc::new(Health::default());
        let path = dir.join(STATE_FILE);
        if !exists(&path)? {
            if exists(&dir.join(GOOD_FILE))? {
                return Err(StoreError::damaged(
                    &path,
                    "it is gone, and its copy is there",
                ));
            }
            write_new(dir, STATE_FILE, &Saved::default())?;
        }
        let saved = check(&path)?;
        let database = open_database(&path, &health)?;
        let store = Store {
            dir: dir.to_path_buf(),
            health,
            inner: Mutex::new(Inner {
                database: Some(database),
                copied: Instant::now(),
                refused: None,
                copy_due: false,
            }),
            unwritten: watch::Sender::default(),
            _lock: lock,
        };
        // Without a copy the state is as durable as with one; that is no reason not to start.
        let written = write_new(dir, GOOD_FILE, &saved);
        if let Err(error) = &written {
            tracing::warn!(%error, "no copy of the state could be made");
        }
        store.inner.lock().copy_due = written.is_err();
        store.tell(GOOD_FILE, &written);
        Ok(store)
    }

    /// What of the directory could not be written, and why.
    pub fn unwritten(&self) -> watch::Receiver<Unwritten> {
        self.unwritten.subscribe()
    }

    fn tell(&self, name: &str, written: &Result<(), StoreError>) {
        let outcome = written.as_ref().copied().map_err(|e| Refused {
            kind: e.io_kind(),
            why: e.why(),
        });
        self.unwritten
            .send_if_modified(|all| all.note(&self.dir.join(name), outcome));
    }

    /// Tries what could not be written, so that people are told when it can be again, also where nobody changes anything.
    pub fn retry(&self) {
        let mut inner = self.inner.lock();
        if let Some(bytes) = inner.refused {
            let trial = Batch {
                put_local: vec![(TRIAL.to_owned(), vec![0; bytes])],
                ..Batch::default()
            };
            let undo = Batch {
                delete_local: vec![TRIAL.to_owned()],
                ..Batch::default()
            };
            let _ = self
                .put(&mut inner, &trial)
                .and_then(|()| self.put(&mut inner, &undo));
        }
        if inner.copy_due {
            self.copy(&mut inner);
        }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn load(&self) -> Result<Saved, StoreError> {
        let mut inner = self.inner.lock();
        let database = self.database(&mut inner)?;
        read_all(database).map_err(|e| StoreError::of_redb(&self.path(), e))
    }

    /// Makes `batch` durable: when this returns it survives a power cut.
    ///
    /// # Errors
    /// Nothing was changed. [`StoreError::Full`] may be tried again once there is room; after [`StoreError::Fatal`] the
    /// kernel may have thrown away what it could not write: every later call fails, and only a new start, which reads
    /// the file anew, tells what is on the disk.
    pub fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.has_room(batch)?;
        let mut inner = self.inner.lock();
        self.put(&mut inner, batch)?;
        if inner.copied.elapsed() >= COPY_EVERY {
            inner.copied = Instant::now();
            self.copy(&mut inner);
        }
        Ok(())
    }

    fn put(&self, inner: &mut Inner, batch: &Batch) -> Result<(), StoreError> {
        let written = match self.database(inner).map(|database| write(database, batch)) {
            Err(error) => Err(error),
            Ok(written) => written.map_err(|error| {
                // The handle refuses everything after a failed write; the file still holds the former state.
                inner.database = None;
                self.failure(error)
            }),
        };
        inner.refused = written.is_err().then(|| added(batch).clamp(1, MOST_TRIED));
        self.tell(STATE_FILE, &written);
        written
    }

    /// Refuses what would make the file one that the next start does not read.
    fn has_room(&self, batch: &Batch) -> Result<(), StoreError> {
        let path = self.path();
        let size = fs::metadata(&path).map_or(0, |m| m.len());
        if fits(size, added(batch)) {
            Ok(())
        } else {
            Err(StoreError::TooLarge { path })
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(STATE_FILE)
    }

    /// The open database, opened again after the disk was full.
    fn database<'a>(&self, inner: &'a mut Inner) -> Result<&'a Database, StoreError> {
        if self.health.sync_failed() {
            return Err(self.fatal("an earlier write did not reach the disk"));
        }
        let database = match inner.database.take() {
            Some(database) => database,
            None => {
                self.health.clear_full();
                open_database(&self.path(), &self.health)?
            }
        };
        Ok(inner.database.insert(database))
    }

    fn fatal(&self, what: &str) -> StoreError {
        StoreError::Fatal {
            path: self.path(),
            what: what.to_owned(),
        }
    }

    fn failure(&self, error: redb::Error) -> StoreError {
        if self.health.sync_failed() {
            self.fatal(&format!("sync: {error}"))
        } else if self.health.full() {
            StoreError::Full { path: self.path() }
        } else {
            StoreError::of_redb(&self.path(), error)
        }
    }

    /// Renews the copy; a failure leaves the former one.
    fn copy(&self, inner: &mut Inner) {
        let Some(database) = &inner.database else {
            return;
        };
        let written = read_all(database)
            .map_err(|e| StoreError::of_redb(&self.path(), e))
            .and_then(|saved| write_new(&self.dir, GOOD_FILE, &saved));
        if let (Err(error), false) = (&written, inner.copy_due) {
            tracing::warn!(%error, "the copy of the state could not be renewed");
        }
        inner.copy_due = written.is_err();
        self.tell(GOOD_FILE, &written);
    }
}

/// Takes `dir` for this process without making anything; none where there is no such directory.
///
/// # Errors
/// [`StoreError::InUse`] where another process has it; [`StoreError::Io`].
pub fn hold(dir: &Path) -> Result<Option<File>, StoreError> {
    if exists(dir)? {
        lock(dir).map(Some)
    } else {
        Ok(None)
    }
}

/// Whether a state was begun in `dir`, be it damaged.
pub fn exists_in(dir: &Path) -> bool {
    [STATE_FILE, GOOD_FILE]
        .iter()
        .any(|name| dir.join(name).exists())
}

/// Whether `dir` has a state that anything was ever written to. What cannot be read counts: nobody knows what it holds.
pub fn holds_something(dir: &Path) -> bool {
    let is_empty = |path: &Path| check(path).is_ok_and(|saved| saved == Saved::default());
    [STATE_FILE, GOOD_FILE]
        .iter()
        .map(|name| dir.join(name))
        .any(|path| path.exists() && !is_empty(&path))
}

/// Makes `dir` and closes it to everybody else.
fn make_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| StoreError::io("make", dir, e))?;
    let mode = fs::metadata(dir)
        .map_err(|e| StoreError::io("read", dir, e))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(|e| StoreError::io("close", dir, e))?;
    }
    Ok(())
}

/// Takes the directory for this process: also while `state.redb` itself is being made.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let file = File::open(dir).map_err(|e| StoreError::io("open", dir, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            dir: dir.to_path_buf(),
        }),
        Err(TryLockError::Error(e)) => Err(StoreError::io("lock", dir, e)),
    }
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists()
        .map_err(|e| StoreError::io("look for", path, e))
}

/// Where a file is written before it takes its name.
fn temporary(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.new"))
}

/// Makes the entries of `dir` durable.
fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| StoreError::io("sync", dir, e))
}

/// Reads the whole file into memory and checks every page and row there: nothing on disk changes.
fn check(path: &Path) -> Result<Saved, StoreError> {
    let size = fs::metadata(path)
        .map_err(|e| StoreError::io("read", path, e))?
        .len();
    if size == 0 {
        return Err(StoreError::damaged(path, "it is empty"));
    }
    if size > SIZE_LIMIT {
        return Err(StoreError::damaged(path, "it is far larger than any state"));
    }
    let bytes = fs::read(path).map_err(|e| StoreError::io("read", path, e))?;
    let damage = StoreError::damaged(path, "its pages contradict each other");
    match guard::reading(damage, || check_image(bytes))? {
        Ok(saved) => Ok(saved),
        Err(CheckError::Schema(found)) => Err(StoreError::Schema {
            path: path.to_path_buf(),
            found,
        }),
        Err(CheckError::Damaged(what)) => Err(StoreError::damaged(path, &what)),
    }
}

/// Bytes that a change adds.
fn added(batch: &Batch) -> usize {
    batch
        .put_records
        .iter()
        .map(|(key, value)| key.len().saturating_add(value.len()))
        .sum()
}

/// Whether `added` bytes may be put into a file of `size` bytes. redb doubles its file at most when it grows.
fn fits(size: u64, added: usize) -> bool {
    let last = SIZE_LIMIT.saturating_sub(64 * 1024 * 1024);
    added == 0 || size < WRITE_LIMIT || (added <= SMALL && size < last)
}

enum CheckError {
    Schema(u64),
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for CheckError {
    fn from(error: E) -> CheckError {
        CheckError::Damaged(error.into().to_string())
    }
}

fn check_image(bytes: Vec<u8>) -> Result<Saved, CheckError> {
    let mut database = Database::builder().create_with_backend(Image::new(bytes))?;
    if !database.check_integrity()? {
        return Err(CheckError::Damaged("its checksums do not hold".to_owned()));
    }
    match schema(&database)? {
        Some(SCHEMA) => Ok(read_all(&database)?),
        Some(found) => Err(CheckError::Schema(found)),
        None => Err(CheckError::Damaged("it has no version".to_owned())),
    }
}

fn schema(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(META)?;
    Ok(table.get("schema")?.map(|v| v.value()))
}

/// Opens the file that [`check`] has passed.
fn open_database(path: &Path, health: &Arc<Health>) -> Result<Database, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| StoreError::io("open", path, e))?;
    let storage = FileStorage::new(file, Arc::clone(health))
        .map_err(|e| StoreError::of_redb(path, e.into()))?;
    Database::builder()
        .set_cache_size(CACHE)
        .create_with_backend(storage)
        .map_err(|e| StoreError::of_redb(path, e.into()))
}

/// Writes `saved` as a database of its own and gives it its name in one step.
fn write_new(dir: &Path, name: &str, saved: &Saved) -> Result<(), StoreError> {
    let new = temporary(dir, name);
    let written = write_whole(&new, saved)
        .and_then(|()| {
            fs::rename(&new, dir.join(name)).map_err(|e| StoreError::io("rename", &new, e))
        })
        .and_then(|()| sync_dir(dir));
    if written.is_err() {
        // It would only take room; if even this fails, the next start removes it.
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_whole(path: &Path, saved: &Saved) -> Result<(), StoreError> {
    let health = Arc::new(Health::default());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| StoreError::io("make", path, e))?;
    let handle = file
        .try_clone()
        .map_err(|e| StoreError::io("make", path, e))?;
    let filled = FileStorage::new(file, Arc::clone(&health))
        .and_then(|storage| {
            Database::builder()
                .set_cache_size(CACHE)
                .create_with_backend(storage)
        })
        .map_err(redb::Error::from)
        .and_then(|database| fill(&database, saved));
    filled.map_err(|e| {
        if health.full() {
            StoreError::Full {
                path: path.to_path_buf(),
            }
        } else {
            StoreError::of_redb(path, e)
        }
    })?;
    handle
        .sync_all()
        .map_err(|e| StoreError::io("sync", path, e))
}

/// Writes the first transaction of a database.
fn fill(database: &Database, saved: &Saved) -> Result<(), redb::Error> {
    let batch = Batch {
        put_records: saved.records.clone(),
        put_local: saved
            .local
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        ..Batch::default()
    };
    let transaction = begin(database)?;
    transaction.open_table(META)?.insert("schema", SCHEMA)?;
    apply(&transaction, &batch)?;
    Ok(transaction.commit()?)
}

fn write(database: &Database, batch: &Batch) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    apply(&transaction, batch)?;
    Ok(transaction.commit()?)
}

/// A transaction that is synced before it counts, in two phases: see the head of this file.
fn begin(database: &Database) -> Result<redb::WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn apply(transaction: &redb::WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    let mut records = transaction.open_table(RECORDS)?;
    for key in &batch.delete_records {
        records.remove(key.as_slice())?;
    }
    for (key, value) in &batch.put_records {
        records.insert(key.as_slice(), value.as_slice())?;
    }
    let mut local = transaction.open_table(LOCAL)?;
    for key in &batch.delete_local {
        local.remove(key.as_str())?;
    }
    for (key, value) in &batch.put_local {
        local.insert(key.as_str(), value.as_slice())?;
    }
    Ok(())
}

fn read_all(database: &Database) -> Result<Saved, redb::Error> {
    let transaction = database.begin_read()?;
    let mut saved = Saved::default();
    for row in transaction.open_table(RECORDS)?.iter()? {
        let (key, value) = row?;
        saved
            .records
            .push((key.value().to_vec(), value.value().to_vec()));
    }
    for row in transaction.open_table(LOCAL)?.iter()? {
        let (key, value) = row?;
        saved
            .local
            .insert(key.value().to_owned(), value.value().to_vec());
    }
    Ok(saved)
}

#[cfg(test)]
mod tests;
