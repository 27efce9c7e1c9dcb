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
        ports: "9000".parse().unwrap(),
        target: "w".to_owned(),
        target_ports: "80".parse().unwrap(),
        name: None,
        allow: Vec::new(),
        workload: None,
    };
    let lab = || "lab".to_owned();
    let refused = [
        relay.try_create("lab").await.map(drop),
        relay.join(id, &[], true).await.map(drop),
        relay.call(attach).await.map(drop),
        relay.call(map).await.map(drop),
        relay.call(Request::Down { subnet: None }).await.map(drop),
        relay
            .call(Request::SubnetShow { subnet: lab() })
            .await
            .map(drop),
        relay
            .call(Request::MemberLs { subnet: lab() })
            .await
            .map(drop),
        relay
            .call(Request::LeaseLs { subnet: lab() })
            .await
            .map(drop),
        relay.call(Request::DnsLs { subnet: lab() }).await.map(drop),
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
    assert!(status.relay_only, "nobody is told to found a subnet there");
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
async fn a_peer_that_is_no_member_is_not_measured() {
    let mut near = build_relay(TempDir::new().unwrap()).await.unwrap();
    let mut far = build_relay(TempDir::new().unwrap()).await.unwrap();
    near.run();
    far.run();
    let address = async || match far.call(Request::Id).await {
        Ok(Response::Id(id)) => id.addresses.into_iter().next(),
        other => panic!("{other:?}"),
    };
    eventually("it says where it listens", PATIENCE, async || {
        address().await.is_some()
    })
    .await;
    let peer = address().await.unwrap();
    let connect = Request::PeerConnect { peer };
    near.call(connect).await.unwrap();
    let Ok(Response::Id(id)) = far.call(Request::Id).await else {
        panic!("no id");
    };
    let target = id.peer_id.to_string();
    let ping = Request::Ping {
        target: target.clone(),
        count: 1,
        timeout_ms: 500,
        path: None,
    };
    for request in [ping, Request::Probe { target }] {
        let error = near.call(request).await.unwrap_err();
        assert_eq!(error.code, Code::NoMember, "{error}");
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    }
    near.stop().await;
    far.stop().await;
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

/// Value and origin of a key as `config show` tells them.
async fn in_force(daemon: &Daemon, key: &str) -> (serde_json::Value, String) {
    match daemon.call(Request::Config).await {
        Ok(Response::Config(info)) => {
            let shown = &info.values[key];
            (shown.value.clone(), shown.origin.clone())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_word_of_the_command_line_outlives_the_daemon_and_yields_to_a_newer_file() {
    let offered = (
        serde_json::json!(true),
        "command line (relay offer)".to_owned(),
    );
    let offer = Request::RelayOffer { max_mbit: Some(40) };
    let files = TempDir::new().unwrap();
    let file = files.path().join("byway.toml");
    std::fs::write(&file, "version = 1\n").unwrap();
    let build = async |dir| {
        let read = |config: &mut Config| config.sources.file = Some(file.clone());
        let mut member = Daemon::build_set(dir, "member", read).await;
        member.run();
        member
    };
    let member = build(TempDir::new().unwrap()).await;
    assert_eq!(
        in_force(&member, "transport.relay.offer").await,
        (serde_json::json!("auto"), "default".to_owned())
    );
    let told = member.call(offer.clone()).await;
    let Ok(Response::Done(done)) = told else {
        panic!("{told:?}")
    };
    assert!(done.changed, "{done:?}");
    assert_eq!(
        done.message,
        "offers to relay for members of its subnets, at most 40 Mbit/s in all"
    );
    let Ok(Response::Done(again)) = member.call(offer).await else {
        panic!("the same again is no error");
    };
    assert!(!again.changed);
    // No file is newer: a reading takes nothing back.
    member.call(Request::Reload).await.unwrap();
    assert_eq!(in_force(&member, "transport.relay.offer").await, offered);
    let dir = member.stop().await;
    let member = build(dir).await;
    assert_eq!(in_force(&member, "transport.relay.offer").await, offered);
    assert_eq!(
        in_force(&member, "transport.relay.max_mbit").await.0,
        serde_json::json!(40)
    );
    std::fs::write(&file, "[transport]\nrelay = { max_mbit = 7 }\n").unwrap();
    member.call(Request::Reload).await.unwrap();
    assert_eq!(
        in_force(&member, "transport.relay.offer").await,
        (serde_json::json!("auto"), "default".to_owned())
    );
    let seven = (serde_json::json!(7), format!("{}:2", file.display()));
    assert_eq!(in_force(&member, "transport.relay.max_mbit").await, seven);
    member.call(Request::RelayOff).await.unwrap();
    assert_eq!(
        in_force(&member, "transport.relay.offer").await,
        (
            serde_json::json!(false),
            "command line (relay off)".to_owned()
        )
    );
    assert_eq!(
        in_force(&member, "transport.relay.max_mbit").await,
        seven,
        "what was said of a former offer is forgotten"
    );
    // Back to what a node does by itself: that outlives the daemon as well.
    std::fs::write(&file, "version = 1\n").unwrap();
    member.call(Request::Reload).await.unwrap();
    member
        .call(Request::RelayOffer { max_mbit: None })
        .await
        .unwrap();
    let Ok(Response::Done(auto)) = member.call(Request::RelayAuto).await else {
        panic!("no answer")
    };
    assert!(auto.changed, "{auto:?}");
    assert_eq!(
        auto.message,
        "relays for members of its subnets, at most 10 Mbit/s in all"
    );
    let by_command = "command line (relay auto)".to_owned();
    let automatic = (serde_json::json!("auto"), by_command);
    let member = build(member.stop().await).await;
    assert_eq!(in_force(&member, "transport.relay.offer").await, automatic);
    // A file that says otherwise since is newer, and the word that is given then newer again.
    std::fs::write(&file, "[transport]\nrelay = { offer = true }\n").unwrap();
    member.call(Request::Reload).await.unwrap();
    let line = format!("{}:2", file.display());
    assert_eq!(
        in_force(&member, "transport.relay.offer").await,
        (serde_json::json!(true), line)
    );
    member.call(Request::RelayAuto).await.unwrap();
    let Ok(Response::Relay(info)) = member.call(Request::RelayLs).await else {
        panic!("no answer")
    };
    assert_eq!((info.offer, info.offer_origin), automatic);
    assert_eq!(info.max_mbit, Some(10));
    member.stop().await;
}
