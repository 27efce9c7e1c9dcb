//! What joiners ask this node: strangers themselves, and members that pass a stranger's question on.
//!
//! Limits: a rate for each source and for each member that passes on, and one for what is passed on for a source at this
//! node's expense. Who is over it is refused. Signatures are checked one stranger at a time, and the decision has its turn
//! at the node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::{Mutex, MutexGuard};

use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::model::source::{Meter, Payer};
use crate::node::JoinDecision;
use crate::p2p::{Protocol, Responder};
use crate::service::Mesh;
use crate::wire::control::{self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest};

/// The time in which join requests are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// How many joiners' counts are remembered; with more the oldest are forgotten.
const ASKERS: usize = 4096;
/// Join requests a member may pass on to us in a minute: ten who wait repeat theirs each second.
const FORWARDED: u32 = 600;
/// Join requests of one source that we pass on in a minute, so that no stranger spends all that we may.
const PASSED_ON: u32 = 150;
/// The most members who may decide that are dialled for one request.
const DIALLED: usize = 3;
/// How long a member who may decide is waited for before the next one is asked too.
const DECIDER_TIMEOUT: Duration = Duration::from_millis(500);

/// Join requests of the last minute, by who pays for them.
#[derive(Debug)]
pub(super) struct Rates(Mutex<Meters>);

#[derive(Debug)]
struct Meters {
    asked: Meter,
    passed_on: Meter,
}

impl Default for Rates {
    fn default() -> Rates {
        let meter = || Meter::new(MINUTE, ASKERS);
        Rates(Mutex::new(Meters {
            asked: meter(),
            passed_on: meter(),
        }))
    }
}

impl Rates {
    fn lock(&self) -> MutexGuard<'_, Meters> {
        self.0.lock()
    }

    /// Whether one more join request of `payer` is within its rate.
    fn may_ask(&self, payer: Payer, per_minute: u32) -> bool {
        self.lock().asked.allows(payer, per_minute, Instant::now())
    }

    /// Whether one more join request of `payer` may be passed on at our expense.
    fn may_pass_on(&self, payer: Payer) -> bool {
        self.lock()
            .passed_on
            .allows(payer, PASSED_ON, Instant::now())
    }
}

/// A request of the join protocol. It is decided in a task of its own, or refused where `payer` has used up its rate.
pub(crate) fn arrived(
    mesh: &Arc<Mesh>,
    payer: Payer,
    peer: PeerId,
    body: Vec<u8>,
    responder: Responder,
) {
    if mesh
        .joins
        .rates
        .may_ask(payer, mesh.config().limits.joins_per_minute)
    {
        mesh.spawn(on_join(Arc::clone(mesh), peer, payer, body, responder));
    } else {
        let message = "too many requests from this address; wait a minute".to_owned();
        mesh.table.refuse(
            peer,
            Protocol::Join,
            "too many join requests from one source",
        );
        responder.respond(control::encode(&JoinAnswer::Refused {
            code: Code::Rate.to_string(),
            message,
        }));
    }
}

/// A stranger's request, or a member's about joining.
async fn on_join(mesh: Arc<Mesh>, peer: PeerId, payer: Payer, body: Vec<u8>, responder: Responder) {
    let Ok(request) = control::decode::<JoinRequest>(&body) else {
        return mesh
            .table
            .refuse(peer, Protocol::Join, "a malformed request");
    };
    if let Some(answer) = decide(&mesh, peer, payer, request, false).await {
        responder.respond(control::encode(&answer));
    }
}

/// Decides about a request of the join protocol in the turn of who pays for it. Signatures are checked before that.
pub(crate) async fn decide(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    payer: Payer,
    request: JoinRequest,
    passed_on: bool,
) -> Option<JoinAnswer> {
    let refused = |code: String, message: String| Some(JoinAnswer::Refused { code, message });
    // The member pays for whom it passes on.
    if passed_on && !mesh.joins.rates.may_ask(Payer::Member(peer), FORWARDED) {
        mesh.table.refuse(
            peer,
            Protocol::Join,
            "too many join requests passed on by one member",
        );
        return Some(crowded());
    }
    let question = match mesh.node.checker().question(request.clone()).await {
        Ok(question) => question,
        Err(error) => return refused(error.code.into(), error.message),
    };
    match mesh
        .node
        .decide_join(peer, payer, question, passed_on)
        .await
    {
        Ok(JoinDecision::Answer(answer)) => Some(answer),
        Ok(JoinDecision::Forward(_)) if !mesh.joins.rates.may_pass_on(payer) => Some(crowded()),
        Ok(JoinDecision::Forward(deciders)) => Some(forward(mesh, deciders, request).await),
        Err(error) if error.code == Code::Busy => {
            mesh.table.refuse(
                peer,
                Protocol::Join,
                "too many join requests of one source wait",
            );
            refused(
                Code::Rate.into(),
                "too many requests from this address wait; try again".to_owned(),
            )
        }
        Err(error) if error.code == Code::Stopping => None,
        Err(error) => Some(JoinAnswer::Refused {
            code: error.code,
            message: error.message,
        }),
    }
}

fn crowded() -> JoinAnswer {
    let message =
        "too many requests are passed on here; wait a minute, or ask another member".to_owned();
    JoinAnswer::Refused {
        code: Code::Rate.to_string(),
        message,
    }
}

/// Passes a stranger's request on to whoever may decide and is connected, else to a few whom this node holds no connection to
/// and who are dialled for it; the first who answers decides.
///
/// One who does not answer holds the stranger up for [`DECIDER_TIMEOUT`] only: then the next is asked beside.
async fn forward(mesh: &Arc<Mesh>, deciders: Vec<PeerId>, request: JoinRequest) -> JoinAnswer {
    let connected = mesh.table.members();
    let body = control::encode(&ControlRequest::Forward(request));
    let ask = |decider| {
        let body = body.clone();
        async move {
            let answer = mesh
                .peers
                .ask(decider, Protocol::Control, body, Duration::from_secs(5))
                .await
                .ok()?;
            match control::decode(&answer).ok()? {
                ControlAnswer::Forwarded(answer) => Some(answer),
                _ => None,
            }
        }
    };
    let (near, far): (Vec<PeerId>, Vec<PeerId>) = deciders
        .into_iter()
        .partition(|decider| connected.contains(decider));
    // Whom this node holds and that is not connected does not answer: it is dialled anyway.
    let far = far.into_iter().filter(|peer| !mesh.peers.holds(*peer));
    let asked = near.into_iter().chain(far.take(DIALLED));
    first_answer(asked.map(ask), DECIDER_TIMEOUT)
        .await
        .unwrap_or(JoinAnswer::Pending { reached: false })
}

/// The first answer of several questions; each is begun when all before it failed, or did not answer within `patience`.
async fn first_answer<F, T>(questions: impl Iterator<Item = F>, patience: Duration) -> Option<T>
where
    F: Future<Output = Option<T>>,
{
    let mut questions = questions.fuse();
    let mut asked = FuturesUnordered::new();
    loop {
        let more = match questions.next() {
            Some(question) => {
                asked.push(question);
                true
            }
            None => false,
        };
        let next = async {
            if more {
                tokio::time::sleep(patience).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(next);
        // Until the next one's turn, or there is nobody left to wait for.
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Some(answer)) => return Some(answer),
                    Some(None) => {}
                    None if more => break,
                    None => return None,
                },
                () = &mut next => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_who_does_not_answer_holds_a_stranger_up_for_a_moment_only() {
        let (brief, forever) = (Duration::from_millis(5), Duration::from_secs(3600));
        let ask = |answer: Option<Option<u8>>| async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        };
        let silent = [None, None, Some(Some(3))];
        assert_eq!(
            first_answer(silent.into_iter().map(ask), brief).await,
            Some(3)
        );
        // Who fails is not waited for at all.
        let failing = [Some(None), Some(Some(2)), Some(Some(3))];
        assert_eq!(
            first_answer(failing.into_iter().map(ask), forever).await,
            Some(2)
        );
        assert_eq!(
            first_answer([Some(None), Some(None)].into_iter().map(ask), forever).await,
            None
        );
        assert_eq!(first_answer([].into_iter().map(ask), forever).await, None);
    }
}
