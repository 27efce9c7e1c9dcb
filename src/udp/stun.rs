//! Where the port is seen from outside, as a STUN server says (RFC 8489): asked over the port itself, so that the mapping is
//! the one that peers meet.
//!
//! One question at a time. An answer counts only from the address that was asked, with the random number of the question;
//! all else that begins like STUN is counted and dropped, and no question of others is ever answered.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, mpsc};

use super::Port;

/// Bytes of the header, before the attributes.
const HEADER: usize = 20;
/// Makes STUN out of what else may begin with the same bits (RFC 8489, section 5).
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// A question for the address that the server sees.
const REQUEST: [u8; 2] = [0x00, 0x01];
/// Its answer.
const SUCCESS: [u8; 2] = [0x01, 0x01];
/// The attribute that says it, hidden from NATs that rewrite addresses.
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// The longest answer that is looked at: a server has little to say.
const LONGEST: usize = 548;
/// Waits for an answer, before the question is sent again and at last given up.
const WAITS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(1500),
];

/// The random number of a question.
pub type Transaction = [u8; 12];

/// A question that waits for its answer.
#[derive(Debug)]
struct Asked {
    server: SocketAddr,
    transaction: Transaction,
    answer: mpsc::Sender<SocketAddr>,
}

/// The question of one port, and what came that answers none.
#[derive(Debug, Default)]
pub(super) struct Stun {
    asked: ArcSwapOption<Asked>,
    turn: Mutex<()>,
    refused: AtomicU64,
}

impl Stun {
    /// Takes what came from there, where it looks like an answer. One that was not asked for is counted, and nothing is kept of it.
    pub(super) fn take(&self, from: SocketAddr, bytes: &[u8]) -> bool {
        if bytes.get(4..8) != Some(&COOKIE) || bytes.get(..2) == Some(&REQUEST) {
            return false;
        }
        let asked = self.asked.load();
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let seen = asked.as_ref().and_then(|asked| {
            let is_asked = asked.server == from;
            let seen = parse(bytes, &asked.transaction).filter(|_| is_asked)?;
            Some((asked, seen))
        });
        match seen {
            // A second answer to the same question says nothing new.
            Some((asked, seen)) => drop(asked.answer.try_send(seen)),
            None => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
        }
        true
    }

    /// Datagrams that pretended to answer a question.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Ends a question, however the wait for its answer ends.
struct Ended<'a>(&'a Stun);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.asked.store(None);
    }
}

impl Port {
    /// Asks a server where it sees this port; none where it does not answer within three seconds. `transaction` must be
    /// random: who guesses it may lie. Waits for its turn while another question is under way.
    ///
    /// # Errors
    /// As [`send_one`](Port::send_one).
    ///
    /// # Cancel safety
    /// Dropped before it is done, the question is over.
    pub async fn ask_stun(
        &self,
        server: SocketAddr,
        transaction: Transaction,
    ) -> io::Result<Option<SocketAddr>> {
        let stun = &self.0.stun;
        let _turn = stun.turn.lock().await;
        let (answer, mut answers) = mpsc::channel(1);
        let asked = Asked {
            server,
            transaction,
            answer,
        };
        stun.asked.store(Some(asked.into()));
        let _ended = Ended(stun);
        for wait in WAITS {
            self.send_one(&question(&transaction), server, None)?;
            if let Ok(Some(seen)) = tokio::time::timeout(wait, answers.recv()).await {
                return Ok(Some(seen));
            }
        }
        Ok(None)
    }
}

/// The question: a header without attributes.
fn question(transaction: &Transaction) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let fields = REQUEST
        .iter()
        .chain(&[0, 0])
        .chain(&COOKIE)
        .chain(transaction);
    bytes
        .iter_mut()
        .zip(fields)
        .for_each(|(to, from)| *to = *from);
    bytes
}

/// The address in an answer to the question with that number; none where it is none.
pub(super) fn parse(bytes: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let is_answer = bytes.len() <= LONGEST
        && bytes.get(..2) == Some(&SUCCESS)
        && bytes.get(4..8) == Some(&COOKIE)
        && bytes.get(8..HEADER) == Some(transaction);
    let length = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let mut rest = bytes.get(HEADER..)?;
    if !is_answer || rest.len() != usize::from(length) {
        return None;
    }
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        let [a, b, c, d] = *head;
        let size = usize::from(u16::from_be_bytes([c, d]));
        let value = after.get(..size)?;
        if u16::from_be_bytes([a, b]) == XOR_MAPPED_ADDRESS {
            return address(value, transaction);
        }
        // Each is padded to four bytes.
        rest = after.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// RFC 8489, section 14.2. Port 0 and the address of nobody are none.
fn address(value: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let (head, ip) = value.split_first_chunk::<4>()?;
    let [_, family, high, low] = *head;
    let mask = COOKIE.iter().chain(transaction);
    let plain: Vec<u8> = ip
        .iter()
        .zip(mask)
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    let ip = match (family, ip.len()) {
        (1, 4) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(plain).ok()?)),
        (2, 16) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(plain).ok()?)),
        _ => return None,
    };
    let [first, second, ..] = COOKIE;
    let port = u16::from_be_bytes([high ^ first, low ^ second]);
    let is_somebody = port != 0 && !ip.is_unspecified() && !ip.is_multicast();
    is_somebody.then(|| SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use proptest::prelude::*;
    use std::net::UdpSocket;

    const NUMBER: Transaction = *b"twelve bytes";

    /// An answer as a server makes it.
    fn answer(transaction: &Transaction, seen: SocketAddr) -> Vec<u8> {
        let mask: Vec<u8> = COOKIE.iter().chain(transaction).copied().collect();
        let (family, ip) = match seen.ip() {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (2, ip.octets().to_vec()),
        };
        let port = (seen.port() ^ 0x2112).to_be_bytes();
        let mut value = vec![0, family, port[0], port[1]];
        value.extend(ip.iter().zip(&mask).map(|(a, b)| a ^ b));
        // Software, which is of no interest and not a multiple of four.
        let mut bytes = vec![0x80, 0x22, 0, 3, b'x', b'y', b'z', 0, 0, 0x20, 0];
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend(value);
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&SUCCESS[..], &length, &COOKIE, transaction, &bytes].concat()
    }

    #[test]
    fn an_answer_says_the_address_of_either_family_and_another_number_says_nothing() {
        for seen in ["203.0.113.9:4100", "[2001:db8::7]:65535"] {
            let seen: SocketAddr = seen.parse().unwrap();
            let bytes = answer(&NUMBER, seen);
            assert_eq!(parse(&bytes, &NUMBER), Some(seen));
            assert_eq!(parse(&bytes, b"twelve bytez"), None);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end], &NUMBER), None, "{end}");
            }
            let more = [&bytes[..], &[0]].concat();
            assert_eq!(parse(&more, &NUMBER), None, "longer than it says");
        }
        for nobody in ["0.0.0.0:4100", "203.0.113.9:0", "224.0.0.1:4100"] {
            let bytes = answer(&NUMBER, nobody.parse().unwrap());
            assert_eq!(parse(&bytes, &NUMBER), None, "{nobody}");
        }
        assert_eq!(question(&NUMBER)[..8], [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(question(&NUMBER)[8..], NUMBER);
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            parse(&bytes, &NUMBER);
            let mut right = [&SUCCESS[..], &[0, 0], &COOKIE, &NUMBER, &bytes].concat();
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            right[2..4].copy_from_slice(&length);
            parse(&right, &NUMBER);
        }
    }

    fn port() -> Port {
        Port::bind(&["127.0.0.1:0".parse().unwrap()], &Options::default()).unwrap()
    }

    /// Reads the port until it is closed.
    fn drain(port: &Port) -> std::thread::JoinHandle<()> {
        let mut receiver = port.receiver().unwrap();
        std::thread::spawn(move || {
            while let Ok(batch) = receiver.next_batch() {
                batch.for_each(drop);
            }
        })
    }

    #[tokio::test]
    async fn only_the_server_that_was_asked_is_believed_and_forgeries_are_counted() {
        let port = port();
        let own = port.local()[0];
        let reader = drain(&port);
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let liar = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((length, from), (HEADER, own));
            assert_eq!(buffer[8..HEADER], NUMBER);
            let lie = answer(&NUMBER, "198.51.100.66:1".parse().unwrap());
            liar.send_to(&lie, from).unwrap();
            let wrong = answer(b"twelve bytez", "198.51.100.66:1".parse().unwrap());
            server.send_to(&wrong, from).unwrap();
            server.send_to(&answer(&NUMBER, from), from).unwrap();
        });
        let seen = port.ask_stun(at, NUMBER).await.unwrap();
        assert_eq!(seen, Some(own));
        answering.join().unwrap();
        assert_eq!(port.counts().stun_refused, 2);
        port.close();
        reader.join().unwrap();
    }

    #[tokio::test]
    async fn a_question_of_others_is_never_answered() {
        let port = port();
        let reader = drain(&port);
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        asker.send_to(&question(&NUMBER), port.local()[0]).unwrap();
        let mut buffer = [0; 64];
        asker.recv_from(&mut buffer).unwrap_err();
        assert_eq!((port.counts().foreign, port.counts().stun_refused), (1, 0));
        // Without a question nothing is an answer.
        let lie = answer(&NUMBER, "198.51.100.66:1".parse().unwrap());
        asker.send_to(&lie, port.local()[0]).unwrap();
        while port.counts().stun_refused == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        port.close();
        reader.join().unwrap();
    }
}
