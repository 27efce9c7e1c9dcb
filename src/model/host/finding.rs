//! What is as wanted and yet not well: other programs of this machine stand in the way.
//!
//! A finding fails no command. It is news for people, and goes when what it names goes.

use std::fmt;

use super::want::wanted;
use super::{Family, HostConfig, Observed, PRIORITY, Place};

/// Something of another program that keeps packets of ours from their way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// A rule of policy routing is asked before ours: packets for the overlay may leave in the clear.
    Outranked {
        /// Where.
        place: Place,
        /// Family of both.
        family: Family,
        /// Priority of the other rule.
        priority: u32,
        /// What it does: `lookup 51820`.
        what: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Outranked { place, family, priority, what } => {
                let family = if *family == Family::V4 { "IPv4" } else { "IPv6" };
                write!(f, "the {family} rule {priority} ({what}) of another program is asked before byway's")?;
                match place {
                    Place::Host => write!(f, ": packets for the overlay may leave by it, in the clear"),
                    Place::Netns(netns) => write!(f, " in {}", netns.path.display()),
                }
            }
        }
    }
}

/// Everything found, once `desired` was applied to what was observed.
pub fn findings(desired: &HostConfig, observed: &Observed) -> Vec<Finding> {
    let mut found = Vec::new();
    outranked(desired, observed, &mut found);
    found
}

fn outranked(desired: &HostConfig, observed: &Observed, found: &mut Vec<Finding>) {
    for (place, want) in wanted(desired, observed) {
        let Some(scene) = observed.places.get(&place) else { continue };
        for (family, ahead) in &scene.ahead {
            let first = want.rules.iter().filter(|rule| rule.family == *family && rule.priority <= PRIORITY).map(|rule| rule.priority).min();
            if first.is_some_and(|first| ahead.priority <= first) {
                let (priority, what) = (ahead.priority, ahead.what.clone());
                found.push(Finding::Outranked { place: place.clone(), family: *family, priority, what });
            }
        }
    }
}
