//! Checks signatures where it delays nobody.
//!
//! An ed25519 check costs as much as all the rest of taking a record, and anybody can send bytes that fail it. Checks
//! run beside the node's thread, on few threads at a time, in the order of asking: whoever asks for one piece at a
//! time has the same share as any other who does.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::Semaphore;

use crate::model::error::{Code, Error, Kind};
use crate::model::id::{PeerId, SubnetId};
use crate::model::join::Ask;
use crate::model::record::{Digest, RecordError, Signed, Verified};
use crate::model::state::State;
use crate::wire::control::{JoinRequest, MAX_SHOWN};

/// Records of one piece: what is checked, and judged by the node's thread, in one go.
pub const PIECE: usize = 64;
/// How many bytes the records of one piece have together, unless a single one is larger.
pub const PIECE_BYTES: usize = 256 * 1024;

/// Digests of the records held, by subnet, for those who check: what is held already needs no check.
#[derive(Debug, Default)]
pub(super) struct Known(RwLock<BTreeMap<SubnetId, HashSet<Digest>>>);

impl Known {
    /// The records that a state holds.
    pub(super) fn of(state: &State) -> Known {
        let known = Known::default();
        let subnets = state.subnets.iter();
        known.change(
            subnets.flat_map(|(id, s)| s.records.entries().map(|(digest, _)| (*id, *digest))),
            [],
        );
        known
    }

    /// Whether a record is held.
    pub(super) fn holds(&self, subnet: SubnetId, digest: &Digest) -> bool {
        let held = self.0.read();
        held.get(&subnet)
            .is_some_and(|digests| digests.contains(digest))
    }

    /// Follows a change: records that came, and records that went.
    pub(super) fn change(
        &self,
        came: impl IntoIterator<Item = (SubnetId, Digest)>,
        went: impl IntoIterator<Item = (SubnetId, Digest)>,
    ) {
        let mut held = self.0.write();
        for (subnet, digest) in went {
            if let Some(digests) = held.get_mut(&subnet) {
                digests.remove(&digest);
                if digests.is_empty() {
                    held.remove(&subnet);
                }
            }
        }
        for (subnet, digest) in came {
            held.entry(subnet).or_default().insert(digest);
        }
    }
}

/// What came of checking records that came together.
#[derive(Debug, Default)]
pub struct Checked {
    /// Records whose signature holds and that are not held yet.
    pub good: Vec<Verified>,
    /// Records that are forged, malformed, or of another subnet.
    pub forged: usize,
    /// Records that are held already.
    pub held: usize,
    /// Digests of those that hold or are held: whoever sent them has them.
    pub told: Vec<Digest>,
}

/// Checks signatures beside the node's thread. Clones are cheap, and share the bound on checks at
/// once.
#[derive(Clone)]
pub struct Checker {
    known: Arc<Known>,
    members: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Checker {
    pub(super) fn new(known: Arc<Known>) -> Checker {
        // Half of the processors are left to packets and to commands.
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
        Checker {
            known,
            members: Arc::new(Semaphore::new(threads)),
            strangers: Arc::new(Semaphore::new(1)),
        }
    }

    /// Runs work for a member off the asynchronous threads; few at a time, in the order of asking. `None` when the
    /// daemon is stopping.
    pub async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let _place = self.members.acquire().await.ok()?;
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// Checks a piece of records that are said to be of `subnet`. What is held already is not checked again.
    pub async fn records(&self, subnet: SubnetId, piece: Vec<Signed>) -> Checked {
        let known = Arc::clone(&self.known);
        self.work(move || check(&known, subnet, piece))
            .await
            .unwrap_or_default()
    }

    /// Checks records that prove something by themselves, also those that are held already. Gives those that hold.
    pub async fn proof(&self, records: Vec<Signed>) -> Vec<Verified> {
        let check = move || {
            records
                .into_iter()
                .filter_map(|record| record.check().ok())
                .collect()
        };
        self.work(check).await.unwrap_or_default()
    }

    /// Checks what a request of the join protocol is signed with. Strangers wait for each other, and no member for them.
    ///
    /// # Errors
    /// What is wrong with the signature, as an error of the model.
    pub async fn question(&self, request: JoinRequest) -> Result<Question, Error> {
        let stopping = || Error::new(Kind::Failed, Code::Stopping, "the daemon is stopping");
        let _place = self.strangers.acquire().await.map_err(|_| stopping())?;
        let known = Arc::clone(&self.known);
        tokio::task::spawn_blocking(move || Question::check(&known, request))
            .await
            .map_err(|_| stopping())?
    }
}

/// A request of the join protocol whose signature, where it has one, holds.
#[derive(Debug, Clone)]
pub struct Question(Asked);

/// What a [`Question`] asks.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Probe(SubnetId),
    /// The payload of [`JoinRequest::Genesis`].
    Genesis([u8; 16]),
    Nonce {
        subnet: SubnetId,
        issuer: PeerId,
        joiner: PeerId,
    },
    /// The question, and whether the proof in it is one of what it names; whether that is what was asked for only the
    /// node knows.
    Ask {
        ask: Box<Ask>,
        proven: bool,
    },
    /// The payload of [`JoinRequest::Withdraw`], its signature checked.
    Withdraw {
        subnet: SubnetId,
        joiner: PeerId,
    },
    Decline(Verified),
    /// What of it is not held yet, and may be shown at all.
    Show {
        subnet: SubnetId,
        news: Vec<Verified>,
    },
}

impl Question {
    fn check(known: &Known, request: JoinRequest) -> Result<Question, Error> {
        Ok(Question(match request {
            JoinRequest::Probe(subnet) => Asked::Probe(subnet),
            JoinRequest::Genesis(wanted) => Asked::Genesis(wanted),
            JoinRequest::Nonce {
                subnet,
                issuer,
                joiner,
            } => Asked::Nonce {
                subnet,
                issuer,
                joiner,
            },
            JoinRequest::Withdraw { subnet, joiner } => Asked::Withdraw { subnet, joiner },
            JoinRequest::Ask(signed) => {
                let ask = signed.verify()?;
                let proven = ask
                    .proof
                    .as_ref()
                    .is_some_and(|p| p.holds(ask.subnet, ask.joiner, p.issuer, p.nonce));
                Asked::Ask {
                    ask: Box::new(ask),
                    proven,
                }
            }
            JoinRequest::Decline(record) => {
                let forged = |e: RecordError| Error::new(Kind::Refused, Code::Ask, e.to_string());
                Asked::Decline(record.check().map_err(forged)?)
            }
            JoinRequest::Show { subnet, records } => {
                let bytes: usize = records.iter().map(|r| r.body.len()).sum();
                let few = records.len() <= 2 && bytes <= MAX_SHOWN;
                let news = if few {
                    check(known, subnet, records).good
                } else {
                    vec![]
                };
                Asked::Show { subnet, news }
            }
        }))
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.0
    }
}

pub(super) fn check(known: &Known, subnet: SubnetId, piece: Vec<Signed>) -> Checked {
    let mut checked = Checked::default();
    let mut seen: BTreeSet<Digest> = BTreeSet::new();
    for record in piece.into_iter().map(Signed::digested) {
        let digest = record.digest();
        if record.signed().subnet != subnet {
            checked.forged = checked.forged.saturating_add(1);
        } else if known.holds(subnet, &digest) || !seen.insert(digest) {
            checked.held = checked.held.saturating_add(1);
            checked.told.push(digest);
        } else {
            match record.check() {
                Ok(record) => {
                    checked.good.push(record);
                    checked.told.push(digest);
                }
                Err(_) => checked.forged = checked.forged.saturating_add(1),
            }
        }
    }
    checked
}
