//! What engines say over the socket, word for word, and what they get.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::protocol::{Asked, Driver, read, write};
use super::*;

const NETWORK: &str = "5fd9c0d1e2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";
const ENDPOINT: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90";

fn called(path: &str, body: &Value) -> Call {
    match read(path, body.to_string().as_bytes()) {
        Asked::Call(call) => call,
        other => panic!("{path} {body}: {other:?}"),
    }
}

fn refused(path: &str, body: &Value) -> String {
    match read(path, body.to_string().as_bytes()) {
        Asked::Wrong(why) => why,
        other => panic!("{path} {body}: {other:?}"),
    }
}

/// A network as engines 20.10, 28 and 29 make it: later ones say more of the families and of themselves.
fn networks() -> [Value; 3] {
    let data = |extra: Value| {
        let mut options = json!({
            "com.docker.network.enable_ipv6": false,
            "com.docker.network.generic": {"subnet": "lab"}
        });
        for (key, value) in extra.as_object().unwrap() {
            options[key] = value.clone();
        }
        json!({
            "NetworkID": NETWORK, "Options": options,
            "IPv4Data": [{"AddressSpace": "byway", "Pool": "10.77.0.0/16", "Gateway": "10.77.1.1/32"}],
            "IPv6Data": []
        })
    };
    [
        data(json!({})),
        data(json!({"com.docker.network.enable_ipv4": true})),
        data(json!({"com.docker.network.enable_ipv4": true, "com.docker.network.internal": true})),
    ]
}

#[test]
fn a_network_is_read_as_every_engine_makes_it() {
    let pool = "10.77.0.0/16".parse().unwrap();
    for body in networks() {
        let network = Network {
            id: NETWORK.to_owned(),
            subnet: Some("lab".to_owned()),
            pools: vec![pool],
        };
        assert_eq!(
            called("/NetworkDriver.CreateNetwork", &body),
            Call::CreateNetwork(network)
        );
    }
    let gone = called(
        "/NetworkDriver.DeleteNetwork",
        &json!({"NetworkID": NETWORK}),
    );
    assert_eq!(gone, Call::DeleteNetwork(NETWORK.to_owned()));
}

#[test]
fn pools_and_addresses_are_read_as_every_engine_asks_for_them() {
    // 20.10; and 29, which leaves out nothing but says "Exclude" to itself.
    let asked = json!({"AddressSpace": "byway", "Pool": "", "SubPool": "", "Options": {"subnet": "lab"}, "V6": false});
    assert_eq!(
        called("/IpamDriver.RequestPool", &asked),
        Call::RequestPool(PoolAsked {
            subnet: Some("lab".into()),
            prefix: None,
            ipv6: false
        })
    );
    let bare = json!({"AddressSpace": "byway", "Pool": "fd00:77::/48", "SubPool": "", "Options": null, "V6": true});
    assert_eq!(
        called("/IpamDriver.RequestPool", &bare),
        Call::RequestPool(PoolAsked {
            subnet: None,
            prefix: "fd00:77::/48".parse().ok(),
            ipv6: true
        })
    );
    let gateway = json!({"PoolID": "byway/x/4", "Address": "", "Options": {"RequestAddressType": "com.docker.network.gateway"}});
    let own = json!({"PoolID": "byway/x/4", "Address": "10.77.1.9", "Options": {}});
    let named = json!({"PoolID": "byway/x/4", "Address": "", "Options": {"com.docker.network.endpoint.name": "web"}});
    let of = |wanted: Option<&str>, gateway, name: Option<&str>| {
        Call::RequestAddress(Addresses {
            pool: "byway/x/4".into(),
            wanted: wanted.map(|w| w.parse().unwrap()),
            gateway,
            name: name.map(str::to_owned),
        })
    };
    let path = "/IpamDriver.RequestAddress";
    assert_eq!(called(path, &gateway), of(None, true, None));
    assert_eq!(called(path, &own), of(Some("10.77.1.9"), false, None));
    assert_eq!(
        called(path, &named),
        of(None, false, Some("web")),
        "engine 29 tells the name"
    );
    assert_eq!(
        called(
            "/IpamDriver.ReleaseAddress",
            &json!({"PoolID": "byway/x/4", "Address": "10.77.1.9"})
        ),
        Call::ReleaseAddress {
            pool: "byway/x/4".into(),
            address: "10.77.1.9".parse().unwrap()
        }
    );
}

#[test]
fn endpoints_are_read_and_join() {
    let made = json!({
        "NetworkID": NETWORK, "EndpointID": ENDPOINT,
        "Interface": {"Address": "10.77.1.2/32", "AddressIPv6": "", "MacAddress": ""},
        "Options": {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": []}
    });
    let path = "/NetworkDriver.CreateEndpoint";
    let Call::CreateEndpoint(endpoint) = called(path, &made) else {
        panic!()
    };
    assert_eq!(
        endpoint.addresses,
        ["10.77.1.2".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(endpoint.mac, None);
    let mut with_mac = made.clone();
    with_mac["Interface"]["MacAddress"] = json!("02:42:0a:4d:01:02");
    let Call::CreateEndpoint(endpoint) = called(path, &with_mac) else {
        panic!()
    };
    assert_eq!(endpoint.mac, Some([2, 0x42, 0x0a, 0x4d, 1, 2]));
    let join = json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": "/var/run/docker/netns/0a1b2c3d4e5f", "Options": null});
    assert_eq!(
        called("/NetworkDriver.Join", &join),
        Call::Join(Join {
            network: NETWORK.into(),
            endpoint: ENDPOINT.into(),
            sandbox: "/var/run/docker/netns/0a1b2c3d4e5f".into()
        })
    );
    let ids = json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT});
    assert_eq!(
        called("/NetworkDriver.Leave", &ids),
        Call::Leave(ENDPOINT.into())
    );
    assert_eq!(
        called("/NetworkDriver.DeleteEndpoint", &ids),
        Call::DeleteEndpoint(ENDPOINT.into())
    );
}

#[test]
fn answers_are_written_as_the_engine_reads_them() {
    let joined = Reply::Joined(Joined {
        link: "bwi0".into(),
        routes: vec![
            Route {
                to: "10.77.1.1/32".parse().unwrap(),
                via: None,
            },
            Route {
                to: "10.77.0.0/16".parse().unwrap(),
                via: "10.77.1.1".parse().ok(),
            },
        ],
    });
    assert_eq!(
        write(&joined),
        json!({
            "InterfaceName": {"SrcName": "bwi0", "DstPrefix": "eth"},
            "StaticRoutes": [
                {"Destination": "10.77.1.1/32", "RouteType": 1, "NextHop": ""},
                {"Destination": "10.77.0.0/16", "RouteType": 0, "NextHop": "10.77.1.1"}
            ]
        })
    );
    assert_eq!(
        write(&Reply::Address("10.77.1.2".parse().unwrap()))["Address"],
        "10.77.1.2/32"
    );
    assert_eq!(
        write(&Reply::Endpoint(Some([2, 0x62, 0x77, 0, 1, 0xff])))["Interface"]["MacAddress"],
        "02:62:77:00:01:ff"
    );
    assert_eq!(
        Driver::of("/IpamDriver.RequestPool").error("no"),
        json!({"Error": "no"})
    );
    assert_eq!(
        Driver::of("/NetworkDriver.Join").error("no"),
        json!({"Err": "no"})
    );
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let pool = "/IpamDriver.RequestPool";
    for (body, word) in [
        (
            json!({"Options": {"subnet": "lab", "color": "red"}}),
            "color=red",
        ),
        (json!({"Options": {"subnet": ""}}), "needs the name"),
        (json!({"SubPool": "10.77.3.0/24"}), "--ip-range"),
        (json!({"Pool": "ten"}), "no prefix"),
        (json!({"V6": "yes"}), "cannot be read"),
    ] {
        let why = refused(pool, &body);
        assert!(why.contains(word), "{body}: {why}");
    }
    let network = json!({"NetworkID": NETWORK, "Options": {"com.docker.network.generic": {"parent": "eth0"}}});
    assert!(refused("/NetworkDriver.CreateNetwork", &network).contains("parent=eth0"));
    assert!(refused("/NetworkDriver.AllocateNetwork", &json!({})).contains("swarm"));
    for id in ["", "a b", "a\n", &"f".repeat(256)] {
        assert!(
            refused("/NetworkDriver.DeleteNetwork", &json!({"NetworkID": id})).contains("no ID")
        );
    }
    let group = json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": {"MacAddress": "01:00:5e:00:00:01"}});
    assert!(refused("/NetworkDriver.CreateEndpoint", &group).contains("unicast"));
    assert_eq!(read("/VolumeDriver.List", b"{}"), Asked::Unknown);
}

async fn post(path: &Path, call: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let request = format!(
        "POST {call} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // One that is refused before it is read whole may find nobody who reads on.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8(answer).unwrap();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned();
    (status, body)
}

#[tokio::test]
async fn activation_is_answered_before_anything_else_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugins/byway.sock");
    let (tell, handler) = watch::channel(None);
    let server = Server::start(&path, None, handler).unwrap();
    let began = Instant::now();
    let (status, body) = post(&path, "/Plugin.Activate", "").await;
    assert!(
        began.elapsed() < Duration::from_millis(50),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(status, 200);
    assert_eq!(body, r#"{"Implements":["NetworkDriver","IpamDriver"]}"#);
    assert_eq!(post(&path, "/VolumeDriver.List", "{}").await.0, 404);
    let large = "x".repeat(300 * 1024);
    assert_eq!(post(&path, "/NetworkDriver.Join", &large).await.0, 413);
    // What has to be decided waits until there is somebody who decides.
    let delete = format!(r#"{{"NetworkID":"{NETWORK}"}}"#);
    let asked = post(&path, "/NetworkDriver.DeleteNetwork", &delete);
    let refuses: Handler = Arc::new(|_| Box::pin(async { Err("there is none".to_owned()) }));
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        tell.send_replace(Some(refuses));
    };
    let ((status, body), ()) = tokio::join!(asked, later);
    assert_eq!((status, body.as_str()), (200, r#"{"Err":"there is none"}"#));
    drop(server);
    assert!(!path.exists(), "a stopped daemon leaves no socket behind");
}

#[tokio::test]
async fn a_dead_socket_is_taken_over_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("byway.sock");
    drop(UnixListener::bind(&path).unwrap());
    let (_tell, handler) = watch::channel(None);
    let first = Server::start(&path, None, handler.clone()).unwrap();
    let second = Server::start(&path, None, handler.clone());
    assert!(second.is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse));
    assert_eq!(
        post(&path, "/Plugin.Activate", "").await.0,
        200,
        "the first is not disturbed"
    );
    // Somebody else's file in its place is left alone.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"theirs").unwrap();
    drop(first);
    assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    assert!(Server::start(&path, None, handler).is_err());
}
