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
use crate::model::host::{MapConfig, Proto};

mod crowd;
mod machine;
mod maps;
mod refused;
mod table;
mod watched;
mod workloads;

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

    fn sync(&self, config: &HostConfig) -> Vec<Failure> {
        self.sync_barred(config, &Barred::default())
    }

    fn sync_barred(&self, config: &HostConfig, barred: &Barred) -> Vec<Failure> {
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
