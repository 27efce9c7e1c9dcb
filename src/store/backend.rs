//! What the database reads and writes: the file, watched, or an image of it in memory.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use super::error::is_full;

/// Which kind of write failed: the database only says that one did.
#[derive(Debug, Default)]
pub(super) struct Health {
    sync_failed: AtomicBool,
    full: AtomicBool,
    /// Faults for tests: every write finds the disk full, or every sync fails.
    #[cfg(test)]
    pub(super) fail_writes: AtomicBool,
    #[cfg(test)]
    pub(super) fail_syncs: AtomicBool,
}

impl Health {
    /// Whether a sync ever failed. The kernel reports that once and may drop the pages: trying again would succeed
    /// without having written them.
    pub(super) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::SeqCst)
    }

    /// Whether a write found no room since [`Health::clear_full`].
    pub(super) fn full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    pub(super) fn clear_full(&self) {
        self.full.store(false, Ordering::SeqCst);
    }

    fn written<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(is_full) {
            self.full.store(true, Ordering::SeqCst);
        }
        result
    }

    #[cfg(test)]
    fn injected(flag: &AtomicBool, error: nix::errno::Errno) -> io::Result<()> {
        if flag.load(Ordering::SeqCst) {
            Err(error.into())
        } else {
            Ok(())
        }
    }
}

/// The state file, watched: what kind of write failed is noted in its [`Health`].
#[derive(Debug)]
pub(super) struct FileStorage {
    file: FileBackend,
    health: Arc<Health>,
}

impl FileStorage {
    pub(super) fn new(file: File, health: Arc<Health>) -> Result<FileStorage, DatabaseError> {
        Ok(FileStorage {
            file: FileBackend::new(file)?,
            health,
        })
    }
}

impl StorageBackend for FileStorage {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        self.health.written(Health::injected(
            &self.health.fail_writes,
            nix::errno::Errno::ENOSPC,
        ))?;
        self.health.written(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        let synced = Health::injected(&self.health.fail_syncs, nix::errno::Errno::EIO)
            .and_then(|()| self.file.sync_data());
        #[cfg(not(test))]
        let synced = self.file.sync_data();
        if synced.is_err() {
            self.health.sync_failed.store(true, Ordering::SeqCst);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.health.written(Health::injected(
            &self.health.fail_writes,
            nix::errno::Errno::ENOSPC,
        ))?;
        self.health.written(self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// A file's bytes in memory: may be repaired and written to without touching the file.
#[derive(Debug)]
pub(super) struct Image(Mutex<Vec<u8>>);

/// Bytes an image may grow beyond its file: a damaged header must not ask for all memory.
const GROWTH: u64 = 64 << 20;

impl Image {
    pub(super) fn new(bytes: Vec<u8>) -> Image {
        Image(Mutex::new(bytes))
    }

    fn with<T>(&self, offset: u64, length: usize, f: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let outside = || io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end of the file");
        let mut bytes = self.0.lock();
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = start.checked_add(length).ok_or_else(outside)?;
        Ok(f(bytes.get_mut(start..end).ok_or_else(outside)?))
    }
}

impl StorageBackend for Image {
    fn len(&self) -> io::Result<u64> {
        let bytes = self.0.lock();
        Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(offset, out.len(), |bytes| out.copy_from_slice(bytes))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let limit = self.len()?.saturating_add(GROWTH);
        let mut bytes = self.0.lock();
        let size = usize::try_from(len).ok().filter(|_| len <= limit);
        bytes.resize(
            size.ok_or_else(|| io::Error::other("its header asks for far more room than it has"))?,
            0,
        );
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    // Nobody else sees it: every lock is free.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
