//! The sockets follow the View, and one client holds no other up.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Dns, DnsConfig, Formers, REREAD, Sockets, TCP_IDLE_TIMEOUT, ask, free_port, no_formers,
    question, start, subnet, view, zone,
};

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
async fn a_resolver_file_that_is_none_names_nobody_and_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("resolv.conf");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&fifo, dir.path(), &dir.path().join("none")] {
        let read = tokio::time::timeout(Duration::from_secs(2), super::super::upstream::read(path));
        assert_eq!(read.await, Ok(vec![]), "{}", path.display());
    }
    std::fs::remove_file(&fifo).unwrap();
    std::fs::write(&fifo, "nameserver 192.0.2.77\n").unwrap();
    let servers = super::super::upstream::read(&fifo).await;
    assert_eq!(servers, ["192.0.2.77:53".parse().unwrap()]);
}

#[tokio::test]
async fn a_resolver_file_that_changes_is_read_at_once_and_not_with_the_next_look() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    let dns = Dns::new(DnsConfig {
        port: free_port(),
        resolv_conf: file.clone(),
        ..DnsConfig::default()
    });
    let (told, changes) = watch::channel(0);
    let stop = CancellationToken::new();
    let path = dns.follows().unwrap().to_owned();
    let follow = tokio::spawn(crate::file_watch::run(path, told, stop.clone()));
    let own = subnet(1, &["127.0.9.1"], zone::tests::lab());
    let shared = Arc::new(ArcSwap::from_pointee(view(vec![own])));
    let formers = Formers {
        file: changes,
        ..no_formers()
    };
    let (_tick, ticks) = watch::channel(0);
    let task = tokio::spawn(dns.clone().run(shared, ticks, formers, stop.clone()));
    // The first look is over, and the one that comes by itself far off.
    tokio::time::sleep(REREAD / 5).await;
    assert_eq!(dns.names_only_us(), None);
    std::fs::write(&file, "nameserver 127.0.9.1\n").unwrap();
    let seen = async {
        while dns.names_only_us().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let seen = tokio::time::timeout(REREAD / 2, seen).await;
    assert!(seen.is_ok(), "it waited for the next look");
    stop.cancel();
    task.await.unwrap();
    follow.await.unwrap();
}
