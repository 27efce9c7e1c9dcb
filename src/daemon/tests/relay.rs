//! A daemon that only relays.

use super::*;
use crate::config::keys;
use crate::model::host::Proto;

/// Builds one on a state directory, with sockets of the loopback interface.
async fn build_relay(dir: TempDir) -> Result<Daemon, Error> {
    let mut config = Config::defaults("relay");
    config.relay_only = true;
    config.state_dir = dir.path().join("state");
    config.socket = dir.path().join("s");
    config.listen = ["udp/0/quic-v1", "tcp/0"]
        .map(|at| format!("/ip4/127.0.0.1/{at}"))
        .into();
    config.lan_discovery = false;
    let platform = Platform::of(&config);
    Daemon::build_as(dir, 0, config, &platform).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_refuses_what_needs_a_subnet_and_its_addresses_can_be_pasted() {
    let mut relay = build_relay(TempDir::new().unwrap()).await.unwrap();
    relay.run();
    let id = "7q3km2wd9xra4ce8yn5t0vbz6g";
    let attach = Request::Attach {
        workload: WorkloadKind::Netns("w".to_owned()),
        subnet: "lab".to_owned(),
        name: None,
        ip: None,
        mac: None,
        engine: None,
    };
    let map = Request::MapAdd {
        subnet: "lab".to_owned(),
        proto: Proto::Tcp,
        listen: None,
        port: 9000,
        target: "w".to_owned(),
        target_port: 80,
        name: None,
        allow: Vec::new(),
    };
    let refused = [
        relay.try_create("lab").await.map(drop),
        relay.join(id, &[], true).await.map(drop),
        relay.call(attach).await.map(drop),
        relay.call(map).await.map(drop),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert_eq!(error.code, Code::RelayOnly, "{error}");
        assert!(!error.hint.is_empty());
    }
    let Ok(Response::Status(status)) = relay.call(Request::Status { subnet: None }).await else {
        panic!("no status");
    };
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    eventually("it says where it listens", PATIENCE, async || {
        match relay.call(Request::Id).await {
            Ok(Response::Id(id)) => id.addresses.len() == 2,
            other => panic!("{other:?}"),
        }
    })
    .await;
    let Ok(Response::Id(id)) = relay.call(Request::Id).await else {
        panic!("no id");
    };
    let mut member = Config::defaults("member");
    let bootstrap = keys::find("transport.bootstrap").unwrap();
    (bootstrap.set)(&mut member, &Value::List(id.addresses.clone())).unwrap();
    assert_eq!(member.bootstrap, id.addresses);
    let tail = format!("/p2p/{}", id.peer_id);
    assert!(
        id.addresses.iter().all(|address| address.ends_with(&tail)),
        "{:?}",
        id.addresses
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_with_memberships_is_not_half_served_by_a_relay() {
    let member = Daemon::start("member").await;
    member.create("lab").await;
    let dir = member.stop().await;
    let state = dir.path().join("state").display().to_string();
    let refused = build_relay(dir).await.map(drop).unwrap_err();
    assert_eq!(
        (refused.kind, &refused.code),
        (ErrorKind::Conflict, &Code::RelayOnly.into())
    );
    assert!(
        refused.message.contains(&state) && refused.message.ends_with("memberships: lab"),
        "{refused}"
    );
    assert!(refused.hint.contains("--relay-only --state-dir DIR"));
}
