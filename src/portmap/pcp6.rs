//! PCP (RFC 6887) for pinholes. The question must come from the address that is to be reached (section 8.1), which a socket
//! does not choose by itself where the router has an address of the link alone.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::{Failure, Granted, Record, Transport, Why};

/// The port of PCP servers.
const PORT: u16 = 5351;
/// Waits for an answer, after each of which the question is asked again.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];
const VERSION: u8 = 2;
const MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
/// Bytes of a question, and of an answer without options.
const LENGTH: usize = 60;
/// The longest answer (section 7), in bytes.
const LONGEST: usize = 1100;

/// Opens a pinhole, or keeps it open.
pub(super) async fn map(
    gateway: Ipv6Addr,
    link: u32,
    record: &Record,
    lease: u32,
) -> Result<Granted, Failure> {
    ask(gateway, link, record, lease).await
}

/// Closes a pinhole.
pub(super) async fn remove(gateway: Ipv6Addr, link: u32, record: &Record) -> Result<(), Failure> {
    ask(gateway, link, record, 0).await.map(drop)
}

async fn ask(
    gateway: Ipv6Addr,
    link: u32,
    record: &Record,
    lease: u32,
) -> Result<Granted, Failure> {
    let IpAddr::V6(local) = record.gateway.local else {
        return Err(Failure::Silent);
    };
    let question = question(local, record, lease);
    let silent = |error: std::io::Error| {
        tracing::debug!(%error, "PCP");
        Failure::Silent
    };
    let socket = UdpSocket::bind((local, 0)).await.map_err(silent)?;
    let router = SocketAddrV6::new(gateway, PORT, 0, link);
    socket.connect(router).await.map_err(silent)?;
    for wait in PATIENCE {
        socket.send(&question).await.map_err(silent)?;
        let answered = tokio::time::timeout(wait, heard(&socket, &question));
        if let Ok(answer) = answered.await {
            return answer.map_err(silent)?;
        }
    }
    Err(Failure::Silent)
}

/// Waits for an answer to the question; what is none is passed over.
async fn heard(socket: &UdpSocket, question: &[u8]) -> std::io::Result<Result<Granted, Failure>> {
    let mut buffer = [0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = buffer.get(..length).and_then(|bytes| read(bytes, question)) {
            return Ok(answer);
        }
    }
}

/// A MAP request (section 11.1); of no lifetime it asks to remove.
fn question(local: Ipv6Addr, record: &Record, lease: u32) -> [u8; LENGTH] {
    let protocol = match record.port.transport {
        Transport::Udp => 17,
        Transport::Tcp => 6,
    };
    let nonce = record.nonce.map(u32::to_be_bytes);
    let external = if lease == 0 { 0 } else { record.external };
    // No external address is asked for: a firewall has none but ours.
    let nowhere = Ipv6Addr::UNSPECIFIED.octets();
    let parts: [&[u8]; 10] = [
        &[VERSION, MAP, 0, 0],
        &lease.to_be_bytes(),
        &local.octets(),
        &nonce[0],
        &nonce[1],
        &nonce[2],
        &[protocol, 0, 0, 0],
        &record.port.number.to_be_bytes(),
        &external.to_be_bytes(),
        &nowhere,
    ];
    let mut question = [0; LENGTH];
    let bytes = parts.into_iter().flatten().copied();
    question
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, byte)| *to = byte);
    question
}

/// What an answer says; none where it is no answer to that question.
fn read(answer: &[u8], question: &[u8]) -> Option<Result<Granted, Failure>> {
    let four = |at: usize| Some(u32::from_be_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let two = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let (version, kind, result) = (*answer.first()?, *answer.get(1)?, *answer.get(3)?);
    if kind != RESPONSE | MAP {
        return None;
    }
    let (lease, epoch) = (four(4)?, four(8)?);
    // One that speaks another version says so in few bytes (section 9).
    if version != VERSION || result == 1 {
        return Some(Err(Failure::Silent));
    }
    // Nonce, protocol and our port are repeated.
    if answer.len() < LENGTH || answer.get(24..37)? != question.get(24..37)? {
        return None;
    }
    if answer.get(40..42)? != question.get(40..42)? {
        return None;
    }
    let why = match result {
        0 => {
            let ip: [u8; 16] = answer.get(44..60)?.try_into().ok()?;
            return Some(Ok(Granted {
                external: SocketAddr::new(Ipv6Addr::from(ip).into(), two(42)?),
                lease,
                epoch: Some(epoch),
            }));
        }
        2 => Why::NotAuthorized,
        7 => Why::NoAddress,
        8 | 10 => Why::NoRoom,
        11 => Why::PortsInUse,
        // Another router is between, or the address is not ours any more.
        12 => Why::Code(12),
        _ => return Some(Err(Failure::Silent)),
    };
    Some(Err(Failure::Refused(why)))
}

#[cfg(test)]
mod tests {
    use super::super::{Gateway, Port, Protocol};
    use super::*;

    fn record() -> Record {
        Record {
            gateway: Gateway {
                address: "fe80::1".parse().unwrap(),
                local: "2001:db8::7".parse().unwrap(),
            },
            protocol: Protocol::Pcp,
            port: Port {
                transport: Transport::Udp,
                number: 4100,
            },
            external: 4101,
            nonce: [1, 2, 0xffff_fffe],
            until: u64::MAX,
        }
    }

    fn asked(lease: u32) -> [u8; LENGTH] {
        question("2001:db8::7".parse().unwrap(), &record(), lease)
    }

    /// What a router answers: where it opened the port.
    fn answer(result: u8) -> Vec<u8> {
        let mut answer = asked(7200).to_vec();
        answer[1] |= RESPONSE;
        answer[3] = result;
        answer[4..8].copy_from_slice(&600_u32.to_be_bytes());
        answer[8..12].copy_from_slice(&77_u32.to_be_bytes());
        answer[12..24].fill(0);
        answer[42..44].copy_from_slice(&4100_u16.to_be_bytes());
        let outside: Ipv6Addr = "2001:db8::7".parse().unwrap();
        answer[44..60].copy_from_slice(&outside.octets());
        answer
    }

    #[test]
    fn the_question_is_as_rfc_6887_draws_it_and_a_removal_names_no_external_port() {
        let mut want = vec![2, 1, 0, 0, 0, 0, 0x1c, 0x20];
        want.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        want.extend([0, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xff, 0xff, 0xfe]);
        want.extend([17, 0, 0, 0, 0x10, 0x04, 0x10, 0x05]);
        want.extend([0; 16]);
        assert_eq!(asked(7200).as_slice(), want);
        want[4..8].fill(0);
        want[42..44].fill(0);
        assert_eq!(asked(0).as_slice(), want);
    }

    #[test]
    fn an_answer_says_where_and_how_long_or_why_not() {
        let granted = Granted {
            external: "[2001:db8::7]:4100".parse().unwrap(),
            lease: 600,
            epoch: Some(77),
        };
        let read = |answer: &[u8]| read(answer, &asked(7200));
        assert_eq!(read(&answer(0)), Some(Ok(granted)));
        for (result, failure) in [
            (1, Failure::Silent),
            (2, Failure::Refused(Why::NotAuthorized)),
            (5, Failure::Silent),
            (8, Failure::Refused(Why::NoRoom)),
            (10, Failure::Refused(Why::NoRoom)),
            (12, Failure::Refused(Why::Code(12))),
            (200, Failure::Silent),
        ] {
            assert_eq!(read(&answer(result)), Some(Err(failure)), "{result}");
        }
        // NAT-PMP's answer to a question of PCP has eight bytes and more.
        let old = [0, 0x81, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(read(&old), Some(Err(Failure::Silent)));
    }

    #[test]
    fn what_answers_another_question_is_none_and_no_length_panics() {
        let right = answer(0);
        for at in [1, 24, 35, 36, 40, 41] {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            assert_eq!(read(&wrong, &asked(7200)), None, "byte {at}");
        }
        for length in 0..LENGTH {
            let cut = right.get(..length).unwrap();
            assert_eq!(read(cut, &asked(7200)), None, "{length} bytes");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120)) {
            let _ = read(&bytes, &asked(7200));
        }
    }

    #[tokio::test]
    async fn a_router_is_asked_from_the_address_that_is_to_be_reached_and_three_times() {
        let router = UdpSocket::bind("[::1]:5351").await.unwrap();
        let mut record = record();
        record.gateway.address = "::1".parse().unwrap();
        record.gateway.local = "::1".parse().unwrap();
        let answering = async {
            let mut buffer = [0; 2048];
            for _ in 0..3 {
                router.recv_from(&mut buffer).await.unwrap();
            }
            buffer
        };
        let begun = std::time::Instant::now();
        let (outcome, asked) = tokio::join!(map(Ipv6Addr::LOCALHOST, 0, &record, 7200), answering);
        assert_eq!(outcome, Err(Failure::Silent));
        assert_eq!(asked[8..24], Ipv6Addr::LOCALHOST.octets());
        assert!(begun.elapsed() < Duration::from_secs(3));
        let answering = async {
            let mut buffer = [0; 2048];
            let (length, from) = router.recv_from(&mut buffer).await.unwrap();
            // Nonsense before the answer is passed over.
            router.send_to(b"nonsense", from).await.unwrap();
            buffer[1] |= RESPONSE;
            router.send_to(&buffer[..length], from).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(map(Ipv6Addr::LOCALHOST, 0, &record, 7200), answering);
        assert_eq!(outcome.unwrap().lease, 7200);
    }
}
