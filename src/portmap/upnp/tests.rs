//! A router of UPnP on a loopback address of its own: it answers searches, describes itself, and keeps a table of ports, or
//! does what no router does.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::super::Protocol;
use super::*;

const PORT: u16 = 5000;

fn record(router: Ipv4Addr) -> Record {
    Record {
        gateway: Gateway {
            address: router.into(),
            local: Ipv4Addr::LOCALHOST.into(),
        },
        protocol: Protocol::Upnp,
        port: Port {
            transport: Transport::Udp,
            number: 4100,
        },
        external: 4101,
        nonce: [1, 2, 3],
        until: u64::MAX,
    }
}

/// What was asked: `GET PATH`, or the action with its arguments.
type Asked = Arc<Mutex<Vec<String>>>;

/// A router that answers each question by `answer`: the first line or the action, then whether it is one of SOAP.
async fn router(
    address: Ipv4Addr,
    answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static,
) -> Asked {
    let search = UdpSocket::bind((address, 1900)).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = search.recv_from(&mut buffer).await {
            let found =
                format!("HTTP/1.1 200 OK\r\nLOCATION: http://{address}:{PORT}/root.xml\r\n\r\n");
            search.send_to(found.as_bytes(), from).await.unwrap();
        }
    });
    let listener = TcpListener::bind((address, PORT)).await.unwrap();
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let question = question(&mut stream).await;
            noted.lock().unwrap().push(question.clone());
            let (status, body) = answer(&question);
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    asked
}

async fn question(stream: &mut tokio::net::TcpStream) -> String {
    let (mut all, mut buffer) = (String::new(), [0; 4096]);
    while !(all.starts_with("GET") && all.ends_with("\r\n\r\n") || all.contains("</s:Envelope>")) {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "{all}");
        all.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    if let Some(rest) = all.strip_prefix("GET ") {
        return format!("GET {}", rest.split(' ').next().unwrap());
    }
    let (head, body) = all.split_once("\r\n\r\n").unwrap();
    let (mut arguments, mut action) = (Vec::new(), String::new());
    xml::read(body.as_bytes(), |path, inside| match path {
        [_, _, of] => action.clone_from(of),
        [_, _, _, _] => arguments.push(inside.to_owned()),
        _ => {}
    })
    .unwrap();
    let header = format!("soapaction: \"{}#{action}\"\r\n", SERVICES[0]);
    assert!(head.contains(&header), "{head}");
    format!("{action} {}", arguments.join(","))
}

fn description(control: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList><service><serviceType>{}\
         </serviceType><controlURL>{control}</controlURL></service></serviceList></device></root>",
        SERVICES[0]
    )
}

fn soap(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body>\
         </s:Envelope>"
    )
}

fn done(action: &str, results: &str) -> (u16, String) {
    let body = format!(
        "<u:{action}Response xmlns:u=\"{}\">{results}</u:{action}Response>",
        SERVICES[0]
    );
    (200, soap(&body))
}

fn refusal(code: u16) -> (u16, String) {
    let error = format!("<UPnPError><errorCode>{code}</errorCode></UPnPError>");
    (
        500,
        soap(&format!("<s:Fault><detail>{error}</detail></s:Fault>")),
    )
}

/// The answers of a router on which nothing is open, whose address outside is this one.
fn plain(question: &str, outside: &str) -> (u16, String) {
    let action = question.split(' ').next().unwrap();
    match action {
        "GET" => (200, description("/ctl")),
        "GetSpecificPortMappingEntry" => refusal(NONE_SUCH),
        "GetExternalIPAddress" => done(
            action,
            &format!("<NewExternalIPAddress>{outside}</NewExternalIPAddress>"),
        ),
        _ => done(action, ""),
    }
}

fn entry(client: &str, port: u16) -> (u16, String) {
    let results = format!(
        "<NewInternalPort>{port}</NewInternalPort><NewInternalClient>{client}</NewInternalClient>"
    );
    done("GetSpecificPortMappingEntry", &results)
}

#[tokio::test]
async fn a_port_is_opened_renewed_and_closed_by_four_questions() {
    let address = Ipv4Addr::new(127, 7, 10, 1);
    let asked = router(address, |q| plain(q, "203.0.113.9")).await;
    let (mut upnp, record) = (Upnp::default(), record(address));
    let granted = Granted {
        external: "203.0.113.9:4101".parse().unwrap(),
        lease: 7200,
        epoch: None,
    };
    assert_eq!(upnp.map(&record, 7200).await, Ok(granted));
    let add = "AddPortMapping ,4101,UDP,4100,127.0.0.1,1,byway,7200";
    let first = [
        "GET /root.xml",
        "GetSpecificPortMappingEntry ,4101,UDP",
        add,
        "GetExternalIPAddress ",
    ];
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), first);
    assert_eq!(upnp.map(&record, 7200).await, Ok(granted));
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), first[1..]);
    assert_eq!(upnp.remove(&record).await, Ok(()));
    let last = [
        "GetSpecificPortMappingEntry ,4101,UDP",
        "DeletePortMapping ,4101,UDP",
    ];
    assert_eq!(*asked.lock().unwrap(), last);
}

#[tokio::test]
async fn the_port_of_another_machine_is_neither_taken_nor_closed() {
    let address = Ipv4Addr::new(127, 7, 10, 2);
    let asked = router(address, |q| match q {
        "GetSpecificPortMappingEntry ,4101,UDP" => entry("192.0.2.7", 4100),
        // The same machine, and another program of it.
        "GetSpecificPortMappingEntry ,4102,UDP" => entry("127.0.0.1", 4200),
        "GetSpecificPortMappingEntry ,4103,UDP" => entry("127.0.0.1", 4100),
        q => plain(q, "203.0.113.9"),
    })
    .await;
    let mut upnp = Upnp::default();
    for external in [4101, 4102] {
        let record = Record {
            external,
            ..record(address)
        };
        assert_eq!(upnp.map(&record, 7200).await, Err(Failure::InUse));
        assert_eq!(upnp.remove(&record).await, Ok(()));
    }
    let questions = asked.lock().unwrap().join("\n");
    assert!(
        !questions.contains("AddPort") && !questions.contains("Delete"),
        "{questions}"
    );
    let own = Record {
        external: 4103,
        ..record(address)
    };
    upnp.map(&own, 7200).await.unwrap();
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (n, code, outside, failure) in [
        (1, 606, "203.0.113.9", Failure::Refused(Why::NotAuthorized)),
        (2, 718, "203.0.113.9", Failure::InUse),
        (3, 725, "203.0.113.9", Failure::PermanentOnly),
        (4, 402, "203.0.113.9", Failure::Refused(Why::Code(402))),
        (5, 501, "203.0.113.9", Failure::Refused(Why::Code(501))),
        (
            6,
            501,
            "10.0.0.1",
            Failure::Refused(Why::Inside(Ipv4Addr::new(10, 0, 0, 1).into())),
        ),
        (7, 501, "0.0.0.0", Failure::Refused(Why::NoAddress)),
        (8, 501, "", Failure::Refused(Why::NoAddress)),
    ] {
        let address = Ipv4Addr::new(127, 7, 11, n);
        router(address, move |q| match q.starts_with("AddPort") {
            true => refusal(code),
            false => plain(q, outside),
        })
        .await;
        let outcome = Upnp::default().map(&record(address), 7200).await;
        assert_eq!(outcome, Err(failure), "{code}");
    }
}

#[tokio::test]
async fn what_is_gone_counts_as_closed_and_a_line_that_is_down_as_no_address() {
    let address = Ipv4Addr::new(127, 7, 10, 3);
    router(address, |q| match q.starts_with("DeletePort") {
        true => refusal(NONE_SUCH),
        false => plain(q, ""),
    })
    .await;
    let mut upnp = Upnp::default();
    let granted = upnp.map(&record(address), 0).await.unwrap();
    assert_eq!(granted.external.to_string(), "0.0.0.0:4101");
    assert_eq!(upnp.remove(&record(address)).await, Ok(()));
}

#[tokio::test]
async fn a_service_on_another_host_is_not_asked() {
    let (address, other) = (Ipv4Addr::new(127, 7, 10, 4), Ipv4Addr::new(127, 7, 10, 5));
    let elsewhere = TcpListener::bind((other, PORT)).await.unwrap();
    router(address, move |_| {
        (200, description(&format!("http://{other}:{PORT}/ctl")))
    })
    .await;
    let (mut upnp, record) = (Upnp::default(), record(address));
    tokio::select! {
        accepted = elsewhere.accept() => panic!("asked from {accepted:?}"),
        outcome = upnp.map(&record, 7200) => assert_eq!(outcome, Err(Failure::Silent)),
    }
}

/// Two thousand namespaces and twenty thousand elements, 110 kB: a tree of them takes a hundred gigabytes.
fn bomb() -> String {
    let declared: String = (0..2000).map(|n| format!(" xmlns:a{n:x}=\"b\"")).collect();
    format!("<root{declared}>{}</root>", "<a/>".repeat(20_000))
}

/// As much of it as a body may have.
fn small_bomb() -> String {
    let declared: String = (0..1000).map(|n| format!(" xmlns:a{n:x}=\"b\"")).collect();
    format!("<root{declared}>{}</root>", "<a/>".repeat(11_000))
}

#[tokio::test]
async fn a_description_that_would_fill_the_memory_is_refused_at_once_and_fetched_once() {
    assert!(bomb().len() > xml::LONGEST && small_bomb().len() <= xml::LONGEST);
    for (n, bomb) in [(1, bomb()), (2, small_bomb())] {
        let address = Ipv4Addr::new(127, 7, 12, n);
        let asked = router(address, move |_| (200, bomb.clone())).await;
        let begun = Instant::now();
        let outcome = Upnp::default().map(&record(address), 7200).await;
        assert_eq!(outcome, Err(Failure::Silent));
        // Its own search and the group's, each to its end.
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(*asked.lock().unwrap(), ["GET /root.xml"], "by one search");
    }
}

#[tokio::test]
async fn an_answer_that_would_fill_the_memory_is_refused_at_once() {
    let bombs = [
        bomb(),
        small_bomb(),
        soap(&"<a/>".repeat(10_000)),
        soap("<!DOCTYPE a>"),
    ];
    for (n, bomb) in (1..).zip(bombs) {
        let address = Ipv4Addr::new(127, 7, 13, n);
        router(address, move |q| match q.starts_with("GET ") {
            true => (200, description("/ctl")),
            false => (200, bomb.clone()),
        })
        .await;
        let begun = Instant::now();
        let outcome = Upnp::default().map(&record(address), 7200).await;
        assert_eq!(outcome, Err(Failure::Lost), "bomb {n}");
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "bomb {n}: {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn the_seeds_of_the_fuzzer_are_read() {
    let seed = |name: &str| {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/upnp");
        std::fs::read(format!("{seeds}/{name}")).unwrap()
    };
    let url = fuzz::location(&seed("location"));
    assert_eq!(url.as_deref(), Some("http://192.0.2.1:5000/rootDesc.xml"));
    let description = seed("description");
    assert!(fuzz::has_service(&description));
    let size = fuzz::size(&description).unwrap();
    assert_eq!((size.elements, size.depth), (29, 9));
    assert!(size.text < description.len());
    assert_eq!(fuzz::answer(&seed("entry")), Some(Ok(4100)));
    assert_eq!(fuzz::answer(&seed("fault")), Some(Err(714)));
}
