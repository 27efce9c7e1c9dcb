//! Daemons that know many members, most of which are not there: what that costs in memory and time, and how soon one more
//! is in.

use std::path::Path;
use std::time::{Duration, Instant};

use byway::api::types::{Request, Response, Role};
use byway::model::identity::Identity;
use byway::model::state::State;
use byway::model::zone::RecordData;
use byway::store::{self, Batch, Store};
use byway::testing::fill;

use super::node::{Home, Node, PATIENCE, within};

/// The identity of who owns a state directory.
fn identity(dir: &Path) -> Identity {
    let public = |name| {
        let secret = store::secret(dir, name, true).unwrap();
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes()
    };
    let seed = store::identity(dir, None, true).unwrap();
    Identity::new(&seed, public("data.key"), public("seal.key"))
}

/// A daemon that owns a subnet of so many others, started with all that it knows of them.
async fn owner_of(members: u32) -> Node {
    let node = Node::start("owner").await;
    node.create("lab").await;
    let home = node.stop().await;
    let dir = home.file("state");
    {
        let (store, me) = (Store::open(&dir).unwrap(), identity(&dir));
        let (state, damage) = State::load(me.clone(), store.load().unwrap().records);
        assert_eq!(damage, []);
        let mut subnet = state.edit("lab").unwrap();
        fill(&mut subnet, &me.key, members, byway::node::unix_now());
        let mut draft = byway::model::state::Draft::default();
        draft.put(subnet);
        let mut batch = Batch::default();
        for (key, value) in draft.changes(&state).into_writes() {
            batch.put_records.push((key, value.unwrap()));
        }
        store.commit(&batch).unwrap();
    }
    home.start().await
}

/// How long a request takes.
async fn timed(node: &Node, request: Request) -> (Response, Duration) {
    let began = Instant::now();
    let answer = node.ok(request).await;
    (answer, began.elapsed())
}

async fn looked_at(members: u32, limit: Duration) {
    let began = Instant::now();
    let node = owner_of(members).await;
    println!("{members} members: started in {:?}", began.elapsed());
    let (answer, status) = timed(&node, Request::Status { subnet: None }).await;
    assert!(
        matches!(answer, Response::Status(status) if status.subnets[0].peers.len() == members as usize)
    );
    assert_eq!(node.members("lab").await.len(), members as usize + 1);
    let add = Request::DnsAdd {
        subnet: "lab".into(),
        name: "db".into(),
        data: vec![RecordData::Txt("x".into())],
        ttl: 30,
    };
    let (_, changed) = timed(&node, add).await;
    let remove = Request::MemberRemove {
        subnet: "lab".into(),
        member: "m7".into(),
    };
    let (_, removed) = timed(&node, remove).await;
    println!("status {status:?}, a name added {changed:?}, a member removed {removed:?}");
    for took in [status, changed, removed] {
        assert!(took < limit, "{took:?}");
    }
    node.stop().await;
}

async fn joined(members: u32, limit: Duration) {
    let owner = owner_of(members).await;
    let (_, invite) = owner.invite("lab", 1, 60_000, Role::Member).await;
    let b = Home::new("b").start().await;
    let began = Instant::now();
    b.join(&invite, &[owner.address()], PATIENCE).await.unwrap();
    let member = began.elapsed();
    within(limit, "packets have a way", || b.reaches(owner.peer)).await;
    let packets = began.elapsed();
    let all = members as usize + 2;
    within(limit, "everybody is known", || async {
        b.members("lab").await.len() == all
    })
    .await;
    println!(
        "{members} members: one more is in after {member:?}, has a way for packets after {packets:?} and knows everybody \
         after {:?}",
        began.elapsed()
    );
    b.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_more_is_soon_in_a_subnet_of_two_hundred() {
    joined(200, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute; two hundred are in the set of every run"]
async fn a_thousand_members_are_looked_at_and_changed_in_time() {
    looked_at(1000, Duration::from_secs(2)).await;
    joined(1000, Duration::from_secs(20)).await;
}
