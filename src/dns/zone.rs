//! Answers from one subnet's zone: forward names, the reverse of its prefixes, and what the RFCs say where there is none.
//!
//! Pure: a [`ZoneIndex`] is built when a zone changes and only read afterwards. It knows nothing of who asks, of sockets
//! or of other zones.
//!
//! Rules: RFC 1034 section 4.3.2 (CNAME), RFC 2308 (negative answers), RFC 8020 (a name with children exists), RFC 2782
//! (SRV with the addresses of its targets), RFC 8482 (ANY answers one record set).

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};

use super::reverse::{owned_reverse, reverse_apex, reverse_net};
use crate::model::zone::{Entry, MAX_TTL, RecordData, Zone};

/// Seconds a resolver may keep "no such name": names of new workloads must appear within seconds.
pub const NEGATIVE_TTL: u32 = 5;

/// CNAMEs followed inside the zone before the chain is called a loop.
const MAX_CHAIN: usize = 8;

/// What the zone says about one question.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// NOERROR, NXDOMAIN, or SERVFAIL for a CNAME loop.
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub(super) authorities: Vec<Record>,
    /// Addresses of SRV targets.
    pub(super) additionals: Vec<Record>,
    /// Where a CNAME leads out of the zone: a local asker gets that name resolved too.
    pub(super) outside: Option<DnsName>,
}

/// One zone, made ready for lookups.
#[derive(Debug)]
pub(super) struct ZoneIndex {
    zone: Arc<Zone>,
    origin: DnsName,
}

impl ZoneIndex {
    /// Indexes `zone`; `None` where its origin is no DNS name.
    pub(super) fn new(zone: Arc<Zone>) -> Option<ZoneIndex> {
        let origin = absolute(&zone.origin)?;
        Some(ZoneIndex { zone, origin })
    }

    pub(super) fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }

    /// The name of the zone's apex.
    pub(super) fn origin(&self) -> &DnsName {
        &self.origin
    }

    /// Whether this zone has the last word about `name`.
    pub(super) fn owns(&self, name: &DnsName) -> bool {
        self.origin.zone_of(name) || owned_reverse(&self.zone.prefixes, name)
    }

    /// Whether the name is in this zone itself, and not only below one that stands for all.
    pub(super) fn holds(&self, name: &DnsName) -> bool {
        self.origin.zone_of(name)
            && relative(name, &self.origin).is_some_and(|key| !self.zone.entries(&key).is_empty())
    }

    /// Answers a question this zone [owns](Self::owns).
    pub(super) fn lookup(&self, name: &DnsName, kind: RecordType) -> Answer {
        if self.origin.zone_of(name) {
            self.forward(name, kind)
        } else {
            self.reverse(name, kind)
        }
    }

    /// Answers for a name at or below the origin.
    fn forward(&self, name: &DnsName, kind: RecordType) -> Answer {
        let mut answer = Answer::empty();
        let mut at = name.clone();
        let mut seen = HashSet::new();
        loop {
            let Some(key) = relative(&at, &self.origin) else {
                return self.negative(answer, &self.origin, ResponseCode::NXDomain);
            };
            let entries = self.entries(&key);
            let found = self.records(&at, entries, kind);
            if !found.is_empty() {
                answer.additionals = self.additional(&found);
                answer.answers.extend(found);
                return answer;
            }
            if key.is_empty() && kind == RecordType::SOA {
                answer.answers.push(self.soa(&self.origin));
                return answer;
            }
            let alias = entries.iter().find_map(|e| match &e.data {
                RecordData::Cname(target) => Some((e.ttl, self.target(target)?)),
                _ => None,
            });
            let Some((ttl, target)) = alias else {
                let exists = key.is_empty() || !entries.is_empty() || self.zone.is_parent(&key);
                let code = if exists {
                    ResponseCode::NoError
                } else {
                    ResponseCode::NXDomain
                };
                return self.negative(answer, &self.origin, code);
            };
            seen.insert(key);
            answer
                .answers
                .push(record(&at, ttl, RData::CNAME(CNAME(target.clone()))));
            if !self.origin.zone_of(&target) {
                answer.outside = Some(target);
                return answer;
            }
            let looped = relative(&target, &self.origin).is_some_and(|key| seen.contains(&key));
            if looped || seen.len() >= MAX_CHAIN {
                return Answer::loops();
            }
            at = target;
        }
    }

    /// The answers of a name, or of the `*` that stands for it: of the nearest name above that exists (RFC 4592, 3.3.1).
    fn entries(&self, key: &str) -> &[Entry] {
        let exists = |key: &str| !self.zone.entries(key).is_empty() || self.zone.is_parent(key);
        if key.is_empty() || exists(key) {
            return self.zone.entries(key);
        }
        let mut rest = key;
        while let Some((_, above)) = rest.split_once('.') {
            if exists(above) {
                return self.zone.entries(&format!("*.{above}"));
            }
            rest = above;
        }
        &[]
    }

    /// Answers for a name in the reverse trees of the zone's prefixes.
    fn reverse(&self, name: &DnsName, kind: RecordType) -> Answer {
        let answer = Answer::empty();
        let Some(reverse) = reverse_net(name) else {
            return self.negative(answer, &self.origin, ResponseCode::NXDomain);
        };
        let apex = self
            .zone
            .prefixes
            .iter()
            .find(|p| p.contains(&reverse.net))
            .map(|p| reverse_apex(p, reverse.net));
        let (apex, apex_net) = match apex {
            Some((Some(apex), net)) => (apex, net),
            _ => return self.negative(answer, &self.origin, ResponseCode::NXDomain),
        };
        if reverse.rest > 0 {
            return self.negative(answer, &apex, ResponseCode::NXDomain);
        }
        let is_apex = reverse.net == apex_net;
        if is_apex && matches!(kind, RecordType::SOA) {
            return Answer {
                answers: vec![self.soa(&apex)],
                ..answer
            };
        }
        let host = reverse.net.prefix_len() == reverse.net.max_prefix_len();
        let pointer = self.zone.pointer(reverse.net.addr()).filter(|_| host);
        if let (Some(target), true) = (pointer, matches!(kind, RecordType::PTR | RecordType::ANY))
            && let Some(target) = absolute(target)
        {
            let ttl = self.pointer_ttl(&target);
            return Answer {
                answers: vec![record(name, ttl, RData::PTR(PTR(target)))],
                ..answer
            };
        }
        let exists = is_apex
            || self
                .zone
                .has_pointer(reverse.net.network(), reverse.net.broadcast());
        self.negative(
            answer,
            &apex,
            if exists {
                ResponseCode::NoError
            } else {
                ResponseCode::NXDomain
            },
        )
    }

    /// A PTR lives as long as the name it gives.
    fn pointer_ttl(&self, target: &DnsName) -> u32 {
        relative(target, &self.origin)
            .and_then(|key| self.zone.entries(&key).iter().map(|e| e.ttl).min())
            .unwrap_or(60)
    }

    /// The entries of one name that answer `kind`; one record set for ANY.
    fn records(&self, name: &DnsName, entries: &[Entry], kind: RecordType) -> Vec<Record> {
        let kind = match (kind, entries.first()) {
            (RecordType::ANY, Some(first)) => record_type(&first.data),
            _ => kind,
        };
        entries
            .iter()
            .filter(|e| record_type(&e.data) == kind)
            .filter_map(|e| Some(record(name, e.ttl, self.rdata(&e.data)?)))
            .collect()
    }

    /// Addresses in this zone of the targets of SRV records.
    fn additional(&self, found: &[Record]) -> Vec<Record> {
        let mut targets: Vec<&DnsName> = Vec::new();
        for record in found {
            if let RData::SRV(srv) = &record.data
                && !targets.contains(&&srv.target)
            {
                targets.push(&srv.target);
            }
        }
        let mut additionals = Vec::new();
        for target in targets {
            let key = relative(target, &self.origin);
            let entries = key.as_deref().map(|key| self.entries(key));
            let entries = entries.unwrap_or_default();
            additionals.extend(self.records(target, entries, RecordType::A));
            additionals.extend(self.records(target, entries, RecordType::AAAA));
        }
        additionals
    }

    /// A full name, or a label of this zone.
    fn target(&self, text: &str) -> Option<DnsName> {
        if text.contains('.') {
            return absolute(text);
        }
        absolute(&format!("{text}.{}", self.zone.origin))
    }

    fn rdata(&self, data: &RecordData) -> Option<RData> {
        Some(match data {
            RecordData::Address(IpAddr::V4(a)) => RData::A(A(*a)),
            RecordData::Address(IpAddr::V6(a)) => RData::AAAA(AAAA(*a)),
            RecordData::Cname(target) => RData::CNAME(CNAME(self.target(target)?)),
            RecordData::Txt(text) => RData::TXT(TXT::from_bytes(strings(text))),
            RecordData::Srv {
                priority,
                weight,
                port,
                target,
            } => RData::SRV(SRV::new(*priority, *weight, *port, self.target(target)?)),
        })
    }

    fn soa(&self, apex: &DnsName) -> Record {
        let contact = self
            .origin
            .prepend_label("hostmaster")
            .unwrap_or_else(|_| self.origin.clone());
        // Nobody transfers this zone: refresh, retry and expire only have to be sane.
        let soa = SOA::new(
            self.origin.clone(),
            contact,
            self.zone.serial,
            3600,
            600,
            86_400,
            NEGATIVE_TTL,
        );
        record(apex, NEGATIVE_TTL, RData::SOA(soa))
    }

    /// NXDOMAIN, or NOERROR without an answer of that type: with the SOA, so that it may be kept for a while.
    fn negative(&self, mut answer: Answer, apex: &DnsName, code: ResponseCode) -> Answer {
        answer.code = code;
        answer.authorities.push(self.soa(apex));
        answer
    }
}

impl Answer {
    /// Whether the zone has the name, if only as an alias that leads nowhere.
    pub(super) fn exists(&self) -> bool {
        self.code != ResponseCode::NXDomain || !self.answers.is_empty()
    }

    /// Makes the answer to a chain of aliases without an end.
    pub(super) fn loops() -> Answer {
        Answer {
            code: ResponseCode::ServFail,
            ..Answer::empty()
        }
    }

    fn empty() -> Answer {
        Answer {
            code: ResponseCode::NoError,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            outside: None,
        }
    }
}

/// A name given as text, with its root dot.
pub(super) fn absolute(text: &str) -> Option<DnsName> {
    let mut name = DnsName::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn record(name: &DnsName, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name.clone(), ttl.min(MAX_TTL), data)
}

fn record_type(data: &RecordData) -> RecordType {
    match data {
        RecordData::Address(IpAddr::V4(_)) => RecordType::A,
        RecordData::Address(IpAddr::V6(_)) => RecordType::AAAA,
        RecordData::Cname(_) => RecordType::CNAME,
        RecordData::Txt(_) => RecordType::TXT,
        RecordData::Srv { .. } => RecordType::SRV,
    }
}

/// A text as character strings of at most 255 bytes (RFC 1035, section 3.3).
fn strings(text: &str) -> Vec<&[u8]> {
    if text.is_empty() {
        vec![&[]]
    } else {
        text.as_bytes().chunks(255).collect()
    }
}

/// The labels of `name` above `origin` as the zone's key; `None` where a label cannot be in any zone of ours.
fn relative(name: &DnsName, origin: &DnsName) -> Option<String> {
    // Counted here: hickory's own count leaves out a leading "*".
    let own = name.iter().count().checked_sub(origin.iter().count())?;
    let mut key = String::new();
    for label in name.iter().take(own) {
        // A dot inside a label would make two names one.
        if label.iter().any(|b| !b.is_ascii_graphic() || *b == b'.') {
            return None;
        }
        if !key.is_empty() {
            key.push('.');
        }
        key.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(key)
}

#[cfg(test)]
pub(super) mod tests;
