//! The ruleset in a real kernel: a host with two subnets, workloads, a remote peer and a neighbour on the LAN, each a
//! network namespace. Needs root and nft; without them each test says so and passes.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;

use super::elements::tests::{config, elements, map, workload};
use super::*;
use crate::host::conntrack;
use crate::host::proxy::Proxies;
use crate::model::host::{Barred, Family, MapConfig, Proto};

mod crowd;
mod machine;
mod watched;

/// How long something that must not get through is waited for.
const SILENCE: Duration = Duration::from_millis(400);
/// How long something that must get through is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

fn ip(args: &str) {
    let done = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A network namespace and a thread inside it that runs futures.
struct Ns {
    name: String,
    handle: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ns {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));
        let (started, handle) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let inside = name.clone();
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{inside}")).unwrap();
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            started.send(runtime.handle().clone()).unwrap();
            let _ = runtime.block_on(stopped);
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        let ns = Ns {
            name,
            handle: handle.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        };
        ns.sh("ip link set lo up");
        ns
    }

    /// Runs a future inside and waits for it.
    fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        self.handle.spawn(async move {
            let _ = done.send(future.await);
        });
        result.recv().expect("the future panicked")
    }

    fn try_sh(&self, command: &str) -> (bool, String) {
        let done = Command::new("ip")
            .args(["netns", "exec", &self.name, "sh", "-c", command])
            .output()
            .unwrap();
        let text = [done.stdout, done.stderr].concat();
        (
            done.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn sh(&self, command: &str) -> String {
        let (ok, text) = self.try_sh(command);
        assert!(ok, "{command}: {text}");
        text
    }

    /// Serves `port` of both protocols and families: answers with the client's address, then echoes.
    fn serve(&self, port: u16) {
        self.run(async move {
            let tcp = TcpListener::bind(("::", port)).await.unwrap();
            tokio::spawn(async move {
                loop {
                    let (mut stream, from) = tcp.accept().await.unwrap();
                    tokio::spawn(async move {
                        let _ = stream
                            .write_all(format!("{}\n", from.ip().to_canonical()).as_bytes())
                            .await;
                        let (mut r, mut w) = stream.split();
                        let _ = tokio::io::copy(&mut r, &mut w).await;
                    });
                }
            });
            let udp = UdpSocket::bind(("::", port)).await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                while let Ok((_, from)) = udp.recv_from(&mut buffer).await {
                    let _ = udp
                        .send_to(from.ip().to_canonical().to_string().as_bytes(), from)
                        .await;
                }
            });
        });
    }

    /// Connects and returns the stream and the address the server saw.
    fn connect(&self, to: &str, wait: Duration) -> Option<(TcpStream, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(async move {
            let mut stream = tokio::time::timeout(wait, TcpStream::connect(to))
                .await
                .ok()?
                .ok()?;
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                line.push(
                    tokio::time::timeout(wait, stream.read_u8())
                        .await
                        .ok()?
                        .ok()?,
                );
            }
            Some((stream, String::from_utf8_lossy(&line).trim().parse().ok()?))
        })
    }

    fn tcp(&self, to: &str) -> Option<IpAddr> {
        self.connect(to, PATIENCE).map(|(_, seen)| seen)
    }

    /// One datagram and the answer: the address the server saw.
    fn udp(&self, to: &str, wait: Duration) -> Option<IpAddr> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(async move {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).await.unwrap();
            socket.connect(to).await.ok()?;
            socket.send(b"who am I").await.ok()?;
            let mut buffer = [0; 100];
            let n = tokio::time::timeout(wait, socket.recv(&mut buffer))
                .await
                .ok()?
                .ok()?;
            String::from_utf8_lossy(&buffer[..n]).parse().ok()
        })
    }

    fn ping(&self, to: &str) -> bool {
        self.try_sh(&format!("ping -n -c 1 -W 1 {to}")).0
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Whether an echo still comes back on `stream`.
fn echoes(ns: &Ns, stream: &Arc<Mutex<TcpStream>>, wait: Duration) -> bool {
    let stream = stream.clone();
    ns.run(async move {
        let mut stream = stream.lock().await;
        let mut echo = [0; 4];
        stream.write_all(b"ping").await.is_ok()
            && matches!(
                tokio::time::timeout(wait, stream.read_exact(&mut echo)).await,
                Ok(Ok(_))
            )
    })
}

/// ```text
/// neighbour ---- host ==== bw-net7 ==== peer          10.7.2.1 fd00:7::2:1
/// 192.0.2.2      .1   ---- bwv00070002 -- a           10.7.1.2 fd00:7::2
///                     ---- bwv00070003 -- b           10.7.1.3 fd00:7::3
///                     ---- bwv00080002 -- c           10.8.1.2 fd00:8::2
/// ```
struct Lab {
    neighbour: Ns,
    peer: Ns,
    a: Ns,
    b: Ns,
    c: Ns,
    // Last: the others hang on its links.
    host: Ns,
    nft: Arc<Mutex<Nft>>,
}

fn wanted() -> HostConfig {
    let mut config = config();
    config.workloads.insert(1, workload(7, 3));
    config
}

impl Lab {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let ns = |what: &str| Ns::new(format!("wtnft-{}-{n}-{what}", std::process::id()));
        let lab = Lab {
            neighbour: ns("n"),
            peer: ns("p"),
            a: ns("a"),
            b: ns("b"),
            c: ns("c"),
            host: ns("h"),
            nft: Arc::new(Mutex::new(Nft::new("0123abcd", Repair::Yes))),
        };
        let (h, w) = (&lab.host.name, &lab.neighbour.name);
        lab.host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        ip(&format!(
            "link add lan0 netns {h} type veth peer name eth0 netns {w}"
        ));
        lab.host
            .sh("ip addr add 192.0.2.1/24 dev lan0; ip addr add 2001:db8::1/64 dev lan0 nodad; ip link set lan0 up");
        lab.neighbour
            .sh("ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad; ip link set eth0 up");
        lab.neighbour
            .sh("ip route add 10.0.0.0/8 via 192.0.2.1; ip -6 route add fd00::/16 via 2001:db8::1");
        // A veth stands for the TUN: what matters is its name.
        ip(&format!(
            "link add bw-net7 netns {h} address 02:00:00:00:00:07 type veth peer name tun0 netns {} address 02:00:00:00:00:70",
            lab.peer.name
        ));
        lab.host.sh("ip addr add 10.7.1.1/32 dev bw-net7; ip addr add fd00:7::1/128 dev bw-net7 nodad; ip link set bw-net7 up; ip route add 10.7.0.0/16 dev bw-net7 src 10.7.1.1; ip -6 route add fd00:7::/48 dev bw-net7 src fd00:7::1");
        lab.host.sh("ip neigh add 10.7.2.1 lladdr 02:00:00:00:00:70 dev bw-net7; ip neigh add fd00:7::2:1 lladdr 02:00:00:00:00:70 dev bw-net7");
        lab.peer.sh("ip addr add 10.7.2.1/32 dev tun0; ip addr add fd00:7::2:1/128 dev tun0 nodad; ip link set tun0 up; ip route add 10.7.1.1 dev tun0; ip route add 0.0.0.0/0 via 10.7.1.1; ip -6 route add fd00:7::1 dev tun0; ip -6 route add ::/0 via fd00:7::1; ip neigh add 10.7.1.1 lladdr 02:00:00:00:00:07 dev tun0; ip neigh add fd00:7::1 lladdr 02:00:00:00:00:07 dev tun0");
        lab.host.sh("ip tuntap add dev bw-net8 mode tun; ip addr add 10.8.1.1/32 dev bw-net8; ip addr add fd00:8::1/128 dev bw-net8 nodad; ip link set bw-net8 up");
        for (ns, n, w) in [(&lab.a, 7u8, 2u8), (&lab.b, 7, 3), (&lab.c, 8, 2)] {
            let link = format!("bwv{n:04}{w:04}");
            let (out, inn) = (
                format!("02:00:00:{n:02}:{w:02}:01"),
                format!("02:00:00:{n:02}:{w:02}:02"),
            );
            ip(&format!(
                "link add {link} netns {h} address {out} type veth peer name byway0 netns {} address {inn}",
                ns.name
            ));
            lab.host.sh(&format!("ip link set {link} up; ip neigh add 10.{n}.1.{w} lladdr {inn} dev {link}; ip neigh add fd00:{n}::{w} lladdr {inn} dev {link}; ip route add 10.{n}.1.{w} dev {link} src 10.{n}.1.1; ip -6 route add fd00:{n}::{w} dev {link} src fd00:{n}::1"));
            ns.sh(&format!("ip addr add 10.{n}.1.{w}/32 dev byway0; ip addr add fd00:{n}::{w}/128 dev byway0 nodad; ip link set byway0 up; ip neigh add 10.{n}.1.1 lladdr {out} dev byway0; ip neigh add fd00:{n}::1 lladdr {out} dev byway0; ip route add 10.{n}.1.1 dev byway0; ip route add default via 10.{n}.1.1; ip -6 route add fd00:{n}::1 dev byway0; ip -6 route add default via fd00:{n}::1"));
            ns.serve(80);
        }
        lab.peer.serve(80);
        lab
    }

    fn sync(&self, config: &HostConfig) -> Vec<String> {
        self.sync_barred(config, &Barred::default())
    }

    fn sync_barred(&self, config: &HostConfig, barred: &Barred) -> Vec<String> {
        let (nft, config, barred) = (self.nft.clone(), config.clone(), barred.clone());
        self.host
            .run(async move { nft.lock().await.sync(&config, &barred, &Crowd::new()).await })
            .unwrap()
    }

    fn counts(&self) -> Counts {
        let nft = self.nft.clone();
        self.host
            .run(async move { nft.lock().await.counters().await })
            .unwrap()
    }

    fn table(&self) -> String {
        let nft = Arc::clone(&self.nft);
        self.host
            .run(async move { nft.lock().await.table().to_owned() })
    }

    fn ruleset(&self) -> String {
        self.host.sh("nft -s list ruleset")
    }
}

fn web() -> Vec<MapConfig> {
    let mut remote = [
        map(7, Proto::Tcp, "192.0.2.1", 9090, "10.7.2.1", 80),
        map(7, Proto::Udp, "2001:db8::1", 9090, "fd00:7::2:1", 80),
    ];
    remote.iter_mut().for_each(|m| m.local = false);
    let mut maps = remote.to_vec();
    for proto in [Proto::Tcp, Proto::Udp] {
        maps.push(map(7, proto, "0.0.0.0", 8080, "10.7.1.2", 80));
        maps.push(map(7, proto, "::", 8080, "fd00:7::2", 80));
    }
    maps
}

fn addr(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
#[ignore = "needs root"]
fn maps_answer_from_everywhere_and_only_as_asked() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    assert!(lab.sync(&config).is_empty());
    let n = &lab.neighbour;
    // From outside, a local target sees the client.
    assert_eq!(n.tcp("192.0.2.1:8080"), addr("192.0.2.2"));
    assert_eq!(n.tcp("[2001:db8::1]:8080"), addr("2001:db8::2"));
    assert_eq!(n.udp("192.0.2.1:8080", PATIENCE), addr("192.0.2.2"));
    assert_eq!(n.udp("[2001:db8::1]:8080", PATIENCE), addr("2001:db8::2"));
    // A target on another peer sees this node.
    assert_eq!(n.tcp("192.0.2.1:9090"), addr("10.7.1.1"));
    assert_eq!(n.udp("[2001:db8::1]:9090", PATIENCE), addr("fd00:7::1"));
    // This machine's own clients.
    assert!(lab.host.tcp("192.0.2.1:8080").is_some());
    assert!(lab.host.tcp("[2001:db8::1]:8080").is_some());
    assert!(lab.host.udp("192.0.2.1:8080", PATIENCE).is_some());
    assert_eq!(lab.host.tcp("192.0.2.1:9090"), addr("10.7.1.1"));
    // Hairpin: from another workload, from one of another subnet, and from the target itself.
    assert_eq!(lab.b.tcp("192.0.2.1:8080"), addr("10.7.1.3"));
    assert_eq!(lab.b.tcp("10.7.1.1:8080"), addr("10.7.1.3"));
    assert_eq!(lab.c.tcp("192.0.2.1:8080"), addr("10.8.1.2"));
    assert_eq!(lab.a.tcp("192.0.2.1:8080"), addr("10.7.1.1"));
    assert_eq!(lab.a.tcp("[2001:db8::1]:8080"), addr("fd00:7::1"));
    assert_eq!(lab.a.udp("192.0.2.1:8080", PATIENCE), addr("10.7.1.1"));
    // A member.
    assert_eq!(lab.peer.tcp("10.7.1.1:8080"), addr("10.7.2.1"));
    // Not asked for: the wrong protocol, the wrong address, the wrong port, the workload itself.
    assert_eq!(n.connect("[2001:db8::1]:9090", SILENCE).map(|c| c.1), None);
    assert_eq!(n.udp("192.0.2.1:9090", SILENCE), None);
    assert_eq!(
        lab.peer.connect("10.7.1.1:9090", SILENCE).map(|c| c.1),
        None
    );
    for direct in ["10.7.1.2:80", "[fd00:7::2]:80"] {
        assert_eq!(n.connect(direct, SILENCE).map(|c| c.1), None, "{direct}");
        assert_eq!(n.udp(direct, SILENCE), None, "{direct}");
    }
    let counts = lab.counts();
    let key = MapKey {
        proto: Proto::Tcp,
        listen: "0.0.0.0".parse().unwrap(),
        port: 8080,
    };
    let web = counts.maps[&key];
    assert_eq!(web.connections, 7, "{counts:?}");
    assert!(web.rx_bytes > 7 * 100 && web.tx_bytes > 7 * 100, "{web:?}");
    let remote = counts.maps[&MapKey {
        listen: "192.0.2.1".parse().unwrap(),
        port: 9090,
        ..key
    }];
    assert_eq!(remote.connections, 2);
    assert!(counts.drops["weak_host"].packets > 0, "{counts:?}");
}

#[test]
#[ignore = "needs root"]
fn workloads_keep_to_their_address_and_subnet() {
    let lab = Lab::new();
    assert!(lab.sync(&wanted()).is_empty());
    lab.host.serve(7777);
    // Same subnet, gateway, member: yes.
    assert_eq!(lab.a.tcp("10.7.1.3:80"), addr("10.7.1.2"));
    assert_eq!(lab.a.tcp("[fd00:7::3]:80"), addr("fd00:7::2"));
    assert!(lab.a.ping("10.7.1.1") && lab.a.ping("fd00:7::1") && lab.peer.ping("10.7.1.1"));
    // Another subnet, the LAN, ports and other addresses of the host: no.
    assert!(!lab.a.ping("10.8.1.2") && !lab.a.ping("10.8.1.1") && !lab.a.ping("fd00:8::2"));
    assert!(!lab.a.ping("192.0.2.2"));
    assert_eq!(lab.a.connect("192.0.2.1:7777", SILENCE).map(|c| c.1), None);
    assert_eq!(
        lab.a.connect("[2001:db8::1]:7777", SILENCE).map(|c| c.1),
        None
    );
    assert_eq!(lab.a.connect("10.8.1.1:7777", SILENCE).map(|c| c.1), None);
    assert_eq!(
        lab.peer.connect("192.0.2.1:7777", SILENCE).map(|c| c.1),
        None
    );
    // Somebody else's address, both families.
    lab.a
        .sh("ip addr add 10.7.1.3/32 dev byway0; ip addr add fd00:7::3/128 dev byway0 nodad");
    assert!(!lab.a.ping("-I 10.7.1.3 10.7.1.1") && !lab.a.ping("-I fd00:7::3 fd00:7::1"));
    assert!(lab.a.ping("-I 10.7.1.2 10.7.1.1"));
    // A neighbour that sends to, or as, the overlay.
    assert!(!lab.neighbour.ping("10.7.1.1") && !lab.neighbour.ping("fd00:7::1"));
    lab.neighbour.sh("ip addr add 10.7.2.9/32 dev eth0");
    assert!(!lab.neighbour.ping("-I 10.7.2.9 192.0.2.1"));
    assert!(
        lab.neighbour.ping("192.0.2.1"),
        "other traffic is not ours to judge"
    );
    let drops = lab.counts().drops;
    for reason in ["filtered", "source_not_leased", "weak_host"] {
        assert!(drops[reason].packets > 0, "{reason}: {drops:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn removing_a_map_leaves_the_ruleset_as_it_was_and_ends_its_flows() {
    let lab = Lab::new();
    lab.host.sh("nft 'add table ip admin; add chain ip admin c { type filter hook input priority 0; }; add rule ip admin c tcp dport 22 accept'");
    let mut config = wanted();
    assert!(lab.sync(&config).is_empty());
    let before = lab.ruleset();
    config.maps = web();
    config.maps[0].allow = vec!["192.0.2.0/25".parse().unwrap()];
    lab.sync(&config);
    let stream = |to: &str| {
        lab.neighbour
            .connect(to, PATIENCE)
            .map(|(s, _)| Arc::new(Mutex::new(s)))
            .unwrap()
    };
    let (kept, cut) = (stream("192.0.2.1:9090"), stream("192.0.2.1:8080"));
    let cut6 = stream("[2001:db8::1]:8080");
    assert!(echoes(&lab.neighbour, &cut, PATIENCE) && echoes(&lab.neighbour, &cut6, PATIENCE));
    config.maps.retain(|m| m.port != 8080);
    lab.sync(&config);
    assert!(!echoes(&lab.neighbour, &cut, SILENCE) && !echoes(&lab.neighbour, &cut6, SILENCE));
    assert!(
        echoes(&lab.neighbour, &kept, PATIENCE),
        "flows of other maps go on"
    );
    config.maps.clear();
    lab.sync(&config);
    assert!(!echoes(&lab.neighbour, &kept, SILENCE));
    assert_eq!(lab.ruleset(), before);
    // The table goes with the last subnet; the administrator's stays.
    lab.sync(&HostConfig::default());
    let left = lab.ruleset();
    assert!(
        left.contains("table ip admin") && !left.contains("byway"),
        "{left}"
    );
}

#[test]
#[ignore = "needs root"]
fn a_target_that_moves_takes_new_flows_and_ends_old_ones() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = vec![map(7, Proto::Tcp, "0.0.0.0", 8080, "10.7.1.2", 80)];
    lab.sync(&config);
    let old = Arc::new(Mutex::new(
        lab.neighbour.connect("192.0.2.1:8080", PATIENCE).unwrap().0,
    ));
    config.maps[0].target = addr("10.7.2.1");
    config.maps[0].local = false;
    lab.sync(&config);
    assert!(!echoes(&lab.neighbour, &old, SILENCE));
    assert_eq!(lab.neighbour.tcp("192.0.2.1:8080"), addr("10.7.1.1"));
    let key = MapKey::of(&config.maps[0]);
    assert_eq!(
        lab.counts().maps[&key].connections,
        2,
        "the count of a map outlives its target"
    );
}

#[test]
#[ignore = "needs root"]
fn only_allowed_clients_reach_a_guarded_map() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    for map in &mut config.maps {
        map.allow = vec![
            "203.0.113.0/24".parse().unwrap(),
            "2001:db8:1::/48".parse().unwrap(),
        ];
    }
    lab.sync(&config);
    let n = &lab.neighbour;
    for closed in ["192.0.2.1:8080", "[2001:db8::1]:8080", "192.0.2.1:9090"] {
        assert_eq!(n.connect(closed, SILENCE).map(|c| c.1), None, "{closed}");
        assert_eq!(n.udp(closed, SILENCE), None, "{closed}");
    }
    for map in &mut config.maps {
        map.allow.push("192.0.2.2/32".parse().unwrap());
        map.allow.push("2001:db8::/64".parse().unwrap());
    }
    lab.sync(&config);
    assert_eq!(n.tcp("192.0.2.1:8080"), addr("192.0.2.2"));
    assert_eq!(n.tcp("[2001:db8::1]:8080"), addr("2001:db8::2"));
    assert_eq!(n.tcp("192.0.2.1:9090"), addr("10.7.1.1"));
}

#[test]
#[ignore = "needs root"]
fn deltas_leave_in_the_kernel_what_a_fresh_table_has() {
    let lab = Lab::new();
    let mut full = wanted();
    full.maps = web();
    full.maps[2].allow = vec![
        "192.0.2.0/25".parse().unwrap(),
        "203.0.113.7/32".parse().unwrap(),
    ];
    let mut less = full.clone();
    less.tuns.remove(1);
    less.workloads.truncate(1);
    less.maps.truncate(4);
    less.maps[2].allow = vec!["192.0.2.0/24".parse().unwrap()];
    less.maps[0].target_port = 81;
    // A table written anew has a handle of its own.
    let handle = || {
        lab.host
            .sh("nft -a list table inet byway_0123abcd | head -1")
    };
    lab.sync(&wanted());
    let first = handle();
    for config in [&full, &less, &wanted(), &full, &less] {
        assert!(lab.sync(config).is_empty());
        let listing = {
            let nft = lab.nft.clone();
            lab.host
                .run(async move { nft.lock().await.list().await })
                .unwrap()
                .unwrap()
        };
        assert!(
            listing.elements.same(&elements(config).0),
            "{:?}",
            listing.elements.delta(&elements(config).0)
        );
        assert_eq!(handle(), first, "deltas only");
    }
}

#[test]
#[ignore = "needs root"]
fn a_table_left_by_a_crash_is_taken_over_and_cleaned_up() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    lab.sync(&config);
    let flow = Arc::new(Mutex::new(
        lab.neighbour.connect("192.0.2.1:8080", PATIENCE).unwrap().0,
    ));
    let other = Arc::new(Mutex::new(
        lab.neighbour.connect("192.0.2.1:9090", PATIENCE).unwrap().0,
    ));
    // A new daemon, with one map less.
    let next = Arc::new(Mutex::new(Nft::new("0123abcd", Repair::Yes)));
    let removed = config.maps.remove(0);
    assert_eq!(removed.port, 9090);
    let (nft, wish) = (next.clone(), config.clone());
    lab.host
        .run(async move {
            nft.lock()
                .await
                .sync(&wish, &Barred::default(), &Crowd::new())
                .await
        })
        .unwrap();
    assert!(
        echoes(&lab.neighbour, &flow, PATIENCE),
        "flows of maps that stay go on"
    );
    assert!(
        !echoes(&lab.neighbour, &other, SILENCE),
        "flows of maps that went are over"
    );
    let counts = lab
        .host
        .run(async move { next.lock().await.counters().await })
        .unwrap();
    assert_eq!(counts.maps[&MapKey::of(&config.maps[1])].connections, 1);
    lab.host
        .sh("nft add table inet byway_ffffffff; nft add table inet stranger");
    assert_eq!(
        lab.host.run(cleanup(Some("ffffffff"))).unwrap(),
        ["byway_ffffffff"]
    );
    assert_eq!(lab.host.run(cleanup(None)).unwrap(), ["byway_0123abcd"]);
    assert_eq!(lab.host.run(cleanup(None)).unwrap(), Vec::<String>::new());
    assert_eq!(lab.ruleset().trim(), "table inet stranger {\n}");
    assert!(!echoes(&lab.neighbour, &flow, SILENCE));
}

#[test]
#[ignore = "needs root"]
fn however_many_elements_come_and_go_connections_are_tracked() {
    let lab = Lab::new();
    let mut config = wanted();
    lab.sync(&config);
    for round in 0..40u8 {
        config.tuns[0].others = (1..=40)
            .map(|n| format!("10.7.{n}.{round}/32").parse().unwrap())
            .collect();
        lab.sync(&config);
    }
    lab.sync(&wanted());
    let flow = lab.host.run(async {
        UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .send_to(b"x", "127.0.0.1:9")
            .await
    });
    assert!(flow.is_ok());
    let tracked = lab.host.sh("conntrack -L 2>/dev/null");
    assert!(tracked.contains("dst=127.0.0.1"), "{tracked}");
}

#[test]
#[ignore = "needs root"]
fn a_flooding_workload_leaves_conntrack_to_others() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let before = lab.ruleset();
    lab.a.run(async {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        for port in 0..5000u16 {
            let _ = socket.send_to(b"x", ("10.7.2.1", 10_000 + port)).await;
        }
    });
    let dropped = lab.counts().drops["flood"].packets;
    // What is refilled meanwhile passes.
    let most = 5000 - u64::from(ruleset::WORKLOAD_CONNECTIONS.0);
    assert!((most / 4..=most).contains(&dropped), "{dropped}");
    assert_eq!(lab.b.tcp("10.7.2.1:80"), addr("10.7.1.3"));
    assert_eq!(
        lab.ruleset(),
        before,
        "counting leaves no trace in the listing"
    );
}

#[test]
#[ignore = "needs root"]
fn probes_are_counted_before_and_behind_the_chains_of_others() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let table = lab.table();
    let probe = |port: u16| {
        let payload = probes::payload(&table, probes::Way::Local);
        lab.a.run(async move {
            let socket = UdpSocket::bind("10.7.1.2:0").await.unwrap();
            let _ = socket.send_to(&payload, ("10.7.1.3", port)).await;
        });
        let own = OwnRuns::default();
        let table = table.clone();
        lab.host
            .run(async move { probes::read(&table, &own).await })
            .unwrap()[&(probes::Way::Local, Family::V4)]
    };
    let before = lab.ruleset();
    let heard = lab
        .b
        .run(async { UdpSocket::bind("10.7.1.3:9").await.unwrap() });
    assert_eq!(probe(9), (1, 1), "it enters and comes out");
    // A drop by policy, a drop by rule, before us and behind us: whoever it is.
    for (at, chain) in [
        "0; policy drop; }",
        "-450; policy drop; }",
        "400; policy accept; } ; add rule ip o f udp dport 9 drop",
    ]
    .iter()
    .enumerate()
    {
        lab.host.sh(&format!(
            "nft 'add table ip o; add chain ip o f {{ type filter hook forward priority {chain}'"
        ));
        assert_eq!(probe(9), (2 + at as u64, 1), "{chain}");
        lab.host.sh("nft delete table ip o");
    }
    assert_eq!(probe(9), (5, 2), "and passes again");
    assert_eq!(
        lab.ruleset(),
        before,
        "counting leaves no trace in the listing"
    );
    let mut buffer = [0; 64];
    assert!(
        heard.try_recv_from(&mut buffer).is_err(),
        "a workload never gets one"
    );
}

#[test]
#[ignore = "needs root"]
fn flows_of_a_removed_member_end() {
    let lab = Lab::new();
    lab.sync(&wanted());
    let flow = |to: &str| Arc::new(Mutex::new(lab.a.connect(to, PATIENCE).unwrap().0));
    let flow = flow("10.7.1.3:80");
    assert!(echoes(&lab.a, &flow, PATIENCE));
    let gone: Vec<IpAddr> = addr("10.7.1.3").into_iter().collect();
    let ended = lab
        .host
        .run(async move { conntrack::delete_addresses(&gone).await })
        .unwrap();
    assert_eq!(ended, 1);
    let again: Vec<IpAddr> = addr("10.7.1.3").into_iter().collect();
    assert_eq!(
        lab.host
            .run(async move { conntrack::delete_addresses(&again).await })
            .unwrap(),
        0
    );
}

#[test]
#[ignore = "needs root"]
fn loopback_maps_answer_here_and_nowhere_else() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = web();
    config
        .maps
        .push(map(7, Proto::Tcp, "127.0.0.1", 9000, "10.7.1.2", 80));
    lab.sync(&config);
    let proxies = Arc::new(Mutex::new(Proxies::new()));
    let sync = |maps: &[MapConfig]| {
        let (proxies, maps) = (proxies.clone(), maps.to_vec());
        lab.host
            .run(async move { proxies.lock().await.sync(&maps, &BTreeSet::new()).await })
    };
    assert!(sync(&config.maps).is_empty());
    for (tcp, seen) in [
        ("127.0.0.1:8080", "10.7.1.1"),
        ("[::1]:8080", "fd00:7::1"),
        ("127.0.0.1:9000", "10.7.1.1"),
    ] {
        assert_eq!(lab.host.tcp(tcp), addr(seen), "{tcp}");
    }
    assert_eq!(lab.host.udp("127.0.0.1:8080", PATIENCE), addr("10.7.1.1"));
    assert_eq!(lab.host.udp("[::1]:8080", PATIENCE), addr("fd00:7::1"));
    // From the LAN: the port on loopback is closed, however it is asked for.
    assert_eq!(
        lab.neighbour
            .connect("192.0.2.1:9000", SILENCE)
            .map(|c| c.1),
        None
    );
    lab.neighbour.sh("ip route add 127.0.0.1/32 via 192.0.2.1 table 77; ip rule add to 127.0.0.1 lookup 77 priority 0; ip link set lo down; sysctl -qw net.ipv4.conf.all.route_localnet=1");
    assert_eq!(
        lab.neighbour
            .connect("127.0.0.1:9000", SILENCE)
            .map(|c| c.1),
        None
    );
    let cut = Arc::new(Mutex::new(
        lab.host.connect("127.0.0.1:8080", PATIENCE).unwrap().0,
    ));
    assert!(sync(&[]).is_empty());
    assert!(!echoes(&lab.host, &cut, SILENCE));
}

#[test]
#[ignore = "needs root"]
fn ten_thousand_maps_change_one_at_a_time() {
    let lab = Lab::new();
    let mut config = wanted();
    config.maps = (10_000u16..20_000)
        .map(|port| map(7, Proto::Tcp, "0.0.0.0", port, "10.7.1.2", 80))
        .collect();
    let start = std::time::Instant::now();
    lab.sync(&config);
    let whole = start.elapsed();
    // As in the daemon: watched, so a change needs no listing.
    let stop = CancellationToken::new();
    let (nft, token) = (lab.nft.clone(), stop.clone());
    let watching = lab.host.run(async move {
        let watcher = nft.lock().await.watch().unwrap();
        // In a tuple: the task is joined at the end, outside.
        (tokio::spawn(watcher.run(token)),)
    });
    lab.sync(&config);
    let last = config.maps.pop().unwrap();
    let start = std::time::Instant::now();
    lab.sync(&config);
    let change = start.elapsed();
    let start = std::time::Instant::now();
    let (before, after) = (
        elements(&config).0,
        elements(&HostConfig {
            maps: vec![],
            ..config.clone()
        })
        .0,
    );
    assert_eq!(before.ended(&after).len(), 9_999);
    let pure = start.elapsed();
    eprintln!(
        "10,000 maps: whole table {whole:?}, one change {change:?}, elements and their difference {pure:?}"
    );
    assert!(lab.neighbour.tcp("192.0.2.1:19998").is_some());
    assert_eq!(
        lab.neighbour
            .connect(&format!("192.0.2.1:{}", last.port), SILENCE)
            .map(|c| c.1),
        None
    );
    stop.cancel();
    lab.host.run(async move { watching.0.await.unwrap() });
}
