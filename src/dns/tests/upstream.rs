//! What is none of ours is asked of resolvers outside, and what they say is checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use super::super::upstream::{Source, Upstream};
use super::{IN_FLIGHT, ask, question, start, subnet, view, zone};

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
async fn a_host_that_asks_only_this_node_for_names_is_noticed_and_no_longer_once_it_names_another()
{
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("resolv.conf");
    let own = std::collections::HashSet::from(["10.77.1.1".parse().unwrap()]);
    let upstream = Upstream::new(Arc::default());
    let mut source = Source::default();
    for (text, alone) in [
        ("nameserver 10.77.1.1\nnameserver ::ffff:10.77.1.1\n", true),
        ("nameserver 10.77.1.1\nnameserver 192.0.2.53\n", false),
        ("# none\n", false),
        ("nameserver 10.77.1.1\n", true),
    ] {
        std::fs::write(&file, text).unwrap();
        upstream.refresh(&mut source, &file, None, &own).await;
        assert_eq!(upstream.is_alone(), alone, "{text}");
        assert_eq!(upstream.is_ready(), text.contains("192.0.2.53"), "{text}");
    }
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
