//! Packets: where they arrive, and where they must not.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use byway::api::types::{Admission, Cidr, Request, Role};
use byway::model::id::SubnetId;
use byway::p2p::Event;
use byway::tun::memory::MemoryKernel;
use etherparse::PacketBuilder;
use futures::AsyncReadExt;

use super::hostile::{Hostile, write};
use super::node::{Node, PATIENCE, two, until};

/// A UDP packet that carries a word.
pub fn packet(from: IpAddr, to: IpAddr, word: &str) -> Vec<u8> {
    let builder = match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("one family"),
    };
    let mut bytes = Vec::new();
    builder
        .udp(4000, 4001)
        .write(&mut bytes, word.as_bytes())
        .unwrap();
    bytes
}

/// The next packet that comes out of a TUN.
async fn next(tap: &MemoryKernel, limit: Duration) -> Option<Vec<u8>> {
    let tap = tap.clone();
    tokio::task::spawn_blocking(move || tap.read(limit).map(|(_, packet)| packet))
        .await
        .unwrap()
}

/// Reads until `wanted` comes out; gives what came before it. `again` is called for every quiet moment.
async fn read_until(tap: &MemoryKernel, wanted: &[u8], mut again: impl FnMut()) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = Vec::new();
    while Instant::now() < deadline {
        match next(tap, Duration::from_millis(200)).await {
            Some(packet) if packet == wanted => return before,
            Some(packet) => before.push(packet),
            None => again(),
        }
    }
    panic!("the packet did not arrive; {} others did", before.len());
}

/// Sends a packet into one TUN until it comes out of the other; gives what came out before it.
pub async fn arrives(from: &MemoryKernel, to: &MemoryKernel, packet: &[u8]) -> Vec<Vec<u8>> {
    from.inject(packet);
    read_until(to, packet, || from.inject(packet)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_pass_both_ways_over_v4_and_v6() {
    let (a, b, id) = two().await;
    let (ta, tb) = (a.tap(id), b.tap(id));
    for v4 in [true, false] {
        let (from, to) = (a.own("lab", v4).await, b.own("lab", v4).await);
        arrives(&ta, &tb, &packet(from, to, "there")).await;
        arrives(&tb, &ta, &packet(to, from, "and back")).await;
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_must_be_leased_to_sender_outbound() {
    let (a, b, id) = two().await;
    let (ta, tb) = (a.tap(id), b.tap(id));
    for v4 in [true, false] {
        let (own, far) = (a.own("lab", v4).await, b.own("lab", v4).await);
        let outside: IpAddr = if v4 {
            "192.0.2.1".parse().unwrap()
        } else {
            "2001:db8::1".parse().unwrap()
        };
        let before = a.drops(id, "source-not-leased").await;
        ta.inject(&packet(far, far, "in the name of the receiver"));
        ta.inject(&packet(outside, far, "in the name of a stranger"));
        let strays = arrives(&ta, &tb, &packet(own, far, "honest")).await;
        assert_eq!(strays, Vec::<Vec<u8>>::new());
        assert!(a.drops(id, "source-not-leased").await >= before + 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_must_be_leased_to_sender_inbound() {
    let (a, b, id) = two().await;
    let (own, far) = (b.own("lab", true).await, a.own("lab", true).await);
    let (own6, far6) = (b.own("lab", false).await, a.own("lab", false).await);
    // The member's machine is in hostile hands: its key speaks, without the daemon's checks.
    let mut mallory = Hostile::start(b.stop().await.seed());
    mallory.meet(&a, &[id]).await;
    let mut stream = mallory.stream_out().await;
    let outside: IpAddr = "192.0.2.1".parse().unwrap();
    let honest = packet(own, far, "honest");
    let forged = [
        packet(far, far, "the receiver's own"),
        packet(outside, far, "nobody's"),
        packet("10.77.200.1".parse().unwrap(), far, "unleased"),
        packet("127.0.0.1".parse().unwrap(), far, "loopback"),
        packet("224.0.0.1".parse().unwrap(), far, "multicast"),
        packet(far6, far6, "the receiver's own"),
        packet("::ffff:10.77.1.1".parse().unwrap(), far6, "mapped"),
        packet(own, outside, "to where it is not"),
        vec![0x45; 7],
        vec![],
        vec![0xff; 60],
    ];
    let mut all = forged.to_vec();
    all.push(packet(own6, far6, "honest"));
    all.push(honest.clone());
    write(&mut stream, &all).await.unwrap();
    let before = read_until(&a.tap(id), &honest, || {}).await;
    assert_eq!(
        before,
        vec![packet(own6, far6, "honest")],
        "nothing but what it may send"
    );
    assert!(a.drops(id, "source-not-leased").await >= 6);
    assert!(a.drops(id, "malformed").await >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_member_is_cut() {
    let (a, b, id) = two().await;
    let (own, far) = (b.own("lab", true).await, a.own("lab", true).await);
    let home = b.stop().await;
    let mut mallory = Hostile::start(home.seed());
    mallory.meet(&a, &[id]).await;
    let mut stream = mallory.stream_out().await;
    let honest = packet(own, far, "while a member");
    write(&mut stream, std::slice::from_ref(&honest))
        .await
        .unwrap();
    read_until(&a.tap(id), &honest, || {}).await;

    a.ok(Request::MemberRemove {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    // From the moment the command returns nothing more is taken, even though the connection may live a breath longer.
    let late = packet(own, far, "too late");
    let _ = write(&mut stream, std::slice::from_ref(&late)).await;
    let closed = mallory
        .wait(|event| matches!(event, Event::Closed { remaining: 0, .. }).then_some(()))
        .await;
    assert!(closed.is_some(), "its connections are closed");
    assert_eq!(next(&a.tap(id), Duration::from_millis(100)).await, None);
    assert!(a.peers("lab").await.len() == 1);

    // It comes back: no stream any more.
    mallory.meet(&a, &[id]).await;
    let control = byway::wire::control::ControlRequest::Compare {
        subnet: id,
        hash: [0; 32],
    };
    assert!(mallory.control(&a, &control).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_never_cross_subnets_and_overlaps_are_refused() {
    let (a, b, lab) = two().await;
    let other = a
        .create_with(
            "home",
            Cidr::Given("10.9.0.0/16".parse().unwrap()),
            Admission::Approve,
        )
        .await
        .unwrap();
    let (_, invite) = a.invite("home", 1, 3_600_000, Role::Member).await;
    b.join(&invite, &[], PATIENCE).await.unwrap();
    overlaps_are_refused(&a, &b).await;

    // Addresses of one subnet, sent into the other's TUN.
    let in_lab = (a.own("lab", true).await, b.own("lab", true).await);
    let in_home = (a.own("home", true).await, b.own("home", true).await);
    a.tap(lab)
        .inject(&packet(in_home.0, in_home.1, "wrong door"));
    a.tap(other.id)
        .inject(&packet(in_lab.0, in_lab.1, "wrong door"));
    a.tap(lab).inject(&packet(in_lab.0, in_home.1, "across"));
    for (id, (from, to)) in [(lab, in_lab), (other.id, in_home)] {
        let strays = arrives(&a.tap(id), &b.tap(id), &packet(from, to, "right door")).await;
        assert_eq!(strays, Vec::<Vec<u8>>::new());
    }
}

/// `home` has 10.9.0.0/16 at both: no prefix that overlaps it is taken, and no name that is taken already.
async fn overlaps_are_refused(a: &Node, b: &Node) {
    let clash = a
        .create_with(
            "third",
            Cidr::Given("10.9.128.0/17".parse().unwrap()),
            Admission::Approve,
        )
        .await;
    let clash = clash.unwrap_err();
    assert_eq!(clash.code, "E-CIDR-OVERLAP");
    assert!(
        clash.hint.starts_with("byway create third --cidr4 auto "),
        "{}",
        clash.hint
    );
    // A subnet made elsewhere with the same prefix is refused at join, and leaves nothing.
    let c = Node::start("c").await;
    let twin = c
        .create_with(
            "twin",
            Cidr::Given("10.9.0.0/16".parse().unwrap()),
            Admission::Approve,
        )
        .await
        .unwrap();
    let clash = b
        .join(twin.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(clash.code, "E-CIDR-OVERLAP");
    assert!(
        clash.hint.starts_with("byway subnet show home "),
        "{}",
        clash.hint
    );
    assert!(b.members("twin").await.is_empty());
    // A name is the founder's to choose, and the joiner's on its machine only.
    let again = a
        .create_with(
            "home",
            Cidr::Given("10.10.0.0/16".parse().unwrap()),
            Admission::Approve,
        )
        .await;
    let again = again.unwrap_err();
    assert_eq!(again.code, "E-SUBNET-EXISTS");
    assert!(
        again.hint.starts_with("byway subnet show home ") && !again.hint.contains("--as"),
        "{}",
        again.hint
    );
    let same = c
        .create_with(
            "lab",
            Cidr::Given("10.11.0.0/16".parse().unwrap()),
            Admission::Approve,
        )
        .await
        .unwrap();
    let same = b
        .join(same.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(same.code, "E-SUBNET-EXISTS");
    assert!(
        same.hint.starts_with("byway join INVITE --as OTHER "),
        "{}",
        same.hint
    );
}

/// Reads frames until one holds `wanted`.
async fn carried(stream: &mut byway::p2p::DataStream, wanted: &[u8]) -> bool {
    let read = async {
        let mut seen = Vec::new();
        let mut chunk = [0; 4096];
        while !seen.windows(wanted.len()).any(|w| w == wanted) {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return false,
                Ok(n) => seen.extend_from_slice(&chunk[..n]),
            }
        }
        true
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or(false)
}

async fn stream_in(peer: &mut Hostile) -> (u64, SubnetId, byway::p2p::DataStream) {
    let event = peer.wait(|event| match event {
        Event::StreamIn {
            connection,
            subnet,
            stream,
            ..
        } => Some((connection, subnet, stream)),
        _ => None,
    });
    event.await.expect("a stream")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_connection_carries_packets() {
    let (a, b, id) = two().await;
    let (own, far) = (a.own("lab", true).await, b.own("lab", true).await);
    let mut peer = Hostile::start(b.stop().await.seed());
    peer.meet(&a, &[id]).await;
    let (first, _, mut older) = stream_in(&mut peer).await;
    let one = packet(own, far, "over the first");
    a.tap(id).inject(&one);
    assert!(carried(&mut older, &one).await);
    // A second connection, while the first still lives.
    peer.meet(&a, &[id]).await;
    let (second, _, mut newer) = stream_in(&mut peer).await;
    assert!(second > first);
    let two = packet(own, far, "over the second");
    let sent = tokio::spawn({
        let (tap, two) = (a.tap(id), two.clone());
        async move {
            // The daemon may still be about to take the new stream into use.
            for _ in 0..50 {
                tap.inject(&two);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    assert!(carried(&mut newer, &two).await);
    sent.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_pass_again_after_a_restart_at_the_same_addresses() {
    let (a, b, id) = two().await;
    let (from, to) = (a.own("lab", true).await, b.own("lab", true).await);
    let b = b.stop().await.start().await;
    assert_eq!(b.own("lab", true).await, to);
    let began = Instant::now();
    until("a TUN", || async { b.reaches(a.peer).await }).await;
    arrives(&a.tap(id), &b.tap(id), &packet(from, to, "again")).await;
    assert!(began.elapsed() < Duration::from_secs(10));
}
