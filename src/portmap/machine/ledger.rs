//! What a router may have open for this machine, and what is owed to it.

use std::time::Instant;

use super::super::Record;
use super::super::records::MAX_RECORDS;
use super::{REMOVALS, ROUNDS};

/// A record, and how often its removal failed.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: Record,
    /// Whether the router said, now or to a daemon before this one, that it opened it, or may have said so.
    is_opened: bool,
    removals: u32,
    due: Option<Instant>,
}

impl Kept {
    /// Whether its removal may be tried now; where that failed often enough, never.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.removals < REMOVALS && self.due.is_none_or(|due| due <= now)
    }

    /// When its removal is tried again, where it has failed.
    pub(super) fn again(&self) -> Option<Instant> {
        self.due.filter(|_| self.removals < REMOVALS)
    }
}

/// The records of one router: as many as [`MAX_RECORDS`], of which the first to end gives way.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    all: Vec<Kept>,
}

impl Ledger {
    /// Begins with what was saved before.
    pub(super) fn new(records: Vec<Record>) -> Ledger {
        let mut ledger = Ledger::default();
        for record in records {
            ledger.keep(record, true);
        }
        ledger
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.all.iter()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.all.iter().map(|kept| &kept.record)
    }

    /// Keeps a record in place of the one before of the same mapping.
    pub(super) fn keep(&mut self, record: Record, is_opened: bool) {
        let same = self.all.iter().find(|kept| kept.record.is_same(&record));
        let is_opened = is_opened || same.is_some_and(|kept| kept.is_opened);
        self.forget(&record);
        if self.all.len() >= MAX_RECORDS {
            let first = self.all.iter().enumerate();
            let first = first.min_by_key(|(_, kept)| kept.record.until);
            if let Some((at, _)) = first {
                self.all.remove(at);
            }
        }
        self.all.push(Kept {
            record,
            is_opened,
            removals: 0,
            due: None,
        });
    }

    /// The port may be open, whatever is said of it later.
    pub(super) fn mark_opened(&mut self, record: &Record) {
        let mut same = self.all.iter_mut();
        if let Some(kept) = same.find(|kept| kept.record.is_same(record)) {
            kept.is_opened = true;
        }
    }

    /// Nothing was opened, so that nothing is owed. Of what was open before the record stays: an answer may be lost.
    pub(super) fn drop_unopened(&mut self, record: &Record) {
        self.all
            .retain(|kept| kept.is_opened || !kept.record.is_same(record));
    }

    /// The mapping is there no more.
    pub(super) fn forget(&mut self, record: &Record) {
        self.all.retain(|kept| !kept.record.is_same(record));
    }

    /// What has ended by itself is owed no more.
    pub(super) fn forget_ended(&mut self, unix: u64) {
        self.all.retain(|kept| kept.record.until > unix);
    }

    /// The router did not say that it removed it: it is tried again, a few times.
    pub(super) fn not_removed(&mut self, now: Instant, record: &Record) {
        let same = self.all.iter_mut();
        for kept in same.filter(|kept| kept.record.is_same(record)) {
            kept.due = Some(now + ROUNDS.pause(kept.removals));
            kept.removals = kept.removals.saturating_add(1);
        }
    }

    /// Removals are tried at once, and as often as if none had failed.
    pub(super) fn try_anew(&mut self) {
        for kept in &mut self.all {
            (kept.removals, kept.due) = (0, None);
        }
    }
}
