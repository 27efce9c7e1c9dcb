//! Real sockets on loopback.

mod sockets;
mod subnets;
mod upstream;

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UdpSocket;

use super::*;
use crate::model::routes::RouteTable;
use crate::model::view::SubnetView;
use crate::model::zone::Zone;

/// A subnet whose own addresses are on loopback, in a /16 of its own so that tests do not share ports.
fn subnet(id: u8, addresses: &[&str], zone: Arc<Zone>) -> SubnetView {
    SubnetView {
        id: SubnetId([id; 16]),
        name: "lab".parse().unwrap(),
        interface: "bw-lab".to_owned(),
        cidr4: None,
        cidr6: None,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mtu: 1280,
        routes: Arc::new(RouteTable::default()),
        here: Default::default(),
        members: Default::default(),
        hosts: Default::default(),
        data_keys: Default::default(),
        zone,
    }
}

fn view(subnets: Vec<SubnetView>) -> View {
    let subnets = subnets.into_iter().map(|s| (s.id, Arc::new(s))).collect();
    View {
        generation: 1,
        subnets,
        ..View::default()
    }
}

struct Running {
    dns: Dns,
    view: Arc<ArcSwap<View>>,
    tick: watch::Sender<u64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    port: u16,
}

impl Running {
    fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        self.tick.send_modify(|t| *t += 1);
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

static PORT: AtomicU64 = AtomicU64::new(0);

fn free_port() -> u16 {
    // Below the ephemeral range, apart for each test of this process and likely for other processes.
    let step = PORT.fetch_add(1, Ordering::Relaxed);
    u16::try_from(20_000 + (u64::from(std::process::id()) * 16 + step) % 10_000).unwrap()
}

fn start(view: View, upstreams: Vec<SocketAddr>) -> Running {
    let port = free_port();
    let config = DnsConfig {
        port,
        upstreams: Some(upstreams),
        ..DnsConfig::default()
    };
    let dns = Dns::new(config);
    let view = Arc::new(ArcSwap::from_pointee(view));
    let (tick, ticks) = watch::channel(0);
    let stop = CancellationToken::new();
    let task = tokio::spawn(
        dns.clone()
            .run(Arc::clone(&view), ticks, no_formers(), stop.clone()),
    );
    Running {
        dns,
        view,
        tick,
        stop,
        task,
        port,
    }
}

/// No container had a resolver of its own.
fn no_formers() -> Formers {
    let door: Door = Arc::new(|_, _, _| Box::pin(async { Err(io::ErrorKind::Unsupported.into()) }));
    Formers {
        file: watch::channel(0).1,
        applied: watch::channel(Applied::default()).1,
        door,
    }
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(absolute(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Asks over UDP until there is an answer: the server may not have bound yet.
async fn ask(to: SocketAddr, name: &str, kind: RecordType) -> Message {
    let local: SocketAddr = if to.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    }
    .parse()
    .unwrap();
    let bytes = question(name, kind);
    for _ in 0..100 {
        let socket = UdpSocket::bind(local).await.unwrap();
        socket.connect(to).await.unwrap();
        let mut reply = vec![0; 4096];
        let sent = socket.send(&bytes).await;
        if sent.is_ok()
            && let Ok(Ok(n)) =
                tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut reply)).await
        {
            return Message::from_vec(&reply[..n]).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no answer from {to}");
}
