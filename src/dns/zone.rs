//! Answers from one subnet's zone: forward names, the reverse of its prefixes, and what the RFCs say where there is none.
//!
//! Pure: a [`ZoneIndex`] is built when a zone changes and only read afterwards. It knows nothing of who asks, of sockets
//! or of other zones.
//!
//! Rules: RFC 1034 section 4.3.2 (CNAME), RFC 2308 (negative answers), RFC 8020 (a name with children exists), RFC 2782
//! (SRV with the addresses of its targets), RFC 8482 (ANY answers one record set).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
    /// Answer section.
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

/// How a name relates to a zone's reverse trees.
struct Reverse {
    /// The network the labels spell.
    net: IpNet,
    /// Labels below it that spell nothing.
    rest: usize,
}

impl ZoneIndex {
    /// Indexes `zone`; `None` where its origin is no DNS name.
    pub(super) fn new(zone: Arc<Zone>) -> Option<ZoneIndex> {
        let origin = absolute(&zone.origin)?;
        Some(ZoneIndex { zone, origin })
    }

    /// The zone it was made of.
    pub(super) fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }

    /// The zone's apex.
    pub(super) fn origin(&self) -> &DnsName {
        &self.origin
    }

    /// Whether this zone has the last word about `name`.
    pub(super) fn owns(&self, name: &DnsName) -> bool {
        self.origin.zone_of(name) || owned_reverse(&self.zone.prefixes, name)
    }

    /// Answers a question this zone [owns](Self::owns).
    pub(super) fn lookup(&self, name: &DnsName, kind: RecordType) -> Answer {
        if self.origin.zone_of(name) {
            self.forward(name, kind)
        } else {
            self.reverse(name, kind)
        }
    }

    /// Names below the origin.
    fn forward(&self, name: &DnsName, kind: RecordType) -> Answer {
        let mut answer = Answer::empty();
        let mut at = name.clone();
        let mut seen = HashSet::new();
        loop {
            let Some(key) = relative(&at, &self.origin) else {
                return self.negative(answer, &self.origin, ResponseCode::NXDomain);
            };
            let entries = self.zone.entries(&key);
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

    /// The reverse trees of the zone's prefixes.
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
            let entries = key.map(|key| self.zone.entries(&key)).unwrap_or_default();
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

    /// A chain of aliases without an end.
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

/// Whether `name` lies in the reverse tree of one of `prefixes`.
pub(super) fn owned_reverse(prefixes: &[IpNet], name: &DnsName) -> bool {
    reverse_net(name).is_some_and(|r| prefixes.iter().any(|p| p.contains(&r.net)))
}

/// Reads `4.3.2.1.in-addr.arpa` and its IPv6 sibling from the root downwards, as far as the labels make sense.
fn reverse_net(name: &DnsName) -> Option<Reverse> {
    let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_ascii_lowercase).collect();
    let (arpa, labels) = labels.split_last()?;
    let (tree, labels) = labels.split_last()?;
    if arpa != b"arpa" {
        return None;
    }
    let (net, used) = match tree.as_slice() {
        b"in-addr" => {
            let octets: Vec<u8> = labels
                .iter()
                .rev()
                .take(4)
                .map_while(|l| octet(l))
                .collect();
            let mut bytes = [0u8; 4];
            bytes
                .iter_mut()
                .zip(&octets)
                .for_each(|(to, from)| *to = *from);
            let bits = u8::try_from(octets.len().saturating_mul(8)).ok()?;
            (
                IpNet::V4(Ipv4Net::new(Ipv4Addr::from(bytes), bits).ok()?),
                octets.len(),
            )
        }
        b"ip6" => {
            let nibbles: Vec<u8> = labels
                .iter()
                .rev()
                .take(32)
                .map_while(|l| nibble(l))
                .collect();
            let bits = nibbles
                .iter()
                .fold(0u128, |all, n| (all << 4) | u128::from(*n));
            let used = u32::try_from(nibbles.len()).ok()?.saturating_mul(4);
            let bits = bits.checked_shl(128u32.saturating_sub(used)).unwrap_or(0);
            (
                IpNet::V6(Ipv6Net::new(Ipv6Addr::from(bits), u8::try_from(used).ok()?).ok()?),
                nibbles.len(),
            )
        }
        _ => return None,
    };
    Some(Reverse {
        net,
        rest: labels.len().saturating_sub(used),
    })
}

/// One label of `in-addr.arpa`: decimal without leading zeros.
fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain =
        text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// One label of `ip6.arpa`: a hexadecimal digit.
fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => char::from(*digit)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok()),
        _ => None,
    }
}

/// The reverse zone of `prefix` that holds `net`: its length rounded up to whole labels.
fn reverse_apex(prefix: &IpNet, net: IpNet) -> (Option<DnsName>, IpNet) {
    let step = if prefix.addr().is_ipv4() { 8 } else { 4 };
    let length = prefix
        .prefix_len()
        .div_ceil(step)
        .saturating_mul(step)
        .min(prefix.max_prefix_len());
    let apex = IpNet::new(net.addr(), length).map_or(*prefix, |n| n.trunc());
    (reverse_name(apex, length), apex)
}

/// The name of the reverse tree of `net`, `length` bits deep.
fn reverse_name(net: IpNet, length: u8) -> Option<DnsName> {
    let mut text = String::new();
    match net.addr() {
        IpAddr::V4(a) => {
            let labels = usize::from(length / 8);
            a.octets()
                .iter()
                .take(labels)
                .rev()
                .for_each(|o| text.push_str(&format!("{o}.")));
            text.push_str("in-addr.arpa.");
        }
        IpAddr::V6(a) => {
            let labels = usize::from(length / 4);
            let nibbles: Vec<u8> = a
                .octets()
                .iter()
                .flat_map(|o| [o >> 4, o & 15])
                .take(labels)
                .collect();
            nibbles
                .iter()
                .rev()
                .for_each(|n| text.push_str(&format!("{n:x}.")));
            text.push_str("ip6.arpa.");
        }
    }
    absolute(&text)
}

/// The name PTR is asked for.
#[cfg(test)]
pub(super) fn pointer_name(address: IpAddr) -> DnsName {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    reverse_name(IpNet::from(address), bits).unwrap()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(data: RecordData) -> Entry {
        Entry { ttl: 60, data }
    }

    /// `lab.internal` with a bit of everything.
    pub(in crate::dns) fn lab() -> Arc<Zone> {
        let mut zone = Zone::empty(&"lab".parse().unwrap());
        zone.serial = 7;
        zone.prefixes = vec![
            "10.42.0.0/16".parse().unwrap(),
            "fd00:42::/48".parse().unwrap(),
        ];
        let db: IpAddr = "10.42.7.20".parse().unwrap();
        let web4: IpAddr = "10.42.7.21".parse().unwrap();
        let web6: IpAddr = "fd00:42::21".parse().unwrap();
        let mut add = |name: &str, data: RecordData| zone.add(name, entry(data));
        add("db", RecordData::Address(db));
        add("web", RecordData::Address(web4));
        add("web", RecordData::Address(web6));
        add("www", RecordData::Cname("web.lab.internal".to_owned()));
        add("short", RecordData::Cname("web".to_owned()));
        add("out", RecordData::Cname("example.org".to_owned()));
        add("dead", RecordData::Cname("gone.lab.internal".to_owned()));
        add("loop1", RecordData::Cname("loop2.lab.internal".to_owned()));
        add("loop2", RecordData::Cname("loop1.lab.internal".to_owned()));
        add("note", RecordData::Txt("hello".to_owned()));
        add(
            "_http._tcp",
            RecordData::Srv {
                priority: 1,
                weight: 2,
                port: 80,
                target: "web".to_owned(),
            },
        );
        add("a.deep.tree", RecordData::Address(db));
        for i in 0..200u8 {
            add(
                "big",
                RecordData::Address(IpAddr::V4(Ipv4Addr::new(10, 42, 9, i))),
            );
        }
        zone.point(db, "db.lab.internal".into());
        zone.point(web6, "web.lab.internal".into());
        Arc::new(zone)
    }

    fn index() -> ZoneIndex {
        ZoneIndex::new(lab()).unwrap()
    }

    fn ask(name: &str, kind: RecordType) -> Answer {
        let name = absolute(name).unwrap();
        assert!(index().owns(&name), "{name}");
        index().lookup(&name, kind)
    }

    fn values(answer: &Answer) -> Vec<String> {
        answer
            .answers
            .iter()
            .map(|r| format!("{} {} {}", r.name, r.record_type(), r.data))
            .collect()
    }

    #[test]
    fn names_are_found_in_any_case() {
        for name in ["db.lab.internal", "DB.Lab.INTERNAL"] {
            let answer = ask(name, RecordType::A);
            assert_eq!(answer.code, ResponseCode::NoError);
            assert_eq!(
                answer.answers.first().map(|r| r.data.clone()),
                Some(RData::A(A::new(10, 42, 7, 20)))
            );
        }
    }

    #[test]
    fn other_type_of_a_name_is_empty_noerror_with_soa() {
        let answer = ask("db.lab.internal", RecordType::AAAA);
        assert_eq!(
            (answer.code, answer.answers.len()),
            (ResponseCode::NoError, 0)
        );
        let soa = answer.authorities.first().unwrap();
        assert!(matches!(&soa.data, RData::SOA(s) if s.serial == 7 && s.minimum <= 10));
        assert!(soa.ttl <= 10);
    }

    #[test]
    fn unknown_name_is_nxdomain_with_soa() {
        let answer = ask("nothing.lab.internal", RecordType::A);
        assert_eq!(
            (answer.code, answer.authorities.len()),
            (ResponseCode::NXDomain, 1)
        );
        assert_eq!(
            ask("*.lab.internal", RecordType::A).code,
            ResponseCode::NXDomain
        );
        assert_eq!(
            ask("x.db.lab.internal", RecordType::A).code,
            ResponseCode::NXDomain
        );
    }

    #[test]
    fn a_name_with_names_below_it_exists() {
        for name in [
            "deep.tree.lab.internal",
            "tree.lab.internal",
            "_tcp.lab.internal",
        ] {
            let answer = ask(name, RecordType::A);
            assert_eq!(
                (answer.code, answer.answers.len()),
                (ResponseCode::NoError, 0),
                "{name}"
            );
        }
    }

    #[test]
    fn apex_has_a_soa() {
        let answer = ask("lab.internal", RecordType::SOA);
        assert_eq!(
            (answer.code, answer.answers.len()),
            (ResponseCode::NoError, 1)
        );
        assert_eq!(
            ask("lab.internal", RecordType::A).code,
            ResponseCode::NoError
        );
    }

    #[test]
    fn aliases_are_followed_inside_the_zone() {
        let answer = ask("www.lab.internal", RecordType::A);
        assert_eq!(
            values(&answer),
            [
                "www.lab.internal. CNAME web.lab.internal.",
                "web.lab.internal. A 10.42.7.21"
            ]
        );
        assert_eq!(ask("short.lab.internal", RecordType::AAAA).answers.len(), 2);
        assert_eq!(ask("www.lab.internal", RecordType::CNAME).answers.len(), 1);
    }

    #[test]
    fn alias_to_nothing_is_nxdomain_with_the_alias() {
        let answer = ask("dead.lab.internal", RecordType::A);
        assert_eq!(
            (answer.code, answer.answers.len()),
            (ResponseCode::NXDomain, 1)
        );
    }

    #[test]
    fn alias_loop_ends_in_servfail() {
        assert_eq!(
            ask("loop1.lab.internal", RecordType::A).code,
            ResponseCode::ServFail
        );
    }

    #[test]
    fn alias_out_of_the_zone_is_named() {
        let answer = ask("out.lab.internal", RecordType::A);
        assert_eq!(answer.outside, absolute("example.org"));
        assert_eq!(answer.answers.len(), 1);
    }

    #[test]
    fn srv_brings_the_addresses_of_its_target() {
        let answer = ask("_HTTP._tcp.lab.internal", RecordType::SRV);
        assert_eq!(
            values(&answer),
            ["_HTTP._tcp.lab.internal. SRV 1 2 80 web.lab.internal."]
        );
        assert_eq!(answer.additionals.len(), 2);
    }

    #[test]
    fn any_answers_one_record_set() {
        let answer = ask("web.lab.internal", RecordType::ANY);
        assert_eq!(values(&answer), ["web.lab.internal. A 10.42.7.21"]);
    }

    #[test]
    fn addresses_have_pointers() {
        for (address, name) in [
            ("10.42.7.20", "db.lab.internal."),
            ("fd00:42::21", "web.lab.internal."),
        ] {
            let question = pointer_name(address.parse().unwrap());
            let answer = index().lookup(&question, RecordType::PTR);
            assert_eq!(
                answer.answers.first().map(|r| r.data.to_string()),
                Some(name.to_owned())
            );
            let other = index().lookup(&question, RecordType::A);
            assert_eq!(
                (other.code, other.answers.len()),
                (ResponseCode::NoError, 0)
            );
        }
    }

    #[test]
    fn reverse_zone_says_nxdomain_and_knows_its_parents() {
        let answer = ask("99.9.42.10.in-addr.arpa", RecordType::PTR);
        assert_eq!(answer.code, ResponseCode::NXDomain);
        assert_eq!(
            answer.authorities.first().map(|r| r.name.to_string()),
            Some("42.10.in-addr.arpa.".to_owned())
        );
        assert_eq!(
            ask("7.42.10.in-addr.arpa", RecordType::PTR).code,
            ResponseCode::NoError
        );
        assert_eq!(
            ask("8.42.10.in-addr.arpa", RecordType::PTR).code,
            ResponseCode::NXDomain
        );
        assert_eq!(ask("42.10.in-addr.arpa", RecordType::SOA).answers.len(), 1);
        assert_eq!(
            ask("x.20.7.42.10.in-addr.arpa", RecordType::PTR).code,
            ResponseCode::NXDomain
        );
        assert_eq!(
            ask("300.7.42.10.in-addr.arpa", RecordType::PTR).code,
            ResponseCode::NXDomain
        );
    }

    #[test]
    fn reverse_zones_end_at_the_prefix() {
        for name in [
            "10.in-addr.arpa",
            "43.10.in-addr.arpa",
            "1.1.43.10.in-addr.arpa",
            "ip6.arpa",
            "arpa",
            ".",
        ] {
            assert!(!index().owns(&absolute(name).unwrap()), "{name}");
        }
    }

    #[test]
    fn prefix_between_labels_has_several_zones() {
        let mut zone = Zone::empty(&"lab".parse().unwrap());
        zone.prefixes = vec!["10.42.16.0/20".parse().unwrap()];
        let index = ZoneIndex::new(Arc::new(zone)).unwrap();
        let inside = absolute("1.17.42.10.in-addr.arpa").unwrap();
        assert!(index.owns(&inside));
        let soa = index.lookup(&inside, RecordType::PTR).authorities;
        assert_eq!(
            soa.first().map(|r| r.name.to_string()),
            Some("17.42.10.in-addr.arpa.".to_owned())
        );
        assert!(!index.owns(&absolute("1.32.42.10.in-addr.arpa").unwrap()));
    }

    proptest! {
        #[test]
        fn lookup_never_panics(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8), kind: u16) {
            let index = index();
            for tail in ["lab.internal", "42.10.in-addr.arpa", "2.4.0.0.0.0.d.f.ip6.arpa"] {
                let mut all = labels.clone();
                all.extend(tail.split('.').map(|l| l.as_bytes().to_vec()));
                if let Ok(mut name) = DnsName::from_labels(all.iter().map(Vec::as_slice)) {
                    name.set_fqdn(true);
                    if index.owns(&name) {
                        let answer = index.lookup(&name, RecordType::from(kind));
                        prop_assert!(!answer.answers.is_empty() || !answer.authorities.is_empty());
                    }
                }
            }
        }

        #[test]
        fn reverse_names_read_back(v4: u32, v6: u128) {
            for address in [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(Ipv6Addr::from(v6))] {
                let read = reverse_net(&pointer_name(address)).unwrap();
                prop_assert_eq!((read.net, read.rest), (IpNet::from(address), 0));
            }
        }
    }
}
