//! What is as wanted and yet not well: other programs of this machine stand in the way.
//!
//! A finding fails no command. It is news for people, and goes when what it names goes.

use std::fmt;

use ipnet::IpNet;

use super::desired::desired_namespaces;
use super::{Beginner, Excess, Family, HostConfig, Namespace, Observed, PRIORITY};
use crate::model::id::SubnetId;

/// How many leases a text names at most.
const SHOWN: usize = 4;

/// Something of another program that keeps packets of ours from their way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// A rule of policy routing is asked before ours: packets for the overlay may leave in the clear.
    Outranked {
        /// The namespace that has both rules.
        ns: Namespace,
        /// The family that both rules are of.
        family: Family,
        /// Priority of the other rule.
        priority: u32,
        /// What the other rule does, as `ip rule` shows it: `lookup 51820`.
        what: String,
    },
    /// A network of the machine's own lies in the pool of a subnet.
    Overlap {
        /// The subnet whose pool it is.
        subnet: SubnetId,
        /// The prefix of the subnet.
        prefix: IpNet,
        /// Name of the subnet's TUN here.
        tun: String,
        /// The prefix of the machine's network.
        network: IpNet,
        /// Name of the link that the network is on.
        link: String,
        /// What members hold of the network: that part is not reached over the link.
        held: Vec<IpNet>,
    },
    /// Somebody in a subnet holds too much of the kernel's table of connections, and begins no more.
    Crowded {
        /// The lease or workload that begins the connections.
        who: Beginner,
        /// How much it held, and how much was its share.
        excess: Excess,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Outranked {
                ns,
                family,
                priority,
                what,
            } => {
                let family = if *family == Family::V4 {
                    "IPv4"
                } else {
                    "IPv6"
                };
                write!(
                    f,
                    "the {family} rule {priority} ({what}) of another program is asked before byway's"
                )?;
                match ns {
                    Namespace::Host => {
                        write!(f, ": packets for the overlay may leave by it, in the clear")
                    }
                    Namespace::Netns(netns) => write!(f, " in {}", netns.path.display()),
                }
            }
            Finding::Crowded { who, excess } => match who {
                Beginner::Lease { net, .. } => write!(f, "the member with {net} {excess}"),
                Beginner::Workload { name, .. } => write!(f, "workload {name} {excess}"),
            },
            Finding::Overlap {
                prefix,
                tun,
                network,
                link,
                held,
                ..
            } => {
                write!(
                    f,
                    "{network} of {link} overlaps {prefix} of the subnet behind {tun}: "
                )?;
                match held.as_slice() {
                    [] => write!(f, "no member holds anything of it, so it is left to {link}"),
                    held => write!(
                        f,
                        "members hold {}, which {link} therefore does not reach",
                        shown(held)
                    ),
                }
            }
        }
    }
}

/// The first [`SHOWN`] of these, and how many more there are.
fn shown(held: &[IpNet]) -> String {
    let named: Vec<String> = held.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = held.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{more}", named.join(", "))
}

/// Everything found, once `desired` was applied to what was observed.
pub fn findings(desired: &HostConfig, observed: &Observed) -> Vec<Finding> {
    let mut found = Vec::new();
    outranked(desired, observed, &mut found);
    let crowd = observed.crowd.iter();
    found.extend(crowd.map(|(who, excess)| Finding::Crowded {
        who: who.clone(),
        excess: *excess,
    }));
    for tun in &desired.tuns {
        found.extend(
            desired
                .overlaps(tun)
                .map(|(prefix, network, link)| Finding::Overlap {
                    subnet: tun.subnet,
                    prefix: *prefix,
                    tun: tun.name.clone(),
                    network: *network,
                    link: link.clone(),
                    held: tun.held_of(network),
                }),
        );
    }
    found
}

fn outranked(desired: &HostConfig, observed: &Observed, found: &mut Vec<Finding>) {
    for (ns, want) in desired_namespaces(desired, observed) {
        let Some(state) = observed.namespaces.get(&ns) else {
            continue;
        };
        for (family, ahead) in &state.ahead {
            let first = want
                .rules
                .iter()
                .filter(|rule| rule.family == *family && rule.priority <= PRIORITY)
                .map(|rule| rule.priority)
                .min();
            if first.is_some_and(|first| ahead.priority <= first) {
                let (priority, what) = (ahead.priority, ahead.what.clone());
                found.push(Finding::Outranked {
                    ns: ns.clone(),
                    family: *family,
                    priority,
                    what,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{Ahead, HostPolicy, Observed, Rule, TABLE, TunConfig, plan};

    fn config() -> HostConfig {
        let tun = TunConfig {
            subnet: SubnetId([1; 16]),
            name: "bw-lab".to_owned(),
            mtu: 1400,
            addresses: vec![],
            prefixes: vec!["10.77.0.0/16".parse().unwrap()],
            held: vec!["10.77.1.0/24".parse().unwrap()],
            host: HostPolicy::Closed,
            others: vec![],
        };
        HostConfig {
            instance: "01234567".to_owned(),
            tuns: vec![tun],
            ..HostConfig::default()
        }
    }

    /// The kernel after `config` was applied, with a rule of another program.
    fn kernel(priority: u32, local: u32) -> Observed {
        let mut observed = Observed::default();
        follow(&mut observed);
        let ahead = Ahead {
            priority,
            local,
            what: "lookup 51820".to_owned(),
        };
        observed
            .namespace_mut(&Namespace::Host)
            .ahead
            .insert(Family::V4, ahead);
        observed
    }

    fn follow(observed: &mut Observed) {
        for change in plan(&config(), observed) {
            observed.absorb(&config(), &change);
        }
        assert_eq!(plan(&config(), observed), vec![]);
    }

    fn priorities(observed: &Observed) -> Vec<u32> {
        observed.namespaces[&Namespace::Host]
            .rules
            .iter()
            .map(|rule| rule.priority)
            .collect()
    }

    #[test]
    fn our_rule_stands_before_any_other_but_that_for_own_addresses() {
        for (other, local, ours) in [
            (4109, 0, 4108),
            (PRIORITY, 0, 4109),
            (1, 0, 0),
            (5000, 0, PRIORITY),
            (60, 50, 59),
        ] {
            let mut observed = kernel(other, local);
            follow(&mut observed);
            assert_eq!(
                (priorities(&observed), findings(&config(), &observed)),
                (vec![ours], vec![]),
                "{other}"
            );
            // It goes back when the other one goes.
            observed.namespace_mut(&Namespace::Host).ahead.clear();
            follow(&mut observed);
            assert_eq!(priorities(&observed), [PRIORITY]);
        }
    }

    #[test]
    fn what_cannot_be_passed_or_was_passed_too_often_is_found() {
        for (other, local) in [(0, 0), (50, 50), (40, 50)] {
            let mut observed = kernel(other, local);
            follow(&mut observed);
            assert_eq!(priorities(&observed), [PRIORITY], "{other}");
            let found = findings(&config(), &observed);
            assert!(
                matches!(found[..], [Finding::Outranked { priority, .. }] if priority == other),
                "{found:?}"
            );
        }
        let mut observed = kernel(4109, 0);
        observed.stay.insert(Namespace::Host);
        follow(&mut observed);
        assert_eq!(priorities(&observed), [PRIORITY]);
        assert_eq!(findings(&config(), &observed).len(), 1);
        let rule = Rule {
            family: Family::V4,
            source: None,
            table: TABLE,
            priority: PRIORITY,
        };
        assert!(observed.namespaces[&Namespace::Host].rules.contains(&rule));
    }

    #[test]
    fn an_overlap_names_both_and_what_members_hold_of_it() {
        let with = |network: &str| {
            let connected = vec![(network.parse().unwrap(), "eth1".to_owned())];
            findings(
                &HostConfig {
                    connected,
                    ..config()
                },
                &Observed::default(),
            )
        };
        assert_eq!(with("192.0.2.0/24"), vec![]);
        let free = with("10.77.250.0/24")[0].to_string();
        assert!(
            free.contains("10.77.250.0/24 of eth1 overlaps 10.77.0.0/16")
                && free.ends_with("left to eth1"),
            "{free}"
        );
        let held = with("10.77.1.128/25")[0].to_string();
        assert!(held.contains("members hold 10.77.1.0/24"), "{held}");
    }
}
