//! `attach`, `workload`.

use super::*;

fn workload() -> WorkloadInfo {
    WorkloadInfo {
        workload: name("web"),
        subnet: name("lab"),
        kind: "netns".into(),
        target: "/run/netns/web".into(),
        container: None,
        engine: None,
        user: None,
        away_since: None,
        addresses: vec![ip("10.77.1.5")],
        interface: "byway0".into(),
        mtu: 1400,
        fqdn: "web.lab.internal".into(),
        dns: vec![ip("10.77.1.1")],
        state: "ready".into(),
        network: None,
        aliases: vec![],
        health: None,
        traffic: None,
        socket: None,
        link: None,
    }
}

#[test]
fn workloads_look_like_this() {
    shows(
        Response::Workloads {
            workloads: vec![workload()],
        },
        "\
WORKLOAD  SUBNET  ADDRESSES  KIND    TARGET           INTERFACE  STATE
web       lab     10.77.1.5  netns   /run/netns/web   byway0     ready
",
    );
    shows(
        Response::Workload(workload()),
        "\
workload web  in lab  ready
  name        web.lab.internal
  addresses   10.77.1.5
  interface   byway0  mtu 1400
  resolver    10.77.1.1
  netns       /run/netns/web
",
    );
    let guest = WorkloadInfo {
        kind: "tap".into(),
        target: "vm".into(),
        interface: "bwv-vm".into(),
        socket: Some("/run/byway/tap-vm.sock".into()),
        link: Some(LinkInfo {
            host_interface: "bwv-vm".into(),
            host_mac: "02:62:77:00:00:01".into(),
            mac: "52:54:00:01:02:03".into(),
            routes: vec![],
            netns: None,
        }),
        ..workload()
    };
    shows(
        Response::Workload(guest),
        "\
workload web  in lab  ready
  name        web.lab.internal
  addresses   10.77.1.5
  interface   bwv-vm  mtu 1400
  mac         52:54:00:01:02:03
  socket      /run/byway/tap-vm.sock
  resolver    10.77.1.1
  tap         vm
",
    );
    let passed = |packets, refused| PassedInfo {
        bytes: packets * 100,
        packets,
        drops: 1,
        refused,
    };
    let counted = WorkloadInfo {
        traffic: Some(TrafficInfo {
            sent: passed(12, 3),
            received: passed(9, 40),
        }),
        ..workload()
    };
    shows(
        Response::Workload(counted),
        "\
workload web  in lab  ready
  name        web.lab.internal
  addresses   10.77.1.5
  interface   byway0  mtu 1400
  resolver    10.77.1.1
  netns       /run/netns/web
  sent        1.2 k in 12 packets, 1 dropped, 3 refused
  received    900 B in 9 packets, 1 dropped, 40 refused
",
    );
    shows(
        Response::Attached(Attached {
            workload: name("web"),
            subnet: name("lab"),
            addresses: vec![ip("10.77.1.5"), ip("fd7a::5")],
            interface: "byway0".into(),
            mtu: 1400,
            dns: vec![ip("10.77.1.1")],
            search: "lab.internal".into(),
            already: false,
            down: false,
            resolver: true,
            mac: None,
            socket: None,
        }),
        "\
workload web  in lab
  addresses   10.77.1.5  fd7a::5
  interface   byway0  mtu 1400
  resolver    10.77.1.1
",
    );
    shows(
        Response::Attached(Attached {
            workload: name("web"),
            subnet: name("lab"),
            addresses: vec![ip("10.77.1.5"), ip("fd7a::5")],
            interface: "byway0".into(),
            mtu: 1400,
            dns: vec![ip("10.77.1.1")],
            search: "lab.internal".into(),
            already: true,
            down: true,
            mac: None,
            socket: None,
            resolver: true,
        }),
        "\
workload web  in lab  (attached already)
  addresses   10.77.1.5  fd7a::5
  interface   byway0, which comes with: byway up lab   (subnet lab is down)
  resolver    10.77.1.1
",
    );
}

#[test]
fn attach_becomes_a_request() {
    let Verb::Attach(attach) =
        parsed("byway attach netns ns1 --subnet lab --name web --ip 10.0.0.5")
    else {
        panic!()
    };
    assert_eq!(
        attach.request(|| panic!("a subnet was named")).unwrap(),
        Request::Attach {
            workload: WorkloadKind::Netns("ns1".into()),
            subnet: "lab".into(),
            name: Some(name("web")),
            ip: Some(ip("10.0.0.5")),
            mac: None,
            engine: None,
        }
    );
}
