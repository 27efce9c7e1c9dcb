//! The bytes of messages: DNS (RFC 1035) as multicast DNS uses it (RFC 6762).
//!
//! A question names `LABEL._sub._byway._udp.local`, type PTR, once for each subnet, where LABEL is 32 hexadecimal digits; the
//! answers that the asker has stand in its answer section. An answer is `_byway._udp.local PTR LABEL._byway._udp.local`, with
//! what is sealed in a TXT record of that name. There are no SRV and no address records: they would name what is sealed.

use hickory_proto::op::{Message as Dns, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{PTR, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::lan::{Label, MAX_NAMES, Message, Said, TTL};

/// The largest message that is read: ours pass every link whole. RFC 6762 (section 17) lets others have 9,000 bytes, in which the
/// pointers between names would cost a reader far more than the bytes.
pub(super) const MAX_READ: usize = 1500;
/// The most records in a message that is read; ours have 32 at most.
const MAX_RECORDS: u32 = 64;
/// Answers in one datagram, so that it passes every link without fragments.
const ANSWERS: usize = 4;
/// Our service, as it stands in messages.
const SERVICE: &[u8] = b"\x06_byway\x04_udp\x05local\0";

/// Whether a datagram names our service at all: the cheapest look, since a link carries much that is for others.
pub(super) fn is_ours(bytes: &[u8]) -> bool {
    let mut parts = bytes.windows(SERVICE.len());
    parts.any(|part| part.first() == SERVICE.first() && part == SERVICE)
}

/// The datagrams of a message.
pub(super) fn encode(message: &Message) -> Vec<Vec<u8>> {
    match message {
        Message::Ask { wanted, known } => question(wanted, known).into_iter().collect(),
        Message::Say(said) => said.chunks(ANSWERS).filter_map(answer).collect(),
    }
}

fn question(wanted: &[Label], known: &[Label]) -> Option<Vec<u8>> {
    let mut dns = Dns::new(0, MessageType::Query, OpCode::Query);
    let subtypes = service()?.prepend_label("_sub").ok()?;
    for label in wanted.iter().take(MAX_NAMES) {
        let name = subtypes.prepend_label(text(label)).ok()?;
        dns.add_query(Query::query(name, RecordType::PTR));
    }
    for label in known.iter().take(MAX_NAMES) {
        dns.add_answer(pointer(label)?);
    }
    dns.to_vec().ok()
}

fn answer(said: &[Said]) -> Option<Vec<u8>> {
    let mut dns = Dns::new(0, MessageType::Response, OpCode::Query);
    dns.metadata.authoritative = true;
    for Said { label, sealed } in said {
        dns.add_answer(pointer(label)?);
        let text = RData::TXT(TXT::from_bytes(vec![sealed]));
        dns.add_additional(Record::from_rdata(instance(label)?, ttl(), text));
    }
    dns.to_vec().ok()
}

/// A datagram that is no DNS, or more of it than any of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a message; none where it is somebody else's: a program that lists every service of the network asks for ours, too, and
/// RFC 6762 (sections 18.3 and 18.11) has other operations and errors ignored. At most [`MAX_NAMES`] names of each kind are taken.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<Message>, Malformed> {
    let counts = bytes.get(4..12).ok_or(Malformed)?.as_chunks().0;
    let records: u32 = counts
        .iter()
        .map(|n| u32::from(u16::from_be_bytes(*n)))
        .sum();
    if bytes.len() > MAX_READ || records > MAX_RECORDS {
        return Err(Malformed);
    }
    Dns::from_vec(bytes).map(message).map_err(|_| Malformed)
}

fn message(dns: Dns) -> Option<Message> {
    if dns.metadata.op_code != OpCode::Query || dns.metadata.response_code != ResponseCode::NoError
    {
        return None;
    }
    if dns.metadata.message_type == MessageType::Query {
        let asks = dns.queries.iter().filter(|query| {
            query.query_type() == RecordType::PTR && query.query_class() == DNSClass::IN
        });
        let wanted = asks.filter_map(|query| label_of(query.name(), true));
        let pointers = dns.answers.iter().filter_map(|record| match &record.data {
            RData::PTR(PTR(to)) => label_of(to, false),
            _ => None,
        });
        let wanted: Vec<Label> = wanted.take(MAX_NAMES).collect();
        let known = pointers.take(MAX_NAMES).collect();
        return (!wanted.is_empty()).then_some(Message::Ask { wanted, known });
    }
    let records = dns.answers.iter().chain(&dns.additionals);
    let said = records.filter_map(|record| match &record.data {
        RData::TXT(text) => Some(Said {
            label: label_of(&record.name, false)?,
            sealed: text.txt_data.first()?.to_vec(),
        }),
        _ => None,
    });
    let said: Vec<Said> = said.take(MAX_NAMES).collect();
    (!said.is_empty()).then_some(Message::Say(said))
}

fn ttl() -> u32 {
    u32::try_from(TTL.as_secs()).unwrap_or(u32::MAX)
}

fn text(label: &Label) -> String {
    data_encoding::HEXLOWER.encode(&label.0)
}

fn service() -> Option<Name> {
    Name::from_ascii("_byway._udp.local.").ok()
}

fn instance(label: &Label) -> Option<Name> {
    service()?.prepend_label(text(label)).ok()
}

fn pointer(label: &Label) -> Option<Record> {
    let to = RData::PTR(PTR(instance(label)?));
    Some(Record::from_rdata(service()?, ttl(), to))
}

/// The label of a name of ours: one in a question (`sub`), or one of an answer.
fn label_of(name: &Name, sub: bool) -> Option<Label> {
    let mut parts = name.iter();
    let label = parts.next()?;
    let behind: &[&[u8]] = &[b"_sub", b"_byway", b"_udp", b"local"];
    let behind = if sub { behind } else { behind.get(1..)? };
    if !parts.eq(behind.iter().copied()) {
        return None;
    }
    let bytes = data_encoding::HEXLOWER.decode(label).ok()?;
    bytes.try_into().ok().map(Label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::blind::OVERHEAD;
    use crate::lan::MAX_OFFER;
    use proptest::prelude::*;

    fn label(n: usize) -> Label {
        Label([u8::try_from(n).unwrap(); 16])
    }

    fn said(count: usize, length: usize) -> Message {
        let one = |n| Said {
            label: label(n),
            sealed: vec![7; length],
        };
        Message::Say((0..count).map(one).collect())
    }

    #[test]
    fn messages_read_back() {
        let ask = Message::Ask {
            wanted: vec![label(1), label(2)],
            known: vec![label(3)],
        };
        for message in [ask, said(3, 200)] {
            let packets = encode(&message);
            assert_eq!(packets.len(), 1);
            assert!(is_ours(&packets[0]));
            assert_eq!(decode(&packets[0]), Ok(Some(message)));
        }
    }

    #[test]
    fn the_largest_messages_pass_an_ordinary_link_without_fragments() {
        let ask = Message::Ask {
            wanted: (0..MAX_NAMES).map(label).collect(),
            known: (0..MAX_NAMES).map(label).collect(),
        };
        let packets = [encode(&ask), encode(&said(MAX_NAMES, MAX_OFFER + OVERHEAD))].concat();
        assert_eq!(packets.len(), 1 + MAX_NAMES / ANSWERS);
        // 1,500 bytes without the headers of IPv6 and UDP.
        let longest = packets.iter().map(Vec::len).max().unwrap();
        assert!(longest <= 1452, "{longest}");
        let is_read = |packet: &Vec<u8>| decode(packet).is_ok_and(|message| message.is_some());
        assert!(packets.iter().all(is_read));
    }

    #[test]
    fn a_message_that_is_longer_or_names_more_than_ours_is_not_taken_apart() {
        let ask = Message::Ask {
            wanted: vec![label(1)],
            known: Vec::new(),
        };
        let mut bytes = encode(&ask).concat();
        assert!(decode(&bytes).unwrap().is_some());
        // The number of answers.
        bytes[7] = 64;
        assert_eq!(decode(&bytes), Err(Malformed));
        bytes[7] = 0;
        bytes.resize(MAX_READ + 1, 0);
        assert_eq!(decode(&bytes), Err(Malformed));
    }

    #[test]
    fn questions_and_answers_of_others_are_nothing_to_us() {
        let mut dns = Dns::new(0, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("_http._tcp.local.").unwrap();
        dns.add_query(Query::query(name, RecordType::PTR));
        assert!(!is_ours(&dns.to_vec().unwrap()));
        // Whoever lists the service itself is told nothing, and is no fault: asking, or answering for another program.
        let query = || Dns::new(0, MessageType::Query, OpCode::Query);
        let mut browse = query();
        browse.add_query(Query::query(service().unwrap(), RecordType::PTR));
        let mut named = query();
        let instance = service().unwrap().prepend_label("printer").unwrap();
        named.add_query(Query::query(instance.clone(), RecordType::ANY));
        let mut answer = Dns::new(0, MessageType::Response, OpCode::Query);
        let to = RData::PTR(PTR(instance));
        answer.add_answer(Record::from_rdata(service().unwrap(), ttl(), to));
        let mut update = Dns::new(0, MessageType::Query, OpCode::Update);
        update.add_query(Query::query(service().unwrap(), RecordType::SOA));
        for foreign in [browse, named, answer, update] {
            let bytes = foreign.to_vec().unwrap();
            assert!(is_ours(&bytes));
            assert_eq!(decode(&bytes), Ok(None), "{foreign:?}");
            assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(Malformed));
        }
        assert_eq!(decode(SERVICE), Err(Malformed));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes: Vec<u8>, at: usize, byte: u8) {
            let _ = decode(&bytes);
            let mut packet = encode(&said(2, 100)).remove(0);
            let at = at % packet.len();
            packet[at] = byte;
            let _ = decode(&packet);
        }
    }
}
