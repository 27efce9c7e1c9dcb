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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_address_is_neither_told_nor_dialled_until_it_is_denied_no_more() {
    let mut config = on_loopback(36, "/ip4/127.0.0.1/tcp/0");
    config.denied = vec!["127.0.0.9/32".parse().unwrap()];
    let mut a = Node::start(config).await;
    let b = Node::start(on_loopback(37, "/ip4/127.0.0.1/tcp/0")).await;
    let told = |some: bool| {
        move |event| match event {
            Event::Listening { addresses } if addresses.is_empty() != some => Ok(()),
            other => Err(other),
        }
    };
    let prefix: ipnet::IpNet = "127.0.0.0/8".parse().unwrap();
    a.handle.send(Command::Deny(vec![prefix])).await.unwrap();
    a.expect(told(false)).await;
    let handle = a.handle.clone();
    let dial = || handle.connect(vec![Typed::new(b.address.clone())], None);
    let refused = dial().await.unwrap_err();
    assert!(
        refused.to_string().contains("transport.deny_cidrs"),
        "{refused}"
    );
    // Nor is anybody let in who comes from there.
    let typed = vec![Typed::new(a.address.clone())];
    assert!(b.handle.connect(typed, None).await.is_err());
    a.handle.send(Command::Deny(Vec::new())).await.unwrap();
    a.expect(told(true)).await;
    dial().await.unwrap();
}
