//! TAPs: made once, looked after, and at rest while a guest has one open that nothing is wanted of.

use super::*;

#[test]
fn a_tap_is_made_once_and_looked_after_and_goes_with_its_workload() {
    let mut desired = HostConfig {
        instance: "01234567".to_owned(),
        tuns: vec![tun(0, 0)],
        ..HostConfig::default()
    };
    desired.workloads = vec![WorkloadConfig {
        host_link: "bwv-vm".to_owned(),
        inner_link: "bwv-vm".to_owned(),
        netns: None,
        tap: Some(1000),
        ..workload(0, 0, 0)
    }];
    let mut observed = Observed {
        ipv6: true,
        ..Observed::default()
    };
    let first = plan(&desired, &observed);
    let made = first
        .iter()
        .filter(|c| matches!(c, Change::CreateTap(w) if w.host_link == "bwv-vm"));
    assert_eq!(made.count(), 1, "{first:?}");
    for key in [
        "net/ipv4/conf/bwv-vm/proxy_arp",
        "net/ipv4/neigh/bwv-vm/proxy_delay",
        "net/ipv6/conf/bwv-vm/addr_gen_mode",
    ] {
        let is = |c: &&Change| matches!(c, Change::SetSysctl { key: k, .. } if k == key);
        assert_eq!(first.iter().filter(is).count(), 1, "{key}");
    }
    first.iter().for_each(|c| observed.absorb(&desired, c));
    assert_eq!(plan(&desired, &observed), vec![]);
    let link = &observed.namespaces[&Namespace::Host].links["bwv-vm"];
    assert_eq!(link.alias, alias(&desired.instance, "tap", "bwv-vm"));
    let own = inner_mac(&desired.instance, "bwv-vm");
    assert!(link.neighbours.values().all(|mac| *mac == own) && link.neighbours.len() == 2);
    // Who has it open gave it to another user.
    let links = &mut observed.namespace_mut(&Namespace::Host).links;
    links.get_mut("bwv-vm").unwrap().owner = Some(4000);
    let back = plan(&desired, &observed);
    let (link, owner) = ("bwv-vm".to_owned(), 1000);
    assert_eq!(back, vec![Change::SetOwner { link, owner }]);
    back.iter().for_each(|c| observed.absorb(&desired, c));
    assert_eq!(plan(&desired, &observed), vec![]);
    desired.workloads.clear();
    let last = plan(&desired, &observed);
    let goes = |c: &Change| matches!(c, Change::DeleteLink { link, .. } if link == "bwv-vm");
    assert!(last.iter().any(goes), "{last:?}");
    last.iter().for_each(|c| observed.absorb(&desired, c));
    assert!(
        !observed.namespaces[&Namespace::Host]
            .links
            .contains_key("bwv-vm")
    );
}

#[test]
fn a_tap_that_a_guest_has_open_rests_while_its_subnet_is_down_or_the_daemon_stops() {
    let mut desired = HostConfig {
        instance: "01234567".to_owned(),
        tuns: vec![tun(0, 0)],
        ..HostConfig::default()
    };
    desired.workloads = vec![WorkloadConfig {
        host_link: "bwv-vm".to_owned(),
        inner_link: "bwv-vm".to_owned(),
        netns: None,
        tap: Some(1000),
        ..workload(0, 0, 0)
    }];
    let mut observed = Observed {
        ipv6: true,
        ..Observed::default()
    };
    let follow = |observed: &mut Observed, desired: &HostConfig| {
        let changes = plan(desired, observed);
        changes.iter().for_each(|c| observed.absorb(desired, c));
        assert_eq!(plan(desired, observed), vec![]);
    };
    let link = |observed: &Observed| {
        let host = observed.namespaces.get(&Namespace::Host);
        host.and_then(|host| host.links.get("bwv-vm").cloned())
    };
    let guest = |observed: &mut Observed, there: bool| {
        let links = &mut observed.namespace_mut(&Namespace::Host).links;
        links.get_mut("bwv-vm").unwrap().carrier = there;
    };
    follow(&mut observed, &desired);
    guest(&mut observed, true);
    let rest = desired.at_rest();
    assert_eq!(
        rest.at_rest(),
        rest,
        "a stop while the subnet is down keeps it too"
    );
    follow(&mut observed, &rest);
    let rests = link(&observed).unwrap();
    assert!(!rests.up && rests.neighbours.is_empty(), "{rests:?}");
    assert!(!observed.has_host_routes(), "nothing leads to it");
    // It is taken up again, the same one.
    follow(&mut observed, &desired);
    let again = link(&observed).unwrap();
    assert!(again.up && again.carrier, "{again:?}");
    assert_eq!(again.neighbours.len(), 2);
    // Its workload is detached while the guest is there, or the guest has gone.
    let mut detached = observed.clone();
    follow(&mut detached, &HostConfig::default());
    assert_eq!(link(&detached), None);
    guest(&mut observed, false);
    follow(&mut observed, &rest);
    assert_eq!(link(&observed), None);
}
