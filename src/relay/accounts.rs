//! Who pays for what a relay forwards: each asker has its rate, strangers of one source have one together, and all who send
//! share what the relay gives.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::limit::{Limit, TokenBucket};
use crate::model::id::PeerId;
use crate::model::source::Source;

/// The time that a full bucket of a rate is worth.
const BURST: Duration = Duration::from_millis(100);
/// The time between two looks at who sends: the shares of the rate follow.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes that a bucket holds at least: one message of the kernel's.
const LEAST_BURST: u64 = 128 * 1024;
/// Bytes that a datagram costs at least: the work of forwarding one hardly depends on its size.
pub(super) const LEAST_CHARGE: usize = 128;
/// The strangers of one source have so many times what one of them may have.
const CROWD: u32 = 4;

/// What one asker may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Sessions at once.
    pub sessions: usize,
    /// Mbit/s of UDP payload, both ways and all its sessions together; none without a limit.
    pub mbit: Option<u32>,
    /// Whether its sessions count against the address that it comes from as well: peer IDs cost nothing, addresses do. A
    /// member and a peer that the owner names count by themselves, wherever they are.
    pub is_stranger: bool,
}

impl Terms {
    /// Those of a peer that the relay does not serve.
    pub(super) const NONE: Terms = Terms {
        sessions: 0,
        mbit: Some(0),
        is_stranger: true,
    };
}

/// Who asks for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Its peer ID, which its connection has proved.
    pub peer: PeerId,
    /// Where it asks from; none where that is not known. It counts while the asker's terms are a stranger's.
    pub source: Option<Source>,
}

impl From<PeerId> for Asker {
    /// A peer of which it is not known where it asks from.
    fn from(peer: PeerId) -> Asker {
        Asker { peer, source: None }
    }
}

/// The bucket of a rate in Mbit/s.
fn limit(mbit: Option<u32>) -> Option<Limit> {
    Some(of_rate(u64::from(mbit?).saturating_mul(125_000)))
}

/// The bucket of so many bytes a second.
fn of_rate(per_second: u64) -> Limit {
    let burst = u64::try_from(BURST.as_millis())
        .unwrap_or(0)
        .saturating_mul(per_second / 1000)
        .max(LEAST_BURST);
    Limit::new(burst, per_second.max(1))
}

/// What an asker, or the strangers of a source together, have and use.
#[derive(Debug)]
struct Account {
    sessions: usize,
    /// What the asker may use; of a source, what its strangers may use together.
    terms: Terms,
    bucket: Option<TokenBucket>,
    /// Whether it sent since the last look.
    sends: bool,
}

impl Account {
    fn new(terms: Terms) -> Account {
        Account {
            sessions: 0,
            terms,
            bucket: limit(terms.mbit).map(TokenBucket::new),
            sends: false,
        }
    }

    fn enter(&mut self) {
        self.sessions = self.sessions.saturating_add(1);
    }

    /// How many of `datagrams`, which cost `each`, may pass.
    fn allowed(&mut self, now: Instant, each: u64, datagrams: u64) -> u64 {
        self.sends = true;
        match &mut self.bucket {
            Some(bucket) => bucket.take_most(now, each, datagrams),
            None => datagrams,
        }
    }

    /// Has its own rate from now on, or its share of `whole` among `sending` where that is less.
    fn share(&mut self, now: Instant, whole: Option<u64>, sending: u64) {
        // Who begins to send takes its share from the others at the next look.
        let others = sending.saturating_sub(u64::from(self.sends));
        let even = whole.and_then(|whole| whole.checked_div(others.saturating_add(1)));
        let own = limit(self.terms.mbit).map(|own| own.per_second);
        self.sends = false;
        match (even.into_iter().chain(own).min(), &mut self.bucket) {
            (Some(rate), Some(bucket)) => bucket.set_limit(now, of_rate(rate)),
            (Some(rate), none) => *none = Some(TokenBucket::new(of_rate(rate))),
            (None, bucket) => *bucket = None,
        }
    }
}

/// Everybody who has a session.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    askers: HashMap<PeerId, Account>,
    sources: HashMap<Source, Account>,
    /// Sessions of strangers.
    strangers: usize,
    looked: Option<Instant>,
}

/// Gives a session back; who has none any more is forgotten.
fn leave<K: Hash + Eq>(accounts: &mut HashMap<K, Account>, key: &K) {
    if let Some(account) = accounts.get_mut(key) {
        account.sessions = account.sessions.saturating_sub(1);
        if account.sessions == 0 {
            accounts.remove(key);
        }
    }
}

impl Accounts {
    pub(super) fn sessions_of(&self, asker: PeerId) -> usize {
        self.askers.get(&asker).map_or(0, |held| held.sessions)
    }

    pub(super) fn sessions_at(&self, source: Source) -> usize {
        self.sources.get(&source).map_or(0, |held| held.sessions)
    }

    pub(super) fn strangers(&self) -> usize {
        self.strangers
    }

    /// What all sessions of that asker are held to; none where it has no session.
    pub(super) fn terms_of(&self, asker: PeerId) -> Option<Terms> {
        self.askers.get(&asker).map(|held| held.terms)
    }

    /// The asker has one session more. Where it has others, these are its terms already.
    pub(super) fn enter(&mut self, asker: Asker, terms: Terms) {
        let own = self.askers.entry(asker.peer);
        own.or_insert_with(|| Account::new(terms)).enter();
        if !terms.is_stranger {
            return;
        }
        self.strangers = self.strangers.saturating_add(1);
        if let Some(source) = asker.source {
            let mbit = terms.mbit.map(|mbit| mbit.saturating_mul(CROWD));
            let terms = Terms { mbit, ..terms };
            let crowd = self.sources.entry(source);
            let crowd = crowd.or_insert_with(|| Account::new(terms));
            crowd.terms = terms;
            crowd.enter();
        }
    }

    /// A session of that asker's is over.
    pub(super) fn leave(&mut self, asker: Asker) {
        let terms = self.terms_of(asker.peer);
        leave(&mut self.askers, &asker.peer);
        if !terms.is_some_and(|terms| terms.is_stranger) {
            return;
        }
        self.strangers = self.strangers.saturating_sub(1);
        if let Some(source) = asker.source {
            leave(&mut self.sources, &source);
        }
    }

    /// Those who have a session.
    pub(super) fn askers(&self) -> impl Iterator<Item = PeerId> {
        self.askers.keys().copied()
    }

    /// How many of `datagrams`, of at most `size` bytes each, may pass for that asker. `whole`: Mbit/s of all together.
    pub(super) fn charge(
        &mut self,
        now: Instant,
        asker: Asker,
        whole: Option<u32>,
        (size, datagrams): (usize, u64),
    ) -> u64 {
        self.share(now, whole);
        let each = u64::try_from(size.max(LEAST_CHARGE)).unwrap_or(u64::MAX);
        let Some(own) = self.askers.get_mut(&asker.peer) else {
            return datagrams;
        };
        let allowed = own.allowed(now, each, datagrams);
        let source = asker.source.filter(|_| own.terms.is_stranger);
        match source.and_then(|at| self.sources.get_mut(&at)) {
            Some(crowd) => crowd.allowed(now, each, allowed),
            None => allowed,
        }
    }

    /// Gives each its share: of the whole rate as much as each other one that sends, and not more than its terms say. A peer
    /// that is known counts as one, and so do all strangers of one source.
    fn share(&mut self, now: Instant, whole: Option<u32>) {
        let looked = *self.looked.get_or_insert(now);
        if now.saturating_duration_since(looked) < LOOK {
            return;
        }
        self.looked = Some(now);
        let whole = limit(whole).map(|all| all.per_second);
        // A stranger's own account says what it sends, too: its source counts instead.
        let of_strangers = self.sources.values().filter(|crowd| crowd.sends).count();
        let sending = self
            .askers
            .values()
            .filter(|own| own.sends && !own.terms.is_stranger);
        let sending =
            u64::try_from(sending.count().saturating_add(of_strangers)).unwrap_or(u64::MAX);
        let all = self.askers.values_mut().chain(self.sources.values_mut());
        all.for_each(|account| account.share(now, whole, sending));
    }
}
