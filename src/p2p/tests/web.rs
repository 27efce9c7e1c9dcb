//! WebSockets, inside TLS and not, past proxies that look on, and what strangers send where one is expected.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::model::proxy::{Choice, Way};
use crate::p2p::address_book::Book;

const WS: &str = "/ip4/127.0.0.1/tcp/0/ws";
const WSS: &str = "/ip4/127.0.0.1/tcp/0/wss";

/// What a stub of a proxy answers.
#[derive(Clone, Copy)]
enum Answer {
    Connects,
    Wants(&'static str),
    Silence,
}

/// A proxy on loopback that connects every place to `to`, and tells what it was asked.
async fn proxy(to: SocketAddr, answer: Answer) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                tell.send(String::from_utf8(head).unwrap()).unwrap();
                match answer {
                    Answer::Silence => tokio::time::sleep(Duration::from_secs(60)).await,
                    Answer::Wants(line) => client.write_all(line.as_bytes()).await.unwrap(),
                    Answer::Connects => {
                        let mut server = TcpStream::connect(to).await.unwrap();
                        client
                            .write_all(b"HTTP/1.0 200 OK\r\nVia: a\r\n\r\n")
                            .await
                            .unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                }
            });
        }
    });
    (address, asked)
}

/// A node that dials through a proxy whatever is not on loopback.
fn behind(seed: u8, proxy: SocketAddr) -> Config {
    let mut config = Config::new([seed; 32]);
    config.timing = fast();
    let choice: Choice = format!("http://alice:secret@{proxy}").parse().unwrap();
    config.way = Way::of(&choice, &[], &|_| None).unwrap().into();
    config
}

fn tcp_of(address: &Address) -> SocketAddr {
    let text = address.to_string();
    let port = text.split('/').nth(4).unwrap().parse().unwrap();
    SocketAddr::new(address.ip().unwrap(), port)
}

#[test]
fn websockets_are_the_last_rung_but_the_relays() {
    let (mut book, peer) = (Book::default(), PeerId([1; 32]));
    let said: Vec<libp2p::Multiaddr> = [
        "/ip4/192.0.2.1/tcp/443/wss",
        "/ip4/192.0.2.1/udp/4100/quic-v1",
        "/ip4/192.0.2.1/tcp/4100",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .collect();
    book.heard(peer, &said, Source::Announcement);
    let due = book.due(&peer, Carrier::Tcp, Instant::now());
    assert_eq!(due.first, [said[2].clone()]);
    assert_eq!(due.second, [said[1].clone()]);
    assert_eq!(due.web, [said[0].clone()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_run_inside_websockets_with_and_without_tls() {
    for (seed, listen) in [(10, WS), (12, WSS)] {
        let a = on_loopback(seed, "/ip4/127.0.0.1/tcp/0");
        let (a, b, [mut a_out, mut b_in, mut b_out, mut a_in]) =
            pair(a, on_loopback(seed + 1, listen)).await;
        assert!(
            b.address.to_string().ends_with(&listen[20..]),
            "{}",
            b.address
        );
        carries(&mut a_out, &mut b_in).await;
        carries(&mut b_out, &mut a_in).await;
        for (node, peer) in [(&a, b.peer()), (&b, a.peer())] {
            let [only] = node.connections(peer).await.try_into().unwrap();
            assert_eq!(only.transport, "ws");
        }
        a.stop().await;
        b.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_asked_for_the_name_and_leads_to_the_peer() {
    let b = Node::start(on_loopback(14, WSS)).await;
    let (at, mut asked) = proxy(tcp_of(&b.address), Answer::Connects).await;
    let mut config = behind(15, at);
    config.listen.clear();
    let (handle, _events, driver) = start(config).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(driver.run(stop.clone()));
    for place in [
        "/dns4/vpn.example/tcp/443/wss",
        "/ip4/203.0.113.9/tcp/443/wss",
    ] {
        let typed: Typed = format!("{place}/p2p/{}", b.peer()).parse().unwrap();
        let met = timeout(PATIENCE, handle.connect(vec![typed], None)).await;
        assert_eq!(met.unwrap(), Ok(b.peer()));
        let head = asked.recv().await.unwrap();
        let host = place.split('/').nth(2).unwrap();
        assert!(
            head.starts_with(&format!("CONNECT {host}:443 HTTP/1.1\r\n")),
            "{head}"
        );
        // alice:secret
        assert!(
            head.contains("Proxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n"),
            "{head}"
        );
    }
    stop.cancel();
    task.await.unwrap();
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_tcp_goes_through_the_proxy_and_loopback_past_it() {
    let b = Node::start(on_loopback(16, "/ip4/127.0.0.1/tcp/0")).await;
    let (at, mut asked) = proxy(tcp_of(&b.address), Answer::Connects).await;
    let (handle, _events, driver) = start(behind(17, at)).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(driver.run(stop.clone()));
    let near = Typed::new(b.address.clone());
    assert_eq!(handle.connect(vec![near], None).await, Ok(b.peer()));
    assert!(asked.try_recv().is_err(), "loopback goes past it");
    let far: Typed = "/ip4/203.0.113.9/tcp/4100".parse().unwrap();
    assert_eq!(handle.connect(vec![far], None).await, Ok(b.peer()));
    assert!(
        asked
            .recv()
            .await
            .unwrap()
            .starts_with("CONNECT 203.0.113.9:4100 ")
    );
    stop.cancel();
    task.await.unwrap();
    b.stop().await;
}

/// What a person is told of a connection through a proxy that does not connect.
async fn failure(seed: u8, answer: Answer) -> String {
    let (at, _asked) = proxy(([127, 0, 0, 1], 9).into(), answer).await;
    let (handle, _events, driver) = start(behind(seed, at)).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(driver.run(stop.clone()));
    let far: Typed = "/dns/vpn.example/tcp/443/wss".parse().unwrap();
    let failed = timeout(PATIENCE, handle.connect(vec![far], None)).await;
    let kept = handle.proxy().unwrap();
    stop.cancel();
    task.await.unwrap();
    match failed.unwrap() {
        Err(ConnectError::Failed(why)) => {
            // Who did not begin the dial is told the same.
            let (said, _) = kept.refused.clone().unwrap();
            assert!(kept.is_closed() && why.contains(&said), "{kept:?}: {why}");
            why
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_refuses_is_named_without_the_password() {
    let wants = "HTTP/1.1 407 Authentication Required\r\nProxy-Authenticate: Basic realm=\"Corp net\"\r\n\r\n";
    let why = failure(18, Answer::Wants(wants)).await;
    assert!(why.contains("407") && why.contains("Corp net"), "{why}");
    assert!(why.contains("transport.proxy 127.0.0.1:"), "{why}");
    assert!(!why.contains("alice") && !why.contains("secret"), "{why}");
    let why = failure(19, Answer::Wants("HTTP/1.1 403 Filtered\r\n\r\n")).await;
    assert!(why.contains("403 Filtered"), "{why}");
    let why = failure(20, Answer::Silence).await;
    assert!(why.contains("it does not answer"), "{why}");
}

/// What a server answers to bytes, until it closes.
async fn answer(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    // A reset is an end, too.
    let _ = timeout(PATIENCE, client.read_to_end(&mut got))
        .await
        .unwrap();
    got
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_as_a_peer_is_shown_nothing_and_let_go() {
    let b = Node::start(on_loopback(21, WS)).await;
    let at = tcp_of(&b.address);
    let browser = answer(at, b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n\r\n").await;
    assert_eq!(
        String::from_utf8(browser).unwrap(),
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let old = answer(at, UPGRADE.replace("13", "8").as_bytes()).await;
    assert!(old.starts_with(b"HTTP/1.1 426 "));
    let begun = tokio::time::Instant::now();
    // A head without end, one that is too long, and nothing at all.
    assert_eq!(answer(at, b"GET / HTTP/1.1\r\nHost: a\r\n").await, b"");
    assert_eq!(answer(at, &[b'x'; 9000]).await, b"");
    assert_eq!(answer(at, b"").await, b"");
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    for (frame, why) in [
        (&[0x81, 0x84, 0, 0, 0, 0, 1, 2, 3, 4][..], "text"),
        (&[0x82, 0x04, 1, 2, 3, 4], "no mask"),
        (
            &[0x82, 0xfe, 0x10, 0x01, 0, 0, 0, 0],
            "longer than a stranger's may be",
        ),
        (
            &[
                0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
            ],
            "endless",
        ),
    ] {
        let begun = tokio::time::Instant::now();
        let got = answer(at, &[UPGRADE.as_bytes(), frame].concat()).await;
        assert!(got.starts_with(b"HTTP/1.1 101 "), "{why}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{why}");
    }
    let a = Node::start(on_loopback(22, WS)).await;
    let typed = vec![Typed::new(b.address.clone())];
    assert_eq!(a.handle.connect(typed, None).await, Ok(b.peer()));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_over_loopback_has_the_places_of_all_and_the_rest_is_refused() {
    let mut config = on_loopback(23, WSS);
    config.limits.per_source = 4;
    config.limits.pending_in = 16;
    let b = Node::start(config).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(TcpStream::connect(tcp_of(&b.address)).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut alive = 0;
    for client in &mut open {
        let read = timeout(Duration::from_millis(20), client.read_u8()).await;
        alive += usize::from(read.is_err());
    }
    assert_eq!(alive, 12, "a quarter is kept for members");
    let counts = b.handle.handshakes();
    assert_eq!(counts.streams_refused + counts.streams_ended, 8);
    b.stop().await;
}

/// A reverse proxy on loopback that adds fields to the head of what it passes on.
async fn reverse(to: SocketAddr, fields: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                head.truncate(head.len() - 2);
                head.extend_from_slice(fields.as_bytes());
                head.extend_from_slice(b"\r\n");
                let mut server = TcpStream::connect(to).await.unwrap();
                server.write_all(&head).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

/// A server of WebSockets that believes what is on loopback.
fn trusting(seed: u8) -> Config {
    let mut config = on_loopback(seed, WS);
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_through_a_trusted_proxy_is_taken_for_whom_the_proxy_names() {
    let (trusting, other) = (trusting(26), on_loopback(27, WS));
    let (mut named, mut seed) = (Vec::new(), 30);
    for config in [trusting, other] {
        let b = Node::start(config).await;
        for fields in [
            "X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n",
            "Forwarded: for=\"[2001:db8::7]:4711\"\r\n",
            "X-Forwarded-For: nonsense\r\n",
            "",
        ] {
            let at = reverse(tcp_of(&b.address), fields).await;
            let a = Node::start(on_loopback(seed, WS)).await;
            seed += 1;
            let place = format!("/ip4/127.0.0.1/tcp/{}/ws", at.port());
            let typed: Typed = place.parse().unwrap();
            assert_eq!(a.handle.connect(vec![typed], None).await, Ok(b.peer()));
            let known = async || b.connections(a.peer()).await.len() == 1;
            eventually("the server knows of it", PATIENCE, known).await;
            let [only] = b.connections(a.peer()).await.try_into().unwrap();
            let remote: Vec<String> = only.remote.split('/').map(str::to_owned).collect();
            assert_eq!((&*remote[3], &*remote[5]), ("tcp", "ws"), "{}", only.remote);
            named.push(remote[2].clone());
            a.stop().await;
        }
        let counts = b.handle.clients();
        named.push(format!(
            "{} {} {}",
            counts.named, counts.garbled, counts.unnamed
        ));
        b.stop().await;
    }
    let here = "127.0.0.1";
    assert_eq!(
        named[..5],
        ["203.0.113.7", "2001:db8::7", here, here, "2 1 1"]
    );
    assert_eq!(
        named[5..],
        [here, here, here, here, "0 0 0"],
        "nobody else is believed"
    );
}

/// How many of twenty connections to a server that are silent once they have asked for a WebSocket are let stand.
async fn silent(b: &Node, fields: impl Fn(u8) -> String) -> usize {
    let mut open = Vec::new();
    for n in 0..20 {
        let mut client = TcpStream::connect(tcp_of(&b.address)).await.unwrap();
        let head = UPGRADE.replacen("\r\n\r\n", &format!("\r\n{}\r\n", fields(n)), 1);
        client.write_all(head.as_bytes()).await.unwrap();
        open.push(client);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut granted = 0;
    for client in &mut open {
        let mut answer = [0; 512];
        let read = timeout(Duration::from_millis(100), client.read(&mut answer)).await;
        granted += usize::from(matches!(read, Ok(Ok(1..))));
    }
    granted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_trusted_proxy_have_a_share_of_the_handshakes_each() {
    let mut config = trusting(28);
    config.limits.per_source = 4;
    let b = Node::start(config).await;
    let field = |n: u8| format!("X-Forwarded-For: 203.0.113.{n}\r\n");
    assert_eq!(silent(&b, |_| field(7)).await, 4, "one client");
    b.stop().await;
    let mut config = trusting(29);
    config.limits.per_source = 4;
    let b = Node::start(config).await;
    assert_eq!(silent(&b, field).await, 20, "twenty clients");
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_connections_of_a_proxy_that_say_nothing_the_oldest_gives_way() {
    let mut config = trusting(40);
    config.limits.pending_in = 4;
    let b = Node::start(config).await;
    let mut mute = Vec::new();
    for _ in 0..6 {
        mute.push(TcpStream::connect(tcp_of(&b.address)).await.unwrap());
    }
    let closed = async || b.handle.clients().silent == 2;
    eventually("two are closed", Duration::from_secs(3), closed).await;
    for (n, client) in mute.iter_mut().enumerate() {
        let read = timeout(Duration::from_millis(50), client.read_u8()).await;
        assert_eq!(read.is_ok(), n < 2, "number {n}");
    }
    let head = answer(tcp_of(&b.address), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(
        head.starts_with(b"HTTP/1.1 404 "),
        "there is room for who says what it wants"
    );
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_files_is_shown_and_a_bad_one_named() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["vpn.example".to_owned()]).unwrap();
    let files = Certificate {
        chain: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    std::fs::write(&files.chain, made.cert.pem()).unwrap();
    let mut config = on_loopback(24, WSS);
    config.certificate = Some(files.clone());
    let why = start(config.clone()).map(drop).unwrap_err().to_string();
    assert!(why.contains("key.pem"), "{why}");
    std::fs::write(&files.key, made.cert.pem()).unwrap();
    let why = start(config.clone()).map(drop).unwrap_err().to_string();
    assert!(why.contains("key.pem"), "{why}");
    std::fs::write(&files.key, made.key_pair.serialize_pem()).unwrap();
    let b = Node::start(config).await;
    let a = Node::start(on_loopback(25, WS)).await;
    let typed = vec![Typed::new(b.address.clone())];
    assert_eq!(a.handle.connect(typed, None).await, Ok(b.peer()));
    a.stop().await;
    b.stop().await;
}
