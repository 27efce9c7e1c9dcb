//! What of the machine itself its subnets reach, and what it forwards only for us.

use super::*;
use crate::model::host::HostPolicy;

const CLOSED: &str = "closed";

/// The lab with a service on port 2222 of the host, and one on 53.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.host.serve(2222);
    lab.host.serve(53);
    lab
}

/// The first subnet reaches that of the machine.
fn open(host: &str, maps: Vec<MapConfig>) -> HostConfig {
    let mut config = wanted();
    config.tuns[0].host = host.parse().unwrap();
    config.maps = maps;
    config
}

fn closed(lab: &Lab) -> u64 {
    lab.counts().closed.values().sum()
}

#[test]
#[ignore = "needs root"]
fn the_machine_answers_ping_and_names_and_what_it_is_told_to() {
    let lab = lab();
    assert!(lab.sync(&open(CLOSED, vec![])).is_empty());
    let reach = |from: &Ns, to: &str| from.connect(to, SILENCE).is_some();
    let every = ["10.7.1.1:2222", "[fd00:7::1]:2222"];
    for from in [&lab.peer, &lab.a] {
        for to in every {
            assert!(!reach(from, to) && from.udp(to, SILENCE).is_none(), "{to}");
        }
        assert!(from.ping("10.7.1.1") && from.ping("fd00:7::1"));
        for names in ["10.7.1.1:53", "[fd00:7::1]:53"] {
            assert!(
                reach(from, names) && from.udp(names, PATIENCE).is_some(),
                "{names}"
            );
        }
    }
    // Other addresses of the machine are the machine; those of its other subnet are not even asked.
    assert!(!reach(&lab.a, "192.0.2.1:2222") && lab.a.ping("192.0.2.1"));
    assert!(
        !reach(&lab.a, "192.0.2.1:53"),
        "port 53 of our own addresses only"
    );
    assert!(!lab.a.ping("10.8.1.1"));
    assert!(closed(&lab) >= 10, "{}", closed(&lab));
    // Who is refused hears of it at once.
    let (_, text) = lab
        .peer
        .try_sh("timeout 3 bash -c 'exec 3<>/dev/tcp/10.7.1.1/2222' 2>&1");
    assert!(text.contains("No route to host"), "{text}");
    // What the machine itself asks is answered.
    assert!(reach(&lab.host, "10.7.2.1:80") && lab.host.udp("[fd00:7::2]:80", PATIENCE).is_some());

    assert!(lab.sync(&open("tcp/2222,udp/9-10", vec![])).is_empty());
    for from in [&lab.peer, &lab.a] {
        for to in every {
            assert!(reach(from, to) && from.udp(to, SILENCE).is_none(), "{to}");
        }
    }
    assert!(reach(&lab.a, "192.0.2.1:2222"));
    assert!(
        !reach(&lab.c, "10.8.1.1:2222"),
        "the other subnet has its own policy"
    );
    assert!(lab.sync(&open("udp/2000-3000", vec![])).is_empty());
    assert!(!reach(&lab.peer, every[0]) && lab.peer.udp(every[0], PATIENCE).is_some());
    assert!(lab.sync(&open("open", vec![])).is_empty());
    assert!(reach(&lab.peer, every[1]) && reach(&lab.a, "192.0.2.1:2222"));
    assert!(lab.a.udp("10.7.1.1:2222", PATIENCE).is_some());
    assert!(!lab.a.ping("10.8.1.1"), "subnets stay apart");
}

#[test]
#[ignore = "needs root"]
fn policies_are_changed_by_elements_alone() {
    let lab = lab();
    let rules = |text: String| text.lines().filter(|l| !l.contains("elements")).count();
    lab.sync(&open(CLOSED, vec![]));
    let before = lab.ruleset();
    for spec in [
        "tcp/22,udp/53,tcp/8000-8010",
        "tcp/1-65535",
        "tcp/8000-8009,udp/53",
        "open",
        "tcp/22",
    ] {
        let mut config = open(spec, vec![]);
        config.tuns[0].others = vec![
            "10.7.2.0/24".parse().unwrap(),
            "10.7.2.9/32".parse().unwrap(),
        ];
        config.tuns[1].others = vec!["fd00:8:0:2::/64".parse().unwrap()];
        assert!(lab.sync(&config).is_empty());
        let (nft, wish) = (lab.nft.clone(), config.clone());
        let listing = lab.host.run(async move {
            let nft = nft.lock().await;
            assert!(
                nft.applied
                    .as_ref()
                    .unwrap()
                    .elements
                    .same(&elements(&wish).0)
            );
            nft.list().await.unwrap().unwrap()
        });
        assert!(
            listing.elements.same(&elements(&config).0),
            "{:?}",
            listing.elements.delta(&elements(&config).0)
        );
        assert_eq!(
            listing.elements.policy("bw-net7"),
            Some(spec.parse::<HostPolicy>().unwrap())
        );
        assert_eq!(
            listing.elements.policy("bwv00070002"),
            Some(spec.parse::<HostPolicy>().unwrap())
        );
        assert_eq!(listing.elements.policy("bw-net8"), Some(HostPolicy::Closed));
    }
    assert!(rules(lab.ruleset()) > 100);
    lab.sync(&open(CLOSED, vec![]));
    assert_eq!(lab.ruleset(), before);
}

#[test]
#[ignore = "needs root"]
fn what_is_no_longer_let_in_ends_and_the_rest_goes_on() {
    let lab = lab();
    lab.host.serve(2223);
    lab.sync(&open("tcp/2222,tcp/2223,udp/2222", vec![]));
    let flow = |from: &Ns, to: &str| Arc::new(Mutex::new(from.connect(to, PATIENCE).unwrap().0));
    let (ends, stays) = (
        flow(&lab.peer, "10.7.1.1:2222"),
        flow(&lab.a, "[fd00:7::1]:2223"),
    );
    let elsewhere = flow(&lab.a, "192.0.2.1:2222");
    let own = flow(&lab.host, "10.7.2.1:80");
    // A server that speaks by itself, and one flow that goes on answering.
    lab.host.sh("nohup timeout 30 python3 -c 'import socket,time\ns=socket.socket();s.setsockopt(1,2,1);s.bind((\"0.0.0.0\",2222+100));s.listen()\nc,_=s.accept()\nwhile True:\n c.send(b\"tick\");time.sleep(0.02)' >/dev/null 2>&1 &");
    lab.sync(&open("tcp/2222,tcp/2223,tcp/2322,udp/2222", vec![]));
    let ticks = lab.peer.run(async {
        for _ in 0..200 {
            // It may take Python a while until it listens.
            if let Ok(stream) = TcpStream::connect("10.7.1.1:2322").await {
                return Arc::new(Mutex::new(stream));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nobody listens");
    });
    let chatter = lab.peer.run(async {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        socket.connect("10.7.1.1:2222").await.unwrap();
        Arc::new(socket)
    });
    let asking = chatter.clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let chatting = lab.peer.handle.spawn(async move {
        let ask = async {
            loop {
                let _ = asking.send(b"?").await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! { () = ask => {}, _ = stopped => {} }
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(lab.sync(&open("tcp/2223", vec![])).is_empty());
    assert!(!echoes(&lab.peer, &ends, SILENCE) && !echoes(&lab.a, &elsewhere, SILENCE));
    assert!(echoes(&lab.a, &stays, PATIENCE) && echoes(&lab.host, &own, PATIENCE));
    // Neither what the server says by itself nor an answer that was under way brings a flow back.
    let silent = |what: &str, read: Box<dyn Fn() -> bool>| {
        std::thread::sleep(Duration::from_millis(100));
        while read() {}
        std::thread::sleep(Duration::from_millis(300));
        assert!(!read(), "{what} goes on");
    };
    let (peer, socket) = (&lab.peer, chatter.clone());
    let handle = peer.handle.clone();
    silent(
        "UDP",
        Box::new(move || {
            let _in = handle.enter();
            socket.try_recv(&mut [0; 100]).is_ok()
        }),
    );
    let handle = peer.handle.clone();
    silent(
        "TCP",
        Box::new(move || {
            let _in = handle.enter();
            matches!(ticks.blocking_lock().try_read(&mut [0; 100]), Ok(n) if n > 0)
        }),
    );
    let _ = stop.send(());
    lab.peer.run(async move { chatting.await.unwrap() });
}

#[test]
#[ignore = "needs root"]
fn a_policy_that_a_killed_process_wrote_is_carried_out_by_the_next() {
    let lab = lab();
    lab.sync(&open("tcp/2222", vec![]));
    let flow = Arc::new(Mutex::new(
        lab.peer.connect("10.7.1.1:2222", PATIENCE).unwrap().0,
    ));
    // The rules of the next policy are written, and then nothing is done about flows.
    let (elements, _) = Elements::of(&open(CLOSED, vec![]), &Barred::default(), &Crowd::new());
    let rules = ruleset::whole(&lab.table(), &elements, &Counters::default());
    lab.host.sh(&format!("nft -f - <<'RULES'\n{rules}RULES"));
    assert!(
        echoes(&lab.peer, &flow, PATIENCE),
        "the rules alone end no connection"
    );
    let next = Nft::new(lab.table().trim_start_matches(TABLE_PREFIX), Repair::No);
    let nft = lab.nft.clone();
    lab.host.run(async move { *nft.lock().await = next });
    assert!(lab.sync(&open(CLOSED, vec![])).is_empty());
    assert!(!echoes(&lab.peer, &flow, SILENCE));
}

#[test]
#[ignore = "needs root"]
fn a_map_is_a_permission_of_its_own() {
    let lab = lab();
    let to_self = |listen: &str, target: &str| map(7, Proto::Tcp, listen, 8080, target, 2222);
    let maps = vec![
        to_self("0.0.0.0", "10.7.1.1"),
        to_self("::", "fd00:7::1"),
        map(7, Proto::Tcp, "0.0.0.0", 8081, "10.7.1.2", 80),
    ];
    assert!(lab.sync(&open(CLOSED, maps.clone())).is_empty());
    for from in [&lab.peer, &lab.a, &lab.neighbour] {
        let (four, six) = match std::ptr::eq(from, &lab.neighbour) {
            true => ("192.0.2.1", "[2001:db8::1]"),
            false => ("10.7.1.1", "[fd00:7::1]"),
        };
        assert!(
            from.tcp(&format!("{four}:8080")).is_some()
                && from.tcp(&format!("{six}:8080")).is_some()
        );
        assert!(from.tcp(&format!("{four}:8081")).is_some());
    }
    assert!(
        lab.peer.connect("10.7.1.1:2222", SILENCE).is_none(),
        "the target's port is not opened by it"
    );
    // Narrowing the policy leaves the map's flows alone; narrowing the map ends them.
    lab.sync(&open("tcp/2222", maps.clone()));
    let flow = Arc::new(Mutex::new(
        lab.peer.connect("10.7.1.1:8080", PATIENCE).unwrap().0,
    ));
    lab.sync(&open(CLOSED, maps.clone()));
    assert!(echoes(&lab.peer, &flow, PATIENCE));
    lab.sync(&open(CLOSED, maps[1..].to_vec()));
    assert!(!echoes(&lab.peer, &flow, SILENCE));
    assert!(lab.peer.connect("10.7.1.1:8080", SILENCE).is_none());
}

#[test]
#[ignore = "needs root"]
fn what_another_program_translates_counts_as_the_machine_by_its_first_port() {
    let lab = lab();
    // As Docker does: a container behind a bridge, published by a rule of its own.
    let container = Ns::new(format!("{}d", lab.host.name));
    ip(&format!(
        "link add docker0 netns {} type veth peer name eth0 netns {}",
        lab.host.name, container.name
    ));
    lab.host
        .sh("ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up");
    container.sh("ip addr add 172.17.0.2/16 dev eth0; ip link set eth0 up; ip route add default via 172.17.0.1");
    container.serve(80);
    lab.host.sh("nft 'add table ip docker; add chain ip docker pre { type nat hook prerouting priority dstnat; }; add rule ip docker pre fib daddr type local tcp dport 8088 dnat to 172.17.0.2:80; add rule ip docker pre fib daddr type local tcp dport 8089 redirect to 2222'");
    let reach = |from: &Ns, port: u16| from.connect(&format!("10.7.1.1:{port}"), SILENCE).is_some();
    lab.sync(&open(CLOSED, vec![]));
    let before = closed(&lab);
    // A redirect needs an address on the link, which the workloads' have not.
    assert!(!reach(&lab.peer, 8088) && !reach(&lab.peer, 8089) && !reach(&lab.a, 8088));
    assert!(closed(&lab) >= before + 3);
    assert!(
        lab.neighbour.tcp("192.0.2.1:8088").is_some(),
        "not ours to judge"
    );
    lab.sync(&open("tcp/80,tcp/2222", vec![]));
    assert!(
        !reach(&lab.a, 8088) && !reach(&lab.peer, 8089),
        "the port it was asked for counts"
    );
    lab.sync(&open("tcp/8088,tcp/8089", vec![]));
    assert!(reach(&lab.peer, 8088) && reach(&lab.peer, 8089) && reach(&lab.a, 8088));
    // Also into a workload of the same or another subnet.
    lab.host.sh("nft 'add rule ip docker pre fib daddr type local tcp dport 8090 dnat to 10.7.1.3:80; add rule ip docker pre fib daddr type local tcp dport 8091 dnat to 10.8.1.2:80'");
    assert!(!reach(&lab.peer, 8090) && !reach(&lab.a, 8091));
    // A map that lets in others only is no permission for what somebody else makes of its port.
    let mut guarded = map(7, Proto::Tcp, "0.0.0.0", 8088, "10.7.1.2", 80);
    guarded.allow = vec!["203.0.113.0/24".parse().unwrap()];
    lab.sync(&open(CLOSED, vec![guarded]));
    assert!(!reach(&lab.peer, 8088));
    lab.host.sh("nft delete table ip docker");
}

#[test]
#[ignore = "needs root"]
fn a_member_that_floods_leaves_conntrack_to_others() {
    let lab = lab();
    let mut config = open("udp/10000-50000", vec![]);
    // Two members, the second behind the same link.
    config.tuns[0].others = vec![
        "10.7.2.0/24".parse().unwrap(),
        "10.7.3.0/24".parse().unwrap(),
    ];
    lab.sync(&config);
    let before = lab.ruleset();
    lab.peer.sh("ip addr add 10.7.3.1/32 dev tun0");
    lab.host
        .sh("ip neigh add 10.7.3.1 lladdr 02:00:00:00:00:70 dev bw-net7");
    let sent = ruleset::MEMBER_CONNECTIONS.0 + 2000;
    lab.peer.run(async move {
        let socket = UdpSocket::bind("10.7.2.1:0").await.unwrap();
        for port in 0..sent {
            let _ = socket
                .send_to(b"x", ("10.7.1.1", 10_000 + port as u16))
                .await;
            if port % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let dropped = lab.counts().drops["flood"].packets;
    assert!((500..=2000).contains(&dropped), "{dropped}");
    let other = lab.peer.run(async {
        let socket = UdpSocket::bind("10.7.3.1:0").await.unwrap();
        socket.send_to(b"x", ("10.7.1.1", 53)).await.unwrap();
        tokio::time::timeout(PATIENCE, socket.recv(&mut [0; 100]))
            .await
            .is_ok()
    });
    assert!(other, "the other member is answered");
    assert_eq!(
        lab.ruleset(),
        before,
        "counting leaves no trace in the listing"
    );
}

#[test]
#[ignore = "needs root"]
fn a_barred_link_forwards_maps_and_translated_packets_and_nothing_else() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    // A network behind the host that is none of ours.
    let private = Ns::new(format!("{}p", lab.host.name));
    ip(&format!(
        "link add in1 netns {} type veth peer name in2 netns {}",
        lab.host.name, private.name
    ));
    lab.host
        .sh("ip addr add 198.51.100.1/24 dev in1; ip -6 addr add 2001:db8:9::1/64 dev in1 nodad; ip link set in1 up");
    private
        .sh("ip addr add 198.51.100.2/24 dev in2; ip -6 addr add 2001:db8:9::2/64 dev in2 nodad; ip link set in2 up");
    private.sh("ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:9::1");
    private.serve(80);
    let n = &lab.neighbour;
    n.sh("ip route add 198.51.100.0/24 via 192.0.2.1; ip -6 route add 2001:db8:9::/64 via 2001:db8::1");
    n.serve(81);
    let passes = |to: &str| n.connect(to, SILENCE).is_some();
    let (four, six) = ("198.51.100.2:80", "[2001:db8:9::2]:80");
    let bar = |v4: bool, v6: bool, all_v6: bool| {
        let link = |on: bool| on.then(|| "lan0".to_owned()).into_iter().collect();
        lab.sync_barred(
            &config,
            &Barred {
                v4: link(v4),
                v6: link(v6),
                all_v6,
            },
        )
    };
    assert!(bar(false, false, false).is_empty());
    assert!(passes(four) && passes(six), "the host is a router");
    for (v4, v6, all_v6) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
        (true, true, false),
    ] {
        assert!(bar(v4, v6, all_v6).is_empty());
        assert_eq!(
            (passes(four), passes(six)),
            (!v4, !(v6 || all_v6)),
            "{v4} {v6} {all_v6}"
        );
        // Our maps, and what other links begin, pass.
        assert!(passes("192.0.2.1:8080") && passes("[2001:db8::1]:8080"));
        assert!(private.connect("192.0.2.2:81", PATIENCE).is_some());
        assert_eq!(
            private.connect("[2001:db8::2]:81", SILENCE).is_some(),
            !all_v6
        );
    }
    // A datagram, and a segment of no connection.
    assert_eq!(n.udp(four, SILENCE), None);
    // Another program's translation.
    lab.host.sh("nft 'add table ip other; add chain ip other pre { type nat hook prerouting priority dstnat; }; add rule ip other pre ip daddr 192.0.2.1 tcp dport 8088 dnat to 198.51.100.2:80'");
    assert!(passes("192.0.2.1:8088"));
    lab.host.sh("nft delete table ip other");
    // What was dropped is counted; a bar that goes leaves the ruleset as it was.
    assert!(lab.counts().drops["filtered"].packets > 0);
    bar(false, false, false);
    assert!(passes(four) && passes(six));
}
