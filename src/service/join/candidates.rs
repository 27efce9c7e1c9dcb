//! Whom a join asks: everybody who might know the subnet, and where they are dialled.
//!
//! Limits: what is heard of one peer is dialled once, and again only after a pause; of so many peers that nobody can make a
//! join dial without end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

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
/// Time between two dials of a neighbour on a local network that has answered before, and of one that this join has met: who
/// lets this node in ends the connection that it asked on, and does not know where it is.
const NEIGHBOUR_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(300));
/// Peers whose addresses one join remembers having dialled.
const MAX_TRIED: usize = 512;

/// What others say of where somebody is, as this join has heard it, and when it was dialled last; and who was there.
#[derive(Debug, Default)]
pub(super) struct Tried {
    dialled: BTreeMap<PeerId, (Vec<Heard>, Instant)>,
    /// Those of them that a connection stood to: their keys have answered.
    met: BTreeSet<PeerId>,
}

impl Tried {
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
    /// Dials where a person says, or where others say that `peer` is.
    fn add(
        &mut self,
        peers: &p2p::Handle,
        typed: Vec<Typed>,
        heard: Vec<Heard>,
        peer: Option<PeerId>,
    ) {
        let peers = peers.clone();
        self.0.spawn(async move {
            let dialled = async move {
                match peer.filter(|_| typed.is_empty()) {
                    Some(peer) => peers.connect_heard(heard, peer).await,
                    None => peers.connect(typed, peer).await,
                }
            };
            tokio::time::timeout(QUESTION_TIMEOUT, dialled)
                .await
                .ok()?
                .ok()
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
            dials.add(peers, Vec::new(), of_issuer, Some(invite.issuer));
        }
    }
    for hint in join.hints.iter().chain(&mesh.config().bootstrap) {
        if let Ok(typed) = hint.parse::<Typed>() {
            let peer = typed.address().peer();
            dials.add(peers, vec![typed], Vec::new(), peer);
        }
    }
    let neighbours = mesh.table.neighbours().into_iter();
    for (peer, heard) in neighbours.filter(|(p, _)| !connected.contains(p)) {
        // A neighbour that has answered before is known to be one; its idle connection was closed, not it.
        let pause = match (tried.met.contains(&peer), mesh.table.has_met(peer)) {
            (true, _) => Some(NEIGHBOUR_AGAIN.1),
            (false, true) => Some(NEIGHBOUR_AGAIN.0),
            (false, false) => None,
        };
        if tried.is_due(peer, &heard, pause) {
            dials.add(peers, Vec::new(), heard, Some(peer));
        }
    }
    dials
}
