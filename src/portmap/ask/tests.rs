//! Routers that answer nonsense, slowly, or without end, on loopback addresses of their own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::super::Gateway;
use super::*;

/// What a router answers to a question.
type Answer = fn(&[u8]) -> Vec<u8>;

fn record(protocol: Protocol, router: Ipv4Addr) -> Record {
    Record {
        gateway: Gateway {
            address: router.into(),
            local: Ipv4Addr::LOCALHOST.into(),
        },
        protocol,
        port: Port {
            transport: Transport::Udp,
            number: 4100,
        },
        external: 4100,
        nonce: [1, 2, 3],
        until: u64::MAX,
    }
}

async fn asked(protocol: Protocol, router: Ipv4Addr) -> (Result<Granted, Failure>, Duration) {
    let record = record(protocol, router);
    let order = Order::Map {
        record,
        lease: 7200,
    };
    let begun = Instant::now();
    let outcome = carry_out(&mut Asker::default(), &order).await;
    (outcome, begun.elapsed())
}

/// A router that answers each datagram by `answer`.
async fn router(
    address: Ipv4Addr,
    port: u16,
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let socket = UdpSocket::bind((address, port)).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&answer(&buffer[..length]), from).await;
        }
    })
}

/// What a router of PCP answers: its result, the seconds, its age, and where the port is.
fn pcp_answer(question: &[u8], result: u8, lease: u32, external: [u8; 4]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[1] |= 0x80;
    answer[3] = result;
    answer[4..8].copy_from_slice(&lease.to_be_bytes());
    answer[8..12].copy_from_slice(&77_u32.to_be_bytes());
    answer[12..24].fill(0);
    answer[44..54].fill(0);
    answer[54..56].fill(0xff);
    answer[56..60].copy_from_slice(&external);
    answer
}

#[tokio::test]
async fn pcp_opens_a_port_and_says_where_for_how_long_and_how_old_the_router_is() {
    let address = Ipv4Addr::new(127, 7, 1, 1);
    let _router = router(address, 5351, |q| pcp_answer(q, 0, 600, [203, 0, 113, 9])).await;
    let (outcome, _) = asked(Protocol::Pcp, address).await;
    let granted = Granted {
        external: "203.0.113.9:4100".parse().unwrap(),
        lease: 600,
        epoch: Some(77),
    };
    assert_eq!(outcome, Ok(granted));
}

#[tokio::test]
async fn refusals_of_pcp_are_told_apart_from_silence() {
    for (n, result, failure) in [
        (1, 2, Failure::Refused(Why::NotAuthorized)),
        (2, 8, Failure::Refused(Why::NoRoom)),
        (3, 7, Failure::Refused(Why::NoAddress)),
        (4, 11, Failure::Refused(Why::PortsInUse)),
        (5, 200, Failure::Silent),
    ] {
        let address = Ipv4Addr::new(127, 7, 2, n);
        let _router = router(address, 5351, move |q| pcp_answer(q, result, 600, [0; 4])).await;
        assert_eq!(asked(Protocol::Pcp, address).await.0, Err(failure));
    }
}

#[tokio::test]
async fn nonsense_for_an_answer_opens_nothing_by_any_protocol() {
    let answers: [Answer; 7] = [
        |_| Vec::new(),
        |_| vec![2],
        |_| vec![0xff; 1100],
        |_| vec![0, 0x80, 0, 0],
        |q| q.to_vec(),
        |q| {
            let mut other = pcp_answer(q, 0, 600, [203, 0, 113, 9]);
            other
                .iter_mut()
                .skip(24)
                .take(12)
                .for_each(|byte| *byte ^= 1);
            other
        },
        |q| pcp_answer(q, 0, 600, [203, 0, 113, 9])[..30].to_vec(),
    ];
    for (n, answer) in (1..).zip(answers) {
        let address = Ipv4Addr::new(127, 7, 3, n);
        let _router = router(address, 5351, answer).await;
        for protocol in [Protocol::Pcp, Protocol::NatPmp] {
            let (outcome, took) = asked(protocol, address).await;
            if let Ok(granted) = outcome {
                panic!("answer {n} by {protocol:?}: {granted:?}");
            }
            assert!(took < LIMIT, "answer {n} by {protocol:?} took {took:?}");
        }
    }
}

#[tokio::test]
async fn who_does_not_answer_is_waited_for_two_seconds_per_protocol() {
    let address = Ipv4Addr::new(127, 7, 4, 1);
    let _socket = UdpSocket::bind((address, 5351)).await.unwrap();
    for protocol in [Protocol::Pcp, Protocol::NatPmp] {
        // Two seconds in steps that are each a little longer than the waits of the questions, on the same thread: where the
        // machine is busy these are as late as those.
        let two_seconds = async {
            for step in [300, 600, 1100] {
                tokio::time::sleep(Duration::from_millis(step)).await;
            }
        };
        tokio::select! {
            biased;
            (outcome, _) = asked(protocol, address) => assert_eq!(outcome, Err(Failure::Silent)),
            () = two_seconds => panic!("{protocol:?} takes longer"),
        }
    }
}

/// A router of UPnP whose description is served by `serve`; how often that was asked.
async fn device(
    address: Ipv4Addr,
    location: String,
    serve: impl Fn(u32) -> Vec<u8> + Send + 'static,
) -> Arc<AtomicU32> {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: {location}\r\n\r\n"
    );
    router(address, 1900, move |_| answer.clone().into_bytes()).await;
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let listener = TcpListener::bind((address, 5000)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let n = count.fetch_add(1, Ordering::Relaxed);
            let answer = serve(n);
            tokio::spawn(async move {
                let mut question = [0; 4096];
                let _ = stream.read(&mut question).await;
                let _ = stream.write_all(&answer).await;
                if answer.ends_with(b"more") {
                    // Without end, as fast as it is taken.
                    while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
                }
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    asked
}

#[tokio::test]
async fn a_hostile_description_takes_bounded_time_and_memory_and_opens_nothing() {
    let page = |head: &str| format!("HTTP/1.1 {head}\r\n\r\n");
    let answers: [Vec<u8>; 5] = [
        // Never answers.
        Vec::new(),
        // Without end.
        page("200 OK")
            .into_bytes()
            .into_iter()
            .chain(*b"more")
            .collect(),
        // Elsewhere.
        page("302 Found\r\nLocation: http://127.0.0.1:1/").into_bytes(),
        // Deep, and never closed.
        (page("200 OK\r\nContent-Length: 400000") + &"<a>".repeat(133_000)).into_bytes(),
        // No text.
        page("200 OK\r\nContent-Length: 4")
            .into_bytes()
            .into_iter()
            .chain([0xff, 0xfe, 0, 1])
            .collect(),
    ];
    for (n, answer) in (1..).zip(answers) {
        let address = Ipv4Addr::new(127, 7, 5, n);
        let location = format!("http://{address}:5000/root.xml");
        let asked_for = device(address, location, move |_| answer.clone()).await;
        let (outcome, took) = asked(Protocol::Upnp, address).await;
        assert_eq!(outcome, Err(Failure::Silent), "answer {n}");
        assert!(took < LIMIT, "answer {n} took {took:?}");
        assert!(asked_for.load(Ordering::Relaxed) > 0, "answer {n} was read");
    }
}

/// The description of a device whose control is at `/ctl`.
const DESCRIPTION: &str = "<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
     </serviceType><controlURL>/ctl</controlURL></service></serviceList></device></root>";

#[tokio::test]
async fn a_router_that_takes_questions_and_never_answers_holds_no_stop_up() {
    let address = Ipv4Addr::new(127, 7, 7, 1);
    let location = format!("http://{address}:5000/root.xml");
    let asked_for = device(address, location, |n| {
        // It describes itself, and then says nothing more.
        let page = format!("HTTP/1.1 200 OK\r\n\r\n{DESCRIPTION}");
        if n == 0 {
            page.into_bytes()
        } else {
            Vec::new()
        }
    })
    .await;
    let mut asker = Asker::default();
    let order = Order::Map {
        record: record(Protocol::Upnp, address),
        lease: 7200,
    };
    let known = tokio::time::timeout(Duration::from_secs(1), carry_out(&mut asker, &order)).await;
    known.expect_err("it answered");
    assert!(asked_for.load(Ordering::Relaxed) > 1, "it is known");
    let all: Vec<Record> = (4100..4104)
        .flat_map(|number| {
            let of = |transport| Record {
                port: Port { transport, number },
                external: number,
                ..record(Protocol::Upnp, address)
            };
            [of(Transport::Udp), of(Transport::Tcp)]
        })
        .collect();
    let (begun, before) = (Instant::now(), asked_for.load(Ordering::Relaxed));
    let closed = close_all(&asker, &all, Duration::from_secs(2)).await;
    assert_eq!(closed, []);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(2800), "{took:?}");
    let asked = asked_for.load(Ordering::Relaxed) - before;
    assert!(asked >= 8, "beside one another: {asked} questions");
}

#[tokio::test]
async fn a_description_on_another_host_is_not_fetched() {
    let (address, other) = (Ipv4Addr::new(127, 7, 6, 1), Ipv4Addr::new(127, 7, 6, 2));
    let elsewhere = TcpListener::bind((other, 5000)).await.unwrap();
    for location in [
        format!("http://{other}:5000/root.xml"),
        format!("http://{address}@{other}:5000/root.xml"),
        "file:///etc/passwd".to_owned(),
        "x".repeat(1400),
    ] {
        let socket = UdpSocket::bind((address, 1900)).await.unwrap();
        let answering = async {
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
                let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
                let _ = socket.send_to(answer.as_bytes(), from).await;
            }
        };
        tokio::select! {
            () = answering => unreachable!("it answers for ever"),
            accepted = elsewhere.accept() => panic!("{location}: fetched from {accepted:?}"),
            (outcome, _) = asked(Protocol::Upnp, address) => assert_eq!(outcome, Err(Failure::Silent)),
        }
    }
}
