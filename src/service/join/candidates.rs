//! Whom a join asks: everybody who might know the subnet, and where they are dialled.
//!
//! Limits: what is heard of one peer is dialled once, and again only after a pause; of so many peers that nobody can make a
//! join dial without end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{EAGER_ROUNDS, QUESTION_TIMEOUT};
use crate::model::id::PeerId;
use crate::model::local::PendingJoin;
use crate::p2p::{self, Heard, Typed};
use crate::service::Mesh;

/// Time between two dials of the addresses in an invite, in the first rounds and later.
const INVITE_AGAIN: Duration = Duration::from_secs(5);
/// The same in later rounds.
const INVITE_LATER: Duration = Duration::from_secs(60);
/// Time between two dials of a LAN peer that has answered before, and of one that this join has met: who
/// lets this node in ends the connection that it asked on, and does not know where it is.
const LAN_PEER_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(300));
/// Peers whose addresses one join remembers having dialled.
const MAX_TRIED: usize = 512;
/// Dials of LAN peers that have never answered: the most in [`BURST`], and the most at one address in [`AT_ADDRESS`]. Whoever
/// knows the subnet's ID may say on the link that any number of members are at the address of somebody else, who would be
/// knocked at for all of them.
const FRESH: (usize, usize) = (8, 4);
/// See [`FRESH`].
const BURST: Duration = Duration::from_secs(1);
/// See [`FRESH`].
const AT_ADDRESS: Duration = Duration::from_secs(10);

/// What the last dials at addresses that a person typed came to, by their texts; those that were answered are not in it.
pub(super) type Failures = Arc<Mutex<BTreeMap<String, String>>>;

/// What others say of where somebody is, as this join has heard it, and when it was dialled last; and who was there.
#[derive(Debug, Default)]
pub(super) struct Tried {
    dialled: BTreeMap<PeerId, (Vec<Heard>, Instant)>,
    /// Those of them that a connection stood to: their keys have answered.
    met: BTreeSet<PeerId>,
    /// What may still be dialled on the word of the link.
    budget: Budget,
    failures: Failures,
}

/// When LAN peers that have never answered were dialled lately: in all, and by address.
#[derive(Debug, Default)]
struct Budget {
    all: VecDeque<Instant>,
    at: BTreeMap<IpAddr, VecDeque<Instant>>,
}

impl Budget {
    /// The addresses of `heard` that may be dialled at `now`; each of them is counted.
    fn take(&mut self, heard: &[Heard], now: Instant) -> Vec<Heard> {
        let lately = |times: &mut VecDeque<Instant>, within: Duration| {
            while times
                .front()
                .is_some_and(|at| now.duration_since(*at) >= within)
            {
                times.pop_front();
            }
            times.len()
        };
        self.at.retain(|_, times| lately(times, AT_ADDRESS) > 0);
        if lately(&mut self.all, BURST) >= FRESH.0 {
            return Vec::new();
        }
        let ip = |heard: &Heard| heard.address().ip();
        let is_free = |heard: &&Heard| {
            let times = ip(heard).and_then(|ip| self.at.get(&ip));
            times.is_none_or(|times| times.len() < FRESH.1)
        };
        let free: Vec<Heard> = heard.iter().filter(is_free).cloned().collect();
        if !free.is_empty() {
            self.all.push_back(now);
        }
        // Both carriers at an address are one dial of it.
        let at: BTreeSet<IpAddr> = free.iter().filter_map(ip).collect();
        for ip in at {
            self.at.entry(ip).or_default().push_back(now);
        }
        free
    }
}

impl Tried {
    /// A join's, with where it keeps why nobody was reached.
    pub(super) fn new(failures: &Failures) -> Tried {
        Tried {
            failures: Failures::clone(failures),
            ..Tried::default()
        }
    }

    /// These are connected now.
    fn meet(&mut self, connected: &[PeerId]) {
        let dialled = |peer: &&PeerId| self.dialled.contains_key(*peer);
        self.met.extend(connected.iter().filter(dialled));
    }

    /// Whether to dial there now: what is new at once, what is known again after `pause`; `None`: never.
    fn is_due(&mut self, peer: PeerId, heard: &[Heard], pause: Option<Duration>) -> bool {
        let now = Instant::now();
        let due = match self.dialled.get(&peer) {
            Some((known, at)) if known == heard => {
                pause.is_some_and(|pause| now.duration_since(*at) >= pause)
            }
            _ => !heard.is_empty() && self.dialled.len() < MAX_TRIED,
        };
        if due {
            self.dialled.insert(peer, (heard.to_vec(), now));
        }
        due
    }

    /// Where to dial a LAN peer now that has never answered, as far as the budget goes. What it does not cover has its turn
    /// in a later round.
    fn fresh(&mut self, peer: PeerId, heard: &[Heard]) -> Vec<Heard> {
        let is_known = matches!(self.dialled.get(&peer), Some((known, _)) if known == heard);
        if is_known || heard.is_empty() || self.dialled.len() >= MAX_TRIED {
            return Vec::new();
        }
        let now = Instant::now();
        let free = self.budget.take(heard, now);
        if !free.is_empty() {
            self.dialled.insert(peer, (free.clone(), now));
        }
        free
    }
}

/// Everybody who might know: addresses given, peers on the local networks, peers connected anyway. The issuer first.
///
/// The addresses in an invite are its maker's word, although a person pasted it: nobody reads them. They are judged like any
/// that are heard, names among them are not looked up, and they are dialled again only while the join lasts, ever more seldom.
pub(super) async fn candidates(
    mesh: &Mesh,
    join: &PendingJoin,
    tried: &mut Tried,
    round: u32,
) -> Vec<PeerId> {
    let issuer = join.invite.as_ref().map(|i| i.issuer);
    let mut found = mesh.table.connected();
    let mut dials = dials(mesh, join, tried, round, &found);
    // Whoever answers first is asked first; a dead address must not hold the others up.
    let deadline = tokio::time::sleep(if found.is_empty() {
        QUESTION_TIMEOUT
    } else {
        Duration::from_secs(1)
    });
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            next = dials.0.join_next() => match next {
                Some(Ok(Some(peer))) => {
                    found.push(peer);
                    if issuer.is_none_or(|i| i == peer) {
                        deadline.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(100));
                    }
                }
                Some(_) => {}
                None => break,
            },
            () = &mut deadline => break,
        }
    }
    // What is not sent yet is sent all the same: some are not tried again.
    mesh.spawn(async move { while dials.0.join_next().await.is_some() {} });
    tried.meet(&found);
    found.sort_by_key(|p| (Some(*p) != issuer, *p));
    found.dedup();
    found
}

/// Dials under way: each gives the peer that has answered.
struct Dials(JoinSet<Option<PeerId>>);

impl Dials {
    /// Dials where others say that `peer` is.
    fn heard(&mut self, peers: &p2p::Handle, heard: Vec<Heard>, peer: PeerId) {
        let peers = peers.clone();
        self.0.spawn(async move {
            let dialled = peers.connect_heard(heard, peer);
            let dialled = tokio::time::timeout(QUESTION_TIMEOUT, dialled).await;
            dialled.ok()?.ok()
        });
    }

    /// Dials where a person says. Why nobody is there, `failures` keeps for whoever asks.
    fn typed(&mut self, peers: &p2p::Handle, hint: &str, typed: Typed, failures: &Failures) {
        let (peers, failures, hint) = (peers.clone(), failures.clone(), hint.to_owned());
        self.0.spawn(async move {
            let peer = typed.address().peer();
            let dialled = peers.connect(vec![typed], peer);
            match tokio::time::timeout(QUESTION_TIMEOUT, dialled).await {
                Ok(Ok(peer)) => {
                    failures.lock().remove(&hint);
                    Some(peer)
                }
                Ok(Err(p2p::ConnectError::Failed(why))) => {
                    failures.lock().insert(hint, why);
                    None
                }
                Ok(Err(_)) | Err(_) => None,
            }
        });
    }
}

/// Dials everybody who might know and is not `connected`, as far as it is due in this round.
fn dials(
    mesh: &Mesh,
    join: &PendingJoin,
    tried: &mut Tried,
    round: u32,
    connected: &[PeerId],
) -> Dials {
    let (mut dials, peers) = (Dials(JoinSet::new()), &mesh.peers);
    let invite = join.invite.as_ref();
    if let Some(invite) = invite.filter(|i| !connected.contains(&i.issuer)) {
        let of_issuer = invite.addresses.iter();
        let of_issuer: Vec<Heard> = of_issuer.filter_map(|a| Heard::parse(a)).collect();
        let pause = if round < EAGER_ROUNDS {
            INVITE_AGAIN
        } else {
            INVITE_LATER
        };
        if tried.is_due(invite.issuer, &of_issuer, Some(pause)) {
            dials.heard(peers, of_issuer, invite.issuer);
        }
    }
    for hint in join.hints.iter().chain(&mesh.config().bootstrap) {
        if let Ok(typed) = hint.parse::<Typed>() {
            dials.typed(peers, hint, typed, &tried.failures);
        }
    }
    let lan_peers = mesh.table.lan_peers().into_iter();
    for (peer, heard) in lan_peers.filter(|(p, _)| !connected.contains(p)) {
        // A LAN peer that has answered before is known to be one; its idle connection was closed, not it.
        let pause = match (tried.met.contains(&peer), mesh.table.has_met(peer)) {
            (true, _) => Some(LAN_PEER_AGAIN.1),
            (false, true) => Some(LAN_PEER_AGAIN.0),
            (false, false) => None,
        };
        match pause {
            Some(_) if tried.is_due(peer, &heard, pause) => dials.heard(peers, heard, peer),
            Some(_) => {}
            None => {
                let free = tried.fresh(peer, &heard);
                if !free.is_empty() {
                    dials.heard(peers, free, peer);
                }
            }
        }
    }
    dials
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::Carrier;

    fn at(text: &str) -> Vec<Heard> {
        let socket = text.parse().unwrap();
        [Carrier::Quic, Carrier::Tcp]
            .map(|carrier| Heard::on_link(socket, carrier).unwrap())
            .into()
    }

    #[test]
    fn a_link_has_this_node_knock_at_nobody_for_many_that_never_answer() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let mut knocks = 0;
        for tick in 0..300u64 {
            let victim = at(&format!("10.8.0.1:{}", 2000 + tick));
            let taken = budget.take(&victim, start + Duration::from_millis(tick * 100));
            assert!(taken.is_empty() || taken == victim);
            knocks += usize::from(!taken.is_empty());
        }
        assert_eq!(knocks, 12, "four in each ten seconds of thirty");
        // Nothing is kept of addresses that nobody dials any more.
        let later = start + Duration::from_secs(60);
        assert_eq!(budget.take(&at("10.8.0.7:4100"), later).len(), 2);
        assert_eq!(budget.at.len(), 1);
    }

    #[test]
    fn lan_peers_at_addresses_of_their_own_are_met_eight_a_second() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let mut met = 0;
        for host in 0..40u64 {
            let taken = budget.take(&at(&format!("10.8.0.{host}:4100")), start);
            met += usize::from(!taken.is_empty());
        }
        assert_eq!(met, 8);
        let next = budget.take(&at("10.8.0.99:4100"), start + BURST);
        assert_eq!(next.len(), 2);
    }

    #[test]
    fn one_that_the_budget_leaves_out_has_its_turn_later_and_no_address_twice() {
        let mut tried = Tried::default();
        let peers: Vec<PeerId> = (0..6).map(|n| PeerId([n; 32])).collect();
        let dialled = |tried: &mut Tried| {
            let due = |peer: &&PeerId| !tried.fresh(**peer, &at("10.8.0.1:4100")).is_empty();
            peers.iter().filter(due).count()
        };
        assert_eq!(dialled(&mut tried), 4);
        assert_eq!(dialled(&mut tried), 0);
        tried.budget = Budget::default();
        assert_eq!(dialled(&mut tried), 2);
        tried.budget = Budget::default();
        assert_eq!(dialled(&mut tried), 0, "each was dialled once");
    }
}
