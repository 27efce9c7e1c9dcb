//! One request in, one decision out: the way every socket and every test goes.
//!
//! Pure: the request, who asks and the zones are given; what is decided is a reply, silence, or a question for the host's
//! resolvers. [`glance`] looks at the bare header first, so that nothing is decoded or allocated for what is no question.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name as DnsName, Record, RecordType};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponseBuilder, Queries};
use ipnet::IpNet;

use super::reverse::owned_reverse;
use super::zone::{Answer, ZoneIndex};

/// Largest UDP answer in bytes: passes every usual path unfragmented (DNS flag day 2020).
pub const MAX_UDP: u16 = 1232;

/// UDP answer without EDNS in bytes (RFC 1035, section 4.2.1).
const PLAIN_UDP: u16 = 512;

/// Bytes of the message header.
const HEADER: usize = 12;

/// Times an alias may lead from one zone of ours into another before the chain is called a loop.
const MAX_CROSSED: usize = 8;

/// What one subnet's sockets know: made anew with each view, read by every question.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// The subnet's own names.
    pub(super) index: Arc<ZoneIndex>,
    /// The subnet's prefixes: who is in them may ask for those names.
    pub(super) members: Vec<IpNet>,
    /// This node's addresses: who is in every subnet that is up here.
    pub(super) machine: HashSet<IpAddr>,
    /// What the machine is told: every zone that is up here.
    pub(super) all: Arc<Reach>,
    /// Every address of a workload here that is in this subnet, with what it is told: the zones of
    /// the subnets it is in. The names of another subnet are only for those who joined it.
    pub(super) workloads: HashMap<IpAddr, Arc<Reach>>,
    /// Whether there are resolvers to forward to.
    pub(super) forwards: bool,
}

/// What an asker is told, at whichever resolver of its subnets it asks.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// The zones of its subnets.
    pub(super) zones: Vec<Arc<ZoneIndex>>,
    /// What of its questions never goes outside.
    pub(super) owned: Owned,
}

/// Zones whose names an asker must not have asked outside.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Owned {
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

/// Who asks, which decides what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// This machine itself: it is told the names of all its subnets, and whatever is outside.
    Machine,
    /// A workload of the subnet here: it is told the names of all subnets it is in, and whatever is
    /// outside.
    Workload,
    /// A member elsewhere in the subnet: it is told the subnet's names only.
    Member,
    /// Anybody else: they get no answer.
    Foreign,
}

/// What the header of a message tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// The message is one question, worth decoding.
    Question,
    /// The message is of a kind that is not taken; this is the answer to it.
    Refuse(Vec<u8>),
    /// The message is no question; this is the answer to it.
    Malformed(Vec<u8>),
    /// The message is no question, and not worth an answer.
    Drop,
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Decision {
    /// The zone answers the request with this reply.
    Answer(Reply),
    /// The request is refused with this reply.
    Refuse(Reply),
    /// The request is from one who may not ask and gets no answer, so that nothing can be
    /// reflected.
    Foreign,
    /// The question has to be resolved outside.
    Forward(Box<Forward>),
}

/// A question on its way to the host's resolvers, with the reply begun.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) name: DnsName,
    pub(super) kind: RecordType,
    /// The address of who asks; by it the servers are found that were asked before us.
    pub(super) asker: IpAddr,
    /// What the asker is told; no answer from outside may point into it.
    pub(super) reach: Arc<Reach>,
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
    let Some(head) = bytes.first_chunk::<HEADER>() else {
        return Glance::Drop;
    };
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
    /// What `source` may ask here. An IPv4 address written as IPv6 counts as IPv4.
    pub(super) fn asker(&self, source: IpAddr) -> Asker {
        let source = source.to_canonical();
        if source.is_loopback() || self.machine.contains(&source) {
            Asker::Machine
        } else if self.workloads.contains_key(&source) {
            Asker::Workload
        } else if self.members.iter().any(|p| p.contains(&source)) {
            Asker::Member
        } else {
            Asker::Foreign
        }
    }

    /// What who asks is told beyond this subnet's zone; none where it may not ask for more.
    fn reach(&self, source: IpAddr) -> Option<&Arc<Reach>> {
        match self.asker(source) {
            Asker::Machine => Some(&self.all),
            Asker::Workload => self.workloads.get(&source.to_canonical()),
            Asker::Member | Asker::Foreign => None,
        }
    }

    /// What the zones of who asks say about a name; none where it is in none of them. This subnet's zone is heard first, then
    /// the one nearest to the name: a zone may lie in another, and two subnets may have the same.
    fn look(&self, reach: Option<&Reach>, name: &DnsName, kind: RecordType) -> Option<Answer> {
        let own = std::iter::once(&self.index);
        let mut others: Vec<&Arc<ZoneIndex>> = reach
            .into_iter()
            .flat_map(|r| &r.zones)
            .filter(|zone| !Arc::ptr_eq(zone, &self.index))
            .collect();
        others.sort_by_key(|zone| std::cmp::Reverse(zone.origin().num_labels()));
        let mut none = None;
        for zone in own.chain(others).filter(|zone| zone.owns(name)) {
            let answer = zone.lookup(name, kind);
            if answer.exists() {
                return Some(answer);
            }
            none.get_or_insert(answer);
        }
        none
    }

    /// Does the same as [`look`](Self::look), and follows aliases that lead from one zone of who
    /// asks into another.
    fn resolve(&self, reach: Option<&Reach>, name: &DnsName, kind: RecordType) -> Option<Answer> {
        let mut answer = self.look(reach, name, kind)?;
        for _ in 0..MAX_CROSSED {
            let Some(target) = answer.outside.as_ref().filter(|_| reach.is_some()) else {
                return Some(answer);
            };
            let Some(next) = self.look(reach, target, kind) else {
                return Some(answer);
            };
            answer.answers.extend(next.answers);
            answer = Answer {
                answers: answer.answers,
                ..next
            };
        }
        let looped = answer
            .outside
            .as_ref()
            .is_some_and(|target| self.look(reach, target, kind).is_some());
        Some(if looped { Answer::loops() } else { answer })
    }

    /// What a workload means by a name without a dot: a name of this subnet, else of another that it is in. Its own resolver
    /// may have been told no search domain. None where no zone has it: then it is a name like any other.
    pub(super) fn bare(&self, reach: &Reach, name: &DnsName, kind: RecordType) -> Option<Answer> {
        let own = std::iter::once(&self.index).chain(&reach.zones);
        for zone in own {
            let Ok(full) = name.clone().append_domain(zone.origin()) else {
                continue;
            };
            let found = self.resolve(Some(reach), &full, kind);
            if let Some(mut answer) = found.filter(Answer::exists) {
                for record in answer.answers.iter_mut().filter(|r| r.name == full) {
                    record.name = name.clone();
                }
                return Some(answer);
            }
        }
        None
    }

    /// Decides what becomes of `request`, which [looked like a question](glance).
    pub(super) fn decide(&self, request: &Request) -> Decision {
        let asker = request.src().ip().to_canonical();
        if self.asker(asker) == Asker::Foreign {
            return Decision::Foreign;
        }
        let mut reply = Reply::begin(request);
        let reach = self.reach(asker);
        let recursion = reach.is_some() && self.forwards;
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
        if let Some(answer) = self.resolve(reach.map(AsRef::as_ref), &name, kind) {
            return zone(reply, answer, kind, asker, reach.filter(|_| recursion));
        }
        let Some(reach) = reach else {
            return Decision::Refuse(reply.code(ResponseCode::Refused));
        };
        // A zone of who asks that has no answers. "No such name" ends the search; a refusal would send the client to its next
        // server, and the name onto the underlay.
        let is_bare = name.num_labels() == 1 && self.asker(asker) == Asker::Workload;
        if let Some(answer) = is_bare.then(|| self.bare(reach, &name, kind)).flatten() {
            return zone(
                reply,
                answer,
                kind,
                asker,
                Some(reach).filter(|_| recursion),
            );
        }
        if reach.owned.covers(&name) {
            return Decision::Answer(reply.code(ResponseCode::NXDomain));
        }
        let recurse = recursion && request.metadata.recursion_desired && !is_meta(kind);
        if !recurse {
            return Decision::Refuse(reply.code(ResponseCode::Refused));
        }
        Decision::Forward(Box::new(Forward {
            name,
            kind,
            asker,
            reach: Arc::clone(reach),
            reply,
        }))
    }
}

/// A reply of our zones; a CNAME that leads outside is followed for those who may recurse, who are told what is in `reach`.
fn zone(
    mut reply: Reply,
    answer: Answer,
    kind: RecordType,
    asker: IpAddr,
    reach: Option<&Arc<Reach>>,
) -> Decision {
    reply.metadata.authoritative = answer.code != ResponseCode::ServFail;
    reply.metadata.response_code = answer.code;
    reply.answers = answer.answers;
    reply.authorities = answer.authorities;
    reply.additionals = answer.additionals;
    let reach = reach.filter(|_| reply.metadata.recursion_desired && !is_meta(kind));
    match (reach, answer.outside) {
        (Some(reach), Some(name)) if !reach.owned.covers(&name) => {
            Decision::Forward(Box::new(Forward {
                name,
                kind,
                asker,
                reach: Arc::clone(reach),
                reply,
            }))
        }
        _ => Decision::Answer(reply),
    }
}

impl Forward {
    /// The reply with what was found outside.
    pub(super) fn finish(
        mut self,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
    ) -> Reply {
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
            Protocol::Udp => request
                .edns
                .as_ref()
                .map_or(PLAIN_UDP, Edns::max_payload)
                .clamp(PLAIN_UDP, MAX_UDP),
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

    /// The reply to a name that this machine tries its own resolver with.
    pub(super) fn of_trial(request: &Request, answers: Vec<Record>) -> Reply {
        let mut reply = Reply::begin(request);
        reply.metadata.authoritative = true;
        reply.answers = answers;
        reply
    }

    /// Makes it a reply that holds nothing but a code.
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
        response
            .destructive_emit(&mut encoder)
            .is_ok_and(|info| info.truncation == self.metadata.truncation)
    }
}

/// Types that are not data.
fn is_meta(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::ANY | RecordType::OPT | RecordType::TSIG | RecordType::ZERO
    ) || (249..=255).contains(&u16::from(kind))
}

/// A header with a code and nothing else.
fn bare(id: u16, opcode: OpCode, code: ResponseCode) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![
        high,
        low,
        0x80 | (u8::from(opcode) << 3),
        code.low(),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
}

#[cfg(test)]
pub(super) mod tests;
