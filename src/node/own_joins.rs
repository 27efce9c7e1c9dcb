//! This node's own joins: begun, continued, refused, let in.

use super::Core;
use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::model::id::{Name, SubnetId};
use crate::model::join::{Invite, Proof, SignedAsk};
use crate::model::local::{NotLetIn, PendingJoin};
use crate::model::policy::Around;
use crate::model::record::{Signed, Verified};
use crate::model::state::Draft;

impl Core {
    /// Begins or continues a join of our own; gives what is asked now. `keeps_host`: what of this machine the subnet
    /// reaches was not typed, and stays as it was.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn begin_join(
        &mut self,
        mut join: PendingJoin,
        keeps_host: bool,
    ) -> Result<PendingJoin, Error> {
        if let Some(former) = self.state.joins.get(&join.subnet) {
            // What a person has asked for is a person's, also where that was refused.
            join.declared &= former.declared;
            // What was refused is asked anew.
            if former.refused.is_none() {
                join = join.continues(former, self.now());
                if keeps_host {
                    join.host = former.host.clone();
                }
            }
        }
        let mut draft = Draft::default();
        draft.join(join.subnet, Some(join.clone()));
        self.commit(draft)?;
        Ok(join)
    }

    /// Notes what the subnet of a join was founded as, so that it has one name from then on.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn name_join(&mut self, subnet: SubnetId, founded_as: Name) -> Result<(), Error> {
        let Some(join) = self
            .state
            .joins
            .get(&subnet)
            .filter(|j| j.founded_as.is_none())
        else {
            return Ok(());
        };
        let mut draft = Draft::default();
        draft.join(
            subnet,
            Some(PendingJoin {
                founded_as: Some(founded_as),
                ..join.clone()
            }),
        );
        self.commit(draft).map(drop)
    }

    /// Ends a join of our own that was refused.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn drop_join(&mut self, subnet: SubnetId) -> Result<(), Error> {
        let mut draft = Draft::default();
        draft.join(subnet, None);
        self.commit(draft).map(drop)
    }

    /// Ends a join of our own that was refused while nobody waited for it: that is kept, for `status` to show.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn keep_refusal(&mut self, subnet: SubnetId, refused: NotLetIn) -> Result<(), Error> {
        let Some(join) = self.state.joins.get(&subnet).cloned() else {
            return Ok(());
        };
        let mut draft = Draft::default();
        draft.join(
            subnet,
            Some(PendingJoin {
                refused: Some(refused),
                invite: None,
                ..join
            }),
        );
        self.commit(draft).map(drop)
    }

    /// Ends a join that found nobody, unless it has let this node in meanwhile: whether it was ended.
    ///
    /// # Errors
    /// When it could not be saved.
    pub fn give_up(&mut self, subnet: SubnetId) -> Result<bool, Error> {
        let pending = self.state.joins.contains_key(&subnet);
        if pending {
            self.drop_join(subnet)?;
        }
        Ok(pending || !self.state.subnets.contains_key(&subnet))
    }

    /// The signed question of a join of this node's own.
    pub fn signed_ask(&self, join: &PendingJoin, nonce: Option<[u8; 16]>) -> SignedAsk {
        let proof = join
            .invite
            .as_ref()
            .zip(nonce)
            .map(|(invite, nonce): (&Invite, _)| Proof::new(invite, self.state.me.peer, nonce));
        SignedAsk::new(&self.state.ask(join, proof, self.now()), &self.state.me.key)
    }

    /// Takes the answer that lets us in, unless nobody waits for it any more.
    ///
    /// # Errors
    /// `E-JOIN-OVER`; see [`State::accept`](crate::model::state::State::accept).
    pub fn accept(
        &mut self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
        around: &Around,
    ) -> Result<u64, Error> {
        let now = self.now();
        let Some(held) = self.state.joins.get(&join.subnet) else {
            let message = format!("the join of subnet {} was given up", join.subnet);
            return Err(Error::new(ErrorKind::Failed, Code::JoinOver, message));
        };
        // A person may have asked for it since `join` was begun.
        let join = &PendingJoin {
            declared: held.declared,
            ..join.clone()
        };
        let mut subnet = self.state.accept(join, genesis, records, around, now)?;
        subnet.set_endpoints(&self.state.me, &self.endpoints, now)?;
        let mut draft = Draft::default();
        draft.put(subnet);
        draft.join(join.subnet, None);
        let mut past = self.state.past.clone();
        past.retain(|p| p.id != join.subnet);
        draft.remember(past);
        self.commit(draft)
    }

    /// What this node said when it left a subnet that it is not in: whoever is asked to let it in again hears it first.
    pub fn last_goodbye(&self, subnet: SubnetId) -> Option<Signed> {
        let goodbye = self.state.last_goodbye(subnet)?;
        (!self.is_in(subnet)).then(|| goodbye.signed().clone())
    }

    /// What to say to who answers our join with a grant that we have given back: see
    /// [`State::unheard_goodbye`](crate::model::state::State::unheard_goodbye). None for any other answer, and where we are
    /// in by another one.
    pub fn unheard_goodbye(
        &mut self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
    ) -> Option<Signed> {
        if self.is_in(join.subnet) {
            return None;
        }
        let now = self.now();
        let goodbye = self.state.unheard_goodbye(join, genesis, records, now)?;
        Some(self.kept(join, genesis, &goodbye))
    }

    /// What to say to who let us in when we cannot take it. None where we are in by another answer. It is kept: a later join
    /// does not take what is given back here, and says no other thing by the same version.
    pub fn decline(
        &mut self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
    ) -> Option<Signed> {
        if self.is_in(join.subnet) {
            return None;
        }
        let goodbye = self.state.decline(join, genesis, records, self.now())?;
        Some(self.kept(join, genesis, &goodbye))
    }

    /// Remembers a goodbye, which is said all the same where it cannot be saved.
    fn kept(&mut self, join: &PendingJoin, genesis: &[u8], goodbye: &Verified) -> Signed {
        let draft = self.state.keep_goodbye(join, genesis, goodbye);
        if let Err(error) = self.commit(draft) {
            tracing::warn!(subnet = %join.subnet, %error, "remember what was given back");
        }
        goodbye.signed().clone()
    }

    fn is_in(&self, subnet: SubnetId) -> bool {
        let here = self.state.subnets.get(&subnet);
        here.is_some_and(|subnet| {
            let resolved = subnet.resolve(self.now());
            resolved.members.contains_key(&self.state.me.peer)
        })
    }
}
