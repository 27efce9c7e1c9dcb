//! Where members have answered: kept over a restart, since whatever else is heard of a member is tried only once.

use std::collections::BTreeMap;

use super::Core;
use crate::api::types::Error;
use crate::model::id::PeerId;
use crate::model::state::Draft;

/// How many addresses are kept of one member.
const MAX_REACHED: usize = 4;
/// How many addresses may wait to be saved.
const MAX_WAITING: usize = 4096;

impl Core {
    /// A member has answered at an address that this node dialled. Saved with the next [tick](Core::tick), all together: many
    /// connections are made at once after a start.
    pub fn note_reached(&mut self, peer: PeerId, address: String) {
        if self.reached.len() < MAX_WAITING {
            self.reached.push((peer, address));
        }
    }

    /// Saves what was noted and is new.
    ///
    /// # Errors
    /// As [`Core::commit`]; what was noted is forgotten then, and noted again with the next connection.
    pub(super) fn save_reached(&mut self) -> Result<(), Error> {
        let news = std::mem::take(&mut self.reached);
        if news.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let mut draft = Draft::default();
        for subnet in self.state.subnets.values() {
            let known = |peer: &PeerId, address: &String| {
                subnet
                    .local
                    .reached
                    .get(peer)
                    .is_some_and(|list| list.contains(address))
            };
            if news.iter().all(|(peer, address)| known(peer, address)) {
                continue;
            }
            let resolved = subnet.resolve(now);
            let members = &resolved.members;
            let mut reached = subnet.local.reached.clone();
            reached.retain(|peer, _| members.contains_key(peer));
            for (peer, address) in news.iter().filter(|(peer, _)| members.contains_key(peer)) {
                note(&mut reached, *peer, address);
            }
            if reached != subnet.local.reached {
                let mut copy = subnet.clone();
                copy.local.reached = reached;
                draft.put(copy);
            }
        }
        if draft.is_empty() {
            Ok(())
        } else {
            self.commit(draft).map(drop)
        }
    }
}

/// The newest first; one that is known stays where it is, so that two that take turns are not saved again and again.
fn note(reached: &mut BTreeMap<PeerId, Vec<String>>, peer: PeerId, address: &str) {
    let list = reached.entry(peer).or_default();
    if !list.iter().any(|known| known == address) {
        list.insert(0, address.to_owned());
        list.truncate(MAX_REACHED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_addresses_of_a_member_are_kept_the_newest_first() {
        let (mut reached, peer) = (BTreeMap::new(), PeerId([1; 32]));
        for n in [1, 2, 1, 2, 3, 4, 5] {
            note(&mut reached, peer, &format!("/ip4/192.0.2.{n}/tcp/4100"));
        }
        let kept: Vec<&str> = reached[&peer].iter().map(String::as_str).collect();
        assert_eq!(
            kept,
            [5, 4, 3, 2].map(|n| format!("/ip4/192.0.2.{n}/tcp/4100"))
        );
    }
}
