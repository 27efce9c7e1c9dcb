//! What a reading of the configuration knows of the memberships that are here.

use std::pin::pin;

use futures::poll;
use tokio::sync::oneshot;

use super::*;
use crate::daemon::tests::Daemon;
use crate::node::{Core, Lane};
use crate::testing::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_is_let_in_while_a_reload_looks_is_here() {
    let (founder, joiner) = tokio::join!(Daemon::start("founder"), Daemon::start("joiner"));
    let created = founder.create("lab").await;
    let id = created.id;
    let member = [founder.address()];
    let state = joiner.join(&id.to_string(), &member, false).await.unwrap();
    assert_eq!(state, SubnetState::Pending);
    let asked = async || {
        !founder
            .commands
            .node
            .requests("lab".into())
            .await
            .unwrap()
            .is_empty()
    };
    eventually("the founder is asked", PATIENCE, asked).await;
    let commands = joiner.commands.clone();
    // The node is busy when the reload begins to look: that waits with its first question until it is polled again.
    let (begun, busy) = oneshot::channel();
    let (free, held) = std::sync::mpsc::channel::<()>();
    let node = commands.node.clone();
    let work = tokio::spawn(async move {
        let hold = move |_: &mut Core| {
            let _ = begun.send(());
            let _ = held.recv();
        };
        node.run_in(Lane::Own, hold).await
    });
    busy.await.unwrap();
    let mut looking = pin!(standing(&commands));
    assert!(poll!(looking.as_mut()).is_pending());
    drop(free);
    work.await.unwrap().unwrap();
    let approved = Request::MemberApprove {
        subnet: "lab".into(),
        member: joiner.commands.peers.peer().to_string(),
    };
    founder.call(approved).await.unwrap();
    eventually("the joiner is let in", PATIENCE, async || {
        joiner.is_in(id).await
    })
    .await;
    let here = looking.await.unwrap();
    assert!(here.stands.contains(&id), "{here:?}");
    joiner.stop().await;
    founder.stop().await;
}
