//! One request in, one decision out: the way every socket and every test goes.
//!
//! Pure: the request, who asks and the zones are given; what is decided is a reply, silence, or a question for the host's
//! resolvers. [`glance`] looks at the bare header first, so that nothing is decoded or allocated for what is no question.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name as DnsName, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponseBuilder, Queries};
use ipnet::IpNet;

use super::zone::{Answer, ZoneIndex, owned_reverse};

/// Largest UDP answer in bytes: passes every usual path unfragmented (DNS flag day 2020).
pub const MAX_UDP: u16 = 1232;

/// UDP answer without EDNS in bytes (RFC 1035, section 4.2.1).
const PLAIN_UDP: u16 = 512;

/// Bytes of the message header.
const HEADER: usize = 12;

/// What one subnet's sockets know: made anew with each view, read by every question.
#[derive(Debug)]
pub(super) struct Served {
    /// The subnet's own names.
    pub(super) index: Arc<ZoneIndex>,
    /// Who may ask for them: the subnet's prefixes.
    pub(super) members: Vec<IpNet>,
    /// This node's addresses: who is in every subnet that is up here.
    pub(super) machine: HashSet<IpAddr>,
    /// Its workloads in this subnet: who is in this one only.
    pub(super) workloads: HashSet<IpAddr>,
    /// What the machine never asks outside: every zone that is up here.
    pub(super) all: Arc<Owned>,
    /// What a workload never asks outside: the zone of its own subnet. What another subnet's founder calls his concerns only
    /// those who joined him.
    pub(super) own: Arc<Owned>,
    /// Whether there are resolvers to forward to.
    pub(super) forwards: bool,
}

/// Zones whose names an asker must not have asked outside.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Owned {
    /// Origins.
    pub(super) origins: Vec<DnsName>,
    /// Prefixes, whose reverse zones and addresses are ours.
    pub(super) prefixes: Vec<IpNet>,
}

impl Owned {
    /// Whether `name` is in one of them.
    pub(super) fn covers(&self, name: &DnsName) -> bool {
        self.origins.iter().any(|o| o.zone_of(name)) || owned_reverse(&self.prefixes, name)
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// This machine itself: the names of the subnet, and whatever is outside.
    Machine,
    /// A workload of the subnet here: the same.
    Workload,
    /// Elsewhere in the subnet: its names only.
    Member,
    /// Anybody else: nothing.
    Foreign,
}

/// What the header of a message tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// One question, worth decoding.
    Question,
    /// Of a kind that is not taken: the answer to that.
    Refuse(Vec<u8>),
    /// Not a question: the answer to that.
    Malformed(Vec<u8>),
    /// Not a question and not worth an answer.
    Drop,
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Decision {
    /// Answered from the zone.
    Answer(Reply),
    /// Turned away.
    Refuse(Reply),
    /// From one who may not ask: no answer, so that nothing can be reflected.
    Foreign,
    /// To be resolved outside.
    Forward(Box<Forward>),
}

/// A question on its way to the host's resolvers, with the reply begun.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) name: DnsName,
    pub(super) kind: RecordType,
    /// What no answer may point into.
    pub(super) owned: Arc<Owned>,
    reply: Reply,
}

/// A reply in the making; the question is added from the request.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) metadata: Metadata,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
    pub(super) edns: Option<Edns>,
    limit: u16,
}

/// Looks at the header and at the form of the question's name, without decoding anything.
pub(super) fn glance(bytes: &[u8]) -> Glance {
    let Some(head) = bytes.first_chunk::<HEADER>() else { return Glance::Drop };
    // An answer is never answered: two servers would talk for ever.
    if head[2] & 0x80 != 0 {
        return Glance::Drop;
    }
    let id = u16::from_be_bytes([head[0], head[1]]);
    let opcode = OpCode::from_u8((head[2] >> 3) & 15);
    if opcode != OpCode::Query {
        return Glance::Refuse(bare(id, opcode, ResponseCode::NotImp));
    }
    // The decoder makes room for as many questions as are claimed, and replies repeat the question's bytes: a pointer in
    // there, which can only lead into the header, would lead somewhere else.
    if u16::from_be_bytes([head[4], head[5]]) != 1 || !spelled_out(bytes) {
        return Glance::Malformed(malformed(bytes));
    }
    Glance::Question
}

/// The answer to what cannot be decoded.
pub(super) fn malformed(bytes: &[u8]) -> Vec<u8> {
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    bare(id, OpCode::Query, ResponseCode::FormErr)
}

/// Whether the name after the header ends with the root and has no pointer.
fn spelled_out(bytes: &[u8]) -> bool {
    let mut at = HEADER;
    loop {
        match bytes.get(at) {
            Some(0) => return true,
            Some(length @ 1..=63) => at = at.saturating_add(1 + usize::from(*length)),
            _ => return false,
        }
    }
}

impl Served {
    /// What `source` may ask here. IPv4 addresses in IPv6 clothes count as what they are.
    pub(super) fn asker(&self, source: IpAddr) -> Asker {
        let source = source.to_canonical();
        if source.is_loopback() || self.machine.contains(&source) {
            Asker::Machine
        } else if self.workloads.contains(&source) {
            Asker::Workload
        } else if self.members.iter().any(|p| p.contains(&source)) {
            Asker::Member
        } else {
            Asker::Foreign
        }
    }

    /// The zones that belong to who asks; none where it may not ask outside anyway.
    fn owned(&self, asker: Asker) -> Option<&Arc<Owned>> {
        match asker {
            Asker::Machine => Some(&self.all),
            Asker::Workload => Some(&self.own),
            Asker::Member | Asker::Foreign => None,
        }
    }

    /// Decides what becomes of `request`, which [looked like a question](glance).
    pub(super) fn decide(&self, request: &Request) -> Decision {
        let asker = self.asker(request.src().ip());
        if asker == Asker::Foreign {
            return Decision::Foreign;
        }
        let mut reply = Reply::begin(request);
        let owned = self.owned(asker);
        let recursion = owned.is_some() && self.forwards;
        reply.metadata.recursion_available = recursion;
        let [query] = request.queries.queries() else {
            return Decision::Refuse(reply.code(ResponseCode::FormErr));
        };
        if request.version() > 0 {
            return Decision::Refuse(reply.code(ResponseCode::BADVERS));
        }
        let query = query.original();
        let kind = query.query_type();
        let transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
        if transfer || !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
            return Decision::Refuse(reply.code(ResponseCode::Refused));
        }
        let mut name = query.name().clone();
        name.set_fqdn(true);
        if self.index.owns(&name) {
            let answer = self.index.lookup(&name, kind);
            return self.zone(reply, answer, kind, owned.filter(|_| recursion));
        }
        let Some(owned) = owned else {
            return Decision::Refuse(reply.code(ResponseCode::Refused));
        };
        // Another zone of who asks. "No such name" ends the search; a refusal would send the client to its next server, and
        // the name onto the underlay.
        if owned.covers(&name) {
            return Decision::Answer(reply.code(ResponseCode::NXDomain));
        }
        let recurse = recursion && request.metadata.recursion_desired && !is_meta(kind);
        if !recurse {
            return Decision::Refuse(reply.code(ResponseCode::Refused));
        }
        Decision::Forward(Box::new(Forward { name, kind, owned: Arc::clone(owned), reply }))
    }

    /// A reply of the zone; a CNAME that leads outside is followed for those who may recurse, whose zones are `owned`.
    fn zone(&self, mut reply: Reply, answer: Answer, kind: RecordType, owned: Option<&Arc<Owned>>) -> Decision {
        reply.metadata.authoritative = answer.code != ResponseCode::ServFail;
        reply.metadata.response_code = answer.code;
        reply.answers = answer.answers;
        reply.authorities = answer.authorities;
        reply.additionals = answer.additionals;
        let owned = owned.filter(|_| reply.metadata.recursion_desired && !is_meta(kind));
        match (owned, answer.outside) {
            (Some(owned), Some(name)) if !owned.covers(&name) => {
                Decision::Forward(Box::new(Forward { name, kind, owned: Arc::clone(owned), reply }))
            }
            _ => Decision::Answer(reply),
        }
    }
}

impl Forward {
    /// The reply with what was found outside.
    pub(super) fn finish(mut self, code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Reply {
        self.reply.metadata.response_code = code;
        self.reply.answers.extend(answers);
        self.reply.authorities.extend(authorities);
        self.reply
    }

    /// The reply where nothing could be found out.
    pub(super) fn fail(self) -> Reply {
        self.reply.code(ResponseCode::ServFail)
    }
}

impl Reply {
    fn begin(request: &Request) -> Reply {
        let edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            edns
        });
        let limit = match request.protocol() {
            Protocol::Udp => request.edns.as_ref().map_or(PLAIN_UDP, Edns::max_payload).clamp(PLAIN_UDP, MAX_UDP),
            _ => u16::MAX,
        };
        Reply {
            metadata: Metadata::response_from_request(&request.metadata),
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            edns,
            limit,
        }
    }

    /// Nothing but a code.
    fn code(mut self, code: ResponseCode) -> Reply {
        self.metadata.response_code = code;
        self.answers.clear();
        self.authorities.clear();
        self.additionals.clear();
        self
    }

    /// Makes it fit its limit: whole, else without what is only helpful, else empty with TC set.
    pub(super) fn fit(&mut self, queries: &Queries) {
        if self.fits(queries) {
            return;
        }
        self.additionals.clear();
        if self.fits(queries) {
            return;
        }
        self.answers.clear();
        self.authorities.clear();
        self.metadata.truncation = true;
    }

    fn fits(&self, queries: &Queries) -> bool {
        let mut bytes = Vec::with_capacity(usize::from(PLAIN_UDP));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(self.limit);
        let response = MessageResponseBuilder::new(queries, self.edns.as_ref()).build(
            self.metadata,
            &self.answers,
            &self.authorities,
            [],
            &self.additionals,
        );
        // Hickory sets TC by itself where a section did not fit.
        response.destructive_emit(&mut encoder).is_ok_and(|info| info.truncation == self.metadata.truncation)
    }
}

/// Types that are not data.
fn is_meta(kind: RecordType) -> bool {
    matches!(kind, RecordType::ANY | RecordType::OPT | RecordType::TSIG | RecordType::ZERO)
        || (249..=255).contains(&u16::from(kind))
}

/// A header with a code and nothing else.
fn bare(id: u16, opcode: OpCode, code: ResponseCode) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 0x80 | (u8::from(opcode) << 3), code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
pub(super) mod tests {
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
        Served {
            members: zone.prefixes.clone(),
            index: Arc::new(ZoneIndex::new(zone).unwrap()),
            machine: [LOCAL.parse().unwrap()].into(),
            workloads: [WORKLOAD.parse().unwrap()].into(),
            all: Arc::new(owned(&["lab.internal", "prod.internal"], &["10.42.0.0/16", "10.50.0.0/16"])),
            own: Arc::new(owned(&["lab.internal"], &["10.42.0.0/16"])),
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
        see(&message.to_vec().unwrap(), source.parse().unwrap(), Protocol::Udp)
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
        assert!(!message.metadata.recursion_available, "a member may not recurse");
        assert_eq!((message.metadata.id, message.answers.len()), (77, 1));
        assert_eq!(message.queries.first().map(|q| q.name().to_string()), Some("DB.lab.internal.".to_owned()));
    }

    #[test]
    fn only_local_askers_are_forwarded() {
        let outside = question("example.org", RecordType::A);
        assert_eq!(code(&outside, MEMBER), ResponseCode::Refused);
        for local in [LOCAL, WORKLOAD, "127.0.0.9", "::1", "::ffff:10.42.7.1"] {
            assert!(matches!(decide(&outside, local), Seen::Forward(..)), "{local}");
        }
    }

    #[test]
    fn foreign_sources_get_silence() {
        for source in ["192.0.2.1", "10.50.0.1", "::ffff:192.0.2.1", "2001:db8::1"] {
            assert!(matches!(decide(&question("db.lab.internal", RecordType::A), source), Seen::Foreign));
        }
    }

    #[test]
    fn what_another_subnet_is_called_concerns_only_its_own_askers() {
        for name in ["db.prod.internal", "1.0.50.10.in-addr.arpa"] {
            // The machine is in both, and its names do not leave it.
            assert_eq!(code(&question(name, RecordType::A), LOCAL), ResponseCode::NXDomain);
            assert_eq!(code(&question(name, RecordType::A), MEMBER), ResponseCode::Refused);
            // A workload is in one: to it the other's names are names like any outside.
            let Seen::Forward(forward, _) = decide(&question(name, RecordType::A), WORKLOAD) else { panic!("{name}") };
            assert_eq!(forward.owned.prefixes, ["10.42.0.0/16".parse().unwrap()], "its answers may point there too");
        }
        for name in ["nothing.lab.internal", "9.9.42.10.in-addr.arpa"] {
            assert_eq!(code(&question(name, RecordType::A), WORKLOAD), ResponseCode::NXDomain, "its own do not leave");
        }
    }

    #[test]
    fn alias_to_the_outside_is_followed_for_local_askers() {
        let message = question("out.lab.internal", RecordType::A);
        let Seen::Forward(forward, request) = decide(&message, LOCAL) else { panic!("not forwarded") };
        assert_eq!(forward.name, absolute("example.org").unwrap());
        let whole =
            Message::from_vec(&encoded(forward.finish(ResponseCode::NoError, vec![], vec![]), &request)).unwrap();
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
            let Seen::Answer(bytes) = see(bytes, LOCAL.parse().unwrap(), Protocol::Udp) else { panic!("no answer") };
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
            assert_eq!(answer.edns.map(|e| e.max_payload()), Some(MAX_UDP), "{size}");
        }
        let mut edns = Edns::new();
        edns.set_version(1);
        message.set_edns(edns);
        // BADVERS and BADSIG are one number (RFC 6895, section 2.3).
        assert_eq!(u16::from(code(&message, LOCAL)), u16::from(ResponseCode::BADVERS));
        assert!(reply(decide(&question("db.lab.internal", RecordType::A), LOCAL)).edns.is_none());
    }

    #[test]
    fn transfers_updates_and_unknown_opcodes_are_turned_away() {
        for kind in [RecordType::AXFR, RecordType::IXFR] {
            assert_eq!(code(&question("lab.internal", kind), LOCAL), ResponseCode::Refused);
        }
        for opcode in [1u8, 2, 3, 4, 5, 6, 15] {
            let mut bytes = question("lab.internal", RecordType::SOA).to_vec().unwrap();
            bytes[2] = (bytes[2] & 0x87) | (opcode << 3);
            let answer = reply(see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp));
            assert_eq!(answer.metadata.response_code, ResponseCode::NotImp, "{opcode}");
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
            assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{count}");
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
        assert!(matches!(see(&bytes[..11], local, Protocol::Udp), Seen::Drop));
    }

    #[test]
    fn a_question_with_a_pointer_is_not_repeated() {
        // The name ends with a pointer at the ID, which reads as the root: repeated in a reply, it would be another name.
        let bytes = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0xc0, 0, 0, 1, 0, 1];
        let Seen::Malformed(answer) = see(&bytes, LOCAL.parse().unwrap(), Protocol::Udp) else { panic!("taken") };
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
                    assert!(!served.all.covers(&forward.name), "left: {}", forward.name);
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
}
