//! What the TUN of a subnet is called on this machine.

use std::collections::BTreeSet;

use super::id::{Name, SubnetId};
use super::state::State;

/// Longest name of a link, in bytes.
const LONGEST: usize = 15;
/// Characters of the ID in a name that is cut.
const OF_ID: usize = 5;

impl State {
    /// Interface name of a subnet: `bw-NAME`, with characters of the ID where that is too long or taken, by a subnet here or
    /// by a link of somebody else's.
    pub(super) fn interface_name(
        &self,
        name: &Name,
        id: SubnetId,
        links: &BTreeSet<String>,
    ) -> String {
        let taken = |n: &String| {
            links.contains(n) || self.subnets.values().any(|s| s.local.interface == *n)
        };
        let mut names = interface_names(name, id);
        let last = names.pop().unwrap_or_default();
        names.into_iter().find(|n| !taken(n)).unwrap_or(last)
    }

    /// A subnet whose interface is `link`, and the next name for it: somebody else's link has that one.
    pub fn next_interface(&self, link: &str) -> Option<(SubnetId, String)> {
        let subnet = self.subnets.values().find(|s| s.local.interface == link)?;
        let names = interface_names(&subnet.local.alias, subnet.records.id);
        let after = names
            .iter()
            .position(|n| n == link)
            .map_or(0, |at| at.saturating_add(1));
        let free = |n: &&String| self.subnets.values().all(|s| s.local.interface != **n);
        let next = names
            .iter()
            .cycle()
            .skip(after)
            .take(names.len())
            .find(free)?;
        Some((subnet.records.id, next.clone()))
    }
}

/// Every name that the interface of a subnet may have, the best first: `bw-NAME` where that fits, then its beginning with
/// characters of the ID.
fn interface_names(name: &Name, id: SubnetId) -> Vec<String> {
    let plain = format!("bw-{name}");
    let head: String = plain.chars().take(LONGEST - OF_ID).collect();
    let id: Vec<char> = id.to_string().chars().collect();
    let cut = id.windows(OF_ID).map(|part| {
        format!(
            "{}{}",
            head.trim_end_matches('-'),
            part.iter().collect::<String>()
        )
    });
    Some(plain.clone())
        .filter(|p| p.len() <= LONGEST)
        .into_iter()
        .chain(cut)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_or_too_long_is_cut_with_characters_of_the_id() {
        let id = SubnetId([7; 16]);
        let names = interface_names(&"lab".parse().unwrap(), id);
        let text = id.to_string();
        assert_eq!(
            names[..2],
            ["bw-lab".to_owned(), format!("bw-lab{}", &text[..5])]
        );
        let long = interface_names(&"a-very-long-name".parse().unwrap(), id);
        assert_eq!(long[0], format!("bw-a-very{}", &text[..5]));
        assert!(
            names.iter().chain(&long).all(|name| name.len() <= LONGEST),
            "{names:?} {long:?}"
        );
    }
}
