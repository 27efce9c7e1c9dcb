//! Two links with a default route each: by which of them datagrams leave, and what becomes of a link that is refused.

use super::sending::{on_a_link, sh};
use super::*;

/// A second link beside that of [`on_a_link`], which the kernel prefers less.
const SECOND: &str = "
    ip link add vc type veth peer vd; ip addr add 10.0.1.1/24 dev vc; ip link set vc up; ip link set vd up
    ip neigh add 10.0.1.2 lladdr 02:00:00:00:00:03 dev vc nud permanent
    ip route add default via 10.0.0.2 metric 100; ip route add default via 10.0.1.2 metric 200
    for n in 0 1; do
      dev=$([ $n = 0 ] && echo va || echo vc)
      ip addr add 2001:db8:$n::1/64 dev $dev nodad
      ip neigh add fe80::2 lladdr 02:00:00:00:00:04 dev $dev nud permanent
      ip route add default via fe80::2 dev $dev metric $((100 + n))
    done";

/// Bytes that have left by each of the two links.
fn left() -> [u64; 2] {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    ["va", "vc"].map(|link| {
        let line = table.lines().find(|line| line.trim().starts_with(link));
        line.unwrap()
            .split_whitespace()
            .nth(9)
            .unwrap()
            .parse()
            .unwrap()
    })
}

fn index(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).unwrap()
}

/// By which of the two links what `send` sends has left, in units of 10 kB: what the kernel itself sends does not count.
fn by(send: impl FnOnce()) -> [u64; 2] {
    let before = left();
    send();
    let after = left();
    [0, 1].map(|n| (after[n] - before[n]) / 10_000)
}

#[test]
#[ignore = "needs root"]
fn datagrams_leave_by_the_link_of_their_address_in_one_piece_or_cut() {
    on_a_link(SECOND, || {
        for (any, local, to, source) in [
            ("0.0.0.0:0", "10.0.1.1", "192.0.2.9:9", Source::Named),
            (
                "[::]:0",
                "2001:db8:1::1",
                "[2001:db8:f::9]:9",
                Source::OfLink,
            ),
        ] {
            let (port, to) = (port(&[any.parse().unwrap()]), to.parse().unwrap());
            let exit = Exit {
                local: local.parse().unwrap(),
                link: index("vc"),
                source,
            };
            let send = |local| {
                let (buffer, mut runs, _) = frames(&[(20, 1000, 1000)], to);
                runs[0].local = local;
                assert_eq!(port.sender().send(&buffer, &runs), Sent::default());
                port.send_one(&[4; 1000], to, local).unwrap();
            };
            for cut in [gso(&port), false] {
                set_gso(&port, cut);
                assert!(!port.set_exits(&[]));
                assert_eq!(
                    by(|| send(Some(exit.local))),
                    [2, 0],
                    "{to}: the kernel prefers it"
                );
                assert!(port.set_exits(&[exit]));
                assert_eq!(by(|| send(Some(exit.local))), [0, 2], "{to}");
                assert_eq!(by(|| send(None)), [2, 0], "{to}");
                assert!(port.set_exits(&[]));
            }
            assert_eq!(port.counts().exit_refused, 0);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_link_that_the_kernel_refuses_costs_no_datagram_and_is_counted() {
    on_a_link(SECOND, || {
        let port = port(&["0.0.0.0:0".parse().unwrap()]);
        let exit = Exit {
            local: "10.0.1.1".parse().unwrap(),
            link: index("vc"),
            source: Source::Named,
        };
        let send = || {
            let (buffer, mut runs, _) = frames(&[(20, 1000, 1000)], "192.0.2.9:9".parse().unwrap());
            runs[0].local = Some(exit.local);
            assert_eq!(port.sender().send(&buffer, &runs), Sent::default());
        };
        port.set_exits(&[exit]);
        // Down it has no route, and still has its address.
        sh("ip link set vc down");
        assert_eq!((by(send), port.counts().exit_refused), ([2, 0], 1));
        assert_eq!((by(send), port.counts().exit_refused), ([2, 0], 1));
        assert!(gso(&port), "segmentation is not to blame");
        // An index that no link has.
        port.set_exits(&[Exit { link: 9999, ..exit }]);
        assert_eq!((by(send), port.counts().exit_refused), ([2, 0], 2));
    });
}
