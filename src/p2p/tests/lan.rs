//! Two namespaces, one veth, no default route: loss and return over a real link. Needs root.

use std::process::Command as Process;
use std::sync::mpsc as channel;

use super::*;

struct Lan([String; 2]);

fn ip(args: &str) {
    let done = Process::new("ip").args(args.split(' ')).status().unwrap();
    assert!(done.success(), "ip {args}");
}

impl Lan {
    fn new(name: &str, families: &[u8]) -> Lan {
        let id = std::process::id();
        let names = ["a", "b"].map(|side| format!("p2p-{name}-{id}-{side}"));
        let [a, b] = &names;
        ip(&format!("netns add {a}"));
        ip(&format!("netns add {b}"));
        ip(&format!(
            "-n {a} link add u0 type veth peer name u0 netns {b}"
        ));
        for (n, side) in names.iter().enumerate() {
            ip(&format!("-n {side} link set lo up"));
            ip(&format!("-n {side} link set u0 up"));
            if families.contains(&4) {
                ip(&format!("-n {side} addr add 192.0.2.{}/24 dev u0", n + 1));
            }
            if families.contains(&6) {
                ip(&format!(
                    "-n {side} addr add 2001:db8::{}/64 dev u0 nodad",
                    n + 1
                ));
            }
        }
        Lan(names)
    }

    /// Runs a node on a thread inside one of the namespaces.
    fn inside<F: Future<Output = ()>>(
        &self,
        side: usize,
        body: impl FnOnce() -> F + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let path = format!("/run/netns/{}", self.0[side]);
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(body());
        })
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.0
            .iter()
            .for_each(|name| ip(&format!("netns del {name}")));
    }
}

fn wildcard(seed: u8) -> Config {
    let mut config = Config::new([seed; 32]);
    for listen in [
        "/ip4/0.0.0.0/tcp/4100",
        "/ip4/0.0.0.0/udp/4100/quic-v1",
        "/ip6/::/tcp/4100",
        "/ip6/::/udp/4100/quic-v1",
    ] {
        listen_also(&mut config, listen);
    }
    config
}

fn peer_of(seed: u8) -> PeerId {
    let key = libp2p::identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap();
    peer_from_lib(&key.public().to_peer_id()).unwrap()
}

#[test]
#[ignore = "needs root"]
fn quic_listens_on_the_addresses_that_come_and_no_more_on_those_that_go() {
    let lan = Lan::new("if", &[4, 6]);
    let name = lan.0[0].clone();
    let one = lan.inside(0, move || async move {
        let mut config = on_loopback(1, "/ip4/0.0.0.0/udp/4100/quic-v1");
        listen_also(&mut config, "/ip6/::/udp/4100/quic-v1");
        let mut node = Node::start(config).await;
        for (address, told) in [
            ("198.51.100.7/24", "/ip4/198.51.100.7/udp/4100/quic-v1"),
            ("2001:db8:7::7/64", "/ip6/2001:db8:7::7/udp/4100/quic-v1"),
        ] {
            let told: Address = told.parse().unwrap();
            for (verb, there) in [("add", true), ("del", false)] {
                ip(&format!("-n {name} addr {verb} {address} dev u0"));
                let heard = |event| match event {
                    Event::Listening { addresses } if addresses.contains(&told) == there => Ok(()),
                    other => Err(other),
                };
                node.expect(heard).await;
            }
        }
        node.stop().await;
    });
    one.join().unwrap();
}

#[test]
#[ignore = "needs root"]
fn an_unplugged_peer_is_missed_and_its_return_noticed() {
    let lan = Lan::new("up", &[4]);
    let (done, finish) = channel::channel::<()>();
    let other = lan.inside(1, move || async move {
        let node = Node::start(wildcard(2)).await;
        node.members(&[(peer_of(1), &[LAB])]).await;
        tokio::task::spawn_blocking(move || finish.recv())
            .await
            .unwrap()
            .ok();
        node.stop().await;
    });
    let names = lan.0.clone();
    let one = lan.inside(0, move || async move {
        let mut node = Node::start(wildcard(1)).await;
        node.members(&[(peer_of(2), &[LAB])]).await;
        let at: Typed = "/ip4/192.0.2.2/udp/4100/quic-v1".parse().unwrap();
        // The other one may not listen yet.
        while node.handle.connect(vec![at.clone()], Some(peer_of(2))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (_, _, mut stream) = node.stream_out().await;
        // The link stays up at this side: nothing but silence tells. Bytes fill the socket meanwhile.
        let block = "table inet cut { chain in { type filter hook input priority 0; iifname u0 drop; }; chain out { type filter hook output priority 0; oifname u0 drop; }; }";
        let nft = |script: &str| {
            let args = ["netns", "exec", &names[1], "nft", script];
            assert!(Process::new("ip").args(args).status().unwrap().success());
        };
        nft(&format!("add {block}"));
        let cut = Instant::now();
        let flood = tokio::spawn(async move { while stream.write_all(&[0; 16_384]).await.is_ok() {} });
        loop {
            if node.closed().await.1 == 0 {
                break;
            }
        }
        println!("missed after {:?}", cut.elapsed());
        assert!(cut.elapsed() < Duration::from_secs(15), "{:?}", cut.elapsed());
        timeout(PATIENCE, flood).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        while node.within(Duration::from_millis(1), |event| if let Event::StreamOut { .. } = event { Ok(()) } else { Err(event) }).await.is_some() {}
        nft("delete table inet cut");
        let back = Instant::now();
        node.stream_out().await;
        println!("back after {:?}", back.elapsed());
        assert!(back.elapsed() < Duration::from_secs(4), "{:?}", back.elapsed());
        node.stop().await;
    });
    let result = one.join();
    drop(done);
    other.join().unwrap();
    result.unwrap();
}
