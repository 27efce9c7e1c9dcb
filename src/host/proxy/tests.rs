use super::*;
use crate::model::id::SubnetId;
use tokio::net::UdpSocket;

fn map(proto: Proto, listen: SocketAddr, target: SocketAddr) -> MapConfig {
    MapConfig {
        subnet: SubnetId([1; 16]),
        name: "web".parse().unwrap(),
        proto,
        listen: listen.ip(),
        port: listen.port(),
        target: Some(target.ip()),
        target_port: target.port(),
        local: true,
        source: None,
        allow: vec![],
        draining: false,
    }
}

/// A server that says its name and then echoes.
async fn server(listen: &str, name: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(listen).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                stream.write_all(name.as_bytes()).await.unwrap();
                let (mut r, mut w) = stream.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    (addr, task)
}

async fn free(listen: &str) -> SocketAddr {
    TcpListener::bind(listen)
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

async fn hello(addr: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut name = [0; 3];
    stream.read_exact(&mut name).await.unwrap();
    (stream, String::from_utf8_lossy(&name).into_owned())
}

#[tokio::test]
async fn tcp_follows_its_map() {
    for family in ["127.0.0.1:0", "[::1]:0"] {
        let ((one, t1), (two, t2)) = (server(family, "one").await, server(family, "two").await);
        let listen = free(family).await;
        let mut proxies = Proxies::new();
        let mut map = map(Proto::Tcp, listen, one);
        assert!(
            proxies
                .sync(std::slice::from_ref(&map), &BTreeSet::new())
                .await
                .is_empty()
        );
        let (mut stream, name) = hello(listen).await;
        assert_eq!(name, "one");
        stream.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
        let count = proxies.counters()[&MapKey::of(&map)];
        assert_eq!(
            count,
            MapCount {
                connections: 1,
                rx_bytes: 4,
                tx_bytes: 7
            }
        );

        // The target moves: the socket stays, running flows end, new ones go there.
        map.target_port = two.port();
        assert!(
            proxies
                .sync(std::slice::from_ref(&map), &BTreeSet::new())
                .await
                .is_empty()
        );
        assert_eq!(stream.read(&mut echo).await.unwrap_or(0), 0);
        let (mut stream, name) = hello(listen).await;
        assert_eq!(name, "two");

        // The map goes: so do its flows and its socket.
        assert!(proxies.sync(&[], &BTreeSet::new()).await.is_empty());
        assert_eq!(stream.read(&mut echo).await.unwrap_or(0), 0);
        assert!(TcpStream::connect(listen).await.is_err());
        t1.abort();
        t2.abort();
    }
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other() {
    let (target, task) = server("127.0.0.1:0", "srv").await;
    let listen = free("127.0.0.1:0").await;
    let mut proxies = Proxies::new();
    proxies
        .sync(&[map(Proto::Tcp, listen, target)], &BTreeSet::new())
        .await;
    let (mut stream, _) = hello(listen).await;
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last words");
    task.abort();
}

#[tokio::test]
async fn udp_clients_get_their_own_answers() {
    let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = target.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let (n, from) = target.recv_from(&mut buffer).await.unwrap();
            target.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    let listen = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut proxies = Proxies::new();
    let map = map(Proto::Udp, listen, addr);
    assert!(
        proxies
            .sync(std::slice::from_ref(&map), &BTreeSet::new())
            .await
            .is_empty()
    );
    for text in ["a", "bb"] {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(listen).await.unwrap();
        client.send(text.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        let n = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], text.as_bytes());
    }
    let count = proxies.counters()[&MapKey::of(&map)];
    assert_eq!(
        count,
        MapCount {
            connections: 2,
            rx_bytes: 3,
            tx_bytes: 3
        }
    );
    echo.abort();
}

#[tokio::test]
async fn a_map_that_drains_serves_those_that_are_there_and_nobody_new() {
    let (one, server) = server("127.0.0.1:0", "one").await;
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let datagrams = echo.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let (n, from) = echo.recv_from(&mut buffer).await.unwrap();
            echo.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    let listen = free("127.0.0.1:0").await;
    let mut maps = [
        map(Proto::Tcp, listen, one),
        map(Proto::Udp, listen, datagrams),
    ];
    let mut proxies = Proxies::new();
    assert!(proxies.sync(&maps, &BTreeSet::new()).await.is_empty());
    let (mut stream, _) = hello(listen).await;
    let says = async |client: &UdpSocket| {
        client.send(b"x").await.unwrap();
        let mut buffer = [0; 8];
        let heard = client.recv(&mut buffer);
        let heard = tokio::time::timeout(Duration::from_millis(300), heard).await;
        matches!(heard, Ok(Ok(1)))
    };
    let (old, new) = (
        udp::connected(listen).await.unwrap(),
        udp::connected(listen).await.unwrap(),
    );
    assert!(says(&old).await);

    maps.iter_mut().for_each(|map| map.draining = true);
    assert!(proxies.sync(&maps, &BTreeSet::new()).await.is_empty());
    while TcpStream::connect(listen).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping", "what is there goes on");
    assert!(says(&old).await && !says(&new).await);

    maps.iter_mut().for_each(|map| map.draining = false);
    assert!(proxies.sync(&maps, &BTreeSet::new()).await.is_empty());
    while TcpStream::connect(listen).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stream.write_all(b"pong").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"pong");
    assert!(says(&old).await && says(&new).await);
    server.abort();
    echo.abort();
}

#[tokio::test]
async fn clients_outside_the_allow_list_get_nothing() {
    let (target, task) = server("127.0.0.1:0", "srv").await;
    let listen = free("127.0.0.1:0").await;
    let mut map = map(Proto::Tcp, listen, target);
    map.allow = vec!["192.0.2.0/24".parse().unwrap()];
    let mut proxies = Proxies::new();
    proxies
        .sync(std::slice::from_ref(&map), &BTreeSet::new())
        .await;
    let mut stream = TcpStream::connect(listen).await.unwrap();
    assert_eq!(stream.read(&mut [0; 4]).await.unwrap_or(0), 0);
    map.allow = vec!["127.0.0.0/8".parse().unwrap()];
    proxies
        .sync(std::slice::from_ref(&map), &BTreeSet::new())
        .await;
    assert_eq!(hello(listen).await.1, "srv");
    task.abort();
}

#[tokio::test]
async fn a_taken_port_is_a_failure_that_heals() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = holder.local_addr().unwrap();
    let (target, task) = server("127.0.0.1:0", "srv").await;
    let mut proxies = Proxies::new();
    let maps = [map(Proto::Tcp, listen, target)];
    assert_eq!(proxies.sync(&maps, &BTreeSet::new()).await.len(), 1);
    drop(holder);
    assert!(proxies.sync(&maps, &BTreeSet::new()).await.is_empty());
    assert_eq!(hello(listen).await.1, "srv");
    task.abort();
}

#[tokio::test]
async fn who_sits_on_connections_keeps_nobody_out() {
    let (target, task) = server("127.0.0.1:0", "srv").await;
    let listen = free("127.0.0.1:0").await;
    let mut proxies = Proxies {
        shut: Shut::default(),
        running: HashMap::new(),
        round: 0,
        flows: Flows::within(20),
    };
    proxies
        .sync(&[map(Proto::Tcp, listen, target)], &BTreeSet::new())
        .await;
    let mut idle = Vec::new();
    for n in 0..30 {
        let (stream, name) = hello(listen).await;
        assert_eq!(name, "srv", "connection {n}");
        idle.push(stream);
    }
    assert_eq!(proxies.flows.used(), 20);
    assert_eq!(
        idle[0].read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "the first one has made room"
    );
    let mut last = idle.pop().unwrap();
    last.write_all(b"x").await.unwrap();
    assert_eq!(last.read(&mut [0; 1]).await.unwrap(), 1);
    drop((idle, last));
    for _ in 0..500 {
        if proxies.flows.used() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(proxies.flows.used(), 0);
    task.abort();
}

#[tokio::test]
async fn one_map_leaves_descriptors_to_the_others() {
    let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (addr, web) = (
        target.local_addr().unwrap(),
        server("127.0.0.1:0", "srv").await,
    );
    let listen = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let tcp = free("127.0.0.1:0").await;
    let mut proxies = Proxies {
        shut: Shut::default(),
        running: HashMap::new(),
        round: 0,
        flows: Flows::within(16),
    };
    proxies
        .sync(
            &[map(Proto::Udp, listen, addr), map(Proto::Tcp, tcp, web.0)],
            &BTreeSet::new(),
        )
        .await;
    let mut buffer = [0; 64];
    let mut clients = Vec::new();
    for n in 0..100u8 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&[n], listen).await.unwrap();
        let (length, from) = target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..length], [n]);
        if n == 99 {
            target.send_to(b"yes", from).await.unwrap();
            assert_eq!(
                client.recv(&mut buffer).await.unwrap(),
                3,
                "the newest one has its answer"
            );
        }
        clients.push(client);
    }
    assert_eq!(proxies.flows.used(), 16);
    assert_eq!(hello(tcp).await.1, "srv", "of the map that holds most");
    web.1.abort();
}

#[tokio::test]
async fn a_silent_flow_ends() {
    let flows = Flows::within(16);
    let (udp, any) = (Proto::Udp, "127.0.0.1:1".parse().unwrap());
    let ticket = flows.enter(MapKey::of(&map(udp, any, any)), 1, 1);
    let (quiet, limit) = (tokio::time::Instant::now(), Duration::from_millis(200));
    tokio::time::sleep(limit / 2).await;
    ticket.touch();
    ticket.silent(limit).await;
    assert!(
        quiet.elapsed() >= limit + limit / 2 - Duration::from_millis(5),
        "{:?}",
        quiet.elapsed()
    );
}
