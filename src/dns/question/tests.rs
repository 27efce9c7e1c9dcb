//! What becomes of a request, byte by byte.

use super::super::handler::{Outbox, send};
use super::super::zone::{absolute, tests::lab};
use super::*;
use hickory_proto::op::{Message, Query};
use proptest::prelude::*;

const MEMBER: &str = "10.42.99.1";
const LOCAL: &str = "10.42.7.1";
const WORKLOAD: &str = "10.42.7.9";

pub(in crate::dns) fn served() -> Served {
    let zone = lab();
    let owned = |origins: &[&str], prefixes: &[&str]| Owned {
        origins: origins.iter().map(|o| absolute(o).unwrap()).collect(),
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
    };
    let members = zone.prefixes.clone();
    let index = Arc::new(ZoneIndex::new(zone).unwrap());
    let reach = |owned: Owned| {
        Arc::new(Reach {
            zones: vec![Arc::clone(&index)],
            owned,
        })
    };
    Served {
        members,
        machine: [LOCAL.parse().unwrap()].into(),
        all: reach(owned(
            &["lab.internal", "prod.internal"],
            &["10.42.0.0/16", "10.50.0.0/16"],
        )),
        workloads: [(
            WORKLOAD.parse().unwrap(),
            reach(owned(&["lab.internal"], &["10.42.0.0/16"])),
        )]
        .into(),
        index,
        forwards: true,
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(absolute(name).unwrap(), kind));
    message
}

/// What becomes of some bytes, replies encoded.
#[derive(Debug)]
enum Seen {
    Answer(Vec<u8>),
    Refuse(Vec<u8>),
    Malformed(Vec<u8>),
    Drop,
    Foreign,
    Forward(Box<Forward>, Box<Request>),
}

fn encoded(mut reply: Reply, request: &Request) -> Vec<u8> {
    let outbox = Outbox::default();
    reply.fit(&request.queries);
    futures::executor::block_on(send(reply, request, outbox.clone()));
    outbox.take().unwrap()
}

fn see(bytes: &[u8], source: IpAddr, protocol: Protocol) -> Seen {
    match glance(bytes) {
        Glance::Question => {}
        Glance::Refuse(b) => return Seen::Refuse(b),
        Glance::Malformed(b) => return Seen::Malformed(b),
        Glance::Drop => return Seen::Drop,
    }
    let Ok(request) = Request::from_bytes(bytes.to_vec(), (source, 5300).into(), protocol) else {
        return Seen::Malformed(malformed(bytes));
    };
    match served().decide(&request) {
        Decision::Answer(reply) => Seen::Answer(encoded(reply, &request)),
        Decision::Refuse(reply) => Seen::Refuse(encoded(reply, &request)),
        Decision::Foreign => Seen::Foreign,
        Decision::Forward(forward) => Seen::Forward(forward, Box::new(request)),
    }
}

fn decide(message: &Message, source: &str) -> Seen {
    see(
        &message.to_vec().unwrap(),
        source.parse().unwrap(),
        Protocol::Udp,
    )
}

fn reply(seen: Seen) -> Message {
    match seen {
        Seen::Answer(b) | Seen::Refuse(b) | Seen::Malformed(b) => Message::from_vec(&b).unwrap(),
        other => panic!("no reply: {other:?}"),
    }
}

fn code(message: &Message, source: &str) -> ResponseCode {
    reply(decide(message, source)).metadata.response_code
}

#[test]
fn own_names_are_answered_with_authority() {
    let message = reply(decide(&question("DB.lab.internal", RecordType::A), MEMBER));
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    assert!(
        !message.metadata.recursion_available,
        "a member may not recurse"
    );
    assert_eq!((message.metadata.id, message.answers.len()), (77, 1));
    assert_eq!(
        message.queries.first().map(|q| q.name().to_string()),
        Some("DB.lab.internal.".to_owned())
    );
}

#[test]
fn only_local_askers_are_forwarded() {
    let outside = question("example.org", RecordType::A);
    assert_eq!(code(&outside, MEMBER), ResponseCode::Refused);
    for local in [LOCAL, WORKLOAD, "127.0.0.9", "::1", "::ffff:10.42.7.1"] {
        assert!(
            matches!(decide(&outside, local), Seen::Forward(..)),
            "{local}"
        );
    }
}

#[test]
fn foreign_sources_get_silence() {
    for source in ["192.0.2.1", "10.50.0.1", "::ffff:192.0.2.1", "2001:db8::1"] {
        assert!(matches!(
            decide(&question("db.lab.internal", RecordType::A), source),
            Seen::Foreign
        ));
    }
}

#[test]
fn what_another_subnet_is_called_concerns_only_its_own_askers() {
    for name in ["db.prod.internal", "1.0.50.10.in-addr.arpa"] {
        // The machine is in both, and its names do not leave it.
        assert_eq!(
            code(&question(name, RecordType::A), LOCAL),
            ResponseCode::NXDomain
        );
        assert_eq!(
            code(&question(name, RecordType::A), MEMBER),
            ResponseCode::Refused
        );
        // A workload is in one: to it the other's names are names like any outside.
        let Seen::Forward(forward, _) = decide(&question(name, RecordType::A), WORKLOAD) else {
            panic!("{name}")
        };
        assert_eq!(
            forward.reach.owned.prefixes,
            ["10.42.0.0/16".parse().unwrap()],
            "its answers may point there too"
        );
    }
    for name in ["nothing.lab.internal", "9.9.42.10.in-addr.arpa"] {
        assert_eq!(
            code(&question(name, RecordType::A), WORKLOAD),
            ResponseCode::NXDomain,
            "its own do not leave"
        );
    }
}

#[test]
fn alias_to_the_outside_is_followed_for_local_askers() {
    let message = question("out.lab.internal", RecordType::A);
    let Seen::Forward(forward, request) = decide(&message, LOCAL) else {
        panic!("not forwarded")
    };
    assert_eq!(forward.name, absolute("example.org").unwrap());
    let whole = Message::from_vec(&encoded(
        forward.finish(ResponseCode::NoError, vec![], vec![]),
        &request,
    ))
    .unwrap();
    assert_eq!(whole.answers.len(), 1);
    assert_eq!(reply(decide(&message, MEMBER)).answers.len(), 1);
}

#[test]
fn large_answers_are_cut_on_udp_and_whole_on_tcp() {
    let mut message = question("big.lab.internal", RecordType::A);
    let plain = message.to_vec().unwrap();
    let mut edns = Edns::new();
    edns.set_max_payload(65_535);
    message.set_edns(edns);
    let wide = message.to_vec().unwrap();
    for (bytes, limit) in [(&plain, 512), (&wide, 1232)] {
        let Seen::Answer(bytes) = see(bytes, LOCAL.parse().unwrap(), Protocol::Udp) else {
            panic!("no answer")
        };
        assert!(bytes.len() <= limit);
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    }
    let tcp = reply(see(&wide, LOCAL.parse().unwrap(), Protocol::Tcp));
    assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
}

#[test]
fn edns_is_answered_and_its_future_versions_refused() {
    let mut message = question("db.lab.internal", RecordType::A);
    for size in [0, 1, 511, 513, 65_535] {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
        let answer = reply(decide(&message, LOCAL));
        assert_eq!(
            answer.edns.map(|e| e.max_payload()),
            Some(MAX_UDP),
            "{size}"
        );
    }
    let mut edns = Edns::new();
    edns.set_version(1);
    message.set_edns(edns);
    // BADVERS and BADSIG are one number (RFC 6895, section 2.3).
    assert_eq!(
        u16::from(code(&message, LOCAL)),
        u16::from(ResponseCode::BADVERS)
    );
    assert!(
        reply(decide(&question("db.lab.internal", RecordType::A), LOCAL))
            .edns
            .is_none()
    );
}

#[test]
fn transfers_updates_and_unknown_opcodes_are_turned_away() {
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(
            code(&question("lab.internal", kind), LOCAL),
            ResponseCode::Refused
        );
    }
    for opcode in [1u8, 2, 3, 4, 5, 6, 15] {
        let mut bytes = question("lab.internal", RecordType::SOA).to_vec().unwrap();
        bytes[2] = (bytes[2] & 0x87) | (opcode << 3);
        let answer = reply(see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp));
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NotImp,
            "{opcode}"
        );
    }
}

#[test]
fn other_classes_are_refused() {
    let mut message = question("version.bind", RecordType::TXT);
    message.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&message, LOCAL), ResponseCode::Refused);
}

#[test]
fn exactly_one_question_is_taken() {
    for count in [0u16, 2, 65_535] {
        let mut bytes = question("db.lab.internal", RecordType::A).to_vec().unwrap();
        bytes[4..6].copy_from_slice(&count.to_be_bytes());
        let answer = reply(see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp));
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::FormErr,
            "{count}"
        );
    }
}

#[test]
fn false_counts_are_formerr() {
    for section in [6usize, 8, 10] {
        let mut bytes = question("db.lab.internal", RecordType::A).to_vec().unwrap();
        bytes[section..section + 2].copy_from_slice(&[255, 255]);
        let answer = reply(see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp));
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    }
}

#[test]
fn answers_and_scraps_get_silence() {
    let mut bytes = question("db.lab.internal", RecordType::A).to_vec().unwrap();
    bytes[2] |= 0x80;
    let local: IpAddr = LOCAL.parse().unwrap();
    assert!(matches!(see(&bytes, local, Protocol::Udp), Seen::Drop));
    assert!(matches!(
        see(&bytes[..11], local, Protocol::Udp),
        Seen::Drop
    ));
}

#[test]
fn a_question_with_a_pointer_is_not_repeated() {
    // The name ends with a pointer at the ID, which reads as the root: repeated in a reply, it would be another name.
    let bytes = [
        0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0xc0, 0, 0, 1, 0, 1,
    ];
    let Seen::Malformed(answer) = see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp) else {
        panic!("taken")
    };
    assert_eq!(answer, [0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn pointer_loops_are_formerr() {
    let head = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for name in [[0xc0u8, 12], [0xc0, 0x20], [0xff, 0xff]] {
        let bytes = [head.as_slice(), &name, &[0, 1, 0, 1]].concat();
        let answer = reply(see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp));
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    }
}

fn checked(bytes: &[u8]) {
    let served = served();
    for transport in [Protocol::Udp, Protocol::Tcp] {
        match see(bytes, LOCAL.parse().unwrap(), transport) {
            Seen::Answer(b) | Seen::Refuse(b) | Seen::Malformed(b) => {
                assert_eq!(b.first_chunk::<2>(), bytes.first_chunk::<2>());
                assert!(transport == Protocol::Tcp || b.len() <= usize::from(MAX_UDP));
            }
            Seen::Forward(forward, _) => {
                assert!(
                    !served.all.owned.covers(&forward.name),
                    "left: {}",
                    forward.name
                );
                let _ = forward.fail();
            }
            Seen::Drop | Seen::Foreign => {}
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        checked(&bytes);
    }

    #[test]
    fn bytes_that_look_like_a_question_never_panic(
        flags in 0u8..128, counts in proptest::array::uniform4(0u8..3), tail in proptest::collection::vec(any::<u8>(), 0..120)
    ) {
        let mut bytes = vec![9, 9, flags & 0x7f, 0];
        counts.iter().for_each(|c| bytes.extend([0, *c]));
        bytes.extend(tail);
        checked(&bytes);
    }

    #[test]
    fn damaged_questions_never_panic(at in 0usize..60, byte: u8, cut in 0usize..60) {
        let mut message = question("_http._tcp.lab.internal", RecordType::SRV);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        if let Some(b) = bytes.get_mut(at) { *b = byte; }
        checked(&bytes);
        bytes.truncate(cut);
        checked(&bytes);
    }
}
