//! Listen addresses that are in use, without a socket, or inside a subnet.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_its_own_error() {
    for listen in ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"] {
        let first = Node::start(on_loopback(32, listen)).await;
        let mut second = on_loopback(33, listen);
        second.listen = vec![first.address.clone()];
        assert!(matches!(start(second), Err(Error::InUse(_))), "{listen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quic_address_without_a_socket_of_its_own_is_an_error() {
    let mut config = on_loopback(32, "/ip4/127.0.0.1/udp/0/quic-v1");
    config.listen = vec!["/ip6/::1/udp/0/quic-v1".parse().unwrap()];
    let error = start(config.clone()).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "listen on /ip6/::1/udp/0/quic-v1: no UDP socket"
    );
    // One socket carries one listener.
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(); 2];
    assert!(matches!(start(config).map(drop), Err(Error::Listen { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn underlay_never_rides_overlay() {
    let (mut a, b) = (
        Node::start(on_loopback(34, "/ip4/127.0.0.1/tcp/0")).await,
        Node::start(on_loopback(35, "/ip4/127.0.0.1/tcp/0")).await,
    );
    let prefix: ipnet::IpNet = "127.0.0.0/8".parse().unwrap();
    a.handle.send(Command::Overlay(vec![prefix])).await.unwrap();
    let withdrawn = |event| match event {
        Event::Listening { addresses } if addresses.is_empty() => Ok(()),
        other => Err(other),
    };
    a.expect(withdrawn).await;
    assert!(
        a.handle
            .connect(vec![Typed::new(b.address.clone())], None)
            .await
            .is_err()
    );
    assert!(
        b.handle
            .connect(vec![Typed::new(a.address.clone())], None)
            .await
            .is_err()
    );
}
