//! Forwarding that is ours, and what must therefore stay shut.
//!
//! Clients of a port map come in on links of the machine, so those links must forward; a kernel without
//! `force_forwarding` forwards IPv6 on every link or on none. Whoever else sits on such a link must not find a router
//! there: what a link forwards only because of us is barred from everything that is not ours (see `host::nft`).
//!
//! The switch of one link is ours while the record of former values has it. It is somebody else's from the moment they
//! turn on the switch that stands for every link: then the record forgets it, and the bar goes.

use std::collections::BTreeSet;

use super::{Change, Namespace, Observed, SysctlKey};

/// The IPv4 switch of every link: what Docker, libvirt and routers turn on.
const EVERY_V4: &str = "net/ipv4/conf/all/forwarding";
/// The IPv6 switch of every link.
const EVERY_V6: &str = "net/ipv6/conf/all/forwarding";
/// The other IPv6 switch of every link, where the kernel has one.
const EVERY_V6_FORCED: &str = "net/ipv6/conf/all/force_forwarding";

/// The switches whose values [`plan`](super::plan()) and [`barred`] need.
pub(super) const SWITCHES: [&str; 3] = [EVERY_V4, EVERY_V6, EVERY_V6_FORCED];

/// Links, and all of IPv6, that forward because of us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Barred {
    /// Links that forward IPv4 because of us.
    pub v4: BTreeSet<String>,
    /// Links that forward IPv6 because of us.
    pub v6: BTreeSet<String>,
    /// Whether every link forwards IPv6 because of us: the only way on a kernel without `force_forwarding`.
    pub all_v6: bool,
}

/// Whether a link can be named in a rule: no wildcard, no quote, no longer than the kernel's 15 bytes. What cannot be
/// barred is not opened.
pub fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The family, the link and the name in the key of a link's sysctl.
fn parts(key: &str) -> Option<(&str, &str, &str)> {
    let mut parts = key.strip_prefix("net/")?.split('/');
    let (family, conf, link, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (conf == "conf" && parts.next().is_none()).then_some((family, link, name))
}

/// The switch of every link that turns on what `key` turns on for one; none where `key` is no such switch.
pub fn switch_of_every_link(key: &str) -> Option<SysctlKey> {
    let (family, link, name) = parts(key)?;
    let switch =
        (family, name) == ("ipv4", "forwarding") || (family, name) == ("ipv6", "force_forwarding");
    (switch && link != "all").then(|| format!("net/{family}/conf/all/{name}"))
}

impl Observed {
    /// Whether a sysctl of the host is on.
    pub(super) fn is_on(&self, key: &str) -> bool {
        self.namespaces
            .get(&Namespace::Host)
            .and_then(|host| host.sysctls.get(key))
            .is_some_and(|value| value == "1")
    }

    /// Switches we turned on for one link that became somebody else's: they turned on that of every link afterwards.
    pub(super) fn lost_switches(&self) -> impl Iterator<Item = &SysctlKey> {
        let lost = |key: &str| switch_of_every_link(key).is_some_and(|every| self.is_on(&every));
        self.kept_sysctls
            .iter()
            .filter(move |(key, beside)| !**beside && lost(key))
            .map(|(key, _)| key)
    }
}

/// What is barred while `changes` are made, and after them.
///
/// A bar stands before its link forwards and falls after it has stopped.
pub fn barred(observed: &Observed, changes: &[Change]) -> (Barred, Barred) {
    let mut switches: BTreeSet<&str> = observed.kept_sysctls.keys().map(String::as_str).collect();
    let mut after = switches.clone();
    for change in changes {
        match change {
            Change::ForgetSysctl { key } => {
                switches.remove(key.as_str());
                after.remove(key.as_str());
            }
            Change::SetSysctl {
                key, keep: true, ..
            } => {
                switches.insert(key);
                after.insert(key);
            }
            Change::RestoreSysctl { key } => {
                after.remove(key.as_str());
            }
            _ => {}
        }
    }
    (bar(observed, &switches), bar(observed, &after))
}

fn bar(observed: &Observed, switches: &BTreeSet<&str>) -> Barred {
    let mut barred = Barred::default();
    for key in switches {
        match parts(key) {
            Some(("ipv4", link, "forwarding")) => {
                barred.v4.insert(link.to_owned());
            }
            // Where the kernel forwards per link, the switch of all of IPv6 is never ours.
            Some(("ipv6", link, "force_forwarding")) if !observed.is_on(EVERY_V6) => {
                barred.v6.insert(link.to_owned());
            }
            Some(("ipv6", "all", "forwarding")) => barred.all_v6 = true,
            _ => {}
        }
    }
    barred
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host::{HostConfig, HostPolicy, MapConfig, Proto, TunConfig, plan};
    use crate::model::id::SubnetId;
    use std::collections::BTreeMap;

    const ETH0: &str = "net/ipv4/conf/eth0/forwarding";

    /// A machine with one link to the outside that forwards nothing.
    fn kernel(force_forwarding: bool) -> Observed {
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
        let mut observed = Observed {
            ipv6: true,
            force_forwarding,
            uplinks: BTreeMap::from([("eth0".to_owned(), BTreeSet::from(addresses))]),
            ..Observed::default()
        };
        for key in [ETH0, EVERY_V4, EVERY_V6] {
            set(&mut observed, key, "0");
        }
        if force_forwarding {
            set(&mut observed, "net/ipv6/conf/eth0/force_forwarding", "0");
            set(&mut observed, EVERY_V6_FORCED, "0");
        }
        observed
    }

    fn set(observed: &mut Observed, key: &str, value: &str) {
        observed
            .namespace_mut(&Namespace::Host)
            .sysctls
            .insert(key.to_owned(), value.to_owned());
    }

    fn value(observed: &Observed, key: &str) -> Option<String> {
        observed.namespaces[&Namespace::Host]
            .sysctls
            .get(key)
            .cloned()
    }

    /// One subnet with a port of every local address mapped in both families, or with none.
    fn config(mapped: bool) -> HostConfig {
        let subnet = SubnetId([1; 16]);
        let map = |listen: &str, target: &str| MapConfig {
            subnet,
            name: "web".parse().unwrap(),
            proto: Proto::Tcp,
            listen: listen.parse().unwrap(),
            port: 80,
            target: Some(target.parse().unwrap()),
            target_port: 80,
            local: true,
            source: None,
            allow: vec![],
            draining: false,
        };
        HostConfig {
            instance: "01234567".to_owned(),
            tuns: vec![TunConfig {
                subnet,
                name: "bw-lab".to_owned(),
                mtu: 1400,
                addresses: vec![],
                prefixes: vec![],
                held: vec![],
                host: HostPolicy::Closed,
                others: vec![],
            }],
            maps: if mapped {
                vec![map("0.0.0.0", "10.7.1.2"), map("::", "fd00:7::2")]
            } else {
                vec![]
            },
            ..HostConfig::default()
        }
    }

    /// One pass: what is barred during it and after it.
    fn pass(observed: &mut Observed, mapped: bool) -> (Barred, Barred) {
        let changes = plan(&config(mapped), observed);
        let bars = barred(observed, &changes);
        changes
            .iter()
            .for_each(|change| observed.absorb(&config(mapped), change));
        assert_eq!(plan(&config(mapped), observed), vec![]);
        bars
    }

    fn eth0(v4: bool, v6: bool) -> Barred {
        let link = |on: bool| on.then(|| "eth0".to_owned()).into_iter().collect();
        Barred {
            v4: link(v4),
            v6: link(v6),
            all_v6: false,
        }
    }

    #[test]
    fn a_link_is_barred_from_before_it_forwards_until_after_it_stops() {
        let mut observed = kernel(true);
        assert_eq!(
            pass(&mut observed, false),
            (Barred::default(), Barred::default())
        );
        assert_eq!(
            pass(&mut observed, true),
            (eth0(true, true), eth0(true, true))
        );
        assert_eq!(value(&observed, ETH0).as_deref(), Some("1"));
        // As after a kill: only the record tells.
        assert_eq!(
            pass(&mut observed, true),
            (eth0(true, true), eth0(true, true))
        );
        assert_eq!(
            pass(&mut observed, false),
            (eth0(true, true), Barred::default())
        );
    }

    #[test]
    fn without_force_forwarding_all_of_ipv6_is_barred() {
        let mut observed = kernel(false);
        let all = Barred {
            all_v6: true,
            ..eth0(true, false)
        };
        assert_eq!(pass(&mut observed, true), (all.clone(), all.clone()));
        assert_eq!(value(&observed, EVERY_V6).as_deref(), Some("1"));
        assert_eq!(pass(&mut observed, true), (all.clone(), all.clone()));
        assert_eq!(pass(&mut observed, false), (all, Barred::default()));
        // On before us: not ours.
        let mut router = kernel(false);
        set(&mut router, EVERY_V6, "1");
        assert!(!pass(&mut router, true).0.all_v6);
    }

    #[test]
    fn what_forwarded_before_us_is_not_barred() {
        let mut router = kernel(true);
        for key in [ETH0, "net/ipv6/conf/eth0/force_forwarding"] {
            set(&mut router, key, "1");
        }
        assert_eq!(
            pass(&mut router, true),
            (Barred::default(), Barred::default())
        );
        // An IPv6 router of the old kind.
        let mut router = kernel(true);
        set(&mut router, EVERY_V6, "1");
        assert_eq!(pass(&mut router, true).1, eth0(true, false));
    }

    #[test]
    fn who_turns_on_forwarding_of_every_link_takes_ours_over() {
        let mut observed = kernel(true);
        pass(&mut observed, true);
        for key in [EVERY_V4, ETH0, EVERY_V6] {
            set(&mut observed, key, "1");
        }
        let changes = plan(&config(true), &observed);
        assert_eq!(
            changes,
            [Change::ForgetSysctl {
                key: ETH0.to_owned()
            }]
        );
        assert_eq!(
            pass(&mut observed, true),
            (Barred::default(), Barred::default())
        );
        // The map goes, their forwarding stays.
        let changes = plan(&config(false), &observed);
        assert!(
            !changes.contains(&Change::RestoreSysctl {
                key: ETH0.to_owned()
            }),
            "{changes:?}"
        );
        // Off again behind our back: on for the map, and barred.
        for key in [EVERY_V4, ETH0, EVERY_V6] {
            set(&mut observed, key, "0");
        }
        assert_eq!(pass(&mut observed, true).1, eth0(true, true));
    }

    #[test]
    fn a_link_that_a_router_keeps_out_is_barred_and_put_back() {
        let mut observed = kernel(true);
        set(&mut observed, EVERY_V4, "1");
        assert_eq!(pass(&mut observed, true).0, eth0(true, true));
        assert_eq!(pass(&mut observed, true).0, eth0(true, true));
        let changes = plan(&config(false), &observed);
        assert!(
            changes.contains(&Change::RestoreSysctl {
                key: ETH0.to_owned()
            }),
            "{changes:?}"
        );
    }

    #[test]
    fn a_link_that_no_rule_can_name_is_not_opened() {
        let mut observed = kernel(true);
        let addresses = observed.uplinks.remove("eth0").unwrap();
        observed.uplinks.insert("eth*".to_owned(), addresses);
        assert_eq!(
            pass(&mut observed, true),
            (Barred::default(), Barred::default())
        );
        assert_eq!(value(&observed, "net/ipv4/conf/eth*/forwarding"), None);
    }

    #[test]
    fn only_switches_of_one_link_have_one_of_every_link() {
        assert_eq!(switch_of_every_link(ETH0).as_deref(), Some(EVERY_V4));
        assert_eq!(
            switch_of_every_link("net/ipv6/conf/eth0/force_forwarding").as_deref(),
            Some(EVERY_V6_FORCED)
        );
        for other in [
            EVERY_V4,
            EVERY_V6,
            "net/ipv6/conf/eth0/forwarding",
            "net/ipv4/conf/eth0/rp_filter",
            "kernel/x",
        ] {
            assert_eq!(switch_of_every_link(other), None, "{other}");
        }
    }
}
