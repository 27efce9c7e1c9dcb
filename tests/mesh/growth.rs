//! A member of a later version among members of this one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byway::api::types::{Request, Response};
use byway::model::genesis::Genesis;
use byway::model::id::{PeerId, SubnetId};
use byway::model::join::lookup;
use byway::model::record::{Body, Digest, Item, Signed};
use byway::model::subnet::{Absorbed, Records};
use byway::p2p::{Event, Protocol};
use byway::wire::agent::{Agent, VERSIONS};
use byway::wire::control::{
    self, ControlAnswer, ControlRequest, JoinAnswer, JoinRequest, set_hash, short,
};
use byway::wire::presence::{Ages, list_hash};
use byway::wire::service::{self, Refusal, ServiceCode, kind};
use byway::wire::summary;
use ed25519_dalek::SigningKey;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::hostile::Hostile;
use super::node::{Node, PATIENCE, lab, two, until, within};

/// A kind of item that no version knows yet.
const LATER: u16 = 40_000;

/// What a member of a later version has seen.
struct Seen {
    records: Records,
    /// Who compared with it, with the hash that both have.
    agreed: BTreeSet<PeerId>,
    /// What it had at the beginning.
    before: BTreeSet<Digest>,
    /// Records of these that somebody sent all the same. What is new may come from two.
    resent: usize,
}

/// A member whose version knows one kind of item more. It keeps records by the same rules and answers questions about them.
struct Later {
    hostile: Hostile,
    key: SigningKey,
    id: SubnetId,
    seen: Arc<Mutex<Seen>>,
}

/// Who asks, and what is answered.
fn answer(seen: &mut Seen, from: PeerId, request: ControlRequest) -> ControlAnswer {
    match request {
        ControlRequest::Compare { hash, .. } if hash == set_hash(&seen.records.held()) => {
            seen.agreed.insert(from);
            ControlAnswer::Same
        }
        ControlRequest::Compare { .. } => ControlAnswer::Different,
        ControlRequest::Push { records, .. } => {
            seen.resent += records
                .iter()
                .filter(|record| seen.before.contains(&record.digest()))
                .count();
            for record in records.into_iter().filter_map(|record| record.check().ok()) {
                let _ = seen.records.absorb(record);
            }
            ControlAnswer::Done
        }
        ControlRequest::Pull { have, .. } => {
            let have: BTreeSet<[u8; 8]> = have.into_iter().collect();
            let lacks = |record: &&Signed| !have.contains(&short(&record.digest()));
            let held: BTreeSet<[u8; 8]> = seen.records.digests().iter().map(short).collect();
            let want = have.difference(&held).copied().collect();
            ControlAnswer::Records {
                records: seen.records.all().filter(lacks).cloned().collect(),
                want,
            }
        }
        _ => ControlAnswer::NotMember,
    }
}

impl Later {
    /// Begins with what it knew before, connected to these.
    async fn start(seed: [u8; 32], records: Records, nodes: &[&Node]) -> Later {
        let id = records.id;
        let mut hostile = Hostile::start(seed);
        let mut events = std::mem::replace(&mut hostile.events, mpsc::channel(1).1);
        let seen = Arc::new(Mutex::new(Seen {
            before: records.held(),
            records,
            agreed: BTreeSet::new(),
            resent: 0,
        }));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Event::Asked {
                    peer,
                    protocol: Protocol::Control,
                    body,
                    responder,
                    ..
                } = event
                else {
                    continue;
                };
                let Ok(request) = control::decode::<ControlRequest>(&body) else {
                    continue;
                };
                let answer = answer(&mut shared.lock().unwrap(), peer, request);
                responder.respond(control::encode(&answer));
            }
        });
        let members = nodes.iter().map(|node| (node.peer, vec![id])).collect();
        hostile.handle.members(members).await.unwrap();
        for node in nodes {
            let address = node.address().parse().unwrap();
            assert_eq!(
                hostile.handle.connect(vec![address], None).await,
                Ok(node.peer)
            );
        }
        Later {
            hostile,
            key: SigningKey::from_bytes(&seed),
            id,
            seen,
        }
    }

    fn held(&self) -> Records {
        self.seen.lock().unwrap().records.clone()
    }

    /// Whether a node holds the same; where it does not, what it has is taken over.
    async fn agrees(&self, node: &Node) -> bool {
        let (subnet, hash) = (self.id, set_hash(&self.held().held()));
        if let Ok(ControlAnswer::Same) = self
            .hostile
            .control(node, &ControlRequest::Compare { subnet, hash })
            .await
        {
            return true;
        }
        let pull = ControlRequest::Pull {
            subnet,
            have: self.held().digests().iter().map(short).collect(),
        };
        if let Ok(ControlAnswer::Records { records, .. }) = self.hostile.control(node, &pull).await
        {
            let mut seen = self.seen.lock().unwrap();
            for record in records.into_iter().filter_map(|r| r.check().ok()) {
                let _ = seen.records.absorb(record);
            }
        }
        false
    }

    /// Waits until these have compared and found the same: then none of them has a question left that it did not answer,
    /// which it would put again to the next connection.
    async fn settled(&self, nodes: &[&Node]) {
        let all: BTreeSet<PeerId> = nodes.iter().map(|node| node.peer).collect();
        // They compare at once, and every 30 s.
        let limit = PATIENCE + Duration::from_secs(30);
        let agreed = || async { self.seen.lock().unwrap().agreed.is_superset(&all) };
        within(limit, "they compare and find the same", agreed).await;
    }

    fn item(&self, slot: u8, version: u64, data: &[u8]) -> Signed {
        let now = byway::node::unix_now();
        let (slot, data) = (vec![slot], data.to_vec());
        let item = Item {
            kind: LATER,
            slot,
            version,
            issued: now,
            expires: now + 3600,
            data,
        };
        Signed::new(self.id, &Body::Item(item), &self.key)
    }
}

/// What a node knows of a subnet when it begins to hear of it.
async fn nothing_yet(seed: [u8; 32], node: &Node, id: SubnetId) -> Records {
    let asker = Hostile::start(seed);
    asker.meet(node, &[id]).await;
    match asker.join(node, &JoinRequest::Genesis(lookup(id))).await {
        JoinAnswer::Genesis(bytes) => Records::new(Genesis::parse(&bytes).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_a_later_kind_passes_through_who_does_not_know_it_and_all_agree() {
    let (mut nodes, id) = lab(&["a", "b", "c", "d"]).await;
    let seed = nodes.pop().unwrap().stop().await.seed();
    let (a, b, c) = (&nodes[0], &nodes[1], &nodes[2]);
    let nothing = nothing_yet(seed, b, id).await;
    let later = Later::start(seed, nothing.clone(), &[b]).await;
    later.settled(&[b]).await;
    let first = [later.item(1, 1, b"old"), later.item(2, 1, b"two")];
    // Replaced, and taken back: an older version understands neither, and keeps both.
    let then = [later.item(1, 2, b"new"), later.item(2, 2, b"")];
    for records in [first.clone(), then.clone()] {
        let push = ControlRequest::Push {
            subnet: id,
            records: records.to_vec(),
        };
        assert_eq!(
            later.hostile.control(b, &push).await,
            Ok(ControlAnswer::Done)
        );
        let mut seen = later.seen.lock().unwrap();
        for record in records {
            assert_eq!(seen.records.absorb(record.check().unwrap()), Absorbed::New);
        }
    }
    let (records, me) = (later.held(), later.hostile.peer());
    assert_eq!(records.item(me, LATER, &[1]).unwrap().data, b"new");
    drop(later);
    // Whoever looks has none of it itself, so that a and c have it from b.
    for node in [a, c] {
        let observer = Later::start(seed, nothing.clone(), &[node]).await;
        observer.settled(&[node]).await;
        until("it came to who never met its issuer", || async {
            let _ = observer.agrees(node).await;
            let held = observer.held();
            then.iter().all(|r| held.knows(&r.digest()))
        })
        .await;
        assert!(
            !first.iter().any(|r| observer.held().knows(&r.digest())),
            "and what it replaced did not"
        );
    }
    let later = Later::start(seed, records, &[a, b, c]).await;
    later.settled(&[a, b, c]).await;
    for node in [a, b, c] {
        until("both have the same hash", || later.agrees(node)).await;
    }
    let records = later.held();
    drop(later);
    // Everybody compares with who has come: all agree at once, and nobody sends what the other has.
    let later = Later::start(seed, records, &[a, b, c]).await;
    later.settled(&[a, b, c]).await;
    assert_eq!(later.seen.lock().unwrap().resent, 0);
    assert_eq!(later.held().items_of(later.hostile.peer()).count(), 2);
}

/// The samples of one family of metrics.
async fn counted(node: &Node, family: &str) -> Vec<String> {
    let Response::Metrics { text } = node.ok(Request::Metrics).await else {
        panic!("no metrics")
    };
    text.lines()
        .filter(|line| line.starts_with(family))
        .map(str::to_owned)
        .collect()
}

fn refusal(code: ServiceCode) -> Result<Vec<u8>, Refusal> {
    Err(code.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_of_a_kind_nobody_knows_is_answered_with_that() {
    let (a, b, id) = two().await;
    let later = Hostile::start(b.stop().await.seed());
    later.meet(&a, &[id]).await;
    let ask = async |kind, number, body: &[u8]| {
        later
            .service(&a, kind, number, body)
            .await
            .map(|answer| answer.result)
    };
    assert_eq!(
        ask(40_000, 1, b"what a later version asks").await,
        Ok(refusal(ServiceCode::Unknown))
    );
    let line = ask(kind::PING, 2, b"").await.unwrap().unwrap();
    assert_eq!(
        Agent::parse(std::str::from_utf8(&line).unwrap())
            .unwrap()
            .versions,
        VERSIONS
    );
    // A later version may say more behind what this one reads.
    let now = byway::node::unix_now_ms();
    let clock = [service::clock(now), b"and a leap second".to_vec()].concat();
    let told = ask(kind::CLOCK, 3, &clock).await.unwrap().unwrap();
    assert!(service::parse_clock(&told).unwrap().abs_diff(now) < 15_000);
    assert_eq!(
        ask(kind::CLOCK, 4, b"noon").await,
        Ok(refusal(ServiceCode::Invalid))
    );
    // About a subnet that it is in and one that nobody knows; it holds nothing of the first.
    let asked = summary::question(&[(id, [7; 32]), (SubnetId([9; 16]), [7; 32])]);
    assert_eq!(
        ask(kind::RECORDS, 90, &asked).await,
        Ok(Ok(summary::answer(&[false, false])))
    );
    assert_eq!(
        ask(kind::RECORDS, 91, &[2, 0, 0]).await,
        Ok(refusal(ServiceCode::Invalid))
    );
    // Ages of the members of a list that both have; of another list, and of a subnet that is not here, nothing is told.
    let mut list = [a.peer, later.peer()];
    list.sort();
    let ages = |subnet, list: &[PeerId]| Ages {
        subnet,
        list: list_hash(list),
        ages: vec![3; list.len()],
    };
    let seen = ask(kind::PRESENCE, 92, &ages(id, &list).encode()).await;
    let seen = Ages::decode(&seen.unwrap().unwrap()).unwrap();
    let own = list.iter().position(|peer| *peer == a.peer).unwrap();
    assert_eq!((seen.list, seen.ages[own]), (list_hash(&list), 0));
    for (number, asked) in [
        (93, ages(id, &list[..1])),
        (94, ages(SubnetId([9; 16]), &list)),
    ] {
        let seen = ask(kind::PRESENCE, number, &asked.encode()).await;
        assert!(
            Ages::decode(&seen.unwrap().unwrap())
                .unwrap()
                .ages
                .is_empty()
        );
    }
    assert_eq!(
        ask(kind::PRESENCE, 95, &[0; 23]).await,
        Ok(refusal(ServiceCode::Invalid))
    );
    assert_eq!(
        ask(kind::PING, 5, &[0; 65]).await,
        Ok(refusal(ServiceCode::Invalid)),
        "larger than a ping may be"
    );
    // The same number again is the same question: it has the answer it had, and another question cannot take it.
    assert_eq!(
        ask(kind::CLOCK, 3, &service::clock(now)).await,
        Ok(Ok(told))
    );
    assert_eq!(
        ask(kind::PING, 3, b"").await,
        Ok(refusal(ServiceCode::Invalid))
    );
    let about = |subnet| service::ServiceRequest {
        kind: kind::PING,
        id: 6,
        subnet,
        deadline_ms: 1000,
        body: vec![],
    };
    let elsewhere = about(Some(SubnetId([9; 16]))).encode();
    let answer = later.raw(&a, Protocol::Service, elsewhere).await.unwrap();
    assert_eq!(
        service::ServiceAnswer::parse(answer).unwrap().result,
        refusal(ServiceCode::NotPermitted)
    );
    let here = service::ServiceRequest {
        id: 7,
        ..about(Some(id))
    }
    .encode();
    let answer = later.raw(&a, Protocol::Service, here).await.unwrap();
    assert!(
        service::ServiceAnswer::parse(answer)
            .unwrap()
            .result
            .is_ok()
    );
    refusals_are_counted(&a).await;
}

/// Requests are counted by their kind and refusals by their code; nothing is under way any more.
async fn refusals_are_counted(a: &Node) {
    let requests = counted(a, "byway_service_requests_total{").await;
    assert!(
        requests.contains(&"byway_service_requests_total{kind=\"unknown\"} 1".to_owned()),
        "{requests:?}"
    );
    let refused = counted(a, "byway_service_refused_total{").await;
    for line in [
        "{code=\"1000\"} 1",
        "{code=\"1001\"} 5",
        "{code=\"1002\"} 1",
    ] {
        assert!(
            refused.iter().any(|refused| refused.ends_with(line)),
            "{line}: {refused:?}"
        );
    }
    assert_eq!(
        counted(a, "byway_service_inflight ").await,
        ["byway_service_inflight 0"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_floods_services_is_slowed_down_and_nobody_else() {
    let (mut nodes, id) = lab(&["a", "b", "c"]).await;
    let seed = nodes.pop().unwrap().stop().await.seed();
    let (a, b) = (&nodes[0], &nodes[1]);
    let mallory = Hostile::start(seed);
    mallory.meet(a, &[id]).await;
    let body = vec![7; 200_000];
    let flood = (0..240u64).map(|n| {
        let (kind, body) = if n % 20 == 0 {
            (999, body.as_slice())
        } else {
            (kind::PING, [].as_slice())
        };
        mallory.service(a, kind, 1_000_000 + n, body)
    });
    let honest = async {
        let ping = Request::Ping {
            target: a.peer.to_string(),
            count: 5,
            timeout_ms: 10_000,
            path: None,
        };
        let Response::Ping(ping) = b.ok(ping).await else {
            panic!("no ping")
        };
        ping.control_rtt_ms.iter().flatten().count()
    };
    // As many at a time as one connection carries.
    let flood = futures::stream::iter(flood)
        .buffer_unordered(6)
        .collect::<Vec<_>>();
    let (answers, honest) = tokio::join!(flood, honest);
    assert_eq!(honest, 5, "the other member is answered meanwhile");
    let slowed = answers
        .iter()
        .flatten()
        .filter(|answer| match answer.result {
            Err(Refusal {
                code: ServiceCode::SlowDown,
                retry_ms,
            }) => {
                assert!(retry_ms > 0, "it is told when to come again");
                true
            }
            _ => false,
        });
    assert!(slowed.count() > 50, "{answers:?}");
    until("nothing of it is left", || async {
        counted(a, "byway_service_inflight ").await == ["byway_service_inflight 0"]
    })
    .await;
    until("who waits a while is answered again", || async {
        mallory
            .service(a, kind::PING, rand(), b"")
            .await
            .is_ok_and(|answer| answer.result.is_ok())
    })
    .await;
    assert!(
        a.status()
            .await
            .problems
            .iter()
            .any(|p| p.code == "E-PEER-REQUESTS")
    );
}

/// A number that was not used before.
fn rand() -> u64 {
    getrandom::u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_range_of_versions_works_and_one_without_a_common_version_is_told() {
    let (mut nodes, id) = lab(&["a", "b", "c"]).await;
    let c = nodes.pop().unwrap().stop().await.seed();
    let b = nodes.pop().unwrap().stop().await.seed();
    let a = &nodes[0];
    let far = async || {
        let problems = a.status().await.problems;
        problems
            .into_iter()
            .filter(|p| p.code == "E-VERSION")
            .map(|p| p.message)
            .collect::<Vec<_>>()
    };
    let later = Hostile::start_as(
        b,
        "byway/9.9 v=1-7 f=ff00000000000000000001 new=words".to_owned(),
    );
    later.meet(a, &[id]).await;
    assert!(
        later
            .service(a, kind::PING, 1, b"")
            .await
            .unwrap()
            .result
            .is_ok()
    );
    let compare = ControlRequest::Compare {
        subnet: id,
        hash: [0; 32],
    };
    assert_eq!(
        later.control(a, &compare).await,
        Ok(ControlAnswer::Different)
    );
    let alien = Hostile::start_as(c, "byway/9.9 v=5-7 f=1".to_owned());
    alien.meet(a, &[id]).await;
    until("who has no version in common is named", || async {
        !far().await.is_empty()
    })
    .await;
    let told = "c and this machine do not understand each other: it runs byway/9.9 and speaks version 5 to 7, this \
                machine version 1";
    assert_eq!(far().await, [told], "and nobody else is");
    drop(alien);
    until("once it is gone it is no problem", || async {
        far().await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_member_is_granted_two_keys_of_its_own() {
    let (a, b, id) = two().await;
    let (me, home) = (b.peer, b.stop().await);
    let asker = Hostile::start(home.seed());
    asker.meet(&a, &[id]).await;
    let pull = ControlRequest::Pull {
        subnet: id,
        have: vec![],
    };
    let Ok(ControlAnswer::Records { records, .. }) = asker.control(&a, &pull).await else {
        panic!("no records")
    };
    let mut keys = BTreeSet::new();
    for record in records {
        let Ok(Body::Grant(grant)) = record.verify() else {
            continue;
        };
        assert!(
            keys.insert(grant.data_key) && keys.insert(grant.seal_key),
            "one key for two uses"
        );
        if grant.subject == me {
            let held = (home.public("data.key"), home.public("seal.key"));
            assert_eq!(
                (grant.data_key, grant.seal_key),
                held,
                "what was granted is what is on its disk"
            );
        }
    }
    assert_eq!(keys.len(), 4);
}
