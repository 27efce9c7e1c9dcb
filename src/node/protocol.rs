//! What the protocols with other peers ask of the node, one trip to its thread each.
//!
//! What is done for a peer has its turn among the peers and costs who pays for it; what this node wants itself goes first
//! ([`Lane`]). A call that only reads has its turn also while something is being saved.
//!
//! # Errors
//! Every call fails with `E-STOPPING` when the node is gone, those for a peer also with `E-BUSY` when too much of it waits
//! already. What else may go wrong is said with each.
//!
//! # Cancel safety
//! What was queued is done even if the caller stops waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::{Core, JoinDecision, Judged, Lane, MAX_COST, Node, Question, Verdict, unix_now};
use crate::api::types::Error;
use crate::model::error::Code;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::join::SignedAsk;
use crate::model::local::{NotLetIn, PendingJoin};
use crate::model::policy::Around;
use crate::model::record::{Genesis, Signed, Verified};
use crate::model::source::Payer;
use crate::model::subnet::Records;
use crate::wire::control::{ControlAnswer, ControlRequest};

/// Work of one join request, in records: it may sign a grant and save it.
const JOIN_COST: u32 = 32;
/// Work of one step of a comparison that we began, in records: it may copy a whole subnet's.
const COMPARE_COST: u32 = MAX_COST / 2;
/// Work of answering with a hash, in records: it may be computed anew.
const HASH_COST: u32 = 8;

fn turn(peer: PeerId, urgent: bool, cost: u32) -> Lane {
    Lane::Peer {
        from: Payer::Member(peer),
        urgent,
        cost,
    }
}

/// Why a membership that was given is not taken.
#[derive(Debug)]
pub struct NotTaken {
    /// The reason why it is not taken.
    pub error: Error,
    /// What to tell who gave it, so that no member that never was holds a name and a block. `None` where nothing was given,
    /// or the node is stopping.
    pub goodbye: Option<Signed>,
}

/// Calls that keep the records of members the same.
impl Node {
    /// See [`Core::compare`]; in the turn of the member that is asked.
    ///
    /// # Errors
    /// As for every call.
    pub async fn compare(
        &self,
        peer: PeerId,
        subnet: SubnetId,
    ) -> Result<Option<ControlRequest>, Error> {
        self.read_in(turn(peer, false, COMPARE_COST), move |core| {
            core.compare(subnet)
        })
        .await
    }

    /// See [`Core::pull`]; in the turn of the member that is asked.
    ///
    /// # Errors
    /// As for every call.
    pub async fn pull(
        &self,
        peer: PeerId,
        subnet: SubnetId,
    ) -> Result<Option<ControlRequest>, Error> {
        self.read_in(turn(peer, false, COMPARE_COST), move |core| {
            core.pull(subnet)
        })
        .await
    }

    /// See [`Core::records_for`].
    ///
    /// # Errors
    /// As for every call.
    pub async fn records_for(
        &self,
        peer: PeerId,
        subnet: SubnetId,
    ) -> Result<Option<Records>, Error> {
        self.read_in(turn(peer, false, COMPARE_COST), move |core| {
            core.records_for(peer, subnet)
        })
        .await
    }

    /// See [`Core::answer_compare`].
    ///
    /// # Errors
    /// As for every call.
    pub async fn answer_compare(
        &self,
        peer: PeerId,
        subnet: SubnetId,
        hash: [u8; 32],
    ) -> Result<ControlAnswer, Error> {
        self.read_in(turn(peer, false, HASH_COST), move |core| {
            core.answer_compare(peer, subnet, hash)
        })
        .await
    }

    /// Judges records that a member has sent; see [`Core::receive`]. `urgent` ones say who is in or out. Where much waits
    /// to be saved this returns once it is, so that who sends more waits for it.
    ///
    /// # Errors
    /// As for every call.
    pub async fn receive(
        &self,
        peer: PeerId,
        subnet: SubnetId,
        records: Vec<Verified>,
        urgent: bool,
    ) -> Result<Verdict, Error> {
        let turn = turn(
            peer,
            urgent,
            u32::try_from(records.len()).unwrap_or(MAX_COST),
        );
        let mut verdict = self
            .read_in(turn, move |core| core.receive(subnet, records, Some(peer)))
            .await?;
        if verdict.crowded {
            match self.saved(turn).await {
                Ok(_) => {}
                // It was judged all the same.
                Err(error) if error.code == Code::Busy => verdict.waiting = true,
                Err(error) => return Err(error),
            }
        }
        Ok(verdict)
    }

    /// Waits in the turn of a member until every record received so far is saved. Gives whether that went well.
    ///
    /// # Errors
    /// As for every call.
    pub async fn saved_for(&self, peer: PeerId) -> Result<bool, Error> {
        self.saved(turn(peer, false, 1)).await
    }

    /// See [`Core::to_show`].
    ///
    /// # Errors
    /// As for every call.
    pub async fn to_show(&self, subnet: SubnetId) -> Result<Vec<Signed>, Error> {
        self.read(move |core| core.to_show(subnet)).await
    }

    /// See [`Core::to_return`].
    ///
    /// # Errors
    /// As for every call.
    pub async fn to_return(&self, subnet: SubnetId) -> Result<Vec<Vec<Signed>>, Error> {
        self.read(move |core| core.to_return(subnet)).await
    }

    /// Takes the proof that a subnet is over, or over for us.
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn take_ended(&self, subnet: SubnetId, heads: Vec<Verified>) -> Result<(), Error> {
        self.decide(Lane::Own, move |core| core.take_ended(subnet, heads))
            .await?
    }

    /// Whose daemon began a new life a moment ago.
    ///
    /// # Errors
    /// As for every call.
    pub async fn unsettled(&self) -> Result<BTreeSet<PeerId>, Error> {
        self.read(|core| core.lives.unsettled(unix_now())).await
    }
}

/// Calls of the join protocol: for others' joins, and for this node's own.
impl Node {
    /// Decides about a request of the join protocol, in the turn of who pays for it; see [`Core::decide_join`].
    ///
    /// # Errors
    /// As for every call; when what was decided could not be saved.
    pub async fn decide_join(
        &self,
        from: PeerId,
        payer: Payer,
        question: Question,
        passed_on: bool,
    ) -> Result<JoinDecision, Error> {
        let turn = Lane::Peer {
            from: payer,
            urgent: false,
            cost: JOIN_COST,
        };
        self.run_in(turn, move |core| {
            core.decide_join(from, payer, &question, passed_on)
        })
        .await
    }

    /// This node's own joins, those that were refused among them.
    ///
    /// # Errors
    /// As for every call.
    pub async fn joins(&self) -> Result<Vec<PendingJoin>, Error> {
        self.read(|core| core.state.joins.values().cloned().collect())
            .await
    }

    /// This node's own join of one subnet. `None` once it is in, or a person has taken it back.
    ///
    /// # Errors
    /// As for every call.
    pub async fn join(&self, subnet: SubnetId) -> Result<Option<PendingJoin>, Error> {
        self.read(move |core| core.state.joins.get(&subnet).cloned())
            .await
    }

    /// Notes what the subnet of a join was founded as; see [`Core::name_join`].
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn name_join(&self, subnet: SubnetId, founded_as: Name) -> Result<(), Error> {
        self.run(move |core| core.name_join(subnet, founded_as))
            .await?
    }

    /// Whether this machine will have a subnet that was founded so.
    ///
    /// # Errors
    /// As for every call; why it will not.
    pub async fn judge_join(
        &self,
        join: PendingJoin,
        genesis: Vec<u8>,
        around: Around,
    ) -> Result<Genesis, Error> {
        Ok(self
            .read(move |core| core.state.judge_join(&join, &genesis, &around))
            .await??)
    }

    /// Our signed question.
    ///
    /// # Errors
    /// As for every call.
    pub async fn signed_ask(
        &self,
        join: PendingJoin,
        nonce: Option<[u8; 16]>,
    ) -> Result<SignedAsk, Error> {
        self.read(move |core| core.signed_ask(&join, nonce)).await
    }

    /// Becomes a member by what was answered. Gives the generation of the View that shows it.
    ///
    /// # Errors
    /// [`NotTaken`], with what undoes it at the other members. Nothing has changed here.
    pub async fn accept_join(
        &self,
        join: PendingJoin,
        genesis: Vec<u8>,
        records: Vec<Verified>,
        around: Around,
    ) -> Result<u64, NotTaken> {
        let (ours, given) = (join.clone(), (genesis.clone(), records.clone()));
        let accepted = self.run(move |core| {
            let done = core.accept(&ours, &genesis, &records, &around);
            done.map_err(|error| {
                Box::new(NotTaken {
                    error,
                    goodbye: core.decline(&ours, &genesis, &records),
                })
            })
        });
        match accepted.await {
            Ok(Ok(generation)) => Ok(generation),
            Ok(Err(refused)) => Err(*refused),
            // It could not be saved: what was decided with it is void, too.
            Err(error) => {
                let goodbye = self
                    .decline(join, given.0, given.1)
                    .await
                    .unwrap_or_default();
                Err(NotTaken { error, goodbye })
            }
        }
    }

    /// What to say to who let us in when we cannot take it; see [`Core::decline`]. Where it cannot be saved it is said all the
    /// same.
    ///
    /// # Errors
    /// As for every call.
    pub async fn decline(
        &self,
        join: PendingJoin,
        genesis: Vec<u8>,
        records: Vec<Verified>,
    ) -> Result<Option<Signed>, Error> {
        let said = Arc::new(OnceLock::new());
        let saying = Arc::clone(&said);
        let kept = self
            .run(move |core| {
                let goodbye = core.decline(&join, &genesis, &records);
                drop(saying.set(goodbye.clone()));
                goodbye
            })
            .await;
        match (kept, said.get()) {
            (Err(_), Some(goodbye)) => Ok(goodbye.clone()),
            (kept, _) => kept,
        }
    }

    /// See [`Core::last_goodbye`].
    ///
    /// # Errors
    /// As for every call.
    pub async fn last_goodbye(&self, subnet: SubnetId) -> Result<Option<Signed>, Error> {
        self.read(move |core| core.last_goodbye(subnet)).await
    }

    /// See [`Core::unheard_goodbye`].
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn unheard_goodbye(
        &self,
        join: PendingJoin,
        genesis: Vec<u8>,
        records: Vec<Verified>,
    ) -> Result<Option<Signed>, Error> {
        self.run(move |core| core.unheard_goodbye(&join, &genesis, &records))
            .await
    }

    /// Ends a join of our own that was refused; see [`Core::drop_join`].
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn drop_join(&self, subnet: SubnetId) -> Result<(), Error> {
        self.run(move |core| core.drop_join(subnet)).await?
    }

    /// Ends one that was refused while nobody waited for it; see [`Core::keep_refusal`].
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn keep_refusal(&self, subnet: SubnetId, refused: NotLetIn) -> Result<(), Error> {
        self.run(move |core| core.keep_refusal(subnet, refused))
            .await?
    }
}

/// Where everybody is, and what time it is.
impl Node {
    /// Says in every subnet where this node can be dialled; see [`Core::set_endpoints`].
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn set_endpoints(&self, endpoints: Vec<String>) -> Result<(), Error> {
        self.decide(Lane::Own, move |core| core.set_endpoints(endpoints))
            .await?
    }

    /// Notes where a member has answered; see [`Core::note_reached`].
    ///
    /// # Errors
    /// As for every call.
    pub async fn note_reached(&self, peer: PeerId, address: String) -> Result<(), Error> {
        self.read(move |core| core.note_reached(peer, address))
            .await
    }

    /// Where members can be dialled by their announcements: multiaddrs.
    ///
    /// # Errors
    /// As for every call.
    pub async fn member_endpoints(&self) -> Result<BTreeMap<PeerId, Vec<String>>, Error> {
        self.read(|core| core.state.endpoints()).await
    }

    /// The addresses that a person has given for each subnet that is here.
    ///
    /// # Errors
    /// As for every call.
    pub async fn hints(&self) -> Result<Vec<(SubnetId, Vec<String>)>, Error> {
        self.read(|core| {
            core.state
                .subnets
                .iter()
                .map(|(id, s)| (*id, s.local.hints.clone()))
                .collect()
        })
        .await
    }

    /// The prefixes of every subnet that is here, and every address that a person has given for a subnet or a join.
    ///
    /// # Errors
    /// As for every call.
    pub async fn prefixes_and_hints(&self) -> Result<(Vec<IpNet>, Vec<String>), Error> {
        let look = |core: &mut Core| {
            let (subnets, joins) = (&core.state.subnets, &core.state.joins);
            let prefixes = subnets
                .values()
                .flat_map(|s| s.records.prefixes())
                .collect();
            let of_subnets = subnets.values().flat_map(|s| &s.local.hints);
            (
                prefixes,
                of_subnets
                    .chain(joins.values().flat_map(|join| &join.hints))
                    .cloned()
                    .collect(),
            )
        };
        self.read(look).await
    }

    /// Hears what was found of this machine's clock, and who is connected.
    ///
    /// # Errors
    /// As for every call.
    pub async fn clock_judged(&self, judged: Judged) -> Result<(), Error> {
        self.run(|core| core.clock_judged(judged)).await
    }
}
