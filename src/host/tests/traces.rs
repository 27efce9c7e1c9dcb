//! What is made in the kernel goes without a trace, and nothing of others goes with it.

use super::{
    Cleaned, INSTANCE, Named, cleanup, config, empty, in_own_namespace, ip, linux, netns, picture,
    reach, used_prefixes, workload,
};
use crate::host::{Host, sysctl};
use crate::model::host::{MapConfig, Proto, plan};
use crate::model::id::SubnetId;

#[test]
#[ignore = "needs root"]
fn tun_comes_and_goes_without_a_trace() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let mut host = linux(&state);
        reach(&mut host, &config()).await;
        let link = ip("-d link show bw-lab");
        assert!(
            link.contains("alias byway:01234567:tun:bw-lab") && link.contains("mtu 1400"),
            "{link}"
        );
        assert!(
            link.contains("qlen 128") && link.contains("gso_max_size 60000"),
            "{link}"
        );
        assert!(ip("route get 10.77.3.4").contains("dev bw-lab table 4110 src 10.77.0.1"));
        assert!(ip("-6 route get fd77::9:1").contains("dev bw-lab table 4110"));
        assert!(
            !ip("-6 address show bw-lab").contains("fe80"),
            "no link-local address"
        );
        // Its own prefixes are not in its own way, but another daemon's are.
        assert!(
            !used_prefixes(INSTANCE)
                .await
                .unwrap()
                .iter()
                .any(|(_, link)| link == "bw-lab")
        );
        let seen_by_another = used_prefixes("89abcdef").await.unwrap();
        assert!(seen_by_another.contains(&("10.77.0.0/16".parse().unwrap(), "bw-lab".to_owned())));
        reach(&mut host, &empty()).await;
        assert_eq!(picture(), before);
    });
}

#[test]
#[ignore = "needs root"]
fn foreign_kernel_objects_survive() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        ip("link add foreign type bridge");
        ip("link set foreign up");
        ip("address add 192.0.2.1/24 dev foreign");
        ip("route add 198.51.100.0/24 dev foreign table 4110");
        ip("rule add from 192.0.2.9 lookup 4110 priority 4110");
        let before = picture();
        let mut host = linux(&state);
        reach(&mut host, &config()).await;
        reach(&mut host, &empty()).await;
        assert_eq!(picture(), before);
        // A link that has our name and is not ours is refused, not taken.
        ip("link add bw-lab type bridge");
        let observed = host.observe(&config()).await.unwrap();
        let changes = plan(&config(), &observed);
        let failures = host.apply(&config(), &observed, changes).await;
        assert!(
            failures.iter().any(|f| f.why.contains("not ours")),
            "{failures:?}"
        );
        assert!(ip("-d link show bw-lab").contains("bridge"));
    });
}

#[test]
#[ignore = "needs root"]
fn forwarding_of_an_uplink_is_put_back_unless_someone_changed_it() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        ip("link add up0 type bridge");
        ip("address add 192.0.2.1/24 dev up0");
        let key = "net/ipv4/conf/up0/forwarding";
        let value = || sysctl::read(key).unwrap();
        // A new namespace begins with what the machine's own has.
        sysctl::write("net/ipv4/ip_forward", "0").unwrap();
        assert_eq!(value(), "0");
        let mut desired = config();
        desired.maps = vec![MapConfig {
            subnet: SubnetId([1; 16]),
            name: "web".parse().unwrap(),
            proto: Proto::Tcp,
            listen: "0.0.0.0".parse().unwrap(),
            port: 8080,
            target: Some("10.77.0.11".parse().unwrap()),
            target_port: 80,
            local: true,
            source: None,
            allow: Vec::new(),
            draining: false,
        }];
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        assert_eq!(value(), "1");
        // A kill forgets nothing.
        drop(host);
        let mut host = linux(&state);
        reach(&mut host, &empty()).await;
        assert_eq!(value(), "0");
        sysctl::write(key, "1").unwrap();
        reach(&mut host, &desired).await;
        reach(&mut host, &empty()).await;
        assert_eq!(value(), "1", "it was not ours");
    });
}

#[test]
#[ignore = "needs root"]
fn cleanup_removes_what_a_kill_left() {
    in_own_namespace(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = picture();
        let named = Named::new("killed");
        let (netns, resolv_conf) = netns::resolve(&named.0).await.unwrap();
        let mut desired = config();
        desired.workloads = vec![workload("w", 11, netns, resolv_conf)];
        let mut host = linux(&state);
        reach(&mut host, &desired).await;
        drop(host);
        let cleaned = cleanup(Some(INSTANCE), state.path(), crate::host::Guests::Remove)
            .await
            .unwrap();
        let done = cleaned.done;
        assert!(
            cleaned.left.is_empty() && done.contains(&"removed link bwv0000000b".to_owned()),
            "{done:?}"
        );
        let past = |what: &String| {
            ["removed ", "put "]
                .iter()
                .any(|word| what.starts_with(word))
        };
        assert!(
            done.iter().all(past) && !done.iter().any(|what| what.contains("remove ")),
            "{done:?}"
        );
        assert_eq!(picture(), before);
        assert!(!ip(&format!("-n {} rule show", named.0)).contains("4110"));
        assert_eq!(
            cleanup(Some(INSTANCE), state.path(), crate::host::Guests::Remove)
                .await
                .unwrap(),
            Cleaned::default()
        );
    });
}
