//! Members tell their neighbours in the rings when they last saw each member of a large subnet: so everybody knows who is there
//! although each is connected to few. What a member sees of others that it holds goes the same way: of 1,000 members each is a
//! few steps from every other, and who is not told of for twelve periods is gone. In a subnet in which everybody holds
//! everybody nothing is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::{Handler, Mesh, Method};
use crate::model::id::{PeerId, SubnetId};
use crate::model::neighbours::Why;
use crate::model::presence::Presence;
use crate::model::view::View;
use crate::node::Node;
use crate::wire::presence::{Ages, MAX_BODY, list_hash};
use crate::wire::service::{ServiceCode, kind};

/// For one question to a member.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two looks at who is connected. What is seen between them is not told before the next.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is known of members' presence; all tasks share it.
#[derive(Debug, Default)]
pub(crate) struct Sightings(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    presence: Presence,
    /// When a member last told of a subnet, or was told: of two ends of a pair one asks in each period.
    told: BTreeMap<(PeerId, SubnetId), Instant>,
}

/// The members of a subnet with this node, in the order of their IDs.
fn list(view: &View, subnet: SubnetId, me: PeerId) -> Option<Vec<PeerId>> {
    let others = view.rolls.get(&subnet)?;
    let mut list: Vec<PeerId> = others.iter().copied().chain([me]).collect();
    list.sort_unstable();
    list.dedup();
    Some(list)
}

impl Sightings {
    /// Nobody was seen yet; members tell once in a period.
    pub(crate) fn new(period: Duration) -> Sightings {
        Sightings(Mutex::new(Known {
            presence: Presence::new(period),
            told: BTreeMap::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock()
    }

    /// When a member was last seen by anybody who told of it, as time before now.
    pub(crate) fn ago(&self, peer: PeerId) -> Option<Duration> {
        let last = self.lock().presence.last(peer)?;
        Some(last.elapsed())
    }

    /// Whether others would have told of a member by now if it was there.
    pub(crate) fn is_gone(&self, peer: PeerId) -> bool {
        self.lock().presence.is_gone(peer, Instant::now())
    }

    /// What this node knows of the members of a list.
    fn ages(&self, subnet: SubnetId, list: &[PeerId], me: PeerId, now: Instant) -> Ages {
        let known = self.lock();
        let age = |peer: &PeerId| match *peer == me {
            true => 0,
            false => known.presence.age(*peer, now),
        };
        Ages {
            subnet,
            list: list_hash(list),
            ages: list.iter().map(age).collect(),
        }
    }

    /// Answers a member that tells. `list` is none where both are not members of that subnet: then the answer is the same as
    /// of one that is not here, and nothing is remembered of the question.
    fn answer(
        &self,
        peer: PeerId,
        told: &Ages,
        list: Option<&[PeerId]>,
        me: PeerId,
        now: Instant,
    ) -> Ages {
        let listed = list.filter(|list| told.list == list_hash(*list));
        let Some(list) = listed else {
            return Ages {
                subnet: told.subnet,
                list: list_hash(list.unwrap_or_default()),
                ages: Vec::new(),
            };
        };
        let answer = self.ages(told.subnet, list, me, now);
        self.take(peer, told, list, now);
        answer
    }

    /// Takes what a member tells of the members of a list. Of this node it says nothing new.
    fn take(&self, peer: PeerId, told: &Ages, list: &[PeerId], now: Instant) {
        let mut known = self.lock();
        known.told.insert((peer, told.subnet), now);
        if told.list == list_hash(list) {
            let ages = list.iter().copied().zip(told.ages.iter().copied());
            known.presence.heard(ages, now);
        }
    }
}

/// Looks who is connected, and tells and asks once in a period, until `stop`.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let period = mesh.config().presence;
    let mut tick = tokio::time::interval(LOOK_EVERY.min(period / 4));
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let (now, view) = (Instant::now(), mesh.node.view().load_full());
        let members = view.members();
        {
            let mut known = mesh.sightings.lock();
            known.presence.saw(mesh.table.members(), now);
            known.presence.retain(&members, now);
            known.told.retain(|_, at| now < *at + period);
        }
        let held = mesh.peers.neighbours();
        let is_beside = |peer: &PeerId| {
            let why = held.as_ref().and_then(|held| held.get(peer));
            why.is_some_and(|why| matches!(why, Why::Everybody | Why::Ring))
        };
        let mut partners = mesh.partners();
        partners.retain(is_beside);
        for (subnet, roll) in &view.rolls {
            if roll.iter().all(|peer| mesh.peers.holds(*peer)) {
                continue;
            }
            for peer in partners.iter().filter(|peer| roll.contains(peer)) {
                let mut known = mesh.sightings.lock();
                if let std::collections::btree_map::Entry::Vacant(free) =
                    known.told.entry((*peer, *subnet))
                {
                    free.insert(now);
                    mesh.spawn(exchange(Arc::clone(&mesh), *peer, *subnet));
                }
            }
        }
    }
}

/// Tells a member, and takes what it answers.
async fn exchange(mesh: Arc<Mesh>, peer: PeerId, subnet: SubnetId) {
    let (view, me) = (mesh.node.view().load_full(), mesh.peers.peer());
    let Some(list) = list(&view, subnet, me) else {
        return;
    };
    let ages = mesh.sightings.ages(subnet, &list, me, Instant::now());
    let answer = mesh
        .service
        .ask(peer, kind::PRESENCE, None, ages.encode(), QUESTION_TIMEOUT)
        .await;
    let told = answer.ok().and_then(|body| Ages::decode(&body));
    if let Some(told) = told.filter(|told| told.subnet == subnet) {
        mesh.sightings.take(peer, &told, &list, Instant::now());
    }
}

/// Answers members that tell. Who is no member of the subnet learns nothing, also not whether it is here.
pub(super) fn method(node: &Node, sightings: &Arc<Sightings>, me: PeerId) -> Method<Handler> {
    let (node, sightings) = (node.clone(), Arc::clone(sightings));
    let handler: Handler = Box::new(move |call| {
        let told = Ages::decode(&call.body);
        let answer = told.map(|told| {
            let (view, now) = (node.view().load_full(), Instant::now());
            let is_common = view.in_roll(told.subnet, call.peer);
            let list = is_common.then(|| list(&view, told.subnet, me)).flatten();
            let answer = sightings.answer(call.peer, &told, list.as_deref(), me, now);
            answer.encode()
        });
        async move { answer.ok_or(ServiceCode::Invalid.into()) }.boxed()
    });
    Method {
        name: "presence",
        cost: 1,
        most: MAX_BODY,
        handler,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_moment;

    #[test]
    fn who_is_no_member_learns_nothing_and_fills_no_memory() {
        let (sightings, now) = (Sightings::default(), some_moment());
        let [me, peer, other] = [1, 2, 3].map(|n| PeerId([n; 32]));
        let told = |n: u8, list: &[PeerId]| Ages {
            subnet: SubnetId([n; 16]),
            list: list_hash(list),
            ages: vec![0; list.len()],
        };
        for n in 0..100 {
            // The hash of an empty list is no list that both know.
            let answer = sightings.answer(peer, &told(n, &[]), None, me, now);
            assert_eq!(answer, told(n, &[]));
        }
        assert!(sightings.lock().told.is_empty());
        let list = [me, peer, other];
        let answer = sightings.answer(peer, &told(1, &list[..2]), Some(&list), me, now);
        assert!(answer.ages.is_empty() && answer.list == list_hash(&list));
        assert_eq!(sightings.lock().presence.last(other), None);
        let answer = sightings.answer(peer, &told(1, &list), Some(&list), me, now);
        assert_eq!(answer.ages.len(), 3);
        assert_eq!(sightings.lock().presence.last(other), Some(now));
        assert_eq!(sightings.lock().told.len(), 1);
    }
}
