//! The packet filter and the port maps: one table, `inet byway_INSTANCE`, and nothing outside it.
//!
//! Owns that table. Port maps, leases and links are *elements* of its sets and maps; the rules never change while a
//! subnet is up, so `nft -s list ruleset` after `map rm` is what it was before `map add`. Elements change as deltas,
//! one transaction each; the table is written whole only at start and when somebody flushed or altered it.
//!
//! Drives the `nft` program, but for changes of port maps alone, which are one netlink message (`batch`). The `nftables` crate's types carry the deltas (elements, as JSON). Text carries the
//! table itself, and listings are read here field by field, because nft 1.0.6 and the crate cannot do otherwise; see
//! `ruleset` and `counters`.
//!
//! Never touches another table, and cannot overrule one: a drop in anyone's chain wins over an accept of ours.
//! Loopback maps are the `proxy`'s: rewriting loopback needs `route_localnet`, which opens it to the LAN.

mod atom;
mod batch;
mod counters;
mod elements;
pub mod features;
#[cfg(test)]
mod kernel_tests;
mod owed;
pub(super) mod probes;
mod refused;
mod ruleset;
pub(super) mod run;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tracing::{debug, warn};

pub use atom::MapKey;
pub use counters::{Count, MapCount};
pub use refused::Refused;
pub use run::Error;
pub use watch::Watcher;

use crate::model::host::{Barred, Crowd, Failure, HostConfig};
use crate::model::id::SubnetId;
use atom::{CLOSED, Tuple};
use batch::Writer;
use counters::{Counters, Listing};
use elements::Elements;
use owed::Owed;
use run::{OwnRuns, nft};

/// What every table of ours is called, before the instance.
pub(super) const TABLE_PREFIX: &str = "byway_";

/// How often the table is looked at even though nobody reported a change; rarer where a look takes long.
const VERIFY_EVERY: Duration = Duration::from_secs(30);
/// A look takes at most one part in so many of the time: one at ten thousand maps keeps a core busy for a second.
const LOOKING: u32 = 100;

/// What this process last wrote, and how the kernel printed its rules.
#[derive(Debug)]
struct Applied {
    elements: Arc<Elements>,
    /// None where another program changed the ruleset before the rules could be read back: what was read may be what that
    /// program made of them, and must not be taken for what was written.
    skeleton: Option<Vec<Value>>,
    verified: Instant,
    /// How long after that the next look is due.
    pause: Duration,
}

/// How long nobody looks after a look, or a whole table, that took so long.
fn pause(took: Duration) -> Duration {
    VERIFY_EVERY.max(took.saturating_mul(LOOKING))
}

/// Our table in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Nft {
    table: String,
    applied: Option<Applied>,
    /// The latest counts seen: what a repaired table goes on from.
    seen: Mutex<Counters>,
    own: Arc<OwnRuns>,
    altered: Arc<AtomicBool>,
    watched: Arc<AtomicBool>,
    repair: Repair,
    /// The subnet of each link, as last written.
    subnets: BTreeMap<String, SubnetId>,
    /// What was refused on links that are gone.
    closed_before: BTreeMap<SubnetId, u64>,
    /// Whether this process has written a table.
    written: bool,
    /// How many times the table was changed or looked at to change it: a listing of before may say what is no more.
    passes: u64,
    owed: Owed,
    /// The socket by which port maps change.
    writer: Option<Writer>,
}

/// Lists the table of a [`Nft`] while others use that: where there are many maps it takes a while.
#[derive(Debug)]
pub(super) struct Lister {
    table: String,
    own: Arc<OwnRuns>,
    passes: u64,
}

impl Lister {
    /// Reads the counters; none where there is no table.
    ///
    /// # Errors
    /// nft is missing or refused.
    pub(super) async fn list(&self) -> Result<Option<Counters>, Error> {
        let listing = list(&self.table, &self.own).await?;
        Ok(listing.map(|listing| listing.counters))
    }
}

/// What happens when someone else changes our table: `[firewall] repair`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It is put back within a second.
    Yes,
    /// It is left as they made it until something here changes the ruleset or the daemon starts again.
    No,
}

/// What our table has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Per port map. Those of loopback clients are the proxy's.
    pub maps: BTreeMap<MapKey, MapCount>,
    /// Dropped packets by reason: `filtered`, `flood`, `source_not_leased`, `weak_host`.
    pub drops: BTreeMap<String, Count>,
    /// Packets refused of what was asked of this machine itself, by subnet.
    pub closed: BTreeMap<SubnetId, u64>,
    /// Hardware addresses that were used at a TAP in the last two minutes and are not its virtual machine's, by the TAP.
    pub strangers: BTreeMap<String, BTreeSet<String>>,
}

impl Nft {
    /// The table of the daemon `instance` (eight hex digits). Changes nothing.
    pub fn new(instance: &str, repair: Repair) -> Self {
        // The name goes into text: whatever is no letter or digit cannot be part of it.
        let instance: String = instance
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        Nft {
            table: format!("{TABLE_PREFIX}{instance}"),
            applied: None,
            seen: Mutex::default(),
            own: Arc::default(),
            altered: Arc::default(),
            watched: Arc::default(),
            repair,
            subnets: BTreeMap::new(),
            closed_before: BTreeMap::new(),
            written: false,
            passes: 0,
            owed: Owed::default(),
            writer: None,
        }
    }

    /// Our runs, for whoever else runs programs that change rules.
    pub(super) fn own(&self) -> Arc<OwnRuns> {
        Arc::clone(&self.own)
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Brings the table to what `desired` needs, `barred` shut and `crowd` beginning nothing; without a TUN there is no
    /// table.
    ///
    /// Returns what could not be done of it (a map of a port that is taken); the rest is done.
    /// Flows of maps that went, lead elsewhere or let in other clients are ended before this returns, and so are those
    /// to the machine itself that a subnet's policy no longer lets in.
    ///
    /// # Errors
    /// nft is missing or refused; the table is then as it was.
    ///
    /// # Cancel safety
    /// The next call looks at the table first.
    pub async fn sync(
        &mut self,
        desired: &HostConfig,
        barred: &Barred,
        crowd: &Crowd,
    ) -> Result<Vec<Failure>, Error> {
        self.passes = self.passes.wrapping_add(1);
        if desired.tuns.is_empty() {
            self.remove_all().await?;
            return Ok(Vec::new());
        }
        let (target, mut failures) = Elements::of(desired, barred, crowd);
        let target = Arc::new(target);
        self.keep_closed(&target).await?;
        // Taken: a call that is dropped or fails half-way leaves no belief behind.
        let (before, applied) = match self.applied.take() {
            Some(mut applied) => {
                if self.is_fresh(&applied, &target) || self.verify(&mut applied).await? {
                    self.change(applied, &target).await?
                } else {
                    // Flows of before the flush are still those of the maps known here.
                    (applied.elements, self.write_whole(&target).await?.1)
                }
            }
            None => self.write_whole(&target).await?,
        };
        self.applied = Some(applied);
        failures.extend(self.owed.settle(&before, &target, desired).await);
        self.subnets = subnets_of_links(desired);
        Ok(failures)
    }

    /// Deletes the table and ends the flows of its maps. No table, no error.
    ///
    /// # Errors
    /// nft is missing (and a table of ours was written) or refused.
    pub async fn remove_all(&mut self) -> Result<(), Error> {
        // What was written is known: at a stop there is no time to list many thousand elements.
        if let Some(applied) = self.applied.take() {
            delete_table(&self.table, &self.own).await?;
            return self.removed(&applied.elements).await;
        }
        let listing = match self.list().await {
            Ok(listing) => listing,
            // This process wrote none: a machine without nft, or without the right to use it, has nothing to remove.
            Err(error) if !self.written => {
                debug!(%error, "whether a table of an earlier run is there cannot be seen");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if listing.is_some() {
            delete_table(&self.table, &self.own).await?;
        }
        let before = listing.map(|listing| listing.elements);
        self.removed(&before.unwrap_or_default()).await
    }

    /// Does what is owed to the flows of maps once the table is gone.
    async fn removed(&mut self, before: &Elements) -> Result<(), Error> {
        debug!(table = self.table, "no nftables table of ours is left");
        *self.seen.lock() = Counters::default();
        let (nothing, nobody) = (Elements::default(), HostConfig::default());
        for failure in self.owed.settle(before, &nothing, &nobody).await {
            let Failure { what, why, .. } = failure;
            warn!(what, why, "flows of removed maps go on");
        }
        Ok(())
    }

    /// Reads the counters. No table: none.
    ///
    /// # Errors
    /// nft is missing or refused.
    pub async fn counters(&self) -> Result<Counts, Error> {
        Ok(self.counted(self.lister().list().await?))
    }

    /// Who lists the table without this.
    pub(super) fn lister(&self) -> Lister {
        Lister {
            table: self.table.clone(),
            own: self.own(),
            passes: self.passes,
        }
    }

    /// Whether nothing was changed since that one was made.
    pub(super) fn is_as_for(&self, lister: &Lister) -> bool {
        self.passes == lister.passes
    }

    /// What was listed, with what was counted before.
    pub(super) fn counted(&self, listed: Option<Counters>) -> Counts {
        let Some(mut counters) = listed else {
            return Counts::default();
        };
        // Between a flush and the repair the last figures still stand.
        let mut seen = self.seen.lock();
        counters.keep(&seen);
        if let Some(applied) = &self.applied {
            counters.retain(&applied.elements);
        }
        *seen = counters.clone();
        let mut closed = self.closed_before.clone();
        add_closed(&mut closed, &counters, &self.subnets);
        Counts {
            maps: counters.maps(),
            drops: counters.drops,
            closed,
            strangers: counters.strangers,
        }
    }

    /// Keeps what was counted on links that go.
    async fn keep_closed(&mut self, target: &Elements) -> Result<(), Error> {
        let stay: BTreeSet<&Tuple> = target.in_set(CLOSED).map(|(key, _)| key).collect();
        let Some(applied) = &self.applied else {
            return Ok(());
        };
        let goes: Vec<Tuple> = applied
            .elements
            .in_set(CLOSED)
            .map(|(key, _)| key)
            .filter(|key| !stay.contains(key))
            .cloned()
            .collect();
        if goes.is_empty() {
            return Ok(());
        }
        let Some(mut counters) = self.list().await?.map(|l| l.counters) else {
            return Ok(());
        };
        counters.keep(&self.seen.lock());
        if let Some(counts) = counters.sets.get_mut(CLOSED) {
            counts.retain(|key, _| goes.contains(key));
        }
        add_closed(&mut self.closed_before, &counters, &self.subnets);
        let live: BTreeSet<SubnetId> = self.subnets.values().copied().collect();
        self.closed_before.retain(|subnet, _| live.contains(subnet));
        Ok(())
    }

    /// Subscribes to changes of the table by others; see [`Watcher`].
    ///
    /// # Errors
    /// The netlink socket cannot be opened.
    pub fn watch(&self) -> std::io::Result<Watcher> {
        Watcher::new(self)
    }

    /// Whether what was written still stands, as far as is known. Who waits for a change does not wait for a look at the
    /// whole table as well, as long as another pass comes in time.
    fn is_fresh(&self, applied: &Applied, target: &Arc<Elements>) -> bool {
        if self.repair == Repair::No {
            return true;
        }
        let watched = self.watched.load(Ordering::Acquire) && !self.altered.load(Ordering::Acquire);
        let since = applied.verified.elapsed();
        let pause = applied.pause;
        watched && (since < pause || since < pause * 2 && applied.elements != *target)
    }

    /// Whether the kernel still holds what was written.
    async fn verify(&self, applied: &mut Applied) -> Result<bool, Error> {
        let begun = Instant::now();
        // Before listing: what changes meanwhile raises it again.
        self.altered.store(false, Ordering::Release);
        let listing = match self.list().await {
            Ok(listing) => listing,
            // Not readable is not as we wrote it.
            Err(Error::Listing(_)) => None,
            Err(error) => {
                self.altered.store(true, Ordering::Release);
                return Err(error);
            }
        };
        let same =
            |l: Listing| l.elements.same(&applied.elements) && applied.skeleton == Some(l.skeleton);
        let intact = listing.is_some_and(same);
        if intact {
            applied.verified = Instant::now();
            applied.pause = pause(begun.elapsed());
        } else if applied.skeleton.is_none() {
            debug!(
                table = self.table,
                "nobody can say whether the nftables table is as it was written: writing it again"
            );
        } else {
            warn!(
                table = self.table,
                "nftables table was removed or altered by another program: writing it again"
            );
        }
        Ok(intact)
    }

    /// Sends the difference; where the kernel refuses it, the whole table.
    async fn change(
        &mut self,
        mut applied: Applied,
        target: &Arc<Elements>,
    ) -> Result<(Arc<Elements>, Applied), Error> {
        let delta = applied.elements.delta(target);
        if delta.is_empty() {
            return Ok((Arc::clone(target), applied));
        }
        if batch::send(&self.table, &delta, &mut self.writer, &self.own).await {
            let before = std::mem::replace(&mut applied.elements, Arc::clone(target));
            self.seen.lock().forget(&delta.delete);
            return Ok((before, applied));
        }
        let what = "change elements";
        let input = serde_json::to_vec(&delta.commands(&self.table)).map_err(|e| Error::Run {
            what,
            source: std::io::Error::other(e),
        })?;
        match nft(what, &["-j", "-f", "-"], &input, &self.own).await {
            Ok(_) => {
                let before = std::mem::replace(&mut applied.elements, Arc::clone(target));
                self.seen.lock().forget(&delta.delete);
                Ok((before, applied))
            }
            Err(Error::Refused { stderr, .. }) => {
                debug!(stderr, "element changes refused: writing the table whole");
                let (_, written) = self.write_whole(target).await?;
                Ok((applied.elements, written))
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the table in one transaction. Returns what the kernel held before.
    async fn write_whole(
        &mut self,
        target: &Arc<Elements>,
    ) -> Result<(Arc<Elements>, Applied), Error> {
        let begun = Instant::now();
        self.altered.store(false, Ordering::Release);
        // What cannot be read is replaced all the same: nothing of it is ours to keep.
        let old = match self.list().await {
            Err(Error::Listing(_)) | Ok(None) => Listing::default(),
            Ok(Some(old)) => old,
            Err(error) => return Err(error),
        };
        let mut counters = old.counters;
        {
            let mut seen = self.seen.lock();
            counters.keep(&seen);
            counters.retain(target);
            *seen = counters.clone();
        }
        let text = ruleset::whole(&self.table, target, &counters);
        let before = watch::generation();
        nft("write the table", &["-f", "-"], text.as_bytes(), &self.own).await?;
        self.written = true;
        debug!(table = self.table, "nftables table written");
        let skeleton = skeleton(&self.table, &self.own).await?;
        // One transaction since then, which is ours: nobody else had a hand in what was read.
        let alone = before
            .zip(watch::generation())
            .is_some_and(|(before, now)| now == before.wrapping_add(1));
        let skeleton = skeleton.filter(|_| alone);
        Ok((
            Arc::new(old.elements),
            Applied {
                elements: Arc::clone(target),
                skeleton,
                verified: Instant::now(),
                pause: pause(begun.elapsed()),
            },
        ))
    }

    async fn list(&self) -> Result<Option<Listing>, Error> {
        let mut listing = list(&self.table, &self.own).await?;
        if let Some(listing) = &mut listing {
            listing.elements.gather();
        }
        Ok(listing)
    }
}

/// Our own table, and no other: what other programs write there need not parse.
async fn list(table: &str, own: &OwnRuns) -> Result<Option<Listing>, Error> {
    listing(&["-j", "list", "table", "inet", table], table, own).await
}

/// How the kernel prints our table without its elements, which are many: none where there is no table.
async fn skeleton(table: &str, own: &OwnRuns) -> Result<Option<Vec<Value>>, Error> {
    let args = ["-j", "-t", "list", "table", "inet", table];
    let listed = listing(&args, table, own).await?;
    Ok(listed.map(|listing| listing.skeleton))
}

async fn listing(args: &[&str], table: &str, own: &OwnRuns) -> Result<Option<Listing>, Error> {
    match nft("list the table", args, &[], own).await {
        Ok(json) => Listing::parse(&json)
            .map(Some)
            .ok_or_else(|| Error::Listing(table.to_owned())),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds what was refused on each link to its subnet's.
fn add_closed(
    closed: &mut BTreeMap<SubnetId, u64>,
    counters: &Counters,
    subnets: &BTreeMap<String, SubnetId>,
) {
    for (link, packets) in counters.closed() {
        if let Some(subnet) = subnets.get(&link) {
            let sum = closed.entry(*subnet).or_default();
            *sum = sum.saturating_add(packets);
        }
    }
}

/// The subnet of each link of ours.
fn subnets_of_links(config: &HostConfig) -> BTreeMap<String, SubnetId> {
    let tuns = config.tuns.iter().map(|t| (t.name.clone(), t.subnet));
    tuns.chain(
        config
            .workloads
            .iter()
            .map(|w| (w.host_link.clone(), w.subnet)),
    )
    .collect()
}

async fn delete_table(table: &str, own: &OwnRuns) -> Result<(), Error> {
    let gone = nft(
        "delete the table",
        &["delete", "table", "inet", table],
        &[],
        own,
    )
    .await;
    match gone {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// Deletes the table of `instance`, or every table that bears our name, and returns the names of those deleted.
///
/// # Errors
/// nft refused. That it is missing is none: nothing can be there.
pub async fn cleanup(instance: Option<&str>) -> Result<Vec<String>, Error> {
    let own = OwnRuns::default();
    let listed = match nft("list tables", &["list", "tables", "inet"], &[], &own).await {
        Err(Error::Missing) => return Ok(Vec::new()),
        listed => listed?,
    };
    let listed = String::from_utf8_lossy(&listed);
    let mut deleted = Vec::new();
    for table in listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table inet "))
    {
        let ours = table
            .strip_prefix(TABLE_PREFIX)
            .is_some_and(|of| instance.is_none_or(|wanted| wanted == of));
        if ours {
            let mut nft = Nft::new(
                table.strip_prefix(TABLE_PREFIX).unwrap_or_default(),
                Repair::No,
            );
            // It was listed a moment ago.
            nft.written = true;
            nft.remove_all().await?;
            deleted.push(table.to_owned());
        }
    }
    Ok(deleted)
}

/// Reads a listing and makes of it what a comparison with the wanted state makes, for tests/fuzz.
#[cfg(any(fuzzing, test))]
pub fn fuzz(json: &[u8]) {
    let Some(listing) = counters::Listing::parse(json) else {
        return;
    };
    let empty = Elements::default();
    assert!(listing.elements.same(&listing.elements));
    let mut gathered = listing.elements.clone();
    gathered.gather();
    assert_eq!(gathered.spelled_out(), listing.elements.spelled_out());
    for delta in [
        listing.elements.delta(&empty),
        empty.delta(&listing.elements),
    ] {
        let _ = delta.commands("byway_00000000");
    }
    let _ = (listing.elements.ended(&empty), listing.counters.maps());
    let _ = ruleset::whole("byway_00000000", &listing.elements, &listing.counters);
}
