//! Holes that datagrams found: QUIC is dialled there. Two namespaces with a cable between them need root, because nothing is
//! dialled on hearsay at an address of this machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command as Process;

use tokio::net::UdpSocket;

use super::*;

/// Two namespaces with a cable between them: 10.77.0.1 and 10.77.0.2.
struct Cable([String; 2]);

fn ip(args: &str) -> bool {
    let ran = Process::new("ip").args(args.split(' ')).status();
    ran.unwrap().success()
}

impl Cable {
    /// Tests run at once: `name` tells theirs apart.
    fn new(name: &str) -> Cable {
        let id = std::process::id();
        let cable = Cable(["a", "b"].map(|end| format!("p2p-{name}-{id}-{end}")));
        let [a, b] = &cable.0;
        assert!(ip(&format!("netns add {a}")) && ip(&format!("netns add {b}")));
        assert!(ip(&format!(
            "-n {a} link add eth0 type veth peer name eth0 netns {b}"
        )));
        for (n, space) in [(1, a), (2, b)] {
            assert!(ip(&format!("-n {space} addr add 10.77.0.{n}/24 dev eth0")));
            assert!(ip(&format!("-n {space} link set eth0 up")));
        }
        cable
    }

    /// What is bound inside stays inside.
    fn inside<T: Send + 'static>(&self, end: usize, bind: fn(SocketAddr) -> T, at: &str) -> T {
        let path = format!("/run/netns/{}", self.0[end]);
        let at = at.parse().unwrap();
        let thread = std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            bind(at)
        });
        thread.join().unwrap()
    }

    async fn node(&self, end: usize, seed: u8) -> Node {
        let at = format!("10.77.0.{}:4100", end + 1);
        let mut config = Config::new([seed; 32]);
        config.timing = fast();
        config.quic.push(self.inside(end, quic_socket, &at));
        let listen = format!("/ip4/10.77.0.{}/udp/4100/quic-v1", end + 1);
        config.listen.push(listen.parse().unwrap());
        Node::start(config).await
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.0 {
            ip(&format!("netns del {name}"));
        }
    }
}

async fn punched(node: &Node, peer: PeerId, address: SocketAddr) {
    let punched = Command::Punched { peer, address };
    node.handle.send(punched).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_hole_to_a_member_is_dialled_although_nobody_told_the_address() {
    let cable = Cable::new("hole");
    let (a, b) = (cable.node(0, 210).await, cable.node(1, 211).await);
    let (peer, address) = (b.peer(), "10.77.0.2:4100".parse().unwrap());
    punched(&a, peer, address).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(a.connections(peer).await.is_empty(), "it is no member");
    a.members(&[(peer, &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    punched(&a, peer, address).await;
    let took = eventually("a connection through the hole", PATIENCE, async || {
        let held = a.connections(peer).await;
        held.len() == 1 && held[0].transport == "quic"
    })
    .await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let kept = a.connections(peer).await[0].connection;
    // Said again, it is dialled no more.
    for _ in 0..5 {
        punched(&a, peer, address).await;
    }
    tokio::time::sleep(fast().surplus * 2).await;
    let held = a.connections(peer).await;
    assert_eq!((held.len(), held[0].connection), (1, kept));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_hole_that_leads_nowhere_is_left_after_five_dials() {
    let cable = Cable::new("pit");
    let a = cable.node(0, 212).await;
    let bind = |at| std::net::UdpSocket::bind(at).unwrap();
    let nobody = cable.inside(1, bind, "10.77.0.2:5000");
    nobody.set_nonblocking(true).unwrap();
    let nobody = UdpSocket::from_std(nobody).unwrap();
    let key = libp2p::identity::Keypair::ed25519_from_bytes([77; 32]).unwrap();
    let peer = crate::p2p::peer_from_lib(&key.public().to_peer_id()).unwrap();
    a.members(&[(peer, &[LAB])]).await;
    punched(&a, peer, "10.77.0.2:5000".parse().unwrap()).await;
    // The first packets of a dial carry a connection ID of their own: behind the first byte, the version and its length.
    let (mut dials, mut bytes) = (BTreeMap::new(), [0; 2048]);
    let until = Instant::now() + Duration::from_secs(9);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(Ok(n)) = timeout(left, nobody.recv(&mut bytes)).await else {
            break;
        };
        if n >= 1200 && bytes[0] & 0x80 != 0 {
            let id = bytes[6..6 + usize::from(bytes[5])].to_vec();
            dials.entry(id).or_insert(Instant::now());
        }
    }
    let mut times: Vec<Instant> = dials.into_values().collect();
    times.sort();
    assert_eq!(times.len(), 5);
    let least = Duration::from_millis(900);
    let mut apart = times.windows(2).map(|two| two[1] - two[0]);
    assert!(apart.all(|gap| gap >= least), "{times:?}");
}

/// A peer could make its datagrams come from anywhere that this machine reaches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_at_an_address_of_this_machine_is_not_dialled() {
    let a = Node::start(on_loopback(213, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    let b = Node::start(on_loopback(214, "/ip4/127.0.0.1/udp/0/quic-v1")).await;
    a.members(&[(b.peer(), &[LAB])]).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    punched(&a, b.peer(), b.address.udp().unwrap()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(a.connections(b.peer()).await.is_empty());
}
