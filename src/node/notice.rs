//! What this node says of relays in its records, and what others say.

use std::collections::BTreeMap;

use super::{Core, Lane, Node};
use crate::api::types::Error;
use crate::model::notice::{Notices, RelayNotice};
use crate::model::state::Draft;

impl Core {
    /// Says in every subnet what this node is as a relay, and which relays keep a place for it.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn set_notice(&mut self, notice: RelayNotice) -> Result<(), Error> {
        if self.notice.as_ref() == Some(&notice) {
            return Ok(());
        }
        let (me, now) = (&self.state.me, self.now());
        let mut draft = Draft::default();
        for subnet in self.state.subnets.values() {
            if !subnet.notice_is_true(me, &notice, now) {
                let mut copy = subnet.clone();
                copy.keep_notice(me, &notice, now)?;
                draft.put(copy);
            }
        }
        self.notice = Some(notice);
        if !draft.is_empty() && self.settle(draft, &BTreeMap::new())? {
            self.want_view(false);
        }
        Ok(())
    }
}

/// Relays, as records tell of them.
impl Node {
    /// Says in every subnet what this node is as a relay; see [`Core::set_notice`].
    ///
    /// # Errors
    /// As for every call; when it could not be saved.
    pub async fn set_notice(&self, notice: RelayNotice) -> Result<(), Error> {
        self.decide(Lane::Own, move |core| core.set_notice(notice))
            .await?
    }

    /// What this node's records say now, as an earlier run may have left them.
    ///
    /// # Errors
    /// As for every call.
    pub async fn own_notice(&self) -> Result<RelayNotice, Error> {
        self.read(|core| core.state.own_notice()).await
    }

    /// What the records of all other members say of relays.
    ///
    /// # Errors
    /// As for every call.
    pub async fn notices(&self) -> Result<Notices, Error> {
        self.read(|core| core.state.notices()).await
    }
}
