//! Real sockets on loopback.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::*;
use crate::model::host::HostConfig;
use crate::model::routes::RouteTable;
use crate::model::view::SubnetView;
use crate::model::zone::{RecordData, Zone};

/// A subnet whose own addresses are on loopback, in a /16 of its own so that tests do not share ports.
fn subnet(id: u8, addresses: &[&str], zone: Arc<Zone>) -> SubnetView {
    SubnetView {
        id: SubnetId([id; 16]),
        name: "lab".parse().unwrap(),
        interface: "bw-lab".to_owned(),
        cidr4: None,
        cidr6: None,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mtu: 1280,
        routes: Arc::new(RouteTable::default()),
        here: Default::default(),
        members: Default::default(),
        hosts: Default::default(),
        data_keys: Default::default(),
        zone,
    }
}

fn view(subnets: Vec<SubnetView>) -> View {
    let subnets = subnets.into_iter().map(|s| (s.id, Arc::new(s))).collect();
    View {
        generation: 1,
        subnets,
        ..View::default()
    }
}

struct Running {
    dns: Dns,
    view: Arc<ArcSwap<View>>,
    tick: watch::Sender<u64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    port: u16,
}

impl Running {
    fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        self.tick.send_modify(|t| *t += 1);
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

static PORT: AtomicU64 = AtomicU64::new(0);

fn free_port() -> u16 {
    // Below the ephemeral range, apart for each test of this process and likely for other processes.
    let step = PORT.fetch_add(1, Ordering::Relaxed);
    u16::try_from(20_000 + (u64::from(std::process::id()) * 16 + step) % 10_000).unwrap()
}

fn start(view: View, upstreams: Vec<SocketAddr>) -> Running {
    let port = free_port();
    let config = DnsConfig {
        port,
        upstreams: Some(upstreams),
        ..DnsConfig::default()
    };
    let dns = Dns::new(config);
    let view = Arc::new(ArcSwap::from_pointee(view));
    let (tick, ticks) = watch::channel(0);
    let stop = CancellationToken::new();
    let task = tokio::spawn(
        dns.clone()
            .run(Arc::clone(&view), ticks, no_formers(), stop.clone()),
    );
    Running {
        dns,
        view,
        tick,
        stop,
        task,
        port,
    }
}

/// No container had a resolver of its own.
fn no_formers() -> Formers {
    let door: Door = Arc::new(|_, _, _| Box::pin(async { Err(io::ErrorKind::Unsupported.into()) }));
    Formers {
        applied: watch::channel(Applied::default()).1,
        door,
    }
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(absolute(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Asks over UDP until there is an answer: the server may not have bound yet.
async fn ask(to: SocketAddr, name: &str, kind: RecordType) -> Message {
    let local: SocketAddr = if to.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    }
    .parse()
    .unwrap();
    let bytes = question(name, kind);
    for _ in 0..100 {
        let socket = UdpSocket::bind(local).await.unwrap();
        socket.connect(to).await.unwrap();
        let mut reply = vec![0; 4096];
        let sent = socket.send(&bytes).await;
        if sent.is_ok()
            && let Ok(Ok(n)) =
                tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut reply)).await
        {
            return Message::from_vec(&reply[..n]).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no answer from {to}");
}

async fn ask_tcp(stream: &mut TcpStream, name: &str, kind: RecordType) -> Option<Message> {
    let bytes = question(name, kind);
    let length = u16::try_from(bytes.len()).unwrap();
    stream
        .write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat())
        .await
        .ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.ok()?;
    Message::from_vec(&reply).ok()
}

/// A resolver outside: answers every A question with the addresses given, counts what it is asked.
async fn outside(
    addresses: Vec<&'static str>,
) -> (SocketAddr, Arc<parking_lot::Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..n]).unwrap();
            let name = query.queries[0].name().clone();
            seen.lock().push(name.to_string().to_ascii_lowercase());
            let mut reply = Message::response(query.metadata.id, hickory_proto::op::OpCode::Query);
            reply.queries.clone_from(&query.queries);
            reply.metadata.recursion_available = true;
            for address in &addresses {
                let data = match address.parse().unwrap() {
                    IpAddr::V4(a) => RData::A(a.into()),
                    IpAddr::V6(a) => RData::AAAA(a.into()),
                };
                reply.add_answer(hickory_proto::rr::Record::from_rdata(
                    name.clone(),
                    30,
                    data,
                ));
            }
            socket
                .send_to(&reply.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    (at, asked)
}

#[tokio::test]
#[ignore = "needs dig"]
async fn dig_is_answered_on_udp_and_tcp() {
    let running = start(
        view(vec![subnet(1, &["127.0.2.1"], zone::tests::lab())]),
        vec![],
    );
    let at = SocketAddr::new("127.0.2.1".parse().unwrap(), running.port);
    let answer = ask(at, "DB.lab.internal", RecordType::A).await;
    assert!(answer.metadata.authoritative);
    let port = running.port.to_string();
    let dig = move |extra: &'static [&'static str]| {
        let port = port.clone();
        tokio::task::spawn_blocking(move || {
            let base = ["@127.0.2.1", "-p", &port, "+time=2", "+tries=1"];
            let output = Command::new("dig").args(base).args(extra).output();
            output
                .ok()
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        })
    };
    let short = dig(&["+short", "db.lab.internal"]).await.unwrap().unwrap();
    assert_eq!(short.trim(), "10.42.7.20");
    let reverse = dig(&["+short", "-x", "10.42.7.20"]).await.unwrap().unwrap();
    assert_eq!(reverse.trim(), "db.lab.internal.");
    let negative = dig(&["nothing.lab.internal", "+tcp"])
        .await
        .unwrap()
        .unwrap();
    assert!(
        negative.contains("NXDOMAIN") && negative.contains("SOA"),
        "{negative}"
    );
    let large = dig(&["+short", "big.lab.internal"]).await.unwrap().unwrap();
    assert_eq!(
        large.lines().filter(|l| l.starts_with("10.42.9.")).count(),
        200,
        "cut on UDP, asked again on TCP"
    );
    let srv = dig(&["_http._tcp.lab.internal", "SRV"])
        .await
        .unwrap()
        .unwrap();
    assert!(
        srv.contains("ADDITIONAL SECTION") && srv.contains("10.42.7.21"),
        "{srv}"
    );
    running.end().await;
}

#[tokio::test]
async fn sockets_follow_the_view() {
    let running = start(view(vec![]), vec![]);
    running.publish(view(vec![subnet(
        1,
        &["127.0.3.1", "127.0.3.2"],
        zone::tests::lab(),
    )]));
    for address in ["127.0.3.1", "127.0.3.2"] {
        let at = SocketAddr::new(address.parse().unwrap(), running.port);
        assert_eq!(
            ask(at, "db.lab.internal", RecordType::A)
                .await
                .answers
                .len(),
            1
        );
    }
    // A changed zone is answered by the same sockets.
    let mut zone = (*zone::tests::lab()).clone();
    zone.remove("db");
    running.publish(view(vec![subnet(1, &["127.0.3.1"], Arc::new(zone))]));
    let at = SocketAddr::new("127.0.3.1".parse().unwrap(), running.port);
    let mut code = ResponseCode::NoError;
    for _ in 0..200 {
        code = ask(at, "db.lab.internal", RecordType::A)
            .await
            .metadata
            .response_code;
        if code == ResponseCode::NXDomain {
            break;
        }
    }
    assert_eq!(code, ResponseCode::NXDomain);
    let gone = SocketAddr::new("127.0.3.2".parse().unwrap(), running.port);
    let mut free = false;
    for _ in 0..200 {
        free = std::net::UdpSocket::bind(gone).is_ok();
        if free {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(free, "the socket of an address that went away is closed");
    running.end().await;
    assert!(
        std::net::UdpSocket::bind(at).is_ok(),
        "nothing is left after the stop"
    );
}

#[tokio::test]
async fn addresses_that_are_not_here_yet_can_be_bound() {
    for address in ["198.51.100.77:0", "[2001:db8::77]:0"] {
        let sockets = Sockets::bind(address.parse().unwrap()).unwrap();
        assert_ne!(sockets.port().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_taken_port_is_reported_and_taken_when_free() {
    let port = free_port();
    let at: SocketAddr = SocketAddr::new("127.0.4.1".parse().unwrap(), port);
    let holder = std::net::UdpSocket::bind(at).unwrap();
    let dns = Dns::new(DnsConfig {
        port,
        upstreams: Some(vec![]),
        ..DnsConfig::default()
    });
    let mut problems = dns.problems();
    let shared = Arc::new(ArcSwap::from_pointee(view(vec![subnet(
        1,
        &["127.0.4.1"],
        zone::tests::lab(),
    )])));
    let (_tick, ticks) = watch::channel(0);
    let stop = CancellationToken::new();
    let task = tokio::spawn(dns.run(shared, ticks, no_formers(), stop.clone()));
    let reported = problems.wait_for(|p| !p.is_empty()).await.unwrap().clone();
    assert!(reported.iter().all(|p| p.address == at && p.in_use));
    drop(holder);
    tokio::time::timeout(Duration::from_secs(10), problems.wait_for(Vec::is_empty))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        ask(at, "db.lab.internal", RecordType::A)
            .await
            .answers
            .len(),
        1
    );
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn outside_names_are_forwarded_without_addresses_of_ours() {
    let (server, asked) = outside(vec![
        "192.0.2.9",
        "10.42.1.1",
        "127.0.0.1",
        "169.254.169.254",
    ])
    .await;
    let running = start(
        view(vec![subnet(1, &["127.0.5.1"], zone::tests::lab())]),
        vec![server],
    );
    let at = SocketAddr::new("127.0.5.1".parse().unwrap(), running.port);
    let answer = ask(at, "www.example.org", RecordType::A).await;
    let addresses: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    assert_eq!(addresses, ["192.0.2.9"]);
    assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
    // An alias of ours that leads outside is followed.
    assert_eq!(
        ask(at, "out.lab.internal", RecordType::A)
            .await
            .answers
            .len(),
        2
    );
    // Ours never go out, not even when they do not exist.
    for name in ["nothing.lab.internal", "9.9.42.10.in-addr.arpa"] {
        assert_eq!(
            ask(at, name, RecordType::A).await.metadata.response_code,
            ResponseCode::NXDomain
        );
    }
    let now = running.view.load_full();
    let found = running
        .dns
        .query(&now, "www.example.org", "a")
        .await
        .unwrap();
    assert_eq!(
        found.records.first().map(|r| r.value.as_str()),
        Some("192.0.2.9")
    );
    let asked = asked.lock().clone();
    assert!(
        asked.iter().all(|n| n.ends_with("example.org.")),
        "{asked:?}"
    );
    assert_eq!(
        running.dns.counters().stripped.load(Ordering::Relaxed) % 3,
        0
    );
    running.end().await;
}

/// What a resolver does with the case of a question, and whether it takes TCP.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    Keeps,
    FoldsWithTcp,
    FoldsWithoutTcp,
}

/// A resolver of one habit; the questions it was asked over UDP, as they were written. Over UDP a folding one says
/// 192.0.2.66, over TCP 192.0.2.7.
async fn habitual(habit: Habit) -> (SocketAddr, Arc<parking_lot::Mutex<Vec<String>>>) {
    let reply = move |bytes: &[u8], address: &str| {
        let mut message = Message::from_vec(bytes).unwrap();
        let mut query = message.queries[0].clone();
        let written = query.name().to_string();
        if habit != Habit::Keeps {
            query.set_name(query.name().to_lowercase());
            message.queries[0] = query.clone();
        }
        message.metadata.message_type = hickory_proto::op::MessageType::Response;
        let address = RData::A(address.parse::<Ipv4Addr>().unwrap().into());
        message.answers.push(hickory_proto::rr::Record::from_rdata(
            query.name().clone(),
            60,
            address,
        ));
        (message.to_vec().unwrap(), written)
    };
    let (tcp, udp) = loop {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (tcp, udp);
        }
    };
    let (at, asked) = (
        udp.local_addr().unwrap(),
        Arc::new(parking_lot::Mutex::new(Vec::new())),
    );
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
            let (answer, written) = reply(
                &buffer[..n],
                if habit == Habit::FoldsWithTcp {
                    "192.0.2.66"
                } else {
                    "192.0.2.7"
                },
            );
            seen.lock().push(written);
            udp.send_to(&answer, from).await.unwrap();
        }
    });
    if habit == Habit::FoldsWithTcp {
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut bytes = vec![0; usize::from(length)];
                        stream.read_exact(&mut bytes).await.unwrap();
                        let (answer, _) = reply(&bytes, "192.0.2.7");
                        stream
                            .write_u16(u16::try_from(answer.len()).unwrap())
                            .await
                            .unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
    }
    (at, asked)
}

#[tokio::test]
async fn questions_go_out_in_mixed_case_and_an_answer_has_to_repeat_it() {
    for habit in [Habit::Keeps, Habit::FoldsWithTcp, Habit::FoldsWithoutTcp] {
        let (at, asked) = habitual(habit).await;
        let running = start(
            view(vec![subnet(1, &["127.0.8.1"], zone::tests::lab())]),
            vec![at],
        );
        let server: SocketAddr = format!("127.0.8.1:{}", running.port).parse().unwrap();
        for n in 0..5 {
            let name = format!("a-long-name-of-many-letters-{n}.example.org.");
            let answer = ask(server, &name, RecordType::A).await;
            assert_eq!(answer.answers.len(), 1, "{n}");
            let record = &answer.answers[0];
            assert_eq!(
                record.data.to_string(),
                "192.0.2.7",
                "over TCP where the case was not kept"
            );
            assert_eq!(record.name.to_string(), name, "as it was asked");
        }
        let asked = asked.lock().clone();
        let mixed = |name: &&String| {
            name.chars().any(|c| c.is_ascii_uppercase()) && name.contains(char::is_lowercase)
        };
        assert!(mixed(&&asked[0]), "{asked:?}");
        if habit == Habit::Keeps {
            assert!(asked.iter().all(|name| mixed(&name)), "{asked:?}");
        }
        running.end().await;
    }
}

#[tokio::test]
async fn a_dead_resolver_ends_in_servfail_within_three_seconds_and_ours_are_still_answered() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let running = start(
        view(vec![subnet(1, &["127.0.6.1"], zone::tests::lab())]),
        vec![silent.local_addr().unwrap()],
    );
    let at = SocketAddr::new("127.0.6.1".parse().unwrap(), running.port);
    ask(at, "db.lab.internal", RecordType::A).await;
    let begun = std::time::Instant::now();
    let (outside, ours) = tokio::join!(
        ask(at, "www.example.org", RecordType::A),
        ask(at, "db.lab.internal", RecordType::A)
    );
    assert_eq!(outside.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(ours.answers.len(), 1);
    assert!(begun.elapsed() <= Duration::from_secs(3));
    running.end().await;
}

#[tokio::test]
async fn questions_beyond_the_places_in_flight_hear_servfail_at_once() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let running = start(
        view(vec![subnet(1, &["127.0.10.1"], zone::tests::lab())]),
        vec![silent.local_addr().unwrap()],
    );
    let at = SocketAddr::new("127.0.10.1".parse().unwrap(), running.port);
    ask(at, "db.lab.internal", RecordType::A).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let excess = 20;
    for n in 0..IN_FLIGHT + excess {
        socket
            .send_to(&question(&format!("n{n}.example.org"), RecordType::A), at)
            .await
            .unwrap();
    }
    let begun = std::time::Instant::now();
    let mut reply = [0; 512];
    for _ in 0..excess {
        let (n, _) = tokio::time::timeout(Duration::from_secs(2), socket.recv_from(&mut reply))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            Message::from_vec(&reply[..n])
                .unwrap()
                .metadata
                .response_code,
            ResponseCode::ServFail
        );
    }
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "before the first of the others gave up"
    );
    assert_eq!(
        running.dns.counters().forwarded.load(Ordering::Relaxed),
        IN_FLIGHT as u64
    );
    assert_eq!(
        running.dns.counters().overloaded.load(Ordering::Relaxed),
        excess as u64
    );
    // The places are full, and ours are answered all the same.
    assert_eq!(
        ask(at, "db.lab.internal", RecordType::A)
            .await
            .answers
            .len(),
        1
    );
    running.end().await;
}

#[tokio::test]
async fn idle_tcp_clients_do_not_shut_others_out() {
    let running = start(
        view(vec![subnet(1, &["127.0.7.1"], zone::tests::lab())]),
        vec![],
    );
    let at = SocketAddr::new("127.0.7.1".parse().unwrap(), running.port);
    ask(at, "db.lab.internal", RecordType::A).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(&[0]).await.unwrap();
        idle.push(stream);
    }
    let mut stream = TcpStream::connect(at).await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            ask_tcp(&mut stream, "db.lab.internal", RecordType::A)
                .await
                .unwrap()
                .answers
                .len(),
            1
        );
    }
    assert!(running.dns.counters().closed.load(Ordering::Relaxed) >= 80);
    // Those that were left are closed for their silence.
    for stream in &mut idle {
        let read = tokio::time::timeout(
            TCP_IDLE_TIMEOUT + Duration::from_secs(2),
            stream.read(&mut [0; 1]),
        )
        .await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))));
    }
    running.end().await;
}

#[tokio::test]
async fn a_slow_name_holds_no_later_one_up_on_the_same_connection() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstreams = vec![silent.local_addr().unwrap()];
    let running = start(
        view(vec![subnet(1, &["127.0.17.1"], zone::tests::lab())]),
        upstreams,
    );
    let at = SocketAddr::new("127.0.17.1".parse().unwrap(), running.port);
    ask(at, "db.lab.internal", RecordType::A).await;
    let mut stream = TcpStream::connect(at).await.unwrap();
    let names = ["slow.example", "db.lab.internal", "web.lab.internal"];
    for name in names {
        let bytes = question(name, RecordType::A);
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        stream
            .write_all(&[&length, bytes.as_slice()].concat())
            .await
            .unwrap();
    }
    // As a client does that has no more to ask: it still gets every answer.
    stream.shutdown().await.unwrap();
    let (begun, mut answered) = (std::time::Instant::now(), Vec::new());
    while let Ok(length) = stream.read_u16().await {
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await.unwrap();
        let name = Message::from_vec(&reply).unwrap().queries[0]
            .name()
            .to_string();
        answered.push((name.trim_end_matches('.').to_owned(), begun.elapsed()));
    }
    let order: Vec<&str> = answered.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        order,
        ["db.lab.internal", "web.lab.internal", "slow.example"],
        "{answered:?}"
    );
    assert!(answered[1].1 < Duration::from_secs(1), "{answered:?}");
    running.end().await;
}

#[tokio::test]
async fn false_lengths_end_the_connection() {
    let running = start(
        view(vec![subnet(1, &["127.0.8.1"], zone::tests::lab())]),
        vec![],
    );
    let at = SocketAddr::new("127.0.8.1".parse().unwrap(), running.port);
    ask(at, "db.lab.internal", RecordType::A).await;
    for bytes in [&[0u8, 0][..], &[255, 255, 1, 2, 3], &[0, 3, 1, 2, 3]] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0; 1])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{bytes:?}");
    }
    running.end().await;
}

#[tokio::test]
async fn query_finds_short_names_pointers_and_nothing() {
    let dns = Dns::new(DnsConfig::default());
    let now = view(vec![subnet(1, &["127.0.9.1"], zone::tests::lab())]);
    let found = dns.query(&now, "db", "A").await.unwrap();
    let expected = Found {
        name: "db.lab.internal".into(),
        kind: "A".into(),
        ttl: 60,
        value: "10.42.7.20".into(),
    };
    assert_eq!((found.records, found.authoritative), (vec![expected], true));
    let pointer = dns.query(&now, "10.42.7.20", "PTR").await.unwrap();
    assert_eq!(
        pointer.records.first().map(|r| r.value.as_str()),
        Some("db.lab.internal")
    );
    assert_eq!(
        dns.query(&now, "nobody", "A").await.unwrap().outcome,
        Outcome::NoSuchName
    );
    assert_eq!(
        dns.query(&now, "x.lab.internal", "A")
            .await
            .unwrap()
            .outcome,
        Outcome::NoSuchName
    );
    assert_eq!(
        dns.query(&now, "db", "NONSENSE").await,
        Err(QueryError::Kind("NONSENSE".into()))
    );
    assert_eq!(
        dns.query(&now, "a..b", "A").await,
        Err(QueryError::Name("a..b".into()))
    );
    assert_eq!(
        dns.query(&view(vec![]), "a.b", "A").await,
        Err(QueryError::NoSubnet)
    );
}

/// A zone with these names.
fn zone_of(origin: &str, names: &[(&str, RecordData)]) -> Arc<Zone> {
    let mut zone = Zone::empty(&"x".parse().unwrap());
    zone.origin = origin.to_owned();
    for (name, data) in names {
        zone.add(
            name,
            crate::model::zone::Entry {
                ttl: 60,
                data: data.clone(),
            },
        );
    }
    Arc::new(zone)
}

fn address(text: &str) -> RecordData {
    RecordData::Address(text.parse().unwrap())
}

#[tokio::test]
async fn who_is_in_two_subnets_is_told_the_names_of_both_at_each_resolver_and_nobody_else_is() {
    let alias = RecordData::Cname("other.two.internal".to_owned());
    let one = zone_of(
        "one.internal",
        &[("web", address("10.41.0.9")), ("across", alias)],
    );
    let two = zone_of("two.internal", &[("other", address("10.42.0.77"))]);
    let mut subnets = vec![
        subnet(1, &["10.41.0.1"], one),
        subnet(2, &["10.42.0.1"], two),
    ];
    for (subnet, cidr) in subnets.iter_mut().zip(["10.41.0.0/16", "10.42.0.0/16"]) {
        subnet.cidr4 = Some(cidr.parse().unwrap());
    }
    let mut now = view(subnets);
    // A namespace in both subnets, one in the first, one in the second.
    let apart = |mut workload: crate::model::host::WorkloadConfig, inode| {
        workload.netns.inode = inode;
        workload
    };
    let both = [workload(1, "10.41.0.20"), workload(2, "10.42.0.20")];
    let workloads = both.into_iter().chain([
        apart(workload(1, "10.41.0.30"), 1),
        apart(workload(2, "10.42.0.30"), 2),
    ]);
    now.host = Arc::new(HostConfig {
        workloads: workloads.collect(),
        ..HostConfig::default()
    });
    let shared = Arc::new(Shared::new());
    let told = |subnet: u8, source: &str, name: &str| {
        let served = Catalog::default()
            .update(&now, false)
            .remove(&SubnetId([subnet; 16]))
            .unwrap();
        let handler = Handler::new(Arc::new(ArcSwap::from_pointee(served)), Arc::clone(&shared));
        let source = SocketAddr::new(source.parse().unwrap(), 999);
        let reply = handler::answer(
            Arc::new(handler),
            question(name, RecordType::A),
            source,
            Protocol::Udp,
        );
        let answer = futures::executor::block_on(reply).map(|reply| read_answer(&reply))?;
        answer.records.last().map(|record| record.value.clone())
    };
    let all = [
        ("web.one.internal", "10.41.0.9"),
        ("other.two.internal", "10.42.0.77"),
        ("across.one.internal", "10.42.0.77"),
    ];
    for source in [
        "127.0.0.1",
        "10.41.0.1",
        "10.42.0.1",
        "10.41.0.20",
        "10.42.0.20",
    ] {
        for ((name, value), subnet) in all.iter().flat_map(|name| [(name, 1), (name, 2)]) {
            assert_eq!(
                told(subnet, source, name).as_deref(),
                Some(*value),
                "{source} asks for {name} at {subnet}"
            );
        }
    }
    for (subnet, source, foreign) in [
        (1, "10.41.0.30", "other.two.internal"),
        (2, "10.42.0.30", "web.one.internal"),
    ] {
        assert_eq!(
            told(subnet, source, foreign),
            None,
            "{source} is in one of them"
        );
        assert_eq!(
            told(3 - subnet, source, foreign),
            None,
            "{source} may not even ask there"
        );
    }
    // Members elsewhere and workloads of one subnet hear of the alias and no more.
    for source in ["10.41.7.7", "10.41.0.30"] {
        assert_eq!(
            told(1, source, "across.one.internal").as_deref(),
            Some("other.two.internal"),
            "{source}"
        );
        assert_eq!(told(1, source, "other.two.internal"), None, "{source}");
    }
}

#[tokio::test]
async fn two_subnets_with_one_domain_do_not_hide_each_other() {
    let zones = [
        zone_of("lab.internal", &[("web", address("10.41.0.9"))]),
        zone_of("lab.internal", &[("db", address("10.42.0.9"))]),
    ];
    let [one, two] = zones;
    let now = view(vec![
        subnet(1, &["10.41.0.1"], one),
        subnet(2, &["10.42.0.1"], two),
    ]);
    let dns = Dns::new(DnsConfig::default());
    for (name, value) in [
        ("web", "10.41.0.9"),
        ("db", "10.42.0.9"),
        ("web.lab.internal", "10.41.0.9"),
        ("db.lab.internal", "10.42.0.9"),
    ] {
        let found = dns.query(&now, name, "A").await.unwrap();
        assert_eq!(
            found.records.first().map(|r| r.value.as_str()),
            Some(value),
            "{name}"
        );
    }
    assert_eq!(
        dns.query(&now, "x.lab.internal", "A")
            .await
            .unwrap()
            .outcome,
        Outcome::NoSuchName
    );
}

#[tokio::test]
async fn aliases_that_lead_to_each_other_across_subnets_end() {
    let cname = |target: &str| RecordData::Cname(target.to_owned());
    let one = zone_of("one.internal", &[("a", cname("a.two.internal"))]);
    let two = zone_of("two.internal", &[("a", cname("a.one.internal"))]);
    let now = view(vec![
        subnet(1, &["10.41.0.1"], one),
        subnet(2, &["10.42.0.1"], two),
    ]);
    let answer = Dns::new(DnsConfig::default())
        .query(&now, "a.one.internal", "A")
        .await
        .unwrap();
    assert_eq!(answer.outcome, Outcome::Failed);
}

#[test]
fn workloads_belong_to_their_own_subnet_and_a_zone_ends_with_its_subnet() {
    let lab = subnet(1, &["10.42.7.1"], zone::tests::lab());
    let mut other = Zone::empty(&"prod".parse().unwrap());
    other.prefixes = vec!["10.50.0.0/16".parse::<IpNet>().unwrap()];
    let prod = subnet(2, &["10.50.7.1"], Arc::new(other));
    let mut now = view(vec![lab.clone(), prod]);
    now.host = Arc::new(HostConfig {
        workloads: vec![workload(2, "10.50.7.9")],
        ..HostConfig::default()
    });
    let mut catalog = Catalog::default();
    let served = catalog.update(&now, true);
    let (one, two) = (SubnetId([1; 16]), SubnetId([2; 16]));
    let workload: IpAddr = "10.50.7.9".parse().unwrap();
    assert_eq!(
        served.get(&two).map(|s| s.asker(workload)),
        Some(question::Asker::Workload)
    );
    assert_eq!(
        served.get(&one).map(|s| s.asker(workload)),
        Some(question::Asker::Foreign)
    );
    let name = absolute("db.prod.internal").unwrap();
    let machine = |served: &BTreeMap<SubnetId, Served>| {
        served.get(&one).is_some_and(|s| s.all.owned.covers(&name))
    };
    let told = |served: &BTreeMap<SubnetId, Served>| {
        served
            .get(&two)
            .map(|s| s.workloads.get(&workload).cloned())
    };
    assert!(
        machine(&served)
            && told(&served)
                .flatten()
                .is_some_and(|reach| reach.owned.covers(&name))
    );
    let served = catalog.update(&view(vec![lab]), true);
    assert!(
        !machine(&served),
        "left, its names are anybody's again at once"
    );
}

fn workload(subnet: u8, address: &str) -> crate::model::host::WorkloadConfig {
    use crate::model::host::{NetnsRef, ResolvConf, WorkloadConfig};
    WorkloadConfig {
        subnet: SubnetId([subnet; 16]),
        name: "db".parse().unwrap(),
        tun: "bw-prod".to_owned(),
        host_link: "bwv0".to_owned(),
        inner_link: "byway0".to_owned(),
        netns: NetnsRef {
            path: "/run/netns/x".into(),
            device: 0,
            inode: 0,
            cookie: None,
        },
        mtu: 1280,
        addresses: vec![address.parse().unwrap()],
        gateways: vec![],
        prefixes: vec![],
        resolv_conf: ResolvConf::None,
        search: "prod.internal".to_owned(),
        mac: None,
    }
}
