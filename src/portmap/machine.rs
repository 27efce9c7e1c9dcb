//! What is asked of the router when: a pure machine, with time and random numbers as arguments.
//!
//! Each port goes through rounds. A round tries the protocols one after the other, the one that answered last first, until
//! one opens the port. A port that is open is asked for again at half of its time, and at once when a link or an address
//! changes or the router has begun anew. A round in vain is followed by another, later and later.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod ledger;

use std::time::{Duration, Instant};

use self::ledger::{Kept, Ledger};
use super::status::{Mapping, Status, Trouble};
use super::{
    Failure, Gateway, Granted, MAX_PORTS, Order, Port, Protocol, Record, Situation, Why, is_public,
};
use crate::backoff::Backoff;

/// Seconds that a port is asked to be open: RFC 6886 recommends two hours.
const LEASE: u32 = 7200;
/// What is open for a shorter time cannot be kept open without asking all the time.
const SHORTEST: u32 = 20;
/// A longer time is not believed: routers forget.
const LONGEST: u32 = 86_400;
/// A port is asked for again after this at the latest: a router that began anew does not always say so.
const RENEW_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Between two questions for one port, at the least.
const LEAST_PAUSE: Duration = Duration::from_secs(10);
/// Between rounds in vain.
const ROUNDS: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(3600));
/// Changes of links that come within this are one.
const SETTLED: Duration = Duration::from_secs(2);
/// External ports tried where others belong to other machines.
const PORTS_TRIED: u32 = 4;
/// Tries to remove what is owed, before it is left to its end or to the next start.
const REMOVALS: u32 = 3;
/// No router gives out ports below this one; well-known services have them.
const UNPRIVILEGED: u32 = 1024;

/// One of our ports.
#[derive(Debug)]
struct Entry {
    port: Port,
    held: Option<Mapping>,
    /// When the router opened it last, or kept it open.
    granted: Option<Instant>,
    /// When it is asked for next.
    due: Instant,
    /// The protocols that failed in this round.
    tried: Vec<Protocol>,
    /// The most telling of these failures.
    worst: Option<(Protocol, Failure)>,
    /// The external port to ask for, and how many were somebody else's.
    external: u16,
    in_use: u32,
    /// Whether the router opens ports for ever only.
    is_permanent: bool,
    nonce: Option<[u32; 3]>,
    /// Rounds in vain, in a row.
    failures: u32,
    /// Why the last round was in vain.
    trouble: Option<Trouble>,
}

impl Entry {
    fn new(now: Instant, port: Port) -> Entry {
        Entry {
            port,
            held: None,
            granted: None,
            due: now,
            tried: Vec::new(),
            worst: None,
            external: port.number,
            in_use: 0,
            is_permanent: false,
            nonce: None,
            failures: 0,
            trouble: None,
        }
    }

    /// Begins a round anew.
    fn begin(&mut self, at: Instant) {
        self.tried.clear();
        (self.worst, self.failures, self.in_use, self.due) = (None, 0, 0, at);
    }
}

/// Asks a router for ports, by [`Order`]s that somebody carries out one after the other.
#[derive(Debug, Default)]
pub struct Machine {
    situation: Situation,
    entries: Vec<Entry>,
    records: Ledger,
    /// The protocol that answered last.
    answers: Option<Protocol>,
    /// What the router said of its age, and when.
    epoch: Option<(Protocol, u32, Instant)>,
    /// When the last change of a link was followed.
    followed: Option<Instant>,
    /// Whether a round has ended since the router is known.
    is_known: bool,
    is_unsaved: bool,
    is_without_random: bool,
    /// Pauses in a row because nothing could be asked for.
    put_off: u32,
}

impl Machine {
    /// Begins with what was saved before.
    pub fn new(records: Vec<Record>) -> Machine {
        Machine {
            records: Ledger::new(records),
            ..Machine::default()
        }
    }

    /// Takes what is to be mapped now, in place of what was.
    pub fn set(&mut self, now: Instant, mut situation: Situation) {
        situation.ports.sort_unstable();
        situation.ports.dedup();
        situation.ports.truncate(MAX_PORTS);
        if situation == self.situation {
            return;
        }
        let is_moved = situation.gateway != self.situation.gateway;
        self.situation = situation;
        if is_moved {
            // Whatever the router before this one opened leads here no more.
            self.entries.clear();
            (self.answers, self.epoch, self.is_known) = (None, None, false);
            self.records.try_anew();
        }
        let ports: &[Port] = match self.asked() {
            Some(_) => &self.situation.ports,
            None => &[],
        };
        self.entries.retain(|entry| ports.contains(&entry.port));
        for port in ports {
            if !self.entries.iter().any(|entry| entry.port == *port) {
                self.entries.push(Entry::new(now, *port));
            }
        }
        self.entries.sort_by_key(|entry| entry.port);
        self.take_over();
    }

    /// What a daemon before this one asked for is asked for again, by the same name.
    fn take_over(&mut self) {
        let Some(gateway) = self.situation.gateway else {
            return;
        };
        for entry in self.entries.iter_mut().filter(|e| e.held.is_none()) {
            let mut records = self.records.records();
            if let Some(record) =
                records.find(|record| record.gateway == gateway && record.port == entry.port)
            {
                (entry.external, entry.nonce) = (record.external, Some(record.nonce));
                self.answers = self.answers.or(Some(record.protocol));
            }
        }
    }

    /// The router that is asked; none where there is nothing to ask, or nothing to gain.
    fn asked(&self) -> Option<Gateway> {
        let is_wanted = self.situation.is_enabled && !self.situation.ports.is_empty();
        let gateway = self.situation.gateway.filter(|_| is_wanted);
        // A private address of IPv4 wants a port of the router; only a public one of IPv6 can have a pinhole.
        gateway.filter(|gateway| gateway.local.is_ipv6() == is_public(gateway.local))
    }

    /// A link, an address or a route has changed: whatever the router opened is asked for again at once.
    pub fn changed(&mut self, now: Instant) {
        let at = match self.followed {
            // It joins the change that is still to be followed: a storm of them puts nothing off.
            Some(followed) if followed > now => followed,
            Some(followed) => now.max(followed + SETTLED),
            None => now,
        };
        self.followed = Some(at);
        // What is to be asked for now, or before that, waits for nothing.
        for entry in self.entries.iter_mut().filter(|entry| entry.due > now) {
            entry.begin(at.min(entry.due));
        }
        self.records.try_anew();
    }

    /// The next question, where it is time for one. Whoever takes it saves [`records`](Self::records), asks, and says in
    /// [`done`](Self::done) what came of it. `unix` is the time in seconds since 1970. Where `random` has nothing, no port is
    /// asked for until a pause is over: whoever guesses the nonce of a mapping may remove it.
    pub fn poll(
        &mut self,
        now: Instant,
        unix: u64,
        random: &mut dyn FnMut() -> Option<u32>,
    ) -> Option<Order> {
        self.forget(now, unix);
        let gateway = self.situation.gateway?;
        let is_next = |kept: &&Kept| self.is_owed(kept) && kept.is_due(now);
        let owed = self.records.iter().find(is_next).map(|kept| kept.record);
        if let Some(record) = owed {
            return Some(Order::Remove(record));
        }
        self.asked()?;
        let answers = self.answers;
        let entry = self.entries.iter_mut().find(|entry| entry.due <= now)?;
        let order = answers.iter().chain(Protocol::of(gateway));
        let protocol = order
            .into_iter()
            .find(|protocol| !entry.tried.contains(protocol))
            .copied()?;
        let drawn = entry
            .nonce
            .or_else(|| Some([random()?, random()?, random()?]));
        entry.nonce = drawn;
        let Some(nonce) = drawn else {
            self.is_without_random = true;
            self.put_off(now);
            return None;
        };
        self.is_without_random = false;
        let lease = if entry.is_permanent && protocol == Protocol::Upnp {
            0
        } else {
            LEASE
        };
        if entry.in_use > 0 && entry.external == entry.port.number {
            let above = u32::from(u16::MAX) - UNPRIVILEGED + 1;
            // It need not be hard to guess: without randomness its own nonce says which one.
            let port = UNPRIVILEGED + random().unwrap_or(nonce[0]) % above;
            entry.external = u16::try_from(port).unwrap_or(u16::MAX);
        }
        let record = Record {
            gateway,
            protocol,
            port: entry.port,
            external: entry.external,
            nonce,
            until: ends(unix, lease),
        };
        self.records.keep(record, false);
        Some(Order::Map { record, lease })
    }

    /// Removes what is over: ports whose time is up, and records of them.
    fn forget(&mut self, now: Instant, unix: u64) {
        for entry in &mut self.entries {
            let is_over = |held: &Mapping| held.until.is_some_and(|until| until <= now);
            if entry.held.take_if(|held| is_over(held)).is_some() {
                tracing::info!(port = entry.port.number, "the router's port is lost");
            }
        }
        self.records.forget_ended(unix);
    }

    /// Whether a record is of a port that is wanted no more, at the router that is there.
    fn is_owed(&self, kept: &Kept) -> bool {
        let is_wanted = |port: Port| self.entries.iter().any(|entry| entry.port == port);
        self.situation.gateway == Some(kept.record.gateway) && !is_wanted(kept.record.port)
    }

    /// The order could not be saved, so it was not carried out.
    pub fn unsaved(&mut self, now: Instant, order: &Order) {
        self.is_unsaved = true;
        if let Order::Map { record, .. } = order {
            self.records.drop_unopened(record);
        }
        self.put_off(now);
    }

    /// Nothing can be asked for now, for a reason of this machine: later and later it is tried again.
    fn put_off(&mut self, now: Instant) {
        let pause = ROUNDS.pause(self.put_off);
        self.put_off = self.put_off.saturating_add(1);
        for entry in &mut self.entries {
            entry.due = entry.due.max(now + pause);
        }
    }

    /// What came of the order that was given last.
    pub fn done(
        &mut self,
        now: Instant,
        unix: u64,
        order: &Order,
        outcome: Result<Granted, Failure>,
    ) {
        (self.is_unsaved, self.put_off) = (false, 0);
        match order {
            Order::Remove(record) => match outcome {
                Ok(_) => self.records.forget(record),
                Err(_) => self.records.not_removed(now, record),
            },
            Order::Map { record, lease } => {
                let outcome = outcome.and_then(|granted| judged(granted, *lease));
                match outcome {
                    Ok(granted) => self.granted(now, unix, record, granted),
                    Err(failure) => self.failed(now, record, failure),
                }
            }
        }
    }

    fn granted(&mut self, now: Instant, unix: u64, record: &Record, granted: Granted) {
        let external = granted.external;
        let until = ends(unix, granted.lease);
        let opened = Record {
            external: external.port(),
            until,
            ..*record
        };
        self.records.keep(opened, true);
        // It is another router at this address than the one that was asked meanwhile.
        if self.situation.gateway != Some(record.gateway) {
            return;
        }
        self.answers = Some(record.protocol);
        self.is_known = true;
        let is_anew = self.has_begun_anew(now, record.protocol, granted.epoch);
        let until =
            (granted.lease > 0).then(|| now + Duration::from_secs(u64::from(granted.lease)));
        let half = until.map_or(RENEW_WITHIN, |until| until.duration_since(now) / 2);
        for entry in &mut self.entries {
            if entry.port != record.port {
                if is_anew {
                    // A router that says so with each answer is not asked without a pause.
                    let pause = entry.granted.map(|granted| granted + LEAST_PAUSE);
                    entry.begin(pause.map_or(now, |pause| pause.max(now)));
                }
                continue;
            }
            let mapping = Mapping {
                gateway: record.gateway,
                port: record.port,
                protocol: record.protocol,
                external,
                until,
            };
            if entry.held.map(|held| held.external) != Some(external) {
                tracing::info!(port = record.port.number, %external, protocol = record.protocol.name(), "the router opened a port");
            }
            entry.begin(now + half.clamp(LEAST_PAUSE, RENEW_WITHIN));
            entry.external = external.port();
            entry.granted = Some(now);
            entry.trouble = None;
            entry.held = Some(mapping);
        }
    }

    /// Whether the router lost what it had opened, by the age that it says it has (RFC 6887, section 8.5).
    fn has_begun_anew(&mut self, now: Instant, protocol: Protocol, epoch: Option<u32>) -> bool {
        let Some(epoch) = epoch else { return false };
        let before = self.epoch.replace((protocol, epoch, now));
        let Some((_, before, at)) = before.filter(|before| before.0 == protocol) else {
            return false;
        };
        let ours = now.saturating_duration_since(at).as_secs();
        let Some(theirs) = epoch.checked_sub(before).map(u64::from) else {
            // One second may be its rounding.
            return before - epoch > 1;
        };
        theirs + 2 < ours - ours / 16 || ours + 2 < theirs - theirs / 16
    }

    fn failed(&mut self, now: Instant, record: &Record, failure: Failure) {
        if failure == Failure::InUse {
            // It belongs to another machine, whatever was there before.
            self.records.forget(record);
        }
        let is_spoken = self.answers == Some(record.protocol);
        if failure == Failure::Lost || (failure == Failure::Silent && is_spoken) {
            // The router may have opened it: the record stays, so that the stop, the next start or `cleanup` removes it.
            self.records.mark_opened(record);
        }
        self.records.drop_unopened(record);
        if self.situation.gateway != Some(record.gateway) {
            return;
        }
        let Some(entry) = self.entries.iter_mut().find(|e| e.port == record.port) else {
            return;
        };
        let mut failure = failure;
        match failure {
            Failure::PermanentOnly if !entry.is_permanent => {
                entry.is_permanent = true;
                return;
            }
            Failure::InUse if entry.in_use < PORTS_TRIED => {
                entry.in_use += 1;
                // Another one is drawn for the next try.
                entry.external = entry.port.number;
                return;
            }
            Failure::InUse => failure = Failure::Refused(Why::PortsInUse),
            Failure::PermanentOnly | Failure::Silent | Failure::Lost | Failure::Refused(_) => {}
        }
        entry.tried.push(record.protocol);
        entry.in_use = 0;
        let is_worse = entry.worst.is_none_or(|(_, before)| failure > before);
        if is_worse {
            entry.worst = Some((record.protocol, failure));
        }
        if entry.tried.len() >= Protocol::of(record.gateway).len() {
            self.end_round(now, record.port);
        }
    }

    /// No protocol opened that port.
    fn end_round(&mut self, now: Instant, port: Port) {
        self.is_known = true;
        let Some(at) = self.entries.iter().position(|entry| entry.port == port) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        entry.tried.clear();
        let trouble = match entry.worst.take() {
            Some((_, Failure::Refused(Why::Inside(ip)))) => Trouble::DoubleNat(ip),
            Some((protocol, Failure::Refused(why))) => Trouble::Refused(protocol, why),
            _ => Trouble::Silent,
        };
        if entry.trouble != Some(trouble) {
            tracing::info!(
                port = port.number,
                trouble = trouble.as_str(),
                "the router opens no port"
            );
        }
        entry.trouble = Some(trouble);
        let left = entry.held.and_then(|held| held.until);
        let left = left.map(|until| until.saturating_duration_since(now));
        entry.due = match left {
            Some(left) => now + (left / 4).max(LEAST_PAUSE),
            None => now + ROUNDS.pause(entry.failures),
        };
        // What is open is not lost yet: the pauses begin to grow when it is.
        let is_held = entry.held.is_some();
        entry.failures = entry.failures.saturating_add(u32::from(!is_held));
        let (due, failures) = (entry.due, entry.failures);
        // Who answers nothing for one port has no answer for another.
        if trouble == Trouble::Silent {
            for other in self.entries.iter_mut().filter(|e| e.held.is_none()) {
                other.tried.clear();
                (other.worst, other.trouble) = (None, Some(trouble));
                (other.due, other.failures) = (due, failures);
            }
        }
    }

    /// When there is something to do again, as far as is known.
    pub fn deadline(&self) -> Option<Instant> {
        let until = |entry: &Entry| entry.held.and_then(|held| held.until);
        let asked = self.asked();
        let dues = self.entries.iter().filter(|_| asked.is_some());
        let dues = dues.map(|entry| entry.due);
        let ends = self.entries.iter().filter_map(until);
        let owed = self.records.iter().filter(|kept| self.is_owed(kept));
        let owed = owed.filter_map(Kept::again);
        dues.chain(ends).chain(owed).min()
    }

    /// What is to be saved.
    pub fn records(&self) -> Vec<Record> {
        self.records.records().copied().collect()
    }

    /// What the router that is there may have open for this machine: it is removed at the end.
    pub fn at_this_router(&self) -> Vec<Record> {
        let mut records = self.records();
        records.retain(|record| self.situation.gateway == Some(record.gateway));
        records
    }

    /// A record whose mapping is removed is kept no more.
    pub fn forget_record(&mut self, record: &Record) {
        self.records.forget(record);
    }

    /// The router that this is about.
    pub fn gateway(&self) -> Option<Gateway> {
        self.situation.gateway
    }

    /// How the ports stand.
    pub fn status(&self) -> Status {
        let held = self.entries.iter().filter_map(|entry| entry.held);
        let mappings: Vec<Mapping> = held.collect();
        let is_wanted = self.situation.is_enabled && !self.situation.ports.is_empty();
        let trouble = is_wanted.then(|| self.trouble(&mappings)).flatten();
        // That of ports without trouble of their own is a renewal, unless the trouble is that of all.
        let has_own = self.entries.iter().any(|entry| entry.trouble.is_some());
        let amiss = |entry: &&Entry| !has_own || entry.trouble.is_some();
        let dues = self.entries.iter().filter(amiss).map(|entry| entry.due);
        let again = dues.min().filter(|_| trouble.is_some());
        Status {
            is_enabled: is_wanted,
            is_known: self.is_known,
            gateway: self.situation.gateway,
            trouble,
            mappings,
            wanted: self.entries.iter().map(|entry| entry.port).collect(),
            again: again.filter(|_| self.asked().is_some()),
        }
    }

    fn trouble(&self, mappings: &[Mapping]) -> Option<Trouble> {
        let Some(gateway) = self.situation.gateway else {
            return Some(Trouble::NoGateway);
        };
        if gateway.local.is_ipv4() && is_public(gateway.local) {
            return Some(Trouble::Public(gateway.local));
        }
        if self.is_unsaved {
            return Some(Trouble::Unsaved);
        }
        if self.is_without_random {
            return Some(Trouble::NoRandomness);
        }
        let inside = mappings
            .iter()
            .map(|mapping| (mapping.protocol, mapping.external.ip()))
            .find(|(_, ip)| !is_public(*ip));
        match inside {
            Some((protocol, ip)) if ip.is_unspecified() => {
                Some(Trouble::Refused(protocol, Why::NoAddress))
            }
            Some((_, ip)) => Some(Trouble::DoubleNat(ip)),
            None => self.entries.iter().find_map(|entry| entry.trouble),
        }
    }
}

/// When a lease ends that begins at `unix`, in seconds since 1970.
fn ends(unix: u64, lease: u32) -> u64 {
    match lease {
        0 => u64::MAX,
        lease => unix.saturating_add(u64::from(lease)),
    }
}

/// What a router says it opened, within bounds. `asked`: the seconds that it was asked for.
fn judged(granted: Granted, asked: u32) -> Result<Granted, Failure> {
    let is_asked = asked == 0 && granted.lease == 0;
    if granted.external.port() == 0 {
        return Err(Failure::Silent);
    }
    if granted.lease < SHORTEST && !is_asked {
        return Err(Failure::Refused(Why::ShortLease));
    }
    Ok(Granted {
        lease: granted.lease.min(LONGEST),
        ..granted
    })
}

#[cfg(test)]
mod tests;
