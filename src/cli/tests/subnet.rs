//! `create`, `join`, `subnet`.

use super::*;
use crate::model::policy::{Allowed, Terms};

#[test]
fn create_and_join_say_what_comes_next() {
    let created = Response::Created(Created {
        id: id(),
        name: name("lab"),
        cidr4: "10.77.0.0/16".parse().ok(),
        cidr6: None,
        addresses: vec![ip("10.77.1.1"), ip("fd7a:31c0:9d2e:1::1")],
        interface: "bw-lab".into(),
        invite: Some("byway1abc".into()),
        member: name("a"),
        host: Default::default(),
        join_flags: String::new(),
        notes: vec![],
    });
    assert_eq!(
        render(&created, STYLE),
        "\
subnet lab  7q3km2wd9xra4ce8yn5t0vbz6g
  you         a  10.77.1.1  fd7a:31c0:9d2e:1::1  on bw-lab
  invite      byway1abc  (one use, 24 h)
  next        byway join byway1abc      on another machine
  machine     answers ping and names only      ssh: byway subnet host lab tcp/22
"
    );
    let mut open = created.clone();
    if let Response::Created(created) = &mut open {
        created.join_flags = "--allow-domain example.org".into();
    }
    let text = render(&open, STYLE);
    assert!(
        text.contains("next        byway join byway1abc --allow-domain example.org      on"),
        "{text}"
    );
    assert!(
        text.contains("\n  note        prefixes or domain are not private"),
        "{text}"
    );
    let mut joined = Joined {
        host: Default::default(),
        id: id(),
        name: Some(name("lab")),
        state: SubnetState::Ready,
        addresses: vec![ip("10.77.2.1")],
        interface: Some("bw-lab".into()),
        member: Some(name("b")),
        fingerprint: None,
        invite: false,
        ignored: vec![],
        terms: None,
    };
    assert_eq!(
        render(&Response::Joined(joined.clone()), STYLE),
        "subnet lab  7q3km2wd9xra4ce8yn5t0vbz6g  ready\n  you         b  10.77.2.1  on bw-lab\n  machine     answers \
         ping and names only      ssh: byway subnet host lab tcp/22\n"
    );
    let open = |host: &str| {
        let host = Joined {
            host: host.parse().unwrap(),
            ..joined.clone()
        };
        render(&Response::Joined(host), STYLE)
            .lines()
            .last()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        open("tcp/80,udp/53"),
        "  machine     answers ping, names and tcp/80,udp/53      ssh: byway subnet host lab tcp/22,tcp/80,udp/53"
    );
    assert_eq!(
        open("tcp/20-30"),
        "  machine     answers ping, names and tcp/20-30"
    );
    assert_eq!(
        open("open"),
        "  machine     answers ping, names and every port"
    );
    joined.terms = Some(Terms {
        founded_as: name("lab"),
        cidr4: "10.77.0.0/16".parse().ok(),
        cidr6: "fd7a:31c0:9d2e::/48".parse().ok(),
        domain: "lab.internal".into(),
        owner_fingerprint: "12345-00042".into(),
    });
    assert_eq!(
        render(&Response::Joined(joined.clone()), STYLE),
        "\
subnet lab  7q3km2wd9xra4ce8yn5t0vbz6g  ready
  you         b  10.77.2.1  on bw-lab
  prefixes    10.77.0.0/16  fd7a:31c0:9d2e::/48
  domain      lab.internal
  owner       fingerprint 12345-00042
  machine     answers ping and names only      ssh: byway subnet host lab tcp/22
"
    );
    joined.ignored = vec!["--name".into(), "--as".into(), "--host".into()];
    let note = Outcome::of(&Response::Joined(joined.clone()), STYLE)
        .unwrap()
        .note;
    assert_eq!(
        note,
        "note: this peer is a member of lab already: no effect of --name, --as, --host\n  try:  byway subnet host lab \
         SPEC\n"
    );
    joined.ignored = vec![];
    assert_eq!(
        Outcome::of(&Response::Joined(joined.clone()), STYLE)
            .unwrap()
            .note,
        ""
    );
    joined.terms = None;
    joined = Joined {
        name: None,
        state: SubnetState::Pending,
        addresses: vec![],
        interface: None,
        member: None,
        ..joined
    };
    joined.fingerprint = Some("12345-67890".into());
    // Nobody has to approve who has an invite, and `join ID` would ask for just that.
    let by_invite = waiting::pending(&Joined {
        invite: true,
        ..joined.clone()
    });
    assert!(
        by_invite
            .message
            .contains("by itself as soon as who issued that is back"),
        "{by_invite:?}"
    );
    assert_eq!(
        (by_invite.code.as_str(), by_invite.hint.as_str()),
        ("E-PENDING", "byway status")
    );
    let by_id = waiting::pending(&joined);
    assert!(
        by_id.message.contains("must approve") && by_id.hint.contains("continues the same request"),
        "{by_id:?}"
    );
    assert_eq!(
        render(&Response::Joined(joined), STYLE),
        "subnet 7q3km2wd9xra4ce8yn5t0vbz6g  pending\n  your fingerprint  12345-67890   (who approves compares it)\n"
    );
}

#[test]
fn a_subnet_is_shown_with_all_it_has() {
    let info = SubnetInfo {
        id: id(),
        name: name("lab"),
        state: SubnetState::Ready,
        role: Role::Owner,
        cidr4: "10.77.0.0/16".parse().ok(),
        cidr6: "fd7a:31c0:9d2e::/48".parse().ok(),
        block4: 24,
        domain: "lab.internal".into(),
        admission: Admission::Approve,
        owner: PeerId([1; 32]),
        interface: "bw-lab".into(),
        mtu: 1400,
        head: 7,
        addresses: vec![ip("10.77.1.1")],
        members: vec![member::member()],
        leases: vec![member::lease()],
        routes: vec![],
        names: vec![dns::dns()],
        maps: vec![map::map()],
        host: Default::default(),
    };
    let (id1, prefix) = (PeerId([1; 32]), &PeerId([1; 32]).to_string()[..16]);
    assert_eq!(
        render(&Response::Subnet(Box::new(info.clone())), STYLE),
        format!(
            "\
subnet lab  7q3km2wd9xra4ce8yn5t0vbz6g  ready
  prefixes    10.77.0.0/16  fd7a:31c0:9d2e::/48
  block       /24 a member
  addresses   10.77.1.1
  interface   bw-lab  mtu 1400
  domain      lab.internal
  machine     closed
  role        owner
  admission   approve
  owner       {id1}
  head        7

members
MEMBER    ROLE    ADDRESSES  EXPIRES  LABELS        PEER
a (you)   owner   10.77.1.1  in 90 d  site=berlin   {prefix}

leases
PREFIX         MEMBER  PEER
10.77.1.0/24   a       {prefix}

names
NAME               TYPE  VALUE       TTL  FROM
web.lab.internal   A     10.77.1.5   60   workload

maps
SUBNET  NAME  PROTO  LISTEN         TARGET       STATE  CONNECTIONS  RX/TX
lab     web   tcp    0.0.0.0:8080   web.lab:80   ok     12           3.1 G / 88 M
"
        )
    );
    assert_eq!(
        render(&Response::Subnets { subnets: vec![info] }, STYLE),
        "\
SUBNET  ID                           STATE  ROLE    MEMBERS  CIDR4          CIDR6                 INTERFACE
lab     7q3km2wd9xra4ce8yn5t0vbz6g   ready  owner   1        10.77.0.0/16   fd7a:31c0:9d2e::/48   bw-lab
"
    );
}

#[test]
fn create_and_join_become_requests() {
    let Verb::Create(create) =
        parsed("byway create Lab --cidr4 10.1.0.0/16 --cidr6 none --block4 26 --grant-life 90d")
    else {
        panic!()
    };
    assert_eq!(
        create.request().unwrap(),
        Request::Create {
            name: name("lab"),
            cidr4: Cidr::Given("10.1.0.0/16".parse().unwrap()),
            cidr6: Cidr::None,
            block4: Some(26),
            admission: Admission::Approve,
            domain: None,
            grant_life_s: Some(90 * 86_400),
            host: Default::default(),
        }
    );
    let line = format!(
        "byway join {} --peer /ip4/10.0.0.1/tcp/4100 --as x --timeout 5s --no-wait --allow-prefix 203.0.113.0/24 --allow-domain Example.org.",
        id()
    );
    let Verb::Join(join) = parsed(&line) else {
        panic!()
    };
    assert_eq!(
        join.request().unwrap(),
        Request::Join {
            target: id().to_string(),
            peers: vec!["/ip4/10.0.0.1/tcp/4100".into()],
            name: None,
            alias: Some(name("x")),
            ip: None,
            host: Default::default(),
            allow: Allowed {
                prefixes: vec!["203.0.113.0/24".parse().unwrap()],
                domains: vec!["example.org".into()]
            },
            timeout_ms: 5000,
            wait: false,
        }
    );
}

#[test]
fn the_host_is_shown_by_who_may_look_and_set_by_who_may_change() {
    let request = |line: &str| match parsed(line) {
        Verb::Subnet(verb) => verb.request(),
        other => panic!("{other:?}"),
    };
    let show = request("byway subnet host lab");
    assert_eq!(
        show,
        Request::SubnetHost {
            subnet: "lab".into(),
            host: None
        }
    );
    let set = request("byway subnet host lab udp/53,tcp/22");
    assert_eq!(
        set,
        Request::SubnetHost {
            subnet: "lab".into(),
            host: "tcp/22,udp/53".parse().ok()
        }
    );
    assert!(!show.changes() && set.changes());
    let info = |host: &str| {
        Response::Host(HostInfo {
            subnet: name("lab"),
            host: host.parse().unwrap(),
            changed: false,
        })
    };
    assert_eq!(
        render(&info("closed"), STYLE),
        "subnet lab\n  machine     answers ping and names only      ssh: byway subnet host lab tcp/22\n"
    );
    assert_eq!(
        json(&info("open")).unwrap(),
        "{\"schema\":\"byway.host/1\",\"subnet\":\"lab\",\"host\":\"open\",\"changed\":false}\n"
    );
}
