//! What a stop waits for, and what it lets go of.

use byway::api::types::{Request, WorkloadKind};
use tokio::net::UnixListener;

use super::node::{Home, PATIENCE};

/// An engine takes the question of a command and never answers it: that holds a stop up for a moment only, so that
/// everything is let go of within the time that a stop has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_go_of_the_state_although_a_command_waits_for_an_engine() {
    let node = Home::new("node").start().await;
    node.create("lab").await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine");
    let engine = UnixListener::bind(&socket).unwrap();
    let request = Request::Attach {
        workload: WorkloadKind::Docker("web".into()),
        subnet: "lab".into(),
        name: None,
        ip: None,
        mac: None,
        engine: Some(format!("unix://{}", socket.display())),
    };
    let asking = async {
        let (asked, _) = tokio::time::timeout(PATIENCE, engine.accept())
            .await
            .unwrap()
            .unwrap();
        asked
    };
    let asked = tokio::select! {
        asked = asking => asked,
        told = node.call(request) => panic!("{told:?}"),
    };
    // Nobody waits for the answer any more, and the command goes on.
    let home = node.stop().await;
    home.start().await.stop().await;
    drop(asked);
}
