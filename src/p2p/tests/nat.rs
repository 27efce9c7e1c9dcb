//! Two hosts, each behind a NAT that lets nothing in: a hole punched through both, by ourselves and by stock DCUtR. Needs
//! root.

use std::process::Command as Process;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use libp2p::Multiaddr;
use libp2p::core::{Endpoint, Transport as _};

use super::stock::{Transport, accepted, dial_options, key, opened, ours};
use super::*;

const LISTEN: &str = "/ip4/0.0.0.0/udp/4100/quic-v1";

/// `a` - router - router - `b`, in this order, and the switch between the routers, which has the address [`BETWEEN`].
pub(super) struct Nats([String; 5]);

/// Where the first of the two hosts is in [`Nats`].
pub(super) const A: usize = 0;
/// Where the second is.
pub(super) const B: usize = 3;
/// Where the switch is: both hosts reach what listens there.
pub(super) const SWITCH: usize = 4;
/// The address of the switch.
pub(super) const BETWEEN: &str = "192.0.2.3";

fn ip(args: &str) {
    assert!(
        Process::new("ip")
            .args(args.split(' '))
            .status()
            .unwrap()
            .success(),
        "ip {args}"
    );
}

impl Nats {
    pub(super) fn new() -> Nats {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let names = ["a", "ra", "rb", "b", "sw"].map(|side| format!("p2p-nat-{id}-{side}"));
        names
            .iter()
            .for_each(|name| ip(&format!("netns add {name}")));
        let nats = Nats(names);
        let [a, ra, rb, b, switch] = &nats.0;
        ip(&format!("-n {switch} link add sw type bridge"));
        ip(&format!("-n {switch} addr add {BETWEEN}/24 dev sw"));
        ip(&format!("-n {switch} link set sw up"));
        for (n, host, router) in [(1, a, ra), (2, b, rb)] {
            ip(&format!(
                "-n {router} link add wan type veth peer name p{n} netns {switch}"
            ));
            ip(&format!("-n {switch} link set p{n} master sw up"));
            ip(&format!(
                "-n {host} link add lan type veth peer name lan netns {router}"
            ));
            ip(&format!("-n {host} addr add 10.{n}.0.2/24 dev lan"));
            ip(&format!("-n {router} addr add 10.{n}.0.1/24 dev lan"));
            ip(&format!("-n {router} addr add 192.0.2.{n}/24 dev wan"));
            for (space, link) in [
                (host, "lo"),
                (host, "lan"),
                (router, "lo"),
                (router, "lan"),
                (router, "wan"),
            ] {
                ip(&format!("-n {space} link set {link} up"));
            }
            ip(&format!("-n {host} route add default via 10.{n}.0.1"));
            ip(&format!(
                "netns exec {router} sysctl -qw net.ipv4.ip_forward=1"
            ));
            // Whatever the router did not translate itself ends there.
            let rules = "add table ip nat { chain out { type nat hook postrouting priority 100; oifname wan masquerade; }; chain in { type filter hook input priority 0; iifname wan drop; }; }";
            let nft = Process::new("ip")
                .args(["netns", "exec", router, "nft", rules])
                .status()
                .unwrap();
            assert!(nft.success());
        }
        nats
    }

    /// Runs what `body` returns on a thread that lives in one of the namespaces.
    pub(super) fn at<F: Future<Output = ()>>(
        &self,
        side: usize,
        body: impl FnOnce() -> F + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let path = format!("/run/netns/{}", self.0[side]);
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move { body().await });
        })
    }

    fn inside<F: Future<Output = ()>>(
        &self,
        side: usize,
        body: impl FnOnce(Transport) -> F + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        self.at(side, move || async move {
            let mut transport = ours(u8::try_from(side).unwrap() + 1, LISTEN);
            transport
                .listen_on(
                    libp2p::core::transport::ListenerId::next(),
                    LISTEN.parse().unwrap(),
                )
                .unwrap();
            body(transport).await;
        })
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.0
            .iter()
            .for_each(|name| ip(&format!("netns del {name}")));
    }
}

/// Drives a transport beside a dial of its own.
async fn dialled(
    transport: &mut Transport,
    to: &str,
    role: Endpoint,
) -> Result<(libp2p::PeerId, libp2p::core::muxing::StreamMuxerBox), std::io::Error> {
    let dial = transport
        .dial(to.parse::<Multiaddr>().unwrap(), dial_options(role))
        .unwrap();
    let mut dial = std::pin::pin!(dial);
    std::future::poll_fn(|cx| {
        while std::pin::Pin::new(&mut *transport).poll(cx).is_ready() {}
        dial.as_mut().poll(cx)
    })
    .await
}

#[test]
#[ignore = "needs root"]
fn a_hole_is_punched_through_two_nats() {
    let nats = Nats::new();
    let (go, start) = tokio::sync::oneshot::channel();
    let (done, finish) = tokio::sync::oneshot::channel::<()>();
    let b = nats.inside(B, move |mut transport| async move {
        start.await.unwrap();
        let to = "/ip4/192.0.2.1/udp/4100/quic-v1";
        let (peer, mut muxer) = dialled(&mut transport, to, Endpoint::Listener)
            .await
            .unwrap();
        assert_eq!(peer, key(1).public().to_peer_id());
        let mut stream = accepted(&mut muxer).await;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
        stream.close().await.unwrap();
        finish.await.ok();
    });
    let a = nats.inside(A, move |mut transport| async move {
        let to = "/ip4/192.0.2.2/udp/4100/quic-v1";
        assert!(
            dialled(&mut transport, to, Endpoint::Dialer).await.is_err(),
            "the NAT lets nothing in"
        );
        go.send(()).unwrap();
        let begun = Instant::now();
        let (peer, mut muxer) = dialled(&mut transport, to, Endpoint::Dialer).await.unwrap();
        assert_eq!(peer, key(4).public().to_peer_id());
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}",
            begun.elapsed()
        );
        let mut stream = opened(&mut muxer).await;
        stream.write_all(b"through").await.unwrap();
        stream.close().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"through");
        drop(done);
    });
    let (a, b) = (a.join(), b.join());
    a.unwrap();
    b.unwrap();
}
