//! This node's own joins among others of the same subnet, and among peers that are slow.

use std::time::Duration;

use super::*;
use crate::api::types::SubnetState;
use crate::daemon::tests::Daemon;
use crate::model::id::Name;
use crate::model::join::Invite;
use crate::node::unix_now;
use crate::p2p::Command;
use crate::testing::{PATIENCE, eventually};

/// A question for a subnet as this node would save it.
fn question(subnet: SubnetId, invite: Option<&str>, hints: Vec<String>) -> PendingJoin {
    PendingJoin {
        subnet,
        invite: invite.map(|text| Invite::parse(text).unwrap()),
        hints,
        name: "joiner".parse::<Name>().unwrap(),
        name_is_default: true,
        alias: None,
        ip: None,
        host: Default::default(),
        allow: Default::default(),
        since: unix_now(),
        founded_as: None,
        refused: None,
        declared: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_another_has_replaced_ends_for_itself_alone() {
    let joiner = Daemon::start("joiner").await;
    let mesh = Arc::clone(&joiner.commands.mesh);
    let id = SubnetId([7; 16]);
    for waited_for in [false, true] {
        let (former, told) = watch::channel(Progress::Searching);
        let person = waited_for.then(|| told.clone());
        let join = mesh.node.begin_join(question(id, None, vec![]), false);
        let newer = start(&mesh, join.await.unwrap());
        let error = Error::new(ErrorKind::Refused, Code::NameTaken, "the name is taken");
        end(&mesh, id, &former, error.clone()).await;
        assert_eq!(*told.borrow(), Progress::Refused(error));
        drop(person);
        let running = mesh.joins.running(id).map(|running| running.progress);
        assert!(running.is_some_and(|progress| progress.same_channel(&newer.progress)));
        let kept = mesh.node.join(id).await.unwrap();
        assert_eq!(kept.map(|join| join.refused), Some(None), "it is asked on");
    }
    joiner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_after_another_let_this_peer_in_gives_nothing_back() {
    let (founder, joiner) = tokio::join!(Daemon::start("founder"), Daemon::start("joiner"));
    let created = founder.create("lab").await;
    let (id, invite) = (created.id, created.invite.unwrap());
    let member = [founder.address()];
    let state = joiner.join(&invite, &member, true).await.unwrap();
    assert_eq!(state, SubnetState::Ready);
    let mesh = Arc::clone(&joiner.commands.mesh);
    let join = question(id, Some(&invite), member.to_vec());
    let asked = vec![founder.commands.peers.peer()];
    let late = one_round(&mesh, &join, None, asked).await;
    let Some(JoinAnswer::Admitted { genesis, records }) = late else {
        panic!("{late:?}");
    };
    let error = take(&mesh, &join, genesis, records).await.unwrap_err();
    assert_eq!(error.code, Code::JoinOver);
    // Whatever it says back it has said, and been answered, when `take` returns.
    let members = founder.commands.node.members(id.to_string()).await.unwrap();
    assert!(
        members.iter().any(|m| m.peer_id == mesh.peers.peer()),
        "{members:?}"
    );
    assert!(joiner.is_in(id).await);
    joiner.stop().await;
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dialled_for_a_join_is_dialled_whoever_answers_first() {
    let member = Daemon::start("member").await;
    let mut joiner = Daemon::build("joiner").await;
    let mesh = Arc::clone(&joiner.commands.mesh);
    let (there, away) = (PeerId([1; 32]), member.commands.peers.peer());
    // Somebody is connected, so others are not waited for; and the peers' task takes no more commands for a while.
    mesh.table.arrived(there, 1, crate::p2p::Class::Stranger);
    let one_more = || mesh.peers.send(Command::Wanted { peer: there });
    while tokio::time::timeout(Duration::from_millis(20), one_more())
        .await
        .is_ok()
    {}
    let hint = format!("{}/p2p/{away}", member.address());
    let join = question(SubnetId([7; 16]), None, vec![hint]);
    let found = candidates(&mesh, &join, &mut Tried::default(), 0).await;
    assert_eq!(found, [there]);
    joiner.run();
    // What a person says of where a peer is stays in the address book.
    let dialled = async || {
        !mesh
            .peers
            .status_of(away)
            .await
            .unwrap()
            .addresses
            .is_empty()
    };
    eventually("the member is dialled", PATIENCE, dialled).await;
    joiner.stop().await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gave_a_membership_back_unheard_takes_the_next_one_only() {
    let (founder, joiner) = tokio::join!(Daemon::start("founder"), Daemon::start("joiner"));
    let created = founder.create("lab").await;
    let (id, invite) = (created.id, created.invite.unwrap());
    let mesh = Arc::clone(&joiner.commands.mesh);
    let join = question(id, Some(&invite), vec![founder.address()]);
    mesh.node.begin_join(join.clone(), false).await.unwrap();
    let admitted = async || {
        let mut tried = Tried::default();
        let asking = async {
            loop {
                let asked = candidates(&mesh, &join, &mut tried, 0).await;
                if let Some(JoinAnswer::Admitted { genesis, records }) =
                    one_round(&mesh, &join, None, asked).await
                {
                    return (genesis, records);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), asking)
            .await
            .expect("an answer that lets this peer in")
    };
    let (genesis, records) = admitted().await;
    let records = mesh.node.checker().proof(records).await;
    let goodbye = mesh.node.decline(join.clone(), genesis, records).await;
    assert!(goodbye.unwrap().is_some(), "nobody is told of it yet");
    let (genesis, records) = admitted().await;
    take(&mesh, &join, genesis, records).await.unwrap();
    let members = mesh.node.members(id.to_string()).await.unwrap();
    let own = members.iter().find(|member| member.me).unwrap();
    assert_eq!(own.generation, 2, "the goodbye ends the first");
    joiner.stop().await;
    founder.stop().await;
}
