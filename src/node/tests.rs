//! What a message may cost the node's thread, counted in writes and Views rather than in time.

mod admitted;
mod engines;
mod invites;
mod machine;
mod twice;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::model::counted::{Counts, counts};
use crate::model::join::Ask;
use crate::model::local::PendingJoin;
use crate::model::members::{Identity, Subnet};
use crate::model::record::{Admission, Body, Doc, Role, Signed, Term, Verified, WorkloadEntry};
use crate::model::source::Payer;
use crate::model::state::Founding;
use crate::model::zone::RecordData;
use crate::store::StoreError;
use crate::wire::control::JoinAnswer;

/// Part of what the subnet's ID follows from.
const FOUNDED: u64 = 1_795_000_000;

fn identity(n: u8) -> Identity {
    Identity::new(&[n; 32], [n; 32], [n.wrapping_add(128); 32])
}

struct Lab {
    _dir: tempfile::TempDir,
    node: Node,
    pushes: mpsc::UnboundedReceiver<Push>,
    id: SubnetId,
}

/// An owner's node with `members` members.
async fn lab(members: u8) -> Lab {
    let lab = start(State::new(identity(1)));
    let made = lab.node.run(move |core| {
        let subnet = subnet(&core.state, members);
        let mut draft = Draft::default();
        draft.put(subnet);
        core.commit(draft).map(drop)
    });
    made.await.unwrap().unwrap();
    lab
}

/// A plain member's node, the second one, in a subnet of `members`.
async fn lab_of_a_member(members: u8) -> Lab {
    let mut draft = Draft::default();
    draft.put(subnet(&State::new(identity(1)), members));
    let mut state = State::new(identity(2));
    let _ = state.absorb(draft);
    start(state)
}

fn start(state: State) -> Lab {
    let dir = tempfile::TempDir::new().unwrap();
    let parts = Parts {
        state,
        damage: vec![],
        store: Store::open(dir.path()).unwrap(),
        here: Here::default(),
        node_name: "a".parse().unwrap(),
    };
    let (node, pushes) = Node::start(parts).unwrap();
    Lab {
        _dir: dir,
        node,
        pushes,
        id: subnet(&State::new(identity(1)), 1).records.id,
    }
}

/// The owner's subnet with that many members.
fn subnet(owner: &State, members: u8) -> Subnet {
    let founding = Founding {
        name: "lab".parse().unwrap(),
        cidr4: Some(None),
        cidr6: None,
        block4: None,
        admission: Admission::Approve,
        domain: None,
        grant_life: None,
        member: "a".parse().unwrap(),
        around: Default::default(),
        host: Default::default(),
        salt: [1; 16],
    };
    let mut subnet = owner.found(founding, FOUNDED).unwrap();
    (2..=members).for_each(|n| admit(&mut subnet, &owner.me, n, Role::Member));
    subnet
}

fn admit(subnet: &mut Subnet, by: &Identity, n: u8, role: Role) {
    let (who, now) = (identity(n), unix_now());
    let ask = Ask {
        subnet: subnet.records.id,
        joiner: who.peer,
        data_key: who.data_key,
        seal_key: who.seal_key,
        name: format!("m{n}").parse().unwrap(),
        name_is_default: true,
        ip: None,
        asked: now,
        proof: None,
    };
    subnet
        .admit(by, &ask, (role, Term::Full), &BTreeMap::new(), now)
        .unwrap();
}

fn doc(id: SubnetId, by: u8, version: u64) -> Signed {
    let body = Doc {
        version,
        issued: 1,
        ..Doc::default()
    };
    Signed::new(id, &Body::Doc(body), &identity(by).key)
}

fn from(n: u8) -> Lane {
    Lane::Peer {
        from: Payer::Member(identity(n).peer),
        urgent: false,
        cost: 1,
    }
}

impl Lab {
    async fn receive(&self, by: u8, records: Vec<Signed>) -> Verdict {
        let id = self.id;
        let good = self.node.checker().records(id, records).await.good;
        self.node
            .run_in(from(by), move |core| {
                core.receive(id, good, Some(identity(by).peer))
            })
            .await
            .unwrap()
    }

    async fn settled(&self) {
        assert!(self.node.saved(from(200)).await.unwrap());
    }
}

#[tokio::test]
async fn forged_records_with_a_members_key_cost_that_member_nothing() {
    let lab = lab(3).await;
    for n in 0..2000u64 {
        // Member 2 sends records that name member 3 and that member 3 never signed.
        let mut forged = doc(lab.id, 2, 1_000_000 + n);
        forged.issuer = identity(3).peer;
        let checked = lab.node.checker().records(lab.id, vec![forged]).await;
        assert_eq!((checked.good.len(), checked.forged), (0, 1));
    }
    let verdict = lab.receive(2, vec![doc(lab.id, 3, 5)]).await;
    assert_eq!((verdict.news, verdict.waiting), (1, false));
}

#[tokio::test]
async fn only_what_is_new_is_charged_to_its_issuer() {
    let lab = lab(3).await;
    assert_eq!(lab.receive(2, vec![doc(lab.id, 3, 1_000)]).await.news, 1);
    lab.settled().await;
    for n in 0..500 {
        let verdict = lab.receive(2, vec![doc(lab.id, 3, n)]).await;
        assert_eq!(
            (verdict.news, verdict.waiting),
            (0, false),
            "what is older is nothing new"
        );
    }
    assert_eq!(lab.receive(2, vec![doc(lab.id, 3, 1_001)]).await.news, 1);
    // What a member says itself, again and again, waits in the end.
    let mut waits = false;
    for n in 0..200 {
        waits |= lab
            .receive(3, vec![doc(lab.id, 3, 2_000 + n)])
            .await
            .waiting;
    }
    assert!(waits);
    assert!(
        !lab.receive(2, vec![doc(lab.id, 2, 1)]).await.waiting,
        "another member's documents do not"
    );
}

#[tokio::test]
async fn many_documents_are_one_write_few_views_and_one_message() {
    let mut lab = lab(40).await;
    while lab.pushes.try_recv().is_ok() {}
    let before = lab
        .node
        .run(|core| (core.work.writes, core.work.views))
        .await
        .unwrap();
    let mut last = tokio::time::Instant::now();
    for round in 1..=5u64 {
        for n in 2..=40 {
            assert_eq!(lab.receive(n, vec![doc(lab.id, n, round)]).await.news, 1);
        }
        last = tokio::time::Instant::now();
    }
    lab.settled().await;
    assert!(
        last.elapsed() < Duration::from_secs(2),
        "what was received is saved soon"
    );
    let after = lab
        .node
        .run(|core| (core.work.writes, core.work.views))
        .await
        .unwrap();
    // 195 documents: as many writes as the time they came in has room for, whatever their number.
    assert!(after.0 - before.0 <= 40, "{} writes", after.0 - before.0);
    assert_eq!(after.1, before.1, "no View was built on the node's thread");
    let mut told = std::collections::BTreeSet::new();
    while told.len() < 39 {
        let push = tokio::time::timeout(Duration::from_secs(5), lab.pushes.recv())
            .await
            .unwrap()
            .unwrap();
        told.extend(push.records.iter().map(|r| r.signed().issuer));
    }
}

#[tokio::test]
async fn records_of_nobody_known_are_counted_and_build_no_view() {
    let lab = lab(2).await;
    let strangers: Vec<Signed> = (100..164).map(|n| doc(lab.id, n, 1)).collect();
    let generation = lab.node.view().load().generation;
    let verdict = lab.receive(2, strangers).await;
    assert_eq!(verdict.unknown, 64);
    lab.settled().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(lab.node.view().load().generation, generation);
}

#[tokio::test]
async fn own_commands_pass_a_full_queue() {
    let lab = lab(3).await;
    // One member's jobs keep the thread busy; none of them ends before all have come.
    let (done, (open, shut)) = (
        Arc::new(AtomicU32::new(0)),
        std::sync::mpsc::channel::<()>(),
    );
    let shut = Arc::new(parking_lot::Mutex::new(shut));
    let busy: Vec<_> = (0..16)
        .map(|_| {
            let (node, done, shut) = (lab.node.clone(), Arc::clone(&done), Arc::clone(&shut));
            tokio::spawn(async move {
                let job = move |_: &mut Core| {
                    let _ = shut.lock().recv_timeout(Duration::from_secs(10));
                    done.fetch_add(1, Ordering::Relaxed);
                };
                node.run_in(from(2), job).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let seen = Arc::clone(&done);
    let mut own = std::pin::pin!(lab.node.run(move |_| seen.load(Ordering::Relaxed)));
    assert!(
        futures::poll!(&mut own).is_pending(),
        "it waits for the job under way"
    );
    drop(open);
    let before = own.await.unwrap();
    assert!(
        before <= 2,
        "an own command waits for one job, not for {before} of sixteen"
    );
    let refused = lab.node.run_in(from(2), |_| ()).await;
    let others = lab.node.run_in(from(3), |_| ()).await;
    assert!(others.is_ok() && (refused.is_ok() || refused.is_err_and(|e| e.code == "E-BUSY")));
    for job in busy {
        drop(job.await.unwrap());
    }
}

/// A join that waits.
fn pending(subnet: &Subnet) -> PendingJoin {
    PendingJoin {
        subnet: subnet.records.id,
        invite: None,
        hints: vec![],
        name: "m".parse().unwrap(),
        name_is_default: true,
        alias: None,
        ip: None,
        host: Default::default(),
        allow: Default::default(),
        since: unix_now(),
        founded_as: None,
        refused: None,
    }
}

/// What the last one that was let in makes of the answer, which has room for a part of a large subnet.
fn joined(subnet: &Subnet, joiner: u8) -> Subnet {
    let joiner = State::new(identity(joiner));
    let JoinAnswer::Admitted { genesis, records } =
        admission::bundle(subnet, joiner.me.peer, unix_now())
    else {
        panic!()
    };
    assert!(
        records.len() < subnet.records.all().count(),
        "all of it fits"
    );
    let records: Vec<Verified> = records
        .into_iter()
        .map(|record| record.check().unwrap())
        .collect();
    joiner
        .accept(
            &pending(subnet),
            &genesis,
            &records,
            &Default::default(),
            unix_now(),
        )
        .unwrap()
}

#[test]
fn who_an_admin_lets_into_a_large_subnet_can_tell_that_it_is_in() {
    let owner = State::new(identity(1));
    let mut subnet = subnet(&owner, 1);
    // Its own grant comes last.
    let admin = (2..=220).max_by_key(|n| identity(*n).peer).unwrap();
    (2..=220).for_each(|n| {
        admit(
            &mut subnet,
            &owner.me,
            n,
            if n == admin {
                Role::Admin
            } else {
                Role::Member
            },
        )
    });
    admit(&mut subnet, &identity(admin), 221, Role::Member);
    let resolved = joined(&subnet, 221).resolve(unix_now());
    assert_eq!(
        resolved.members[&identity(221).peer].issuer,
        identity(admin).peer
    );
}

#[test]
fn who_gets_the_block_of_a_former_member_of_a_large_subnet_can_tell_that_it_is_in() {
    let owner = State::new(identity(1));
    let mut subnet = subnet(&owner, 220);
    // One whose grant is among the first.
    let former = (2..=220).min_by_key(|n| identity(*n).peer).unwrap();
    let block = subnet.resolve(unix_now()).members[&identity(former).peer]
        .leases
        .clone();
    subnet
        .remove(&owner.me, identity(former).peer, unix_now())
        .unwrap();
    admit(&mut subnet, &owner.me, 221, Role::Member);
    let resolved = joined(&subnet, 221).resolve(unix_now());
    assert_eq!(
        resolved.members[&identity(221).peer].leases,
        block,
        "the first block that is free"
    );
}

#[tokio::test]
async fn a_node_that_ended_answers_everybody() {
    let lab = lab(2).await;
    lab.node.close().await;
    assert_eq!(lab.node.run(|_| ()).await.unwrap_err().code, "E-STOPPING");
    assert_eq!(
        lab.node.run_in(from(2), |_| ()).await.unwrap_err().code,
        "E-STOPPING"
    );
}

#[tokio::test]
async fn a_document_of_a_peer_reaches_the_view() {
    let lab = lab(2).await;
    let workloads = (0..50u8)
        .map(|n| WorkloadEntry {
            name: format!("w{n}").parse().unwrap(),
            addresses: vec![],
        })
        .collect();
    let body = Doc {
        version: 9,
        issued: 1,
        endpoints: vec!["/memory/1".into()],
        workloads,
        ..Doc::default()
    };
    let record = Signed::new(lab.id, &Body::Doc(body), &identity(2).key);
    let mut published = lab.node.published();
    published.borrow_and_update();
    assert_eq!(lab.receive(2, vec![record]).await.news, 1);
    tokio::time::timeout(Duration::from_secs(5), published.changed())
        .await
        .unwrap()
        .unwrap();
    let endpoints = lab.node.run(|core| core.state.endpoints()).await.unwrap();
    assert_eq!(endpoints[&identity(2).peer], ["/memory/1"]);
}

/// A draft in which this node has added a name.
fn added(core: &Core, name: &str) -> Draft {
    let mut subnet = core.state.edit("lab").unwrap();
    subnet
        .dns_add(
            &core.state.me,
            name,
            &[RecordData::Txt("x".into())],
            60,
            core.now(),
        )
        .unwrap();
    let mut draft = Draft::default();
    draft.put(subnet);
    draft
}

#[tokio::test]
async fn what_is_being_saved_is_not_true_yet_and_nothing_is_decided_meanwhile() {
    let lab = lab(3).await;
    let (id, before) = (lab.id, lab.node.view().load().generation);
    let during = lab.node.run(move |core| {
        let held = |core: &Core| core.state.subnets[&id].records.held();
        let (old, question) = (held(core), core.compare(id));
        core.commit(added(core, "wiki")).unwrap();
        assert_ne!(held(core), old, "for the job that decides it is true");
        core.launch(Box::new(|_| ()));
        assert!(core.flight.is_some() && held(core) == old);
        assert_eq!(
            format!("{:?}", core.compare(id)),
            format!("{question:?}"),
            "nobody is told"
        );
        (
            core.commit(added(core, "other")).unwrap_err().code,
            core.view().generation,
        )
    });
    assert_eq!(during.await.unwrap(), ("E-BUSY".to_owned(), before));
    let names = |core: &mut Core| {
        core.names("lab")
            .unwrap()
            .into_iter()
            .map(|n| n.name)
            .collect::<Vec<_>>()
    };
    let after = lab.node.run(names).await.unwrap();
    assert!(
        after.contains(&"wiki.lab.internal".to_owned())
            && !after.contains(&"other.lab.internal".to_owned())
    );
    assert!(
        lab.node.view().load().generation > before,
        "the next job that decides comes after it was published"
    );
}

#[tokio::test]
async fn what_could_not_be_saved_has_changed_nothing() {
    let lab = lab(3).await;
    let (id, before) = (lab.id, lab.node.view().load().generation);
    let refused = lab.node.run(move |core| {
        let (old, generation) = (core.state.subnets[&id].clone(), core.generation());
        core.commit(added(core, "wiki")).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        core.launch(Box::new(move |saved| tell.send(saved).unwrap()));
        core.landed(Err(StoreError::Full {
            path: "state".into(),
        }));
        assert!(core.state.subnets[&id] == old && core.untold.is_empty() && core.decided.is_none());
        assert_eq!(
            core.generation(),
            generation,
            "who changes nothing waits for no View that never comes"
        );
        told.try_recv().unwrap().unwrap_err().code
    });
    assert_eq!(refused.await.unwrap(), "E-DISK-FULL");
    assert_eq!(lab.node.view().load().generation, before);
}

#[tokio::test]
async fn a_record_is_encoded_signed_and_digested_once_and_shared_by_state_and_peers() {
    let mut lab = lab(3).await;
    while lab.pushes.try_recv().is_ok() {}
    let id = lab.id;
    let begin = lab.node.run(|_| counts()).await.unwrap();
    // Its own: nothing is read back, on the way to the disk and to the others neither.
    let text = [RecordData::Txt("x".into())];
    lab.node
        .run(move |core| core.dns_add("lab", "wiki", &text, 60).map(drop))
        .await
        .unwrap()
        .unwrap();
    let own = lab.node.run(|_| counts()).await.unwrap();
    // The document, and this node's own side, which knows the name from now on.
    assert_eq!(
        own - begin,
        Counts {
            encoded: 2,
            digested: 1,
            ..Counts::default()
        }
    );
    // A member's: all of it is done beside the node's thread.
    let (known, before) = (Known::default(), counts());
    let good = check::check(&known, id, vec![doc(id, 2, 7)]).good;
    // It was signed here, too.
    let once = Counts {
        encoded: 1,
        digested: 1,
        verified: 1,
        parsed: 1,
    };
    assert_eq!(counts() - before, once);
    let peer = identity(2).peer;
    lab.node
        .run(move |core| core.take(id, good, Some(peer)).map(drop))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        lab.node.run(|_| counts()).await.unwrap() - own,
        Counts::default()
    );
    let mut told = 0;
    while told < 2 {
        let push = tokio::time::timeout(Duration::from_secs(5), lab.pushes.recv())
            .await
            .unwrap()
            .unwrap();
        told += push.records.len();
        let held = lab.node.run(move |core| {
            core.state.subnets[&id]
                .records
                .verified()
                .collect::<Vec<_>>()
        });
        let held = held.await.unwrap();
        assert!(
            push.records
                .iter()
                .all(|record| held.iter().any(|held| held.is_same(record)))
        );
    }
}

/// A job that drafts a change and takes it back in the same breath.
#[tokio::test]
async fn what_came_and_went_in_one_job_is_neither_saved_nor_known_nor_told() {
    let mut lab = lab(3).await;
    while lab.pushes.try_recv().is_ok() {}
    let id = lab.id;
    let (first, second) = (lab.node.run(move |core| {
        let mut records = Vec::new();
        for name in ["wiki", "other"] {
            core.commit(added(core, name)).unwrap();
            let own = core.state.subnets[&id]
                .records
                .verified()
                .find(|r| matches!(r, Verified::Doc(_)));
            records.push(own.unwrap().digest());
        }
        (records[0], records[1])
    }))
    .await
    .unwrap();
    let known = lab
        .node
        .run(move |core| [first, second].map(|digest| core.known.holds(id, &digest)))
        .await
        .unwrap();
    assert_eq!(known, [false, true]);
    let push = tokio::time::timeout(Duration::from_secs(5), lab.pushes.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        push.records
            .iter()
            .map(Verified::digest)
            .collect::<Vec<_>>(),
        [second]
    );
}

#[test]
fn while_something_is_saved_reading_jobs_have_their_turns() {
    let queue = Queue::new();
    let job = || -> queue::Job { Box::new(|_| Box::new(|_| ())) };
    for _ in 0..3 {
        assert!(queue.push(Lane::Own, job(), true) && queue.push(from(2), job(), false));
    }
    for _ in 0..3 {
        assert!(
            matches!(queue.next(Some(Instant::now()), true), Next::Job(_)),
            "though something is due"
        );
    }
    queue.saved(Ok(()));
    assert!(matches!(queue.next(None, true), Next::Saved(Ok(()))));
    for _ in 0..3 {
        assert!(matches!(queue.next(None, false), Next::Job(_)));
    }
    assert!(matches!(queue.next(Some(Instant::now()), false), Next::Due));
}

#[tokio::test]
async fn a_plain_members_looks_copy_nothing_while_its_own_is_true() {
    let lab = lab_of_a_member(20).await;
    let look = || async {
        lab.node
            .run(|core| core.tick().map(|()| core.work.looks))
            .await
            .unwrap()
            .unwrap()
    };
    let mut looks = look().await;
    for _ in 0..50 {
        let next = look().await;
        if std::mem::replace(&mut looks, next) == next {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(looks > 0, "it says what it is once");
    for version in 1..=5 {
        assert_eq!(lab.receive(3, vec![doc(lab.id, 3, version)]).await.news, 1);
        lab.settled().await;
        // As if the node had just started: a look is due.
        lab.node
            .run(|core| core.pulse = pulse::Pulse::new(Reading::now()))
            .await
            .unwrap();
        assert_eq!(
            look().await,
            looks,
            "others' documents change nothing of its own"
        );
    }
    let told = lab
        .node
        .run(|core| core.set_endpoints(vec!["/memory/2".into()]))
        .await
        .unwrap();
    told.unwrap();
    assert_eq!(look().await, looks, "that was published at once");
}
