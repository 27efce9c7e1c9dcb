//! Telling members what is new, and comparing with them what both hold.
//!
//! Whom news goes on to and whose turn it is to be compared with is decided by [`Spread`](crate::model::spread::Spread).
//! Limits: with one member a few comparisons run at once, and whatever else asks for one meanwhile is made up for by one
//! more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ranges, summary, take};
use crate::model::id::{PeerId, SubnetId};
use crate::model::neighbours::EVERYBODY;
use crate::model::record::{Digest, Signed, Verified};
use crate::node::{PIECE, Push, Told, wanted};
use crate::p2p::{AskError, Protocol};
use crate::service::Mesh;
use crate::wire::control::{
    self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest, RECORDS_BUDGET,
};

/// Time between a push that was not taken and the comparison that makes up for it.
const CATCH_UP_DELAY: Duration = Duration::from_millis(500);
/// Time between two comparisons with whose daemon began a new life: a second machine with its identity is found by them.
const UNSETTLED_INTERVAL: Duration = Duration::from_secs(3);
/// For one question to a member.
pub(super) const QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// Comparisons with one member at once: one may be stuck on a connection that is gone while another goes over a new one.
const AT_ONCE: usize = 2;
/// Rounds of one comparison: each moves as much as fits a message.
const ROUNDS: usize = 64;

/// Pushes what is new, and compares from time to time.
pub(crate) async fn run(
    mesh: Arc<Mesh>,
    mut pushes: mpsc::UnboundedReceiver<Push>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut config = mesh.follow_config();
    let mut unsettled = tokio::time::interval(UNSETTLED_INTERVAL);
    loop {
        let due = mesh.spread.lock().due().into();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            push = pushes.recv() => match push {
                Some(push) => send(&mesh, push),
                None => return Ok(()),
            },
            Ok(()) = config.changed() => {
                let period = config.borrow_and_update().discovery.compare;
                mesh.spread.lock().set_period(period, Instant::now().into_std());
            }
            () = tokio::time::sleep_until(due) => {
                let now = Instant::now().into_std();
                // Without randomness the turns of members that were started together stay together.
                let random = getrandom::u64().unwrap_or_default();
                let turn = mesh.spread.lock().next(mesh.partners(), now, random);
                if let Some(peer) = turn {
                    mesh.spawn(in_turn(Arc::clone(&mesh), peer));
                }
            }
            _ = unsettled.tick() => {
                let lives = mesh.node.unsettled().await?;
                // Questions to one peer go over its connections in turn, so both machines hear of each other.
                let all = lives.contains(&mesh.peers.peer());
                for peer in mesh.table.members().into_iter().filter(|peer| all || lives.contains(peer)) {
                    mesh.spawn(with_peer(Arc::clone(&mesh), peer));
                }
            }
        }
    }
}

/// Tells the members of the subnet, in a large one those whose connections are held or in use; or those just removed. It
/// waits for none of them.
fn send(mesh: &Arc<Mesh>, push: Push) {
    let connected = mesh.table.connected();
    let receivers: Vec<PeerId> = match push.to {
        Told::Removed(removed) => removed
            .into_iter()
            .filter(|p| connected.contains(p))
            .collect(),
        Told::Members { except, new_life } => {
            if let Some(peer) = except.filter(|peer| new_life && connected.contains(peer)) {
                mesh.spawn(tell_both(Arc::clone(mesh), peer, push.clone()));
            }
            let view = mesh.node.view().load_full();
            let members = view.rolls.get(&push.subnet).cloned().unwrap_or_default();
            // In a large subnet whoever is about to be let go hears of it from its own neighbours: what is told to it over
            // this connection would keep that for another ten minutes. In a small one everybody is held, also who has come
            // so lately that it is not known yet.
            let is_small = members.len() < EVERYBODY;
            let is_told = |peer: &PeerId| is_small || mesh.is_in_use(*peer);
            let others = connected
                .into_iter()
                .filter(|p| Some(*p) != except && members.contains(p) && is_told(p))
                .collect();
            let news: Vec<Digest> = push.records.iter().map(Verified::digest).collect();
            let mut spread = mesh.spread.lock();
            spread.changed(Instant::now().into_std());
            spread.receivers(others, &news, except.is_none())
        }
    };
    let mut records = push.records.as_slice();
    while !records.is_empty() {
        // One message carries as much as the other end reads.
        let part = control::fitting(records.iter().map(Verified::signed), RECORDS_BUDGET);
        let Some(rest) = records.get(part.len().max(1)..) else {
            return;
        };
        records = rest;
        let body = control::encode(&ControlRequest::Push {
            subnet: push.subnet,
            records: part,
        });
        receivers
            .iter()
            .for_each(|peer| mesh.spawn(tell(Arc::clone(mesh), *peer, body.clone())));
    }
}

/// Tells a peer what it said itself, twice: messages to one peer go over its connections in turn, and where its identity
/// runs on two machines, the other one hears of it so.
async fn tell_both(mesh: Arc<Mesh>, peer: PeerId, push: Push) {
    let records = control::fitting(
        push.records
            .iter()
            .map(Verified::signed)
            .filter(|record| record.issuer == peer),
        RECORDS_BUDGET,
    );
    let body = control::encode(&ControlRequest::Push {
        subnet: push.subnet,
        records,
    });
    for _ in 0..2 {
        // Lost or refused: the comparisons of the next seconds make up for it.
        drop(
            mesh.peers
                .ask(peer, Protocol::Control, body.clone(), QUESTION_TIMEOUT)
                .await,
        );
    }
}

async fn tell(mesh: Arc<Mesh>, peer: PeerId, body: Vec<u8>) {
    let answer = mesh
        .peers
        .ask(peer, Protocol::Control, body, QUESTION_TIMEOUT)
        .await;
    let answer = answer.map(|body| control::decode::<ControlAnswer>(&body));
    if matches!(answer, Ok(Ok(ControlAnswer::Done))) {
        return;
    }
    // Sent on a connection that was just replaced, or to one who does not know us yet. What it missed is found
    // by comparing; without this it would be missing until the next round.
    tracing::debug!(%peer, ?answer, "push not taken");
    tokio::time::sleep(CATCH_UP_DELAY).await;
    with_peer(mesh, peer).await;
}

/// Comparisons that are under way, by member.
#[derive(Debug, Default)]
pub(crate) struct Comparing(Mutex<BTreeMap<PeerId, Under>>);

#[derive(Debug, Default)]
struct Under {
    running: usize,
    /// Whether one was asked for that was not begun: what it would have found may have come after
    /// those that run had looked.
    again: bool,
}

impl Comparing {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, Under>> {
        self.0.lock()
    }

    /// Whether one more with that member begins now. Else one that runs is followed by another.
    fn begin(&self, peer: PeerId) -> Option<Comparison<'_>> {
        let mut all = self.lock();
        let under = all.entry(peer).or_default();
        if under.running >= AT_ONCE {
            under.again = true;
            return None;
        }
        under.running = under.running.saturating_add(1);
        Some(Comparison {
            comparing: self,
            peer,
            ended: false,
        })
    }

    fn end(all: &mut BTreeMap<PeerId, Under>, peer: PeerId) {
        let Some(under) = all.get_mut(&peer) else {
            return;
        };
        under.running = under.running.saturating_sub(1);
        if under.running == 0 {
            all.remove(&peer);
        }
    }
}

/// A comparison that is under way; dropped, it counts as ended.
struct Comparison<'a> {
    comparing: &'a Comparing,
    peer: PeerId,
    ended: bool,
}

impl Comparison<'_> {
    /// Ends, unless it is to be followed by another.
    fn next(mut self) -> Option<Self> {
        let mut all = self.comparing.lock();
        if all
            .get_mut(&self.peer)
            .is_some_and(|under| std::mem::take(&mut under.again))
        {
            drop(all);
            return Some(self);
        }
        Comparing::end(&mut all, self.peer);
        self.ended = true;
        None
    }
}

impl Drop for Comparison<'_> {
    fn drop(&mut self) {
        if !self.ended {
            Comparing::end(&mut self.comparing.lock(), self.peer);
        }
    }
}

/// The subnets that a comparison with a member is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// It is about every common subnet.
    All,
    /// Those that the member has not asked about itself in this interval, or where this node holds something else by now.
    Unasked,
}

/// Compares every common subnet with a member that is connected.
pub(crate) async fn with_peer(mesh: Arc<Mesh>, peer: PeerId) {
    compare_until_done(&mesh, peer, About::All).await;
}

/// The regular comparison: of the two ends of a pair the one asks whose turn comes first.
async fn in_turn(mesh: Arc<Mesh>, peer: PeerId) {
    compare_until_done(&mesh, peer, About::Unasked).await;
}

async fn compare_until_done(mesh: &Arc<Mesh>, peer: PeerId, mut about: About) {
    let mut comparison = mesh.comparing.begin(peer);
    while let Some(running) = comparison {
        compare_all(mesh, peer, about).await;
        // Who was turned away meanwhile may have wanted more than the regular one.
        about = About::All;
        comparison = running.next();
    }
}

async fn compare_all(mesh: &Arc<Mesh>, peer: PeerId, about: About) {
    let due = due(mesh, peer, about).await;
    let equal = summary::equal(mesh, peer, &due).await;
    for (subnet, _) in due
        .into_iter()
        .filter(|(subnet, _)| !equal.contains(subnet))
    {
        match compare(mesh, peer, subnet).await {
            Ok(()) => {}
            // It does not see us as a member: perhaps we are none any more, and it can prove it.
            Err(Failure::Ask(AskError::Refused | AskError::Unreachable))
            | Err(Failure::NotMember) => {
                if introduce(mesh, peer, subnet).await
                    && let Err(error) = compare(mesh, peer, subnet).await
                {
                    tracing::debug!(%peer, %subnet, ?error, "compare records after an introduction");
                }
            }
            Err(error) => tracing::debug!(%peer, %subnet, ?error, "compare records"),
        }
    }
}

/// The common subnets that a comparison is about, with the hash of what this node holds of each.
async fn due(mesh: &Arc<Mesh>, peer: PeerId, about: About) -> Vec<(SubnetId, Digest)> {
    let view = mesh.node.view().load_full();
    let common = view.rolls.iter().filter(|(_, roll)| roll.contains(&peer));
    let mut due = Vec::new();
    for subnet in common.map(|(id, _)| *id) {
        if let Ok(Some(ControlRequest::Compare { hash, .. })) =
            mesh.node.compare(peer, subnet).await
        {
            let now = Instant::now().into_std();
            let asked = mesh.spread.lock().was_asked(peer, subnet, &hash, now);
            if about == About::All || !asked {
                due.push((subnet, hash));
            }
        }
    }
    due
}

/// Why a comparison ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The question was not carried there, or nothing came back.
    Ask(AskError),
    /// The other does not see this node as a member.
    NotMember,
    /// What came back is no answer.
    Malformed,
    /// The node is stopping.
    Stopped,
}

async fn ask(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    request: &ControlRequest,
) -> Result<ControlAnswer, Failure> {
    let body = mesh
        .peers
        .ask(
            peer,
            Protocol::Control,
            control::encode(request),
            QUESTION_TIMEOUT,
        )
        .await
        .map_err(Failure::Ask)?;
    control::decode(&body).map_err(|_| Failure::Malformed)
}

async fn compare(mesh: &Arc<Mesh>, peer: PeerId, subnet: SubnetId) -> Result<(), Failure> {
    let mut sent = BTreeSet::new();
    for _ in 0..ROUNDS {
        let question = mesh.node.compare(peer, subnet);
        let Some(question) = question.await.map_err(|_| Failure::Stopped)? else {
            return Ok(());
        };
        match ask(mesh, peer, &question).await? {
            // While any two differ there is something to find, and comparisons stay frequent.
            ControlAnswer::Different => mesh.spread.lock().lively(Instant::now().into_std()),
            ControlAnswer::NotMember => return Err(Failure::NotMember),
            _ => return Ok(()),
        }
        let Some((records, want)) = exchange(mesh, peer, subnet).await? else {
            return Ok(());
        };
        let changed = take::take(mesh, peer, subnet, records)
            .await
            .map_err(|_| Failure::Stopped)?;
        let Some(mut records) = lacking(mesh, peer, subnet, want).await? else {
            return Ok(());
        };
        // What it did not take the first time it does not take the second.
        records.retain(|r| sent.insert(r.digest()));
        if !records.is_empty() {
            ask(mesh, peer, &ControlRequest::Push { subnet, records }).await?;
        } else if !changed {
            // Both may hold what the other will not have: another round would bring the same.
            return Ok(());
        }
    }
    Ok(())
}

/// What this node lacks, as much as fits a message, and what the member lacks, by the first bytes of the digests. `None`
/// where the subnet is gone.
async fn exchange(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
) -> Result<Option<(Vec<Signed>, Vec<[u8; 8]>)>, Failure> {
    if let Some(found) = ranges::find(mesh, peer, subnet).await? {
        return Ok(Some((found.records, found.lacks)));
    }
    let question = mesh.node.pull(peer, subnet);
    let Some(question) = question.await.map_err(|_| Failure::Stopped)? else {
        return Ok(None);
    };
    match ask(mesh, peer, &question).await? {
        ControlAnswer::Records { records, want } => Ok(Some((records, want))),
        _ => Err(Failure::Malformed),
    }
}

/// The records that a member says it lacks, of those that it may have; none where it is a member no more. Its list may be
/// long: it is looked through beside the node's thread.
async fn lacking(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    want: Vec<[u8; 8]>,
) -> Result<Option<Vec<Signed>>, Failure> {
    let held = mesh.node.records_for(peer, subnet);
    let Some(held) = held.await.map_err(|_| Failure::Stopped)? else {
        return Ok(None);
    };
    let found = mesh.node.checker().work(move || wanted(&held, want)).await;
    Ok(Some(found.unwrap_or_default()))
}

/// Asks, as a stranger would, whether the subnet still wants us. A member that does not know us is shown why it should:
/// whether it was.
async fn introduce(mesh: &Arc<Mesh>, peer: PeerId, subnet: SubnetId) -> bool {
    let body = control::encode(&JoinRequest::Probe(subnet));
    let Ok(answer) = mesh
        .peers
        .ask(peer, Protocol::Join, body, QUESTION_TIMEOUT)
        .await
    else {
        return false;
    };
    let mut answer = control::decode(&answer);
    if let Ok(JoinAnswer::Known) = answer {
        let Ok(records) = mesh.node.to_show(subnet).await else {
            return false;
        };
        let Some(shown) = show(mesh, peer, subnet, records).await else {
            return false;
        };
        answer = Ok(shown);
        if let Ok(JoinAnswer::Known) = answer {
            return true;
        }
    }
    if let Ok(JoinAnswer::Ended { heads, .. }) = answer {
        let heads = mesh
            .node
            .checker()
            .records(subnet, heads.into_iter().take(PIECE).collect())
            .await
            .good;
        if let Err(error) = mesh.node.take_ended(subnet, heads).await {
            tracing::warn!(%error, "save the end of a subnet");
        }
        // Who removed each other are both out: the other side's word came with the answer, ours goes there.
        let returned = mesh.node.to_return(subnet).await.unwrap_or_default();
        for records in returned {
            if show(mesh, peer, subnet, records).await.is_none() {
                break;
            }
        }
    }
    false
}

/// Shows records to a member that does not take ours.
async fn show(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    records: Vec<Signed>,
) -> Option<JoinAnswer> {
    let body = control::encode(&JoinRequest::Show { subnet, records });
    let answer = mesh
        .peers
        .ask(peer, Protocol::Join, body, QUESTION_TIMEOUT)
        .await
        .ok()?;
    control::decode(&answer).ok()
}

/// Gives pushes under way a moment before the sockets close.
pub(crate) async fn goodbye() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_one_comparison_too_many_is_made_up_for_by_one_more() {
        let comparing = Comparing::default();
        let (a, b) = (PeerId([1; 32]), PeerId([2; 32]));
        let (first, second) = (comparing.begin(a).unwrap(), comparing.begin(a).unwrap());
        assert!((0..10).all(|_| comparing.begin(a).is_none()));
        assert!(
            comparing.begin(b).is_some(),
            "another member's are not counted with it"
        );
        let first = first.next().unwrap();
        assert!(second.next().is_none(), "one more is enough");
        assert!(
            comparing.begin(a).is_some() && first.next().is_none(),
            "nobody was turned away since"
        );
        assert!(comparing.lock().is_empty());
        assert!(comparing.begin(a).is_some());
    }
}
