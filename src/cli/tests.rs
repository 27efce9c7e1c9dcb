//! Every answer as people see it, exactly; arguments as requests; a whole call through the socket.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::api::server;
use crate::api::types::*;
use crate::model::host::Proto;
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::zone::RecordData;

const NOW: u64 = 1_700_000_000;
const STYLE: Style = Style { colour: false, now: NOW };

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id() -> SubnetId {
    "7q3km2wd9xra4ce8yn5t0vbz6g".parse().unwrap()
}

fn path(kind: &str, carrier: &str, transport: &str, via: &str, reason: &str) -> Path {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    Path {
        kind: kind.into(),
        carrier: text(carrier),
        transport: text(transport),
        via: text(via),
        reason: text(reason),
        since: NOW - 3600,
    }
}

fn peer(n: &str, address: &str, path: Path, rtt: f64, loss: f64, bytes: (u64, u64), workloads: &[&str]) -> PeerStatus {
    PeerStatus {
        peer_id: PeerId([1; 32]),
        name: name(n),
        addresses: vec![ip("fd7a::1"), ip(address)],
        path,
        rtt_ms: Some(rtt),
        loss: Some(loss),
        mtu: 1400,
        tx_bytes: bytes.0,
        rx_bytes: bytes.1,
        workloads: workloads.iter().map(|w| name(w)).collect(),
    }
}

fn status() -> Status {
    Status {
        peer_id: PeerId([1; 32]),
        name: name("a"),
        version: "0.1.0".into(),
        ready: true,
        uptime_s: 1,
        subnets: vec![SubnetStatus {
            id: id(),
            name: name("lab"),
            state: SubnetState::Ready,
            member: name("a"),
            addresses: vec![ip("10.77.1.1"), ip("fd7a:31c0:9d2e:1::1")],
            interface: "bw-lab".into(),
            mtu: 1400,
            members: 4,
            peers: vec![
                peer(
                    "b",
                    "10.77.2.1",
                    path("direct", "datagram", "udp", "203.0.113.9:4100", ""),
                    11.0,
                    0.0,
                    (1_200_000_000, 340_000_000),
                    &["web", "db"],
                ),
                peer(
                    "c",
                    "10.77.3.1",
                    path("relay", "stream", "quic", "b", "symmetric-nat-both"),
                    48.0,
                    0.001,
                    (20_000_000, 8_000_000),
                    &[],
                ),
                peer("d", "10.77.4.1", path("offline", "", "", "", ""), 0.0, 0.0, (0, 0), &["cam"]),
            ],
            workloads: vec![],
            drops: BTreeMap::from([("filtered".into(), 0), ("no-route".into(), 3)]),
        }],
        problems: vec![Problem {
            code: "E-RELAYED".into(),
            severity: "warning".into(),
            message: "c is relayed\x1b[2J".into(),
            help: "byway doctor c".into(),
        }],
    }
}

#[test]
fn status_looks_as_documented() {
    assert_eq!(
        render(&Response::Status(Box::new(status())), STYLE),
        "\
subnet lab  7q3km2wd9xra  ready   4 members   you: a  10.77.1.1  fd7a:31c0:9d2e:1::1
PEER  ADDRESS     PATH                            RTT     LOSS  TX/RX           WORKLOADS
b     10.77.2.1   direct udp 203.0.113.9:4100     11 ms   0%    1.2 G / 340 M   web, db
c     10.77.3.1   relay b (both NATs symmetric)   48 ms   0.1%  20 M / 8 M      -
d     10.77.4.1   offline since 21:13 UTC                                       cam
dropped: no-route 3
! c is relayed\\u{1b}[2J   (byway doctor c)
"
    );
    let empty = Status { subnets: vec![], problems: vec![], ..status() };
    let shown = render(&Response::Status(Box::new(empty)), STYLE);
    assert_eq!(shown, "node a  no subnet yet\n  try:  byway create NAME\n");
}

#[test]
fn colours_only_wrap_words() {
    let coloured = render(&Response::Status(Box::new(status())), Style { colour: true, ..STYLE });
    assert!(coloured.contains("7q3km2wd9xra  \x1b[32mready\x1b[0m   4 members"));
    assert!(coloured.contains("\x1b[33m!\x1b[0m c is relayed\\u{1b}[2J"));
}

#[test]
fn create_and_join_say_what_comes_next() {
    let created = Response::Created(Created {
        id: id(),
        name: name("lab"),
        cidr4: "10.77.0.0/16".parse().ok(),
        cidr6: None,
        addresses: vec![ip("10.77.1.1"), ip("fd7a:31c0:9d2e:1::1")],
        interface: "bw-lab".into(),
        invite: "byway1abc".into(),
        member: name("a"),
    });
    assert_eq!(
        render(&created, STYLE),
        "\
subnet lab  7q3km2wd9xra4ce8yn5t0vbz6g
  you         a  10.77.1.1  fd7a:31c0:9d2e:1::1  on bw-lab
  invite      byway1abc  (one use, 24 h)
  next        byway join byway1abc      on another machine
"
    );
    let mut joined = Joined {
        id: id(),
        name: Some(name("lab")),
        state: SubnetState::Ready,
        addresses: vec![ip("10.77.2.1")],
        interface: Some("bw-lab".into()),
        member: Some(name("b")),
    };
    assert_eq!(
        render(&Response::Joined(joined.clone()), STYLE),
        "subnet lab  7q3km2wd9xra4ce8yn5t0vbz6g  ready\n  you         b  10.77.2.1  on bw-lab\n"
    );
    joined =
        Joined { name: None, state: SubnetState::Pending, addresses: vec![], interface: None, member: None, ..joined };
    assert_eq!(render(&Response::Joined(joined), STYLE), "subnet 7q3km2wd9xra4ce8yn5t0vbz6g  pending\n");
}

fn member() -> MemberInfo {
    MemberInfo {
        peer_id: PeerId([1; 32]),
        name: name("a"),
        role: Role::Owner,
        addresses: vec![ip("10.77.1.1")],
        leases: vec!["10.77.1.0/24".parse().unwrap()],
        generation: 1,
        expires: NOW + 90 * 86_400,
        labels: BTreeMap::from([("site".into(), "berlin".into())]),
        me: true,
    }
}

fn lease() -> LeaseInfo {
    LeaseInfo { prefix: "10.77.1.0/24".parse().unwrap(), peer_id: PeerId([1; 32]), member: name("a") }
}

fn map() -> MapInfo {
    MapInfo {
        subnet: name("lab"),
        name: name("web"),
        proto: Proto::Tcp,
        listen: "0.0.0.0:8080".into(),
        target: "web.lab:80".into(),
        address: None,
        state: "ok".into(),
        connections: 12,
        rx_bytes: 3_100_000_000,
        tx_bytes: 88_000_000,
        allow: vec![],
    }
}

fn dns() -> DnsInfo {
    DnsInfo {
        name: "web.lab.internal".into(),
        r#type: "A".into(),
        value: "10.77.1.5".into(),
        ttl: 60,
        source: "workload".into(),
    }
}

fn workload() -> WorkloadInfo {
    WorkloadInfo {
        workload: name("web"),
        subnet: name("lab"),
        kind: "netns".into(),
        target: "/run/netns/web".into(),
        addresses: vec![ip("10.77.1.5")],
        interface: "byway0".into(),
        mtu: 1400,
        fqdn: "web.lab.internal".into(),
        dns: vec![ip("10.77.1.1")],
        state: "ready".into(),
    }
}

#[test]
fn tables_look_like_this() {
    let id1 = PeerId([1; 32]);
    for (response, want) in [
        (
            Response::Maps { maps: vec![map()] },
            "\
SUBNET  NAME  PROTO  LISTEN         TARGET       STATE  CONNECTIONS  RX/TX
lab     web   tcp    0.0.0.0:8080   web.lab:80   ok     12           3.1 G / 88 M
"
            .to_owned(),
        ),
        (
            Response::Members { members: vec![member()] },
            format!(
                "\
MEMBER    ROLE    ADDRESSES  EXPIRES  LABELS        PEER
a (you)   owner   10.77.1.1  in 90 d  site=berlin   {id1}
"
            ),
        ),
        (
            Response::Requests {
                requests: vec![JoinRequestInfo {
                    peer_id: id1,
                    name: name("b"),
                    fingerprint: "ab12".into(),
                    since: NOW - 240,
                }],
            },
            format!("NAME  FINGERPRINT  SINCE       PEER\nb     ab12         4 min ago   {id1}\n"),
        ),
        (
            Response::Leases { leases: vec![lease()] },
            format!("PREFIX         MEMBER  PEER\n10.77.1.0/24   a       {id1}\n"),
        ),
        (
            Response::Invites {
                invites: vec![
                    InviteInfo {
                        id: "k3".into(),
                        subnet: name("lab"),
                        uses: 5,
                        left: 2,
                        expires: NOW + 86_400,
                        role: Role::Member,
                        revoked: false,
                    },
                    InviteInfo {
                        id: "k4".into(),
                        subnet: name("lab"),
                        uses: 1,
                        left: 1,
                        expires: NOW,
                        role: Role::Admin,
                        revoked: true,
                    },
                ],
            },
            "\
INVITE  SUBNET  ROLE     LEFT     EXPIRES
k3      lab     member   2 of 5   in 24 h
k4      lab     admin    1 of 1   revoked
"
            .to_owned(),
        ),
        (
            Response::Invite(InviteCreated { id: "k3".into(), invite: "byway1x".into(), uses: 2, expires: NOW + 3600 }),
            "\
invite k3
  invite      byway1x  (2 uses, 1 h)
  next        byway join byway1x      on another machine
"
            .to_owned(),
        ),
        (
            Response::Dns { records: vec![dns()] },
            "\
NAME               TYPE  VALUE       TTL  FROM
web.lab.internal   A     10.77.1.5   60   workload
"
            .to_owned(),
        ),
        (
            Response::Workloads { workloads: vec![workload()] },
            "\
WORKLOAD  SUBNET  ADDRESSES  KIND    TARGET           INTERFACE  STATE
web       lab     10.77.1.5  netns   /run/netns/web   byway0     ready
"
            .to_owned(),
        ),
        (
            Response::Workload(workload()),
            "\
workload web  in lab  ready
  name        web.lab.internal
  addresses   10.77.1.5
  interface   byway0  mtu 1400
  resolver    10.77.1.1
  netns       /run/netns/web
"
            .to_owned(),
        ),
        (
            Response::Attached(Attached {
                workload: name("web"),
                subnet: name("lab"),
                addresses: vec![ip("10.77.1.5"), ip("fd7a::5")],
                interface: "byway0".into(),
                mtu: 1400,
                dns: vec![ip("10.77.1.1")],
                resolver: true,
            }),
            "\
workload web  in lab
  addresses   10.77.1.5  fd7a::5
  interface   byway0  mtu 1400
  resolver    10.77.1.1
"
            .to_owned(),
        ),
        (
            Response::Id(IdInfo {
                peer_id: id1,
                name: name("a"),
                fingerprint: "ab12 cd34".into(),
                addresses: vec!["/ip4/10.0.0.1/tcp/4100".into()],
            }),
            format!("node a  {id1}\n  fingerprint ab12 cd34\n  address     /ip4/10.0.0.1/tcp/4100\n"),
        ),
        (Response::Done(Done { message: "left\nlab".into(), changed: true }), "left\\u{a}lab\n".to_owned()),
        (
            Response::Ping(PingInfo {
                target: "b".into(),
                peer_id: id1,
                address: None,
                sent: 4,
                received: 3,
                control_rtt_ms: vec![Some(10.0)],
                rtt_ms: vec![Some(10.0), None, Some(12.0), Some(14.0)],
                path: path("direct", "stream", "quic", "", ""),
            }),
            "\
--- b ---
4 sent, 3 received, 25% lost
rtt min/avg/max  10 ms / 12 ms / 14 ms
control min/avg/max  10 ms / 10 ms / 10 ms
"
            .to_owned(),
        ),
    ] {
        assert_eq!(render(&response, STYLE), want);
    }
}

fn peer_info() -> PeerInfo {
    PeerInfo {
        peer_id: PeerId([1; 32]),
        names: vec!["b.lab".into()],
        fingerprint: "ab12".into(),
        connected: true,
        path: path("direct", "stream", "quic", "10.0.0.2:4100", ""),
        addresses: vec!["/ip4/10.0.0.2/udp/4100/quic-v1".into()],
        rtt_ms: Some(0.4),
        tx_bytes: 1000,
        rx_bytes: 0,
    }
}

#[test]
fn peers_look_like_this() {
    let id1 = PeerId([1; 32]);
    assert_eq!(
        render(&Response::Peers { peers: vec![peer_info()] }, STYLE),
        format!(
            "\
NAMES  PATH                        RTT       TX/RX       PEER
b.lab  direct quic 10.0.0.2:4100   0.40 ms   1 k / 0 B   {id1}
"
        )
    );
    assert_eq!(
        render(&Response::Peer(Box::new(peer_info())), STYLE),
        format!(
            "\
peer {id1}  connected
  names       b.lab
  fingerprint ab12
  path        direct quic 10.0.0.2:4100
  rtt         0.40 ms
  tx/rx       1 k / 0 B
  address     /ip4/10.0.0.2/udp/4100/quic-v1
"
        )
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
        members: vec![member()],
        leases: vec![lease()],
        routes: vec![],
        names: vec![dns()],
        maps: vec![map()],
    };
    let id1 = PeerId([1; 32]);
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
  role        owner
  admission   approve
  owner       {id1}
  head        7

members
MEMBER    ROLE    ADDRESSES  EXPIRES  LABELS        PEER
a (you)   owner   10.77.1.1  in 90 d  site=berlin   {id1}

leases
PREFIX         MEMBER  PEER
10.77.1.0/24   a       {id1}

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
fn json_answers_carry_their_schema() {
    let shown = json(&Response::Status(Box::new(status()))).unwrap();
    assert!(shown.starts_with("{\"schema\":\"byway.status/1\","), "{shown}");
    let back: Response = serde_json::from_str(&shown).unwrap();
    assert_eq!(back, Response::Status(Box::new(status())));
}

fn parsed(line: &str) -> Verb {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}")).verb
}

#[test]
fn arguments_become_requests() {
    let Verb::Create(create) = parsed("byway create Lab --cidr4 10.1.0.0/16 --cidr6 none --block4 26 --grant-life 90d")
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
        }
    );
    let line = format!("byway join {} --peer /ip4/10.0.0.1/tcp/4100 --as x --timeout 5s --no-wait", id());
    let Verb::Join(join) = parsed(&line) else { panic!() };
    assert_eq!(
        join.request().unwrap(),
        Request::Join {
            target: id().to_string(),
            peers: vec!["/ip4/10.0.0.1/tcp/4100".into()],
            name: None,
            alias: Some(name("x")),
            ip: None,
            timeout_ms: 5000,
            wait: false,
        }
    );
    let line = "byway map add lab tcp [::]:53 web:80 --allow 10.0.0.0/8 192.0.2.1 --name m";
    let Verb::Map(map) = parsed(line) else { panic!() };
    assert_eq!(
        map.request().unwrap(),
        Request::MapAdd {
            subnet: "lab".into(),
            proto: Proto::Tcp,
            listen: ip("::"),
            port: 53,
            target: "web".into(),
            target_port: 80,
            name: Some(name("m")),
            allow: vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.1/32".parse().unwrap()],
        }
    );
    let Verb::Map(rm) = parsed("byway map rm lab udp 127.0.0.1:9000") else { panic!() };
    assert_eq!(
        rm.request().unwrap(),
        Request::MapRm {
            subnet: "lab".into(),
            name: None,
            proto: Some(Proto::Udp),
            listen: Some(ip("127.0.0.1")),
            port: Some(9000),
        }
    );
    let Verb::Dns(add) = parsed("byway dns add lab web 10.0.0.1 fd00::1 --ttl 5m") else { panic!() };
    assert_eq!(
        add.request(),
        Request::DnsAdd {
            subnet: "lab".into(),
            name: "web".into(),
            data: vec![RecordData::Address(ip("10.0.0.1")), RecordData::Address(ip("fd00::1"))],
            ttl: 300,
        }
    );
    let Verb::Attach(attach) = parsed("byway attach netns ns1 --subnet lab --name web --ip 10.0.0.5") else { panic!() };
    assert_eq!(
        attach.request().unwrap(),
        Request::Attach {
            workload: WorkloadKind::Netns("ns1".into()),
            subnet: "lab".into(),
            name: Some(name("web")),
            ip: Some(ip("10.0.0.5")),
            mac: None,
        }
    );
    let Verb::Invite(revoke) = parsed("byway invite revoke lab k3") else { panic!() };
    assert_eq!(revoke.request().unwrap(), Request::InviteRevoke { invite: "k3".into() });
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    for line in ["byway --json --socket /s status lab", "byway status --socket /s lab --json"] {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert!(cli.global.json && cli.global.socket.as_deref() == Some(std::path::Path::new("/s")), "{line}");
    }
}

#[test]
fn the_grammar_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

/// A daemon that answers `status` and leaves every join pending.
fn answer(request: Request) -> Result<Response, Error> {
    match request {
        Request::Status { .. } => {
            let mut status = status();
            status.problems.push(Problem {
                code: "E".into(),
                severity: "error".into(),
                message: "no nft".into(),
                help: "apt install nftables".into(),
            });
            Ok(Response::Status(Box::new(status)))
        }
        Request::Join { .. } => Ok(Response::Joined(Joined {
            id: id(),
            name: None,
            state: SubnetState::Pending,
            addresses: vec![],
            interface: None,
            member: None,
        })),
        Request::Ping { target, .. } => Ok(Response::Ping(PingInfo {
            target,
            peer_id: PeerId([1; 32]),
            address: None,
            sent: 1,
            received: 0,
            control_rtt_ms: vec![None],
            rtt_ms: vec![None],
            path: path("offline", "", "", "", ""),
        })),
        _ => Err(Error::new(ErrorKind::NotFound, "E-NOT-FOUND", "there is no such thing")),
    }
}

#[test]
fn exit_codes_tell_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = server::bind(&socket).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let serving = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(server::run(
            listener,
            Arc::new(|request, _| Box::pin(async move { answer(request) })),
            stopped,
        ))
    });
    let entry = Entry {
        run: |_| Err(anyhow::anyhow!("outer").context("started")),
        preflight: |_| Err(Error::new(ErrorKind::Failed, "E-TUN", "no /dev/net/tun")),
        cleanup: |_| Err(Error::new(ErrorKind::Conflict, "E-STATE-IN-USE", "a daemon runs there")),
    };
    let code = |line: &str| {
        let line = format!("byway --quiet --socket {} {line}", socket.display());
        run(line.split(' ').map(OsString::from), entry)
    };
    assert_eq!(code("status"), 0);
    assert_eq!(code("status --check live"), 0);
    assert_eq!(code("status --check ready"), 0);
    assert_eq!(code("status --check healthy"), 9);
    assert_eq!(code(&format!("join {}", id())), 7);
    assert_eq!(code("ping b -c 1"), 8);
    assert_eq!(code("subnet show lab"), 5);
    assert_eq!(code("subnet show a.b"), 2);
    assert_eq!(code("version"), 0);
    assert_eq!(code("daemon --check"), 1);
    assert_eq!(code("cleanup"), 6);
    assert_eq!(code("daemon --config /nowhere/byway.toml"), 2);
    stop.cancel();
    serving.join().unwrap().unwrap();
    assert_eq!(code("status"), 3);
}
