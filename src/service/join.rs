//! This node's own joins: one task per subnet asks everybody it can find until it is let in, refused, or told to stop. What
//! joiners ask this node is in `answer`.
//!
//! Limits: a person begins each join, and one of the same subnet takes the place of the former. Rounds become rarer.

mod answer;
mod around;
mod candidates;
mod left;
mod question;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub(crate) use self::answer::{arrived, decide};
pub(crate) use self::around::{Surroundings, around};
use self::candidates::{Failures, Tried, candidates};
use self::question::{exchange, one_round};
use super::Mesh;
use crate::api::types::{Error, ErrorKind};
use crate::model::error::{Code, Hint};
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::lookup;
use crate::model::local::{NotLetIn, PendingJoin};
use crate::model::record::{Genesis, Signed};
use crate::node::NotTaken;
use crate::wire::control::{JoinAnswer, JoinRequest};

/// Time between two rounds at first, and later: a person may take a while to approve.
const FIRST_ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two rounds after the first [`EAGER_ROUNDS`].
const LATER: Duration = Duration::from_secs(5);
/// How many rounds come before [`LATER`] applies.
const EAGER_ROUNDS: u32 = 120;
/// How long one question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(6);
/// How much longer than the first one the others may take to tell the genesis in one round.
const SLOW: Duration = Duration::from_millis(300);

/// Time between two tries to give a membership back.
const GIVE_BACK_INTERVAL: Duration = Duration::from_millis(300);
/// How long each of these tries may take.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Rounds in a row that bring nothing but refusals before a join by the bare ID ends. Whoever answers may say no, also a
/// stranger who has never heard of the subnet: one real member that says "wait" outweighs it.
const REFUSALS: u32 = 3;

/// Refusals that pass: of a full queue, a full disk, an attempt that took too long.
const PASSING: [Code; 5] = [
    Code::Rate,
    Code::RequestsFull,
    Code::InviteStale,
    Code::DiskFull,
    Code::StateWrite,
];

/// How far a join has come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Progress {
    /// Nobody has been found yet who knows the subnet.
    Searching,
    /// The question is asked; `reached` tells whether a member that may decide has it.
    Waiting { reached: bool },
    /// This node is a member; the number is the View's generation that shows it.
    Admitted(u64),
    /// The join was refused, and has ended.
    Refused(Error),
}

/// A join that is under way.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    /// How far the join has come, as it goes on.
    pub progress: watch::Receiver<Progress>,
    /// What is joined, as soon as a peer has told it and this machine will have it.
    pub genesis: Arc<OnceLock<Genesis>>,
    /// The peers that have the question.
    pub asked: watch::Receiver<Vec<PeerId>>,
    failures: Failures,
}

impl Running {
    /// Why nobody is reached at an address that a person typed, as the last dial there said; none where it said nothing yet.
    pub(crate) fn failure(&self, typed: &str) -> Option<String> {
        self.failures.lock().get(typed).cloned()
    }
}

/// Joins under way, and what is counted of others'.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    running: Mutex<BTreeMap<SubnetId, Running>>,
    hurry: Notify,
    /// What join requests of others are counted by.
    rates: answer::Rates,
}

impl Joins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SubnetId, Running>> {
        self.running.lock()
    }

    /// The join under way for a subnet.
    pub(crate) fn running(&self, subnet: SubnetId) -> Option<Running> {
        self.lock().get(&subnet).cloned()
    }

    /// Begins a round at once, since a peer has come.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// A peer is connected no more. One that was asked may have let this node in: it then ends the connection of the stranger
    /// that this node was, and whoever does not know where this node is has to be dialled.
    pub(crate) fn lost(&self, peer: PeerId) {
        let asked = |running: &Running| running.asked.borrow().contains(&peer);
        if self.lock().values().any(asked) {
            self.hurry();
        }
    }
}

/// Goes on with the joins that were under way when the daemon stopped.
pub(crate) async fn resume(mesh: &Arc<Mesh>) {
    let pending = mesh.node.joins().await.unwrap_or_default();
    for join in pending.into_iter().filter(|join| join.refused.is_none()) {
        drop(start(mesh, join));
    }
}

/// Starts a join, or continues the one under way for that subnet with what is new in `join`.
pub(crate) fn start(mesh: &Arc<Mesh>, join: PendingJoin) -> Running {
    let (sender, progress) = watch::channel(Progress::Searching);
    let (asked, asked_so_far) = watch::channel(Vec::new());
    let running = Running {
        progress,
        genesis: Arc::default(),
        asked: asked_so_far,
        failures: Failures::default(),
    };
    // The former task ends when it sees that another took its place.
    mesh.joins.lock().insert(join.subnet, running.clone());
    mesh.lan.joins_changed();
    let asking = Asking {
        mesh: Arc::clone(mesh),
        join,
        progress: sender,
        founded: Arc::clone(&running.genesis),
        asked,
        known: Known::default(),
        tried: Tried::new(&running.failures),
        told: BTreeSet::new(),
        refusals: 0,
    };
    mesh.spawn(asking.until_decided());
    running
}

/// A join's task: what it has found out, and where it tells how it goes.
struct Asking {
    mesh: Arc<Mesh>,
    join: PendingJoin,
    progress: watch::Sender<Progress>,
    founded: Arc<OnceLock<Genesis>>,
    asked: watch::Sender<Vec<PeerId>>,
    known: Known,
    tried: Tried,
    /// Those that have heard that this node left the subnet before.
    told: BTreeSet<PeerId>,
    /// Rounds in a row that brought nothing but refusals.
    refusals: u32,
}

impl Asking {
    async fn until_decided(mut self) {
        let subnet = self.join.subnet;
        for round in 0u32.. {
            if self.is_over().await {
                return;
            }
            let candidates = candidates(&self.mesh, &self.join, &mut self.tried, round).await;
            self.known.learn(&self.mesh, subnet, &candidates).await;
            if let Err(error) = self.judge_known().await {
                return end(&self.mesh, subnet, &self.progress, error).await;
            }
            // The search may have taken longer than who began it waited: it was told that nobody was found.
            if self.is_over().await {
                return;
            }
            let knowing: Vec<PeerId> = candidates
                .into_iter()
                .filter(|peer| self.known.peers.contains(peer))
                .collect();
            if !knowing.is_empty() {
                self.asked.send_replace(knowing.clone());
            }
            left::tell(&self.mesh, subnet, &knowing, &mut self.told).await;
            let owner = self.founded.get().map(|genesis| genesis.owner);
            let answer = one_round(&self.mesh, &self.join, owner, knowing).await;
            if self.is_decided_by(answer).await {
                return;
            }
            let pause = if round < EAGER_ROUNDS {
                FIRST_ROUND_INTERVAL
            } else {
                LATER
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.mesh.joins.hurry.notified() => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Whether no other join of the subnet has taken this one's place.
    fn is_current(&self) -> bool {
        self.mesh
            .joins
            .lock()
            .get(&self.join.subnet)
            .is_some_and(|r| r.progress.same_channel(&self.progress.subscribe()))
    }

    /// Whether nobody wants it any more. Where a person took it back, those that were asked are told.
    async fn is_over(&self) -> bool {
        let subnet = self.join.subnet;
        let wanted = self
            .mesh
            .node
            .join(subnet)
            .await
            .map(|join| join.map(|join| join.refused.is_none()));
        if wanted == Ok(None) && self.is_current() {
            // A person took it back. No question is under way here, which could arrive after this.
            self.mesh.joins.lock().remove(&subnet);
            self.mesh.spawn(withdraw::tell(
                Arc::clone(&self.mesh),
                self.join.clone(),
                self.asked.borrow().clone(),
            ));
        }
        wanted != Ok(Some(true)) || !self.is_current()
    }

    /// Judges the subnet as soon as its genesis is known: before anything is asked, so that a refusal uses nothing up and
    /// tells nobody of this peer.
    async fn judge_known(&self) -> Result<(), Error> {
        let known = self.known.genesis.clone();
        let Some(genesis) = known.filter(|_| self.founded.get().is_none()) else {
            return Ok(());
        };
        let genesis = judge(&self.mesh, &self.join, genesis).await?;
        let name = genesis.name.clone();
        // Where it cannot be saved it is told again after the next start.
        let _ = self.mesh.node.name_join(self.join.subnet, name).await;
        drop(self.founded.set(genesis));
        Ok(())
    }

    /// Takes the answer of a round; whether it ends the join.
    async fn is_decided_by(&mut self, answer: Option<JoinAnswer>) -> bool {
        let (mesh, subnet) = (&self.mesh, self.join.subnet);
        let error = match answer {
            Some(JoinAnswer::Admitted { genesis, records }) => {
                match take(mesh, &self.join, genesis, records).await {
                    Ok(generation) => {
                        self.progress.send_replace(Progress::Admitted(generation));
                        return true;
                    }
                    Err(error) => error,
                }
            }
            // It may be otherwise in a moment, and nobody has decided anything.
            Some(JoinAnswer::Refused { code, .. })
                if PASSING.iter().any(|passing| code == *passing) =>
            {
                self.progress
                    .send_replace(Progress::Waiting { reached: false });
                return false;
            }
            // With an invite only its issuer's word comes this far.
            Some(JoinAnswer::Refused { .. })
                if self.join.invite.is_none() && self.refusals.saturating_add(1) < REFUSALS =>
            {
                self.refusals = self.refusals.saturating_add(1);
                return false;
            }
            Some(JoinAnswer::Refused { code, message }) => refusal(&self.join, &code, message),
            Some(JoinAnswer::Ended { .. }) => Error::new(
                ErrorKind::Refused,
                Code::Ended,
                format!("subnet {subnet} has ended, or has removed this peer"),
            )
            .hint(format!(
                "byway join {subnet}      (asks for approval, where it has not ended)"
            )),
            Some(JoinAnswer::Pending { reached }) => {
                self.refusals = 0;
                self.progress.send_replace(Progress::Waiting { reached });
                return false;
            }
            _ => return false,
        };
        end(mesh, subnet, &self.progress, error).await;
        true
    }
}

/// What a person is told of a refusal that lasts: it mistook the name or the address, or it was said no, and asking again does
/// not help.
fn refusal(join: &PendingJoin, code: &str, message: String) -> Error {
    let subnet = join.subnet;
    let known = code.parse().ok();
    let kind = match known {
        Some(
            Code::NameTaken
            | Code::PoolFull
            | Code::AddressTaken
            | Code::AddressOutside
            | Code::NotInPart,
        ) => ErrorKind::Conflict,
        _ => ErrorKind::Refused,
    };
    let hint = match known {
        // The invite is as good as before.
        Some(Code::InviteRate) => {
            format!("byway join {}      (again in a minute)", typed(join))
        }
        _ if code.starts_with(Code::OF_INVITES) => Hint::NewInvite.into(),
        // By its ID alone a request waits for who may let it in again.
        Some(Code::Removed) => format!("byway join {subnet}      (asks for approval)"),
        Some(Code::NameTaken) => format!("byway join {} --name OTHER", typed(join)),
        Some(Code::NotInPart | Code::AddressTaken | Code::AddressOutside) => {
            format!("byway join {}      (without --ip)", typed(join))
        }
        _ => String::new(),
    };
    Error::new(kind, code, message).hint(hint)
}

/// What is joined, and who knows it.
#[derive(Debug, Default)]
struct Known {
    genesis: Option<Vec<u8>>,
    /// Those that told it: only they hear the ID, which is the password of an open subnet.
    peers: BTreeSet<PeerId>,
}

impl Known {
    /// Asks those that have not told the genesis yet. Whoever is slow holds the others up only while nobody has told it.
    async fn learn(&mut self, mesh: &Arc<Mesh>, subnet: SubnetId, candidates: &[PeerId]) {
        let mut asks = JoinSet::new();
        for peer in candidates
            .iter()
            .copied()
            .filter(|peer| !self.peers.contains(peer))
        {
            let mesh = Arc::clone(mesh);
            let request = JoinRequest::Genesis(lookup(subnet));
            asks.spawn(async move { (peer, exchange(&mesh, peer, &request).await) });
        }
        let deadline = tokio::time::sleep(if self.peers.is_empty() {
            QUESTION_TIMEOUT
        } else {
            SLOW
        });
        tokio::pin!(deadline);
        loop {
            let told = tokio::select! {
                told = asks.join_next() => told,
                () = &mut deadline => break,
            };
            let Some(told) = told else { break };
            let Ok((peer, Some(JoinAnswer::Genesis(bytes)))) = told else {
                continue;
            };
            // Its hash is the ID: nobody can tell us anything else.
            if Genesis::id_of(&bytes) == subnet {
                self.peers.insert(peer);
                self.genesis = Some(bytes);
                deadline.as_mut().reset(tokio::time::Instant::now() + SLOW);
            }
        }
    }
}

/// Whether this machine will have the subnet.
async fn judge(mesh: &Arc<Mesh>, join: &PendingJoin, genesis: Vec<u8>) -> Result<Genesis, Error> {
    let around = around(mesh).await?;
    mesh.node.judge_join(join.clone(), genesis, around).await
}

/// Becomes a member, or gives back what was given; the generation of the View that shows it.
async fn take(
    mesh: &Arc<Mesh>,
    join: &PendingJoin,
    genesis: Vec<u8>,
    records: Vec<Signed>,
) -> Result<u64, Error> {
    let around = around(mesh).await?;
    let records = mesh.node.checker().proof(records).await;
    match mesh
        .node
        .accept_join(join.clone(), genesis, records, around)
        .await
    {
        Ok(generation) => Ok(generation),
        Err(NotTaken { error, goodbye }) => {
            decline(mesh, join, goodbye).await;
            Err(error)
        }
    }
}

/// Gives back what we were given and cannot take: else a member that never was would hold a name and a block.
async fn decline(mesh: &Arc<Mesh>, join: &PendingJoin, goodbye: Option<Signed>) {
    let Some(goodbye) = goodbye else { return };
    let request = JoinRequest::Decline(goodbye);
    let mut tried = Tried::default();
    let told = async {
        // Who has just admitted us replaces the connection it was asked on by a member's: a first try may go down with it.
        loop {
            for peer in candidates(mesh, join, &mut tried, 0).await {
                let answer =
                    tokio::time::timeout(HEARD_WITHIN, exchange(mesh, peer, &request)).await;
                if matches!(answer, Ok(Some(JoinAnswer::Known))) {
                    return;
                }
            }
            tokio::time::sleep(GIVE_BACK_INTERVAL).await;
        }
    };
    if tokio::time::timeout(QUESTION_TIMEOUT, told).await.is_err() {
        tracing::warn!(subnet = %join.subnet, "nobody took back the membership; its grant runs out by itself");
    }
}

/// What a person has typed for it: an invite is not repeated.
pub(crate) fn typed(join: &PendingJoin) -> String {
    if join.invite.is_some() {
        "INVITE".to_owned()
    } else {
        join.subnet.to_string()
    }
}

async fn end(mesh: &Arc<Mesh>, subnet: SubnetId, progress: &watch::Sender<Progress>, error: Error) {
    tracing::info!(%subnet, %error, "not joined");
    // Another join of that subnet has taken its place, and goes on.
    if mesh
        .joins
        .lock()
        .get(&subnet)
        .is_some_and(|r| !r.progress.same_channel(&progress.subscribe()))
    {
        progress.send_replace(Progress::Refused(error));
        return;
    }
    // One receiver is the list's own; any other is a `join` that waits to be told. What a person decided is shown besides.
    let waited_for = progress.receiver_count() > 1;
    if waited_for && error.code != Code::Denied {
        let _ = mesh.node.drop_join(subnet).await;
    } else {
        let Error {
            code,
            message,
            hint,
            ..
        } = error.clone();
        let _ = mesh
            .node
            .keep_refusal(
                subnet,
                NotLetIn {
                    code,
                    message,
                    hint,
                },
            )
            .await;
    }
    mesh.joins.lock().remove(&subnet);
    progress.send_replace(Progress::Refused(error));
}

#[cfg(test)]
mod tests;
