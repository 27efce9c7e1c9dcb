//! What our rules refused of each workload.
//!
//! A packet is looked up only once it is refused, just before it is dropped or answered with an error, so what passes
//! costs nothing more. It counts for the workload that sent it, and for the workload that it was sent to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::atom::{Atom, REFUSED_FROM, REFUSED_TO};
use super::counters::{Counters, Listing};
use super::run::{Error, nft};
use super::{Lister, Nft};

/// Refused packets, by the workload that sent them and by the one that they were sent to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused {
    /// By the machine's end of the sender's link.
    from: BTreeMap<String, u64>,
    /// By the address they were sent to, which is a workload's of this machine.
    to: BTreeMap<IpAddr, u64>,
}

impl Refused {
    /// Packets that the workload behind `link` sent.
    pub fn sent_by(&self, link: &str) -> u64 {
        self.from.get(link).copied().unwrap_or_default()
    }

    /// Packets that were sent to `addresses`, those of one workload.
    pub fn sent_to(&self, addresses: &[IpAddr]) -> u64 {
        let each = addresses.iter().filter_map(|address| self.to.get(address));
        each.fold(0, |sum, packets| sum.saturating_add(*packets))
    }
}

impl Counters {
    fn refused(&self) -> Refused {
        let counts = |set: &str| self.sets.get(set).into_iter().flatten();
        let from = counts(REFUSED_FROM).filter_map(|(key, count)| match key.as_slice() {
            [Atom::Link(link)] => Some((link.clone(), count.packets)),
            _ => None,
        });
        let to = REFUSED_TO.into_iter().flat_map(counts);
        let to = to.filter_map(|(key, count)| match key.as_slice() {
            [Atom::Addr(address)] => Some((*address, count.packets)),
            _ => None,
        });
        Refused {
            from: from.collect(),
            to: to.collect(),
        }
    }
}

impl Lister {
    /// Reads only the sets that count what was refused of workloads; empty where there is no table.
    ///
    /// # Errors
    /// nft is missing or refused.
    pub(in crate::host) async fn refused(&self) -> Result<Counted, Error> {
        let mut counted = Counters::default();
        // nft 1.0.6 lists one set at a time: of several it knows only the last.
        for set in [REFUSED_FROM].into_iter().chain(REFUSED_TO) {
            let args = ["-j", "list", "set", "inet", &self.table, set];
            match nft("list what was refused", &args, &[], &self.own).await {
                Ok(json) => {
                    let listing = Listing::parse(&json);
                    let listing = listing.ok_or_else(|| Error::Listing(self.table.clone()))?;
                    counted.sets.extend(listing.counters.sets);
                }
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Counted(counted))
    }
}

/// What [`Lister::refused`] read: between a flush of the table and its repair less than was counted before.
#[derive(Debug)]
pub(in crate::host) struct Counted(Counters);

impl Nft {
    /// What was refused of workloads as far as it was listed, with what was counted before the table was flushed.
    pub(in crate::host) fn refused(&self, listed: &Counted) -> Refused {
        let mut seen = self.seen.lock();
        seen.keep(&listed.0);
        seen.refused()
    }
}
