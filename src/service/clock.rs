//! Whether this machine's clock can be believed: it is compared with every connected member's, at connect, every ten minutes
//! by one end of the pair, and every second while nobody has said anything of the clock as it now is. Whoever sets its clock
//! notices that itself and asks at once, which tells both ends; in ten minutes no clock drifts by what matters.
//!
//! Nothing waits for the clocks to agree. Each subnet judges by its own members (`judge`). While most of their clocks
//! differ from this one, nothing is signed there that a time decides, and both ends say so; once they agree, what has ended
//! there may be forgotten. Nor is anything signed before one of those who are there has answered. Where nobody is, the last
//! word stands until the clock is set.
//!
//! Limits: each member is asked one thing at a time; a question costs its sender one of its bucket, and may be 64 bytes.

mod judge;
mod problems;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Handler, Mesh, Method};
use crate::model::id::{PeerId, SubnetId};
use crate::model::view::View;
use crate::node::{Judged, Node, Reading, unix_now_ms};
use crate::wire::service::{self as wire, ServiceCode, kind};

use judge::{Opinion, Voices};
pub(crate) use problems::{blame, blamed, problems};

/// Time between two comparisons with one member. Of what an idle connection costs a question each half a minute was a quarter.
const COMPARE_INTERVAL: Duration = Duration::from_secs(600);
/// Difference above which one of two clocks is wrong.
const MOST: Duration = Duration::from_secs(60);
/// By how much a clock is set where what was known of the others' differences is void.
const SET: Duration = Duration::from_secs(2);
/// How long an answer is believed: a question may be lost, and the next one too.
const FRESH: Duration = Duration::from_secs(1500);
/// Bytes of the largest question: a later version may say more behind the time.
const MOST_BODY: usize = 64;
/// How long one question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long this machine waits for members to come, at the start and when its clock was set, before it believes its clock
/// without them.
const ALONE: Duration = Duration::from_secs(2);

/// How far other members' clocks are ahead of this machine's.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    held: Mutex<Held>,
    /// Notified with the first answer of each member.
    heard: Notify,
}

#[derive(Debug, Default)]
struct Held {
    /// How far each clock is ahead in milliseconds, and what this machine's clock showed when they
    /// were compared.
    offsets: BTreeMap<PeerId, (i64, Reading)>,
    /// Members that are being asked, and what the clock showed then.
    asked: BTreeMap<PeerId, Reading>,
    judgement: Judgement,
}

/// What people are told, all of it by one look: what was heard since then is not judged yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Judgement {
    /// The clock that was judged. None before the first look.
    clock: Option<Reading>,
    /// How far the others' clocks are ahead, in milliseconds, by peer.
    known: Vec<(PeerId, i64)>,
    /// The members of each subnet that contradicts this machine's clock.
    against: Vec<Arc<BTreeSet<PeerId>>>,
    /// This machine's is contradicted, or was set far away and is not compared yet.
    contradicted: bool,
}

impl Judgement {
    /// What it says of the clock as it now is. Of one that was set since, it only says that nobody has judged it.
    fn of(self, now: Reading) -> Judgement {
        match self.clock {
            Some(judged) if now.set_since(&judged) > MOST => Judgement {
                contradicted: true,
                ..Judgement::default()
            },
            _ => self,
        }
    }
}

impl Held {
    /// What is known of members that are connected, which are in order, by the clock as it now is.
    fn fresh(&mut self, connected: &[PeerId], now: Reading) -> Vec<(PeerId, i64)> {
        let holds = |of: &Reading| {
            now.at.saturating_duration_since(of.at) < FRESH && now.set_since(of) <= SET
        };
        self.offsets
            .retain(|peer, (_, of)| holds(of) && connected.binary_search(peer).is_ok());
        self.offsets
            .iter()
            .map(|(peer, (offset, _))| (*peer, *offset))
            .collect()
    }

    /// Those of the members that are connected to ask. A question tells both ends: of the two ends of a pair one asks in each
    /// interval, and who was asked asks nothing.
    fn due(&self, connected: &[PeerId], now: Reading) -> Vec<PeerId> {
        let is_due = |peer: &&PeerId| {
            self.offsets
                .get(peer)
                .is_none_or(|(_, of)| now.at.saturating_duration_since(of.at) >= COMPARE_INTERVAL)
        };
        connected.iter().filter(is_due).copied().collect()
    }

    /// Whether to ask a member now. Of a question by a clock that is no more nothing is learnt.
    fn asks(&mut self, peer: PeerId, now: Reading) -> bool {
        let free = self
            .asked
            .get(&peer)
            .is_none_or(|of| now.set_since(of) > SET);
        if free {
            self.asked.insert(peer, now);
        }
        free
    }

    /// The question by that clock is answered, or will not be.
    fn asked(&mut self, peer: PeerId, clock: Reading) {
        if self.asked.get(&peer).is_some_and(|of| of.at == clock.at) {
            self.asked.remove(&peer);
        }
    }
}

impl Clocks {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }

    fn note(&self, peer: PeerId, offset: i64, clock: Reading) {
        // Whoever asks again and again wakes nobody.
        if self.lock().offsets.insert(peer, (offset, clock)).is_none() {
            self.heard.notify_one();
        }
    }

    /// What was last judged, for all that one answer tells.
    pub(crate) fn judgement(&self) -> Judgement {
        let last = self.lock().judgement.clone();
        last.of(Reading::now())
    }
}

fn is_off(offset: i64) -> bool {
    offset.unsigned_abs() > u64::try_from(MOST.as_millis()).unwrap_or(u64::MAX)
}

/// Has the node believe nothing of the clock before [`run`] says so.
pub(crate) async fn begin(node: &Node) -> anyhow::Result<()> {
    let judged = Judged {
        clock: Reading::now(),
        words: BTreeMap::new(),
        seen: BTreeSet::new(),
    };
    Ok(node.clock_judged(judged).await?)
}

/// Compares, and notices when the clock is set.
pub(crate) async fn run(mesh: Arc<Mesh>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut opinion = Opinion::new(Reading::now());
    let mut unheard = false;
    let mut former = (Reading::now(), false);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
            // The first answer does not wait for the next second.
            () = mesh.clocks.heard.notified(), if unheard => {}
        }
        let members = mesh.table.members();
        let clock = Reading::now();
        let known = mesh.clocks.lock().fresh(&members, clock);
        let subnets = voices(&mesh.node.view().load(), &members);
        unheard = subnets.values().any(|subnet| !subnet.has_spoken(&known));
        // Whoever has not answered is asked again: a question may be lost, or be older than the clock.
        for peer in mesh.clocks.lock().due(&mesh.partners(), clock) {
            mesh.spawn(compare(Arc::clone(&mesh), peer));
        }
        let words = opinion.judge(clock, &subnets, &known);
        let last = std::mem::replace(&mut former, (clock, opinion.contradicted()));
        if clock.set_since(&last.0) > SET || last.1 != former.1 {
            // By another clock other records hold: what was refused before is not to wait for a long period to end.
            mesh.spread.lock().changed(std::time::Instant::now());
        }
        let against = subnets
            .iter()
            .filter(|(id, _)| opinion.contradicts(**id))
            .map(|(_, s)| Arc::clone(&s.members));
        let against = against.collect();
        mesh.clocks.lock().judgement = Judgement {
            clock: Some(clock),
            known,
            against,
            contradicted: opinion.contradicted(),
        };
        let judged = Judged {
            clock,
            words,
            seen: members.into_iter().collect(),
        };
        mesh.node.clock_judged(judged).await?;
    }
}

/// Those who have a say in each subnet.
fn voices(view: &View, connected: &[PeerId]) -> BTreeMap<SubnetId, Voices> {
    let of = |(id, members): (&SubnetId, &Arc<BTreeSet<PeerId>>)| {
        let roll = &view.built.get(id)?.resolved().roll;
        Some((*id, Voices::of(roll, Arc::clone(members), connected)))
    };
    view.rolls.iter().filter_map(of).collect()
}

/// Asks one member what time it is, unless it is being asked.
pub(crate) async fn compare(mesh: Arc<Mesh>, peer: PeerId) {
    let asked = Reading::now();
    if !mesh.clocks.lock().asks(peer, asked) {
        return;
    }
    let question = wire::clock(asked.unix_ms);
    let answer = mesh
        .service
        .ask(peer, kind::CLOCK, None, question, QUESTION_TIMEOUT)
        .await;
    mesh.clocks.lock().asked(peer, asked);
    if let Some(now_ms) = answer.ok().as_deref().and_then(wire::parse_clock) {
        // By the time that passed, since the clock may have been set meanwhile: then the answer is void.
        let passed = u64::try_from(asked.at.elapsed().as_millis()).unwrap_or(0);
        mesh.clocks.note(
            peer,
            difference(now_ms, asked.unix_ms.saturating_add(passed / 2)),
            asked,
        );
    }
}

/// Answers members that compare, and learns from their questions as well.
pub(super) fn method(clocks: &Arc<Clocks>) -> Method<Handler> {
    let clocks = Arc::clone(clocks);
    let handler: Handler = Box::new(move |call| {
        let answer = wire::parse_clock(&call.body).map(|theirs_ms| {
            let clock = Reading::now();
            clocks.note(call.peer, difference(theirs_ms, clock.unix_ms), clock);
            wire::clock(unix_now_ms())
        });
        async move { answer.ok_or(ServiceCode::Invalid.into()) }.boxed()
    });
    Method {
        name: "clock",
        cost: 1,
        most: MOST_BODY,
        handler,
    }
}

fn difference(theirs: u64, ours: u64) -> i64 {
    let size = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs >= ours { size } else { -size }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_question_is_asked_again_when_it_is_answered_or_the_clock_was_set() {
        let (mut held, peer) = (Held::default(), PeerId([1; 32]));
        let start = Instant::now();
        let clock = |passed: u64, ahead: u64| Reading {
            unix_ms: 1_800_000_000_000 + (passed + ahead) * 1000,
            at: start + Duration::from_secs(passed),
        };
        let first = clock(0, 0);
        assert!(held.asks(peer, first) && !held.asks(peer, first));
        assert!(!held.asks(peer, clock(1, 0)), "it is under way");
        let second = clock(1, 730 * 86_400);
        assert!(held.asks(peer, second));
        held.asked(peer, first);
        assert!(
            !held.asks(peer, second),
            "the first one's end is not the second's"
        );
        held.asked(peer, second);
        assert!(held.asks(peer, second));
    }

    #[test]
    fn of_two_ends_one_asks_and_goes_on_asking() {
        let (a, b, start) = (PeerId([1; 32]), PeerId([2; 32]), Instant::now());
        let clock = |passed: u64| Reading {
            unix_ms: 1_800_000_000_000 + passed * 1000,
            at: start + Duration::from_secs(passed),
        };
        // What each end knows of the other, and how often it asks; the looks of the second come between the first's.
        let (mut at_a, mut at_b) = (Held::default(), Held::default());
        let (mut from_a, mut from_b) = (0, 0);
        let period = COMPARE_INTERVAL.as_secs();
        for second in 0..10 * period {
            let now = clock(second);
            if !at_a.due(&[b], now).is_empty() {
                from_a += 1;
                at_a.offsets.insert(b, (0, now));
                at_b.offsets.insert(a, (0, now));
            }
            if !at_b.due(&[a], now).is_empty() {
                from_b += 1;
                at_a.offsets.insert(b, (0, now));
                at_b.offsets.insert(a, (0, now));
            }
        }
        assert_eq!((from_a, from_b), (10, 0));
        assert_eq!(
            at_a.due(&[a, b], clock(10 * period)),
            [a, b],
            "and who is not known"
        );
    }

    #[test]
    fn what_is_told_was_judged_and_a_clock_that_was_set_since_is_not_believed() {
        let (peer, start) = (PeerId([1; 32]), Instant::now());
        let clock = |passed: u64, ahead: u64| Reading {
            unix_ms: 1_800_000_000_000 + (passed + ahead) * 1000,
            at: start + Duration::from_secs(passed),
        };
        let judged = Judgement {
            clock: Some(clock(0, 0)),
            known: vec![(peer, 1)],
            ..Judgement::default()
        };
        let now = judged.clone().of(clock(1, 0));
        assert_eq!((now.known.len(), now.contradicted), (1, false));
        // What a member says of the new clock is no reason to set the member's.
        let now = judged.of(clock(1, 730 * 86_400));
        assert_eq!((now.known.len(), now.contradicted), (0, true));
    }

    #[test]
    fn differences_have_a_sign_and_no_overflow() {
        assert_eq!(difference(5000, 9000), -4000);
        assert_eq!(difference(u64::MAX, 0), i64::MAX);
    }
}
