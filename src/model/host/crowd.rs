//! Who in our subnets holds how much of the kernel's table of connections, and who holds too much of it.
//!
//! What each may begin in a second is limited by the ruleset; an entry of the table may live for days, so who is patient
//! fills it all the same. So all of them together get half of the table, and where that is not enough each gets the same
//! share: who holds less keeps all it has, who holds more begins nothing new until it holds less.
//!
//! An entry counts for who began it. Nobody else can begin one in its name: the source of what comes from a member is
//! checked against its leases, that of a workload against its link, and whatever else comes in with such a source is
//! dropped before the table is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::HostConfig;
use crate::model::id::{Name, SubnetId};

/// A lease or workload from which connections into this machine or through it begin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beginner {
    /// Another member, by one of its leases.
    Lease {
        /// The subnet the lease is of.
        subnet: SubnetId,
        /// The prefix of the lease.
        net: IpNet,
    },
    /// A workload of this machine.
    Workload {
        /// The subnet the workload is in.
        subnet: SubnetId,
        /// Name of the workload in the subnet.
        name: Name,
        /// Name of the host's end of its link.
        link: String,
    },
}

/// What one held when it was found to hold too much, and what it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Excess {
    /// Entries of the connection table that it held when it was found out.
    pub held: u64,
    /// Entries of the connection table that were its share then.
    pub share: u64,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Excess { held, share } = self;
        write!(
            f,
            "holds {held} entries of this machine's connection tracking, its share is {share}: "
        )?;
        f.write_str("what it begins is dropped until it holds less")
    }
}

/// Those who hold too much: they begin nothing.
pub type Crowd = BTreeMap<Beginner, Excess>;

impl HostConfig {
    /// Leases of other members that lie in no other one, with their subnet: a lease inside another counts with that.
    pub fn outer_leases(&self) -> Vec<(SubnetId, IpNet)> {
        let leases = self
            .tuns
            .iter()
            .flat_map(|tun| tun.others.iter().map(|net| (tun.subnet, net.trunc())));
        let mut leases: Vec<(SubnetId, IpNet)> = leases.collect();
        leases.sort_by_key(|(_, net)| *net);
        let mut outer: Vec<(SubnetId, IpNet)> = Vec::new();
        for (subnet, net) in leases {
            if outer.last().is_none_or(|(_, last)| !last.contains(&net)) {
                outer.push((subnet, net));
            }
        }
        outer
    }
}

/// Counts entries by who began them. Grows with members and workloads, not with entries.
#[derive(Debug, Default)]
pub struct Census {
    workloads: BTreeMap<IpAddr, usize>,
    /// Leases by their first address, each with its place in `counts`.
    leases: BTreeMap<IpAddr, (IpNet, usize)>,
    counts: Vec<(Beginner, u64)>,
}

impl Census {
    /// The census of everybody in `config`, nothing counted yet.
    pub fn of(config: &HostConfig) -> Census {
        let mut census = Census::default();
        for workload in &config.workloads {
            let place = census.counts.len();
            let (subnet, name, link) = (
                workload.subnet,
                workload.name.clone(),
                workload.host_link.clone(),
            );
            census
                .counts
                .push((Beginner::Workload { subnet, name, link }, 0));
            census
                .workloads
                .extend(workload.addresses.iter().map(|address| (*address, place)));
        }
        for (subnet, net) in config.outer_leases() {
            census
                .leases
                .insert(net.network(), (net, census.counts.len()));
            census.counts.push((Beginner::Lease { subnet, net }, 0));
        }
        census
    }

    /// Counts an entry that was begun from that address.
    pub fn count(&mut self, from: IpAddr) {
        let lease = || {
            self.leases
                .range(..=from)
                .next_back()
                .filter(|(_, (net, _))| net.contains(&from))
        };
        let place = self
            .workloads
            .get(&from)
            .copied()
            .or_else(|| lease().map(|(_, (_, place))| *place));
        if let Some((_, count)) = place.and_then(|place| self.counts.get_mut(place)) {
            *count = count.saturating_add(1);
        }
    }

    /// Who holds too much of a table that has room for `most`. Who did `before` still does until an eighth less would be
    /// enough: else it came and went with every entry.
    pub fn crowd(&self, most: u64, before: &Crowd) -> Crowd {
        let counts = || {
            self.counts
                .iter()
                .map(|(_, count)| *count)
                .collect::<Vec<_>>()
        };
        let all = most / 2;
        let (share, less) = (share(counts(), all), share(counts(), all - all / 8));
        let over = self
            .counts
            .iter()
            .filter_map(|(who, held)| match before.get(who) {
                Some(excess) => (*held > less).then(|| (who.clone(), *excess)),
                None => (*held > share).then(|| (who.clone(), Excess { held: *held, share })),
            });
        over.collect()
    }
}

/// What each may have of `all` where everybody gets the same and who wants less leaves the rest to others. Without bound
/// where there is enough.
fn share(mut wants: Vec<u64>, all: u64) -> u64 {
    wants.sort_unstable();
    let mut left = all;
    for (place, want) in wants.iter().enumerate() {
        let others = u64::try_from(wants.len().saturating_sub(place)).unwrap_or(u64::MAX);
        let each = left / others.max(1);
        if *want > each {
            return each;
        }
        left = left.saturating_sub(*want);
    }
    u64::MAX
}

/// How full the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Entries in the table, whoever began them.
    pub entries: u64,
    /// Entries that the table has room for; 0 where it has no bound.
    pub most: u64,
}

impl Occupancy {
    /// Whether so many are there that it matters whose they are. Where somebody was `found` to hold too much, it does so
    /// until an eighth less is there.
    pub fn is_scarce(&self, found: bool) -> bool {
        let half = self.most / 2;
        self.most > 0 && self.entries > if found { half - half / 8 } else { half }
    }

    /// Whether it has filled or emptied by what may make a difference.
    pub fn differs(&self, other: &Occupancy) -> bool {
        self.entries.abs_diff(other.entries) >= (self.most / 64).max(1)
    }
}

/// Elements of the ruleset: links of workloads, and leases, that begin nothing. Only of those that are still there, so that
/// no element overlaps another.
pub fn shut<'a>(config: &'a HostConfig, crowd: &'a Crowd) -> (BTreeSet<&'a str>, Vec<IpNet>) {
    let links = config.workloads.iter().filter(|w| {
        let link =
            |who: &Beginner| matches!(who, Beginner::Workload { link, .. } if *link == w.host_link);
        crowd.keys().any(link)
    });
    let leases = config.outer_leases().into_iter();
    let leases = leases.filter(|(subnet, net)| {
        crowd.contains_key(&Beginner::Lease {
            subnet: *subnet,
            net: *net,
        })
    });
    (
        links.map(|w| w.host_link.as_str()).collect(),
        leases.map(|(_, net)| net).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{HostPolicy, NetnsRef, ResolvConf, TunConfig, WorkloadConfig};
    use proptest::prelude::*;

    const SUBNET: SubnetId = SubnetId([1; 16]);

    fn config(leases: &[&str], workloads: &[(&str, &str)]) -> HostConfig {
        let tun = TunConfig {
            subnet: SUBNET,
            name: "bw-lab".to_owned(),
            mtu: 1400,
            addresses: vec![],
            prefixes: vec!["10.7.0.0/16".parse().unwrap()],
            held: vec![],
            host: HostPolicy::Closed,
            others: leases.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let workload = |(name, address): &(&str, &str)| WorkloadConfig {
            subnet: SUBNET,
            name: name.parse().unwrap(),
            tun: "bw-lab".to_owned(),
            host_link: format!("bwv-{name}"),
            inner_link: "byway0".to_owned(),
            netns: Some(NetnsRef {
                path: "/run/netns/none".into(),
                device: 0,
                inode: 0,
                cookie: None,
            }),
            by_engine: false,
            tap: None,
            mtu: 1400,
            addresses: vec![address.parse().unwrap()],
            gateways: vec![],
            prefixes: vec![],
            resolv_conf: ResolvConf::None,
            search: "lab.internal".to_owned(),
            mac: None,
        };
        HostConfig {
            tuns: vec![tun],
            workloads: workloads.iter().map(workload).collect(),
            ..HostConfig::default()
        }
    }

    fn lease(net: &str) -> Beginner {
        Beginner::Lease {
            subnet: SUBNET,
            net: net.parse().unwrap(),
        }
    }

    fn census(config: &HostConfig, held: &[(&str, u64)]) -> Census {
        let mut census = Census::of(config);
        for (from, times) in held {
            (0..*times).for_each(|_| census.count(from.parse().unwrap()));
        }
        census
    }

    #[test]
    fn an_entry_counts_for_who_began_it_and_for_nobody_else() {
        let config = config(
            &["10.7.2.0/24", "10.7.2.8/32", "fd00:7:0:2::/64"],
            &[("db", "10.7.1.2")],
        );
        let froms = [
            "10.7.2.0",
            "10.7.2.8",
            "10.7.2.255",
            "fd00:7:0:2::9",
            "10.7.1.2",
        ];
        let others = [
            "10.7.1.255",
            "10.7.3.0",
            "10.7.1.3",
            "192.0.2.1",
            "fd00:7:0:3::",
            "::",
        ];
        let held: Vec<(&str, u64)> = froms.iter().chain(&others).map(|from| (*from, 1)).collect();
        let counts: BTreeMap<Beginner, u64> = census(&config, &held).counts.into_iter().collect();
        let db = Beginner::Workload {
            subnet: SUBNET,
            name: "db".parse().unwrap(),
            link: "bwv-db".to_owned(),
        };
        let expected = [
            (lease("10.7.2.0/24"), 3),
            (lease("fd00:7:0:2::/64"), 1),
            (db, 1),
        ];
        assert_eq!(counts, expected.into_iter().collect());
    }

    #[test]
    fn who_holds_more_than_its_share_begins_nothing_and_others_lose_nothing() {
        let config = config(&["10.7.2.0/24", "10.7.3.0/24", "10.7.4.0/24"], &[]);
        let census = census(
            &config,
            &[("10.7.2.1", 450), ("10.7.3.1", 60), ("10.7.4.1", 10)],
        );
        let crowd = census.crowd(1000, &Crowd::new());
        assert_eq!(
            crowd,
            [(
                lease("10.7.2.0/24"),
                Excess {
                    held: 450,
                    share: 430
                }
            )]
            .into_iter()
            .collect()
        );
        let (links, leases) = shut(&config, &crowd);
        assert_eq!(
            (links.len(), leases),
            (0, vec!["10.7.2.0/24".parse().unwrap()])
        );
        assert!(
            census.crowd(2000, &Crowd::new()).is_empty(),
            "there is enough for all"
        );
    }

    #[test]
    fn nobody_is_let_in_and_shut_out_by_turns() {
        let config = config(&["10.7.2.0/24"], &[("db", "10.7.1.2")]);
        let crowd =
            |held: u64, before: &Crowd| census(&config, &[("10.7.1.2", held)]).crowd(1000, before);
        let begun = crowd(501, &Crowd::new());
        assert_eq!(
            begun.values().collect::<Vec<_>>(),
            [&Excess {
                held: 501,
                share: 500
            }]
        );
        assert_eq!(
            shut(&config, &begun).0.into_iter().collect::<Vec<_>>(),
            ["bwv-db"]
        );
        assert!(crowd(500, &Crowd::new()).is_empty());
        assert_eq!(crowd(450, &begun), begun, "the figures are those of then");
        assert!(crowd(438, &begun).is_empty());
        let room = |entries| Occupancy {
            entries,
            most: 1000,
        };
        assert!(room(501).is_scarce(false) && !room(500).is_scarce(false));
        assert!(room(450).is_scarce(true) && !room(438).is_scarce(true));
        assert!(
            !Occupancy {
                entries: 1 << 40,
                most: 0
            }
            .is_scarce(true)
        );
    }

    #[test]
    fn who_is_gone_is_no_element() {
        let before = config(&["10.7.2.8/32", "10.7.3.0/24"], &[]);
        let crowd =
            census(&before, &[("10.7.2.8", 300), ("10.7.3.1", 300)]).crowd(1000, &Crowd::new());
        assert_eq!(crowd.len(), 2);
        let after = config(&["10.7.2.0/24", "10.7.2.8/32"], &[]);
        assert!(
            shut(&after, &crowd).1.is_empty(),
            "what it lies in now is another lease"
        );
    }

    proptest! {
        #[test]
        fn all_together_get_what_there_is_and_no_more(
            wants in proptest::collection::vec(0u64..2000, 0..20), all in 0u64..10_000,
        ) {
            let share = share(wants.clone(), all);
            let sum: u64 = wants.iter().map(|want| (*want).min(share)).sum();
            prop_assert!(sum <= all);
            // Nothing is withheld that could be had: rounding takes less than one from each.
            if wants.iter().any(|want| *want > share) {
                prop_assert!(sum + wants.len() as u64 > all);
            } else {
                prop_assert_eq!(sum, wants.iter().sum::<u64>());
            }
        }
    }
}
