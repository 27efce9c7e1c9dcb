use super::*;

#[test]
fn only_ports_that_others_may_reach_are_asked_for_each_at_its_own_address() {
    let address = |text: &str| text.parse::<Address>().unwrap();
    let all = [
        "/ip4/192.168.1.7/udp/4100/quic-v1",
        "/ip4/10.0.0.7/udp/4100/quic-v1",
        "/ip4/10.0.0.7/tcp/443",
        "/ip4/192.168.1.7/tcp/4101",
        "/ip4/127.0.0.1/udp/4102/quic-v1",
        "/ip6/2001:db8::7/tcp/4103",
    ]
    .map(address);
    let port = |transport, number| Port { transport, number };
    let (udp, tcp) = (port(Transport::Udp, 4100), port(Transport::Tcp, 4101));
    assert_eq!(ports(&all), [udp, port(Transport::Tcp, 443), tcp]);
    assert_eq!(ports(&[]), []);
    // At 192.168.1.7 port 443 may be a web server's.
    let at = |local: &str| ports_at(&all, local.parse().unwrap());
    assert_eq!(at("192.168.1.7"), [udp, tcp]);
    assert_eq!(at("192.168.1.8"), []);
    assert_eq!(at("127.0.0.1"), []);
    assert_eq!(at("2001:db8::7"), [port(Transport::Tcp, 4103)]);
    assert_eq!(at("2001:db8::8"), []);
}

#[test]
fn each_router_is_asked_for_the_ports_at_our_address_there() {
    let router = |address: &str, local: &str| Router {
        address: address.parse().unwrap(),
        local: local.parse().unwrap(),
        link: 2,
    };
    let listening = [
        "/ip4/192.168.1.7/udp/4100/quic-v1",
        "/ip4/10.0.0.7/udp/4101/quic-v1",
        "/ip6/2001:db8::7/udp/4102/quic-v1",
    ]
    .map(|text| text.parse::<Address>().unwrap());
    let asked = |routers: &[Router]| -> Vec<(Option<String>, Vec<u16>)> {
        let all = situations(true, &listening, routers).into_iter();
        all.map(|s| {
            let name = s.gateway.map(|gateway| gateway.address.to_string());
            (name, s.ports.iter().map(|port| port.number).collect())
        })
        .collect()
    };
    let named = |name: &str, ports: &[u16]| (Some(name.to_owned()), ports.to_vec());
    let (first, second) = (
        router("192.168.1.1", "192.168.1.7"),
        router("10.0.0.1", "10.0.0.7"),
    );
    let (v6, site) = (
        router("fe80::1", "2001:db8::7"),
        router("fe80::2", "fd00::7"),
    );
    assert_eq!(
        asked(&[first, second, v6, site]),
        [
            named("192.168.1.1", &[4100]),
            named("10.0.0.1", &[4101]),
            named("fe80::1", &[4102])
        ]
    );
    let none = (None, vec![4100, 4101]);
    assert_eq!(asked(&[v6]), [none.clone(), named("fe80::1", &[4102])]);
    assert_eq!(asked(&[]), [none]);
}

#[test]
fn a_port_of_a_router_is_told_as_an_address_of_its_family() {
    let told = |transport, at: &str| {
        let at = at.parse().unwrap();
        address(transport, at).unwrap().to_string()
    };
    assert_eq!(
        told(Transport::Udp, "203.0.113.9:4100"),
        "/ip4/203.0.113.9/udp/4100/quic-v1"
    );
    assert_eq!(
        told(Transport::Tcp, "[2001:db8::9]:4100"),
        "/ip6/2001:db8::9/tcp/4100"
    );
}

#[tokio::test]
async fn where_nothing_can_be_written_ports_are_closed_and_none_is_opened() {
    let gateway = Gateway {
        address: "127.7.9.1".parse().unwrap(),
        local: "127.0.0.1".parse().unwrap(),
    };
    let port = |number| Port {
        transport: Transport::Udp,
        number,
    };
    let record = |number| Record {
        gateway,
        protocol: crate::portmap::Protocol::Pcp,
        port: port(number),
        external: number,
        nonce: [1, 2, 3],
        until: u64::MAX,
    };
    let dir = Path::new("/nonexistent/byway");
    let mut task = Task {
        routers: Routers::new(vec![record(4100), record(4101)]),
        saved: Vec::new(),
        askers: vec![(gateway, Asker::default())],
        dir,
    };
    let situation = Situation {
        is_enabled: true,
        ports: vec![port(4200)],
        gateway: Some(gateway),
    };
    task.routers.set(Instant::now(), vec![situation]);
    let asked = tokio::time::timeout(Duration::from_secs(20), task.ask(|_| {}));
    asked.await.expect("it ends");
    let trouble = task.routers.status()[0].trouble;
    assert_eq!(trouble, Some(crate::portmap::Trouble::Unsaved));
    // Nobody answers there, so that both are owed still.
    assert_eq!(task.routers.records(), [record(4100), record(4101)]);
}

#[test]
fn a_place_at_a_relay_is_no_change_of_this_machine_s_network() {
    let map = PortMap::default();
    let mut changes = map.follow_listening();
    let own: Address = "/ip4/192.168.1.7/tcp/4100".parse().unwrap();
    let relay = crate::model::id::PeerId([2; 32]);
    let through = format!("/ip4/192.0.2.9/tcp/4100/p2p/{relay}/p2p-circuit");
    map.listening(std::slice::from_ref(&own));
    assert_eq!(*changes.borrow_and_update(), std::slice::from_ref(&own));
    map.listening(&[own.clone(), through.parse().unwrap()]);
    map.listening(&[own]);
    assert!(!changes.has_changed().unwrap());
    map.listening(&[]);
    assert!(changes.has_changed().unwrap());
}

#[tokio::test]
async fn what_was_saved_is_read_again_and_a_damaged_file_counts_as_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(saved(dir.path()), []);
    let record = Record {
        gateway: Gateway {
            address: "192.168.1.1".parse().unwrap(),
            local: "192.168.1.7".parse().unwrap(),
        },
        protocol: crate::portmap::Protocol::Pcp,
        port: Port {
            transport: Transport::Udp,
            number: 4100,
        },
        external: 4100,
        nonce: [1, 2, 3],
        until: u64::MAX,
    };
    save(dir.path(), &[record]).await.unwrap();
    assert_eq!(saved(dir.path()), [record]);
    // Elsewhere, it is left and said to be.
    let [line] = cleanup(dir.path()).await.try_into().unwrap();
    assert_eq!(
        line,
        "left udp port 4100 of the router 192.168.1.1: this machine is not behind it now"
    );
    assert_eq!(saved(dir.path()), [record]);
    let over = Record { until: 7, ..record };
    save(dir.path(), &[over]).await.unwrap();
    assert_eq!(cleanup(dir.path()).await.len(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    std::fs::write(dir.path().join(FILE), "[{]").unwrap();
    assert_eq!(saved(dir.path()), []);
    save(&dir.path().join("none"), &[record]).await.unwrap_err();
}
