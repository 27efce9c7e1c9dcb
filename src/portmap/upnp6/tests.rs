//! A device of UPnP on the loopback address, whose firewall is a list.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::{Port, Protocol};
use super::*;

const LOCAL: Ipv6Addr = Ipv6Addr::LOCALHOST;

fn record(number: u16) -> Record {
    let here = IpAddr::V6(LOCAL);
    Record {
        gateway: Gateway {
            address: here,
            local: here,
        },
        protocol: Protocol::Upnp,
        port: Port {
            transport: Transport::Udp,
            number,
        },
        external: number,
        nonce: [1, 2, 3],
        until: u64::MAX,
    }
}

/// A device that answers each question by `answer`, and what it was asked.
async fn device(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (Firewall, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = Vec::new();
            let mut buffer = [0; 4096];
            while !String::from_utf8_lossy(&question).contains("</s:Envelope>") {
                match stream.read(&mut buffer).await {
                    Ok(length) if length > 0 => question.extend_from_slice(&buffer[..length]),
                    _ => break,
                }
            }
            let question = String::from_utf8_lossy(&question).into_owned();
            let answer = answer(&question);
            noted.lock().unwrap().push(question);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let control = Service::at(SERVICE, &format!("http://[{LOCAL}]:{port}/ctl"));
    let found = Some((record(4100).gateway, control));
    (Firewall { found }, asked)
}

fn page(status: &str, body: &str) -> String {
    let body = format!("<s:Envelope><s:Body>{body}</s:Body></s:Envelope>");
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn error(code: u16) -> String {
    let fault = format!("<s:Fault><errorCode>{code}</errorCode></s:Fault>");
    page("500 Internal Server Error", &fault)
}

fn done(question: &str) -> String {
    match question.contains("#AddPinhole") {
        true => page(
            "200 OK",
            "<u:AddPinholeResponse><UniqueID>7</UniqueID></u:AddPinholeResponse>",
        ),
        false => page("200 OK", "<u:DeletePinholeResponse/>"),
    }
}

#[tokio::test]
async fn a_pinhole_is_opened_to_our_own_address_and_removed_by_the_number_that_it_has_now() {
    let (mut firewall, asked) = device(done).await;
    let granted = firewall.map(0, &record(4100), 7200).await.unwrap();
    assert_eq!(granted.external, "[::1]:4100".parse().unwrap());
    assert_eq!(granted.lease, 7200);
    firewall.remove(0, &record(4100)).await.unwrap();
    let asked = asked.lock().unwrap();
    let [opened, again, removed] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert!(opened.starts_with("POST /ctl HTTP/1.1\r\n"), "{opened}");
    for part in [
        "<RemoteHost></RemoteHost><RemotePort>0</RemotePort>",
        "<InternalClient>::1</InternalClient><InternalPort>4100</InternalPort>",
        "<Protocol>17</Protocol><LeaseTime>7200</LeaseTime>",
    ] {
        assert!(opened.contains(part), "{opened}");
    }
    assert!(again.contains("#AddPinhole") && again.contains("<LeaseTime>60<"));
    assert!(removed.contains("#DeletePinhole") && removed.contains("<UniqueID>7</UniqueID>"));
}

#[tokio::test]
async fn a_refusal_is_told_by_its_reason_and_nonsense_opens_nothing() {
    for (code, why) in [
        (606, Why::NotAuthorized),
        (701, Why::NoRoom),
        (702, Why::FirewallOff),
        (703, Why::NotAuthorized),
        (501, Why::Code(501)),
    ] {
        let (mut firewall, _) = device(move |_| error(code)).await;
        let outcome = firewall.map(0, &record(4100), 7200).await;
        assert_eq!(outcome, Err(Failure::Refused(why)), "{code}");
        assert!(firewall.found.is_some(), "it is there");
    }
    let many = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100_000));
    for nonsense in [
        String::new(),
        "no HTTP\r\n\r\n".to_owned(),
        page("200 OK", ""),
        page("200 OK", "<u:AddPinholeResponse><UniqueID>70000</UniqueID>"),
        page("500 Error", "<errorCode>x</errorCode>"),
        many,
    ] {
        let (mut firewall, _) = device(move |_| nonsense.clone()).await;
        let outcome = firewall.map(0, &record(4100), 7200).await;
        assert_eq!(outcome, Err(Failure::Lost));
        assert!(firewall.found.is_none(), "it is searched for again");
    }
}

#[tokio::test]
async fn what_the_router_has_no_more_counts_as_removed() {
    let gone = |question: &str| match question.contains("#AddPinhole") {
        true => done(question),
        false => error(704),
    };
    let (mut firewall, _) = device(gone).await;
    assert_eq!(firewall.remove(0, &record(4100)).await, Ok(()));
}
