//! This node's own joins: begun, continued, refused, let in.

use super::Core;
use crate::api::types::{Error, ErrorKind};
use crate::model::error::Code;
use crate::model::id::{Name, SubnetId};
use crate::model::join::{Invite, Proof, SignedAsk};
use crate::model::local::{NotLetIn, PendingJoin};
use crate::model::members::Subnet;
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
        // What was refused is asked anew.
        if let Some(former) = self
            .state
            .joins
            .get(&join.subnet)
            .filter(|former| former.refused.is_none())
        {
            join = join.continues(former, self.now());
            if keeps_host {
                join.host = former.host.clone();
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

    /// Our signed question.
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
        if !self.state.joins.contains_key(&join.subnet) {
            let message = format!("the join of subnet {} was given up", join.subnet);
            return Err(Error::new(ErrorKind::Failed, Code::JoinOver, message));
        }
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

    /// What to say to who let us in when we cannot take it. None where we are in by another answer.
    pub fn decline(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
    ) -> Option<Signed> {
        let is_in = |s: &Subnet| {
            s.resolve(self.now())
                .members
                .contains_key(&self.state.me.peer)
        };
        if self.state.subnets.get(&join.subnet).is_some_and(is_in) {
            return None;
        }
        self.state.decline(join, genesis, records, self.now())
    }
}
