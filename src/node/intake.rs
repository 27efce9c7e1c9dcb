//! Taking peers' records in: judged at once, saved and published together.
//!
//! A record has been checked before it comes here. What it says is judged against what is held, and only then is its
//! issuer charged: nobody pays for what others forge, repeat or make up. What is new waits a moment for more of its
//! kind, because each synced write and each message to the others costs the same for one record as for a hundred;
//! heads and grants wait less than announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Core;
use crate::api::types::Error;
use crate::limit::{Buckets, Limit};
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::{Digest, Verified};
use crate::model::restored::had_forgotten;

/// New announcements of one member taken at once, and a second after that: each is a synced write here and a message to
/// everybody. What is over waits for the next comparison, which brings only the newest.
const ANNOUNCEMENTS_AT_ONCE: u64 = 120;
/// New announcements of one member a second, after [`ANNOUNCEMENTS_AT_ONCE`].
const ANNOUNCEMENTS_PER_SECOND: u64 = 4;
/// How many members' rates are remembered.
const RATES: usize = 4096;
/// Shortest time between two writes of announcements.
const ANNOUNCEMENTS_EVERY: Duration = Duration::from_millis(50);
/// Shortest time between two writes of heads and grants.
const WORDS_EVERY: Duration = Duration::from_millis(10);
/// Time between two writes for each unit of time that one takes.
const SAVE_FACTOR: u32 = 3;
/// Records that wait to be saved before who sends more has to wait, too.
const CROWD: usize = 256;

/// How many signers are remembered as told of.
const TOLD: usize = 4096;

/// What became of records that came together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that are new.
    pub news: usize,
    /// Whether some wait because their member says too much.
    pub waiting: bool,
    /// Records whose signer nobody here knows.
    pub unknown: usize,
    /// Whether much waits to be saved: whoever sends more waits for [`Core::saved`] first.
    pub crowded: bool,
}

/// Records that wait to be saved, of one subnet.
#[derive(Default)]
struct Waiting {
    records: BTreeMap<Digest, (Verified, Option<PeerId>)>,
    /// The greatest announcement of each member among them: its version, and its digest, which decides between equal ones.
    announcements: BTreeMap<PeerId, (u64, Digest)>,
}

/// The received records that wait to be saved.
pub(super) struct Intake {
    subnets: BTreeMap<SubnetId, Waiting>,
    /// Records that are being saved just now.
    flying: BTreeMap<SubnetId, Waiting>,
    count: usize,
    /// Whether there is more than announcements among it.
    words: bool,
    /// Those who wait to be told that it is saved.
    askers: Vec<oneshot::Sender<bool>>,
    /// When something was last saved, and how long that took.
    last: Option<(Instant, Duration)>,
    rates: Buckets<PeerId>,
    /// Signers that were told of as saying what they may not, with the kind of record.
    told: BTreeSet<(SubnetId, PeerId, &'static str)>,
}

impl Default for Intake {
    fn default() -> Intake {
        Intake {
            subnets: BTreeMap::new(),
            flying: BTreeMap::new(),
            count: 0,
            words: false,
            askers: Vec::new(),
            last: None,
            rates: Buckets::new(
                Limit::new(ANNOUNCEMENTS_AT_ONCE, ANNOUNCEMENTS_PER_SECOND),
                RATES,
            ),
            told: BTreeSet::new(),
        }
    }
}

impl Intake {
    /// What was being saved is saved, or was refused, after so long.
    pub(super) fn landed(&mut self, took: Duration) {
        self.flying.clear();
        self.last = Some((Instant::now(), took));
    }

    /// When what waits shall be saved; none while nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.count == 0 && self.askers.is_empty() {
            return None;
        }
        let gap = if self.words {
            WORDS_EVERY
        } else {
            ANNOUNCEMENTS_EVERY
        };
        // A slow disk, too, leaves most of the thread's time to others.
        Some(self.last.map_or_else(Instant::now, |(at, took)| {
            at + took.saturating_mul(SAVE_FACTOR).max(gap)
        }))
    }
}

impl Intake {
    /// Lets a record wait, instead of the older announcement that it replaces.
    fn enter(&mut self, subnet: SubnetId, record: Verified, from: Option<PeerId>) {
        let waiting = self.subnets.entry(subnet).or_default();
        let (issuer, digest) = (record.signed().issuer, record.digest());
        let mut replaced = None;
        if let Verified::Announcement(announcement) = &record {
            let announcement = announcement.body();
            replaced = waiting
                .announcements
                .insert(issuer, (announcement.version, digest));
            self.words |= announcement.left.is_some();
        }
        self.words |= record.is_roll();
        if replaced.is_some_and(|(_, old)| waiting.records.remove(&old).is_some()) {
            self.count = self.count.saturating_sub(1);
        }
        waiting.records.insert(digest, (record, from));
        self.count = self.count.saturating_add(1);
    }
}

impl Core {
    /// Judges checked records that `from` sent. What is new is saved within 50 ms, together with what else comes.
    pub fn receive(
        &mut self,
        subnet: SubnetId,
        records: Vec<Verified>,
        from: Option<PeerId>,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let now = Instant::now();
        for record in records {
            let Some(held) = self.state.subnets.get(&subnet) else {
                return verdict;
            };
            let digest = record.digest();
            let waiting = self.intake.subnets.entry(subnet).or_default();
            let flying = self.intake.flying.get(&subnet);
            let waits = |waiting: &Waiting| waiting.records.contains_key(&digest);
            if self.known.holds(subnet, &digest) || waits(waiting) || flying.is_some_and(waits) {
                continue;
            }
            let issuer = record.signed().issuer;
            let waits = [Some(&*waiting), flying].into_iter().flatten();
            let waits = waits.filter_map(|w| w.announcements.get(&issuer).copied());
            let said = held.records.announcement(issuer);
            let greatest = held.records.announcement_rank(issuer);
            let greatest = greatest.into_iter().chain(waits).max();
            // As where records are held: two members that have different ones of one version agree on one of them.
            let is_old = |version: u64| greatest.is_some_and(|held| held >= (version, digest));
            if matches!(&record, Verified::Announcement(new) if is_old(new.body().version)) {
                continue;
            }
            // What its issuer has replaced, or has no room for, is not charged to it again, whoever hands it in.
            if matches!(&record, Verified::Item(item) if !held.records.has_use_for(issuer, item.body(), &digest))
            {
                continue;
            }
            // The owner's and admins' words are never put off, nor is a goodbye, whatever its member said before: it makes
            // room. What nobody known says has no rate of its own.
            let left = said.and_then(|d| d.left);
            let known = held.records.is_subject(issuer);
            let goodbye = known
                && matches!(&record, Verified::Announcement(announcement) if announcement.body().left > left);
            if matches!(record, Verified::Announcement(_) | Verified::Item(_)) && !goodbye {
                if known && !self.intake.rates.take(issuer, 1, now) {
                    verdict.waiting = true;
                    continue;
                }
                verdict.unknown = verdict.unknown.saturating_add(usize::from(!known));
            }
            self.intake.enter(subnet, record, from);
            verdict.news = verdict.news.saturating_add(1);
        }
        if verdict.waiting {
            tracing::debug!(%subnet, ?from, "a member publishes too often; its records wait");
        }
        verdict.crowded = self.intake.count >= CROWD;
        verdict
    }

    /// Tells when everything received so far is saved, and whether it could be.
    pub fn saved(&mut self) -> oneshot::Receiver<bool> {
        let (tell, told) = oneshot::channel();
        self.intake.askers.push(tell);
        told
    }

    /// Decides about what was received: one synced write for all of it.
    ///
    /// # Errors
    /// The last of the errors, where some could not be decided on: the others send them again.
    pub(super) fn save_received(&mut self) -> Result<(), Error> {
        let subnets = std::mem::take(&mut self.intake.subnets);
        let askers = std::mem::take(&mut self.intake.askers);
        let worded = std::mem::take(&mut self.intake.words);
        self.intake.count = 0;
        let mut done = Ok(());
        for (subnet, waiting) in subnets.iter().filter(|(_, w)| !w.records.is_empty()) {
            if let Err(error) = self.save_records(*subnet, waiting, worded) {
                tracing::warn!(%error, "records from peers were not saved");
                done = Err(error);
            }
        }
        match &mut self.decided {
            Some(decided) => {
                decided.received(askers);
                self.intake.flying = subnets;
            }
            // Nothing of it was new after all.
            None => {
                self.intake.landed(Duration::ZERO);
                for asker in askers {
                    // Whoever asked may have gone.
                    let _ = asker.send(done.is_ok());
                }
            }
        }
        done
    }

    fn save_records(
        &mut self,
        subnet: SubnetId,
        waiting: &Waiting,
        urgent: bool,
    ) -> Result<(), Error> {
        let mut from: BTreeMap<Digest, PeerId> = BTreeMap::new();
        let mut records = Vec::with_capacity(waiting.records.len());
        for (digest, (record, sender)) in &waiting.records {
            from.extend(sender.map(|sender| (*digest, sender)));
            records.push(record.clone());
        }
        // Who admits comes before who is admitted, and both before what they say: fewer records have to wait.
        records.sort_by_key(Verified::rank);
        let taken = self.state.take(subnet, &records);
        self.tell_of_overstepping(subnet, &records, &from);
        let Some((mut draft, news)) = taken else {
            return Ok(());
        };
        if news.is_empty() {
            // Something was parked, which is neither saved nor told and which nothing follows from.
            return self.settle(draft, &from).map(drop);
        }
        let forked = |core: &Core| {
            core.state
                .subnets
                .get(&subnet)
                .is_some_and(|s| s.records.forked())
        };
        let before = forked(self);
        let now = super::unix_now();
        let me = self.state.me.peer;
        if had_forgotten(
            news.iter().filter(|record| record.signed().issuer == me),
            now,
        ) {
            self.forgot(subnet, draft.withdraw_invites(subnet, now), now);
        }
        let withdrawn = if records.iter().any(Verified::is_roll) {
            draft.withdraw_former_invites(subnet, me, now)
        } else {
            0
        };
        if withdrawn > 0 {
            tracing::warn!(%subnet, withdrawn, "open invites are withdrawn: this node lost the seat in which it made them");
        }
        self.settle(draft, &from)?;
        self.want_view(urgent);
        if forked(self) && !before {
            self.forks.insert(subnet, super::unix_now());
            tracing::warn!(
                %subnet,
                "the owner signed two heads with one number: was it restored from a backup, or does it run twice? What \
                 either of them takes away is taken away"
            );
        }
        Ok(())
    }

    /// Notes for people that this state was older than what others had of it, and what that cost.
    fn forgot(&mut self, subnet: SubnetId, withdrawn: usize, now: u64) {
        let before = self
            .restored
            .get(&subnet)
            .map_or(0, |(_, invites)| *invites);
        if withdrawn > 0 {
            let why = "others have what this node signed and does not know: was it restored from a backup?";
            tracing::warn!(%subnet, withdrawn, "open invites are withdrawn: {why}");
        }
        self.restored
            .insert(subnet, (now, before.saturating_add(withdrawn)));
    }

    /// Names in the log who says what it has no right to say: a member that signed it, else the member that handed it in.
    /// Once for each of them and kind of record, however often it is sent, so that nobody can fill the log.
    fn tell_of_overstepping(
        &mut self,
        id: SubnetId,
        records: &[Verified],
        from: &BTreeMap<Digest, PeerId>,
    ) {
        let Some(subnet) = self.state.subnets.get(&id) else {
            return;
        };
        for record in records
            .iter()
            .filter(|record| subnet.records.oversteps(record))
        {
            let (signer, kind) = (record.signed().issuer, record.kind());
            let sender = from.get(&record.digest()).copied();
            let member = |peer: &PeerId| subnet.records.is_subject(*peer);
            let Some(peer) = Some(signer)
                .filter(member)
                .or_else(|| sender.filter(member))
            else {
                continue;
            };
            if self.intake.told.len() >= TOLD {
                self.intake.told.clear();
            }
            if self.intake.told.insert((id, peer, kind)) {
                let by = if peer == signer {
                    "signed"
                } else {
                    "handed in"
                };
                tracing::warn!(subnet = %subnet.name(), %peer, kind, by, "refused: its signer has no right to say so");
            }
        }
    }

    /// Takes checked records in and saves them before it returns: for the few that decide what this node answers next.
    ///
    /// # Errors
    /// When they could not be saved.
    pub fn take(
        &mut self,
        subnet: SubnetId,
        records: Vec<Verified>,
        from: Option<PeerId>,
    ) -> Result<Verdict, Error> {
        let verdict = self.receive(subnet, records, from);
        self.save_received()?;
        Ok(verdict)
    }
}
