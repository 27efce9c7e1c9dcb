//! Records, messages, frames.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use byway::model::chunks::Chunks;
use byway::model::genesis::{Admission, Genesis, Prefix6};
use byway::model::id::PeerId;
use byway::model::join::{Ask, Invite, Proof, SignedAsk, lookup};
use byway::model::notice::{Home, RelayNotice, Stance};
use byway::model::ranges::{self, Differing};
use byway::model::record::{
    Announcement, Blocks, Body, Grant, Head, Item, NameEntry, Registration, Revocation, Role, Seat,
    Signed, Term, WorkloadEntry,
};
use byway::model::zone::RecordData;
use byway::wire::agent::{self, Agent};
use byway::wire::control::{
    self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest, set_hash, short,
};
use byway::wire::paths::{self, Filtering, Mapping, NatFacts, Paths, Udp};
use byway::wire::presence::{Ages, list_hash};
use byway::wire::ranges::{Answer, Question};
use byway::wire::relay::{self, RelayAnswer, RelayRequest, Ticket};
use byway::wire::service::{self, Refusal, ServiceAnswer, ServiceCode, ServiceRequest, kind};
use byway::wire::summary;
use ed25519_dalek::SigningKey;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{file, hex, read, writes};

const TIME: u64 = 1_800_000_000;

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub fn peer(n: u8) -> PeerId {
    PeerId(key(n).verifying_key().to_bytes())
}

pub fn genesis() -> Genesis {
    Genesis {
        version: 1,
        owner: peer(1),
        name: "lab".parse().unwrap(),
        cidr4: Some("10.77.0.0/16".parse().unwrap()),
        cidr6: Prefix6::Derived,
        block4: 24,
        admission: Admission::Approve,
        domain: "lab.internal".to_owned(),
        grant_life: 90 * 86_400,
        created: TIME,
        salt: [7; 16],
    }
}

/// What is compared: names and bytes. Each is read back when it is put.
#[derive(Default)]
pub(super) struct Golden(BTreeMap<String, Vec<u8>>);

impl Golden {
    pub(super) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        let former = self.0.insert(name.to_owned(), bytes);
        assert!(former.is_none(), "{name} twice");
    }

    /// A message of postcard.
    fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        &mut self,
        name: &str,
        message: &T,
    ) {
        let bytes = control::encode(message);
        assert_eq!(control::decode::<T>(&bytes).as_ref(), Ok(message), "{name}");
        self.put(name, bytes);
    }

    fn record(&mut self, name: &str, by: u8, body: &Body) -> Signed {
        let signed = Signed::new(genesis().id(), body, &key(by));
        let bytes = signed.encode();
        let read = Signed::parse(&bytes).unwrap();
        assert_eq!(read.verify().as_ref(), Ok(body), "{name}");
        self.put(&format!("record/{name}"), bytes);
        signed
    }
}

pub fn grant() -> Grant {
    Grant {
        subject: peer(2),
        data_key: [2; 32],
        seal_key: [3; 32],
        name: "web".parse().unwrap(),
        role: Role::Admin,
        generation: 2,
        version: 300,
        seat: 0,
        addresses: vec!["10.77.2.1".parse().unwrap(), "fd00::2".parse().unwrap()],
        leases: vec![
            "10.77.2.0/24".parse().unwrap(),
            "fd00::/64".parse().unwrap(),
        ],
        not_before: TIME,
        not_after: TIME + 90 * 86_400,
        term: Term::Full,
        labels: BTreeMap::from([("zone".to_owned(), "eu".to_owned())]),
    }
}

fn records(golden: &mut Golden) -> Vec<Signed> {
    let bytes = genesis().encode();
    assert_eq!(Genesis::parse(&bytes), Ok(genesis()));
    golden.put("genesis", bytes);
    golden.put("genesis/id", genesis().id().0.to_vec());
    golden.put("genesis/lookup", lookup(genesis().id()).to_vec());
    let seat = Seat {
        admin: peer(2),
        since: 1,
        part: vec![Blocks {
            first: 4,
            count: 300,
        }],
    };
    let head = Head {
        number: 1,
        seats: vec![seat],
        least: 1,
        destroyed: false,
        issued: TIME,
    };
    let head = golden.record("head", 1, &Body::Head(head));
    let granted = golden.record("grant", 1, &Body::Grant(grant()));
    let brief = Grant {
        role: Role::Member,
        term: Term::Trial,
        not_after: TIME + 3600,
        labels: BTreeMap::new(),
        ..grant()
    };
    golden.record("grant-trial", 1, &Body::Grant(brief));
    let revocation = Revocation {
        subject: peer(3),
        generation: 1,
        ends: granted.digest(),
        seat: 1,
    };
    golden.record("revocation", 2, &Body::Revocation(revocation));
    let registration = Registration {
        holder: peer(2),
        version: 4,
        seat: 0,
        names: ["db".to_owned(), "_pg._tcp.db".to_owned()].into(),
        released: [("old".to_owned(), 3)].into(),
    };
    golden.record("registration", 1, &Body::Registration(registration));
    golden.record("document", 2, &Body::Announcement(announcement()));
    golden.record(
        "document-goodbye",
        2,
        &Body::Announcement(Announcement {
            version: 6,
            issued: TIME,
            left: Some(2),
            ..Announcement::default()
        }),
    );
    let said = items(golden);
    let digests = [head.digest(), granted.digest(), said.digest()];
    golden.put(
        "control/set-hash",
        set_hash(&BTreeSet::from(digests)).to_vec(),
    );
    golden.put("control/short", short(&head.digest()).to_vec());
    vec![head, granted]
}

fn announcement() -> Announcement {
    let named = |name: &str, data| NameEntry {
        name: name.to_owned(),
        data,
        ttl: 30,
    };
    Announcement {
        version: 5,
        issued: TIME,
        life: u64::MAX,
        left: None,
        endpoints: vec!["/ip4/192.0.2.1/tcp/4100".to_owned()],
        workloads: vec![WorkloadEntry {
            name: "db".parse().unwrap(),
            addresses: vec!["10.77.2.9".parse().unwrap()],
        }],
        names: vec![
            named("db", RecordData::Address("10.77.2.9".parse().unwrap())),
            named("txt", RecordData::Txt("hello".to_owned())),
            named("www", RecordData::Cname("db".to_owned())),
            named(
                "_pg._tcp",
                RecordData::Srv {
                    priority: 1,
                    weight: 2,
                    port: 5432,
                    target: "db".to_owned(),
                },
            ),
        ],
    }
}

/// Something a later version says, and the word that takes it back; the first of them.
fn items(golden: &mut Golden) -> Signed {
    let item = |slot: &[u8], data: &[u8]| {
        let (slot, data) = (slot.to_vec(), data.to_vec());
        Body::Item(Item {
            kind: 40_000,
            slot,
            version: 7,
            issued: TIME,
            expires: TIME + 3600,
            data,
        })
    };
    let said = golden.record("item", 2, &item(b"slot", b"of a later version"));
    golden.record("item-taken-back", 2, &item(b"", b""));
    notices(golden);
    said
}

/// What a member says of relays, as the data of an item.
fn notices(golden: &mut Golden) {
    let notice = RelayNotice {
        stance: Stance::Offers(50),
        homes: vec![Home {
            relay: peer(4),
            addresses: vec![
                "/ip4/192.0.2.4/udp/4100/quic-v1".to_owned(),
                "/ip4/192.0.2.4/tcp/4100".to_owned(),
            ],
        }],
    };
    let never = RelayNotice {
        stance: Stance::Never,
        homes: vec![],
    };
    for (name, notice) in [("notice", notice), ("notice-never", never)] {
        let data = notice.to_data();
        assert_eq!(RelayNotice::parse(&data), Some(notice));
        golden.put(name, data);
    }
}

fn joining(golden: &mut Golden, records: &[Signed]) {
    let subnet = genesis().id();
    let invite = Invite {
        subnet,
        issuer: peer(1),
        secret: [9; 16],
        expires: TIME,
        addresses: vec!["/ip4/192.0.2.1/tcp/4100".to_owned()],
    };
    assert_eq!(Invite::parse(&invite.to_text()), Ok(invite.clone()));
    golden.put("invite", invite.to_text().into_bytes());
    let ask = Ask {
        subnet,
        joiner: peer(4),
        data_key: [4; 32],
        seal_key: [5; 32],
        name: "cam".parse().unwrap(),
        name_is_default: true,
        ip: Some("10.77.4.4".parse().unwrap()),
        asked: TIME,
        proof: Some(Proof::new(&invite, peer(4), [6; 16])),
    };
    let signed = SignedAsk::new(&ask, &key(4));
    assert_eq!(signed.verify(), Ok(ask));
    join_requests(golden, signed, records);
    join_answers(golden, records);
}

fn join_requests(golden: &mut Golden, signed: SignedAsk, records: &[Signed]) {
    let subnet = genesis().id();
    let head = records.first().unwrap().clone();
    let requests = [
        JoinRequest::Probe(subnet),
        JoinRequest::Nonce {
            subnet,
            issuer: peer(1),
            joiner: peer(4),
        },
        JoinRequest::Ask(signed),
        JoinRequest::Withdraw {
            subnet,
            joiner: peer(4),
        },
        JoinRequest::Decline(head),
        JoinRequest::Show {
            subnet,
            records: records.to_vec(),
        },
        JoinRequest::Genesis(lookup(subnet)),
    ];
    for request in &requests {
        // Each variant has its golden bytes: a new one is named here, and listed above.
        let name = match request {
            JoinRequest::Probe(_) => "probe",
            JoinRequest::Nonce { .. } => "nonce",
            JoinRequest::Ask(_) => "ask",
            JoinRequest::Withdraw { .. } => "withdraw",
            JoinRequest::Decline(_) => "decline",
            JoinRequest::Show { .. } => "show",
            JoinRequest::Genesis(_) => "genesis",
        };
        golden.message(&format!("join/request/{name}"), request);
    }
}

fn join_answers(golden: &mut Golden, records: &[Signed]) {
    let (genesis, records) = (genesis().encode(), records.to_vec());
    let answers = [
        JoinAnswer::Unknown,
        JoinAnswer::Known,
        JoinAnswer::Nonce([8; 16]),
        JoinAnswer::Pending { reached: true },
        JoinAnswer::Admitted {
            genesis: genesis.clone(),
            records: records.clone(),
        },
        JoinAnswer::Refused {
            code: "E-RATE".to_owned(),
            message: "wait".to_owned(),
        },
        JoinAnswer::Ended {
            genesis: genesis.clone(),
            heads: records,
        },
        JoinAnswer::Genesis(genesis),
    ];
    for answer in &answers {
        let name = match answer {
            JoinAnswer::Unknown => "unknown",
            JoinAnswer::Known => "known",
            JoinAnswer::Nonce(_) => "nonce",
            JoinAnswer::Pending { .. } => "pending",
            JoinAnswer::Admitted { .. } => "admitted",
            JoinAnswer::Refused { .. } => "refused",
            JoinAnswer::Ended { .. } => "ended",
            JoinAnswer::Genesis(_) => "genesis",
        };
        golden.message(&format!("join/answer/{name}"), answer);
    }
}

fn controls(golden: &mut Golden, records: &[Signed]) {
    let subnet = genesis().id();
    let endpoints = vec![
        "192.0.2.1:4100".parse().unwrap(),
        "[2001:db8::1]:4100".parse().unwrap(),
    ];
    let paths = Paths {
        candidates: vec![
            paths::Candidate {
                address: endpoints[0],
                kind: paths::Kind::Observed,
            },
            paths::Candidate {
                address: endpoints[1],
                kind: paths::Kind::Host,
            },
        ],
        facts: NatFacts {
            mapping: Mapping::Dependent { step: Some(-2) },
            filtering: Filtering::AddressAndPortDependent,
            udp: Udp::Works,
            ip4: true,
            ip6: true,
        },
        probe: Some(40),
    };
    let requests = [
        ControlRequest::Compare {
            subnet,
            hash: [1; 32],
        },
        ControlRequest::Pull {
            subnet,
            have: vec![[2; 8], [3; 8]],
        },
        ControlRequest::Push {
            subnet,
            records: records.to_vec(),
        },
        ControlRequest::Forward(JoinRequest::Probe(subnet)),
        ControlRequest::Session {
            subnet,
            message: vec![1, 2, 3],
            endpoints: endpoints.clone(),
        },
        ControlRequest::Paths(paths.clone()),
        ControlRequest::CallVia {
            relay: PeerId([8; 32]),
            addresses: endpoints.clone(),
            ticket: TICKET,
        },
    ];
    for request in &requests {
        let name = match request {
            ControlRequest::Compare { .. } => "compare",
            ControlRequest::Pull { .. } => "pull",
            ControlRequest::Push { .. } => "push",
            ControlRequest::Forward(_) => "forward",
            ControlRequest::Session { .. } => "session",
            ControlRequest::Paths(_) => "paths",
            ControlRequest::CallVia { .. } => "call-via",
        };
        golden.message(&format!("control/request/{name}"), request);
    }
    let answers = [
        ControlAnswer::Same,
        ControlAnswer::Different,
        ControlAnswer::Records {
            records: records.to_vec(),
            want: vec![[4; 8]],
        },
        ControlAnswer::Done,
        ControlAnswer::Forwarded(JoinAnswer::Known),
        ControlAnswer::NotMember,
        ControlAnswer::Session {
            message: vec![4, 5, 6],
            endpoints,
        },
        ControlAnswer::NoSession,
        ControlAnswer::Paths(paths),
    ];
    for answer in &answers {
        let name = match answer {
            ControlAnswer::Same => "same",
            ControlAnswer::Different => "different",
            ControlAnswer::Records { .. } => "records",
            ControlAnswer::Done => "done",
            ControlAnswer::Forwarded(_) => "forwarded",
            ControlAnswer::NotMember => "not-member",
            ControlAnswer::Session { .. } => "session",
            ControlAnswer::NoSession => "no-session",
            ControlAnswer::Paths(_) => "paths",
        };
        golden.message(&format!("control/answer/{name}"), answer);
    }
}

/// A leg at a relay.
const TICKET: Ticket = Ticket {
    index: 0x0102_0304,
    key: [9; 16],
};

fn relays(golden: &mut Golden) {
    let peer = PeerId([8; 32]);
    golden.message("relay/request/allocate", &RelayRequest::Allocate { peer });
    golden.message("relay/request/release", &RelayRequest::Release { index: 7 });
    let allocated = RelayAnswer::Allocated {
        mine: TICKET,
        theirs: TICKET,
        addresses: vec!["192.0.2.1:4100".parse().unwrap()],
    };
    golden.message("relay/answer/allocated", &allocated);
    golden.message("relay/answer/released", &RelayAnswer::Released);
    let relaying = relay::Relaying {
        offer: Some(relay::Offer {
            mbit: 40,
            is_offered: true,
            load: 1,
        }),
        ways: vec![relay::Way {
            relay: peer,
            rtt_ms: 300,
        }],
    };
    golden.message("relay/relaying", &relaying);
    for (name, refusal) in [
        ("not-served", relay::Refusal::NotServed),
        ("too-many", relay::Refusal::TooMany),
        ("full", relay::Refusal::Full),
        ("no-port", relay::Refusal::NoPort),
        ("crowded", relay::Refusal::Crowded),
    ] {
        let name = format!("relay/answer/refused-{name}");
        golden.message(&name, &RelayAnswer::Refused(refusal));
    }
}

fn services(golden: &mut Golden, some: &[Signed]) {
    let mut request = |name: &str, request: ServiceRequest| {
        let bytes = request.encode();
        assert_eq!(ServiceRequest::parse(bytes.clone()), Ok(request), "{name}");
        golden.put(&format!("service/request/{name}"), bytes);
    };
    let ping = ServiceRequest {
        kind: kind::PING,
        id: 0x0102_0304_0506_0708,
        subnet: None,
        deadline_ms: 8000,
        body: vec![],
    };
    let clock = ServiceRequest {
        kind: kind::CLOCK,
        body: service::clock(TIME * 1000),
        ..ping.clone()
    };
    request("ping", ping.clone());
    request("clock", clock);
    let records = ServiceRequest {
        kind: kind::RECORDS,
        body: summary::question(&[(genesis().id(), [7; 32])]),
        ..ping.clone()
    };
    request("records", records);
    let members: Vec<PeerId> = (1..6).map(|n| PeerId([n; 32])).collect();
    let seen = Ages {
        subnet: genesis().id(),
        list: list_hash(&members),
        ages: vec![0, 1, 14, 15, 7],
    };
    let presence = ServiceRequest {
        kind: kind::PRESENCE,
        body: seen.encode(),
        ..ping.clone()
    };
    request("presence", presence);
    let mut held = Chunks::default();
    for n in 0..20_u8 {
        held.insert([n.wrapping_mul(13); 32], ());
    }
    let salt = [6; 8];
    let divided = Differing::new(&held, salt).question();
    let listed = ranges::answer(&Chunks::default(), salt, &divided);
    let question = Question {
        salt,
        parts: [divided, listed.clone()].concat(),
        want: vec![[5; 8]],
    };
    assert_eq!(Question::parse(&question.encode()), Some(question.clone()));
    let ranges = ServiceRequest {
        kind: kind::RANGES,
        subnet: Some(genesis().id()),
        body: question.encode(),
        ..ping.clone()
    };
    request("ranges", ranges);
    request(
        "later",
        ServiceRequest {
            kind: 40_000,
            subnet: Some(genesis().id()),
            body: b"later".to_vec(),
            ..ping
        },
    );
    let mut answer = |name: &str, result| {
        let answer = ServiceAnswer {
            id: 0x0102_0304_0506_0708,
            result,
        };
        let bytes = answer.encode();
        assert_eq!(ServiceAnswer::parse(bytes.clone()), Ok(answer), "{name}");
        golden.put(&format!("service/answer/{name}"), bytes);
    };
    answer("done", Ok(b"yes".to_vec()));
    answer("clock", Ok(service::clock(TIME * 1000)));
    answer("records", Ok(summary::answer(&[true, false])));
    let found = Answer {
        parts: listed,
        records: some.to_vec(),
    };
    assert_eq!(Answer::parse(&found.encode()), Some(found.clone()));
    answer("ranges", Ok(found.encode()));
    for code in ServiceCode::ALL {
        let retry_ms = if code == ServiceCode::SlowDown {
            250
        } else {
            0
        };
        answer(&code.number().to_string(), Err(Refusal { code, retry_ms }));
    }
    // The number of this program may grow; what it speaks may not without another name in this file.
    let line = agent::text();
    let (program, speaks) = line.split_once(' ').unwrap();
    assert!(program.starts_with("byway/") && Agent::parse(&line).is_some());
    golden.put("agent", speaks.as_bytes().to_vec());
}

#[test]
fn every_record_and_message_has_exactly_the_bytes_of_version_1() {
    let mut golden = Golden::default();
    let some = records(&mut golden);
    joining(&mut golden, &some);
    controls(&mut golden, &some);
    services(&mut golden, &some);
    relays(&mut golden);
    super::lan::lan(&mut golden);
    super::frames::datagrams(&mut golden);
    super::frames::streams(&mut golden);
    if writes() {
        let head = "# NAME HEX: what version 1 stores and sends. See README.md.\n";
        let lines: String = golden
            .0
            .iter()
            .map(|(name, bytes)| format!("{name} {}\n", hex(bytes)))
            .collect();
        std::fs::write(file("v1.hex"), format!("{head}{lines}")).unwrap();
    }
    let kept = read("v1.hex");
    for (name, bytes) in &golden.0 {
        let was = kept.get(name).map(|bytes| hex(bytes));
        assert_eq!(
            Some(hex(bytes)),
            was,
            "{name} has other bytes than those of version 1"
        );
    }
    let gone: Vec<&String> = kept
        .keys()
        .filter(|name| !golden.0.contains_key(*name))
        .collect();
    assert!(gone.is_empty(), "version 1 has these too: {gone:?}");
    // A record with one bit changed is none: its bytes are looked at whole.
    for (name, bytes) in kept.iter().filter(|(name, _)| name.starts_with("record/")) {
        for at in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            assert!(
                !Signed::parse(&forged).is_ok_and(|signed| signed.verify().is_ok()),
                "{name} byte {at}"
            );
        }
    }
}
